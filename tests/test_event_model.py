"""Families on events: any card, any targets, symmetries, files, reconstruction, mass densities."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.inference.massgrid import MassGrid
from massrecon.models import MODELS, MassModel, create_model, load_model
from massrecon.models.event_model import EventModel
from massrecon.models.training import TrainingConfig
from massrecon.models.trees import Trees, TreesHead
from tests.conftest import ToyEvents
from tests.weights import stirred

FAMILIES = [name for name in MODELS if name != "barman2025"]
TINY: dict[str, Any] = {"dim": 16, "layers": 1, "heads": 2, "token_hidden": 16, "width": 16}


def tiny(name: str, card: ProcessCard, **options: Any) -> EventModel:
    sizes = {"n_trees": 5} if name == "trees" else TINY
    model = create_model(name, card, "small", seed=1, **{**sizes, **options})
    assert isinstance(model, EventModel)
    return model


def fitted(name: str, events: Events, **options: Any) -> EventModel:
    """A model that knows its scaling; a forest is grown, other weights all made to matter."""
    model = tiny(name, events.card, **options)
    model.fit_scaling(events)
    if isinstance(model.head, TreesHead):
        data = model.prepare(events)
        model.head.grow(model.targets.encode(data["targets"]), model.encode(data))
    return stirred(model, seed=2)


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(120, seed=51)


def events_of(card_name: str, n: int = 60) -> Events:
    """Events of any card from random numbers, with every attribute that it asks for."""
    card = load_card(card_name)
    generator = torch.Generator().manual_seed(4)
    slots, partons = len(card.slots), len(card.parton_names)
    p3 = 80 * torch.randn(n, slots, 3, generator=generator, dtype=torch.float64)
    p4 = torch.cat([p3, p3.norm(dim=-1, keepdim=True) + 5], dim=-1)
    truth = 200 + 90 * torch.randn(n, partons, 4, generator=generator, dtype=torch.float64)
    return Events(
        card=card,
        p4=p4,
        present=torch.rand(n, slots, generator=generator) > 0.2,
        ptmiss=60 * torch.randn(n, 2, generator=generator, dtype=torch.float64),
        weight=torch.ones(n, dtype=torch.float64),
        attributes={name: torch.ones(n, slots) for name in card.attribute_names},
        partons=truth,
        masses=truth[:, : len(card.masses), 3],
    )


@pytest.mark.parametrize("card_name", ["wino_udd", "wino_lle", "ttbar_dilepton", "antler"])
@pytest.mark.parametrize("targets", ["card", "masses", "resonances"])
def test_any_card_and_any_targets(card_name: str, targets: str) -> None:
    events = events_of(card_name)
    model = fitted("flow", events, targets=targets)
    model.loss(events).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
    draws = model.sample(events[:4], 3)
    assert draws.shape == (3, 4, len(model.target_names))
    assert bool(draws.isfinite().all())
    posterior = mr.reconstruct(model, events[:4], n_samples=3)
    assert posterior.target_names == model.target_names
    if targets != "card" or card_name != "antler":  # its card leaves one mass out
        assert posterior.mass_samples().shape == (3, 4, len(events.card.masses))


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_models_draw_the_same(name: str, events: Events, tmp_path: Path) -> None:
    model = fitted(name, events)
    draws = model.sample(events[:6], 3, seed=5)
    loaded = load_model(model.save(tmp_path / name))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert torch.equal(loaded.sample(events[:6], 3, seed=5), draws)
    cut = loaded.sample(events[:6], 3, seed=5, batch_size=4)
    torch.testing.assert_close(cut, draws, rtol=1e-3, atol=1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_fit_and_reconstruct_by_one_word(name: str, toy_events: ToyEvents, tmp_path: Path) -> None:
    train = toy_events(300, seed=52)
    recipe = TrainingConfig(max_steps=4, rounds=2, batch_size=64, metric_events=16, seed=4)
    model = mr.fit(
        name, train, preset="small", training=recipe, progress=False, out=tmp_path / "m",
        options={"n_trees": 5} if name == "trees" else TINY,
    )  # fmt: skip
    assert {"validation_loss", "chi10 within 30 GeV"} <= set(model.metadata["metrics"])
    posterior = mr.reconstruct(mr.load_model(tmp_path / "m"), train[:5], n_samples=4)
    assert posterior.estimate("window").shape == (5, 2)
    assert posterior.provenance["model"] == name


def test_density_of_targets_is_in_gev_whatever_the_coordinates(events: Events) -> None:
    """A change of coordinates must not change what a density says where it is the same one."""
    found = {}
    for coordinates in ("cartesian", "polar"):
        model = fitted("trees", events, coordinates=coordinates, smoothing=0.05)
        assert isinstance(model, Trees)
        values = model.true_targets(events[:3])
        assert values is not None
        found[coordinates] = model.log_prob(values, events[:3])
    # narrow peaks on the training values themselves: only their widths differ
    assert float((found["cartesian"] - found["polar"]).abs().max()) < 8


@pytest.mark.parametrize("name", ["flow", "mass_head"])
def test_mass_density_travels_with_the_posterior(name: str, events: Events, tmp_path: Path) -> None:
    model = fitted(name, events, targets="masses")
    axis = torch.linspace(-300, 1000, 400, dtype=torch.float64)
    posterior = mr.reconstruct(model, events[:5], n_samples=4, mass_grid={"chi10": axis})
    density = posterior.mass_density
    assert density is not None
    assert density.log_density.shape == (5, 400)
    torch.testing.assert_close(density.normalisation(), torch.ones(5).double(), rtol=0, atol=0.01)
    one = posterior[[3]]
    assert one.mass_density is not None
    assert torch.equal(one.mass_density.log_density, density.log_density[[3]])
    posterior.save(tmp_path / "p")
    loaded = mr.Posterior.load(tmp_path / "p")
    assert loaded.mass_density is not None
    assert torch.equal(loaded.mass_density.log_density, density.log_density)
    assert list(loaded.mass_density.axes) == ["chi10"]
    assert loaded.names == ("chi20_m", "chi10_m")


def test_marginals_of_a_known_grid() -> None:
    x, y = torch.linspace(-5, 5, 81).double(), torch.linspace(-6, 6, 61).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    joint = normal.log_prob(x)[:, None] + normal.log_prob(y)
    grid = MassGrid({"a": x, "b": y}, joint.expand(2, -1, -1))
    torch.testing.assert_close(grid.normalisation(), torch.ones(2).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(grid.marginal("b")[1], normal.log_prob(y).exp(), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="Unknown mass 'c'"):
        grid.marginal("c")


def test_mass_grid_errors(events: Events) -> None:
    axis = torch.linspace(0, 500, 10)
    masses, card = fitted("flow", events, targets="masses"), fitted("flow", events)
    for model, grid, message in (
        (card, {"chi10": axis}, "needs a model with targets='masses'"),
        (masses, {"chi20": axis, "chi10": axis}, "Unknown free mass 'chi20'"),
        (masses, {}, "should have values of 'chi10' too"),
        (masses, {"chi10": axis.flip(0)}, "rising values"),
    ):
        with pytest.raises(InputError, match=message):
            mr.reconstruct(model, events[:2], n_samples=2, mass_grid=grid)
    gan = fitted("gan", events, targets="masses")
    with pytest.raises(ModelError, match="'gan' has no density"):
        mr.reconstruct(gan, events[:2], n_samples=2, mass_grid={"chi10": axis})
    with pytest.raises(ModelError, match="'gan' has no density"):
        gan.log_prob(torch.zeros(2, 2), events[:2])


def test_masses_stay_where_the_decay_is_open(toy_events: ToyEvents) -> None:
    events = toy_events(400, seed=53)
    generator = torch.Generator().manual_seed(1)
    parent = 450 + 250 * torch.rand(400, generator=generator, dtype=torch.float64)
    room = torch.rand(400, generator=generator, dtype=torch.float64)
    daughter = 50 + room * (parent - 126 - 50)
    plane = dataclasses.replace(events, masses=torch.stack([parent, daughter], dim=1))
    model = fitted("mass_head", plane)
    draws = model.sample(plane[:50], 40)
    assert bool((draws[..., 1] <= draws[..., 0] - 126 + 0.1).all())
    assert float((draws[..., 0] - draws[..., 1]).min()) < 200


def test_absent_objects_and_order_of_like_objects_change_nothing(events: Events) -> None:
    model = fitted("flow", events)
    garbage = torch.where(events.present.unsqueeze(-1), events.p4, float("nan"))
    order = [0, 2, 1, 4, 3, *range(5, len(events.card.slots))]
    permuted = dataclasses.replace(
        events, p4=events.p4[:, order], present=events.present[:, order],
        attributes={name: t[:, order] for name, t in events.attributes.items()},
    )  # fmt: skip
    with torch.no_grad():
        context = model.encode(model.prepare(events))
        for other in (dataclasses.replace(events, p4=garbage), permuted):
            found = model.encode(model.prepare(other))
            torch.testing.assert_close(found, context, rtol=1e-3, atol=1e-4)
        moved = dataclasses.replace(events, ptmiss=events.ptmiss.flip(1))
        assert not torch.allclose(model.encode(model.prepare(moved)), context, atol=1e-3)


def test_turned_events_have_turned_targets(events: Events) -> None:
    model = fitted("flow", events, targets="resonances")
    batch = model.prepare(events)
    turned = model.augment(batch, torch.Generator().manual_seed(0))
    # products of the lepton with the first particle of the tree, and with the missing momentum
    along = [(b["objects"][:, 0, :3] * b["targets"][:, :3]).sum(dim=1) for b in (batch, turned)]
    torch.testing.assert_close(*along, rtol=1e-3, atol=5.0)
    missing = [(b["objects"][:, 0, :2] * b["ptmiss"]).sum(dim=1) for b in (batch, turned)]
    torch.testing.assert_close(*missing, rtol=1e-3, atol=1.0)
    assert not torch.allclose(turned["targets"], batch["targets"])


def test_weights_weight_the_loss(events: Events) -> None:
    model = fitted("mass_head", events)
    heavy = torch.where(torch.arange(len(events)) < 40, 3.0, 0.0).double()
    weighted = dataclasses.replace(events, weight=heavy)
    batch = model.prepare(weighted)
    generator = torch.Generator().manual_seed(0)
    part = {name: tensor[:40] for name, tensor in batch.items()}
    with torch.no_grad():
        # masses without noise, so that both see the same
        whole = model.validation_loss_prepared(batch, generator)
        torch.testing.assert_close(whole, model.validation_loss_prepared(part, generator))


def test_untrained_models_say_so(card: ProcessCard, events: Events) -> None:
    model: MassModel = tiny("diffusion", card)
    with pytest.raises(ModelError, match="This model 'diffusion' is untrained: pass it through"):
        model.sample(events, 1)
    bare = dataclasses.replace(events, attributes={})
    with pytest.raises(InputError, match="lack the attribute 'charge'"):
        model.fit_scaling(bare)
    with pytest.raises(InputError, match="'target_noise' should be in"):
        tiny("flow", card, target_noise=1.5)
    with pytest.raises(InputError, match="Training needs events: the sample is empty"):
        model.fit_scaling(events[:0])
    with pytest.raises(InputError, match="'dim' should be a multiple of 'heads', got 18 and 4"):
        create_model("flow", card, "small", dim=18)


def test_background_is_read_by_a_model_of_the_signal(events: Events) -> None:
    background = Events(
        card=load_card("background_wh"), p4=events.p4, present=events.present,
        attributes=events.attributes, ptmiss=events.ptmiss, weight=events.weight,
    )  # fmt: skip
    for targets in ("card", "masses"):
        model = fitted("flow", events, targets=targets)
        signal = mr.reconstruct(model, events[:4], n_samples=2, seed=1)
        other = mr.reconstruct(model, background[:4], n_samples=2, seed=1)
        assert torch.equal(other.samples, signal.samples)
        assert other.truth is None
