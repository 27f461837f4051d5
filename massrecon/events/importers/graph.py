"""Truth from the particle lists of other programs: who came from whom, found by `match_partons`.

Other programs number their particles in their own ways. Here the list of each entry is put in the
order that our truth matching reads: the products of the hard collision first, and the decay
products of each particle side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.particles import Floats, Integers, Mask
from massrecon.events.pythia import Record
from massrecon.events.truth import match_partons

_FRONT = 5
"""Entries before the hard collision: the event itself, two beams, two incoming partons."""


@dataclass(frozen=True)
class Family:
    """Particle lists of n entries, as flat arrays ordered by entry.

    Attributes:
        event: Entry of each particle.
        pdg: PDG code.
        mother: Position of the mother in its entry's list, counted from 0; negative for none.
        hard: Whether it comes out of the hard collision itself.
        p4: Four-momentum (px, py, pz, E) [GeV], shape ``(k, 4)``.
        mass: Mass [GeV].
    """

    event: Integers
    pdg: Integers
    mother: Integers
    hard: Mask
    p4: Floats
    mass: Floats


def find_decay(card: ProcessCard, family: Family, n: int) -> tuple[Floats, Mask]:
    """Finds the particles of the card's decay tree.

    Args:
        card: The process.
        family: Particle lists of n entries.
        n: Number of entries.

    Returns:
        The particles (px, py, pz, m) [GeV] in the order of ``card.parton_names``, shape
        ``(n, P, 4)``, and the entries where all were found, shape ``(n,)``.
    """
    return match_partons(card, as_record(family, n))


def as_record(family: Family, n: int) -> Record:
    """Puts particle lists into the order and the columns of our own generator's records."""
    event = family.event
    count = np.bincount(event, minlength=n)
    start = np.cumsum(count) - count
    local = np.arange(len(event)) - start[event]
    sound = (family.mother >= 0) & (family.mother < count[event]) & (family.mother != local)
    key = np.where(family.hard, -1, np.where(sound, family.mother, np.iinfo(np.int64).max))
    order = np.lexsort((local, key, event))
    place = np.empty(len(event), np.int64)
    place[order] = np.arange(len(event)) - start[event[order]] + _FRONT
    decayed = sound & ~family.hard
    parent = (start[event] + family.mother)[decayed]
    mother = np.where(family.hard, _FRONT - 2, 0)
    mother[decayed] = place[parent]
    first, last = _daughters(parent, place[decayed], len(event))
    columns = {
        "id": family.pdg,
        "status": np.full(len(event), -22),
        "mother1": mother,
        "mother2": np.where(family.hard, _FRONT - 1, 0),
        "daughter1": first,
        "daughter2": last,
        "px": family.p4[:, 0],
        "py": family.p4[:, 1],
        "pz": family.p4[:, 2],
        "e": family.p4[:, 3],
        "m": family.mass,
    }
    offsets = np.concatenate([[0], np.cumsum(count + _FRONT)])
    rows = (offsets[:-1][event] + place).astype(np.int64)
    return Record({name: _spread(rows, v, offsets[-1]) for name, v in columns.items()}, offsets)


def _daughters(parent: Integers, place: Integers, total: int) -> tuple[Integers, Integers]:
    """Returns the first and the last daughter of each particle, 0 and 0 for none."""
    first = np.full(total, np.iinfo(np.int64).max)
    last = np.zeros(total, np.int64)
    np.minimum.at(first, parent, place)
    np.maximum.at(last, parent, place)
    return np.where(last > 0, first, 0), last


def _spread(rows: Integers, values: np.ndarray, length: int) -> np.ndarray:
    spread = np.zeros(length, values.dtype)
    spread[rows] = values
    return spread


BROAD = 1.0
"""Tolerance of a mass [GeV] from which on the true particles are spread around it."""


def mass_points(card: ProcessCard, partons: Floats) -> Floats:
    """Reads the mass parameters off the true particles.

    Programs store masses rounded, or spread by tiny widths: values that lie together within the
    card's tolerance are one mass, given in steps of 0.01 GeV. Where that tolerance is wider than
    `BROAD`, as for resonances, it is the median of all, in steps of 0.1 GeV.

    Args:
        card: The process.
        partons: True particles (px, py, pz, m) [GeV], shape ``(n, P, 4)``.

    Returns:
        Mass parameters [GeV] in the order of ``card.mass_names``, shape ``(n, M)``.

    Raises:
        InputError: If a mass is that of no particle of the decay.
    """
    columns: list[Floats] = [np.zeros((len(partons), 0))]
    for name, parameter in card.masses.items():
        values = partons[:, card.parton_names.index(_carrier(card, name)), 3]
        if parameter.tolerance > BROAD and len(values):
            values = np.full(len(values), np.round(np.median(values), 1))
        columns.append(_snapped(values, parameter.tolerance)[:, None])
    return np.concatenate(columns, axis=1)


def _carrier(card: ProcessCard, mass: str) -> str:
    """Returns the label of a particle that has a mass: its target, or the first of the tree."""
    if mass in card.targets:
        return card.targets[mass]
    for node in card.topology.nodes:
        if card.masses[mass].belongs_to(card.particles[node.name]):
            return node.label
    raise InputError(
        f"The mass '{mass}' of the card '{card.name}' is that of no particle of its decay, so that "
        "the file does not tell it: give the masses with masses=… (--mass NAME=VALUE), or leave "
        "out the truth with truth=False (--no-truth)."
    )


def _snapped(values: Floats, tolerance: float) -> Floats:
    """Replaces values that lie within a tolerance of each other by their rounded median."""
    order = np.argsort(values)
    ranked = values[order]
    cluster = np.concatenate([[0], np.cumsum(np.diff(ranked) > tolerance)])[: len(values)]
    snapped = values.astype(np.float64)
    for number in range(int(cluster[-1]) + 1 if len(values) else 0):
        members = order[cluster == number]
        if np.ptp(values[members]) <= 2 * tolerance:
            snapped[members] = np.round(np.median(values[members]), 2)
    return snapped
