"""Selection: which collisions are kept, and which object goes to which slot of the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from massrecon.events.card import ProcessCard, SlotGroup
from massrecon.events.detector import Response, cluster_jets
from massrecon.events.particles import PHOTON, Floats, Integers, Mask


@dataclass(frozen=True)
class Objects:
    """Reconstructed objects of one kind, ordered by collision and falling transverse momentum.

    Attributes:
        event: Number of the collision, shape ``(n,)``.
        p4: Four-momentum (px, py, pz, E) [GeV], shape ``(n, 4)``.
        charge: Electric charge.
        flavour: 11 or 13 for leptons, 22 for photons, 0 for jets.
    """

    event: Integers
    p4: Floats
    charge: Integers
    flavour: Integers

    def __getitem__(self, which: Mask | Integers) -> Objects:
        """Selects objects by mask or index."""
        return Objects(*(getattr(self, field.name)[which] for field in fields(self)))

    def accepted(self, group: SlotGroup) -> Objects:
        """Keeps the objects within the card's limits, ordered."""
        pt = np.hypot(self.p4[:, 0], self.p4[:, 1])
        abs_eta = np.arcsinh(np.abs(self.p4[:, 2]) / np.maximum(pt, 1e-9))
        good = np.flatnonzero((pt > group.pt_min) & (abs_eta < group.eta_max))
        return self[good[np.lexsort((-pt[good], self.event[good]))]]

    def rank(self) -> Integers:
        """Returns the position of each object within its collision, shape ``(n,)``."""
        return np.arange(len(self.event)) - np.searchsorted(self.event, self.event)


def select(
    card: ProcessCard, response: Response, candidates: Mask
) -> tuple[dict[str, np.ndarray], Integers, dict[str, int]]:
    """Applies the card's selection and fills its object slots.

    Jets are clustered last, and only where the leptons and photons are as wanted.

    Args:
        card: The process.
        response: Detector response to N collisions.
        candidates: Collisions to consider, shape ``(N,)``.

    Returns:
        The arrays ``p4``, ``present``, ``charge``, ``flavour``, ``ptmiss`` of the n selected
        collisions; their numbers, shape ``(n,)``; and how many passed each step, by kind.
    """
    passed, flow = candidates.copy(), {}
    chosen: dict[str, Objects] = {}
    for group in sorted(card.objects, key=lambda group: group.kind == "jet"):
        found = _jets(response, passed, group) if group.kind == "jet" else _tracked(response, group)
        chosen[group.kind] = found.accepted(group)
        count = np.bincount(chosen[group.kind].event, minlength=len(passed))
        passed &= (count >= group.minimum) & (count <= (group.maximum or np.inf))
        flow[group.kind] = int(passed.sum())
    events = np.flatnonzero(passed)
    return _fill(card, chosen, events) | {"ptmiss": response.ptmiss[events]}, events, flow


def _tracked(response: Response, group: SlotGroup) -> Objects:
    """Takes the leptons or the photons out of the detector response."""
    flow = response.objects[(response.objects.kind == PHOTON) == (group.kind == "photon")]
    return Objects(flow.event, flow.p4, flow.charge, flow.kind)


def _jets(response: Response, passed: Mask, group: SlotGroup) -> Objects:
    """Clusters the jets of the collisions that passed so far."""
    rest = response.rest[passed[response.rest.event]]
    event, p4 = cluster_jets(rest, len(passed), group.pt_min)
    nothing = np.zeros(len(event), np.int64)
    return Objects(event, p4, nothing, nothing)


def _fill(
    card: ProcessCard, chosen: Mapping[str, Objects], events: Integers
) -> dict[str, np.ndarray]:
    """Puts the objects of the selected collisions into the slots of the card."""
    shape = (len(events), len(card.slots))
    arrays = {
        "p4": np.zeros((*shape, 4)),
        "present": np.zeros(shape, bool),
        "charge": np.zeros(shape, np.int8),
        "flavour": np.zeros(shape, np.int8),
    }
    offset = 0
    for group in card.objects:
        objects = chosen[group.kind]
        objects = objects[np.isin(objects.event, events)]
        if group.pair_mass is not None:
            objects = _nearest_pair(objects, group.pair_mass)
        objects = objects[objects.rank() < group.count]
        row, slot = np.searchsorted(events, objects.event), offset + objects.rank()
        arrays["present"][row, slot] = True
        for name in ("p4", "charge", "flavour"):
            arrays[name][row, slot] = getattr(objects, name)
        offset += group.count
    return arrays


def _nearest_pair(objects: Objects, mass: float) -> Objects:
    """Keeps, where a collision has more than two objects, the pair nearest to a mass [GeV]."""
    keep = np.ones(len(objects.event), bool)
    _, first, count = np.unique(objects.event, return_index=True, return_counts=True)
    for n in np.unique(count[count > 2]):
        index = first[count == n][:, None] + np.arange(n)
        one, two = np.triu_indices(n, k=1)
        pairs = objects.p4[index[:, one]] + objects.p4[index[:, two]]
        squared = pairs[..., 3] ** 2 - np.sum(pairs[..., :3] ** 2, axis=-1)
        best = np.argmin(np.abs(np.sqrt(np.maximum(squared, 0.0)) - mass), axis=1)
        keep[index.ravel()] = False
        keep[np.take_along_axis(index, np.stack([one[best], two[best]], axis=1), axis=1)] = True
    return objects[keep]
