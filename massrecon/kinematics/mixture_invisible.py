"""Invisible legs: how they may share ptmiss, and which momentum follows from their mother's mass.

An invisible leg takes a share q of ptmiss. With V the visible part of its mother, M the mother's
mass, m that of the leg, and mu = (M^2 - m_V^2 - m^2) / 2 + V_T . q, its momentum along the beam is

    pz = (mu V_z +- root) / (E_V^2 - V_z^2),  root = E_V sqrt(mu^2 - (E_V^2 - V_z^2)(q^2 + m^2)),

with two solutions. If the root is not real, q is scaled down to where it is zero, where the mother
first has its mass (exact for a massless leg), and the missing part is a pull on ptmiss.

A single leg takes all of ptmiss. Several share it in all ways z of a fixed set of points,

    q_i = ptmiss / n + scale sum_j B_ij z_j,      scale^2 = base^2 + ptmiss^2 / n^2,

turned with ptmiss, with the columns of B orthonormal and adding up to zero. A mother of unknown
mass takes trial masses on a grid. Sharing and trial masses together are a *filling*. Since dq dy is
the invariant phase space of a leg and the mother's mass fixes y, a filling counts as 1 / g(z) for
the density g of the points, times 1 / root for each leg. All hypotheses of an event with the same
filling belong together; around it masses are linear in the shares and in the trial masses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from massrecon.errors import InputError

if TYPE_CHECKING:
    from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme

LEAST_SQUARED = 1.0  # a smaller squared transverse energy [GeV²] is taken as this
MOST_PULL = 20.0  # half a squared pull that is as bad as can be
_CELL = 0.3  # standard deviation of a cell of evenly spread points, over its size
_TRIAL_CELL = 0.6  # the same for trial masses: their Gaussians add up to an even prior
_BASE = 0.2  # scale of the shares over the mean mass of the produced particles
_LEAST_BASE = 20.0  # [GeV]


@dataclass(frozen=True, eq=False)
class Fillings:
    """F ways to share ptmiss among I invisible legs, with trial masses of P mothers.

    Attributes:
        shares: Part of each leg beside its even share, in units of the scale, along and across
            ptmiss, shape ``(F, I, 2)``.
        cell: Distance of neighbouring shares as a standard deviation, in units of the scale,
            ``(F,)``; zero for a single leg.
        log_weight: Log of the volume that a filling stands for, ``(F,)``.
        trial: Trial masses [GeV], ``(F, P)``.
        trial_width: Standard deviation of a cell of trial masses [GeV], ``(P,)``.
        base: Least scale [GeV].
    """

    shares: Tensor
    cell: Tensor
    log_weight: Tensor
    trial: Tensor
    trial_width: Tensor
    base: float

    @classmethod
    def of(cls, scheme: MassScheme, region: MassRegion, shares: int, trials: int) -> Fillings:
        """Chooses shares and trial masses for a decay.

        Raises:
            InputError: If `shares` or `trials` is not positive.
        """
        if shares < 1 or trials < 1:
            raise InputError("'shares' and 'trials' should be positive numbers.")
        n_legs = len(scheme.legs.invisible) if scheme.solved else 0
        offsets, cell, log_weight = _spread_shares(n_legs, shares)
        trial, width = _spread_trials(
            [(region.low[p], region.high[p]) for p in scheme.tried], trials
        )
        n_shares, n_trials = len(offsets), len(trial)
        return cls(
            offsets.repeat_interleave(n_trials, 0),
            cell.repeat_interleave(n_trials),
            log_weight.repeat_interleave(n_trials),
            trial.repeat(n_shares, 1),
            width,
            _base(scheme, region),
        )

    def __len__(self) -> int:
        return len(self.cell)

    def scale(self, ptmiss: Tensor) -> Tensor:
        """Computes the scale of the shares [GeV] for ptmiss ``(2, N)``, shape ``(N,)``."""
        n_legs = max(self.shares.shape[1], 1)
        return (self.base**2 + (ptmiss**2).sum(0) / n_legs**2).sqrt()

    def momenta(self, leg: int, ptmiss: Tensor) -> Tensor:
        """Computes the share q of a leg [GeV], shape ``(2, F, N)``."""
        along = ptmiss / torch.hypot(*ptmiss).clamp_min(1e-9)
        across = torch.stack([-along[1], along[0]])
        x, y = (self.scale(ptmiss) * z[:, None] for z in self.shares[:, leg].T)
        return ptmiss[:, None] / self.shares.shape[1] + x * along[:, None] + y * across[:, None]

    def cell_width(self, ptmiss: Tensor) -> Tensor:
        """Computes the standard deviation of a cell of shares [GeV], shape ``(F, N)``."""
        return self.cell[:, None] * self.scale(ptmiss)


def _base(scheme: MassScheme, region: MassRegion) -> float:
    roots = [chain.root.index for chain in scheme.legs.chains]
    free = [region.middle[p] for root in roots if (p := scheme.parameter[root]) is not None]
    masses = free + [mass for root in roots if (mass := scheme.known[root]) is not None]
    return max(_LEAST_BASE, _BASE * sum(masses) / max(len(masses), 1))


def _spread_shares(n_legs: int, n_shares: int) -> tuple[Tensor, Tensor, Tensor]:
    """Spreads points z evenly in the normal distribution of asinh(z), in opposite pairs."""
    if n_legs < 2:
        zero = torch.zeros(1, dtype=torch.float64)
        return torch.zeros(1, n_legs, 2, dtype=torch.float64), zero, zero
    size = 2 * (n_legs - 1)
    half = torch.special.ndtri(_even_points(math.ceil(n_shares / 2), size))
    normal = torch.stack([half, -half], 1).flatten(0, 1)
    points = normal.sinh()
    log_density = (
        -0.5 * normal**2 - 0.5 * torch.log1p(points**2) - 0.5 * math.log(2 * math.pi)
    ).sum(1)
    cell = _CELL * (-log_density / size).exp() * len(points) ** (-1 / size)
    basis = _contrasts(n_legs)
    return torch.einsum("ij,sjx->six", basis, points.unflatten(1, (-1, 2))), cell, -log_density


def _even_points(n_points: int, size: int) -> Tensor:
    """Spreads points in the unit cube by multiples of powers of the generalised golden ratio."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (size + 1))
    steps = ratio ** -torch.arange(1, size + 1, dtype=torch.float64)
    return (0.5 + torch.arange(n_points, dtype=torch.float64)[:, None] * steps) % 1


