"""Likelihoods of the masses for single events, from any kind of density."""

from __future__ import annotations

import math

import pytest
import torch

from massrecon.errors import InputError, ShapeError
from massrecon.inference.densities import (
    DrawDensities,
    GridDensities,
    HeadDensities,
    ModelDensities,
    densities_of,
)
from massrecon.inference.likelihood import (
    MassLikelihood,
    centres,
    mass_likelihood,
    with_outliers,
)
from massrecon.inference.massgrid import MassGrid
from massrecon.inference.posterior import reconstruct
from massrecon.inference.prior import TrainingPrior
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.models import create_model
from massrecon.models.mass_head import MassHead, MassHeadConfig
from tests.conftest import ToyEvents
from tests.gaussians import NAMES, PLANE, GaussianDensities, gaussian_events

FLAT = TrainingPrior.flat(NAMES, PLANE)


def test_the_density_on_a_product_of_axes_is_that_of_its_points() -> None:
    torch.manual_seed(1)
    head = MassHead(3, 5, MassHeadConfig(peaks=4, width=16, depth=1))
    head.set_ceiling(1, 0, 0.2, 0.7)
    context = torch.randn(4, 5)
    axes = [torch.linspace(-4, 4, 7), torch.linspace(-5, 3, 6), torch.linspace(-1, 1, 5)]
    with torch.no_grad():
        found = head.log_prob_on_grid(axes, context)
        points = torch.cartesian_prod(*axes)
        expected = head.log_density(points.unsqueeze(1).expand(-1, 4, -1), context)
    assert found.shape == (4, 7, 6, 5)
    torch.testing.assert_close(found.flatten(1), expected.T)
    assert bool(found.isinf().any())  # where the ceiling cuts


@pytest.mark.parametrize("family", ["mass_head", "flow"])
def test_a_model_of_the_masses_gives_its_density(family: str, toy_events: ToyEvents) -> None:
    events = toy_events(60, 1)
    model = create_model(family, events.card, "small", seed=1, targets="masses")
    model.fit_scaling(events)
    model.eval()
    prior = TrainingPrior.from_events(events)
    low, high = prior.region.low[0], prior.region.high[0]
    axes = {"chi10": torch.linspace(low + 1, high - 1, 16, dtype=torch.float64)}
    table = mass_likelihood(model, events[:5], axes=axes, prior=prior)
    masses = torch.stack([torch.full((16,), 600.0), axes["chi10"]], dim=-1).double()
    exact = model.log_prob(masses.unsqueeze(1).expand(-1, 5, -1), events[:5]).T
    expected = exact - prior.log_density(axes["chi10"].unsqueeze(-1))
    torch.testing.assert_close(table.log_ratio, expected)
    kind = {"mass_head": HeadDensities, "flow": ModelDensities}[family]
    assert isinstance(densities_of(model, events), kind)


def test_the_mean_of_a_ratio_under_the_prior_is_one(toy_events: ToyEvents) -> None:
    events = toy_events(600, 1)
    model = create_model("mass_head", events.card, "small", seed=1)
    model.fit_scaling(events)
    table = mass_likelihood(
        model.eval(), events[:5], prior=TrainingPrior.from_events(events), step=2.0
    )
    weighted = (table.log_ratio + table.prior.log_density(table.points)).exp()
    # a hundredth of the range on each side of the prior is the model's own margin
    assert (weighted.sum(1) * table.volume).tolist() == pytest.approx([0.98] * 5, abs=0.03)


def test_draws_of_a_gaussian_give_its_density() -> None:
    generator = torch.Generator().manual_seed(1)
    draws = 300 + 20 * torch.randn(4000, 3, 1, generator=generator, dtype=torch.float64)
    region = MassRegion((100.0,), (500.0,))
    toy = DrawDensities(draws, ("m",), region, "draws")
    axis = torch.tensor([260.0, 280.0, 300.0, 320.0, 340.0]).double()
    found = toy.log_density([axis], slice(None))
    exact = -((axis - 300) ** 2) / 800 - math.log(20 * math.sqrt(2 * math.pi))
    assert float((found - exact).abs().amax()) < 0.25
    assert float((found - exact).mean().abs()) < 0.05


def test_draws_keep_their_density_up_to_the_end_of_the_region() -> None:
    generator = torch.Generator().manual_seed(2)
    draws = torch.rand(4000, 20, 1, generator=generator, dtype=torch.float64)
    corrected = DrawDensities(draws, ("m",), MassRegion((0.0,), (1.0,)), "draws")
    plain = DrawDensities(draws, ("m",), None, "draws")
    ends = torch.tensor([0.001, 0.999]).double()
    assert float(corrected.log_density([ends], slice(None)).exp().mean()) == pytest.approx(
        1, abs=0.15
    )
    assert float(plain.log_density([ends], slice(None)).exp().mean()) < 0.7
    beyond = corrected.log_density([torch.tensor([-0.1, 0.5]).double()], slice(None))
    assert bool((beyond[:, 0] == -math.inf).all())


