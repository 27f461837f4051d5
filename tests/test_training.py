"""Training: rounds, budgets, averaged weights, and exact resume after a kill."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ModelError, TrainingStopped
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.models import MassModel, create_model
from massrecon.models import planning as planning_module
from massrecon.models import training as training_module
from massrecon.models.batches import Batches
from massrecon.models.checkpoint import STOP_FILE, TrainingState
from massrecon.models.recipe import Plan, learning_rate
from massrecon.models.training import TrainingConfig, TrainingHistory, train

ToyEvents = Callable[..., Events]
BASE = {"batch_size": 32, "rounds": 4, "accelerator": "cpu", "precision": "float32", "seed": 3}


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"max_steps": 24, **BASE, **changes})


def tiny(card: ProcessCard) -> MassModel:
    return create_model(
        "barman2025", card, "small", dim=16, layers=1, token_hidden=16, denoiser_hidden=24,
        noise_draws=2, diffusion_steps=100,
    )  # fmt: skip


@pytest.fixture(scope="module")
def train_events(toy_events: ToyEvents) -> Events:
    return toy_events(200, seed=31)


@pytest.fixture(scope="module")
def validation_events(toy_events: ToyEvents) -> Events:
    return toy_events(70, seed=32)


def run(
    card: ProcessCard, sample: tuple[Events, Events], settings: TrainingConfig, **options: Any
) -> tuple[dict[str, Tensor], TrainingHistory]:
    model = tiny(card)
    history = train(model, *sample, settings, progress=False, **options)
    return dict(model.state_dict()), history


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def without_times(history: TrainingHistory) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


@pytest.fixture(scope="module")
def sample(train_events: Events, validation_events: Events) -> tuple[Events, Events]:
    return train_events, validation_events


@pytest.fixture(scope="module")
def reference(
    card: ProcessCard, sample: tuple[Events, Events]
) -> tuple[dict[str, Tensor], TrainingHistory]:
    """The uninterrupted training of 24 steps that others are compared with."""
    return run(card, sample, config())


def test_history_records_every_round(
    reference: tuple[dict[str, Tensor], TrainingHistory],
) -> None:
    history = reference[1]
    assert [r["step"] for r in history.records] == [1, 6, 12, 18, 24]
    assert history.records[1]["epoch"] == pytest.approx(6 / (200 // 32), abs=1e-3)
    assert history.total_steps == 24
    seconds = [r["seconds"] for r in history.records]
    assert seconds == sorted(seconds)
    assert history.best["validation_loss"] == min(r["validation_loss"] for r in history.records)
    assert history.records[-1]["validation_loss"] < history.records[0]["validation_loss"]
    assert json.loads(json.dumps(history.to_dict())) == history.to_dict()


def test_same_seed_same_weights(
    card: ProcessCard,
    sample: tuple[Events, Events],
    reference: tuple[dict[str, Tensor], TrainingHistory],
) -> None:
    torch.manual_seed(12345)
    weights, history = run(card, sample, config())
    assert same(weights, reference[0])
    assert without_times(history) == without_times(reference[1])
    other, _ = run(card, sample, config(seed=4))
    assert not same(other, reference[0])


def test_training_learns_the_masses(card: ProcessCard, toy_events: ToyEvents) -> None:
    events = toy_events(1000, seed=33)
    model = tiny(card)
    history = train(
        model, events[:800], events[800:], config(max_steps=150, batch_size=64, learning_rate=5e-3),
        progress=False,
    )  # fmt: skip
    losses = [r["validation_loss"] for r in history.records]
    assert losses[-1] < 0.8 * losses[0]


_CHILD = """
import os, signal, sys
from pathlib import Path
import test_training as t
from conftest import _toy_wino_udd
from massrecon.events.card import load_card

card = load_card("wino_udd")
model = t.tiny(card)
augment, calls = model.augment, []

def deadly(batch, generator):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return augment(batch, generator)

