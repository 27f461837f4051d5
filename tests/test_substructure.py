"""Substructure: N-subjettiness and soft drop against slow versions and known configurations."""

from __future__ import annotations

import numpy as np
import pytest

from massrecon.events.detector import detect
from massrecon.events.jets import cluster
from massrecon.events.particles import Particles
from massrecon.events.sections import SlotGroup
from massrecon.events.substructure import n_subjettiness, softdrop_mass, substructure

pytest.importorskip("fastjet")
RADIUS = 0.8


def spray(
    rng: np.random.Generator, prongs: list[tuple[float, float, float]], n: int, width: float
) -> np.ndarray:
    """Massless constituents around the given prongs (pT, eta, phi), shape ``(n * prongs, 4)``."""
    parts = []
    for pt, eta, phi in prongs:
        share = rng.dirichlet(np.full(n, 3.0)) * pt
        etas, phis = eta + width * rng.normal(size=n), phi + width * rng.normal(size=n)
        p3 = [share * np.cos(phis), share * np.sin(phis), share * np.sinh(etas)]
        parts.append(np.stack([*p3, share * np.cosh(etas)], axis=1))
    return np.concatenate(parts)


def rapidity_phi(p4: np.ndarray) -> np.ndarray:
    rapidity = 0.5 * np.log((p4[:, 3] + p4[:, 2]) / (p4[:, 3] - p4[:, 2]))
    return np.stack([rapidity, np.arctan2(p4[:, 1], p4[:, 0])], axis=1)


def tau_at(p4: np.ndarray, axes: np.ndarray) -> float:
    """N-subjettiness at given axes, one constituent after the other."""
    total, pt_sum = 0.0, 0.0
    for pt, where in zip(np.hypot(p4[:, 0], p4[:, 1]), rapidity_phi(p4), strict=True):
        away = where - axes
        away[:, 1] = (away[:, 1] + np.pi) % (2 * np.pi) - np.pi
        total += pt * np.min(np.hypot(*away.T))
        pt_sum += pt
    return total / pt_sum


@pytest.mark.parametrize("phi", [0.0, 3.1])
def test_one_axis_sits_at_the_minimum(phi: float) -> None:
    p4 = spray(np.random.default_rng(1), [(300.0, 0.3, phi)], 25, 0.15)
    found = n_subjettiness(np.zeros(25, np.int64), p4, 1, 1)[0]
    grid = np.stack(np.meshgrid(np.linspace(0.1, 0.5, 161), phi + np.linspace(-0.2, 0.2, 161)), -1)
    offset = rapidity_phi(p4)[:, None] - grid.reshape(1, -1, 2)
    offset[..., 1] = (offset[..., 1] + np.pi) % (2 * np.pi) - np.pi
    pt = np.hypot(p4[:, 0], p4[:, 1])
    best = np.min(pt @ np.hypot(offset[..., 0], offset[..., 1])) / pt.sum()
    assert found == pytest.approx(best, rel=2e-3)


def test_axes_are_never_worse_than_the_kt_subjets() -> None:
    rng = np.random.default_rng(2)
    for _ in range(5):
        p4 = spray(rng, [(200.0, 0.0, 0.3), (80.0, 0.5, 0.0), (60.0, 0.1, 0.7)], 8, 0.1)
        jet = np.zeros(len(p4), np.int64)
        tau = [n_subjettiness(jet, p4, 1, n)[0] for n in (1, 2, 3)]
        truth = np.array([[0.0, 0.3], [0.5, 0.0], [0.1, 0.7]])
        assert tau[2] <= tau_at(p4, truth) * 1.02
        assert tau[0] > tau[1] > tau[2] > 0


