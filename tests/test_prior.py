"""The prior of the selected training events."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from massrecon.errors import InputError, StoreError
from massrecon.events.card import ProcessCard
from massrecon.inference.prior import TrainingPrior, quadrature, recorded_prior, region_of
from massrecon.kinematics.mixture_scheme import MassRegion
from tests.conftest import ToyEvents
from tests.gaussians import NAMES, PLANE

REGIONS = [
    MassRegion((50.0,), (450.0,)),
    PLANE,
    MassRegion((0.0, 0.0, 0.0), (10.0, 20.0, 30.0), (((0.0, -1.0, 1.0), 5.0),)),
]


def inside(region: MassRegion, n: int, seed: int) -> torch.Tensor:
    """Draws points evenly over a region."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(region.low).double(), torch.tensor(region.high).double()
    points = low + (high - low) * torch.rand(n, len(low), generator=generator).double()
    return points[region.contains(points)]


@pytest.mark.parametrize("region", REGIONS, ids=["line", "plane", "three masses"])
def test_the_density_is_normalised_where_decays_are_open(region: MassRegion) -> None:
    names = tuple("abc"[: len(region.low)])
    prior = TrainingPrior.fitted(names, region, inside(region, 3000, 1), degree=3)
    nodes, volume = quadrature(region)
    assert bool(region.contains(nodes).all())
    assert float((prior.log_density(nodes).exp() * volume).sum()) == pytest.approx(1, abs=1e-9)
    outside = torch.tensor(region.high).double() + 1
    assert float(prior.log_density(outside)) == -torch.inf


def test_the_volume_of_the_open_plane_is_exact() -> None:
    _, volume = quadrature(PLANE)
    # m1 from 25 to m2 - 126, below 575: a trapezium
    exact = 350 * ((350 - 126 - 25) + (700 - 126 - 25)) / 2
    assert float(volume.sum()) == pytest.approx(exact, rel=1e-6)


def test_a_tilted_density_with_acceptance_is_found() -> None:
    points = inside(PLANE, 400_000, 2)
    keep = torch.rand(len(points), generator=torch.Generator().manual_seed(3)).double()

    def acceptance(m: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((m[:, 1] - 250) / 80) * (m[:, 0] / 700)

    chosen = points[keep < acceptance(points)]
    prior = TrainingPrior.fitted(NAMES, PLANE, chosen, efficiency=len(chosen) / len(points))
    probes = torch.tensor([[450.0, 100], [600, 100], [600, 400], [690, 500]]).double()
    assert (prior.acceptance(probes) / acceptance(probes)).tolist() == pytest.approx(
        [1] * 4, abs=0.08
    )
    flat = TrainingPrior.flat(NAMES, PLANE).log_density(probes)
    assert float((prior.log_density(probes) - flat).abs().amax()) > 0.5


def test_masses_on_a_grid_allow_few_terms() -> None:
    values = torch.tensor([[100.0], [200.0], [300.0]]).double().repeat(50, 1)
    prior = TrainingPrior.fitted(("m",), MassRegion((100.0,), (300.0,)), values, degree=6)
    assert prior.degrees.max() == 2


def test_a_prior_is_saved_whole(tmp_path: Path) -> None:
    prior = TrainingPrior.fitted(NAMES, PLANE, inside(PLANE, 500, 4))
    prior.save(tmp_path / "prior.json")
    again = TrainingPrior.load(tmp_path / "prior.json")
    points = inside(PLANE, 50, 5)
    assert torch.equal(prior.log_density(points), again.log_density(points))
    (tmp_path / "prior.json").write_text("{}")
    with pytest.raises(StoreError, match="no training prior"):
        TrainingPrior.load(tmp_path / "prior.json")
    with pytest.raises(StoreError, match="cannot be read"):
        TrainingPrior.load(tmp_path / "nothing.json")
    with pytest.raises(StoreError, match="damaged"):
        TrainingPrior.from_dict({"format": prior.to_dict()["format"], "names": ["a"]})


def test_events_give_names_and_open_region(card: ProcessCard, toy_events: ToyEvents) -> None:
    events = toy_events(300, 1)
    prior = TrainingPrior.from_events(events)
    assert prior.names == ("chi10",)  # chi20 has one value
    assert events.masses is not None
    assert prior.region.high[0] == pytest.approx(float(events.masses[:, 1].max()))
    region = region_of(card, {"chi20": (400.0, 600.0), "chi10": (50.0, 500.0)})
    assert region.gaps == (((1.0, -1.0), 126.0),)
    fixed = region_of(card, {"chi20": (600.0, 600.0), "chi10": (50.0, 550.0)})
    assert fixed.gaps == (((-1.0,), -474.0),)  # chi10 <= 600 - 126
    assert recorded_prior(events)["training_prior"]["names"] == ["chi10"]


def test_a_prior_needs_masses_that_vary(toy_events: ToyEvents) -> None:
    events = toy_events(30, 1)
    with pytest.raises(InputError, match="same masses"):
        TrainingPrior.from_events(events[:10])
    assert recorded_prior(events[:10]) == {}
    with pytest.raises(InputError, match="did not record how many"):
        TrainingPrior.flat(NAMES, PLANE).acceptance(torch.zeros(2))
