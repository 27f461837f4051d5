"""The explorer of calibration: tests that fail on broken posteriors, and the correction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from massrecon.errors import InputError
from massrecon.visual.explore.calibration import explore_calibration, grid_draws, sharpened
from massrecon.visual.explore.sources import mass_draws, mass_table
from massrecon.visual.widgets.calibration import CalibrationExplorer

QUICK: dict[str, Any] = {"model": "mixture", "n_samples": 32}


def coverage(found: Any, when: str, mass: str) -> float:
    return found.data[when]["masses"][mass]["coverage_of_68"]


def test_sharpening_is_seen_and_put_right() -> None:
    good = explore_calibration(**QUICK)
    bad = explore_calibration(**QUICK, sharpen=2.0, recalibrated=True)
    assert good.data["before"]["p_value"] > 0.01
    assert bad.data["before"]["p_value"] < 0.01
    assert bad.data["after"]["p_value"] > 0.01
    for mass in ("chi20", "chi10"):
        assert coverage(bad, "before", mass) < 0.5
        error = bad.data["after"]["masses"][mass]["coverage_error"]
        assert abs(coverage(bad, "after", mass) - 0.68) < 3 * error < 0.15
        assert bad.data["before"]["masses"][mass]["variance"] > 1.3
    assert "they are not calibrated" in bad.reading
    # a recalibration from 586 events leaves a few per cent, which the tests may just see
    assert ("no deviation is seen" in bad.reading) == (bad.data["after"]["p_value"] > 0.05)
    assert "sharpened by 2" in bad.reading


def test_sharpening_keeps_the_median_and_divides_the_spread() -> None:
    posterior = mass_draws("mixture", n_samples=32)
    narrow = sharpened(posterior, 2.0)
    assert sharpened(posterior, 1.0) is posterior
    spread = posterior.mass_samples().std(0)
    assert torch.allclose(narrow.mass_samples().std(0), spread / 2)
    assert torch.allclose(narrow.estimate("median"), posterior.estimate("median"))


def test_fit_and_test_share_no_mass_point() -> None:
    found = explore_calibration(**QUICK)
    posterior = mass_draws("mixture", n_samples=32)
    assert found.data["n_fitted"] + found.data["n_tested"] == len(posterior)
    assert abs(found.data["n_fitted"] - found.data["n_tested"]) < 0.2 * len(posterior)


@pytest.mark.parametrize(("test", "curves"), [("central", 4), ("ranks", 4), ("tarp", 2)])
def test_each_test_has_its_curves(test: str, curves: int) -> None:
    found = explore_calibration(**QUICK, test=test, recalibrated=True)
    names = [
        t.name for t in found.figure.data if t.name and ("before" in t.name or "after" in t.name)
    ]
    assert len(names) == curves
    assert [title.split(", ")[1] for title in found.panels] == [
        "before recalibration",
        "after recalibration",
    ]
    assert "%" in found.figure.layout.yaxis.title.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": "sbc"}, "Unknown test 'sbc'"),
        ({"method": "cooling"}, "Unknown method 'cooling'"),
        ({"sharpen": 0.0}, "'sharpen' should be from 0.1"),
        ({"events": "wino_udd_600_200"}, "'events' should have 8 mass points"),
        ({"degree": 0, "recalibrated": True}, "'degree' >= 1"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explore_calibration(**{**QUICK, **change})


def test_widget_recalibrates_on_a_button() -> None:
    explorer = CalibrationExplorer(**QUICK, sharpen=1.6)
    explorer.wait(60)
    assert explorer.failed == ""
    assert len(explorer.figures) == 2
    toggle = explorer.children[2].children[0]
    toggle.value = True
    assert explorer.recalibrated
    assert len(explorer.figures) == 3
    assert "recalibrated=True" in explorer.code()
    figure = explorer.figure
    explorer.sharpen = 1.0
    assert explorer.figure is figure
    assert "sharpened" not in explorer._reading.value


def test_a_temperature_cools_what_was_sharpened() -> None:
    cool = {**QUICK, "method": "temperature"}
    good = explore_calibration(**cool, recalibrated=True)
    bad = explore_calibration(**cool, sharpen=2.0, recalibrated=True)
    value, error = good.data["temperature"]
    assert abs(value - 1) < 4 * error < 0.4
    # likelihoods to the fourth power are cooled by four
    assert bad.data["temperature"] == pytest.approx([4 * value, 4 * error], rel=0.02)
    assert good.data["before"]["p_value"] > 0.01
    assert bad.data["before"]["p_value"] < 0.01
    assert bad.data["after"]["p_value"] > 0.01
    for mass in ("chi20", "chi10"):
        assert coverage(bad, "before", mass) < 0.6
        assert coverage(bad, "after", mass) == pytest.approx(coverage(good, "after", mass))
    assert f"with a temperature of {4 * value:.2f} ±" in bad.reading
    assert explore_calibration(**cool).data["temperature"] is None


def test_draws_of_a_grid_follow_its_density() -> None:
    table = mass_table("mixture")
    likelihood = table.likelihood(range(6))
    drawn = grid_draws(likelihood, table.events[:6], 20_000, 1)
    density = (likelihood.log_ratio + likelihood.prior.log_density(likelihood.points)).masked_fill(
        ~likelihood.inside, -torch.inf
    )
    share = density.double().softmax(1)
    mean = share @ likelihood.points.double()
    spread = (share @ likelihood.points.double().square() - mean.square()).sqrt()
    order = [drawn.mass_names.index(name) for name in likelihood.names]
    found = drawn.mass_samples()[..., order].mean(0)
    assert ((found - mean).abs() < 5 * (spread + 5) / 20_000**0.5).all()
    again = grid_draws(likelihood, table.events[:6], 20_000, 1)
    assert torch.equal(drawn.samples, again.samples)


def test_widget_computes_densities_beside_the_notebook() -> None:
    explorer = CalibrationExplorer(**QUICK, recalibrated=True)
    explorer.method = "temperature"
    explorer.wait(120)
    assert explorer.failed == ""
    assert explorer.found is not None
    assert explorer.found.data["temperature"] is not None
    terms = explorer.children[1].children[1]
    assert terms.disabled
    assert "method='temperature'" in explorer.code()
    explorer.method = "bending"
    explorer.wait(120)
    assert not terms.disabled
    assert explorer.found.data["temperature"] is None
