"""What a training makes of its device: compiled networks, faster matrix products."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.models import create_model
from massrecon.models.base import MassModel
from massrecon.models.devices import compiled, eagerly, matrix_products, networks
from massrecon.models.recipe import TrainingConfig
from massrecon.models.training import train
from tests.conftest import ToyEvents

FAMILIES = [
    "cascade",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("diffusion", "flow", "mass_head")),
]


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(200, seed=1)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """Lets networks be traced but not translated, which takes seconds; lists them."""
    found: list[nn.Module] = []
    original = nn.Module.compile

    def compile_(self: nn.Module, mode: str | None = None) -> None:
        found.append(self)
        original(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    yield found
    torch._dynamo.reset()


def trained(family: str, events: Events, compile_: str) -> tuple[MassModel, float]:
    """Trains for four steps; returns the model and its last validation loss."""
    torch.manual_seed(0)
    model = create_model(family, events.card, preset="small")
    recipe = TrainingConfig(max_steps=4, rounds=2, batch_size=64, compile=compile_)
    history = train(model, events[:150], events[150:], recipe, progress=False)
    return model, history.records[-1]["validation_loss"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_networks_learn_the_same(
    family: str, events: Events, traced: list[nn.Module]
) -> None:
    plain, loss = trained(family, events, "none")
    assert not traced
    model, compiled_loss = trained(family, events, "kernels")
    assert {type(part).__name__ for part in traced} >= {type(model.encoder).__name__}
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    assert all(part._compiled_call_impl is None for part in model.modules())
    draws = [one.sample(events[:5], 4, seed=1) for one in (plain, model)]
    assert torch.allclose(*draws, rtol=1e-3, atol=0.5)


def test_networks_are_the_outermost_that_can_be_called() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"list": nn.ModuleList([inner]), "one": nn.Linear(2, 2)})
    assert networks(model) == [inner, model["one"]]


def test_a_block_leaves_nothing_behind(traced: list[nn.Module]) -> None:
    model = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ZeroDivisionError), compiled(model, "kernels"):
        assert model[0]._compiled_call_impl is not None
        assert copy.deepcopy(model)[0]._compiled_call_impl is None
        with eagerly("kernels"):
            assert model[0](torch.ones(1, 2)).shape == (1, 2)
        raise ZeroDivisionError
    assert model[0]._compiled_call_impl is None
    assert traced == [model[0]]


def test_faster_products_are_for_cuda_and_end_with_the_block() -> None:
    before = torch.get_float32_matmul_precision()
    with matrix_products("tf32", "cpu"):
        assert torch.get_float32_matmul_precision() == before
    with matrix_products("tf32", "cuda"):  # a setting, which needs no such device
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_graphs_need_cuda(events: Events) -> None:
    with pytest.raises(InputError, match="'cpu' has no CUDA graphs: use compile='kernels'"):
        train(
            create_model("mass_head", events.card, preset="small"), events, events,
            TrainingConfig(max_steps=1, compile="graphs", accelerator="cpu"), progress=False,
        )  # fmt: skip


def test_an_unknown_way_to_compile_is_named() -> None:
    with pytest.raises(InputError, match="'compile' should be one of none, kernels, graphs, got"):
        TrainingConfig(max_steps=1, compile="faster")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kernels_on_this_processor(events: Events) -> None:
    _, loss = trained("cascade", events, "none")
    _, compiled_loss = trained("cascade", events, "kernels")
    assert compiled_loss == pytest.approx(loss, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["kernels", "graphs"])
def test_kernels_and_graphs_on_a_gpu(events: Events, kind: str) -> None:
    losses = []
    for one in ("none", kind):
        torch.manual_seed(0)
        model = create_model("cascade", events.card, preset="small")
        recipe = TrainingConfig(
            max_steps=4, batch_size=64, compile=one, precision="tf32", accelerator="cuda"
        )  # fmt: skip
        history = train(model, events[:150], events[150:], recipe, progress=False)
        losses.append(history.records[-1]["validation_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
