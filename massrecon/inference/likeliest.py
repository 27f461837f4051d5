"""The most probable assignments of an event: which object is which leg of the decay, and how sure.

The kinematic mixture sums over all assignments of objects to legs, lost objects and solutions for
invisible legs. Here its weights are kept apart: the weight of an assignment is the sum over the
ways to solve for what is not seen, normalised to all assignments::

    best = likely_assignments(mixture_for("wino_udd"), events[5])[0]
    print(best.slots, best.probability)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics.assignments import MISSING
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import EventBlock
from massrecon.models.mixture.reading import checked

_BLOCK = 2**15


@dataclass(frozen=True, kw_only=True, eq=False)
class LikelyAssignment:
    """One assignment of the objects of an event.

    Attributes:
        slots: Position of the object of each visible leg among the slots of the event, by the
            leg's label; -1 where it is lost.
        probability: Its share of the weights of all assignments.
        masses: Masses [GeV] at its most probable solution, by name.
        invisible: Four-momenta (px, py, pz, E) [GeV] of the invisible legs there, by label; those
            that the mixture does not solve for are left out.
    """

    slots: Mapping[str, int]
    probability: float
    masses: Mapping[str, float]
    invisible: Mapping[str, Tensor]


@torch.no_grad()
def likely_assignments(
    mixture: KinematicMixture, events: Events, n_best: int = 3
) -> list[LikelyAssignment]:
    """Finds the most probable assignments of one event, the best first.

    Args:
        mixture: The kinematic mixture of the card of the event.
        events: One event.
        n_best: Most assignments that are returned.

    Returns:
        The assignments; none if the event has too few objects for any.

    Raises:
        InputError: If there is not exactly one event, or a value in it is not physical.
    """
    if len(events) != 1:
        raise InputError(f"'events' should be one event, got {len(events)}: pass events[i].")
    for block in mixture.sorter.blocks(checked(events), _BLOCK):
        return _best_of(mixture, block, _slots(mixture, events), n_best)
    return []


def _best_of(
    mixture: KinematicMixture, block: EventBlock, slots: list[int], n_best: int
) -> list[LikelyAssignment]:
    """Adds up the hypotheses of each assignment, and takes the largest sums."""
    found, n_assignments = mixture.gaussians(block), len(block.plan.assignments)
    inside = algebra.log_probability(found.mean, found.covariance, mixture.region.rows)
    log_weight = (found.log_weight + inside)[:, 0].reshape(-1, n_assignments)
    total = log_weight.logsumexp(0)
    shares = (total - total.logsumexp(0)).exp()
    results = []
    for at in shares.argsort(descending=True)[:n_best].tolist():
        row = int(log_weight[:, at].argmax()) * n_assignments + at
        objects = block.plan.assignments.index[at].tolist()
        labels = [leg.label for leg in mixture.scheme.legs.visible]
        results.append(
            LikelyAssignment(
                slots={
                    label: MISSING if k == MISSING else slots[k]
                    for label, k in zip(labels, objects, strict=True)
                },
                probability=float(shares[at]),
                masses={
                    name: float(mean[row, 0])
                    for name, mean in zip(mixture.scheme.names, found.mean, strict=True)
                },
                invisible=_invisible(mixture, block, row),
            )
        )
    return results


def _slots(mixture: KinematicMixture, events: Events) -> list[int]:
    """Returns the slots of the objects that the mixture looks at, in its order."""
    present = events.present[0].tolist()
    found = []
    kinds = [k for k in dict.fromkeys(events.card.slot_kinds) if k in mixture.scheme.legs.leg_kinds]
    for kind in kinds:
        there = [slot for slot in events.slots_of(kind) if present[slot]]
        found += there[: mixture.options.most_objects.get(kind)]
    return found


def _invisible(mixture: KinematicMixture, block: EventBlock, row: int) -> dict[str, Tensor]:
    """Returns the momenta of the solved legs in a hypothesis: mother less what is seen of it."""
    momenta = {}
    for side, builder in enumerate(block.plan.builders):
        for leg in builder.solved:
            mother = mixture.scheme.mother(leg)
            at = int(block.plan.pairs[row, side])
            whole = mixture.momenta_of(mother, block.plan, block.objects)[1][:, at, 0]
            seen = builder.mask(mother, block.objects.p4) @ block.objects.p4
            momenta[leg.label] = whole - seen[:, at % len(builder.index), 0]
    return momenta
