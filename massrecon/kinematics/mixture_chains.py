"""What the objects chosen for a decay chain say about masses, before any parameter is fitted.

Every resonance whose legs are seen or solved has the mass y_i = sqrt(P_i^2). When object k is off
by the factor 1 + e_k, the masses of the resonances that contain it move by

    J_ik e_k,   J_ik = P_i . p_k / y_i,   so that   S_ij = sum_k r_k^2 J_ik J_jk

is their covariance at relative resolutions r_k. A common factor of all objects that can get lost,
such as the jets of a chain, moves them by the *lean* sum_k J_ik.

Invisible legs are solved for in several *ways*, see `massrecon.kinematics.mixture_invisible`; their
momenta move with the objects of their mother, with their share of ptmiss, and with trial masses.

Tensors have the axes (ways, configurations, events), of which the first may be 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from massrecon.kinematics.assignments import MISSING, Assignments, membership
from massrecon.kinematics.legs import Chain
from massrecon.kinematics.mixture_invisible import Fillings, Invisible, Mother, solve
from massrecon.kinematics.mixture_scheme import MassScheme, ResponseTable
from massrecon.kinematics.topology import Node

PTMISS, SHARE = "ptmiss", "share"
TRAITS = ("one", "log pT", "log² pT", "η²")
"""What the probability that an object is extra depends on; pT in units of 50 GeV."""

WAYS = ("log root", "pull² / 2", "pT² / (m² + pT²)", "pz² / E²")
"""What the probability of a solution depends on: sums over legs, and the momentum of the chain."""

_LIGHTEST = 1.0  # a smaller mass [GeV] is taken as this
_PT_SCALE = 50.0


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of N events that have equally many of each kind, one tensor per component.

    Attributes:
        p4: Components (px, py, pz, E) [GeV], shape ``(4, K, N)``.
        kinds: Kind of each object, shape ``(K,)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(2, N)``.
        resolution: Relative resolution of each object, shape ``(K, N)``.
        ptmiss_width: Resolution of each component of ptmiss [GeV], shape ``(N,)``.
    """

    p4: Tensor
    kinds: tuple[str, ...]
    ptmiss: Tensor
    resolution: Tensor
    ptmiss_width: Tensor

    @classmethod
    def of(
        cls, p4: Tensor, kinds: Sequence[str], ptmiss: Tensor, sum_pt: Tensor, table: ResponseTable
    ) -> Objects:
        """Looks up the resolutions of objects ``(N, K, 4)`` in events with `sum_pt` ``(N,)``."""
        parts = p4.permute(2, 1, 0).contiguous()
        pt = torch.hypot(parts[0], parts[1])
        resolution = torch.empty_like(pt)
        for kind, at in columns_of(kinds).items():
            resolution[at] = table.relative(kind, pt[at])
        width = table.ptmiss_width(sum_pt)
        return cls(parts, tuple(kinds), ptmiss.T.contiguous(), resolution, width)

    def padded(self, multiple: int) -> Objects:
        """Repeats the last event until their number is a multiple of one."""
        missing = -len(self.ptmiss_width) % multiple
        given = (self.p4, self.ptmiss, self.resolution, self.ptmiss_width)
        p4, ptmiss, resolution, width = (
            torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], -1) for x in given
        )
        return Objects(p4, self.kinds, ptmiss, resolution, width)

    def traits(self, at: slice) -> Tensor:
        """Returns the `TRAITS` of some objects, shape ``(T, k, N)``."""
        px, py, pz, _ = self.p4[:, at]
        pt = torch.hypot(px, py)
        log_pt = (pt / _PT_SCALE).clamp_min(0.02).log()
        eta = torch.asinh(pz / pt.clamp_min(1e-3))
        return torch.stack([torch.ones_like(pt), log_pt, log_pt**2, eta**2])


def columns_of(kinds: Sequence[str]) -> dict[str, slice]:
    """Returns where the objects of each kind stand; objects of one kind stand together."""
    first = {kind: kinds.index(kind) for kind in kinds}
    return {kind: slice(at, at + kinds.count(kind)) for kind, at in first.items()}


