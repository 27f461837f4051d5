"""The family `cascade`: pairs, hypotheses, origins, the common frame, masses before momenta."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import massrecon as mr
from massrecon.errors import InputError, ModelError
from massrecon.events.card import load_card
from massrecon.events.container import Events
from massrecon.inference.mixture import mass_posterior
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.topology import TopologyError
from massrecon.models import create_model, load_model
from massrecon.models.cascade import Cascade, truth
from massrecon.models.cascade.encoder import PairBias, pair_features
from massrecon.models.cascade.head import SequentialConfig, SequentialHead
from massrecon.models.cascade.hypotheses import BINS, HypothesisReader
from massrecon.models.cascade.model import canonical_frame
from massrecon.models.training import TrainingConfig
from tests.conftest import ToyEvents
from tests.weights import stirred

TINY: dict[str, Any] = {
    "dim": 16, "layers": 1, "heads": 2, "token_hidden": 16, "width": 16, "mass_width": 16,
    "mass_depth": 1, "depth": 1, "hypotheses": 4,
}  # fmt: skip


def fitted(events: Events, **options: Any) -> Cascade:
    """A model that knows its scaling, with all weights made to matter."""
    model = create_model("cascade", events.card, seed=1, **{**TINY, **options})
    assert isinstance(model, Cascade)
    model.fit_scaling(events)
    return stirred(model, seed=2)


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(80, seed=61)


def turned(events: Events, angle: float) -> Events:
    """The same collisions, turned about the beam."""
    around = torch.tensor(angle, dtype=torch.float64)
    partons = events.partons
    assert partons is not None
    return dataclasses.replace(
        events,
        p4=fv.rotate_z(events.p4, around.expand(events.p4.shape[:-1])),
        ptmiss=fv.rotate_z(events.ptmiss, around.expand(len(events))),
        partons=fv.rotate_z(partons, around.expand(partons.shape[:-1])),
    )


def test_pair_features_are_those_of_the_pair() -> None:
    one, two = [50.0, 0.0, 20.0, 60.0], [0.0, 30.0, -10.0, 40.0]
    found = pair_features(torch.tensor([[one, two]], dtype=torch.float64))[0, 0, 1]
    mass = math.sqrt(100.0**2 - 50.0**2 - 30.0**2 - 10.0**2)
    eta = math.asinh(20 / 50) + math.asinh(10 / 30)
    distance = math.hypot(eta, math.pi / 2)
    wanted = [mass, distance, 30 * distance, 30 / 80]
    torch.testing.assert_close(found.exp(), torch.tensor(wanted, dtype=torch.float64))


def test_bias_of_pairs_steers_the_attention(events: Events) -> None:
    model = fitted(events, pair_bias=True)
    batch = model.prepare(events)
    assert model.encoder.pairs is not None
    biases = model.encoder.pairs(batch["objects"])
    assert [b.shape for b in biases] == [(80, 2, 13, 13)]
    before = model.encode(batch)
    with torch.no_grad():
        for weight in model.encoder.pairs.network.parameters():
            weight.zero_()
    assert not torch.allclose(model.encode(batch), before, atol=1e-4)


def test_bias_of_each_layer_is_its_own() -> None:
    bias = PairBias(3, 2)
    found = bias(torch.randn(5, 4, 4).abs())
    assert len(found) == 3
    assert found[0].shape == (5, 2, 4, 4)
    assert not torch.allclose(found[0], found[1])


def test_hypotheses_are_the_heaviest_gaussians_of_the_mixture(events: Events) -> None:
    reader = HypothesisReader(events.card, 5)
    reader.choose_mixture(events)
    found = reader.prepare(events)
    posterior = mass_posterior(reader.mixture, events)
    weight, at = posterior.log_weight.topk(5, dim=1)
    assert found["hypotheses"].shape == (80, 5, 2 * 2 + 1 + 2)
    assert found["hypothesis_momenta"].shape == (80, 5, 4, 4)
    # chi20 is known to be 600 GeV: only chi10 has a mean, in the second column
    low, high = posterior.region.low[0], posterior.region.high[0]
    mean = posterior.mean[..., 0].gather(1, at)
    wanted = torch.where(weight > -12, (2 * (mean - low) / (high - low) - 1).clamp(-3, 3), 0.0)
    torch.testing.assert_close(found["hypotheses"][..., 1], wanted.float())
    assert bool((found["hypotheses"][..., 0] == 0).all())
    shares = found["summaries"][:, 4 + BINS + 4 : 4 + BINS + 4 + BINS].exp() / BINS
    torch.testing.assert_close(shares.sum(1), torch.ones(80), rtol=0, atol=0.02)


def test_mixture_is_kept_with_the_model(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted(events)
    draws = model.sample(events[:5], 3, seed=4)
    folder = model.save(tmp_path / "m")

    def gone(*args: object, **options: object) -> None:
        raise AssertionError("a loaded model should not look for shipped fits")

    monkeypatch.setattr("massrecon.models.mixture.building.shipped_for", gone)
    loaded = load_model(folder)
    assert torch.equal(loaded.sample(events[:5], 3, seed=4), draws)


def test_turned_events_give_turned_momenta_and_the_same_masses(events: Events) -> None:
    model = fitted(events)
    draws = model.sample(events[:6], 4, seed=3).unflatten(-1, (2, 4))
    found = model.sample(turned(events, 1.1)[:6], 4, seed=3).unflatten(-1, (2, 4))
    angle = torch.full(draws.shape[:-1], 1.1, dtype=torch.float64)
    wanted = fv.rotate_z(draws, angle)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1.0)
    mirrored = dataclasses.replace(events, p4=events.p4 * torch.tensor([1.0, 1.0, -1.0, 1.0]))
    found = model.sample(mirrored[:6], 4, seed=3).unflatten(-1, (2, 4))
    wanted = draws * torch.tensor([1.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1.0)


def test_density_of_turned_targets_is_the_same(events: Events) -> None:
    model = fitted(events)
    values = model.true_targets(events)
    assert values is not None
    other = turned(events, -0.7)
    moved = model.true_targets(other)
    assert moved is not None
    found = model.log_prob(values[:6], events[:6])
    torch.testing.assert_close(model.log_prob(moved[:6], other[:6]), found, rtol=1e-3, atol=0.02)


def test_frame_points_along_leptons_and_photons(events: Events) -> None:
    angle, flip = canonical_frame(events)
    clean = events.p4[:, :3].sum(dim=1)
    along = fv.rotate_z(clean, angle.double())
    assert float(along[:, 1].abs().max()) < 1e-3 * float(along[:, 0].abs().max())
    assert float(along[:, 0].min()) >= 0
    assert float((flip * clean[:, 2]).min()) >= 0
    bare = dataclasses.replace(events, present=events.present & (torch.arange(13) > 2))
    along = fv.rotate_z(events.ptmiss, canonical_frame(bare)[0].double())
    assert float(along[:, 1].abs().max()) < 1e-3


def test_origins_of_jets(events: Events) -> None:
    """Toy jets are smeared quarks, so each has a side, and its quark is its only neighbour."""
    labels = truth.origins(events)
    assert labels.shape == (80, 13, 2)
    jets = labels[:, 3:9][events.present[:, 3:9]]
    assert float(jets.amax(dim=1).min()) == 1.0
    assert 0.01 < float(jets.sum(dim=1).mean()) - 1 < 0.3  # some lie near a quark of the other side
    assert bool((labels[~events.present] == 0).all())
    # both photons are those of the Higgs, the lepton that of the W
    near = labels[:, :3][events.present[:, :3]].reshape(-1, 3, 2).mean(dim=0)
    torch.testing.assert_close(near[:, 0].round(), torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(near[:, 1].round(), torch.tensor([1.0, 0.0, 0.0]))


def test_auxiliary_loss_teaches_origins(toy_events: ToyEvents) -> None:
    train, test = toy_events(1200, seed=62), toy_events(200, seed=63)

    def hit_rate(weight: float) -> float:
        recipe = TrainingConfig(max_steps=120, rounds=1, batch_size=128, metric_events=16, seed=1)
        model = mr.fit(
            "cascade", train, training=recipe, progress=False,
            options={**TINY, "dim": 32, "targets": "masses", "assignment_weight": weight},
        )  # fmt: skip
        assert isinstance(model, Cascade)
        batch = model.prepare(test)
        with torch.no_grad():
            logits = model.encoder.encode(batch)[1][:, 3:9]
        right = (logits > 0).float() == batch["origins"][:, 3:9]
        return float(right[test.present[:, 3:9]].float().mean())

    taught, untaught = hit_rate(1.0), hit_rate(0.0)
    assert taught > 0.6
    assert taught > untaught + 0.05


def test_alike_sides_are_named_as_fits_best() -> None:
    card = load_card("antler")
    model = create_model("cascade", card, hypotheses=0, summaries=False, dim=16, heads=2)
    assert isinstance(model, Cascade)
    assert model.encoder.alike_sides
    generator = torch.Generator().manual_seed(1)
    n_slots = len(card.slots)
    labels = torch.randint(2, (6, n_slots, 2), generator=generator).float()
    logits = torch.randn(6, n_slots, 2, generator=generator)
    batch = {"origins": labels, "present": torch.ones(6, n_slots, dtype=torch.bool)}
    found = model._origin_loss(logits, batch)
    exchanged = model._origin_loss(logits, {**batch, "origins": labels.flip(-1)})
    torch.testing.assert_close(found, exchanged)


def test_truth_as_an_input_is_used_and_needed(events: Events) -> None:
    model = fitted(events, given="both")
    batch = model.prepare(events)
    assert batch["neutrinos"].shape == (80, 1, 4)
    context = model.encode(batch)
    for name in ("origins", "neutrinos"):
        other = model.encode({**batch, name: batch[name].flip(0)})
        assert not torch.allclose(other, context, atol=1e-4)
    with pytest.raises(InputError, match="is told the true both: its events need the truth"):
        model.sample(dataclasses.replace(events, partons=None, masses=None), 1)


@pytest.fixture(scope="module")
def head() -> SequentialHead:
    torch.manual_seed(0)
    sizes = SequentialConfig(peaks=4, mass_width=16, mass_depth=1, width=16, depth=1)
    found = SequentialHead(4, 3, sizes, [1, 3])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    found.fit_support(torch.randn(500, 4, generator=generator))
    return found.eval()


def test_masses_come_first(head: SequentialHead) -> None:
    """The masses of a draw do not depend on the flow; the other components know the masses."""
    context = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    coarse, fine = (head.sample(context, 200, steps=steps, seed=1) for steps in (2, 20))
    assert torch.equal(coarse[..., [1, 3]], fine[..., [1, 3]])
    assert not torch.allclose(coarse[..., [0, 2]], fine[..., [0, 2]])
    assert head.momenta is not None
    one, two = (head._given(torch.full((5, 2), at), context) for at in (0.0, 1.0))
    shift = head.momenta.sample(one, 50, seed=3) - head.momenta.sample(two, 50, seed=3)
    assert float(shift.abs().mean()) > 0.01


def test_joint_density_is_the_product(head: SequentialHead) -> None:
    generator = torch.Generator().manual_seed(3)
    context, x = (
        torch.randn(6, 3, generator=generator),
        0.5 * torch.randn(6, 4, generator=generator),
    )
    masses, others = x[:, [1, 3]], x[:, [0, 2]]
    assert head.momenta is not None
    parts = head.masses.log_prob(masses, context)
    parts = parts + head.momenta.log_prob(others, head._given(masses, context))
    torch.testing.assert_close(head.log_prob(x, context), parts, rtol=1e-4, atol=1e-4)


def test_noise_of_momenta_is_not_that_of_masses(head: SequentialHead) -> None:
    """A shared stream of noise would tie each momentum to a mass whatever the network says."""
    free = SequentialHead(4, 3, head.config, [1, 3])  # its last layers are zero
    draws = free.sample(torch.zeros(1, 3), 4000, seed=1)[:, 0]
    correlation = torch.corrcoef(draws.T)
    assert float((correlation - torch.eye(4)).abs().max()) < 0.08


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pooling": "sum"}, InputError, "Unknown pooling 'sum'"),
        ({"given": "all"}, InputError, "Unknown truth to be given 'all'"),
        ({"hypotheses": -1}, InputError, "'hypotheses' should not be negative, got -1"),
        ({"momenta_weight": 0.0}, InputError, "'momenta_weight' should be positive, got 0.0"),
        ({"assignment_weight": -1.0}, InputError, "'assignment_weight' should not be negative"),
        ({"peaks": 0}, InputError, "'peaks' should be at least 1, got 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_model("cascade", load_card("wino_udd"), **options)


def test_what_a_mixture_cannot_do_is_said(events: Events) -> None:
    blind = dataclasses.replace(events, masses=None)
    reader = HypothesisReader(events.card, 3)
    with pytest.raises(InputError, match="train on events with true masses"):
        reader.choose_mixture(blind)
    with pytest.raises(ModelError, match="This model is untrained"):
        reader.prepare(events)
    toys = mr.simulate("antler", 20, progress=False)
    toys = dataclasses.replace(toys, masses=_masses(toys) * torch.linspace(0.9, 1, 20)[:, None])
    with pytest.raises(TopologyError, match="To train without .* 'summaries': False"):
        HypothesisReader(toys.card, 3).choose_mixture(toys)
    same = dataclasses.replace(events, masses=torch.full_like(_masses(events), 300.0))
    with pytest.raises(InputError, match="No mass of 'wino_udd' is unknown"):
        reader.choose_mixture(same)


def _masses(events: Events) -> Tensor:
    assert events.masses is not None
    return events.masses


def test_summaries_help(toy_events: ToyEvents) -> None:
    """What the mixture says makes a short training better, by more than chance."""
    train, test = toy_events(1500, seed=64), toy_events(400, seed=65)

    def loss(**options: Any) -> float:
        recipe = TrainingConfig(max_steps=100, rounds=1, batch_size=128, metric_events=16, seed=1)
        options = {**TINY, "dim": 32, "targets": "masses", **options}
        model = mr.fit("cascade", train, training=recipe, progress=False, options=options)
        values = model.true_targets(test)
        assert values is not None
        return -float(model.log_prob(values, test).mean())

    with_mixture, without = loss(), loss(summaries=False, hypotheses=0)
    assert with_mixture < without - 0.15


def test_invisible_legs_are_those_that_leave_no_object() -> None:
    assert truth.invisible_labels(load_card("wino_udd")) == ("nu",)
    assert truth.invisible_labels(load_card("antler")) == ("C_a", "C_b")


def test_a_background_has_nothing_to_learn() -> None:
    card = load_card("background_wh")
    with pytest.raises(InputError, match="names no"):
        create_model("cascade", card)
