"""Transverse masses: MT, MT2, MCT and MCT-perp, with gradients, and the MAOS momenta from MT2.

With transverse energies E^2 = m^2 + p^2 of a visible and e^2 = mu^2 + q^2 of an invisible system:

    MT^2     = m^2 + mu^2 + 2 (E e - p q)
    MT2      = min over q_a + q_b = ptmiss of max(MT_a, MT_b)
    MCT^2    = m_a^2 + m_b^2 + 2 (E_a E_b + p_a p_b)

MT2 has a smooth convex inner problem: with the multipliers l and 1 - l of the two sides,

    MT2^2 = max over l in [0, 1] of min over q_a of l MT_a^2 + (1 - l) MT_b^2,

so that the right-hand side at fixed q_a and l has the value and the gradient of MT2^2 (envelope
theorem): that is how derivatives come, by visible momenta, `ptmiss` and trial masses.

Rapidities of single visible systems drop out. In float64 a visible mass below 1e-6 of its energy
counts as zero: it is rounding noise of E^2 - p^2. Float32 inputs are computed in float64, but their
masses are as uncertain as float32 leaves them (3e-4 of the energy).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics.backends import (
    Backend,
    batch_shape,
    blocks,
    choose_backend,
    common_type,
    warn_failed,
)
from massrecon.kinematics.fourvectors import check_last_axis, mass_squared, safe_sqrt
from massrecon.kinematics.transverse_torch import (
    BALANCED,
    FAILED,
    LIMIT,
    SIDE_A,
    SIDE_B,
    solve_all,
)

WHY_FAILED = "an input is not finite or has a negative energy or trial mass, or the search failed."


@dataclass(frozen=True, kw_only=True)
class MT2Solution:
    """The stransverse mass of N events and the invisible momenta where it is reached."""

    value: Tensor
    """MT2 [GeV], shape ``(...)``; NaN where not converged."""
    invisible_a: Tensor
    """Transverse momentum of side a's invisible system [GeV], shape ``(..., 2)``. NaN where the
    minimum lies at infinite momenta (massless visible systems exactly back to back)."""
    invisible_b: Tensor
    """The same for side b; the two add up to `ptmiss`."""
    balanced: Tensor
    """Whether both sides have the transverse mass `value`; else one side alone gives it and the
    momenta of the other are not unique. Boolean, shape ``(...)``."""
    converged: Tensor
    """Whether the minimum was found. Boolean, shape ``(...)``."""


@dataclass(frozen=True)
class Problem:
    """Broadcast float64 inputs of MT2; results are returned in `dtype`."""

    visible_a: Tensor
    visible_b: Tensor
    ptmiss: Tensor
    mu_a: Tensor
    mu_b: Tensor
    dtype: torch.dtype = torch.float64

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All inputs, the three momenta first."""
        return self.visible_a, self.visible_b, self.ptmiss, self.mu_a, self.mu_b

    @property
    def wants_gradient(self) -> bool:
        """Whether anything is to be differentiated."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors)


def mt(visible: Tensor, ptmiss: Tensor, m_invisible: Tensor | float = 0.0) -> Tensor:
    """Computes the transverse mass MT of a visible system and an invisible one.

    MT never exceeds the mass of a particle that decays into the two.

    Args:
        visible: Visible four-momentum (px, py, pz, E) [GeV], shape ``(..., 4)``.
        ptmiss: Transverse momentum of the invisible system [GeV], shape ``(..., 2)``.
        m_invisible: Its mass [GeV], broadcastable to ``(...)``.

    Returns:
        MT [GeV], shape ``(...)``, in the inputs' floating-point type. Its gradient at MT = 0 is 0.

    Raises:
        ShapeError: If a last axis is not 4 (or 2 for `ptmiss`).

    >>> muon = torch.tensor([40.0, 0.0, 30.0, 50.0])
    >>> mt(muon, torch.tensor([-40.0, 0.0]))
    tensor(80.)
    """
    check_last_axis(visible, 4, "visible")
    check_last_axis(ptmiss, 2, "ptmiss")
    mu = torch.as_tensor(m_invisible, dtype=torch.float64, device=visible.device)
    return safe_sqrt(_mt_squared(visible.double(), ptmiss.double(), mu)).to(
        common_type(visible, ptmiss)
    )


def mt2(
    visible_a: Tensor,
    visible_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    m_invisible_b: Tensor | float | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Computes the stransverse mass MT2 of two visible systems.

    MT2 is the minimum, over splittings of `ptmiss` into two invisible transverse momenta, of the
    larger transverse mass; it never exceeds the parent mass when `m_invisible` is the true one.

    Args:
        visible_a: First visible four-momentum (px, py, pz, E) [GeV], shape ``(..., 4)``.
        visible_b: Second visible four-momentum [GeV], shape ``(..., 4)``.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(..., 2)``.
        m_invisible: Trial mass of each invisible system [GeV], broadcastable to ``(...)``.
        m_invisible_b: Trial mass on side b [GeV], where it differs.
        backend: "numba" (processors, extra `fast`), "torch" (any device), or "auto": Numba where
            it is installed and the tensors are on a processor.

    Returns:
        MT2 [GeV], shape ``(...)``, in the inputs' floating-point type; NaN where an input is not
        finite or unphysical, with one warning. First derivatives by all inputs are exact; second
        derivatives raise an error.

    Raises:
        ShapeError: If a last axis is not 4 (or 2 for `ptmiss`).
        InputError: If leading dimensions do not fit together.

    References:
        C. G. Lester and D. J. Summers, Phys. Lett. B 463 (1999) 99, hep-ph/9906349.

    >>> a, b = torch.tensor([[60.0, 0, 0, 60], [0.0, 80, 0, 80]])
    >>> mt2(a, b, torch.tensor([-60.0, -80.0]), 0.0)  # MT2^2 = 2 (pT pT + p p) without recoil
    tensor(97.9796)
    """
    problem = _read(visible_a, visible_b, ptmiss, m_invisible, m_invisible_b)
    if problem.wants_gradient:
        raw, kind = solve(problem, backend)
        value = with_gradient(problem, raw, kind)
        converged = kind != FAILED
    else:
        shape = problem.mu_a.shape
        value = torch.empty(shape, dtype=torch.float64, device=problem.ptmiss.device)
        converged = torch.empty(shape, dtype=torch.bool, device=problem.ptmiss.device)
        for block, raw, kind in _solve_blocks(problem, backend):
            value[block], converged[block] = raw[..., 0], kind != FAILED
    warn_failed("MT2", converged, WHY_FAILED)
    return value.to(problem.dtype)


