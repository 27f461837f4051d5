"""What the objects chosen for a decay chain say about masses, before any parameter is fitted.

Every resonance whose legs are seen or solved has the mass y_i = sqrt(P_i^2). When object k is off
by the factor 1 + e_k, the masses of the resonances that contain it move by

    J_ik e_k,   J_ik = P_i . p_k / y_i,   so that   S_ij = sum_k r_k^2 J_ik J_jk

is their covariance at relative resolutions r_k. A common factor of all objects that can get lost,
such as the jets of a chain, moves them by the *lean* sum_k J_ik.

A single invisible leg takes all of ptmiss. With V the visible part of its mother, M the mother's
mass, m that of the leg, and mu = (M^2 - m_V^2 - m^2) / 2 + V_T . ptmiss,

    pz = (mu V_z +- E_V sqrt(mu^2 - (E_V^2 - V_z^2)(ptmiss^2 + m^2))) / (E_V^2 - V_z^2).

If the root is not real, ptmiss is scaled down to where it is zero, where the mother first has its
mass (exact for a massless leg).

Tensors have the axes (roots, configurations, events), of which the first may be 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.kinematics.assignments import MISSING, Assignments, membership
from massrecon.kinematics.legs import Chain
from massrecon.kinematics.mixture_scheme import MassScheme, ResponseTable
from massrecon.kinematics.topology import Node

PTMISS = "ptmiss"
TRAITS = ("one", "log pT", "log² pT", "η²")
"""What the probability that an object is extra depends on; pT in units of 50 GeV."""

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
    """The measured masses of one chain for each of its C configurations.

    Attributes:
        mass: Mass of each of the d measured resonances [GeV].
        covariance: By source (kind of object or ``ptmiss``) the entries on and above the diagonal
            of the covariance [GeV²], row by row, None where zero.
        lean: Change of each mass when all objects that can get lost grow [GeV].
        traits: Sum of the traits of the chosen objects that could be extra, shape ``(T, C, N)``.
        lost: Number of lost legs, shape ``(C,)``.
        unreal: Where the mother of the invisible leg had no real solution, shape ``(C, N)``, or
            None if the chain has no solved leg.
    """

    mass: list[Tensor]
    covariance: Mapping[str, list[Tensor | None]]
    lean: list[Tensor]
    traits: Tensor
    lost: Tensor
    unreal: Tensor | None


@dataclass(frozen=True, eq=False)
class Invisible:
    """The solved invisible leg, with both roots.

    Attributes:
        p4: Its four-momentum [GeV], shape ``(4, 2, C, N)``.
        slopes: Derivatives of its pz with respect to px and py, and to the invariant V . nu.
        unreal: Where there was no real solution, shape ``(C, N)``.
    """

    p4: Tensor
    slopes: tuple[Tensor, Tensor, Tensor]
    unreal: Tensor


@dataclass(frozen=True, eq=False)
class _Measured:
    """A measured mass [GeV] and how it moves, by kind of object and with ptmiss."""

    mass: Tensor
    by_object: Mapping[str, Tensor]
    by_ptmiss: tuple[Tensor, Tensor] | None


class ChainBuilder:
    """Computes the `ChainTerms` of one chain.

    Args:
        scheme: The masses.
        assignments: The assignments, for these numbers of objects.
        chain: Number of the chain.
        lossy: Kinds of which objects can get lost or be extra.
    """

    def __init__(
        self, scheme: MassScheme, assignments: Assignments, chain: int, lossy: frozenset[str]
    ) -> None:
        self.scheme, self.lossy = scheme, lossy
        self.chain: Chain = scheme.legs.chains[chain]
        self.index = assignments.chains[chain]
        self.columns = columns_of(assignments.kinds)
        self.n_objects = len(assignments.kinds)
        self.measured = scheme.measured(self.chain)
        self.solved = scheme.solved_in(self.chain)
        self._members: dict[int, Tensor] = {}

    @property
    def n_roots(self) -> int:
        """Two if the chain has a solved invisible leg, else one."""
        return 2 if self.solved else 1

    def terms(self, objects: Objects) -> ChainTerms:
        """Computes masses, covariances and features for objects of N events."""
        invisible = self._solve(objects) if self.solved else None
        found = [self._measure(node, objects, invisible) for node in self.measured]
        covariance = {kind: _products(found, kind) for kind in self.columns}
        if invisible is not None:
            square = objects.ptmiss_width**2
            covariance[PTMISS] = _ptmiss_products(found, square)
        root = self.mask(self.chain.root, objects.p4)
        traits = [
            root[:, at] @ objects.traits(at) for k, at in self.columns.items() if k in self.lossy
        ]
        return ChainTerms(
            mass=[row.mass for row in found],
            covariance=covariance,
            lean=[self._lean(row, objects) for row in found],
            traits=sum(traits, objects.p4.new_zeros(())),
            lost=(self.index == MISSING).sum(1),
            unreal=None if invisible is None else invisible.unreal,
        )

    def momenta(self, node: Node, objects: Objects) -> Tensor:
        """Computes the four-momentum of a measured resonance, shape ``(4, R, C, N)``."""
        return self._p4(node, objects, self._solve(objects) if self.solved else None)

    def mask(self, node: Node, like: Tensor) -> Tensor:
        """Returns which objects descend from a resonance in each configuration, ``(C, K)``."""
        if node.index not in self._members:
            below = self.scheme.legs.legs_below(node)
            legs = [i for i, leg in enumerate(self.chain.visible) if leg in below]
            self._members[node.index] = membership(self.index[:, legs], self.n_objects)
        return self._members[node.index].to(like)

    def _p4(self, node: Node, objects: Objects, invisible: Invisible | None) -> Tensor:
        visible = (self.mask(node, objects.p4) @ objects.p4).unsqueeze(1)
        if invisible is None or not self.scheme.has_solved(node):
            return visible
        return visible + invisible.p4

    def _measure(self, node: Node, objects: Objects, invisible: Invisible | None) -> _Measured:
        """Computes a mass and its derivatives."""
        p4 = self._p4(node, objects, invisible)
        px, py, pz, e = p4
        mass = (e * e - px * px - py * py - pz * pz).clamp_min(_LIGHTEST**2).sqrt()
        inverse = 1 / mass
        mask, by_object, by_ptmiss = self.mask(node, p4), {}, None
        if invisible is not None and self.scheme.has_solved(node):
            nx, ny, nz, ne = invisible.p4
            by_z = (e * nz / ne - pz) * inverse
            by_ptmiss = (
                (e * nx / ne - px) * inverse + by_z * invisible.slopes[0],
                (e * ny / ne - py) * inverse + by_z * invisible.slopes[1],
            )
            by_constant = by_z * invisible.slopes[2]
        for kind, at in self.columns.items():
            if not bool(mask[:, at].any()):
                continue
            change = _dot(p4 * inverse, objects.p4[:, at], mask[:, at])
            if by_ptmiss is not None:
                change = change + self._through_mother(at, objects, invisible, by_constant)
            by_object[kind] = change * objects.resolution[at]
        return _Measured(mass, by_object, by_ptmiss)

    def _through_mother(
        self, at: slice, objects: Objects, invisible: Invisible | None, by_constant: Tensor
    ) -> Tensor | float:
        """Returns how objects change a mass by changing the solution for the invisible leg."""
        assert self.solved is not None
        mother = self.solved[1]
        mask = self.mask(mother, objects.p4)[:, at]
        if not bool(mask.any()):
            return 0.0
        p4 = self._p4(mother, objects, invisible)
        return -_dot(p4, objects.p4[:, at], mask) * by_constant.unsqueeze(2)

    def _lean(self, row: _Measured, objects: Objects) -> Tensor:
        parts = [
            (by_object / objects.resolution[self.columns[kind]]).sum(2)
            for kind, by_object in row.by_object.items()
            if kind in self.lossy
        ]
        return sum(parts, torch.zeros_like(row.mass[:1, :1, :1]))

    def _solve(self, objects: Objects) -> Invisible:
        """Solves for the longitudinal momentum of the invisible leg, both roots."""
        assert self.solved is not None
        leg, mother = self.solved
        mass = self.scheme.known[mother.index] or 0.0
        own = self.scheme.known[leg.index] or 0.0
        vx, vy, vz, ve = self.mask(mother, objects.p4) @ objects.p4
        free = 0.5 * (mass**2 - own**2 - (ve * ve - vx * vx - vy * vy - vz * vz))
        transverse = (ve * ve - vz * vz).clamp_min(_LIGHTEST**2)
        scale, unreal = _real_scale(free, transverse, (vx, vy), objects.ptmiss, own)
        nx, ny = objects.ptmiss[0] * scale, objects.ptmiss[1] * scale
        mu = free + vx * nx + vy * ny
        root = (mu * mu - transverse * (nx * nx + ny * ny + own**2)).clamp_min(0).sqrt()
        nz = torch.stack([(mu * vz + sign * ve * root) / transverse for sign in (1, -1)])
        ne = (nx * nx + ny * ny + nz * nz + own**2).clamp_min(1e-6).sqrt()
        slopes = _slopes((vx, vy, vz, ve), (nx, ny, nz, ne), objects.ptmiss_width)
        p4 = torch.stack(torch.broadcast_tensors(nx, ny, nz, ne))
        return Invisible(p4, slopes, unreal)


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


def _ptmiss_products(found: Sequence[_Measured], square: Tensor) -> list[Tensor | None]:
    """Multiplies the changes of the masses by ptmiss, whose variance is `square`."""
    entries: list[Tensor | None] = []
    for i, one in enumerate(found):
        for other in found[i:]:
            if one.by_ptmiss is None or other.by_ptmiss is None:
                entries.append(None)
                continue
            (ax, ay), (bx, by) = one.by_ptmiss, other.by_ptmiss
            entries.append((ax * bx + ay * by) * square)
    return entries


def _real_scale(
    free: Tensor, transverse: Tensor, visible: tuple[Tensor, Tensor], ptmiss: Tensor, own: float
) -> tuple[Tensor, Tensor]:
    """Finds the factor <= 1 on ptmiss at which the solutions become real.

    The condition E_T |ptmiss| <= free + V_T . ptmiss is linear in the factor for a massless leg.
    """
    met = torch.hypot(ptmiss[0], ptmiss[1])
    size = (met * met + own**2).sqrt()
    excess = transverse.sqrt() * size - visible[0] * ptmiss[0] - visible[1] * ptmiss[1]
    unreal = excess > free
    return torch.where(unreal, (free / excess).clamp(0, 1), torch.ones_like(excess)), unreal


def _slopes(
    visible: tuple[Tensor, ...], leg: tuple[Tensor, ...], ptmiss_width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiates V . nu = const: pz by px, by py, and by the constant.

    Where the two roots meet, D = d(V . nu) / dpz vanishes and pz moves as a square root: for a step
    s of the constant and the curvature c, 1 / D is replaced by D / (D^2 + c s).
    """
    vx, vy, vz, ve = visible
    nx, ny, nz, ne = leg
    gx, gy = vx - ve * nx / ne, vy - ve * ny / ne
    d = ve * nz / ne - vz
    curvature = ve * (ne * ne - nz * nz) / ne**3
    inverse = d / (d * d + curvature * ptmiss_width * torch.hypot(gx, gy)).clamp_min(1e-9)
    return gx * inverse, gy * inverse, inverse
