"""What a chain says about masses, compiled: `ChainBuilder.terms` and `ChainResponse.information`.

Everything that depends on a set of objects alone (its momentum, its resolution, its log weight to
be extra) is added up once for each distinct set of an event; a mass then moves with object k by
A . p_k, where the four-vector A is P / y with lowered index, and in the mother of a solved leg by
B . p_k with B = A - (dy / d(V . nu)) (V + nu). With K = sum_k r_k^2 p_k p_k of the common objects,

    S_ij = A_i K A_j     or, with a common mother,     A_i (K - K_mother) A_j + B_i K_mother B_j.

Events go through in blocks of `LANES`, see `massrecon.kinematics.vector_rows`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from massrecon.kinematics import vector_rows as rows
from massrecon.kinematics.backends import compiled, fused
from massrecon.kinematics.mixture_arrays import (
    BY_CONSTANT,
    BY_LEAN,
    BY_SHARE,
    EXTRA,
    LEAN,
    LOSSY,
    MASS,
    N_EFFECT,
    N_LEG,
    N_RESONANCE,
    N_SUMS,
    TENSOR,
    A,
    B,
    ChainNumbers,
    ChainTables,
    EventNumbers,
    Workspace,
)
from massrecon.kinematics.mixture_legs import add_way, solve_leg
from massrecon.kinematics.vector_rows import LANES

Array = np.ndarray
_LIGHTEST = 1.0
Way = tuple[int, int, int]  # configuration, roots, and filling


@fused
def add_object(to: Array, p4: Array, variance: Array, extra: Array, lossy: Any, n: int) -> None:
    """Adds an object, of momenta ``(4, n)``, to a set."""
    px, py, pz, energy = p4[0], p4[1], p4[2], p4[3]
    for t in range(n):
        x, y, z, e, r = px[t], py[t], pz[t], energy[t], variance[t]
        to[t] += x
        to[LANES + t] += y
        to[2 * LANES + t] += z
        to[3 * LANES + t] += e
        to[LOSSY * LANES + t] += lossy * x
        to[(LOSSY + 1) * LANES + t] += lossy * y
        to[(LOSSY + 2) * LANES + t] += lossy * z
        to[(LOSSY + 3) * LANES + t] += lossy * e
        to[TENSOR * LANES + t] += r * x * x
        to[(TENSOR + 1) * LANES + t] += r * x * y
        to[(TENSOR + 2) * LANES + t] += r * x * z
        to[(TENSOR + 3) * LANES + t] += r * x * e
        to[(TENSOR + 4) * LANES + t] += r * y * y
        to[(TENSOR + 5) * LANES + t] += r * y * z
        to[(TENSOR + 6) * LANES + t] += r * y * e
        to[(TENSOR + 7) * LANES + t] += r * z * z
        to[(TENSOR + 8) * LANES + t] += r * z * e
        to[(TENSOR + 9) * LANES + t] += r * e * e
        to[EXTRA * LANES + t] += extra[t]


@fused
def add_up_sets(event: EventNumbers, tables: ChainTables, first: int, n: int, sums: Array) -> None:
    """Adds up the objects of each distinct set, for n events from `first` on."""
    for u in range(len(tables.n_members)):
        to = sums[u * N_SUMS * LANES :]
        rows.fill(to, 0.0, N_SUMS * LANES)
        for m in range(tables.n_members[u]):
            k = tables.members[u, m]
            p4, variance = event.p4[k, :, first:], event.variance[k, first:]
            add_object(to, p4, variance, event.extra[k, first:], event.lossy[k], n)


@fused
def contract(to: Array, sums: Array, a: Array, b: Array, factor: float, n: int) -> None:
    """Adds a multiple of the contraction of the tensor K of a set with two four-vectors."""
    k = sums[TENSOR * LANES :]
    for t in range(n):
        x, y, z, e = b[t], b[LANES + t], b[2 * LANES + t], b[3 * LANES + t]
        xx, xy, xz, xe = k[t], k[LANES + t], k[2 * LANES + t], k[3 * LANES + t]
        yy, yz, ye = k[4 * LANES + t], k[5 * LANES + t], k[6 * LANES + t]
        zz, ze, ee = k[7 * LANES + t], k[8 * LANES + t], k[9 * LANES + t]
        found = a[t] * (xx * x + xy * y + xz * z + xe * e)
        found += a[LANES + t] * (xy * x + yy * y + yz * z + ye * e)
        found += a[2 * LANES + t] * (xz * x + yz * y + zz * z + ze * e)
        found += a[3 * LANES + t] * (xe * x + ye * y + ze * z + ee * e)
        to[t] += factor * found


@fused
def measure(to: Array, sums: Array, n: int) -> None:
    """Fills mass, A and lean of a resonance from its momentum."""
    lossy = sums[LOSSY * LANES :]
    for t in range(n):
        x, y, z, e = to[t], to[LANES + t], to[2 * LANES + t], to[3 * LANES + t]
        mass = math.sqrt(max(e * e - x * x - y * y - z * z, _LIGHTEST**2))
        inverse = 1.0 / mass
        x, y, z, e = -x * inverse, -y * inverse, -z * inverse, e * inverse
        to[A * LANES + t] = x
        to[(A + 1) * LANES + t] = y
        to[(A + 2) * LANES + t] = z
        to[(A + 3) * LANES + t] = e
        to[MASS * LANES + t] = mass
        to[LEAN * LANES + t] = (
            x * lossy[t]
            + y * lossy[LANES + t]
            + z * lossy[2 * LANES + t]
            + e * lossy[3 * LANES + t]
        )


@fused
def effect_of_leg(to: Array, resonance: Array, leg: Array, mother: Array, n: int) -> None:
    """Fills what a solved leg does to a resonance, with the sums of the visible mother."""
    p, nu, v, lossy = resonance, leg, mother, mother[LOSSY * LANES :]
    for t in range(n):
        px, py, pz, e = p[t], p[LANES + t], p[2 * LANES + t], p[3 * LANES + t]
        nx, ny, nz, ne = nu[t], nu[LANES + t], nu[2 * LANES + t], nu[3 * LANES + t]
        inverse = 1.0 / p[MASS * LANES + t]
        ratio = e / ne
        by_z = (ratio * nz - pz) * inverse
        to[BY_SHARE * LANES + t] = (ratio * nx - px) * inverse + by_z * nu[4 * LANES + t]
        to[(BY_SHARE + 1) * LANES + t] = (ratio * ny - py) * inverse + by_z * nu[5 * LANES + t]
        by = by_z * nu[6 * LANES + t]
        to[BY_CONSTANT * LANES + t] = by
        x, y = -by * (v[t] + nx), -by * (v[LANES + t] + ny)
        z, w = -by * (v[2 * LANES + t] + nz), by * (v[3 * LANES + t] + ne)
        to[B * LANES + t] = p[A * LANES + t] - x
        to[(B + 1) * LANES + t] = p[(A + 1) * LANES + t] - y
        to[(B + 2) * LANES + t] = p[(A + 2) * LANES + t] - z
        to[(B + 3) * LANES + t] = p[(A + 3) * LANES + t] - w
        to[BY_LEAN * LANES + t] = -(
            x * lossy[t]
            + y * lossy[LANES + t]
            + z * lossy[2 * LANES + t]
            + w * lossy[3 * LANES + t]
        )


@fused
def place_of_leg(tables: ChainTables, numbers: ChainNumbers, at: int, way: Way) -> int:
    """Returns where the rows of a solved leg in a way to solve start."""
    (c, r, f), n_sets = way, tables.mothers.shape[1]
    row = ((at * n_sets + tables.mother[at, c]) * 2 + ((r >> at) & 1)) * len(numbers.filling) + f
    return row * N_LEG * LANES


@fused
def solve_legs(
    event: EventNumbers, tables: ChainTables, numbers: ChainNumbers, work: Workspace, at: tuple
) -> None:
    """Solves for all legs, mothers, roots and fillings, for `at[1]` events from `at[0]` on."""
    (first, n), row = at, 0
    for i in range(len(tables.mothers)):
        for m in range(tables.mothers.shape[1]):
            for r in range(2):
                for f in range(len(numbers.filling)):
                    if tables.mothers[i, m] >= 0:
                        solve_leg(
                            work.legs[row * N_LEG * LANES :],
                            work.sums[tables.mothers[i, m] * N_SUMS * LANES :],
                            event.share[i, f, :, first:],
                            (event.ptmiss[first:], event.cell[f, first:]),
                            (numbers.mass[i, f], numbers.own[i], numbers.cell[i], 1.0 - 2.0 * r),
                            n,
                        )
                    row += 1


@fused
def start_resonances(work: Workspace, tables: ChainTables, c: int, n: int) -> None:
    """Measures all resonances of a configuration as far as they are seen."""
    for i in range(len(tables.node)):
        sums = work.sums[tables.node[i, c] * N_SUMS * LANES :]
        to = work.resonances[i * N_RESONANCE * LANES :]
        rows.copy(to, sums, 4 * LANES)
        measure(to, sums, n)


@fused
def add_solutions(
    work: Workspace, tables: ChainTables, numbers: ChainNumbers, way: Way, n: int
) -> None:
    """Completes the resonances with the solved legs."""
    c, n_legs, n_trials = way[0], len(tables.mothers), len(numbers.trial_parameter)
    for i in range(len(tables.node)):
        sums = work.sums[tables.node[i, c] * N_SUMS * LANES :]
        to = work.resonances[i * N_RESONANCE * LANES :]
        if n_legs:
            rows.copy(to, sums, 4 * LANES)
        solved = False
        for at in range(n_legs):
            if tables.inside[i, at]:
                solved = True
                rows.add(to, work.legs[place_of_leg(tables, numbers, at, way) :], 1.0, 4 * LANES)
        if solved:
            measure(to, sums, n)
        for p in range(n_trials):
            rows.fill(work.by_trial[(i * n_trials + p) * LANES :], 0.0, n)
        for at in range(n_legs):
            if tables.inside[i, at]:
                leg = work.legs[place_of_leg(tables, numbers, at, way) :]
                mother = work.sums[tables.mothers[at, tables.mother[at, c]] * N_SUMS * LANES :]
                effect = work.effects[(i * n_legs + at) * N_EFFECT * LANES :]
                effect_of_leg(effect, to, leg, mother, n)
                rows.add(to[LEAN * LANES :], effect[BY_LEAN * LANES :], 1.0, n)
                if numbers.tried[at] >= 0:
                    by_trial = work.by_trial[(i * n_trials + numbers.tried[at]) * LANES :]
                    by_constant = effect[BY_CONSTANT * LANES :]
                    rows.add(by_trial, by_constant, numbers.mass[at, way[2]], n)


@fused
def add_resolution(
    to: Array, work: Workspace, tables: ChainTables, c: int, pair: tuple[int, int], n: int
) -> None:
    """Adds the covariance of two masses from the resolutions of their common objects."""
    (i, j), n_legs = pair, tables.inside.shape[1]
    small = tables.smaller[i, j]
    if small < 0:
        return
    sums = work.sums[tables.node[small, c] * N_SUMS * LANES :]
    one = work.resonances[(i * N_RESONANCE + A) * LANES :]
    other = work.resonances[(j * N_RESONANCE + A) * LANES :]
    large = j if small == i else i
    at = tables.under[small]
    if at >= 0 and tables.inside[large, at]:
        effect = work.effects[((large * n_legs + at) * N_EFFECT + B) * LANES :]
        contract(to, sums, one if small == i else other, effect, 1.0, n)
        return
    contract(to, sums, one, other, 1.0, n)
    for at in range(n_legs):
        if tables.inside[small, at]:
            mother = work.sums[tables.mothers[at, tables.mother[at, c]] * N_SUMS * LANES :]
            by_one = work.effects[((i * n_legs + at) * N_EFFECT + B) * LANES :]
            by_other = work.effects[((j * n_legs + at) * N_EFFECT + B) * LANES :]
            contract(to, mother, one, other, -1.0, n)
            contract(to, mother, by_one, by_other, 1.0, n)


@fused
def add_shares(to: Array, one: Array, other: Array, leg: Array, factors: Array, n: int) -> None:
    """Adds the covariance of two masses from the share of a leg in both."""
    by_ptmiss, by_cell = factors[0], factors[1]
    one, other, leg = one[BY_SHARE * LANES :], other[BY_SHARE * LANES :], leg[7 * LANES :]
    for t in range(n):
        variance = by_ptmiss * leg[t] + by_cell * leg[LANES + t]
        to[t] += variance * (one[t] * other[t] + one[LANES + t] * other[LANES + t])


@fused
def add_widths(
    to: Array, resonance: Array, unreal: Array, factors: tuple[float, float, float, float], n: int
) -> None:
    """Adds to the variance of a mass its blur, a constant, and widths of real or unreal legs."""
    blur, constant, if_real, if_unreal = factors
    for t in range(n):
        mass = resonance[MASS * LANES + t]
        width = if_unreal if unreal[t] > 0.0 else if_real
        to[t] += blur * mass * mass + constant + width


@fused
def fill_covariance(
    work: Workspace, tables: ChainTables, numbers: ChainNumbers, way: Way, n: int
) -> None:
    """Fills the covariance of the masses, on and above the diagonal."""
    c, size, n_legs = way[0], len(tables.node), len(tables.mothers)
    lost = tables.lost[c]
    for i in range(size):
        one = work.resonances[i * N_RESONANCE * LANES :]
        for j in range(i, size):
            other = work.resonances[j * N_RESONANCE * LANES :]
            to = work.s[(i * size + j) * LANES :]
            rows.fill(to, 0.0, n)
            rows.add_product(
                to, one[LEAN * LANES :], other[LEAN * LANES :], numbers.spread[lost], n
            )
            add_resolution(to, work, tables, c, (i, j), n)
            for at in range(n_legs):
                if tables.inside[i, at] and tables.inside[j, at]:
                    add_shares(
                        to,
                        work.effects[(i * n_legs + at) * N_EFFECT * LANES :],
                        work.effects[(j * n_legs + at) * N_EFFECT * LANES :],
                        work.legs[place_of_leg(tables, numbers, at, way) :],
                        numbers.factors,
                        n,
                    )
        blur = numbers.blur[i, lost] + (numbers.constants[1] if tables.bare[i, c] else 0.0)
        if_real, if_unreal = 0.0, 0.0
        rows.fill(work.unreal, 0.0, n)
        for at in range(n_legs):
            if tables.inside[i, at]:
                if_real, if_unreal = numbers.invisible[0], numbers.invisible[1]
                leg = work.legs[place_of_leg(tables, numbers, at, way) :]
                rows.add(work.unreal, leg[9 * LANES :], 1.0, n)
        factors = (blur, numbers.constants[0], if_real, if_unreal)
        add_widths(work.s[(i * size + i) * LANES :], one, work.unreal, factors, n)


@fused
def add_momentum(to: Array, resonance: Array, way: Array, n: int) -> None:
    """Adds the log weight of the momentum of the produced particle."""
    transverse, along = way[2], way[3]
    p = resonance
    for t in range(n):
        x, y, z, e = p[t], p[LANES + t], p[2 * LANES + t], p[3 * LANES + t]
        to[t] += transverse * (x * x + y * y) / max(e * e - z * z, _LIGHTEST**2)
        to[t] += along * z * z / max(e * e, _LIGHTEST**2)


@fused
def fill_values(
    work: Workspace, tables: ChainTables, numbers: ChainNumbers, way: Way, n: int
) -> None:
    """Fills measured less expected masses, and the rows of H that are not zero."""
    n_trials, m, lost = len(numbers.trial_parameter), tables.touches.shape[1], tables.lost[way[0]]
    for i in range(len(tables.node)):
        resonance, to = work.resonances[i * N_RESONANCE * LANES :], work.value[i * LANES :]
        rows.fill(to, -numbers.expected[i], n)
        rows.add(to, resonance[MASS * LANES :], 1.0, n)
        rows.add(to, resonance[LEAN * LANES :], numbers.shift[lost], n)
        for p in range(m):
            if tables.touches[i, p]:
                unit = 1.0 if numbers.parameter[i] == p else 0.0
                rows.fill(work.design[(i * m + p) * LANES :], unit, n)
        for k in range(n_trials):
            p = numbers.trial_parameter[k]
            if tables.touches[i, p]:
                by = work.by_trial[(i * n_trials + k) * LANES :]
                rows.add(to, by, -numbers.trial[way[2], k], n)
                rows.add(work.design[(i * m + p) * LANES :], by, -1.0, n)


@fused
def add_triple(to: Array, one: Array, other: Array, third: Array, n: int) -> None:
    """Adds the product of three rows."""
    for t in range(n):
        to[t] += one[t] * other[t] * third[t]


@fused
def fill_information(
    work: Workspace, tables: ChainTables, filling: Array, out: Array, n: int
) -> None:
    """Turns values, their inverse covariance and H into information on the unknown masses."""
    size, m = tables.touches.shape
    at = m * (m + 1) // 2
    log_weight = out[(at + m) * LANES :]
    for x in range(at + m):
        rows.fill(out[x * LANES :], filling[x], n)
    for i in range(size):
        pull = work.row
        rows.fill(pull, 0.0, n)
        for j in range(size):
            rows.add_product(
                pull, work.s[(i * size + j) * LANES :], work.value[j * LANES :], 1.0, n
            )
        rows.add_product(log_weight, pull, work.value[i * LANES :], -0.5, n)
        for p in range(m):
            if not tables.touches[i, p]:
                continue
            h = work.design[(i * m + p) * LANES :]
            rows.add_product(out[(at + p) * LANES :], h, pull, 1.0, n)
            entry = p * m - p * (p - 1) // 2
            for q in range(p, m):
                for j in range(size):
                    if tables.touches[j, q]:
                        s, other = (
                            work.s[(i * size + j) * LANES :],
                            work.design[(j * m + q) * LANES :],
                        )
                        add_triple(out[(entry + q - p) * LANES :], h, s, other, n)


@fused
def inform(
    work: Workspace, tables: ChainTables, numbers: ChainNumbers, way: Way, out: Array, n: int
) -> None:
    """Fills the rows of information of n events in one way to solve."""
    c, size = way[0], len(tables.node)
    filling, lost = numbers.filling[way[2]], tables.lost[c]
    log_weight = out[(len(filling) - 1) * LANES :]
    rows.fill(log_weight, numbers.prior[lost] + filling[len(filling) - 1], n)
    extra = work.sums[(tables.chain[c] * N_SUMS + EXTRA) * LANES :]
    rows.add(log_weight, extra, -1.0, n)
    for at in range(len(tables.mothers)):
        leg = work.legs[place_of_leg(tables, numbers, at, way) :]
        add_way(log_weight, leg, numbers.way, (way[1] >> at) & 1, n)
    add_solutions(work, tables, numbers, way, n)
    if numbers.constants[2] != 0.0:
        add_momentum(log_weight, work.resonances, numbers.way, n)
    fill_covariance(work, tables, numbers, way, n)
    for i in range(size):
        if numbers.power[i, lost] != 0.0:
            mass = work.resonances[(i * N_RESONANCE + MASS) * LANES :]
            rows.add_log(log_weight, mass, numbers.power[i, lost], n)
    fill_values(work, tables, numbers, way, n)
    rows.invert(work.s, size, work.row, n)
    rows.add_log(log_weight, work.row, -0.5, n)
    fill_information(work, tables, filling, out, n)


@compiled
def chain_information(
    event: EventNumbers, tables: ChainTables, numbers: ChainNumbers, first: int, out: Array
) -> None:
    """Fills `out` ``(blocks, rows, E lanes)`` from row `first` on for one chain.

    There are E = M (M + 1) / 2 + M + 1 numbers for each event: precision, vector, log weight.
    """
    (size, m), n_legs, n_fillings = tables.touches.shape, len(tables.mothers), len(numbers.filling)
    n_ways = 2 * n_legs * tables.mothers.shape[1] * n_fillings
    work = Workspace(
        sums=np.empty(len(tables.n_members) * N_SUMS * LANES),
        legs=np.empty(n_ways * N_LEG * LANES),
        resonances=np.empty(size * N_RESONANCE * LANES),
        effects=np.empty(size * n_legs * N_EFFECT * LANES),
        by_trial=np.empty(size * len(numbers.trial_parameter) * LANES),
        unreal=np.empty(LANES),
        s=np.empty(size * size * LANES),
        value=np.empty(size * LANES),
        design=np.empty(size * m * LANES),
        row=np.empty(LANES),
    )
    for block in range(len(out)):
        start = block * LANES
        n = min(LANES, len(event.ptmiss) - start)
        add_up_sets(event, tables, start, n, work.sums)
        solve_legs(event, tables, numbers, work, (start, n))
        for c in range(len(tables.lost)):
            start_resonances(work, tables, c, n)
            row = first + c
            for r in range(1 << n_legs):
                for f in range(n_fillings):
                    inform(work, tables, numbers, (c, r, f), out[block, row], n)
                    row += len(tables.lost)
