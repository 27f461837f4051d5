"""Unfolding: a linear-Gaussian problem, where bias and remedy are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference.unfolding import Unfolded, binned_truth, information, unfold

N_EVENTS, N_DRAWS = 3000, 60
PRIOR_MEAN, PRIOR_WIDTH, RESOLUTION = 0.0, 1.0, 0.6
TRUE_MEAN, TRUE_WIDTH = 0.6, 0.8
EDGES = torch.linspace(-2.5, 2.5, 21)
PULL = RESOLUTION**2 / (PRIOR_WIDTH**2 + RESOLUTION**2)
"""Share of the way from the measurement back to the prior."""


def problem(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of the exact posterior ``(S, N)``, training values, true values."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    prior = PRIOR_MEAN + PRIOR_WIDTH * normal(10_000)
    truth = TRUE_MEAN + TRUE_WIDTH * normal(N_EVENTS)
    measured = truth + RESOLUTION * normal(N_EVENTS)
    centre = measured + PULL * (PRIOR_MEAN - measured)
    samples = centre + math.sqrt(PULL) * PRIOR_WIDTH * normal(N_DRAWS, N_EVENTS)
    return samples, prior, truth


@pytest.fixture(scope="module")
def unfolded() -> Unfolded:
    samples, prior, _ = problem()
    return unfold(samples, prior, EDGES, iterations=8)


def distance(found: Unfolded, iteration: int) -> float:
    """Bias of the mean, in standard errors."""
    truth, _ = binned_truth(problem()[2], EDGES)
    mean, error = found.mean(iteration)
    return abs(mean - float(truth @ found.centres)) / error


def test_without_iteration_the_bias_is_the_known_pull_towards_the_prior(
    unfolded: Unfolded,
) -> None:
    mean, error = unfolded.mean(0)
    expected = TRUE_MEAN + PULL * (PRIOR_MEAN - TRUE_MEAN)
    assert mean == pytest.approx(expected, abs=4 * error + 0.005)  # bins cost a little
    assert distance(unfolded, 0) > 10


def test_iterations_remove_the_bias_of_mean_and_shape(unfolded: Unfolded) -> None:
    truth, _ = binned_truth(problem()[2], EDGES)
    assert distance(unfolded, -1) < 3
    deviations = [float((share - truth).abs().sum()) for share in unfolded.share]
    assert min(deviations) < 0.6 * deviations[0]  # the rest are fluctuations, which errors cover
    assert unfolded.chi_square(truth, -1) < 3 < 20 < unfolded.chi_square(truth, 0)


def with_simulation(distort: float = 1.0, seed: int = 1) -> Unfolded:
    """Unfolds with posteriors that are too wide by a factor, the simulated ones as well."""
    samples, prior, _ = problem(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    truth = PRIOR_MEAN + PRIOR_WIDTH * torch.randn(6000, generator=generator).double()
    measured = truth + RESOLUTION * torch.randn(6000, generator=generator).double()
    centre = measured + PULL * (PRIOR_MEAN - measured)
    noise = torch.randn(N_DRAWS, 6000, generator=generator).double()
    draws = centre + math.sqrt(PULL) * PRIOR_WIDTH * noise
    wider = [x.mean(0) + distort * (x - x.mean(0)) for x in (samples, draws)]
    simulated = (wider[1], truth, torch.ones(6000))
    return unfold(wider[0], prior, EDGES, iterations=40, simulated=simulated, n_bootstrap=20)


def test_it_stops_where_reweighted_simulation_looks_like_the_measurement() -> None:
    found = with_simulation()
    assert found.folded is not None
    dof = len(EDGES) - 2
    assert found.folded[0] > 5 * dof
    assert found.folded[found.stop] < 2 * dof
    assert 1 <= found.stop < 15
    assert distance(found, found.stop) < 3


def test_imperfect_posteriors_are_not_iterated_forever() -> None:
    truth, _ = binned_truth(problem()[2], EDGES)
    found = with_simulation(distort=1.15)
    off = [float((share - truth).abs().sum()) for share in found.share]
    assert off[found.stop] < 0.5 * off[-1]
    assert off[found.stop] < off[0]


def test_without_simulated_events_it_says_so(unfolded: Unfolded) -> None:
    with pytest.raises(InputError, match="pass draws of simulated events"):
        _ = unfolded.stop


def test_information_is_the_known_share() -> None:
    samples, _, _ = problem()
    truth_variance = TRUE_WIDTH**2 + RESOLUTION**2
    between = (1 - PULL) ** 2 * truth_variance
    expected = between / (between + PULL * PRIOR_WIDTH**2)
    assert information(samples) == pytest.approx(expected, abs=0.02)


def test_errors_are_those_of_the_sample_size() -> None:
    samples, prior, _ = problem()
    whole = unfold(samples, prior, EDGES, iterations=2)
    part = unfold(samples[:, ::4], prior[::4], EDGES, iterations=2)
    for iteration in range(3):
        ratio = part.mean(iteration)[1] / whole.mean(iteration)[1]
        assert ratio == pytest.approx(2.0, rel=0.25)


def test_error_of_the_mean_covers_its_scatter() -> None:
    found = [unfold(*problem(seed)[:2], EDGES, iterations=3).mean(3) for seed in range(8)]
    scatter = torch.tensor([mean for mean, _ in found]).std()
    assert 0.4 < float(scatter) / (sum(error for _, error in found) / len(found)) < 1.8


def test_right_prior_is_a_fixed_point() -> None:
    samples, prior, _ = problem()
    found = unfold(samples, prior, EDGES, iterations=1, n_bootstrap=2)
    weights = found.ratio(prior)
    again, _ = binned_truth(prior, EDGES, weights)
    torch.testing.assert_close(again, found.share[1])
    assert weights.min() >= 0


def test_weights_count_as_copies() -> None:
    samples, prior, _ = problem()
    twice = unfold(samples[:, [0, 1, 1]], prior[:1000], EDGES, n_bootstrap=2)
    weighted = unfold(
        samples[:, :2], prior[:1000], EDGES, n_bootstrap=2, weight=torch.tensor([1.0, 2.0])
    )
    torch.testing.assert_close(twice.share, weighted.share)
    copied = unfold(samples[:, :9], prior[[0, *range(1000)]], EDGES, n_bootstrap=2)
    heavy = torch.ones(1000)
    heavy[0] = 2.0
    found = unfold(samples[:, :9], prior[:1000], EDGES, n_bootstrap=2, prior_weight=heavy)
    torch.testing.assert_close(copied.share, found.share)


def test_bins_that_training_never_fills_stay_empty() -> None:
    samples, prior, _ = problem()
    found = unfold(samples[:, :500], prior.clamp_max(0.9), EDGES, iterations=1)
    assert float(found.share[0][EDGES[:-1] >= 1.0].sum()) > 0
    assert float(found.share[1][EDGES[:-1] >= 1.0].sum()) == 0


def test_wrong_arguments_are_named() -> None:
    samples, prior, _ = problem()
    with pytest.raises(ShapeError, match="samples"):
        unfold(samples[0], prior, EDGES)
    with pytest.raises(InputError, match="edges"):
        unfold(samples, prior, [1.0, 0.0, 2.0])
    with pytest.raises(InputError, match="iterations"):
        unfold(samples, prior, EDGES, iterations=-1)
    with pytest.raises(ShapeError, match="prior_weight"):
        unfold(samples, prior, EDGES, prior_weight=torch.ones(3))
    with pytest.raises(InputError, match="'weight'"):
        unfold(samples, prior, EDGES, weight=torch.zeros(N_EVENTS))
    with pytest.raises(InputError, match="finite"):
        unfold(samples / 0.0, prior, EDGES)