def _contrasts(n: int) -> Tensor:
    """Returns orthonormal columns that add up to zero, shape ``(n, n - 1)``."""
    columns = torch.zeros(n, n - 1, dtype=torch.float64)
    for j in range(1, n):
        columns[:j, j - 1] = 1.0
        columns[j, j - 1] = -float(j)
    return columns / columns.norm(dim=0)


def _spread_trials(ranges: Sequence[tuple[float, float]], number: int) -> tuple[Tensor, Tensor]:
    """Spreads trial masses over their ranges, all combinations ``(T, P)``, with their widths."""
    if not ranges:
        return torch.zeros(1, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    at = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    grids = [low + (high - low) * at for low, high in ranges]
    widths = torch.tensor([_TRIAL_CELL * (high - low) / number for low, high in ranges])
    return torch.cartesian_prod(*grids).reshape(-1, len(ranges)), widths.double()


@dataclass(frozen=True, eq=False)
class Invisible:
    """A solved invisible leg, in all ways W (fillings and roots) to solve for it.

    Attributes:
        p4: Its four-momentum [GeV], shape ``(4, W, C, N)``.
        slopes: Derivatives of its pz with respect to px and py, and to the invariant V . nu.
        mass: Mass of the mother [GeV], shape ``(W, 1, 1)``.
        tried: Number of the trial mass of the mother, or None if it is known.
        variance: Of each component of its share [GeV²], from ptmiss and from the cells of the
            shares, each ``(W, 1, N)``.
        unreal: Where there is no real solution, shape ``(W, C, N)``.
        log_root: Log of the root [GeV²], with the change of its square within a cell.
        pull: Half the squared pull on ptmiss that makes the solution real, at most `MOST_PULL`.
    """

    p4: Tensor
    slopes: tuple[Tensor, Tensor, Tensor]
    mass: Tensor
    tried: int | None
    variance: tuple[Tensor, Tensor]
    unreal: Tensor
    log_root: Tensor
    pull: Tensor


@dataclass(frozen=True, eq=False)
class Mother:
    """The mother of a solved leg.

    Attributes:
        mass: Its mass in each filling [GeV], shape ``(F,)``.
        tried: Number of its trial mass, or None if it is known.
        trial_width: Width of the cells of it [GeV], 0 if it is known.
        own: Mass of the leg [GeV].
    """

    mass: Tensor
    tried: int | None
    trial_width: float
    own: float


def solve(
    mother: Mother,
    visible: Tensor,
    mass: Tensor,
    share: Tensor,
    signs: Tensor,
    variance: tuple[Tensor, Tensor],
) -> Invisible:
    """Solves for an invisible leg.

    Args:
        mother: What is known of its mother.
        visible: The visible part V of the mother [GeV], shape ``(4, C, N)``.
        mass: Mass of the mother for each way to solve [GeV], shape ``(W, 1, 1)``.
        share: Its share of ptmiss [GeV], shape ``(2, W, 1, N)``.
        signs: Which root to take, +1 or -1, shape ``(W, 1, 1)``.
        variance: See `Invisible`.
    """
    vx, vy, vz, ve = visible
    free = 0.5 * (mass**2 - mother.own**2 - (ve * ve - vx * vx - vy * vy - vz * vz))
    transverse = (ve * ve - vz * vz).clamp_min(LEAST_SQUARED)
    scale, unreal = _real_scale(free, transverse, (vx, vy), share, mother.own)
    nx, ny = share[0] * scale, share[1] * scale
    mu = free + vx * nx + vy * ny
    squared = (mu * mu - transverse * (nx * nx + ny * ny + mother.own**2)).clamp_min(0)
    root = squared.sqrt()
    nz = (mu * vz + signs * ve * root) / transverse
    ne = (nx * nx + ny * ny + nz * nz + mother.own**2).clamp_min(1e-6).sqrt()
    width = variance[0] + variance[1]
    gx, gy = vx - ve * nx / ne, vy - ve * ny / ne
    step = width.sqrt() * torch.hypot(gx, gy) + mass * mother.trial_width
    inverse = _inverse_slope((vz, ve), (nz, ne), step)
    pull = (1 - scale) ** 2 * (share[0] ** 2 + share[1] ** 2) / width
    return Invisible(
        torch.stack(torch.broadcast_tensors(nx, ny, nz, ne)),
        (gx * inverse, gy * inverse, inverse),
        mass,
        mother.tried,
        variance,
        unreal,
        0.5 * (squared + mu.abs() * step).log(),
        (0.5 * pull).clamp(max=MOST_PULL),
    )


def _real_scale(
    free: Tensor, transverse: Tensor, visible: tuple[Tensor, Tensor], share: Tensor, own: float
) -> tuple[Tensor, Tensor]:
    """Finds the factor <= 1 on the share at which the solutions become real.

    The condition E_T |q| <= free + V_T . q is linear in the factor for a massless leg.
    """
    size = (share[0] ** 2 + share[1] ** 2 + own**2).sqrt()
    excess = transverse.sqrt() * size - visible[0] * share[0] - visible[1] * share[1]
    unreal = excess > free
    return torch.where(unreal, (free / excess).clamp(0, 1), torch.ones_like(excess)), unreal


def _inverse_slope(
    visible: tuple[Tensor, Tensor], leg: tuple[Tensor, Tensor], step: Tensor
) -> Tensor:
    """Returns dpz / d(V . nu) = 1 / D.

    Where the two roots meet, D = d(V . nu) / dpz vanishes and pz moves as a square root: for a step
    s of the constant and the curvature c, 1 / D is replaced by D / (D^2 + c s).
    """
    vz, ve = visible
    nz, ne = leg
    d = ve * nz / ne - vz
    curvature = ve * (ne * ne - nz * nz) / ne**3
    return d / (d * d + curvature * step).clamp_min(1e-9)
