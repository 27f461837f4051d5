"""Pythia at moved masses: the same physics as when initialised there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import ks_2samp

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.pythia import Collider, switches_on_process
from massrecon.events.trials import Trials, cross_section
from massrecon.events.truth import match_partons

pytest.importorskip("pythia8mc")

N = 2_500
# bare hard process with decays: quick, and all that the masses change
QUICK = ("PartonLevel:ISR = off", "PartonLevel:FSR = off", "HadronLevel:all = off")

WGAMMA = {
    "name": "wgamma",
    "title": "pp → W γ",
    "beam_energy": 14_000.0,
    "decay": "p p > W gamma",
    "particles": {"W": {"pdg": 24, "symbol": "W"}, "gamma": {"pdg": 22, "symbol": "γ"}},
    "pythia": {
        "settings": ["WeakBosonAndParton:ffbar2Wgm = on", "PhaseSpace:pTHatMin = 20."],
    },
    "objects": [{"kind": "photon", "count": 1, "pt_min": 20.0, "eta_max": 2.5, "minimum": 1}],
}


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
        sigma, error = cross_section(collider.tally().values())
    assert sigma == pytest.approx(39.1, abs=4 * error)
    assert 0.2 < error < 0.8


def test_masses_that_pythia_cannot_start_from_are_named(card: ProcessCard) -> None:
    with (
        Collider(card, np.array([8000.0, 100.0]), multiparton=False) as collider,
        pytest.raises(GenerationError, match=r"not be initialised .* at chi20 = 8000 GeV"),
    ):
        collider.initialise()


def test_the_cross_section_at_moved_masses_is_that_of_a_fresh_start(card: ProcessCard) -> None:
    point = np.array([490.0, 100.0])
    with Collider(card, np.array([400.0, 100.0]), multiparton=False, extra=QUICK) as moved:
        moved.initialise()
        moved.generate(np.array([400.0, 100.0]), 5, 500)
        before = moved.tally()
        moved.generate(point, 6, N)
        here = [now.minus(before.get(code, Trials.zero())) for code, now in moved.tally().items()]
    with Collider(card, point, multiparton=False, extra=QUICK) as fresh:
        fresh.initialise()
        assert fresh.tally() == {}, "a new start forgets what was tried before"
        fresh.generate(point, 7, N)
        direct = fresh.tally().values()
    (one, one_error), (two, two_error) = cross_section(here), cross_section(direct)
    assert abs(one - two) < 4 * np.hypot(one_error, two_error)
    assert cross_section(moved_total(here, before))[0] > 1.1 * one, "the lighter point is not in it"


def moved_total(here: list[Trials], before: dict[str, Trials]) -> list[Trials]:
    """Adds the sums of the lighter point back."""
    return [
        Trials(*(a + b for a, b in zip(one, before[code], strict=True)))
        for code, one in zip(sorted(before), here, strict=True)
    ]


def test_sums_give_back_what_pythia_reports() -> None:
    trials = Trials.of(tried=1000, selected=210, accepted=200, mean=5.0, error=0.3)
    assert trials.total == pytest.approx(5.0 * 210 / 200 * 1000)
    assert cross_section([trials]) == pytest.approx((5.0, 0.3))
    assert cross_section([trials, trials]) == pytest.approx((10.0, 0.3 * 2**0.5))
    assert cross_section([Trials.of(7, 0, 0, 0.0, 0.0)]) == (0.0, 0.0)


def test_biased_collisions_carry_the_weights_that_undo_the_bias() -> None:
    content = {**WGAMMA, "pythia": {"settings": WGAMMA["pythia"]["settings"]}}
    plain = content["pythia"]["settings"]
    biased = [*plain, "PhaseSpace:bias2Selection = on", "PhaseSpace:bias2SelectionRef = 100."]
    found = []
    for settings in (plain, biased):
        card = load_card({**content, "pythia": {"settings": settings}})
        with Collider(card, np.zeros(0), multiparton=False, extra=QUICK) as collider:
            collider.initialise()
            record = collider.generate(np.zeros(0), 5, N)
            sigma, error = cross_section(collider.tally().values())
        weight = record.info["weight"]
        entries = record.first[:-1] + 5  # the first particle out of the hard collision
        pt = np.hypot(record.columns["px"][entries], record.columns["py"][entries])
        hard = weight[pt > 40.0].sum() / weight.sum()
        found.append((sigma, error, hard, (pt > 40.0).mean(), np.ptp(weight)))
    (sigma, error, hard, _, spread), (sigma_b, error_b, hard_b, raw_b, spread_b) = found
    assert spread == 0.0
    assert spread_b > 0.1
    assert abs(sigma - sigma_b) < 4 * np.hypot(error, error_b)
    assert hard_b == pytest.approx(hard, abs=0.03)
    assert raw_b > 2 * hard, "most collisions are hard"


def test_settings_of_pythias_own_processes_are_told_from_others() -> None:
    for line in (
        "SUSY:qqbar2chi+-chi0 = on", "Top:gg2ttbar=on", "top:qq2tq(t:W) yes", "HardQCD:3parton = 1",
        "SoftQCD:elastic = on", "DM:gg2S2XX = true ! dark", "Top:all = on  # all of them",
        "Charmonium:gg2ccbar(3S1)[3S1(1)]g = off,on", "ExtraDimensionsG*:all = on",
    ):  # fmt: skip
        assert switches_on_process(line), line
    for line in (
        "SUSY:idVecA = 1000024", "24:onIfAny = 11 13", "Top:gg2ttbar = off", "weakzzz:all = on",
        "HiddenValley:FSR = on", "HiddenValley:Ngauge = 1", "OniaShower:all = on",
        "HiggsSM:NLOWidths = on", "Top:all = off ! not on", "LowEnergyQCD:useSummedResonances = on",
    ):  # fmt: skip
        assert not switches_on_process(line), line


def test_every_process_of_pythia_is_known_as_one() -> None:
    settings = pytest.importorskip("pythia8mc").Pythia("", False).settings
    found = [flag.name for _, flag in settings.getFlagMap("2").items() if ":" in flag.name]
    named = [name for name in found if re.search(r":[a-z0-9]+2[a-zA-Z]", name)]
    assert len(named) > 200
    missed = [name for name in named if not switches_on_process(f"{name} = on")]
    groups = {name.partition(":")[0] for name in missed}
    assert groups <= {"HIPDF", "PDF", "PhaseSpace", "Zprime"}, missed
