"""What a chain says about masses, compiled: `ChainBuilder.terms` and `ChainResponse.information`.

Everything that depends on a set of objects alone (its momentum, its resolution, its log weight to
be extra) is added up once for each distinct set of an event; a mass then moves with object k by
A . p_k, where the four-vector A is P / y with lowered index, and in the mother of a solved leg by
B . p_k with B = A - (dy / d(V . nu)) (V + nu). With K = sum_k r_k^2 p_k p_k of the common objects,

    S_ij = A_i K A_j     or, with a common mother,     A_i (K - K_mother) A_j + B_i K_mother B_j.
"""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import compiled, inlined
from massrecon.kinematics.mixture_arrays import ChainNumbers, ChainTables, EventNumbers, Workspace
from massrecon.kinematics.mixture_invisible import LEAST_SQUARED, MOST_PULL
from massrecon.kinematics.mixture_linear import invert

Array = np.ndarray
_LIGHTEST = 1.0
_P4, _LOSSY, _TENSOR, _EXTRA, _N_SUMS = 0, 4, 8, 18, 19
_FAR_PULL = 18.0  # half a squared pull beyond which a solution is left out
_N_LEG = 12  # nu (4), slopes (3), variances (2), unreal, log root, pull


@inlined
def add_up_sets(event: EventNumbers, n: int, tables: ChainTables, sums: Array) -> None:
    """Adds up the objects of each distinct set."""
    for u in range(len(tables.n_members)):
        for x in range(_N_SUMS):
            sums[u, x] = 0.0
        for m in range(tables.n_members[u]):
            k = tables.members[u, m]
            r = event.variance[n, k]
            at = _TENSOR
            for x in range(4):
                p = event.p4[n, k, x]
                sums[u, _P4 + x] += p
                sums[u, _LOSSY + x] += event.lossy[k] * p
                for y in range(x, 4):
                    sums[u, at] += r * p * event.p4[n, k, y]
                    at += 1
            sums[u, _EXTRA] += event.extra[n, k]


@inlined
def contract(sums: Array, u: int, a: Array, i: int, b: Array, j: int) -> float:
    """Contracts the tensor K of a set with two four-vectors, rows of `a` and `b`."""
    k = _TENSOR
    x, y, z, e = b[j, 0], b[j, 1], b[j, 2], b[j, 3]
    return (
        a[i, 0] * (sums[u, k] * x + sums[u, k + 1] * y + sums[u, k + 2] * z + sums[u, k + 3] * e)
        + a[i, 1]
        * (sums[u, k + 1] * x + sums[u, k + 4] * y + sums[u, k + 5] * z + sums[u, k + 6] * e)
        + a[i, 2]
        * (sums[u, k + 2] * x + sums[u, k + 5] * y + sums[u, k + 7] * z + sums[u, k + 8] * e)
        + a[i, 3]
        * (sums[u, k + 3] * x + sums[u, k + 6] * y + sums[u, k + 8] * z + sums[u, k + 9] * e)
    )


@inlined
def solve_leg(v: Array, share: Array, mass: float, own: float, sign: float, leg: Array) -> bool:
    """Solves for an invisible leg, see `mixture_invisible`.

    Expects the variances of the share in `leg`, and the step of the trial mass where the root goes.
    """
    free = 0.5 * (mass**2 - own**2 - (v[3] ** 2 - v[0] ** 2 - v[1] ** 2 - v[2] ** 2))
    transverse = max(v[3] ** 2 - v[2] ** 2, LEAST_SQUARED)
    x, y = share[0], share[1]
    excess = math.sqrt(transverse * (x * x + y * y + own**2)) - v[0] * x - v[1] * y
    unreal, missing = excess > free, 0.0
    if unreal:
        scale = min(max(free / excess, 0.0), 1.0)
        missing = (1.0 - scale) ** 2 * (x * x + y * y)
        x, y = x * scale, y * scale
    mu = free + v[0] * x + v[1] * y
    squared = max(mu * mu - transverse * (x * x + y * y + own**2), 0.0)
    z = (mu * v[2] + sign * v[3] * math.sqrt(squared)) / transverse
    e = math.sqrt(max(x * x + y * y + z * z + own**2, 1e-6))
    gx, gy = v[0] - v[3] * x / e, v[1] - v[3] * y / e
    variance = leg[7] + leg[8]
    step = math.sqrt(variance * (gx * gx + gy * gy)) + leg[10]
    d = v[3] * z / e - v[2]
    inverse = d / max(d * d + v[3] * (e * e - z * z) / e**3 * step, 1e-9)
    leg[0], leg[1], leg[2], leg[3] = x, y, z, e
    leg[4], leg[5], leg[6] = gx * inverse, gy * inverse, inverse
    leg[9] = 1.0 if unreal else 0.0
    leg[10] = 0.5 * math.log(squared + abs(mu) * step)
    leg[11] = min(0.5 * missing / variance, MOST_PULL)
    return unreal


