"""M2 of one event after the other, compiled by Numba; the algebra is in `constrained_algebra`.

Each side has the visible vector P of its parent and R of its relative, the invisible vector q with
q^2 = mu^2, and the squared masses

    F = c + 2 P q,    G = r + 2 R q.

M2CC^2 is the minimum of F over all q_a, q_b that add up to Q in the transverse plane and have
F_a = F_b and G_a = G_b. With multipliers w of F_a, 1 - w of F_b and v,

    L = w F_a + (1 - w) F_b + v (G_a - G_b) = const + 2 (K_a q_a + K_b q_b),
    K_a = w P_a + v R_a,    K_b = (1 - w) P_b - v R_b.

1. `saddle`: where K_a and K_b point forward, L is convex in q, its minimum over the longitudinal
   momenta is known (q has the rapidity of K), and what is left is a saddle point, convex in the
   transverse q_a and concave in (w, v): Newton's method with backtracking.
2. `bound`: for any w, v and transverse vector t,

       L >= const + 2 (mu_a |K_a - t| + mu_b |K_b - t|) - 2 t Q

   for all q, if K - t lie in the forward cones. As L = F_a at every feasible point, this proves how
   low the minimum can be at most: an event is certified if its value reaches that.
3. `descend`: elsewhere, sequential quadratic programming from several starts, with the curvature of
   L kept positive far from a solution and exact near it.

M2XC^2 is the minimum of max(F_a, F_b) with G_a = G_b: M2CC^2 with 0 <= w <= 1, or the minimum of
one F alone (`one_sided`), whose bound has w = 0 or 1.

Momenta along the beam are in the frame where P has none. All quantities are divided by a scale.
"""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import compiled
from massrecon.kinematics.constrained_algebra import (
    Side,
    bound_at,
    constrained_step,
    curvature,
    derivatives,
    dot,
    in_lab,
    lifted,
    masses,
    matched,
    moved,
    saddle_point,
    saddle_step,
    scaled,
    steepness,
    values,
    vanishing_at,
)

MASSLESS = 1e-6
SADDLE_STEPS = 20
HALVINGS = 5
DESCENT_STEPS = 60
TOLERANCE = 1e-11
FEASIBLE = 1e-9
# a minimum is certified if the proven bound on its square is as near as this: relative, of scale^2
GAP, SMALLEST_GAP = 1e-6, 1e-11
NUDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-7)
# starts of the descent: at these multiples of MT2^2, with all signs of longitudinal momenta
LEVELS = (1.0, 1.1, 1.5)
# where all of these fail
FAR_LEVELS = (2.0, 3.0, 5.0, 10.0, 30.0)
# starts for the minimum of one side: share of the largest v, distance off axis
ONE_SIDED = ((0.5, 0.1), (0.1, 0.3), (0.9, 0.1), (0.01, 0.5))
FAILED, FOUND, CERTIFIED = 0, 1, 2


@compiled
def square(x: float, y: float, z: float, energy: float) -> float:
    """Returns the squared mass [GeV^2]; rounding noise of massless vectors is zero."""
    p = math.sqrt(x * x + y * y + z * z)
    squared = (abs(energy) - p) * (abs(energy) + p)
    return squared if squared > (MASSLESS * energy) ** 2 else 0.0


@compiled
def side_of(P: np.ndarray, R: np.ndarray, mu: float) -> Side:
    """Reads a side from four-momenta of parent and relative, in the frame where P_z = 0."""
    plus, minus = P[3] + P[2], P[3] - P[2]
    boost = math.sqrt(plus / minus)
    up, down = (R[3] + R[2]) / boost, (R[3] - R[2]) * boost
    c = square(P[0], P[1], P[2], P[3]) + mu * mu
    r = square(R[0], R[1], R[2], R[3]) + mu * mu
    mass = math.sqrt(plus * minus)
    return mass, P[0], P[1], 0.5 * (up + down), R[0], R[1], 0.5 * (up - down), c, r, mu, boost


@compiled
def saddle(a: Side, b: Side, Qx: float, Qy: float, start: tuple, free: float) -> tuple:
    """Searches the saddle point from (x, y, w, v); returns that, and whether it was found."""
    at = start
    off, step = saddle_step(a, b, Qx, Qy, at, free)
    for _ in range(SADDLE_STEPS):
        if not off > TOLERANCE:
            break
        t, trial = 1.0, at
        better, next_step = off, step
        for _ in range(HALVINGS):
            trial = moved(at, t, step)
            better, next_step = saddle_step(a, b, Qx, Qy, trial, free)
            if better <= off * (1.0 - 1e-3 * t):
                break
            t *= 0.5
        if not better < off:
            break
        at, off, step = trial, better, next_step
    return at, off < FEASIBLE


