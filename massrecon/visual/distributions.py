"""The figure of distributions: generated partons against true ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.posterior import Posterior
from massrecon.inference.statistics import clusters, effective_size, mean_with_error
from massrecon.inference.twosample import bin_shares, paired_agreement
from massrecon.visual.template import (
    BAND,
    BLACK,
    BLUE,
    LEGEND_ABOVE,
    finish,
    target_label,
)

_COLUMNS = 4
_NATURAL_WIDTH = 1e-4  # a fixed mass still has the narrow width of its particle
_RATIO_RANGE = (0.5, 1.5)


@dataclass(frozen=True, eq=False)
class _Shares:
    """Shares of events in the bins of one target, with errors, each of shape (B,)."""

    edges: np.ndarray
    truth: np.ndarray
    truth_error: np.ndarray
    generated: np.ndarray
    generated_error: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        return (self.edges[1:] + self.edges[:-1]) / 2


def truth_against_generated(posterior: Posterior, n_bins: int = 24) -> go.Figure:
    """Draws the generated distribution of every target over the true one, with their ratio.

    Truth and draws belong to the same events, so their distributions fluctuate together. The grey
    band around the truth is the error of the difference truth − generated, from the spread of the
    differences of events (of groups with one true mass, where the masses are continuous); χ²/dof
    is computed from the same differences. Error bars come from the number of draws alone.

    Args:
        posterior: A posterior with truth.
        n_bins: Bins of each distribution, at most; fewer where the truth has few distinct values.

    Raises:
        InputError: If there is no truth or no event, or fewer than two bins.
    """
    if n_bins < 2:
        raise InputError(f"'n_bins' should be at least 2, got {n_bins}.")
    if len(posterior) == 0:
        raise InputError("The posterior holds no events: there is nothing to show.")
    group = clusters(posterior.true_masses())
    figure = _ratio_grid(len(posterior.target_names))
    for i, name in enumerate(posterior.target_names):
        truth, samples = posterior.true_target(name), posterior.target(name)
        shares = _shares(truth, samples, posterior.weights, group, n_bins)
        label = f"{target_label(posterior.card, name)} [GeV]"
        _add_generated(figure, i, shares)
        if truth.max() - truth.min() <= _NATURAL_WIDTH * truth.abs().max():
            _add_fixed_truth(figure, i, shares, float(truth[0]), label)
            continue
        _add_truth(figure, i, shares)
        _add_ratio(figure, i, shares)
        test = paired_agreement(truth, samples, posterior.weights, group)
        _label_panel(figure, i, label, "" if test is None else f"χ²/dof = {test.per_dof:.2f}")
    figure.update_layout(
        legend={**LEGEND_ABOVE, "y": 1.05, "traceorder": "reversed"},
        margin={"l": 70, "r": 15, "t": 90, "b": 60},
    )
    caption = (
        f"Parton-level truth (line; grey: statistical error of truth − generated, as in χ²/dof) "
        f"and generated values (points; {posterior.n_draws} draws for each of "
        f"{len(posterior):,} events), with the ratio generated/truth below."
    )
    return finish(
        figure, caption, height=150 + 300 * math.ceil(len(posterior.target_names) / _COLUMNS)
    )


def _shares(truth: Tensor, samples: Tensor, weight: Tensor, group: Tensor, n_bins: int) -> _Shares:
    distinct = len(truth.round(decimals=3).unique())
    if distinct > 1:  # a bin needs a few values to show more than the choice of mass points
        n_bins = min(n_bins, max(8, distinct // 8))
    edges = _edges(truth, samples, n_bins)
    inside = slice(1, -1)  # without the open bins below and above
    true_bin = bin_shares(truth[None], edges)[:, inside].T
    by_event = bin_shares(samples, edges)[:, inside].T
    true_share, generated = ((x * weight).sum(1) / weight.sum() for x in (true_bin, by_event))
    _, true_error = mean_with_error(true_bin - by_event, weight, group)
    if len(samples) > 1:
        variance = by_event * (1 - by_event) / (len(samples) - 1)
        error = (variance * weight.square()).sum(1).sqrt() / weight.sum()
    else:
        error = (generated * (1 - generated) / effective_size(weight)).sqrt()
    arrays = (edges, true_share, true_error.nan_to_num(), generated, error)
    return _Shares(*(tensor.cpu().numpy() for tensor in arrays))


def _edges(truth: Tensor, samples: Tensor, n_bins: int) -> Tensor:
    """Returns bin edges over nearly all true and generated values."""
    tails = [np.quantile(x.cpu().numpy(), [0.005, 0.995]) for x in (truth, samples)]
    low, high = min(t[0] for t in tails), max(t[1] for t in tails)
    room = max(0.02 * (high - low), 1e-3 * abs(high), 1e-6)
    return torch.linspace(low - room, high + room, n_bins + 1, dtype=truth.dtype)


def _ratio_grid(n_panels: int) -> go.Figure:
    """Lays out panels in rows of four, each with a ratio panel attached below."""
    columns = min(_COLUMNS, n_panels)
    rows = math.ceil(n_panels / columns)
    figure = make_subplots(2 * rows, columns, horizontal_spacing=0.055)
    gap = 0.17  # for axis titles between the rows
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


def _panel_rows(panel: int) -> tuple[int, int, int]:
    """Returns the row of a panel, the row of its ratio, and its column, counted from one."""
    row, column = divmod(panel, _COLUMNS)
    return 2 * row + 1, 2 * row + 2, column + 1


def _steps(edges: np.ndarray) -> np.ndarray:
    """Returns the corners of a staircase; its heights are repeated twice."""
    return np.repeat(edges, 2)[1:-1]


def _add(figure: go.Figure, row: int, column: int, *traces: go.Scatter) -> None:
    figure.add_traces(traces, rows=[row] * len(traces), cols=[column] * len(traces))


def _add_generated(figure: go.Figure, panel: int, shares: _Shares) -> None:
    upper, lower, column = _panel_rows(panel)
    points = go.Scatter(
        x=shares.centres, y=shares.generated, mode="markers", marker={"color": BLUE, "size": 5},
        error_y={"array": shares.generated_error, "width": 0, "thickness": 1.2},
        name="generated", legendgroup="generated", showlegend=panel == 0,
    )  # fmt: skip
    _add(figure, upper, column, points)
    for row in (upper, lower):
        figure.update_xaxes(range=[shares.edges[0], shares.edges[-1]], row=row, col=column)


def _add_truth(figure: go.Figure, panel: int, shares: _Shares) -> None:
    upper, _, column = _panel_rows(panel)
    x, truth, error = _steps(shares.edges), shares.truth, shares.truth_error
    low, high = np.repeat((truth - error).clip(min=0), 2), np.repeat(truth + error, 2)
    line = go.Scatter(
        x=x, y=np.repeat(truth, 2), mode="lines", line={"color": BLACK, "width": 1.5},
        name="truth", legendgroup="truth", showlegend=panel == 0,
    )  # fmt: skip
    _add(figure, upper, column, *_band(x, low, high), line)


def _add_fixed_truth(
    figure: go.Figure, panel: int, shares: _Shares, value: float, label: str
) -> None:
    """Marks a truth that is the same for all events; it has no distribution to compare with."""
    upper, _, column = _panel_rows(panel)
    line = go.Scatter(
        x=[value, value], y=[0, 1.1 * float(shares.generated.max())], mode="lines",
        line={"color": BLACK, "width": 1.5}, name="truth", legendgroup="truth",
        showlegend=panel == 0,
    )  # fmt: skip
    _add(figure, upper, column, line)
    figure.update_xaxes(showticklabels=True, title_text=label, row=upper, col=column)
    _note(figure, panel, f"truth fixed at {round(value, 1):g} GeV")


def _add_ratio(figure: go.Figure, panel: int, shares: _Shares) -> None:
    """Adds generated/truth; triangles at the edge of the panel point to ratios outside of it."""
    _, lower, column = _panel_rows(panel)
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
    _add(figure, lower, column, *band, one, points)


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[go.Scatter, go.Scatter]:
    style = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False}
    below = go.Scatter(x=x, y=low, **style)
    return below, go.Scatter(x=x, y=high, fill="tonexty", fillcolor=BAND, **style)


def _label_panel(figure: go.Figure, panel: int, label: str, note: str) -> None:
    _, lower, column = _panel_rows(panel)
    figure.update_xaxes(title_text=label, row=lower, col=column)
    _note(figure, panel, note)


def _note(figure: go.Figure, panel: int, text: str) -> None:
    """Writes above a panel."""
    upper, _, column = _panel_rows(panel)
    figure.add_annotation(
        text=text, row=upper, col=column, xref="x domain", yref="y domain", x=0.5, y=1.0,
        yanchor="bottom", showarrow=False, font_size=13,
    )  # fmt: skip
