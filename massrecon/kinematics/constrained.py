"""The M2 family: MT2's relatives in 3+1 dimensions, with on-shell constraints.

Two decay chains A -> a B, B -> b C end in invisible C with q_a + q_b = ptmiss in the transverse
plane. In a subsystem, the parent decays into visible particles and one invisible system, and the
relative is the third particle of the chain:

    subsystem   parent   visible   invisible (trial mass)   relative   its squared mass
    "ab"        A        a + b     C                        B          (b + q)^2
    "b"         B        b         C                        A          (a + b + q)^2
    "a"         A        a         B                        C          (q - b)^2

M2 is the minimum over the invisible momenta of the larger parent mass:

    m2_xx   without further constraints            m2_cx   equal parent masses
    m2_xc   equal relative masses                  m2_cc   equal parent and equal relative masses

    MT2 = m2_xx = m2_cx <= m2_xc <= m2_cc <= true parent mass (at the true trial mass).

How the minima are found, and what `certified` proves, is written down in `constrained_kernel` and
`constrained_proof`.
Gradients are those of the Lagrangian at the minimum (envelope theorem), as for MT2.

References:
    W. S. Cho, J. S. Gainer, D. Kim, K. T. Matchev, F. Moortgat, L. Pape and M. Park,
    JHEP 08 (2014) 070, 1401.1449: definition of the variables and of the subsystems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import unknown_name
from massrecon.kinematics import constrained_torch, transverse, transverse_torch
from massrecon.kinematics.backends import (
    Backend,
    batch_shape,
    blocks,
    choose_backend,
    common_type,
    warn_failed,
)
from massrecon.kinematics.constrained_kernel import CERTIFIED, FAILED
from massrecon.kinematics.fourvectors import check_last_axis, mass_squared, safe_sqrt

Subsystem = Literal["ab", "a", "b"]

WHY_FAILED = (
    "no invisible momenta were found that fulfil the constraints, or an input is not finite or has "
    "a negative energy or trial mass."
)


@dataclass(frozen=True, kw_only=True)
class M2Solution:
    """An M2 variable of N events and the invisible momenta where it is reached."""

    value: Tensor
    """M2 [GeV], shape ``(...)``; NaN where not converged."""
    invisible_a: Tensor
    """Four-momentum (px, py, pz, E) [GeV] of side a's invisible system, shape ``(..., 4)``: of C,
    but of B in subsystem "a". Not unique where several minima are equal."""
    invisible_b: Tensor
    """The same for side b."""
    converged: Tensor
    """Whether a minimum was found that fulfils the constraints. Boolean, shape ``(...)``."""
    certified: Tensor
    """Whether the value is proven to be the global minimum: no invisible momenta give a squared
    value that is lower by more than 1e-6 of it (and 1e-11 of the event's squared scale). Where
    False, the value is the lowest that was found from several starts. The torch backend proves by
    duality alone, which leaves out more events of M2CC. Boolean, ``(...)``."""


@dataclass(frozen=True)
class _Problem:
    """Broadcast float64 inputs: parents' visible vectors, relatives' vectors, ptmiss, masses."""

    parents: tuple[Tensor, Tensor]
    relatives: tuple[Tensor, Tensor]
    ptmiss: Tensor
    mu: tuple[Tensor, Tensor]
    valid: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.valid.shape)

    @property
    def wants_gradient(self) -> bool:
        inputs = (*self.parents, *self.relatives, self.ptmiss, *self.mu)
        return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


def m2_cc(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    subsystem: Subsystem = "ab",
    *,
    m_invisible_b: Tensor | float | None = None,
    backend: Backend = "auto",
) -> M2Solution:
    """Computes M2CC: the smallest parent mass with equal parent and equal relative masses.

    It never exceeds the true parent mass when `m_invisible` is the true one. Some events have no
    momenta that fulfil all constraints (wrong pairing, resolution, wrong trial mass): they are NaN.

    Args:
        upper_a: Visible particle of A -> a B on side a, (px, py, pz, E) [GeV], ``(..., 4)``.
        lower_a: Visible particle of B -> b C on side a [GeV], shape ``(..., 4)``.
        upper_b: The same as `upper_a` on side b.
        lower_b: The same as `lower_a` on side b.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(..., 2)``.
        m_invisible: Trial mass of the invisible system [GeV], broadcastable to ``(...)``: of C,
            but of B in subsystem "a".
        subsystem: "ab", "a" or "b": see the table of this module.
        m_invisible_b: Trial mass on side b [GeV], where it differs.
        backend: "numba" (processors, extra `fast`), "torch" (any device), or "auto": Numba where
            it is installed and the tensors are on a processor.

    Returns:
        Values, momenta, and whether they are converged and certified; floating-point numbers in the
        inputs' type. `value` has exact first derivatives by all inputs.

    Raises:
        ShapeError: If a last axis is not 4 (or 2 for `ptmiss`).
        InputError: If leading dimensions do not fit together, or `subsystem` is unknown.

    References:
        W. S. Cho et al., JHEP 08 (2014) 070, 1401.1449.
    """
    visible = (upper_a, lower_a, upper_b, lower_b)
    problem = _read(visible, ptmiss, (m_invisible, m_invisible_b), subsystem)
    return _solution("M2CC", problem, backend, one_sided=False)


def m2_xc(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    subsystem: Subsystem = "ab",
    *,
    m_invisible_b: Tensor | float | None = None,
    backend: Backend = "auto",
) -> M2Solution:
    """Computes M2XC: the smallest larger parent mass with equal relative masses.

    Takes, returns and raises what `m2_cc` does. It never exceeds M2CC.
    """
    visible = (upper_a, lower_a, upper_b, lower_b)
    problem = _read(visible, ptmiss, (m_invisible, m_invisible_b), subsystem)
    return _solution("M2XC", problem, backend, one_sided=True)


def m2_cx(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    subsystem: Subsystem = "ab",
    *,
    m_invisible_b: Tensor | float | None = None,
    backend: Backend = "auto",
) -> M2Solution:
    """Computes M2CX: the smallest parent mass with equal parent masses, which is MT2.

    Takes, returns and raises what `m2_cc` does. Where one side alone determines MT2, the other has
    two longitudinal momenta with the same parent mass: the smaller one is returned.
    """
    visible = (upper_a, lower_a, upper_b, lower_b)
    problem = _read(visible, ptmiss, (m_invisible, m_invisible_b), subsystem)
    return _transverse_solution("M2CX", problem, backend, equal_parents=True)


def m2_xx(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    subsystem: Subsystem = "ab",
    *,
    m_invisible_b: Tensor | float | None = None,
    backend: Backend = "auto",
) -> M2Solution:
    """Computes M2XX: the smallest larger parent mass without constraints, which is MT2.

    Takes, returns and raises what `m2_cc` does. Invisible systems have the rapidity of the visible
    ones of their side, where the parent mass is smallest.
    """
    visible = (upper_a, lower_a, upper_b, lower_b)
    problem = _read(visible, ptmiss, (m_invisible, m_invisible_b), subsystem)
    return _transverse_solution("M2XX", problem, backend, equal_parents=False)


def _read(
    visible: tuple[Tensor, Tensor, Tensor, Tensor],
    ptmiss: Tensor,
    m_invisible: tuple[Tensor | float, Tensor | float | None],
    subsystem: Subsystem,
) -> _Problem:
    """Checks shapes, broadcasts in float64, and forms the vectors of a subsystem."""
    names = ("upper_a", "lower_a", "upper_b", "lower_b")
    for name, tensor in zip(names, visible, strict=True):
        check_last_axis(tensor, 4, name)
    check_last_axis(ptmiss, 2, "ptmiss")
    if subsystem not in ("ab", "a", "b"):
        raise unknown_name("subsystem", subsystem, ("ab", "a", "b"))
    first, second = m_invisible
    mu_a, mu_b = (
        torch.as_tensor(mu, dtype=torch.float64, device=ptmiss.device)
        for mu in (first, first if second is None else second)
    )
    vectors = {**dict(zip(names, visible, strict=True)), "ptmiss": ptmiss}
    shape = batch_shape(vectors, {"m_invisible": mu_a, "m_invisible_b": mu_b})
    ua, la, ub, lb = (t.double() for t in visible)
    q = ptmiss.double()
    if subsystem == "ab":
        parents, relatives = (ua + la, ub + lb), (la, lb)
    elif subsystem == "b":
        parents, relatives = (la, lb), (ua + la, ub + lb)
    else:
        parents, relatives = (ua, ub), (-la, -lb)
        q = q + la[..., :2] + lb[..., :2]
    energies = torch.stack([t[..., 3].detach().expand(shape) for t in (ua, la, ub, lb)]).amin(0)
    mu_a, mu_b = mu_a.expand(shape), mu_b.expand(shape)
    lightest = torch.minimum(mu_a.detach(), mu_b.detach())  # NaN if one is
    finite = energies.isfinite() & q.detach().isfinite().all(-1) & (mu_a + mu_b).isfinite()
    return _Problem(
        parents=(parents[0].expand(*shape, 4), parents[1].expand(*shape, 4)),
        relatives=(relatives[0].expand(*shape, 4), relatives[1].expand(*shape, 4)),
        ptmiss=q.expand(*shape, 2),
        mu=(mu_a, mu_b),
        valid=(energies >= 0) & finite & (lightest >= 0),
        dtype=common_type(*vectors.values()),
    )


def _solution(name: str, problem: _Problem, backend: Backend, one_sided: bool) -> M2Solution:
    """Solves all blocks and assembles the solution of M2CC, or of M2XC if `one_sided`."""
    device = problem.ptmiss.device
    raw = torch.empty(*problem.shape, 7, dtype=torch.float64, device=device)
    how = torch.empty(problem.shape, dtype=torch.int8, device=device)
    for block, part, kind in _solve_blocks(problem, backend, one_sided):
        raw[block], how[block] = part, kind
    converged = how != FAILED
    warn_failed(name, converged, WHY_FAILED, stacklevel=4)
    value = _with_gradient(problem, raw, converged) if problem.wants_gradient else raw[..., 0]
    q = problem.ptmiss.detach() - raw[..., 1:3]
    mu_a, mu_b = problem.mu
    return M2Solution(
        value=value.to(problem.dtype),
        invisible_a=_four(raw[..., 1:3], raw[..., 3], mu_a).to(problem.dtype),
        invisible_b=_four(q, raw[..., 4], mu_b).to(problem.dtype),
        converged=converged,
        certified=how == CERTIFIED,
    )


def _four(transverse_momentum: Tensor, pz: Tensor, mu: Tensor) -> Tensor:
    """Returns invisible four-momenta ``(..., 4)`` of the trial mass."""
    p3 = torch.cat([transverse_momentum, pz.unsqueeze(-1)], dim=-1)
    energy = torch.hypot(torch.linalg.vector_norm(p3, dim=-1), mu.detach())
    return torch.cat([p3, energy.unsqueeze(-1)], dim=-1)


def _solve_blocks(
    problem: _Problem, backend: Backend, one_sided: bool
) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor]]:
    """Yields block after block (M2, q_x, q_y, q_z of a and b, w, v) and how it was found."""
    chosen = choose_backend(backend, problem.ptmiss.device)
    solve = _solve_numba if chosen == "numba" else _solve_torch
    with torch.no_grad():
        for block in blocks(problem.shape):
            P = torch.stack([t[block] for t in problem.parents], dim=-2)
            R = torch.stack([t[block] for t in problem.relatives], dim=-2)
            Q, mu = problem.ptmiss[block], torch.stack([t[block] for t in problem.mu], dim=-1)
            flat = P.reshape(-1, 2, 4), R.reshape(-1, 2, 4), Q.reshape(-1, 2), mu.reshape(-1, 2)
            raw, how = solve(*flat, one_sided)
            raw, how = raw.reshape(*mu.shape[:-1], 7), how.reshape(mu.shape[:-1])
            valid = problem.valid[block] & raw.isfinite().all(-1)
            how = torch.where(valid, how, FAILED)
            yield block, torch.where((how == FAILED).unsqueeze(-1), math.nan, raw), how


def _solve_torch(
    P: Tensor, R: Tensor, Q: Tensor, mu: Tensor, one_sided: bool
) -> tuple[Tensor, Tensor]:
    raw, how = constrained_torch.solve_convex(P, R, Q, mu)
    index = (how != CERTIFIED).nonzero().squeeze(1)
    if len(index):
        part = P[index], R[index], Q[index], mu[index]
        start, _ = transverse_torch.solve_all(
            part[0][:, 0], part[0][:, 1], part[2], part[3][:, 0], part[3][:, 1]
        )
        new, kind = raw[index], how[index]
        constrained_torch.solve_others(*part, start[:, :3], new, kind)
        raw[index], how[index] = new, kind
    index = _to_check(raw, how).nonzero().squeeze(1)
    if one_sided and len(index):
        new, kind = raw[index], how[index]
        constrained_torch.solve_one_sided(P[index], R[index], Q[index], mu[index], new, kind)
        raw[index], how[index] = new, kind
    return raw, how


def _solve_numba(
    P: Tensor, R: Tensor, Q: Tensor, mu: Tensor, one_sided: bool
) -> tuple[Tensor, Tensor]:
    from massrecon.kinematics import constrained_kernel, constrained_proof, transverse_kernel

    raw = torch.empty(len(P), 7, dtype=torch.float64)
    how = torch.empty(len(P), dtype=torch.int8)
    inputs = tuple(t.contiguous() for t in (P, R, Q, mu))
    constrained_kernel.solve_convex(*_arrays(*inputs, raw, how))
    index = (how != CERTIFIED).nonzero().squeeze(1)
    if len(index):
        part, new, kind = [t[index] for t in inputs], raw[index], how[index]
        start = torch.empty(len(index), 4, dtype=torch.float64)
        sides = (part[0][:, 0], part[0][:, 1], part[2], part[3][:, 0], part[3][:, 1])
        transverse_kernel.solve_all(*_arrays(*sides, start, kind.clone()))
        constrained_kernel.solve_others(*_arrays(*part, start[:, :3], new, kind))
        if not one_sided:  # what it proves is that of M2CC alone
            constrained_proof.prove(*_arrays(*part, start[:, 0], new, kind))
        raw[index], how[index] = new, kind
    index = _to_check(raw, how).nonzero().squeeze(1)
    if one_sided and len(index):
        part, new, kind = [t[index] for t in inputs], raw[index], how[index]
        constrained_kernel.solve_one_sided(*_arrays(*part, new, kind))
        raw[index], how[index] = new, kind
    return raw, how


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Returns contiguous arrays that share memory with contiguous tensors."""
    return tuple(t.contiguous().numpy() for t in tensors)


def _to_check(raw: Tensor, how: Tensor) -> Tensor:
    """Says where M2CC is not proven to be M2XC as well."""
    return ~((how == CERTIFIED) & (raw[:, 5] >= 0) & (raw[:, 5] <= 1))


def _transverse_solution(
    name: str, problem: _Problem, backend: Backend, equal_parents: bool
) -> M2Solution:
    """Adds longitudinal momenta to the solution of MT2 of the parents."""
    mt2_problem = transverse.Problem(*problem.parents, problem.ptmiss, *problem.mu)
    raw, kind = transverse.solve(mt2_problem, backend)
    valid = problem.valid & (kind != transverse_torch.FAILED)
    raw = torch.where(valid.unsqueeze(-1), raw, math.nan)
    kind = torch.where(valid, kind, transverse_torch.FAILED)
    value = raw[..., 0]
    if problem.wants_gradient:
        value = transverse.with_gradient(mt2_problem, raw, kind)
    momenta = (raw[..., 1:3], problem.ptmiss.detach() - raw[..., 1:3])
    invisible = []
    for parent, q, trial in zip(problem.parents, momenta, problem.mu, strict=True):
        P, mu = parent.detach(), trial.detach()
        if equal_parents:
            invisible.append(transverse.on_shell(P, q, mu, raw[..., 0])[..., 0, :])
        else:
            e = (mu.square() + q.square().sum(-1)).sqrt()
            pz = e * P[..., 2] / ((P[..., 3] - P[..., 2]) * (P[..., 3] + P[..., 2])).sqrt()
            invisible.append(_four(q, pz, mu))
    warn_failed(name, valid, WHY_FAILED, stacklevel=4)
    return M2Solution(
        value=value.to(problem.dtype),
        invisible_a=invisible[0].to(problem.dtype),
        invisible_b=invisible[1].to(problem.dtype),
        converged=valid,
        certified=valid,
    )


def _with_gradient(problem: _Problem, raw: Tensor, converged: Tensor) -> Tensor:
    """Returns M2 with the gradient of the Lagrangian at the minimum."""
    good = converged.unsqueeze(-1)
    raw = torch.where(good, raw, 0.0)
    w, v = raw[..., 5], raw[..., 6]
    # failed events may be anything: finite numbers keep the gradient of the others finite
    ptmiss = torch.where(good, problem.ptmiss, 0.0)
    q_a = torch.cat([raw[..., 1:3], raw[..., 3:4]], dim=-1)
    q_b = torch.cat([ptmiss - raw[..., 1:3], raw[..., 4:5]], dim=-1)
    f_a, f_b, g_a, g_b = (
        _shifted(torch.where(good, visible, 1.0), q, mu)
        for pair in (problem.parents, problem.relatives)
        for visible, q, mu in zip(pair, (q_a, q_b), problem.mu, strict=True)
    )
    squared = w * f_a + (1 - w) * f_b + v * (g_a - g_b)
    result = transverse.first_derivative_only(safe_sqrt(squared))
    result = torch.where(converged, result, 0.0)
    value = torch.where(converged, raw[..., 0], math.nan)
    return value + (result - result.detach())


def _shifted(visible: Tensor, q: Tensor, mu: Tensor) -> Tensor:
    """Returns the squared mass of visible (P, or minus a momentum) and invisible vectors."""
    energy = safe_sqrt(mu.square() + q.square().sum(-1))
    product = visible[..., 3] * energy - (visible[..., :3] * q).sum(-1)
    return mass_squared(visible) + mu.square() + 2 * product
