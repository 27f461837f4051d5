"""Do two samples follow the same distribution? Histograms, distances and a trained classifier.

`agreement` compares independent samples in one variable, `c2st` in any number of them.
`paired_agreement` is for draws of a posterior against the truth of the same events: both share
their events, so their histograms fluctuate together, and the difference must be judged by the
spread of the per-event differences instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference.statistics import effective_size, group_sums

_PAIRED_BINS = 16
_GROUPS_PER_BIN = 8  # fewer would not determine the covariance of the bins


@dataclass(frozen=True)
class ChiSquare:
    """A χ² test.

    Attributes:
        value: χ².
        dof: Degrees of freedom.
        p_value: Probability of a larger χ² between samples of the same distribution.
    """

    value: float
    dof: int
    p_value: float

    @property
    def per_dof(self) -> float:
        """χ² per degree of freedom."""
        return self.value / self.dof


@dataclass(frozen=True)
class Agreement:
    """How well two samples of one variable agree.

    Attributes:
        chi_square: χ² of two histograms with equally populated bins.
        wasserstein: Wasserstein-1 distance, in the unit of the variable.
        wasserstein_noise: What the distance would be on average between samples of the same
            distribution and of these sizes.
        ks: Largest distance of the cumulative distributions.
        ks_p_value: Probability of a larger `ks` between samples of the same distribution.
    """

    chi_square: ChiSquare
    wasserstein: float
    wasserstein_noise: float
    ks: float
    ks_p_value: float


@dataclass(frozen=True)
class ClassifierTest:
    """A classifier two-sample test.

    Attributes:
        accuracy: Share of events that a classifier assigns to the right sample, on events that it
            was not trained on; 0.5 where the samples cannot be told apart.
        error: Binomial error of `accuracy`.
        n_events: Number of events judged.
    """

    accuracy: float
    error: float
    n_events: int


def agreement(
    truth: Tensor,
    generated: Tensor,
    n_bins: int = 20,
    truth_weight: Tensor | None = None,
    generated_weight: Tensor | None = None,
) -> Agreement:
    """Compares two independent samples of one variable.

    χ² and p-values count weighted events by their effective number.

    Args:
        truth: Values of the first sample, shape ``(N,)``.
        generated: Values of the second, shape ``(K,)``.
        n_bins: Bins of the χ², equally populated by both samples together.
        truth_weight: Weights of the first sample, shape ``(N,)``.
        generated_weight: Weights of the second, shape ``(K,)``.

    Raises:
        InputError: If a sample has fewer than two values or one that is not finite, or there are
            fewer than two bins.
        ShapeError: If a sample is not one-dimensional or its weights differ in shape.
    """
    if n_bins < 2:
        raise InputError(f"'n_bins' should be at least 2, got {n_bins}.")
    a, w_a = _sample("truth", truth, truth_weight)
    b, w_b = _sample("generated", generated, generated_weight)
    n_a, n_b = float(effective_size(w_a)), float(effective_size(w_b))
    pooled = torch.cat([a, b]).sort().values
    cdf_a, cdf_b = _cumulative(a, w_a, pooled), _cumulative(b, w_b, pooled)
    distance = (cdf_a - cdf_b).abs()
    gaps = pooled.diff()
    mixed = (n_a * cdf_a + n_b * cdf_b) / (n_a + n_b)
    spread = (mixed * (1 - mixed) * (1 / n_a + 1 / n_b)).clamp(min=0).sqrt()
    ks = float(distance.max())
    return Agreement(
        chi_square=_chi_square(a, w_a, b, w_b, n_bins),
        wasserstein=float((distance[:-1] * gaps).sum()),
        # the mean of |x| for Gaussian x of standard deviation σ is σ √(2/π)
        wasserstein_noise=math.sqrt(2 / math.pi) * float((spread[:-1] * gaps).sum()),
        ks=ks,
        ks_p_value=float(stats.kstwobign.sf(ks * math.sqrt(n_a * n_b / (n_a + n_b)))),
    )


def paired_agreement(
    truth: Tensor, samples: Tensor, weight: Tensor | None = None, group: Tensor | None = None
) -> ChiSquare | None:
    """Compares draws with the truth of the same events, in bins with equally many true values.

    The covariance of the bins is taken from the differences truth − draws of the events, or of
    groups of them that fluctuate together. Hotelling's T² is scaled such that χ²/dof is one on
    average for a calibrated posterior and `p_value` is right for a finite number of groups.

    Args:
        truth: True values, shape ``(N,)``.
        samples: Draws of the same quantity, shape ``(S, N)``.
        weight: Event weights, shape ``(N,)``.
        group: Number of each event's group, shape ``(N,)``; see
            `massrecon.inference.statistics.clusters`.

    Returns:
        The test; None where the truth does not vary or there are fewer than 16 groups.
    """
    weight = torch.ones_like(truth) if weight is None else weight
    group = torch.arange(len(truth), device=truth.device) if group is None else group
    n_groups = int(group.max()) + 1
    n_bins = min(_PAIRED_BINS, n_groups // _GROUPS_PER_BIN)
    edges = _equal_population_edges(truth, n_bins)
    if len(edges) == 0:
        return None
    share = bin_shares(samples, edges) - bin_shares(truth[None], edges)
    # the shares of an event add up to one: the last bin adds nothing
    sums = group_sums(share[:, :-1].T * weight, group)
    dof = len(sums)
    covariance = n_groups * torch.atleast_2d(torch.cov(sums))
    total = sums.sum(1)
    t_squared = float(total @ torch.linalg.pinv(covariance, hermitian=True) @ total)
    f = t_squared * (n_groups - dof) / (dof * (n_groups - 1))
    return ChiSquare(dof * f, dof, float(stats.f.sf(f, dof, n_groups - dof)))


def bin_shares(samples: Tensor, edges: Tensor) -> Tensor:
    """Computes which share of each event's draws falls into each bin.

    Args:
        samples: Draws, shape ``(S, N)``.
        edges: The B − 1 inner edges of B bins, the outer bins being open, shape ``(B − 1,)``.

    Returns:
        Shares, shape ``(N, B)``; they add up to one.
    """
    n_draws, n_events = samples.shape
    n_bins = len(edges) + 1
    cell = torch.bucketize(samples.to(edges.dtype).contiguous(), edges, right=True)
    cell += n_bins * torch.arange(n_events, device=samples.device)
    counts = torch.bincount(cell.flatten(), minlength=n_events * n_bins)
    return counts.reshape(n_events, n_bins).to(torch.float64) / n_draws


def c2st(a: Tensor, b: Tensor, seed: int = 0, max_events: int = 10_000) -> ClassifierTest:
    """Trains a classifier to tell two samples apart, judged by five-fold cross-validation.

    The larger sample is thinned to the size of the smaller. Truth from simulated blocks of one
    mass repeats its masses exactly, which a classifier sees: compare such masses with
    `paired_agreement`, or leave them out.

    Args:
        a: First sample, shape ``(N,)`` or ``(N, F)``.
        b: Second sample, shape ``(K,)`` or ``(K, F)``.
        seed: Seed of thinning, folds and classifier.
        max_events: Use at most this many events of each sample.

    Raises:
        InputError: If a sample has fewer than 20 events or a value that is not finite.
        ShapeError: If the samples have different numbers of columns.

    References:
        D. Lopez-Paz and M. Oquab, ICLR 2017, arXiv:1610.06545.
    """
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"The samples should have equal columns, got {a.shape[1]} and {b.shape[1]}."
        )
    count = min(len(a), len(b), max_events)
    if count < 20:
        raise InputError(f"A classifier test needs 20 events of each sample, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    thinned = [x.cpu()[torch.randperm(len(x), generator=generator)[:count]] for x in (a, b)]
    features = torch.cat(thinned).to(torch.float64)
    if not bool(features.isfinite().all()):
        raise InputError("The samples of a classifier test should be finite.")
    label = torch.arange(2 * count) >= count
    classifier = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    guess = cross_val_predict(classifier, features.numpy(), label.numpy(), cv=folds)
    accuracy = float((torch.as_tensor(guess) == label).double().mean())
    # at an accuracy of exactly 0 or 1 the error would vanish; half an event keeps it honest
    bounded = min(max(accuracy, 0.5 / (2 * count)), 1 - 0.5 / (2 * count))
    return ClassifierTest(accuracy, math.sqrt(bounded * (1 - bounded) / (2 * count)), 2 * count)


def _sample(name: str, values: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    if values.ndim != 1:
        raise ShapeError(f"'{name}' should have shape (N,), got {tuple(values.shape)}.")
    weight = torch.ones_like(values) if weight is None else weight
    if weight.shape != values.shape:
        raise ShapeError(
            f"'{name}_weight' should have shape {tuple(values.shape)}, got {tuple(weight.shape)}."
        )
    if len(values) < 2 or not bool((values.isfinite() & weight.isfinite()).all()):
        raise InputError(f"'{name}' should hold at least two finite values with finite weights.")
    return values.to(torch.float64).contiguous(), weight.to(torch.float64)


def _cumulative(values: Tensor, weight: Tensor, at: Tensor) -> Tensor:
    """Returns the share of the weight at or below each of the points `at`."""
    ordered, order = values.sort()
    sums = torch.cat([weight.new_zeros(1), weight[order].cumsum(0)])
    return sums[torch.searchsorted(ordered, at, right=True)] / sums[-1]


def _equal_population_edges(values: Tensor, n_bins: int) -> Tensor:
    """Returns inner edges of at most `n_bins` bins that all hold values."""
    ordered = values.sort().values
    if n_bins < 2:
        return ordered[:0]
    position = torch.arange(1, n_bins, device=values.device) * len(ordered) // n_bins
    edges = ordered[position].unique()
    return edges[edges > ordered[0]]  # bins are closed to the left


def _chi_square(a: Tensor, w_a: Tensor, b: Tensor, w_b: Tensor, n_bins: int) -> ChiSquare:
    """Tests the homogeneity of two samples with the pooled shares as expectation."""
    edges = _equal_population_edges(torch.cat([a, b]), n_bins)
    if len(edges) == 0:  # all values are the same
        return ChiSquare(0.0, 1, 1.0)
    share_a, share_b = (
        torch.bincount(torch.bucketize(x, edges, right=True), w, len(edges) + 1) / w.sum()
        for x, w in ((a, w_a), (b, w_b))
    )
    n_a, n_b = effective_size(w_a), effective_size(w_b)
    pooled = (n_a * share_a + n_b * share_b) / (n_a + n_b)
    value = float(((share_a - share_b).square() / (pooled * (1 / n_a + 1 / n_b))).sum())
    return ChiSquare(value, len(edges), float(stats.chi2.sf(value, len(edges))))
