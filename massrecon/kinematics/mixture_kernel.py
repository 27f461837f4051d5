"""The kinematic mixture event by event, compiled: the same sums as in torch, without gradients.

`chain_information` is `ChainBuilder.terms` followed by `ChainResponse.information`, `hypotheses` is
the sum over assignments with the choice of what is kept, `restrict` is `mixture_algebra.truncated`.
"""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import compiled

Floats = np.ndarray
_LIGHTEST = 1.0
_FAR = 25.0  # as in mixture_algebra
_LEAST = 1e-300
_CERTAIN = 8.0  # standard deviations: the bound does not matter
_REACH = 7.0  # standard deviations: a Gaussian ends here on a grid
_UNLIKELY = -np.inf


@compiled
def invert(a: Floats, n: int) -> float:
    """Inverts a symmetric positive matrix in place and returns log(det) of it."""
    log_det = 0.0
    for k in range(n):
        pivot = a[k, k]
        log_det += math.log(pivot)
        for i in range(n):
            if i == k:
                continue
            ratio = a[i, k] / pivot
            for j in range(n):
                if j != k:
                    a[i, j] -= ratio * a[k, j]
        for i in range(n):
            if i != k:
                a[i, k] /= pivot
                a[k, i] /= -pivot
        a[k, k] = 1.0 / pivot
    return log_det


@compiled
def solve_invisible(
    v: Floats, ptmiss: Floats, mass: float, own: float, sign: float, out: Floats
) -> bool:
    """Solves for the invisible leg into `out` (px, py, pz, E); says whether ptmiss was scaled."""
    free = 0.5 * (mass**2 - own**2 - (v[3] ** 2 - v[0] ** 2 - v[1] ** 2 - v[2] ** 2))
    transverse = max(v[3] ** 2 - v[2] ** 2, _LIGHTEST**2)
    x, y = ptmiss[0], ptmiss[1]
    excess = math.sqrt(transverse * (x * x + y * y + own**2)) - v[0] * x - v[1] * y
    unreal = excess > free
    if unreal:
        scale = min(max(free / excess, 0.0), 1.0)
        x, y = x * scale, y * scale
    mu = free + v[0] * x + v[1] * y
    root = math.sqrt(max(mu * mu - transverse * (x * x + y * y + own**2), 0.0))
    z = (mu * v[2] + sign * v[3] * root) / transverse
    out[0], out[1], out[2] = x, y, z
    out[3] = math.sqrt(max(x * x + y * y + z * z + own**2, 1e-6))
    return unreal


@compiled
def slopes_of(v: Floats, nu: Floats, width: float, out: Floats) -> None:
    """Differentiates the solution, see `mixture_chains`."""
    gx, gy = v[0] - v[3] * nu[0] / nu[3], v[1] - v[3] * nu[1] / nu[3]
    d = v[3] * nu[2] / nu[3] - v[2]
    curvature = v[3] * (nu[3] ** 2 - nu[2] ** 2) / nu[3] ** 3
    inverse = d / max(d * d + curvature * width * math.hypot(gx, gy), 1e-9)
    out[0], out[1], out[2] = gx * inverse, gy * inverse, inverse