def test_a_posterior_with_draws_or_a_grid_is_understood(toy_events: ToyEvents) -> None:
    events = toy_events(60, 1)
    model = create_model("mass_head", events.card, "small", seed=1)
    model.fit_scaling(events)
    model.eval()
    axis = torch.linspace(100, 400, 31).double()
    posterior = reconstruct(model, events[:4], 256, mass_grid={"chi10": axis})
    on_grid = densities_of(posterior)
    assert isinstance(on_grid, GridDensities)
    own = on_grid.log_density([axis], slice(None))
    torch.testing.assert_close(own, posterior.mass_density.log_density)
    drawn = densities_of(reconstruct(model, events[:4], 256))
    assert isinstance(drawn, DrawDensities)
    assert drawn.names == ("chi10",)
    assert "256 draws" in drawn.source


def test_grids_are_interpolated_in_the_log() -> None:
    axes = {"a": torch.tensor([0.0, 1.0]).double(), "b": torch.tensor([0.0, 2.0]).double()}
    grid = MassGrid(axes, torch.tensor([[[0.0, 2.0], [4.0, -math.inf]]]).double())
    toy = GridDensities(grid, "grid")
    found = toy.log_density([torch.tensor([0.0, 0.5]).double(), torch.tensor([1.0]).double()],
                            slice(None))  # fmt: skip
    assert found[0, 0, 0] == 1.0
    assert found[0, 1, 0] == -math.inf
    outside = toy.log_density([torch.tensor([1.5]).double(), axes["b"]], slice(None))
    assert bool((outside == -math.inf).all())


def test_outliers_put_a_floor_under_an_event() -> None:
    log_ratio = torch.tensor([[-1e9, 0.0, 3.0]]).double()
    found = with_outliers(log_ratio, 0.01)
    assert found[0, 0] == pytest.approx(math.log(0.01))
    assert found[0, 1] == pytest.approx(0.0)
    assert found[0, 2] == pytest.approx(math.log(0.99 * math.exp(3) + 0.01))
    assert with_outliers(log_ratio, 0.0) is log_ratio
    with pytest.raises(InputError, match="'outliers' should be in"):
        with_outliers(log_ratio, 1.0)


def test_a_table_selects_corrects_and_adds_up() -> None:
    toy = GaussianDensities(gaussian_events(6, 1))
    table = mass_likelihood(toy, prior=FLAT, step=25.0)
    assert table.names == NAMES
    assert table.points.shape == (math.prod(table.shape), 2)
    assert torch.equal(table.inside, PLANE.contains(table.points))
    assert bool((table.log_ratio[:, ~table.inside] == -math.inf).all())
    weight = torch.tensor([2.0, 0, 1, 1, 1, 1])
    inside = table.inside
    expected = table.log_ratio[0] * 2 + table.log_ratio[2:].sum(0)
    torch.testing.assert_close(table.total(weight)[inside], expected[inside])
    torch.testing.assert_close(table[2:4].total()[inside], table.log_ratio[2:4].sum(0)[inside])
    half = table.calibrated(lambda log_ratio, points: log_ratio / 2)
    torch.testing.assert_close(half.log_ratio[:, inside], table.log_ratio[:, inside] / 2)
    floor = table.with_outliers(0.1)
    assert float(floor.log_ratio[:, inside].min()) >= math.log(0.1) - 1e-9
    assert bool((floor.log_ratio[:, ~inside] == -math.inf).all())


def test_errors_name_the_remedy() -> None:
    toy = GaussianDensities(gaussian_events(3, 1), region=None)
    with pytest.raises(InputError, match=r"TrainingPrior.from_events"):
        mass_likelihood(toy)
    with pytest.raises(InputError, match="should be of chi20, chi10, got chi20"):
        mass_likelihood(toy, axes={"chi20": torch.linspace(400, 500, 5)}, prior=FLAT)
    with pytest.raises(InputError, match="densities are of chi20, chi10"):
        mass_likelihood(toy, prior=TrainingPrior.flat(("a", "b"), PLANE))
    with pytest.raises(InputError, match="no events"):
        mass_likelihood(GaussianDensities(gaussian_events(0, 1)), prior=FLAT)
    with pytest.raises(InputError, match="'step' should be positive"):
        mass_likelihood(toy, prior=FLAT, step=0)
    axes = {"chi20": centres(400, 600, 4), "chi10": centres(50, 150, 4)}
    with pytest.raises(ShapeError, match="should have 16 points"):
        MassLikelihood(axes=axes, inside=torch.ones(3).bool(), log_ratio=torch.zeros(2, 16),
                       prior=FLAT)  # fmt: skip
    axes["chi10"] = torch.tensor([50.0, 60.0, 90.0, 95.0])
    with pytest.raises(InputError, match="evenly rising"):
        MassLikelihood(axes=axes, inside=torch.ones(16).bool(), log_ratio=torch.zeros(2, 16),
                       prior=FLAT)  # fmt: skip


def test_a_model_needs_events_and_a_posterior_none(toy_events: ToyEvents) -> None:
    events = toy_events(20, 1)
    model = create_model("mass_head", events.card, "small", seed=1)
    model.fit_scaling(events)
    with pytest.raises(InputError, match="A model needs events"):
        densities_of(model)
    with pytest.raises(InputError, match="no events"):
        densities_of(model, events[:0])
    posterior = reconstruct(model.eval(), events, 8)
    with pytest.raises(InputError, match="leave out 'events'"):
        densities_of(posterior, events)
    with pytest.raises(InputError, match="needs more than"):
        densities_of(reconstruct(model, events, 1))
