"""Events as pairs of two-step decay chains, for MT2 and M2; classical pairing of what is seen.

Which particles are A, a, B, b and C of A -> a B, B -> b C is read from the decay of the card. Where
all objects of a particle are seen, `paired_masses` is the classical counterpart of the kinematic
mixture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.kinematics.assignments import Assignments, assign
from massrecon.kinematics.constrained import Subsystem
from massrecon.kinematics.fourvectors import from_pxpypzm, mass
from massrecon.kinematics.legs import DecayLegs, SubsystemSide, subsystem
from massrecon.kinematics.topology import TopologyError
from massrecon.kinematics.transverse import mt2
from massrecon.models.mixture import legs_of

Level = Literal["partons", "objects"]

_MEDIUM = 2  # working point from which on a jet counts as one of a b quark
_SPREAD = 1e-6  # relative, of the masses of one mass point
# true sides as they are, exchanged, and with one of the two particles exchanged
_WAYS_TO_MATCH = ((0, 1, 2, 3), (2, 3, 0, 1), (0, 3, 2, 1), (2, 1, 0, 3))


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedChains:
    """N events as two chains A -> a B, B -> b C.

    Attributes:
        upper_a: Visible momentum of A -> a B on side a (px, py, pz, E) [GeV], shape ``(N, 4)``.
        lower_a: Visible momentum of B -> b C on side a.
        upper_b: The same as `upper_a` on side b.
        lower_b: The same as `lower_a` on side b.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        invisible_a: True momentum of C on side a, shape ``(N, 4)``.
        invisible_b: The same on side b.
        masses: True masses of A, B and C [GeV].
        symbols: Symbols of A, a, B, b and C.
        kept: Which of the given events these are, shape ``(N,)``.
        right: Which events have the true pairing, shape ``(N,)``; None where that is not known.
    """

    upper_a: Tensor
    lower_a: Tensor
    upper_b: Tensor
    lower_b: Tensor
    ptmiss: Tensor
    invisible_a: Tensor
    invisible_b: Tensor
    masses: tuple[float, float, float]
    symbols: tuple[str, str, str, str, str]
    kept: Tensor
    right: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ptmiss)

    @property
    def visible(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What is seen, in the order of the M2 functions."""
        return self.upper_a, self.lower_a, self.upper_b, self.lower_b, self.ptmiss

    def parents(self, name: Subsystem) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the visible systems of both parents of a subsystem, and what is invisible."""
        if name == "ab":
            return self.upper_a + self.lower_a, self.upper_b + self.lower_b, self.ptmiss
        if name == "b":
            return self.lower_a, self.lower_b, self.ptmiss
        return self.upper_a, self.upper_b, self.ptmiss + (self.lower_a + self.lower_b)[:, :2]

    def true_trial_mass(self, name: Subsystem) -> float:
        """Returns the mass of what is invisible in a subsystem: C, but B in subsystem "a" [GeV]."""
        return self.masses[1 if name == "a" else 2]

    def true_parent_mass(self, name: Subsystem) -> float:
        """Returns the mass of the parent of a subsystem: A, but B in subsystem "b" [GeV]."""
        return self.masses[1 if name == "b" else 0]


def paired_chains(events: Events, level: Level = "partons") -> PairedChains:
    """Reads events as pairs of two-step chains.

    Args:
        events: Events with truth, of one mass point.
        level: "partons" for true momenta in the true chains; "objects" for what was measured: the
            leading objects of each kind (b-tagged jets first), in the pairing with the smallest
            MT2 of the whole chains at the true mass of C. Events with too few objects are left out.

    Raises:
        TopologyError: If the decay is not a pair of two-step chains with one invisible particle.
        InputError: If the events carry no truth, or have several mass points.
    """
    if level not in ("partons", "objects"):
        raise unknown_name("level", level, ("partons", "objects"))
    legs = legs_of(events.card)
    both = subsystem(legs, "ab").sides
    if len(subsystem(legs, "b").sides[0].visible) == 0 or len(both[0].relatives) != 1:
        raise TopologyError(f"'{legs.topology.text}' has no chains of two steps.")
    truth = _truth(events, legs)
    kept = torch.arange(len(events))
    if level == "partons":
        return _arranged(events.card, legs, truth, truth, None, kept)
    seen, kept = _leading_objects(events, legs)
    picked = {label: p4[kept] for label, p4 in truth.items()}
    return _best_pairing(events, legs, picked, seen, kept)


def paired_masses(events: Events, particle: str) -> Tensor:
    """Estimates the mass of a particle that is seen on both sides from the pairing that fits best.

    Of all ways to take the leading objects as the legs of the decay, that with the smallest
    difference of the two masses is chosen; their mean is the estimate.

    Args:
        events: Events of a card on which `particle` decays to visible legs only, on two sides.
        particle: Name of the particle, such as ``chi10``.

    Returns:
        Mass [GeV], shape ``(N,)``; NaN where there are too few objects.

    Raises:
        TopologyError: If the particle does not occur twice, or decays to something invisible.
    """
    legs = legs_of(events.card)
    labels = [node.label for node in legs.topology.nodes if node.name == particle]
    below = [leg for label in labels for leg in legs.legs_below(legs.topology.node(label))]
    if len(labels) != 2 or any(legs.kinds[leg.index] is None for leg in below):
        raise TopologyError(
            f"'{particle}' should occur twice in '{legs.topology.text}' and decay to what is seen."
        )
    seen, kept = _leading_objects(events, legs)
    found = _assignments(legs)
    one, other = (mass(_added(seen, found.members(label))) for label in labels)
    best = (one - other).abs().argmin(1, keepdim=True)
    estimate = torch.full((len(events),), torch.nan, dtype=torch.float64)
    estimate[kept] = (0.5 * (one + other)).gather(1, best).squeeze(1)
    return estimate


def _truth(events: Events, legs: DecayLegs) -> dict[str, Tensor]:
    """Returns the true four-momentum of every particle ``(N, 4)`` by label."""
    if events.partons is None or events.masses is None:
        raise InputError("These events carry no truth: pass simulated events.")
    spread = events.masses.amax(0) - events.masses.amin(0)
    if bool((spread > _SPREAD * events.masses.amax(0)).any()):
        raise InputError("The events have several mass points: pass those of one point.")
    p4 = from_pxpypzm(events.partons.double().cpu())
    return dict(zip(legs.topology.labels, p4.unbind(1), strict=True))


def _arranged(
    card: ProcessCard,
    legs: DecayLegs,
    seen: dict[str, Tensor],
    truth: dict[str, Tensor],
    ptmiss: Tensor | None,
    kept: Tensor,
) -> PairedChains:
    """Adds up the momenta of the legs of each step."""
    upper, lower = (subsystem(legs, name).sides for name in ("a", "b"))
    whole = subsystem(legs, "ab").sides
    ends = [truth[side.daughter] for side in whole]
    vectors = [_sum(seen, side) for pair in zip(upper, lower, strict=True) for side in pair]
    names = (whole[0].parent, upper[0].visible[0], whole[0].relatives[0])
    names = (*names, lower[0].visible[0], whole[0].daughter)
    symbols = [card.symbol(legs.topology.node(label).name) for label in names]
    return PairedChains(
        upper_a=vectors[0],
        lower_a=vectors[1],
        upper_b=vectors[2],
        lower_b=vectors[3],
        ptmiss=(ends[0] + ends[1])[:, :2] if ptmiss is None else ptmiss,
        invisible_a=ends[0],
        invisible_b=ends[1],
        masses=(_typical(truth[names[0]]), _typical(truth[names[2]]), _typical(truth[names[4]])),
        symbols=(symbols[0], symbols[1], symbols[2], symbols[3], symbols[4]),
        kept=kept,
    )


def _typical(p4: Tensor) -> float:
    """Returns the median mass: resonances have widths."""
    return float(mass(p4).clamp_min(0).median())


def _sum(momenta: dict[str, Tensor], side: SubsystemSide) -> Tensor:
    return torch.stack([momenta[label] for label in side.visible]).sum(0)


def _leading_objects(events: Events, legs: DecayLegs) -> tuple[Tensor, Tensor]:
    """Returns as many objects of each kind as there are legs ``(N', L, 4)``, and which events."""
    chosen, enough = [], torch.ones(len(events), dtype=torch.bool)
    for kind in dict.fromkeys(legs.leg_kinds):
        slots, wanted = list(events.slots_of(kind)), legs.leg_kinds.count(kind)
        p4, present = events.p4[:, slots].double().cpu(), events.present[:, slots].cpu()
        rank = p4[..., :2].norm(dim=-1) + _tagged(events, slots) * 1e9
        order = torch.where(present, rank, -1.0).argsort(1, descending=True)[:, :wanted]
        enough &= present.sum(1) >= wanted
        chosen.append(p4.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)))
    kept = enough.nonzero().squeeze(1)
    return torch.cat(chosen, 1)[kept], kept


