"""Proof that no smaller M2CC exists where duality alone cannot give it: branch and bound.

For given squared masses F and G of parent and relative, the invisible momentum q of one side lies
on an ellipse: P q = f = (F - c) / 2 and R q = g = (G - r) / 2 fix its energy and q_z from its
transverse part, and q^2 = mu^2 becomes h(x, y; f, g) = 0 with a polynomial of second degree in all
four variables,

    h = R_z^2 (e^2 - mu^2 - x^2 - y^2) - (R_E e - R_x x - R_y y - g)^2,
    e = (f + p_x x + p_y y) / m,

positive inside the ellipse and negative outside. M2CC^2 is the smallest F for which, at some G, the
ellipses of the two sides (one of them turned around ptmiss) have a common point. Relaxed to filled
ellipses the problem is convex, and duality solves it. The rest are events in which at a smaller F
one ellipse lies inside the other, without touching it.

If for a number t the combination s = min over (x, y) of t h_b - h_a is positive, there is no common
point: for t < 0 the ellipses lie apart, for t > 0 side a's lies inside side b's (and likewise with
the sides exchanged). For quadratic functions such t exists whenever there is no common point
(S-lemma). With t fixed, s is a polynomial of second degree in (F, G), of which the minimum over a
rectangle is known exactly. `no_smaller` covers all (F, G) below the value of an event with such
rectangles, halving those for which the best t of their middle does not suffice.

References:
    I. Polik and T. Terlaky, SIAM Review 49 (2007) 371: the S-lemma.
"""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import compiled
from massrecon.kinematics.constrained_algebra import Side, masses
from massrecon.kinematics.constrained_kernel import CERTIFIED, FOUND, GAP, SMALLEST_GAP, read

MOST_BOXES = 200
# s counts as positive above this part of the terms that it is made of
ROUNDING = 1e-13
# below this determinant, relative to the squared trace, a sum of two ellipses counts as flat
FLAT = 1e-8
# the range of G is widened by this part of it
EDGE = 1e-9
_STEPS = 14
# the weight is found well enough if the next step changes s by this part
_NEAR = 1e-3


@compiled
def conic(side: Side, f0: float, g0: float) -> tuple:
    """Returns h of a side in (x, y, u, v) where F = f0 + 2 u and G = g0 + 2 v.

    The coefficients belong to (xx, xy, yy, x, xu, xv, y, yu, yv, 1, u, v, uu, uv, vv); products of
    different variables have their full coefficient. The last number is the size of the terms that
    were added up, for rounding.
    """
    m, px, py, re, rx, ry, rz, c, r, mu, _ = side
    f, g = 0.5 * (f0 - c), 0.5 * (g0 - r)
    # e = ex x + ey y + eu u + e1, and R_E e - R_x x - R_y y - g likewise
    ex, ey, eu, e1 = px / m, py / m, 1.0 / m, f / m
    kx, ky, ku, k1 = re * ex - rx, re * ey - ry, re * eu, re * e1 - g
    z = rz * rz
    norm = 1.0 / (z + kx * kx + ky * ky + 1e-300)
    z *= norm
    n = norm
    return (
        z * (ex * ex - 1.0) - n * kx * kx,
        2.0 * (z * ex * ey - n * kx * ky),
        z * (ey * ey - 1.0) - n * ky * ky,
        2.0 * (z * ex * e1 - n * kx * k1),
        2.0 * (z * ex * eu - n * kx * ku),
        2.0 * n * kx,
        2.0 * (z * ey * e1 - n * ky * k1),
        2.0 * (z * ey * eu - n * ky * ku),
        2.0 * n * ky,
        z * (e1 * e1 - mu * mu) - n * k1 * k1,
        2.0 * (z * e1 * eu - n * k1 * ku),
        2.0 * n * k1,
        z * eu * eu - n * ku * ku,
        2.0 * n * ku,
        -n,
        z * (e1 * e1 + mu * mu) + n * (re * e1) ** 2 + n * g * g,
    )