@compiled
def bound(a: Side, b: Side, Qx: float, Qy: float, at: tuple, f: float) -> bool:
    """Says whether the multipliers prove that no squared mass is below f."""
    for nudge in NUDGES:  # noqa: SIM110  Numba has no generators
        if f - bound_at(a, b, Qx, Qy, at, nudge) <= GAP * f + SMALLEST_GAP:
            return True
    return False


@compiled
def exact_step(a: Side, b: Side, Qx: float, Qy: float, state: tuple, now: float) -> tuple:
    """Tries a Newton step with the exact curvature; returns it and whether it halves `now`."""
    p, la, lb, _, hf, hg = state
    va, vb, g, A, B = derivatives(a, b, Qx, Qy, p)
    ka, kb = (0.5 + la) * a[0] + lb * a[3], (0.5 - la) * b[0] - lb * b[3]
    s, na, nb = constrained_step(curvature(va, vb, ka, kb, 0.0), g, A, B, hf, hg)
    q = moved(p, 1.0, s)
    _, _, g, A, B = derivatives(a, b, Qx, Qy, q)
    f, hf, hg = values(a, b, Qx, Qy, q)
    new = steepness(g, A, B, na, nb) + abs(hf) + abs(hg)
    return (q, na, nb, f, hf, hg), new < 0.5 * now


@compiled
def soft_step(a: Side, b: Side, Qx: float, Qy: float, state: tuple, penalty: float) -> tuple:
    """Makes a step with positive curvature that lowers F + penalty * violation, if there is one."""
    p, la, lb, f, hf, hg = state
    va, vb, g, A, B = derivatives(a, b, Qx, Qy, p)
    ka, kb = (0.5 + la) * a[0] + lb * a[3], (0.5 - la) * b[0] - lb * b[3]
    h = curvature(va, vb, max(ka, 0.05 * a[0]), max(kb, 0.05 * b[0]), 1e-3)
    s, na, nb = constrained_step(h, g, A, B, hf, hg)
    penalty = max(penalty, 1.5 * max(abs(na), abs(nb)))
    off = abs(hf) + abs(hg)
    merit, fall, t = f + penalty * off, min(dot(g, s) - penalty * off, 0.0), 1.0
    for _ in range(12):
        q = moved(p, t, s)
        nf, nhf, nhg = values(a, b, Qx, Qy, q)
        good = nf + penalty * (abs(nhf) + abs(nhg)) <= merit + 1e-4 * t * fall
        if not good and t == 1.0:  # back to the curved constraints, then once more
            back = constrained_step(h, (0.0, 0.0, 0.0, 0.0), A, B, nhf, nhg)[0]
            q = moved(q, 1.0, back)
            nf, nhf, nhg = values(a, b, Qx, Qy, q)
            good = nf + penalty * (abs(nhf) + abs(nhg)) <= merit + 1e-4 * fall
        if good:
            return (q, la + t * (na - la), lb + t * (nb - lb), nf, nhf, nhg), penalty, True
        t *= 0.4
    return state, penalty, False


@compiled
def descend(a: Side, b: Side, Qx: float, Qy: float, start: tuple) -> tuple:
    """Goes down to a local minimum; returns (F, point, (x, y, w, v), found)."""
    f, hf, hg = values(a, b, Qx, Qy, start)
    state, penalty = (start, 0.0, 0.0, f, hf, hg), 1.0
    for _ in range(DESCENT_STEPS):
        p, la, lb, f, hf, hg = state
        _, _, g, A, B = derivatives(a, b, Qx, Qy, p)
        slope, off = steepness(g, A, B, la, lb), abs(hf) + abs(hg)
        if slope < FEASIBLE and off < FEASIBLE:
            break
        if slope < 1e-2 and off < 1e-2:
            new, good = exact_step(a, b, Qx, Qy, state, slope + off)
            if good:
                state = new
                continue
        state, penalty, good = soft_step(a, b, Qx, Qy, state, penalty)
        if not good:
            break
    p, la, lb, f, hf, hg = state
    return f, p, (p[0], p[1], 0.5 + la, lb), abs(hf) + abs(hg) < FEASIBLE


