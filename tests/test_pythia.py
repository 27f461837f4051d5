"""Pythia at moved masses: the same physics as when initialised there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard
from massrecon.events.pythia import Collider
from massrecon.events.truth import match_partons

pytest.importorskip("pythia8mc")

N = 2_500
# bare hard process with decays: quick, and all that the masses change
QUICK = ("PartonLevel:ISR = off", "PartonLevel:FSR = off", "HadronLevel:all = off")


def hard_process(
    card: ProcessCard, start: tuple[float, float], masses: tuple[float, float], seed: int
) -> np.ndarray:
    """Transverse momentum and rapidity of chi20, momentum of chi10 in the laboratory, (3, N)."""
    with Collider(card, np.array(start), multiparton=False, extra=QUICK) as collider:
        collider.initialise()
        record = collider.generate(np.array(masses), seed, N)
    partons, matched = match_partons(card, record)
    chi20, chi10 = (partons[matched, card.parton_names.index(n)] for n in ("chi20", "chi10_a"))
    energy = np.sqrt(np.sum(chi20**2, axis=1))
    rapidity = np.arctanh(chi20[:, 2] / energy)
    momentum = np.sqrt(np.sum(chi10[:, :3] ** 2, axis=1))
    return np.stack([np.hypot(chi20[:, 0], chi20[:, 1]), rapidity, momentum])


def smallest_p_value(one: np.ndarray, two: np.ndarray) -> float:
    return min(float(ks_2samp(a, b).pvalue) for a, b in zip(one, two, strict=True))


def test_moving_to_heavier_masses_gives_the_physics_of_a_fresh_start(card: ProcessCard) -> None:
    moved = hard_process(card, (400.0, 50.0), (500.0, 300.0), seed=1)
    fresh = hard_process(card, (500.0, 300.0), (500.0, 300.0), seed=2)
    assert moved.shape[1] == fresh.shape[1] == N
    assert smallest_p_value(moved, fresh) > 0.005


def test_the_comparison_sees_another_mass(card: ProcessCard) -> None:
    moved = hard_process(card, (400.0, 50.0), (430.0, 300.0), seed=1)
    fresh = hard_process(card, (500.0, 300.0), (500.0, 300.0), seed=2)
    assert smallest_p_value(moved, fresh) < 1e-5


def test_the_same_seed_gives_the_same_collisions_on_a_used_instance(card: ProcessCard) -> None:
    with Collider(card, np.array([500.0, 50.0]), multiparton=False, extra=QUICK) as collider:
        collider.initialise()
        first = collider.generate(np.array([510.0, 70.0]), 5, 50)
        collider.generate(np.array([590.0, 400.0]), 6, 50)
        again = collider.generate(np.array([510.0, 70.0]), 5, 50)
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])


def test_the_cross_section_is_that_of_the_wino_pair(card: ProcessCard) -> None:
    with Collider(card, np.array([500.0, 100.0]), multiparton=False, extra=QUICK) as collider:
        collider.initialise()
        collider.generate(np.array([500.0, 100.0]), 5, N)
        assert collider.cross_section() == pytest.approx(39.1, rel=0.05)


def test_masses_that_pythia_cannot_start_from_are_named(card: ProcessCard) -> None:
    with (
        Collider(card, np.array([8000.0, 100.0]), multiparton=False) as collider,
        pytest.raises(GenerationError, match=r"not be initialised .* at chi20 = 8000 GeV"),
    ):
        collider.initialise()
