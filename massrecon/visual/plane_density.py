"""The figure of the posterior of one event in the plane of two masses, with its marginals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from massrecon.errors import InputError
from massrecon.visual.template import (
    BLUE,
    GREEN,
    LEGEND_ABOVE,
    VERMILION,
    WHITE_TO_BLUE,
    finish,
    mass_label,
)


def plane_density(
    axes: Mapping[str, np.ndarray],
    density: np.ndarray,
    symbols: Sequence[str],
    estimate: Sequence[float],
    truth: Sequence[float] | None = None,
) -> go.Figure:
    """Draws the density of one or two masses of an event, with its marginals.

    Args:
        axes: Values of each mass [GeV], rising, by name.
        density: Density, one axis for each mass.
        symbols: Symbol of each mass.
        estimate: Estimated masses [GeV].
        truth: True masses [GeV], where known.

    Raises:
        InputError: If there are not one or two masses.
    """
    if len(axes) not in (1, 2) or density.ndim != len(axes):
        raise InputError(f"A density of 1 or 2 masses can be drawn, got {len(axes)}.")
    values = list(axes.values())
    panels = len(axes) + (len(axes) == 2)
    figure = make_subplots(1, panels, horizontal_spacing=0.1)
    marks = {"estimate": (estimate, GREEN, "dash", "diamond")}
    if truth is not None:
        marks["truth"] = (truth, VERMILION, "solid", "star")
    first = 1
    if len(axes) == 2:
        _add_plane(figure, values, density, symbols, marks)
        first = 2
    for i, x in enumerate(values):
        _add_marginal(figure, first + i, x, _marginal(values, density, i), i, marks)
        figure.update_xaxes(title_text=f"{mass_label(symbols[i])} [GeV]", row=1, col=first + i)
    figure.update_yaxes(title_text="density [1 / GeV]", row=1, col=first)
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = "Posterior density of the masses of the event: in the plane, and of each mass alone."
    return finish(figure, caption, height=420)


def _marginal(values: Sequence[np.ndarray], density: np.ndarray, kept: int) -> np.ndarray:
    for i in reversed(range(len(values))):
        if i != kept:
            density = np.trapezoid(density, values[i], axis=i)
    return density


def _add_plane(
    figure: go.Figure,
    values: Sequence[np.ndarray],
    density: np.ndarray,
    symbols: Sequence[str],
    marks: Mapping[str, tuple[Sequence[float], str, str, str]],
) -> None:
    figure.add_trace(
        go.Heatmap(
            x=values[0], y=values[1], z=density.T, colorscale=WHITE_TO_BLUE, zmin=0,
            showscale=False, zsmooth="best",
            hovertemplate="%{x:.0f}, %{y:.0f} GeV: %{z:.2g} / GeV²<extra></extra>",
        ),
        row=1, col=1,
    )  # fmt: skip
    for name, (point, colour, _, symbol) in marks.items():
        figure.add_trace(
            go.Scatter(
                x=[point[0]], y=[point[1]], mode="markers", name=name, legendgroup=name,
                marker={"symbol": symbol, "size": 14, "color": colour,
                        "line": {"color": "white", "width": 1.2}},
            ),
            row=1, col=1,
        )  # fmt: skip
    figure.update_xaxes(title_text=f"{mass_label(symbols[0])} [GeV]", row=1, col=1)
    figure.update_yaxes(title_text=f"{mass_label(symbols[1])} [GeV]", row=1, col=1)


def _add_marginal(
    figure: go.Figure,
    column: int,
    x: np.ndarray,
    density: np.ndarray,
    mass: int,
    marks: Mapping[str, tuple[Sequence[float], str, str, str]],
) -> None:
    figure.add_trace(
        go.Scatter(x=x, y=density, mode="lines", name="posterior", showlegend=mass == 0,
                   legendgroup="posterior", line={"color": BLUE, "width": 2}, fill="tozeroy"),
        row=1, col=column,
    )  # fmt: skip
    for name, (point, colour, dash, _) in marks.items():
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(
            go.Scatter(x=[point[mass]] * 2, y=[0, 1.05 * float(density.max())], mode="lines",
                       name=name, legendgroup=name, showlegend=False, line=line),
            row=1, col=column,
        )  # fmt: skip
