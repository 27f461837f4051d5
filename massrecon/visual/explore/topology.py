"""What a decay string says: its diagram, assignments of objects, symmetries, subsystems, masses."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.kinematics.assignments import MISSING, Assignments, assign
from massrecon.kinematics.legs import DecayLegs, Subsystem, subsystems
from massrecon.kinematics.topology import DecayTopology, Node, TopologyError
from massrecon.models.mixture import legs_of
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.topology import diagram_figure, table_figure

DECAY = "p p > A A, (A > a B, B > b C)"
"""The decay that is shown first."""

MOST_LISTED = 40
"""Most assignments that are listed one by one."""

_MOST_COUNTED = 50_000
_MOST_OF_A_KIND = 14
_NAME = re.compile(r"[A-Za-z][\w+~\-]*")


def explore_topology(
    decay: str = DECAY,
    card: str = "",
    invisible: Sequence[str] = ("C", "nu"),
    kinds: Sequence[str] = (),
    extra: int = 0,
    missing: int = 0,
) -> Exploration:
    """Reads a decay and shows what follows from it.

    Args:
        decay: Decay string, such as ``p p > A A, (A > a B, B > b C)``.
        card: Name or path of a process card; its decay, roles and masses are then shown, and
            `decay`, `invisible` and `kinds` are not looked at.
        invisible: Names or labels of the legs that are not seen; those that are no legs of this
            decay do not matter.
        kinds: Kind of object of legs as ``NAME=KIND``, such as ``b=jet``; a leg that is not listed
            is a kind of its own.
        extra: Objects beyond the legs of the kind with the most legs, such as jets of initial-state
            radiation.
        missing: Most legs of that kind that may have lost their object.

    Returns:
        The diagram, with tables of the assignments, the subsystems and the particles.

    Raises:
        InputError: If the string cannot be read (the message points at the place), or an entry of
            `kinds` is not ``NAME=KIND``.
    """
    if extra < 0 or missing < 0:
        raise InputError(f"'extra' and 'missing' should not be negative, got {extra}, {missing}.")
    process = load_card(card) if card else None
    legs = legs_of(process) if process is not None else _legs(decay, invisible, kinds)
    ways = _ways(legs, extra, missing)
    parts = _subsystems(legs)
    data = {
        "decay": re.sub(r"\s+", " ", legs.topology.text),
        "visible": {leg.label: legs.kinds[leg.index] for leg in legs.visible},
        "invisible": [leg.label for leg in legs.invisible],
        "resonances": [node.label for node in legs.resonances],
        "symmetries": count_symmetries(legs),
        "exchanges": _exchanges(legs),
        "objects": ways.counts,
        "assignments": ways.number,
        "subsystems": {n: [_side_text(s, i) for i in (0, 1)] for n, s in parts.items()},
        "masses_gev": {} if process is None else {n: m.default for n, m in process.masses.items()},
    }
    panels = {
        "Assignments": _assignment_table(legs, ways),
        "Particles": _particle_table(legs, process),
    }
    if parts:
        panels["Subsystems"] = _subsystem_table(parts)
    return Exploration(
        figure=diagram_figure(process or legs),
        data=data,
        reading=_reading(data, ways),
        panels=panels,
    )


@dataclass(frozen=True)
class _Ways:
    """How objects can be taken as legs: how many there are, and the list if it is not too long."""

    counts: dict[str, int]
    number: int | None
    listed: Assignments | None
    why: str = ""


def count_symmetries(legs: DecayLegs) -> int:
    """Counts the exchanges of visible legs that leave a decay as it is, without listing them."""
    below = [legs.topology.roots, *(_children(legs, node) for node in legs.resonances)]
    return math.prod(
        math.factorial(len(group))
        for nodes in below
        for group in legs.alike(nodes)
        if _is_seen(legs, group[0])
    )


def _ways(legs: DecayLegs, extra: int, missing: int) -> _Ways:
    """Counts the assignments, and lists them where that is quick."""
    counts = dict(Counter(legs.leg_kinds))
    if not counts:
        return _Ways({}, None, None, "no leg is seen")
    most = max(counts, key=lambda kind: counts[kind])
    lost = min(missing, counts[most])
    counts[most] += extra
    expected = _expected(legs, counts, most, lost)
    if max(counts.values()) > _MOST_OF_A_KIND or expected > _MOST_COUNTED:
        number = None if lost else round(expected)
        return _Ways(counts, number, None, "too many to list")
    try:
        found = assign(legs, counts, missing={most: lost})
    except TopologyError as error:
        return _Ways(counts, 0, None, str(error))
    return _Ways(counts, len(found), found)


def _expected(legs: DecayLegs, counts: dict[str, int], most: str, lost: int) -> float:
    """Computes the number of assignments; a guess where legs may be lost."""
    needed = Counter(legs.leg_kinds)
    ways = 1.0
    for kind, count in counts.items():
        orders = [
            math.comb(needed[kind], n) * math.perm(count, needed[kind] - n)
            for n in range((lost if kind == most else 0) + 1)
        ]
        ways *= sum(orders)
    return ways / count_symmetries(legs)


def _legs(decay: str, invisible: Sequence[str], kinds: Sequence[str]) -> DecayLegs:
    topology = DecayTopology.parse(decay)
    return DecayLegs.of(topology, _legs_among(topology, invisible), _kinds(topology, kinds))


def _legs_among(topology: DecayTopology, names: Iterable[str]) -> list[str]:
    known = {name for leg in topology.legs for name in (leg.name, leg.label)}
    return [name for name in names if name in known]


def _kinds(topology: DecayTopology, entries: Iterable[str]) -> dict[str, str]:
    """Reads entries ``NAME=KIND``, leaving out names that are not there."""
    found = {}
    for entry in entries:
        name, _, kind = (part.strip() for part in entry.partition("="))
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(kind):
            raise InputError(f"'kinds' should have entries NAME=KIND such as b=jet, got '{entry}'.")
        found[name] = kind
    return {name: found[name] for name in _legs_among(topology, found)}


def _children(legs: DecayLegs, node: Node) -> tuple[Node, ...]:
    return tuple(legs.topology.nodes[child] for child in node.children)


def _is_seen(legs: DecayLegs, node: Node) -> bool:
    return any(legs.kinds[leg.index] is not None for leg in legs.legs_below(node))


def _exchanges(legs: DecayLegs) -> list[str]:
    """Says which particles can be exchanged, group by group."""
    below = [(None, legs.topology.roots), *((n, _children(legs, n)) for n in legs.resonances)]
    return [
        " ↔ ".join(node.label for node in group) + (f" of {mother.label}" if mother else " (sides)")
        for mother, nodes in below
        for group in legs.alike(nodes)
        if len(group) > 1 and _is_seen(legs, group[0])
    ]


def _subsystems(legs: DecayLegs) -> dict[str, Subsystem]:
    try:
        return subsystems(legs)
    except TopologyError:
        return {}


def _side_text(part: Subsystem, side: int) -> str:
    """Writes one side of a subsystem: ``A_a → a_a b_a + (C_a)``."""
    one = part.sides[side]
    return f"{one.parent} → {' '.join(one.visible)} + ({one.daughter})"


def _subsystem_table(parts: dict[str, Subsystem]) -> go.Figure:
    relatives = [
        " ".join(x for side in part.sides for x in side.relatives) for part in parts.values()
    ]
    columns = {
        "subsystem": [f"({name})" for name in parts],
        "side a": [_side_text(part, 0) for part in parts.values()],
        "side b": [_side_text(part, 1) for part in parts.values()],
        "relatives": [text or "none" for text in relatives],
    }
    caption = (
        "Parts of the two chains that are pairs of decays themselves: what is in brackets counts "
        "as invisible, with a trial mass; masses of relatives may be constrained to be equal."
    )
    return table_figure(columns, caption)


def _particle_table(legs: DecayLegs, card: ProcessCard | None) -> go.Figure:
    nodes = legs.topology.nodes
    roles = [
        "decays"
        if n.children
        else f"seen as {legs.kinds[n.index]}"
        if legs.kinds[n.index]
        else "unseen"
        for n in nodes
    ]
    columns: dict[str, list[Any]] = {
        "particle": [node.label for node in nodes],
        "side": [node.side for node in nodes],
        "role": roles,
    }
    if card is not None:
        columns["mass [GeV]"] = [_mass_text(card, node) for node in nodes]
    return table_figure(columns, "Every particle of the decay, depth first.")


def _mass_text(card: ProcessCard, node: Node) -> str:
    """Writes the range of an unknown mass; a known one is not the card's to say."""
    for name, mass in card.masses.items():
        if mass.belongs_to(card.particles[node.name]):
            low, high = mass.range
            return f"{name}: {low:g} to {high:g}, here {mass.default:g}"
    return ""