@compiled
def off_axis(a: Side, b: Side, x: float, y: float, Qx: float, Qy: float) -> tuple[float, float]:
    """Moves a start away from massless invisible momenta that vanish."""
    for k in range(2):
        side = a if k == 0 else b
        X, Y = (x, y) if k == 0 else (Qx - x, Qy - y)
        if math.sqrt(side[9] ** 2 + X * X + Y * Y) < 0.02:
            sign = 1.0 if k == 0 else -1.0
            size = math.hypot(side[1], side[2]) + 1e-30
            x += sign * (0.05 * side[1] - 0.02 * side[2]) / size
            y += sign * (0.05 * side[2] + 0.02 * side[1]) / size
    return x, y


@compiled
def best_descent(a: Side, b: Side, Qx: float, Qy: float, transverse: np.ndarray) -> tuple:
    """Descends from several starts around the solution of MT2 until a minimum is certified."""
    nowhere = (math.nan, math.nan, math.nan, math.nan)
    lowest, point, multipliers, how = math.inf, nowhere, nowhere, FAILED
    x, y = off_axis(a, b, transverse[1], transverse[2], Qx, Qy)
    for level in LEVELS + FAR_LEVELS:
        if level > LEVELS[-1] and how != FAILED:
            break
        f = transverse[0] * level
        if level > 1.0 or x != transverse[1]:
            f += 0.01 * level
        za, zb = lifted(a, x, y, f), lifted(b, Qx - x, Qy - y, f)
        for k in range(4):
            first, second = 1.0 - 2.0 * (k % 2), 1.0 - 2.0 * (k // 2)
            if (za == 0.0 and first < 0.0) or (zb == 0.0 and second < 0.0):
                continue
            f, p, m, found = descend(a, b, Qx, Qy, (x, y, first * za, second * zb))
            if found and f >= 0.0 and f < lowest * (1.0 - 1e-9):
                lowest, point, multipliers, how = f, p, m, FOUND
                polished, exact = saddle(a, b, Qx, Qy, m, 1.0)
                if bound(a, b, Qx, Qy, polished if exact else m, f):
                    return lowest, point, m, CERTIFIED
    return lowest, point, multipliers, how


@compiled
def one_sided(a: Side, b: Side, Qx: float, Qy: float) -> tuple:
    """Minimises F_b alone with G_a = G_b, where then F_a <= F_b; returns as `best_descent`."""
    nowhere = (math.nan, math.nan, math.nan, math.nan)
    mass = math.sqrt(max(b[7] - b[9] * b[9], 0.0))
    if mass > 0.0:  # the unconstrained minimum, if G_a can be made equal there
        ratio, f = b[9] / mass, (mass + b[9]) ** 2
        x, y = Qx - b[1] * ratio, Qy - b[2] * ratio
        g = masses(b, b[1] * ratio, b[2] * ratio, 0.0)[1]
        for sign in (1.0, -1.0):
            z = matched(a, x, y, g, sign)
            if masses(a, x, y, z)[0] <= f:
                return f, (x, y, z, 0.0), (x, y, 0.0, 0.0), CERTIFIED
    if a[9] == 0.0:
        solution = vanishing(a, b, Qx, Qy)
        if solution[3] == CERTIFIED:
            return solution
    # only up to this v is K_b = P_b - v R_b forward
    largest = b[0] / (abs(b[3]) + abs(b[6])) * (1.0 if a[3] > 0.0 else -1.0)
    for k in range(len(ONE_SIDED)):
        share, apart = ONE_SIDED[k]
        x, y = 0.5 * Qx + apart * (a[1] - b[1]), 0.5 * Qy + apart * (a[2] - b[2])
        at, found = saddle(a, b, Qx, Qy, (x, y, 0.0, share * largest), 0.0)
        if found:
            fa, fb, point = saddle_point(a, b, Qx, Qy, at)
            if fa <= fb:
                return fb, point, at, CERTIFIED if bound(a, b, Qx, Qy, at, fb) else FOUND
            break
    return math.inf, nowhere, nowhere, FAILED


@compiled
def vanishing(a: Side, b: Side, Qx: float, Qy: float) -> tuple:
    """Tries the point where massless q_a vanishes, with G_b = r_a; returns as `best_descent`."""
    for sign in (1.0, -1.0):
        f, z, v, depth, proven = vanishing_at(a, b, Qx, Qy, sign)
        if depth >= 0.0 and a[7] <= f and f - proven <= GAP * f + SMALLEST_GAP:
            return f, (0.0, 0.0, 0.0, z), (0.0, 0.0, 0.0, v), CERTIFIED
    nowhere = (math.nan, math.nan, math.nan, math.nan)
    return math.inf, nowhere, nowhere, FAILED


@compiled
def mirrored(solution: tuple, Qx: float, Qy: float) -> tuple:
    """Exchanges the sides of a solution."""
    f, p, m, how = solution
    point, at = (Qx - p[0], Qy - p[1], p[3], p[2]), (Qx - p[0], Qy - p[1], 1.0 - m[2], -m[3])
    return f, point, at, how


@compiled
def read(P: np.ndarray, R: np.ndarray, Q: np.ndarray, mu: np.ndarray) -> tuple:
    """Reads one event; returns the scaled sides, ptmiss and the scale."""
    a, b = side_of(P[0], R[0], mu[0]), side_of(P[1], R[1], mu[1])
    scale = a[0] + b[0] + math.hypot(Q[0], Q[1])
    return scaled(a, scale), scaled(b, scale), Q[0] / scale, Q[1] / scale, scale


@compiled
def write(out: np.ndarray, a: Side, b: Side, solution: tuple, Q: tuple, scale: float) -> None:
    """Writes (M2, q_x, q_y, q_z of a, q_z of b, w, v) in the laboratory, all [GeV] but w and v."""
    f, p, m, _ = solution
    out[0], out[1], out[2] = scale * math.sqrt(max(f, 0.0)), scale * p[0], scale * p[1]
    out[3] = scale * in_lab(a, p[0], p[1], p[2])
    out[4] = scale * in_lab(b, Q[0] - p[0], Q[1] - p[1], p[3])
    out[5], out[6] = m[2], m[3]


@compiled
def solve_convex(
    P: np.ndarray, R: np.ndarray, Q: np.ndarray, mu: np.ndarray, out: np.ndarray, how: np.ndarray
) -> None:
    """Solves events by their saddle point: P, R (N, 2, 4), Q and mu (N, 2), out (N, 7), how (N).

    Where that does not exist, `how` is FAILED and `out` NaN.
    """
    for i in range(len(out)):
        a, b, Qx, Qy, scale = read(P[i], R[i], Q[i], mu[i])
        apart = 0.3 if a[9] + b[9] == 0.0 else 0.0
        start = 0.5 * Qx + apart * (a[1] - b[1]), 0.5 * Qy + apart * (a[2] - b[2]), 0.5, 0.0
        at, found = saddle(a, b, Qx, Qy, start, 1.0)
        f, _, point = saddle_point(a, b, Qx, Qy, at)
        how[i] = FAILED
        if found and f > -FEASIBLE:
            how[i] = CERTIFIED if bound(a, b, Qx, Qy, at, f) else FOUND
            write(out[i], a, b, (f, point, at, 0), (Qx, Qy), scale)
        else:
            out[i] = math.nan


@compiled
def solve_others(
    P: np.ndarray,
    R: np.ndarray,
    Q: np.ndarray,
    mu: np.ndarray,
    transverse: np.ndarray,
    out: np.ndarray,
    how: np.ndarray,
) -> None:
    """Improves events that are not certified; `transverse` (N, 3) is (MT2, q_x, q_y) of P."""
    for i in range(len(out)):
        a, b, Qx, Qy, scale = read(P[i], R[i], Q[i], mu[i])
        start = transverse[i] / scale
        start[0] = start[0] ** 2
        solution = best_descent(a, b, Qx, Qy, start)
        value = scale * math.sqrt(max(solution[0], 0.0))
        if solution[3] > how[i] or (solution[3] == how[i] and value < out[i, 0]):
            how[i] = solution[3]
            write(out[i], a, b, solution, (Qx, Qy), scale)


@compiled
def solve_one_sided(
    P: np.ndarray, R: np.ndarray, Q: np.ndarray, mu: np.ndarray, out: np.ndarray, how: np.ndarray
) -> None:
    """Turns M2CC into M2XC: looks where one side alone gives a smaller maximum."""
    for i in range(len(out)):
        a, b, Qx, Qy, scale = read(P[i], R[i], Q[i], mu[i])
        inside = how[i] == FAILED or (out[i, 5] >= 0.0 and out[i, 5] <= 1.0)
        if not inside and how[i] == CERTIFIED:
            how[i] = FOUND  # the bound of M2CC does not hold for M2XC
        first = one_sided(a, b, Qx, Qy)
        second = mirrored(one_sided(b, a, Qx, Qy), Qx, Qy)
        solution = second if second[0] < first[0] else first
        value = scale * math.sqrt(max(solution[0], 0.0))
        if solution[3] > FAILED and not value >= out[i, 0]:
            how[i] = solution[3]
            write(out[i], a, b, solution, (Qx, Qy), scale)
