"""Truth: the particles of the decay tree, found in the generator's event records.

The tree is walked from the produced particles down. A particle that decays further is taken after
its last recoil, just before it decays; a final leg (quark, lepton, photon) just as it comes out of
the decay. So the daughters of every decay add up to their parent, up to radiation in the decay.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard
from massrecon.events.particles import Floats, Integers, Mask
from massrecon.events.pythia import Record
from massrecon.kinematics.topology import Node

UNMATCHED_MAX = 0.01
"""Largest fraction of collisions whose decay tree may be unreadable."""

_N_HARD = 16
_INCOMING = (3, 4)


def match_partons(card: ProcessCard, record: Record) -> tuple[Floats, Mask]:
    """Finds every particle of the decay tree in every collision.

    Particles of one decay that the card does not tell apart are ordered particle before
    antiparticle, then by falling transverse momentum. Names that share some of their PDG codes are
    given to the particles so that each gets one of its own, the earlier name the earlier particle
    where there is a choice.

    Args:
        card: The process; its particles are matched by absolute PDG code.
        record: Event records of N collisions.

    Returns:
        The particles (px, py, pz, m) [GeV] in the order of ``card.parton_names``, shape
        ``(N, P, 4)``, and which collisions could be matched, shape ``(N,)``.
    """
    finder = _Finder(card, record)
    topology = card.topology
    finder.assign(topology.roots, finder.produced())
    for node in topology.nodes:
        if node.children:
            children = [topology.nodes[i] for i in node.children]
            parents = finder.entries[:, node.index]
            finder.assign(children, finder.daughters(parents, len(children)))
    entries = finder.entries + record.first[:-1, None]
    columns = [record.columns[name] for name in ("px", "py", "pz", "m")]
    return np.stack([column[entries] for column in columns], axis=-1), finder.matched


def check_masses(card: ProcessCard, partons: Floats, masses: Floats) -> None:
    """Checks the generated masses against the ones that were asked for.

    Args:
        card: The process.
        partons: True particles (px, py, pz, m) [GeV], shape ``(N, P, 4)``.
        masses: Masses asked for [GeV], shape ``(N, M)``.

    Raises:
        GenerationError: If a mass is off by more than the card tolerates.
    """
    for m, (name, parameter) in enumerate(card.masses.items()):
        for node in card.topology.nodes:
            if not parameter.belongs_to(card.particles[node.name]):
                continue
            off = np.abs(partons[:, node.index, 3] - masses[:, m])
            worst = int(np.argmax(off)) if len(off) else 0
            if len(off) and off[worst] > parameter.tolerance:
                raise GenerationError(
                    f"Pythia gave '{node.label}' a mass of {partons[worst, node.index, 3]:g} GeV "
                    f"where '{name}' = {masses[worst, m]:g} GeV was asked for: check 'sets', "
                    "'tolerance' and 'open_channels' of the card."
                )


def check_matched(card: ProcessCard, n_matched: int, n_events: int) -> None:
    """Refuses a sample in which too many decay trees were not found.

    Raises:
        GenerationError: If more than a fraction `UNMATCHED_MAX` is unmatched.
    """
    if n_events - n_matched > max(UNMATCHED_MAX * n_events, 1):
        raise GenerationError(
            f"The decay '{card.decay}' was not found in {n_events - n_matched} of {n_events} "
            "collisions: check that the Pythia settings of the card force this decay, and the PDG "
            "codes of its particles; or turn the setting 'truth' off to simulate without truth."
        )


def _overlapping(
    named: Sequence[tuple[Node, frozenset[int]]],
) -> list[list[tuple[Node, frozenset[int]]]]:
    """Groups particles whose PDG codes overlap, directly or through others."""
    groups: list[list[tuple[Node, frozenset[int]]]] = []
    for node, pdg in named:
        touching = [group for group in groups if any(pdg & other for _, other in group)]
        joined = [member for group in touching for member in group]
        groups = [group for group in groups if group not in touching]
        groups.append([*joined, (node, pdg)])
    return [sorted(group, key=lambda member: member[0].index) for group in groups]


class _Finder:
    """Looks up particles in event records, for all collisions at once."""

    def __init__(self, card: ProcessCard, record: Record) -> None:
        self.card = card
        self.record = record
        self.start = record.first[:-1]
        self.matched = np.ones(record.n_events, bool)
        self.entries = np.zeros((record.n_events, len(card.topology.nodes)), np.int64)

    def column(self, name: str, entries: Integers) -> np.ndarray:
        """Reads a column at entries ``(N,)`` or ``(N, c)`` that count within the collision."""
        start = self.start if entries.ndim == 1 else self.start[:, None]
        return self.record.columns[name][start + entries]

    def produced(self) -> Integers:
        """Lists the particles that come out of the hard collision, -1 for none, ``(N, c)``."""
        length = np.diff(self.record.first)[:, None]
        entries = np.minimum(np.arange(_N_HARD)[None, :], length - 1)
        from_hard = (self.column("mother1", entries) == _INCOMING[0]) & (
            self.column("mother2", entries) == _INCOMING[1]
        )
        return np.where(from_hard & (np.arange(_N_HARD) < length), entries, -1)

    def daughters(self, parents: Integers, n_wanted: int) -> Integers:
        """Lists the decay products of one particle per collision, -1 for none, ``(N, c)``."""
        first = self.column("daughter1", parents)
        last = self.column("daughter2", parents)
        width = int(np.clip(np.max(last - first, initial=0) + 1, n_wanted, _N_HARD))
        entries = first[:, None] + np.arange(width)
        return np.where((entries <= last[:, None]) & (first[:, None] > 0), entries, -1)

    def assign(self, nodes: Sequence[Node], candidates: Integers) -> None:
        """Gives each particle of one decay its entry, or marks the collision as unmatched."""
        code = np.where(candidates >= 0, self.column("id", np.maximum(candidates, 0)), 0)
        for alike in _overlapping([(node, self._codes(node)) for node in nodes]):
            everything = set().union(*(pdg for _, pdg in alike))
            fits = np.isin(np.abs(code), [*everything])
            self.matched &= fits.sum(axis=1) == len(alike)
            ranked = self._ranked(candidates, code, fits)[:, : len(alike)]
            chosen = self._matching(ranked, [pdg for _, pdg in alike])
            for position, (node, _) in enumerate(alike):
                entry = np.where(self.matched, chosen[:, position], 0)
                self.entries[:, node.index] = self._last_copy(entry) if node.children else entry

    def _codes(self, node: Node) -> frozenset[int]:
        return frozenset(abs(number) for number in self.card.particles[node.name].pdg)

    def _matching(self, ranked: Integers, allowed: Sequence[frozenset[int]]) -> Integers:
        """Gives each name a candidate with one of its codes, or marks the collision as unmatched.

        Args:
            ranked: As many candidates as names, best first, shape ``(N, c)``.
            allowed: The codes of each name.
        """
        if len(set(allowed)) == 1:
            return ranked
        code = np.abs(self.column("id", np.maximum(ranked, 0)))
        fits = np.stack([np.isin(code, [*pdg]) for pdg in allowed], axis=1)
        chosen, open_ = np.zeros_like(ranked), np.ones(len(ranked), bool)
        names = np.arange(len(allowed))
        for order in itertools.permutations(range(len(allowed))):
            good = open_ & fits[:, names, list(order)].all(axis=1)
            chosen[good] = ranked[good][:, list(order)]
            open_ &= ~good
        self.matched &= ~open_
        return chosen

    def _ranked(self, candidates: Integers, code: Integers, fits: Mask) -> Integers:
        """Sorts the fitting candidates: particles first, then by falling transverse momentum."""
        safe = np.maximum(candidates, 0)
        pt = np.hypot(self.column("px", safe), self.column("py", safe))
        order = np.lexsort((-pt, code < 0, ~fits), axis=1)
        return np.take_along_axis(candidates, order, axis=1)

    def _last_copy(self, entry: Integers) -> Integers:
        """Follows copies of a particle, made when it recoils or radiates, to the last one."""
        code = self.column("id", entry)
        while True:
            following = entry
            for daughter in ("daughter2", "daughter1"):
                copy = self.column(daughter, entry)
                is_copy = (copy > entry) & (self.column("id", copy) == code)
                following = np.where(is_copy, copy, following)
            if np.array_equal(following, entry):
                return entry
            entry = following
