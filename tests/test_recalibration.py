"""Recalibration: known answers on toys, and repaired posteriors on events not fitted to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, StoreError
from massrecon.events.card import ProcessCard
from massrecon.inference.calibration import calibration_report
from massrecon.inference.likelihood import MassLikelihood, centres
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.recalibration import (
    ConditionalPIT,
    Temperature,
    load_recalibration,
)
from massrecon.kinematics.mixture_scheme import MassRegion
from tests.test_diagnostics import known_posterior

NOISE = 25.0


def toy_likelihood(n: int, assumed: float, seed: int) -> tuple[MassLikelihood, Tensor]:
    """Makes y ~ N(m, 25 GeV) of flat masses, believed to have another width."""
    generator = torch.Generator().manual_seed(seed)
    region = MassRegion((0.0, 0.0), (400.0, 400.0))
    truth = 150 + 100 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    seen = truth + NOISE * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    axes = {name: centres(0.0, 400.0, 40) for name in ("a", "b")}
    points = torch.cartesian_prod(*axes.values())
    log_r = -0.5 * ((points - seen.unsqueeze(1)) / assumed).square().sum(-1)
    prior = TrainingPrior.flat(("a", "b"), region)
    log_r = log_r - torch.logsumexp(log_r, 1, keepdim=True) + torch.tensor(1600.0).log()
    inside = region.contains(points)
    return MassLikelihood(axes=axes, inside=inside, log_ratio=log_r, prior=prior), truth


@pytest.mark.parametrize("assumed", [15.0, 25.0, 35.0])
def test_the_temperature_of_a_gaussian_is_the_ratio_of_variances(assumed: float) -> None:
    table, truth = toy_likelihood(600, assumed, seed=1)
    found = Temperature.fit(table, truth)
    expected = (NOISE / assumed) ** 2
    assert abs(found.value - expected) < 4 * found.error + 0.01 * expected
    assert found.error < 0.08 * expected


def test_a_temperature_keeps_the_mean_ratio_at_one_and_what_is_excluded() -> None:
    table, truth = toy_likelihood(50, 15.0, seed=2)
    table.log_ratio[:, 7] = -torch.inf
    cooled = table.calibrated(Temperature.fit(table, truth))
    torch.testing.assert_close(
        cooled.log_ratio.exp().mean(1), torch.ones(50, dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert bool((cooled.log_ratio[:, 7] == -torch.inf).all())


def test_events_that_tell_nothing_are_refused() -> None:
    table, truth = toy_likelihood(50, 15.0, seed=2)
    with pytest.raises(InputError, match="tell nothing of the masses"):
        Temperature.fit(*toy_likelihood(50, 4.0, seed=2))
    with pytest.raises(InputError, match="'masses' should have shape"):
        Temperature.fit(table, truth[:10])


@pytest.mark.parametrize(("spread", "shift"), [(0.75, 0.0), (1.0, 12.0), (1.3, -8.0)])
def test_a_bent_posterior_passes_on_events_it_was_not_fitted_to(
    card: ProcessCard, spread: float, shift: float
) -> None:
    kinds = {"spread": spread, "shift": shift}
    bending = ConditionalPIT.fit(known_posterior(card, 5000, 48, seed=1, **kinds))
    other = known_posterior(card, 1500, 48, seed=2, **kinds)
    assert calibration_report(other).p_value < 0.01
    repaired = calibration_report(bending(other))
    assert repaired.p_value > 0.01
    assert abs(repaired.ranks["chi20"].slope) < 4 * repaired.ranks["chi20"].slope_error


def test_a_calibrated_posterior_is_left_nearly_as_it_is(card: ProcessCard) -> None:
    posterior = known_posterior(card, 3000, seed=3)
    bent = ConditionalPIT.fit(posterior)(posterior)
    moved = (bent.samples - posterior.samples)[..., [3, 7]]
    assert float(moved.abs().median()) < 2.0  # widths are about 20 GeV
    others = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(bent.samples[..., others], posterior.samples[..., others])


def test_draws_keep_their_order(card: ProcessCard) -> None:
    posterior = known_posterior(card, 500, seed=4, spread=0.7)
    bent = ConditionalPIT.fit(posterior)(posterior)
    before, after = posterior.target("chi10_m").argsort(0), bent.target("chi10_m").argsort(0)
    assert torch.equal(before, after)
    assert bent.provenance["recalibrated"] is True


def test_recalibrations_come_back_from_json(card: ProcessCard, tmp_path: Path) -> None:
    posterior = known_posterior(card, 500, seed=5, spread=0.7)
    bending = ConditionalPIT.fit(posterior)
    bending.save(tmp_path / "pit.json")
    again = load_recalibration(tmp_path / "pit.json")
    assert isinstance(again, ConditionalPIT)
    torch.testing.assert_close(again(posterior).samples, bending(posterior).samples)
    table, truth = toy_likelihood(50, 15.0, seed=2)
    temperature = Temperature.fit(table, truth)
    temperature.save(tmp_path / "t.json")
    cooled = load_recalibration(tmp_path / "t.json")
    assert isinstance(cooled, Temperature)
    torch.testing.assert_close(
        cooled(table.log_ratio, table.points), temperature(table.log_ratio, table.points)
    )


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(StoreError, match="cannot be read as a recalibration"):
        load_recalibration(tmp_path / "x.json")
    with pytest.raises(StoreError, match="cannot be read as a recalibration"):
        load_recalibration(tmp_path / "none.json")


def test_wrong_arguments_are_named(card: ProcessCard) -> None:
    with pytest.raises(InputError, match="'degree' >= 1"):
        ConditionalPIT.fit(known_posterior(card, 100, seed=5), degree=0)
    prior = TrainingPrior.flat(("a",), MassRegion((0.0,), (1.0,)))
    with pytest.raises(InputError, match="'value' should be a positive temperature"):
        Temperature(value=0.0, error=0.1, prior=prior)
