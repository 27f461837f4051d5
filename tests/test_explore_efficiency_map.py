"""The explorer of efficiencies: the map, one cell of it, and the widget with its click."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from massrecon.errors import InputError
from massrecon.inference.efficiency_map import efficiency_map
from massrecon.visual.explore.efficiency_map import explore_efficiency_map
from massrecon.visual.explore.sources import are_drawn, mass_draws, stored_events
from massrecon.visual.widgets import efficiency_map as widget
from massrecon.visual.widgets.efficiency_map import EfficiencyMapExplorer

QUICK: dict[str, Any] = {"model": "mixture", "n_samples": 16, "bins": 4}


def test_draws_are_kept_and_are_those_of_the_model() -> None:
    told: list[float] = []
    arguments = {"model": "mixture", "n_samples": 3, "seed": 5}
    assert not are_drawn(**arguments)
    drawn = mass_draws(**arguments, tell=lambda share, _: told.append(share))
    assert are_drawn(**arguments)
    assert mass_draws(**arguments) is drawn
    assert told == sorted(told)
    assert len(told) == 12
    assert drawn.mass_names == ("chi20", "chi10")
    truth = stored_events().masses
    assert truth is not None
    assert torch.equal(drawn.true_masses(), truth)
    # draws know of the truth: they are correlated with it
    mean = drawn.mass_samples().mean(0)
    assert float(torch.corrcoef(torch.stack([mean[:, 1], truth[:, 1]]))[0, 1]) > 0.5


def test_the_map_is_that_of_the_diagnostics() -> None:
    found = explore_efficiency_map(**QUICK, window=20.0, estimator="mean", mass="chi20")
    posterior = mass_draws("mixture", n_samples=16)
    expected = efficiency_map(posterior, "chi20", 20.0, "mean", bins=4)
    assert found.data["attained"] == expected.to_dict()["attained"]
    heat = found.figure.data[0]
    assert heat.z.shape == (4, 4)
    assert found.panels == {}
    assert "within 20 GeV (mean)" in found.reading


def test_events_of_one_mass_point_are_not_independent_in_a_cell() -> None:
    found = explore_efficiency_map(**QUICK, cell=[520.0, 300.0])
    (x_low, x_high), (y_low, y_high) = found.data["cell"]["masses_GeV"]
    masses = stored_events().masses
    assert masses is not None
    inside = (masses[:, 0] >= x_low) & (masses[:, 0] < x_high)
    inside &= (masses[:, 1] >= y_low) & (masses[:, 1] < y_high)
    # the covariance of histograms needs 16 groups: so few mass points cannot give a chi squared
    assert len(masses[inside].unique(dim=0)) < 16
    targets = found.data["cell"]["targets"]
    assert targets
    assert all(target["chi2_per_dof"] is None for target in targets.values())


def test_a_cell_shows_its_events_alone() -> None:
    found = explore_efficiency_map(**QUICK, cell=[520.0, 300.0])
    (title,) = found.panels
    cell = found.data["cell"]
    (x_low, x_high), (y_low, y_high) = cell["masses_GeV"]
    assert x_low <= 520 <= x_high
    assert y_low <= 300 <= y_high
    masses = stored_events().masses
    assert masses is not None
    inside = (masses[:, 0] >= x_low) & (masses[:, 0] < x_high)
    inside &= (masses[:, 1] >= y_low) & (masses[:, 1] < y_high)
    assert cell["n_events"] == int(inside.sum())
    assert cell["targets"]["chi10_m"]["true_mean_GeV"] == pytest.approx(
        float(masses[inside, 1].mean()), abs=0.1
    )
    assert "m(χ̃₁⁰)" in title
    frame = found.figure.data[1]
    assert [frame.x[0], frame.y[0]] == [x_low, y_low]
    assert explore_efficiency_map(**QUICK, cell=[521.0, 301.0]).panels == found.panels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": [400.0, 500.0]}, "'cell' should be where there are 2 events"),
        ({"cell": [9000.0, 100.0]}, "'cell' should be where there are 2 events"),
        ({"cell": [400.0]}, "'cell' should be two true masses"),
        ({"bins": 1}, "'bins' should be from 2 to 40"),
        ({"mass": "chi"}, "Unknown mass 'chi'"),
        ({"estimator": "mode"}, "Unknown estimator 'mode'"),
        ({"window": 0.0}, "'window' should be a positive"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explore_efficiency_map(**{**QUICK, **change})


def test_widget_opens_a_cell_by_click_and_by_slider() -> None:
    explorer = EfficiencyMapExplorer(**QUICK)
    explorer.wait(60)
    assert explorer.failed == ""
    heat: Any = explorer.figures[""].data[0]
    points = SimpleNamespace(xs=[520.0], ys=[300.0])
    heat._dispatch_on_click(points, None)
    assert explorer.cell == [520.0, 300.0]
    assert len(explorer.figures) == 2
    assert [axis.value for axis in explorer._axes] == [520.0, 300.0]
    map_figure, panel = explorer.figures.values()
    explorer._axes[1].value = 100.0
    assert explorer.figures[""] is map_figure
    assert list(explorer._place.children)[2].shown is list(explorer.figures.values())[1]
    assert panel.data[0].name == "generated"
    assert explorer.cell == [520.0, 100.0]
    assert "cell=[520.0, 100.0]" in explorer.code()
    assert "'cell=[520.0, 100.0]'" in explorer.command()
    explorer.cell = [400.0, 500.0]
    assert "2 events or more" in explorer.failed
    assert "cell=[520.0, 100.0]" in explorer.code()
    explorer.close_cell()
    assert list(explorer.figures) == [""]
    explorer.n_samples = 5
    explorer.wait(60)
    assert "n_samples=5" in explorer.code()


def test_menu_and_sliders_follow_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(
        card=SimpleNamespace(mass_names=("A", "B"), symbol=lambda name: f"{name}'"),
        masses=torch.tensor([[101.0, 42.0], [499.0, 58.0]]),
    )

    def stored(name: str) -> Any:
        return other if name == "other" else stored_events(name)

    monkeypatch.setattr(widget, "stored_events", stored)
    explorer = EfficiencyMapExplorer(**QUICK, cell=[520.0, 300.0])
    explorer.wait(60)
    explorer.events = "other"
    assert [value for _, value in explorer._mass.options] == ["A", "B"]
    assert (explorer.mass, explorer.cell) == ("B", [])
    assert [(axis.min, axis.max) for axis in explorer._axes] == [(100.0, 500.0), (40.0, 60.0)]
    assert explorer._axes[1].description == "Cell m(B') [GeV]"
    explorer.wait(60)
    assert "other" in explorer.failed
    explorer.events = "wino_udd"
    explorer.wait(60)
    assert explorer.mass == "chi10"
    assert explorer.failed == ""


def test_what_an_explorer_cannot_show_is_said_in_it() -> None:
    explorer = EfficiencyMapExplorer(**QUICK, mass="chi", cell=[500.0])
    explorer.wait(60)
    assert "Unknown mass 'chi'" in explorer.failed
    explorer.events = "background_tth"  # without any mass
    explorer.wait(60)
    assert explorer.failed
