"""Background: shares without bias and with honest errors, on toys whose densities are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.container import Events
from massrecon.inference.background import (
    BackgroundRatio,
    extended_likelihood,
    interval_of,
    mixed,
    observables,
    share_profile,
)
from tests.conftest import ToyEvents

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


def test_the_profiled_share_is_unbiased_with_an_honest_interval() -> None:
    found, inside, masses = [], 0, []
    for seed in range(200):
        log_r, log_w = toy(36, 24, seed)
        profile = share_profile(log_r, log_w)
        found.append(profile.best)
        masses.append(float(GRID[profile.total.argmax()]))
        inside += profile.low <= 0.4 <= profile.high
    mean, spread = torch.tensor(found).mean(), torch.tensor(found).std()
    assert abs(float(mean) - 0.4) < 4 * float(spread) / math.sqrt(200)
    assert inside / 200 > 0.63  # the composition is fixed here: intervals are a little too wide
    assert abs(float(torch.tensor(masses).mean()) - 6) < 0.1


def test_background_pulls_the_masses_if_it_is_left_out() -> None:
    log_r, log_w = toy(30, 30, seed=3)
    without = float(GRID[log_r.clamp_min(-60).sum(0).argmax()])
    with_share = float(GRID[share_profile(log_r, log_w).total.argmax()])
    assert without < 5
    assert abs(with_share - 6) < 0.6


def test_a_constraint_narrows_and_draws_the_share() -> None:
    log_r, log_w = toy(12, 8, seed=1)
    free = share_profile(log_r, log_w)
    tight = share_profile(log_r, log_w, constraint=(0.8, 0.05))
    assert tight.high - tight.low < free.high - free.low
    assert abs(tight.best - 0.8) < 0.1
    assert float(free.log_likelihood.max()) == 0.0


def test_mixing_is_that_of_densities() -> None:
    log_r, log_w = toy(3, 2, seed=1)
    for share in (0.0, 0.3, 1.0):
        expected = ((1 - share) * log_r.exp() + share * log_w.exp()[:, None]).log()
        torch.testing.assert_close(mixed(log_r, log_w, share), expected)
    excluded = torch.full_like(log_r, -math.inf)
    torch.testing.assert_close(mixed(excluded, log_w, 0.5)[:, 0], log_w + math.log(0.5))


def test_what_no_event_allows_stays_excluded() -> None:
    log_r, log_w = toy(5, 5, seed=2)
    log_r[:, 3] = -math.inf
    assert float(share_profile(log_r, log_w).total[3]) == -math.inf
    rates = torch.full((len(GRID),), 5.0)
    assert float(extended_likelihood(log_r, log_w, rates, (5.0, 1.0))[3]) == -math.inf


def test_rates_tell_masses_apart_that_shapes_do_not() -> None:
    log_r, log_w = torch.zeros(10, len(GRID)).double(), torch.full((10,), -3.0).double()
    rates = 20 * torch.exp(-0.2 * GRID)
    total = extended_likelihood(log_r, log_w, rates, (0.5, 0.1))
    best = float(GRID[total.argmax()])
    assert best == pytest.approx(math.log(20 / 9.5) / 0.2, abs=0.5)
    free = extended_likelihood(log_r, log_w, rates, (0.5, 0.1), strengths=(0.5, 1, 2, 4))
    assert float(free.max() - free.min()) < float(total.max() - total.min())
    nothing = extended_likelihood(log_r[:0], log_w[:0], rates, (0.5, 0.0))
    torch.testing.assert_close(nothing, -rates - 0.5)


def test_intervals_of_a_parabola_are_exact() -> None:
    x = torch.linspace(0, 1, 21, dtype=torch.float64)
    best, low, high = interval_of(x, -0.5 * ((x - 0.43) / 0.11).square())
    assert best == pytest.approx(0.43)
    assert low == pytest.approx(0.32, abs=0.005)
    assert high == pytest.approx(0.54, abs=0.005)
    assert interval_of(x, -5 * x)[1] == 0.0


@pytest.fixture(scope="module")
def samples(toy_events: ToyEvents) -> tuple[Events, Events]:
    """Signal, and a background of the same slots with half the energy in its jets."""
    signal, other = toy_events(700, seed=1), toy_events(700, seed=2)
    arrays = other.to_arrays()
    jets = list(other.slots_of("jet"))
    arrays["p4"][:, jets] *= 0.7
    return signal, Events.from_arrays(other.card, arrays)


def test_odds_are_calibrated_and_events_are_judged_by_strangers(
    samples: tuple[Events, Events],
) -> None:
    signal, background = samples
    ratio = BackgroundRatio.fit(signal, {"soft": background}, seed=1)
    assert 0.7 < ratio.separation < 0.99
    own, other = ratio.signal, ratio.backgrounds["soft"]
    # the mean of p(y | b) / p(y | s) over signal is the part of b where s can be, jets above 25 GeV
    assert 0.6 < float(own.exp().mean()) < 1.1
    together = torch.cat([own, other])
    is_background = torch.arange(len(together)) >= len(own)
    for low, high in ((-3, -0.5), (-0.5, 0.5), (0.5, 3)):
        here = (together > low) & (together <= high)
        claimed = torch.sigmoid(together[here]).mean()
        seen = is_background[here].double().mean()
        assert float(claimed - seen) == pytest.approx(0, abs=0.08)
    assert float(ratio(background).mean()) > float(other.mean())  # seen in training: too sure


def test_observables_are_named_and_know_what_is_missing(samples: tuple[Events, Events]) -> None:
    values, names = observables(samples[0])
    assert values.shape == (700, len(names))
    column = names.index("jet5_pt")
    missing = ~samples[0].present[:, samples[0].card.slots.index("jet5")]
    assert torch.equal(values[:, column].isnan(), missing)
    mass = values[:, names.index("photon_mass")]
    assert float(mass.median()) == pytest.approx(125, abs=3)
    assert not bool(values[:, names.index("sum_pt")].isnan().any())


def test_wrong_arguments_are_named(samples: tuple[Events, Events]) -> None:
    signal, background = samples
    with pytest.raises(InputError, match="'backgrounds' is empty"):
        BackgroundRatio.fit(signal, {})
    with pytest.raises(InputError, match="needs 100 events"):
        BackgroundRatio.fit(signal[:10], {"b": background})
    with pytest.raises(InputError, match="a number of events for 'b'"):
        BackgroundRatio.fit(signal, {"b": background}, yields={})
    with pytest.raises(InputError, match="'share' should be in"):
        mixed(torch.zeros(1, 2), torch.zeros(1), 1.5)
    with pytest.raises(ShapeError, match="'log_background'"):
        share_profile(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(InputError, match="three or more rising values"):
        share_profile(torch.zeros(3, 2), torch.zeros(3), shares=(0.5, 0.1, 0.2))
    with pytest.raises(InputError, match="should not be negative"):
        extended_likelihood(torch.zeros(1, 2), torch.zeros(1), torch.tensor([-1.0, 1.0]), (1, 1))
