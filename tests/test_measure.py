"""N events become one measurement: against products of Gaussians whose answer is known."""

from __future__ import annotations

import functools
import math
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, StoreError
from massrecon.inference.combination import measure
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.likelihood import centres, mass_likelihood
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.recalibration import Temperature
from massrecon.inference.refinement import resampled
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.models import create_model
from tests.conftest import ToyEvents
from tests.gaussians import (
    COVARIANCE,
    NAMES,
    PLANE,
    TRUTH,
    GaussianDensities,
    gaussian_events,
)

FLAT = TrainingPrior.flat(NAMES, PLANE)


@pytest.mark.parametrize("n", [10, 1000])
def test_the_product_of_gaussians_is_found_to_a_millionth(n: int) -> None:
    seen = gaussian_events(n, seed=n)
    found = measure(GaussianDensities(seen), outliers=0.0)
    width = (COVARIANCE.diagonal() / n).sqrt()
    assert ((found.posterior.mean() - seen.mean(0)) / width).abs().max() < 1e-6
    torch.testing.assert_close(found.posterior.covariance(), COVARIANCE / n, rtol=1e-6, atol=0)
    assert ((found.estimate("mode") - seen.mean(0)) / width).abs().max() < 1e-6
    assert float(found.posterior.probability().sum()) == pytest.approx(1, abs=1e-12)
    assert found.grid_error < 1e-6
    area = -2 * math.log(0.32) * math.pi * float(COVARIANCE.det().sqrt()) / n
    assert float(found.posterior.area(0.68)) == pytest.approx(area, rel=0.03)
    half = found.interval(0.68).diff(dim=1)[:, 0] / 2
    assert (half / width).tolist() == pytest.approx([0.9945] * 2, abs=0.01)
    assert found.posterior.correlation()[0, 1] == pytest.approx(0.4, abs=1e-6)


def test_the_norm_next_to_a_closed_decay_is_that_of_the_integral() -> None:
    # one event on the diagonal edge: half of its Gaussian is cut off
    seen = torch.tensor([[500.0, 374.0]]).double()
    toy = GaussianDensities(seen, covariance=25.0 * torch.eye(2).double())
    found = measure(toy, outliers=0.0, masses={"chi20": (450, 550), "chi10": (300, 450)})
    # across the edge a half-normal of width 5, along it a normal
    across = float((found.posterior.mean() - seen[0]) @ torch.tensor([1.0, -1.0]).double())
    assert across / math.sqrt(2) == pytest.approx(5 * math.sqrt(2 / math.pi), rel=0.05)


def coverage(prior_of_truth: TrainingPrior, divided: TrainingPrior, n: int) -> dict[float, float]:
    """Covers the truth with regions of n events; posteriors contain one prior, another is divided.

    Events are what a selection keeps whose acceptance rises with the second observable.
    """
    number, axes = 500, {"chi20": centres(450, 700, 64), "chi10": centres(30, 420, 64)}
    seen = selected_events(number * n, seed=n)
    toy = GaussianDensities(seen, prior=prior_of_truth)
    parts = []
    for rows in torch.arange(number * n).split(n * 50):
        own = toy.log_density(list(axes.values()), slice(int(rows[0]), int(rows[-1]) + 1))
        parts.append(own.reshape(50, n, -1).sum(1))
    total = torch.cat(parts)
    grid = GridPosterior(axes, total)
    log_prior = divided.log_density(grid.points)
    total = torch.where(log_prior.isfinite(), total - n * log_prior, -math.inf)
    level = GridPosterior.from_log_likelihood(axes, total).level_at(TRUTH)
    return {q: float((level <= q).double().mean()) for q in (0.68, 0.95)}


def kept(seen: Tensor) -> Tensor:
    """The acceptance of the toy selection."""
    return torch.special.ndtr((seen[:, 1] - 260) / 40)


def selected_events(n: int, seed: int) -> Tensor:
    """Draws events at the true masses that the selection keeps."""
    seen = gaussian_events(6 * n, seed)
    dice = torch.rand(len(seen), generator=torch.Generator().manual_seed(seed + 1)).double()
    return seen[dice < kept(seen)][:n]