@compiled
def turned(h: tuple, Qx: float, Qy: float) -> tuple:
    """Returns h with (x, y) replaced by ptmiss minus (x, y)."""
    xx, xy, yy, x, xu, xv, y, yu, yv, one, u, v, uu, uv, vv, size = h
    far = Qx * Qx + Qy * Qy
    return (
        xx,
        xy,
        yy,
        -2.0 * xx * Qx - xy * Qy - x,
        -xu,
        -xv,
        -2.0 * yy * Qy - xy * Qx - y,
        -yu,
        -yv,
        one + xx * Qx * Qx + xy * Qx * Qy + yy * Qy * Qy + x * Qx + y * Qy,
        u + xu * Qx + yu * Qy,
        v + xv * Qx + yv * Qy,
        uu,
        uv,
        vv,
        size + (abs(xx) + abs(xy) + abs(yy)) * far + (abs(x) + abs(y)) * math.sqrt(far),
    )


@compiled
def combined(a: tuple, b: tuple, t: float) -> tuple:
    """Returns s = min over (x, y) of t b - a as coefficients of (1, u, v, uu, uv, vv), and a size.

    The size is that of all terms, times what the inverse makes of rounding; -1 without a minimum.
    """
    xx, xy, yy = t * b[0] - a[0], t * b[1] - a[1], t * b[2] - a[2]
    det, square = 4.0 * xx * yy - xy * xy, (xx + yy) * (xx + yy)
    if not (xx > 0.0 and det > FLAT * square):
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0
    x, xu, xv = t * b[3] - a[3], t * b[4] - a[4], t * b[5] - a[5]
    y, yu, yv = t * b[6] - a[6], t * b[7] - a[7], t * b[8] - a[8]
    # the inverse of the matrix [[2 xx, xy], [xy, 2 yy]], halved: s = rest - b H^-1 b / 2
    ixx, ixy, iyy = yy / det, -0.5 * xy / det, xx / det
    zx, zy = ixx * x + ixy * y, ixy * x + iyy * y
    ux, uy = ixx * xu + ixy * yu, ixy * xu + iyy * yu
    vx, vy = ixx * xv + ixy * yv, ixy * xv + iyy * yv
    terms = x * x + y * y + xu * xu + yu * yu + xv * xv + yv * yv
    return (
        t * b[9] - a[9] - (x * zx + y * zy),
        t * b[10] - a[10] - 2.0 * (xu * zx + yu * zy),
        t * b[11] - a[11] - 2.0 * (xv * zx + yv * zy),
        t * b[12] - a[12] - (xu * ux + yu * uy),
        t * b[13] - a[13] - 2.0 * (xu * vx + yu * vy),
        t * b[14] - a[14] - (xv * vx + yv * vy),
        abs(t) * b[15] + a[15] + terms * (ixx + iyy) * square / det,
    )


@compiled
def least(s: tuple, box: tuple) -> float:
    """Returns the exact minimum of a polynomial of second degree over a rectangle."""
    one, u, v, uu, uv, vv, _ = s
    u0, u1, v0, v1 = box
    lowest = math.inf
    for k in range(2):
        at = u0 if k == 0 else u1
        lowest = min(lowest, along(one + (u + uu * at) * at, v + uv * at, vv, v0, v1))
        at = v0 if k == 0 else v1
        lowest = min(lowest, along(one + (v + vv * at) * at, u + uv * at, uu, u0, u1))
    det = 4.0 * uu * vv - uv * uv
    if uu > 0.0 and det > 0.0:
        x, y = (uv * v - 2.0 * vv * u) / det, (uv * u - 2.0 * uu * v) / det
        if u0 < x < u1 and v0 < y < v1:
            lowest = min(lowest, one + 0.5 * (u * x + v * y))
    return lowest


@compiled
def along(one: float, slope: float, bend: float, low: float, high: float) -> float:
    """Returns the minimum of one + slope x + bend x^2 between two numbers."""
    result = min(one + (slope + bend * low) * low, one + (slope + bend * high) * high)
    if bend > 0.0:
        x = -0.5 * slope / bend
        if low < x < high:
            result = min(result, one + 0.5 * slope * x)
    return result


