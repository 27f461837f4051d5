"""Figures of reach: which masses would be discovered or excluded."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from massrecon.errors import InputError
from massrecon.inference.rates import DISCOVERY, EXCLUSION, Reach
from massrecon.visual.template import BLACK, LEGEND_ABOVE, VERMILION, finish, mass_label, plain


def reach_over_plane(reach: Reach) -> go.Figure:
    """Draws the median significance of a discovery over two masses, with the lines of reach.

    Args:
        reach: Significances at the points of a rectangular grid of two masses; points that cannot
            be are left out or NaN.

    Raises:
        InputError: If there are not two masses, or fewer than two values of one.
    """
    if len(reach.names) != 2:
        raise InputError(f"The plane has two masses, got {', '.join(reach.names)}.")
    x, y = (np.unique(reach.masses[:, i].numpy()) for i in (0, 1))
    if len(x) < 2 or len(y) < 2:
        raise InputError("The reach needs two or more values of each mass to be drawn.")
    tables = {"discovery": reach.discovery, "exclusion": reach.exclusion, "yields": reach.yields}
    grids = {name: np.full((len(y), len(x)), np.nan) for name in tables}
    column = np.searchsorted(x, reach.masses[:, 0].numpy())
    row = np.searchsorted(y, reach.masses[:, 1].numpy())
    for name, values in tables.items():
        grids[name][row, column] = values.double().numpy()
    figure = go.Figure(
        go.Heatmap(
            x=x, y=y, z=grids["discovery"], colorscale="Viridis", hoverongaps=False,
            zmin=0, zmax=max(DISCOVERY, float(np.nanmax(grids["discovery"]))),
            colorbar={"title": {"text": "significance of a discovery [σ]", "side": "right"},
                      "thickness": 14},
            customdata=np.stack([grids["exclusion"], grids["yields"]], axis=-1),
            hovertemplate=(
                "%{x:.0f}, %{y:.0f} GeV: discovery %{z:.1f} σ, exclusion %{customdata[0]:.1f} σ, "
                "%{customdata[1]:.1f} events<extra></extra>"
            ),
        )
    )  # fmt: skip
    lines = (
        ("discovery", DISCOVERY, "discovery, 5 σ", "solid", VERMILION),
        ("discovery", 3.0, "evidence, 3 σ", "dash", VERMILION),
        ("exclusion", EXCLUSION, "exclusion, 95 % CLs", "dot", BLACK),
    )
    for name, level, label, dash, colour in lines:
        _add_line(figure, (x, y, grids[name]), level, (label, dash, colour))
    symbols = [mass_label(symbol) for symbol in reach.symbols]
    figure.update_xaxes(title_text=f"{symbols[0]} [GeV]", range=[x[0], x[-1]])
    figure.update_yaxes(title_text=f"{symbols[1]} [GeV]", range=[y[0], y[-1]])
    figure.update_layout(legend=LEGEND_ABOVE)
    return finish(figure, _caption(reach), height=520)


def _add_line(
    figure: go.Figure,
    grid: tuple[np.ndarray, np.ndarray, np.ndarray],
    level: float,
    style: tuple[str, str, str],
) -> None:
    """Draws a line of equal significance, where the plane reaches it."""
    x, y, z = grid
    label, dash, colour = style
    reached = bool(np.nanmin(z) < level < np.nanmax(z))
    line = {"color": colour, "width": 3, "dash": dash}
    if reached:
        figure.add_trace(
            go.Contour(
                x=x, y=y, z=z, showscale=False, showlegend=False,
                hoverinfo="skip", connectgaps=False,
                contours={"start": level, "end": level, "size": 1, "coloring": "none"}, line=line,
            )
        )  # fmt: skip
    where = "everywhere" if np.nanmin(z) >= level else "nowhere"
    name = label if reached else f"{label} ({where})"
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=name, line=line))


def _caption(reach: Reach) -> str:
    parts = ", ".join(
        f"{plain(name)} {float(row.sum()):.3g} ± {100 * float(error):.0f} %"
        for name, row, error in zip(
            reach.background.names,
            reach.background.counts,
            reach.background.uncertainties,
            strict=True,
        )
    )
    left_out = f" Not included: {', '.join(reach.missing)}." if reach.missing else ""
    return (
        f"Median significance with {reach.luminosity:,.0f} fb⁻¹ from counts in "
        f"{len(reach.background.total)} bins (profile likelihood, asymptotic). Expected background "
        f"events: {parts}.{left_out}"
    )
