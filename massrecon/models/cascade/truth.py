"""What the simulation knows of the objects of an event: where each comes from, what was not seen.

It is the label of an auxiliary loss, and for studies of the ceiling an input: how well could the
masses be known if the assignment of objects, or the neutrinos, were known?
"""

from __future__ import annotations

import torch
from torch import Tensor

from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv
from massrecon.models.mixture import legs_of

RADIUS = 0.4
"""Distance in eta and phi within which an object is that of a leg of the decay."""


def knows_origins(events: Events) -> bool:
    """Tells whether events carry the true momenta of all particles of the decay."""
    return events.partons is not None and bool(events.card.parton_names)


def origins(events: Events) -> Tensor:
    """Finds from which sides of the decay each object comes.

    An object comes from a side if a leg of that side that leaves such an object is within `RADIUS`
    of it; a jet that holds quarks of both sides comes from both, a jet of radiation from none.

    Returns:
        0 or 1 for each object and side, float32, shape ``(N, K, sides)``.
    """
    card, legs = events.card, legs_of(events.card)
    assert events.partons is not None
    truth = fv.from_pxpypzm(events.partons.double())
    sides = [root.side for root in card.topology.roots]
    found = torch.zeros(len(events), len(card.slots), len(sides), dtype=torch.bool)
    for leg, kind in zip(legs.visible, legs.leg_kinds, strict=True):
        slots = [slot for slot, own in enumerate(card.slot_kinds) if own == kind]
        p4 = truth[:, card.parton_names.index(leg.label)].unsqueeze(1)
        near = fv.delta_r(events.p4[:, slots].double(), p4) < RADIUS
        found[:, slots, sides.index(leg.side)] |= near & events.present[:, slots]
    return found.float()


def invisible_momenta(events: Events) -> Tensor:
    """Returns the true momenta (px, py, pz, E) [GeV] of the invisible legs, ``(N, I, 4)``."""
    assert events.partons is not None
    labels = invisible_labels(events.card)
    columns = [events.card.parton_names.index(label) for label in labels]
    return fv.from_pxpypzm(events.partons[:, columns].double()).float()


def invisible_labels(card: ProcessCard) -> tuple[str, ...]:
    """Returns the labels of the legs of a decay that leave no object."""
    return tuple(leg.label for leg in legs_of(card).invisible)
