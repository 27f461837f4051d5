"""Panels of two distributions with their ratio below: what several figures are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.visual.template import BAND, BLACK, BLUE

COLUMNS = 4
"""Panels in a row."""

_RATIO_RANGE = (0.5, 1.5)


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of events in the bins of one target, with errors, each of shape (B,)."""

    edges: np.ndarray
    truth: np.ndarray
    truth_error: np.ndarray
    generated: np.ndarray
    generated_error: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """Middles of the bins, shape ``(B,)``."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def common_edges(truth: Tensor, samples: Tensor, n_bins: int) -> Tensor:
    """Returns bin edges over nearly all true and generated values."""
    tails = [np.quantile(x.cpu().numpy(), [0.005, 0.995]) for x in (truth, samples)]
    low, high = min(t[0] for t in tails), max(t[1] for t in tails)
    room = max(0.02 * (high - low), 1e-3 * abs(high), 1e-6)
    return torch.linspace(low - room, high + room, n_bins + 1, dtype=truth.dtype)


def ratio_grid(n_panels: int) -> go.Figure:
    """Lays out panels in rows of four, each with a ratio panel attached below."""
    columns = min(COLUMNS, n_panels)
    rows = math.ceil(n_panels / columns)
    figure = make_subplots(2 * rows, columns, horizontal_spacing=0.055)
    gap = 0.34 / rows  # for axis titles between the rows
    cell = (1 - gap * (rows - 1)) / rows
    figure.update_xaxes(nticks=5, tickangle=0, tickfont_size=12)
    figure.update_yaxes(nticks=5, tickfont_size=12, exponentformat="none")
    for row in range(rows):
        top = 1 - row * (cell + gap)
        upper, lower = 2 * row + 1, 2 * row + 2
        figure.update_xaxes(showticklabels=False, row=upper)
        figure.update_yaxes(domain=[top - 0.7 * cell, top], rangemode="tozero", row=upper)
        figure.update_yaxes(domain=[max(top - cell, 0), top - 0.74 * cell], row=lower)
        figure.update_yaxes(range=list(_RATIO_RANGE), tickvals=[0.8, 1, 1.2], row=lower)
        figure.update_yaxes(minor_ticks="", row=lower)
        figure.update_yaxes(title_text="share of events / bin", row=upper, col=1)
        figure.update_yaxes(title_text="ratio", row=lower, col=1)
    figure.update_yaxes(title_font_size=13)
    return figure


def panel_rows(panel: int) -> tuple[int, int, int]:
    """Returns the row of a panel, the row of its ratio, and its column, counted from one."""
    row, column = divmod(panel, COLUMNS)
    return 2 * row + 1, 2 * row + 2, column + 1


def _steps(edges: np.ndarray) -> np.ndarray:
    """Returns the corners of a staircase; its heights are repeated twice."""
    return np.repeat(edges, 2)[1:-1]


def add(figure: go.Figure, row: int, column: int, *traces: go.Scatter) -> None:
    """Adds traces to one cell of the grid."""
    figure.add_traces(traces, rows=[row] * len(traces), cols=[column] * len(traces))


def add_generated(figure: go.Figure, panel: int, shares: Shares) -> None:
    """Adds the generated shares as points, and sets the range of the panel."""
    upper, lower, column = panel_rows(panel)
    points = go.Scatter(
        x=shares.centres, y=shares.generated, mode="markers", marker={"color": BLUE, "size": 5},
        error_y={"array": shares.generated_error, "width": 0, "thickness": 1.2},
        name="generated", legendgroup="generated", showlegend=panel == 0,
    )  # fmt: skip
    add(figure, upper, column, points)
    for row in (upper, lower):
        figure.update_xaxes(range=[shares.edges[0], shares.edges[-1]], row=row, col=column)


def add_truth(figure: go.Figure, panel: int, shares: Shares) -> None:
    """Adds the true shares as a staircase in a band of their error."""
    upper, _, column = panel_rows(panel)
    x, truth, error = _steps(shares.edges), shares.truth, shares.truth_error
    low, high = np.repeat((truth - error).clip(min=0), 2), np.repeat(truth + error, 2)
    line = go.Scatter(
        x=x, y=np.repeat(truth, 2), mode="lines", line={"color": BLACK, "width": 1.5},
        name="truth", legendgroup="truth", showlegend=panel == 0,
    )  # fmt: skip
    add(figure, upper, column, *_band(x, low, high), line)


def add_ratio(figure: go.Figure, panel: int, shares: Shares) -> None:
    """Adds generated/truth; triangles at the edge of the panel point to ratios outside of it."""
    _, lower, column = panel_rows(panel)
    low, high = _RATIO_RANGE
    truth = np.where(shares.truth > 0, shares.truth, np.nan)
    ratio, error = shares.generated / truth, shares.generated_error / truth
    relative = np.repeat(np.nan_to_num(shares.truth_error / truth, nan=high), 2)
    symbol = np.select([ratio > high, ratio < low], ["triangle-up", "triangle-down"], "circle")
    one = go.Scatter(
        x=shares.edges[[0, -1]], y=[1, 1], mode="lines", line={"color": BLACK, "width": 1},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    points = go.Scatter(
        x=shares.centres, y=ratio.clip(low, high), mode="markers", name="generated / truth",
        error_y={"array": np.where(symbol == "circle", error, 0), "width": 0, "thickness": 1.2},
        marker={"color": BLUE, "size": 5, "symbol": symbol}, cliponaxis=False, showlegend=False,
    )  # fmt: skip
    band = _band(_steps(shares.edges), (1 - relative).clip(low), (1 + relative).clip(max=high))
    add(figure, lower, column, *band, one, points)


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[go.Scatter, go.Scatter]:
    style = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False}
    below = go.Scatter(x=x, y=low, **style)
    return below, go.Scatter(x=x, y=high, fill="tonexty", fillcolor=BAND, **style)


def label_panel(figure: go.Figure, panel: int, label: str, note: str) -> None:
    """Writes below and above a panel."""
    _, lower, column = panel_rows(panel)
    figure.update_xaxes(title_text=label, row=lower, col=column)
    note_above(figure, panel, note)


def note_above(figure: go.Figure, panel: int, text: str) -> None:
    """Writes above a panel."""
    upper, _, column = panel_rows(panel)
    figure.add_annotation(
        text=text, row=upper, col=column, xref="x domain", yref="y domain", x=0.5, y=1.0,
        yanchor="bottom", showarrow=False, font_size=13,
    )  # fmt: skip
