"""Toys: collisions from phase space alone, each visible particle in a slot of its own.

There is no shower and no detector. The particles named by the card's `objects` are seen: the slots
of a name hold its particles in the order of the decay, side a before side b (``b1``, ``b2``).
Their momenta may be smeared, and

    ptmiss = (sum of the produced particles) - (sum of the visible ones, after smearing),

which is the momentum of the invisible particles less what the smearing added: initial-state
radiation is measured perfectly. In a fraction `contamination` of the events the two sides exchange
the particle that the card names, after smearing: its two slots are swapped, the truth is not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from massrecon.errors import InputError
from massrecon.events.cells import count_cells
from massrecon.events.columns import Arrays, column_type
from massrecon.events.part import Part
from massrecon.events.particles import Floats, Mask
from massrecon.events.request import Request
from massrecon.events.sections import PhaseSpaceSettings, Table
from massrecon.events.toycard import mass_parameter
from massrecon.kinematics.topology import Node

BLOCK_EVENTS = 50
GROUP_EVENTS = 5_000
PART_GROUPS = 20
BLOCKS_PER_GROUP = GROUP_EVENTS // BLOCK_EVENTS

_CHARGED_LEPTONS = (11, 13, 15)
_PHOTON = 22


class ToyMaker:
    """Makes parts of one request; as `PartMaker`, each a pure function of request and number."""

    def __init__(self, request: Request) -> None:
        """Prepares the phase space.

        Raises:
            InputError: If the card is not one of a toy.
        """
        if request.settings.phase_space is None:
            raise InputError(f"The card '{request.card.name}' has no 'phase_space'.")
        self.request = request
        self.settings: PhaseSpaceSettings = request.settings.phase_space

    def close(self) -> None:
        """Does nothing: a toy holds no files."""

    def make(
        self, number: int, limit: Callable[[], int], progress: Callable[[int, int], None]
    ) -> Part:
        """Generates and selects the events of a part; see `PartMaker.make`.

        Raises:
            InputError: If a decay is closed at a mass point.
        """
        made: list[Arrays] = []
        done: list[dict[str, Any]] = []
        for group in range(PART_GROUPS):
            arrays, about = self._group(number, group)
            made.append(arrays)
            done.append(about)
            n_generated = GROUP_EVENTS * len(done)
            n_selected = sum(group["cut_flow"]["selected"] for group in done)
            progress(n_generated, n_selected)
            if n_selected >= limit():
                break
        joined = {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}
        return Part(joined, done, len(done) == PART_GROUPS)

    def _group(self, number: int, group: int) -> tuple[Arrays, dict[str, Any]]:
        """Makes one group of events."""
        # counted from 1: NumPy seeds [a, b] and [a, b, 0] alike
        rng = np.random.default_rng([self.request.seed, number, group + 1])
        points = self.request.prior.draw(rng, BLOCKS_PER_GROUP)
        masses = np.repeat(points, BLOCK_EVENTS, axis=0)
        partons = self._sample(masses, rng)
        arrays = self._measured(partons, rng)
        selected, flow = self._selection(arrays)
        block = (number * PART_GROUPS + group) * BLOCKS_PER_GROUP
        weight = np.ones(GROUP_EVENTS)
        arrays |= {
            "weight": weight,
            "partons": partons,
            "masses": masses,
            "block": block + np.arange(GROUP_EVENTS) // BLOCK_EVENTS,
        }
        cells = count_cells(self.request.prior, masses, weight, selected)
        flow = {"generated": GROUP_EVENTS, **flow, "selected": int(selected.sum())}
        kept = {name: values[selected] for name, values in arrays.items()}
        return kept, {"cut_flow": flow, "cells": cells}

    @cached_property
    def _space(self) -> Any:
        """The phase space of the decay."""
        from massrecon.kinematics.phasespace import PhaseSpace
        from massrecon.kinematics.production import Beams

        beams = Beams(
            energy=self.request.card.beam_energy,
            parton_exponents=self.settings.parton_exponents,
            recoil=self.settings.recoil,
        )
        topology = self.request.card.topology
        return PhaseSpace(topology=topology, beams=beams, widths=self.settings.widths)

    def _sample(self, masses: Floats, rng: np.random.Generator) -> Floats:
        """Draws the particles of the decay (px, py, pz, m) [GeV], shape ``(N, P, 4)``."""
        import torch

        card, poles = self.request.card, {}
        for name in card.particles:
            parameter = mass_parameter(card, name)
            if parameter is not None:
                poles[name] = torch.as_tensor(masses[:, card.mass_names.index(parameter)])
            else:
                mass = self.settings.masses.get(name, 0.0)
                poles[name] = torch.full((len(masses),), mass, dtype=torch.float64)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return self._space.sample(poles, generator).numpy()

    def _measured(self, partons: Floats, rng: np.random.Generator) -> Arrays:
        """Measures the visible particles and ptmiss."""
        card = self.request.card
        roots = [node.index for node in card.topology.roots]
        objects, charge, flavour = [], [], []
        for node in self._visible:
            table = self.settings.smearing.get(node.name)
            objects.append(smeared(partons[:, node.index], table, rng))
            code = self._codes(node, len(partons), rng)
            charge.append(np.where(np.isin(code, _CHARGED_LEPTONS), _charge(node), 0))
            flavour.append(np.where(np.isin(code, (*_CHARGED_LEPTONS, _PHOTON)), code, 0))
        p4 = np.stack(objects, axis=1)
        ptmiss = partons[:, roots, :2].sum(axis=1) - p4[..., :2].sum(axis=1)
        arrays = {"p4": p4, "charge": np.stack(charge, 1), "flavour": np.stack(flavour, 1)}
        self._exchange(arrays, rng)
        typed = {name: array.astype(column_type(name)) for name, array in arrays.items()}
        return typed | {"ptmiss": ptmiss}

    @cached_property
    def _visible(self) -> list[Node]:
        """The visible particles in the order of the slots."""
        legs = self.request.card.topology.legs
        return [
            leg for group in self.request.card.objects for leg in legs if leg.name == group.kind
        ]

    def _codes(self, node: Node, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws which of its PDG codes a particle has in each event, without the sign."""
        codes = np.abs(self.request.card.particles[node.name].pdg)
        return rng.choice(codes, n) if len(codes) > 1 else np.full(n, codes[0])

    def _exchange(self, arrays: Arrays, rng: np.random.Generator) -> None:
        """Swaps, in place, the two particles that are taken for each other."""
        if self.settings.contamination == 0.0:
            return
        chance = rng.random(len(arrays["p4"]))
        wrong = np.flatnonzero(chance < self.settings.contamination)[:, None]
        names = [node.name for node in self._visible]
        slots = np.flatnonzero([name == self.settings.exchanged for name in names])
        for values in arrays.values():
            values[wrong, slots] = values[wrong, slots[::-1]]

    def _selection(self, arrays: Arrays) -> tuple[Mask, dict[str, int]]:
        """Removes particles outside the card's limits, in place, and selects events.

        Returns:
            The selected events, and how many passed each step.
        """
        card = self.request.card
        p4, flow = arrays["p4"], {}
        passed = np.hypot(*arrays["ptmiss"].T) >= card.cuts.ptmiss_min
        if card.cuts.ptmiss_min > 0.0:
            flow["ptmiss"] = int(passed.sum())
        pt = np.hypot(p4[..., 0], p4[..., 1])
        eta = np.arcsinh(np.abs(p4[..., 2]) / np.maximum(pt, 1e-9))
        present, first = np.zeros(pt.shape, bool), 0
        for group in card.objects:
            slots = slice(first, first + group.count)
            present[:, slots] = (pt[:, slots] > group.pt_min) & (eta[:, slots] < group.eta_max)
            count = present[:, slots].sum(axis=1)
            passed &= (count >= group.minimum) & (count <= (group.maximum or np.inf))
            flow[group.kind] = int(passed.sum())
            first += group.count
        for name in ("p4", "charge", "flavour"):
            arrays[name][~present] = 0
        arrays["present"] = present
        return passed, flow


