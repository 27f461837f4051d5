"""Estimators against distributions whose best answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference import estimators as est

Sampler = Callable[[torch.Generator, int, int], Tensor]


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return 17 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def skewed(generator: torch.Generator, *shape: int) -> Tensor:
    return -40 * torch.rand(*shape, generator=generator, dtype=torch.float64).log()


def bimodal(generator: torch.Generator, *shape: int) -> Tensor:
    narrow, wide = 12 * gaussian(generator, *shape) / 17, 25 * gaussian(generator, *shape) / 17
    first = torch.rand(*shape, generator=generator) < 0.6
    return torch.where(first, narrow, 150 + wide)


def attained(sampler: Sampler, estimator: str, width: float, seed: int = 0) -> float:
    """Fraction of 4000 truths within `width` of the estimate from 64 draws of the same law."""
    generator = torch.Generator().manual_seed(seed)
    truth, samples = sampler(generator, 1, 4000)[0], sampler(generator, 64, 4000)
    estimate = est.estimate(samples, estimator, width)
    return float(((estimate - truth).abs() < width).double().mean())


def test_simple_estimators_on_a_known_list() -> None:
    samples = torch.tensor([[9.0], [1.0], [2.0], [4.0]])
    assert est.draw(samples).item() == 9
    assert est.mean(samples).item() == 4
    assert est.median(samples).item() == 3
    assert est.median(samples[:3]).item() == 2


def test_median_agrees_with_torch_on_odd_numbers_of_draws() -> None:
    samples = gaussian(torch.Generator().manual_seed(0), 33, 5, 2)
    torch.testing.assert_close(est.median(samples), samples.median(0).values)


@pytest.mark.parametrize("width", [10.0, 20.0, 30.0])
def test_window_beats_mean_and_median_on_a_skewed_posterior(width: float) -> None:
    others = [attained(skewed, name, width) for name in ("mean", "median")]
    best = 1 - math.exp(-2 * width / 40)  # the window [0, 2w]
    window = attained(skewed, "window", width)
    assert window > max(others) + 0.01
    assert window > 0.85 * best
    assert window < best + 0.02


@pytest.mark.parametrize("width", [10.0, 20.0, 30.0])
def test_window_beats_mean_and_median_on_a_bimodal_posterior(width: float) -> None:
    others = [attained(bimodal, name, width) for name in ("mean", "median")]
    best = 0.6 * math.erf(width / 12 / math.sqrt(2))
    window = attained(bimodal, "window", width)
    assert window > max(others) + 0.05
    assert window == pytest.approx(best, abs=0.025)


@pytest.mark.parametrize("width", [5.0, 10.0, 20.0, 50.0])
def test_window_agrees_with_the_median_on_a_gaussian(width: float) -> None:
    assert attained(gaussian, "window", width) == pytest.approx(
        attained(gaussian, "median", width), abs=0.02
    )


def test_window_is_exact_for_many_draws() -> None:
    samples = skewed(torch.Generator().manual_seed(1), 1_000_000, 1)
    centre = est.window(samples, 30.0).item()
    assert centre == pytest.approx(30.0, abs=1.5)
    mass = float(((samples - centre).abs() < 30).double().mean())
    assert mass == pytest.approx(1 - math.exp(-60 / 40), abs=0.004)


def test_window_agrees_with_a_search_over_all_centres() -> None:
    """At many draws: against the slow definition, the most draws within the width of a centre."""
    for sampler in (gaussian, skewed, bimodal):
        draws = sampler(torch.Generator().manual_seed(2), 4000, 1)
        grid = torch.arange(-60, 240, 0.5, dtype=torch.float64)
        counts = ((draws - grid).abs() < 15).sum(0)
        centre = est.window(draws, 15.0)
        found = ((draws - centre).abs() < 15).sum()
        assert found >= 0.97 * counts.max(), sampler.__name__


def test_window_moves_and_scales_with_the_draws() -> None:
    samples = bimodal(torch.Generator().manual_seed(3), 64, 20)
    centre = est.window(samples, 20.0)
    torch.testing.assert_close(est.window(samples + 500, 20.0), centre + 500)
    torch.testing.assert_close(est.window(3 * samples, 60.0), 3 * centre)
    torch.testing.assert_close(est.window(-samples, 20.0), -centre, rtol=0, atol=0.1)


def test_window_wider_than_the_posterior_is_centred_on_it() -> None:
    samples = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None] + 300
    assert est.window(samples, 50.0).item() == pytest.approx(300, abs=0.01)
    assert est.window(torch.full((64, 1), 7.0), 50.0).item() == pytest.approx(7, abs=1e-6)


def test_window_does_not_depend_on_how_events_are_grouped() -> None:
    samples = gaussian(torch.Generator().manual_seed(4), 16, 1300)
    one_by_one = torch.cat([est.window(samples[:, i : i + 1], 10.0) for i in range(0, 1300, 100)])
    torch.testing.assert_close(est.window(samples, 10.0)[::100], one_by_one)
    assert est.window(samples.reshape(16, 650, 2), 10.0).shape == (650, 2)


@pytest.mark.parametrize("name", est.ESTIMATORS)
def test_one_draw_is_its_own_estimate(name: str) -> None:
    samples = torch.tensor([[3.0, -4.0]])
    assert est.estimate(samples, name).tolist() == [3.0, -4.0]
    assert est.interval(samples).tolist() == [[3.0, 3.0], [-4.0, -4.0]]


@pytest.mark.parametrize("name", est.ESTIMATORS)
def test_no_events_give_no_estimates(name: str) -> None:
    assert est.estimate(torch.zeros(8, 0, 2), name).shape == (0, 2)


@pytest.mark.parametrize("name", ["mean", "median", "window"])
def test_an_event_with_a_nan_draw_has_no_estimate_and_harms_no_other(name: str) -> None:
    samples = gaussian(torch.Generator().manual_seed(5), 32, 3)
    clean = est.estimate(samples, name)
    samples[4, 1] = torch.nan
    estimate = est.estimate(samples, name)
    assert estimate.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(estimate[[0, 2]], clean[[0, 2]])
    for kind in est.INTERVALS:
        ends = est.INTERVALS[kind](samples, 0.68)
        assert ends.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]


@pytest.mark.parametrize("n_draws", [15, 64])
@pytest.mark.parametrize("level", [0.5, 0.68])
def test_the_central_interval_covers_at_any_number_of_draws(level: float, n_draws: int) -> None:
    generator = torch.Generator().manual_seed(6)
    truth, samples = skewed(generator, 1, 20_000)[0], skewed(generator, n_draws, 20_000)
    low, high = est.central_interval(samples, level).unbind(-1)
    covered = float(((low < truth) & (truth < high)).double().mean())
    assert covered == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 20_000) + 0.004)


def test_intervals_of_known_distributions() -> None:
    generator = torch.Generator().manual_seed(7)
    normal, one_sided = gaussian(generator, 200_000, 1), skewed(generator, 200_000, 1)
    for kind in ("central", "shortest"):
        low, high = est.interval(normal, 0.6827, kind)[0].tolist()
        assert (low, high) == pytest.approx((-17, 17), abs=0.8)
    # exponential: the shortest interval starts at zero, the central one does not
    assert est.shortest_interval(one_sided, 0.68)[0].tolist() == pytest.approx(
        [0, -40 * math.log(0.32)], abs=0.5
    )
    assert est.central_interval(one_sided, 0.68)[0].tolist() == pytest.approx(
        [-40 * math.log(0.84), -40 * math.log(0.16)], abs=0.5
    )


def test_wrong_arguments_are_refused() -> None:
    samples = torch.zeros(4, 2)
    with pytest.raises(InputError, match="Unknown estimator 'medain'.*'median'.*draw, mean"):
        est.estimate(samples, "medain")
    with pytest.raises(InputError, match="'width' should be a positive half-width in GeV, got 0"):
        est.window(samples, 0)
    with pytest.raises(InputError, match="'level' should be between 0 and 1, got 68"):
        est.interval(samples, 68)
    with pytest.raises(InputError, match="Unknown interval 'hdi': choose from central, shortest"):
        est.interval(samples, kind="hdi")
    with pytest.raises(ShapeError, match=r"at least one draw, got \(0, 3\)"):
        est.mean(torch.zeros(0, 3))
