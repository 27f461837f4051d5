"""Samplers against Gaussians, whose best noise prediction is known in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_score
from torch import Tensor

from massrecon.errors import InputError
from massrecon.models.ddpm import (
    Denoiser,
    NoiseSchedule,
    ancestral_sample,
    sinusoidal_embedding,
)
from massrecon.models.noise import indexed_normal
from massrecon.models.samplers import NoiseLevels, ddim

MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
ROOT = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.2, 0.3, 0.3]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
N_DRAWS = 20_000


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(1500, 1e-5, 0.02)


def exact_predictor(schedule: NoiseSchedule, error: float = 0.0) -> Callable[[Tensor, int], Tensor]:
    """E[noise | x_t] for x_0 ~ N(MEAN, COVARIANCE), plus an error in units of the noise."""

    def predict(x_t: Tensor, t: int) -> Tensor:
        alpha_bar = schedule.alphas_bar[t]
        total = alpha_bar * COVARIANCE + (1 - alpha_bar) * torch.eye(3, dtype=torch.float64)
        residual = x_t - alpha_bar.sqrt() * MEAN
        noise = (1 - alpha_bar).sqrt() * torch.linalg.solve(total, residual.T).T
        return noise + error

    return predict


def ddim_sample(
    predict_noise: Callable[[Tensor, int], Tensor],
    x_last: Tensor,
    schedule: NoiseSchedule,
    steps: int,
) -> Tensor:
    visited = schedule.ddim_steps(steps)
    factors = [schedule.factors(t) for t in visited]

    def predict(x_t: Tensor, i: int) -> tuple[Tensor, Tensor]:
        signal, spread = factors[i]
        noise = predict_noise(x_t, visited[i])
        return (x_t - spread * noise) / signal, noise

    return ddim(predict, x_last, NoiseLevels(*zip(*factors, strict=True)), lambda _: x_last)


def start(seed: int, n: int = N_DRAWS) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), generator


def draw(schedule: NoiseSchedule, solver: str, error: float = 0.0, n: int = N_DRAWS) -> Tensor:
    x_last, generator = start(1, n)
    predict = exact_predictor(schedule, error)
    if solver == "ancestral":
        return ancestral_sample(
            predict,
            x_last,
            schedule,
            lambda t: torch.randn(x_last.shape, generator=generator, dtype=torch.float64),
        )
    return ddim_sample(predict, x_last, schedule, steps=250)


def truth(n: int) -> Tensor:
    return MEAN + start(2, n)[0] @ ROOT.T


def c2st(first: Tensor, second: Tensor) -> float:
    """Cross-validated AUC of a classifier that tells the samples apart; 0.5 if it cannot."""
    values = torch.cat([first, second]).numpy()
    labels = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).numpy()
    classifier = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    return float(cross_val_score(classifier, values, labels, cv=4, scoring="roc_auc").mean())


def test_schedule_has_the_published_values(schedule: NoiseSchedule) -> None:
    assert len(schedule) == 1500
    assert schedule.betas[0].item() == pytest.approx(1e-5)
    assert schedule.betas[-1].item() == pytest.approx(0.02)
    assert schedule.alphas_bar.dtype == torch.float64
    # PHYSICS: alpha_bar_50 = 0.9833, alpha_bar_1500 = 3e-7, 45 % of the steps below 0.01
    assert schedule.alphas_bar[49].item() == pytest.approx(0.9833, abs=2e-4)
    assert schedule.alphas_bar[-1].item() == pytest.approx(3e-7, rel=0.1)
    assert (schedule.alphas_bar < 0.01).double().mean().item() == pytest.approx(0.45, abs=0.01)


def test_tables_follow_the_recurrence(schedule: NoiseSchedule) -> None:
    product = 1.0
    for t, beta in enumerate(schedule.betas.tolist()):
        product *= 1 - beta
        assert schedule.alphas_bar[t].item() == pytest.approx(product, rel=1e-12)
    torch.testing.assert_close(
        schedule.signal.double() ** 2 + schedule.spread.double() ** 2,
        torch.ones(1500, dtype=torch.float64),
    )


def test_add_noise_has_the_right_moments(schedule: NoiseSchedule) -> None:
    noise = start(3)[0].float()
    t = torch.full((N_DRAWS,), 400)
    x_t = schedule.add_noise(torch.ones(N_DRAWS, 3), t, noise)
    alpha_bar = schedule.alphas_bar[400].item()
    assert x_t.mean().item() == pytest.approx(alpha_bar**0.5, abs=0.02)
    assert x_t.var().item() == pytest.approx(1 - alpha_bar, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 999, 1499, 1500])
def test_ddim_steps_fall_from_the_last_step(schedule: NoiseSchedule, steps: int) -> None:
    visited = schedule.ddim_steps(steps)
    assert len(visited) == steps
    assert visited[0] == 1499
    assert visited[-1] >= 0
    assert all(later < earlier for earlier, later in itertools.pairwise(visited))
    if steps > 1:
        assert visited[-1] == 0


@pytest.mark.parametrize("steps", [0, 1501])
def test_ddim_steps_out_of_range(schedule: NoiseSchedule, steps: int) -> None:
    with pytest.raises(InputError, match="between 1 and 1500"):
        schedule.ddim_steps(steps)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim_ends_exactly_at_a_known_point(schedule: NoiseSchedule, steps: int) -> None:
    """For a target that is one point, the predicted x_0 is that point at every step."""

    def predict(x_t: Tensor, t: int) -> Tensor:
        alpha_bar = schedule.alphas_bar[t]
        return (x_t - alpha_bar.sqrt() * MEAN) / (1 - alpha_bar).sqrt()

    draws = ddim_sample(predict, start(4, 100)[0], schedule, steps)
    torch.testing.assert_close(draws, MEAN.expand(100, 3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_samplers_reproduce_a_gaussian(schedule: NoiseSchedule, solver: str) -> None:
    draws = draw(schedule, solver)
    torch.testing.assert_close(draws.mean(0), MEAN, rtol=0, atol=0.03)
    torch.testing.assert_close(draws.T.cov(), COVARIANCE, rtol=0, atol=0.03)
    assert c2st(draws[:8000], truth(8000)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_a_broken_predictor_is_caught(schedule: NoiseSchedule, solver: str) -> None:
    draws = draw(schedule, solver, error=0.1, n=8000)
    assert not torch.allclose(draws.mean(0), MEAN, rtol=0, atol=0.03)
    assert c2st(draws, truth(8000)) > 0.53


def test_fifty_ddim_steps_keep_the_width_of_narrow_gaussians(schedule: NoiseSchedule) -> None:
    for width in (1.0, 0.5, 0.2):

        def predict(x_t: Tensor, t: int, width: float = width) -> Tensor:
            alpha_bar = schedule.alphas_bar[t]
            return (1 - alpha_bar).sqrt() * x_t / (alpha_bar * width**2 + 1 - alpha_bar)

        one = torch.ones(1, 1, dtype=torch.float64)
        # the path is linear in its start, so one point gives the width exactly
        attained = ddim_sample(predict, one, schedule, 50).item()
        assert 0.94 * width < attained < 1.01 * width


def test_denoiser_equals_plain_concatenation() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(n_targets=8, dim=16, hidden=24, layers=3)
    x_t, context, t = torch.randn(5, 8), torch.randn(5, 16), torch.tensor([0, 3, 70, 3, 1499])
    embedded = denoiser.time_mlp(sinusoidal_embedding(t, 16))
    joined = torch.cat([embedded, denoiser.context_mlp(context), x_t], dim=1)
    expected = denoiser.rest(denoiser.first(joined))
    shares = denoiser.embed_time(t), denoiser.embed_context(context)
    torch.testing.assert_close(denoiser(x_t, *shares), expected, rtol=1e-5, atol=1e-6)


def test_published_denoiser_input_is_520_wide() -> None:
    assert Denoiser(n_targets=8, dim=256, hidden=512, layers=3).first.weight.shape == (512, 520)


def test_time_embedding_tells_all_steps_apart() -> None:
    embedded = sinusoidal_embedding(torch.arange(1500), 128)
    assert embedded.shape == (1500, 128)
    distance = torch.cdist(embedded, embedded) + 10 * torch.eye(1500)
    assert distance.min() > 0.1


def test_indexed_normal_is_standard_normal() -> None:
    event = torch.arange(2000)
    x = torch.cat([indexed_normal(5, step, event, event * 0 + step, 7) for step in range(30)])
    n = len(x)
    torch.testing.assert_close(x.mean(0), torch.zeros(7), rtol=0, atol=4 * n**-0.5)
    torch.testing.assert_close(x.T.cov(), torch.eye(7), rtol=0, atol=6 * n**-0.5)
    fourth = x.pow(4).mean().item()
    assert fourth == pytest.approx(3.0, abs=4 * (96 / x.numel()) ** 0.5)
    neighbours = (x[1:] * x[:-1]).mean().item()
    assert abs(neighbours) < 4 * x.numel() ** -0.5


def test_indexed_normal_depends_on_its_indices_only() -> None:
    event, draws = torch.arange(10), torch.arange(4).unsqueeze(1)
    all_rows = indexed_normal(1, 9, event, draws, 8)
    assert all_rows.shape == (4, 10, 8)
    torch.testing.assert_close(all_rows[2:, 3:5], indexed_normal(1, 9, event[3:5], draws[2:], 8))
    for other in (
        indexed_normal(2, 9, event, draws, 8),
        indexed_normal(1, 8, event, draws, 8),
        indexed_normal(1, 9, event + 1, draws, 8),
        indexed_normal(1, 9, event, draws + 1, 8),
    ):
        assert (all_rows != other).float().mean() > 0.99
