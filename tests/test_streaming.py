"""Training on events that are read part by part: the same events, orders, losses, less memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError, StoreError
from massrecon.events.container import Events
from massrecon.events.store import open_folder
from massrecon.events.stream import EventStream
from massrecon.models import create_model
from massrecon.models.checkpoint import TrainingState
from massrecon.models.ranks import Rank
from massrecon.models.streaming import PreparedParts, StreamedBatches, save_prepared
from massrecon.models.training import TrainingConfig, train

ToyEvents = Callable[..., Events]


@pytest.fixture(scope="module")
def folder(toy_events: ToyEvents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 1,200 events in six parts."""
    path = tmp_path_factory.mktemp("stream") / "events"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("massrecon.events.writer.EVENTS_PER_FILE", 200)
        toy_events(1200, seed=41).save(path)
    assert len(open_folder(path).entries) == 6
    return path


TINY: dict[str, Any] = {
    "dim": 16, "layers": 1, "token_hidden": 16, "denoiser_hidden": 24, "noise_draws": 2,
    "diffusion_steps": 100,
}  # fmt: skip


def config(**changes: Any) -> TrainingConfig:
    usual = {"max_steps": 40, "batch_size": 64, "rounds": 2, "accelerator": "cpu", "seed": 3}
    return TrainingConfig(**{**usual, "precision": "float32", **changes})


def test_a_stream_holds_the_events_of_the_folder(folder: Path) -> None:
    stream, events = EventStream.open(folder), mr.load_events(folder)
    assert stream.sizes == (200,) * 6
    joined = Events.concat([stream.part(number) for number in range(6)])
    assert torch.equal(joined.p4, events.p4)
    assert len(stream) == len(events) == 1200


@pytest.mark.parametrize("by_masses", [True, False])
def test_what_is_set_aside_is_not_trained_on(
    folder: Path, toy_events: ToyEvents, tmp_path: Path, by_masses: bool
) -> None:
    events = toy_events(1200, seed=41)
    if not by_masses:  # too few mass points to spare any
        events = dataclasses.replace(events, masses=events.masses[:10].repeat(120, 1))
        events.save(folder := tmp_path / "few")
    rest, aside = EventStream.open(folder).set_aside(0.2, 600, seed=1)
    kept = Events.concat([rest.part(number) for number in range(len(rest.sizes))])
    assert tuple(map(len, (kept, aside))) == (len(rest), 1200 - len(rest))
    # toys have ten events a mass point
    assert len(aside) == 240 if by_masses else 0.1 < len(aside) / 1200 < 0.3
    both = torch.cat([kept.p4, aside.p4]).flatten(1)
    assert torch.equal(both.unique(dim=0), events.p4.flatten(1).unique(dim=0))
    shared = set(map(tuple, kept.masses.tolist())) & set(map(tuple, aside.masses.tolist()))
    assert bool(shared) is not by_masses
    again, few = EventStream.open(folder).set_aside(0.2, 60, seed=1)
    assert len(few) < 0.1 * 1200
    assert again.fingerprint != rest.fingerprint
    by_event = EventStream.open(folder).set_aside(0.2, 4, seed=1)[1]  # less than a mass point
    assert 0 < len(by_event) < 15
    assert len(by_event) % 10 != 0


def test_a_subsample_is_even_and_has_the_extreme_masses(folder: Path) -> None:
    stream, events = EventStream.open(folder), mr.load_events(folder)
    some = stream.subsample(50)
    assert 50 <= len(some) <= 54
    assert torch.equal(some.p4[:50], events[::24].p4)
    for end in (torch.amin, torch.amax):
        assert torch.equal(end(some.masses, dim=0), end(events.masses, dim=0))
    assert some.p4.untyped_storage().nbytes() < 2 * some.p4.nbytes  # no part is held by it
    assert torch.equal(stream.subsample(5000).p4, events.p4)


