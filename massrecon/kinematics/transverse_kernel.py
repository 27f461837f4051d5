"""MT2 of one event after the other, compiled by Numba: the fast path on processors.

The same mathematics as in `transverse_torch`, with 2+1-dimensional vectors of energy E and momentum
p for each visible system, e and q for each invisible one, and trial masses mu:

    f_i(q) = m_i^2 + mu_i^2 + 2 (E_i e_i - p_i q_i),    q_a + q_b = ptmiss
    MT2^2 = min over q_a of max(f_a, f_b)
          = max over l in [0, 1] of min over q_a of l f_a + (1 - l) f_b

1. One side alone: f_a has its minimum (m_a + mu_a)^2 at q_a = p_a mu_a / m_a; where f_b is not
   larger there, that is MT2 ("unbalanced").
2. Otherwise f_a = f_b and l grad f_a = (1 - l) grad f_b: Newton's method in (q_a, l).
3. Where Newton's method fails, a search over directions n: the momenta with f_i <= M^2 form a
   convex region, and Q = ptmiss is a sum of two points of them unless some n separates it, that is
   h_a(n, M) + h_b(n, M) < n Q with the support functions h_i. MT2 is the largest M over n for which
   both sides are equal; it has a single maximum, so that golden section finds it.
4. Where both trial masses are zero, each direction gives its M in closed form: Newton's method in
   the angle, safeguarded by bisection.
"""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import compiled
from massrecon.kinematics.transverse_torch import (
    ANGLE_TOLERANCE,
    ANYWHERE,
    BALANCED,
    BISECTIONS,
    FAILED,
    LIMIT,
    MASSLESS,
    NEWTON_STEPS,
    SIDE_A,
    SIDE_B,
    TOLERANCE,
)

GOLDEN_STEPS = 64
GOLDEN = 0.5 * (3.0 - math.sqrt(5.0))

Scalars = tuple[float, ...]
Side = tuple[float, float, float, float, float]  # px, py, m, transverse energy, mu


@compiled
def side_of(p4: np.ndarray, mu: float) -> Side:
    """Returns (px, py, m, E_T, mu) [GeV] of a visible four-momentum."""
    x, y, z, energy = p4[0], p4[1], p4[2], p4[3]
    p = math.sqrt(x * x + y * y + z * z)
    squared = (energy - p) * (energy + p)
    if squared < (MASSLESS * energy) ** 2:
        squared = 0.0
    return x, y, math.sqrt(squared), math.sqrt(squared + x * x + y * y), mu


@compiled
def level(side: Side, x: float, y: float) -> float:
    """Returns f - (m + mu)^2 at invisible momentum (x, y), without loss of digits."""
    px, py, m, energy, mu = side
    e = math.sqrt(mu * mu + x * x + y * y)
    along = px * x + py * y
    if along <= 0.0:
        return 2.0 * (energy * e - along - m * mu)
    across = px * y - py * x
    # (E e)^2 - (p q + m mu)^2 in terms that are all positive
    distance = (px * mu - m * x) ** 2 + (py * mu - m * y) ** 2 + across * across
    return 2.0 * distance / (energy * e + along + m * mu)


@compiled
def least(side: Side) -> float:
    """Returns the smallest f of a side, (m + mu)^2."""
    return (side[2] + side[4]) ** 2


