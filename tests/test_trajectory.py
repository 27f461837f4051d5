"""The way of draws from noise: every family that denoises, every sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.store import load_events
from massrecon.models import create_model, load_model
from massrecon.models.base import MassModel
from massrecon.models.trajectory import DENOISING, trajectory
from tests.conftest import ToyEvents
from tests.weights import stirred

TINY: dict[str, Any] = {"dim": 16, "layers": 1, "heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "barman2025": TINY | {"denoiser_hidden": 32},
    "diffusion": TINY | {"token_hidden": 16, "width": 16},
    "flow_matching": TINY | {"token_hidden": 16, "width": 16},
}


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(60, seed=21)


def untrained(name: str, card: ProcessCard, events: Events) -> MassModel:
    model = create_model(name, card, "small", seed=1, **SIZES[name])
    model.fit_scaling(events)
    return stirred(model, seed=2).eval()


CASES = [
    ("barman2025", "ddim", 8), ("barman2025", "heun", 8), ("barman2025", "ancestral", None),
    ("diffusion", "dpm++", 6), ("diffusion", "heun", 7), ("diffusion", "ancestral", 6),
    ("flow_matching", "heun", 8), ("flow_matching", "euler", 5), ("flow_matching", "dpm++", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "solver", "steps"), CASES)
def test_the_way_ends_at_the_draws(
    name: str, solver: str, steps: int | None, card: ProcessCard, events: Events
) -> None:
    model, few = untrained(name, card, events), events[:2]
    way = trajectory(model, few, 5, steps, solver, seed=3)
    drawn = model.sample(few, 5, steps=steps, solver=solver, seed=3)
    assert way.names == model.target_names
    assert torch.equal(way.states[-1], drawn)
    assert torch.equal(way.predicted[-1], drawn)
    assert bool((way.spread.diff() < 0).all())
    assert (float(way.signal[-1]), float(way.spread[-1])) == (1.0, 0.0)
    assert float(way.spread[0]) > 0.99
    assert len(way) == len(way.signal) == len(way.spread)
    if solver == "heun":
        assert len(way) == (steps or 0) // 2 + 1 + (name != "flow_matching") * ((steps or 0) % 2)
    assert bool(way.states.isfinite().all())


def test_masses_of_a_cascade_stand_still_and_its_momenta_begin_as_noise() -> None:
    model = load_model("wino_udd")
    few = load_events("wino_udd_600_200")[:2]
    way = trajectory(model, few, 100, 8, seed=4)
    drawn = model.sample(few, 100, steps=8, seed=4)
    assert torch.allclose(way.states[-1], drawn, atol=1e-2)
    masses = [i for i, name in enumerate(way.names) if name.endswith("_m")]
    assert way.carried.tolist() == [i not in masses for i in range(len(way.names))]
    assert torch.equal(way.states[0][..., masses], way.states[-1][..., masses])
    # noise is the same for all events, up to the turn of their frames
    radius = way.states[0][..., :2].norm(dim=-1)
    assert torch.allclose(radius.mean(0)[0], radius.mean(0)[1], rtol=0.2)
    narrow, broad = way.states[-1][..., :3].std(0), way.states[0][..., :3].std(0)
    assert bool((narrow < 0.8 * broad).all())


def test_other_families_and_arguments_are_refused(card: ProcessCard, events: Events) -> None:
    flow = create_model("flow", card, "small", seed=1, dim=16, layers=1, heads=2, token_hidden=16)
    flow.fit_scaling(events)
    with pytest.raises(ModelError, match=f"choose one of {', '.join(DENOISING)}"):
        trajectory(flow, events[:1], 5)
    model = untrained("diffusion", card, events)
    with pytest.raises(InputError, match="'n_samples' should be at least 1"):
        trajectory(model, events[:1], 0)
    with pytest.raises(InputError, match="Unknown solver"):
        trajectory(model, events[:1], 2, solver="euler")
    with pytest.raises(InputError, match="between 1 and"):
        trajectory(untrained("barman2025", card, events), events[:1], 2, steps=0)
