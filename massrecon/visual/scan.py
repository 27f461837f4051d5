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

    Raises:
        InputError: If a column is not there, holds no numbers, or no point has a result.
    """
    at, result = _numbers(columns, (x, y), value)
    called = {x: x, y: y, **(axes or {})}
    ticks = [np.unique(column) for column in at]
    mean = np.full((len(ticks[1]), len(ticks[0])), np.nan)
    error, count = mean.copy(), np.zeros_like(mean)
    for place, values in _by_place(at, scale * result).items():
        cell = tuple(int(np.searchsorted(t, p)) for t, p in zip(ticks, place, strict=True))[::-1]
        mean[cell], error[cell], count[cell] = values.mean(), _error(values), len(values)
    several = bool((count > 1).any())
    text = np.vectorize(lambda v, e: _cell_text(v, e, several))(mean, error)
    figure = go.Figure(
        go.Heatmap(
            x=[f"{v:g}" for v in ticks[0]], y=[f"{v:g}" for v in ticks[1]], z=mean,
            text=text, texttemplate="%{text}", colorscale="Viridis", hoverongaps=False,
            customdata=np.stack([error, count], axis=-1),
            hovertemplate=(
                f"{x} %{{x}}, {y} %{{y}}: %{{z:.4g}} ± %{{customdata[0]:.2g}}"
                "<br>%{customdata[1]} points<extra></extra>"
            ),
            colorbar={"title": {"text": label or value, "side": "right"}, "thickness": 14},
        )
    )  # fmt: skip
    figure.update_xaxes(title_text=called[x], type="category")
    figure.update_yaxes(title_text=called[y], type="category")
    caption = f"{label or value} over {called[x]} and {called[y]}: {len(result):,} points" + (
        ", averaged where there are several, with the error of the mean." if several else "."
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

    Raises:
        InputError: If a column is not there, holds no numbers, or no point has a result.
    """
    at, result = _numbers(columns, (x,) if by is None else (x, by), value)
    called = {x: x, by: by, **(axes or {})}
    figure = go.Figure()
    kinds = [None] if by is None else np.unique(at[1])
    for number, kind in enumerate(kinds):
        rows = np.ones(len(result), bool) if kind is None else at[1] == kind
        places = sorted(_by_place([at[0][rows]], scale * result[rows]).items())
        colour = COLOURS[number % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[place[0] for place, _ in places], y=[v.mean() for _, v in places],
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
        f"{label or value} against {called[x]}: {len(result):,} points. Error bars are errors of "
        "the mean where a point was run with several seeds."
    )
    return finish(figure, caption, height=440)


def _numbers(
    columns: Columns, axes: Sequence[str], value: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns axes and result of the points that have one."""
    found = []
    for name in (*axes, value):
        if name not in columns:
            raise unknown_name("column of the scan", name, columns)
        try:
            found.append(np.array([np.nan if v is None else v for v in columns[name]], float))
        except (TypeError, ValueError) as error:
            raise InputError(f"The column '{name}' of the scan holds no numbers.") from error
    some = np.isfinite(found[-1])
    if not some.any():
        raise InputError(f"No point of the scan has a result '{value}' yet.")
    *at, result = (column[some] for column in found)
    return at, result


def _by_place(at: Sequence[np.ndarray], result: np.ndarray) -> dict[tuple[float, ...], np.ndarray]:
    """Gathers the results of points at the same place."""
    places, which = np.unique(np.stack(at, axis=1), axis=0, return_inverse=True)
    return {
        tuple(float(v) for v in place): result[which.ravel() == i] for i, place in enumerate(places)
    }


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _cell_text(value: float, error: float, several: bool) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.3g}<br>±{error:.1g}" if several else f"{value:.3g}"
