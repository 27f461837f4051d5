"""MT2 of many events at once in torch: for GPUs, and where Numba is not installed.

The mathematics is that of `transverse_kernel`, where it is written down; here each step treats all
events that still need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# masses below this share of the energy are rounding noise of E^2 - p^2
MASSLESS = 1e-6
NEWTON_STEPS = 16
TOLERANCE = 1e-11
BISECTIONS = 60
ANGLE_TOLERANCE = 1e-12
ZOOM_ANGLES = 33
ZOOM_ROUNDS = 11
# how MT2 was found: not, by both sides, by one side alone, zero, or as a limit at infinite momenta
FAILED, BALANCED, SIDE_A, SIDE_B, ANYWHERE, LIMIT = 0, 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Side:
    """One side of N events: visible (px, py), mass and transverse energy, trial mass mu, (N,)."""

    px: Tensor
    py: Tensor
    m: Tensor
    energy: Tensor
    mu: Tensor

    @classmethod
    def of(cls, p4: Tensor, mu: Tensor) -> Side:
        """Reads a side from visible four-momenta ``(N, 4)`` and trial masses ``(N,)`` [GeV]."""
        p = torch.linalg.vector_norm(p4[:, :3], dim=1)
        squared = (p4[:, 3] - p) * (p4[:, 3] + p)
        noise = (MASSLESS * p4[:, 3]).square()
        squared = torch.where(squared < noise, 0.0, squared)
        x, y = p4[:, 0], p4[:, 1]
        return cls(x, y, squared.sqrt(), (squared + x * x + y * y).sqrt(), mu)

    def __getitem__(self, index: Tensor | tuple) -> Side:
        return Side(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def least(self) -> Tensor:
        """The smallest f, (m + mu)^2."""
        return (self.m + self.mu).square()

    def level(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes f - (m + mu)^2 at invisible momentum (x, y), without loss of digits."""
        e = (self.mu.square() + x * x + y * y).sqrt()
        along = self.px * x + self.py * y
        across = self.px * y - self.py * x
        product, floor = self.energy * e, self.m * self.mu
        distance = (self.px * self.mu - self.m * x).square()
        distance = distance + (self.py * self.mu - self.m * y).square() + across.square()
        return 2 * torch.where(
            along <= 0, product - along - floor, distance / (product + along + floor)
        )


Solution = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # f, x, y, l, found


def shrinking(
    step: Callable[[dict[str, Tensor]], Tensor], state: dict[str, Tensor], limit: int
) -> None:
    """Repeats `step` in place on the events that are not done, at most `limit` times.

    `step` changes the tensors of its dictionary and returns which events are done now. Finished
    events are dropped from the work from time to time; the results end up in `state`.
    """
    size = len(next(iter(state.values())))
    index = torch.arange(size, device=next(iter(state.values())).device)
    part = dict(state)
    for k in range(limit):
        done = step(part)
        if k % 3 == 2 or k == limit - 1:
            for name in state:
                state[name] = state[name].index_copy(0, index, part[name])
            keep = (~done).nonzero().squeeze(1)
            if len(keep) == 0:
                return
            index, part = index[keep], {name: t[keep] for name, t in part.items()}


def newton(a: Side, b: Side, Q: Tensor, start: tuple[Tensor, Tensor, Tensor]) -> Solution:
    """Solves f_a = f_b and l grad f_a = (1-l) grad f_b for (x, y, l)."""
    x, y, share = start
    found = torch.zeros_like(x, dtype=torch.bool)
    which = torch.arange(len(x), device=x.device)
    state = {"which": which, "x": x, "y": y, "l": share, "found": found}
    shrinking(lambda part: newton_step(a, b, Q, part), state, NEWTON_STEPS)
    f = a.least + a.level(state["x"], state["y"])
    return f, state["x"], state["y"], state["l"], state["found"]


