"""Figures of the classical variables: distributions, invisible momenta, the kink, jet pairing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.chains import PairedChains
from massrecon.inference.classical import KinkScan, Measured, Momenta
from massrecon.visual.template import (
    BLACK,
    COLOURS,
    DASHES,
    LEGEND_ABOVE,
    MARKERS,
    WHITE_TO_BLUE,
    finish,
)

SYMBOLS = {"MT2": "<i>M</i><sub>T2</sub>", "M2CC": "<i>M</i><sub>2CC</sub>"}
"""Symbols of the variables."""

_CELLS = 40
_BINS = 60
_AXES = "xyz"
_UPPER_SHARE = 0.01


def variable_distributions(measured: Sequence[Measured], n_bins: int = _BINS) -> go.Figure:
    """Draws distributions of MT2 and M2 with their endpoints, one panel for each subsystem.

    Args:
        measured: Variables of the same events; those of one subsystem share a panel.
        n_bins: Bins of each distribution.

    Raises:
        InputError: If there is nothing to draw.
    """
    if not measured:
        raise InputError("'measured' is empty: there is nothing to show.")
    names = list(dict.fromkeys(m.subsystem for m in measured))
    kinds = list(dict.fromkeys(m.variable for m in measured))
    titles = [_panel_title(next(m for m in measured if m.subsystem == name)) for name in names]
    figure = make_subplots(1, len(names), subplot_titles=titles, horizontal_spacing=0.07)
    for column, name in enumerate(names, start=1):
        panel = [m for m in measured if m.subsystem == name]
        edges = _edges(panel, n_bins)
        for m in panel:
            _add_distribution(figure, m, edges, kinds.index(m.variable), column)
        x_axis = f"x{column}" if column > 1 else "x"
        figure.add_shape(
            type="line", x0=panel[0].truth, x1=panel[0].truth, y0=0, y1=1, xref=x_axis,
            yref=f"{x_axis.replace('x', 'y')} domain", line={"color": BLACK, "width": 1.5},
            label={"text": "true", "textposition": "end", "textangle": 0, "xanchor": "left",
                   "font": {"size": 12}},
        )  # fmt: skip
        figure.update_xaxes(
            title_text=", ".join(SYMBOLS[kind] for kind in kinds) + " [GeV]",
            range=[float(edges[0]), float(edges[-1])],
            col=column,
        )
    figure.update_yaxes(title_text="events per bin", col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.12}, margin={"t": 100})
    caption = (
        f"{' and '.join(kinds)} of {len(measured[0].values):,} events. Black line: true parent "
        "mass. Points: fitted endpoints with their 68 % intervals; of MT2 only events in which "
        "both sides are equal are fitted."
    )
    return finish(figure, caption, height=440)


def _panel_title(m: Measured) -> str:
    return f"({m.subsystem}), trial mass {m.m_invisible:.4g} GeV"


def _edges(panel: Sequence[Measured], n_bins: int) -> np.ndarray:
    """Returns bins that reach beyond the endpoints, but not to the last stray event."""
    values = np.concatenate([_finite(m.values) for m in panel])
    if len(values) == 0:
        raise InputError(f"No event has a value in subsystem '{panel[0].subsystem}'.")
    low, high = np.quantile(values, [0.005, 0.995])
    high = max(high, panel[0].truth, *(m.fit.value for m in panel if m.fit))
    room = max(0.06 * (high - low), 1e-3 * abs(high))
    return np.linspace(low - room, high + room, n_bins + 1)


def _finite(values: Tensor) -> np.ndarray:
    array = values.detach().cpu().numpy()
    return array[np.isfinite(array)]


def _add_distribution(
    figure: go.Figure, m: Measured, edges: np.ndarray, number: int, column: int
) -> None:
    """Adds a histogram and the fitted endpoint of one variable."""
    counts = np.histogram(_finite(m.values), edges)[0]
    symbol, colour = SYMBOLS.get(m.variable, m.variable), COLOURS[number]
    figure.add_trace(
        go.Scatter(
            x=np.repeat(edges, 2)[1:-1].round(3), y=np.repeat(counts, 2), mode="lines", name=symbol,
            legendgroup=m.variable, showlegend=column == 1,
            line={"color": colour, "width": 1.8, "dash": DASHES[number]},
        ),
        row=1, col=column,
    )  # fmt: skip
    if m.fit is None:
        return
    fit = m.fit
    figure.add_trace(
        go.Scatter(
            x=[fit.value], y=[counts.max() * (0.55 + 0.12 * number)], mode="markers",
            name=f"endpoint of {symbol}", legendgroup=f"endpoint of {m.variable}",
            showlegend=column == 1,
            error_x={"symmetric": False, "array": [fit.high - fit.value],
                     "arrayminus": [fit.value - fit.low], "thickness": 2, "width": 5},
            marker={"color": colour, "size": 9, "symbol": MARKERS[number]},
            hovertemplate=f"{fit.value:.2f} GeV ({fit.low:.2f} to {fit.high:.2f})<extra></extra>",
        ),
        row=1, col=column,
    )  # fmt: skip


def momentum_correlations(
    momenta: Sequence[Momenta], components: Sequence[int] = (0, 2)
) -> go.Figure:
    """Draws heat maps of found against true invisible momenta, a column for each method.

    Args:
        momenta: Momenta of several methods.
        components: Which components, 0, 1 and 2 for x, y and z; a row for each.

    Raises:
        InputError: If there is nothing to draw.
    """
    if not momenta or not components:
        raise InputError("There are no momenta to show.")
    titles = [_correlation_title(m, c) for c in components for m in momenta]
    figure = make_subplots(
        len(components),
        len(momenta),
        subplot_titles=titles,
        horizontal_spacing=0.05,
        vertical_spacing=0.16,
    )
    for row, component in enumerate(components, start=1):
        limit = max(
            float(m.true[:, component].abs().quantile(0.98)) for m in momenta if len(m.true)
        )
        for column, m in enumerate(momenta, start=1):
            figure.add_trace(_heat_map(m, component, limit), row=row, col=column)
            diagonal = go.Scatter(
                x=[-limit, limit], y=[-limit, limit], mode="lines", hoverinfo="skip",
                line={"color": BLACK, "width": 1.2, "dash": "dash"}, showlegend=False,
            )  # fmt: skip
            figure.add_trace(diagonal, row=row, col=column)
        name = f"<i>q</i><sub>{_AXES[component]}</sub> [GeV]"
        figure.update_xaxes(title_text=f"true {name}", range=[-limit, limit], row=row)
        figure.update_yaxes(range=[-limit, limit], row=row)
        figure.update_yaxes(title_text=f"found {name}", row=row, col=1)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin={"t": 70})
    caption = (
        "Invisible momenta, found against true; dashed: equal. Several solutions of an event share "
        "its weight. r is the correlation coefficient, σ half of the central 68 % of found minus "
        "true. "
        "Events solved: " + ", ".join(f"{m.method} {100 * m.solved:.1f} %" for m in momenta) + "."
    )
    return finish(figure, caption, height=300 * len(components) + 60)


def _correlation_title(m: Momenta, component: int) -> str:
    if len(m.true) < 2:
        return f"{m.method}: no solution"
    return f"{m.method}<br>r = {m.correlation(component):.2f}, σ = {m.width(component):.0f} GeV"


def _heat_map(m: Momenta, component: int, limit: float) -> go.Heatmap:
    edges = np.linspace(-limit, limit, _CELLS + 1)
    x, y = m.true[:, component].numpy(), m.found[:, component].numpy()
    counts, _, _ = np.histogram2d(x, y, bins=[edges, edges], weights=m.weight.numpy())
    return go.Heatmap(
        x=edges.round(3), y=edges.round(3), z=counts.T.round(2), colorscale=WHITE_TO_BLUE, zmin=0,
        showscale=False,
        hovertemplate="true %{x:.0f}, found %{y:.0f} GeV: %{z} events<extra></extra>",
    )  # fmt: skip


def kink(scans: Sequence[KinkScan], chains: PairedChains) -> go.Figure:
    """Draws how endpoints move with the trial mass, and how sharp they are.

    The endpoint less the trial mass is shown, minus its true value, so that several variables and
    subsystems bend at the same point.

    Args:
        scans: Scans of several variables or subsystems over trial masses of C.
        chains: The events, for the truth.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    for number, scan in enumerate(scans):
        fitted = [(m, m.fit) for m in scan.measured if m.fit is not None]
        if not fitted:
            continue
        first = fitted[0][0]
        x = np.array([m.m_invisible for m, _ in fitted])
        value, low, high = np.array([(fit.value, fit.low, fit.high) for _, fit in fitted]).T
        upper = [float(np.quantile(_finite(m.values), 1 - _UPPER_SHARE)) for m, _ in fitted]
        style = {
            "mode": "lines+markers", "legendgroup": str(number),
            "name": f"{SYMBOLS.get(first.variable, first.variable)} ({first.subsystem})",
            "line": {"color": COLOURS[number], "dash": DASHES[number], "width": 1.6},
            "marker": {"color": COLOURS[number], "symbol": MARKERS[number], "size": 8},
        }  # fmt: skip
        bars = {"symmetric": False, "array": high - value, "arrayminus": value - low, "width": 3}
        true_trial = chains.true_trial_mass(first.subsystem)
        rise = (value - x) - (first.truth - true_trial)
        figure.add_trace(go.Scatter(x=x, y=rise, error_y=bars, **style), row=1, col=1)
        spread = np.maximum(value - upper, 0.0)
        figure.add_trace(go.Scatter(x=x, y=spread, showlegend=False, **style), row=1, col=2)
        star = go.Scatter(
            x=[true_trial], y=[0.0], mode="markers", name="truth", legendgroup="truth",
            marker={"symbol": "star", "size": 15, "color": BLACK}, showlegend=number == 0,
        )  # fmt: skip
        figure.add_trace(star, row=1, col=1)
    figure.update_xaxes(title_text="trial mass [GeV]")
    figure.update_yaxes(title_text="endpoint − trial mass − truth [GeV]", col=1)
    figure.update_yaxes(title_text="endpoint − 99 % quantile [GeV]", rangemode="tozero", col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        "Left: endpoint less trial mass, minus the true difference of the two masses; at the truth "
        "(star) it bends. Right: the range of the upper 1 % of the events, which shrinks where "
        f"many events reach the endpoint. {len(chains):,} events. "
        + " ".join(map(_kink_text, scans))
    )
    return finish(figure, caption.strip(), height=450)


