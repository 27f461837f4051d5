"""Grids that follow a posterior: from the whole plane to a few widths around the measurement.

The logarithm of a product of many densities is as smooth as that of one of them, but the posterior
is narrower. A few rounds lead there: each takes the box that holds all points within `DEPTH` of the
highest one, with room to spare, and as many points as the width of the posterior asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from massrecon.inference.gridposterior import (
    GridPosterior,
    cubic_weights,
    with_parabolic_ends,
)
from massrecon.inference.likelihood import centres
from massrecon.inference.massgrid import step_of
from massrecon.kinematics.mixture_scheme import MassRegion

DEPTH = 18.0
"""Points whose log-density is this far below the highest one are left out."""

PER_WIDTH = 2.5
"""Grid points in one standard deviation of the posterior, at fixed other masses."""

LEAST = 16
"""Least number of points on an axis."""

_MOST = {1: 2000, 2: 128, 3: 40}  # points on an axis, for each number of masses
_MOST_OF_MANY = 16
_SPARE = 2  # further cells on each side
_SHARE_OF_STEP = 0.3  # width of a posterior that fits into one cell, in cells
_SETTLED = 0.8  # new over old step of an axis above which it is kept


def finer_axes(
    posterior: GridPosterior,
    region: MassRegion,
    per_width: float = PER_WIDTH,
    least: int = LEAST,
) -> dict[str, Tensor] | None:
    """Returns better axes for one or many posteriors on a common grid.

    Args:
        posterior: What is known so far.
        region: Where the masses may lie.
        per_width: Points in one standard deviation at fixed other masses.
        least: Least number of points on an axis.

    Returns:
        New axes, or None where the present ones will do.
    """
    found, better = {}, False
    log_prob = posterior.log_prob.reshape(-1, posterior.log_prob.shape[-1])
    near = log_prob > log_prob.amax(-1, keepdim=True) - DEPTH
    used = near.any(0).reshape(posterior.shape)
    widths = conditional_widths(posterior)
    most = _MOST.get(len(widths), _MOST_OF_MANY)
    for i, (name, axis) in enumerate(posterior.axes.items()):
        others = tuple(j for j in range(used.ndim) if j != i)
        at = (used.any(others) if others else used).nonzero()
        step = step_of(axis)
        low = max(float(axis[int(at[0])]) - (0.5 + _SPARE) * step, region.low[i])
        high = min(float(axis[int(at[-1])]) + (0.5 + _SPARE) * step, region.high[i])
        n = min(max(math.ceil((high - low) * per_width / widths[i]), least), most)
        new = (high - low) / n
        grown = low < float(axis[0]) - 0.6 * step or high > float(axis[-1]) + 0.6 * step
        if grown or new < _SETTLED * step:
            better = True
            found[name] = centres(low, high, n)
        else:
            found[name] = axis
    return found if better else None


def conditional_widths(posterior: GridPosterior) -> list[float]:
    """Computes the width of each mass at fixed others, the median of many posteriors [GeV]."""
    covariance = posterior.covariance()
    steps = [step_of(axis) for axis in posterior.axes.values()]
    least = torch.tensor([(_SHARE_OF_STEP * step) ** 2 for step in steps]).to(covariance)
    precision = torch.linalg.inv(covariance + torch.diag(1e-3 * least))
    widths = precision.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12).rsqrt()
    widths = widths.reshape(-1, len(steps)).median(0).values
    return [max(w, _SHARE_OF_STEP * s) for w, s in zip(widths.tolist(), steps, strict=True)]


def resampled(
    log_values: Tensor, own: Mapping[str, Tensor], axes: Mapping[str, Tensor], floor: float = -1e6
) -> Tensor:
    """Interpolates log-values ``(..., G)`` from even axes to others, cubic in each mass.

    Beside excluded points the nearest one counts, so that these stay excluded; beyond the outermost
    points a parabola goes on for half a cell, and nothing is known outside of the cells.

    Args:
        log_values: Values on the product of `own`, the last mass fastest.
        own: Present axes [GeV].
        axes: Wanted axes [GeV].
        floor: Values below stand for -inf.

    Returns:
        Shape ``(..., G')``.
    """
    shape = [len(axis) for axis in own.values()]
    found = log_values.clamp_min(floor).unflatten(-1, shape)
    for i, name in enumerate(own):
        dim = found.ndim - len(shape) + i
        found = _resample(found.movedim(dim, -1), own[name], axes[name], floor).movedim(-1, dim)
    found = found.flatten(found.ndim - len(shape))
    return torch.where(found <= floor, -math.inf, found)


def _resample(values: Tensor, own: Tensor, axis: Tensor, floor: float) -> Tensor:
    """Interpolates the last dimension."""
    most = len(own) - 1
    place = (axis - own[0]) / step_of(own)
    left = place.floor().long().clamp(0, most - 1)
    s = place - left
    inner = [values[..., (left + k).clamp(0, most)] for k in (-1, 0, 1, 2)]
    parts = with_parabolic_ends(inner, left == 0, left + 1 >= most)
    near, far = inner[1:3]
    curved = torch.stack([w * v for w, v in zip(cubic_weights(s), parts, strict=True)]).sum(0)
    excluded = torch.stack(inner).amin(0) <= floor
    nearest = torch.where(s < 0.5, near, far)
    found = torch.where(excluded, nearest, curved)
    outside = (place < -0.5 - 1e-9) | (place > most + 0.5 + 1e-9)
    return torch.where(outside, floor, found)
