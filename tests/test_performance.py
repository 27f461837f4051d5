"""Performance: matching, rates and widths with their errors, and the chain on collisions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from massrecon.errors import InputError
from massrecon.events.objects import Objects
from massrecon.events.performance import Matches, Performance, match, measure_performance
from massrecon.events.sections import DetectorSettings

RNG = np.random.default_rng(11)


def objects(event: list[int], kind: list[int], pt: list[float], eta: list[float]) -> Objects:
    pt_, eta_ = np.array(pt), np.array(eta)
    p4 = np.stack([pt_, np.zeros(len(pt)), pt_ * np.sinh(eta_), pt_ * np.cosh(eta_)], axis=1)
    return Objects(np.array(event), p4, {"flavour": np.array(kind)})


def gaussian_matches(n: int = 40_000, width: float = 0.05, efficiency: float = 0.8) -> Matches:
    pt = RNG.uniform(20, 100, n)
    measured = pt * (0.97 + width * RNG.standard_normal(n)) * (RNG.random(n) < efficiency)
    return Matches(np.full(n, 13), pt, RNG.uniform(-2.5, 2.5, n), measured)


def test_the_nearest_object_of_the_same_kind_in_the_same_collision_is_the_match() -> None:
    truth = objects([0, 0, 1, 2], [11, 13, 22, 22], [50, 60, 70, 80], [0.0, 1.0, 0.0, -1.0])
    found = objects(
        [0, 0, 0, 0, 2], [13, 11, 11, 13, 22],
        [1.0, 51.0, 52.0, 61.0, 81.0], [0.001, 0.05, -0.02, 1.2, -1.05],
    )  # fmt: skip
    assert match(truth, found, 0.1).measured_pt.tolist() == [52.0, 0.0, 0.0, 81.0]
    np.testing.assert_allclose(match(truth, found, 0.1).true_eta, [0.0, 1.0, 0.0, -1.0])
    assert match(truth, found, 0.3).measured_pt.tolist() == [52.0, 61.0, 0.0, 81.0]


def test_rates_and_widths_of_a_known_detector_are_found_within_their_errors() -> None:
    sample = gaussian_matches()
    rate = sample.efficiency((20, 60, 100))
    assert np.all(np.abs(rate.value - 0.8) < 4 * rate.error)
    assert rate.number.sum() == 40_000
    median, width = sample.response((20, 100))
    assert abs(median.value[0] - 0.97) < 4 * median.error[0]
    assert abs(width.value[0] - 0.05) < 4 * width.error[0]
    assert width.error[0] < 0.0005


def test_quoted_errors_are_the_spread_of_repeated_measurements() -> None:
    samples = [gaussian_matches(500) for _ in range(300)]
    for measure in (
        lambda sample: sample.efficiency((20, 100)),
        lambda sample: sample.response((20, 100))[0],
        lambda sample: sample.response((20, 100))[1],
    ):
        measured = [measure(sample) for sample in samples]
        spread = np.std([one.value[0] for one in measured])
        assert np.mean([one.error[0] for one in measured]) == pytest.approx(spread, rel=0.15)


def test_empty_bins_are_not_numbers_and_none_in_plain_data() -> None:
    sample = gaussian_matches(100)[np.zeros(0, int)]
    rate, (median, width) = sample.efficiency((20, 50, 90)), sample.response((20, 50, 90))
    for measured in (rate, median, width):
        assert np.isnan(measured.value).all()
        assert measured.number.tolist() == [0, 0]
    plain = json.dumps(rate.to_dict(), allow_nan=False)
    assert json.loads(plain)["value"] == [None, None]


def test_regions_of_pseudorapidity_do_not_overlap() -> None:
    sample = gaussian_matches(1_000)
    regions = [sample.within(low, high) for low, high in ((0.0, 1.3), (1.3, 2.5))]
    assert sum(len(region.true_pt) for region in regions) == 1_000
    assert np.abs(regions[0].true_eta).max() < 1.3 <= np.abs(regions[1].true_eta).min()


@pytest.fixture(scope="module")
def sample() -> Performance:
    pytest.importorskip("pythia8mc")
    pytest.importorskip("fastjet")
    return measure_performance("wino_udd", 1_200, {"chi20": 600.0, "chi10": 200.0}, seed=4)


def test_collisions_of_the_card_are_measured(sample: Performance) -> None:
    assert len(sample.ht) == len(sample.selected) == len(sample.ptmiss) == 1_200
    kinds, numbers = np.unique(sample.objects.kind, return_counts=True)
    assert kinds.tolist() == [11, 13, 22]
    # one lepton and two photons in every collision
    assert numbers[:2].sum() == 1_200
    assert numbers[2] == 2_400
    rate, error = sample.selection_efficiency()
    assert rate == pytest.approx(0.42, abs=5 * error)
    for kind, low, high in (("electron", 0.6, 0.74), ("muon", 0.77, 0.88), ("photon", 0.81, 0.89)):
        assert low < sample.of(kind).efficiency((20, 10_000)).value[0] < high
    assert 5.0 < sample.counts["jet"].mean() < 6.2


def test_jets_and_ptmiss_are_as_wide_as_those_of_delphes(sample: Performance) -> None:
    # Delphes 3.5.1, public HL-LHC card, 20,000 events: efficiency, response, resolution
    for low, high, *expected in ((50, 80, 0.988, 0.948, 0.113), (120, 200, 0.989, 0.969, 0.072)):
        jets = sample.jets.within(0.0, 1.3)
        median, width = jets.response((low, high))
        for measured, theirs in zip(
            (jets.efficiency((low, high)), median, width), expected, strict=True
        ):
            assert abs(measured.value[0] - theirs) < 4.5 * measured.error[0] + 0.03 * theirs
    for low, high, theirs in ((0, 1000, 18.9), (1000, 1500, 22.5)):
        width = sample.ptmiss_width((low, high))
        assert abs(width.value[0] - theirs) < 4.5 * width.error[0] + 0.05 * theirs


def test_the_same_seed_gives_the_same_performance(sample: Performance) -> None:
    again = measure_performance("wino_udd", 500, {"chi20": 600.0, "chi10": 200.0}, seed=4)
    np.testing.assert_array_equal(again.ptmiss, sample.ptmiss[:500])
    other = measure_performance("wino_udd", 50, {"chi20": 600.0, "chi10": 200.0}, seed=5)
    assert not np.array_equal(other.ptmiss, sample.ptmiss[:50])


def test_calorimeter_jets_lose_more_of_their_momentum() -> None:
    pytest.importorskip("pythia8mc")
    masses, detector = {"chi20": 600.0, "chi10": 200.0}, DetectorSettings(jets="calorimeter")
    towers = measure_performance("wino_udd", 500, masses, seed=4, detector=detector)
    median, _ = towers.jets.within(0.0, 1.3).response((50, 80))
    assert abs(median.value[0] - 0.83) < 4.5 * median.error[0] + 0.02


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="'n_events' should be at least 1, got 0"):
        measure_performance("wino_udd", 0)
    with pytest.raises(InputError, match="toys of the card 'antler' meet no detector"):
        measure_performance("antler", 10)
    matches = gaussian_matches(1)
    empty = Performance(matches, matches, np.zeros((1, 2)), np.zeros(1), {}, np.ones(1, bool))
    with pytest.raises(InputError, match="'kind' should be one of jet, electron, muon, photon"):
        empty.of("tau")
