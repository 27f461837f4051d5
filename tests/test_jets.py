"""Jets: clustering against the algorithm by the book, and what is dropped because it overlaps."""

from __future__ import annotations

import numpy as np
import pytest

from massrecon.events.detector import Response, detect
from massrecon.events.jets import Clusters, cluster, is_apart, shares_nothing
from massrecon.events.objects import Objects
from massrecon.events.particles import Particles, directions
from massrecon.events.sections import DetectorSettings, SlotGroup

pytest.importorskip("fastjet")
JETS = SlotGroup(kind="jet", count=4, pt_min=25.0, eta_max=4.0)


def momenta(pt: np.ndarray, eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Massless four-momenta."""
    p3 = [pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
    return np.stack([*p3, pt * np.cosh(eta)], axis=1)


def slow_anti_kt(p4: np.ndarray, pt_min: float, radius: float) -> list[np.ndarray]:
    """Anti-kT by the book: the smallest distance first, E-scheme recombination."""
    left, jets = list(p4), []
    while left:
        best = (np.inf, 0, -1)
        for i, a in enumerate(left):
            pt_a = np.hypot(a[0], a[1])
            best = min(best, (pt_a**-2, i, -1))
            for j in range(i):
                b = left[j]
                rapidity = [0.5 * np.log((p[3] + p[2]) / (p[3] - p[2])) for p in (a, b)]
                phi = (np.arctan2(a[1], a[0]) - np.arctan2(b[1], b[0]) + np.pi) % (2 * np.pi)
                squared = (rapidity[0] - rapidity[1]) ** 2 + (phi - np.pi) ** 2
                closest = min(pt_a**-2, np.hypot(b[0], b[1]) ** -2)
                best = min(best, (closest * squared / radius**2, i, j))
        _, i, j = best
        if j < 0:
            jets.append(left.pop(i))
        else:
            merged = left[i] + left[j]
            left = [p for k, p in enumerate(left) if k not in (i, j)] + [merged]
    return [jet for jet in jets if np.hypot(jet[0], jet[1]) > pt_min]


@pytest.mark.parametrize("radius", [0.4, 0.8])
def test_jets_agree_with_anti_kt_by_the_book(radius: float) -> None:
    rng = np.random.default_rng(8)
    n_events, n = 15, 12
    event = np.repeat(np.arange(n_events), n)
    event = event[event != 4]  # a collision without particles
    size = len(event)
    p4 = momenta(rng.exponential(30, size), rng.uniform(-1, 1, size), rng.uniform(-1, 1, size))
    jets = cluster(event, p4, n_events, 25.0, radius, constituents=True)
    assert 4 not in jets.event
    for i in range(n_events):
        expected = slow_anti_kt(p4[event == i], 25.0, radius)
        expected.sort(key=lambda p: -np.hypot(p[0], p[1]))
        ours = sorted(jets.p4[jets.event == i], key=lambda p: -np.hypot(p[0], p[1]))
        assert len(ours) == len(expected)
        for jet, reference in zip(ours, expected, strict=True):
            np.testing.assert_allclose(jet, reference, rtol=1e-9)
    total = np.zeros_like(jets.p4)
    np.add.at(total, jets.jet, p4[jets.constituent])
    np.testing.assert_allclose(total, jets.p4, rtol=1e-9, err_msg="constituents add up to jets")
    assert (event[jets.constituent] == jets.event[jets.jet]).all()


def test_nothing_makes_no_jets() -> None:
    empty = cluster(np.zeros(0, np.int64), np.zeros((0, 4)), 3, 25.0)
    assert empty.p4.shape == (0, 4)
    one = cluster(np.array([1]), momenta(*(np.array([x]) for x in (5.0, 0.0, 0.0))), 3, 25.0)
    assert len(one.event) == 0


def test_a_jet_overlaps_only_with_objects_of_its_collision_within_its_radius() -> None:
    eta = np.array([0.0, 0.39, 0.41, 0.0])
    objects = Objects(np.array([0, 1, 2, 4]), momenta(np.full(4, 50.0), eta, np.full(4, 3.1)))
    jets = Objects(np.arange(5), momenta(np.full(5, 60.0), np.zeros(5), np.full(5, -3.1)))
    # phi differs by 2 pi - 6.2 = 0.083 across the cut
    assert is_apart(jets, objects, 0.4).tolist() == [False, False, True, True, False]
    assert is_apart(jets, objects, 0.5).tolist() == [False, False, False, True, False]


def test_a_jet_that_shares_a_tower_is_dropped() -> None:
    jets = Clusters(np.array([0, 0]), np.zeros((2, 4)), np.array([0, 0, 1]), np.array([2, 0, 1]))
    assert shares_nothing(jets, np.array([-1, 7, -2]), np.array([-2, 9, -1])).tolist() == [
        False,
        True,
    ]
    assert shares_nothing(jets, np.array([-1, 7, -2]), np.array([-1])).all()


def two_jets_and_a_muon(n: int) -> Particles:
    """Back-to-back jets of a few pions each, and an isolated muon."""
    rng = np.random.default_rng(3)
    n_pions = 8
    centre = rng.uniform(-np.pi, np.pi, n)
    phi = np.stack([centre + side for side in (0.0, np.pi) for _ in range(n_pions)], axis=1)
    phi = np.concatenate([phi + rng.normal(0, 0.12, phi.shape), centre[:, None] + 1.5], axis=1)
    eta = np.concatenate([rng.normal(0, 0.12, (n, 2 * n_pions)), np.zeros((n, 1))], axis=1)
    pt = np.concatenate([np.full((n, 2 * n_pions), 15.0), np.full((n, 1), 60.0)], axis=1)
    pdg = np.tile([211, -211, 211, -211, 211, -211, 22, 130] * 2 + [13], n)
    event = np.repeat(np.arange(n), 2 * n_pions + 1)
    return Particles(event, pdg, *momenta(pt.ravel(), eta.ravel(), phi.ravel()).T)


def response(jets: str, n: int = 400) -> Response:
    settings = DetectorSettings.model_validate({"jets": jets})
    return detect(two_jets_and_a_muon(n), n, np.random.default_rng(2), settings)


@pytest.mark.parametrize("kind", ["particle_flow", "calorimeter"])
def test_an_isolated_muon_is_no_jet(kind: str) -> None:
    seen = response(kind)
    muons = np.bincount(seen.objects.event, minlength=400)
    assert 0.85 < muons.mean() < 0.95
    jets = seen.find(JETS, np.ones(400, bool))
    count = np.bincount(jets.event, minlength=400)
    # a muon that is not identified stays in the energy flow and makes a jet
    assert count[muons == 1].mean() == pytest.approx(2.0, abs=0.1)
    assert count[muons == 0].mean() == pytest.approx(3.0, abs=0.2)


def test_particle_flow_measures_jets_better_than_towers() -> None:
    width, median = {}, {}
    for kind in ("particle_flow", "calorimeter"):
        jets = response(kind).find(JETS, np.ones(400, bool))
        pt = directions(jets.p4)[0]
        pt = pt[pt > 75.0]
        low, median[kind], high = np.quantile(pt / 120.0, [0.16, 0.5, 0.84])
        width[kind] = (high - low) / 2
    assert width["particle_flow"] < 0.85 * width["calorimeter"]
    assert 0.93 < median["particle_flow"] < 1.03


def test_only_wanted_collisions_are_clustered() -> None:
    seen, wanted = response("particle_flow", 40), np.arange(40) % 3 == 0
    few, all_ = seen.find(JETS, wanted), seen.find(JETS, np.ones(40, bool))
    assert set(few.event) <= set(np.flatnonzero(wanted))
    np.testing.assert_array_equal(few.p4, all_.p4[np.isin(all_.event, np.flatnonzero(wanted))])