def _tagged(events: Events, slots: list[int]) -> Tensor:
    """Says which objects are b-tagged, where the decay has b quarks of a kind of their own."""
    if "btag" not in events.attributes:
        return torch.zeros(1)
    return (events.attributes["btag"][:, slots].cpu() >= _MEDIUM).double()


def _assignments(legs: DecayLegs) -> Assignments:
    """Lists the ways to take as many objects as there are legs."""
    return assign(legs, {kind: legs.leg_kinds.count(kind) for kind in legs.leg_kinds}, extra=0)


def _added(objects: Tensor, members: Tensor) -> Tensor:
    """Adds up the objects ``(N, K, 4)`` of each row of masks ``(A, K)``, shape ``(N, A, 4)``."""
    return torch.einsum("nkd,ak->nad", objects, members.double())


def _best_pairing(
    events: Events, legs: DecayLegs, truth: dict[str, Tensor], seen: Tensor, kept: Tensor
) -> PairedChains:
    """Chooses the assignment with the smallest MT2 of the whole chains."""
    found, ptmiss = _assignments(legs), events.ptmiss[kept].double().cpu()
    labels = [leg.label for leg in legs.visible]
    options = []
    for row in found.index:
        objects = dict(zip(labels, seen[:, row].unbind(1), strict=True))
        options.append(_arranged(events.card, legs, objects, truth, ptmiss, kept))
    mu = options[0].masses[2]
    values = torch.stack([mt2(*option.parents("ab"), m_invisible=mu) for option in options])
    best, rows = values.nan_to_num(torch.inf).argmin(0), torch.arange(len(kept))
    upper_a, lower_a, upper_b, lower_b = (
        torch.stack([option.visible[i] for option in options])[best, rows] for i in range(4)
    )
    chosen = replace(options[0], upper_a=upper_a, lower_a=lower_a, upper_b=upper_b, lower_b=lower_b)
    true = _arranged(events.card, legs, truth, truth, None, kept)
    return _with_nearest_truth(chosen, true)


def _with_nearest_truth(chains: PairedChains, true: PairedChains) -> PairedChains:
    """Exchanges the true sides where the measured particles point to the other ones."""
    directions = torch.stack([_direction(p) for p in chains.visible[:4]])
    aims = torch.stack([_direction(p) for p in true.visible[:4]])
    near = torch.stack([directions * aims[list(order)] for order in _WAYS_TO_MATCH])
    straight, crossed, one, other = near.sum((1, 3)).unbind(0)
    swap = (crossed > straight).unsqueeze(-1)
    return replace(
        chains,
        invisible_a=torch.where(swap, true.invisible_b, true.invisible_a),
        invisible_b=torch.where(swap, true.invisible_a, true.invisible_b),
        right=torch.maximum(straight, crossed) >= torch.maximum(one, other),
    )


def _direction(p4: Tensor) -> Tensor:
    return p4[:, :3] / p4[:, :3].norm(dim=-1, keepdim=True).clamp_min(1e-9)
