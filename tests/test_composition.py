"""What samples are made of: shares without bias and with honest errors, on toys."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import massrecon as mr
from massrecon.errors import InputError, ShapeError
from massrecon.inference.composition import (
    LOGITS,
    BackgroundShare,
    ExpectedRates,
    Profile,
    at_logit,
    interval_of,
    mixed,
    share_table,
)
from massrecon.inference.likelihood import MassLikelihood
from massrecon.inference.prior import TrainingPrior
from massrecon.kinematics.mixture_scheme import MassRegion

GRID = torch.linspace(0, 10, 41, dtype=torch.float64)


def toy(n_signal: int, n_background: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signal y ~ N(m, 1) at m = 6, background exponential; flat masses in (0, 10) were trained on.

    Returns log r and log w, both relative to the density of all training signal, 1/10.
    """
    generator = torch.Generator().manual_seed(seed)
    signal = 6 + torch.randn(n_signal, generator=generator, dtype=torch.float64)
    dice = torch.rand(n_background, generator=generator, dtype=torch.float64)
    y = torch.cat([signal, -3 * torch.log1p(-dice * (1 - math.exp(-10 / 3)))])
    log_signal = -0.5 * (y[:, None] - GRID).square() - 0.5 * math.log(2 * math.pi)
    log_background = -y / 3 - math.log(3 * (1 - math.exp(-10 / 3)))
    log_sample = math.log(0.1)
    return log_signal - log_sample, log_background - log_sample


def profiled(
    log_r: Tensor, log_w: Tensor, constraint: tuple[float, float] | None = None
) -> Profile:
    share = BackgroundShare(log_background=log_w, constraint=constraint)
    return share.profile(share_table(log_r, log_w), GRID[:, None], float(len(log_r)))


def with_rates(log_r: Tensor, log_w: Tensor, rates: Tensor, b: tuple[float, float]) -> Tensor:
    known = ExpectedRates(log_background=log_w, signal=lambda _: rates, background=b)
    return known.profile(share_table(log_r, log_w), GRID[:, None], float(len(log_r))).total


def test_the_profiled_share_is_unbiased_with_an_honest_interval() -> None:
    found, inside, masses = [], 0, []
    for seed in range(100):
        profile = profiled(*toy(36, 24, seed))
        best, low, high = profile.found["share of background"]
        found.append(best)
        masses.append(float(GRID[profile.total.argmax()]))
        inside += low <= 0.4 <= high
    mean, spread = torch.tensor(found).mean(), torch.tensor(found).std()
    assert abs(float(mean) - 0.4) < 4 * float(spread) / math.sqrt(100)
    assert inside / 100 > 0.6  # the composition is fixed here: intervals are a little too wide
    assert abs(float(torch.tensor(masses).mean()) - 6) < 0.1


def test_background_pulls_the_masses_if_it_is_left_out() -> None:
    log_r, log_w = toy(30, 30, seed=3)
    without = float(GRID[log_r.clamp_min(-60).sum(0).argmax()])
    with_share = float(GRID[profiled(log_r, log_w).total.argmax()])
    assert without < 5
    assert abs(with_share - 6) < 0.6


def test_a_constraint_narrows_and_draws_the_share() -> None:
    log_r, log_w = toy(12, 8, seed=1)
    free, tight = (
        profiled(log_r, log_w, c).found["share of background"] for c in (None, (0.8, 0.05))
    )
    assert tight[2] - tight[1] < free[2] - free[1]
    assert abs(tight[0] - 0.8) < 0.1


def test_mixing_is_that_of_densities() -> None:
    log_r, log_w = toy(3, 2, seed=1)
    for share in (0.0, 0.3, 1.0):
        expected = ((1 - share) * log_r.exp() + share * log_w.exp()[:, None]).log()
        torch.testing.assert_close(mixed(log_r, log_w, share), expected)
    excluded = torch.full_like(log_r, -math.inf)
    torch.testing.assert_close(mixed(excluded, log_w, 0.5)[:, 0], log_w + math.log(0.5))


def test_between_the_shares_of_the_table_nothing_is_lost() -> None:
    log_r, log_w = toy(40, 20, seed=4)
    table = share_table(log_r, log_w)
    for share in (0.003, 0.02, 0.31, 0.5, 0.97):
        logit = torch.full((len(GRID),), math.log(share / (1 - share)), dtype=torch.float64)
        exact = mixed(log_r.clamp_min(-60), log_w, share).sum(0)
        torch.testing.assert_close(at_logit(table, logit), exact, atol=2e-3, rtol=0)
    halves = share_table(log_r[::2], log_w[::2]) + share_table(log_r[1::2], log_w[1::2])
    torch.testing.assert_close(halves, table)
    doubled = share_table(log_r, log_w, weight=torch.full((60,), 2.0).double())
    torch.testing.assert_close(doubled, 2 * table)