def test_ratios_tell_the_number_of_prongs() -> None:
    rng = np.random.default_rng(3)
    shapes = {
        1: [(300.0, 0.0, 0.0)],
        2: [(150.0, 0.25, 0.0), (150.0, -0.25, 0.0)],
        3: [(100.0, 0.3, 0.0), (100.0, -0.15, 0.26), (100.0, -0.15, -0.26)],
    }
    jets = {
        n: [spray(rng, prongs, 24 // n, 0.03) for _ in range(40)] for n, prongs in shapes.items()
    }
    mean = {}
    for n, sprays in jets.items():
        p4, event = np.concatenate(sprays), np.repeat(np.arange(40), 24)
        clusters = cluster(event, p4, 40, 100.0, RADIUS, constituents=True)
        assert len(clusters.event) == 40
        found = substructure(clusters, p4, RADIUS)
        mean[n] = {name: values.mean() for name, values in found.items()}
    assert mean[2]["tau21"] < 0.25 < 0.5 < mean[1]["tau21"]
    assert mean[3]["tau32"] < 0.25 < 0.5 < mean[2]["tau32"]
    # two massless prongs of 150 GeV at a distance of 0.5 make about 75 GeV
    assert mean[2]["softdrop_mass"] == pytest.approx(75.0, rel=0.06)
    assert mean[1]["softdrop_mass"] < 20.0


def test_soft_drop_removes_soft_wide_radiation_only() -> None:
    hard = spray(np.random.default_rng(4), [(200.0, 0.1, 0.0), (100.0, -0.3, 0.0)], 6, 0.02)
    soft = spray(np.random.default_rng(5), [(12.0, 0.5, 0.45)], 1, 0.0)
    both = np.concatenate([hard, soft])
    total = hard.sum(axis=0)
    mass = np.sqrt(total[3] ** 2 - (total[:3] ** 2).sum())
    groomed = softdrop_mass(np.zeros(13, np.int64), both, 1, RADIUS)[0]
    assert groomed == pytest.approx(mass, rel=1e-6)
    kept = softdrop_mass(np.zeros(13, np.int64), np.concatenate([hard, 4 * soft]), 1, RADIUS)[0]
    assert kept > 1.2 * mass


def test_jets_of_few_particles_have_no_ratios() -> None:
    p4 = spray(np.random.default_rng(6), [(200.0, 0.0, 0.0)], 3, 0.05)
    for n, names in ((1, ("tau21", "tau32")), (2, ("tau21", "tau32")), (3, ("tau32",))):
        clusters = cluster(np.zeros(n, np.int64), p4[:n], 1, 10.0, RADIUS, constituents=True)
        found = substructure(clusters, p4[:n], RADIUS)
        assert all(found[name][0] == 0 for name in names)
        assert np.isfinite(found["softdrop_mass"]).all()
    none = cluster(np.zeros(0, np.int64), np.zeros((0, 4)), 1, 10.0, RADIUS, constituents=True)
    assert substructure(none, np.zeros((0, 4)), RADIUS)["tau21"].shape == (0,)


def test_large_jets_carry_their_substructure_through_the_detector() -> None:
    rng = np.random.default_rng(7)
    n = 60
    prongs = [(300.0, 0.2, 0.0), (300.0, -0.2, 0.0)]
    p4 = np.concatenate([spray(rng, prongs, 6, 0.02) for _ in range(n)])
    event = np.repeat(np.arange(n), 12)
    particles = Particles(event, np.tile([211, -211, 22], 4 * n), *p4.T)
    group = SlotGroup(kind="fatjet", count=1, pt_min=200.0, eta_max=2.5)
    response = detect(particles, n, rng)
    jets = response.find(group, np.ones(n, bool)).accepted(group)
    assert set(jets.attributes) == {"softdrop_mass", "tau21", "tau32"}
    assert len(jets.event) > 50
    # 300 GeV each, 0.4 apart: 120 GeV
    assert np.median(jets.attributes["softdrop_mass"]) == pytest.approx(120.0, rel=0.1)
    assert np.median(jets.attributes["tau21"]) < 0.3
    narrow = SlotGroup(kind="jet", count=1, pt_min=200.0, eta_max=2.5)
    assert not response.find(narrow, np.ones(n, bool)).attributes
