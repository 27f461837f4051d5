"""The explorer of denoising: figures of a step, errors, and the player."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import massrecon as mr
from massrecon.errors import InputError, ModelError
from massrecon.visual.explore.denoising import explore_denoising, way_of
from massrecon.visual.widgets import denoising as widget
from massrecon.visual.widgets.denoising import DenoisingExplorer

QUICK: dict[str, Any] = {"n_samples": 30, "steps": 8}


def test_a_step_shows_the_draws_of_that_step() -> None:
    found = explore_denoising(**QUICK, event=3, step=2)
    way, truth = way_of("wino_udd", 3, 30, 8, "", "wino_udd_600_200", 1)
    assert truth is not None
    ahead, draws, star, *_ = found.figure.data
    columns = [way.names.index(name) for name in ("chi20_px", "chi20_py")]
    assert list(draws.x) == way.states[2, :, 0, columns[0]].tolist()
    assert list(ahead.y) == way.predicted[2, :, 0, columns[1]].tolist()
    assert [star.x[0], star.y[0]] == truth[columns].tolist()
    assert "[GeV]" in found.figure.layout.xaxis.title.text
    assert found.data["last_step"] == 4
    assert "chi10_m" not in found.data["denoised"]
    assert "masses first" in found.reading
    assert len(found.panels["From noise to the draws"].data) == 10


def test_the_end_is_the_draws_of_the_model() -> None:
    found = explore_denoising(**QUICK, event=5, across="chi10_m", up="chi20_m")
    events = mr.load_events("wino_udd_600_200")[5:6]
    drawn = mr.load_model("wino_udd").sample(events, 30, steps=8, seed=1)
    assert found.data["step"] == found.data["last_step"]
    assert list(found.figure.data[1].x) == pytest.approx(drawn[:, 0, 7].tolist(), abs=0.01)
    spreads = found.data["targets"]["chi10_m"]["spread_GeV"]
    assert spreads[0] == pytest.approx(spreads[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event": 400}, "'event' should be from 0 to 399"),
        ({"step": 5}, "'step' should be from 0 to 4"),
        ({"across": "chi20"}, "Unknown target 'chi20'"),
        ({"n_samples": 1}, "'n_samples' should be at least 2"),
        ({"model": "mixture"}, "'model' should be a trained model"),
        ({"solver": "ddim"}, "Unknown solver"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ModelError), match=message):
        explore_denoising(**{**QUICK, **change})


def test_widget_plays_as_far_as_the_way_goes() -> None:
    explorer = DenoisingExplorer(**QUICK)
    assert explorer.failed == ""
    assert (explorer.step, explorer._play.max) == (0, 4)
    figure = explorer.figure
    assert figure is not None
    before = list(figure.data[1].x)
    explorer._play.value = 3
    assert explorer.step == 3
    assert list(figure.data[1].x) != before
    assert "step=3" in explorer.code()
    explorer.steps = 4
    assert (explorer.step, explorer._play.max) == (2, 2)
    explorer.steps = 12
    assert explorer._play.max == 6
    explorer.solver = "ddim"
    assert "Unknown solver" in explorer.failed
    assert "solver=''" in explorer.code()


def test_menus_and_slider_follow_model_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(name: str) -> Any:
        return SimpleNamespace(target_names=("a", "b")) if name == "other" else load_source(name)

    load_source = widget.load_source
    monkeypatch.setattr(widget, "load_source", source)
    explorer = DenoisingExplorer(**QUICK, across="chi20_px", event=399)
    across, up = explorer._axes
    explorer.model = "other"
    assert [value for _, value in across.options] == [value for _, value in up.options]
    assert [value for _, value in up.options] == ["", "a", "b"]
    assert explorer.across == ""
    assert "other" in explorer.failed
    explorer.model = "wino_udd"
    assert explorer.failed == ""
    explorer.events = "wino_udd"
    assert explorer._event.max == 1199
    explorer.event = 1000
    explorer.events = "wino_udd_600_200"
    assert (explorer.event, explorer.failed) == (399, "")