def test_what_no_event_allows_stays_excluded() -> None:
    log_r, log_w = toy(5, 5, seed=2)
    log_r[:, 3] = -math.inf
    assert float(profiled(log_r, log_w).total[3]) == -math.inf
    rates = torch.full((len(GRID),), 5.0).double()
    total = with_rates(log_r, log_w, rates, (5.0, 1.0))
    assert float(total[3]) == -math.inf
    assert bool(total[4:].isfinite().all())


def test_rates_are_those_of_the_extended_likelihood() -> None:
    log_r, log_w = toy(8, 6, seed=5)
    rates = 20 * torch.exp(-0.2 * GRID)
    density = torch.logaddexp(log_r.clamp_min(-60) + rates.log(), log_w[:, None] + math.log(4.0))
    expected = density.sum(0) - rates - 4.0
    torch.testing.assert_close(
        with_rates(log_r, log_w, rates, (4.0, 0.0)), expected, atol=2e-3, rtol=0
    )
    looser = with_rates(log_r, log_w, rates, (4.0, 1.0))
    assert bool((looser >= expected - 2e-3).all())


def test_rates_tell_masses_apart_that_shapes_do_not() -> None:
    log_r, log_w = torch.zeros(10, len(GRID)).double(), torch.full((10,), -3.0).double()
    total = with_rates(log_r, log_w, 20 * torch.exp(-0.2 * GRID), (0.5, 0.1))
    best = float(GRID[total.argmax()])
    assert best == pytest.approx(math.log(20 / 9.5) / 0.2, abs=0.5)
    vague = ExpectedRates(
        log_background=log_w, background=(0.5, 0.1), signal_uncertainty=1.0,
        signal=lambda points: 20 * torch.exp(-0.2 * points[:, 0]),
    ).profile(share_table(log_r, log_w), GRID[:, None], 10.0)  # fmt: skip
    assert float(vague.total.max() - vague.total.min()) < float(total.max() - total.min())


def test_a_measurement_knows_its_background() -> None:
    log_r, log_w = toy(40, 20, seed=3)
    region = MassRegion((0.0,), (10.0,), ())
    table = MassLikelihood(
        axes={"m": GRID}, inside=torch.ones(len(GRID), dtype=torch.bool),
        log_ratio=log_r, prior=TrainingPrior.flat(("m",), region),
    )  # fmt: skip
    blind = mr.measure(table, outliers=0.0)
    found = mr.measure(table, background=BackgroundShare(log_background=log_w))
    assert not blind.contains(torch.tensor([6.0]), 0.95)
    assert found.contains(torch.tensor([6.0]), 0.95)
    assert found.goodness.halves_p is not None
    assert found.goodness.halves_p > 0.01
    best, low, high = found.composition["share of background"]
    assert low < 1 / 3 < high
    assert found.to_dict()["composition"]["share of background"] == [best, low, high]
    assert not blind.composition
    half = found.interval(0.68).diff(dim=1)
    rates = ExpectedRates(
        log_background=log_w, background=(20.0, 4.0),
        signal=lambda points: 40 * torch.exp(-1.0 * (points[:, 0] - 6)),
    )  # fmt: skip
    sharper = mr.measure(table, background=rates)
    assert float(sharper.interval(0.68).diff(dim=1)) < float(half)
    assert sharper.contains(torch.tensor([6.0]), 0.95)
    assert sharper.composition["background events"][0] == pytest.approx(20, abs=4)


def test_the_first_events_have_their_part_of_the_rates() -> None:
    log_r, log_w = toy(12, 8, seed=7)
    points, rates = GRID[:, None], 20 * torch.exp(-0.2 * GRID)
    whole = ExpectedRates(log_background=log_w, signal=lambda _: rates, background=(8.0, 2.0))
    some = whole.first(5)
    table = share_table(log_r[:5], log_w[:5])
    expected = whole.profile(table, points, 5.0, part=0.25).total
    found = some.profile(table, points, 5.0).total
    # the constraint of the background stays as tight in units of its error
    assert float((found - expected).abs().max()) < 1.0
    assert some.background == (2.0, 0.5)
    assert len(BackgroundShare(log_background=log_w).first(5).log_background) == 5