@inlined
def solve_legs(
    event: EventNumbers, n: int, tables: ChainTables, numbers: ChainNumbers, work: Workspace
) -> None:
    """Solves for the legs of an event with all mothers, roots and fillings."""
    for i in range(len(tables.mothers)):
        for m in range(tables.mothers.shape[1]):
            u = tables.mothers[i, m]
            if u < 0:
                break
            for f in range(numbers.mass.shape[1]):
                for r in range(2):
                    leg = work.legs[i, m, r, f]
                    leg[7], leg[8] = event.ptmiss[n], event.cell[n, f]
                    leg[10] = numbers.mass[i, f] * numbers.cell[i]
                    solve_leg(
                        work.sums[u],
                        event.share[n, i, f],
                        numbers.mass[i, f],
                        numbers.own[i],
                        1.0 - 2.0 * r,
                        leg,
                    )


@inlined
def measure(work: Workspace, i: int, u: int) -> None:
    """Fills mass, A and lean of a resonance from its momentum."""
    p, a = work.p4, work.a
    squared = p[i, 3] ** 2 - p[i, 0] ** 2 - p[i, 1] ** 2 - p[i, 2] ** 2
    mass = math.sqrt(max(squared, _LIGHTEST**2))
    inverse = 1.0 / mass
    work.mass[i] = mass
    lean = 0.0
    for x in range(4):
        a[i, x] = (p[i, x] if x == 3 else -p[i, x]) * inverse
        lean += a[i, x] * work.sums[u, _LOSSY + x]
    work.lean[i] = lean


@inlined
def add_leg(work: Workspace, i: int, at: int, mother: int, tried: int, solved: tuple) -> None:
    """Adds what a solved leg does to a resonance: B, lean, and changes with share and trial mass.

    `solved` are the set of the mother among those of the leg, root, filling, and its mass.
    """
    m, r, f, mass = solved
    legs, p, inverse, n_legs = work.legs, work.p4, 1.0 / work.mass[i], work.legs.shape[0]
    nz, ne = legs[at, m, r, f, 2], legs[at, m, r, f, 3]
    by_z = (p[i, 3] * nz / ne - p[i, 2]) * inverse
    for x in range(2):
        own = (p[i, 3] * legs[at, m, r, f, x] / ne - p[i, x]) * inverse
        work.by_share[i, at, x] = own + by_z * legs[at, m, r, f, 4 + x]
    by_constant = by_z * legs[at, m, r, f, 6]
    for x in range(4):
        total = work.sums[mother, _P4 + x] + legs[at, m, r, f, x]
        change = by_constant * (total if x == 3 else -total)
        work.b[i * n_legs + at, x] = work.a[i, x] - change
        work.lean[i] -= change * work.sums[mother, _LOSSY + x]
    if tried >= 0:
        work.by_trial[i, tried] += by_constant * mass


@inlined
def covariance(work: Workspace, tables: ChainTables, c: int, i: int, j: int) -> float:
    """Computes the covariance of two masses from the resolutions of their common objects."""
    small = tables.smaller[i, j]
    if small < 0:
        return 0.0
    u, n_legs = tables.node[small, c], tables.inside.shape[1]
    rest = contract(work.sums, u, work.a, i, work.a, j)
    for at in range(n_legs):
        if tables.inside[small, at]:
            mother = tables.mothers[at, tables.mother[at, c]]
            rest -= contract(work.sums, mother, work.a, i, work.a, j)
            one, other = i * n_legs + at, j * n_legs + at
            rest += contract(work.sums, mother, work.b, one, work.b, other)
    large = j if small == i else i
    at = tables.under[small]
    if at >= 0 and tables.inside[large, at]:
        rest = contract(work.sums, u, work.a, small, work.b, large * n_legs + at)
    return rest


