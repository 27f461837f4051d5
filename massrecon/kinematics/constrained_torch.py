"""M2 of many events at once in torch: for GPUs, and where Numba is not installed.

Mathematics and algebra are those of `constrained_kernel`; here each step treats all events that
still need it. Sides, points and multipliers are tuples of tensors of shape (N,).

`torch.compile` of the algebra works but is not worth it on a processor: for 4,000 events of the
antler toy it took 35 s of processor time to compile, and then 250 to 310 us per event in place of
370; the loop over steps, which it does not see, takes the rest. Numba needs 2 us.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from massrecon.kinematics import constrained_algebra as algebra
from massrecon.kinematics.constrained_kernel import (
    CERTIFIED,
    DESCENT_STEPS,
    FAILED,
    FAR_LEVELS,
    FEASIBLE,
    FOUND,
    GAP,
    HALVINGS,
    LEVELS,
    MASSLESS,
    NUDGES,
    ONE_SIDED,
    SADDLE_STEPS,
    SMALLEST_GAP,
    TOLERANCE,
)
from massrecon.kinematics.transverse_torch import shrinking

Side = tuple[Any, ...]
Four = tuple[Tensor, ...]  # four tensors of shape (N,)
Solution = tuple[Tensor, ...]  # F (N,), points (N, 4), multipliers (N, 4), how (N,)


def square(p4: Tensor) -> Tensor:
    """Returns squared masses [GeV^2]; rounding noise of massless vectors is zero."""
    p, energy = torch.linalg.vector_norm(p4[:, :3], dim=1), p4[:, 3].abs()
    squared = (energy - p) * (energy + p)
    return torch.where(squared > (MASSLESS * energy).square(), squared, 0.0)


def side_of(P: Tensor, R: Tensor, mu: Tensor) -> Side:
    """Reads sides from four-momenta ``(N, 4)`` of parents and relatives, in the frame P_z = 0."""
    plus, minus = P[:, 3] + P[:, 2], P[:, 3] - P[:, 2]
    boost, mass = (plus / minus).sqrt(), (plus * minus).sqrt()
    up, down = (R[:, 3] + R[:, 2]) / boost, (R[:, 3] - R[:, 2]) * boost
    c, r = square(P) + mu * mu, square(R) + mu * mu
    shape = mass, P[:, 0], P[:, 1], 0.5 * (up + down), R[:, 0], R[:, 1], 0.5 * (up - down)
    return (*shape, c, r, mu, boost)


def read(P: Tensor, R: Tensor, Q: Tensor, mu: Tensor) -> tuple[Side, Side, Tensor, Tensor]:
    """Reads events ``(N, 2, 4)``, ``(N, 2)``; returns scaled sides, scaled ptmiss and the scale."""
    a, b = side_of(P[:, 0], R[:, 0], mu[:, 0]), side_of(P[:, 1], R[:, 1], mu[:, 1])
    scale = a[0] + b[0] + torch.hypot(Q[:, 0], Q[:, 1])
    return algebra.scaled(a, scale), algebra.scaled(b, scale), Q / scale.unsqueeze(1), scale


def pick(side: Side, index: Tensor) -> Side:
    """Returns the sides of some events."""
    return tuple(t[index] for t in side)


def saddle(a: Side, b: Side, Q: Tensor, start: Four, free: float, halvings: int) -> tuple:
    """Searches saddle points from (x, y, w, v); returns those, and whether they were found."""
    off, step = algebra.saddle_step(a, b, Q[:, 0], Q[:, 1], start, free)
    state = {
        "which": torch.arange(len(off), device=off.device),
        "at": torch.stack(start),
        "off": off,
        "step": torch.stack(step),
        "t": torch.ones_like(off),
    }
    state = {name: t.T.contiguous() if t.ndim == 2 else t for name, t in state.items()}

    def trial(part: dict[str, Tensor]) -> Tensor:
        index, t = part["which"], part["t"]
        at = part["at"] + t.unsqueeze(1) * part["step"]
        q = Q[index]
        sides = pick(a, index), pick(b, index)
        off, step = algebra.saddle_step(*sides, q[:, 0], q[:, 1], at.unbind(1), free)
        good = off <= part["off"] * (1 - 1e-3 * t)
        accept = good.unsqueeze(1)
        part["at"] = torch.where(accept, at, part["at"])
        part["step"] = torch.where(accept, torch.stack(step, 1), part["step"])
        part["off"] = torch.where(good, off, part["off"])
        part["t"] = torch.where(good, 1.0, 0.5 * t)
        return ~(part["off"] > TOLERANCE) | (part["t"] < 0.5 ** (halvings - 1))

    shrinking(trial, state, SADDLE_STEPS + 2 * halvings)
    return tuple(state["at"].unbind(1)), state["off"] < FEASIBLE


def bound(a: Side, b: Side, Q: Tensor, at: Four, f: Tensor) -> Tensor:
    """Says where the multipliers prove that no squared mass is below f."""
    proven = torch.zeros_like(f, dtype=torch.bool)
    for nudge in NUDGES:
        gap = f - algebra.bound_at(a, b, Q[:, 0], Q[:, 1], at, nudge)
        proven = proven | (gap <= GAP * f + SMALLEST_GAP)
    return proven


State = dict[str, Tensor]  # p (N, 4), la, lb, f, hf, hg, penalty (N,), which (N,)


def descend(a: Side, b: Side, Q: Tensor, start: Four) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Goes down to local minima; returns F, points (N, 4), (x, y, w, v) (N, 4), found."""
    f, hf, hg = algebra.values(a, b, Q[:, 0], Q[:, 1], start)
    zero = torch.zeros_like(f)
    state = {
        "which": torch.arange(len(f), device=f.device),
        "p": torch.stack(start, 1),
        **{"la": zero, "lb": zero, "f": f, "hf": hf, "hg": hg, "penalty": zero + 1},
    }

    def step(part: State) -> Tensor:
        index = part["which"]
        return descent_step(pick(a, index), pick(b, index), Q[index], part)

    shrinking(step, state, DESCENT_STEPS)
    found = state["hf"].abs() + state["hg"].abs() < FEASIBLE
    p = state["p"]
    at = torch.stack([p[:, 0], p[:, 1], 0.5 + state["la"], state["lb"]], dim=1)
    return state["f"], p, at, found


