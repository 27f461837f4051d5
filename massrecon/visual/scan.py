"""Figures of a scan: one of its results over one or two of its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from massrecon.errors import InputError, unknown_name
from massrecon.visual.template import COLOURS, DASHES, MARKERS, finish

Columns = Mapping[str, Sequence[Any]]
"""A table as columns by name, such as ``load_catalogue(folder).to_pydict()``."""


def scan_map(
    columns: Columns,
    x: str,
    y: str,
    value: str,
    label: str = "",
    scale: float = 1.0,
    axes: Mapping[str, str] | None = None,
    error: str = "",
) -> go.Figure:
    """Draws a result over two axes as a heat-map; points at the same place are averaged.

    Args:
        columns: Catalogue of a scan.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        value: Name of the result, such as ``summary.efficiency.chi10.window.30.value``.
        label: What the result is called, with its unit; its name if not given.
        scale: Number that results are multiplied with, such as 100 for per cent.
        axes: What axes are called, with their units, by name.
        error: Name of the statistical error of each result; if not given, the error of a mean is
            that of the spread of its points.

    Raises:
        InputError: If a column is not there, holds no numbers, or no point has a result.
    """
    at, results = _numbers(columns, (x, y), value, error)
    called = {x: x, y: y, **(axes or {})}
    ticks = [np.unique(column) for column in at]
    mean = np.full((len(ticks[1]), len(ticks[0])), np.nan)
    width, count = mean.copy(), np.zeros_like(mean)
    for place, values in _by_place(at, scale * results).items():
        cell = tuple(int(np.searchsorted(t, p)) for t, p in zip(ticks, place, strict=True))[::-1]
        mean[cell], width[cell], count[cell] = values[0].mean(), _error(values), values.shape[1]
    several = bool((count > 1).any())
    text = np.vectorize(lambda v, e: _cell_text(v, e, several or bool(error)))(mean, width)
    figure = go.Figure(
        go.Heatmap(
            x=[f"{v:g}" for v in ticks[0]], y=[f"{v:g}" for v in ticks[1]], z=mean,
            text=text, texttemplate="%{text}", colorscale="Viridis", hoverongaps=False,
            hovertext=np.vectorize(_hover_text, otypes=[str])(mean, width, count),
            hovertemplate=f"{x} %{{x}}, {y} %{{y}}: %{{hovertext}}<extra></extra>",
            colorbar={"title": {"text": label or value, "side": "right"}, "thickness": 14},
        )
    )  # fmt: skip
    figure.update_xaxes(title_text=called[x], type="category")
    figure.update_yaxes(title_text=called[y], type="category")
    caption = f"{label or value} over {called[x]} and {called[y]}: {results.shape[1]:,} points" + (
        ", averaged where there are several" if several else ""
    )
    caption += (
        (", with statistical errors." if error else ", with the error of the mean.")
        if (several or error)
        else "."
    )
    return finish(figure, caption, height=480)


def scan_curve(
    columns: Columns,
    x: str,
    value: str,
    by: str | None = None,
    label: str = "",
    scale: float = 1.0,
    axes: Mapping[str, str] | None = None,
    error: str = "",
) -> go.Figure:
    """Draws a result against one axis, points at the same place averaged.

    Args:
        columns: Catalogue of a scan.
        x: Name of the horizontal axis.
        value: Name of the result.
        by: Name of an axis that gets a curve for each of its values.
        label: What the result is called, with its unit; its name if not given.
        scale: Number that results are multiplied with.
        axes: What axes are called, with their units, by name.
        error: Name of the statistical error of each result, see `scan_map`.

    Raises:
        InputError: If a column is not there, holds no numbers, or no point has a result.
    """
    at, results = _numbers(columns, (x,) if by is None else (x, by), value, error)
    called = {x: x, by: by, **(axes or {})}
    figure = go.Figure()
    kinds = [None] if by is None else np.unique(at[1])
    for number, kind in enumerate(kinds):
        rows = np.ones(results.shape[1], bool) if kind is None else at[1] == kind
        places = sorted(_by_place([at[0][rows]], scale * results[:, rows]).items())
        colour = COLOURS[number % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[place[0] for place, _ in places], y=[v[0].mean() for _, v in places],
                error_y={"array": [_error(v) for _, v in places], "width": 0},
                mode="lines+markers", name="" if kind is None else f"{called[by]} = {kind:g}",
                line={"color": colour, "dash": DASHES[number % len(DASHES)]},
                marker={"symbol": MARKERS[number % len(MARKERS)], "size": 8},
                showlegend=kind is not None,
            )
        )  # fmt: skip
    figure.update_xaxes(title_text=called[x])
    figure.update_yaxes(title_text=label or value)
    caption = (
        f"{label or value} against {called[x]}: {results.shape[1]:,} points. Error bars are "
        + (
            "statistical errors."
            if error
            else "errors of the mean where a point was run with several seeds."
        )
    )
    return finish(figure, caption, height=440)


def _numbers(
    columns: Columns, axes: Sequence[str], value: str, error: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the axes of the points that have a result, and results with errors, ``(2, N)``.

    Errors are NaN where none are asked for.
    """
    found = []
    for name in (*axes, value, *([error] if error else [])):
        if name not in columns:
            raise unknown_name("column of the scan", name, columns)
        try:
            found.append(np.array([np.nan if v is None else v for v in columns[name]], float))
        except (TypeError, ValueError) as problem:
            raise InputError(f"The column '{name}' of the scan holds no numbers.") from problem
    if not error:
        found.append(np.full_like(found[-1], np.nan))
    some = np.isfinite(found[-2])
    if not some.any():
        raise InputError(f"No point of the scan has a result '{value}' yet.")
    *at, result, width = (column[some] for column in found)
    return at, np.stack([result, width])


def _by_place(at: Sequence[np.ndarray], results: np.ndarray) -> dict[tuple[float, ...], np.ndarray]:
    """Gathers results and errors of points at the same place."""
    places, which = np.unique(np.stack(at, axis=1), axis=0, return_inverse=True)
    return {
        tuple(float(v) for v in place): results[:, which.ravel() == i]
        for i, place in enumerate(places)
    }


def _error(values: np.ndarray) -> float:
    """Computes the error of a mean, from the errors of its points or else from their spread."""
    result, width = values
    if np.isfinite(width).all():
        return float(np.sqrt((width**2).sum()) / len(width))
    return float(result.std(ddof=1) / np.sqrt(len(result))) if len(result) > 1 else 0.0


def _cell_text(value: float, error: float, with_error: bool) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.3g}<br>±{error:.2g}" if with_error else f"{value:.3g}"


def _hover_text(value: float, error: float, count: float) -> str:
    with_error = f" ± {error:.2g}" if np.isfinite(error) and error > 0 else ""
    return f"{value:.4g}{with_error}<br>{count:.0f} point{'s' * (count != 1)}"