@compiled
def measure(
    at: tuple[int, int, int, int],
    p4: Floats,
    used: Floats,
    members: Floats,
    mother: Floats,
    total: Floats,
    nu: Floats,
    slopes: Floats,
    through: bool,
    change: Floats,
    by_ptmiss: Floats,
) -> float:
    """Computes a mass and fills its change by each used object and by ptmiss.

    `at` are the numbers of event, resonance and configuration, and how many objects are used;
    `mother` is V + nu, followed by what belongs to V.
    """
    n, i, c, n_used = at
    squared = total[3] ** 2 - total[0] ** 2 - total[1] ** 2 - total[2] ** 2
    mass = math.sqrt(max(squared, _LIGHTEST**2))
    inverse = 1.0 / mass
    by_z = 0.0
    by_ptmiss[i, 0] = by_ptmiss[i, 1] = 0.0
    if through:
        by_z = (total[3] * nu[2] / nu[3] - total[2]) * inverse
        for x in range(2):
            own = (total[3] * nu[x] / nu[3] - total[x]) * inverse
            by_ptmiss[i, x] = own + by_z * slopes[x]
    for u in range(n_used):
        k = used[u]
        x, y, z, e = p4[n, k, 0], p4[n, k, 1], p4[n, k, 2], p4[n, k, 3]
        product = total[3] * e - total[0] * x - total[1] * y - total[2] * z
        change[i, u] = product * inverse if members[i, c, k] else 0.0
        if through and mother[4 + k]:
            product = mother[3] * e - mother[0] * x - mother[1] * y - mother[2] * z
            change[i, u] -= product * by_z * slopes[2]
    return mass


