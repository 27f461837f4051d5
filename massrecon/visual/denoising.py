"""Figures of denoising: the draws of one event on their way from noise to targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.models.trajectory import Trajectory
from massrecon.visual.template import (
    BLACK,
    BLUE,
    LEGEND_ABOVE,
    ORANGE,
    SKY,
    VERMILION,
    drawing,
    finish,
)

_BINS = 40
_MAIN = 0.8  # part of the plane in the figure
_STRIP = 6  # levels of noise beside each other


def denoising_figure(
    way: Trajectory,
    pair: tuple[str, str],
    labels: tuple[str, str],
    step: int,
    event: int = 0,
    truth: Tensor | None = None,
) -> go.Figure:
    """Draws the state of all draws of one event at one level of noise.

    Args:
        way: The way of the draws.
        pair: Names of the targets across and up.
        labels: Their labels, with units.
        step: Number of the level; the last one is that of the draws themselves.
        event: Position of the event in `way`.
        truth: True targets [GeV], shape ``(R,)``; none drawn if not given.

    Raises:
        InputError: If there is no such level or target.
    """
    at = _columns(way, pair)
    if not 0 <= step < len(way):
        raise InputError(f"'step' should be from 0 to {len(way) - 1}, got {step}.")
    points = way.states[step, :, event][:, at].numpy()
    ahead = way.predicted[step, :, event][:, at].numpy()
    true = (None, None) if truth is None else tuple(float(truth[i]) for i in at)
    ranges = [_range(way, event, i, true[k]) for k, i in enumerate(at)]
    hover = "%{x:.0f}, %{y:.0f} GeV<extra></extra>"
    traces = [
        go.Scatter(x=ahead[:, 0], y=ahead[:, 1], mode="markers", name="where the network sees it",
                   marker={"color": ORANGE, "size": 6, "symbol": "circle-open"},
                   hovertemplate=hover),
        go.Scatter(x=points[:, 0], y=points[:, 1], mode="markers", name="draws",
                   marker={"color": BLUE, "size": 6, "opacity": 0.75}, hovertemplate=hover),
        go.Scatter(x=[true[0]], y=[true[1]], mode="markers", name="truth", hovertemplate=hover,
                   marker={"color": VERMILION, "size": 15, "symbol": "star",
                           "line": {"width": 1, "color": BLACK}}),
        *(_marginal(points[:, k], ranges[k], k) for k in (0, 1)),
    ]  # fmt: skip
    caption = (
        f"{len(points)} draws for one event, {_level(way, step)}: what is still noise falls, the "
        "rest is what the draws will be. Open circles: what the network expects at the end."
    )
    layout = _layout(ranges, labels, _level(way, step))
    return drawing(traces, layout, caption, height=560)


def denoising_strip(
    way: Trajectory,
    pair: tuple[str, str],
    labels: tuple[str, str],
    event: int = 0,
    truth: Tensor | None = None,
) -> go.Figure:
    """Draws six levels of noise beside each other, from the first to the draws.

    Args:
        way: The way of the draws.
        pair: Names of the targets across and up.
        labels: Their labels, with units.
        event: Position of the event in `way`.
        truth: True targets [GeV], shape ``(R,)``; none drawn if not given.

    Raises:
        InputError: If there is no such target.
    """
    at = _columns(way, pair)
    shown = sorted({round(i * (len(way) - 1) / (_STRIP - 1)) for i in range(_STRIP)})
    true = (None, None) if truth is None else tuple(float(truth[i]) for i in at)
    ranges = [_range(way, event, i, true[k]) for k, i in enumerate(at)]
    figure = make_subplots(
        cols=len(shown), shared_yaxes=True, horizontal_spacing=0.012,
        subplot_titles=[f"noise {float(way.spread[i]):.2f}" for i in shown],
    )  # fmt: skip
    for column, step in enumerate(shown, 1):
        points = way.states[step, :, event][:, at].numpy()
        figure.add_trace(
            go.Scatter(x=points[:, 0], y=points[:, 1], mode="markers", name="draws",
                       showlegend=column == 1, marker={"color": BLUE, "size": 4, "opacity": 0.6}),
            row=1, col=column,
        )  # fmt: skip
        star = {"color": VERMILION, "size": 11, "symbol": "star", "line": {"width": 1}}
        figure.add_trace(
            go.Scatter(x=[true[0]], y=[true[1]], mode="markers", name="truth", marker=star,
                       showlegend=column == 1),
            row=1, col=column,
        )  # fmt: skip
    figure.update_xaxes(range=ranges[0], tickvals=_two_ticks(*ranges[0]), tickangle=0)
    figure.update_yaxes(range=ranges[1])
    figure.update_xaxes(title_text=labels[0], col=(len(shown) + 1) // 2)
    figure.update_yaxes(title_text=labels[1], col=1)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.12})
    caption = (
        f"The same {way.states.shape[1]} draws at {len(shown)} levels of noise, from pure noise to "
        "the end. The share of the noise is written above."
    )
    return finish(figure, caption, height=340)


def _columns(way: Trajectory, pair: Sequence[str]) -> list[int]:
    for name in pair:
        if name not in way.names:
            raise unknown_name("target", name, way.names)
    return [way.names.index(name) for name in pair]


def _level(way: Trajectory, step: int) -> str:
    signal, spread = float(way.signal[step]), float(way.spread[step])
    return f"step {step} of {len(way) - 1}: {signal:.2f} target + {spread:.2f} noise"


def _range(way: Trajectory, event: int, column: int, true: float | None) -> list[float]:
    """Returns an axis that holds nearly all draws at all levels, and the truth."""
    values = way.states[:, :, event, column].flatten().numpy()
    low, high = np.quantile(values, [0.005, 0.995]).tolist()
    if true is not None:
        low, high = min(low, true), max(high, true)
    room = max(0.06 * (high - low), 1.0)
    return [low - room, high + room]


def _two_ticks(low: float, high: float) -> list[float]:
    """Chooses two round values well inside a narrow axis, whose neighbours have labels, too."""
    unit = 10.0 ** math.floor(math.log10((high - low) / 5))
    inside = (low + 0.22 * (high - low), high - 0.22 * (high - low))
    return [unit * round(value / unit) for value in inside]


def _marginal(values: np.ndarray, limits: Sequence[float], k: int) -> go.Scatter:
    """Draws the distribution along an axis: above the plane, or to its right."""
    share, edges = np.histogram(values, _BINS, range=(limits[0], limits[1]))
    x, y = np.repeat(edges, 2)[1:-1], np.repeat(share, 2)
    line = {"color": SKY, "width": 2}
    style = {"mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False}
    if k == 0:
        return go.Scatter(x=x, y=y, xaxis="x2", yaxis="y2", fill="tozeroy", **style)
    return go.Scatter(x=y, y=x, xaxis="x3", yaxis="y3", fill="tozerox", **style)


def _layout(ranges: Sequence[Sequence[float]], labels: Sequence[str], title: str) -> dict[str, Any]:
    quiet = {"showticklabels": False, "ticks": "", "rangemode": "tozero", "minor": {"ticks": ""}}
    along = [{"range": ends, "showticklabels": False} for ends in ranges]
    main, side = [0, _MAIN], [_MAIN + 0.02, 1]
    return {
        "xaxis": {"domain": main, "range": ranges[0], "title": {"text": labels[0]}},
        "yaxis": {"domain": main, "range": ranges[1], "title": {"text": labels[1]}},
        "xaxis2": {"domain": main, "anchor": "y2", **along[0]},
        "yaxis2": {"domain": side, "anchor": "x2", **quiet},
        "xaxis3": {"domain": side, "anchor": "y3", **quiet},
        "yaxis3": {"domain": main, "anchor": "x3", **along[1]},
        "legend": LEGEND_ABOVE | {"y": 1.0},
        "title": {"text": title, "x": 0.5, "font": {"size": 15}},
    }
