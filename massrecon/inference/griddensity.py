"""Densities on a grid of masses, read at a point of each event."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from massrecon.errors import ShapeError


def at_points(axes: Sequence[Tensor], log_values: Tensor, points: Tensor) -> Tensor:
    """Interpolates log-densities on a grid, linearly, at one point of each event or of all.

    Corners of a cell that have no probability are left out, and where there is no other corner the
    nearest point of the cells around counts: so densities keep their value up to the edge of the
    region where they are not zero, which may run across cells.

    Args:
        axes: Rising coordinates [GeV], one tensor ``(G_m,)`` for each of M masses.
        log_values: Logs on the product of the axes, the last one fastest, ``(N, G)`` or
            ``(N, G_1, ..., G_M)``; -inf where there is no probability.
        points: Points [GeV], shape ``(N, M)``, or ``(M,)`` for all events; they are moved to the
            edge of the grid where they lie outside.

    Returns:
        Values, float64, shape ``(N,)``; -inf where there is no probability around.

    Raises:
        ShapeError: If the shapes do not fit.

    Example:
        >>> axes = [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])]
        >>> float(at_points(axes, torch.tensor([[0.0, 2.0, 4.0, 6.0]]), torch.tensor([0.5, 0.5])))
        2.5
    """
    shape = [len(axis) for axis in axes]
    points = points.expand(len(log_values), -1) if points.ndim == 1 else points
    if log_values[0:1].numel() not in (0, math.prod(shape)) or points.shape[1] != len(axes):
        raise ShapeError(
            f"'log_values' should have {math.prod(shape)} numbers an event and 'points' "
            f"{len(axes)}, got shapes {tuple(log_values.shape)} and {tuple(points.shape)}."
        )
    places = [_place(axis, points[:, m]) for m, axis in enumerate(axes)]
    flat = log_values.flatten(1)
    total, weight = (torch.zeros(len(flat), dtype=torch.float64) for _ in range(2))
    for corner in itertools.product((0, 1), repeat=len(axes)):
        index, share = torch.zeros_like(places[0][0]), torch.ones_like(total)
        for (left, right), step, size in zip(places, corner, shape, strict=True):
            index = index * size + left + step
            share = share * (right if step else 1 - right)
        value = flat.gather(1, index[:, None])[:, 0].double()
        share = share.where(value.isfinite(), 0.0)
        total = total + share * value.nan_to_num(neginf=0.0)
        weight = weight + share
    found = torch.where(weight > 0, total / weight, -math.inf)
    lost = (weight == 0).nonzero()[:, 0]
    if len(lost):
        around = [(left[lost], right[lost]) for left, right in places]
        found[lost] = _nearest(around, flat[lost], shape)
    return found


def _nearest(places: Sequence[tuple[Tensor, Tensor]], flat: Tensor, shape: list[int]) -> Tensor:
    """Returns the value of the nearest point with a probability, at most two steps away."""
    found = torch.full((len(flat),), -math.inf, dtype=torch.float64)
    closest = torch.full_like(found, math.inf)
    for offset in itertools.product((-1, 0, 1, 2), repeat=len(shape)):
        index, distance = torch.zeros(len(flat), dtype=torch.int64), torch.zeros_like(found)
        for (left, share), step, size in zip(places, offset, shape, strict=True):
            index = index * size + (left + step).clamp(0, size - 1)
            distance = distance + (share - step).square()
        value = flat.gather(1, index[:, None])[:, 0].double()
        better = value.isfinite() & (distance < closest)
        found, closest = value.where(better, found), distance.where(better, closest)
    return found


def _place(axis: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the left neighbour of values on an axis and how far they are from it, in steps."""
    axis = axis.double()
    x = x.double().clamp(float(axis[0]), float(axis[-1])).contiguous()
    left = (torch.searchsorted(axis, x, right=True) - 1).clamp(0, len(axis) - 2)
    return left, (x - axis[left]) / (axis[left + 1] - axis[left])


def cell_volumes(axes: Sequence[Tensor]) -> Tensor:
    """Returns what each point of the product of axes stands for, trapezoidal, shape ``(G,)``."""
    volume = torch.ones(1, dtype=torch.float64)
    for axis in axes:
        step = axis.double().diff()
        own = torch.cat([step[:1] / 2, (step[1:] + step[:-1]) / 2, step[-1:] / 2])
        volume = (volume.unsqueeze(-1) * own).flatten()
    return volume
