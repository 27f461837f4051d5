"""Sums over hypotheses, compiled: the information of chains added up, and the largest kept.

The log weight of a hypothesis of precision P needs the logarithm of det P. Since P is a sum over
chains, det P is at least the largest determinant of one chain, so that a bound on the log weight
comes without a logarithm, in single precision, with a margin for its rounding; only hypotheses
whose bound is large enough are computed in full. Those of them that are not among the largest are
merged into one Gaussian of their moments: no weight gets lost with them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from massrecon.kinematics.backends import compiled, inlined
from massrecon.kinematics.mixture_linear import invert

Array = np.ndarray
_NEVER = -np.inf
_MARGIN = 0.1  # of a bound in single precision


class Hypotheses(NamedTuple):
    """Which rows of the chains belong together.

    Attributes:
        rows: Rows of each hypothesis, sorted by the first chain, ``(A, S)``.
        first: Row of the first chain of each group of hypotheses, ``(G,)``.
        ends: Where each group ends, ``(G,)``.
        second: Row of the second chain, contiguous, ``(A,)``; the first for a single chain.
    """

    rows: Array
    first: Array
    ends: Array
    second: Array


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
    """The sum of the information of one hypothesis, and the hypotheses that count.

    Attributes:
        total: Information, ``(E,)``.
        mean: ``(M,)``.
        covariance: ``(M, M)``.
        single: Information of the event in single precision ``(E + 1, rows)``, the last row being
            the log of the determinant of each precision.
        partner: The same of the second chain of a group of hypotheses, and last bounds on their
            scores, ``(E + 2, A)``.
        bounds: On the scores of all hypotheses, ``(A,)``.
        found: Numbers of the hypotheses that count, ``(A,)``.
        scores: Their scores, ``(A,)``.
        gaussians: Their means, then their covariances, ``(A, M + M M)``.
    """

    total: Array
    mean: Array
    covariance: Array
    single: Array
    partner: Array
    bounds: Array
    found: Array
    scores: Array
    gaussians: Array


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


@inlined
def combine_pair(information: Array, n: int, i: int, j: int, to: Sum) -> float:
    """Does what `combine` does for two chains and at most two masses."""
    if len(to.mean) == 1:
        inverse = 1.0 / (information[n, 0, i] + information[n, 0, j])
        u = information[n, 1, i] + information[n, 1, j]
        to.covariance[0, 0], to.mean[0] = inverse, u * inverse
        log_weight = information[n, 2, i] + information[n, 2, j]
        return log_weight + 0.5 * (u * u * inverse + math.log(inverse))
    p = information[n, 0, i] + information[n, 0, j]
    q = information[n, 1, i] + information[n, 1, j]
    o = information[n, 2, i] + information[n, 2, j]
    u = information[n, 3, i] + information[n, 3, j]
    v = information[n, 4, i] + information[n, 4, j]
    inverse = 1.0 / (p * o - q * q)
    x, y = (o * u - q * v) * inverse, (p * v - q * u) * inverse
    to.mean[0], to.mean[1] = x, y
    to.covariance[0, 0], to.covariance[1, 1] = o * inverse, p * inverse
    to.covariance[0, 1] = to.covariance[1, 0] = -q * inverse
    log_weight = information[n, 5, i] + information[n, 5, j]
    return log_weight + 0.5 * (u * x + v * y + math.log(inverse))


@inlined
def combine(information: Array, n: int, h: Hypotheses, a: int, to: Sum) -> float:
    """Adds up the chains of a hypothesis into mean and covariance; returns the log weight."""
    m, total = len(to.mean), to.total
    if m <= 2 and h.rows.shape[1] == 2:
        return combine_pair(information, n, h.rows[a, 0], h.rows[a, 1], to)
    for f in range(len(total)):
        total[f] = 0.0
        for s in range(h.rows.shape[1]):
            total[f] += information[n, f, h.rows[a, s]]
    if total[len(total) - 1] == _NEVER:
        return _NEVER
    at = 0
    for p in range(m):
        for q in range(p, m):
            to.covariance[p, q] = to.covariance[q, p] = total[at]
            at += 1
    log_det = invert(to.covariance, m)
    distance = 0.0
    for p in range(m):
        to.mean[p] = 0.0
        for q in range(m):
            to.mean[p] += to.covariance[p, q] * total[at + q]
        distance += to.mean[p] * total[at + p]
    return total[len(total) - 1] + 0.5 * (distance - log_det)


@inlined
def score(information: Array, n: int, h: Hypotheses, a: int, choice: Choice, to: Sum) -> float:
    """Returns the log weight of a hypothesis, less half the squared distance from the region."""
    found = choice.power * combine(information, n, h, a, to)
    for p in range(len(to.mean)):
        d = max(choice.bounds[2 * p] - to.mean[p], to.mean[p] - choice.bounds[2 * p + 1], 0.0)
        found -= 0.5 * d * d / to.covariance[p, p]
    return found


@inlined
def fill_single(information: Array, n: int, m: int, single: Array) -> None:
    """Copies the information of an event, with logs of determinants; low where singular."""
    last = len(single) - 1
    for f in range(last):
        for row in range(single.shape[1]):
            single[f, row] = information[n, f, row]
    for row in range(single.shape[1]):
        det = information[n, 0, row]
        if m == 2:
            det = det * information[n, 2, row] - information[n, 1, row] ** 2
        single[last, row] = math.log(det) if det > 1e-300 else -1e30


@inlined
def bound_one(to: Sum, choice: Choice, i: int, n: int) -> None:
    """Bounds the scores of a group of n hypotheses of two chains and one mass."""
    half, eighth, power = np.float32(0.5), np.float32(0.125), np.float32(choice.power)
    low, high = np.float32(choice.bounds[0]), np.float32(choice.bounds[1])
    p, u, w, log = to.single[0, i], to.single[1, i], to.single[2, i], to.single[3, i]
    for t in range(n):
        precision, vector = p + to.partner[0, t], u + to.partner[1, t]
        x = vector / precision
        least = half * (log + to.partner[3, t] + abs(log - to.partner[3, t]))
        d = abs(low - x) + abs(x - high) - (high - low)
        log_weight = w + to.partner[2, t] + half * (vector * x - least)
        to.partner[4, t] = power * log_weight - eighth * d * d * precision


@inlined
def bound_two(to: Sum, choice: Choice, i: int, n: int) -> None:
    """Bounds the scores of a group of n hypotheses of two chains and two masses."""
    half, eighth, power = np.float32(0.5), np.float32(0.125), np.float32(choice.power)
    low, high = np.float32(choice.bounds[0]), np.float32(choice.bounds[1])
    low_other, high_other = np.float32(choice.bounds[2]), np.float32(choice.bounds[3])
    a, b, c, log = to.single[0, i], to.single[1, i], to.single[2, i], to.single[6, i]
    s, r, w = to.single[3, i], to.single[4, i], to.single[5, i]
    for t in range(n):
        p, q, o = a + to.partner[0, t], b + to.partner[1, t], c + to.partner[2, t]
        u, v = s + to.partner[3, t], r + to.partner[4, t]
        det = p * o - q * q
        x, y = (o * u - q * v) / det, (p * v - q * u) / det
        least = half * (log + to.partner[6, t] + abs(log - to.partner[6, t]))
        d = abs(low - x) + abs(x - high) - (high - low)
        e = abs(low_other - y) + abs(y - high_other) - (high_other - low_other)
        log_weight = w + to.partner[5, t] + half * (u * x + v * y - least)
        to.partner[7, t] = power * log_weight - eighth * (d * d / o + e * e / p) * det


@inlined
def bound_group(h: Hypotheses, choice: Choice, to: Sum, group: tuple, best: int) -> int:
    """Bounds the scores of the hypotheses with row i of the first chain.

    Their rows of the second chain are copied first, so that the arithmetic is on neighbours.
    Returns the number of the largest bound so far.
    """
    i, start, end = group
    last = len(to.single)
    for f in range(last):
        for t in range(end - start):
            to.partner[f, t] = to.single[f, h.second[start + t]]
    if len(choice.origin) == 1:
        bound_one(to, choice, i, end - start)
    else:
        bound_two(to, choice, i, end - start)
    for t in range(end - start):
        to.bounds[start + t] = to.partner[last, t]
        if to.bounds[start + t] > to.bounds[best]:
            best = start + t
    return best


@inlined
def fill_bounds(information: Array, n: int, h: Hypotheses, choice: Choice, to: Sum) -> int:
    """Fills bounds on the scores of all hypotheses; returns the number of the largest one."""
    m, start, last, best = len(choice.origin), 0, information.shape[1] - 1, 0
    bounded = m <= 2 and h.rows.shape[1] == 2
    to.bounds[0] = _NEVER
    if bounded:
        fill_single(information, n, m, to.single)
    for g in range(len(h.first)):
        i, end = h.first[g], h.ends[g]
        if information[n, last, i] > _NEVER and bounded:
            best = bound_group(h, choice, to, (i, start, end), best)
        else:
            for t in range(start, end):
                to.bounds[t] = score(information, n, h, t, choice, to)
                if to.bounds[t] > to.bounds[best]:
                    best = t
        start = end
    return best


@inlined
def find(information: Array, n: int, h: Hypotheses, choice: Choice, to: Sum) -> int:
    """Lists the hypotheses that count, with scores and Gaussians; returns their number."""
    m, found = len(to.mean), 0
    best = score(information, n, h, fill_bounds(information, n, h, choice, to), choice, to)
    for t in range(len(to.bounds)):
        # not a comparison the other way round: a bound that is no number does not hold
        if to.bounds[t] < best + choice.least - _MARGIN:
            continue
        to.scores[found] = score(information, n, h, t, choice, to)
        if to.scores[found] > best + choice.least:
            best = max(best, to.scores[found])
            to.found[found] = t
            for p in range(m):
                to.gaussians[found, p] = to.mean[p]
                for q in range(m):
                    to.gaussians[found, m + m * p + q] = to.covariance[p, q]
            found += 1
    kept = 0
    for k in range(found):
        if to.scores[k] > best + choice.least:
            if k > kept:
                move(to, k, kept)
            kept += 1
    return kept


@inlined
def move(to: Sum, k: int, i: int) -> None:
    """Exchanges two hypotheses that were found."""
    to.found[k], to.found[i] = to.found[i], to.found[k]
    to.scores[k], to.scores[i] = to.scores[i], to.scores[k]
    for x in range(to.gaussians.shape[1]):
        to.gaussians[k, x], to.gaussians[i, x] = to.gaussians[i, x], to.gaussians[k, x]


@inlined
def penalty(to: Sum, choice: Choice, k: int) -> float:
    """Returns half the squared distance of a hypothesis from the region."""
    m, found = len(choice.origin), 0.0
    for p in range(m):
        x = to.gaussians[k, p]
        d = max(choice.bounds[2 * p] - x, x - choice.bounds[2 * p + 1], 0.0)
        found += 0.5 * d * d / to.gaussians[k, m + m * p + p]
    return found


@inlined
def keep(to: Sum, choice: Choice, k: int, at: tuple, into: Results) -> None:
    """Writes hypothesis `k` of those found as component `at[1]` of row `at[0]`."""
    row, i = at
    m = len(choice.origin)
    into.log_weight[row, i] = to.scores[k] + penalty(to, choice, k)
    for p in range(m):
        into.mean[row, i, p] = to.gaussians[k, p] + choice.origin[p]
        for q in range(m):
            into.covariance[row, i, p, q] = to.gaussians[k, m + m * p + q]


@inlined
def add_moments(to: Sum, choice: Choice, k: int, weight: float) -> None:
    """Adds the moments of a hypothesis, with its mean moved into the bounds."""
    m = len(choice.origin)
    for p in range(m):
        x = min(max(to.gaussians[k, p], choice.bounds[2 * p]), choice.bounds[2 * p + 1])
        to.mean[p] += weight * x
        for q in range(p, m):
            y = min(max(to.gaussians[k, q], choice.bounds[2 * q]), choice.bounds[2 * q + 1])
            to.covariance[p, q] += weight * (to.gaussians[k, m + m * p + q] + x * y)


@inlined
def merge(to: Sum, choice: Choice, at: tuple, limit: float, into: Results) -> int:
    """Puts hypotheses above a limit in front and merges the others; returns the largest of these.

    `at` is the row of the results and the number found.
    """
    row, found = at
    last, i = choice.kept - 1, 0
    for k in range(found):
        if to.scores[k] >= limit and i < last:
            if k > i:
                move(to, k, i)
            i += 1
    best, total, m = last, 0.0, len(choice.origin)
    to.mean[:] = 0.0
    to.covariance[:] = 0.0
    for k in range(last, found):
        weight = math.exp(to.scores[k] - limit)
        total += weight
        add_moments(to, choice, k, weight)
        if to.scores[k] > to.scores[best]:
            best = k
    into.log_weight[row, last] = limit + math.log(total)
    for p in range(m):
        to.mean[p] /= total
        into.mean[row, last, p] = to.mean[p] + choice.origin[p]
    for p in range(m):
        for q in range(p, m):
            entry = to.covariance[p, q] / total - to.mean[p] * to.mean[q]
            into.covariance[row, last, p, q] = into.covariance[row, last, q, p] = entry
    return to.found[best]


@compiled
def sum_hypotheses(
    information: Array, h: Hypotheses, choice: Choice, rows: Array, into: Results, chosen: Array
) -> None:
    """Adds up the chains for all hypotheses of n events and keeps the largest.

    Args:
        information: Of all chains, one after the other ``(n, E, rows)``.
        h: Which rows belong together.
        choice: What is kept.
        rows: Events in the results, ``(n,)``.
        into: The results.
        chosen: Numbers of the hypotheses ``(n, kept)``, in the order of `h`; of a merged component
            the one of the largest weight.
    """
    m, n_hypotheses = len(choice.origin), len(h.rows)
    to = Sum(
        np.empty(information.shape[1]),
        np.empty(m),
        np.empty((m, m)),
        np.empty((information.shape[1] + 1, information.shape[2]), np.float32),
        np.empty((information.shape[1] + 2, n_hypotheses), np.float32),
        np.empty(n_hypotheses, np.float32),
        np.empty(n_hypotheses, np.int64),
        np.empty(n_hypotheses),
        np.empty((n_hypotheses, m + m * m)),
    )
    for n in range(len(information)):
        found, alone = find(information, n, h, choice, to), choice.kept
        if found > choice.kept:
            alone = choice.kept - 1
            limit = np.partition(to.scores[:found], found - alone)[found - alone]
            chosen[n, alone] = merge(to, choice, (rows[n], found), limit, into)
        for k in range(min(found, alone)):
            keep(to, choice, k, (rows[n], k), into)
            chosen[n, k] = to.found[k]