def descent_step(a: Side, b: Side, Q: Tensor, part: State) -> Tensor:
    """Makes the exact step where it helps and the soft one elsewhere; says what is done."""
    p, la, lb, hf, hg = part["p"].unbind(1), part["la"], part["lb"], part["hf"], part["hg"]
    va, vb, g, A, B = algebra.derivatives(a, b, Q[:, 0], Q[:, 1], p)
    slope, off = algebra.steepness(g, A, B, la, lb), hf.abs() + hg.abs()
    finished = (slope < FEASIBLE) & (off < FEASIBLE)
    ka, kb = (0.5 + la) * a[0] + lb * a[3], (0.5 - la) * b[0] - lb * b[3]
    exact = algebra.constrained_step(algebra.curvature(va, vb, ka, kb, 0.0), g, A, B, hf, hg)
    new = evaluated(a, b, Q, algebra.moved(p, 1.0, exact[0]), exact[1], exact[2])
    _, _, g2, A2, B2 = algebra.derivatives(a, b, Q[:, 0], Q[:, 1], new["p"].unbind(1))
    left = algebra.steepness(g2, A2, B2, exact[1], exact[2]) + new["hf"].abs() + new["hg"].abs()
    near = (slope < 1e-2) & (off < 1e-2) & (left < 0.5 * (slope + off))
    soft = algebra.curvature(
        va, vb, torch.maximum(ka, 0.05 * a[0]), torch.maximum(kb, 0.05 * b[0]), 1e-3
    )
    moved, penalty, good = line_search(a, b, Q, part, (soft, g, A, B))
    change = ~finished & (near | good)
    for name in ("p", "la", "lb", "f", "hf", "hg"):
        value, select = torch.where, (near, change)
        if name == "p":
            select = (near.unsqueeze(1), change.unsqueeze(1))
        part[name] = value(select[1], value(select[0], new[name], moved[name]), part[name])
    part["penalty"] = torch.where(near, part["penalty"], penalty)
    return ~change