def newton_step(a: Side, b: Side, Q: Tensor, part: dict[str, Tensor]) -> Tensor:
    """Makes one step where it is needed, and says which events are done."""
    which, x, y, share = part["which"], part["x"], part["y"], part["l"]
    a, b = a[which], b[which]
    X, Y = Q[which, 0] - x, Q[which, 1] - y
    ia = (a.mu.square() + x * x + y * y).rsqrt()
    ib = (b.mu.square() + X * X + Y * Y).rsqrt()
    vx, vy, wx, wy = x * ia, y * ia, X * ib, Y * ib
    ax, ay = 2 * (a.energy * vx - a.px), 2 * (a.energy * vy - a.py)
    bx, by = 2 * (b.energy * wx - b.px), 2 * (b.energy * wy - b.py)
    fa, fb = a.least + a.level(x, y), b.least + b.level(X, Y)
    rx, ry = share * ax - (1 - share) * bx, share * ay - (1 - share) * by
    flat = rx.abs() + ry.abs() < TOLERANCE * (a.energy + b.energy)
    found = part["found"] | (flat & ((fa - fb).abs() < TOLERANCE * (fa + fb)))
    ha, hb = 2 * share * a.energy * ia, 2 * (1 - share) * b.energy * ib
    hxx = ha * (1 - vx * vx) + hb * (1 - wx * wx)
    hyy = ha * (1 - vy * vy) + hb * (1 - wy * wy)
    hxy = -ha * vx * vy - hb * wx * wy
    det = hxx * hyy - hxy * hxy
    dx, dy = (ax + bx) / det, (ay + by) / det
    sx, sy = hyy * dx - hxy * dy, hxx * dy - hxy * dx
    ux, uy = (hyy * rx - hxy * ry) / det, (hxx * ry - hxy * rx) / det
    gain = (fa - fb - ((ax + bx) * ux + (ay + by) * uy)) / ((ax + bx) * sx + (ay + by) * sy)
    new = (share + gain).clamp(0.05 * share, 0.95 + 0.05 * share)
    stays = found | ~(det > 0)
    part["x"] = torch.where(stays, x, x - ux - (new - share) * sx)
    part["y"] = torch.where(stays, y, y - uy - (new - share) * sy)
    part["l"], part["found"] = torch.where(stays, share, new), found
    return stays