@inlined
def from_shares(work: Workspace, numbers: ChainNumbers, i: int, j: int) -> float:
    """Computes the covariance of two masses from the shares of the legs in both."""
    total, chosen = 0.0, work.chosen
    for at in range(len(chosen)):
        variance = numbers.factors[0] * chosen[at, 0] + numbers.factors[1] * chosen[at, 1]
        along = work.by_share[i, at, 0] * work.by_share[j, at, 0]
        total += variance * (along + work.by_share[i, at, 1] * work.by_share[j, at, 1])
    return total


@inlined
def fill_row(work: Workspace, numbers: ChainNumbers, f: int, log_weight: float) -> None:
    """Turns values, their inverse covariance and H into information on the unknown masses."""
    size, m, row, s = len(work.value), work.design.shape[1], work.row, work.s
    at = m * (m + 1) // 2
    for x in range(len(row)):
        row[x] = numbers.filling[f, x]
    for i in range(size):
        pull = 0.0
        for j in range(size):
            pull += s[i, j] * work.value[j]
        log_weight -= 0.5 * pull * work.value[i]
        for p in range(m):
            h = work.design[i, p]
            if h == 0.0:
                continue
            row[at + p] += h * pull
            entry = p * m - p * (p - 1) // 2
            for q in range(p, m):
                for j in range(size):
                    row[entry + q - p] += h * s[i, j] * work.design[j, q]
    row[at + m] += log_weight


@inlined
def fill_values(work: Workspace, numbers: ChainNumbers, f: int, lost: int) -> None:
    """Fills measured less expected masses, and the rows of H."""
    for i in range(len(work.value)):
        value = work.mass[i] + numbers.shift[lost] * work.lean[i] - numbers.expected[i]
        for p in range(work.design.shape[1]):
            work.design[i, p] = 0.0
        if numbers.parameter[i] >= 0:
            work.design[i, numbers.parameter[i]] = 1.0
        for t in range(len(numbers.trial_parameter)):
            by = work.by_trial[i, t]
            value -= by * numbers.trial[f, t]
            work.design[i, numbers.trial_parameter[t]] -= by
        work.value[i] = value


@inlined
def weigh_momentum(work: Workspace, numbers: ChainNumbers) -> float:
    """Returns the log weight of the momentum of the produced particle, if it is measured."""
    if numbers.constants[2] == 0.0:
        return 0.0
    squared = work.p4[0, 0] ** 2 + work.p4[0, 1] ** 2
    z, e = work.p4[0, 2] ** 2, work.p4[0, 3] ** 2
    return numbers.way[2] * squared / max(e - z, _LIGHTEST**2) + numbers.way[3] * z / max(
        e, _LIGHTEST**2
    )


@inlined
def add_solutions(
    work: Workspace, tables: ChainTables, numbers: ChainNumbers, c: int, r: int, f: int
) -> float:
    """Completes the resonances with the solved legs; returns the log weight of this solution.

    It is -inf where the solution is far from real, or counted with another root.
    """
    log_weight, size = 0.0, len(work.mass)
    for at in range(len(tables.mothers)):
        m, root = tables.mother[at, c], (r >> at) & 1
        pull = numbers.way[1] * work.legs[at, m, root, f, 11]
        if work.legs[at, m, root, f, 9] != 0.0:
            if root == 1 or pull < -_FAR_PULL:
                log_weight = -np.inf
            log_weight += math.log(2.0)
        log_weight += numbers.way[0] * work.legs[at, m, root, f, 10] + pull
        for x in range(3):
            work.chosen[at, x] = work.legs[at, m, root, f, 7 + x]
    if log_weight == -np.inf:
        return log_weight
    for i in range(size):
        u, solved = tables.node[i, c], False
        for at in range(len(tables.mothers)):
            for x in range(2):
                work.by_share[i, at, x] = 0.0
            solved = solved or tables.inside[i, at]
        for t in range(work.by_trial.shape[1]):
            work.by_trial[i, t] = 0.0
        if not solved:
            continue
        for x in range(4):
            work.p4[i, x] = work.sums[u, x]
        for at in range(len(tables.mothers)):
            if tables.inside[i, at]:
                for x in range(4):
                    work.p4[i, x] += work.legs[at, tables.mother[at, c], (r >> at) & 1, f, x]
        measure(work, i, u)
        for at in range(len(tables.mothers)):
            if tables.inside[i, at]:
                m = tables.mother[at, c]
                chosen = (m, (r >> at) & 1, f, numbers.mass[at, f])
                add_leg(work, i, at, tables.mothers[at, m], numbers.tried[at], chosen)
    return log_weight


