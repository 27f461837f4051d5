"""Neyman regions: Wilks' quantiles where he is right, coverage where the likelihood is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from massrecon.errors import InputError, ShapeError, StoreError
from massrecon.inference.neyman import NeymanRegions, log_quantile
from massrecon.inference.pseudo import (
    experiments,
    ratio_statistic,
    refined_maximum,
    totals,
    value_at,
)

AXES = [torch.arange(0.0, 201.0, 10.0, dtype=torch.float64)] * 2
POINTS = torch.cartesian_prod(*AXES)
INSIDE = torch.ones(len(POINTS), dtype=torch.bool)
NAMES = ("a", "b")


def likelihoods(
    mass: Tensor, size: int, number: int, seed: int, assumed: float = 30.0, bias: float = 0.0
) -> Tensor:
    """Log-likelihoods of experiments with events y ~ N(m, 30) read with a wrong width and bias."""
    generator = torch.Generator().manual_seed(seed)
    noise = 30 / size**0.5 * torch.randn(number, 2, generator=generator, dtype=torch.float64)
    away = POINTS - (mass + noise + bias).unsqueeze(1)
    return -0.5 * size / assumed**2 * away.square().sum(-1)


def statistic(mass: Tensor, size: int, number: int, seed: int, **wrong: float) -> Tensor:
    """The statistic of independent experiments at their true masses."""
    return ratio_statistic(likelihoods(mass, size, number, seed, **wrong), AXES, INSIDE, mass)


def test_the_statistic_of_a_gaussian_follows_a_chi_square() -> None:
    found = statistic(torch.tensor([103.0, 96.0]).double(), 8, 2000, seed=1)
    assert stats.kstest(found.numpy(), "chi2", args=(2,)).pvalue > 0.01


def test_maximum_and_value_are_those_of_the_quadratic_between_grid_points() -> None:
    best = torch.tensor([[63.0, 128.0], [100.0, 100.0], [85.0, 114.9]], dtype=torch.float64)
    precision = torch.tensor([[2.0, -1.2], [-1.2, 1.5]], dtype=torch.float64) / 400
    away = POINTS - best.unsqueeze(1)
    total = 7 - 0.5 * torch.einsum("tgi,ij,tgj->tg", away, precision, away)
    value, place = refined_maximum(total, (21, 21))
    torch.testing.assert_close(value, torch.full((3,), 7.0, dtype=torch.float64))
    torch.testing.assert_close(10 * place, best)
    there = value_at(total[:1], AXES, best[0])
    torch.testing.assert_close(there, torch.tensor([7.0], dtype=torch.float64))


def test_at_the_edge_of_what_is_allowed_the_best_point_counts() -> None:
    allowed = POINTS[:, 1] <= POINTS[:, 0]
    total = (POINTS[:, 1] - POINTS[:, 0]).unsqueeze(0).masked_fill(~allowed, -torch.inf)
    assert float(refined_maximum(total, (21, 21))[0]) == 0.0
    assert float(value_at(total, AXES, torch.tensor([52.0, 58.0]))) == 0.0
    assert float(ratio_statistic(total, AXES, allowed, torch.tensor([50.0, 30.0]))) == 40.0


def test_experiments_hold_no_event_twice_and_follow_weights() -> None:
    chosen = experiments(50, 20, 100, seed=3)
    assert all(len(row.unique()) == 20 for row in chosen)
    weighted = experiments(3, 5, 4000, seed=3, weight=torch.tensor([0.0, 1.0, 3.0]))
    assert not bool((weighted == 0).any())
    assert float((weighted == 2).double().mean()) == pytest.approx(0.75, abs=0.01)
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(totals(table, chosen)[7], table[chosen[7]].sum(0))


@pytest.fixture(scope="module")
def wrong_regions() -> NeymanRegions:
    """Regions of a likelihood that is too narrow by a third and biased, worse at high masses."""
    masses = torch.cartesian_prod(*[torch.tensor([50.0, 80.0, 110.0, 140.0]).double()] * 2)
    found = {
        size: torch.stack(
            [
                statistic(m, size, 1500, 100 * size + i, assumed=20.0, bias=0.05 * float(m[0]))
                for i, m in enumerate(masses)
            ]
        )
        for size in (2, 6)
    }
    return NeymanRegions.fit(NAMES, masses, found, origin={"toy": True})


@pytest.mark.parametrize("size", [2, 4, 6])
def test_regions_of_a_wrong_likelihood_cover(wrong_regions: NeymanRegions, size: int) -> None:
    covered, wilks = [], []
    for seed, point in enumerate(((60.0, 120.0), (95.0, 95.0), (130.0, 70.0))):
        mass = torch.tensor(point, dtype=torch.float64)
        found = statistic(mass, size, 1500, 7 + seed, assumed=20.0, bias=0.05 * point[0])
        covered.append(wrong_regions.covers(found, mass, size).double().mean(1))
        wilks.append(float((found <= stats.chi2.ppf(0.68, 2)).double().mean()))
    for rates in covered:
        assert float(rates[0]) == pytest.approx(0.68, abs=0.05)
        assert float(rates[1]) == pytest.approx(0.95, abs=0.025)
    assert max(wilks) < 0.5  # what a chi-square would have given


def test_left_out_points_are_predicted(wrong_regions: NeymanRegions) -> None:
    assert bool((wrong_regions.error < 0.12).all())  # of log q, from the points left out
    q = wrong_regions.critical(torch.tensor([[60.0, 60.0], [140.0, 60.0]]), 6)
    assert q.shape == (2, 2)
    assert bool((q[:, 1] > q[:, 0]).all())  # the bias grows with the first mass
    assert bool((q[1] > q[0]).all())


def test_a_region_holds_the_best_point_and_grows_with_its_level(
    wrong_regions: NeymanRegions,
) -> None:
    total = likelihoods(torch.tensor([90.0, 90.0]).double(), 4, 1, seed=1)[0]
    region = wrong_regions.region(total, POINTS, 4)
    assert bool(region[:, total.argmax()].all())
    assert int(region[1].sum()) > int(region[0].sum()) > 0


def test_regions_come_back_from_json(wrong_regions: NeymanRegions, tmp_path: Path) -> None:
    wrong_regions.save(tmp_path / "q.json")
    again = NeymanRegions.load(tmp_path / "q.json")
    torch.testing.assert_close(again.critical(POINTS, 3), wrong_regions.critical(POINTS, 3))
    assert again.origin == {"toy": True}
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(StoreError, match="no critical values"):
        NeymanRegions.load(tmp_path / "x.json")
    with pytest.raises(StoreError, match="cannot be read"):
        NeymanRegions.load(tmp_path / "none.json")


def test_quantiles_know_their_error() -> None:
    generator = torch.Generator().manual_seed(8)
    values = torch.rand(200, 400, generator=generator, dtype=torch.float64)
    log_q, error = log_quantile(values, 0.68)
    assert float(error.mean()) == pytest.approx(float(log_q.std()), rel=0.2)


def test_wrong_arguments_are_named(wrong_regions: NeymanRegions) -> None:
    with pytest.raises(InputError, match="known for 2 to 6 events, got 30"):
        wrong_regions.critical(POINTS, 30)
    with pytest.raises(InputError, match="cannot be drawn from a pool of 5"):
        experiments(5, 6, 10, seed=0)
    with pytest.raises(InputError, match="need 5 mass points"):
        NeymanRegions.fit(NAMES, torch.rand(4, 2), {1: torch.rand(4, 100)})
    with pytest.raises(InputError, match="100 or more experiments"):
        NeymanRegions.fit(NAMES, torch.rand(9, 2), {1: torch.rand(9, 10)})
    with pytest.raises(ShapeError, match="of 1 events"):
        NeymanRegions.fit(NAMES, torch.rand(9, 2), {1: torch.rand(8, 100)})
    with pytest.raises(InputError, match="'levels'"):
        NeymanRegions.fit(NAMES, torch.rand(9, 2), {1: torch.rand(9, 100)}, levels=(68,))
    with pytest.raises(ShapeError, match="'total' should have shape"):
        ratio_statistic(torch.zeros(1, 5), AXES, INSIDE, torch.zeros(2))
