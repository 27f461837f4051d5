"""The figure of events that arrive one by one: the region of the masses and how wide it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.measurement import MassMeasurement
from massrecon.visual.measurement import plane_posterior, region_rims
from massrecon.visual.template import (
    BLACK,
    BLUE,
    GREY,
    LEGEND_ABOVE,
    PURPLE,
    SKY,
    VERMILION,
    Trace,
    drawing,
    mass_label,
)

_LEFT, _RIGHT = [0.0, 0.56], [0.66, 1.0]
_LOOKS = (("solid", "circle", BLUE), ("dash", "square", VERMILION))


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrivals:
    """N events in the order of their arrival, of which some have arrived.

    Attributes:
        counts: Numbers of events for which widths are known, rising, shape ``(K,)``.
        widths: Half lengths of the 68 % intervals [GeV], shape ``(K, 2)``.
        background: Whether each event is background, shape ``(N,)``.
    """

    counts: Sequence[int]
    widths: Tensor
    background: Sequence[bool]


def arriving_region(
    now: MassMeasurement,
    newest: MassMeasurement,
    before: MassMeasurement | None,
    arrivals: Arrivals,
    truth: Sequence[float],
    ranges: Mapping[str, Sequence[float]],
) -> go.Figure:
    """Draws the region of the masses after some events, and its width after each of them.

    Args:
        now: Measurement with all events that have arrived.
        newest: Measurement with the last of them alone.
        before: Measurement without it; None if it is the first.
        arrivals: Widths after each event, and what they are.
        truth: True masses [GeV] in the order of ``now.names``.
        ranges: Ends of the axes of the plane [GeV] by mass.

    Raises:
        InputError: If the measurement is not of two masses.
    """
    if len(now.names) != 2:
        raise InputError(f"'now' should be of two masses, got {', '.join(now.names)}.")
    y, x = now.names
    outer, inner = region_rims(plane_posterior(now.posterior, x, y), x, y)
    own = region_rims(plane_posterior(newest.posterior, x, y), x, y)[1]
    own |= {"name": "newest event alone", "line": _look(PURPLE, "dashdot")}
    old: dict[str, Any] = {"type": "scatter", "x": [None], "y": [None], "mode": "lines"}
    if before is not None:
        old = region_rims(plane_posterior(before.posterior, x, y), x, y)[1]
    old |= {"name": "before it", "line": _look(GREY, "dot")}
    traces: list[Trace] = [own, old, outer, inner, _star(truth), *_widths(now, arrivals)]
    caption = (
        f"Left: regions that hold 68 % (solid) and 95 % (dashed) of the posterior of the masses "
        f"after {now.n_events} events. Right: half the 68 % interval of each mass after every "
        "event so far; crosses are background events."
    )
    return drawing(traces, _layout(now, arrivals, ranges), caption, height=520)


def _look(colour: str, dash: str) -> dict[str, Any]:
    return {"color": colour, "dash": dash, "width": 2}


def _star(truth: Sequence[float]) -> go.Scatter:
    marker = {
        "color": VERMILION,
        "size": 14,
        "symbol": "star",
        "line": {"width": 1, "color": BLACK},
    }
    return go.Scatter(
        x=[truth[1]], y=[truth[0]], mode="markers", name="truth", marker=marker,
        hovertemplate="%{x:.0f}, %{y:.0f} GeV",
    )  # fmt: skip


def _widths(now: MassMeasurement, arrivals: Arrivals) -> list[go.Scatter]:
    """Draws how wide the interval of each mass was, and marks background."""
    place: dict[str, Any] = {"xaxis": "x2", "yaxis": "y2"}
    known = [i for i, n in enumerate(arrivals.counts) if n <= now.n_events]
    counts = [arrivals.counts[i] for i in known]
    traces, false = [], [i for i in known if arrivals.background[arrivals.counts[i] - 1]]
    for k, name in enumerate(now.names):
        dash, symbol, colour = _LOOKS[k]
        label = mass_label(now.symbols.get(name, name))
        values = [float(arrivals.widths[i, k]) for i in known]
        traces.append(
            go.Scatter(x=counts, y=values, mode="lines+markers", name=label, **place,
                       line={"color": colour, "dash": dash}, marker={"symbol": symbol, "size": 8},
                       hovertemplate="%{x} events: ±%{y:.1f} GeV")
        )  # fmt: skip
    traces.append(
        go.Scatter(x=[arrivals.counts[i] for i in false],
                   y=[float(arrivals.widths[i].max()) for i in false], mode="markers",
                   name="background event", hoverinfo="skip", **place,
                   marker={"symbol": "x-thin", "size": 15, "line": {"width": 3, "color": BLACK}})
    )  # fmt: skip
    start = float(arrivals.widths[0].max())
    every = list(arrivals.counts)
    traces.append(
        go.Scatter(x=every, y=[start * n**-0.5 for n in every], mode="lines+text", name="1/√events",
                   line={"color": SKY, "dash": "dot", "width": 1.5}, hoverinfo="skip", **place,
                   text=["" if i != len(every) // 2 else "1/√events" for i in range(len(every))],
                   textposition="top right", showlegend=False)
    )  # fmt: skip
    return traces


def _layout(
    now: MassMeasurement, arrivals: Arrivals, ranges: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    y, x = now.names
    labels = {n: f"{mass_label(now.symbols.get(n, n))} [GeV]" for n in (x, y)}
    last, widths = max(arrivals.counts), arrivals.widths.log10()
    return {
        "xaxis": {"domain": _LEFT, "range": ranges[x], "title": {"text": labels[x]}},
        "yaxis": {"range": ranges[y], "title": {"text": labels[y]}},
        "xaxis2": {"domain": _RIGHT, "anchor": "y2", "range": [0, last + 1],
                   "title": {"text": "events"}, "minor": {"ticks": ""}},
        "yaxis2": {"anchor": "x2", "type": "log", "minor": {"ticks": ""},
                   "tickvals": [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200],
                   "range": [float(widths.min()) - 0.1, float(widths.max()) + 0.1],
                   "title": {"text": "half the 68 % interval [GeV]"}},
        "legend": LEGEND_ABOVE | {"y": 1.02}, "margin": {"t": 100},
    }  # fmt: skip