def _kink_text(scan: KinkScan) -> str:
    first, found = scan.measured[0], scan.kink
    if found is None:
        return ""
    return (
        f"Kink of {first.variable} ({first.subsystem}): "
        f"{found.m_invisible:.1f} ± {found.m_invisible_error:.1f} GeV, endpoint there "
        f"{found.m_parent:.1f} ± {found.m_parent_error:.1f} GeV."
    )


def trial_mass_explorer(scans: Sequence[KinkScan], n_bins: int = _BINS) -> go.Figure:
    """Draws distributions less the trial mass, with a slider for the trial mass.

    The slider needs no kernel: it works in a saved page as well.

    Args:
        scans: Scans of several variables over the same trial masses.
        n_bins: Bins of each distribution.

    Raises:
        InputError: If there is nothing to draw, or the trial masses differ.
    """
    masses = [[m.m_invisible for m in scan.measured] for scan in scans]
    if not masses or not masses[0] or any(other != masses[0] for other in masses):
        raise InputError("'scans' should hold the same trial masses, at least one.")
    every = [m for scan in scans for m in scan.measured]
    above = np.concatenate([_finite(m.values) - m.m_invisible for m in every])
    low, high = np.quantile(above, [0.002, 0.998])
    edges = np.linspace(low, high, n_bins + 1)
    start = len(masses[0]) // 2
    figure = go.Figure([_above_trial(s.measured[start], edges, i) for i, s in enumerate(scans)])
    steps = [
        {
            "method": "restyle",
            "label": f"{mass:g}",
            "args": [{"y": [_above_trial(scan.measured[k], edges, 0).y for scan in scans]}],
        }
        for k, mass in enumerate(masses[0])
    ]
    value = {"prefix": "trial mass [GeV]: "}
    slider = {"steps": steps, "active": start, "currentvalue": value, "pad": {"t": 45}}
    figure.update_xaxes(title_text="variable − trial mass [GeV]")
    figure.update_yaxes(title_text="events per bin", rangemode="tozero")
    figure.update_layout(sliders=[slider], legend=LEGEND_ABOVE)
    caption = (
        f"Distributions less the trial mass, of {len(every[0].values):,} events; move the slider."
    )
    return finish(figure, caption, height=520)