@functools.cache
def tilted_priors() -> tuple[TrainingPrior, TrainingPrior]:
    """Returns how points are generated, and the prior of those that the selection keeps."""
    generator = torch.Generator().manual_seed(7)
    points = torch.rand(600_000, 2, generator=generator, dtype=torch.float64)
    points = torch.tensor([350.0, 25.0]) + torch.tensor([350.0, 550.0]) * points
    points = points[PLANE.contains(points)]
    dice = torch.rand(len(points), 2, generator=generator, dtype=torch.float64)
    points = points[dice[:, 0] < (-(points[:, 0] - 350) / 150).exp()]  # many light parents
    noise = torch.randn(len(points), 2, generator=generator, dtype=torch.float64)
    seen = points + noise @ torch.linalg.cholesky(COVARIANCE).T
    chosen = dice[: len(points), 1] < kept(seen)
    generated = TrainingPrior.fitted(NAMES, PLANE, points)
    return generated, TrainingPrior.fitted(NAMES, PLANE, points[chosen], degree=5)


@pytest.mark.parametrize("n", [10, 30])
def test_regions_cover_once_prior_and_acceptance_are_divided_out(n: int) -> None:
    generated, selected = tilted_priors()
    found = coverage(generated, selected, n)
    # three binomial errors of 500 experiments
    assert found[0.68] == pytest.approx(0.68, abs=3 * math.sqrt(0.68 * 0.32 / 500))
    assert found[0.95] == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 500))


def test_regions_do_not_cover_with_the_prior_left_in_or_without_acceptance() -> None:
    generated, _ = tilted_priors()
    left_in = coverage(generated, FLAT, 30)
    assert left_in[0.68] < 0.3
    no_acceptance = coverage(generated, generated, 30)
    assert no_acceptance[0.68] < 0.5


def test_weights_count_events() -> None:
    seen = gaussian_events(6, 3)
    twice = measure(GaussianDensities(seen[[0, 0, 1, 2, 3]]), outliers=0.0)
    weighted = measure(
        GaussianDensities(seen), weights=torch.tensor([2.0, 1, 1, 1, 0, 0]), outliers=0.0
    )
    torch.testing.assert_close(twice.posterior.mean(), weighted.posterior.mean())
    assert weighted.effective_events == pytest.approx(25 / 7)
    assert weighted.n_events == 6


def test_the_training_prior_may_stay_the_prior_of_the_measurement() -> None:
    _, selected = tilted_priors()
    toy = GaussianDensities(gaussian_events(4, 1), prior=selected)
    flat = measure(toy, training_prior=selected, outliers=0.0)
    trained = measure(toy, training_prior=selected, prior="training", outliers=0.0)
    assert flat.prior == "flat"
    points = torch.tensor([[590.0, 190.0], [610.0, 250.0]]).double()
    change = [float(m.posterior.log_prob_at(points[0]) - m.posterior.log_prob_at(points[1]))
              for m in (flat, trained)]  # fmt: skip
    expected = selected.log_density(points)
    assert change[1] - change[0] == pytest.approx(float(expected[0] - expected[1]), abs=2e-3)


def test_a_table_is_measured_as_its_densities_are() -> None:
    toy = GaussianDensities(gaussian_events(20, 2))
    direct = measure(toy)
    tabled = measure(mass_likelihood(toy, prior=FLAT, step=5.0))
    torch.testing.assert_close(tabled.posterior.mean(), direct.posterior.mean(), atol=0.05, rtol=0)
    torch.testing.assert_close(tabled.interval(), direct.interval(), atol=0.5, rtol=0)


def test_one_wrong_and_sharp_density_does_not_decide() -> None:
    class OneWrong(GaussianDensities):
        def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
            found = super().log_density(axes, rows)
            if rows.start == 0:  # the first event is a thousand times too sure, and far off
                wrong = GaussianDensities(
                    torch.tensor([[450.0, 100.0]]).double(), covariance=COVARIANCE / 1000
                )
                found[0] = wrong.log_density(axes, slice(0, 1))[0]
            return found

    seen = gaussian_events(20, 5)
    without = measure(GaussianDensities(seen[1:])).posterior.mean()
    ruined, robust = measure(OneWrong(seen), outliers=0.0), measure(OneWrong(seen))
    assert float((ruined.posterior.mean() - without).abs().max()) > 50
    assert float((robust.posterior.mean() - without).abs().max()) < 0.5
    assert int(robust.goodness.evidence.argmin()) == 0
    assert float(robust.goodness.evidence[0]) == pytest.approx(math.log(0.01), abs=0.1)


