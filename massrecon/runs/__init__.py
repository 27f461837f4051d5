"""Runs: the notebooks executed headless, the demonstration, and its report."""
