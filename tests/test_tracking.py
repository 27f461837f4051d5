"""Tracks: the helix against stepwise integration, dense cores, and what is visible at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from massrecon.events.particles import Particles
from massrecon.events.tracking import (
    DIRECTION_RESOLUTION,
    PIXELS,
    TRACKER,
    Passage,
    Tracks,
    Volume,
    bend,
)

FIELD = 3.0


def particles(
    pdg: list[int], pt: list[float], eta: list[float], phi: list[float], event: list[int]
) -> Particles:
    """Massless particles."""
    pt_, eta_, phi_ = np.array(pt), np.array(eta), np.array(phi)
    p3 = [pt_ * np.cos(phi_), pt_ * np.sin(phi_), pt_ * np.sinh(eta_)]
    return Particles(np.array(event), np.array(pdg), *p3, pt_ * np.cosh(eta_))


def walk(pt: float, slope: float, phi: float, charge: int, volume: Volume) -> tuple[float, float]:
    """Follows a particle through the field in small steps until it leaves the volume."""
    x = y = z = 0.0
    step, turn = 2e-4, 0.299792458 * FIELD / pt
    while math.hypot(x, y) < volume.radius and abs(z) < volume.half_length:
        middle = phi - charge * turn * step / 2
        x, y, z = x + step * math.cos(middle), y + step * math.sin(middle), z + step * slope
        phi -= charge * turn * step
    return math.asinh(z / math.hypot(x, y)), math.atan2(y, x)


@pytest.mark.parametrize("volume", [TRACKER, PIXELS])
@pytest.mark.parametrize(
    ("pt", "slope"),
    [(0.2, 0.3), (0.3, -1.1), (0.6, 0.01), (0.6, 2.0), (1.5, -0.4), (1.5, 6.0), (40.0, 1.0)],
)
def test_the_helix_agrees_with_stepwise_integration(
    pt: float, slope: float, volume: Volume
) -> None:
    rng = np.random.default_rng(4)
    for charge in (-1, 1):
        phi = rng.uniform(-np.pi, np.pi)
        columns = (np.array([x]) for x in (pt, slope, phi))
        eta_out, phi_out = bend(*columns, np.array([charge]), FIELD, volume)
        expected_eta, expected_phi = walk(pt, slope, phi, charge, volume)
        assert eta_out[0] == pytest.approx(expected_eta, abs=2e-3)
        off = (phi_out[0] - expected_phi + np.pi) % (2 * np.pi) - np.pi
        assert off == pytest.approx(0.0, abs=2e-3)
        assert -np.pi <= phi_out[0] <= np.pi


def test_neutral_particles_fly_straight_and_opposite_charges_bend_apart() -> None:
    three = particles([22, 11, -11], [20.0] * 3, [0.5] * 3, [0.1] * 3, [0, 0, 0])
    bent = Passage.of(three, FIELD)
    angle = np.arcsin(1.2 / (2 * 20.0 / (0.299792458 * FIELD)))
    np.testing.assert_allclose(bent.phi_out, [0.1, 0.1 + angle, 0.1 - angle], rtol=1e-9)
    np.testing.assert_array_equal(bent.charge, [0, -1, 1])
    straight = Passage.of(three, 0.0)
    np.testing.assert_allclose(straight.phi_out, 0.1, rtol=1e-9)
    np.testing.assert_allclose(straight.eta_out, 0.5, rtol=1e-9)


def test_charges_follow_the_pdg_code() -> None:
    codes = [211, -211, 321, 2212, 3222, 3112, 3312, -3334, 2112, 310, 3122, 11, -13]
    n = len(codes)
    passage = Passage.of(particles(codes, [5.0] * n, [0.0] * n, [0.0] * n, list(range(n))), FIELD)
    assert passage.charge.tolist() == [1, -1, 1, 1, 1, -1, -1, 1, 0, 0, 0, -1, 1]
    assert passage.kind.tolist() == [0] * 9 + [310, 310, 11, 13]


def test_neutrinos_and_new_particles_are_invisible() -> None:
    codes = [12, -14, 16, 1000022, 22]
    passage = Passage.of(particles(codes, [5.0] * 5, [0.0] * 5, [0.0] * 5, [0] * 5), FIELD)
    assert passage.kind.tolist() == [22]


def found(pt: list[float], phi: list[float], event: list[int]) -> np.ndarray:
    """How often each of a few muons at eta = 0.3 is found, in 2,000 copies."""
    n, copies = len(pt), 2_000
    events = [e + (max(event) + 1) * i for i in range(copies) for e in event]
    many = particles([13] * n * copies, pt * copies, [0.3] * n * copies, phi * copies, events)
    tracks = Tracks.measure(Passage.of(many, FIELD), FIELD, np.random.default_rng(1))
    which = np.abs(tracks.pt[:, None] / np.array(pt) - 1).argmin(axis=1)
    return np.bincount(which, minlength=n) / copies


def test_of_two_tracks_in_one_cell_the_harder_one_is_found() -> None:
    # both bend into the centre of the same cell of the pixels
    width = np.pi / int(np.pi / DIRECTION_RESOLUTION)
    centre = 100.5 * width
    shift = [np.arcsin(0.3 / (2 * p / (0.299792458 * FIELD))) for p in (80.0, 20.0)]
    together = [centre - shift[0], centre - shift[1]]
    np.testing.assert_array_equal(found([80.0, 20.0], together, [0, 0]), [1.0, 0.0])
    np.testing.assert_array_equal(found([80.0, 20.0], together, [0, 1]), [1.0, 1.0])
    apart = [centre - shift[0], centre - shift[1] + width]
    np.testing.assert_array_equal(found([80.0, 20.0], apart, [0, 0]), [1.0, 1.0])


def test_directions_are_smeared_by_three_milliradians() -> None:
    n = 20_000
    muons = particles([13] * n, [50.0] * n, [0.4] * n, [1.0] * n, list(range(n)))
    tracks = Tracks.measure(Passage.of(muons, FIELD), FIELD, np.random.default_rng(1))
    for measured, true in ((tracks.eta, 0.4), (tracks.phi, 1.0)):
        assert (measured - true).std() == pytest.approx(0.003, rel=0.03)
        assert (measured - true).mean() == pytest.approx(0.0, abs=1e-4)
