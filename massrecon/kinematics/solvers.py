r"""Solving two-step pair decays: all invisible momenta that fit an event and a mass hypothesis.

Both sides decay as A -> a B, B -> b C with C unseen; in top-quark pairs A is the top quark, a the
b quark, B the W boson, b the lepton and C the neutrino. For given masses the invisible momentum q
of one side obeys

    a.q = (m_A^2 - m_B^2 - m_a^2) / 2 - a.b
    b.q = (m_B^2 - m_b^2 - m_C^2) / 2
    q^2 = m_C^2

which is an ellipse: in the rest frame of a + b the energy of q and its component along a are fixed,
and only the azimuth phi about that axis is free. The two ellipses and

    q_aT + q_bT = ptmiss

give a trigonometric polynomial of second degree in one azimuth, with zero, two or four real roots.

References:
    L. Sonnenschein, Phys. Rev. D 73 (2006) 054015, hep-ph/0603011 (a quartic for the same system);
    B. A. Betchart, R. Demina, A. Harel, Nucl. Instrum. Meth. A 736 (2014) 169, arXiv:1305.1878
    (the ellipse of one side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics.backends import batch_shape
from massrecon.kinematics.fourvectors import boost, check_last_axis, mass_squared

CHUNK = 100_000
"""Events that are solved at once."""

_UNIT_CIRCLE = 1e-4
_RESIDUAL_MAX = 1e-6


@dataclass(frozen=True)
class PairSolutions:
    """All solutions of events of a two-step pair decay; at most four each, those that exist first.

    Attributes:
        invisible_a: Invisible four-momenta of side a (px, py, pz, E) [GeV], shape ``(..., 4, 4)``
            with the solutions on the last axis but one; NaN where there is none.
        invisible_b: The same of side b.
        exists: Which solutions there are, shape ``(..., 4)``.
    """

    invisible_a: Tensor
    invisible_b: Tensor
    exists: Tensor

    @property
    def n_solutions(self) -> Tensor:
        """Number of solutions of each event, shape ``(...)``."""
        return self.exists.sum(-1)


@dataclass(frozen=True)
class _Ellipse:
    """Momenta q = centre + cos(phi) axis_c + sin(phi) axis_s of one side, each ``(N, 4)``."""

    centre: Tensor
    axis_c: Tensor
    axis_s: Tensor
    exists: Tensor

    def at(self, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns the momenta at azimuths ``(N, S)``, shape ``(N, S, 4)``."""
        turned = cos.unsqueeze(-1) * self.axis_c.unsqueeze(-2)
        turned = turned + sin.unsqueeze(-1) * self.axis_s.unsqueeze(-2)
        return self.centre.unsqueeze(-2) + turned

    def transverse(self) -> tuple[Tensor, Tensor]:
        """Returns the transverse centre ``(N, 2)`` and the axes as columns ``(N, 2, 2)``."""
        return self.centre[:, :2], torch.stack([self.axis_c[:, :2], self.axis_s[:, :2]], dim=-1)


def pair_solutions(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_parent: Tensor | float,
    m_daughter: Tensor | float,
    m_invisible: Tensor | float = 0.0,
) -> PairSolutions:
    """Finds all invisible momenta for which both sides have the given masses.

    Args:
        upper_a: Visible particle of A -> a B on side a (px, py, pz, E) [GeV], shape ``(..., 4)``.
        lower_a: Visible particle of B -> b C on side a.
        upper_b: The same as `upper_a` on side b.
        lower_b: The same as `lower_a` on side b.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(..., 2)``.
        m_parent: Mass of A [GeV], broadcastable to ``(...)``.
        m_daughter: Mass of B [GeV], likewise.
        m_invisible: Mass of C [GeV], likewise.

    Returns:
        At most four solutions of each event, in float64.

    Raises:
        ShapeError: If a last axis is not 4, or not 2 for `ptmiss`.
        InputError: If leading dimensions do not fit together.
    """
    visible = (upper_a, lower_a, upper_b, lower_b)
    rows, shape = _read(visible, ptmiss, (m_parent, m_daughter, m_invisible))
    chunks = [
        _solve(*(column[start : start + CHUNK] for column in rows))
        for start in range(0, max(len(rows[0]), 1), CHUNK)
    ]
    joined = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    return PairSolutions(*(found.reshape(*shape, *found.shape[1:]) for found in joined))


