"""Heat-maps over the plane of two true masses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.efficiency_map import EfficiencyMap
from massrecon.inference.statistics import MassPoints
from massrecon.visual.template import finish, mass_label, plain

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
    figure = make_subplots(
        cols=len(maps), horizontal_spacing=_GAP, subplot_titles=titles, shared_yaxes=True
    )
    for column, m in enumerate(maps, 1):
        figure.add_trace(_heat(m), row=1, col=column)
        figure.update_xaxes(
            title_text=f"true {mass_label(m.symbols[m.x.mass])} [GeV]", row=1, col=column
        )
    first = maps[0]
    figure.update_yaxes(title_text=f"true {mass_label(first.symbols[first.y.mass])} [GeV]", col=1)
    figure.update_layout(
        coloraxis={
            "cmin": 0, "cmax": 100, "colorscale": "Viridis",
            "colorbar": {"title": {"text": "efficiency [%]", "side": "right"}, "thickness": 14},
        }
    )  # fmt: skip
    cells = ", ".join(
        f"{plain(title)}: {int(m.n_events.sum()):,} events"
        for title, m in zip(titles, maps, strict=True)
    )
    caption = (
        "Share of events whose estimated mass lies within the window around the truth, in cells of "
        f"the true masses, with 68 % binomial errors. {cells}."
    )
    return finish(figure, caption, height=460)


def _title(m: EfficiencyMap) -> str:
    return f"{mass_label(m.symbols[m.mass])} within {m.window:g} GeV ({m.estimator})"


def _heat(m: EfficiencyMap) -> go.Heatmap:
    value, error = (100 * t.T.numpy() for t in (m.attained.value, m.attained.error))
    show = np.vectorize(lambda v, e: f"{v:.0f}<br>±{e:.0f}" if np.isfinite(v) else "")
    predicted = np.full_like(value, np.nan) if m.predicted is None else 100 * m.predicted.T.numpy()
    return go.Heatmap(
        x=_positions(m.x), y=_positions(m.y), z=value, coloraxis="coloraxis",
        text=show(value, error), texttemplate="%{text}", textfont={"size": 10}, hoverongaps=False,
        customdata=np.stack([error, predicted, m.n_events.T.numpy()], axis=-1),
        hovertemplate=(
            "%{x:.0f}, %{y:.0f} GeV: %{z:.1f} ± %{customdata[0]:.1f} %<br>"
            "predicted %{customdata[1]:.1f} %, %{customdata[2]} events<extra></extra>"
        ),
    )  # fmt: skip


def _positions(points: MassPoints) -> np.ndarray:
    """Returns the edges of the cells of a map, or the centres of those of a grid."""
    edges: Tensor | None = points.edges
    return points.value.numpy() if edges is None else edges.numpy()
