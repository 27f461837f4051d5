"""Regions of two masses, one panel for each model, with marginal densities and all estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from massrecon.errors import InputError
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.measurement import MassMeasurement
from massrecon.visual.measurement import plane_posterior, range_around, region_rims
from massrecon.visual.template import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LEGEND_ABOVE,
    ORANGE,
    PURPLE,
    VERMILION,
    Trace,
    drawing,
    mass_label,
)

ESTIMATE_STYLES = {
    "draw": (GREY, "x-thin-open"),
    "mean": (GREEN, "circle-open"),
    "median": (PURPLE, "diamond-open"),
    "window": (ORANGE, "square-open"),
    "mode": (BLACK, "cross-thin-open"),
}
"""Colour and marker of each estimate."""

_MAIN, _GAP = 0.8, 0.05  # share of the plane in a panel, gap of panels
_LEAST = 20.0  # [GeV] shown on an axis


def regions_compared(
    measurements: Mapping[str, MassMeasurement],
    estimates: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    truth: Sequence[float] | None = None,
    whole: bool = False,
) -> go.Figure:
    """Draws the 68 % and 95 % regions of two masses side by side, with each mass beside them.

    The number of traces depends on the number of measurements and estimates alone.

    Args:
        measurements: Measurements of the same two masses, by the name of the model.
        estimates: Point estimates (in the order of the masses) [GeV] by name, for each model.
        truth: True masses [GeV] in their order; those of the first measurement if not given.
        whole: Whether to show all masses that the models know, and not the regions alone.

    Raises:
        InputError: If there is no measurement, or not of two masses.
    """
    first = next(iter(measurements.values()), None)
    if first is None or len(first.names) != 2:
        raise InputError("'measurements' should be one or more, each of two masses.")
    if truth is None and first.truth is not None:
        truth = first.truth.tolist()
    y, x = first.names
    planes = {name: plane_posterior(m.posterior, x, y) for name, m in measurements.items()}
    ranges = {name: _range(name, measurements, planes, truth, whole) for name in (x, y)}
    traces: list[Trace] = []
    for number, (name, plane) in enumerate(planes.items()):
        main: dict[str, Any] = {"xaxis": f"x{3 * number + 1}", "yaxis": f"y{3 * number + 1}"}
        for rim in region_rims(plane, x, y):
            traces.append(rim | {"showlegend": number == 0, "legendgroup": rim["name"], **main})
        marks = dict((estimates or {}).get(name, {})) | {"truth": truth or (None, None)}
        traces += [_mark(label, point, number == 0) | main for label, point in marks.items()]
        traces += _marginals(plane, number, (x, y), truth)
    layout = _layout(list(planes), ranges, (x, y), first.symbols)
    named = "; ".join(f"{name}: {m}" for name, m in measurements.items())
    caption = (
        "Highest-density regions that hold 68 % (solid) and 95 % (dashed) of the posterior of the "
        f"masses, with the density of each beside them. {named}."
    )
    return drawing(traces, layout, caption, height=560)


def _range(
    name: str,
    measurements: Mapping[str, MassMeasurement],
    planes: Mapping[str, GridPosterior],
    truth: Sequence[float] | None,
    whole: bool,
) -> list[float]:
    """Returns the ends of an axis, the same for all panels."""
    i = next(iter(measurements.values())).names.index(name)
    lowest = min(m.region.low[i] for m in measurements.values())
    highest = max(m.region.high[i] for m in measurements.values())
    if whole:
        return [lowest, highest]
    ends = []
    for label, m in measurements.items():
        known = None if truth is None else m.posterior.points.new_tensor(truth)
        ends.append(range_around(planes[label], name, known, m.names))
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    room = max(0.0, (_LEAST - (high - low)) / 2)
    return [max(low - room, lowest), min(high + room, highest)]


def _mark(label: str, point: Sequence[float | None], legend: bool) -> dict[str, Any]:
    colour, symbol = ESTIMATE_STYLES.get(label, (VERMILION, "star"))
    marker: dict[str, Any] = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2.5}}
    if label == "truth":
        marker |= {"size": 14, "line": {"width": 1, "color": BLACK}}
    return {
        "type": "scatter", "x": [point[1]], "y": [point[0]], "mode": "markers", "name": label,
        "legendgroup": label, "showlegend": legend, "marker": marker,
        "hovertemplate": f"{label}: %{{x:.1f}}, %{{y:.1f}} GeV<extra></extra>",
    }  # fmt: skip


def _marginals(
    plane: GridPosterior, number: int, pair: tuple[str, str], truth: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Draws the densities of both masses, the first above the plane, the second to the right."""
    quiet = {"type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    dashed = {"color": VERMILION, "width": 1.5, "dash": "dash"}
    traces = []
    for i, name in enumerate(pair):
        values, density = plane.axes[name].numpy(), plane.marginal(name).numpy()
        at = None if truth is None else truth[1 - i]
        line, mark = (values, density), ([at, at], [0.0, 1.05 * float(density.max())])
        if i == 1:
            line, mark = line[::-1], mark[::-1]
        place = {"xaxis": f"x{3 * number + 2 + i}", "yaxis": f"y{3 * number + 2 + i}"}
        fill = "tozerox" if i else "tozeroy"
        style = {"line": {"color": BLUE, "width": 2}, "fill": fill, **place, **quiet}
        traces.append({"x": line[0], "y": line[1], **style})
        traces.append({"x": mark[0], "y": mark[1], "line": dashed, **place, **quiet})
    return traces


def _layout(
    titles: Sequence[str],
    ranges: Mapping[str, Sequence[float]],
    pair: tuple[str, str],
    symbols: Mapping[str, str],
) -> dict[str, Any]:
    """Lays out a plane with a strip above and one to the right, for each title."""
    x, y = pair
    labels = {name: f"{mass_label(symbols.get(name, name))} [GeV]" for name in pair}
    quiet = {"showticklabels": False, "ticks": "", "rangemode": "tozero", "minor": {"ticks": ""}}
    own = {x: {"range": ranges[x]}, y: {"range": ranges[y]}}
    hidden, named = {"showticklabels": False}, {n: {"title": {"text": labels[n]}} for n in pair}
    layout: dict[str, Any] = {"annotations": [], "legend": LEGEND_ABOVE | {"y": 1.06}}
    layout["margin"] = {"t": 95}
    width = (1 + _GAP) / len(titles) - _GAP
    for number, title in enumerate(titles):
        left = number * (width + _GAP)
        across, side = [left, left + _MAIN * width], [left + (_MAIN + 0.02) * width, left + width]
        main, above, beside = (f"axis{3 * number + k}" for k in (1, 2, 3))
        up, top = [0.0, _MAIN], [_MAIN + 0.02, 1.0]
        layout[f"x{main}"] = {"domain": across, "anchor": f"y{main[4:]}", **own[x], **named[x]}
        layout[f"y{main}"] = {"domain": up, "anchor": f"x{main[4:]}", **own[y]}
        layout[f"y{main}"] |= hidden if number else named[y]
        layout[f"x{above}"] = {"domain": across, "anchor": f"y{above[4:]}", **own[x], **hidden}
        layout[f"y{above}"] = {"domain": top, "anchor": f"x{above[4:]}", **quiet}
        layout[f"x{beside}"] = {"domain": side, "anchor": f"y{beside[4:]}", **quiet}
        layout[f"y{beside}"] = {"domain": up, "anchor": f"x{beside[4:]}", **own[y], **hidden}
        layout["annotations"].append(
            {"text": f"<b>{title}</b>", "x": sum(across) / 2, "y": 1.0, "xref": "paper",
             "yref": "paper", "xanchor": "center", "yanchor": "bottom", "showarrow": False}
        )  # fmt: skip
    return layout
