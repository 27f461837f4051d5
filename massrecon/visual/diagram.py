"""Decay diagrams: a process at a glance, drawn from its topology as one standalone SVG.

The beams come from the left and meet in the blob; each produced particle opens a side, *a* on top,
and its decays run to the right. Lines are wavy for photons, W and Z, looped for gluons, dashed for
scalars, dotted for what is not seen, and plain for the rest; colours say what a final particle is
seen as. Background and ink follow the light or dark setting of the reader.
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass

from massrecon.events.card import ProcessCard
from massrecon.events.toycard import mass_parameter
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.topology import DecayTopology, Node
from massrecon.visual.template import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY

_COLUMN = 150.0
_ROW = 46.0
_LEFT = 170.0
_TOP = 64.0
_RIGHT = 110.0
_FONT = 19.0

_QUARKS = (1, 2, 3, 4, 5, 21)
_INVISIBLE = (12, 14, 16, 1000022, 1000039)
_WAVY = (22, 23, 24)
_GLUON = 21
_SCALARS = (25, 35, 36, 37, *range(1000001, 1000017), *range(2000001, 2000016))

_COLOURS = {
    "lepton": (BLUE, SKY),
    "tau": (PURPLE, PURPLE),
    "photon": (ORANGE, ORANGE),
    "jet": (GREEN, "#3CCB9F"),
    "visible": (BLUE, SKY),
    "invisible": (GREY, "#9A9A9A"),
}
"""Colours of final particles on light and on dark paper; any other is drawn in ink."""

_KNOWN = {
    "gamma": (22, "γ"),
    "l": (11, "ℓ"),
    "e": (11, "e"),
    "mu": (13, "μ"),
    "tau": (15, "τ"),
    "nu": (12, "ν"),
    "chi10": (1000022, "χ̃<sub>1</sub><sup>0</sup>"),
    "W": (24, "W"),
    "Z": (23, "Z"),
    "h": (25, "h"),
    "g": (21, "g"),
    "t": (6, "t"),
    **{name: (code, name) for code, name in enumerate("dusc", 1)},
    "b": (5, "b"),
}
"""PDG codes and symbols of common names, for topologies without a card."""

_INKS = ["".join(f";--{kind}:{pair[dark]}" for kind, pair in _COLOURS.items()) for dark in (0, 1)]

_LIGHT = f"""
svg{{--paper:#fff;--ink:#1a1a1a;--band:#00000009{_INKS[0]}}}
"""
_DARK = f"""@media (prefers-color-scheme:dark){{
svg{{--paper:#16181c;--ink:#ececec;--band:#ffffff0d{_INKS[1]}}}}}
"""
_STYLE = """.paper{fill:var(--paper)}.band{fill:var(--band)}
.blob{fill:var(--paper);stroke:var(--ink);stroke-width:2.4}
text{font-family:"DejaVu Sans","Segoe UI",system-ui,sans-serif;fill:var(--ink)}
.line{fill:none;stroke:var(--ink);stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.small{font-size:12px;opacity:.75}.title{font-size:16px}
"""


@dataclass(frozen=True)
class _Look:
    """How a particle is drawn: symbol with ``<sub>`` and ``<sup>``, mass, code, and kind."""

    symbol: str
    mass: str
    pdg: int
    kind: str


@dataclass(frozen=True)
class _Place:
    """Where a particle starts and ends."""

    x1: float
    y1: float
    x2: float
    y2: float


def decay_diagram(source: ProcessCard | DecayTopology | DecayLegs, *, dark: bool = True) -> str:
    """Draws a process as SVG.

    Args:
        source: A process card, or a topology alone, or one with the roles of its legs.
        dark: Whether it may turn dark where the reader's setting is; not on white paper.

    Returns:
        The text of an SVG file, for ``IPython.display.SVG``, a web page or a file of its own.
    """
    topology = source if isinstance(source, DecayTopology) else source.topology
    looks = [_look(source, node) for node in topology.nodes]
    places = _places(topology)
    legs = [places[leg.index] for leg in topology.legs]
    width = max(place.x2 for place in places) + _RIGHT
    height = max(place.y2 for place in legs) + _ROW / 2 + 52
    title, subtitle = _titles(source)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">',
        f"<title>{html.escape(title)}</title><desc>{html.escape(topology.text)}</desc>",
        f"<style>{_LIGHT}{_DARK if dark else ''}{_STYLE}</style>",
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}" rx="10"/>',
        f'<text class="title" x="20" y="30">{html.escape(title)}</text>',
        f'<text class="small" x="20" y="{height - 16:.0f}">{html.escape(subtitle)}</text>',
        *_bands(topology, places, width),
        *_beams(topology, places[0].x1, places[0].y1),
    ]
    for node in topology.nodes:
        parts += _particle(node, looks[node.index], places)
    parts += _vertices(topology, places)
    parts += _legend([looks[leg.index].kind for leg in topology.legs], width, height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _titles(source: ProcessCard | DecayTopology | DecayLegs) -> tuple[str, str]:
    """Returns the headline and the line below the diagram."""
    if isinstance(source, DecayLegs):
        source = source.topology
    if isinstance(source, DecayTopology):
        return source.text, ""
    energy = f"√s = {source.beam_energy / 1000:g} TeV"
    return source.title, energy + (" · masses in GeV" if source.masses else "")


def _look(source: ProcessCard | DecayTopology | DecayLegs, node: Node) -> _Look:
    """Finds symbol, mass and kind of a particle."""
    if not isinstance(source, ProcessCard):
        pdg, symbol = _KNOWN.get(node.name, (0, node.name))
        kind = _kind(pdg, node)
        if isinstance(source, DecayLegs) and not node.children:
            seen = source.kinds[node.index]
            kind = "invisible" if seen is None else seen if seen in _COLOURS else "visible"
        return _Look(symbol, "", pdg, kind)
    particle, toy = source.particles[node.name], source.phase_space
    pdg = abs(particle.pdg[0])
    parameter = mass_parameter(source, node.name)
    mass = source.masses[parameter].default if parameter else 0.0
    if toy is not None and not parameter:
        mass = toy.masses.get(node.name, 0.0)
    kind = _kind(pdg, node)
    if toy is not None and not node.children:
        seen = node.name in source.slot_kinds
        kind = "invisible" if not seen else kind if kind in _COLOURS else "visible"
    return _Look(particle.symbol, f"{mass:g}" if mass else "", pdg, kind)


def _kind(pdg: int, node: Node) -> str:
    """Says what a final particle is seen as; others are just particles."""
    if node.children:
        return "particle"
    if pdg in _INVISIBLE:
        return "invisible"
    kinds = {11: "lepton", 13: "lepton", 15: "tau", 22: "photon", **dict.fromkeys(_QUARKS, "jet")}
    return kinds.get(pdg, "particle")


def _places(topology: DecayTopology) -> list[_Place]:
    """Lays out the tree: one row for each final particle, one column for each decay."""
    depth, row = {}, {}
    for node in topology.nodes:
        depth[node.index] = 1 if node.parent is None else depth[node.parent] + 1
    line = 0.0
    for leg in topology.legs:
        new_side = row and leg.side != topology.nodes[max(row)].side
        line += 0.9 if new_side else 0.0
        row[leg.index] = line
        line += 1.0
    for node in reversed(topology.nodes):
        if node.children:
            row[node.index] = sum(row[i] for i in node.children) / len(node.children)
    centre = sum(row[root.index] for root in topology.roots) / len(topology.roots)
    places = []
    for node in topology.nodes:
        start = centre if node.parent is None else row[node.parent]
        x = _LEFT + _COLUMN * (depth[node.index] - 1)
        y1, y2 = (_TOP + _ROW * (value + 0.5) for value in (start, row[node.index]))
        places.append(_Place(x, y1, x + _COLUMN * (1.0 if node.children else 0.72), y2))
    return places


def _bands(topology: DecayTopology, places: list[_Place], width: float) -> list[str]:
    """Shades the sides."""
    parts = []
    for root in topology.roots if len(topology.roots) > 1 else ():
        legs = [places[leg.index].y2 for leg in topology.legs if leg.side == root.side]
        top, x = min(legs) - _ROW / 2, _LEFT + 36
        parts.append(
            f'<rect class="band" x="{x:.0f}" y="{top:.0f}" width="{width - x - 14:.0f}" '
            f'height="{max(legs) + _ROW / 2 - top:.0f}" rx="8"/>'
            f'<text class="small" x="{width - 24:.0f}" y="{top + 18:.0f}" text-anchor="end">'
            f"side {root.side}</text>"
        )
    return parts


def _beams(topology: DecayTopology, x: float, y: float) -> list[str]:
    """Draws the incoming particles."""
    parts = []
    for name, sign in zip(topology.initial[:2], (-1, 1), strict=False):
        start = y + 58 * sign
        parts.append(_line("line", _straight(_Place(34, start, x, y))))
        parts.append(_text(20, start + 6, name))
        middle = (34 + x) / 2, (start + y) / 2
        parts.append(_arrow(*middle, math.atan2(y - start, x - 34)))
    return parts


def _particle(node: Node, look: _Look, places: list[_Place]) -> list[str]:
    """Draws the line of a particle with its symbol and mass."""
    place = places[node.index]
    colour = f"var(--{look.kind})" if look.kind in _COLOURS else "var(--ink)"
    style = f"stroke:{colour};"
    if look.kind == "invisible":
        style += "stroke-dasharray:1 7;stroke-width:3;"
    elif look.pdg in _SCALARS:
        style += "stroke-dasharray:9 6;"
    parts = [_line("line", _path(place, look), style)]
    if look.kind in ("lepton", "tau", "jet", "visible") and look.pdg != _GLUON:
        angle = math.atan2(place.y2 - place.y1, place.x2 - place.x1)
        parts.append(_arrow(place.x2, place.y2, angle, colour))
    if not node.children:
        parts.append(_text(place.x2 + 12, place.y2 + 6, look.symbol, _beside(look.mass)))
        return parts
    up = place.y2 <= place.y1
    x, y = (place.x1 + place.x2) / 2, (place.y1 + place.y2) / 2
    slope = abs(place.y2 - place.y1) / (place.x2 - place.x1)
    slope += 0.3 if look.pdg in _WAVY else 0.0
    if up:
        y -= 26 + 14 * slope if look.mass else 12 + 14 * slope
    else:
        y += 24 + 14 * slope
    shift = -14 * slope
    parts.append(_text(x + shift, y, look.symbol, anchor="middle"))
    if look.mass:
        parts.append(
            f'<text class="small" x="{x + shift:.1f}" y="{y + 17:.1f}" text-anchor="middle">'
            f"{look.mass}</text>"
        )
    return parts


def _beside(mass: str) -> str:
    return f' <tspan class="small">{mass}</tspan>' if mass else ""


def _vertices(topology: DecayTopology, places: list[_Place]) -> list[str]:
    """Draws the decay points, and the blob of the collision."""
    dots = [
        f'<circle cx="{places[n.index].x2:.1f}" cy="{places[n.index].y2:.1f}" r="3.4" '
        'style="fill:var(--ink)"/>'
        for n in topology.nodes
        if n.children
    ]
    x, y = places[0].x1, places[0].y1
    return [*dots, f'<circle class="blob" cx="{x:.1f}" cy="{y:.1f}" r="19"/>']


def _legend(kinds: list[str], width: float, height: float) -> list[str]:
    """Says what the colours of the final particles mean."""
    parts, x = [], width - 22
    for kind in reversed([kind for kind in _COLOURS if kind in kinds]):
        x -= 7.2 * len(kind)
        parts.append(f'<text class="small" x="{x:.0f}" y="{height - 16:.0f}">{kind}</text>')
        dash = ";stroke-dasharray:1 7;stroke-width:3" if kind == "invisible" else ""
        place = _Place(x - 32, height - 20, x - 8, height - 20)
        parts.append(_line("line", _straight(place), f"stroke:var(--{kind}){dash}"))
        x -= 52
    return parts


def _line(css: str, path: str, style: str = "") -> str:
    return f'<path class="{css}" d="{path}"' + (f' style="{style}"/>' if style else "/>")


def _path(place: _Place, look: _Look) -> str:
    """Chooses the shape of a line."""
    if look.pdg in _WAVY:
        return _wiggle(place, loops=False)
    return _wiggle(place, loops=True) if look.pdg == _GLUON else _straight(place)


def _straight(place: _Place) -> str:
    return f"M{place.x1:.1f} {place.y1:.1f}L{place.x2:.1f} {place.y2:.1f}"


def _wiggle(place: _Place, loops: bool) -> str:
    """A wavy or looped line, with whole periods."""
    dx, dy = place.x2 - place.x1, place.y2 - place.y1
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    periods = max(2, round(length / (11 if loops else 15)))
    points = []
    for i in range(periods * 12 + 1):
        phase = 2 * math.pi * i / 12
        along = length * i / (periods * 12) + (4.5 * math.sin(phase) if loops else 0.0)
        across = 4.5 * (1 - math.cos(phase)) - 4.5 if loops else 4.0 * math.sin(phase)
        across += 4.5 if loops and i in (0, periods * 12) else 0.0
        points.append(
            f"{place.x1 + along * ux - across * uy:.1f} {place.y1 + along * uy + across * ux:.1f}"
        )
    return "M" + "L".join(points)


def _arrow(x: float, y: float, angle: float, colour: str = "var(--ink)") -> str:
    """An arrow head with its tip just beyond a point."""
    return (
        f'<path d="M7 0L-5 -4.5L-5 4.5Z" style="fill:{colour}" '
        f'transform="translate({x:.1f} {y:.1f}) rotate({math.degrees(angle):.1f})"/>'
    )


def _text(x: float, y: float, symbol: str, after: str = "", anchor: str = "start") -> str:
    """Writes a symbol with its indices."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{_FONT:g}" text-anchor="{anchor}">'
        f"{_indices(symbol)}{after}</text>"
    )


def _indices(symbol: str) -> str:
    """Turns ``<sub>`` and ``<sup>`` into shifted text; an upper one goes above a lower one."""
    parts, level, back = [], 0.0, 0.0
    for tag, inside, plain in re.findall(r"<(sub|sup)>(.*?)</\1>|([^<]+)", symbol):
        target = {"sub": 5.0, "sup": -8.0}.get(tag, 0.0)
        text = html.escape(inside or plain)
        dx = f' dx="{-back:.1f}"' if back and tag else ""
        size = f' font-size="{0.66 * _FONT:.1f}"' if tag else ""
        parts.append(f'<tspan dy="{target - level:.1f}"{dx}{size}>{text}</tspan>')
        level = target
        back = 0.66 * _FONT * 0.62 * len(inside) if tag and not back else 0.0
    if level:
        parts.append(f'<tspan dy="{-level:.1f}">&#8203;</tspan>')
    return "".join(parts)
