"""The explorer of ten events: arrivals, background, widths, and the player."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError
from massrecon.visual.explore import fresh, sources
from massrecon.visual.explore.sources import event_names, stored_events
from massrecon.visual.explore.ten_events import drawn_events, events_to_do, explore_ten_events
from massrecon.visual.widgets.ten_events import TenEventsExplorer

QUICK: dict[str, Any] = {"n_events": 6, "seed": 3}
DEFAULTS: dict[str, Any] = {
    "model": "wino_udd", "m_parent": 600.0, "m_daughter": 200.0, "arrived": -1,
    "background": 0.0, "outliers": 0.01, "luminosity": 0.0, "with_background": False,
    "background_events": "background_tth",
    "events": "wino_udd", "more_events": "wino_udd_600_200", "whole": False,
}  # fmt: skip


def test_all_events_are_measured_as_they_are() -> None:
    found = explore_ten_events(**QUICK)
    events = stored_events("wino_udd_600_200")
    generator = torch.Generator().manual_seed(3)
    rows = torch.randperm(len(events), generator=generator)[:6].tolist()
    exact = mr.measure(mr.load_model("wino_udd"), events[rows])
    assert found.data["estimate_GeV"] == pytest.approx(exact.estimate().tolist(), abs=1.0)
    half = exact.interval(0.68).diff(dim=1)[:, 0] / 2
    assert found.data["half_width_GeV"][-1] == pytest.approx(half.tolist(), rel=0.06)
    assert found.data["n_background"] == 0
    assert "After 6 event(s), 0 of them background" in found.reading


def test_events_arrive_one_by_one() -> None:
    steps = [explore_ten_events(**QUICK, arrived=n) for n in (1, 2, 6)]
    first, second, _last = (found.figure for found in steps)
    names = [trace.name for trace in first.data]
    assert names == [trace.name for trace in second.data]
    before = names.index("before it")
    assert list(first.data[before].x) == [None]
    inner = names.index("68%")
    np.testing.assert_array_equal(second.data[before].x, first.data[inner].x)  # NaN between lines
    curve = names.index("<i>m</i>(χ̃<sub>2</sub><sup>0</sup>)")
    assert [len(found.figure.data[curve].x) for found in steps] == [1, 2, 6]
    assert len({found.figure.layout.xaxis.range for found in steps}) == 1
    assert steps[2].data["region_GeV2"]["68%"] < 0.3 * steps[0].data["region_GeV2"]["68%"]


def test_background_takes_the_place_of_signal_events() -> None:
    found = explore_ten_events(**QUICK, background=0.4)
    more = explore_ten_events(**QUICK, background=0.7)
    false, worse = found.data["background"], more.data["background"]
    assert 0 < sum(false) < sum(worse)
    assert all(b for a, b in zip(false, worse, strict=True) if a)
    crosses = next(t for t in found.figure.data if t.name == "background event")
    assert list(crosses.x) == [i + 1 for i, wrong in enumerate(false) if wrong]
    # up to the first background event nothing changes
    n = false.index(True)
    pure = explore_ten_events(**QUICK)
    kept = found.data["half_width_GeV"][:n]
    assert torch.allclose(
        torch.tensor(kept).reshape(n, 2),
        torch.tensor(pure.data["half_width_GeV"])[:n].reshape(n, 2),
    )
    assert pure.data["half_width_GeV"][n] != found.data["half_width_GeV"][n]
    only = explore_ten_events(**QUICK, background=1.0, model="mixture")
    assert only.data["n_background"] == 6


def test_outliers_widen_the_region() -> None:
    bold = explore_ten_events(**QUICK, outliers=0.0)
    shy = explore_ten_events(**QUICK, outliers=0.3)
    assert shy.data["region_GeV2"]["95%"] > bold.data["region_GeV2"]["95%"]


def test_many_events_are_shown_at_some_numbers() -> None:
    found = explore_ten_events(**{**QUICK, "n_events": 24, "model": "mixture"})
    counts = found.data["events"]
    assert (counts[0], counts[-1]) == (1, 24)
    assert counts == sorted(set(counts))
    assert len(counts) <= 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_events": 0}, "'n_events' should be at least 1"),
        ({"arrived": 7}, "'arrived' should be from 1 to 6"),
        ({"arrived": 0}, "'arrived' should be from 1 to 6"),
        ({"background": 1.5}, "'background' should be a share"),
        ({"outliers": 1.0}, "'outliers' should be in"),
        ({"n_events": 401}, "at most 400"),
        ({"n_events": 300, "background": 1.0}, "'background_events' holds 120 events"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explore_ten_events(**{**QUICK, **change})


def test_what_is_known_need_not_be_done() -> None:
    arguments = {**DEFAULTS, **QUICK, "seed": 77, "n_events": 3}
    assert events_to_do(arguments) > 0
    explore_ten_events(**arguments)
    assert events_to_do(arguments) == 0


def test_widget_plays_shuffles_and_keeps_to_its_number() -> None:
    explorer = TenEventsExplorer(**QUICK)
    assert explorer.failed == ""
    assert (explorer.arrived, explorer._play.max) == (1, 6)
    explorer._play.value = 4
    assert explorer.found is not None
    assert explorer.found.data["arrived"] == 4
    assert "arrived=4" in explorer.code()
    explorer.n_events = 3
    assert (explorer.arrived, explorer._play.max) == (3, 3)
    seed = explorer.seed
    explorer.shuffle()
    assert explorer.seed == seed + 1
    explorer.n_events = 27
    explorer.wait(60)
    assert explorer.found.data["arrived"] == 3
    assert explorer._play.max == 27
    explorer.model = "nowhere"
    assert "not a saved model" in explorer.failed
    assert "model='wino_udd'" in explorer.code()


def test_prepared_events_need_no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: mr.load_events(name)[:20] for name in event_names()}
    monkeypatch.setattr("massrecon.visual.explore.sources.load_events", lambda name: few[name])
    for kept in (sources._events, sources._table):
        kept.cache_clear()
    more = {"more_events": "", "events": "wino_udd_600_200"}
    explorer = TenEventsExplorer(**{**QUICK, **more, "background": 0.5})
    explorer.prepare()
    explorer.wait(120)
    assert explorer.failed == ""
    for seed in range(5, 10):
        assert events_to_do({**explorer.arguments(), "seed": seed}) == 0
    for kept in (sources._events, sources._table):
        kept.cache_clear()


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Lets stored events stand for simulated ones, and notes what is asked for."""
    asked: list[tuple[str, Any]] = []

    def simulate(card: Any, n: int | None, masses: Any, seed: int, **options: Any) -> Any:
        asked.append((card.name, n or options["n_generated"]))
        signal = card.name == "wino_udd"
        events = mr.load_events("wino_udd_600_200" if signal else "background_tth")
        if n is None:
            return events[:200]
        rows = (list(range(len(events))) * (1 + n // len(events)))[:n]
        return events[rows]

    monkeypatch.setattr(fresh, "simulate", simulate)
    monkeypatch.setattr(fresh, "_MADE", {})
    return asked


def test_a_luminosity_brings_as_many_events_as_expected(simulation: list[Any]) -> None:
    cell = mr.load_events("wino_udd_600_200").provenance["cells"][0]
    rate = cell["cross_section_fb"] * cell["acceptance"]
    counts = []
    for seed in range(40):
        sample = fresh.luminosity_sample("wino_udd", (600.0, 200.0), 3000.0, seed=seed)
        assert sample.expected_signal[0] == pytest.approx(3000.0 * rate)
        assert 0.02 < sample.expected_signal[1] / sample.expected_signal[0] < 0.1
        counts.append(len(sample.signal))
    mean, error = 3000.0 * rate, (3000.0 * rate / 40) ** 0.5
    assert abs(sum(counts) / 40 - mean) < 4 * error
    assert simulation == [("wino_udd", 500)] * 40
    many = fresh.luminosity_sample("wino_udd", (600.0, 200.0), 90000.0, seed=1)
    assert len(many.signal) > 200
    assert simulation[-1] == ("wino_udd", len(many.signal))


def test_events_of_a_luminosity_are_measured(simulation: list[Any]) -> None:
    drawn = {"luminosity": 2000.0, "seed": 5}
    arguments = {**DEFAULTS, **drawn, "n_events": 10}
    assert drawn_events(arguments) is None
    assert events_to_do(arguments) > 1000
    found = explore_ten_events(**drawn)
    n = found.data["n_events"]
    assert drawn_events(arguments) == n
    assert events_to_do(arguments) == 0
    assert found.data["n_background"] == 0
    exact = mr.measure(mr.load_model("wino_udd"), mr.load_events("wino_udd_600_200")[:n])
    assert sorted(found.data["events"])[-1] == n
    assert found.data["true_masses_GeV"] == [600.0, 200.0]
    assert found.data["estimate_GeV"] == pytest.approx(exact.estimate().tolist(), abs=1.0)
    assert f"{found.data['expected_signal']:.1f} ±" in found.reading
    assert "2000 fb⁻¹" in found.reading
    with pytest.raises(InputError, match=f"'arrived' should be from 1 to {n}"):
        explore_ten_events(**drawn, arrived=n + 1)


def test_its_background_is_told_apart_by_looks_and_rate(simulation: list[Any]) -> None:
    drawn = {"luminosity": 600.0, "with_background": True, "seed": 2, "model": "mixture"}
    stages: list[str] = []
    found = explore_ten_events(**drawn, tell=lambda _, text: stages.append(text))
    data = found.data
    rate = float(mr.load_events("background_tth").expected(600.0).sum())
    assert data["expected_background"] == pytest.approx(rate)
    assert abs(data["n_background"] - rate) < 4 * rate**0.5
    n_signal = data["n_events"] - data["n_background"]
    assert f"{n_signal} came; {rate:.0f} of background, and {data['n_background']} came" in (
        found.reading
    )
    assert "trees learn to tell background from signal" in stages
    assert any(text.startswith("masses measured after") for text in stages)
    assert simulation[-1] == ("background_tth", 2 * data["n_background"] + 150)
    # the measurement believes in a part of the events only
    alone = explore_ten_events(**{**drawn, "with_background": False})
    assert alone.data["n_events"] == n_signal
    assert data["half_width_GeV"] != alone.data["half_width_GeV"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"luminosity": -1.0}, "'luminosity' should be positive"),
        ({"luminosity": 1e-6}, "No event is seen with seed 1"),
        ({"luminosity": 1e6}, "signal events are expected, and at most 1,000"),
        ({"luminosity": 9e3, "with_background": True}, "background events are expected"),
    ],
)
def test_impossible_luminosities_are_named(
    simulation: list[Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explore_ten_events(**change)


def test_widget_draws_a_luminosity_beside_the_notebook(simulation: list[Any]) -> None:
    explorer = TenEventsExplorer(**QUICK)
    explorer.luminosity = 2500.0
    explorer.wait(60)
    assert explorer.failed == ""
    assert explorer.found is not None
    n = explorer.found.data["n_events"]
    assert (explorer.arrived, explorer._play.max) == (n, n)
    assert explorer._status.value == ""
    assert all(one.disabled for one in explorer._stored)
    assert "luminosity=2500.0" in explorer.code()
    explorer.arrived = 2
    assert explorer.found.data["arrived"] == 2
    explorer.take_stored()
    assert explorer.found.data["n_events"] == 6
    assert not any(one.disabled for one in explorer._stored)
    explorer.luminosity = 2500.0  # known already
    assert explorer.found.data["n_events"] == n
    assert explorer._play.max == n


def test_a_simulation_tells_its_progress_and_is_stopped() -> None:
    card = mr.load_card("antler")
    told: list[float] = []
    made = fresh.simulated(card, None, 3, n_events=100, tell=lambda share, _: told.append(share))
    assert len(made) == 100
    assert told[-1] == 1.0
    assert fresh.simulated(card, None, 3, n_events=100) is made

    def stop(_share: float, _text: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fresh.simulated(card, None, 4, n_events=100, tell=stop)
    assert fresh.simulated(card, None, 3, n_events=100) is made


@pytest.mark.slow
def test_fresh_events_by_luminosity_are_simulated() -> None:
    pytest.importorskip("pythia8mc")
    found = explore_ten_events(luminosity=3000.0, seed=4)
    stored = float(mr.load_events("wino_udd_600_200").expected(3000.0).sum())
    assert abs(found.data["expected_signal"] - stored) < 4 * found.data["expected_signal_error"]
    assert found.data["level_of_truth"] < 0.999