def test_a_correction_and_a_further_term_enter() -> None:
    toy = GaussianDensities(gaussian_events(20, 5))
    plain = measure(toy, outliers=0.0)
    half = measure(toy, outliers=0.0, calibration=lambda log_ratio, points: log_ratio / 2)
    torch.testing.assert_close(half.posterior.covariance(), 2 * plain.posterior.covariance(),
                               rtol=1e-4, atol=1e-3)  # fmt: skip
    pulled = measure(toy, outliers=0.0, log_term=lambda m: -((m[:, 0] - 500) ** 2) / 2)
    assert float(pulled.estimate("mean")[0]) == pytest.approx(500, abs=3)


@pytest.mark.parametrize("n_masses", [1, 3])
def test_any_number_of_masses(n_masses: int) -> None:
    region = MassRegion((0.0,) * n_masses, (100.0,) * n_masses)
    seen = torch.tensor([[40.0, 55.0, 60.0], [50.0, 45.0, 52.0]]).double()[:, :n_masses]
    covariance = 36.0 * torch.eye(n_masses).double()
    toy = GaussianDensities(seen, covariance, names="abc"[:n_masses], region=region)
    found = measure(toy, outliers=0.0)
    torch.testing.assert_close(found.posterior.mean(), seen.mean(0), atol=1e-4, rtol=0)
    assert found.posterior.covariance()[0, 0] == pytest.approx(18, rel=1e-3)


def test_two_kinds_of_events_do_not_fit_together() -> None:
    seen = gaussian_events(40, 1)
    good = measure(GaussianDensities(seen)).goodness
    assert good.halves_p is not None
    assert good.halves_p > 0.01
    seen[::2] += torch.tensor([0.0, 150.0])
    bad = measure(GaussianDensities(seen))
    assert bad.goodness.halves_p is not None
    assert bad.goodness.halves_p < 1e-4
    assert any("halves" in note for note in bad.notes)


def test_densities_that_are_too_narrow_are_noticed() -> None:
    right = measure(GaussianDensities(gaussian_events(1000, 1)), outliers=0.0).goodness
    assert max(abs(z) for z in right.sharpness.values()) < 3
    narrow = measure(GaussianDensities(gaussian_events(1000, 1, scale=1.25)), outliers=0.0)
    assert min(narrow.goodness.sharpness.values()) > 3
    assert narrow.goodness.ratio["chi20"] == pytest.approx(1.25**2, rel=0.15)
    assert any("too sharp" in note for note in narrow.notes)


def test_probability_at_the_end_of_the_training_range_is_noted() -> None:
    seen = gaussian_events(50, 1, truth=torch.tensor([720.0, 200.0]).double())
    found = measure(GaussianDensities(seen))
    assert any("upper end of the training range of chi20" in note for note in found.notes)


def test_a_measurement_is_saved_whole(tmp_path: Path) -> None:
    found = measure(GaussianDensities(gaussian_events(30, 1)))
    found.save(tmp_path / "found")
    again = MassMeasurement.load(tmp_path / "found")
    assert again.to_dict() == found.to_dict()
    assert str(again) == str(found)
    assert "from 30 events" in str(found)
    assert set(found.to_dict()["masses"]["chi10"]) == {
        *("mode", "mean", "median", "window", "0.68", "0.95")
    }
    (tmp_path / "found" / "measurement.safetensors").write_bytes(b"x")
    with pytest.raises(StoreError, match="whole measurement"):
        MassMeasurement.load(tmp_path / "found")


def test_the_truth_of_events_is_shown_only(toy_events: ToyEvents) -> None:
    events = toy_events(100, 1)
    model = create_model("mass_head", events.card, "small", seed=1)
    model.fit_scaling(events)
    prior = TrainingPrior.from_events(events)
    one = events[:10]  # one mass point
    found = measure(model.eval(), one, training_prior=prior)
    assert one.masses is not None
    assert found.truth is not None
    assert float(found.truth[0]) == float(one.masses[0, 1])
    assert "level_of_truth" in found.to_dict()
    assert measure(model, events[:20], training_prior=prior).truth is None
    assert found.symbols["chi10"] == events.card.symbol("chi10")
    with pytest.raises(InputError, match="training prior of these densities is not known"):
        measure(model, one)
    model.metadata = {"training_prior": prior.to_dict()}
    torch.testing.assert_close(measure(model, one).posterior.mean(), found.posterior.mean())


