"""Algebra of M2, for numbers inside compiled kernels and for tensors alike.

The notation is that of `massrecon.kinematics.constrained_kernel`.
"""

from __future__ import annotations

from typing import Any

from massrecon.kinematics.backends import root, shared

# (transverse mass of P, P_x, P_y, R_E, R_x, R_y, R_z, c, r, mu, boost): numbers or tensors
Side = tuple[Any, ...]


@shared
def scaled(side: Side, scale: Any) -> Side:
    """Divides all momenta of a side by a scale."""
    m, x, y, e, rx, ry, rz, c, r, mu, boost = side
    s = 1.0 / scale
    return m * s, x * s, y * s, e * s, rx * s, ry * s, rz * s, c * s * s, r * s * s, mu * s, boost


@shared
def masses(side: Side, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """Returns F and G at the invisible momentum (x, y, z)."""
    m, px, py, re, rx, ry, rz, c, r, mu, _ = side
    e = root(mu * mu + x * x + y * y + z * z)
    return c + 2.0 * (m * e - px * x - py * y), r + 2.0 * (re * e - rx * x - ry * y - rz * z)


@shared
def values(a: Side, b: Side, Qx: Any, Qy: Any, p: tuple) -> tuple[Any, Any, Any]:
    """Returns the mean of F and the differences of F and of G between the sides."""
    fa, ga = masses(a, p[0], p[1], p[2])
    fb, gb = masses(b, Qx - p[0], Qy - p[1], p[3])
    return 0.5 * (fa + fb), fa - fb, ga - gb


@shared
def weighted(side: Side, f: Any, g: Any) -> tuple[Any, Any, Any, Any]:
    """Returns (E, x, y, z) of K = f P + g R."""
    energy, x = f * side[0] + g * side[3], f * side[1] + g * side[4]
    return energy, x, f * side[2] + g * side[5], g * side[6]


@shared
def slopes(side: Side, K: tuple, x: Any, y: Any) -> tuple:
    """Returns the mass of (K_E, K_z), e, dF/de, dG/de and F, G up to constants, all halved.

    Here q has the rapidity of K. NaN where K is not forward.
    """
    mass = root((K[0] - abs(K[3])) * abs(K[0] + abs(K[3])))
    e = root(side[9] * side[9] + x * x + y * y)
    f = K[0] * side[0] / mass
    g = (K[0] * side[3] - K[3] * side[6]) / mass
    half_f = e * f - side[1] * x - side[2] * y
    half_g = e * g - side[4] * x - side[5] * y
    return mass, e, f, g, half_f, half_g


@shared
def saddle_step(a: Side, b: Side, Qx: Any, Qy: Any, at: tuple, free: Any) -> tuple:
    """Returns how far (x, y, w, v) is from the saddle point, and the Newton step to it.

    The distance is that of the conditions: NaN where L has no minimum. w stays where `free` is 0.
    """
    x, y, w, v = at
    ka, kb = weighted(a, w, v), weighted(b, 1.0 - w, -v)
    ra, ea, fa, ga, half_fa, half_ga = slopes(a, ka, x, y)
    rb, eb, fb, gb, half_fb, half_gb = slopes(b, kb, Qx - x, Qy - y)
    ia, ib, sa, sb = 1.0 / ea, 1.0 / eb, 1.0 / ra, 1.0 / rb
    ux, uy, wx, wy, ca, cb = x * ia, y * ia, (Qx - x) * ib, (Qy - y) * ib, ra * ia, rb * ib
    # the conditions: gradients by x, y and by w, v
    rx, ry = ra * ux - ka[1] - rb * wx + kb[1], ra * uy - ka[2] - rb * wy + kb[2]
    hf = free * (0.5 * (a[7] - b[7]) + half_fa - half_fb)
    hg = 0.5 * (a[8] - b[8]) + half_ga - half_gb
    off = root(rx * rx + ry * ry + hf * hf + hg * hg)
    hxx = ca * (1.0 - ux * ux) + cb * (1.0 - wx * wx)
    hyy = ca * (1.0 - uy * uy) + cb * (1.0 - wy * wy)
    hxy = -ca * ux * uy - cb * wx * wy
    fx, fy = fa * ux - a[1] + fb * wx - b[1], fa * uy - a[2] + fb * wy - b[2]
    gx, gy = ga * ux - a[4] + gb * wx - b[4], ga * uy - a[5] + gb * wy - b[5]
    # the curvature in (w, v): each side bends along one direction only
    fka, gka = -ka[3] * a[0], ka[0] * a[6] - ka[3] * a[3]
    fkb, gkb = -kb[3] * b[0], kb[0] * b[6] - kb[3] * b[3]
    ba, bb = ea * sa * sa * sa, eb * sb * sb * sb
    inverse = 1.0 / (hxx * hyy - hxy * hxy)
    sfx, sfy = (hyy * fx - hxy * fy) * inverse, (hxx * fy - hxy * fx) * inverse
    sgx, sgy = (hyy * gx - hxy * gy) * inverse, (hxx * gy - hxy * gx) * inverse
    srx, sry = (hyy * rx - hxy * ry) * inverse, (hxx * ry - hxy * rx) * inverse
    ff = ba * fka * fka + bb * fkb * fkb + fx * sfx + fy * sfy
    fg = free * (ba * fka * gka + bb * fkb * gkb + fx * sgx + fy * sgy)
    gg = ba * gka * gka + bb * gkb * gkb + gx * sgx + gy * sgy
    rf, rg = hf - free * (fx * srx + fy * sry), hg - gx * srx - gy * sry
    inverse = 1.0 / (ff * gg - fg * fg)
    dw, dv = (gg * rf - fg * rg) * inverse, (ff * rg - fg * rf) * inverse
    return off, (-srx - sfx * dw - sgx * dv, -sry - sfy * dw - sgy * dv, dw, dv)


@shared
def saddle_point(a: Side, b: Side, Qx: Any, Qy: Any, at: tuple) -> tuple:
    """Returns (F_a, F_b) and (q_x, q_y, q_z of a, q_z of b) where q have the rapidities of K."""
    x, y, w, v = at
    ka, kb = weighted(a, w, v), weighted(b, 1.0 - w, -v)
    ra, ea, _, _, fa, _ = slopes(a, ka, x, y)
    rb, eb, _, _, fb, _ = slopes(b, kb, Qx - x, Qy - y)
    return a[7] + 2.0 * fa, b[7] + 2.0 * fb, (x, y, ea * ka[3] / ra, eb * kb[3] / rb)


@shared
def bound_at(a: Side, b: Side, Qx: Any, Qy: Any, at: tuple, nudge: float) -> Any:
    """Returns a proven lower bound on the squared mass, NaN if the multipliers prove nothing.

    Massless K - t lie on the edge of the forward cone: `nudge` shifts weights and t inwards.
    """
    x, y, w, v = at
    X, Y = Qx - x, Qy - y
    wa, wb = w + nudge, 1.0 - w + nudge
    ka, kb = weighted(a, wa, v), weighted(b, wb, -v)
    ra, ea, _, _, _, _ = slopes(a, ka, x, y)
    rb, eb, _, _, _, _ = slopes(b, kb, X, Y)
    ax, ay, bx, by = x / ea, y / ea, X / eb, Y / eb
    tx = 0.5 * (ka[1] - ra * ax + kb[1] - rb * bx) + nudge * (ax + bx)
    ty = 0.5 * (ka[2] - ra * ay + kb[2] - rb * by) + nudge * (ay + by)
    dax, day, dbx, dby = ka[1] - tx, ka[2] - ty, kb[1] - tx, kb[2] - ty
    sa, sb = root(ra * ra - dax * dax - day * day), root(rb * rb - dbx * dbx - dby * dby)
    rest = wa * a[7] + wb * b[7] + v * (a[8] - b[8]) - 2.0 * (tx * Qx + ty * Qy)
    # the weights add up to 1 + 2 nudge, and F_a = F_b
    return (rest + 2.0 * (a[9] * sa + b[9] * sb)) / (1.0 + 2.0 * nudge)


@shared
def gradients(side: Side, x: Any, y: Any, z: Any) -> tuple:
    """Returns the velocity of q, its energy, and the gradients of F and G by (x, y, z)."""
    e = root(side[9] * side[9] + x * x + y * y + z * z)
    vx, vy, vz = x / e, y / e, z / e
    f = 2.0 * (side[0] * vx - side[1]), 2.0 * (side[0] * vy - side[2]), 2.0 * side[0] * vz
    gx, gy = 2.0 * (side[3] * vx - side[4]), 2.0 * (side[3] * vy - side[5])
    return (vx, vy, vz, e), f, (gx, gy, 2.0 * (side[3] * vz - side[6]))


@shared
def derivatives(a: Side, b: Side, Qx: Any, Qy: Any, p: tuple) -> tuple:
    """Returns velocities and the gradients of mean F, F_a - F_b and G_a - G_b at a point."""
    va, fa, ga = gradients(a, p[0], p[1], p[2])
    vb, fb, gb = gradients(b, Qx - p[0], Qy - p[1], p[3])
    mean = 0.5 * (fa[0] - fb[0]), 0.5 * (fa[1] - fb[1]), 0.5 * fa[2], 0.5 * fb[2]
    first = fa[0] + fb[0], fa[1] + fb[1], fa[2], -fb[2]
    second = ga[0] + gb[0], ga[1] + gb[1], ga[2], -gb[2]
    return va, vb, mean, first, second


@shared
def curvature(va: tuple, vb: tuple, ka: Any, kb: Any, soft: float) -> tuple:
    """Returns the Hessian of L by (x, y, z_a, z_b) as (xx, xy, yy, xa, ya, xb, yb, aa, bb)."""
    ha, hb, k = 2.0 * ka / va[3], 2.0 * kb / vb[3], 1.0 - soft
    xx = ha * (1.0 - k * va[0] * va[0]) + hb * (1.0 - k * vb[0] * vb[0])
    yy = ha * (1.0 - k * va[1] * va[1]) + hb * (1.0 - k * vb[1] * vb[1])
    xy = -k * (ha * va[0] * va[1] + hb * vb[0] * vb[1])
    xa, ya = -k * ha * va[0] * va[2], -k * ha * va[1] * va[2]
    xb, yb = k * hb * vb[0] * vb[2], k * hb * vb[1] * vb[2]
    aa, bb = ha * (1.0 - k * va[2] * va[2]), hb * (1.0 - k * vb[2] * vb[2])
    return xx, xy, yy, xa, ya, xb, yb, aa, bb


@shared
def divide(h: tuple, r: tuple) -> tuple:
    """Solves H s = r for the Hessian of `curvature`."""
    xx, xy, yy, xa, ya, xb, yb, aa, bb = h
    sxx, syy = xx - xa * xa / aa - xb * xb / bb, yy - ya * ya / aa - yb * yb / bb
    sxy = xy - xa * ya / aa - xb * yb / bb
    rx, ry = r[0] - xa * r[2] / aa - xb * r[3] / bb, r[1] - ya * r[2] / aa - yb * r[3] / bb
    det = sxx * syy - sxy * sxy
    x, y = (syy * rx - sxy * ry) / det, (sxx * ry - sxy * rx) / det
    return x, y, (r[2] - xa * x - ya * y) / aa, (r[3] - xb * x - yb * y) / bb


@shared
def dot(p: tuple, q: tuple) -> Any:
    """Returns the scalar product of four components."""
    return p[0] * q[0] + p[1] * q[1] + p[2] * q[2] + p[3] * q[3]


@shared
def moved(p: tuple, t: Any, s: tuple) -> tuple:
    """Returns p + t s."""
    return p[0] + t * s[0], p[1] + t * s[1], p[2] + t * s[2], p[3] + t * s[3]


@shared
def steepness(g: tuple, A: tuple, B: tuple, la: Any, lb: Any) -> Any:
    """Returns the sum of |dL/dp|."""
    total = abs(g[0] + la * A[0] + lb * B[0]) + abs(g[1] + la * A[1] + lb * B[1])
    return total + abs(g[2] + la * A[2] + lb * B[2]) + abs(g[3] + la * A[3] + lb * B[3])


@shared
def constrained_step(h: tuple, g: tuple, A: tuple, B: tuple, ha: Any, hb: Any) -> tuple:
    """Minimises g s + s H s / 2 with A s = -ha, B s = -hb; returns s and the multipliers."""
    sg, sa, sb = divide(h, g), divide(h, A), divide(h, B)
    aa, ab, bb = dot(A, sa), dot(A, sb), dot(B, sb)
    ra, rb = ha - dot(A, sg), hb - dot(B, sg)
    det = aa * bb - ab * ab
    la, lb = (bb * ra - ab * rb) / det, (aa * rb - ab * ra) / det
    step = moved(moved(moved((0.0, 0.0, 0.0, 0.0), -1.0, sg), -la, sa), -lb, sb)
    return step, la, lb


@shared
def lifted(side: Side, x: Any, y: Any, f: Any) -> Any:
    """Returns the |q_z| that gives a side the squared mass f at a transverse momentum, or 0."""
    e = (0.5 * (f - side[7]) + side[1] * x + side[2] * y) / side[0]
    squared = e * e - side[9] * side[9] - x * x - y * y
    return root(0.5 * (squared + abs(squared)))


@shared
def in_lab(side: Side, x: Any, y: Any, z: Any) -> Any:
    """Returns the q_z in the laboratory of a momentum in the frame of a scaled side."""
    e = root(side[9] * side[9] + x * x + y * y + z * z)
    return 0.5 * ((e + z) * side[10] - (e - z) / side[10])


@shared
def matched(side: Side, x: Any, y: Any, g: Any, sign: float) -> Any:
    """Returns one of two q_z with G = g at a transverse momentum; NaN if there is none."""
    e_squared = side[9] * side[9] + x * x + y * y
    product = 0.5 * (g - side[8]) + side[4] * x + side[5] * y  # R_E e - R_z q_z
    squared = side[3] * side[3] - side[6] * side[6]
    excess = root(product * product - squared * e_squared) + 0.0 * root(product * side[3])
    return (product * side[6] + sign * abs(side[3]) * excess) / squared


@shared
def vanishing_at(a: Side, b: Side, Qx: Any, Qy: Any, sign: float) -> tuple:
    """Returns (F_b, q_z, v, depth, bound) where massless q_a vanishes and G_b = r_a.

    It is the minimum of F_b with G_a = G_b if depth >= 0 and the bound reaches F_b.
    """
    energy = root(b[9] * b[9] + Qx * Qx + Qy * Qy)
    z = matched(b, Qx, Qy, a[8], sign)
    f, e = masses(b, Qx, Qy, z)[0], root(energy * energy + z * z)
    # K_b has the rapidity of q_b, and |K_a - t| for the t of side b allows q_a = 0
    v = b[0] * z / (b[3] * z - b[6] * e)
    ka, kb = weighted(a, 0.0, v), weighted(b, 1.0, -v)
    ra = root((ka[0] - abs(ka[3])) * abs(ka[0] + abs(ka[3])))
    rb = root((kb[0] - abs(kb[3])) * abs(kb[0] + abs(kb[3])))
    tx, ty = kb[1] - rb * Qx / energy, kb[2] - rb * Qy / energy
    dx, dy = ka[1] - tx, ka[2] - ty
    proven = b[7] + v * (a[8] - b[8]) - 2.0 * (tx * Qx + ty * Qy)
    return f, z, v, ra * ra - dx * dx - dy * dy, proven + 2.0 * b[9] * b[9] * rb / energy
