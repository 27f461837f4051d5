"""Processes that share a training: one process's loss, records by the first, deaths noticed."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.stream import EventStream
from massrecon.models import MODELS, create_model, load_model
from massrecon.models import ranks as ranks_module
from massrecon.models.batches import Batches, Chunks
from massrecon.models.checkpoint import TrainingState
from massrecon.models.ranks import Rank, check_processes, others_started
from massrecon.models.training import TrainingConfig, TrainingHistory, train

ToyEvents = Callable[..., Events]


def config(**changes: Any) -> TrainingConfig:
    usual = {"max_steps": 30, "batch_size": 32, "rounds": 3, "accelerator": "cpu", "seed": 3}
    return TrainingConfig(**{**usual, "precision": "float32", **changes})


def silent(card: ProcessCard) -> Any:
    """A model whose loss has no noise, so that it is the same for any number of processes."""
    return create_model(
        "mass_head", card, "small", targets="masses", target_noise=0.0, dim=16, layers=1,
        token_hidden=16,
    )  # fmt: skip


def run(
    card: ProcessCard, events: tuple[Any, Events], settings: TrainingConfig, **options: Any
) -> tuple[Any, TrainingHistory]:
    model = silent(card)
    return model, train(model, *events, settings, progress=False, **options)


@pytest.fixture(scope="module")
def sample(toy_events: ToyEvents) -> tuple[Events, Events]:
    events = toy_events(300, seed=51)
    events.weight[::3] = 2.5  # shares of a batch differ in weight
    return events[:250], events[250:]


def test_two_processes_give_the_loss_of_one(
    card: ProcessCard, sample: tuple[Events, Events], tmp_path: Path
) -> None:
    settings = config(augment=False, max_steps=12)
    seen: list[int] = []

    def metric(model: Any, events: Events) -> float:
        seen.append(len(events))
        return 1.0

    one, alone = run(card, sample, settings)
    two, shared = run(
        card, sample, config(augment=False, max_steps=12, processes=2),
        metrics={"m": metric}, checkpoint_dir=tmp_path / "t",
    )  # fmt: skip
    assert [r["step"] for r in alone.records] == [r["step"] for r in shared.records]
    for kind in ("train_loss", "validation_loss"):
        losses = [[r[kind] for r in history.records] for history in (alone, shared)]
        assert losses[1] == pytest.approx(losses[0], rel=2e-4)
    losses = [r["validation_loss"] for r in alone.records]
    assert max(losses) - min(losses) > 0.05  # the weights have moved
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    # the first process keeps the records, and nothing is left of the others
    assert seen == [50] * len(shared.records)
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["history.json", "training.ckpt"]
    assert not torch.distributed.is_initialized()
    assert not psutil.Process().children()


def test_shares_of_a_batch_add_up(sample: tuple[Events, Events]) -> None:
    x, weight = torch.randn(50), torch.rand(50) + 0.1
    data, state = {"x": x, "weight": weight}, TrainingState(identity="")
    _, whole = Batches(data, config(), state).batch(4)
    expected = (whole["x"] * whole["weight"]).sum() / whole["weight"].sum()
    assert "share" not in whole
    for world in (2, 3, 5):
        parts = [Batches(data, config(), state, Rank(n, world)).batch(4)[1] for n in range(world)]
        assert sorted(v for p in parts for v in p["x"].tolist()) == sorted(whole["x"].tolist())
        own = [p["share"] * (p["x"] * p["weight"]).sum() / p["weight"].sum() for p in parts]
        assert sum(own) / world == pytest.approx(float(expected), rel=1e-5)


def test_processes_take_turns_in_the_validation() -> None:
    data = {"x": torch.arange(70)}
    alone = [number for number, _ in Chunks(data, 10)]
    turns = [[number for number, _ in Chunks(data, 10, Rank(n, 3))] for n in range(3)]
    assert sorted(itertools.chain(*turns)) == alone == list(range(7))
    # too few slices for all: everybody takes all of them, which leaves the mean as it is
    assert [len(Chunks(data, 40, Rank(n, 3))) for n in range(3)] == [2, 2, 2]


def test_a_process_that_does_not_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "COMMAND", (sys.executable, "-c", "exit('no such luck')"))
    with (
        pytest.raises(ModelError, match=r"(?s)Process 1 .* \(exit code 1\).*no such luck"),
        others_started(2, tmp_path, "cpu"),
    ):
        pytest.fail("It started.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 0}, "'processes' should be positive, got 0"),
        ({"processes": 33}, "'processes' should be at most 'batch_size', 32.*got 33"),
        ({"processes": 2, "clock": "processor"}, "'clock' should be 'wall'"),
        ({"shuffle_events": 0}, "'shuffle_events' should be positive"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_too_many_processes_are_refused(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    with pytest.raises(InputError, match="'processes' is 7, but there are only 5 events"):
        run(card, (sample[0], sample[1][:5]), config(processes=7))
    if torch.cuda.device_count() < 8:
        with pytest.raises(InputError, match="at most"):
            check_processes(9, "cuda", 100)
    with pytest.raises(InputError, match="at most 1, the GPUs here, got 2"):
        check_processes(2, "mps", 100)


def test_settings_of_scale_do_not_disown_older_checkpoints() -> None:
    assert {"processes", "shuffle_events"}.isdisjoint(config().facts())
    assert config(processes=2).facts()["processes"] == 2
    assert config(shuffle_events=9).facts()["shuffle_events"] == 9
    assert config().facts()["seed"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in MODELS if name != "trees"])
def test_every_family_trains_in_two_processes(
    family: str, card: ProcessCard, toy_events: ToyEvents
) -> None:
    """The loss lies where those of single processes with other seeds lie."""
    events = toy_events(700, seed=52)

    def last_loss(processes: int, seed: int) -> float:
        model = create_model(family, card, "small", seed=1)
        settings = config(
            max_steps=40, batch_size=64, rounds=1, processes=processes, seed=seed,
            learning_rate=1e-3,
        )  # fmt: skip
        history = train(model, events[:500], events[500:], settings, progress=False)
        return history.records[-1]["validation_loss"]

    alone = np.array([last_loss(1, seed) for seed in range(3, 7)])
    width = max(float(alone.std(ddof=1)), 0.01 * abs(float(alone.mean())))
    assert last_loss(2, 3) == pytest.approx(float(alone.mean()), abs=4 * width)


@pytest.mark.slow
def test_a_killed_process_is_noticed_and_the_training_resumed(
    card: ProcessCard, sample: tuple[Events, Events], tmp_path: Path
) -> None:
    settings = config(max_steps=400, rounds=20, processes=2)
    expected, _ = run(card, sample, settings)
    folder = tmp_path / "t"

    def kill() -> None:
        while not (folder / "training.ckpt").exists():
            time.sleep(0.05)
        for child in psutil.Process().children():
            os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ModelError, match=r"Process 1 of the training .* \(exit code -9\)"):
        run(card, sample, settings, checkpoint_dir=folder)
    killer.join()
    step = torch.load(folder / "training.ckpt", weights_only=True)["step"]
    assert 0 < step < 400
    model, history = run(card, sample, settings, checkpoint_dir=folder)
    assert history.records[-1]["step"] == 400
    for a, b in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_two_processes_share_a_stream(
    card: ProcessCard, toy_events: ToyEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("massrecon.events.writer.EVENTS_PER_FILE", 100)
    events = toy_events(600, seed=53)
    events[:500].save(tmp_path / "e")
    found = []
    for processes in (1, 2):
        settings = config(augment=False, shuffle_events=200, processes=processes)
        model, history = run(card, (EventStream.open(tmp_path / "e"), events[500:]), settings)
        found.append((model, [r["validation_loss"] for r in history.records]))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)


@pytest.mark.slow
def test_the_command_trains_with_two_processes_from_a_stream(
    toy_events: ToyEvents, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from massrecon.cli import app

    toy_events(400, seed=54).save(tmp_path / "events")
    command = ["train", "barman2025", str(tmp_path / "events"), "--out", str(tmp_path / "model")]
    command += ["--preset", "small", "--steps", "6", "--processes", "2", "--stream"]
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--set", "batch_size=32"])
    assert done.exit_code == 0, done.output
    history = load_model(tmp_path / "model").metadata["history"]
    assert (history["config"]["processes"], history["config"]["batch_size"]) == (2, 32)