@dataclass(frozen=True, eq=False)
class ChainTerms:
    """The measured masses of one chain for each of its C configurations and W ways to solve it.

    Attributes:
        mass: Mass of each of the d measured resonances [GeV].
        covariance: By source (kind of object, ``ptmiss`` or ``share``) the entries on and above the
            diagonal of the covariance [GeV²], row by row, None where zero.
        lean: Change of each mass when all objects that can get lost grow [GeV].
        by_trial: Derivative of each mass with respect to the trial masses, by their number.
        trial: The trial masses [GeV], shape ``(P, W, 1, 1)``.
        traits: Sum of the traits of the chosen objects that could be extra, shape ``(T, C, N)``.
        ways: The `WAYS` of each solution, four tensors.
        lost: Number of lost legs, shape ``(C,)``.
        bare: For each mass, whether a decay in it lost all that is seen of it, shape ``(d, C)``.
        unreal: For each mass, where a leg in it has no real solution; None without solved legs.
    """

    mass: list[Tensor]
    covariance: Mapping[str, list[Tensor | None]]
    lean: list[Tensor]
    by_trial: list[Mapping[int, Tensor]]
    trial: Tensor
    traits: Tensor
    ways: list[Tensor]
    lost: Tensor
    bare: Tensor
    unreal: list[Tensor | None]


@dataclass(frozen=True, eq=False)
class _Measured:
    """A measured mass [GeV] and how it moves: by kind of object, leg, and trial mass."""

    mass: Tensor
    by_object: Mapping[str, Tensor]
    by_share: Mapping[int, tuple[Tensor, Tensor]]
    by_trial: Mapping[int, Tensor]