@inlined
def fill_covariance(work: Workspace, tables: ChainTables, numbers: ChainNumbers, c: int) -> None:
    """Fills the covariance of the masses."""
    lost, n_legs = tables.lost[c], len(work.chosen)
    for i in range(len(work.mass)):
        for j in range(i, len(work.mass)):
            entry = numbers.spread[lost] * work.lean[i] * work.lean[j]
            entry += covariance(work, tables, c, i, j)
            if n_legs:
                entry += from_shares(work, numbers, i, j)
            work.s[i, j] = work.s[j, i] = entry
        blur = numbers.blur[i, lost] + (numbers.constants[1] if tables.bare[i, c] else 0.0)
        work.s[i, i] += blur * work.mass[i] ** 2 + numbers.constants[0]
        solved, unreal = False, False
        for at in range(n_legs):
            if tables.inside[i, at]:
                solved, unreal = True, unreal or work.chosen[at, 2] != 0.0
        if solved:
            work.s[i, i] += numbers.invisible[1] if unreal else numbers.invisible[0]


@inlined
def inform(
    work: Workspace, tables: ChainTables, numbers: ChainNumbers, at: tuple[int, int, int]
) -> None:
    """Fills the row of information of one configuration `c`, root `r` and filling `f`."""
    c, r, f = at
    log_weight = add_solutions(work, tables, numbers, c, r, f)
    if log_weight == -np.inf:
        for x in range(len(work.row)):
            work.row[x] = numbers.filling[f, x]
        work.row[len(work.row) - 1] = -np.inf
        return
    lost = tables.lost[c]
    log_weight += numbers.prior[lost] - work.sums[tables.chain[c], _EXTRA]
    log_weight += weigh_momentum(work, numbers)
    fill_covariance(work, tables, numbers, c)
    for i in range(len(work.mass)):
        log_weight += numbers.power[i, lost] * math.log(work.mass[i])
    fill_values(work, numbers, f, lost)
    log_weight -= 0.5 * invert(work.s, len(work.mass))
    fill_row(work, numbers, f, log_weight)


@inlined
def inform_all(
    event: EventNumbers,
    tables: ChainTables,
    numbers: ChainNumbers,
    work: Workspace,
    first: int,
    out: Array,
) -> None:
    """Fills the information of all events; see `chain_information`."""
    n_legs, n_fillings = len(tables.mothers), len(numbers.filling)
    for n in range(len(out)):
        add_up_sets(event, n, tables, work.sums)
        solve_legs(event, n, tables, numbers, work)
        for c in range(len(tables.lost)):
            for i in range(len(work.mass)):
                u = tables.node[i, c]
                for x in range(4):
                    work.p4[i, x] = work.sums[u, x]
                measure(work, i, u)
            row = first + c
            for r in range(1 << n_legs):
                for f in range(n_fillings):
                    inform(work, tables, numbers, (c, r, f))
                    for x in range(len(work.row)):
                        out[n, x, row] = work.row[x]
                    row += len(tables.lost)


@compiled
def chain_information(
    event: EventNumbers,
    tables: ChainTables,
    numbers: ChainNumbers,
    n_masses: int,
    first: int,
    out: Array,
) -> None:
    """Fills `out` ``(n, E, rows)`` from row `first` on for one chain, E = M (M + 1) / 2 + M + 1."""
    size, n_legs, n_fillings = len(tables.node), len(tables.mothers), len(numbers.filling)
    work = Workspace(
        sums=np.empty((len(tables.n_members), _N_SUMS)),
        legs=np.empty((n_legs, tables.mothers.shape[1], 2, n_fillings, _N_LEG)),
        chosen=np.empty((n_legs, 3)),
        p4=np.empty((size, 4)),
        a=np.empty((size, 4)),
        b=np.empty((size * n_legs, 4)),
        mass=np.empty(size),
        lean=np.empty(size),
        by_share=np.zeros((size, n_legs, 2)),
        by_trial=np.zeros((size, len(numbers.trial_parameter))),
        s=np.empty((size, size)),
        value=np.empty(size),
        design=np.empty((size, n_masses)),
        row=np.empty(out.shape[1]),
    )
    inform_all(event, tables, numbers, work, first, out)
