"""The monitor of trainings: what it reads, asking for a stop, and watching a folder change."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from massrecon.errors import InputError, ModelError
from massrecon.models.checkpoint import STOP_FILE, TrainingState
from massrecon.models.progress import ask_to_stop, training_progress
from massrecon.models.recipe import Plan, TrainingHistory
from massrecon.visual.explore.training_monitor import explore_training_monitor
from massrecon.visual.widgets.training_monitor import TrainingMonitor, resume_command


def record(step: int, loss: float) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 10, "seconds": 0.5 * step, "train_loss": loss + 0.1,
        "validation_loss": loss, "learning_rate": 1e-3, "metrics": {"chi10 within 30 GeV": 0.4},
    }  # fmt: skip


def checkpoint(folder: Path, steps: int, finished: bool = False) -> TrainingState:
    """Writes the checkpoint of a training of 100 steps, with a round every 10."""
    records = [record(step, 5.0 - step / 50) for step in range(10, steps + 1, 10)]
    state = TrainingState(
        identity="x", plan=Plan(total_steps=100), step=steps, seconds=0.5 * steps, records=records,
        best_step=steps, finished=finished, best_weights={"w": torch.zeros(1000)},
    )  # fmt: skip
    state.save(folder)
    return state


def test_a_running_training_is_read(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model.training", 40)
    found = explore_training_monitor(str(tmp_path / "model"))
    assert found.data["stage"] == "running"
    assert (found.data["step"], found.data["total_steps"]) == (40, 100)
    assert found.data["seconds_left"] == pytest.approx(30.0)
    assert found.data["metrics"] == {"chi10 within 30 GeV": 0.4}
    assert "Step 40 of 100 after 20 s; about 30 s left" in found.reading
    curves: Any = found.figure.data
    assert list(curves[1].y) == [5 - step / 50 for step in (10, 20, 30, 40)]


def test_finished_ones_are_read_from_history_and_model(tmp_path: Path) -> None:
    history = TrainingHistory(
        records=[record(10, 4.0), record(20, 3.0)], total_steps=20, best_step=20, seed=0,
        data_fingerprint="", config={},
    )  # fmt: skip
    history.save(tmp_path / "one" / "history.json")
    (tmp_path / "two").mkdir()
    header = {"format": "massrecon-model", "history": dataclasses.asdict(history)}
    (tmp_path / "two" / "model.json").write_text(json.dumps(header))
    for name in ("one", "two"):
        found = explore_training_monitor(str(tmp_path / name))
        assert found.data["stage"] == "finished"
        assert found.data["seconds_left"] == 0
        assert found.data["best_validation_loss"] == 3.0


def test_nothing_yet_is_a_training_that_waits(tmp_path: Path) -> None:
    found = explore_training_monitor(str(tmp_path / "model"))
    assert found.data["stage"] == "waiting"
    assert found.data["seconds_left"] is None
    assert "no checkpoint" in found.reading
    with pytest.raises(ModelError, match="no checkpoint yet: there is nothing to stop"):
        ask_to_stop(tmp_path / "model")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "training.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match="training.ckpt' is not a readable checkpoint"):
        training_progress(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "history.json").write_text('{"records": []}')
    with pytest.raises(ModelError, match="is not one of a training"):
        training_progress(tmp_path / "other")


def test_a_training_that_was_cut_off_is_said_to_be(tmp_path: Path) -> None:
    checkpoint(tmp_path, 40)
    assert not training_progress(tmp_path).is_silent
    long_ago = time.time() - 3600
    os.utime(tmp_path / "training.ckpt", (long_ago, long_ago))
    found = explore_training_monitor(str(tmp_path))
    assert found.data["silent"]
    assert "is 60 min old: the training was probably cut off" in found.reading


def test_asking_to_stop(tmp_path: Path) -> None:
    checkpoint(tmp_path, 40)
    monitor = TrainingMonitor(folder=str(tmp_path))
    monitor.stop_training()
    assert (tmp_path / STOP_FILE).exists()
    assert monitor.found is not None
    assert monitor.found.data["stage"] == "stopping"
    assert "stops after this round" in monitor.found.reading
    (tmp_path / STOP_FILE).unlink()
    checkpoint(tmp_path, 100, finished=True)
    monitor.stop_training()
    assert "has finished: there is nothing to stop" in monitor._note.value
    assert not (tmp_path / STOP_FILE).exists()


def wait_for(what: Any) -> None:
    end = time.monotonic() + 30
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    assert what()


def test_watching_shows_what_changes(tmp_path: Path) -> None:
    checkpoint(tmp_path, 40)
    monitor = TrainingMonitor(folder=str(tmp_path))
    monitor.every = 0.05
    monitor.watch = True
    checkpoint(tmp_path, 70)
    wait_for(lambda: monitor.found is not None and monitor.found.data["step"] == 70)
    checkpoint(tmp_path, 100, finished=True)
    wait_for(lambda: monitor.found is not None and monitor.found.data["stage"] == "finished")
    monitor.close()
    assert monitor._watched is not None
    monitor._watched.join(5)
    assert not monitor._watched.is_alive()


def test_only_commands_of_massrecon_are_run(tmp_path: Path) -> None:
    assert resume_command("massrecon run 02_train -p 'x=1 2'") == [
        sys.executable, "-m", "massrecon", "run", "02_train", "-p", "x=1 2",
    ]  # fmt: skip
    for text in ("rm -rf /", "massrecon", "", "massrecon run 'open"):
        with pytest.raises(InputError, match="'resume_with'"):
            resume_command(text)
    monitor = TrainingMonitor(folder=str(tmp_path / "model"), resume_with="echo hello")
    monitor.resume()
    assert "should begin with &#x27;massrecon&#x27;" in monitor._note.value
    assert monitor._process is None


def test_the_command_runs_beside_and_its_end_is_told(tmp_path: Path) -> None:
    monitor = TrainingMonitor(folder=str(tmp_path / "model"), resume_with="massrecon nonsense")
    monitor.every = 0.05
    monitor.resume()
    wait_for(lambda: "It ended with" in monitor._note.value)
    assert "No such command" in monitor._note.value
    monitor.close()


def test_the_end_of_a_command_is_told_though_another_folder_is_looked_at(tmp_path: Path) -> None:
    monitor = TrainingMonitor(
        folder=str(tmp_path / "model"), resume_with="massrecon nonsense", every=0.05
    )
    assert monitor.every == 0.05
    monitor.resume()
    monitor.folder = str(tmp_path / "other")
    wait_for(lambda: "It ended with" in monitor._note.value)
    assert "No such command" in monitor._note.value
    monitor.close()