def smeared_solutions(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_parent: Tensor | float,
    m_daughter: Tensor | float,
    m_invisible: Tensor | float = 0.0,
    *,
    upper_resolution: Tensor | float,
    lower_resolution: Tensor | float = 0.0,
    ptmiss_resolution: Tensor | float = 0.0,
    n_smear: int = 100,
    seed: int = 0,
) -> PairSolutions:
    """Solves events many times with momenta varied within their resolutions.

    So that an event without an exact solution is used as well. The visible momenta are scaled by
    Gaussian factors at fixed direction and velocity, and `ptmiss` moves against them.

    Args:
        upper_a: As in `pair_solutions`, likewise the following ones.
        lower_a: See there.
        upper_b: See there.
        lower_b: See there.
        ptmiss: See there.
        m_parent: See there.
        m_daughter: See there.
        m_invisible: See there.
        upper_resolution: Relative momentum resolution of the upper particles, to ``(...)``.
        lower_resolution: The same of the lower particles.
        ptmiss_resolution: Further Gaussian width of each component of ptmiss [GeV], to ``(...)``.
        n_smear: Number of variations.
        seed: Random seed.

    Returns:
        Solutions of shape ``(n_smear, ..., 4)``.
    """
    generator = torch.Generator(ptmiss.device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(
            n_smear, *shape, dtype=torch.float64, device=ptmiss.device, generator=generator
        )

    def width(resolution: Tensor | float) -> Tensor:
        return torch.as_tensor(resolution, dtype=torch.float64, device=ptmiss.device)

    varied, shifted = [], ptmiss + width(ptmiss_resolution).unsqueeze(-1) * noise(*ptmiss.shape)
    resolutions = (upper_resolution, lower_resolution) * 2
    for p4, resolution in zip((upper_a, lower_a, upper_b, lower_b), resolutions, strict=True):
        factor = 1.0 + width(resolution) * noise(*p4.shape[:-1])
        varied.append(p4 * factor.clamp_min(0.05).unsqueeze(-1))
        shifted = shifted + (p4 - varied[-1])[..., :2]
    a_a, b_a, a_b, b_b = varied
    return pair_solutions(a_a, b_a, a_b, b_b, shifted, m_parent, m_daughter, m_invisible)


def solvable_fraction(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_parent: Tensor,
    m_daughter: Tensor,
    m_invisible: Tensor | float = 0.0,
) -> Tensor:
    """Computes for which fraction of N events each mass hypothesis has a solution.

    With perfect momenta the fraction is one at the true masses and falls towards lighter ones.

    Args:
        upper_a: As in `pair_solutions`, shape ``(N, 4)``, likewise the following ones.
        lower_a: See there.
        upper_b: See there.
        lower_b: See there.
        ptmiss: See there, shape ``(N, 2)``.
        m_parent: Masses of A [GeV], any shape ``(...)``.
        m_daughter: Masses of B [GeV], the same shape.
        m_invisible: Masses of C [GeV], broadcastable to that shape.

    Returns:
        Fractions of shape ``(...)``.

    Raises:
        InputError: If there are no events.
    """
    if len(ptmiss) == 0:
        raise InputError("The solvable fraction needs events: 'ptmiss' is empty.")
    masses = torch.broadcast_tensors(
        *(torch.as_tensor(m).to(ptmiss.device, torch.float64) for m in (m_parent, m_daughter)),
        torch.as_tensor(m_invisible).to(ptmiss.device, torch.float64),
    )
    events = (upper_a, lower_a, upper_b, lower_b, ptmiss)
    fractions = torch.empty_like(masses[0]).flatten()
    for i, point in enumerate(torch.stack(masses, dim=-1).reshape(-1, 3)):
        solved = pair_solutions(*events, *point.unbind()).exists.any(-1)
        fractions[i] = solved.double().mean()
    return fractions.reshape(masses[0].shape)


def neutrino_weight(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_parent: Tensor | float,
    m_daughter: Tensor | float,
    m_invisible: Tensor | float = 0.0,
    *,
    ptmiss_resolution: float,
    rapidities: Tensor | None = None,
) -> Tensor:
    """Weighs a mass hypothesis by how well the invisible momenta it allows add up to ptmiss.

    For each pair of rapidities of the invisible particles both sides are solved without ptmiss (up
    to two solutions a side); the weight is the mean, over all pairs, of the summed Gaussian
    probabilities of the difference to the measured ptmiss.

    Args:
        upper_a: As in `pair_solutions`, likewise the following ones.
        lower_a: See there.
        upper_b: See there.
        lower_b: See there.
        ptmiss: See there.
        m_parent: See there.
        m_daughter: See there.
        m_invisible: See there.
        ptmiss_resolution: Gaussian width of each component of ptmiss [GeV].
        rapidities: Rapidities to average over, shape ``(R,)``; None for the 41 quantiles of a unit
            Gaussian.

    Returns:
        Weights [1/GeV²], shape ``(...)``, in float64.

    Raises:
        ShapeError: If a last axis is not 4, or not 2 for `ptmiss`.
        InputError: If leading dimensions do not fit together, or the resolution is not positive.

    References:
        D0 Collaboration, Phys. Rev. D 60 (1999) 052001, hep-ex/9808029, Sec. V.
    """
    if not ptmiss_resolution > 0:
        raise InputError(
            f"'ptmiss_resolution' should be positive, got {ptmiss_resolution:g}: pass the width of "
            "one component of ptmiss in GeV."
        )
    if rapidities is None:
        quantiles = (torch.arange(41, dtype=torch.float64) + 0.5) / 41
        rapidities = 2**0.5 * torch.erfinv(2 * quantiles - 1)
    rapidities = rapidities.to(ptmiss.device, torch.float64)
    visible = (upper_a, lower_a, upper_b, lower_b)
    rows, shape = _read(visible, ptmiss, (m_parent, m_daughter, m_invisible))
    # every solution of one side meets every one of the other
    step = max(1, CHUNK // max(2 * len(rapidities), 1) ** 2)
    sums = [
        _weight([column[start : start + step] for column in rows], rapidities, ptmiss_resolution)
        for start in range(0, max(len(rows[0]), 1), step)
    ]
    norm = 2 * torch.pi * ptmiss_resolution**2 * len(rapidities) ** 2
    return (torch.cat(sums) / norm).reshape(shape)


def _read(
    visible: tuple[Tensor, Tensor, Tensor, Tensor],
    ptmiss: Tensor,
    masses: tuple[Tensor | float, Tensor | float, Tensor | float],
) -> tuple[list[Tensor], tuple[int, ...]]:
    """Checks shapes; returns vectors ``(N, D)``, masses ``(N)`` in float64, and the batch shape."""
    vectors: dict[str, Tensor] = dict(
        zip(("upper_a", "lower_a", "upper_b", "lower_b"), visible, strict=True)
    )
    for name, p4 in vectors.items():
        check_last_axis(p4, 4, name)
    check_last_axis(ptmiss, 2, "ptmiss")
    vectors["ptmiss"] = ptmiss
    scalars = {
        name: torch.as_tensor(m, dtype=torch.float64).to(ptmiss.device)
        for name, m in zip(("m_parent", "m_daughter", "m_invisible"), masses, strict=True)
    }
    shape = batch_shape(vectors, scalars)
    rows = [
        v.double().expand(*shape, v.shape[-1]).reshape(-1, v.shape[-1]) for v in vectors.values()
    ]
    return [*rows, *(m.expand(shape).flatten() for m in scalars.values())], shape


def _weight(rows: Sequence[Tensor], rapidities: Tensor, resolution: float) -> Tensor:
    """Sums the Gaussian probabilities of N events over all pairs of rapidities, not normalised."""
    upper_a, lower_a, upper_b, lower_b, ptmiss, *masses = rows
    sums, allowed = [], []
    for upper, lower in ((upper_a, lower_a), (upper_b, lower_b)):
        ellipse = _ellipse(upper, lower, *masses)
        q, exists = _at_rapidity(ellipse, rapidities)
        sums.append(q[..., :2])
        allowed.append(exists)
    off = ptmiss[:, None, None] - sums[0][:, :, None] - sums[1][:, None]
    chi_squared = (off / resolution).square().sum(-1)
    both = allowed[0][:, :, None] & allowed[1][:, None]
    return torch.where(both, (-0.5 * chi_squared).exp(), 0.0).sum((1, 2))


def _ellipse(a: Tensor, b: Tensor, m_parent: Tensor, m_daughter: Tensor, m_c: Tensor) -> _Ellipse:
    """Finds the momenta that one side allows; all shapes ``(N, 4)`` and ``(N)``."""
    total = a + b
    squared = mass_squared(total)
    beta = total[:, :3] / total[:, 3:]
    a_rest = boost(a, -beta)
    momentum = torch.linalg.vector_norm(a_rest[:, :3], dim=-1)
    m_a_squared, m_b_squared = mass_squared(a), mass_squared(b)
    a_dot_b = 0.5 * (squared - m_a_squared - m_b_squared)
    a_dot_q = 0.5 * (m_parent**2 - m_daughter**2 - m_a_squared) - a_dot_b
    b_dot_q = 0.5 * (m_daughter**2 - m_b_squared - m_c**2)
    energy = (a_dot_q + b_dot_q) / squared.clamp_min(0).sqrt()
    along = (a_rest[:, 3] * energy - a_dot_q) / momentum
    radius_squared = energy**2 - along**2 - m_c**2
    radius = radius_squared.clamp_min(0).sqrt().unsqueeze(-1)
    axis = a_rest[:, :3] / momentum.unsqueeze(-1)
    first, second = _perpendicular(axis)
    zero = torch.zeros_like(energy).unsqueeze(-1)
    centre = torch.cat([along.unsqueeze(-1) * axis, energy.unsqueeze(-1)], dim=-1)
    return _Ellipse(
        boost(centre, beta),
        boost(torch.cat([radius * first, zero], dim=-1), beta),
        boost(torch.cat([radius * second, zero], dim=-1), beta),
        (radius_squared >= 0) & (energy >= 0) & (squared > 0),
    )


def _perpendicular(axis: Tensor) -> tuple[Tensor, Tensor]:
    """Completes unit vectors ``(N, 3)`` to orthonormal bases."""
    smallest = torch.nn.functional.one_hot(axis.abs().argmin(-1), 3).to(axis.dtype)
    first = torch.linalg.cross(axis, smallest)
    first = first / torch.linalg.vector_norm(first, dim=-1, keepdim=True)
    return first, torch.linalg.cross(axis, first)


def _solve(
    upper_a: Tensor,
    lower_a: Tensor,
    upper_b: Tensor,
    lower_b: Tensor,
    ptmiss: Tensor,
    m_parent: Tensor,
    m_daughter: Tensor,
    m_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves N events: momenta of both sides ``(N, 4, 4)`` and which exist ``(N, 4)``."""
    side_a = _ellipse(upper_a, lower_a, m_parent, m_daughter, m_c)
    side_b = _ellipse(upper_b, lower_b, m_parent, m_daughter, m_c)
    (centre_a, axes_a), (centre_b, axes_b) = side_a.transverse(), side_b.transverse()
    gap = ptmiss - centre_a - centre_b
    swap = torch.linalg.det(axes_a).abs() < torch.linalg.det(axes_b).abs()
    pick = swap[:, None, None]
    inverted, kept = torch.where(pick, axes_b, axes_a), torch.where(pick, axes_a, axes_b)
    possible = side_a.exists & side_b.exists
    unit_kept, unit_inverted, exists = _intersect(inverted, kept, gap, possible)
    unit_a = torch.where(pick, unit_kept, unit_inverted)
    unit_b = torch.where(pick, unit_inverted, unit_kept)
    order = (~exists).to(torch.int8).argsort(dim=-1, stable=True)
    exists = exists.gather(1, order)
    index = order.unsqueeze(-1).expand(-1, -1, 4)
    momenta = [
        torch.where(exists.unsqueeze(-1), side.at(*unit.unbind(-1)).gather(1, index), torch.nan)
        for side, unit in ((side_a, unit_a), (side_b, unit_b))
    ]
    return momenta[0], momenta[1], exists


def _intersect(
    inverted: Tensor, kept: Tensor, gap: Tensor, possible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves inverted u + kept v = gap for unit vectors u, v of N events.

    Returns:
        v and u, each ``(N, 4, 2)``, and which solutions exist, ``(N, 4)``.
    """
    (m00, m01), (m10, m11) = (row.unbind(-1) for row in inverted.unbind(-2))
    det = m00 * m11 - m01 * m10
    adjugate = torch.stack([torch.stack([m11, -m01], -1), torch.stack([-m10, m00], -1)], -2)
    w = (adjugate @ gap.unsqueeze(-1)).squeeze(-1)
    turned = adjugate @ kept
    gram, mixed = turned.mT @ turned, (turned.mT @ w.unsqueeze(-1)).squeeze(-1)
    # |w - turned v|^2 - det^2 = k0 + k1.(cos, sin) + k2.(cos 2phi, sin 2phi) with v = (cos, sin)
    k0 = w.square().sum(-1) + 0.5 * (gram[:, 0, 0] + gram[:, 1, 1]) - det**2
    k1 = -2 * mixed
    k2 = torch.stack([0.5 * (gram[:, 0, 0] - gram[:, 1, 1]), gram[:, 0, 1]], dim=-1)
    scale = k0.abs() + k1.abs().sum(-1) + k2.abs().sum(-1)
    usable = possible & torch.isfinite(scale) & (scale > 0)
    scale = torch.where(usable, scale, 1.0)
    k0, k1, k2 = k0 / scale, k1 / scale.unsqueeze(-1), k2 / scale.unsqueeze(-1)
    phi, exists = _roots(*(torch.where(_like(usable, k), k, 1.0) for k in (k0, k1, k2)))
    v = torch.stack([phi.cos(), phi.sin()], dim=-1)
    u = w.unsqueeze(1) - (turned.unsqueeze(1) @ v.unsqueeze(-1)).squeeze(-1)
    u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True) * det.sign()[:, None, None]
    return v, u, exists & usable.unsqueeze(-1) & torch.isfinite(u).all(-1)


def _like(mask: Tensor, values: Tensor) -> Tensor:
    """Adds axes to a mask ``(N)`` until it broadcasts with `values`."""
    return mask.reshape(-1, *(1,) * (values.ndim - 1))


def _roots(k0: Tensor, k1: Tensor, k2: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the real roots of k0 + k1.(cos, sin) + k2.(cos 2phi, sin 2phi).

    With z = exp(i phi) it is a quartic whose real roots lie on the unit circle; they are polished
    by Newton steps on the real function.

    Returns:
        Azimuths [rad] and which of them are roots, each ``(N, 4)``.
    """
    p4, p3 = 0.5 * torch.complex(k2[:, 0], -k2[:, 1]), 0.5 * torch.complex(k1[:, 0], -k1[:, 1])
    tiny = p4.abs() < 1e-14
    p4 = torch.where(tiny, torch.full_like(p4, 1e-14), p4)
    coefficients = torch.stack([p3, k0.to(p3.dtype), p3.conj(), p4.conj()], dim=-1)
    companion = torch.zeros(len(k0), 4, 4, dtype=p3.dtype, device=k0.device)
    companion[:, 0] = -coefficients / p4.unsqueeze(-1)
    companion[:, 1:, :3] += torch.eye(3, dtype=p3.dtype, device=k0.device)
    z = torch.linalg.eigvals(companion)
    phi = z.angle()
    for _ in range(3):
        value, slope = _polynomial(phi, k0, k1, k2)
        step = value / torch.where(slope.abs() < 1e-12, torch.inf, slope)
        phi = phi - step.clamp(-0.1, 0.1)
    value, _ = _polynomial(phi, k0, k1, k2)
    near = (z.abs().log()).abs() < _UNIT_CIRCLE
    return phi, near & (value.abs() < _RESIDUAL_MAX)


def _polynomial(phi: Tensor, k0: Tensor, k1: Tensor, k2: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluates the trigonometric polynomial and its derivative at ``(N, 4)`` azimuths."""
    c1, s1, c2, s2 = (k[:, i, None] for k in (k1, k2) for i in (0, 1))
    cos, sin, cos2, sin2 = phi.cos(), phi.sin(), (2 * phi).cos(), (2 * phi).sin()
    value = k0.unsqueeze(-1) + c1 * cos + s1 * sin + c2 * cos2 + s2 * sin2
    return value, -c1 * sin + s1 * cos - 2 * c2 * sin2 + 2 * s2 * cos2


def _at_rapidity(side: _Ellipse, rapidities: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the momenta of one side with given rapidities.

    Returns:
        Momenta ``(N, 2 R, 4)`` and which exist ``(N, 2 R)``.
    """
    slope = rapidities.tanh()
    c0, c1, s1 = (
        v[:, None, 2] - slope * v[:, None, 3] for v in (side.centre, side.axis_c, side.axis_s)
    )
    # c0 + c1 cos(phi) + s1 sin(phi) = 0
    length = torch.hypot(c1, s1)
    ratio = -c0 / length
    exists = (ratio.abs() <= 1) & side.exists.unsqueeze(-1)
    middle, half = torch.atan2(s1, c1), ratio.clamp(-1, 1).acos()
    phi = torch.cat([middle + half, middle - half], dim=-1)
    return side.at(phi.cos(), phi.sin()), exists.repeat(1, 2)
