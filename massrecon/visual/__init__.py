"""Figures: pure functions from results to plotly figures, in one house style."""