def test_damage_is_noticed_when_a_part_is_read(folder: Path, toy_events: ToyEvents) -> None:
    copy = folder.with_name("damaged")
    toy_events(30, seed=1).save(copy)
    with (copy / "part-00000.parquet").open("r+b") as file:
        file.seek(200)
        file.write(b"\0\1\2\3")
    with pytest.raises(StoreError, match="is damaged"):
        EventStream.open(copy).part(0)


@pytest.fixture
def numbered(tmp_path: Path) -> PreparedParts:
    """Ten parts of events that are just numbered."""
    sizes = (30, 10, 20, 0, 40, 25, 35, 15, 5, 20)
    parts, first = PreparedParts(tmp_path, sizes), 0
    for number, size in enumerate(sizes):
        rows = torch.arange(first, first + size).float()
        if size:
            save_prepared({"targets": rows}, parts.file(number))
        first += size
    return parts


def rows_of(batches: StreamedBatches, steps: range) -> torch.Tensor:
    return torch.cat([batches.batch(step)[1]["targets"] for step in steps])


def test_an_epoch_shows_every_event_once_in_another_order(numbered: PreparedParts) -> None:
    recipe = config(batch_size=8, shuffle_events=80)
    batches = StreamedBatches(numbered, recipe, TrainingState(identity=""))
    assert batches.steps_per_epoch == 25
    epochs = [rows_of(batches, range(25 * e, 25 * e + 25)) for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(200).float())
        assert not torch.equal(epoch[:40].sort().values, torch.arange(40).float())
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_follows_from_seed_and_step_alone(numbered: PreparedParts) -> None:
    recipe = config(batch_size=16, shuffle_events=80)
    one = StreamedBatches(numbered, recipe, TrainingState(identity=""))
    backwards = StreamedBatches(numbered, recipe, TrainingState(identity=""))
    there = [one.batch(step)[1]["targets"] for step in range(30)]
    back = [backwards.batch(step)[1]["targets"] for step in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True))
    other = StreamedBatches(numbered, config(batch_size=16, seed=4), TrainingState(identity=""))
    assert not torch.equal(other.batch(0)[1]["targets"], there[0])


