"""Samplers and densities of flows against Gaussians, where everything is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from massrecon.models.ddpm import NoiseSchedule
from massrecon.models.likelihood import flow_log_prob, velocity_and_divergence
from massrecon.models.noise import Draws
from massrecon.models.samplers import SOLVERS, NoiseLevels, count_levels

WIDTHS = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64)


def angles(n: int, sigma_max: float = 20.0, sigma_min: float = 0.001) -> list[float]:
    shares = [i / (n - 1) for i in range(n)] if n > 1 else [0.0]
    return [math.atan(sigma_max * (sigma_min / sigma_max) ** share) for share in shares]


def run(solver: str, evaluations: int, x: Tensor, seed: int = 0) -> Tensor:
    """Samples x_0 ~ N(0, WIDTHS^2) with the exact predictor."""
    times = angles(count_levels(solver, evaluations))
    levels = NoiseLevels([math.cos(t) for t in times], [math.sin(t) for t in times])
    calls = []

    def predict(x_t: Tensor, i: int) -> tuple[Tensor, Tensor]:
        calls.append(i)
        a, s = levels.at(i)
        variance = a**2 * WIDTHS**2 + s**2
        return a * WIDTHS**2 / variance * x_t, s / variance * x_t

    generator = torch.Generator().manual_seed(seed)
    drawn = SOLVERS[solver](
        predict, x, levels, lambda _: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    )
    assert len(calls) <= evaluations
    return drawn


def width_error(solver: str, evaluations: int) -> float:
    """Largest relative error of the widths: a deterministic path is linear in its start.

    The start is as wide as x_t is at the noisiest level, where some signal is left.
    """
    t = angles(1)[0]
    start = (math.cos(t) ** 2 * WIDTHS**2 + math.sin(t) ** 2).sqrt().unsqueeze(0)
    attained = run(solver, evaluations, start)[0]
    return float((attained / WIDTHS - 1).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2), ("heun", 2)])
def test_deterministic_solvers_converge_at_their_order(solver: str, order: int) -> None:
    coarse, fine = width_error(solver, 64), width_error(solver, 256)
    assert fine < coarse * 4**-order * 1.6
    assert fine < 0.03


def test_dpm_solver_needs_few_evaluations() -> None:
    assert width_error("dpm++", 20) < 0.04 < 0.1 < width_error("ddim", 20)


def test_ancestral_sampling_has_the_right_widths() -> None:
    start = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)).double()
    drawn = run("ancestral", 400, start)
    torch.testing.assert_close(drawn.std(dim=0) / WIDTHS, torch.ones(3).double(), rtol=0, atol=0.03)
    # the noise of the way is fresh: the start does not decide the draw
    assert (drawn * start).mean(dim=0).abs().max() < 0.1


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_one_level_gives_the_mean(solver: str) -> None:
    start = torch.ones(1, 3, dtype=torch.float64)
    t = angles(1)[0]
    a, s = math.cos(t), math.sin(t)
    mean = a * WIDTHS**2 / (a**2 * WIDTHS**2 + s**2)
    torch.testing.assert_close(run(solver, 1, start)[0], mean)


def gaussian_velocity(width: float) -> Callable[[Tensor, float], Tensor]:
    """The flow of x_t = cos t x_0 + sin t epsilon for x_0 ~ N(0, width^2)."""

    def velocity(x: Tensor, t: float) -> Tensor:
        a, s = math.cos(t), math.sin(t)
        return a * s * (1 - width**2) / (a**2 * width**2 + s**2) * x

    return velocity


def test_density_of_a_flow_converges_at_fourth_order() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1).expand(-1, 2)
    exact = torch.distributions.Normal(0.0, 0.4).log_prob(x).sum(dim=1)
    errors = []
    for steps in (8, 16, 32):
        times = [0.5 * math.pi * i / steps for i in range(steps + 1)]
        found = flow_log_prob(gaussian_velocity(0.4), x, times)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] / errors[1] > 10
    assert errors[1] / errors[2] > 10
    assert errors[2] < 1e-4


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    v, divergence = velocity_and_divergence(lambda y, t: (y @ matrix).sin() * t, x, 2.0)
    torch.testing.assert_close(v, 2 * (x @ matrix).sin())
    expected = 2 * ((x @ matrix).cos() * matrix.diagonal()).sum(dim=-1)
    torch.testing.assert_close(divergence, expected)


def test_schedule_of_steps_can_be_read_in_between() -> None:
    schedule = NoiseSchedule(1500, 1e-5, 0.02)
    times = schedule.log_ratio_times(10)
    for t in (0, 3, 700, 1499):
        signal, spread = schedule.factors(t)
        again = schedule.factors_at(math.log(spread / signal))
        assert again == pytest.approx((signal, spread, t), rel=1e-6, abs=1e-6)
    assert schedule.factors_at(times[0])[2] == pytest.approx(0, abs=1e-6)
    assert schedule.factors_at(times[-1])[2] == pytest.approx(1499)


def test_uniform_noise_is_uniform_and_inside() -> None:
    draws = Draws(3, torch.arange(400), torch.arange(50))
    u = draws.uniform(0, 3)
    assert u.shape == (50, 400, 3)
    assert 0 < float(u.min()) < 1e-3
    assert 0.999 < float(u.max()) < 1
    counts = torch.histc(u, 20, 0, 1)
    assert float(((counts - 3000).square() / 3000).sum()) < 45
    part = Draws(3, torch.arange(7, 9), torch.arange(40, 50)).uniform(0, 3)
    assert torch.equal(part, u[40:, 7:9])