@compiled
def largest_weight(a: tuple, b: tuple) -> float:
    """Returns the smallest positive t at which t b - a stops to be convex."""
    da, db = 4.0 * a[0] * a[2] - a[1] * a[1], 4.0 * b[0] * b[2] - b[1] * b[1]
    mixed = 4.0 * (a[0] * b[2] + a[2] * b[0]) - 2.0 * a[1] * b[1]
    return 2.0 * da / (mixed + math.sqrt(max(mixed * mixed - 4.0 * da * db, 0.0)))


@compiled
def best_weight(a: tuple, b: tuple, u: float, v: float) -> float:
    """Returns the t between -1 and the largest allowed that makes s at (u, v) largest.

    s is concave in t and its derivative is b at the minimum in (x, y): safeguarded Newton steps.
    """
    low, high, t = -1.0, largest_weight(a, b) * (1.0 - 1e-6), 0.0
    ax, ay = a[3] + a[4] * u + a[5] * v, a[6] + a[7] * u + a[8] * v
    a1 = a[9] + (a[10] + a[12] * u + a[13] * v) * u + (a[11] + a[14] * v) * v
    bx, by = b[3] + b[4] * u + b[5] * v, b[6] + b[7] * u + b[8] * v
    b1 = b[9] + (b[10] + b[12] * u + b[13] * v) * u + (b[11] + b[14] * v) * v
    for _ in range(_STEPS):
        xx, xy, yy = t * b[0] - a[0], t * b[1] - a[1], t * b[2] - a[2]
        x, y, det = t * bx - ax, t * by - ay, 4.0 * xx * yy - xy * xy
        qx, qy = (xy * y - 2.0 * yy * x) / det, (xy * x - 2.0 * xx * y) / det
        slope = b1 + (bx + b[0] * qx + b[1] * qy) * qx + (by + b[2] * qy) * qy
        gx, gy = bx + 2.0 * b[0] * qx + b[1] * qy, by + 2.0 * b[2] * qy + b[1] * qx
        bend = -2.0 * (yy * gx * gx - xy * gx * gy + xx * gy * gy) / det
        low, high = (t, high) if slope > 0.0 else (low, t)
        step = -slope / bend if bend < 0.0 else math.inf
        new = t + step
        new = new if low < new < high else 0.5 * (low + high)
        value = t * b1 - a1 + 0.5 * (x * qx + y * qy)
        if abs(slope * (new - t)) < _NEAR * abs(value):
            break
        t = new
    return t


@compiled
def reach(side: Side, low: float, high: float) -> tuple[float, float]:
    """Returns the smallest and largest G that a side can have while F is between two numbers."""
    m, px, py, re, rx, ry, rz, c, r, mu, _ = side
    pp = m * m - px * px - py * py
    if pp < 1e-9 * m * m:
        return -math.inf, math.inf
    pr, rr = m * re - px * rx - py * ry, re * re - rx * rx - ry * ry - rz * rz
    k = math.sqrt(max(pr * pr - pp * rr, 0.0))
    least, most = math.inf, -math.inf
    rest = math.sqrt(pp) * mu
    for k_f in range(2):
        f = max(0.5 * ((low if k_f == 0 else high) - c), rest)
        w = k * math.sqrt(max(f * f - rest * rest, 0.0))
        least, most = min(least, (pr * f - w) / pp), max(most, (pr * f + w) / pp)
    if rr > 0.0:  # where q is along R
        f = abs(pr) * mu / math.sqrt(rr)
        if low < 2.0 * f + c < high:
            edge = math.sqrt(rr) * mu * (1.0 if pr > 0.0 else -1.0)
            least, most = min(least, edge), max(most, edge)
    return r + 2.0 * least, r + 2.0 * most


