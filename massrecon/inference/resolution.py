"""Bias and resolution of a mass estimate by true mass: median and 68 % half-width of residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.inference.posterior import Posterior
from massrecon.inference.statistics import (
    MassPoints,
    effective_size,
    mass_points,
    plain_numbers,
)

_LOW, _HIGH = 0.16, 0.84
# correlation of the two quantiles in a large sample
_CORRELATION = _LOW * (1 - _HIGH) / math.sqrt(_LOW * (1 - _LOW) * _HIGH * (1 - _HIGH))


@dataclass(frozen=True, eq=False)
class ResolutionTable:
    """Residuals estimate − truth of one mass at B points of its true value [GeV].

    Attributes:
        estimator: Name of the estimator.
        points: The points.
        n_events: Number of events at each, shape ``(B,)``.
        bias: Median residual, shape ``(B,)``; NaN where there are no events.
        bias_error: Its standard error, shape ``(B,)``.
        resolution: Half the width of the central 68 % of the residuals, shape ``(B,)``.
        resolution_error: Its standard error, shape ``(B,)``.
    """

    estimator: str
    points: MassPoints
    n_events: Tensor
    bias: Tensor
    bias_error: Tensor
    resolution: Tensor
    resolution_error: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers for JSON; None where there are no events."""
        names = ("bias", "bias_error", "resolution", "resolution_error")
        columns = {name: plain_numbers(getattr(self, name)) for name in names}
        return {
            "mass": self.points.mass,
            "estimator": self.estimator,
            "value": self.points.value.tolist(),
            "n_events": self.n_events.tolist(),
            **columns,
        }


def mass_resolution(
    posterior: Posterior,
    mass: str,
    estimator: str = "median",
    width: float = 30.0,
    bins: int | Mapping[str, Sequence[float]] | None = None,
) -> ResolutionTable:
    """Measures bias and resolution of a mass estimate at each true mass.

    Args:
        posterior: A posterior with truth.
        mass: Name of the mass.
        estimator: One of ``draw``, ``mean``, ``median``, ``window``.
        width: Half-width of the window [GeV], for ``window`` only.
        bins: Edges by mass name, or number of bins, for true masses that are not on a grid.

    Raises:
        InputError: If there is no truth, or a name is unknown.
    """
    column = posterior.mass_index(mass)
    truth = posterior.true_masses()[:, column].to(torch.float64)
    residual = posterior.estimate(estimator, width)[:, column] - truth
    points = mass_points(mass, truth, bins)
    chosen = [points.index == i for i in range(len(points))]
    rows = [_summary(residual[rows], posterior.weights[rows]) for rows in chosen]
    bias, bias_error, resolution, resolution_error = torch.tensor(rows, dtype=torch.float64).T
    n_events = torch.stack([rows.sum() for rows in chosen])
    return ResolutionTable(
        estimator, points, n_events, bias, bias_error, resolution, resolution_error
    )


def weighted_quantile(values: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
    """Computes quantiles of weighted values ``(N,)``, interpolated between them."""
    ordered, order = values.sort()
    share = weight[order].clamp(min=0)
    middle = (share.cumsum(0) - share / 2) / share.sum()
    above = torch.searchsorted(middle, levels).clamp(1, max(len(values) - 1, 1))
    above = above.clamp(max=len(values) - 1)
    below = (above - 1).clamp(min=0)
    gap = middle[above] - middle[below]
    fraction = ((levels - middle[below]) / gap).where(gap > 0, 0.0).clamp(0, 1)
    return ordered[below].lerp(ordered[above], fraction)


def _summary(residual: Tensor, weight: Tensor) -> tuple[float, float, float, float]:
    """Returns bias and resolution, each with its error."""
    if len(residual) == 0:
        return math.nan, math.nan, math.nan, math.nan
    levels = torch.tensor([_LOW, 0.5, _HIGH], dtype=torch.float64, device=residual.device)
    # an order statistic of level q fluctuates between the levels q ± √(q(1−q)/n)
    step = (levels * (1 - levels) / effective_size(weight)).sqrt()
    low, bias, high = weighted_quantile(residual, weight, levels).tolist()
    ends = [
        weighted_quantile(residual, weight, (levels + sign * step).clamp(0, 1)) for sign in (-1, 1)
    ]
    low_error, bias_error, high_error = ((ends[1] - ends[0]) / 2).tolist()
    variance = low_error**2 + high_error**2 - 2 * _CORRELATION * low_error * high_error
    return bias, bias_error, (high - low) / 2, math.sqrt(variance) / 2