def mt2_solution(
    visible_a: Tensor,
    visible_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    m_invisible_b: Tensor | float | None = None,
    *,
    backend: Backend = "auto",
) -> MT2Solution:
    """Computes MT2 and the invisible transverse momenta where it is reached.

    Takes what `mt2` takes. Only `value` carries a gradient; the momenta are detached. `maos` adds
    longitudinal components to them.
    """
    problem = _read(visible_a, visible_b, ptmiss, m_invisible, m_invisible_b)
    raw, kind = solve(problem, backend)
    value = with_gradient(problem, raw, kind) if problem.wants_gradient else raw[..., 0]
    warn_failed("MT2", kind != FAILED, WHY_FAILED)
    invisible_a = raw[..., 1:3]
    return MT2Solution(
        value=value.to(problem.dtype),
        invisible_a=invisible_a.to(problem.dtype),
        invisible_b=(problem.ptmiss.detach() - invisible_a).to(problem.dtype),
        balanced=(kind == BALANCED),
        converged=kind != FAILED,
    )


def maos(
    solution: MT2Solution,
    visible_a: Tensor,
    visible_b: Tensor,
    m_invisible: Tensor | float,
    m_invisible_b: Tensor | float | None = None,
    *,
    m_parent: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds longitudinal momenta to those of MT2: "MT2-assisted on-shell" momenta.

    The transverse momenta are those of `solution`; the longitudinal ones put each side on the mass
    shell of `m_parent`. Without it, MT2 of the event itself is the parent mass (the modified
    scheme), which gives a single answer for a balanced event: the rapidity of the visible system.

    Args:
        solution: What `mt2_solution` returned, N events of shape ``(...)``.
        visible_a: First visible four-momentum [GeV], shape ``(..., 4)``.
        visible_b: Second visible four-momentum [GeV], shape ``(..., 4)``.
        m_invisible: The trial mass that was given to `mt2_solution` [GeV].
        m_invisible_b: The one on side b, where it differs [GeV].
        m_parent: Mass of both parents [GeV], or None for each event's own MT2.

    Returns:
        Four-momenta (px, py, pz, E) [GeV] of both invisible systems, each of shape ``(..., 2, 4)``:
        two longitudinal solutions, that of the smaller size of pz first. NaN where a transverse
        mass exceeds the parent mass or MT2 did not converge.

    References:
        W. S. Cho, K. Choi, Y. G. Kim and C. B. Park, Phys. Rev. D 79 (2009) 031701, 0810.4853;
        C. B. Park, Phys. Rev. D 84 (2011) 096001, 1106.6087.
    """
    check_last_axis(visible_a, 4, "visible_a")
    check_last_axis(visible_b, 4, "visible_b")
    parent = solution.value if m_parent is None else m_parent
    parent = torch.as_tensor(parent, dtype=torch.float64, device=visible_a.device).detach()
    masses = (m_invisible, m_invisible if m_invisible_b is None else m_invisible_b)
    sides = ((visible_a, solution.invisible_a), (visible_b, solution.invisible_b))
    first, second = (
        on_shell(visible, q, mu, parent).to(common_type(visible_a, visible_b))
        for (visible, q), mu in zip(sides, masses, strict=True)
    )
    return first, second


def on_shell(visible: Tensor, q: Tensor, m_invisible: Tensor | float, m_parent: Tensor) -> Tensor:
    """Solves (visible + invisible)^2 = m_parent^2 for the invisible longitudinal momentum.

    Args:
        visible: Visible four-momentum [GeV], shape ``(..., 4)``.
        q: Invisible transverse momentum [GeV], shape ``(..., 2)``.
        m_invisible: Invisible mass [GeV], broadcastable to ``(...)``.
        m_parent: Parent mass [GeV], broadcastable to ``(...)``.

    Returns:
        Both invisible four-momenta [GeV], shape ``(..., 2, 4)``, that of the smaller size of pz
        first; NaN where there is none. A transverse mass up to 1e-6 above `m_parent` counts as
        equal.
    """
    p4, q = visible.double(), q.double()
    mu = torch.as_tensor(m_invisible, dtype=torch.float64, device=p4.device)
    m_squared, energy_squared = _mass_and_energy_squared(p4)
    e_squared = mu.square() + q.square().sum(-1)
    along = (p4[..., :2] * q).sum(-1)
    product = 0.5 * (m_parent.square() - m_squared - mu.square()) + along
    # zero for a massless system at rest, negative where the parent is lighter than the visible one
    product = torch.where(product.abs() < 1e-9 * m_parent.square(), product.abs(), product)
    product = torch.where(product < 0, math.nan, product)
    # product = E e - pz qz, so that its square exceeds E_T^2 e_T^2 by the rapidity difference
    excess = product.square() - energy_squared * e_squared
    noise = 2e-6 * m_parent.square() * product.abs() + 1e-12 * energy_squared * e_squared
    excess = torch.where((excess < 0) & (excess > -noise), 0.0, excess)
    middle, root = product * p4[..., 2], p4[..., 3] * excess.sqrt()
    pz = torch.stack([middle - root, middle + root], dim=-1) / energy_squared.unsqueeze(-1)
    pz = pz.gather(-1, pz.abs().argsort(dim=-1))
    transverse = q.unsqueeze(-2).expand(*pz.shape, 2)
    energy = (e_squared.unsqueeze(-1) + pz.square()).sqrt()
    p3 = torch.cat([transverse, pz.unsqueeze(-1)], dim=-1)
    return torch.where(
        pz.unsqueeze(-1).isnan(), math.nan, torch.cat([p3, energy.unsqueeze(-1)], -1)
    )


def mct(visible_a: Tensor, visible_b: Tensor) -> Tensor:
    """Computes the contransverse mass MCT of two visible systems.

    For parents of equal mass M without transverse momentum of their own, each decaying into a
    massless visible and an invisible particle of mass mu, MCT ends at (M^2 - mu^2) / M. It does
    not change when both parents are boosted back to back by equal amounts.

    Args:
        visible_a: First visible four-momentum (px, py, pz, E) [GeV], shape ``(..., 4)``.
        visible_b: Second visible four-momentum [GeV], shape ``(..., 4)``.

    Returns:
        MCT [GeV], shape ``(...)``, in the inputs' floating-point type.

    Raises:
        ShapeError: If a last axis is not 4.

    References:
        D. R. Tovey, JHEP 04 (2008) 034, 0802.2879.
    """
    check_last_axis(visible_a, 4, "visible_a")
    check_last_axis(visible_b, 4, "visible_b")
    a, b = visible_a.double(), visible_b.double()
    return _contransverse(a, b, a[..., :2], b[..., :2]).to(common_type(visible_a, visible_b))


def mct_perp(visible_a: Tensor, visible_b: Tensor, ptmiss: Tensor) -> Tensor:
    """Computes MCT from the momenta perpendicular to the recoil, which no recoil changes.

    The recoil (upstream momentum) is -(p_a + p_b + ptmiss) in the transverse plane.

    Args:
        visible_a: First visible four-momentum (px, py, pz, E) [GeV], shape ``(..., 4)``.
        visible_b: Second visible four-momentum [GeV], shape ``(..., 4)``.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(..., 2)``.

    Returns:
        MCT-perp [GeV], shape ``(...)``, in the inputs' floating-point type; NaN where there is no
        recoil to be perpendicular to.

    Raises:
        ShapeError: If a last axis is not 4 (or 2 for `ptmiss`).

    References:
        K. T. Matchev and M. Park, Phys. Rev. Lett. 107 (2011) 061801, 0910.1584.
    """
    check_last_axis(visible_a, 4, "visible_a")
    check_last_axis(visible_b, 4, "visible_b")
    check_last_axis(ptmiss, 2, "ptmiss")
    a, b = visible_a.double(), visible_b.double()
    recoil = a[..., :2] + b[..., :2] + ptmiss.double()
    axis = torch.stack([-recoil[..., 1], recoil[..., 0]], dim=-1)
    axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    p_a = (a[..., :2] * axis).sum(-1, keepdim=True)
    p_b = (b[..., :2] * axis).sum(-1, keepdim=True)
    return _contransverse(a, b, p_a, p_b).to(common_type(visible_a, visible_b, ptmiss))


def _contransverse(a: Tensor, b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
    """Returns MCT from four-momenta, for their masses, and momenta ``(..., 1 or 2)``."""
    m_a, m_b = _mass_and_energy_squared(a)[0], _mass_and_energy_squared(b)[0]
    energy_a = safe_sqrt(m_a + p_a.square().sum(-1))
    energy_b = safe_sqrt(m_b + p_b.square().sum(-1))
    return safe_sqrt(m_a + m_b + 2 * (energy_a * energy_b + (p_a * p_b).sum(-1)))


def _mass_and_energy_squared(p4: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the squared mass, not below zero, and the squared transverse energy [GeV²]."""
    m_squared = mass_squared(p4).clamp_min(0)
    return m_squared, m_squared + p4[..., :2].square().sum(-1)


def _mt_squared(p4: Tensor, q: Tensor, mu: Tensor) -> Tensor:
    m_squared, energy_squared = _mass_and_energy_squared(p4)
    product = safe_sqrt(energy_squared) * safe_sqrt(mu.square() + q.square().sum(-1))
    return m_squared + mu.square() + 2 * (product - (p4[..., :2] * q).sum(-1))


def _read(
    visible_a: Tensor,
    visible_b: Tensor,
    ptmiss: Tensor,
    m_invisible: Tensor | float,
    m_invisible_b: Tensor | float | None,
) -> Problem:
    """Checks shapes, and broadcasts all inputs in float64 without copying float64 ones."""
    vectors = {"visible_a": visible_a, "visible_b": visible_b, "ptmiss": ptmiss}
    for name, tensor in vectors.items():
        check_last_axis(tensor, 2 if name == "ptmiss" else 4, name)
    device = visible_a.device
    mu_a = torch.as_tensor(m_invisible, dtype=torch.float64, device=device)
    mu_b = mu_a
    if m_invisible_b is not None:
        mu_b = torch.as_tensor(m_invisible_b, dtype=torch.float64, device=device)
    shape = batch_shape(vectors, {"m_invisible": mu_a, "m_invisible_b": mu_b})
    return Problem(
        visible_a=visible_a.double().expand(*shape, 4),
        visible_b=visible_b.double().expand(*shape, 4),
        ptmiss=ptmiss.double().expand(*shape, 2),
        mu_a=mu_a.expand(shape),
        mu_b=mu_b.expand(shape),
        dtype=common_type(*vectors.values()),
    )


def solve(problem: Problem, backend: Backend) -> tuple[Tensor, Tensor]:
    """Returns (MT2, q_x, q_y, l), shape ``(..., 4)``, and the kind of solution ``(...)``."""
    shape, device = problem.mu_a.shape, problem.ptmiss.device
    raw = torch.empty(*shape, 4, dtype=torch.float64, device=device)
    kind = torch.empty(shape, dtype=torch.int8, device=device)
    for block, part, how in _solve_blocks(problem, backend):
        raw[block], kind[block] = part, how
    return raw, kind


def _solve_blocks(
    problem: Problem, backend: Backend
) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor]]:
    """Solves block after block, so that the working memory stays bounded."""
    chosen = choose_backend(backend, problem.ptmiss.device)
    with torch.no_grad():
        for block in blocks(tuple(problem.mu_a.shape)):
            parts = [t.detach()[block] for t in problem.tensors]
            shape = parts[3].shape
            flat = [
                t.reshape(-1, t.shape[-1]) if k < 3 else t.reshape(-1) for k, t in enumerate(parts)
            ]
            raw, kind = _solve_numba(flat) if chosen == "numba" else solve_all(*flat)
            yield block, raw.reshape(*shape, 4), kind.reshape(shape)


