"""Judging a model on disturbed events: differences, their errors, and the power of the alarm."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.likelihood import MassLikelihood
from massrecon.inference.mixture import mixture_for
from massrecon.inference.novelty import Reference
from massrecon.inference.posterior import Posterior
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.robustness import (
    PARTS,
    SingleEvents,
    alarm_power,
    alarms,
    change,
    likelihoods,
    mean_values,
    single_events,
)
from tests.conftest import ToyEvents

WIDTH = 40.0  # [GeV] of every posterior
N, PER_POINT = 2000, 20


def gaussian_posterior(card: ProcessCard, seed: int, shift: float = 0.0) -> Posterior:
    """Calibrated posteriors of width 40 GeV at 100 mass points, all moved by `shift`."""
    generator = torch.Generator().manual_seed(seed)
    points = 300 + 200 * torch.rand(N // PER_POINT, 2, generator=torch.Generator().manual_seed(1))
    truth = points.double().repeat_interleave(PER_POINT, dim=0)
    seen = truth + WIDTH * torch.randn(N, 2, generator=generator)
    draws = seen + shift + WIDTH * torch.randn(48, N, 2, generator=generator)
    samples = torch.zeros(48, N, 8, dtype=torch.float64)
    samples[..., [3, 7]] = draws.double()
    return Posterior(samples, card, masses=truth)


def test_calibrated_posteriors_are_found_calibrated(card: ProcessCard) -> None:
    found = mean_values(single_events(gaussian_posterior(card, 1)))
    expected = float(torch.erf(torch.tensor(30 / (2**0.5 * WIDTH))))
    for quantity, truth in (("median", expected), ("covered", 0.68), ("bias", 0.0)):
        value, error = found[quantity].unbind(-1)
        assert ((value - truth).abs() < 4 * error).all(), quantity
    # a window of 48 draws is a little worse than the best one, and knows it
    value, error = (found["window"] - found["predicted"]).unbind(-1)
    assert (value.abs() < 4 * found["window"][:, 1]).all()
    assert (found["window"][:, 0] > expected - 0.06).all()


def test_errors_are_those_of_independent_samples(card: ProcessCard) -> None:
    values = [mean_values(single_events(gaussian_posterior(card, s)))["bias"] for s in range(5)]
    spread = torch.stack([v[:, 0] for v in values]).std()
    said = torch.stack([v[:, 1] for v in values]).mean()
    assert 0.5 < float(spread / said) < 1.7


def test_a_common_shift_is_measured_better_than_either_sample(card: ProcessCard) -> None:
    nominal, moved = (single_events(gaussian_posterior(card, 1, shift)) for shift in (0.0, 5.0))
    value, error = change(moved, nominal)["bias"].unbind(-1)
    torch.testing.assert_close(value, torch.full_like(value, 5.0))
    assert (error < 1e-9).all()
    assert (mean_values(moved)["bias"][:, 1] > 0.1).all()
    assert (change(moved, nominal)["covered"][:, 0] < 0.02).all()


def test_points_that_only_one_sample_has_do_not_count(card: ProcessCard) -> None:
    nominal = single_events(gaussian_posterior(card, 1))
    half = SingleEvents(
        values={name: 1 + v[: N // 2] for name, v in nominal.values.items()},
        masses=nominal.masses[: N // 2],
        names=nominal.names,
    )
    value, error = change(half, nominal)["window"].unbind(-1)
    torch.testing.assert_close(value, torch.ones_like(value))
    assert (error < 1e-9).all()
    few = dataclasses.replace(half, masses=half.masses + 1000)
    with pytest.raises(InputError, match="at least 10 common points .* got 0"):
        change(few, nominal)


def test_one_draw_cannot_be_judged(card: ProcessCard) -> None:
    posterior = gaussian_posterior(card, 1)
    with pytest.raises(InputError, match="at least four draws"):
        single_events(Posterior(posterior.samples[:2], card, masses=posterior.masses))


@pytest.fixture(scope="module")
def training(toy_events: ToyEvents) -> Events:
    return toy_events(6000, 1)


@pytest.fixture(scope="module")
def pool(toy_events: ToyEvents) -> Events:
    return toy_events(1600, 2, chi10=(200.0, 200.0))


@pytest.fixture(scope="module")
def table(training: Events) -> MassLikelihood:
    """Each event shows its mass with a Gaussian error."""
    axes = {"chi10": torch.arange(60.0, 441.0, 5.0).double()}
    seen = 200 + WIDTH * torch.randn(1600, 1, generator=torch.Generator().manual_seed(3))
    inside = torch.ones(len(axes["chi10"]), dtype=torch.bool)
    return MassLikelihood(
        axes=axes,
        inside=inside,
        log_ratio=-0.5 * ((axes["chi10"] - seen) / WIDTH).square(),
        prior=TrainingPrior.from_events(training),
    )


def scaled_jets(events: Events, scale: float) -> Events:
    p4 = events.p4.clone()
    p4[:, list(events.slots_of("jet"))] *= scale
    return dataclasses.replace(events, p4=p4)


def test_power_of_the_alarm_is_measured(
    training: Events, pool: Events, table: MassLikelihood
) -> None:
    reference = Reference.from_events(training)
    nominal = alarms(table, reference, pool, 60, 200, seed=1)
    assert nominal.p_values.shape == (PARTS, 200 // PARTS)
    value, error = alarm_power(nominal, nominal, 0.05)
    assert value == pytest.approx(0.05, abs=0.011)
    assert nominal.alarms(0.01)[0] < 0.05
    shifted = alarms(table, reference, scaled_jets(pool, 1.25), 60, 200, seed=1)
    power, error = alarm_power(nominal, shifted, 0.05)
    assert power > 0.5
    assert 0 <= error < 0.2
    bias, error_of_bias = nominal.bias()[0].tolist()
    assert abs(bias) < 4 * error_of_bias + 1
    held, error = nominal.coverage()
    assert abs(held - 0.68) < 5 * error + 0.05
    single = alarms(table, reference, pool, 1, 80, seed=1)
    with pytest.raises(InputError, match="as many events, got 0.05 for 1 and 60"):
        alarm_power(single, shifted, 0.05)


def test_a_mixture_is_judged_as_a_network_is() -> None:
    table = likelihoods(mixture_for("wino_udd"), mr.load_events("wino_udd")[:3])
    assert len(table) == 3
    assert table.names == ("chi20", "chi10")
    # the share of outliers is in it
    assert float(table.log_ratio[:, table.inside].min()) >= -4.61
