"""Sums over hypotheses, compiled: the information of chains added up, and the largest kept.

The log weight of a hypothesis of precision P needs the logarithm of det P. Since P is a sum over
chains, det P is at least the largest determinant of one chain, so that a bound on the log weight
comes without a logarithm; only hypotheses whose bound is large enough are computed in full.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from massrecon.kinematics.backends import compiled, inlined
from massrecon.kinematics.mixture_kernel import invert

Array = np.ndarray
_NEVER = -np.inf


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
        least: Log of the least weight that is kept, relative to the largest.
        kept: Number of Gaussians that are kept.
    """

    origin: Array
    bounds: Array
    power: float
    least: float
    kept: int


class Sum(NamedTuple):
    """The sum of the information of one hypothesis, with its Gaussian.

    Attributes:
        total: Information, ``(E,)``.
        mean: ``(M,)``.
        covariance: ``(M, M)``.
        scores: Of all hypotheses, ``(A,)``.
        logs: Log of the determinant of the precision of each row, ``(rows,)``.
    """

    total: Array
    mean: Array
    covariance: Array
    scores: Array
    logs: Array


@inlined
def combine(information: Array, n: int, h: Hypotheses, a: int, to: Sum) -> float:
    """Adds up the chains of a hypothesis into mean and covariance; returns the log weight."""
    m, total = len(to.mean), to.total
    for f in range(len(total)):
        total[f] = 0.0
        for s in range(h.rows.shape[1]):
            total[f] += information[n, f, h.rows[a, s]]
    if total[len(total) - 1] == -np.inf:
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
def log_determinants(information: Array, n: int, m: int, out: Array) -> None:
    """Fills the log of the determinant of the precision of each row, -inf where it is singular."""
    for row in range(len(out)):
        if m == 1:
            det = information[n, 0, row]
        else:
            det = information[n, 0, row] * information[n, 2, row] - information[n, 1, row] ** 2
        out[row] = math.log(det) if det > 1e-300 else -1e300


@inlined
def bound_one(
    information: Array, n: int, group: tuple, logs: Array, h: Hypotheses, choice: Choice, out: Array
) -> None:
    """Bounds the scores of a group of hypotheses of two chains and one mass."""
    i, start, end = group
    p, u, w, log = information[n, 0, i], information[n, 1, i], information[n, 2, i], logs[i]
    low, high, power = choice.bounds[0], choice.bounds[1], choice.power
    for t in range(start, end):
        j = h.second[t]
        precision = p + information[n, 0, j]
        vector = u + information[n, 1, j]
        x = vector / precision
        least = 0.5 * (log + logs[j] + abs(log - logs[j]))
        d = 0.5 * (abs(low - x) + abs(x - high) - (high - low))
        out[t] = (
            power * (w + information[n, 2, j] + 0.5 * (vector * x - least))
            - 0.5 * d * d * precision
        )


@inlined
def bound_two(
    information: Array, n: int, group: tuple, logs: Array, h: Hypotheses, choice: Choice, out: Array
) -> None:
    """Bounds the scores of a group of hypotheses of two chains and two masses."""
    i, start, end = group
    a, b, c = information[n, 0, i], information[n, 1, i], information[n, 2, i]
    s, r, w, log = information[n, 3, i], information[n, 4, i], information[n, 5, i], logs[i]
    low, high, power = choice.bounds[0], choice.bounds[1], choice.power
    low_other, high_other = choice.bounds[2], choice.bounds[3]
    for t in range(start, end):
        j = h.second[t]
        p, q, o = a + information[n, 0, j], b + information[n, 1, j], c + information[n, 2, j]
        u, v = s + information[n, 3, j], r + information[n, 4, j]
        det = p * o - q * q
        inverse = 1.0 / det
        x, y = (o * u - q * v) * inverse, (p * v - q * u) * inverse
        least = 0.5 * (log + logs[j] + abs(log - logs[j]))
        d = 0.5 * (abs(low - x) + abs(x - high) - (high - low))
        e = 0.5 * (abs(low_other - y) + abs(y - high_other) - (high_other - low_other))
        out[t] = (
            power * (w + information[n, 5, j] + 0.5 * (u * x + v * y - least))
            - 0.5 * d * d * det / o
            - 0.5 * e * e * det / p
        )