@compiled
def examined(a: tuple, b: tuple, box: tuple) -> tuple[int, float]:
    """Tries to prove that a rectangle holds no solution, side a inside b or apart from it.

    Returns 1 with a proof, 0 if the middle alone has one, and -1 if not even that; and by how much
    more s changes along F than along G.
    """
    u0, u1, v0, v1 = box
    u, v, du, dv = 0.5 * (u0 + u1), 0.5 * (v0 + v1), 0.5 * (u1 - u0), 0.5 * (v1 - v0)
    s = combined(a, b, best_weight(a, b, u, v))
    if s[6] < 0.0:
        return -1, 0.0
    if least(s, box) > ROUNDING * s[6]:
        return 1, 0.0
    middle = s[0] + (s[1] + s[3] * u + s[4] * v) * u + (s[2] + s[5] * v) * v
    along_u = abs(s[1] + 2.0 * s[3] * u + s[4] * v) * du + abs(s[3]) * du * du
    along_v = abs(s[2] + 2.0 * s[5] * v + s[4] * u) * dv + abs(s[5]) * dv * dv
    return 0 if middle > ROUNDING * s[6] else -1, along_u - along_v


@compiled
def no_smaller(
    a: Side, b: Side, Qx: float, Qy: float, low: float, high: float, G: float, boxes: np.ndarray
) -> bool:
    """Proves that no momenta have F between two numbers; the found minimum is at `high`, `G`."""
    ga, gb = reach(a, low, high), reach(b, low, high)
    g0, g1 = max(ga[0], gb[0]), min(ga[1], gb[1])
    if not (math.isfinite(g0) and math.isfinite(g1)):
        return False
    if g0 > g1 or low >= high:
        return True
    one, two = conic(a, high, G), turned(conic(b, high, G), Qx, Qy)
    room = EDGE * (g1 - g0)
    boxes[0] = 0.5 * (low - high), 0.0, 0.5 * (g0 - G) - room, 0.5 * (g1 - G) + room, 0.0
    left = 1
    for _ in range(MOST_BOXES):
        left -= 1
        u0, u1, v0, v1, inside = boxes[left]
        box = (u0, u1, v0, v1)
        # what proved something about the larger rectangle is tried first
        state, more = examined(one, two, box) if inside == 0.0 else examined(two, one, box)
        if state < 0:
            inside = 1.0 - inside
            state, more = examined(one, two, box) if inside == 0.0 else examined(two, one, box)
        if state < 0 and left > 0:
            return False
        if state < 1:
            u, v = 0.5 * (u0 + u1), 0.5 * (v0 + v1)
            boxes[left] = (u0, u, v0, v1, inside) if more > 0.0 else (u0, u1, v0, v, inside)
            boxes[left + 1] = (u, u1, v0, v1, inside) if more > 0.0 else (u0, u1, v, v1, inside)
            left += 2
        if left == 0:
            return True
    return False


@compiled
def in_frame(side: Side, x: float, y: float, z: float) -> float:
    """Returns the q_z in the frame of a side of a momentum in the laboratory."""
    e = math.sqrt(side[9] * side[9] + x * x + y * y + z * z)
    return 0.5 * ((e + z) / side[10] - (e - z) * side[10])


@compiled
def prove(
    P: np.ndarray,
    R: np.ndarray,
    Q: np.ndarray,
    mu: np.ndarray,
    least_mass: np.ndarray,
    out: np.ndarray,
    how: np.ndarray,
) -> None:
    """Certifies events (N) that were only found; `least_mass` is a proven lower bound, as MT2."""
    boxes = np.empty((MOST_BOXES + 2, 5))
    for i in range(len(out)):
        if how[i] != FOUND:
            continue
        a, b, Qx, Qy, scale = read(P[i], R[i], Q[i], mu[i])
        f = (out[i, 0] / scale) ** 2
        low, high = (least_mass[i] / scale) ** 2 * (1.0 - GAP), f - GAP * f - SMALLEST_GAP
        x, y = out[i, 1] / scale, out[i, 2] / scale
        G = masses(a, x, y, in_frame(a, x, y, out[i, 3] / scale))[1]
        if no_smaller(a, b, Qx, Qy, low, high, G, boxes):
            how[i] = CERTIFIED
