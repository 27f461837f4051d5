"""Detector response: efficiencies and resolutions on single particles, against the public card."""

from __future__ import annotations

import numpy as np
import pytest

from massrecon.events.calorimeter import ECAL, HCAL, Calorimeter, Deposits
from massrecon.events.detector import Response, detect
from massrecon.events.energyflow import energy_flow
from massrecon.events.isolation import cone_sum, identified, isolated
from massrecon.events.particles import Flow, Particles
from massrecon.events.response import IDENTIFICATION
from massrecon.events.sections import DetectorSettings, SlotGroup

N = 20_000
MASS = {11: 0.000511, 13: 0.10566, 22: 0.0, 130: 0.4976, 211: 0.13957, 310: 0.4976, 14: 0.0}


def gun(pdg: int, pt: float, eta: float, n: int = N) -> Particles:
    """One particle in each of `n` collisions, uniform in azimuth."""
    phi = np.random.default_rng(17).uniform(-np.pi, np.pi, n)
    # within a tower, so that every particle does not enter the same corner of it
    eta_spread = eta + np.random.default_rng(18).uniform(-0.04, 0.04, n)
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta_spread)
    energy = np.sqrt(px**2 + py**2 + pz**2 + MASS[abs(pdg)] ** 2)
    return Particles(np.arange(n), np.full(n, pdg), px, py, pz, energy)


def shoot(pdg: int, pt: float, eta: float, n: int = N) -> Response:
    return detect(gun(pdg, pt, eta, n), n, np.random.default_rng(1))


def flow_from(particles: Particles) -> Flow:
    """The energy flow without a magnetic field."""
    return energy_flow(particles, np.random.default_rng(1))


def assert_fraction(found: int, expected: float, n: int = N) -> None:
    error = np.sqrt(max(expected * (1 - expected), 1e-4) / n)
    assert abs(found / n - expected) < 4.5 * error, f"{found / n:.4f} is not {expected:.4f}"


def flow_of(
    event: list[int],
    kind: list[int],
    pt: list[float],
    eta: list[float],
    phi: list[float],
    tower: list[int],
) -> Flow:
    pt_, eta_, phi_ = np.array(pt, float), np.array(eta, float), np.array(phi, float)
    p3 = [pt_ * np.cos(phi_), pt_ * np.sin(phi_), pt_ * np.sinh(eta_)]
    p4 = np.stack([*p3, pt_ * np.cosh(eta_)], axis=1)
    charge = np.zeros(len(pt), np.int64)
    return Flow(np.array(event), np.array(kind), charge, p4, pt_, eta_, phi_, np.array(tower))


# tracking x identification, copied from the formulas of delphes_card_HLLHC.tcl
@pytest.mark.parametrize(
    ("pdg", "pt", "eta", "expected"),
    [
        (13, 15.0, 0.2, 0.81),
        (13, 30.0, 0.7, 0.93),
        (-13, 40.0, 1.2, 0.95),
        (13, 300.0, 1.8, 0.91),
        (13, 25.0, 2.3, 0.71),
        (13, 60.0, 3.5, 0.95 * 0.90),
        (22, 60.0, 0.5, 0.95),
        (22, 100.0, 2.0, 0.95),
        (22, 100.0, 2.8, 0.90),
    ],
)
def test_muons_and_photons_are_found_as_often_as_the_card_says(
    pdg: int, pt: float, eta: float, expected: float
) -> None:
    objects = shoot(pdg, pt, eta).objects
    assert set(objects.kind) == {abs(pdg)}
    assert_fraction(len(objects.pt), expected)


@pytest.mark.parametrize("kind", ["photon", "electron", "muon"])
def test_identification_reproduces_every_bin_of_the_table(kind: str) -> None:
    table = IDENTIFICATION[kind]
    code = {"photon": 22, "electron": 11, "muon": 13}[kind]
    assert not np.isnan(table.values).any()
    for i, j in np.ndindex(table.values.shape):
        pt = table.pt_edges[j] + 0.5
        eta = 0.5 * (table.eta_edges[i] + table.eta_edges[i + 1])
        if pt < 10.0:
            continue
        n = 4_000
        event = list(range(n))
        flow = flow_of(event, [code] * n, [pt] * n, [eta] * n, [0.0] * n, event)
        found = isolated(identified(flow, np.random.default_rng(100 * i + j)), flow)
        assert_fraction(len(found.pt), table.values[i, j], n)


