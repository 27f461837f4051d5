"""The surrogate: an exact coding of events, selections that always hold, and learning at all."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zuko.transforms
from torch import Tensor

from massrecon.errors import InputError, ModelError
from massrecon.events.card import load_card
from massrecon.events.container import Events
from massrecon.inference.surrogate import (
    compare_speed,
    derived_quantities,
    fit_surrogate,
    object_kinematics,
    processor_time,
    separation,
    simulate_fast,
)
from massrecon.kinematics import fourvectors as fv
from massrecon.models.autoregressive import AutoregressiveConfig, AutoregressiveHead, unbend
from massrecon.models.event_space import EventSpace
from massrecon.models.measured import momenta
from massrecon.models.noise import Draws
from massrecon.models.quantiles import QuantileMap
from massrecon.models.surrogate import HEADS, Surrogate, SurrogateConfig, load_surrogate
from massrecon.models.training import TrainingConfig


def toy_events(card_name: str = "wino_udd", n: int = 400, seed: int = 1) -> Events:
    """Random events that fulfil the selection of a card; jets soften as the mass grows."""
    card, generator = load_card(card_name), torch.Generator().manual_seed(seed)
    k = len(card.slots)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    masses = torch.stack([m.default + 50 * uniform(n) for m in card.masses.values()], dim=1)
    pt, eta = torch.zeros(n, k, dtype=torch.float64), torch.zeros(n, k, dtype=torch.float64)
    present, start = torch.zeros(n, k, dtype=torch.bool), 0
    attributes = {name: torch.zeros(n, k, dtype=torch.int8) for name in card.attribute_names}
    for group in card.objects:
        rows = slice(start, start + group.count)
        hardness = 60 - masses[:, -1:].sub(masses[:, -1:].min())
        tail = -(1 - uniform(n, group.count)).log()
        pt[:, rows] = group.pt_min + (hardness * tail).sort(dim=1, descending=True).values
        eta[:, rows] = group.eta_max * (2 * uniform(n, group.count) - 1)
        most = min(group.maximum or group.count, group.count)
        count = group.minimum + (uniform(n) * (most - group.minimum + 1)).long()
        present[:, rows] = torch.arange(group.count) < count.unsqueeze(1)
        if group.kind == "lepton":
            code = torch.tensor([11, 13])[(uniform(n, group.count) < 0.7).long()]
            attributes["flavour"][:, rows] = code.to(torch.int8)
            sign = torch.ones(n, group.count)
            sign[:, 1::2] = -1
            attributes["charge"][:, rows] = sign.to(torch.int8)
        elif group.kind == "photon":
            attributes["flavour"][:, rows] = 22
        elif "btag" in attributes:
            attributes["btag"][:, rows] = 2 + (uniform(n, group.count) < 0.5).to(torch.int8)
        start += group.count
    phi = 2 * math.pi * uniform(n, k)
    jets = torch.tensor([kind == "jet" for kind in card.slot_kinds])
    mass = torch.where(jets, 0.1 * pt * uniform(n, k), 0.0)
    for code, value in ((11, 0.000511), (13, 0.10566)):
        mass = torch.where(attributes["flavour"] == code, value, mass)
    p4 = torch.where(present.unsqueeze(-1), fv.from_ptetaphim(pt, eta, phi, mass), 0.0)
    partons = torch.randn(n, len(card.parton_names), 4, generator=generator).double() * 100
    partons[..., 3] = 100.0
    return Events(
        card=card,
        p4=p4,
        present=present,
        ptmiss=40 * torch.randn(n, 2, generator=generator).double(),
        weight=torch.ones(n, dtype=torch.float64),
        attributes={name: torch.where(present, v, 0) for name, v in attributes.items()},
        partons=partons,
        masses=masses,
    )


@pytest.fixture(scope="module")
def events() -> Events:
    return toy_events()


def untrained(events: Events, family: str = "autoregressive", **config: object) -> Surrogate:
    options = {"autoregressive": {"width": 8}, "flow": {"width": 16, "transforms": 2}}
    head = options.get(family, {"width": 16, "depth": 1})
    fields = {"family": family, "head": head, "content_width": 8, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        surrogate = Surrogate.from_config(events.card, fields)
    surrogate.fit_scaling(events)
    return surrogate.eval()


# ---- the coding of events


@pytest.mark.parametrize("card", ["wino_udd", "wino_lle", "ttbar_dilepton"])
@pytest.mark.parametrize("own_axis", [True, False])
def test_events_come_back_from_their_coordinates(card: str, own_axis: bool) -> None:
    events = toy_events(card)
    space = EventSpace(events.card, own_axis)
    axis = space.axis_of(events) if own_axis else 6 * torch.rand(len(events)).double() - 3
    raw = space.raw(events, axis)
    space.fit(raw, events.present)
    x = space.encode(raw)
    assert x.shape == (len(events), len(space))
    assert len(space.names) == len(space)
    seen = space.decode(x, axis)
    p4 = momenta(seen, events.present, events.attributes["flavour"])
    torch.testing.assert_close(p4, events.p4, rtol=1e-5, atol=1e-4)
    size, angle = seen.ptmiss.unbind(dim=-1)
    ptmiss = torch.stack([size * angle.cos(), size * angle.sin()], dim=-1)
    torch.testing.assert_close(ptmiss, events.ptmiss, rtol=1e-6, atol=1e-6)


def test_coordinates_do_not_know_the_azimuth_of_the_event(events: Events) -> None:
    angle = torch.tensor(1.234, dtype=torch.float64)
    turned = dataclasses.replace(
        events,
        p4=fv.rotate_z(events.p4, angle),
        ptmiss=fv.rotate_z(events.ptmiss, angle),
    )
    space = EventSpace(events.card, own_axis=True)
    raw = space.raw(events, space.axis_of(events))
    space.fit(raw, events.present)
    again = space.encode(space.raw(turned, space.axis_of(turned)))
    torch.testing.assert_close(space.encode(raw), again, rtol=1e-6, atol=1e-6)


def test_mirror_signs_are_those_of_mirrored_events(events: Events) -> None:
    space = EventSpace(events.card, own_axis=True)
    raw = space.raw(events, space.axis_of(events))
    space.fit(raw, events.present)
    x, there = space.encode(raw), space.there(events.present)
    for signs, flip in zip(space.mirror_signs, ((1, 1, -1, 1), (1, -1, 1, 1)), strict=True):
        flips = torch.tensor(flip, dtype=torch.float64)
        mirrored = dataclasses.replace(
            events, p4=events.p4 * flips, ptmiss=events.ptmiss * flips[:2]
        )
        image = space.encode(space.raw(mirrored, space.axis_of(mirrored)))
        torch.testing.assert_close(image[there], (x * signs)[there], rtol=1e-5, atol=1e-5)


def test_any_coordinates_make_events_that_fulfil_the_selection(events: Events) -> None:
    space = EventSpace(events.card, own_axis=True)
    raw = space.raw(events, space.axis_of(events))
    space.fit(raw, events.present)
    x = 2.5 * torch.randn(2000, len(space), generator=torch.Generator().manual_seed(2))
    seen = space.decode(x, torch.zeros(2000).double())
    for slot in space.slots:
        pt, eta = seen.pt[:, slot.index], seen.eta[:, slot.index]
        assert (pt >= slot.group.pt_min).all()
        if slot.rank:
            assert (pt <= seen.pt[:, slot.index - 1]).all()
        if not slot.paired:
            assert (eta.abs() <= slot.group.eta_max).all()


def test_pair_mass_is_a_coordinate_of_its_own(events: Events) -> None:
    space = EventSpace(events.card, own_axis=True)
    raw = space.raw(events, space.axis_of(events))
    column = [c.name for c in space.coordinates].index("photon2 pair mass")
    photons = events.p4[:, list(events.slots_of("photon"))].sum(dim=1)
    torch.testing.assert_close(raw[:, column].exp(), fv.mass(photons), rtol=1e-6, atol=1e-6)


def test_quantile_map_inverts_and_keeps_to_its_limits() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(5000, 3, generator=generator).double()
    values[:, 1] = -values[:, 1].log()
    values[:, 2] = torch.randn(5000, generator=generator).double()
    infinity = math.inf
    scores = QuantileMap(torch.tensor([0, 0, -infinity]), torch.tensor([1, infinity, infinity]))
    scores.fit(values, torch.ones_like(values, dtype=torch.bool))
    z = scores(values)
    torch.testing.assert_close(scores.inverse(z), values, rtol=1e-4, atol=1e-4)
    assert z.mean(dim=0).abs().max() < 0.02
    assert (z.std(dim=0) - 1).abs().max() < 0.03
    far = scores.inverse(torch.tensor([[-9.0] * 3, [9.0] * 3]).double())
    assert (far[:, 0] >= 0).all()
    assert (far[:, 0] <= 1).all()
    assert far[0, 1] >= 0
    assert far[1, 2] > 4


# ---- the model


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("condition", ["masses", "partons"])
def test_every_family_trains_and_simulates(events: Events, family: str, condition: str) -> None:
    surrogate = untrained(events, family, condition=condition)
    generator = torch.Generator().manual_seed(1)
    batch = surrogate.augment(surrogate.prepare(events), generator)
    loss = surrogate.loss_prepared(batch, generator)
    loss.backward()
    assert loss.isfinite()
    truth = surrogate.condition_of(events)[:50]
    fast = surrogate.simulate_truth(truth, seed=3)
    fast.validate()
    assert len(fast) == 50
    assert fast.card == events.card
    found = fast.masses if condition == "masses" else fast.partons
    assert found is not None
    torch.testing.assert_close(found, truth)


def test_an_event_follows_from_the_seed_and_its_number(events: Events) -> None:
    surrogate = untrained(events)
    assert events.masses is not None
    whole = surrogate.simulate_truth(events.masses, seed=5)
    parts = surrogate.simulate_truth(events.masses, seed=5, batch_size=150)
    torch.testing.assert_close(whole.p4, parts.p4, rtol=1e-4, atol=1e-3)
    other = surrogate.simulate_truth(events.masses, seed=6)
    assert not torch.equal(whole.p4, other.p4)


def test_cuts_that_no_coordinate_guarantees_hold_too() -> None:
    events = toy_events("ttbar_dilepton")
    surrogate = untrained(events)
    assert events.masses is not None
    fast = surrogate.simulate_truth(events.masses)
    jets, leptons = list(fast.slots_of("jet")), list(fast.slots_of("lepton"))
    assert ((fast.attributes["btag"][:, jets] >= 2).sum(dim=1) >= 2).all()
    assert (fast.attributes["charge"][:, leptons].sum(dim=1) == 0).all()
    wino = untrained(toy_events()).simulate_truth(torch.full((300, 2), 400.0))
    assert fv.eta(wino.p4[:, wino.slots_of("photon")[1]]).abs().max() <= 2.5


def test_azimuth_of_the_event_is_random(events: Events) -> None:
    fast = untrained(events).simulate_truth(torch.full((2000, 2), 400.0))
    phi = fv.phi(fast.p4[:, fast.slots_of("jet")[0]])
    assert abs(float(phi.cos().mean())) < 0.08
    assert abs(float(phi.sin().mean())) < 0.08


def test_a_saved_surrogate_simulates_the_same(events: Events, tmp_path: Path) -> None:
    surrogate = untrained(events)
    surrogate.save(tmp_path / "s")
    again = load_surrogate(tmp_path / "s")
    masses = torch.full((20, 2), 400.0)
    torch.testing.assert_close(
        surrogate.simulate_truth(masses).p4, again.simulate_truth(masses).p4, rtol=0, atol=0
    )


def test_wrong_arguments_are_named(events: Events, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="family"):
        SurrogateConfig(family="trees")
    with pytest.raises(InputError, match="setting of flow"):
        SurrogateConfig(family="flow", head={"widht": 3})
    surrogate = untrained(events)
    with pytest.raises(InputError, match="masses"):
        surrogate.simulate_truth(torch.zeros(3, 5))
    with pytest.raises(InputError, match="masses"):
        surrogate.prepare(dataclasses.replace(events, masses=None))
    with pytest.raises(ModelError, match="untrained"):
        Surrogate(events.card, SurrogateConfig()).sample(events, 1)
    with pytest.raises(ModelError, match="not a saved model"):
        load_surrogate(tmp_path)
    with pytest.raises(InputError, match="simulate_truth"):
        simulate_fast(untrained(events, condition="partons"), 10)


def perturbed_head(n_targets: int) -> AutoregressiveHead:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        head = AutoregressiveHead(n_targets, 2, AutoregressiveConfig(width=16))
        for weights in head.parameters():
            weights += 0.2 * torch.randn(weights.shape)
    return head


def test_autoregressive_density_is_normalised_and_that_of_its_draws() -> None:
    head, context = perturbed_head(2), torch.tensor([[0.5, -1.0]])
    axis = torch.linspace(-15, 15, 601)
    grid = torch.cartesian_prod(axis, axis)
    density = head.log_prob(grid.unsqueeze(1), context).exp()[:, 0] * 0.05**2
    assert float(density.sum()) == pytest.approx(1.0, abs=0.01)
    draws = head.sample(context, 20_000, seed=2)[:, 0]
    for power in (1, 2):
        expected = (density.unsqueeze(1) * grid**power).sum(dim=0)
        error = (draws**power).std(dim=0) / math.sqrt(len(draws))
        assert ((draws**power).mean(dim=0) - expected).abs().div(error).max() < 5


def test_components_that_are_not_there_stay_noise_and_change_no_other_event() -> None:
    head = perturbed_head(5)
    with torch.no_grad():
        context, draws = torch.zeros(60, 2), Draws(1, torch.arange(60), torch.arange(3))
        there = torch.arange(5) < (torch.arange(60) % 4 + 2).unsqueeze(1)
        part = head.draw_where(there, context, draws)
        whole = head.draw_block(context, draws, None, "")
    first = there.expand(3, -1, -1)
    torch.testing.assert_close(part[first], whole[first])
    assert not torch.allclose(part[~first], whole[~first])


def test_unbending_inverts_the_splines_of_training() -> None:
    generator = torch.Generator().manual_seed(1)
    knots = 3 * torch.randn(5000, 3 * 6 - 1, generator=generator).double()
    x = 3 * torch.randn(5000, generator=generator).double()
    spline = zuko.transforms.MonotonicRQSTransform(knots[:, :6], knots[:, 6:12], knots[:, 12:])
    y, _ = spline.call_and_ladj(x)
    torch.testing.assert_close(unbend(y, knots, 6), x, rtol=1e-6, atol=1e-6)
    assert (x.abs() > 5).any()
    assert not torch.allclose(x, y, atol=0.1)


# ---- learning, and the tests of it


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Surrogate, Events]:
    train = toy_events(n=3000, seed=3)
    surrogate = fit_surrogate(
        "autoregressive",
        train,
        training=TrainingConfig(
            max_steps=120, batch_size=256, learning_rate=5e-3, rounds=3, accelerator="cpu"
        ),
        options={"width": 16},
        out=tmp_path_factory.mktemp("surrogate") / "s",
        progress=False,
    )
    return surrogate, toy_events(n=2000, seed=4)


def test_learned_events_look_like_the_training_events(fitted: tuple[Surrogate, Events]) -> None:
    surrogate, test = fitted
    assert test.masses is not None
    features, _ = object_kinematics(test)
    fast, _ = object_kinematics(surrogate.simulate_truth(test.masses, seed=1))
    assert separation(features, fast).auc < 0.60
    # what has learned nothing but marginals, and what is wrong in one of them, must fail
    shifted = fast.clone()
    shifted[:, 0] *= 1.3
    assert separation(features, shifted).auc > 0.60
    assert separation(features, torch.where(fast.isnan(), fast, fast + 0.3)).auc > 0.7


def test_the_condition_matters(fitted: tuple[Surrogate, Events]) -> None:
    surrogate, _ = fitted
    default = [m.default for m in surrogate.card.masses.values()]
    light = simulate_fast(surrogate, 1500, {"chi20": 620, "chi10": default[1] + 1}, seed=1)
    heavy = simulate_fast(surrogate, 1500, {"chi20": 620, "chi10": default[1] + 49}, seed=1)
    found = [float(fv.pt(e.p4[:, e.slots_of("jet")[0]]).mean()) for e in (light, heavy)]
    assert found[0] > 1.3 * found[1]


def test_derived_quantities_are_missing_where_objects_are(events: Events) -> None:
    found = derived_quantities(events)
    n_jets = events.present[:, list(events.slots_of("jet"))].sum(dim=1)
    assert torch.equal(found["mass of 3 jets"].isfinite(), n_jets >= 3)
    assert found["mass of photons"].isfinite().all()
    assert (found["ht"] > 50).all()


def test_separation_of_shifted_normals_is_the_known_one() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(8000, 1, generator=generator).double() for _ in range(2))
    found = separation(a, b + 1)
    expected = 0.5 * (1 + math.erf(0.5))  # Phi(1 / sqrt 2)
    assert found.auc == pytest.approx(expected, abs=5 * found.error)
    assert separation(a, b).auc == pytest.approx(0.5, abs=5 * separation(a, b).error)
    with pytest.raises(InputError, match="100"):
        separation(a[:30], b)


def test_speed_is_compared_event_by_event() -> None:
    def busy(seconds: float) -> Callable[[int], None]:
        def work(n: int) -> None:
            end = time.process_time() + 0.05 + n * seconds
            while time.process_time() < end:
                pass

        return work

    found = compare_speed(busy(0.002), busy(0.0005), 200, 400, rounds=2)
    assert found.ratio == pytest.approx(4.0, rel=0.25)
    assert found.least <= found.ratio <= found.largest
    assert found.simulation == pytest.approx(0.002, rel=0.2)
    with pytest.raises(InputError, match="four events for each"):
        compare_speed(busy(0.0), busy(0.0), 3, 100, rounds=1)


def test_processor_time_leaves_out_the_start() -> None:
    def work(count: int) -> None:
        total = 0.0
        for i in range(400_000 + 40_000 * count):
            total += math.sqrt(i)

    start = processor_time(work, 1, 2)
    many = processor_time(work, 10, 60)
    assert 0 < many < 0.05
    assert start >= 0
    with pytest.raises(InputError, match="many"):
        processor_time(work, 3, 3)
