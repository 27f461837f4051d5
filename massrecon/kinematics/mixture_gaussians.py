"""Many Gaussians compiled: cut to a region, added up on a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from massrecon.kinematics.backends import compiled, fused
from massrecon.kinematics.mixture_linear import invert
from massrecon.kinematics.vector_math import exp, log, tail
from massrecon.kinematics.vector_rows import rounded

Array = np.ndarray
_FAR = 25.0  # as in mixture_algebra
_FARTHEST = 36.0  # as in mixture_algebra
_LEAST = 1e-300
_CERTAIN = 6.0  # standard deviations: the bound does not matter
_LANES = 64  # components at a time
_REACH = 6.0  # standard deviations: a Gaussian ends here on a grid
EDGE = -300.0
"""Log of the part inside below which a Gaussian counts as its edge."""


class Stage(NamedTuple):
    """Up to `_LANES` components of an event, number by number beside each other.

    Attributes:
        component: Which they are, ``(lanes,)``.
        given: Means, then covariances, ``(M + M M, lanes)``.
        mean: Of the linear forms, ``(F, lanes)``.
        covariance: Of the linear forms, ``(F F, lanes)``.
        cut: What one bound does, four rows: log of the probability, change of the mean and of the
            variance over the width, and sums of the logs, ``(4 lanes,)``.
        near: Lanes that a bound matters to, ``(lanes,)``.
        packed: Their means and variances, and what the bound does, ``(5 lanes,)``.
    """

    component: Array
    given: Array
    mean: Array
    covariance: Array
    cut: Array
    near: Array
    packed: Array


@fused
def cut_all(given: Array, low: float, high: float, n: int) -> None:
    """Fills rows 2 to 4 of `given` with what two bounds do to the Gaussians of the first two.

    Where both bounds are on one side by more than `_FAR` standard deviations, the leading terms in
    1 / distance are taken.
    """
    for a in range(n):
        inverse = 1.0 / math.sqrt(given[_LANES + a])
        alpha, beta = (low - given[a]) * inverse, (high - given[a]) * inverse
        far = max(max(alpha, -beta), 1.0)
        is_far = far > _FAR
        from_far = 1.0 / far
        edge = far + from_far if alpha > 0.0 else -far - from_far
        alpha, beta = min(max(alpha, -_FARTHEST), _FARTHEST), min(max(beta, -_FARTHEST), _FARTHEST)
        at_a, at_b = exp(-0.5 * alpha * alpha), exp(-0.5 * beta * beta)
        tail_a, tail_b = at_a * tail(alpha), at_b * tail(beta)
        apart = (alpha < 0.0) & (beta > 0.0)
        inside = max(1.0 - tail_a - tail_b if apart else abs(tail_a - tail_b), _LEAST)
        per = 0.3989422804014327 / inside
        shift = (at_a - at_b) * per
        shrink = min(shift * shift - (alpha * at_a - beta * at_b) * per, 1.0)
        log_inside = log(far * 2.5066282746310002 if is_far else inside)
        log_inside = -0.5 * far * far - log_inside if is_far else log_inside
        shift, shrink = edge if is_far else shift, 1.0 - from_far * from_far if is_far else shrink
        given[2 * _LANES + a] = log_inside
        given[3 * _LANES + a] = shift * inverse
        given[4 * _LANES + a] = shrink * inverse * inverse


@fused
def cut_near(mean: Array, variance: Array, bound: Array, stage: Stage, n: int) -> None:
    """Cuts n Gaussians, as `cut_all`, into the first three rows of `Stage.cut`.

    Those whose bounds are more than `_CERTAIN` standard deviations away are left as they are.
    """
    low, high, count, cut, packed = bound[0], bound[1], 0, stage.cut, stage.packed
    for a in range(n):
        cut[a] = cut[_LANES + a] = cut[2 * _LANES + a] = 0.0
        inside, square = min(mean[a] - low, high - mean[a]), max(variance[a], 1e-6)
        stage.near[count] = a
        packed[count], packed[_LANES + count] = mean[a], square
        count += 0 if (inside > 0.0) & (inside * inside > _CERTAIN * _CERTAIN * square) else 1
    cut_all(packed, low, high, rounded(count))
    for t in range(count):
        a = stage.near[t]
        for x in range(0, 3 * _LANES, _LANES):
            cut[x + a] = packed[2 * _LANES + x + t]


@fused
def add_row(to: Array, row: Array, factor: float, n: int) -> None:
    """Adds a multiple of one row to another."""
    for a in range(n):
        to[a] += factor * row[a]


@fused
def add_product(to: Array, one: Array, other: Array, n: int) -> None:
    """Adds the product of two rows to a third."""
    for a in range(n):
        to[a] += one[a] * other[a]


@fused
def take_product(to: Array, one: Array, other: Array, factor: Array, n: int) -> None:
    """Takes the product of three rows from a fourth."""
    for a in range(n):
        to[a] -= one[a] * other[a] * factor[a]


@fused
def map_forms(forms: Array, stage: Stage, n: int) -> None:
    """Computes means and covariances of linear forms of n Gaussians."""
    n_forms, m = forms.shape
    for i in range(n_forms):
        stage.mean[i, :n] = 0.0
        for p in range(m):
            if forms[i, p] != 0.0:
                add_row(stage.mean[i], stage.given[p], forms[i, p], n)
        for j in range(i + 1):
            entry = stage.covariance[i * n_forms + j]
            entry[:n] = 0.0
            for p in range(m):
                for q in range(m):
                    factor = forms[i, p] * forms[j, q]
                    if factor != 0.0:
                        add_row(entry, stage.given[m + p * m + q], factor, n)


@fused
def sweep(stage: Stage, bounds: Array, n: int) -> None:
    """Puts one bound after the other on the forms, and adds up the logs of the probability."""
    n_forms, cut, covariance = len(stage.mean), stage.cut, stage.covariance
    total = cut[3 * _LANES :]
    total[:] = 0.0
    for k in range(len(bounds)):
        own = covariance[k * n_forms + k]
        cut_near(stage.mean[k], own, bounds[k], stage, n)
        add_row(total, cut, 1.0, n)
        for i in range(k + 1, n_forms):
            by = covariance[i * n_forms + k]
            add_product(stage.mean[i], by, cut[_LANES:], n)
            for j in range(k + 1, i + 1):
                other = covariance[j * n_forms + k]
                take_product(covariance[i * n_forms + j], by, other, cut[2 * _LANES :], n)


@fused
def fill_stage(stage: Stage, lane: int, a: int, mean: Array, covariance: Array) -> None:
    """Puts one component, of means ``(A, M)`` and covariances ``(A, M, M)``, in a lane."""
    m = mean.shape[1]
    stage.component[lane] = a
    for p in range(m):
        stage.given[p, lane] = mean[a, p]
        for q in range(m):
            stage.given[m + p * m + q, lane] = covariance[a, p, q]


@compiled
def restrict(
    log_weight: Array, mean: Array, covariance: Array, forms: Array, bounds: Array, found: Array
) -> None:
    """Restricts all components, see `massrecon.kinematics.mixture_algebra.truncated`.

    Args:
        log_weight: Components of -inf are left out ``(N, A)``.
        mean: ``(N, A, M)``.
        covariance: ``(N, A, M, M)``.
        forms: Coefficients of the conditions ``(rows, M)``.
        bounds: Their bounds ``(rows, 2)``.
        found: Log of the probability of all conditions but the last; mean and variance of its form
            under these; log of its own probability then, ``(4, N, A)``.
    """
    (n_forms, m), n_components = forms.shape, mean.shape[1]
    stage = Stage(
        np.empty(_LANES, np.int64),
        np.zeros((m + m * m, _LANES)),
        np.zeros((n_forms, _LANES)),
        np.zeros((n_forms * n_forms, _LANES)),
        np.empty(4 * _LANES),
        np.empty(_LANES, np.int64),
        np.zeros(5 * _LANES),
    )
    last = n_forms - 1
    mean_of_last, variance_of_last = stage.mean[last], stage.covariance[last * n_forms + last]
    for n in range(len(mean)):
        lane = 0
        for a in range(n_components):
            if log_weight[n, a] > -np.inf:
                fill_stage(stage, lane, a, mean[n], covariance[n])
                lane += 1
            if lane == _LANES or (lane > 0 and a == n_components - 1):
                map_forms(forms, stage, rounded(lane))
                sweep(stage, bounds[:last], lane)
                cut_near(mean_of_last, variance_of_last, bounds[last], stage, lane)
                for t in range(lane):
                    at = stage.component[t]
                    found[0, n, at] = stage.cut[3 * _LANES + t]
                    found[1, n, at] = mean_of_last[t]
                    found[2, n, at] = variance_of_last[t]
                    found[3, n, at] = stage.cut[t]
                lane = 0


@compiled
def add_up_components(
    weight: Array, mean: Array, covariance: Array, bounds: Array, centre: Array, precision: Array
) -> None:
    """Adds up the components of each event, for `Outlier.tails_around`.

    Args:
        weight: ``(N, A)``; components of zero are left out.
        mean: ``(N, A, M)``.
        covariance: ``(N, A, M, M)``.
        bounds: Lowest and highest of each mass, ``(2, M)``.
        centre: To it means moved into the bounds are added, ``(M, 1, N)``.
        precision: To it inverse covariances are added, ``(M, M, 1, N)``.
    """
    m = mean.shape[2]
    matrix = np.empty((m, m))
    for n in range(len(mean)):
        for a in range(mean.shape[1]):
            if weight[n, a] == 0.0:
                continue
            for p in range(m):
                x = min(max(mean[n, a, p], bounds[0, p]), bounds[1, p])
                centre[p, 0, n] += weight[n, a] * x
                for q in range(m):
                    matrix[p, q] = covariance[n, a, p, q]
            invert(matrix, m)
            for p in range(m):
                for q in range(m):
                    precision[p, q, 0, n] += weight[n, a] * matrix[p, q]


@fused
def start_all(x: Array, h: Array, value: Array, ratio: Array, factor: Array, n: int) -> None:
    """Starts n Gaussians at x standard deviations from their means, in steps of h of them.

    `value` is their log height at first. The next value follows from the last one and their ratio,
    which changes by a constant factor.
    """
    for a in range(n):
        value[a] = h[a] * exp(value[a] - 0.5 * x[a] * x[a])
        ratio[a] = exp(-h[a] * (x[a] + 0.5 * h[a]))
        factor[a] = exp(-h[a] * h[a])


@compiled
def add_gaussians(
    log_weight: Array,
    log_inside: Array,
    mean: Array,
    variance: Array,
    first: float,
    step: float,
    out: Array,
) -> None:
    """Adds Gaussians ``(N, A)`` on an even grid ``(N, G)``, by recurrence over its points.

    They have the weight of their parts inside, whose log is `log_inside`; those with less than
    `EDGE` there are left out.
    """
    n_points, n_components = out.shape[1], mean.shape[1]
    log_norm = -math.log(math.sqrt(2.0 * math.pi) * step)
    start, stop = np.empty((2, n_components), np.int64)
    x, h, value, ratio, factor = np.zeros((5, rounded(n_components)))
    for n in range(len(mean)):
        count = 0
        for a in range(n_components):
            inverse = 1.0 / math.sqrt(variance[n, a])
            at, by = (first - mean[n, a]) * inverse, step * inverse
            begin = max(0, math.ceil((-_REACH - at) / by))
            end = min(n_points, math.floor((_REACH - at) / by) + 1)
            there = (log_inside[n, a] > EDGE) & (log_weight[n, a] > -np.inf)
            start[count], stop[count], x[count], h[count] = begin, end, at + begin * by, by
            value[count] = log_weight[n, a] - log_inside[n, a] + log_norm
            count += 1 if (begin < end) & there else 0
        start_all(x, h, value, ratio, factor, rounded(count))
        for a in range(count):
            v, r, f = value[a], ratio[a], factor[a]
            for g in range(start[a], stop[a]):
                out[n, g] += v
                v *= r
                r *= f
