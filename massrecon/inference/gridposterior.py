"""Posteriors of a few masses on an even grid: exactly normalised sums, regions, estimates.

Every point stands for a cell around it; integrals are sums over cells (the midpoint rule, which for
a smooth density that vanishes at the ends of the grid is exact up to exp(-2 (pi sigma / h)^2) for
cells of width h). Leading axes hold many posteriors on the same grid, such as pseudo-experiments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, unknown_name
from massrecon.inference.estimators import check_level
from massrecon.inference.massgrid import MassAxes, step_of

Estimator = Literal["mode", "mean", "median", "window"]
ESTIMATORS: tuple[Estimator, ...] = ("mode", "mean", "median", "window")
"""Point estimates that `GridPosterior.estimate` knows."""

_LEVELS = 512  # lower ends that are tried for the shortest interval
_FINER = 8  # parts of a cell for quantiles and intervals
_NEVER = -1e4  # log-density of a point without any


@dataclass(frozen=True, eq=False)
class GridPosterior(MassAxes):
    """log p(m) on the product of mass axes, for one or many measurements.

    Attributes:
        axes: Evenly rising values of each of the M masses [GeV], by name.
        log_prob: log p [1 / GeV^M], float64, shape ``(..., G)``, the last mass fastest; -inf where
            there is no probability. `from_log_likelihood` normalises it.

    Raises:
        ShapeError: If the number of points is not that of the axes.
    """

    log_prob: Tensor

    def __post_init__(self) -> None:
        n_points = math.prod(self.shape)
        if self.log_prob.shape[-1] != n_points:
            raise ShapeError(
                f"'log_prob' should have {n_points} points on its last axis, got "
                f"{tuple(self.log_prob.shape)}."
            )

    @classmethod
    def from_log_likelihood(
        cls, axes: Mapping[str, Tensor], log_likelihood: Tensor
    ) -> GridPosterior:
        """Normalises log L + log prior, ``(..., G)``, so that the cells add up to one.

        Raises:
            InputError: If no point is possible.
        """
        norm = torch.logsumexp(log_likelihood, -1, keepdim=True)
        if not bool(norm.isfinite().all()):
            raise InputError(
                "These events exclude every mass point of the grid: they do not fit the process, "
                "or the ranges of the masses; a share of 'outliers' keeps one event from deciding."
            )
        cell = math.prod(step_of(axis) for axis in axes.values())
        return cls(axes, log_likelihood - norm - math.log(cell))

    def probability(self) -> Tensor:
        """Computes the probability of each cell, shape ``(..., G)``."""
        return self.log_prob.exp() * self.volume

    def marginal(self, name: str) -> Tensor:
        """Computes the density of one mass [1 / GeV], shape ``(..., G_i)``.

        Raises:
            InputError: If there is no such mass.
        """
        at = self._position(name)
        grid = self.probability().unflatten(-1, self.shape)
        others = [i - len(self.shape) for i in range(len(self.shape)) if i != at]
        return (grid.sum(others) if others else grid) / step_of(self.axes[name])

    def mean(self) -> Tensor:
        """Computes the mean masses [GeV], shape ``(..., M)``."""
        return self.probability() @ self.points

    def covariance(self) -> Tensor:
        """Computes the covariance [GeV^2], shape ``(..., M, M)``."""
        apart = self.points - self.mean().unsqueeze(-2)
        return apart.transpose(-1, -2) @ (self.probability().unsqueeze(-1) * apart)

    def correlation(self) -> Tensor:
        """Computes the correlations of the masses, shape ``(..., M, M)``."""
        covariance = self.covariance()
        width = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30).sqrt()
        return covariance / (width.unsqueeze(-1) * width.unsqueeze(-2))

    def mode(self) -> Tensor:
        """Finds the most probable masses [GeV], shape ``(..., M)``.

        Between grid points, on the paraboloid through the highest one and its neighbours.
        """
        best = self.log_prob.argmax(-1)
        at = torch.stack(torch.unravel_index(best, self.shape), dim=-1)
        size = at.new_tensor(self.shape)
        inner = ((at > 0) & (at < size - 1)).all(-1)
        slope, bend = self._derivatives(at.clamp_min(1).minimum(size - 2))
        steep = torch.linalg.eigvalsh(bend).amax(-1) < 0
        eye = -torch.eye(len(size)).to(bend)
        bend = torch.where((inner & steep)[..., None, None], bend, eye)
        shift = -torch.linalg.solve(bend, slope)
        good = inner & steep & (shift.abs() <= 1).all(-1)
        steps = shift.new_tensor([step_of(axis) for axis in self.axes.values()])
        return self.points[best] + steps * shift.where(good.unsqueeze(-1), 0.0)

    def _derivatives(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Computes slope ``(..., M)`` and bend ``(..., M, M)`` of log p, in units of the steps."""
        n = len(self.shape)
        unit = torch.eye(n, dtype=at.dtype, device=at.device)
        middle = self._value(at)
        slope, bend = torch.zeros(at.shape).to(middle), torch.zeros(*at.shape, n).to(middle)
        for i in range(n):
            above, below = self._value(at + unit[i]), self._value(at - unit[i])
            slope[..., i] = (above - below) / 2
            bend[..., i, i] = above - 2 * middle + below
            for j in range(i):
                same = self._value(at + unit[i] + unit[j]) + self._value(at - unit[i] - unit[j])
                other = self._value(at + unit[i] - unit[j]) + self._value(at - unit[i] + unit[j])
                bend[..., i, j] = bend[..., j, i] = (same - other) / 4
        return slope, bend

    def _value(self, at: Tensor) -> Tensor:
        """Returns log p of the grid points with indices ``(..., M)``."""
        flat = torch.zeros_like(at[..., 0])
        for i, size in enumerate(self.shape):
            flat = flat * size + at[..., i]
        return self.log_prob.clamp_min(_NEVER).gather(-1, flat.unsqueeze(-1))[..., 0]

    def median(self) -> Tensor:
        """Computes the median of each mass [GeV], shape ``(..., M)``."""
        return self.quantile(0.5)

    def quantile(self, level: float) -> Tensor:
        """Computes a quantile of each mass [GeV], shape ``(..., M)``."""
        found = []
        for name in self.names:
            edges, below = self._distribution(name)
            levels = below.new_full((*below.shape[:-1], 1), level)
            found.append(_invert(edges, below, levels)[..., 0])
        return torch.stack(found, dim=-1)

    def window(self, width: float = 30.0) -> Tensor:
        """Finds the centres of the windows of +- `width` that hold the most, ``(..., M)`` [GeV].

        Raises:
            InputError: If `width` is not positive.
        """
        if not width > 0:
            raise InputError(f"'width' should be positive [GeV], got {width}.")
        found = []
        for name, axis in self.axes.items():
            edges, below = self._distribution(name)
            inside = _at(edges, below, axis + width) - _at(edges, below, axis - width)
            best = inside >= inside.amax(-1, keepdim=True) - 1e-9
            found.append((best * axis).sum(-1) / best.sum(-1))
        return torch.stack(found, dim=-1)

    def estimate(self, estimator: Estimator = "mode", width: float = 30.0) -> Tensor:
        """Computes a point estimate of the masses [GeV], shape ``(..., M)``.

        Raises:
            InputError: If the estimator is unknown.
        """
        if estimator not in ESTIMATORS:
            raise unknown_name("estimator", estimator, ESTIMATORS)
        return self.window(width) if estimator == "window" else getattr(self, estimator)()

    def interval(self, level: float = 0.68) -> Tensor:
        """Computes the shortest interval of each mass that holds `level`, ``(..., M, 2)`` [GeV].

        Raises:
            InputError: If the level is not between 0 and 1.
        """
        check_level(level)
        found = []
        for name in self.names:
            edges, below = self._distribution(name)
            starts = torch.linspace(0, 1 - level, _LEVELS, dtype=torch.float64).to(below)
            starts = starts.expand(*below.shape[:-1], -1).contiguous()
            low, high = _invert(edges, below, starts), _invert(edges, below, starts + level)
            best = (high - low).argmin(-1, keepdim=True)
            found.append(torch.cat([low.gather(-1, best), high.gather(-1, best)], dim=-1))
        return torch.stack(found, dim=-2)

    def threshold(self, level: float) -> Tensor:
        """Computes the log-density at the rim of the highest-density region, shape ``(...)``.

        Raises:
            InputError: If the level is not between 0 and 1.
        """
        check_level(level)
        ordered = self.log_prob.sort(-1, descending=True).values
        held = (ordered.exp() * self.volume).cumsum(-1)
        last = (held < level).sum(-1, keepdim=True).clamp_max(held.shape[-1] - 1)
        return ordered.gather(-1, last)[..., 0]

    def region(self, level: float) -> Tensor:
        """Says which points are in the highest-density region of `level`, ``(..., G)``."""
        return self.log_prob >= self.threshold(level).unsqueeze(-1)

    def area(self, level: float) -> Tensor:
        """Computes the volume of the highest-density region [GeV^M], shape ``(...)``."""
        return self.region(level).sum(-1) * self.volume

    def log_prob_at(self, masses: Tensor) -> Tensor:
        """Interpolates log p to masses ``(M,)`` or ``(..., M)``, cubic in each; -inf outside."""
        batch = self.log_prob.shape[:-1]
        masses = masses.to(self.log_prob).expand(*batch, len(self.names))
        found = self.log_prob.clamp_min(_NEVER).unflatten(-1, self.shape)
        inside = torch.ones(batch, dtype=torch.bool, device=found.device)
        for i, axis in enumerate(self.axes.values()):
            place = (masses[..., i] - axis[0]) / step_of(axis)
            inside = inside & (place >= -0.5) & (place <= len(axis) - 0.5)
            found = _cubic(found, place, len(batch))
        return torch.where(inside, found, -math.inf)

    def level_at(self, masses: Tensor) -> Tensor:
        """Computes the level of the highest-density region that just holds some masses, ``(...)``.

        For calibrated posteriors and the true masses it is uniform between 0 and 1.
        """
        here = self.log_prob_at(masses).unsqueeze(-1)
        probability = self.probability()
        return (probability * (self.log_prob > here)).sum(-1)

    def _distribution(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns edges within the cells of a mass and the probability below each."""
        axis, fine = self.axes[name], _finer(self.marginal(name))
        step = step_of(axis) / _FINER
        edges = axis[0] - step_of(axis) / 2 + step * torch.arange(len(axis) * _FINER + 1)
        below = (fine * step).cumsum(-1)
        return edges.to(below), torch.cat([torch.zeros_like(below[..., :1]), below], dim=-1)

    def _position(self, name: str) -> int:
        if name not in self.axes:
            raise unknown_name("mass", name, self.names)
        return self.names.index(name)


def _pick(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """Takes one entry of dimension `dim` for each posterior."""
    shape = (*index.shape, *[1] * (values.ndim - index.ndim))
    where = index.reshape(shape).expand(*index.shape, 1, *values.shape[dim + 1 :])
    return values.gather(dim, where).squeeze(dim)


def _cubic(values: Tensor, place: Tensor, dim: int) -> Tensor:
    """Interpolates dimension `dim` to one place for each posterior, exactly for parabolas.

    Linear beside points that are excluded.
    """
    most = values.shape[dim] - 1
    left = place.floor().long().clamp(0, max(most - 1, 0))
    share = (place - left).clamp(0, 1)
    share = share.reshape((*share.shape, *[1] * (values.ndim - dim - 1)))
    around = [_pick(values, (left + k).clamp(0, most), dim) for k in (-1, 0, 1, 2)]
    first, last = (left == 0).reshape(share.shape), (left + 1 >= most).reshape(share.shape)
    parts = torch.stack(with_parabolic_ends(around, first, last))
    curved = (torch.stack(cubic_weights(share)) * parts).sum(0)
    excluded = torch.stack(around).amin(0) <= _NEVER
    return torch.where(excluded, torch.lerp(around[1], around[2], share), curved)


def with_parabolic_ends(around: Sequence[Tensor], first: Tensor, last: Tensor) -> list[Tensor]:
    """Lets the parabola through the last three of four even points go on at the ends of an axis.

    Args:
        around: Values of the four points around a place.
        first: Where there is no point before the middle ones.
        last: Where there is none behind them.
    """
    before, near, far, behind = around
    return [
        torch.where(first, 3 * near - 3 * far + behind, before),
        near,
        far,
        torch.where(last, 3 * far - 3 * near + before, behind),
    ]


def cubic_weights(s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the weights of four even points for a place between the middle ones, s in [0, 1].

    References:
        R. Keys, IEEE Trans. Acoust. 29 (1981) 1153, a = -1/2.
    """
    return (
        -s * (1 - s) ** 2 / 2,
        (2 - 5 * s**2 + 3 * s**3) / 2,
        s * (1 + 4 * s - 3 * s**2) / 2,
        -(s**2) * (1 - s) / 2,
    )


def _finer(density: Tensor) -> Tensor:
    """Cuts cells ``(..., G)`` into smaller ones along a smooth curve, ``(..., _FINER G)``."""
    most = density.shape[-1] - 1
    place = (torch.arange((most + 1) * _FINER).to(density) + 0.5) / _FINER - 0.5
    left = place.floor().long()
    around = [density[..., (left + k).clamp(0, most)] for k in (-1, 0, 1, 2)]
    weights = cubic_weights(place - left)
    found = torch.stack([w * v for w, v in zip(weights, around, strict=True)]).sum(0).clamp_min(0)
    total = density.sum(-1, keepdim=True) * _FINER
    return found * total / found.sum(-1, keepdim=True)


def _at(edges: Tensor, below: Tensor, x: Tensor) -> Tensor:
    """Interpolates the probability below x ``(G,)``, shape ``(..., G)``."""
    x = x.to(edges).clamp(edges[0], edges[-1])
    right = torch.searchsorted(edges, x).clamp(1, len(edges) - 1)
    share = (x - edges[right - 1]) / (edges[right] - edges[right - 1])
    return torch.lerp(below[..., right - 1], below[..., right], share.expand(*below.shape[:-1], -1))


def _invert(edges: Tensor, below: Tensor, levels: Tensor) -> Tensor:
    """Finds where the probability below reaches some levels ``(..., L)``."""
    levels = levels.clamp(max=1.0).minimum(below[..., -1:])
    right = torch.searchsorted(below.contiguous(), levels).clamp(1, len(edges) - 1)
    low, high = below.gather(-1, right - 1), below.gather(-1, right)
    share = ((levels - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return edges[right - 1] + share * (edges[right] - edges[right - 1])
