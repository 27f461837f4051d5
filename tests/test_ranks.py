"""Processes that share a training: one process's loss, records by the first, deaths noticed."""

from __future__ import annotations

import dataclasses
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
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
from massrecon.models.rank_watch import RankWatch
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


def others() -> list[psutil.Process]:
    """The other processes of a training that run, without helpers that other tests have left."""
    command = list(ranks_module.COMMAND)
    children = psutil.Process().children()
    return [child for child in children if child.cmdline()[: len(command)] == command]


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
    assert not others()


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
        others_started(2, tmp_path, "cpu", 1.0),
    ):
        pytest.fail("It started.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 0}, "'processes' should be positive, got 0"),
        ({"processes": 33}, "'processes' should be at most 'batch_size', 32.*got 33"),
        ({"processes": 2, "clock": "processor"}, "'clock' should be 'wall'"),
        ({"process_minutes": -1.0}, "'process_minutes' should be positive, got -1"),
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
    assert config(process_minutes=1.0).facts() == config().facts()
    assert config(shuffle_events=9).facts()["shuffle_events"] == 9
    assert config().facts()["seed"] == 3


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_loss_of_one(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    """NCCL sums the gradients, gloo what is agreed upon."""
    losses = []
    for processes in (1, 2):
        settings = config(augment=False, max_steps=12, processes=processes, accelerator="cuda")
        _, history = run(card, sample, settings)
        losses.append([r["validation_loss"] for r in history.records])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


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


STUCK = """\
import time
from massrecon.models import rank_process, training

began = training._Task.training_step

def stuck(self, batch, batch_idx=0):
    while batch[0] == 25:
        time.sleep(0.1)
    return began(self, batch, batch_idx)

training._Task.training_step = stuck
rank_process.main()
"""


def beating(*lines: str) -> subprocess.Popen[bytes]:
    """A process that says its lines but for the last; that again and again if one is ``...``."""
    script = (
        "import sys, time\n"
        "*lines, last = sys.argv[1:]\n"
        "for line in lines:\n"
        "    print(line, flush=True)\n"
        "while '...' in lines:\n"
        "    print(last, flush=True)\n"
        "    time.sleep(0.1)\n"
        "time.sleep(600)\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, *lines], stdout=subprocess.PIPE)


@pytest.fixture
def watched() -> Iterator[Callable[..., RankWatch]]:
    """Starts a watch over processes, and ends both."""
    watches: list[RankWatch] = []
    others: list[subprocess.Popen[bytes]] = []

    def start(*lines: tuple[str, ...], seconds: float) -> RankWatch:
        others.extend(beating(*said) for said in lines)
        watches.append(RankWatch(others, seconds))
        watches[-1].start()
        assert watches[-1].await_ready() is None
        return watches[-1]

    yield start
    for watch in watches:
        watch.end()
    for other in others:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> bool:
    """Waits for something, as a process waits for the others."""
    last = time.monotonic() + seconds
    while not condition() and time.monotonic() < last:
        time.sleep(0.05)
    return bool(condition())


def in_torch(function: Callable[..., bool]) -> Callable[..., bool]:
    """The same function, but of torch's collectives."""
    code = function.__code__.replace(co_filename="/x/torch/distributed/distributed_c10d.py")
    return FunctionType(code, function.__globals__, argdefs=function.__defaults__)


def test_the_watch_names_a_silent_process(watched: Callable[..., RankWatch]) -> None:
    lively = ("ready", "...", "at its work")
    watch = watched(lively, ("ready", "at work", ""), seconds=25.0)
    assert until(lambda: watch.verdict)
    expected = r"Process 2 of .* no sign of life for 5 s .*process 1 was at its work; process 2 was"
    assert re.search(expected, str(watch.verdict))


def test_the_watch_names_who_keeps_others_waiting(watched: Callable[..., RankWatch]) -> None:
    lively = [("ready", "...", line) for line in ("waiting for all", "at a disk", "waiting too")]
    watch = watched(*lively, seconds=3.0)
    # the first process has work of its own: nobody is blamed
    assert not until(lambda: watch.verdict, seconds=5.0)
    # the first process waits, but not for the same thing all the time
    waits = in_torch(until)
    for _ in range(8):
        assert not waits(lambda: watch.verdict, seconds=0.7)
    assert waits(lambda: watch.verdict)
    assert "Process 2 of the training" in str(watch.verdict)
    assert "kept the others waiting for 3 s" in str(watch.verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("stops", r"Process 1 of .* gave no sign of life for 3 s and was ended"),
        ("is stuck", r"Process 1 of .* kept the others waiting for 15 s.*in __main__\.stuck, line"),
    ],
)
def test_a_process_that_hangs_is_named_and_nothing_lost(
    does: str,
    message: str,
    card: ProcessCard,
    sample: tuple[Events, Events],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is stopped by a signal, as when the machine swaps; one lives but does not come along."""
    settings = config(max_steps=400, rounds=40, processes=2, process_minutes=0.25)
    folder = tmp_path / "t"
    stopper = threading.Thread(target=when_checkpointed, args=(folder, signal.SIGSTOP))
    if does == "stops":
        stopper.start()
    else:
        monkeypatch.setattr(ranks_module, "COMMAND", (sys.executable, "-c", STUCK))
    with pytest.raises(ModelError, match=message) as found:
        run(card, sample, settings, checkpoint_dir=folder)
    if does == "stops":
        stopper.join()
    assert "The same call goes on from the last checkpoint" in str(found.value)
    assert not others()
    step = torch.load(folder / "training.ckpt", weights_only=True)["step"]
    assert 0 < step < 400
    monkeypatch.undo()
    # how long to wait is no part of the training: it may be changed
    patient = dataclasses.replace(settings, process_minutes=1.0)
    _, history = run(card, sample, patient, checkpoint_dir=folder)
    assert history.records[-1]["step"] == 400
    assert [r["step"] for r in history.records].count(step) == 1


def test_a_training_that_is_suspended_itself_goes_on(tmp_path: Path) -> None:
    """The time in which the first process is stopped, as by ctrl-Z, is not held against others."""
    script = (
        "import subprocess, sys, time\n"
        "from massrecon.models.rank_watch import RankWatch\n"
        'beat = \'import time\\nprint("ready")\\nwhile True:\\n print("at x", flush=True)\\n'
        " time.sleep(.2)'\n"
        "other = subprocess.Popen([sys.executable, '-c', beat], stdout=subprocess.PIPE)\n"
        "watch = RankWatch([other], 15.0)\n"
        "watch.start()\n"
        "assert watch.await_ready() is None\n"
        "print('here', flush=True)\n"
        "time.sleep(8)\n"
        "watch.end()\n"
        "other.kill()\n"
        "sys.exit(str(watch.verdict or 0))\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "here\n"
    others = psutil.Process(first.pid).children()
    for process in (*others, first):
        process.send_signal(signal.SIGSTOP)
    time.sleep(5)  # longer than the 3 s of silence that are allowed
    for process in (first, *others):
        process.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=60)
    assert errors.strip() == "0"


def when_checkpointed(folder: Path, number: signal.Signals) -> None:
    """Sends a signal to the other processes of a training once it has a checkpoint."""
    while not (folder / "training.ckpt").exists():
        time.sleep(0.05)
    for other in others():
        other.send_signal(number)


@pytest.mark.slow
def test_a_killed_process_is_noticed_and_the_training_resumed(
    card: ProcessCard, sample: tuple[Events, Events], tmp_path: Path
) -> None:
    settings = config(max_steps=400, rounds=20, processes=2)
    expected, _ = run(card, sample, settings)
    folder = tmp_path / "t"
    killer = threading.Thread(target=when_checkpointed, args=(folder, signal.SIGKILL))
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
