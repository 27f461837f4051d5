"""How many events it takes: against Gaussian events, whose resolution is known."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.resolution_curve import (
    COMBINED,
    PEAK,
    ResolutionCurve,
    one_mass_point,
    resolution_curve,
)
from tests.conftest import ToyEvents
from tests.gaussians import COVARIANCE, NAMES, PLANE, TRUTH, GaussianDensities, gaussian_events


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    """Events at the true masses; what they look like does not matter."""
    made = toy_events(1500, 1)
    return dataclasses.replace(made, masses=TRUTH.expand(1500, 2))


@pytest.fixture(scope="module")
def curve(events: Events) -> ResolutionCurve:
    toy = GaussianDensities(gaussian_events(1500, 3))
    return resolution_curve(toy, events, numbers=(30, 10), n_experiments=400, outliers=0.0)


def test_the_resolution_is_that_of_the_product(curve: ResolutionCurve) -> None:
    for point in curve.of(COMBINED):
        exact = 0.9945 * (COVARIANCE.diagonal() / point.n_events).sqrt()
        assert point.claimed[:, 0].tolist() == pytest.approx(exact.tolist(), rel=0.03)
        pull = (point.resolution[:, 0] - exact) / point.resolution[:, 1].clamp_min(0.04 * exact)
        assert float(pull.abs().max()) < 4
        assert (point.bias[:, 0].abs() < 4 * point.bias[:, 1] + 0.1 * exact).all()
        for level, (value, error) in point.coverage.items():
            assert abs(value - level) < 4 * max(error, math.sqrt(level * (1 - level) / 400))


def test_the_peak_of_the_sum_is_no_better(curve: ResolutionCurve) -> None:
    best, peak = curve.of(COMBINED)[-1], curve.of(PEAK)[-1]
    assert best.n_events == peak.n_events == 30
    assert bool((peak.resolution[:, 0] > 0.97 * best.resolution[:, 0]).all())
    assert peak.coverage == {}
    assert bool(peak.claimed[:, 0].isnan().all())


def test_the_curve_is_plain_data_with_luminosities(curve: ResolutionCurve) -> None:
    assert curve.events_per_fb is None
    assert curve.luminosity(10) is None
    known = dataclasses.replace(curve, events_per_fb=0.004)
    assert known.luminosity(10) == pytest.approx(2500)
    rows = known.to_dict()["points"]
    assert [row["n_events"] for row in rows] == [10, 10, 30, 30]
    assert rows[0]["luminosity_fb"] == pytest.approx(2500)
    assert len(rows[0]["resolution"]["chi10"]) == 2


def test_what_cannot_be_resampled_is_refused(events: Events, toy_events: ToyEvents) -> None:
    toy = GaussianDensities(gaussian_events(1500, 3))
    with pytest.raises(InputError, match="a fifth of the 1500 events"):
        resolution_curve(toy, events, numbers=(10, 1000))
    with pytest.raises(InputError, match="1500 densities for 100 events"):
        resolution_curve(toy, events[:100])
    with pytest.raises(InputError, match="one mass point, these have several"):
        one_mass_point(toy_events(100, 1), NAMES)
    with pytest.raises(InputError, match="no true masses"):
        one_mass_point(dataclasses.replace(events, masses=None), NAMES)
    prior = TrainingPrior.flat(("a", "b"), PLANE)
    with pytest.raises(InputError, match="densities are of chi20, chi10"):
        resolution_curve(toy, events, training_prior=prior)


def test_experiments_repeat_with_their_seed(events: Events) -> None:
    toy = GaussianDensities(gaussian_events(1500, 3))
    first, same, other = (
        resolution_curve(toy, events, numbers=(5,), n_experiments=60, seed=s) for s in (1, 1, 2)
    )
    bias = [c.points[0].bias[:, 0] for c in (first, same, other)]
    assert torch.equal(bias[0], bias[1])
    assert not torch.equal(bias[0], bias[2])
