"""Solved invisible legs inside compiled kernels, see `massrecon.kinematics.mixture_invisible`."""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import fused
from massrecon.kinematics.mixture_invisible import LEAST_SQUARED, MOST_PULL
from massrecon.kinematics.vector_math import log
from massrecon.kinematics.vector_rows import LANES

Array = np.ndarray
_FAR_PULL = 18.0  # half a squared pull beyond which a solution is left out
_LN_2 = math.log(2.0)


@fused
def solve_leg(
    leg: Array,
    mother: Array,
    share: Array,
    variances: tuple[Array, Array],
    numbers: tuple[float, float, float, float],
    n: int,
) -> None:
    """Solves for an invisible leg in n events.

    Args:
        leg: The result: nu (4 rows), slopes (3), variances (2), unreal, log root, pull.
        mother: Momentum of the visible part of its mother, four rows.
        share: Its share of ptmiss, ``(2, n)``.
        variances: Of the share, from ptmiss and from cells.
        numbers: Mass of the mother and of the leg, width of the cells of the former, and the sign.
        n: Number of events.
    """
    (mass, own, cell, sign), (by_ptmiss, by_cell) = numbers, variances
    share_x, share_y = share[0], share[1]
    for t in range(n):
        vx, vy = mother[t], mother[LANES + t]
        vz, ve = mother[2 * LANES + t], mother[3 * LANES + t]
        x, y = share_x[t], share_y[t]
        free = 0.5 * (mass * mass - own * own - (ve * ve - vx * vx - vy * vy - vz * vz))
        transverse = max(ve * ve - vz * vz, LEAST_SQUARED)
        excess = math.sqrt(transverse * (x * x + y * y + own * own)) - vx * x - vy * y
        unreal = excess > free
        scale = min(max(free / excess, 0.0), 1.0) if unreal else 1.0
        missing = (1.0 - scale) * (1.0 - scale) * (x * x + y * y)
        x, y = x * scale, y * scale
        mu = free + vx * x + vy * y
        squared = max(mu * mu - transverse * (x * x + y * y + own * own), 0.0)
        z = (mu * vz + sign * ve * math.sqrt(squared)) / transverse
        e = math.sqrt(max(x * x + y * y + z * z + own * own, 1e-6))
        gx, gy = vx - ve * x / e, vy - ve * y / e
        variance = by_ptmiss[t] + by_cell[t]
        step = math.sqrt(variance * (gx * gx + gy * gy)) + mass * cell
        d = ve * z / e - vz
        inverse = d / max(d * d + ve * (e * e - z * z) / (e * e * e) * step, 1e-9)
        leg[t] = x
        leg[LANES + t] = y
        leg[2 * LANES + t] = z
        leg[3 * LANES + t] = e
        leg[4 * LANES + t] = gx * inverse
        leg[5 * LANES + t] = gy * inverse
        leg[6 * LANES + t] = inverse
        leg[7 * LANES + t] = by_ptmiss[t]
        leg[8 * LANES + t] = by_cell[t]
        leg[9 * LANES + t] = 1.0 if unreal else 0.0
        leg[10 * LANES + t] = 0.5 * log(max(squared + abs(mu) * step, 1e-300))
        leg[11 * LANES + t] = min(0.5 * missing / variance, MOST_PULL)


@fused
def add_way(to: Array, leg: Array, way: Array, root: int, n: int) -> None:
    """Adds the log weight of a solution.

    It is -inf where the solution is far from real, or counted with another root.
    """
    by_root, by_pull = way[0], way[1]
    for t in range(n):
        unreal, pull = leg[9 * LANES + t] > 0.0, by_pull * leg[11 * LANES + t]
        out = unreal & ((root == 1) | (pull < -_FAR_PULL))
        found = by_root * leg[10 * LANES + t] + pull + (_LN_2 if unreal else 0.0)
        to[t] += -math.inf if out else found