@pytest.mark.parametrize(
    ("pt", "eta", "expected"),
    [
        (0.4, 0.3, 0.0),
        (0.8, 0.3, 0.72),
        (20.0, 0.3, 0.95),
        (0.8, 2.0, 0.68),
        (20.0, 2.0, 0.90),
        (20.0, 3.2, 0.85),
        (20.0, 4.2, 0.0),
    ],
)
def test_charged_hadrons_leave_as_many_tracks_as_the_card_says(
    pt: float, eta: float, expected: float
) -> None:
    flow = flow_from(gun(211, pt, eta))
    assert_fraction(int((flow.charge != 0).sum()), expected)
    assert set(flow.charge[flow.charge != 0]) <= {1}


def test_electron_tracks_become_more_efficient_with_momentum_forward() -> None:
    for pt in (10.0, 200.0):
        flow = flow_from(gun(11, pt, 2.0))
        assert_fraction(int((flow.kind == 11).sum()), 0.90 / (1.033 - 0.033 * np.log10(pt)))
        assert set(flow.charge[flow.kind == 11]) == {-1}


@pytest.mark.parametrize(
    ("pdg", "pt", "eta", "expected"),
    [
        (13, 5.0, 0.1, 0.004579 + 4 * 4.5e-5),
        (13, 50.0, 0.1, 0.004983 + 40 * 4.7e-5),
        (13, 200.0, 0.1, 0.009244 / 5 * 2 + 0.8 * 0.009244),
        (13, 50.0, 2.1, 0.015681 + 40 * 5.1e-5),
        (211, 20.0, 0.5, 2 * (0.005317 + 10 * 4.2e-5)),
        (211, 50.0, 1.5, 2 * (0.015439 + 40 * 3.0e-5)),
    ],
)
def test_track_resolution_is_that_of_the_card(
    pdg: int, pt: float, eta: float, expected: float
) -> None:
    flow = flow_from(gun(pdg, pt, eta))
    ratio = flow.pt[flow.charge != 0] / pt
    width = np.diff(np.quantile(ratio, [0.1587, 0.8413]))[0] / 2
    # a hadron's track is averaged with the calorimeter, which sharpens it by a few per cent
    slack = 0.0 if pdg == 13 else 0.06
    assert width == pytest.approx(expected, rel=slack + 4.5 / np.sqrt(len(ratio)))
    assert np.median(ratio) == pytest.approx(1.0, abs=0.001 + slack / 15)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.5, lambda e: 2 * np.sqrt((0.009 * e) ** 2 + 0.12**2 * e + 0.45**2)),
        (1.6, lambda e: 2 * np.sqrt((0.006 * e) ** 2 + 0.20**2 * e)),
        (1.9, lambda e: 2 * np.sqrt((0.007 * e) ** 2 + 0.21**2 * e)),
        (2.7, lambda e: 2 * np.sqrt((0.008 * e) ** 2 + 0.24**2 * e)),
        (3.6, lambda e: np.sqrt((0.08 * e) ** 2 + 1.98**2 * e)),
    ],
)
def test_photon_energy_resolution_is_that_of_the_card(eta: float, expected: object) -> None:
    pt = 60.0
    truth = gun(22, pt, eta)
    flow = flow_from(truth)
    assert (flow.kind == 22).all()
    sigma = expected(truth.energy[flow.event])
    pull = (flow.p4[:, 3] - truth.energy[flow.event]) / sigma
    assert pull.std() == pytest.approx(1.0, abs=0.04)
    assert pull.mean() == pytest.approx(0.0, abs=0.04)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.5, lambda e: 2 * np.sqrt((0.0302 * e) ** 2 + 0.5205**2 * e + 1.59**2)),
        (2.3, lambda e: 2 * np.sqrt((0.05 * e) ** 2 + 0.706**2 * e)),
        (4.0, lambda e: np.sqrt((0.0942 * e) ** 2 + e)),
    ],
)
def test_neutral_hadron_energy_resolution_is_that_of_the_card(eta: float, expected: object) -> None:
    truth = gun(130, 200.0, eta)
    flow = flow_from(truth)
    assert (flow.kind == 0).all()
    sigma = expected(truth.energy[flow.event])
    pull = (flow.p4[:, 3] - truth.energy[flow.event]) / sigma
    assert pull.std() == pytest.approx(1.0, abs=0.04)
    assert pull.mean() == pytest.approx(0.0, abs=0.04)