@inlined
def fill_scores(information: Array, n: int, h: Hypotheses, choice: Choice, to: Sum) -> float:
    """Fills scores or bounds on them; returns a score that is reached."""
    m, start, last = len(choice.origin), 0, information.shape[1] - 1
    bounded = h.rows.shape[1] == 2 and m <= 2
    if bounded:
        log_determinants(information, n, m, to.logs)
    for g in range(len(h.first)):
        group = (h.first[g], start, h.ends[g])
        if information[n, last, h.first[g]] == -np.inf:
            for t in range(start, h.ends[g]):
                to.scores[t] = _NEVER
        elif bounded and m == 1:
            bound_one(information, n, group, to.logs, h, choice, to.scores)
        elif bounded:
            bound_two(information, n, group, to.logs, h, choice, to.scores)
        else:
            for t in range(start, h.ends[g]):
                to.scores[t] = score(information, n, h, t, choice, to)
        start = h.ends[g]
    best = 0
    for t in range(len(to.scores)):
        if to.scores[t] > to.scores[best]:
            best = t
    return score(information, n, h, best, choice, to)


@inlined
def fill_candidates(
    information: Array, n: int, h: Hypotheses, choice: Choice, to: Sum, candidates: Array
) -> int:
    """Lists hypotheses that may be large enough with their scores; returns their number."""
    best, found = fill_scores(information, n, h, choice, to), 0
    for t in range(len(to.scores)):
        if to.scores[t] > best + choice.least:
            to.scores[t] = score(information, n, h, t, choice, to)
            best = max(best, to.scores[t])
            candidates[found] = t
            found += 1
    kept = 0
    for i in range(found):
        if to.scores[candidates[i]] > best + choice.least:
            candidates[kept] = candidates[i]
            kept += 1
    return kept


@inlined
def keep(
    information: Array,
    n: int,
    h: Hypotheses,
    choice: Choice,
    to: Sum,
    at: tuple[int, int, int],
    log_weight: Array,
    mean: Array,
    covariance: Array,
) -> None:
    """Writes hypothesis `a` as component `i` of the event in row `row` of the results."""
    row, i, a = at
    log_weight[row, i] = choice.power * combine(information, n, h, a, to)
    for p in range(len(to.mean)):
        mean[row, i, p] = to.mean[p] + choice.origin[p]
        for q in range(len(to.mean)):
            covariance[row, i, p, q] = to.covariance[p, q]


@compiled
def sum_hypotheses(
    information: Array,
    h: Hypotheses,
    choice: Choice,
    rows: Array,
    log_weight: Array,
    mean: Array,
    covariance: Array,
    chosen: Array,
) -> None:
    """Adds up the chains for all hypotheses of n events and keeps the largest.

    Args:
        information: Of all chains, one after the other ``(n, E, rows)``.
        h: Which rows belong together.
        choice: What is kept.
        rows: Events in the results, ``(n,)``.
        log_weight: Result ``(N, kept + 1)``, of which the last is left alone.
        mean: Result ``(N, kept + 1, M)``.
        covariance: Result ``(N, kept + 1, M, M)``.
        chosen: Numbers of the hypotheses ``(n, kept)``, in the order of `h`.
    """
    m, n_hypotheses = len(choice.origin), len(h.rows)
    to = Sum(
        np.empty(information.shape[1]),
        np.empty(m),
        np.empty((m, m)),
        np.empty(n_hypotheses),
        np.empty(information.shape[2]),
    )
    candidates = np.empty(n_hypotheses, np.int64)
    for n in range(len(information)):
        found = candidates[: fill_candidates(information, n, h, choice, to, candidates)]
        if len(found) > choice.kept:
            found = found[np.argsort(-to.scores[found])[: choice.kept]]
        for i in range(len(found)):
            at = (rows[n], i, found[i])
            keep(information, n, h, choice, to, at, log_weight, mean, covariance)
            chosen[n, i] = found[i]
