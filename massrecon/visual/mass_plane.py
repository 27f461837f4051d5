"""Heat-maps over the plane of two true masses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.efficiency_map import EfficiencyMap
from massrecon.inference.statistics import MassPoints
from massrecon.visual.template import drawing, mass_label, plain

_GAP = 0.06


def efficiency_maps(
    maps: Sequence[EfficiencyMap], titles: Sequence[str] | None = None
) -> go.Figure:
    """Draws efficiencies over the plane of two true masses, side by side on one colour scale.

    Args:
        maps: One or more maps, such as of two windows, two masses or two models.
        titles: A title for each; its mass, estimator and window if not given.

    Raises:
        InputError: If there is no map, or not one title for each.
    """
    titles = [_title(m) for m in maps] if titles is None else list(titles)
    if not maps or len(titles) != len(maps):
        raise InputError(
            f"'maps' should be one or more with a title each, got {len(maps)} and {len(titles)}."
        )
    heats = [_heat(m).update(xaxis=_axis("x", k), yaxis=_axis("y", k)) for k, m in enumerate(maps)]
    cells = ", ".join(
        f"{plain(title)}: {int(m.n_events.sum()):,} events"
        for title, m in zip(titles, maps, strict=True)
    )
    caption = (
        "Share of events whose estimated mass lies within the window around the truth, in cells of "
        f"the true masses, with 68 % binomial errors. {cells}."
    )
    return drawing(heats, _layout(maps, titles), caption, height=460)


def _axis(letter: str, number: int) -> str:
    return f"{letter}{number + 1}" if number else letter


def _layout(maps: Sequence[EfficiencyMap], titles: Sequence[str]) -> dict[str, Any]:
    """Lays out the maps, all at once: an explorer draws them while a slider moves."""
    width = (1 + _GAP) / len(maps) - _GAP
    colours = {
        "cmin": 0, "cmax": 100, "colorscale": "Viridis",
        "colorbar": {"title": {"text": "efficiency [%]", "side": "right"}, "thickness": 14},
    }  # fmt: skip
    layout: dict[str, Any] = {"coloraxis": colours, "annotations": []}
    for k, (m, title) in enumerate(zip(maps, titles, strict=True)):
        left, number = k * (width + _GAP), "" if k == 0 else str(k + 1)
        x, y = (f"true {mass_label(m.symbols[axis.mass])} [GeV]" for axis in (m.x, m.y))
        layout[f"xaxis{number}"] = {"domain": [left, left + width], "anchor": _axis("y", k),
                                    "title": {"text": x}}  # fmt: skip
        shown = {"matches": "y", "showticklabels": False} if k else {"title": {"text": y}}
        layout[f"yaxis{number}"] = {"anchor": _axis("x", k), **shown}
        layout["annotations"].append(
            {"text": title, "x": left + width / 2, "y": 1.0, "xref": "paper", "yref": "paper",
             "xanchor": "center", "yanchor": "bottom", "showarrow": False, "font": {"size": 16}}
        )  # fmt: skip
    return layout


def _title(m: EfficiencyMap) -> str:
    return f"{mass_label(m.symbols[m.mass])} within {m.window:g} GeV ({m.estimator})"


def _heat(m: EfficiencyMap) -> go.Heatmap:
    value, error = (100 * t.T.numpy() for t in (m.attained.value, m.attained.error))
    show = np.vectorize(lambda v, e: f"{v:.0f}<br>±{e:.0f}" if np.isfinite(v) else "")
    predicted = np.full_like(value, np.nan) if m.predicted is None else 100 * m.predicted.T.numpy()

    def hover(v: float, e: float, claim: float, n: int) -> str:
        claimed = f"predicted {claim:.1f} %, " if np.isfinite(claim) else ""
        return f"{v:.1f} ± {e:.1f} %<br>{claimed}{n} events"

    return go.Heatmap(
        x=_positions(m.x), y=_positions(m.y), z=value, coloraxis="coloraxis",
        text=show(value, error), texttemplate="%{text}", textfont={"size": 10}, hoverongaps=False,
        hovertext=np.vectorize(hover, otypes=[str])(value, error, predicted, m.n_events.T.numpy()),
        hovertemplate="%{x:.0f}, %{y:.0f} GeV: %{hovertext}<extra></extra>",
    )  # fmt: skip


def _positions(points: MassPoints) -> np.ndarray:
    """Returns the edges of the cells of a map, or the centres of those of a grid."""
    edges: Tensor | None = points.edges
    return points.value.numpy() if edges is None else edges.numpy()
