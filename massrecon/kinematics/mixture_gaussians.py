"""Many Gaussians compiled: cut to a region, added up on a grid."""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import compiled, inlined

Array = np.ndarray
_FAR = 25.0  # as in mixture_algebra
_LEAST = 1e-300
_CERTAIN = 6.0  # standard deviations: the bound does not matter
_REACH = 6.0  # standard deviations: a Gaussian ends here on a grid


@inlined
def normal_below(x: float) -> float:
    """Returns the probability of a standard normal below x."""
    return 0.5 * math.erfc(-x * 0.7071067811865476)


@inlined
def cut_once(alpha: float, beta: float) -> tuple[float, float, float]:
    """Cuts like `cut` where the mean is inside and only one bound is near."""
    near, side = (-alpha, 1.0) if beta > -alpha else (beta, -1.0)
    inside = normal_below(near)
    ratio = math.exp(-0.5 * near * near) * 0.3989422804014327 / inside
    return math.log(inside), side * ratio, ratio * (ratio + near)


@inlined
def cut(alpha: float, beta: float) -> tuple[float, float, float]:
    """Cuts a standard normal: log P(alpha < x < beta), mean, and how much the variance shrinks."""
    far = max(alpha, -beta)
    if far > _FAR:
        edge = far if alpha > 0.0 else -far
        log_tail = -0.5 * far * far - math.log(far * 2.5066282746310002)
        return log_tail, edge + 1.0 / edge, 1.0 - 1.0 / (far * far)
    if alpha < 0.0 < beta and max(-alpha, beta) > _CERTAIN + 1.0:
        return cut_once(alpha, beta)
    alpha, beta = max(alpha, -_FAR), min(beta, _FAR)
    upper, lower = (-alpha, -beta) if alpha + beta > 0.0 else (beta, alpha)
    inside = normal_below(upper)
    if lower > -_CERTAIN - 1.0:
        inside -= normal_below(lower)
    inside = max(inside, _LEAST)
    phi_a = math.exp(-0.5 * alpha * alpha) * 0.3989422804014327
    phi_b = math.exp(-0.5 * beta * beta) * 0.3989422804014327
    shift = (phi_a - phi_b) / inside
    shrink = shift * shift - (alpha * phi_a - beta * phi_b) / inside
    return math.log(inside), shift, min(shrink, 1.0)


@inlined
def map_forms(
    forms: Array, at: tuple[int, int], mean: Array, covariance: Array, means: Array, cov: Array
) -> None:
    """Computes means and covariances of linear forms of the Gaussian of an event."""
    n, a = at
    for i in range(len(forms)):
        means[i] = 0.0
        for p in range(forms.shape[1]):
            means[i] += forms[i, p] * mean[n, a, p]
            column = 0.0  # of the products of form and covariance
            for q in range(forms.shape[1]):
                column += forms[i, q] * covariance[n, a, q, p]
            for j in range(i, len(forms)):
                entry = column * forms[j, p]
                cov[j, i] = entry if p == 0 else cov[j, i] + entry
        for j in range(i, len(forms)):
            cov[i, j] = cov[j, i]


@inlined
def sweep(means: Array, cov: Array, bounds: Array) -> float:
    """Puts one bound after the other on the forms, and returns the log probability of all."""
    total, n_forms = 0.0, len(means)
    for k in range(len(bounds)):
        sigma = math.sqrt(max(cov[k, k], 1e-6))
        alpha, beta = (bounds[k, 0] - means[k]) / sigma, (bounds[k, 1] - means[k]) / sigma
        if alpha < -_CERTAIN and beta > _CERTAIN:
            continue
        log_inside, shift, shrink = cut(alpha, beta)
        total += log_inside
        for i in range(k + 1, n_forms):
            ratio = cov[i, k] / sigma
            means[i] += ratio * shift
            for j in range(i, n_forms):
                cov[i, j] -= ratio * cov[j, k] / sigma * shrink
                cov[j, i] = cov[i, j]
    return total


@compiled
def restrict(
    log_weight: Array,
    mean: Array,
    covariance: Array,
    forms: Array,
    bounds: Array,
    log_inside: Array,
    image_mean: Array,
    image_variance: Array,
) -> None:
    """Restricts all components, see `massrecon.kinematics.mixture_algebra.truncated`.

    Args:
        log_weight: Components of -inf are left out ``(N, A)``.
        mean: ``(N, A, M)``.
        covariance: ``(N, A, M, M)``.
        forms: Coefficients of the conditions, and last of the image ``(rows + 1, M)``.
        bounds: Bounds of the conditions ``(rows, 2)``.
        log_inside: Log of the probability of the conditions ``(N, A)``.
        image_mean: Mean of the image under them ``(N, A)``.
        image_variance: Its variance ``(N, A)``.
    """
    last = len(forms) - 1
    means, cov = np.empty(last + 1), np.empty((last + 1, last + 1))
    for n in range(len(mean)):
        for a in range(mean.shape[1]):
            if log_weight[n, a] == -np.inf:
                continue
            map_forms(forms, (n, a), mean, covariance, means, cov)
            log_inside[n, a] = sweep(means, cov, bounds)
            image_mean[n, a], image_variance[n, a] = means[last], cov[last, last]


@compiled
def add_gaussians(
    height: Array, mean: Array, width: Array, first: float, step: float, out: Array
) -> None:
    """Adds Gaussians ``(N, A)`` on an even grid ``(N, G)``, by recurrence over its points."""
    n_points = out.shape[1]
    for n in range(len(mean)):
        for a in range(mean.shape[1]):
            if height[n, a] == 0.0:
                continue
            x = (first - mean[n, a]) / width[n, a]
            h = step / width[n, a]
            start = max(0, math.ceil((-_REACH - x) / h))
            stop = min(n_points, math.floor((_REACH - x) / h) + 1)
            x += start * h
            value = height[n, a] * math.exp(-0.5 * x * x)
            ratio = math.exp(-h * (x + 0.5 * h))
            factor = math.exp(-h * h)
            for g in range(start, stop):
                out[n, g] += value
                value *= ratio
                ratio *= factor