def test_errors_say_what_to_do() -> None:
    toy = GaussianDensities(gaussian_events(3, 1))
    with pytest.raises(InputError, match="no events"):
        measure(GaussianDensities(gaussian_events(0, 1)))
    with pytest.raises(InputError, match="within that of the training events, 350 to 700 GeV"):
        measure(toy, masses={"chi20": (300.0, 600.0)})
    with pytest.raises(InputError, match="Unknown mass 'gluino'"):
        measure(toy, masses={"gluino": (300.0, 600.0)})
    with pytest.raises(InputError, match="Unknown prior 'jeffreys'"):
        measure(toy, prior="jeffreys")
    with pytest.raises(ShapeError, match=r"'weights' should have shape \(3,\)"):
        measure(toy, weights=torch.ones(4))
    with pytest.raises(InputError, match="add up to a positive number"):
        measure(toy, weights=torch.zeros(3))
    far = torch.tensor([[500.0, 100.0], [650.0, 300.0]]).double()

    class Apart(GaussianDensities):
        def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
            found = super().log_density(axes, rows)
            return torch.where(found < -20, -math.inf, found)

    with pytest.raises(InputError, match="exclude every mass point"):
        measure(Apart(far, COVARIANCE / 100), outliers=0.0)


def test_log_values_are_interpolated_exactly_for_parabolas() -> None:
    own = {"a": centres(0, 10, 8), "b": centres(-5, 5, 9)}
    fine = {"a": centres(1, 9, 23), "b": centres(-5, 4, 17)}

    def parabola(axes: dict[str, Tensor]) -> Tensor:
        a, b = torch.meshgrid(*axes.values(), indexing="ij")
        return (-(a**2) + 0.5 * a * b - 2 * b**2 + b).flatten()

    torch.testing.assert_close(resampled(parabola(own), own, fine), parabola(fine))
    values = parabola(own)
    values[:9] = -math.inf
    edge = resampled(values, own, {"a": centres(0, 10, 40), "b": own["b"]}).reshape(40, 9)
    assert bool((edge[:2] == -math.inf).all())
    assert bool(edge[8:].isfinite().all())


@pytest.mark.slow
def test_a_million_events_take_bounded_memory() -> None:
    seen = gaussian_events(1_000_000, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = measure(GaussianDensities(seen), outliers=0.0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    width = (COVARIANCE.diagonal() / len(seen)).sqrt()
    assert ((found.posterior.mean() - seen.mean(0)) / width).abs().max() < 1e-4
    assert grown < 1000  # MB; a table of all events would take 15,000


class OneFarOff(GaussianDensities):
    """Densities of which the first is sure of other masses than all others."""

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        found = super().log_density(axes, rows)
        if rows.start == 0:
            far = GaussianDensities(torch.tensor([[450.0, 100.0]]).double(), COVARIANCE / 25)
            found[0] = far.log_density(axes, slice(0, 1))[0]
        return found


@pytest.mark.parametrize("value", [1.0, 1.5])
def test_a_temperature_takes_the_mean_over_the_whole_prior_on_any_grid(value: float) -> None:
    densities = OneFarOff(gaussian_events(200, 5))
    temperature = Temperature(value=value, error=0.1, prior=FLAT)
    found = measure(densities, calibration=temperature)
    table = mass_likelihood(densities, prior=FLAT, step=5.0, calibration=temperature)
    tabled = measure(table)
    torch.testing.assert_close(found.posterior.mean(), tabled.posterior.mean(), atol=0.1, rtol=0)
    torch.testing.assert_close(found.interval(), tabled.interval(), atol=0.5, rtol=0)
    # it tells nothing at the masses of the others, wherever the grid ends
    assert float(found.goodness.evidence[0]) == pytest.approx(math.log(0.01), abs=0.1)
    if value == 1.0:
        plain = measure(densities)
        torch.testing.assert_close(
            found.posterior.mean(), plain.posterior.mean(), atol=0.05, rtol=0
        )