def test_intervals_of_a_parabola_are_exact() -> None:
    x = torch.linspace(0, 1, 21, dtype=torch.float64)
    best, low, high = interval_of(x, -0.5 * ((x - 0.43) / 0.11).square())
    assert best == pytest.approx(0.43)
    assert low == pytest.approx(0.32, abs=0.005)
    assert high == pytest.approx(0.54, abs=0.005)
    assert interval_of(x, -5 * x)[1] == 0.0


def test_wrong_arguments_are_named() -> None:
    log_w = torch.zeros(3).double()
    with pytest.raises(InputError, match="'share' should be in"):
        mixed(torch.zeros(1, 2), torch.zeros(1), 1.5)
    with pytest.raises(ShapeError, match="'log_background'"):
        share_table(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(InputError, match="a share in"):
        BackgroundShare(log_background=log_w, constraint=(1.2, 0.1))
    with pytest.raises(InputError, match="a positive number of events"):
        ExpectedRates(log_background=log_w, signal=lambda p: p[:, 0], background=(0.0, 1.0))
    negative = ExpectedRates(log_background=log_w, signal=lambda p: -p[:, 0], background=(1.0, 1.0))
    with pytest.raises(InputError, match="should not be negative"):
        negative.profile(torch.zeros(len(LOGITS), 2), torch.ones(2, 1), 3.0)


def counted(n_signal: float, n_background: float, k: int = 1) -> tuple[Tensor, Tensor]:
    """Events that are seen to be signal or background, k times as many as said, at one mass."""
    log_r = torch.tensor([[30.0]] * int(k * n_signal) + [[-30.0]] * int(k * n_background)).double()
    return log_r, -log_r[:, 0]


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_interval_of_a_share_is_that_of_counting_at_any_number_of_events(k: int) -> None:
    log_r, log_w = counted(60, 40, k)
    share = BackgroundShare(log_background=log_w)
    profile = share.profile(share_table(log_r, log_w), GRID[:1, None], 100.0 * k)
    best, low, high = profile.found["share of background"]
    error = math.sqrt(0.4 * 0.6 / (100 * k))
    assert best == pytest.approx(0.4, abs=0.1 * error)
    assert (high - low) / 2 == pytest.approx(error, rel=0.05)
    exact = 100 * k * (0.4 * math.log(0.4) + 0.6 * math.log(0.6)) + 30.0 * 100 * k
    assert float(profile.total[0]) == pytest.approx(exact, abs=0.02 + 2e-3 * k)


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_profile_over_rates_has_no_steps(k: int) -> None:
    # background known to 30 % beforehand, and counted much better
    log_r, log_w = counted(10, 100, k)
    expected = torch.linspace(5.0, 15.0, 41, dtype=torch.float64) * k
    known = ExpectedRates(
        log_background=log_w, signal=lambda _: expected, background=(100.0 * k, 30.0 * k)
    )
    table = share_table(log_r.expand(-1, 41), log_w)
    profile = known.profile(table, GRID[:41, None], 110.0 * k)
    # signal and background are told apart: the masses see the Poisson probability of 10 k events
    exact = 10 * k * expected.log() - expected
    off = (profile.total - exact) - (profile.total - exact).mean()
    assert float(off.abs().max()) < 0.02 + 1e-3 * k
    best, low, high = profile.found["background events"]
    error = 1 / math.sqrt(1 / (100 * k) + 1 / (30 * k) ** 2)
    assert best == pytest.approx(100 * k, abs=0.1 * error)
    assert (high - low) / 2 == pytest.approx(error, rel=0.05)


def test_an_uncertain_signal_rate_is_profiled_without_steps() -> None:
    log_r, log_w = counted(1000, 100)
    expected = torch.linspace(700.0, 1300.0, 41, dtype=torch.float64)
    known = ExpectedRates(
        log_background=log_w, signal=lambda _: expected, background=(100.0, 0.0),
        signal_uncertainty=0.3,
    )  # fmt: skip
    total = known.profile(share_table(log_r.expand(-1, 41), log_w), GRID[:41, None], 1100.0).total
    pull = (1000 / expected).log() / math.log(1.3)
    off = total + 0.5 * pull.square()  # the rate follows the count, at the cost of its pull
    assert float((off - off.mean()).abs().max()) < 0.05