def _above_trial(m: Measured, edges: np.ndarray, number: int) -> go.Scatter:
    counts = np.histogram(_finite(m.values) - m.m_invisible, edges)[0]
    return go.Scatter(
        x=np.repeat(edges, 2)[1:-1].round(3), y=np.repeat(counts, 2), mode="lines",
        name=f"{SYMBOLS.get(m.variable, m.variable)} ({m.subsystem})",
        line={"color": COLOURS[number], "dash": DASHES[number], "width": 1.8},
    )  # fmt: skip


def estimates_compared(
    truth: Tensor, estimates: Mapping[str, Tensor], symbol: str, largest: float = 100.0
) -> go.Figure:
    """Draws how near several estimates of a mass come to the truth.

    Args:
        truth: True mass [GeV], shape ``(N,)``.
        estimates: Estimates by name, each ``(N,)``; NaN counts as far away.
        symbol: Symbol of the mass.
        largest: Largest distance that is shown [GeV].

    Raises:
        InputError: If there are no estimates or no events.
    """
    if not estimates or len(truth) == 0:
        raise InputError("There are no estimates to compare.")
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    edges, widths = np.linspace(-largest, largest, 51), np.linspace(0, largest, 51)
    for number, (name, estimate) in enumerate(estimates.items()):
        off = (estimate - truth).double().cpu().nan_to_num(np.inf).numpy()
        share = 100 * np.histogram(off, edges)[0] / len(off)
        within = 100 * np.searchsorted(np.sort(np.abs(off)), widths, side="left") / len(off)
        line = {"color": COLOURS[number], "dash": DASHES[number], "width": 1.8}
        common = {"mode": "lines", "line": line, "name": name, "legendgroup": name}
        steps = go.Scatter(x=np.repeat(edges, 2)[1:-1], y=np.repeat(share, 2), **common)
        figure.add_trace(steps, row=1, col=1)
        figure.add_trace(
            go.Scatter(x=widths, y=within.round(3), showlegend=False, **common), row=1, col=2
        )
    figure.update_xaxes(title_text=f"estimated − true {symbol} [GeV]", col=1)
    figure.update_yaxes(title_text="events per bin [%]", rangemode="tozero", col=1)
    figure.update_xaxes(title_text="half-width of the window [GeV]", col=2)
    figure.update_yaxes(title_text="events within the window [%]", range=[0, 103], col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    shares = ", ".join(
        f"{name} {100 * float(((e - truth).abs() < 30).double().mean()):.1f} %"
        for name, e in estimates.items()
    )
    caption = f"{len(truth):,} events. Within 30 GeV of the truth: {shares}."
    return finish(figure, caption, height=430)