@compiled
def chain_information(
    p4: Floats,
    variance: Floats,
    extra: Floats,
    ptmiss: Floats,
    ptmiss_width: Floats,
    ptmiss_factor: float,
    members: Floats,
    chain_members: Floats,
    mother_members: Floats,
    lossy: Floats,
    has_solved: Floats,
    parameter: Floats,
    expected: Floats,
    by_lost: Floats,
    by_mass: Floats,
    solution: Floats,
    floor: float,
    out: Floats,
) -> None:
    """Fills `out` ``(N, R C, M (M + 1) / 2 + M + 1)`` for one chain.

    Args:
        p4: Objects ``(N, K, 4)``.
        variance: Squared relative resolutions with their fitted factors ``(N, K)``.
        extra: Log weight of each object to be extra ``(N, K)``, zero for kinds that cannot.
        ptmiss: ``(N, 2)``.
        ptmiss_width: ``(N,)``.
        ptmiss_factor: Fitted factor on its square.
        members: Objects of each measured resonance ``(d, C, K)``.
        chain_members: Objects of the whole chain ``(C, K)``.
        mother_members: Objects of the mother of the solved leg ``(C, K)``.
        lossy: Which objects can get lost ``(K,)``.
        has_solved: Which resonances contain the solved leg ``(d,)``.
        parameter: Unknown mass of each resonance, or -1 ``(d,)``.
        expected: Known mass, or origin of the unknown one ``(d,)``.
        by_lost: Prior, shift and squared spread of each configuration ``(3, C)``.
        by_mass: Squared blur and power of each resonance and configuration ``(2, d, C)``.
        solution: Number of roots, mass of the mother, mass of the leg, squared widths for real and
            unreal solutions ``(5,)``.
        floor: Least width of a mass.
        out: The result.
    """
    n_events, n_objects = p4.shape[0], p4.shape[1]
    size, n_configurations = members.shape[0], members.shape[1]
    roots = int(solution[0])
    width = out.shape[2]
    m = 1
    while m * (m + 1) // 2 + m + 1 < width:
        m += 1
    visible, total = np.empty((size, 4)), np.empty(4)
    v, nu, slopes = np.empty(4), np.empty(4), np.empty(3)
    mother, used = np.zeros(4 + n_objects), np.zeros(n_objects, np.int64)
    change, by_ptmiss = np.empty((size, n_objects)), np.empty((size, 2))
    mass, lean = np.empty(size), np.empty(size)
    values, pull = np.empty(size), np.empty(size)
    s = np.empty((size, size))
    information, vector = np.empty((m, m)), np.empty(m)
    for n in range(n_events):
        for c in range(n_configurations):
            prior, n_used = by_lost[0, c], 0
            for k in range(n_objects):
                if chain_members[c, k]:
                    prior -= extra[n, k]
                    used[n_used] = k
                    n_used += 1
            for i in range(size):
                for x in range(4):
                    visible[i, x] = 0.0
                for u in range(n_used):
                    k = used[u]
                    if members[i, c, k]:
                        for x in range(4):
                            visible[i, x] += p4[n, k, x]
            for r in range(roots):
                row, unreal = r * n_configurations + c, False
                if roots == 2:
                    for x in range(4):
                        v[x] = 0.0
                    for k in range(n_objects):
                        mother[4 + k] = mother_members[c, k]
                        if mother_members[c, k]:
                            for x in range(4):
                                v[x] += p4[n, k, x]
                    unreal = solve_invisible(
                        v, ptmiss[n], solution[1], solution[2], 1.0 - 2.0 * r, nu
                    )
                    slopes_of(v, nu, ptmiss_width[n], slopes)
                    for x in range(4):
                        mother[x] = v[x] + nu[x]
                for i in range(size):
                    through = roots == 2 and has_solved[i] != 0
                    for x in range(4):
                        total[x] = visible[i, x] + (nu[x] if through else 0.0)
                    at_mass = (n, i, c, n_used)
                    mass[i] = measure(
                        at_mass,
                        p4,
                        used,
                        members,
                        mother,
                        total,
                        nu,
                        slopes,
                        through,
                        change,
                        by_ptmiss,
                    )
                    lean[i] = 0.0
                    for u in range(n_used):
                        if lossy[used[u]]:
                            lean[i] += change[i, u]
                log_weight = prior
                for i in range(size):
                    for j in range(i, size):
                        entry = by_lost[2, c] * lean[i] * lean[j]
                        for u in range(n_used):
                            entry += variance[n, used[u]] * change[i, u] * change[j, u]
                        if roots == 2:
                            entry += (
                                ptmiss_factor
                                * ptmiss_width[n] ** 2
                                * (
                                    by_ptmiss[i, 0] * by_ptmiss[j, 0]
                                    + by_ptmiss[i, 1] * by_ptmiss[j, 1]
                                )
                            )
                        if i == j:
                            entry += by_mass[0, i, c] * mass[i] ** 2 + floor**2
                            if roots == 2 and has_solved[i] != 0:
                                entry += solution[4] if unreal else solution[3]
                        s[i, j] = s[j, i] = entry
                    values[i] = mass[i] + by_lost[1, c] * lean[i] - expected[i]
                    log_weight += by_mass[1, i, c] * math.log(mass[i])
                log_weight -= 0.5 * invert(s, size)
                for p in range(m):
                    vector[p] = 0.0
                    for q in range(m):
                        information[p, q] = 0.0
                for i in range(size):
                    pull[i] = 0.0
                    for j in range(size):
                        pull[i] += s[i, j] * values[j]
                    log_weight -= 0.5 * pull[i] * values[i]
                    p = int(parameter[i])
                    if p < 0:
                        continue
                    vector[p] += pull[i]
                    for j in range(size):
                        q = int(parameter[j])
                        if q >= 0:
                            information[p, q] += s[i, j]
                # both roots are the same where there is no real one: count it once, for two
                if unreal:
                    log_weight = _UNLIKELY if r == 1 else log_weight + math.log(2.0)
                at = 0
                for p in range(m):
                    for q in range(p, m):
                        out[n, row, at] = information[p, q]
                        at += 1
                for p in range(m):
                    out[n, row, at + p] = vector[p]
                out[n, row, width - 1] = log_weight


