"""Figures of one event: the transverse view, the eta-phi view, and the view in three dimensions.

Each group of objects (a side of the decay, what has no leg, what is not seen) has its own colour,
dash and legend entry; each kind of object has its own marker. The view in three dimensions is a
projection that is drawn like any other figure, since WebGL is not everywhere; `space_view` can also
make one for WebGL, to be turned with the mouse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from massrecon.errors import InputError
from massrecon.visual.template import (
    BLACK,
    BLUE,
    GREY,
    LEGEND_ABOVE,
    PURPLE,
    VERMILION,
    finish,
)

GROUPS = ("side a", "side b", "without a leg", "ptmiss", "reconstructed unseen")
"""Groups of objects in their order, one style each."""

_COLOURS = (BLUE, VERMILION, GREY, BLACK, PURPLE)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = {"lepton": "triangle-up", "photon": "star", "jet": "circle", "fatjet": "hexagon",
            "tau": "pentagon", "ptmiss": "x", "unseen": "diamond"}  # fmt: skip
_SYMBOLS_3D = {"lepton": "diamond", "jet": "circle", "ptmiss": "x", "unseen": "diamond-open"}
_ETA = 5.0
_CIRCLE = [2 * math.pi * k / 72 for k in range(73)]

Line = list[float | None]


@dataclass(frozen=True, kw_only=True)
class SeenObject:
    """An object of an event, as it is drawn.

    Attributes:
        label: What it is called, such as ``jet 1``.
        kind: Kind of object, ``ptmiss``, or ``unseen`` for a reconstructed one.
        group: One of `GROUPS`.
        p3: Momentum (px, py, pz) [GeV]; pz is None for ptmiss.
        note: Further text for a reader who points at it.
    """

    label: str
    kind: str
    group: str
    p3: tuple[float, float, float | None]
    note: str = ""

    @property
    def pt(self) -> float:
        """Transverse momentum [GeV]."""
        return math.hypot(*self.p3[:2])

    @property
    def phi(self) -> float:
        """Azimuth [rad]."""
        return math.atan2(self.p3[1], self.p3[0])

    @property
    def eta(self) -> float:
        """Pseudorapidity; 0 for ptmiss, which has none."""
        return 0.0 if self.p3[2] is None else math.asinh(self.p3[2] / max(self.pt, 1e-9))

    @property
    def about(self) -> str:
        """What is said of it to a reader who points at it."""
        place = f"pT {self.pt:.1f} GeV, φ {self.phi:.2f}"
        eta = "" if self.p3[2] is None else f", η {self.eta:.2f}"
        return f"{self.label}: {place}{eta}" + (f"<br>{self.note}" if self.note else "")


def event_views(objects: Sequence[SeenObject]) -> go.Figure:
    """Draws an event across the beam, and in pseudorapidity and azimuth.

    Args:
        objects: Its objects, ptmiss and reconstructed unseen particles among them.

    Raises:
        InputError: If there is no object.
    """
    _check(objects)
    figure = make_subplots(1, 2, horizontal_spacing=0.12, column_widths=[0.5, 0.5])
    reach = 1.18 * max(o.pt for o in objects)
    for number, group in enumerate(GROUPS):
        members = [o for o in objects if o.group == group]
        across = [(o.p3[0], o.p3[1]) for o in members]
        figure.add_trace(_rays(across, number), row=1, col=1)
        figure.add_trace(_points(members, across, number), row=1, col=1)
        flat = [o for o in members if o.p3[2] is not None]
        places = [(o.eta, o.phi) for o in flat]
        figure.add_trace(_points(flat, places, number, legend=False), row=1, col=2)
    missing = [o.phi for o in objects if o.kind == "ptmiss"]
    figure.add_trace(_azimuth(missing), row=1, col=2)
    axes = {"range": [-reach, reach], "row": 1, "col": 1}
    figure.update_xaxes(title_text="<i>p</i><sub>x</sub> [GeV]", constrain="domain", **axes)
    figure.update_yaxes(
        title_text="<i>p</i><sub>y</sub> [GeV]", scaleanchor="x", constrain="domain", **axes
    )
    figure.update_xaxes(title_text="pseudorapidity η", range=[-_ETA, _ETA], row=1, col=2)
    figure.update_yaxes(title_text="azimuth φ [rad]", range=[-3.3, 3.3], row=1, col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        "Left: transverse momenta. Right: directions, larger for more transverse momentum; the "
        "line is the azimuth of ptmiss. Colours and dashes are the sides of the decay in the most "
        "probable assignment; triangles are leptons, stars photons, circles jets, diamonds "
        "reconstructed unseen particles."
    )
    return finish(figure, caption, height=520)


def space_view(
    objects: Sequence[SeenObject],
    azimuth: float = 30.0,
    elevation: float = 20.0,
    webgl: bool = False,
) -> go.Figure:
    """Draws the momenta of an event in three dimensions; the beam runs from left to right.

    Args:
        objects: Its objects; ptmiss, which has no longitudinal component, lies across the beam.
        azimuth: Angle by which the view is turned about the vertical [degrees].
        elevation: Angle from which it is seen from above [degrees].
        webgl: Whether to draw with WebGL, so that the mouse turns it; where a browser has none,
            such a figure stays empty.

    Raises:
        InputError: If there is no object.
    """
    _check(objects)
    return _with_webgl(objects) if webgl else _projected(objects, azimuth, elevation)


def _projected(objects: Sequence[SeenObject], azimuth: float, elevation: float) -> go.Figure:
    a, e = math.radians(azimuth), math.radians(elevation)

    def seen_from(p3: tuple[float, float, float | None]) -> tuple[float, float]:
        x, y, z = p3[0], p3[1], p3[2] or 0.0
        across, depth = z * math.cos(a) + x * math.sin(a), x * math.cos(a) - z * math.sin(a)
        return across, y * math.cos(e) - depth * math.sin(e)

    longest = max(math.hypot(o.pt, o.p3[2] or 0.0) for o in objects)
    figure = go.Figure()
    figure.add_trace(_frame([seen_from((0, 0, z)) for z in (-longest, longest)], "beam", "solid"))
    radius = max(o.pt for o in objects)
    ring = [seen_from((radius * math.cos(t), radius * math.sin(t), 0.0)) for t in _CIRCLE]
    figure.add_trace(_frame(ring, f"across the beam, {radius:.0f} GeV", "dot"))
    for number, group in enumerate(GROUPS):
        members = [o for o in objects if o.group == group]
        places = [seen_from(o.p3) for o in members]
        figure.add_trace(_rays(places, number))
        figure.add_trace(_points(members, places, number))
    figure.update_xaxes(title_text=f"across the view [GeV], turned by {azimuth:.0f}°")
    figure.update_yaxes(title_text="up in the view [GeV]", scaleanchor="x")
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"Momenta in three dimensions, seen from {elevation:.0f}° above and turned by "
        f"{azimuth:.0f}° about the vertical; at 0° the beam lies across."
    )
    return finish(figure, caption, height=520)


def _with_webgl(objects: Sequence[SeenObject]) -> go.Figure:
    longest = max(math.hypot(o.pt, o.p3[2] or 0.0) for o in objects)
    figure = go.Figure(
        go.Scatter3d(x=[-longest, longest], y=[0, 0], z=[0, 0], mode="lines", name="beam",
                     line={"color": GREY, "width": 2}, hoverinfo="skip")
    )  # fmt: skip
    for number, group in enumerate(GROUPS):
        members = [o for o in objects if o.group == group]
        ends = [(o.p3[2] or 0.0, o.p3[0], o.p3[1]) for o in members]
        lines = [_spread([end[i] for end in ends]) for i in range(3)]
        style = {"color": _COLOURS[number], "dash": _DASHES[number], "width": 5}
        figure.add_trace(
            go.Scatter3d(x=lines[0], y=lines[1], z=lines[2], mode="lines", line=style,
                         showlegend=False, hoverinfo="skip")
        )  # fmt: skip
        symbols = [_SYMBOLS_3D.get(o.kind, "square") for o in members]
        figure.add_trace(
            go.Scatter3d(
                x=[end[0] for end in ends], y=[end[1] for end in ends], z=[end[2] for end in ends],
                mode="markers+text", name=group, text=[o.label for o in members],
                marker={"color": _COLOURS[number], "size": 5, "symbol": symbols},
                hovertext=[o.about for o in members], hoverinfo="text",
            )
        )  # fmt: skip
    titles = ("pz [GeV]", "px [GeV]", "py [GeV]")
    axes = zip("xyz", titles, strict=True)
    figure.update_layout(scene={f"{axis}axis": {"title": {"text": text}} for axis, text in axes})
    figure.update_layout(legend=LEGEND_ABOVE)
    return finish(figure, "Momenta in three dimensions; turn them with the mouse.", height=520)


def _check(objects: Sequence[SeenObject]) -> None:
    if not objects:
        raise InputError("'objects' is empty: there is nothing to draw.")
    for one in objects:
        if one.group not in GROUPS:
            raise InputError(f"Unknown group '{one.group}': choose from {', '.join(GROUPS)}.")


def _spread(ends: Sequence[float]) -> Line:
    """Lists lines from the origin to each end, with gaps between them."""
    return [value for end in ends for value in (0.0, end, None)]


def _rays(ends: Sequence[tuple[float, float]], number: int) -> go.Scatter:
    return go.Scatter(
        x=_spread([x for x, _ in ends]), y=_spread([y for _, y in ends]), mode="lines",
        line={"color": _COLOURS[number], "dash": _DASHES[number], "width": 2.2},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def _points(
    members: Sequence[SeenObject],
    places: Sequence[tuple[float, float]],
    number: int,
    legend: bool = True,
) -> go.Scatter:
    sizes = [7 + min(1.1 * math.sqrt(o.pt), 26) for o in members] if not legend else 10
    return go.Scatter(
        x=[x for x, _ in places], y=[y for _, y in places], mode="markers+text",
        name=GROUPS[number], legendgroup=GROUPS[number], showlegend=legend and bool(members),
        text=[o.label for o in members], textfont={"size": 11, "color": _COLOURS[number]},
        textposition=["bottom center" if y < 0 else "top center" for _, y in places],
        marker={
            "color": _COLOURS[number], "size": sizes, "line": {"color": "white", "width": 1},
            "symbol": [_SYMBOLS.get(o.kind, "square") for o in members], "opacity": 1,
        },
        hovertext=[o.about for o in members], hoverinfo="text",
    )  # fmt: skip


def _azimuth(angles: Sequence[float]) -> go.Scatter:
    """A line at the azimuth of ptmiss across all pseudorapidities."""
    x = [value for _ in angles for value in (-_ETA, _ETA, None)]
    y = [value for angle in angles for value in (angle, angle, None)]
    return go.Scatter(
        x=x, y=y, mode="lines", showlegend=False, hoverinfo="skip",
        line={"color": BLACK, "dash": "dashdot", "width": 1.5},
    )  # fmt: skip


def _frame(points: Sequence[tuple[float, float]], name: str, dash: str) -> go.Scatter:
    return go.Scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="lines", name=name,
        line={"color": GREY, "dash": dash, "width": 1.2}, hoverinfo="skip",
    )  # fmt: skip
