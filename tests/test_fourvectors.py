"""Four-vectors: identities on random vectors, and agreement with the `vector` package."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.errors import ShapeError
from massrecon.kinematics import fourvectors as fv

N = 2000


def random_p4(seed: int, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    p3 = 300 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    m = 200 * torch.rand(n, generator=generator, dtype=torch.float64)
    return fv.from_pxpypzm(torch.cat([p3, m.unsqueeze(1)], 1))


def random_beta(seed: int, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    speed = 0.95 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return speed * axis / axis.norm(dim=1, keepdim=True)


def test_mass_is_signed() -> None:
    vectors = torch.tensor([[3.0, 0, 0, 5], [5.0, 0, 0, 3], [1.0, 2, 2, 3]], dtype=torch.float64)
    torch.testing.assert_close(fv.mass(vectors), torch.tensor([4.0, -4.0, 0.0]).double())


def test_mass_keeps_its_gradient_away_from_zero() -> None:
    p4 = random_p4(1).requires_grad_()
    fv.mass(p4).sum().backward()
    assert p4.grad is not None
    expected = torch.cat([-p4[:, :3], p4[:, 3:]], 1) / fv.mass(p4).unsqueeze(1)
    torch.testing.assert_close(p4.grad, expected.detach())


def test_massless_vectors_leave_the_gradients_of_others_finite() -> None:
    p4 = torch.tensor([[3.0, 4.0, 0.0, 5.0], [3.0, 0.0, 0.0, 5.0]], requires_grad=True)
    fv.mass(p4).sum().backward()
    assert p4.grad is not None
    assert p4.grad.tolist() == [[0.0] * 4, [-0.75, 0.0, 0.0, 1.25]]


def test_a_safe_root_has_no_gradient_at_zero_and_keeps_nan() -> None:
    squared = torch.tensor([-1.0, 0.0, 4.0, math.nan], requires_grad=True)
    roots = fv.safe_sqrt(squared)
    roots[:3].sum().backward()
    assert roots[:3].tolist() == [0.0, 0.0, 2.0]
    assert roots[3].isnan()
    assert squared.grad is not None
    assert squared.grad[:3].tolist() == [0.0, 0.0, 0.25]


def test_masses_and_momenta_broadcast_at_the_border() -> None:
    one, zero, masses = torch.tensor(1.0), torch.tensor(0.0), torch.tensor([0.0, 1.0, 2.0])
    p4 = fv.from_ptetaphim(one, zero, zero, masses)
    assert p4.shape == (3, 4)
    torch.testing.assert_close(fv.mass(p4), masses)


def test_boosts_keep_masses_and_products() -> None:
    first, second, beta = random_p4(1), random_p4(2), random_beta(3)
    a, b = fv.boost(first, beta), fv.boost(second, beta)
    torch.testing.assert_close(fv.mass(a), fv.mass(first), rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(fv.mass(a + b), fv.mass(first + second), rtol=1e-9, atol=1e-6)


def test_the_opposite_boost_undoes_a_boost() -> None:
    p4, beta = random_p4(4), random_beta(5)
    torch.testing.assert_close(fv.boost(fv.boost(p4, beta), -beta), p4, rtol=1e-9, atol=1e-7)


def test_rest_frame_leaves_the_mass_only() -> None:
    p4 = random_p4(6)
    rest = fv.boost_to_rest_frame(p4, p4)
    torch.testing.assert_close(rest[:, :3], torch.zeros(N, 3).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(rest[:, 3], fv.mass(p4), rtol=1e-8, atol=1e-6)


def test_boost_along_the_beam_adds_rapidity_and_keeps_pt() -> None:
    p4, speed = random_p4(7), torch.tensor(0.6, dtype=torch.float64)
    beta = torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64).expand(N, 3)
    boosted = fv.boost(p4, beta)
    torch.testing.assert_close(fv.rapidity(boosted), fv.rapidity(p4) + speed.atanh())
    torch.testing.assert_close(fv.pt(boosted), fv.pt(p4))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_conversions_round_trip_over_any_leading_shape(shape: tuple[int, ...]) -> None:
    p4 = random_p4(8, max(1, math.prod(shape))).reshape(*shape, 4)
    torch.testing.assert_close(fv.from_ptetaphim(*fv.to_ptetaphim(p4)), p4, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(fv.from_pxpypzm(fv.to_pxpypzm(p4)), p4, rtol=1e-9, atol=1e-7)
    pt, eta, phi, _ = fv.to_ptetaphim(p4)
    torch.testing.assert_close(fv.from_ptetaphie(pt, eta, phi, p4[..., 3]), p4)


def test_rotation_about_the_beam_turns_phi_alone() -> None:
    p4 = random_p4(9)
    turned = fv.rotate_z(p4, torch.tensor(1.2, dtype=torch.float64))
    difference = fv.delta_phi(fv.phi(turned), fv.phi(p4))
    torch.testing.assert_close(difference, torch.full((N,), 1.2, dtype=torch.float64))
    torch.testing.assert_close(turned[:, 2:], p4[:, 2:])
    torch.testing.assert_close(fv.delta_r(turned, turned.roll(1, 0)), fv.delta_r(p4, p4.roll(1, 0)))


def test_delta_phi_is_wrapped() -> None:
    first, second = torch.tensor([3.0, -3.0, 0.5]), torch.tensor([-3.0, 3.0, 0.2])
    expected = torch.tensor([6.0 - 2 * math.pi, 2 * math.pi - 6.0, 0.3])
    torch.testing.assert_close(fv.delta_phi(first, second), expected)


def test_agrees_with_an_independent_implementation() -> None:
    vector = pytest.importorskip("vector")
    p4, other, beta = random_p4(10), random_p4(11), random_beta(12)
    theirs = vector.array(dict(zip(("px", "py", "pz", "E"), p4.numpy().T, strict=True)))
    theirs_2 = vector.array(dict(zip(("px", "py", "pz", "E"), other.numpy().T, strict=True)))
    velocity = vector.array(dict(zip(("px", "py", "pz"), beta.numpy().T, strict=True)))
    boosted = theirs.boost_beta3(velocity)
    pairs = [
        (fv.mass(p4), theirs.mass),
        (fv.pt(p4), theirs.pt),
        (fv.eta(p4), theirs.eta),
        (fv.phi(p4), theirs.phi),
        (fv.rapidity(p4), theirs.rapidity),
        (fv.delta_r(p4, other), theirs.deltaR(theirs_2)),
        (fv.boost(p4, beta)[:, 0], boosted.px),
        (fv.boost(p4, beta)[:, 3], boosted.E),
    ]
    for ours, reference in pairs:
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-8, atol=1e-6)


def test_a_wrong_last_axis_is_named() -> None:
    with pytest.raises(ShapeError, match=r"'p4' should have shape \(\.\.\., 4\), got \(5, 3\)"):
        fv.mass(torch.zeros(5, 3))
    with pytest.raises(ShapeError, match=r"'beta' should have shape \(\.\.\., 3\)"):
        fv.boost(torch.zeros(5, 4), torch.zeros(5, 4))
