"""The explorer of a mass point: stored events, two models, what is computed once, the widget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError, ModelError
from massrecon.visual.explore import mass_point, sources
from massrecon.visual.explore.mass_point import (
    events_to_do,
    explore_mass_point,
    fresh_events,
    stored_points,
)
from massrecon.visual.widgets.mass_point import MassPointExplorer

HERE: dict[str, Any] = {"m_parent": 600.0, "m_daughter": 200.0, "n_events": 4}


def test_a_region_is_that_of_a_measurement_of_the_same_events() -> None:
    found = explore_mass_point(**HERE, seed=3)
    events = sources.stored_events("wino_udd_600_200")
    generator = torch.Generator().manual_seed(3)
    rows = torch.randperm(len(events), generator=generator)[:4].tolist()
    exact = mr.measure(mr.load_model("wino_udd"), events[rows])
    model = found.data["models"]["wino_udd"]
    assert found.data["true_masses_GeV"] == [600.0, 200.0]
    assert model["estimates_GeV"]["median"] == pytest.approx(exact.estimate().tolist(), abs=1.0)
    width = exact.interval(0.68).diff(dim=1)[:, 0].tolist()
    shown = [high - low for low, high in model["intervals_GeV"]["68%"]]
    assert shown == pytest.approx(width, rel=0.05)
    assert "m(χ̃₂⁰)" in found.reading


def test_two_models_stand_side_by_side_on_the_same_axes() -> None:
    found = explore_mass_point(**HERE, compare="mixture")
    layout = found.figure.layout
    assert set(found.data["models"]) == {"wino_udd", "mixture"}
    assert layout.xaxis.range == layout.xaxis4.range
    assert layout.yaxis.range == layout.yaxis4.range
    assert "[GeV]" in layout.xaxis.title.text
    assert [a.text for a in layout.annotations] == ["<b>wino_udd</b>", "<b>mixture</b>"]
    names = [trace.name for trace in found.figure.data if trace.xaxis == "x4"]
    assert names == ["95%", "68%", "draw", "mean", "median", "window", "truth"]
    low, high = layout.xaxis.range
    whole = explore_mass_point(**HERE, compare="mixture", whole=True).figure.layout.xaxis.range
    assert whole[0] <= low < high < whole[1]


def test_events_are_those_of_the_nearest_point_that_has_enough() -> None:
    points = [p for p in stored_points("wino_udd") if p[2] >= 6]
    asked = (480.0, 260.0)
    nearest = min(points, key=lambda p: math.dist(p[:2], asked))
    found = explore_mass_point(m_parent=asked[0], m_daughter=asked[1], n_events=6)
    assert tuple(found.data["true_masses_GeV"]) == nearest[:2]
    assert found.data["distance_GeV"] == pytest.approx(math.dist(nearest[:2], asked))
    assert f"{found.data['distance_GeV']:.0f} GeV from" in found.reading


def test_a_table_computes_an_event_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = sources.mass_likelihood

    def counted(source: Any, events: Any, **options: Any) -> Any:
        asked.append(len(events))
        return plain(source, events, **options)

    monkeypatch.setattr(sources, "mass_likelihood", counted)
    events = mr.load_events("wino_udd_600_200")[:8]
    table = sources.MassTable(sources.load_source("mixture"), events)
    told: list[float] = []
    first = table.likelihood([0, 1, 2], lambda share, _: told.append(share))
    again = table.likelihood([2, 0, 5])
    assert asked == [3, 1]
    assert told == [0.0]
    assert torch.equal(again.log_ratio[:2], first.log_ratio[[2, 0]])
    assert table.missing([0, 3, 5]) == [3]
    with pytest.raises(InputError, match="no event"):
        table.likelihood([])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="'n_events' should be at least 1"):
        explore_mass_point(n_events=0)
    with pytest.raises(InputError, match="'n_events' should be at least 1"):
        explore_mass_point(n_events=0, fresh=True)
    with pytest.raises(InputError, match="'n_events' should be at most 400"):
        explore_mass_point(n_events=401)
    with pytest.raises(InputError, match="two true masses, 'background_tth' does not"):
        explore_mass_point(events="background_tth")
    with pytest.raises(ModelError, match="not a saved model"):
        explore_mass_point(model="nowhere", n_events=2)


def test_fresh_events_come_in_batches_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    events = mr.load_events("wino_udd_600_200")
    calls: list[tuple[int, dict[str, float], int]] = []

    def simulate(card: Any, n: int, masses: Any, seed: int, **_: Any) -> Any:
        calls.append((n, dict(masses), seed))
        return events[:n]

    monkeypatch.setattr(mass_point, "simulate", simulate)
    monkeypatch.setattr(mass_point, "_FRESH", {})
    stages: list[str] = []
    made = fresh_events("wino_udd", (600.0, 200.0), 25, 7, lambda _, text: stages.append(text))
    masses = {"chi20": 600.0, "chi10": 200.0}
    assert calls == [(20, masses, 7000), (5, masses, 7001)]
    assert stages == ["0 of 25 events simulated", "20 of 25 events simulated"]
    assert fresh_events("wino_udd", (600.0, 200.0), 25, 7) is made
    arguments = {**HERE, "fresh": True, "seed": 7, "events": "wino_udd"}
    assert events_to_do(arguments) == 4
    assert events_to_do({**arguments, "n_events": 25}) == 0


def test_widget_follows_its_sliders_and_says_what_is_stale() -> None:
    explorer = MassPointExplorer(**HERE)
    figure = explorer.figure
    assert explorer.failed == ""
    assert figure is not None
    before = list(figure.data[1].x)
    explorer.m_daughter = 300.0
    assert explorer.figure is figure
    assert list(figure.data[1].x) != before
    explorer.n_events = 500
    assert "at most 400" in explorer.failed
    assert "n_events=4" in explorer.code()
    explorer.n_events = 30
    explorer.wait(60)
    assert explorer.found is not None
    assert explorer.found.data["n_events"] == 30
    assert explorer.command().startswith("massrecon run 20_mass_point -p model=wino_udd")


def test_sliders_go_as_far_as_the_stored_events(tmp_path: Path) -> None:
    events = sources.stored_events("wino_udd")
    assert events.masses is not None
    light = events[events.masses[:, 0] < 450]
    light.save(tmp_path / "light")
    explorer = MassPointExplorer(**HERE)
    parent, daughter = explorer.children[0].children[:2]
    assert (parent.description, daughter.description) == ("True m(χ̃₂⁰) [GeV]", "True m(χ̃₁⁰) [GeV]")
    assert (parent.min, parent.max) == (360.0, 700.0)
    explorer.change(more_events="", n_events=1)
    explorer.events = str(tmp_path / "light")
    assert (parent.min, parent.max) == (360.0, 450.0)
    assert explorer.m_parent == 450.0
    assert explorer.found is not None
    assert explorer.found.data["true_masses_GeV"][0] < 450
    explorer.events = "nowhere"
    assert "nowhere" in explorer.failed
    assert (parent.min, parent.max) == (360.0, 450.0)
    explorer.events = "wino_udd"
    assert (parent.min, parent.max, explorer.failed) == (360.0, 700.0, "")
    assert "nowhere" in MassPointExplorer(**HERE, events="nowhere").failed


def test_widget_simulates_on_a_button_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    events = mr.load_events("wino_udd_600_200")
    monkeypatch.setattr(mass_point, "simulate", lambda card, n, *_, **__: events[:n])
    monkeypatch.setattr(mass_point, "_FRESH", {})
    explorer = MassPointExplorer(**HERE)
    explorer.simulate()
    explorer.wait(60)
    assert explorer.found is not None
    assert explorer.found.data["simulated"]
    assert "fresh=True" in explorer.code()
    explorer.m_parent = 500.0
    assert not explorer.fresh
    assert explorer.found is not None
    assert not explorer.found.data["simulated"]


@pytest.mark.slow
def test_fresh_events_have_the_masses_asked_for() -> None:
    pytest.importorskip("pythia8mc")
    made = fresh_events("wino_udd", (550.0, 150.0), 3, 11)
    assert made.masses is not None
    assert made.masses.tolist() == [[550.0, 150.0]] * 3