class ChainBuilder:
    """Computes the `ChainTerms` of one chain.

    Args:
        scheme: The masses.
        fillings: How ptmiss may be shared.
        assignments: The assignments, for these numbers of objects.
        chain: Number of the chain.
        lossy: Kinds of which objects can get lost or be extra.
    """

    def __init__(
        self,
        scheme: MassScheme,
        fillings: Fillings,
        assignments: Assignments,
        chain: int,
        lossy: frozenset[str],
    ) -> None:
        self.scheme, self.fillings, self.lossy = scheme, fillings, lossy
        self.chain: Chain = scheme.legs.chains[chain]
        self.index = assignments.chains[chain]
        self.columns = columns_of(assignments.kinds)
        self.n_objects = len(assignments.kinds)
        self.measured = scheme.measured(self.chain)
        self.solved = scheme.solved_in(self.chain)
        self._members: dict[int, Tensor] = {}

    @property
    def n_roots(self) -> int:
        """Two for each solved invisible leg of the chain, multiplied."""
        return 1 << len(self.solved)

    @property
    def n_ways(self) -> int:
        """Number of ways to solve the chain: roots, and fillings in each."""
        return self.n_roots * len(self.fillings) if self.solved else 1

    @property
    def whole(self) -> bool:
        """Whether the momentum of the produced particle is among those measured."""
        return self.chain.root in self.measured

    def terms(self, objects: Objects) -> ChainTerms:
        """Computes masses, covariances and features for objects of N events."""
        invisible = self._solutions(objects)
        found = [self._measure(node, objects, invisible) for node in self.measured]
        covariance = {kind: _products(found, kind) for kind in self.columns}
        for at, source in enumerate((PTMISS, SHARE)):
            covariance[source] = _share_products(found, [leg.variance[at] for leg in invisible])
        root = self.mask(self.chain.root, objects.p4)
        traits = [
            root[:, at] @ objects.traits(at) for k, at in self.columns.items() if k in self.lossy
        ]
        return ChainTerms(
            mass=[row.mass for row in found],
            covariance=covariance,
            lean=[self._lean(row, objects) for row in found],
            by_trial=[row.by_trial for row in found],
            trial=self.fillings.trial.T.to(objects.p4).repeat(1, self.n_roots)[..., None, None],
            traits=sum(traits, objects.p4.new_zeros(())),
            ways=self._ways(objects, invisible),
            lost=(self.index == MISSING).sum(1),
            bare=self.bare,
            unreal=[self._unreal(node, invisible) for node in self.measured],
        )

    def momenta(self, node: Node, objects: Objects) -> Tensor:
        """Computes the four-momentum of a measured resonance, shape ``(4, W, C, N)``."""
        return self._p4(node, objects, self._solutions(objects))

    def mask(self, node: Node, like: Tensor) -> Tensor:
        """Returns which objects descend from a resonance in each configuration, ``(C, K)``."""
        if node.index not in self._members:
            below = self.scheme.legs.legs_below(node)
            legs = [i for i, leg in enumerate(self.chain.visible) if leg in below]
            self._members[node.index] = membership(self.index[:, legs], self.n_objects)
        return self._members[node.index].to(like)

    def _p4(self, node: Node, objects: Objects, invisible: Sequence[Invisible]) -> Tensor:
        p4 = (self.mask(node, objects.p4) @ objects.p4).unsqueeze(1)
        for i in self.legs_in(node):
            p4 = p4 + invisible[i].p4
        return p4

    @cached_property
    def bare(self) -> Tensor:
        """For each measured resonance whether a decay in it lost all its legs, ``(d, C)``."""
        found = torch.zeros(len(self.measured), len(self.index), dtype=torch.bool)
        legs = [leg.index for leg in self.chain.visible]
        for node in self.chain.resonances:
            own = [legs.index(child) for child in node.children if child in legs]
            if own:
                gone = (self.index[:, own] == MISSING).all(1)
                inside = [self._descends(node, other) for other in self.measured]
                found |= torch.tensor(inside, dtype=torch.bool)[:, None] & gone
        return found

    def _descends(self, node: Node, ancestor: Node) -> bool:
        below = self.scheme.legs.legs_below
        return set(below(node)) <= set(below(ancestor))

    def legs_in(self, node: Node) -> list[int]:
        """Returns the numbers of the solved legs of the chain that descend from a resonance."""
        return [i for i, leg in enumerate(self.solved) if self.scheme.contains(node, leg)]

    def _measure(self, node: Node, objects: Objects, invisible: Sequence[Invisible]) -> _Measured:
        """Computes a mass and its derivatives."""
        p4 = self._p4(node, objects, invisible)
        px, py, pz, e = p4
        mass = (e * e - px * px - py * py - pz * pz).clamp_min(_LIGHTEST**2).sqrt()
        inverse = 1 / mass
        by_share: dict[int, tuple[Tensor, Tensor]] = {}
        by_trial: dict[int, Tensor] = {}
        by_constant: dict[int, Tensor] = {}
        for i in self.legs_in(node):
            leg, (nx, ny, nz, ne) = invisible[i], invisible[i].p4
            by_z = (e * nz / ne - pz) * inverse
            by_share[i] = (
                (e * nx / ne - px) * inverse + by_z * leg.slopes[0],
                (e * ny / ne - py) * inverse + by_z * leg.slopes[1],
            )
            by_constant[i] = by_z * leg.slopes[2]
            if leg.tried is not None:
                change = by_constant[i] * leg.mass
                by_trial[leg.tried] = by_trial.get(leg.tried, 0.0) + change
        mask, by_object = self.mask(node, p4), {}
        for kind, at in self.columns.items():
            if not bool(mask[:, at].any()):
                continue
            change = _dot(p4 * inverse, objects.p4[:, at], mask[:, at])
            for i, factor in by_constant.items():
                change = change + self._through_mother(i, at, objects, invisible[i], factor)
            by_object[kind] = change * objects.resolution[at]
        return _Measured(mass, by_object, by_share, by_trial)

    def _through_mother(
        self, leg: int, at: slice, objects: Objects, invisible: Invisible, by_constant: Tensor
    ) -> Tensor | float:
        """Returns how objects change a mass by changing the solution for an invisible leg."""
        mother = self.scheme.mother(self.solved[leg])
        mask = self.mask(mother, objects.p4)[:, at]
        if not bool(mask.any()):
            return 0.0
        p4 = (self.mask(mother, objects.p4) @ objects.p4).unsqueeze(1) + invisible.p4
        return -_dot(p4, objects.p4[:, at], mask) * by_constant.unsqueeze(2)

    def _lean(self, row: _Measured, objects: Objects) -> Tensor:
        parts = [
            (by_object / objects.resolution[self.columns[kind]]).sum(2)
            for kind, by_object in row.by_object.items()
            if kind in self.lossy
        ]
        return sum(parts, torch.zeros_like(row.mass[:1, :1, :1]))

    def _unreal(self, node: Node, invisible: Sequence[Invisible]) -> Tensor | None:
        found = [invisible[i].unreal for i in self.legs_in(node)]
        return torch.stack(found).any(0) if found else None

    def _ways(self, objects: Objects, invisible: Sequence[Invisible]) -> list[Tensor]:
        zero = torch.zeros_like(objects.p4[0, 0])
        found = [
            sum((leg.log_root for leg in invisible), zero),
            sum((leg.pull for leg in invisible), zero),
        ]
        if not self.whole:
            return [*found, zero, zero]
        px, py, pz, e = self._p4(self.chain.root, objects, invisible)
        squared = px * px + py * py
        return [
            *found,
            squared / (e * e - pz * pz).clamp_min(_LIGHTEST**2),
            pz * pz / (e * e).clamp_min(_LIGHTEST**2),
        ]

    def _solutions(self, objects: Objects) -> list[Invisible]:
        """Solves for the invisible legs of the chain in all ways."""
        return [self._solution(i, objects) for i in range(len(self.solved))]

    def _solution(self, i: int, objects: Objects) -> Invisible:
        fillings, mother = self.fillings, self.mother(i)
        signs = 1.0 - 2.0 * ((torch.arange(self.n_roots) >> i) & 1).to(objects.p4)
        share = fillings.momenta(self.scheme.legs.invisible.index(self.solved[i]), objects.ptmiss)
        cell = fillings.cell_width(objects.ptmiss) ** 2
        variances = ((objects.ptmiss_width**2).expand_as(cell), cell)
        by_ptmiss, by_cell = (v.repeat(self.n_roots, 1).unsqueeze(1) for v in variances)
        return solve(
            mother,
            self.mask(self.scheme.mother(self.solved[i]), objects.p4) @ objects.p4,
            mother.mass.to(objects.p4).repeat(self.n_roots)[:, None, None],
            share.repeat(1, self.n_roots, 1).unsqueeze(2),
            signs.repeat_interleave(len(fillings))[:, None, None],
            (by_ptmiss, by_cell),
        )

    def mother(self, i: int) -> Mother:
        """Returns what is known of the mother of a solved leg of the chain."""
        leg, fillings = self.solved[i], self.fillings
        node = self.scheme.mother(leg)
        parameter, own = self.scheme.parameter[node.index], self.scheme.known[leg.index] or 0.0
        if parameter is None:
            mass = torch.full_like(fillings.cell, self.scheme.known[node.index] or 0.0)
            return Mother(mass, None, 0.0, own)
        tried = self.scheme.tried.index(parameter)
        return Mother(fillings.trial[:, tried], tried, float(fillings.trial_width[tried]), own)

    def under(self, node: Node) -> int:
        """Returns the solved leg whose mother contains a resonance without it, or -1."""
        for i, leg in enumerate(self.solved):
            mother = self.scheme.mother(leg)
            if self._descends(node, mother) and not self.scheme.contains(node, leg):
                return i
        return -1

    def smaller(self, one: Node, other: Node) -> int:
        """Returns which of two measured resonances descends from the other, or -1."""
        if self._descends(one, other):
            return self.measured.index(one)
        return self.measured.index(other) if self._descends(other, one) else -1