@compiled
def newton(a: Side, b: Side, Qx: float, Qy: float, start: Scalars) -> tuple:
    """Solves f_a = f_b and l grad f_a = (1-l) grad f_b; returns (x, y, l, found)."""
    x, y, share = start
    floor_a, floor_b, scale = least(a), least(b), a[3] + b[3]
    for _ in range(NEWTON_STEPS):
        X, Y = Qx - x, Qy - y
        ia = 1.0 / math.sqrt(a[4] * a[4] + x * x + y * y)
        ib = 1.0 / math.sqrt(b[4] * b[4] + X * X + Y * Y)
        vx, vy, wx, wy = x * ia, y * ia, X * ib, Y * ib
        ax, ay = 2.0 * (a[3] * vx - a[0]), 2.0 * (a[3] * vy - a[1])
        bx, by = 2.0 * (b[3] * wx - b[0]), 2.0 * (b[3] * wy - b[1])
        fa, fb = floor_a + level(a, x, y), floor_b + level(b, X, Y)
        rx, ry = share * ax - (1.0 - share) * bx, share * ay - (1.0 - share) * by
        if abs(rx) + abs(ry) < TOLERANCE * scale and abs(fa - fb) < TOLERANCE * (fa + fb):
            return x, y, share, True
        ha, hb = 2.0 * share * a[3] * ia, 2.0 * (1.0 - share) * b[3] * ib
        hxx = ha * (1.0 - vx * vx) + hb * (1.0 - wx * wx)
        hyy = ha * (1.0 - vy * vy) + hb * (1.0 - wy * wy)
        hxy = -ha * vx * vy - hb * wx * wy
        det = hxx * hyy - hxy * hxy
        if not det > 0.0:
            break
        dx, dy = (ax + bx) / det, (ay + by) / det
        sx, sy = hyy * dx - hxy * dy, hxx * dy - hxy * dx
        ux, uy = (hyy * rx - hxy * ry) / det, (hxx * ry - hxy * rx) / det
        gain = (fa - fb - ((ax + bx) * ux + (ay + by) * uy)) / ((ax + bx) * sx + (ay + by) * sy)
        new = min(max(share + gain, 0.05 * share), 0.95 + 0.05 * share)
        x, y = x - ux - (new - share) * sx, y - uy - (new - share) * sy
        share = new
    return x, y, share, False


@compiled
def support(side: Side, nx: float, ny: float, f: float) -> tuple[float, float]:
    """Returns the largest n q with f(q) <= f, and its derivative by f; infinite where unbounded."""
    px, py, m, _, mu = side
    kappa = 0.5 * (f - m * m - mu * mu)
    along = nx * px + ny * py
    if m == 0.0:
        if along >= 0.0:
            return math.inf, math.inf
        if kappa <= 0.0:
            return (-math.inf if mu > 0.0 else 0.0), math.inf
        flat = mu * mu * along / (2.0 * kappa)
        return flat - kappa / (2.0 * along), -0.25 / along - 0.5 * flat / kappa
    root = math.sqrt(max(kappa * kappa - m * m * mu * mu, 0.0))
    width = math.sqrt(along * along + m * m)
    slope = math.inf if root == 0.0 else 0.5 * (along + kappa * width / root) / (m * m)
    if along >= 0.0:
        return (kappa * along + root * width) / (m * m), slope
    return (kappa * kappa - (mu * width) ** 2) / (root * width - kappa * along), slope


@compiled
def separation(a: Side, b: Side, Qx: float, Qy: float, angle: float) -> float:
    """Returns the f up to which direction `angle` separates the two sides, at least the floor."""
    nx, ny = math.cos(angle), math.sin(angle)
    target = nx * Qx + ny * Qy
    floor = max(least(a), least(b))
    if a[2] == 0.0 and b[2] == 0.0 and a[4] == b[4]:
        ca, cb = -nx * a[0] - ny * a[1], -nx * b[0] - ny * b[1]
        if ca <= 0.0 or cb <= 0.0:
            return floor
        rise, drop = 0.5 / ca + 0.5 / cb, 0.5 * a[4] * a[4] * (ca + cb)
        root = math.sqrt(target * target + 4.0 * rise * drop)
        if target <= 0.0 and root > 0.0:
            return floor + 4.0 * drop / (root - target)
        return floor + (target + root) / rise
    low, high = floor, math.inf
    f = floor + (a[3] + b[3]) * (abs(Qx) + abs(Qy) + a[4] + b[4])
    for _ in range(80):
        ha, da = support(a, nx, ny, f)
        hb, db = support(b, nx, ny, f)
        rest = ha + hb - target
        if rest == math.inf:
            return floor
        if rest >= 0.0:
            high = f
        else:
            low = f
        step = rest / (da + db)
        new = f - step
        if not (low <= new <= high):
            new = 2.0 * f - floor if high == math.inf else 0.5 * (low + high)
        if abs(new - f) <= 1e-15 * (f - floor):
            break
        f = new
    return f