@pytest.mark.parametrize("calorimeter", [ECAL, HCAL])
def test_towers_are_found_as_by_bisection(calorimeter: Calorimeter) -> None:
    towers, rng = calorimeter.towers, np.random.default_rng(2)
    inner = towers.eta_edges[1:-1]
    eta = np.concatenate([
        rng.uniform(towers.eta_edges[0], towers.eta_edges[-1], N),
        inner, np.nextafter(inner, -9), np.nextafter(inner, 9),
    ])  # fmt: skip
    assert towers.contains(eta).all()
    phi = rng.uniform(-np.pi, np.pi, len(eta))
    key = towers.key(Deposits(np.full(len(eta), 3), eta, phi, eta))
    np.testing.assert_array_equal(towers.ring(key), np.searchsorted(towers.eta_edges, eta) - 1)
    ring_phi = towers.scatter(key, rng)[1]
    off = np.abs((ring_phi - phi + np.pi) % (2 * np.pi) - np.pi)
    assert np.all(off < 2 * np.pi / towers.phi_cells[towers.ring(key)])


def test_k_short_shares_its_energy_between_the_calorimeters() -> None:
    truth = gun(310, 300.0, 0.5)
    flow = flow_from(truth)
    total = truth.energy.sum()
    assert flow.p4[flow.kind == 22, 3].sum() / total == pytest.approx(0.3, abs=0.01)
    assert flow.p4[flow.kind == 0, 3].sum() / total == pytest.approx(0.7, abs=0.01)


def test_an_electron_is_lost_to_a_photon_in_its_tower_only() -> None:
    n = 4_000
    event = np.repeat(np.arange(n), 2).tolist()
    kind, pt = [11, 22] * n, [100.0, 6.0] * n
    found = {}
    for same in (True, False):
        tower = [2 * i + (0 if same else j) for i in range(n) for j in (0, 1)]
        flow = flow_of(event, kind, pt, [0.0, 0.005] * n, [0.1] * (2 * n), tower)
        objects = isolated(identified(flow, np.random.default_rng(3)), flow)
        found[same] = int((objects.kind == 11).sum())
    assert_fraction(found[False], 1.0, n)
    # an isolated 6 GeV photon is identified in 85 % of the cases
    assert_fraction(found[True], 0.15, n)


def test_photons_below_ten_gev_are_no_objects() -> None:
    assert len(shoot(22, 4.0, 0.5, 2_000).objects.pt) == 0
    assert len(shoot(22, 14.0, 0.5, 2_000).objects.pt) > 1_500


def test_electrons_are_less_efficient_than_their_table_because_of_their_own_photons() -> None:
    found = len(shoot(11, 100.0, 0.5).objects.pt) / N
    table = 0.95 * 1.0
    assert 0.82 * table < found < 0.94 * table


def test_isolation_sums_photons_and_hadrons_in_the_cone() -> None:
    rng = np.random.default_rng(5)
    n = 400
    event = np.sort(rng.integers(0, 12, n))
    flow = flow_of(
        event.tolist(),
        rng.choice([0, 11, 13, 22], n).tolist(),
        rng.exponential(10, n).tolist(),
        rng.uniform(-1, 1, n).tolist(),
        rng.uniform(-np.pi, np.pi, n).tolist(),
        list(range(n)),
    )
    candidates = np.flatnonzero(flow.kind != 0)
    slow = []
    for i in candidates:
        total = 0.0
        for j in range(n):
            if j == i or event[i] != event[j] or flow.kind[j] in (11, 13):
                continue
            delta_phi = (flow.phi[i] - flow.phi[j] + np.pi) % (2 * np.pi) - np.pi
            if np.hypot(flow.eta[i] - flow.eta[j], delta_phi) <= 0.3:
                total += flow.pt[j]
        slow.append(total)
    np.testing.assert_allclose(cone_sum(flow, flow[candidates]), slow, atol=1e-12)
    assert max(slow) > 0


