"""Statistics shared by the diagnostics: fractions with errors, mass points, clustered events.

Simulated events come in blocks with one true mass each. Where the masses are drawn from a
continuous prior, anything that depends on which masses were drawn fluctuates with the number of
blocks, not of events: such errors are computed from sums over the events of a mass point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError

MAX_GRID = 20
"""Up to this many distinct values, the true masses are taken as a grid, not as a continuum."""

SAME_MASS = 1.0
"""Masses that spread by less [GeV] are one fixed mass."""

_BINS = 8  # of a continuous true mass, if the caller does not say


@dataclass(frozen=True, eq=False)
class Rates:
    """Fractions with their 68 % intervals.

    Attributes:
        value: Fractions between 0 and 1, any shape.
        low: Lower ends of the intervals, same shape.
        high: Upper ends, same shape.
    """

    value: Tensor
    low: Tensor
    high: Tensor

    @property
    def error(self) -> Tensor:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class MassPoints:
    """Events grouped by a true mass: the B points of a grid, or B bins of a continuum.

    Attributes:
        mass: Name of the mass.
        value: The masses, or the centres of the bins [GeV], shape ``(B,)``.
        edges: Edges of the bins [GeV], shape ``(B + 1,)``; None for a grid.
        index: Position of each event, shape ``(N,)``; −1 outside of all bins.
    """

    mass: str
    value: Tensor
    edges: Tensor | None
    index: Tensor

    def __len__(self) -> int:
        return len(self.value)

    def total(self, values: Tensor) -> Tensor:
        """Adds up values of the events at each point, ``(..., N)`` -> ``(..., B)``."""
        inside = self.index >= 0
        sums = values.new_zeros(*values.shape[:-1], len(self))
        return sums.index_add_(-1, self.index[inside], values[..., inside])


def mass_points(
    mass: str, truth: Tensor, bins: int | Mapping[str, Sequence[float]] | None = None
) -> MassPoints:
    """Groups events by their true mass.

    Args:
        mass: Name of the mass.
        truth: True masses [GeV], shape ``(N,)``.
        bins: Bin edges by name of the mass, or the number of equal bins for masses that are not
            on a grid; 8 if not given.

    Raises:
        InputError: If the number of bins or the edges make no sense.
    """
    if isinstance(bins, int) and bins < 1:
        raise InputError(f"'bins' should be at least 1, got {bins}.")
    truth = truth.contiguous()
    values, index = torch.unique(truth, return_inverse=True)
    if isinstance(bins, Mapping) and mass in bins:
        edges = torch.as_tensor(bins[mass], dtype=truth.dtype, device=truth.device)
        if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise InputError(f"The bin edges of '{mass}' should rise, got {list(bins[mass])}.")
    elif len(values) <= MAX_GRID:
        return MassPoints(mass, values, None, index)
    else:
        count = bins if isinstance(bins, int) else _BINS
        edges = torch.linspace(0, 1, count + 1, dtype=truth.dtype, device=truth.device)
        edges = values[0] + (values[-1] - values[0]) * edges
        edges[-1] = values[-1]
    index = torch.bucketize(truth, edges, right=True) - 1
    index = index.where(truth != edges[-1], len(edges) - 2)  # the last bin includes its end
    index = index.where((index >= 0) & (index < len(edges) - 1), -1)
    return MassPoints(mass, (edges[1:] + edges[:-1]) / 2, edges, index)


def plane_cells(x: MassPoints, y: MassPoints) -> Tensor:
    """Numbers the cells of two true masses, that of `y` fastest.

    Returns:
        Number of the cell of each event, shape ``(N,)``; −1 outside of all cells.
    """
    inside = (x.index >= 0) & (y.index >= 0)
    return torch.where(inside, x.index * len(y) + y.index, -1)


def clusters(masses: Tensor) -> Tensor:
    """Numbers the groups of events whose fluctuations are not independent.

    Events that share a point of a continuous mass prior belong together; on a grid of masses,
    which is a choice and does not fluctuate, every event stands for itself. Which of the two it is
    can only be seen from a whole sample: group it before you take a part of it.

    Args:
        masses: True masses [GeV], shape ``(N, M)``.

    Returns:
        Number of the group of each event, shape ``(N,)``.
    """
    if all(len(column.unique()) <= MAX_GRID for column in masses.T):
        return torch.arange(len(masses), device=masses.device)
    return torch.unique(masses, dim=0, return_inverse=True)[1]


def group_sums(values: Tensor, group: Tensor) -> Tensor:
    """Adds up values in each group, ``(..., N)`` -> ``(..., G)``."""
    sums = values.new_zeros(*values.shape[:-1], int(group.max()) + 1)
    return sums.index_add_(-1, group, values)


def mean_with_error(values: Tensor, weight: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Computes weighted means over events and their standard errors from the groups.

    Args:
        values: Values, shape ``(..., N)``.
        weight: Event weights, shape ``(N,)``.
        group: Number of each event's group, shape ``(N,)``.

    Returns:
        Means and errors, each of shape ``(...)``; the error is NaN for a single group.
    """
    mean = (values * weight).sum(-1) / weight.sum()
    sums = group_sums((values - mean[..., None]) * weight, group)
    count = sums.shape[-1]
    scale = math.sqrt(count / (count - 1)) if count > 1 else math.nan
    return mean, scale * sums.square().sum(-1).sqrt() / weight.sum().abs()


def means_in_cells(
    values: Tensor, weight: Tensor, group: Tensor, cell: Tensor, n_cells: int
) -> tuple[Tensor, Tensor]:
    """Computes weighted means of the events in each cell and their errors from the groups.

    Args:
        values: Values, shape ``(..., N)``.
        weight: Event weights, shape ``(N,)``.
        group: Number of each event's group in the whole sample, see `clusters`, shape ``(N,)``.
        cell: Number of each event's cell, see `plane_cells`, shape ``(N,)``.
        n_cells: Number C of cells.

    Returns:
        Means and errors, each of shape ``(..., C)``; NaN without events, an error of one group too.
    """
    shape = (*values.shape[:-1], n_cells)
    mean, error = (values.new_full(shape, math.nan, dtype=torch.float64) for _ in range(2))
    for number in torch.unique(cell[cell >= 0]).tolist():
        here = cell == number
        own = torch.unique(group[here], return_inverse=True)[1]
        mean[..., number], error[..., number] = mean_with_error(
            values[..., here], weight[here], own
        )
    return mean, error


def plain_numbers(values: Tensor) -> Any:
    """Returns a tensor as nested lists, or one number, for JSON; None where it is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value if math.isfinite(value) else None

    return plain(values.tolist())


def effective_size(weight: Tensor) -> Tensor:
    """Computes (Σw)² / Σw² over the last axis: the number of equally weighted events."""
    squares = weight.square().sum(-1)
    return (weight.sum(-1).square() / squares).where(squares > 0, 0.0)


def wilson(value: Tensor, n_effective: Tensor) -> Rates:
    """Computes Wilson's 68 % (z = 1) interval of fractions; NaN where there are no events.

    Unlike √(p(1−p)/n) it never shrinks to nothing at 0 or 100 %.

    References:
        E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
    """
    value = value.clamp(0, 1)  # weights of both signs can lead outside
    centre = (value + 0.5 / n_effective) / (1 + 1 / n_effective)
    variance = value * (1 - value) / n_effective + 0.25 / n_effective**2
    half = variance.sqrt() / (1 + 1 / n_effective)
    low = torch.minimum(centre - half, value).clamp(min=0)
    return Rates(value, low, torch.maximum(centre + half, value).clamp(max=1))