@compiled
def combine(total: Floats, m: int, mean: Floats, covariance: Floats) -> float:
    """Turns information into mean and covariance; returns the log weight."""
    if m == 1:
        covariance[0, 0] = 1.0 / total[0]
        mean[0] = total[1] / total[0]
        return total[2] + 0.5 * (total[1] * mean[0] - math.log(total[0]))
    if m == 2:
        det = total[0] * total[2] - total[1] * total[1]
        inverse = 1.0 / det
        covariance[0, 0], covariance[1, 1] = total[2] * inverse, total[0] * inverse
        covariance[0, 1] = covariance[1, 0] = -total[1] * inverse
        mean[0] = covariance[0, 0] * total[3] + covariance[0, 1] * total[4]
        mean[1] = covariance[1, 0] * total[3] + covariance[1, 1] * total[4]
        return total[5] + 0.5 * (total[3] * mean[0] + total[4] * mean[1] - math.log(det))
    at = 0
    for p in range(m):
        for q in range(p, m):
            covariance[p, q] = covariance[q, p] = total[at]
            at += 1
    log_det = invert(covariance, m)
    distance = 0.0
    for p in range(m):
        mean[p] = 0.0
        for q in range(m):
            mean[p] += covariance[p, q] * total[at + q]
        distance += mean[p] * total[at + p]
    return total[len(total) - 1] + 0.5 * (distance - log_det)


@compiled
def add_up(information: Floats, rows: Floats, total: Floats) -> None:
    """Adds the information of one configuration of each chain into `total`."""
    for f in range(len(total)):
        total[f] = information[rows[0], f]
    for s in range(1, len(rows)):
        for f in range(len(total)):
            total[f] += information[rows[s], f]


@compiled
def score_two(information: Floats, n: int, i: int, j: int, bounds: tuple, power: float) -> float:
    """Returns the score of a hypothesis of two chains and two masses.

    `bounds` are the lowest and highest masses, counted from the origin. The score is the log weight
    less half the squared distance from them.
    """
    p = information[n, i, 0] + information[n, j, 0]
    q = information[n, i, 1] + information[n, j, 1]
    r = information[n, i, 2] + information[n, j, 2]
    u = information[n, i, 3] + information[n, j, 3]
    v = information[n, i, 4] + information[n, j, 4]
    det = p * r - q * q
    inverse = 1.0 / det
    x, y = (r * u - q * v) * inverse, (p * v - q * u) * inverse
    own = information[n, i, 5] + information[n, j, 5]
    score = power * (own + 0.5 * (u * x + v * y - math.log(det)))
    low, high, low_other, high_other = bounds
    if x < low or x > high:
        d = low - x if x < low else x - high
        score -= 0.5 * d * d * det / r
    if y < low_other or y > high_other:
        d = low_other - y if y < low_other else y - high_other
        score -= 0.5 * d * d * det / p
    return score


@compiled
def score_any(total: Floats, at: Floats, power: float, mean: Floats, covariance: Floats) -> float:
    """Returns the score of any hypothesis, see `score_two`."""
    m = len(mean)
    score = power * combine(total, m, mean, covariance)
    for p in range(m):
        d = max(at[2 * p] - mean[p], mean[p] - at[2 * p + 1], 0.0)
        score -= 0.5 * d * d / covariance[p, p]
    return score


@compiled
def hypotheses(
    information: Floats,
    pairs: Floats,
    rows: Floats,
    origin: Floats,
    bounds: Floats,
    power: float,
    least: float,
    log_weight: Floats,
    mean: Floats,
    covariance: Floats,
    chosen: Floats,
) -> None:
    """Adds up the chains for all hypotheses and keeps the largest.

    Args:
        information: Of all chains, one below the other ``(n, rows, F)``.
        pairs: Rows of each hypothesis ``(A, S)``.
        rows: Events in the results ``(n,)``.
        origin: What masses are counted from ``(M,)``.
        bounds: Lowest and highest of each mass, counted from there ``(2 M,)``.
        power: Power of the weights, 1 / temperature.
        least: Log of the least weight that is kept, relative to the largest.
        log_weight: Result ``(N, kept + 1)``, of which the last is left alone.
        mean: Result ``(N, kept + 1, M)``.
        covariance: Result ``(N, kept + 1, M, M)``.
        chosen: Numbers of the hypotheses ``(n, kept)``.
    """
    n_pairs, n_chains = pairs.shape
    width, m, kept = information.shape[2], len(origin), chosen.shape[1]
    total, mu, cov = np.empty(width), np.empty(m), np.empty((m, m))
    score, two = np.empty(n_pairs), n_chains == 2 and m == 2
    ends = (bounds[0], bounds[1], bounds[-2], bounds[-1])
    for n in range(len(information)):
        best = -np.inf
        for a in range(n_pairs):
            if two:
                score[a] = score_two(information, n, pairs[a, 0], pairs[a, 1], ends, power)
            else:
                add_up(information[n], pairs[a], total)
                score[a] = score_any(total, bounds, power, mu, cov)
            best = max(best, score[a])
        candidates = np.flatnonzero(score > best + least)
        if len(candidates) > kept:
            candidates = candidates[np.argsort(-score[candidates])[:kept]]
        at = rows[n]
        for i in range(len(candidates)):
            a = candidates[i]
            add_up(information[n], pairs[a], total)
            log_weight[at, i] = power * combine(total, m, mean[at, i], covariance[at, i])
            chosen[n, i] = a
            for p in range(m):
                mean[at, i, p] += origin[p]