def _solve_numba(flat: list[Tensor]) -> tuple[Tensor, Tensor]:
    from massrecon.kinematics import transverse_kernel

    raw = torch.empty(len(flat[0]), 4, dtype=torch.float64)
    kind = torch.empty(len(flat[0]), dtype=torch.int8)
    transverse_kernel.solve_all(*(t.contiguous().numpy() for t in (*flat, raw, kind)))
    return raw, kind


def with_gradient(problem: Problem, raw: Tensor, kind: Tensor) -> Tensor:
    """Returns MT2 with the gradient of the Lagrangian at the minimum."""
    value, q_a, share = raw[..., 0], raw[..., 1:3], raw[..., 3]
    balanced, solved = kind == BALANCED, kind != FAILED
    # where there is nothing to differentiate, finite numbers keep the gradient of the others so
    q_a = torch.where(balanced.unsqueeze(-1), q_a, 1.0)
    q_b = torch.where(balanced.unsqueeze(-1), problem.ptmiss - q_a, 1.0)
    share = torch.where(balanced, share, 0.5)
    a, b = (torch.where(solved.unsqueeze(-1), t, 1.0) for t in problem.tensors[:2])
    f_a, f_b = _mt_squared(a, q_a, problem.mu_a), _mt_squared(b, q_b, problem.mu_b)
    result = torch.where(balanced, safe_sqrt(share * f_a + (1 - share) * f_b), 0.0)
    for how, visible, mu in ((SIDE_A, a, problem.mu_a), (SIDE_B, b, problem.mu_b)):
        alone = safe_sqrt(mass_squared(visible).clamp_min(0)) + mu
        result = torch.where(kind == how, alone, result)
    larger = torch.maximum(problem.mu_a, problem.mu_b)
    result = torch.where(kind == LIMIT, larger, result)
    result = first_derivative_only(result)
    return value + (result - result.detach())


def first_derivative_only(value: Tensor) -> Tensor:
    """Lets a tensor be differentiated once.

    Raises:
        InputError: In the backward pass, if second derivatives are asked for.
    """
    return _FirstDerivativeOnly.apply(value)


class _FirstDerivativeOnly(torch.autograd.Function):
    """Passes values and gradients on; refuses second derivatives, which would be wrong."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise InputError(
                "Second derivatives of a kinematic minimum are not available: differentiate once, "
                "without create_graph=True."
            )
        return gradients[0]
