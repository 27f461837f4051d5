"""The published network: symmetries, loss, sampling, and errors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from massrecon.errors import CardError, InputError, ShapeError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv
from massrecon.models import MODELS, MassModel, barman2025, create_model
from massrecon.models.barman2025 import Barman2025, Barman2025Config
from tests.weights import stirred

ToyEvents = Callable[..., Events]
TINY = {
    "dim": 16,
    "heads": 2,
    "layers": 1,
    "token_hidden": 16,
    "denoiser_hidden": 24,
    "denoiser_layers": 2,
    "noise_draws": 3,
    "diffusion_steps": 60,
    "beta_last": 0.3,
}


def tiny(card: ProcessCard, events: Events, seed: int = 0) -> Barman2025:
    model = create_model("barman2025", card, "small", seed=seed, **TINY)
    assert isinstance(model, Barman2025)
    model.fit_scaling(events)
    return stirred(model, seed)


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(40, seed=11)


@pytest.fixture(scope="module")
def model(card: ProcessCard, events: Events) -> Barman2025:
    return tiny(card, events)


def context_of(model: Barman2025, events: Events) -> Tensor:
    with torch.no_grad():
        return model.encode(model.prepare(events))


def with_objects(events: Events, p4: Tensor) -> Events:
    return dataclasses.replace(events, p4=p4)


def swapped(events: Events, first: str, second: str) -> Events:
    order = list(range(len(events.card.slots)))
    i, j = events.card.slots.index(first), events.card.slots.index(second)
    order[i], order[j] = j, i
    return dataclasses.replace(events, p4=events.p4[:, order], present=events.present[:, order])


def test_published_sizes(card: ProcessCard) -> None:
    model = create_model("barman2025", card, "full")
    assert isinstance(model, Barman2025)
    assert model.config == Barman2025Config()
    assert (model.config.dim, model.config.layers, model.config.heads) == (256, 4, 4)
    assert (len(model.schedule), model.config.beta_first, model.config.beta_last) == (
        1500, 1e-5, 0.02,
    )  # fmt: skip
    assert model.denoiser.first.in_features == 520
    assert model.denoiser.rest[-1][-1].out_features == len(model.target_names) == 8
    assert len(model.encoder.layers) == 4


def test_small_preset_differs_in_sizes_only(card: ProcessCard) -> None:
    full, small = (create_model("barman2025", card, preset) for preset in ("full", "small"))
    names = {name.split(".layers.")[0] for name, _ in full.named_parameters()}
    assert {name.split(".layers.")[0] for name, _ in small.named_parameters()} == names
    assert sum(p.numel() for p in small.parameters()) < 0.3 * sum(
        p.numel() for p in full.parameters()
    )


def test_prepared_inputs(model: Barman2025, events: Events) -> None:
    prepared = model.prepare(events)
    assert prepared["objects"].shape == (40, 7, 4)
    assert prepared["extra"].shape == (40, 8)
    assert prepared["present"].dtype == torch.bool
    torch.testing.assert_close(prepared["objects"][:, 0], events.p4[:, 0].float())
    torch.testing.assert_close(prepared["extra"][:, 0], events.ptmiss.norm(dim=1).float())
    jets = events.p4[:, 3:7]
    torch.testing.assert_close(prepared["extra"][:, 7], fv.pt(jets).sum(1).float())
    torch.testing.assert_close(prepared["targets"], events.targets().float())
    assert "targets" not in model.prepare(dataclasses.replace(events, partons=None, masses=None))


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_context_does_not_depend_on_the_batch(model: Barman2025, events: Events, n: int) -> None:
    whole, part = context_of(model, events), context_of(model, events[:n])
    assert part.shape == (n, 16)
    torch.testing.assert_close(part, whole[:n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", [("photon1", "photon2"), ("jet1", "jet4"), ("jet2", "jet3")])
def test_like_objects_are_interchangeable(
    model: Barman2025, events: Events, pair: tuple[str, str]
) -> None:
    permuted = swapped(events, *pair)
    assert not torch.equal(permuted.p4, events.p4)
    torch.testing.assert_close(
        context_of(model, permuted), context_of(model, events), rtol=1e-4, atol=1e-5
    )


def test_unlike_objects_are_not(model: Barman2025, events: Events) -> None:
    permuted = swapped(events, "photon1", "jet1")
    difference = context_of(model, permuted) - context_of(model, events)
    assert difference.abs().amax(dim=1).median() > 1e-3


def test_absent_objects_change_nothing(model: Barman2025, events: Events) -> None:
    assert not events.present[:, 3:7].all()
    garbage = torch.where(events.present.unsqueeze(-1), events.p4, float("nan"))
    torch.testing.assert_close(
        context_of(model, with_objects(events, garbage)), context_of(model, events)
    )


def test_only_four_jets_are_read(model: Barman2025, events: Events) -> None:
    p4 = events.p4.clone()
    p4[:, 7:] *= 3.0
    torch.testing.assert_close(
        context_of(model, with_objects(events, p4)), context_of(model, events)
    )
    p4[:, 3] *= 1.5
    assert not torch.allclose(
        context_of(model, with_objects(events, p4)), context_of(model, events)
    )


def test_augmentation_is_consistent_with_the_event(model: Barman2025, events: Events) -> None:
    batch = model.prepare(events)
    turned = model.augment(batch, torch.Generator().manual_seed(0))
    assert not torch.allclose(turned["objects"], batch["objects"])
    torch.testing.assert_close(turned["extra"], batch["extra"])
    torch.testing.assert_close(turned["targets"][:, 3::4], batch["targets"][:, 3::4])
    # the angle between an object and a target stays what it is
    dots = [(b["objects"][:, :, :3] * b["targets"][:, None, :3]).sum(-1) for b in (turned, batch)]
    torch.testing.assert_close(*dots, rtol=1e-4, atol=1.0)
    # the summary observables of the turned objects are those of the event
    again = Barman2025.prepare(model, rotated(events))
    torch.testing.assert_close(again["extra"], batch["extra"], rtol=1e-4, atol=1e-3)


def rotated(events: Events) -> Events:
    angle = torch.linspace(0, 6, len(events), dtype=torch.float64)
    flip = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return dataclasses.replace(
        events,
        p4=fv.rotate_z(events.p4, angle.unsqueeze(1)) * flip,
        ptmiss=fv.rotate_z(events.ptmiss, angle),
    )


def test_every_parameter_gets_a_gradient(card: ProcessCard, events: Events) -> None:
    model = tiny(card, events)
    model.loss(events).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_loss_of_a_perfect_and_of_an_idle_network(model: Barman2025, events: Events) -> None:
    batch = model.prepare(events)
    seen: dict[str, Tensor] = {}

    class Spy(torch.nn.Module):
        def forward(self, x_t: Tensor, *_: Tensor) -> Tensor:
            seen["x_t"] = x_t
            return torch.zeros_like(x_t)

    class Idle(Barman2025):
        def _predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            seen["t"] = t
            return Spy()(x_t)

    idle = Idle(model.card, model.config)
    idle.load_state_dict(model.state_dict())
    loss = idle.loss_prepared(batch, torch.Generator().manual_seed(1))
    # predicting no noise at all costs its variance
    assert loss.item() == pytest.approx(1.0, abs=0.15)
    assert seen["x_t"].shape == (40, 3, 8)
    # one step from each third of the schedule, each within its range
    assert (seen["t"] // 20 == torch.arange(3)).all()
    assert seen["t"].unique().numel() > 30


def test_more_noise_draws_leave_the_expected_loss(card: ProcessCard, events: Events) -> None:
    reference = tiny(card, events)
    losses = {}
    for draws in (1, 8):
        config = dataclasses.replace(reference.config, noise_draws=draws)
        model = Barman2025(card, config)
        model.load_state_dict(reference.state_dict())
        batch = model.prepare(events)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            values = [model.loss_prepared(batch, generator) for _ in range(4000 // (10 * draws))]
        losses[draws] = torch.stack(values)
    error = (losses[1].var() / len(losses[1]) + losses[8].var() / len(losses[8])).sqrt()
    assert abs(losses[1].mean() - losses[8].mean()) < 4 * error
    assert losses[8].std() < 0.6 * losses[1].std()


def test_one_batch_can_be_overfitted(card: ProcessCard, toy_events: ToyEvents) -> None:
    events = toy_events(16, seed=5)
    overrides = {**TINY, "dim": 32, "denoiser_hidden": 64, "noise_draws": 16}
    model = create_model("barman2025", card, "small", **overrides)
    model.fit_scaling(events)
    batch, generator = model.prepare(events), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = model.loss_prepared(batch, generator)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.35 * sum(losses[:20])


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "dpm++", "heun"])
def test_sample_shape_and_seed(model: Barman2025, events: Events, solver: str) -> None:
    draws = model.sample(events[:6], 5, solver=solver, seed=3)
    assert draws.shape == (5, 6, 8)
    assert draws.dtype == torch.float64
    assert torch.isfinite(draws).all()
    assert torch.equal(draws, model.sample(events[:6], 5, solver=solver, seed=3))
    other = model.sample(events[:6], 5, solver=solver, seed=4)
    assert not torch.allclose(draws, other)
    # draws of one event differ from each other
    assert draws.std(dim=0).min() > 0


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
def test_batching_does_not_change_the_samples(
    model: Barman2025, events: Events, solver: str, batch_size: int
) -> None:
    whole = model.sample(events[:7], 5, steps=None, solver=solver)
    cut = model.sample(events[:7], 5, steps=None, solver=solver, batch_size=batch_size)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=0.5)
    fewer = model.sample(events[:7], 2, steps=None, solver=solver, batch_size=batch_size)
    torch.testing.assert_close(fewer, whole[:2], rtol=1e-3, atol=0.5)


def test_context_is_computed_once_per_event(
    model: Barman2025, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda batch: (encoded.append(len(batch["extra"])), encode(batch))[1]
    )
    model.sample(events[:12], 6, steps=20, batch_size=24)
    assert sum(encoded) == 12


def test_no_events_give_no_samples(model: Barman2025, events: Events) -> None:
    assert model.sample(events[:0], 3).shape == (3, 0, 8)


def test_bad_sampling_arguments(model: Barman2025, events: Events) -> None:
    with pytest.raises(InputError, match="Unknown solver 'ddmi'.*did you mean 'ddim'"):
        model.sample(events, 2, solver="ddmi")
    with pytest.raises(InputError, match="'n_samples' should be at least 1, got 0"):
        model.sample(events, 0)
    with pytest.raises(InputError, match="'batch_size' should be at least 1"):
        model.sample(events, 2, batch_size=0)
    with pytest.raises(InputError, match="'steps' should be between 1 and 60, got 61"):
        model.sample(events, 2, steps=61)
    with pytest.raises(InputError, match="takes all 60 steps, got steps=10"):
        model.sample(events, 2, steps=10, solver="ancestral")


def test_density_of_the_probability_flow(
    model: Barman2025, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barman2025, "_DENSITY_STEPS", 12)  # what is tested needs no precision
    few, targets = events[:3], events[:3].targets()
    found = model.log_prob(targets, few)
    assert found.shape == (3,)
    assert bool(found.isfinite().all())
    grid = targets + torch.linspace(-50, 50, 4, dtype=torch.float64)[:, None, None]
    on_grid = model.log_prob(grid, few, batch_size=5)
    assert on_grid.shape == (4, 3)
    torch.testing.assert_close(
        on_grid, torch.stack([model.log_prob(x, few) for x in grid]), rtol=1e-3, atol=1e-2
    )
    with pytest.raises(ShapeError, match=r"'targets' should have shape \(3, 8\)"):
        model.log_prob(targets[:2], few)


def test_loss_needs_truth(model: Barman2025, events: Events) -> None:
    with pytest.raises(InputError, match="needs events with truth"):
        model.loss(dataclasses.replace(events, partons=None, masses=None))


def test_events_of_another_card_are_refused(model: Barman2025, events: Events) -> None:
    class OtherCard:
        name = "other"
        slots = ("lepton",)
        targets = model.card.targets

    with pytest.raises(InputError, match="follow the card 'other', the model the card 'wino_udd'"):
        model.check_card(type("E", (), {"card": OtherCard()})())


def test_card_without_the_objects_is_refused(card: ProcessCard) -> None:
    class Leptons:
        name = "three_leptons"
        slot_kinds = ("lepton",) * 3
        target_names = card.target_names

    with pytest.raises(CardError, match="reads 1 lepton, 2 photon, 4 jet slots, but the card"):
        Barman2025(Leptons(), Barman2025Config())


def test_four_leptons_are_read_as_in_the_second_process() -> None:
    """Tokens are the leptons, so that jets make no difference, and one of eleven observables."""
    generator = torch.Generator().manual_seed(4)
    card = load_card("wino_lle")
    direction = torch.randn(20, len(card.slots), 3, generator=generator)
    p4 = torch.cat([90 * direction, 90 * direction.norm(dim=-1, keepdim=True)], dim=-1).double()
    truth = 80 * torch.randn(20, len(card.parton_names), 4, generator=generator).double()
    truth[..., 3] = 100 + 20 * torch.rand(20, len(card.parton_names), generator=generator)
    events = Events(
        card=card, p4=p4, present=torch.ones(p4.shape[:2], dtype=torch.bool),
        ptmiss=70 * torch.randn(20, 2, generator=generator).double(),
        weight=torch.ones(20).double(), partons=truth, masses=truth[:, : len(card.masses), 3],
        attributes={name: torch.ones(p4.shape[:2]) for name in card.attribute_names},
    )  # fmt: skip
    model = tiny(card, events)
    assert [t.shape[1:] for t in model.prepare(events).values()] == [(4, 4), (4,), (11,), (8,)]
    jets = p4.clone()
    jets[:, 4:] *= 2
    torch.testing.assert_close(context_of(model, with_objects(events, jets)),
                               context_of(model, events))  # fmt: skip
    assert not torch.allclose(context_of(model, with_objects(events, 2 * p4)),
                              context_of(model, events))  # fmt: skip
    copy.deepcopy(model).loss(events).backward()  # as the average of the weights is made
    model.loss(events).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_create_model_lists_the_choices(card: ProcessCard) -> None:
    assert {"barman2025", "diffusion", "flow", "trees"} < set(MODELS)
    assert all(issubclass(family, MassModel) for family in MODELS.values())
    with pytest.raises(InputError, match="Unknown model 'barman'.*choose from barman2025"):
        create_model("barman", card)
    with pytest.raises(InputError, match="preset of barman2025 'tiny': choose from full, small"):
        create_model("barman2025", card, "tiny")
    with pytest.raises(InputError, match="Unknown setting of barman2025 'widht': choose from"):
        create_model("barman2025", card, widht=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30}, "'dim' should be a multiple of twice 'heads', got 30 and 4"),
        ({"layers": 0}, "'layers' should be at least 1"),
        ({"ddim_steps": 2000}, "'ddim_steps' should be between 1 and 'diffusion_steps' = 1500"),
        ({"beta_first": 0.5}, "Expected 0 < beta_first <= beta_last < 1"),
    ],
)
def test_bad_configurations(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Barman2025Config(**fields)


def test_initial_weights_follow_the_seed(card: ProcessCard) -> None:
    state = torch.get_rng_state()
    first, again, other = (create_model("barman2025", card, seed=s, **TINY) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.state_dict()["embed_extra.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
