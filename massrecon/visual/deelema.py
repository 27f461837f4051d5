"""Figures of DeeLeMa: momenta against truth, masses beside classical variables, the fit itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError, require_extra
from massrecon.visual.template import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    LEGEND_ABOVE,
    MARKERS,
    ORANGE,
    VERMILION,
    finish,
    mass_label,
    plain,
)

_STYLES = tuple(i for i, colour in enumerate(COLOURS) if colour != VERMILION)
"""Styles of distributions: vermilion is the truth."""

_COMPONENTS = ("<i>q</i><sub>x</sub>", "<i>q</i><sub>y</sub>", "<i>q</i><sub>z</sub>")
_FEW = 12
_FEWEST_BINS, _MOST_BINS = 20, 80
_HEAT = [[0.0, "white"], [0.15, "#DCE9F5"], [0.5, "#56B4E9"], [1.0, "#08306B"]]


@dataclass(frozen=True, kw_only=True)
class MassPanel:
    """What one panel of `mass_distributions` shows, for one species.

    Attributes:
        species: Name of the species.
        upper: Reconstructed masses of each of its particles [GeV], by label.
        lower: Other variables [GeV], by label.
        truth: True mass [GeV], where known.
        fitted: Fitted global mass [GeV], where there is one.
    """

    species: str
    upper: Mapping[str, Tensor]
    lower: Mapping[str, Tensor]
    truth: float | None = None
    fitted: float | None = None


def momentum_correlation(
    true: Tensor, methods: Mapping[str, Tensor], reach: float | None = None, n_bins: int = 60
) -> go.Figure:
    """Draws heat maps of reconstructed against true invisible momenta, one row a method.

    Args:
        true: True momenta (px, py, pz, …) [GeV], shape ``(N, D)``, D >= 3.
        methods: Reconstructed momenta by name of the method, each ``(N, D)``; NaN is left out.
        reach: Half the range of the axes [GeV]; None for the central 98 % of the truth.
        n_bins: Bins of each axis.

    Raises:
        InputError: If there is no method or no event.
    """
    if not methods or len(true) == 0:
        raise InputError("A correlation needs at least one method and one event.")
    if reach is None:
        reach = float(np.quantile(np.abs(true[:, :3].cpu().numpy()), 0.98))
    figure = make_subplots(len(methods), 3, horizontal_spacing=0.09, vertical_spacing=0.13)
    edges = np.linspace(-reach, reach, n_bins + 1)
    notes = []
    for row, (name, momenta) in enumerate(methods.items(), start=1):
        values = [_correlate(momenta[:, i], true[:, i], edges) for i in range(3)]
        for column, (counts, correlation) in enumerate(values, start=1):
            _add_heat(figure, row, column, counts, edges, correlation)
            axis = f"{_COMPONENTS[column - 1]} {name} [GeV]"
            figure.update_xaxes(title_text=axis, range=[-reach, reach], row=row, col=column)
            figure.update_yaxes(range=[-reach, reach], row=row, col=column)
        figure.update_yaxes(title_text="true [GeV]", row=row, col=1)
        notes.append(f"{plain(name)} {', '.join(f'{c:.2f}' for _, c in values)}")
    caption = (
        f"Reconstructed against true momenta of {len(true):,} invisible particles; darker is more. "
        f"Correlations in x, y, z: {'; '.join(notes)}."
    )
    return finish(figure, caption, height=60 + 320 * len(methods))


def _correlate(one: Tensor, other: Tensor, edges: np.ndarray) -> tuple[np.ndarray, float]:
    """Counts pairs of values in bins; their correlation."""
    x, y = one.detach().cpu().double().numpy(), other.detach().cpu().double().numpy()
    good = np.isfinite(x) & np.isfinite(y)
    counts = np.histogram2d(y[good], x[good], bins=(edges, edges))[0]
    known = good.sum() > 1 and x[good].std() > 0 and y[good].std() > 0
    return counts, float(np.corrcoef(x[good], y[good])[0, 1]) if known else float("nan")


def _add_heat(
    figure: go.Figure, row: int, column: int, counts: np.ndarray, edges: np.ndarray, r: float
) -> None:
    centres = (edges[1:] + edges[:-1]) / 2
    figure.add_trace(
        go.Heatmap(
            x=centres, y=centres, z=np.sqrt(counts), customdata=counts, colorscale=_HEAT,
            showscale=False, hovertemplate="%{customdata} events<extra></extra>",
        ),
        row=row, col=column,
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[edges[0], edges[-1]], y=[edges[0], edges[-1]], mode="lines", showlegend=False,
            hoverinfo="skip", line={"color": VERMILION, "width": 1.5},
        ),
        row=row, col=column,
    )  # fmt: skip
    figure.add_annotation(
        text=f"<i>ρ</i> = {r:.2f}", x=0.05, y=0.95, xref="x domain", yref="y domain",
        xanchor="left", yanchor="top", showarrow=False, row=row, col=column,
    )  # fmt: skip


def mass_distributions(
    panels: Sequence[MassPanel], width: float = 0.25, n_bins: int | None = None
) -> go.Figure:
    """Draws reconstructed masses above, classical variables below, one column a species.

    Args:
        panels: The species.
        width: Half the range of the upper axes, relative to the mass; the lower ones reach twice as
            far down.
        n_bins: Bins of each distribution; None for one per 75 events, 20 to 80.

    Raises:
        InputError: If there is no panel, or one without masses.
    """
    if not panels or not all(panel.upper for panel in panels):
        raise InputError("'panels' needs at least one species with reconstructed masses.")
    if n_bins is None:
        n_events = len(next(iter(panels[0].upper.values())))
        n_bins = min(max(n_events // 75, _FEWEST_BINS), _MOST_BINS)
    figure = make_subplots(2, len(panels), horizontal_spacing=0.1, vertical_spacing=0.15)
    seen: set[str] = set()
    for column, panel in enumerate(panels, start=1):
        centre = panel.truth or panel.fitted
        if centre is None:
            centre = float(next(iter(panel.upper.values())).nanmedian())
        for row, curves in enumerate((panel.upper, panel.lower), start=1):
            low = centre * (1 - width * row)
            high = centre * (1 + width)
            for number, (name, values) in enumerate(curves.items(), start=2 * (row - 1)):
                edges = np.linspace(low, high, n_bins + 1)
                _add_steps(figure, row, column, name, values, edges, number, seen)
            _add_mass_lines(figure, row, column, panel, seen)
            title = f"{mass_label(panel.species)} and bounds on it" if row == 2 else ""
            title = f"{title or mass_label(panel.species)} [GeV]"
            figure.update_xaxes(title_text=title, range=[low, high], row=row, col=column)
            figure.update_yaxes(rangemode="tozero", row=row, col=column)
            if column == 1:
                figure.update_yaxes(title_text="share of events / bin", row=row, col=1)
    figure.update_layout(legend={**LEGEND_ABOVE, "y": 1.03}, margin={"t": 110})
    return finish(figure, _mass_caption(panels), height=720)


def _add_steps(
    figure: go.Figure,
    row: int,
    column: int,
    name: str,
    values: Tensor,
    edges: np.ndarray,
    number: int,
    seen: set[str],
) -> None:
    x = values.detach().cpu().double().numpy()
    shares = np.histogram(x[np.isfinite(x)], edges)[0] / max(len(x), 1)
    style = _STYLES[number % len(_STYLES)]
    figure.add_trace(
        go.Scatter(
            x=(edges[1:] + edges[:-1]) / 2, y=shares, mode="lines", name=name, legendgroup=name,
            showlegend=name not in seen,
            line={"shape": "hvh", "color": COLOURS[style], "dash": DASHES[style], "width": 1.8},
        ),
        row=row, col=column,
    )  # fmt: skip
    seen.add(name)


def _add_mass_lines(
    figure: go.Figure, row: int, column: int, panel: MassPanel, seen: set[str]
) -> None:
    lines = (("truth", panel.truth, VERMILION, "solid"), ("fitted", panel.fitted, BLACK, "dashdot"))
    for name, value, colour, dash in lines:
        if value is None:
            continue
        line = {"color": colour, "dash": dash, "width": 1.5}
        place: Any = {"row": row, "col": column}
        figure.add_vline(value, line=line, **place)
        if name not in seen:
            figure.add_trace(
                go.Scatter(x=[None], y=[None], mode="lines", name=name, line=line),
                row=row, col=column,
            )  # fmt: skip
            seen.add(name)


def _mass_caption(panels: Sequence[MassPanel]) -> str:
    notes = []
    for panel in panels:
        for name, values in panel.upper.items():
            known = values[values.isfinite()].double()
            spread = f"{float(known.mean()):.1f} ± {float(known.std()):.1f}"
            notes.append(f"{panel.species}, {name}: {spread}")
    return (
        "Above: masses that the network reconstructs; below: variables that bound them. "
        f"Mean and standard deviation over all events [GeV]: {'; '.join(notes)}."
    )


def mass_history(
    epochs: Sequence[Mapping[str, float]], truth: Mapping[str, float] | None = None
) -> go.Figure:
    """Draws the global masses and the loss against the epoch.

    Args:
        epochs: Entries with ``epoch``, ``loss`` and the mass of each species [GeV], as in
            `FitRecord.epochs`.
        truth: True masses by species [GeV].

    Raises:
        InputError: If there is no entry.
    """
    if not epochs:
        raise InputError("'epochs' is empty: fit for at least one epoch.")
    names = [name for name in epochs[0] if name not in ("epoch", "loss")]
    steps = [entry["epoch"] for entry in epochs]
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.68, 0.32])
    for number, name in enumerate(names):
        style = {"color": COLOURS[number], "dash": DASHES[number]}
        values = [entry[name] for entry in epochs]
        figure.add_trace(
            go.Scatter(
                x=steps, y=values, mode="lines+markers", name=mass_label(name), line=style,
                marker={"symbol": MARKERS[number], "size": 6},
            ),
            row=1, col=1,
        )  # fmt: skip
        if truth and name in truth:
            place: Any = {"row": 1, "col": 1}
            figure.add_hline(truth[name], line={"color": GREY, "dash": "dot"}, **place)
    figure.add_trace(
        go.Scatter(
            x=steps, y=[entry["loss"] for entry in epochs], mode="lines+markers", name="loss",
            line={"color": BLACK}, marker={"symbol": "x", "size": 5},
        ),
        row=2, col=1,
    )  # fmt: skip
    figure.update_yaxes(title_text="global mass [GeV]", row=1)
    figure.update_yaxes(title_text="loss [GeV]", type="log", dtick="D2", row=2)
    figure.update_xaxes(title_text="epoch", row=2)
    if len(steps) <= _FEW:
        figure.update_xaxes(dtick=1)
    figure.update_layout(legend=LEGEND_ABOVE)
    last = ", ".join(f"{name} {epochs[-1][name]:.1f}" for name in names)
    dots = " Dotted: the truth." if truth else ""
    return finish(figure, f"Global masses during the fit, at its end {last} GeV.{dots}", height=480)


def start_dependence(
    starts: Sequence[float],
    masses: Mapping[str, Sequence[Mapping[str, float]]],
    truth: Mapping[str, float],
) -> go.Figure:
    """Draws where fits end that started from different masses.

    Args:
        starts: Relative offsets of the starts from the truth.
        masses: Final masses by species [GeV] of each start, by name of the method.
        truth: True masses by species [GeV].

    Raises:
        InputError: If there are no starts.
    """
    if not starts or not masses:
        raise InputError("Nothing to draw: give at least one start and one method.")
    figure = go.Figure()
    worst = {}
    for number, (method, fits) in enumerate(masses.items()):
        for k, name in enumerate(truth):
            off = [100 * (fit[name] / truth[name] - 1) for fit in fits]
            worst[method] = max(worst.get(method, 0.0), *(abs(x) for x in off))
            figure.add_trace(
                go.Scatter(
                    x=[100 * s for s in starts], y=off, name=f"{mass_label(name)}, {method}",
                    mode="lines+markers", line={"color": COLOURS[number], "dash": DASHES[k]},
                    marker={"symbol": MARKERS[2 * number + k], "size": 9},
                )
            )  # fmt: skip
    figure.add_hrect(-1, 1, fillcolor=GREY, opacity=0.2, line_width=0)
    figure.update_xaxes(title_text="start, relative to the truth [%]")
    figure.update_yaxes(title_text="result, relative to the truth [%]")
    figure.update_layout(legend=LEGEND_ABOVE)
    notes = "; ".join(f"{name} {value:.2f} %" for name, value in worst.items())
    return finish(
        figure, f"Result against start; the band is ±1 %. Largest deviation: {notes}.", height=420
    )


def contamination_dependence(
    species: str,
    truth: float,
    series: Mapping[str, Sequence[tuple[float, float, float]]],
) -> go.Figure:
    """Draws reconstructed masses against the share of wrong pairings.

    Args:
        species: The particle.
        truth: Its mass [GeV].
        series: By name, triples of contamination [%], mean and standard deviation of the
            reconstructed mass [GeV].

    Raises:
        InputError: If there is no series.
    """
    if not series:
        raise InputError("'series' is empty: give at least one.")
    figure = go.Figure()
    for number, (name, points) in enumerate(series.items()):
        x = [share + 0.6 * (number - (len(series) - 1) / 2) for share, _, _ in points]
        figure.add_trace(
            go.Scatter(
                x=x, y=[mean for _, mean, _ in points], name=name, mode="markers",
                error_y={"array": [spread for _, _, spread in points], "width": 5},
                marker={"symbol": MARKERS[number], "size": 9, "color": COLOURS[number]},
            )
        )  # fmt: skip
    figure.add_hline(truth, line={"color": VERMILION, "width": 1.5})
    figure.update_xaxes(title_text="wrong pairings <i>E</i><sub>C</sub> [%]")
    figure.update_yaxes(title_text=f"{mass_label(species)} [GeV]")
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"Mean reconstructed mass of {species}; bars are the standard deviation over events, the "
        "line is the truth."
    )
    return finish(figure, caption, height=420)


def trial_mass_scan(
    trial_masses: Sequence[float],
    tails: Mapping[str, Sequence[float]],
    estimate: tuple[float, float, float] | None = None,
    truth: float | None = None,
) -> go.Figure:
    """Draws the tail beyond the edge against the trial mass of the invisible particle.

    Args:
        trial_masses: Trial masses [GeV].
        tails: Tail of each species [GeV].
        estimate: Estimated mass with the ends of its interval [GeV]; a mass of NaN for no kink.
        truth: True mass [GeV].

    Raises:
        InputError: If there are no trial masses.
    """
    if not len(trial_masses) or not tails:
        raise InputError("'trial_masses' is empty: scan at least one.")
    figure = go.Figure()
    for number, (name, values) in enumerate(tails.items()):
        figure.add_trace(
            go.Scatter(
                x=list(trial_masses), y=list(values), name=f"edge of {name}", mode="lines+markers",
                line={"color": COLOURS[number], "dash": DASHES[number]},
                marker={"symbol": MARKERS[number]},
            )
        )  # fmt: skip
    caption = "Mass range in which the last events below the edge lie, against the trial mass"
    if estimate is not None and not np.isfinite(estimate[0]):
        caption += "; without a kink, so that the mass is not known"
    elif estimate is not None:
        value, low, high = estimate
        figure.add_vrect(low, high, fillcolor=ORANGE, opacity=0.25, line_width=0)
        figure.add_vline(value, line={"color": BLUE, "dash": "dash"})
        caption += f"; estimate {value:.1f} GeV, 68 % interval {low:.1f} to {high:.1f} GeV (band)"
    if truth is not None:
        figure.add_vline(truth, line={"color": VERMILION, "width": 1.5})
        caption += f"; truth {truth:.1f} GeV (solid line)"
    figure.update_xaxes(title_text="trial mass of the invisible particle [GeV]")
    figure.update_yaxes(title_text="tail at the edge [GeV]", rangemode="tozero")
    figure.update_layout(legend=LEGEND_ABOVE)
    return finish(figure, f"{caption}.", height=420)


class LiveMasses:
    """The figure of `mass_history` while a fit goes on, for notebooks with a running kernel.

    Attributes:
        figure: The widget to display.
    """

    def __init__(self, species: Sequence[str], truth: Mapping[str, float] | None = None) -> None:
        """Prepares the widget.

        Raises:
            MissingExtraError: If the extra `jupyter` is not installed.
        """
        require_extra("anywidget", extra="jupyter")
        self._species, self._entries = list(species), []
        start = {"epoch": 0, "loss": 1.0, **dict.fromkeys(species, 0.0)}
        figure = mass_history([start], truth)
        figure.update_traces(x=[], y=[])
        self.figure = go.FigureWidget(figure)

    def __call__(self, entry: Mapping[str, float]) -> None:
        """Adds an epoch: pass this object as `on_epoch` of a fit."""
        if self._entries and entry["epoch"] <= self._entries[-1]["epoch"]:
            self._entries = []
        self._entries.append(dict(entry))
        steps = [e["epoch"] for e in self._entries]
        with self.figure.batch_update():
            for row, name in enumerate([*self._species, "loss"]):
                values = [e[name] for e in self._entries]
                self.figure.update_traces({"x": steps, "y": values}, selector=row)