def smeared(pxpypzm: Floats, table: Table | None, rng: np.random.Generator) -> Floats:
    """Smears momenta by a relative resolution that depends on the transverse momentum.

    Direction and mass stay; the momentum is multiplied by 1 + resolution * Gaussian, drawn again
    where it is not positive. Between the entries of the table the resolution is linear in log(pT),
    outside it is constant.

    Args:
        pxpypzm: Particles (px, py, pz, m) [GeV], shape ``(N, 4)``.
        table: Pairs of transverse momentum [GeV] and resolution, or None for no smearing.
        rng: Source of randomness.

    Returns:
        Four-momenta (px, py, pz, E) [GeV], shape ``(N, 4)``.
    """
    p3, mass = pxpypzm[:, :3], pxpypzm[:, 3]
    if table is not None:
        pt = np.hypot(p3[:, 0], p3[:, 1])
        nodes, values = np.array(table).T
        resolution = np.interp(np.log(np.maximum(pt, 1e-9)), np.log(nodes), values)
        p3 = p3 * _positive(resolution, rng)[:, None]
    energy = np.sqrt(np.sum(p3**2, axis=1) + mass**2)
    return np.concatenate([p3, energy[:, None]], axis=1)


def _positive(resolution: Floats, rng: np.random.Generator) -> Floats:
    """Draws positive factors around 1, shape ``(N,)``."""
    factor = 1 + resolution * rng.standard_normal(len(resolution))
    while (bad := np.flatnonzero(factor <= 0)).size:
        factor[bad] = 1 + resolution[bad] * rng.standard_normal(bad.size)
    return factor


def _charge(node: Node) -> int:
    """Charge of a lepton: positive on side a (and c, …), negative on side b."""
    return 1 if ord(node.side) % 2 == ord("a") % 2 else -1