def _assignment_table(legs: DecayLegs, ways: _Ways) -> go.Figure:
    """Lists which object each leg takes."""
    found = ways.listed
    if found is None:
        columns: dict[str, list[Any]] = {leg.label: [ways.why] for leg in legs.visible}
        return table_figure(columns or {"legs": [ways.why]}, ways.why)
    names = _object_names(found.kinds)
    rows = found.index[:MOST_LISTED].tolist()
    columns = {"": list(range(1, len(rows) + 1))}
    for place, leg in enumerate(legs.visible):
        columns[leg.label] = ["–" if r[place] == MISSING else names[r[place]] for r in rows]
    more = f"the first {len(rows)} of {len(found):,}" if len(found) > len(rows) else "all"
    return table_figure(columns, f"Distinct assignments of objects to legs, {more}; –: lost.")


def _object_names(kinds: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        seen[kind] += 1
        names.append(f"{kind}{seen[kind]}" if kinds.count(kind) > 1 else kind)
    return names


def _reading(data: dict[str, Any], ways: _Ways) -> str:
    seen, unseen = len(data["visible"]), len(data["invisible"])
    objects = ", ".join(f"{count} {kind}" for kind, count in ways.counts.items()) or "no objects"
    if ways.number is None:
        taken = f"{objects}: {ways.why}"
    else:
        taken = f"{objects} can be taken as the legs in {ways.number:,} distinct ways"
    exchanges = "; ".join(data["exchanges"]) or "none"
    parts = ", ".join(f"({name})" for name in data["subsystems"]) or "none"
    return (
        f"{seen} seen and {unseen} unseen legs; {taken}. Exchanges that change nothing: "
        f"{exchanges} ({data['symmetries']:,} orders). Subsystems for MT2 and M2: {parts}."
    )