@compiled
def first_direction(a: Side, b: Side, Qx: float, Qy: float) -> float:
    """Returns an angle that separates the two sides, given that neither is unbalanced."""
    sign, upper, lower = 1.0, a, b
    if least(b) > least(a) or (least(b) == least(a) and b[2] > 0.0):
        sign, upper, lower = -1.0, b, a
    if upper[2] > 0.0:
        # the smaller side's normal at the point where the larger side has its minimum
        x, y = Qx - upper[0] * upper[4] / upper[2], Qy - upper[1] * upper[4] / upper[2]
        e = math.sqrt(lower[4] * lower[4] + x * x + y * y)
        nx, ny = lower[3] * x / e - lower[0], lower[3] * y / e - lower[1]
        return math.atan2(ny, nx)
    pa = math.sqrt(upper[0] ** 2 + upper[1] ** 2)
    pb = math.sqrt(lower[0] ** 2 + lower[1] ** 2)
    if lower[2] > 0.0:
        return math.atan2(-upper[1], -upper[0])
    nx, ny = -upper[0] / pa - lower[0] / pb, -upper[1] / pa - lower[1] / pb
    if upper[4] > 0.0 or lower[4] > 0.0:
        return math.atan2(ny, nx)
    return massless_direction(upper, lower, Qx, Qy, sign)


@compiled
def massless_direction(a: Side, b: Side, Qx: float, Qy: float, sign: float) -> float:
    """Returns the middle of the directions with n p_a < 0, n p_b < 0 and n Q > 0."""
    middle = math.atan2(-a[1], -a[0])
    low, high = -0.5 * math.pi, 0.5 * math.pi
    for k in range(2):
        angle = math.atan2(-b[1], -b[0]) if k == 0 else math.atan2(Qy, Qx)
        turn = angle - middle
        turn -= 2.0 * math.pi * math.floor(turn / (2.0 * math.pi) + 0.5)
        low, high = max(low, turn - 0.5 * math.pi), min(high, turn + 0.5 * math.pi)
    return middle + 0.5 * (low + high)


@compiled
def golden_section(a: Side, b: Side, Qx: float, Qy: float) -> tuple[float, float]:
    """Finds the direction that separates longest; returns (f, angle)."""
    at = first_direction(a, b, Qx, Qy)
    low, high = at - math.pi, at + math.pi
    best = separation(a, b, Qx, Qy, at)
    for _ in range(GOLDEN_STEPS):
        right = high - at > at - low
        angle = at + GOLDEN * (high - at) if right else at - GOLDEN * (at - low)
        f = separation(a, b, Qx, Qy, angle)
        if f > best:
            low, high = (at, high) if right else (low, at)
            best, at = f, angle
        else:
            low, high = (low, angle) if right else (angle, high)
    return best, at


@compiled
def tilt(side: Side, nx: float, ny: float) -> tuple[float, float, float]:
    """Returns u = sqrt((n p)^2 + m^2) - n p and its first two derivatives by the angle of n."""
    along, turn, m = nx * side[0] + ny * side[1], nx * side[1] - ny * side[0], side[2]
    width = math.sqrt(along * along + m * m)
    u = width - along if along <= 0.0 else m * m / (width + along)
    return u, -turn * u / width, along * u / width + m * m * turn * turn / width**3


