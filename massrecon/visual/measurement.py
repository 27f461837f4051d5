"""Figures of a measurement: the region of the masses, how it shrinks, and how many events it takes.

Regions are those of highest density, drawn as lines of equal density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError, ShapeError, unknown_name
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.likelihood import centres
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.refinement import resampled
from massrecon.inference.resolution_curve import (
    COMBINED,
    PEAK,
    ResolutionCurve,
    ResolutionPoint,
)
from massrecon.visual.contours import contour_lines
from massrecon.visual.template import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    LEGEND_ABOVE,
    MARKERS,
    SKY,
    VERMILION,
    Trace,
    finish,
    mass_label,
    plain,
)

_RIMS = ((0.68, "solid", BLUE), (0.95, "dash", SKY))
_SPARE = 0.12
_PULL_RANGE = 5.0
_PULL_BINS = 25
_DRAWN_POINTS = 90
_NEVER = -1e3
_FINER = 2  # points in a step of a measurement's grid that show a confidence region
_FARTHEST = 1e3
_FRAME_MS = 500


def mass_region(measurement: MassMeasurement, pair: tuple[str, str] | None = None) -> go.Figure:
    """Draws the 68 % and 95 % regions of two masses, with the densities of each beside them.

    Confidence regions from pseudo-experiments are dotted, where a measurement of two masses has
    them.

    Args:
        measurement: A measurement of two or more masses.
        pair: Names of the masses across and up; the first two if not given.

    Raises:
        InputError: If there is only one mass, or a name is unknown.
    """
    x, y = _pair(measurement.names, pair)
    plane = plane_posterior(measurement.posterior, x, y)
    figure = make_subplots(
        rows=2, cols=2, column_widths=[0.78, 0.22], row_heights=[0.22, 0.78],
        shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.02, vertical_spacing=0.02,
    )  # fmt: skip
    for trace in region_rims(plane, x, y):
        figure.add_trace(trace, row=2, col=1)
    for trace in (*_confidence_rims(measurement, x, y), *_marks(measurement, x, y)):
        figure.add_trace(trace, row=2, col=1)
    for name, row, column in ((x, 1, 1), (y, 2, 2)):
        values, density = plane.axes[name].numpy(), plane.marginal(name).numpy()
        across = (values, density) if name == x else (density, values)
        figure.add_trace(
            go.Scatter(x=across[0], y=across[1], mode="lines", line={"color": BLUE, "width": 2},
                       fill="tozeroy" if name == x else "tozerox", showlegend=False,
                       hoverinfo="skip"),
            row=row, col=column,
        )  # fmt: skip
    ranges = {
        name: range_around(plane, name, measurement.truth, measurement.names) for name in (x, y)
    }
    figure.update_xaxes(title_text=_label(measurement.symbols, x), range=ranges[x], row=2, col=1)
    figure.update_yaxes(title_text=_label(measurement.symbols, y), range=ranges[y], row=2, col=1)
    figure.update_yaxes(showticklabels=False, ticks="", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(showticklabels=False, ticks="", rangemode="tozero", row=2, col=2)
    figure.update_xaxes(range=ranges[x], row=1, col=1)
    figure.update_yaxes(range=ranges[y], row=2, col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    return finish(figure, _region_caption(measurement), height=560)


def growing_region(
    measurements: Sequence[MassMeasurement], pair: tuple[str, str] | None = None
) -> go.Figure:
    """Draws how the regions shrink as events arrive, one frame for each measurement.

    Args:
        measurements: Measurements of the same masses, from fewer to more events.
        pair: Names of the masses across and up; the first two if not given.

    Raises:
        InputError: If there is no measurement, or only one mass.
    """
    if not measurements:
        raise InputError("There is no measurement to draw: pass one or more.")
    first = measurements[0]
    x, y = _pair(first.names, pair)
    traces = [_frame(m, x, y) for m in measurements]
    figure = go.Figure(data=traces[0])
    figure.frames = [
        go.Frame(data=own, name=str(m.n_events), traces=list(range(len(own))))
        for own, m in zip(traces, measurements, strict=True)
    ]
    steps = [
        {"label": str(m.n_events), "method": "animate",
         "args": [[str(m.n_events)], {"mode": "immediate", "transition": {"duration": 0},
                                      "frame": {"duration": 0, "redraw": False}}]}
        for m in measurements
    ]  # fmt: skip
    play = {"label": "▶ play", "method": "animate",
            "args": [None, {"frame": {"duration": _FRAME_MS, "redraw": False},
                            "fromcurrent": True, "transition": {"duration": 0}}]}  # fmt: skip
    figure.update_layout(
        sliders=[{"steps": steps, "currentvalue": {"prefix": "events: "}, "pad": {"t": 55}}],
        updatemenus=[{"type": "buttons", "buttons": [play], "x": 1.0, "y": 1.14,
                      "xanchor": "right", "showactive": False}],
        legend=LEGEND_ABOVE | {"x": 0.0, "xanchor": "left"},
    )  # fmt: skip
    for name, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        limits = _reach(measurements, name)
        update(title_text=_label(first.symbols, name), range=limits)
    counts = [m.n_events for m in measurements]
    caption = (
        f"68 % (solid) and 95 % (dashed) regions of the masses from {counts[0]} to {counts[-1]} "
        "events. The star is the truth where it is known; move the slider or press play."
    )
    return finish(figure, caption, height=620)


def mass_marginals(measurement: MassMeasurement) -> go.Figure:
    """Draws the density of each mass with its shortest 68 % and 95 % intervals."""
    names = measurement.names
    figure = make_subplots(cols=len(names), horizontal_spacing=0.1)
    intervals = {level: measurement.interval(level) for level, *_ in _RIMS}
    for column, name in enumerate(names, 1):
        axis = measurement.posterior.axes[name].numpy()
        density = measurement.posterior.marginal(name).numpy()
        for level, _, colour in reversed(_RIMS):
            low, high = intervals[level][column - 1].tolist()
            inside = np.linspace(low, high, 200)
            figure.add_trace(
                go.Scatter(x=inside, y=np.interp(inside, axis, density), mode="lines",
                           line={"width": 0}, fill="tozeroy", fillcolor=_faint(colour),
                           name=f"{level:.0%}", showlegend=column == 1, hoverinfo="skip"),
                row=1, col=column,
            )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=axis, y=density, mode="lines", line={"color": BLUE, "width": 2},
                       showlegend=False, hovertemplate="%{x:.1f} GeV: %{y:.4f}<extra></extra>"),
            row=1, col=column,
        )  # fmt: skip
        if measurement.truth is not None:
            figure.add_vline(
                float(measurement.truth[column - 1]), line={"color": VERMILION, "dash": "dash"},
                row=1, col=column,  # type: ignore[arg-type]  plotly asks for text
            )  # fmt: skip
        outer = measurement.posterior.interval(0.999)[column - 1].tolist()
        if measurement.truth is not None:
            outer += [float(measurement.truth[column - 1])]
        figure.update_xaxes(
            title_text=_label(measurement.symbols, name), range=[min(outer), max(outer)],
            row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(title_text="probability density [1/GeV]", col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"Posterior of each mass from {measurement.n_events:,} events, with the shortest intervals "
        "that hold 68 % and 95 %"
        + (", and the truth (dashed line)." if measurement.truth is not None else ".")
    )
    return finish(figure, caption, height=400)


def resolution_figure(
    curves: Mapping[str, ResolutionCurve], goal: float | None = None
) -> go.Figure:
    """Draws the resolution of each mass against the number of events, with a luminosity axis.

    Args:
        curves: Curves of the same masses by the name of what they are of, such as a model; for the
            first one the peak of the sum is drawn too.
        goal: A resolution to mark [GeV].

    Raises:
        InputError: If there is no curve.
    """
    if not curves:
        raise InputError("There is no curve to draw: pass one or more.")
    first = next(iter(curves.values()))
    figure = make_subplots(cols=len(first.names), shared_yaxes=True, horizontal_spacing=0.06)
    lines = [(label, curve, COMBINED) for label, curve in curves.items()]
    lines.append((PEAK, first, PEAK))
    for number, (label, curve, method) in enumerate(lines):
        for column, _ in enumerate(first.names, 1):
            for trace in _resolution_lines(curve, method, label, column - 1, number):
                figure.add_trace(trace, row=1, col=column)
    for column, name in enumerate(first.names, 1):
        if goal is not None:
            place: Any = {"row": 1, "col": column}
            figure.add_hline(goal, line={"color": GREY, "dash": "dot"}, **place)
        figure.update_xaxes(title_text="signal events", type="log", row=1, col=column)
        _add_luminosity(figure, first, column)
        figure.add_annotation(
            text=mass_label(first.symbols.get(name, name)), showarrow=False,
            x=0.95, y=0.95, xref=f"{_axis('x', column)} domain",
            yref=f"{_axis('y', column)} domain",
        )  # fmt: skip
    figure.update_yaxes(type="log", row=1)
    figure.update_yaxes(title_text="68 % of the estimates within [GeV]", row=1, col=1)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.16}, margin={"t": 120})
    return finish(figure, _resolution_caption(first, goal), height=500)


def measurement_pulls(
    names: Sequence[str], pulls: Tensor, symbols: Mapping[str, str] | None = None
) -> go.Figure:
    """Draws the distribution of (estimate - truth) / uncertainty over many measurements.

    Args:
        names: Names of the M masses.
        pulls: Pulls, shape ``(E, M)``.
        symbols: Symbols of the masses in HTML, by name.

    Raises:
        ShapeError: If there is not one column for each mass, or no pull at all.
    """
    if pulls.ndim != 2 or pulls.shape[1] != len(names) or len(pulls) == 0:
        raise ShapeError(
            f"'pulls' should have shape (measurements, {len(names)}), got {tuple(pulls.shape)}."
        )
    edges = np.linspace(-_PULL_RANGE, _PULL_RANGE, _PULL_BINS + 1)
    centre, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    normal = len(pulls) * width * np.exp(-(centre**2) / 2) / np.sqrt(2 * np.pi)
    figure = make_subplots(cols=len(names), shared_yaxes=True, horizontal_spacing=0.05)
    for column, name in enumerate(names, 1):
        own = pulls[:, column - 1].clamp(-_PULL_RANGE, _PULL_RANGE).numpy()
        counts, _ = np.histogram(own, edges)
        figure.add_trace(
            go.Bar(x=centre, y=counts, marker={"color": SKY}, showlegend=column == 1,
                   name="pseudo-experiments"),
            row=1, col=column,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=centre, y=normal, mode="lines", line={"color": BLACK, "dash": "dash"},
                       name="standard normal", showlegend=column == 1),
            row=1, col=column,
        )  # fmt: skip
        mean, spread = float(pulls[:, column - 1].mean()), float(pulls[:, column - 1].std())
        symbol = mass_label((symbols or {}).get(name, name))
        figure.update_xaxes(title_text=f"pull of {symbol}", row=1, col=column)
        figure.add_annotation(
            text=f"mean {mean:+.2f}, width {spread:.2f}", showarrow=False, x=0.04, y=0.96,
            xref=f"{_axis('x', column)} domain", yref=f"{_axis('y', column)} domain",
            xanchor="left", yanchor="top",
        )  # fmt: skip
    figure.update_yaxes(title_text="pseudo-experiments", col=1)
    figure.update_layout(legend=LEGEND_ABOVE, bargap=0.05)
    caption = (
        f"Difference of measured and true mass over half the 68 % interval in {len(pulls):,} "
        "pseudo-experiments; calibrated Gaussian uncertainties follow the dashed curve."
    )
    return finish(figure, caption, height=420)


def plane_posterior(posterior: GridPosterior, x: str, y: str) -> GridPosterior:
    """Adds up all masses but two, `x` being the first axis of the result."""
    names = list(posterior.names)
    order = [names.index(x), names.index(y)]
    others = [i for i in range(len(names)) if i not in order]
    grid = posterior.probability().unflatten(-1, posterior.shape)
    grid = grid.permute(*order, *others).flatten(2).sum(2) if others else grid.permute(*order)
    axes = {x: posterior.axes[x], y: posterior.axes[y]}
    return GridPosterior.from_log_likelihood(axes, grid.flatten().log())


def _pair(names: Sequence[str], pair: tuple[str, str] | None) -> tuple[str, str]:
    if len(names) < 2:
        raise InputError("A region in the plane needs two masses: draw mass_marginals instead.")
    for name in pair or ():
        if name not in names:
            raise unknown_name("mass", name, names)
    return (names[1], names[0]) if pair is None else pair


def region_rims(plane: GridPosterior, x: str, y: str) -> list[dict[str, Any]]:
    """Draws the 95 % and the 68 % region of a plane, each as one trace of closed lines.

    The lines are arrays with NaN between them, which plotly takes as they are: it looks at every
    entry of a list.
    """
    axes, log_prob = _drawn(plane)
    return [
        _rim(axes[x], axes[y], plane.threshold(level) - log_prob, f"{level:.0%}",
             {"color": colour, "dash": dash, "width": 2.5})
        for level, dash, colour in reversed(_RIMS)
    ]  # fmt: skip


def _confidence_rims(measurement: MassMeasurement, x: str, y: str) -> list[dict[str, Any]]:
    """Draws the confidence regions of a measurement of two masses; nothing if there are none."""
    known = measurement.regions
    if known is None or len(measurement.names) != 2:
        return []
    traces = []
    for level in sorted(known.levels, reverse=True):
        grid, excess = measurement.confidence_excess(level, finer=_FINER)
        across_first = (x, y) == grid.names
        values = excess.reshape(grid.shape).clamp(-_FARTHEST, _FARTHEST)
        values = values.T if across_first else values
        traces.append(
            _rim(grid.axes[x], grid.axes[y], values, f"{level:.0%} confidence",
                 {"color": VERMILION, "dash": "dot", "width": 1.5 if level > 0.9 else 2.5})
        )  # fmt: skip
    return traces


def _rim(x: Tensor, y: Tensor, values: Tensor, label: str, line: dict[str, Any]) -> dict[str, Any]:
    """Draws closed lines around where values ``(Y, X)`` are not above zero, as one trace."""
    lines = contour_lines(x.numpy(), y.numpy(), values.numpy(), 0.0)
    across, up = (_one_after_the_other([one[i] for one in lines]) for i in (0, 1))
    return {"type": "scatter", "x": across, "y": up, "mode": "lines", "name": label,
            "hoverinfo": "skip", "line": line}  # fmt: skip


def _one_after_the_other(lines: Sequence[np.ndarray]) -> np.ndarray:
    """Joins coordinates [GeV], rounded, with NaN after each line."""
    return np.concatenate([np.empty(0), *(np.append(np.round(one, 2), np.nan) for one in lines)])


def _drawn(plane: GridPosterior) -> tuple[dict[str, Tensor], Tensor]:
    """Returns axes around the outer region, fine enough to draw, and log p on them ``(Y, X)``."""
    used = plane.region(_RIMS[-1][0]).reshape(plane.shape)
    axes = {}
    for i, (name, axis) in enumerate(plane.axes.items()):
        inside = used.any(1 - i).nonzero()[:, 0]
        step = float(axis[1] - axis[0])
        low = max(float(axis[int(inside[0])]) - 1.5 * step, float(axis[0]) - step / 2)
        high = min(float(axis[int(inside[-1])]) + 1.5 * step, float(axis[-1]) + step / 2)
        axes[name] = centres(low, high, _DRAWN_POINTS)
    log_prob = resampled(plane.log_prob, plane.axes, axes).clamp_min(_NEVER)
    return axes, log_prob.reshape(_DRAWN_POINTS, _DRAWN_POINTS).T


def _marks(measurement: MassMeasurement, x: str, y: str) -> list[go.Scatter]:
    at = [measurement.names.index(name) for name in (x, y)]
    points = [("mode", measurement.estimate("mode"), BLUE, "cross")]
    if measurement.truth is not None:
        points.append(("truth", measurement.truth, VERMILION, "star"))
    return [
        go.Scatter(
            x=[float(point[at[0]])], y=[float(point[at[1]])], mode="markers", name=label,
            marker={"color": colour, "symbol": symbol, "size": 13},
            hovertemplate="%{x:.1f}, %{y:.1f} GeV",
        )
        for label, point, colour, symbol in points
    ]  # fmt: skip


def _frame(measurement: MassMeasurement, x: str, y: str) -> list[Trace]:
    plane = plane_posterior(measurement.posterior, x, y)
    return [*region_rims(plane, x, y), *_marks(measurement, x, y)]


def range_around(
    plane: GridPosterior, name: str, truth: Tensor | None, names: Sequence[str]
) -> list[float]:
    """Returns the range of an axis: the 95 % region and the truth, with some room."""
    i = plane.names.index(name)
    used = plane.region(_RIMS[-1][0]).reshape(plane.shape).any(1 - i)
    inside = plane.axes[name][used]
    low, high = float(inside.min()), float(inside.max())
    if truth is not None:
        at = float(truth[list(names).index(name)])
        low, high = min(low, at), max(high, at)
    room = _SPARE * max(high - low, 1.0)
    return [low - room, high + room]


def _reach(measurements: Sequence[MassMeasurement], name: str) -> list[float]:
    ranges = []
    for m in measurements:
        x, y = _pair(m.names, None)
        pair = (x, y) if name in (x, y) else (name, x)
        ranges.append(range_around(plane_posterior(m.posterior, *pair), name, m.truth, m.names))
    return [min(r[0] for r in ranges), max(r[1] for r in ranges)]


def _label(symbols: Mapping[str, str], name: str) -> str:
    return f"{mass_label(symbols.get(name, name))} [GeV]"


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.35)"


def _axis(letter: str, column: int) -> str:
    return letter if column == 1 else f"{letter}{column}"


def _region_caption(measurement: MassMeasurement) -> str:
    rows = []
    for i, name in enumerate(measurement.names):
        low, high = measurement.interval()[i].tolist()
        best = float(measurement.estimate()[i])
        symbol = plain(measurement.symbols.get(name, name))
        rows.append(f"m({symbol}) = {best:.1f} (+{high - best:.1f} −{best - low:.1f}) GeV")
    return (
        f"68 % (solid) and 95 % (dashed) highest-density regions from {measurement.n_events:,} "
        f"events: {', '.join(rows)}." + _confidence_caption(measurement)
    )


def _confidence_caption(measurement: MassMeasurement) -> str:
    known = measurement.regions
    if known is None or len(measurement.names) != 2:
        return ""
    levels = " and ".join(f"{100 * level:g} %" for level in known.levels)
    return (
        f" Dotted: confidence regions, with critical values such that they hold the true masses in "
        f"{levels} of pseudo-experiments wherever these are."
    )


def _resolution_lines(
    curve: ResolutionCurve, method: str, label: str, mass: int, number: int
) -> list[go.Scatter]:
    points = curve.of(method)
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    x = [point.n_events for point in points]
    style = {"color": colour, "dash": dash, "width": 2}
    return [
        go.Scatter(
            x=x, y=[_entry(p, mass)[0] for p in points], mode="lines+markers", name=label,
            error_y={"type": "data", "array": [_entry(p, mass)[1] for p in points]},
            line=style, marker={"symbol": MARKERS[number % len(MARKERS)], "size": 9},
            showlegend=mass == 0,
            hovertemplate="%{x} events: %{y:.1f} ± %{error_y.array:.1f} GeV",
        )
    ]  # fmt: skip


def _entry(point: ResolutionPoint, mass: int) -> list[float]:
    return point.resolution[mass].tolist()


def _add_luminosity(figure: go.Figure, curve: ResolutionCurve, column: int) -> None:
    """Writes the luminosity of each number of events along the upper edge of a panel."""
    if not curve.events_per_fb:
        return
    for point in curve.of(COMBINED):
        luminosity = curve.luminosity(point.n_events)
        assert luminosity is not None
        figure.add_annotation(
            text=_short(luminosity), x=float(np.log10(point.n_events)), y=1.0, yanchor="bottom",
            xref=_axis("x", column), yref=f"{_axis('y', column)} domain", showarrow=False,
            font={"size": 11, "color": GREY},
        )  # fmt: skip
    figure.add_annotation(
        text="luminosity [fb<sup>−1</sup>]", x=0.5, y=1.06, yanchor="bottom", showarrow=False,
        xref=f"{_axis('x', column)} domain", yref=f"{_axis('y', column)} domain",
        font={"size": 12, "color": GREY},
    )  # fmt: skip


def _short(luminosity: float) -> str:
    return f"{float(f'{luminosity:.2g}'):,.0f}"


def _resolution_caption(curve: ResolutionCurve, goal: float | None) -> str:
    at = ", ".join(
        f"m({plain(curve.symbols.get(name, name))}) = {value:g} GeV"
        for name, value in zip(curve.names, curve.truth.tolist(), strict=True)
    )
    return (
        f"Distance from the true mass that holds 68 % of {curve.n_experiments:,} pseudo-experiments"
        f" of N signal events without background, at {at}, from a pool of {curve.n_pool:,} events. "
        "The peak of the sum is the highest bin of all single posteriors in one histogram."
        + ("" if goal is None else f" Dotted: {goal:g} GeV.")
    )