def evaluated(a: Side, b: Side, Q: Tensor, p: Four, la: Tensor, lb: Tensor) -> State:
    """Returns the state of a point with its multipliers."""
    f, hf, hg = algebra.values(a, b, Q[:, 0], Q[:, 1], p)
    return {"p": torch.stack(p, 1), "la": la, "lb": lb, "f": f, "hf": hf, "hg": hg}


def line_search(
    a: Side, b: Side, Q: Tensor, part: State, model: tuple
) -> tuple[State, Tensor, Tensor]:
    """Shortens the soft step until F + penalty * violation falls."""
    h, g, A, B = model
    p, la, lb, hf, hg = part["p"].unbind(1), part["la"], part["lb"], part["hf"], part["hg"]
    s, na, nb = algebra.constrained_step(h, g, A, B, hf, hg)
    penalty = torch.maximum(part["penalty"], 1.5 * torch.maximum(na.abs(), nb.abs()))
    off = hf.abs() + hg.abs()
    merit = part["f"] + penalty * off
    fall = (algebra.dot(g, s) - penalty * off).clamp_max(0)

    def better(new: State, t: float) -> Tensor:
        value = new["f"] + penalty * (new["hf"].abs() + new["hg"].abs())
        return value <= merit + 1e-4 * t * fall

    best = evaluated(a, b, Q, algebra.moved(p, 1.0, s), na, nb)
    good = better(best, 1.0)
    zero = torch.zeros_like(hf)
    back = algebra.constrained_step(h, (zero,) * 4, A, B, best["hf"], best["hg"])[0]
    second = evaluated(a, b, Q, algebra.moved(best["p"].unbind(1), 1.0, back), na, nb)
    best, good = either(best, second, good, better(second, 1.0))
    t = 1.0
    for _ in range(11):
        if bool(good.all()):
            break
        t *= 0.4
        shorter = evaluated(a, b, Q, algebra.moved(p, t, s), la + t * (na - la), lb + t * (nb - lb))
        best, good = either(best, shorter, good, better(shorter, t))
    return best, penalty, good


def either(first: State, second: State, good: Tensor, better: Tensor) -> tuple[State, Tensor]:
    """Takes the second state where the first is not good and the second is."""
    take = ~good & better
    chosen = {
        name: torch.where(take.unsqueeze(1) if t.ndim == 2 else take, second[name], t)
        for name, t in first.items()
    }
    return chosen, good | better


