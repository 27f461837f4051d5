"""Calibration: uniform for the exact posterior, failing for one that is wrong on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tarp
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.card import ProcessCard
from massrecon.inference import sbc
from massrecon.inference.calibration import (
    calibration_curve,
    calibration_report,
    rank_histogram,
)
from massrecon.inference.coverage import coverage_map
from massrecon.inference.griddensity import at_points, cell_volumes
from massrecon.inference.massgrid import MassGrid
from massrecon.inference.posterior import Posterior
from tests.test_diagnostics import known_posterior


def gaussian(
    n: int, draws: int, seed: int, spread: float = 1.0, dim: int = 2
) -> tuple[Tensor, Tensor]:
    """Draws of the exact posterior of m ~ N(0, 1), y ~ N(m, 1), with a wrong width if asked for."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    seen = truth + torch.randn(n, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(draws, n, dim, generator=generator, dtype=torch.float64)
    return seen / 2 + spread * math.sqrt(0.5) * noise, truth


def test_ranks_are_exactly_uniform_at_any_number_of_draws() -> None:
    for draws in (1, 3, 64):
        samples, truth = gaussian(4000, draws, seed=draws)
        u = sbc.rank_values(samples, truth, seed=1)
        assert float(u.min()) > 0
        assert float(u.max()) < 1
        assert calibration_curve(u[:, 0]).p_value > 0.01


def test_ties_are_spread_over_their_steps() -> None:
    u = sbc.rank_values(torch.zeros(9, 5000, 1), torch.zeros(5000, 1))
    assert calibration_curve(u[:, 0]).p_value > 0.01


def test_the_content_of_a_gaussian_region_follows_from_its_radius() -> None:
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    log_p = -0.5 * points.square().sum(1)
    truth = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    at_truth = -0.5 * truth.square().sum(1)
    found = sbc.density_values(log_p.expand(3, -1), at_truth, cell_volumes([axis, axis]))
    torch.testing.assert_close(found, 1 - at_truth.exp(), atol=3e-3, rtol=0)
    draws = torch.randn(20_000, 3, 2, generator=torch.Generator().manual_seed(3)).double()
    ranked = sbc.draw_density_values(-0.5 * draws.square().sum(-1), at_truth)
    torch.testing.assert_close(ranked, 1 - at_truth.exp(), atol=0.02, rtol=0)


def test_interpolation_keeps_densities_up_to_a_slanted_edge() -> None:
    axes = [torch.arange(4.0), torch.arange(4.0)]
    values = torch.where(torch.arange(4.0)[None] <= torch.arange(4.0)[:, None], 1.5, -math.inf)
    for point in ([1.5, 1.5], [2.2, 1.9], [0.2, 0.9], [3.0, 0.0]):
        found = at_points(axes, values.reshape(1, -1), torch.tensor(point))
        assert float(found) == 1.5
    with pytest.raises(ShapeError, match="'log_values' should have 16 numbers"):
        at_points(axes, torch.zeros(1, 9), torch.zeros(2))


def test_the_band_holds_the_curve_in_95_percent_of_the_cases() -> None:
    generator = torch.Generator().manual_seed(5)
    outside, small = 0, 0
    for _ in range(300):
        curve = calibration_curve(torch.rand(300, generator=generator))
        outside += bool(((curve.share < curve.low) | (curve.share > curve.high)).any())
        small += curve.p_value < 0.05
    assert 0.02 < outside / 300 < 0.085  # 5 % +- 1.3 %
    assert 0.02 < small / 300 < 0.085


def test_the_band_of_blocks_is_honest_and_the_one_of_events_would_not_be() -> None:
    generator = torch.Generator().manual_seed(6)
    group = torch.arange(40).repeat_interleave(20)
    failed = {"blocks": 0, "events": 0}
    for _ in range(80):
        common = torch.randn(40, generator=generator)[group]
        own = torch.randn(800, generator=generator)
        u = torch.special.ndtr(((common + own) / math.sqrt(2)).double())
        failed["blocks"] += calibration_curve(u, group).p_value < 0.05
        failed["events"] += calibration_curve(u).p_value < 0.05
    assert failed["blocks"] / 80 < 0.17
    assert failed["events"] / 80 > 0.4


@pytest.mark.parametrize("spread", [0.8, 1.25])
def test_a_wrong_width_fails_every_test_with_power(spread: float) -> None:
    """With 2,000 events all tests see a width wrong by 20 % in 20 of 20 samples, TARP too."""
    failed = {"ranks": 0, "central": 0, "tarp": 0}
    for seed in range(20):
        samples, truth = gaussian(2000, 64, seed, spread)
        ranks = sbc.rank_values(samples, truth, seed)
        values = {
            "ranks": ranks[:, 0],
            "central": sbc.central_values(ranks[:, 0]),
            "tarp": sbc.tarp_values(samples, truth, seed=seed),
        }
        for name, u in values.items():
            failed[name] += calibration_curve(u).p_value < 0.01
    assert min(failed.values()) >= 19, failed