def _dot(p4: Tensor, objects: Tensor, mask: Tensor) -> Tensor:
    """Multiplies resonances ``(4, R, C, N)`` with their objects ``(4, k, N)``: ``(R, C, k, N)``."""
    px, py, pz, e = p4.unsqueeze(3)
    x, y, z, t = objects
    product = e * t
    product.addcmul_(px, x, value=-1).addcmul_(py, y, value=-1).addcmul_(pz, z, value=-1)
    return product.mul_(mask.unsqueeze(-1))


def _products(found: Sequence[_Measured], kind: str) -> list[Tensor | None]:
    """Multiplies the changes of the masses by one kind of objects, summed over these."""
    entries: list[Tensor | None] = []
    for i, one in enumerate(found):
        for other in found[i:]:
            both = kind in one.by_object and kind in other.by_object
            product = one.by_object[kind] * other.by_object[kind] if both else None
            entries.append(None if product is None else product.sum(2))
    return entries


def _share_products(found: Sequence[_Measured], variance: Sequence[Tensor]) -> list[Tensor | None]:
    """Multiplies the changes of the masses by the shares of the legs, of these variances."""
    entries: list[Tensor | None] = []
    for i, one in enumerate(found):
        for other in found[i:]:
            both = one.by_share.keys() & other.by_share.keys()
            parts = [
                (
                    one.by_share[leg][0] * other.by_share[leg][0]
                    + one.by_share[leg][1] * other.by_share[leg][1]
                )
                * variance[leg]
                for leg in sorted(both)
            ]
            entries.append(sum(parts[1:], parts[0]) if parts else None)
    return entries