def off_axis(a: Side, b: Side, x: Tensor, y: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Moves starts away from massless invisible momenta that vanish."""
    for side, sign in ((a, 1.0), (b, -1.0)):
        X, Y = (x, y) if sign > 0 else (Q[:, 0] - x, Q[:, 1] - y)
        near = (side[9].square() + X * X + Y * Y).sqrt() < 0.02
        size = torch.hypot(side[1], side[2]) + 1e-30
        x = torch.where(near, x + sign * (0.05 * side[1] - 0.02 * side[2]) / size, x)
        y = torch.where(near, y + sign * (0.05 * side[2] + 0.02 * side[1]) / size, y)
    return x, y


def best_descent(a: Side, b: Side, Q: Tensor, transverse: Tensor) -> Solution:
    """Descends from several starts around the solution of MT2 until minima are certified."""
    f0, x0, y0 = transverse.unbind(1)
    x, y = off_axis(a, b, x0, y0, Q)
    best = nothing(f0)
    for level in LEVELS + FAR_LEVELS:
        enough = CERTIFIED if level <= LEVELS[-1] else FOUND
        shift = torch.where(torch.tensor(level > 1, device=x.device) | (x != x0), 0.01 * level, 0)
        f = f0 * level + shift
        za = algebra.lifted(a, x, y, f)
        zb = algebra.lifted(b, Q[:, 0] - x, Q[:, 1] - y, f)
        for k in range(4):
            first, second = 1.0 - 2.0 * (k % 2), 1.0 - 2.0 * (k // 2)
            same = ((za == 0) & (first < 0)) | ((zb == 0) & (second < 0))
            index = ((best[3] < enough) & ~same).nonzero().squeeze(1)
            if len(index) == 0:
                continue
            start = (x[index], y[index], first * za[index], second * zb[index])
            improve(best, index, tried(pick(a, index), pick(b, index), Q[index], start))
    return best


def nothing(like: Tensor) -> Solution:
    """Returns solutions of events that have none yet."""
    none = torch.full((len(like), 4), math.nan, dtype=like.dtype, device=like.device)
    how = torch.full(like.shape, FAILED, dtype=torch.int64, device=like.device)
    return torch.full_like(like, math.inf), none, none.clone(), how


def tried(a: Side, b: Side, Q: Tensor, start: Four) -> Solution:
    """Descends from one start, and looks whether the result is certified."""
    f, p, at, found = descend(a, b, Q, start)
    found = found & (f >= 0)
    multipliers = at.unbind(1)
    polished, exact = saddle(a, b, Q, multipliers, 1.0, HALVINGS)
    chosen = tuple(torch.where(exact, s, m) for s, m in zip(polished, multipliers, strict=True))
    proven = bound(a, b, Q, chosen, f)
    how = torch.where(found, torch.where(proven, CERTIFIED, FOUND), FAILED)
    return torch.where(found, f, math.inf), p, at, how


def improve(best: Solution, index: Tensor, new: Solution) -> None:
    """Takes what is lower, in place."""
    lower = new[0] < best[0][index] * (1 - 1e-9)
    index = index[lower]
    for old, better in zip(best, new, strict=True):
        old[index] = better[lower]


def one_sided(a: Side, b: Side, Q: Tensor) -> Solution:
    """Minimises F_b alone with G_a = G_b, where then F_a <= F_b."""
    zero = torch.zeros_like(Q[:, 0])
    best = nothing(zero)
    for how, found in (*free_minima(a, b, Q), *vanishing(a, b, Q)):
        index = (found & (best[3] == FAILED)).nonzero().squeeze(1)
        improve(best, index, tuple(t[index] for t in how))
    largest = b[0] / (b[3].abs() + b[6].abs()) * torch.where(a[3] > 0, 1.0, -1.0)
    index = (best[3] == FAILED).nonzero().squeeze(1)
    for share, apart in ONE_SIDED:
        if len(index) == 0:
            break
        left, right, q = pick(a, index), pick(b, index), Q[index]
        x = 0.5 * q[:, 0] + apart * (left[1] - right[1])
        y = 0.5 * q[:, 1] + apart * (left[2] - right[2])
        start = (x, y, torch.zeros_like(x), share * largest[index])
        at, found = saddle(left, right, q, start, 0.0, HALVINGS)
        fa, fb, p = algebra.saddle_point(left, right, q[:, 0], q[:, 1], at)
        good = found & (fa <= fb)
        how = torch.where(bound(left, right, q, at, fb), CERTIFIED, FOUND)
        part = (fb, torch.stack(p, 1), torch.stack(at, 1), how)
        improve(best, index[good], tuple(t[good] for t in part))
        index = index[~found]
    return best


def free_minima(a: Side, b: Side, Q: Tensor) -> list[tuple[Solution, Tensor]]:
    """Returns the points where F_b is at its unconstrained minimum, and where they are allowed."""
    zero = torch.zeros_like(Q[:, 0])
    mass = (b[7] - b[9] * b[9]).clamp_min(0).sqrt()
    ratio, f = b[9] / mass, (mass + b[9]).square()
    qx, qy = b[1] * ratio, b[2] * ratio
    x, y = Q[:, 0] - qx, Q[:, 1] - qy
    g = algebra.masses(b, qx, qy, zero)[1]
    results = []
    for sign in (1.0, -1.0):
        z = algebra.matched(a, x, y, g, sign)
        allowed = (mass > 0) & (algebra.masses(a, x, y, z)[0] <= f)
        point, at = torch.stack([x, y, z, zero], 1), torch.stack([x, y, zero, zero], 1)
        results.append(((f, point, at, torch.full_like(f, CERTIFIED).long()), allowed))
    return results


def vanishing(a: Side, b: Side, Q: Tensor) -> list[tuple[Solution, Tensor]]:
    """Returns the points where massless q_a vanishes, and where they are proven minima."""
    zero = torch.zeros_like(Q[:, 0])
    results = []
    for sign in (1.0, -1.0):
        f, z, v, depth, proven = algebra.vanishing_at(a, b, Q[:, 0], Q[:, 1], sign)
        allowed = (a[9] == 0) & (depth >= 0) & (a[7] <= f)
        allowed = allowed & (f - proven <= GAP * f + SMALLEST_GAP)
        point, at = torch.stack([zero, zero, zero, z], 1), torch.stack([zero, zero, zero, v], 1)
        results.append(((f, point, at, torch.full_like(f, CERTIFIED).long()), allowed))
    return results


def mirrored(solution: Solution, Q: Tensor) -> Solution:
    """Exchanges the sides of solutions."""
    f, p, m, how = solution
    q = Q - p[:, :2]
    at = torch.stack([q[:, 0], q[:, 1], 1 - m[:, 2], -m[:, 3]], 1)
    return f, torch.cat([q, p[:, 3:], p[:, 2:3]], 1), at, how


def written(a: Side, b: Side, Q: Tensor, scale: Tensor, solution: Solution) -> Tensor:
    """Returns (M2, q_x, q_y, q_z of a, q_z of b, w, v) in the laboratory, shape ``(N, 7)``."""
    f, p, m, _ = solution
    x, y = p[:, 0], p[:, 1]
    pz_a = scale * algebra.in_lab(a, x, y, p[:, 2])
    pz_b = scale * algebra.in_lab(b, Q[:, 0] - x, Q[:, 1] - y, p[:, 3])
    value = scale * f.clamp_min(0).sqrt()
    return torch.stack([value, scale * x, scale * y, pz_a, pz_b, m[:, 2], m[:, 3]], 1)


def solve_convex(P: Tensor, R: Tensor, Q: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Solves events by their saddle point: P, R ``(N, 2, 4)``, Q, mu ``(N, 2)``.

    Returns ``(N, 7)`` as `written`, NaN where that does not exist, and how it was found ``(N,)``.
    """
    a, b, Q, scale = read(P, R, Q, mu)
    apart = torch.where(a[9] + b[9] == 0, 0.3, 0.0)
    half, zero = torch.full_like(scale, 0.5), torch.zeros_like(scale)
    x, y = 0.5 * Q[:, 0] + apart * (a[1] - b[1]), 0.5 * Q[:, 1] + apart * (a[2] - b[2])
    at, found = saddle(a, b, Q, (x, y, half, zero), 1.0, HALVINGS)
    f, _, point = algebra.saddle_point(a, b, Q[:, 0], Q[:, 1], at)
    found = found & (f > -FEASIBLE)
    how = torch.where(found, torch.where(bound(a, b, Q, at, f), CERTIFIED, FOUND), FAILED)
    out = written(a, b, Q, scale, (f, torch.stack(point, 1), torch.stack(at, 1), how))
    return torch.where(found.unsqueeze(1), out, math.nan), how


def solve_others(
    P: Tensor, R: Tensor, Q: Tensor, mu: Tensor, transverse: Tensor, out: Tensor, how: Tensor
) -> None:
    """Improves events that are not certified; `transverse` (N, 3) is (MT2, q_x, q_y) of P."""
    a, b, Q, scale = read(P, R, Q, mu)
    start = transverse / scale.unsqueeze(1)
    start = torch.cat([start[:, :1].square(), start[:, 1:]], 1)
    solution = best_descent(a, b, Q, start)
    new = written(a, b, Q, scale, solution)
    better = (solution[3] > how) | ((solution[3] == how) & (new[:, 0] < out[:, 0]))
    out[better], how[better] = new[better], solution[3][better].to(how.dtype)


def solve_one_sided(P: Tensor, R: Tensor, Q: Tensor, mu: Tensor, out: Tensor, how: Tensor) -> None:
    """Turns M2CC into M2XC: looks where one side alone gives a smaller maximum."""
    a, b, Q, scale = read(P, R, Q, mu)
    outside = (how == CERTIFIED) & ((out[:, 5] < 0) | (out[:, 5] > 1))
    how[outside] = FOUND  # the bound of M2CC does not hold for M2XC
    first, second = one_sided(a, b, Q), mirrored(one_sided(b, a, Q), Q)
    improve(first, torch.arange(len(scale), device=scale.device), second)
    new = written(a, b, Q, scale, first)
    better = (first[3] > FAILED) & ~(new[:, 0] >= out[:, 0])
    out[better], how[better] = new[better], first[3][better].to(how.dtype)