def test_memory_holds_two_groups_of_parts(
    numbered: PreparedParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config(batch_size=8, shuffle_events=80)
    batches, held, read = StreamedBatches(numbered, recipe, TrainingState(identity="")), [], []
    load = PreparedParts.load

    def counted(self: PreparedParts, numbers: Any) -> Any:
        read.extend(numbers)
        held.append(sum(len(order) for _, order in batches.held.values()))
        return load(self, numbers)

    monkeypatch.setattr(PreparedParts, "load", counted)
    rows_of(batches, range(50))
    assert sorted(read) == sorted(2 * [n for n, size in enumerate(numbered.sizes) if size])
    # when a group of at most 40 is read there is at most one more
    assert 0 < max(held) <= 40


def test_processes_share_a_batch(numbered: PreparedParts) -> None:
    recipe = config(batch_size=9)
    whole = StreamedBatches(numbered, recipe, TrainingState(identity="")).batch(3)[1]["targets"]
    shares = [
        StreamedBatches(numbered, recipe, TrainingState(identity=""), Rank(n, 2)).batch(3)[1]
        for n in (0, 1)
    ]
    joined = torch.cat([share["targets"] for share in shares])
    assert torch.equal(joined.sort().values, whole.sort().values)
    mean = sum(share["share"] * share["targets"].mean() for share in shares) / 2
    assert mean.item() == pytest.approx(whole.mean().item())


def fitted(events: Any, out: Path | None = None, **changes: Any) -> mr.MassModel:
    return mr.fit(
        "barman2025", events, preset="small", training=config(**changes), out=out,
        progress=False, options=TINY,
    )  # fmt: skip


def test_streamed_training_has_the_loss_of_one_in_memory(folder: Path, tmp_path: Path) -> None:
    rest, aside = EventStream.open(folder).set_aside(0.1, 1000, seed=3)
    in_memory = Events.concat([rest.part(number) for number in range(6)])
    losses = []
    for events in (in_memory, rest):
        model = create_model("barman2025", rest.card, "small", **TINY)
        settings = config(max_steps=150, shuffle_events=400, learning_rate=5e-3)
        history = train(model, events, aside, settings, progress=False)
        losses.append([r["validation_loss"] for r in history.records])
    start, end = losses[0][0], losses[0][-1]
    assert end < 0.75 * start
    assert losses[1][-1] == pytest.approx(end, abs=0.1 * (start - end))


def test_fit_takes_a_folder_and_leaves_only_the_model(folder: Path, tmp_path: Path) -> None:
    model = fitted(folder, tmp_path / "model", shuffle_events=300)
    assert sorted(p.name for p in (tmp_path / "model.training").iterdir()) == [
        "history.json", "training.ckpt",
    ]  # fmt: skip
    about = model.metadata
    assert about["n_train"] + about["n_validation"] == 1200
    assert 0 < about["n_validation"] <= 300
    m1 = mr.load_events(folder).masses[:, 1]
    ends = [about["training_prior"][end][0] for end in ("low", "high")]
    assert ends == pytest.approx([m1.min().item(), m1.max().item()], abs=20)
    again = fitted(folder, tmp_path / "model", shuffle_events=300)  # finished: returns at once
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_prepared_events_survive_an_interrupt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted(folder, shuffle_events=300)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("massrecon.models.training._run", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(folder, tmp_path / "m", shuffle_events=300)
    (prepared,) = (tmp_path / "m.training").iterdir()
    assert len(list(prepared.glob("part-*.safetensors"))) == 6
    monkeypatch.setattr("massrecon.models.streaming.save_prepared", stop)  # not made again
    again = fitted(folder, tmp_path / "m", shuffle_events=300)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_what_cannot_be_streamed_says_so(
    folder: Path, toy_events: ToyEvents, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="'trees' needs all events in memory"):
        mr.fit("trees", folder, max_epochs=1, progress=False)
    with pytest.raises(StoreError, match="nothing"):
        mr.fit("flow", tmp_path / "nothing", max_epochs=1, progress=False)
    toy_events(2, seed=1).save(tmp_path / "two")
    with pytest.raises(InputError, match="too few events to set some aside, 2"):
        mr.fit("flow", tmp_path / "two", max_epochs=1, progress=False)


_LIMITED = """
import json, resource, sys
import massrecon as mr
from massrecon.models.training import TrainingConfig

folder, streamed, room = sys.argv[1], sys.argv[2] == "stream", int(sys.argv[3])
mr.fit("flow", folder + "/small", preset="small", progress=False,
       training=TrainingConfig(max_steps=2, batch_size=64, accelerator="cpu"))
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = used * 1024 + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    events = folder + "/large" if streamed else mr.load_events(folder + "/large")
    recipe = TrainingConfig(max_steps=30, batch_size=64, rounds=2, shuffle_events=4_000,
                            metric_events=32, accelerator="cpu")
    model = mr.fit("flow", events, preset="small", progress=False, training=recipe)
    print(json.dumps(model.metadata["history"]["records"][-1]["validation_loss"]))
except (MemoryError, RuntimeError, mr.MassReconError) as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA and /proc")
def test_a_folder_larger_than_memory(
    toy_events: ToyEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for 58 % of the events, loading fails, and training on a stream works."""
    events = toy_events(12_000, seed=5)
    toy_events(200, seed=6).save(tmp_path / "small")
    monkeypatch.setattr("massrecon.events.writer.EVENTS_PER_FILE", 2_000)
    for _ in range(10):
        events.save(tmp_path / "large", append=True)
    size = 10 * sum(t.nbytes for t in events.tensors().values())
    found = {}
    for how in ("stream", "load"):
        child = subprocess.run(
            [sys.executable, "-c", _LIMITED, str(tmp_path), how, str(int(0.58 * size))],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
            check=True,
        )  # fmt: skip
        found[how] = json.loads(child.stdout.splitlines()[-1])
    assert isinstance(found["stream"], float), found
    assert "not enough memory" in found["load"], found