def test_the_exact_posterior_passes_every_test() -> None:
    p_values = []
    for seed in range(20):
        samples, truth = gaussian(2000, 64, 100 + seed)
        ranks = sbc.rank_values(samples, truth, seed)[:, 0]
        for u in (ranks, sbc.central_values(ranks), sbc.tarp_values(samples, truth, seed=seed)):
            p_values.append(calibration_curve(u).p_value)
    assert sum(p < 0.05 for p in p_values) <= 8  # of 60, expected 3
    assert min(p_values) > 0.0005


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@pytest.mark.parametrize("spread", [1.0, 0.8])
def test_tarp_agrees_with_its_authors_package(metric: str, spread: float) -> None:
    samples, truth = gaussian(4000, 200, 7, spread)
    low, high = truth.aminmax(dim=0)
    references = low + (high - low) * torch.rand(
        4000, 2, generator=torch.Generator().manual_seed(8)
    )
    ours = sbc.tarp_values(samples, truth, references, metric=metric)
    coverage, level = tarp.get_tarp_coverage(
        samples.numpy(),
        truth.numpy(),
        references=((references - low) / (high - low)).numpy(),
        metric=metric,
        norm=True,
        num_alpha_bins=50,
    )
    share = np.array([float((ours <= c).double().mean()) for c in level])
    # the same distances: what is left is that ranks are spread over their steps of 1 / 201
    assert np.abs(share - coverage).max() < 0.01
    at_random = sbc.tarp_values(samples, truth, metric=metric, seed=9)
    other = np.array([float((at_random <= c).double().mean()) for c in level])
    assert np.abs(other - coverage).max() < 1.63 * math.sqrt(2 / 3000)  # Kolmogorov, 1 %


def test_a_report_of_an_exact_posterior_passes_and_of_a_narrow_one_fails(
    card: ProcessCard,
) -> None:
    good = calibration_report(known_posterior(card, 2000, seed=1, block=20))
    bad = calibration_report(known_posterior(card, 2000, seed=1, block=20, spread=0.8))
    assert good.p_value > 0.05
    assert bad.p_value < 0.01
    assert good.mass_names == ("chi20", "chi10")
    assert good.rank_curves["chi20"].n_groups == 100
    assert bad.ranks["chi10"].spread > 1 + 3 * bad.ranks["chi10"].spread_error
    shifted = calibration_report(known_posterior(card, 2000, seed=1, shift=15.0))
    assert shifted.ranks["chi10"].slope < -3 * shifted.ranks["chi10"].slope_error
    assert set(good.to_dict()) == {"p_value", "tarp", "ranks", "rank_curves", "central"}


def test_a_report_tests_the_joint_density_on_a_grid(card: ProcessCard) -> None:
    generator = torch.Generator().manual_seed(4)
    truth = 600 + 20 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    seen = truth + 20 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    centre, width = (seen + 600) / 2, math.sqrt(200)
    axis = torch.arange(500, 701, 4, dtype=torch.float64)
    samples = torch.zeros(16, 400, 8, dtype=torch.float64)
    noise = torch.randn(16, 400, 2, generator=generator, dtype=torch.float64)
    samples[..., [3, 7]] = centre + width * noise
    for factor, passes in ((1.0, True), (0.6, False)):
        parts = [-0.5 * ((axis - centre[:, [i]]) / (factor * width)).square() for i in (0, 1)]
        grid = MassGrid({"chi20": axis, "chi10": axis}, parts[0][:, :, None] + parts[1][:, None])
        report = calibration_report(
            Posterior(samples, card, masses=truth, mass_density=grid), seed=2
        )
        assert report.density is not None
        assert (report.density.p_value > 0.01) == passes


def test_rank_histograms_know_slope_and_spread() -> None:
    samples, truth = gaussian(4000, 64, 11, dim=1)
    flat = rank_histogram(sbc.rank_values(samples, truth)[:, 0])
    assert bool(((flat.density - 1).abs() < flat.band).all())
    narrow, truth = gaussian(4000, 64, 11, 0.7, dim=1)
    bent = rank_histogram(sbc.rank_values(narrow, truth)[:, 0])
    assert bent.spread > 1 + 5 * bent.spread_error
    assert bool(((bent.density - 1).abs() > bent.band).any())
    assert float(bent.density.mean()) == pytest.approx(1.0)


def test_coverage_in_cells_finds_where_a_posterior_is_wrong() -> None:
    generator = torch.Generator().manual_seed(12)
    masses = torch.rand(300, 2, generator=generator).double() * 100
    masses = masses.repeat_interleave(20, 0)
    u = torch.rand(6000, generator=generator, dtype=torch.float64)
    u = torch.where(masses[:, 0] > 50, u.sqrt(), u)  # contents come out too large: under-coverage
    found = coverage_map(u, masses, ("a", "b"), bins={"a": [0, 50, 100], "b": [0, 100]})
    assert found.coverage.shape == (2, 1)
    assert abs(float(found.pulls()[0, 0])) < 3
    assert float(found.coverage[1, 0]) == pytest.approx(0.68**2, abs=0.03)
    assert int(found.n_events.sum()) == 6000
    assert found.to_dict()["level"] == 0.68


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ShapeError, match="'samples' should have shape"):
        sbc.rank_values(torch.zeros(3, 4, 2), torch.zeros(4, 1))
    with pytest.raises(InputError, match="Unknown metric 'euclidian'"):
        sbc.tarp_values(torch.zeros(3, 4, 1), torch.rand(4, 1), metric="euclidian")
    with pytest.raises(InputError, match="None of the true values varies"):
        sbc.tarp_values(torch.zeros(3, 4, 1), torch.ones(4, 1))
    with pytest.raises(ShapeError, match="20 or more events"):
        calibration_curve(torch.rand(5))
    with pytest.raises(InputError, match="between 0 and 1: use the functions"):
        calibration_curve(torch.linspace(0, 2, 50))
    with pytest.raises(InputError, match="share one group"):
        calibration_curve(torch.rand(50), torch.zeros(50, dtype=torch.int64))
    with pytest.raises(InputError, match="'levels' should rise"):
        calibration_curve(torch.rand(50), levels=(0.5, 0.4))
    with pytest.raises(InputError, match="'level' should be between 0 and 1"):
        coverage_map(torch.rand(5), torch.rand(5, 2), ("a", "b"), level=68)
    with pytest.raises(InputError, match="has no probability"):
        sbc.density_values(torch.full((1, 3), -math.inf), torch.zeros(1))