model.augment = deadly
events = [_toy_wino_udd(card, n, seed, (50.0, 450.0)) for n, seed in ((200, 31), (70, 32))]
t.train(model, *events, t.config(), checkpoint_dir=sys.argv[1], progress=False)
"""


def test_resume_after_kill_9_is_exact(
    tmp_path: Path,
    card: ProcessCard,
    sample: tuple[Events, Events],
    reference: tuple[dict[str, Tensor], TrainingHistory],
) -> None:
    """Killed in step 16, four steps after a checkpoint."""
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), "16"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["training.ckpt"]
    assert torch.load(tmp_path / "training.ckpt", weights_only=True)["step"] == 12
    weights, history = run(card, sample, config(), checkpoint_dir=tmp_path)
    assert without_times(history) == without_times(reference[1])
    assert same(weights, reference[0])


def test_a_stop_file_ends_a_training_that_resumes_exactly(
    tmp_path: Path,
    card: ProcessCard,
    sample: tuple[Events, Events],
    reference: tuple[dict[str, Tensor], TrainingHistory],
) -> None:
    def ask(model: MassModel, events: Events) -> float:
        (tmp_path / STOP_FILE).touch()
        return 0.0

    with pytest.raises(TrainingStopped, match="after step 1 of 24. Its checkpoint is kept"):
        run(card, sample, config(), checkpoint_dir=tmp_path, metrics={"ask": ask})
    assert [p.name for p in tmp_path.iterdir()] == ["training.ckpt"]
    (tmp_path / STOP_FILE).touch()  # a stale one does not stop the next call
    weights, history = run(card, sample, config(), checkpoint_dir=tmp_path)
    assert [r["step"] for r in history.records] == [r["step"] for r in reference[1].records]
    assert same(weights, reference[0])


def test_finished_training_returns_at_once(
    tmp_path: Path, card: ProcessCard, sample: tuple[Events, Events], monkeypatch: Any
) -> None:
    weights, history = run(card, sample, config(max_steps=4), checkpoint_dir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.json", "training.ckpt"]
    assert json.loads((tmp_path / "history.json").read_text()) == history.to_dict()
    monkeypatch.setattr(training_module.pl, "Trainer", None)
    again, history_again = run(card, sample, config(max_steps=4), checkpoint_dir=tmp_path)
    assert same(again, weights)
    assert history_again == history


def test_checkpoint_of_another_training_is_refused(
    tmp_path: Path, card: ProcessCard, sample: tuple[Events, Events]
) -> None:
    run(card, sample, config(max_steps=2), checkpoint_dir=tmp_path)
    with pytest.raises(ModelError, match="belongs to a training with other events, model or"):
        run(card, sample, config(max_steps=3), checkpoint_dir=tmp_path)
    with pytest.raises(ModelError, match="belongs to a training with other events"):
        run(card, (sample[0][:100], sample[1]), config(max_steps=2), checkpoint_dir=tmp_path)


def test_damaged_checkpoint_is_refused(
    tmp_path: Path, card: ProcessCard, sample: tuple[Events, Events]
) -> None:
    (tmp_path / "training.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"training.ckpt' is not a readable checkpoint: delete"):
        run(card, sample, config(max_steps=2), checkpoint_dir=tmp_path)


def test_validation_and_final_weights_are_the_averaged_ones(
    card: ProcessCard, sample: tuple[Events, Events]
) -> None:
    """With an average that never moves, the final weights are those after the first step."""
    kept, _ = run(card, sample, config(ema_decay=0.999999, max_steps=1, rounds=1))
    monitored: list[Tensor] = []

    def weight(model: MassModel, _: Events) -> float:
        monitored.append(model.state_dict()["embed_extra.weight"].clone())
        return 0.0

    plain, history = run(card, sample, config(ema_decay=0.0), metrics={"w": weight})
    assert not same(kept, plain)
    # metrics see the weights that the record, and in the end the model, stands for
    best = [r["step"] for r in history.records].index(history.best_step)
    assert torch.equal(monitored[best], plain["embed_extra.weight"])


def test_average_of_weights_against_a_loop() -> None:
    average = training_module._moving_average(0.9)
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    averaged, expected = values[0], float(values[0])
    for n, value in enumerate(values[1:], start=1):
        averaged = average(averaged, value, torch.tensor(n))
        keep = min(0.9, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * float(value)
    assert averaged.item() == pytest.approx(expected, rel=1e-5)


def test_metrics_are_recorded_on_a_subset(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    seen: list[tuple[int, bool]] = []

    def count(model: MassModel, events: Events) -> float:
        seen.append((len(events), model.training))
        return len(events)

    _, history = run(
        card, sample, config(max_steps=4, rounds=2, metric_events=20), metrics={"n": count}
    )
    assert len(seen) == len(history.records) == 3
    assert all(15 <= n <= 20 and not training for n, training in seen)
    assert [r["metrics"] for r in history.records] == [{"n": float(seen[0][0])}] * 3


def test_validation_noise_is_fixed(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    _, history = run(card, sample, config(max_steps=4, learning_rate=1e-12, weight_decay=0.0))
    losses = [r["validation_loss"] for r in history.records]
    assert max(losses) - min(losses) < 1e-6
    assert max(r["train_loss"] for r in history.records) - min(losses) != 0


def test_patience_stops_early(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    settings = config(max_steps=40, rounds=10, patience=2, learning_rate=1e-12, weight_decay=0.0)
    _, history = run(card, sample, settings)
    assert history.records[-1]["step"] < 40


def test_budget_in_minutes_is_kept(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    start = time.monotonic()
    _, history = run(card, sample, config(max_steps=None, max_minutes=0.05))
    # generous: the machine may be busy while the steps are timed or later
    assert 0.3 < time.monotonic() - start < 30
    assert history.records[-1]["step"] == history.total_steps > 10


def test_epochs_give_steps(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    _, history = run(card, sample, config(max_steps=None, max_epochs=2))
    assert history.total_steps == 2 * (200 // 32)
    assert history.records[-1]["epoch"] == pytest.approx(2.0)
    _, fewer = run(card, sample, config(max_steps=5, max_epochs=2))
    assert fewer.total_steps == 5


def test_an_epoch_shows_every_event_once() -> None:
    data = {"x": torch.arange(64)}
    batches = Batches(data, config(), TrainingState(identity=""))
    epochs = [[batches.batch(step)[1]["x"] for step in (2 * e, 2 * e + 1)] for e in range(3)]
    for epoch in epochs:
        assert torch.equal(torch.cat(epoch).sort().values, data["x"])
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_fewer_events_than_a_batch(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    _, history = run(card, (sample[0][:5], sample[1][:3]), config(max_steps=3))
    assert history.records[-1]["epoch"] == 3


def test_divergence_is_reported(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    with pytest.raises(ModelError, match="loss is not finite after .* lower 'learning_rate'"):
        run(card, sample, config(learning_rate=1e30, gradient_clip=1e30))


def test_events_without_truth_or_without_events(
    card: ProcessCard, sample: tuple[Events, Events]
) -> None:
    blind = dataclasses.replace(sample[1], partons=None, masses=None)
    with pytest.raises(InputError, match="Training needs events with truth"):
        run(card, (sample[0], blind), config())
    with pytest.raises(InputError, match="one is empty"):
        run(card, (sample[0][:0], sample[1]), config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "needs a budget: set max_minutes, max_epochs or max_steps"),
        ({"max_steps": 0}, "should be positive"),
        ({"batch_size": 0}, "'batch_size' should be positive, got 0"),
        (
            {"precision": "half"},
            "'precision' should be one of auto, bf16, tf32, float32, got 'half'",
        ),
        ({"ema_decay": 1.0}, r"'ema_decay' should be in \[0, 1\)"),
        ({"seed": -1}, "'seed' should not be negative, got -1"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_unknown_accelerator(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    with pytest.raises(InputError, match="Unknown accelerator 'gpux'.*choose from auto, cpu"):
        run(card, sample, config(accelerator="gpux"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="There is no 'cuda' device here"):
            run(card, sample, config(accelerator="cuda"))


def test_learning_rate_warms_up_and_falls() -> None:
    settings = config(learning_rate=1.0, warm_up=0.1)
    rates = [learning_rate(k / 100, settings) for k in range(101)]
    assert rates[0] == 0
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert all(b > a for a, b in itertools.pairwise(rates[:11]))
    assert all(b < a for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.0)


def ends_of(plan: Plan, rounds: int, step: int = 0) -> list[int]:
    ends = [step]
    while ends[-1] < plan.total_steps:
        ends.append(plan.next_round_end(ends[-1], rounds))
    return ends[1:]


def test_slow_validations_are_fewer() -> None:
    plan = Plan(total_steps=1000, most_rounds=4)
    assert ends_of(plan, 10) == [30, 250, 500, 750, 1000]
    assert plan.rounds_left(500, 10) == 2
    assert plan.remade(500, 100).most_rounds == 4


def test_validations_leave_most_of_a_short_budget_to_the_steps(
    card: ProcessCard, sample: tuple[Events, Events]
) -> None:
    def slow(model: MassModel, events: Events) -> float:
        time.sleep(0.4)
        return 0.0

    settings = config(max_steps=None, max_minutes=0.1, rounds=20)
    _, history = run(card, sample, settings, metrics={"slow": slow})
    assert len(history.records) <= 6
    assert history.records[-1]["step"] > 50


def test_rounds_end_early_once_and_then_evenly() -> None:
    assert ends_of(Plan(total_steps=1000), 10) == [30, *range(100, 1001, 100)]
    assert ends_of(Plan(total_steps=1), 20) == [1]


def test_a_plan_made_anew_goes_on_where_the_old_one_was() -> None:
    old = Plan(total_steps=100)
    new = old.remade(step=50, steps_left=500)
    assert new.progress(50) == old.progress(50) == 0.5
    assert new.progress(300) == pytest.approx(0.75)
    assert new.progress(550) == 1
    assert ends_of(new, 10, step=50) == [150, 250, 350, 450, 550]
    assert [plan.rounds_left(50, 10) for plan in (old, new)] == [5, 5]
    assert new.rounds_left(449, 10) == 2
    assert new.rounds_left(450, 10) == 1


@pytest.mark.parametrize("guess", [2, 3_000])
def test_a_wrong_guess_of_the_speed_is_corrected(
    card: ProcessCard,
    sample: tuple[Events, Events],
    monkeypatch: pytest.MonkeyPatch,
    guess: int,
) -> None:
    monkeypatch.setattr(planning_module, "_plan_in_time", lambda *_: Plan(total_steps=guess))
    start = time.monotonic()
    _, history = run(card, sample, config(max_steps=None, max_minutes=0.1, rounds=8))
    assert 2 < time.monotonic() - start < 30
    assert 20 < history.total_steps < 20_000
    assert history.records[-1]["step"] == history.total_steps


def test_half_precision_trains_and_gives_float32_weights(
    card: ProcessCard, sample: tuple[Events, Events]
) -> None:
    weights, history = run(card, sample, config(precision="bf16", max_steps=6))
    assert all(w.dtype == torch.float32 for w in weights.values())
    assert history.records[-1]["validation_loss"] < 2


def test_training_leaves_no_trace(
    card: ProcessCard,
    sample: tuple[Events, Events],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No stray folder, no banner, no warning; quiet when asked; the signal handler as before."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(card, sample, config(max_steps=3))
    assert list(tmp_path.iterdir()) == []
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert signal.getsignal(signal.SIGINT) is handler


def test_progress_bar_shows_losses_and_metric(
    card: ProcessCard, sample: tuple[Events, Events], capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(card), *sample, config(max_steps=3), metrics={"chi10": lambda m, e: 0.25})
    shown = capfd.readouterr().err
    for part in ("train", "3/3", "loss=", "validation=", "chi10=0.25"):
        assert part in shown
    assert "GPU" not in shown
    assert "Tip" not in shown


def test_interrupt_is_an_interrupt(card: ProcessCard, sample: tuple[Events, Events]) -> None:
    def stop(model: MassModel, events: Events) -> float:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(card, sample, config(), metrics={"stop": stop})
    assert signal.getsignal(signal.SIGINT) is handler
