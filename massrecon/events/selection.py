"""Selection: which collisions are kept, and which object goes to which slot of the card."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from massrecon.events.card import ProcessCard
from massrecon.events.columns import column_type
from massrecon.events.objects import Objects, Reconstruction
from massrecon.events.particles import Integers, Mask
from massrecon.events.sections import JET_KINDS

MEDIUM = 2
"""Working point of the b-tag that `EventCuts.btags` counts."""


def select(
    card: ProcessCard, found: Reconstruction, candidates: Mask
) -> tuple[dict[str, np.ndarray], Integers, dict[str, int]]:
    """Applies the card's selection and fills its object slots.

    Jets come last, so that they are only clustered where the leptons and photons are as wanted.

    Args:
        card: The process.
        found: What was reconstructed in N collisions.
        candidates: Collisions to consider, shape ``(N,)``.

    Returns:
        The arrays ``p4``, ``present``, ``ptmiss`` and the card's object attributes for the n
        selected collisions; their numbers, shape ``(n,)``; and how many passed each step, by name.
    """
    passed, flow = candidates.copy(), {}
    if card.cuts.ptmiss_min > 0.0:
        passed &= np.hypot(*found.ptmiss.T) > card.cuts.ptmiss_min
        flow["ptmiss"] = int(passed.sum())
    chosen: dict[str, Objects] = {}
    for group in sorted(card.objects, key=lambda group: group.kind in JET_KINDS):
        objects = chosen[group.kind] = found.find(group, passed).accepted(group)
        count = np.bincount(objects.event, minlength=len(passed))
        passed &= (count >= group.minimum) & (count <= (group.maximum or np.inf))
        flow[group.kind] = int(passed.sum())
    events = np.flatnonzero(passed)
    arrays = _fill(card, chosen, events) | {"ptmiss": found.ptmiss[events]}
    kept = np.ones(len(events), bool)
    for name, good in _cuts_on_slots(card, arrays).items():
        kept &= good
        flow[name] = int(kept.sum())
    return {key: values[kept] for key, values in arrays.items()}, events[kept], flow


def _cuts_on_slots(card: ProcessCard, arrays: Mapping[str, np.ndarray]) -> dict[str, Mask]:
    """Returns the cuts on the filled slots by name, each a mask over the collisions ``(n,)``."""
    kinds, cuts = np.array(card.slot_kinds), {}
    if card.cuts.lepton_charge is not None:
        total = arrays["charge"][:, kinds == "lepton"].sum(axis=1)
        cuts["lepton charge"] = total == card.cuts.lepton_charge
    if card.cuts.btags > 0:
        tagged = arrays["btag"][:, kinds == "jet"] >= MEDIUM
        cuts["b-tags"] = tagged.sum(axis=1) >= card.cuts.btags
    return cuts


def _fill(
    card: ProcessCard, chosen: Mapping[str, Objects], events: Integers
) -> dict[str, np.ndarray]:
    """Puts the objects of the selected collisions into the slots of the card."""
    shape = (len(events), len(card.slots))
    arrays = {
        "p4": np.zeros((*shape, 4)),
        "present": np.zeros(shape, bool),
    }
    for name in card.attribute_names:
        arrays[name] = np.zeros(shape, column_type(name))
    offset = 0
    for group in card.objects:
        objects = chosen[group.kind]
        objects = objects[np.isin(objects.event, events)]
        if group.pair_mass is not None:
            objects = _nearest_pair(objects, group.pair_mass)
        objects = objects[objects.rank() < group.count]
        row, slot = np.searchsorted(events, objects.event), offset + objects.rank()
        arrays["present"][row, slot] = True
        arrays["p4"][row, slot] = objects.p4
        for name in card.attribute_names:
            if name in objects.attributes:
                arrays[name][row, slot] = objects.attributes[name]
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
