"""The figure of MT2 in one event: the larger transverse mass for every way to share ptmiss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from massrecon.errors import ShapeError
from massrecon.visual.template import BLACK, GREEN, LEGEND_ABOVE, PURPLE, VERMILION, finish

Point = tuple[float, float]

_LOOKS = (("star", VERMILION, 16), ("square", PURPLE, 11), ("circle", BLACK, 11),
          ("diamond", GREEN, 11))  # fmt: skip
_LEVELS = 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Splitting:
    """Transverse masses of both sides over the invisible transverse momentum of side a.

    Attributes:
        qx: Values of its x component [GeV], shape ``(X,)``.
        qy: Values of its y component [GeV], shape ``(Y,)``.
        side_a: Transverse mass of side a [GeV], shape ``(Y, X)``.
        side_b: The same of side b, which has the rest of ptmiss.
    """

    qx: np.ndarray
    qy: np.ndarray
    side_a: np.ndarray
    side_b: np.ndarray


def splitting_contour(splitting: Splitting, marks: Mapping[str, Point]) -> go.Figure:
    """Draws the larger of the two transverse masses over the splitting of ptmiss.

    Args:
        splitting: The transverse masses.
        marks: Momenta of side a [GeV] by name, up to four, the minimum first.

    Raises:
        ShapeError: If the shapes do not fit.
    """
    shape = (len(splitting.qy), len(splitting.qx))
    if splitting.side_a.shape != shape or splitting.side_b.shape != shape:
        raise ShapeError(
            f"'splitting' should have masses of shape {shape}, got {splitting.side_a.shape} and "
            f"{splitting.side_b.shape}."
        )
    larger = np.maximum(splitting.side_a, splitting.side_b)
    figure = go.Figure(_surface(splitting, larger))
    figure.add_trace(_balance(splitting))
    for (name, (x, y)), (symbol, colour, size) in zip(marks.items(), _LOOKS, strict=False):
        figure.add_trace(
            go.Scatter(
                x=[x], y=[y], name=name, mode="markers", marker={
                    "symbol": symbol, "color": colour, "size": size,
                    "line": {"color": "white", "width": 1.5},
                },
                hovertemplate=f"{name}: %{{x:.0f}}, %{{y:.0f}} GeV<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(
        title_text="<i>q</i><sub>x</sub> of side a [GeV]",
        range=[float(splitting.qx[0]), float(splitting.qx[-1])],
        constrain="domain",
    )
    figure.update_yaxes(
        title_text="<i>q</i><sub>y</sub> of side a [GeV]",
        range=[float(splitting.qy[0]), float(splitting.qy[-1])],
        scaleanchor="x", constrain="domain",
    )  # fmt: skip
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        "The larger of the two transverse masses for every invisible momentum of side a; side b "
        "has the rest of ptmiss. Dashed: where both sides are equal. The minimum is MT2."
    )
    return finish(figure, caption, height=560)


def _surface(splitting: Splitting, larger: np.ndarray) -> go.Contour:
    low, high = float(larger.min()), float(np.quantile(larger, 0.97))
    step = _round_step(max((high - low) / _LEVELS, 1e-6))
    first = step * math.ceil(low / step + 1e-9)
    return go.Contour(
        x=splitting.qx.round(3), y=splitting.qy.round(3), z=larger.round(3), colorscale="Viridis",
        reversescale=True, contours={"start": first, "end": high, "size": step},
        line={"width": 0.6, "color": "rgba(255, 255, 255, 0.6)"}, zmin=low, zmax=high,
        colorbar={"title": {"text": "larger transverse mass [GeV]", "side": "right"},
                  "tickformat": ",~f", "thickness": 14},
        hovertemplate="q = (%{x:.0f}, %{y:.0f}) GeV: %{z:.1f} GeV<extra></extra>",
        name="larger transverse mass", showlegend=False,
    )  # fmt: skip


def _round_step(least: float) -> float:
    """Returns the next number of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least)


def _balance(splitting: Splitting) -> go.Contour:
    """The line on which both sides have the same transverse mass."""
    return go.Contour(
        x=splitting.qx.round(3), y=splitting.qy.round(3),
        z=(splitting.side_a - splitting.side_b).round(3), showscale=False, hoverinfo="skip",
        contours={"start": 0, "end": 0, "size": 1, "coloring": "none"},
        line={"color": BLACK, "width": 1.5, "dash": "dash"}, name="sides equal", showlegend=True,
    )  # fmt: skip
