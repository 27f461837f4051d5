"""Where the truth lies in a posterior: numbers between 0 and 1 that are uniform when it is right.

Each function compares the posterior of every event with its truth and returns one number u for an
event. If truth and data are drawn from the joint distribution that the posterior belongs to, u is
uniform; what deviates from that says how the posterior is wrong:

- `rank_values`    the share of draws below the truth, one mass at a time: simulation-based
  calibration. A slope is a bias, a valley an over-confident posterior;
- `central_values` the content of the central interval that just holds the truth;
- `density_values` the content of the region of highest density that just holds the truth, in any
  number of dimensions, from a density on points or from the density of draws;
- `tarp_values`    the share of draws closer to a random point than the truth is.

For the last three the share of events with u < c is the coverage of regions of content c. Draws are
finite and may tie with the truth (a mass that never varied): ranks are spread evenly over the steps
they stand for, so that u is exactly uniform at any number of draws.

References:
    S. Talts et al., arXiv:1804.06788, Algorithm 1; J. Hermans et al., arXiv:2110.06581, Eq. (5);
    P. Lemos et al., arXiv:2302.03026, Algorithm 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, unknown_name

_METRICS = ("euclidean", "manhattan")
# keeps the random numbers apart from those of draws that were made with the same seed
_OTHER_STREAM = 0x5BC00000


def rank_values(samples: Tensor, truth: Tensor, seed: int = 0) -> Tensor:
    """Computes the share of the draws that lie below the truth, for each target.

    Args:
        samples: Draws, shape ``(S, N, T)``.
        truth: True values, shape ``(N, T)``.
        seed: Seed of what spreads the ranks over their steps.

    Returns:
        Values between 0 and 1, float64, shape ``(N, T)``; uniform for a calibrated posterior.

    Raises:
        ShapeError: If the shapes do not fit.

    Example:
        >>> draws = torch.arange(99.0).reshape(99, 1, 1)
        >>> bool((rank_values(draws, torch.tensor([[49.5]])) - 0.505).abs() < 0.005)
        True
    """
    _check_draws(samples, truth)
    below = (samples < truth).sum(0).double()
    ties = (samples == truth).sum(0).double()
    generator = torch.Generator().manual_seed(seed + _OTHER_STREAM)
    within = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(below)
    return (below + within * (ties + 1)) / (len(samples) + 1)


def central_values(ranks: Tensor) -> Tensor:
    """Computes the content of the central interval that just holds the truth, from `rank_values`.

    Args:
        ranks: Values of `rank_values`, any shape.

    Returns:
        Contents between 0 and 1, same shape.
    """
    return (2 * ranks - 1).abs()


def density_values(log_density: Tensor, at_truth: Tensor, measure: Tensor | None = None) -> Tensor:
    """Computes the content of the region of highest density that just holds the truth.

    Args:
        log_density: Log-density of each event at G points, up to a constant of the event, shape
            ``(N, G)``; -inf where there is no probability.
        at_truth: Log-density at the truth, with the same constants, shape ``(N,)``.
        measure: What each point stands for, such as the area of its cell, shape ``(G,)``; equal if
            not given.

    Returns:
        Contents between 0 and 1, float64, shape ``(N,)``; 1 where the truth has no probability.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If an event has no probability at any point.
    """
    if log_density.ndim != 2 or at_truth.shape != log_density.shape[:1]:
        raise ShapeError(
            f"'log_density' should have shape (N, G) and 'at_truth' (N,), got "
            f"{tuple(log_density.shape)} and {tuple(at_truth.shape)}."
        )
    log_p = log_density.double()
    log_mass = log_p if measure is None else log_p + measure.to(log_p).log()
    total = torch.logsumexp(log_mass, dim=1, keepdim=True)
    if not bool(total.isfinite().all()):
        raise InputError("'log_density' has no probability in some event: leave such events out.")
    share = (log_mass - total).exp()
    return (share * (log_p > at_truth.to(log_p).unsqueeze(1))).sum(1)


def draw_density_values(log_density: Tensor, at_truth: Tensor, seed: int = 0) -> Tensor:
    """Computes the same content from the density of S draws of the posterior itself.

    Args:
        log_density: Log-density of the draws, shape ``(S, N)``.
        at_truth: Log-density at the truth, shape ``(N,)``.
        seed: Seed of what spreads the ranks over their steps.

    Returns:
        Contents between 0 and 1, float64, shape ``(N,)``.

    Raises:
        ShapeError: If the shapes do not fit.
    """
    return rank_values(-log_density.unsqueeze(-1), -at_truth.unsqueeze(-1), seed)[:, 0]


def tarp_values(
    samples: Tensor,
    truth: Tensor,
    references: Tensor | None = None,
    metric: Literal["euclidean", "manhattan"] = "euclidean",
    seed: int = 0,
) -> Tensor:
    """Computes the share of draws that are closer to a reference point than the truth is.

    Distances are measured in units of the range of the true values, so that targets of different
    scale count alike; targets that do not vary are left out. Reference points that do not depend
    on the event cannot tell the prior from the posterior: both pass.

    Args:
        samples: Draws, shape ``(S, N, T)``.
        truth: True values, shape ``(N, T)``.
        references: One point for each event in the units of the targets, shape ``(N, T)``; drawn
            uniformly from the box of the true values if not given.
        metric: Distance, ``"euclidean"`` or ``"manhattan"``.
        seed: Seed of the reference points, and of what spreads the ranks over their steps.

    Returns:
        Values between 0 and 1, float64, shape ``(N,)``.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If the metric is unknown, or no target varies.

    References:
        P. Lemos et al., arXiv:2302.03026, Algorithm 2.
    """
    _check_draws(samples, truth)
    if metric not in _METRICS:
        raise unknown_name("metric", metric, _METRICS)
    low, high = truth.double().aminmax(dim=0)
    varies = high > low
    if not bool(varies.any()):
        raise InputError("None of the true values varies: TARP needs events with various truths.")
    if references is None:
        generator = torch.Generator().manual_seed(seed + _OTHER_STREAM)
        place = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(low)
        references = low + (high - low) * place
    elif references.shape != truth.shape:
        raise ShapeError(
            f"'references' should have the shape of 'truth', {tuple(truth.shape)}, got "
            f"{tuple(references.shape)}."
        )
    span = (high - low)[varies]

    def distance(points: Tensor) -> Tensor:
        apart = (points.double() - references)[..., varies] / span
        return apart.abs().sum(-1) if metric == "manhattan" else apart.square().sum(-1).sqrt()

    drawn, true = distance(samples), distance(truth)
    return rank_values(drawn.unsqueeze(-1), true.unsqueeze(-1), seed + 1)[:, 0]


def _check_draws(samples: Tensor, truth: Tensor) -> None:
    if samples.ndim != 3 or len(samples) == 0 or samples.shape[1:] != truth.shape:
        raise ShapeError(
            f"'samples' should have shape (S, N, T) and 'truth' (N, T), got "
            f"{tuple(samples.shape)} and {tuple(truth.shape)}."
        )
