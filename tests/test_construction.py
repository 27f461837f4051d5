"""Neyman's construction from events: regions that cover though the densities are wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.combination import measure
from massrecon.inference.construction import (
    PriorGrid,
    neyman_regions,
    regions_from_densities,
    two_grid_statistic,
)
from massrecon.inference.likelihood import whole_grid
from massrecon.inference.massgrid import product_points
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.neyman import METADATA, NeymanRegions
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.pseudo import ratio_statistic
from massrecon.models import create_model
from tests.conftest import ToyEvents
from tests.gaussians import COVARIANCE, NAMES, PLANE, GaussianDensities, gaussian_events

PRIOR = TrainingPrior.flat(NAMES, PLANE)
POINTS = torch.cartesian_prod(
    torch.tensor([450.0, 525.0, 600.0]), torch.tensor([100.0, 200.0, 275.0])
).double()
NARROW = COVARIANCE / 2  # far too sure of itself


def sums_around(truth: Tensor, grid: PriorGrid, width: float, number: int) -> Tensor:
    """Log L of experiments whose masses are known to a width [GeV]."""
    noise = torch.randn(number, 2, generator=torch.Generator().manual_seed(5)).double()
    away = grid.points - (truth + width * noise).unsqueeze(1)
    return -0.5 * away.square().sum(-1) / width**2


@pytest.mark.parametrize("truth", [(600.0, 200.0), (595.0, 205.0), (602.5, 198.0)])
def test_the_statistic_does_not_depend_on_where_grid_points_are(
    truth: tuple[float, float],
) -> None:
    """With 7 GeV of resolution a grid of 10 GeV alone would not do."""
    at = torch.tensor(truth).double()
    axes = whole_grid(PRIOR, GaussianDensities(gaussian_events(1, 1)), 10.0)
    plane = PriorGrid(axes, PLANE.contains(product_points(list(axes.values()))))
    window = PriorGrid.around(at, PRIOR)
    coarse, fine = (sums_around(at, grid, 7.0, 4000) for grid in (plane, window))
    found = two_grid_statistic(coarse, fine, plane, window, at)
    assert stats.kstest(found.numpy(), "chi2", args=(2,)).pvalue > 0.01


def test_a_maximum_far_from_the_truth_is_found_on_the_coarse_grid() -> None:
    at = torch.tensor([600.0, 200.0]).double()
    axes = whole_grid(PRIOR, GaussianDensities(gaussian_events(1, 1)), 10.0)
    plane = PriorGrid(axes, PLANE.contains(product_points(list(axes.values()))))
    window = PriorGrid.around(at, PRIOR)
    far = torch.tensor([455.0, 255.0]).double()
    coarse, fine = (-0.5 * (g.points - far).square().sum(1)[None] / 900 for g in (plane, window))
    found = two_grid_statistic(coarse, fine, plane, window, at)
    assert float(found) == pytest.approx(float((at - far).square().sum()) / 900, rel=1e-3)
    near = ratio_statistic(fine, list(window.axes.values()), window.inside, at)
    assert float(near) < float(found) - 4


@pytest.fixture(scope="module")
def regions() -> NeymanRegions:
    pools = [
        GaussianDensities(gaussian_events(1500, 100 + i, at), NARROW) for i, at in enumerate(POINTS)
    ]
    return regions_from_densities(pools, POINTS, PRIOR, sizes=(4, 16), seed=3)


def test_regions_of_measurements_cover_where_those_of_highest_density_do_not(
    regions: NeymanRegions,
) -> None:
    truth = torch.tensor([560.0, 160.0]).double()  # no point of the construction
    held = {"highest": [0, 0], "confidence": [0, 0]}
    number = 200
    for i in range(number):
        seen = GaussianDensities(gaussian_events(8, 1000 + i, truth), NARROW)
        found = measure(seen, training_prior=PRIOR, regions=regions)
        for k, level in enumerate((0.68, 0.95)):
            held["highest"][k] += found.contains(truth, level)
            held["confidence"][k] += found.in_confidence_region(truth, level)
    for k, level in enumerate((0.68, 0.95)):
        error = (level * (1 - level) / number) ** 0.5
        assert held["confidence"][k] / number == pytest.approx(level, abs=3 * error + 0.01)
        assert held["highest"][k] / number < level - 4 * error


def test_a_region_its_ranges_and_single_masses_agree(
    regions: NeymanRegions, tmp_path: Path
) -> None:
    seen = GaussianDensities(gaussian_events(8, 7), NARROW)
    found = measure(seen, training_prior=PRIOR, regions=regions)
    grid, inside = found.confidence_region(0.68)
    assert 0.02 < float(inside.double().mean()) < 0.9
    for point, is_in in zip(grid.points[::7], inside[::7].tolist(), strict=True):
        assert found.in_confidence_region(point, 0.68) == is_in
    small, large = found.confidence_ranges(0.68), found.confidence_ranges(0.95)
    assert bool(((large[:, 0] < small[:, 0]) & (small[:, 1] < large[:, 1])).all())
    held = grid.points[inside]
    step = torch.stack([axis[1] - axis[0] for axis in grid.axes.values()])
    assert bool((small[:, 0] < held.amin(0) + 1e-6).all())
    assert bool((small[:, 1] > held.amax(0) - 1e-6).all())
    assert bool((held.amin(0) - small[:, 0] <= step).all())
    best = found.posterior.mode()
    assert found.in_confidence_region(best, 0.68)
    found.save(tmp_path / "m")
    again = MassMeasurement.load(tmp_path / "m")
    assert again.to_dict() == found.to_dict()
    assert again.to_dict()["confidence_regions"]["0.95"]["chi20"] == large[0].tolist()


def test_critical_values_are_used_for_what_they_hold_for(regions: NeymanRegions) -> None:
    def asked(n: int = 8, **options: object) -> MassMeasurement:
        seen = GaussianDensities(gaussian_events(n, 9), NARROW)
        return measure(seen, training_prior=PRIOR, regions=regions, **options)  # type: ignore[arg-type]  mixed

    assert asked().regions is regions
    with pytest.raises(InputError, match="they are for 4 to 16 events"):
        asked(3)
    with pytest.raises(InputError, match=r"they are for a share 0\.01 of outliers"):
        asked(outliers=0.1)
    with pytest.raises(InputError, match="they are for a flat prior; for events without weights"):
        asked(prior="training", weights=torch.ones(8))
    with pytest.raises(InputError, match=r"'level' should be one of 0\.68, 0\.95"):
        asked().confidence_region(0.9)
    plain = dataclasses.replace(asked(), regions=None)
    with pytest.raises(InputError, match="no critical values"):
        plain.confidence_ranges()
    assert "confidence_regions" not in plain.to_dict()


def test_a_model_carries_its_critical_values_along(toy_events: ToyEvents, tmp_path: Path) -> None:
    events = toy_events(80, 1)
    model = create_model("mass_head", events.card, "small", seed=1)
    model.fit_scaling(events)
    model.metadata = {"training_prior": TrainingPrior.from_events(events).to_dict()}
    found = neyman_regions(model.eval(), events, sizes=(1, 2), n_experiments=200)
    assert found.names == ("chi10",)
    assert found.outliers == 0.01
    model.metadata[METADATA] = found.to_dict()
    assert measure(model, events[:2]).regions is not None
    assert measure(model, events[:3]).regions is None
    with pytest.raises(InputError, match="15 events or more at each mass point, got 10 at chi10"):
        neyman_regions(model, events, sizes=(1, 3))
    with pytest.raises(InputError, match="their true masses"):
        neyman_regions(model, dataclasses.replace(events, masses=None, partons=None))