def support(side: Side, nx: Tensor, ny: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest n q with f(q) <= f, and its derivative by f; infinite where unbounded."""
    m, mu = side.m, side.mu
    kappa = 0.5 * (f - m * m - mu * mu)
    along = nx * side.px + ny * side.py
    root = (kappa * kappa - (m * mu).square()).clamp_min(0).sqrt()
    width = (along * along + m * m).sqrt()
    ahead = (kappa * along + root * width) / (m * m)
    behind = (kappa * kappa - (mu * width).square()) / (root * width - kappa * along)
    far = torch.where(along >= 0, ahead, behind)
    slope = 0.5 * (along + kappa * width / root) / (m * m)
    flat = -0.25 / along - mu * mu * along / (4 * kappa * kappa)
    open_ = (m == 0) & (along >= 0)
    far = torch.where(open_, math.inf, far)
    return far, torch.where(m == 0, flat, slope)


def separation(a: Side, b: Side, Q: Tensor, angle: Tensor) -> Tensor:
    """Returns the f up to which the directions `angle` separate both sides, at least the floor."""
    nx, ny = angle.cos(), angle.sin()
    target = nx * Q[..., 0] + ny * Q[..., 1]
    floor = torch.maximum(a.least, b.least)
    if bool(equal_and_massless(a, b).all()):
        ca, cb = -nx * a.px - ny * a.py, -nx * b.px - ny * b.py
        rise, drop = 0.5 / ca + 0.5 / cb, 0.5 * a.mu.square() * (ca + cb)
        root = (target.square() + 4 * rise * drop).sqrt()
        f = floor + torch.where(target <= 0, 4 * drop / (root - target), (target + root) / rise)
        return torch.where((ca > 0) & (cb > 0), f, floor)
    size = Q.abs().sum(-1) + a.mu + b.mu
    f = (floor + (a.energy + b.energy) * size).expand(angle.shape)
    low, high = floor.expand(angle.shape), torch.full_like(angle, math.inf)
    for _ in range(BISECTIONS):
        ha, da = support(a, nx, ny, f)
        hb, db = support(b, nx, ny, f)
        rest = ha + hb - target
        high, low = torch.where(rest >= 0, f, high), torch.where(rest >= 0, low, f)
        new = f - rest / (da + db)
        middle = torch.where(high.isinf(), 2 * f - floor, 0.5 * (low + high))
        new = torch.where((low <= new) & (new <= high), new, middle)
        new = torch.where(rest == math.inf, floor, new)
        if bool(((new - f).abs() <= 1e-15 * (f - floor)).all()):
            break
        f = new
    return torch.where(f > floor, f, floor)


def equal_and_massless(a: Side, b: Side) -> Tensor:
    """Says where both visible systems are massless and the trial masses equal."""
    return (a.m == 0) & (b.m == 0) & (a.mu == b.mu)


def first_direction(a: Side, b: Side, Q: Tensor) -> Tensor:
    """Returns angles that separate both sides, where neither is unbalanced."""
    swap = (b.least > a.least) | ((b.least == a.least) & (b.m > 0))
    names = [f.name for f in fields(Side)]
    upper = Side(*(torch.where(swap, getattr(b, n), getattr(a, n)) for n in names))
    lower = Side(*(torch.where(swap, getattr(a, n), getattr(b, n)) for n in names))
    # the smaller side's normal at the point where the larger side has its minimum
    ratio = upper.mu / upper.m
    x, y = Q[:, 0] - upper.px * ratio, Q[:, 1] - upper.py * ratio
    e = (lower.mu.square() + x * x + y * y).sqrt()
    nx, ny = lower.energy * x / e - lower.px, lower.energy * y / e - lower.py
    bare = upper.m == 0
    nx, ny = torch.where(bare, -upper.px, nx), torch.where(bare, -upper.py, ny)
    both = bare & (lower.m == 0)
    pa, pb = torch.hypot(upper.px, upper.py), torch.hypot(lower.px, lower.py)
    nx = torch.where(both, -upper.px / pa - lower.px / pb, nx)
    ny = torch.where(both, -upper.py / pa - lower.py / pb, ny)
    angle = torch.atan2(ny, nx)
    return torch.where(both & (a.mu + b.mu == 0), massless_direction(a, b, Q), angle)


def massless_direction(a: Side, b: Side, Q: Tensor) -> Tensor:
    """Returns the middle of the directions with n p_a < 0, n p_b < 0 and n Q > 0."""
    middle = torch.atan2(-a.py, -a.px)
    low, high = torch.full_like(middle, -0.5 * math.pi), torch.full_like(middle, 0.5 * math.pi)
    for angle in (torch.atan2(-b.py, -b.px), torch.atan2(Q[:, 1], Q[:, 0])):
        turn = torch.remainder(angle - middle + math.pi, 2 * math.pi) - math.pi
        low = torch.maximum(low, turn - 0.5 * math.pi)
        high = torch.minimum(high, turn + 0.5 * math.pi)
    return middle + 0.5 * (low + high)


def tilt(side: Side, nx: Tensor, ny: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns u = sqrt((n p)^2 + m^2) - n p and its first two derivatives by the angle of n."""
    m_squared = side.m.square()
    along, turn = nx * side.px + ny * side.py, nx * side.py - ny * side.px
    width = (along * along + m_squared).sqrt()
    u = torch.where(along <= 0, width - along, m_squared / (width + along))
    bend = along * u / width + m_squared * turn * turn / width**3
    return u, -turn * u / width, bend


def massless_invisible(a: Side, b: Side, Q: Tensor) -> Solution:
    """Maximises over directions where mu = 0 on both sides."""
    angle = first_direction(a, b, Q)
    zero = torch.zeros_like(angle)
    state = {
        "which": torch.arange(len(angle), device=angle.device),
        "angle": angle,
        "inside": angle,
        "low": angle - math.pi,
        "high": angle + math.pi,
        "f": zero,
        "l": zero,
    }
    shrinking(lambda part: angle_step(a, b, Q, part), state, BISECTIONS)
    f, floor = state["f"], torch.maximum(a.least, b.least)
    x, y = support_point(a, state["inside"], f)
    return f, x, y, state["l"], f > floor


def angle_step(a: Side, b: Side, Q: Tensor, part: dict[str, Tensor]) -> Tensor:
    """Makes one Newton or bisection step in the angle, and says which events are done."""
    which, angle, inside = part["which"], part["angle"], part["inside"]
    low, high = part["low"], part["high"]
    a, b, Q = a[which], b[which], Q[which]
    nx, ny = angle.cos(), angle.sin()
    along, turn = 2 * (nx * Q[:, 0] + ny * Q[:, 1]), 2 * (nx * Q[:, 1] - ny * Q[:, 0])
    (ua, da, dda), (ub, db, ddb) = tilt(a, nx, ny), tilt(b, nx, ny)
    ma, mb = a.m.square(), b.m.square()
    f = (along * ua * ub + ma * ub + mb * ua) / (ua + ub)
    wa, wb = along * ub + mb - f, along * ua + ma - f
    slope = turn * ua * ub + wa * da + wb * db
    bend = -along * ua * ub + 2 * (turn * (da * ub + ua * db) + along * da * db)
    bend = bend + wa * dda + wb * ddb - 2 * slope * (da + db) / (ua + ub)
    valid = f > torch.maximum(a.least, b.least)
    up = torch.where(valid, slope > 0, angle < inside)
    part["low"], part["high"] = torch.where(up, angle, low), torch.where(up, high, angle)
    step = torch.where(bend < 0, -slope / bend, math.inf)
    narrow = part["high"] - part["low"] < ANGLE_TOLERANCE
    done = valid & ((step.abs() < ANGLE_TOLERANCE) | narrow)
    new = angle + step
    middle = 0.5 * (part["low"] + part["high"])
    new = torch.where((part["low"] < new) & (new < part["high"]), new, middle)
    new = torch.where(valid, new, 0.5 * (inside + angle))
    part["angle"] = torch.where(done, angle, new)
    part["inside"] = torch.where(valid, angle, inside)
    part["f"] = torch.where(valid, f, part["f"])
    part["l"] = torch.where(valid, ub / (ua + ub), part["l"])
    return done


def support_point(side: Side, angle: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the momentum with f(q) <= f that lies farthest in a direction."""
    nx, ny = angle.cos(), angle.sin()
    along, across = nx * side.px + ny * side.py, nx * side.py - ny * side.px
    far = support(side, nx, ny, f)[0]
    kappa = 0.5 * (f - side.m.square() - side.mu.square())
    sideways = (kappa + along * far) * across / (along * along + side.m.square())
    return nx * far - ny * sideways, ny * far + nx * sideways


def search(a: Side, b: Side, Q: Tensor) -> Solution:
    """Solves by a search over directions that zooms in on the maximum, then Newton's method."""
    at = first_direction(a, b, Q)
    grid = torch.linspace(-1, 1, ZOOM_ANGLES, dtype=at.dtype, device=at.device)
    span = math.pi
    wide_a, wide_b = a[:, None], b[:, None]
    f = torch.zeros_like(at)
    for _ in range(ZOOM_ROUNDS):
        angles = at.unsqueeze(1) + span * grid
        f, best = separation(wide_a, wide_b, Q.unsqueeze(1), angles).max(dim=1)
        at = angles.gather(1, best.unsqueeze(1)).squeeze(1)
        span *= 2 / (ZOOM_ANGLES - 1)
    x, y = support_point(a, at, f)
    X, Y = Q[:, 0] - x, Q[:, 1] - y
    e, E = (a.mu**2 + x * x + y * y).sqrt(), (b.mu**2 + X * X + Y * Y).sqrt()
    ga = torch.hypot(a.energy * x / e - a.px, a.energy * y / e - a.py)
    gb = torch.hypot(b.energy * X / E - b.px, b.energy * Y / E - b.py)
    share = gb / (ga + gb)
    polished = newton(a, b, Q, (x, y, share))
    worst = torch.maximum(a.least + a.level(x, y), b.least + b.level(X, Y))
    rough = (f, x, y, share, (f > 0) & (worst <= f * (1 + 1e-6)))
    good = polished[4] & ((polished[0] - f).abs() <= 1e-6 * f)
    f, x, y, share, found = (torch.where(good, p, r) for p, r in zip(polished, rough, strict=True))
    return f, x, y, share, found


def alone(side: Side, other: Side, Q: Tensor) -> Tensor:
    """Says where the other side's f is not larger at this side's minimum."""
    ratio = side.mu / side.m
    excess = other.level(Q[:, 0] - side.px * ratio, Q[:, 1] - side.py * ratio)
    return (side.m > 0) & (other.least + excess <= side.least)


def is_zero(a: Side, b: Side, Q: Tensor) -> Tensor:
    """Says where massless sides give MT2 = 0: ptmiss lies between the visible momenta."""
    massless = a.m + a.mu + b.m + b.mu == 0
    cross = a.px * b.py - a.py * b.px
    first = Q[:, 0] * b.py - Q[:, 1] * b.px
    second = a.px * Q[:, 1] - a.py * Q[:, 0]
    ahead = torch.maximum(Q[:, 0] * a.px + Q[:, 1] * a.py, Q[:, 0] * b.px + Q[:, 1] * b.py)
    line = (cross == 0) & (first == 0) & (second == 0) & (ahead >= 0)
    return massless & torch.where(cross == 0, line, (first * cross >= 0) & (second * cross >= 0))


def zero_share(a: Side, b: Side, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the part of ptmiss along the first visible momentum, where MT2 = 0."""
    cross = a.px * b.py - a.py * b.px
    share = (Q[:, 0] * b.py - Q[:, 1] * b.px) / cross
    first = Q[:, 0] * a.px + Q[:, 1] * a.py > 0
    line = torch.where(first, 1.0, 0.0).to(Q.dtype)
    x = torch.where(cross == 0, Q[:, 0] * line, share * a.px)
    return x, torch.where(cross == 0, Q[:, 1] * line, share * a.py)


def has_no_minimum(a: Side, b: Side) -> Tensor:
    """Says where f decreases towards infinite invisible momenta: massless sides back to back."""
    back_to_back = (a.px * b.py == a.py * b.px) & (a.px * b.px + a.py * b.py <= 0)
    massless = (a.m == 0) & (b.m == 0)
    return (a.energy == 0) | (b.energy == 0) | (massless & back_to_back)


def solve(a: Side, b: Side, Q: Tensor) -> Solution:
    """Solves events that are neither unbalanced nor zero."""
    f = torch.full_like(a.mu, math.nan)
    result = (f, f.clone(), f.clone(), f.clone(), torch.zeros_like(f, dtype=torch.bool))
    bare = a.mu + b.mu == 0
    _fill(result, bare.nonzero().squeeze(1), lambda i: massless_invisible(a[i], b[i], Q[i]))
    index = (~bare).nonzero().squeeze(1)
    half = torch.full_like(f, 0.5)
    _fill(
        result,
        index,
        lambda i: newton(a[i], b[i], Q[i], (0.5 * Q[i, 0], 0.5 * Q[i, 1], half[i])),
    )
    failed, easy = ~bare & ~result[4], equal_and_massless(a, b)
    for group in (failed & easy, failed & ~easy):
        _fill(result, group.nonzero().squeeze(1), lambda i: search(a[i], b[i], Q[i]))
    return result


def _fill(result: Solution, index: Tensor, work: Callable[[Tensor], Solution]) -> None:
    """Writes the solutions of some events into those of all."""
    if len(index):
        for whole, part in zip(result, work(index), strict=True):
            whole[index] = part


def solve_all(
    visible_a: Tensor, visible_b: Tensor, ptmiss: Tensor, mu_a: Tensor, mu_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes MT2 of N events; returns (N, 4) of (MT2, q_x, q_y, l), and the kind (N)."""
    a, b = Side.of(visible_a, mu_a), Side.of(visible_b, mu_b)
    side_a = alone(a, b, ptmiss)
    side_b = ~side_a & alone(b, a, ptmiss)
    zero = ~side_a & ~side_b & is_zero(a, b, ptmiss)
    limit = ~side_a & ~side_b & ~zero & has_no_minimum(a, b)
    kind = side_a * SIDE_A + side_b * SIDE_B + zero * ANYWHERE + limit * LIMIT
    out = closed_forms(a, b, ptmiss, kind)
    index = (kind == 0).nonzero().squeeze(1)
    if len(index):
        f, x, y, share, found = solve(a[index], b[index], ptmiss[index])
        out[index] = torch.stack([f.sqrt(), x, y, share], dim=1)
        kind[index] = found * BALANCED
    physical = torch.minimum(visible_a[:, 3], visible_b[:, 3]) >= 0
    physical = physical & (torch.minimum(mu_a, mu_b) >= 0) & out[:, 0].isfinite()
    physical = physical & (visible_a.sum(1) + visible_b.sum(1) + ptmiss.sum(1)).isfinite()
    kind = torch.where(physical, kind, FAILED)
    return torch.where((kind == FAILED).unsqueeze(1), math.nan, out), kind


def closed_forms(a: Side, b: Side, Q: Tensor, kind: Tensor) -> Tensor:
    """Returns (MT2, q_x, q_y, l), shape (N, 4), of the events that need no search."""
    one, ra, rb = torch.ones_like(a.m), a.mu / a.m, b.mu / b.m
    none, (zx, zy) = math.nan * one, zero_share(a, b, Q)
    rows = {
        SIDE_A: (a.m + a.mu, a.px * ra, a.py * ra, one),
        SIDE_B: (b.m + b.mu, Q[:, 0] - b.px * rb, Q[:, 1] - b.py * rb, 0 * one),
        ANYWHERE: (0 * one, zx, zy, 0.5 * one),
        LIMIT: (torch.maximum(a.m + a.mu, b.m + b.mu), none, none, 0.5 * one),
    }
    out = torch.zeros(len(one), 4, dtype=Q.dtype, device=Q.device)
    for how, columns in rows.items():
        out = torch.where((kind == how).unsqueeze(1), torch.stack(columns, dim=1), out)
    return out