@compiled
def normal_below(x: float) -> float:
    """Returns the probability of a standard normal below x."""
    return 0.5 * math.erfc(-x * 0.7071067811865476)


@compiled
def restrict(
    log_weight: Floats,
    mean: Floats,
    covariance: Floats,
    forms: Floats,
    bounds: Floats,
    log_inside: Floats,
    image_mean: Floats,
    image_variance: Floats,
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
    n_rows, m, n_forms = len(bounds), forms.shape[1], len(forms)
    means, cov = np.empty(n_forms), np.empty((n_forms, n_forms))
    for n in range(len(mean)):
        for a in range(mean.shape[1]):
            if log_weight[n, a] == -np.inf:
                continue
            for i in range(n_forms):
                means[i] = 0.0
                for p in range(m):
                    means[i] += forms[i, p] * mean[n, a, p]
                for j in range(i, n_forms):
                    entry = 0.0
                    for p in range(m):
                        for q in range(m):
                            entry += forms[i, p] * covariance[n, a, p, q] * forms[j, q]
                    cov[i, j] = cov[j, i] = entry
            total = 0.0
            for k in range(n_rows):
                sigma = math.sqrt(max(cov[k, k], 1e-6))
                alpha = (bounds[k, 0] - means[k]) / sigma
                beta = (bounds[k, 1] - means[k]) / sigma
                if alpha < -_CERTAIN and beta > _CERTAIN:
                    continue
                far = max(alpha, -beta)
                if far > _FAR:
                    total += -0.5 * far * far - math.log(far * 2.5066282746310002)
                    edge = far if alpha > 0.0 else -far
                    shift, shrink = edge + 1.0 / edge, 1.0 - 1.0 / (far * far)
                else:
                    alpha, beta = max(alpha, -_FAR), min(beta, _FAR)
                    upper, lower = (-alpha, -beta) if alpha + beta > 0.0 else (beta, alpha)
                    inside = max(normal_below(upper) - normal_below(lower), _LEAST)
                    total += math.log(inside)
                    phi_a = math.exp(-0.5 * alpha * alpha) * 0.3989422804014327
                    phi_b = math.exp(-0.5 * beta * beta) * 0.3989422804014327
                    shift = (phi_a - phi_b) / inside
                    shrink = shift * shift - (alpha * phi_a - beta * phi_b) / inside
                    shrink = min(shrink, 1.0)
                for i in range(k + 1, n_forms):
                    ratio = cov[i, k] / sigma
                    means[i] += ratio * shift
                    for j in range(i, n_forms):
                        cov[i, j] -= ratio * cov[j, k] / sigma * shrink
                        cov[j, i] = cov[i, j]
            log_inside[n, a] = total
            image_mean[n, a], image_variance[n, a] = (
                means[n_forms - 1],
                cov[n_forms - 1, n_forms - 1],
            )


@compiled
def add_gaussians(
    height: Floats, mean: Floats, width: Floats, first: float, step: float, out: Floats
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
