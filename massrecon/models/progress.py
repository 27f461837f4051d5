"""Where a training stands, read from its files while it runs or afterwards; asking it to stop.

A training writes its checkpoint after every round. Reading it neither disturbs the training nor
loads its weights.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from massrecon.errors import ModelError, reason
from massrecon.models.base import HEADER_FILE, HISTORY_FILE
from massrecon.models.checkpoint import CHECKPOINT_FILE, STOP_FILE
from massrecon.provenance import read_json

Stage = Literal["waiting", "running", "stopping", "finished"]

_PATIENCE = 3.0  # rounds without a checkpoint after which a training counts as silent
_LEAST_PATIENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Where a training stands.

    Attributes:
        folder: The folder with its checkpoint or history; None if there is none yet.
        records: One dictionary for each validation, as in `TrainingHistory`.
        step: Finished optimiser steps at the last checkpoint.
        total_steps: Steps of the present plan.
        seconds: Time that they took, on the clock of the training [s].
        best_step: Step with the lowest validation loss.
        finished: Whether it is at its end.
        asked_to_stop: Whether it has been asked to stop and has not done so yet.
        age: Time since its last checkpoint [s].
    """

    folder: Path | None
    records: list[dict[str, Any]]
    step: int
    total_steps: int
    seconds: float
    best_step: int
    finished: bool
    asked_to_stop: bool
    age: float

    @property
    def stage(self) -> Stage:
        """What it does: waiting for its first checkpoint, running, stopping, or finished."""
        if self.finished:
            return "finished"
        if not self.records:
            return "waiting"
        return "stopping" if self.asked_to_stop else "running"

    @property
    def seconds_left(self) -> float | None:
        """Time that is left at the pace so far [s]; None before the first checkpoint."""
        if not self.step:
            return None
        left = max(self.total_steps - self.step, 0)
        return 0.0 if self.finished else left * self.seconds / self.step

    @property
    def is_silent(self) -> bool:
        """Whether a checkpoint is long overdue: the training was probably cut off."""
        if self.stage not in ("running", "stopping") or len(self.records) < 2:
            return False
        times = [record["seconds"] for record in self.records[-4:]]
        longest = max(b - a for a, b in itertools.pairwise(times))
        return self.age > _PATIENCE * longest + _LEAST_PATIENCE

    def history(self) -> dict[str, Any]:
        """Returns what `massrecon.visual.figures.training_curve` draws."""
        return {"records": self.records, "best_step": self.best_step}


def training_progress(folder: str | Path) -> TrainingProgress:
    """Reads where a training stands.

    Args:
        folder: What was given as `checkpoint_dir` of `train` or as `out` of `massrecon.fit`, or a
            folder with a trained model. One that is not there yet is a training that waits.

    Raises:
        ModelError: If a file cannot be read.
    """
    for place in (Path(folder), Path(f"{folder}.training")):
        if (place / CHECKPOINT_FILE).is_file():
            return _from_checkpoint(place)
        if (place / HISTORY_FILE).is_file():
            history = read_json(place / HISTORY_FILE, "the history of a training", ModelError)
            return _from_history(place, history)
        if (place / HEADER_FILE).is_file():
            history = read_json(place / HEADER_FILE, "a model card", ModelError).get("history")
            if isinstance(history, Mapping):
                return _from_history(place, history)
    return TrainingProgress(
        folder=None, records=[], step=0, total_steps=0, seconds=0.0, best_step=0, finished=False,
        asked_to_stop=False, age=0.0,
    )  # fmt: skip


def ask_to_stop(folder: str | Path) -> Path:
    """Asks a running training to end after its present round, with a checkpoint to go on from.

    Args:
        folder: As in `training_progress`.

    Returns:
        The stop file, which the training takes away.

    Raises:
        ModelError: If there is no training that runs.
    """
    found = training_progress(folder)
    if found.folder is None or found.finished:
        what = "has finished" if found.finished else "has no checkpoint yet"
        raise ModelError(f"The training in '{folder}' {what}: there is nothing to stop.")
    path = found.folder / STOP_FILE
    path.touch()
    return path


def _from_checkpoint(folder: Path) -> TrainingProgress:
    path = folder / CHECKPOINT_FILE
    try:
        # the weights are mapped, not read
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        records, step = list(stored["records"]), int(stored["step"])
        return TrainingProgress(
            folder=folder,
            records=records,
            step=step,
            total_steps=int(stored["plan"]["total_steps"]),
            seconds=float(stored["seconds"]),
            best_step=int(stored["best_step"]),
            finished=bool(stored["finished"]),
            asked_to_stop=(folder / STOP_FILE).exists(),
            age=_age(path),
        )
    except Exception as error:
        raise ModelError(f"'{path}' is not a readable checkpoint: {reason(error)}.") from error


def _from_history(folder: Path, history: Mapping[str, Any]) -> TrainingProgress:
    """Reads a training that is over."""
    try:
        records = list(history["records"])
        return TrainingProgress(
            folder=folder,
            records=records,
            step=int(records[-1]["step"]),
            total_steps=int(history["total_steps"]),
            seconds=float(records[-1]["seconds"]),
            best_step=int(history["best_step"]),
            finished=True,
            asked_to_stop=False,
            age=0.0,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"The history in '{folder}' is not one of a training: {error!r}."
        ) from error


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)
