"""Four-vectors as tensors ``(..., 4)`` = (px, py, pz, E) in GeV, metric (+, -, -, -).

    m^2 = E^2 - px^2 - py^2 - pz^2        pT = sqrt(px^2 + py^2)
    eta = asinh(pz / pT)                  y  = atanh(pz / E)

Masses are signed: a space-like vector has the negative root of its absolute square. Differences of
squares cancel: in float32 the mass of a 500 GeV muon comes out as 0, so work in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from massrecon.errors import ShapeError


def mass_squared(p4: Tensor) -> Tensor:
    """Computes the squared mass [GeV²] of four-vectors, shape ``(..., 4)`` -> ``(...)``."""
    check_last_axis(p4, 4, "p4")
    momentum = torch.linalg.vector_norm(p4[..., :3], dim=-1)
    return (p4[..., 3] - momentum) * (p4[..., 3] + momentum)


def mass(p4: Tensor) -> Tensor:
    """Computes the signed mass [GeV] of four-vectors, shape ``(..., 4)`` -> ``(...)``.

    Its gradient at mass 0, where it has none, is 0.

    >>> mass(torch.tensor([3.0, 0.0, 0.0, 5.0]))
    tensor(4.)
    """
    squared = mass_squared(p4)
    return squared.sign() * safe_sqrt(squared.abs())


def safe_sqrt(squared: Tensor) -> Tensor:
    """Takes the root of a square that may be zero or slightly negative; its gradient there is 0."""
    positive = squared > 0
    # detached, since the gradient of a clamp is 1 at its very limit; NaN stays NaN
    nothing = squared.detach().clamp_min(0)
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), nothing)


def pt(p4: Tensor) -> Tensor:
    """Computes the transverse momentum [GeV] of vectors that begin with (px, py)."""
    return torch.hypot(p4[..., 0], p4[..., 1])


def phi(p4: Tensor) -> Tensor:
    """Computes the azimuth [rad], in (-π, π], of vectors that begin with (px, py)."""
    return torch.atan2(p4[..., 1], p4[..., 0])


def eta(p4: Tensor) -> Tensor:
    """Computes the pseudorapidity of vectors that begin with (px, py, pz); ±inf along the beam."""
    return torch.asinh(p4[..., 2] / pt(p4))


def rapidity(p4: Tensor) -> Tensor:
    """Computes the rapidity of four-vectors; ±inf for massless ones along the beam."""
    check_last_axis(p4, 4, "p4")
    return torch.atanh(p4[..., 2] / p4[..., 3])


def delta_phi(phi_1: Tensor, phi_2: Tensor) -> Tensor:
    """Computes the azimuth difference [rad], wrapped to [-π, π)."""
    return torch.remainder(phi_1 - phi_2 + torch.pi, 2 * torch.pi) - torch.pi


def delta_r(p4_1: Tensor, p4_2: Tensor) -> Tensor:
    """Computes the distance ΔR = sqrt(Δη² + Δφ²) of two vectors, shapes broadcast."""
    return torch.hypot(eta(p4_1) - eta(p4_2), delta_phi(phi(p4_1), phi(p4_2)))


def energy_from_mass(p3: Tensor, mass: Tensor) -> Tensor:
    """Computes the energy [GeV] of momenta ``(..., 3)`` with masses ``(...)`` [GeV]."""
    check_last_axis(p3, 3, "p3")
    return torch.hypot(torch.linalg.vector_norm(p3, dim=-1), mass)


def from_pxpypzm(pxpypzm: Tensor) -> Tensor:
    """Converts (px, py, pz, m), shape ``(..., 4)`` [GeV], to (px, py, pz, E)."""
    check_last_axis(pxpypzm, 4, "pxpypzm")
    p3 = pxpypzm[..., :3]
    return torch.cat([p3, energy_from_mass(p3, pxpypzm[..., 3]).unsqueeze(-1)], dim=-1)


def to_pxpypzm(p4: Tensor) -> Tensor:
    """Converts (px, py, pz, E) to (px, py, pz, m) with signed mass, shape ``(..., 4)`` [GeV]."""
    return torch.cat([p4[..., :3], mass(p4).unsqueeze(-1)], dim=-1)


def from_ptetaphim(pt: Tensor, eta: Tensor, phi: Tensor, mass: Tensor) -> Tensor:
    """Builds four-vectors ``(..., 4)`` from pT [GeV], η, φ [rad] and mass [GeV].

    All shapes broadcast.
    """
    components = (pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), mass)
    return from_pxpypzm(torch.stack(torch.broadcast_tensors(*components), dim=-1))


def from_ptetaphie(pt: Tensor, eta: Tensor, phi: Tensor, energy: Tensor) -> Tensor:
    """Builds four-vectors ``(..., 4)`` from pT [GeV], η, φ [rad] and energy [GeV].

    All shapes broadcast.
    """
    components = (pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), energy)
    return torch.stack(torch.broadcast_tensors(*components), dim=-1)


def to_ptetaphim(p4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Converts four-vectors to pT [GeV], η, φ [rad] and signed mass [GeV], each ``(...)``."""
    return pt(p4), eta(p4), phi(p4), mass(p4)


def boost(p4: Tensor, beta: Tensor) -> Tensor:
    """Boosts four-vectors by velocities.

    Args:
        p4: Four-momenta [GeV], shape ``(..., 4)``.
        beta: Velocity in units of c, shape ``(..., 3)``; a particle at rest ends up moving with
            it. NaN where |beta| >= 1.

    Returns:
        Boosted four-momenta [GeV], shape ``(..., 4)``.
    """
    check_last_axis(p4, 4, "p4")
    check_last_axis(beta, 3, "beta")
    gamma = (1 - (beta * beta).sum(-1)).rsqrt()
    along = (beta * p4[..., :3]).sum(-1)
    # gamma^2 / (gamma + 1) is (gamma - 1) / beta^2 without the division by zero at rest
    shift = gamma * gamma / (gamma + 1) * along + gamma * p4[..., 3]
    p3 = p4[..., :3] + shift.unsqueeze(-1) * beta
    return torch.cat([p3, (gamma * (p4[..., 3] + along)).unsqueeze(-1)], dim=-1)


def boost_to_rest_frame(p4: Tensor, frame: Tensor) -> Tensor:
    """Boosts four-vectors into the rest frame of `frame`, both ``(..., 4)`` [GeV]."""
    check_last_axis(frame, 4, "frame")
    return boost(p4, -frame[..., :3] / frame[..., 3:])


def rotate_z(vector: Tensor, angle: Tensor) -> Tensor:
    """Rotates vectors that begin with (px, py) about the beam.

    Args:
        vector: Shape ``(..., D)`` with D >= 2; components beyond the second are kept.
        angle: Rotation angle [rad], broadcastable to ``(...)``.
    """
    cos, sin = angle.cos(), angle.sin()
    x, y = vector[..., 0], vector[..., 1]
    rotated = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    rest = vector[..., 2:].expand(*rotated.shape[:-1], -1)
    return torch.cat([rotated, rest], dim=-1)


def check_last_axis(tensor: Tensor, size: int, name: str) -> None:
    """Checks that the last axis of a tensor has `size` components.

    Raises:
        ShapeError: If it has not.
    """
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        expected = {2: "(px, py)", 3: "(px, py, pz)", 4: "four components"}.get(size, str(size))
        raise ShapeError(
            f"'{name}' should have shape (..., {size}), got {tuple(tensor.shape)}: pass {expected}."
        )