def test_ptmiss_balances_what_is_seen() -> None:
    muon, neutrino = gun(13, 80.0, 0.3), gun(14, 80.0, 0.3)
    both = Particles(
        np.repeat(muon.event, 2),
        np.stack([muon.pdg, neutrino.pdg], 1).ravel(),
        *(
            np.stack([getattr(muon, c), sign * getattr(neutrino, c)], 1).ravel()
            for c, sign in (("px", -1), ("py", -1), ("pz", 1), ("energy", 1))
        ),
    )
    response = detect(both, N, np.random.default_rng(1))
    seen = np.zeros((N, 2))
    np.add.at(seen, response.flow.event, response.flow.p4[:, :2])
    np.testing.assert_allclose(response.ptmiss, -seen, atol=1e-9)
    found = response.objects.event
    neutrino_momentum = -np.stack([neutrino.px, neutrino.py], axis=1)
    assert np.abs(response.ptmiss[found] - neutrino_momentum[found]).max() < 8.0


def test_ptmiss_noise_widens_each_component() -> None:
    quiet = shoot(14, 50.0, 0.0).ptmiss
    settings = DetectorSettings(ptmiss_noise=12.0)
    noisy = detect(gun(14, 50.0, 0.0), N, np.random.default_rng(1), settings).ptmiss
    assert not quiet.any(), "a neutrino is invisible"
    assert noisy.std(axis=0) == pytest.approx([12.0, 12.0], rel=0.03)


def test_new_stable_particles_and_the_beam_line_are_invisible() -> None:
    particles = gun(13, 50.0, 0.0, 100)
    heavy = Particles(
        particles.event,
        np.full(100, 1000022),
        *(getattr(particles, name) for name in ("px", "py", "pz", "energy")),
    )
    for unseen in (heavy, gun(22, 50.0, 5.5, 100)):
        assert len(flow_from(unseen).pt) == 0


def test_the_same_random_numbers_give_the_same_response() -> None:
    one, two = shoot(11, 40.0, 1.0, 500), shoot(11, 40.0, 1.0, 500)
    np.testing.assert_array_equal(one.ptmiss, two.ptmiss)
    np.testing.assert_array_equal(one.objects.p4, two.objects.p4)


def test_leaving_out_hopeless_collisions_loses_no_selected_one() -> None:
    """The first step draws the same random numbers either way, so that both can be compared."""
    rng = np.random.default_rng(8)
    n, per_event = 3_000, 14
    pdg = rng.choice(
        [11, -11, 13, 22, 211, -211, 130], n * per_event, p=[0.1] * 3 + [0.3] + [0.4 / 3] * 3
    )
    pt, eta = rng.exponential(25.0, n * per_event) + 1.0, rng.uniform(-2.8, 2.8, n * per_event)
    phi = rng.uniform(-np.pi, np.pi, n * per_event)
    mass = np.array([MASS[abs(code)] for code in pdg])
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    energy = np.sqrt(px**2 + py**2 + pz**2 + mass**2)
    event = np.repeat(np.arange(n), per_event)
    particles = Particles(event, pdg, px, py, pz, energy)
    wanted = [
        SlotGroup(kind="lepton", count=1, pt_min=20.0, eta_max=2.5, minimum=1),
        SlotGroup(kind="photon", count=2, pt_min=20.0, eta_max=2.5, minimum=2),
    ]
    whole = detect(particles, n, np.random.default_rng(1))
    brief = detect(particles, n, np.random.default_rng(1), wanted=wanted)
    everywhere, selected = np.ones(n, bool), {}
    for name, response in (("whole", whole), ("brief", brief)):
        good = response.complete.copy()
        for group in wanted:
            found = response.find(group, everywhere).accepted(group)
            good &= np.bincount(found.event, minlength=n) >= group.minimum
        selected[name] = good
    assert whole.complete.all()
    assert not (selected["whole"] & ~brief.complete).any()
    assert 200 < selected["whole"].sum() < brief.complete.sum() < 0.8 * n
    difference = selected["whole"].sum() - selected["brief"].sum()
    assert abs(difference) < 4 * np.sqrt((selected["whole"] != selected["brief"]).sum())
    assert np.isnan(brief.ptmiss[~brief.complete]).all()
    assert np.isfinite(brief.ptmiss[brief.complete]).all()
    assert brief.complete[brief.objects.event].all()
    assert brief.reachable["photon"].sum() <= brief.reachable["lepton"].sum()
