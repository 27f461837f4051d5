"""Sums over hypotheses, compiled: the information of chains added up, and the largest kept.

A first pass scores all hypotheses for a block of events, whose numbers stand beside each other, see
`massrecon.kinematics.vector_rows`; those that count for an event are computed again and kept. Those
of them that are not among the largest are merged into one Gaussian of their moments: no weight gets
lost with them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from massrecon.kinematics import vector_rows
from massrecon.kinematics.backends import compiled, fused, inlined, summed
from massrecon.kinematics.mixture_linear import invert
from massrecon.kinematics.vector_math import exp, log, single_log
from massrecon.kinematics.vector_rows import LANES

Array = np.ndarray
_BISECTIONS = 60  # equal scores are then the same to the last bit


class Choice(NamedTuple):
    """What is kept.

    Attributes:
        origin: What masses are counted from, ``(M,)``.
        bounds: Lowest and highest of each mass, counted from there, ``(2 M,)``.
        power: Power of the weights, 1 / temperature.
        least: Log of the least weight that counts, relative to the largest.
        kept: Number of Gaussians for each event, of which the last may be a merged one.
    """

    origin: Array
    bounds: Array
    power: float
    least: float
    kept: int


class Sum(NamedTuple):
    """A hypothesis of a block of events or a block of those of one event, and those that count.

    Attributes:
        total: Sums of the information, E rows.
        part: Sums over all chains but the last, likewise.
        block: Log weights, means and covariances, 1 + M + M M rows.
        mean: ``(M,)``.
        covariance: ``(M, M)``.
        scores: Of all hypotheses for a block of events: log weight less half the squared distance
            from the region, A rows.
        best: Largest of them, a row; then the least that counts.
        count: Number of hypotheses that count for each event, a row.
        found: Their numbers, ``(lanes, A + 1)``.
        found_scores: For one event their scores, ``(A,)``.
        gaussians: Their log weights, means and covariances, ``(1 + M + M M, A)``.
        weight: Weights of those that are merged, zero for the others, ``(A,)``.
    """

    total: Array
    part: Array
    block: Array
    mean: Array
    covariance: Array
    scores: Array
    best: Array
    count: Array
    found: Array
    found_scores: Array
    gaussians: Array
    weight: Array


class Results(NamedTuple):
    """Where the Gaussians of N events go.

    Attributes:
        log_weight: ``(N, at least kept)``.
        mean: ``(N, at least kept, M)``.
        covariance: ``(N, at least kept, M, M)``.
    """

    log_weight: Array
    mean: Array
    covariance: Array


@fused
def gaussians_of_one(total: Array, power: float, block: Array, n: int) -> None:
    """Computes log weights, means and covariances of n hypotheses for a single mass."""
    for t in range(n):
        inverse, u = 1.0 / total[t], total[LANES + t]
        mean = u * inverse
        block[t] = power * (total[2 * LANES + t] + 0.5 * (u * mean + log(inverse)))
        block[LANES + t] = mean
        block[2 * LANES + t] = inverse


@fused
def gaussians_of_two(total: Array, power: float, block: Array, n: int) -> None:
    """Computes log weights, means and covariances of n hypotheses for two masses."""
    for t in range(n):
        p, q, o = total[t], total[LANES + t], total[2 * LANES + t]
        u, v = total[3 * LANES + t], total[4 * LANES + t]
        inverse = 1.0 / (p * o - q * q)
        x, y = (o * u - q * v) * inverse, (p * v - q * u) * inverse
        distance = u * x + v * y + log(inverse)
        block[t] = power * (total[5 * LANES + t] + 0.5 * distance)
        block[LANES + t] = x
        block[2 * LANES + t] = y
        block[3 * LANES + t] = o * inverse
        block[4 * LANES + t] = -q * inverse
        block[5 * LANES + t] = -q * inverse
        block[6 * LANES + t] = p * inverse


@inlined
def gaussians_of_many(to: Sum, power: float, n: int) -> None:
    """Computes log weights, means and covariances of n hypotheses for any number of masses."""
    m, total, block = len(to.mean), to.total, to.block
    vector = m * (m + 1) // 2
    for t in range(n):
        at = t
        for p in range(m):
            for q in range(p, m):
                to.covariance[p, q] = to.covariance[q, p] = total[at]
                at += LANES
        distance = -invert(to.covariance, m)
        for p in range(m):
            mean = 0.0
            for q in range(m):
                entry = to.covariance[p, q]
                mean += entry * total[(vector + q) * LANES + t]
                block[(1 + m + p * m + q) * LANES + t] = entry
            distance += mean * total[(vector + p) * LANES + t]
            block[(1 + p) * LANES + t] = mean
        block[t] = power * (total[(vector + m) * LANES + t] + 0.5 * distance)


@fused
def compute(choice: Choice, to: Sum, n: int) -> None:
    """Turns the sums of information into n Gaussians."""
    if len(to.mean) == 1:
        gaussians_of_one(to.total, choice.power, to.block, n)
    elif len(to.mean) == 2:
        gaussians_of_two(to.total, choice.power, to.block, n)
    else:
        gaussians_of_many(to, choice.power, n)


@fused
def fill_score(score: Array, block: Array, bounds: Array, n: int) -> None:
    """Fills scores: log weights, less half the squared distances from the region."""
    m = len(bounds) // 2
    vector_rows.copy(score, block, n)
    for p in range(m):
        mean, variance = block[(1 + p) * LANES :], block[(1 + m + p * m + p) * LANES :]
        low, high = bounds[2 * p], bounds[2 * p + 1]
        for t in range(n):
            d = max(max(low - mean[t], mean[t] - high), 0.0)
            score[t] -= 0.5 * d * d / variance[t]


@fused
def score_one(score: Array, one: Array, other: Array, choice: Choice, n: int) -> None:
    """Fills scores for a single mass, with `compute` and `fill_score` in one step."""
    power, low, high = choice.power, choice.bounds[0], choice.bounds[1]
    for t in range(n):
        p, u = one[t] + other[t], one[LANES + t] + other[LANES + t]
        log_weight = one[2 * LANES + t] + other[2 * LANES + t]
        mean = u / p
        d = max(max(low - mean, mean - high), 0.0)
        distance = u * mean - single_log(np.float32(p))
        found = power * (log_weight + 0.5 * distance) - 0.5 * d * d * p
        score[t] = found if p > 0.0 else -math.inf


@fused
def score_two(score: Array, one: Array, other: Array, choice: Choice, n: int) -> None:
    """Fills scores for two masses, with `compute` and `fill_score` in one step."""
    power, (low, high) = choice.power, (choice.bounds[0], choice.bounds[1])
    low_other, high_other = choice.bounds[2], choice.bounds[3]
    for t in range(n):
        p, q = one[t] + other[t], one[LANES + t] + other[LANES + t]
        o, u = one[2 * LANES + t] + other[2 * LANES + t], one[3 * LANES + t] + other[3 * LANES + t]
        v = one[4 * LANES + t] + other[4 * LANES + t]
        log_weight = one[5 * LANES + t] + other[5 * LANES + t]
        det = p * o - q * q
        inverse = 1.0 / det
        x, y = (o * u - q * v) * inverse, (p * v - q * u) * inverse
        distance = u * x + v * y - single_log(np.float32(det))
        d, e = max(max(low - x, x - high), 0.0), max(max(low_other - y, y - high_other), 0.0)
        outside = np.float32(d * d * det) / np.float32(o) + np.float32(e * e * det) / np.float32(p)
        found = power * (log_weight + 0.5 * distance) - 0.5 * outside
        score[t] = found if det > 0.0 else -math.inf


@fused
def fill_scores(score: Array, one: Array, other: Array, choice: Choice, to: Sum, n: int) -> None:
    """Fills the scores of n hypotheses from two parts of their sums.

    The logarithm is in single precision for one or two masses.
    """
    if len(to.mean) == 1:
        score_one(score, one, other, choice, n)
    elif len(to.mean) == 2:
        score_two(score, one, other, choice, n)
    else:
        vector_rows.copy(to.total, one, len(to.total))
        vector_rows.add(to.total, other, 1.0, len(to.total))
        compute(choice, to, n)
        fill_score(score, to.block, choice.bounds, n)


@fused
def take_larger(best: Array, score: Array, n: int) -> None:
    """Keeps the larger of two numbers, and the first where the second is no number."""
    for t in range(n):
        best[t] = score[t] if score[t] > best[t] else best[t]


@fused
def score_all(information: Array, rows: Array, choice: Choice, to: Sum, n: int) -> None:
    """Scores all hypotheses for a block of n events."""
    vector_rows.fill(to.best, -np.inf, n)
    last = len(rows) - 1
    for a in range(rows.shape[1]):
        score, other = to.scores[a * LANES :], information[rows[last, a]]
        if last == 1:
            fill_scores(score, information[rows[0, a]], other, choice, to, n)
        else:
            vector_rows.fill(to.part, 0.0, len(to.part))
            for s in range(last):
                vector_rows.add(to.part, information[rows[s, a]], 1.0, len(to.part))
            fill_scores(score, to.part, other, choice, to, n)
        take_larger(to.best, score, n)


@fused
def gather(information: Array, rows: Array, event: int, found: Array, n: int, total: Array) -> None:
    """Adds up the chains for n hypotheses of an event."""
    for t in range(n):
        one = information[rows[0, found[t]], event:]
        for x in range(0, len(total), LANES):
            total[x + t] = one[x]
        for s in range(1, len(rows)):
            one = information[rows[s, found[t]], event:]
            for x in range(0, len(total), LANES):
                total[x + t] += one[x]


@fused
def find(choice: Choice, to: Sum, n_hypotheses: int, n: int) -> None:
    """Lists the hypotheses that count for each of n events of a block, and counts them."""
    for t in range(n):
        to.count[t] = 0
        to.best[t] += choice.least
    for a in range(n_hypotheses):
        for t in range(n):
            count = to.count[t]
            to.found[t, count] = a
            # not where a score is no number
            to.count[t] = count + (1 if to.scores[a * LANES + t] > to.best[t] else 0)


@fused
def look_closer(information: Array, rows: Array, event: int, choice: Choice, to: Sum) -> None:
    """Computes the hypotheses that count for an event of a block, and their scores."""
    count, found = to.count[event], to.found[event]
    for first in range(0, count, LANES):
        n = min(LANES, count - first)
        gather(information, rows, event, found[first:], n, to.total)
        compute(choice, to, vector_rows.rounded(n))  # what comes beyond n is not looked at
        fill_score(to.found_scores[first:], to.block, choice.bounds, n)
        for x in range(len(to.gaussians)):
            vector_rows.copy(to.gaussians[x, first:], to.block[x * LANES :], n)


@summed
def count_above(values: Array, limit: float, n: int) -> int:
    """Counts the values above a limit."""
    count = 0
    for k in range(n):
        count += 1 if values[k] > limit else 0
    return count


@inlined
def limit_of_largest(values: Array, n: int, number: int) -> float:
    """Returns a limit below `number` of n values and above the others, by bisection.

    Where equal values are in the way, more of them lie above it.
    """
    low, high = values[0], values[0]
    for k in range(n):
        low, high = min(low, values[k]), max(high, values[k])
    low -= 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = count_above(values, middle, n)
        if above == number:
            return middle
        if above > number:
            low = middle
        else:
            high = middle
    return low


@inlined
def keep(to: Sum, choice: Choice, k: int, at: tuple, into: Results) -> None:
    """Writes hypothesis `k` of those found as component `at[1]` of row `at[0]`."""
    row, i = at
    m = len(choice.origin)
    into.log_weight[row, i] = to.gaussians[0, k]
    for p in range(m):
        into.mean[row, i, p] = to.gaussians[1 + p, k] + choice.origin[p]
        for q in range(m):
            into.covariance[row, i, p, q] = to.gaussians[1 + m + m * p + q, k]


@fused
def fill_weights(scores: Array, limit: float, weight: Array, n: int) -> None:
    """Computes the weights of n hypotheses relative to the log weight `limit`."""
    for k in range(n):
        weight[k] = exp(scores[k] - limit)


@summed
def total_of(weight: Array, n: int) -> float:
    """Adds up n weights."""
    total = 0.0
    for k in range(n):
        total += weight[k]
    return total


@summed
def add_moments(to: Sum, choice: Choice, p: int, n: int) -> None:
    """Adds up the moments of n hypotheses in mass p, with their means moved into the bounds."""
    m, first = len(choice.origin), 0.0
    low, high = choice.bounds[2 * p], choice.bounds[2 * p + 1]
    for k in range(n):
        first += to.weight[k] * min(max(to.gaussians[1 + p, k], low), high)
    to.mean[p] = first
    for q in range(p, m):
        low_other, high_other, second = choice.bounds[2 * q], choice.bounds[2 * q + 1], 0.0
        for k in range(n):
            x = min(max(to.gaussians[1 + p, k], low), high)
            y = min(max(to.gaussians[1 + q, k], low_other), high_other)
            second += to.weight[k] * (to.gaussians[1 + m + m * p + q, k] + x * y)
        to.covariance[p, q] = second


@inlined
def merge(to: Sum, choice: Choice, row: int, found: int, into: Results) -> None:
    """Writes the moments of the hypotheses that have a weight into the last component of a row."""
    last, total, m = choice.kept - 1, total_of(to.weight, found), len(choice.origin)
    for p in range(m):
        add_moments(to, choice, p, found)
        to.mean[p] /= total
        into.mean[row, last, p] = to.mean[p] + choice.origin[p]
    into.log_weight[row, last] += math.log(total)
    for p in range(m):
        for q in range(p, m):
            entry = to.covariance[p, q] / total - to.mean[p] * to.mean[q]
            into.covariance[row, last, p, q] = into.covariance[row, last, q, p] = entry


@inlined
def keep_largest(to: Sum, choice: Choice, event: int, row: int, into: Results, own: Array) -> None:
    """Writes the largest of the hypotheses found into a row, and in the last place all others."""
    alone, last, limit, i, best = choice.kept, choice.kept - 1, -np.inf, 0, -1
    n, found = to.count[event], to.found[event]
    if n > choice.kept:
        alone = last
        limit = limit_of_largest(to.found_scores, n, alone)
        fill_weights(to.found_scores, limit, to.weight, n)
    for k in range(n):
        if to.found_scores[k] > limit and i < alone:
            keep(to, choice, k, (row, i), into)
            own[i] = found[k]
            to.weight[k] = 0.0
            i += 1
        elif best < 0 or to.found_scores[k] > to.found_scores[best]:
            best = k
    if best >= 0:
        into.log_weight[row, last] = limit
        own[last] = found[best]
        merge(to, choice, row, n, into)


@compiled
def sum_hypotheses(
    information: Array, rows: Array, choice: Choice, events: Array, into: Results, chosen: Array
) -> None:
    """Adds up the chains for all hypotheses of n events and keeps the largest.

    Args:
        information: Of all chains, one after the other ``(blocks, rows, E lanes)``.
        rows: Rows of the chains that belong together ``(S, A)``.
        choice: What is kept.
        events: Rows of the results, ``(n,)``.
        into: The results.
        chosen: Numbers of the hypotheses ``(n, kept)``; of a merged component the one of the
            largest weight.
    """
    m, n_hypotheses = len(choice.origin), rows.shape[1]
    size = 1 + m + m * m
    to = Sum(
        total=np.empty(information.shape[2]),
        part=np.empty(information.shape[2]),
        block=np.empty(size * LANES),
        mean=np.empty(m),
        covariance=np.empty((m, m)),
        scores=np.empty(n_hypotheses * LANES),
        best=np.empty(LANES),
        count=np.empty(LANES, np.int64),
        found=np.empty((LANES, n_hypotheses + 1), np.int64),
        found_scores=np.empty(n_hypotheses),
        gaussians=np.empty((size, n_hypotheses)),
        weight=np.empty(n_hypotheses),
    )
    for block in range(len(information)):
        first = block * LANES
        n = min(LANES, len(events) - first)
        score_all(information[block], rows, choice, to, vector_rows.rounded(n))
        find(choice, to, rows.shape[1], n)
        for t in range(n):
            look_closer(information[block], rows, t, choice, to)
            keep_largest(to, choice, t, events[first + t], into, chosen[first + t])
