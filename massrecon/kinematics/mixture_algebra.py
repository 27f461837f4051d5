"""Closed forms for many small Gaussians at once.

A symmetric matrix is a nested list of tensors of one shape, one tensor for each entry, so that
every step is one vectorised operation over all Gaussians; their size is one to about five.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Matrix = list[list[Tensor]]
_FAR = 25.0  # standard deviations outside a bound from which the tail is an exponential
_FARTHEST = 36.0  # beyond it probabilities are no normal numbers
_INFINITE = 1e7  # a bound that is not there
_LEAST = 1e-300


def invert(matrix: Sequence[Sequence[Tensor]]) -> tuple[Matrix, Tensor]:
    """Inverts symmetric positive matrices; returns the inverse and log(det) of the matrix.

    Each pivot is swept in turn, J. Goodnight, Am. Stat. 33 (1979) 149.
    """
    a = [list(row) for row in matrix]
    size = len(a)
    log_det = torch.zeros_like(a[0][0])
    for k in range(size):
        pivot = a[k][k]
        log_det = log_det + pivot.log()
        inverse = pivot.reciprocal()
        column = [a[i][k] for i in range(size)]
        for i in range(size):
            if i == k:
                continue
            ratio = column[i] * inverse
            for j in range(i, size):
                if j != k:
                    a[i][j] = a[j][i] = a[i][j] - ratio * column[j]
            a[i][k] = a[k][i] = ratio
        a[k][k] = -inverse
    return [[-entry for entry in row] for row in a], log_det


def times(matrix: Matrix, vector: Sequence[Tensor]) -> list[Tensor]:
    """Multiplies matrices with vectors."""
    return [sum_of(entry * x for entry, x in zip(row, vector, strict=True)) for row in matrix]


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Multiplies vectors with vectors."""
    return sum_of(x * y for x, y in zip(one, other, strict=True))


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Adds up tensors."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


def packed(matrix: Matrix) -> list[Tensor]:
    """Lists the entries on and above the diagonal, row by row."""
    return [matrix[i][j] for i in range(len(matrix)) for j in range(i, len(matrix))]


def unpacked(entries: Sequence[Tensor], size: int) -> Matrix:
    """Makes a symmetric matrix of what `packed` lists."""
    rows = iter(entries)
    matrix: Matrix = [[entries[0]] * size for _ in range(size)]
    for i in range(size):
        for j in range(i, size):
            matrix[i][j] = matrix[j][i] = next(rows)
    return matrix


def log_normal_density(
    x: Sequence[Tensor], mean: Sequence[Tensor], precision: Matrix, log_det_precision: Tensor
) -> Tensor:
    """Computes the log density of Gaussians at points."""
    off = [a - b for a, b in zip(x, mean, strict=True)]
    distance = dot(off, times(precision, off))
    return 0.5 * (log_det_precision - distance - len(mean) * math.log(2 * math.pi))


Row = tuple[Sequence[float], float, float]


def log_probability(mean: Sequence[Tensor], covariance: Matrix, rows: Sequence[Row]) -> Tensor:
    """Computes log P(low <= row . x <= high for all rows) of Gaussians; see `truncated`."""
    return _sweep(mean, covariance, rows, [])[0]


def truncated(
    mean: Sequence[Tensor],
    covariance: Matrix,
    rows: Sequence[Row],
    images: Sequence[Sequence[float]],
) -> tuple[Tensor, list[Tensor], Matrix]:
    """Restricts Gaussians to low <= row . x <= high for all rows.

    The rows are taken one by one; after each the others are given the mean and covariance that they
    have under this condition, as if they were still Gaussian. Exact for one row, and for several
    if they are uncorrelated; else good to about 1 %.

    Args:
        mean: Means.
        covariance: Covariances.
        rows: Coefficients of a linear form and its bounds, which may be infinite.
        images: Coefficients of linear forms whose moments are wanted.

    Returns:
        Log of the probability of the restriction, and means and covariances of the images under it.

    References:
        N. R. Mendell and R. C. Elston, Biometrics 30 (1974) 41.
    """
    log_p, means, cov = _sweep(mean, covariance, rows, images)
    n = len(rows)
    return log_p, means[n:], [row[n:] for row in cov[n:]]


def _sweep(
    mean: Sequence[Tensor],
    covariance: Matrix,
    rows: Sequence[Row],
    images: Sequence[Sequence[float]],
) -> tuple[Tensor, list[Tensor], Matrix]:
    forms = [row for row, _, _ in rows] + list(images)
    means = [_combine(form, mean) for form in forms]
    halves = [[_combine(form, column) for column in covariance] for form in forms]
    cov = [[_combine(form, half) for form in forms] for half in halves]
    total = torch.zeros_like(mean[0])
    for k, (_, low, high) in enumerate(rows):
        sigma = cov[k][k].clamp_min(1e-6).sqrt()
        log_inside, shift, shrink = _cut(*(_standardised(x, means[k], sigma) for x in (low, high)))
        total = total + log_inside
        for i in range(k + 1, len(forms)):
            ratio = cov[i][k] / sigma
            means[i] = means[i] + ratio * shift
            for j in range(i, len(forms)):
                cov[i][j] = cov[j][i] = cov[i][j] - ratio * cov[j][k] / sigma * shrink
    return total, means, cov


def _combine(row: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    terms = [v if c == 1 else c * v for c, v in zip(row, values, strict=True) if c]
    return sum_of(terms)


def _standardised(bound: float, mean: Tensor, sigma: Tensor) -> Tensor:
    return ((math.copysign(_INFINITE, bound) if math.isinf(bound) else bound) - mean) / sigma


def _cut(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts a standard normal: log P(alpha < x < beta), mean, and by how much the variance shrinks.

    Far outside the leading terms in 1 / distance are taken.
    """
    far = torch.maximum(alpha, -beta)
    is_far = far > _FAR
    distance = far.clamp_min(_FAR)
    a, b = alpha.clamp(-_FARTHEST, _FARTHEST), beta.clamp(-_FARTHEST, _FARTHEST)
    inside, phi_a, phi_b = _between(a, b), _density(a), _density(b)
    log_tail = -0.5 * distance * distance - (distance * math.sqrt(2 * math.pi)).log()
    shift = (phi_a - phi_b) / inside
    shrink = shift * shift - (a * phi_a - b * phi_b) / inside
    edge = torch.where(alpha > 0, distance, -distance)
    return (
        torch.where(is_far, log_tail, inside.log()),
        torch.where(is_far, edge + 1 / edge, shift),
        torch.where(is_far, 1 - 1 / (distance * distance), shrink.clamp(max=1.0)),
    )


def normal_below(x: Tensor) -> Tensor:
    """Returns the probability of a standard normal below x, accurate far below zero."""
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def _between(alpha: Tensor, beta: Tensor) -> Tensor:
    """Returns P(alpha < x < beta) of a standard normal, accurate in both tails."""
    mirrored = alpha + beta > 0
    upper = torch.where(mirrored, -alpha, beta)
    lower = torch.where(mirrored, -beta, alpha)
    return (normal_below(upper) - normal_below(lower)).clamp_min(_LEAST)


def _density(x: Tensor) -> Tensor:
    return (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)
