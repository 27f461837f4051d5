"""Pseudo-experiments: what N events would have said, many times over, from simulated events.

Events are drawn from a pool that was simulated at one mass point, and their log-likelihoods added
up. An experiment is a row of counts, how often it contains each event of the pool, so that all
experiments are one matrix product. Without weights no event is twice in an experiment, but
experiments share events: pools should hold some ten times more events than an experiment.

The test statistic of a mass point is the likelihood ratio

    lambda(m) = 2 [max log L - log L(m)],

with the maximum and the value in between grid points from quadratic and cubic interpolation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference.massgrid import step_of

FARTHEST = -60.0
"""Smallest log-likelihood of one event: a density that excludes its own truth is not believed."""

_CHUNK = 2**22  # counts drawn at a time
# keeps the random numbers apart from those of events that were made with the same seed
_OTHER_STREAM = 0x5EED1000

Weights = Callable[[float, int], tuple[list[int], list[float]]]
"""Neighbours of a place among so many values, and their weights."""


def experiments(
    n_pool: int, size: int, number: int, seed: int, weight: Tensor | None = None
) -> Tensor:
    """Draws the events of pseudo-experiments.

    Args:
        n_pool: Number E of events in the pool.
        size: Number of events in an experiment.
        number: Number T of experiments.
        seed: Seed.
        weight: Weights of the events of the pool, shape ``(E,)``; events are then drawn with these
            probabilities, and may be in an experiment more than once.

    Returns:
        Numbers of the events in each experiment, shape ``(T, size)``.

    Raises:
        InputError: If the pool is smaller than an experiment.
    """
    if size < 1 or number < 1 or (weight is None and n_pool < size):
        raise InputError(
            f"Experiments of {size} events cannot be drawn from a pool of {n_pool}: simulate more."
        )
    generator = torch.Generator().manual_seed(seed + _OTHER_STREAM)
    if weight is not None:
        chosen = torch.multinomial(weight.double(), number * size, True, generator=generator)
        return chosen.reshape(number, size)
    rows = max(1, _CHUNK // n_pool)
    parts = []
    for first in range(0, number, rows):
        dice = torch.rand(min(rows, number - first), n_pool, generator=generator)
        parts.append(dice.topk(size, dim=1).indices)
    return torch.cat(parts)


def totals(log_ratio: Tensor, chosen: Tensor) -> Tensor:
    """Adds up the log-likelihoods of the events of each experiment.

    Args:
        log_ratio: Of each event of the pool at G mass points, shape ``(E, G)``.
        chosen: Numbers of the events in each experiment, shape ``(T, size)``.

    Returns:
        Sums, in the precision of `log_ratio`, shape ``(T, G)``.
    """
    counts = log_ratio.new_zeros(len(chosen), len(log_ratio))
    counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=log_ratio.dtype))
    return counts @ log_ratio.clamp_min(FARTHEST)


def ratio_statistic(total: Tensor, axes: Sequence[Tensor], inside: Tensor, mass: Tensor) -> Tensor:
    """Computes lambda = 2 [max log L - log L(mass)] of each experiment.

    Args:
        total: log L on the product of the axes, the last one fastest, shape ``(T, G)``.
        axes: Evenly rising values of each of M masses [GeV].
        inside: Which points are allowed, shape ``(G,)``.
        mass: The mass point that is tested [GeV], shape ``(M,)``.

    Returns:
        Values, zero or larger, float64, shape ``(T,)``.

    Raises:
        ShapeError: If the shapes do not fit.
    """
    shape = tuple(len(axis) for axis in axes)
    if total.shape[1:] != inside.shape or math.prod(shape) != len(inside):
        raise ShapeError(
            f"'total' should have shape (T, {math.prod(shape)}) and 'inside' "
            f"({math.prod(shape)},), got {tuple(total.shape)} and {tuple(inside.shape)}."
        )
    allowed = total.double().masked_fill(~inside, -math.inf)
    at_mass = value_at(allowed, axes, mass)
    return 2 * (torch.maximum(refined_maximum(allowed, shape)[0], at_mass) - at_mass)


def value_at(total: Tensor, axes: Sequence[Tensor], mass: Tensor) -> Tensor:
    """Interpolates log L at one mass point, with cubics where four neighbours are finite.

    Args:
        total: log L, -inf where it is not allowed, shape ``(T, G)``.
        axes: Evenly rising values of each of M masses [GeV].
        mass: The point [GeV], shape ``(M,)``; moved to the edge of the grid from outside.

    Returns:
        Values, shape ``(T,)``; -inf where no neighbour is finite.
    """
    shape = tuple(len(axis) for axis in axes)
    for weights in (_cubic, _linear, _nearest):
        index, share = _stencil(axes, mass, shape, weights)
        values = total[:, index]
        if bool(values.isfinite().all()):
            return values @ share.to(values)
    index, _ = _stencil(axes, mass, shape, _cubic)
    distance = _distances(axes, mass, index)
    values = total[:, index[distance.argsort()]]
    first = values.isfinite().double().argmax(1, keepdim=True)
    return values.gather(1, first)[:, 0]


def _cubic(place: float, size: int) -> tuple[list[int], list[float]]:
    """Returns four neighbours and their Lagrange weights; fewer at the edge of the grid."""
    left = min(max(math.floor(place), 0), size - 2)
    if left < 1 or left > size - 3:
        return _linear(place, size)
    t = place - left
    weights = [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    ]
    return [left - 1, left, left + 1, left + 2], weights


def _linear(place: float, size: int) -> tuple[list[int], list[float]]:
    left = min(max(math.floor(place), 0), size - 2)
    t = min(max(place - left, 0.0), 1.0)
    return [left, left + 1], [1 - t, t]


def _nearest(place: float, size: int) -> tuple[list[int], list[float]]:
    return [min(max(round(place), 0), size - 1)], [1.0]


def _stencil(
    axes: Sequence[Tensor], mass: Tensor, shape: tuple[int, ...], weights: Weights
) -> tuple[Tensor, Tensor]:
    """Returns flat indices and weights of the neighbours of a point."""
    parts = []
    for axis, value, size in zip(axes, mass.tolist(), shape, strict=True):
        low, high = float(axis[0]), float(axis[-1])
        place = (min(max(value, low), high) - low) / (high - low) * (size - 1)
        parts.append(weights(place, size))
    index, share = [], []
    for corner in itertools.product(*(range(len(p[0])) for p in parts)):
        flat, product = 0, 1.0
        for (indices, values), k, size in zip(parts, corner, shape, strict=True):
            flat, product = flat * size + indices[k], product * values[k]
        if product != 0:
            index.append(flat)
            share.append(product)
    return torch.tensor(index), torch.tensor(share, dtype=torch.float64)


def _distances(axes: Sequence[Tensor], mass: Tensor, index: Tensor) -> Tensor:
    """Returns the squared distances of grid points from a mass point, in steps."""
    distance = torch.zeros(len(index), dtype=torch.float64)
    for axis, value in zip(reversed(axes), reversed(mass.tolist()), strict=True):
        step = step_of(axis)
        distance += ((axis[index % len(axis)].double() - value) / step).square()
        index = index // len(axis)
    return distance


def refined_maximum(total: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Finds the maximum of log L and where it is, between grid points by a quadratic.

    Args:
        total: log L, -inf where it is not allowed, shape ``(T, G)``.
        shape: Number of points on each of M axes.

    Returns:
        Maxima ``(T,)``, and their places in steps from the first point of each axis ``(T, M)``.
    """
    n_masses, grid = len(shape), total.reshape(-1, *shape)
    best, flat = total.max(1)
    place = torch.stack(torch.unravel_index(flat, tuple(shape)), dim=1)
    size = torch.tensor(shape)
    centre = place.clamp(min=torch.ones_like(size), max=size - 2)
    rows = torch.arange(len(total))

    def at(*offsets: int) -> Tensor:
        where = centre + torch.tensor(offsets)
        return grid[(rows, *where.unbind(1))]

    unit = torch.eye(n_masses, dtype=torch.int64)
    middle = at(*[0] * n_masses)
    gradient = total.new_zeros(len(total), n_masses)
    hessian = total.new_zeros(len(total), n_masses, n_masses)
    for i in range(n_masses):
        up, down = at(*unit[i].tolist()), at(*(-unit[i]).tolist())
        gradient[:, i], hessian[:, i, i] = (up - down) / 2, up + down - 2 * middle
        for j in range(i):
            corners = [at(*(a * unit[i] + b * unit[j]).tolist()) for a in (1, -1) for b in (1, -1)]
            mixed = (corners[0] - corners[1] - corners[2] + corners[3]) / 4
            hessian[:, i, j] = hessian[:, j, i] = mixed
    good = gradient.isfinite().all(1) & hessian.isfinite().flatten(1).all(1)
    eye = torch.eye(n_masses, dtype=total.dtype)
    curvature = torch.where(good[:, None, None], -hessian, eye)
    good &= torch.linalg.eigvalsh(curvature).amin(1) > 1e-9
    curvature = torch.where(good[:, None, None], curvature, eye)
    step = torch.linalg.solve(curvature, torch.where(good[:, None], gradient, 0.0))
    good &= step.abs().amax(1) <= 1.0
    value = middle + 0.5 * (gradient * step).sum(1)
    # a quadratic in one cell cannot rise far above the points that it runs through
    good &= (value >= best) & (value <= best + 2.0)
    refined = torch.where(good, value, best)
    found = torch.where(good[:, None], centre + step, place.to(total))
    return refined, found