@compiled
def massless_invisible(a: Side, b: Side, Qx: float, Qy: float) -> tuple:
    """Maximises over directions where mu = 0 on both sides; returns (f, x, y, l, found).

    Then h_i = (f - m_i^2) / (2 u_i), so that each direction gives f in closed form.
    """
    angle = first_direction(a, b, Qx, Qy)
    inside, low, high = angle, angle - math.pi, angle + math.pi
    floor, ma, mb = max(least(a), least(b)), a[2] * a[2], b[2] * b[2]
    f, ua, ub = floor, 1.0, 1.0
    for _ in range(BISECTIONS):
        nx, ny = math.cos(angle), math.sin(angle)
        Q, turn = 2.0 * (nx * Qx + ny * Qy), 2.0 * (nx * Qy - ny * Qx)
        ua, da, dda = tilt(a, nx, ny)
        ub, db, ddb = tilt(b, nx, ny)
        f = (Q * ua * ub + ma * ub + mb * ua) / (ua + ub)
        wa, wb = Q * ub + mb - f, Q * ua + ma - f
        slope = turn * ua * ub + wa * da + wb * db
        bend = -Q * ua * ub + 2.0 * (turn * (da * ub + ua * db) + Q * da * db)
        bend += wa * dda + wb * ddb - 2.0 * slope * (da + db) / (ua + ub)
        if not f > floor:  # beyond the separating directions
            low, high = (low, angle) if angle > inside else (angle, high)
            angle = 0.5 * (inside + angle)
            continue
        inside = angle
        low, high = (angle, high) if slope > 0.0 else (low, angle)
        step = -slope / bend if bend < 0.0 else math.inf
        if abs(step) < ANGLE_TOLERANCE or high - low < ANGLE_TOLERANCE:
            break
        angle += step
        if not low < angle < high:
            angle = 0.5 * (low + high)
    x, y = support_point(a, angle, f)
    return f, x, y, ub / (ua + ub), f > floor


@compiled
def support_point(side: Side, angle: float, f: float) -> tuple[float, float]:
    """Returns the momentum with f(q) <= f that lies farthest in a direction."""
    px, py, m, _, mu = side
    nx, ny = math.cos(angle), math.sin(angle)
    along, across = nx * px + ny * py, nx * py - ny * px
    far = support(side, nx, ny, f)[0]
    # across n, E grad(e) = p, so that q_across = e p_across / E
    kappa = 0.5 * (f - m * m - mu * mu)
    sideways = (kappa + along * far) * across / (along * along + m * m)
    return nx * far - ny * sideways, ny * far + nx * sideways


@compiled
def search(a: Side, b: Side, Qx: float, Qy: float) -> tuple:
    """Solves by directions; returns (f, x, y, l, found)."""
    f, angle = golden_section(a, b, Qx, Qy)
    x, y = support_point(a, angle, f)
    X, Y = Qx - x, Qy - y
    e, E = math.sqrt(a[4] ** 2 + x * x + y * y), math.sqrt(b[4] ** 2 + X * X + Y * Y)
    ga = math.hypot(a[3] * x / e - a[0], a[3] * y / e - a[1])
    gb = math.hypot(b[3] * X / E - b[0], b[3] * Y / E - b[1])
    share = gb / (ga + gb)
    px, py, polished, found = newton(a, b, Qx, Qy, (x, y, share))
    value = least(a) + level(a, px, py)
    if found and abs(value - f) <= 1e-6 * f:
        return value, px, py, polished, True
    worst = max(least(a) + level(a, x, y), least(b) + level(b, X, Y))
    return f, x, y, share, f > 0.0 and worst <= f * (1.0 + 1e-6)


@compiled
def alone(side: Side, other: Side, Qx: float, Qy: float) -> bool:
    """Says whether the other side's f is not larger where this side's has its minimum."""
    if side[2] == 0.0:
        return False
    ratio = side[4] / side[2]
    excess = level(other, Qx - side[0] * ratio, Qy - side[1] * ratio)
    return least(other) + excess <= least(side)


