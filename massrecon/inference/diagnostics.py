"""Diagnostics: how often the mass estimate is right, and whether the posterior knows it.

The efficiency within w is the fraction of events with |estimate − truth| < w. For a Gaussian
posterior of width σ it is erf(w/2σ) for one draw and erf(w/√2σ) for the median, so an efficiency
means nothing without its estimator. It stands beside

- the no-skill line: the best constant guess, the centre of the window of half-width w with the most
  true masses, which knows the prior but has not looked at the event. It is chosen and judged on
  different mass points in turn: on the same ones it would follow their fluctuations;
- self-consistency: a calibrated posterior predicts its own efficiency, since the mean over events
  of P(|m − c| < w | y) is the fraction with |truth − c| < w for every choice of c. The choice is
  made on one half of the draws and predicted on the other, and the other way round: on the same
  draws the largest of many noisy masses would predict too much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.inference import estimators as est
from massrecon.inference.posterior import Posterior
from massrecon.inference.statistics import (
    MassPoints,
    clusters,
    effective_size,
    group_sums,
    mass_points,
    mean_with_error,
    wilson,
)
from massrecon.inference.tables import EfficiencyTable, NoSkill, PointRates, SelfConsistency

_FOLDS = 5


def efficiency(
    posterior: Posterior,
    windows: Sequence[float] = (10, 20, 30, 50),
    estimators: Sequence[str] = est.ESTIMATORS,
    bins: int | Mapping[str, Sequence[float]] | None = None,
) -> EfficiencyTable:
    """Measures how often each mass is found within a window around the truth.

    Errors are binomial (Wilson, 68 %), for the masses in this sample; weighted events count with
    their effective number.

    Args:
        posterior: A posterior with truth.
        windows: Half-widths w [GeV].
        estimators: Any of ``draw``, ``mean``, ``median``, ``window``; ``window`` is applied with
            the width of the window that it is judged by.
        bins: Edges by mass name, or number of bins, for true masses that are not on a grid.

    Returns:
        Efficiencies overall and by true mass, with the no-skill line and self-consistency.

    Raises:
        InputError: If there is no truth or no event, or an argument makes no sense.

    Example:
        >>> from massrecon.events.card import load_card
        >>> samples = torch.zeros(2, 10, 8, dtype=torch.float64)
        >>> masses = torch.full((10, 2), 15.0, dtype=torch.float64)
        >>> table = efficiency(Posterior(samples, load_card("wino_udd"), masses=masses))
        >>> table.at("chi10", "mean", 10)[0], table.at("chi10", "mean", 20)[0]
        (0.0, 1.0)
    """
    _check_arguments(posterior, windows, estimators)
    truth, weight = posterior.true_masses().to(torch.float64), posterior.weights
    widths = tuple(float(w) for w in windows)
    hits = _hits(posterior, truth, widths, estimators)
    overall = (hits * weight).sum(-1) / weight.sum()
    points = {
        name: _at_points(hits, weight, mass_points(name, truth[:, i], bins))
        for i, name in enumerate(posterior.mass_names)
    }
    group = clusters(truth)
    return EfficiencyTable(
        mass_names=posterior.mass_names,
        symbols=tuple(posterior.card.symbol(name) for name in posterior.mass_names),
        estimators=tuple(estimators),
        windows=widths,
        n_events=len(posterior),
        n_effective=float(effective_size(weight)),
        overall=wilson(overall, effective_size(weight)),
        points=points,
        no_skill=_no_skill(truth, weight, widths),
        self_consistency=_self_consistency(posterior, truth, weight, group, widths),
    )


def _check_arguments(
    posterior: Posterior, windows: Sequence[float], estimators: Sequence[str]
) -> None:
    if len(posterior) == 0:
        raise InputError("The posterior holds no events: there is nothing to measure.")
    if not windows or not all(0 < w < math.inf for w in windows):
        raise InputError(f"'windows' should be positive half-widths in GeV, got {list(windows)}.")
    if not estimators:
        raise InputError(f"'estimators' is empty: choose from {', '.join(est.ESTIMATORS)}.")
    for name in estimators:
        if name not in est.ESTIMATORS:
            raise unknown_name("estimator", name, est.ESTIMATORS)


def _hits(
    posterior: Posterior, truth: Tensor, widths: Sequence[float], estimators: Sequence[str]
) -> Tensor:
    """Returns 1.0 where an estimate is within the window, shape ``(M, E, W, N)``."""
    samples = posterior.mass_samples()
    rows = [
        torch.stack([found_within(samples, truth, w, name) for w in widths]) for name in estimators
    ]
    return torch.stack(rows).permute(3, 0, 1, 2)


def found_within(samples: Tensor, truth: Tensor, width: float, estimator: str) -> Tensor:
    """Tells which masses an estimator finds within a window around the truth.

    Args:
        samples: Draws of M masses [GeV], shape ``(S, N, M)``.
        truth: True masses [GeV], shape ``(N, M)``.
        width: Half-width of the window [GeV], also of the estimator ``window``.
        estimator: Name of the estimator.

    Returns:
        1.0 where it does and 0.0 elsewhere, shape ``(N, M)``.
    """
    if estimator == "window":
        estimates = est.window(samples, width)
    else:
        estimates = est.estimate(samples, estimator)
    return _within(estimates, truth, width).double()


def _within(estimate: Tensor, truth: Tensor, width: float) -> Tensor:
    return (estimate - truth).abs() < width


def _at_points(hits: Tensor, weight: Tensor, points: MassPoints) -> PointRates:
    total, squares = points.total(weight), points.total(weight.square())
    return PointRates(
        points=points,
        n_events=points.total(torch.ones_like(weight)).long(),
        rates=wilson(points.total(hits * weight) / total, total.square() / squares),
    )


def _no_skill(truth: Tensor, weight: Tensor, widths: Sequence[float]) -> NoSkill:
    """Finds the best constant guess of each mass for each window, shapes ``(M, W)``."""
    constants, shares, sizes = [], [], []
    for column in truth.T:
        group = clusters(column[:, None])
        constants.append([_best_constant(column, weight, w) for w in widths])
        shares.append([_constant_share(column, weight, group, w) for w in widths])
        # all events with one true value are right or wrong together
        sizes.append(effective_size(group_sums(weight, group)))
    share = torch.tensor(shares, dtype=torch.float64)
    return NoSkill(
        torch.tensor(constants, dtype=torch.float64),
        wilson(share, torch.stack(sizes)[:, None].cpu()),
    )


def _constant_share(truth: Tensor, weight: Tensor, group: Tensor, width: float) -> float:
    """Returns the share of the weight that a constant finds when chosen on other mass points."""
    order = torch.randperm(int(group.max()) + 1, generator=torch.Generator().manual_seed(0))
    folds = min(_FOLDS, len(order))
    fold = (order % folds).to(group.device)[group]
    found = 0.0
    for k in range(folds):
        here = fold == k
        others = ~here if folds > 1 else here
        constant = _best_constant(truth[others], weight[others], width)
        found += float(weight[here & ((truth - constant).abs() < width)].sum())
    return found / float(weight.sum())


def _best_constant(truth: Tensor, weight: Tensor, width: float) -> float:
    """Returns the constant with the most weight within `width`."""
    ordered, order = truth.sort()
    cumulative = torch.cat([weight.new_zeros(1), weight[order].cumsum(0)])
    end = torch.searchsorted(ordered, ordered + 2 * width)  # first one too far from the start
    start = int((cumulative[end] - cumulative[:-1]).argmax())
    return float(ordered[start] + ordered[int(end[start]) - 1]) / 2


def _self_consistency(
    posterior: Posterior, truth: Tensor, weight: Tensor, group: Tensor, widths: Sequence[float]
) -> SelfConsistency | None:
    """Compares predicted and attained efficiency; None for a single draw."""
    if posterior.n_draws < 2:
        return None
    samples = posterior.mass_samples()
    parts = [torch.stack(predicted_and_attained(samples, truth, width)) for width in widths]
    by_event = torch.stack(parts, dim=1).permute(0, 3, 1, 2)
    mean, error = mean_with_error(by_event, weight, group)
    _, difference_error = mean_with_error(by_event[0] - by_event[1], weight, group)
    return SelfConsistency(mean[0], mean[1], error[0], error[1], difference_error)


def predicted_and_attained(samples: Tensor, truth: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Compares, event by event, the probability of the best window with whether it holds the truth.

    The window is chosen on one half of the draws and judged by the other, and the other way round.

    Args:
        samples: Two or more draws of M masses [GeV], shape ``(S, N, M)``.
        truth: True masses [GeV], shape ``(N, M)``.
        width: Half-width of the window [GeV].

    Returns:
        Predicted probability, and how often the two windows hold the truth, each ``(N, M)``.
    """
    halves = (samples[0::2], samples[1::2])
    centres = [est.window(half, width) for half in halves]
    judged = zip(reversed(halves), centres, strict=True)
    predicted = [_within(half, centre, width).double().mean(0) for half, centre in judged]
    attained = [_within(centre, truth, width).double() for centre in centres]
    return (predicted[0] + predicted[1]) / 2, (attained[0] + attained[1]) / 2
