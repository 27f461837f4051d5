"""The branch-and-bound proof of M2CC: its algebra, that it refuses what is false, brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from massrecon.kinematics import constrained_kernel as kernel
from massrecon.kinematics import constrained_proof as proof
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.constrained import M2Solution, m2_cc
from massrecon.kinematics.transverse import mt2
from tests.chains import TOY, TTBAR, Chains, chains

pytest.importorskip("numba")

SAMPLES = {"toy": (TOY, 700.0), "ttbar": (TTBAR, 0.0)}


def inputs(e: Chains, mu: float) -> tuple[np.ndarray, ...]:
    """What the kernels read in the subsystem (ab), and MT2."""
    P = torch.stack([e.upper_a + e.lower_a, e.upper_b + e.lower_b], dim=1)
    R = torch.stack([e.lower_a, e.lower_b], dim=1)
    least = mt2(*e.both, mu)
    pair = np.full((len(P), 2), mu)
    return P.numpy(), R.numpy(), e.ptmiss.contiguous().numpy(), pair, least.numpy()


def written(s: M2Solution, factor: float) -> np.ndarray:
    """A solution as the kernels write it, its value raised."""
    columns = [factor * s.value, *s.invisible_a[:, :3].unbind(1), s.invisible_b[:, 2]]
    return torch.stack([*columns, s.value, s.value], dim=1).numpy()


def random_polynomial(rng: np.random.Generator) -> tuple:
    return (*rng.standard_normal(6), 1.0)


def value(s: tuple, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return s[0] + s[1] * u + s[2] * v + s[3] * u * u + s[4] * u * v + s[5] * v * v


def test_the_minimum_over_a_rectangle_is_exact() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        s, box = random_polynomial(rng), (-0.7, 0.4, -0.2, 1.1)
        u, v = np.meshgrid(np.linspace(*box[:2], 81), np.linspace(*box[2:], 81))
        lowest = value(s, u, v).min()
        found = proof.least(s, box)
        assert lowest - 2e-3 < found <= lowest + 1e-12, f"{s}, seed 1"


def test_the_true_momenta_lie_on_both_ellipses() -> None:
    e = chains(50, 41, TOY)
    P, R, Q, mu, _ = inputs(e, 700.0)
    for i in range(50):
        a, b, Qx, Qy, scale = kernel.read(P[i], R[i], Q[i], mu[i])
        F = float(fv.mass_squared(e.upper_a[i] + e.lower_a[i] + e.invisible_a[i])) / scale**2
        G = float(fv.mass_squared(e.lower_a[i] + e.invisible_a[i])) / scale**2
        x, y = (e.invisible_a[i, :2] / scale).tolist()
        for h in (proof.conic(a, F, G), proof.turned(proof.conic(b, F, G), Qx, Qy)):
            at_point = h[0] * x * x + h[1] * x * y + h[2] * y * y + h[3] * x + h[6] * y + h[9]
            assert abs(at_point) < 1e-9
            # ellipses: the part of second degree is negative in all directions
            assert h[0] < 0
            assert 4 * h[0] * h[2] > h[1] * h[1]


def test_a_combination_is_the_minimum_over_the_plane_and_nearly_largest_at_the_best_weight() -> (
    None
):
    rng = np.random.default_rng(2)
    e = chains(40, 42, TOY)
    P, R, Q, mu, _ = inputs(e, 700.0)
    grid = np.linspace(-3, 3, 601)
    x, y = np.meshgrid(grid, grid)
    for i in range(40):
        a, b, Qx, Qy, _ = kernel.read(P[i], R[i], Q[i], mu[i])
        one = proof.conic(a, 1.2, 0.8)
        two = proof.turned(proof.conic(b, 1.2, 0.8), Qx, Qy)
        best = proof.best_weight(one, two, 0.0, 0.0)
        largest = proof.combined(one, two, best)[0]
        others = rng.uniform(-1, proof.largest_weight(one, two), 20)
        found = [proof.combined(one, two, t) for t in others]
        assert all(s[0] <= largest + 0.1 * abs(largest) + 1e-9 for s in found if s[6] > 0)
        t = 0.5 * best
        h = [
            s[0] * x * x + s[1] * x * y + s[2] * y * y + s[3] * x + s[6] * y + s[9]
            for s in (one, two)
        ]
        s = proof.combined(one, two, t)
        lowest = (t * h[1] - h[0]).min()
        assert s[0] <= lowest + 1e-12


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("raised", [3e-6, 1e-4, 1e-2, 0.3])
def test_it_never_proves_a_value_that_is_too_large(name: str, raised: float) -> None:
    masses, mu = SAMPLES[name]
    e = chains(2000, 43, masses)
    s = m2_cc(*e.visible, mu)
    how = np.full(len(e.ptmiss), kernel.FOUND, dtype=np.int8)
    proof.prove(*inputs(e, mu), written(s, 1 + raised), how)
    assert (how == kernel.FOUND).all()


def test_the_truth_forbids_any_certified_value_above_it() -> None:
    e = chains(20_000, 44, TOY)
    s = m2_cc(*e.visible, 700.0)
    assert s.certified.double().mean() > 0.97
    assert s.value[s.certified].max() <= 1000.0 * (1 + 1e-6)


def test_dense_starts_find_nothing_below_a_value_that_duality_could_not_prove() -> None:
    e = chains(600, 45, TOY)
    s = m2_cc(*e.visible, 700.0)
    duality = m2_cc(*e.visible, 700.0, backend="torch").certified
    gaps = (s.certified & ~duality).nonzero().flatten()[:40].tolist()
    assert len(gaps) == 40
    rng = np.random.default_rng(45)
    P, R, Q, mu, _ = inputs(e, 700.0)
    ratios = []
    for i in gaps:
        a, b, Qx, Qy, scale = kernel.read(P[i], R[i], Q[i], mu[i])
        lowest = math.inf
        for width in 10 ** rng.uniform(-2, 0.3, 60):
            x, y, za, zb = width * rng.standard_normal(4)
            start = (0.5 * Qx + x, 0.5 * Qy + y, 2 * za, 2 * zb)
            f, _, _, found = kernel.descend(a, b, Qx, Qy, start)
            lowest = min(lowest, f) if found and f >= 0 else lowest
        ratios.append(lowest * scale**2 / float(s.value[i]) ** 2)
    assert min(ratios) > 1 - 1.1e-6, "seed 45"
    assert min(ratios) < 1 + 1e-6  # dense starts do come there