@compiled
def is_zero(a: Side, b: Side, Qx: float, Qy: float) -> bool:
    """Says whether massless sides give MT2 = 0: ptmiss lies between the visible momenta."""
    if a[2] + a[4] + b[2] + b[4] > 0.0:
        return False
    cross = a[0] * b[1] - a[1] * b[0]
    first, second = Qx * b[1] - Qy * b[0], a[0] * Qy - a[1] * Qx
    if cross == 0.0:
        ahead = max(Qx * a[0] + Qy * a[1], Qx * b[0] + Qy * b[1])
        return first == 0.0 and second == 0.0 and ahead >= 0.0
    return first * cross >= 0.0 and second * cross >= 0.0


@compiled
def zero_share(a: Side, b: Side, Qx: float, Qy: float) -> tuple[float, float]:
    """Returns the part of ptmiss along the first visible momentum, where MT2 = 0."""
    cross = a[0] * b[1] - a[1] * b[0]
    if cross == 0.0:
        first = Qx * a[0] + Qy * a[1] > 0.0
        return (Qx, Qy) if first else (0.0, 0.0)
    share = (Qx * b[1] - Qy * b[0]) / cross
    return share * a[0], share * a[1]


@compiled
def has_no_minimum(a: Side, b: Side) -> bool:
    """Says whether f decreases towards infinite invisible momenta: massless sides back to back."""
    if a[3] == 0.0 or b[3] == 0.0:
        return True
    back_to_back = a[0] * b[1] == a[1] * b[0] and a[0] * b[0] + a[1] * b[1] <= 0.0
    return a[2] == 0.0 and b[2] == 0.0 and back_to_back


@compiled
def solve(a: Side, b: Side, Qx: float, Qy: float) -> tuple:
    """Computes MT2 of one event; returns (MT2, q_x, q_y, l, kind)."""
    if alone(a, b, Qx, Qy):
        ratio = a[4] / a[2]
        return a[2] + a[4], a[0] * ratio, a[1] * ratio, 1.0, SIDE_A
    if alone(b, a, Qx, Qy):
        ratio = b[4] / b[2]
        return b[2] + b[4], Qx - b[0] * ratio, Qy - b[1] * ratio, 0.0, SIDE_B
    if is_zero(a, b, Qx, Qy):
        x, y = zero_share(a, b, Qx, Qy)
        return 0.0, x, y, 0.5, ANYWHERE
    if has_no_minimum(a, b):
        return max(a[2] + a[4], b[2] + b[4]), math.nan, math.nan, 0.5, LIMIT
    if a[4] == 0.0 and b[4] == 0.0:
        f, x, y, share, found = massless_invisible(a, b, Qx, Qy)
    else:
        x, y, share, found = newton(a, b, Qx, Qy, (0.5 * Qx, 0.5 * Qy, 0.5))
        f = least(a) + level(a, x, y)
        if not found:
            f, x, y, share, found = search(a, b, Qx, Qy)
    return math.sqrt(f), x, y, share, BALANCED if found else FAILED


@compiled
def solve_all(
    visible_a: np.ndarray,
    visible_b: np.ndarray,
    ptmiss: np.ndarray,
    mu_a: np.ndarray,
    mu_b: np.ndarray,
    out: np.ndarray,
    kind: np.ndarray,
) -> None:
    """Fills `out` (N, 4) with (MT2, q_x, q_y, l) and `kind` (N); NaN where nothing was found."""
    for i in range(len(out)):
        a, b = side_of(visible_a[i], mu_a[i]), side_of(visible_b[i], mu_b[i])
        value, x, y, share, how = solve(a, b, ptmiss[i, 0], ptmiss[i, 1])
        physical = min(visible_a[i, 3], visible_b[i, 3]) >= 0.0 and min(mu_a[i], mu_b[i]) >= 0.0
        # comparisons with NaN are false, so that closed forms may give a number in spite of it
        total = mu_a[i] + mu_b[i] + ptmiss[i, 0] + ptmiss[i, 1]
        for k in range(4):
            total += visible_a[i, k] + visible_b[i, k]
        if not (physical and math.isfinite(total) and value >= 0.0 and value < math.inf):
            how = FAILED
        kind[i] = how
        if how == FAILED:
            value, x, y, share = math.nan, math.nan, math.nan, math.nan
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = value, x, y, share
