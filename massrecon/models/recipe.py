"""How a model is trained and what came of it: settings, schedules, history."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from massrecon.errors import InputError
from massrecon.models.devices import Compilation
from massrecon.models.settings import check_settings
from massrecon.provenance import write_json

# share of the steps after which the first validation comes
_EARLY = 0.03
_ROUNDING = 1e-9
_BUDGETS = ("max_minutes", "max_epochs", "max_steps")
_POSITIVE = (
    *("batch_size", "rounds", "metric_events", "learning_rate", "gradient_clip"),
    *("processes", "process_minutes", "shuffle_events"),
)
_CHOICES = {
    "precision": ("auto", "bf16", "tf32", "float32"),
    "compile": ("none", "kernels", "graphs"),
    "clock": ("wall", "processor"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. At least one of the three budgets is needed; the first to be reached ends it.

    The publication gives no recipe, so all of this is ours, including the augmentation by random
    rotations about the beam and flips of pz, which are exact symmetries of the collisions.

    Attributes:
        max_minutes: Budget in time [min], turned into a number of steps by timing a few, and
            corrected between rounds when the machine turns out faster or slower.
        clock: Which time `max_minutes` counts: ``"wall"``, or ``"processor"``, that of all cores
            together, which a busy machine does not change: for comparisons on a shared one.
        max_epochs: Budget in passes over the training events.
        max_steps: Budget in optimiser steps.
        batch_size: Events per step.
        learning_rate: Peak of the cosine schedule, reached after the warm-up.
        warm_up: Share of the steps in which the rate rises linearly.
        weight_decay: Decoupled weight decay of AdamW.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay per step of the exponential average of the weights, less at the start.
        augment: Whether to apply random symmetries of the collision to the training events.
        precision: ``"auto"`` is bfloat16 where the device has it natively, else float32;
            ``"tf32"`` is float32 with the faster matrix products of CUDA devices.
        compile: What `torch.compile` does: ``"none"``; ``"kernels"``, which takes a minute or more
            at the start (of the budget, too) and a C++ compiler; ``"graphs"``, on CUDA alone, which
            also records CUDA graphs, for small networks. It changes the rounding.
        rounds: Number of validations, evenly spread; one more comes early. There are fewer if they
            would take more than a quarter of `max_minutes`.
        patience: Stop after so many rounds without a better validation loss; None never stops.
        metric_events: How many validation events the metrics are computed on.
        accelerator: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        processes: How many processes of this machine share each batch: one for each GPU, or some
            on its cores. The loss is the same, the noise of training another one.
        process_minutes: How long the first of several processes waits in a step for another that
            is alive before it ends it [min]; one without any sign of life gets a fifth of that.
        shuffle_events: How many events a training from files keeps in memory at most, to mix them
            (see `massrecon.models.streaming`); a file with more than half of them is kept whole.
        seed: Seed of data order, augmentation and noise.
    """

    max_minutes: float | None = None
    max_epochs: int | None = None
    max_steps: int | None = None
    clock: Literal["wall", "processor"] = "wall"
    batch_size: int = 128
    learning_rate: float = 3e-3
    warm_up: float = 0.05
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    augment: bool = True
    precision: Literal["auto", "bf16", "tf32", "float32"] = "auto"
    compile: Compilation = "none"
    rounds: int = 20
    patience: int | None = None
    metric_events: int = 256
    accelerator: str = "auto"
    processes: int = 1
    process_minutes: float = 5.0
    shuffle_events: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings("setting of the training", type(self), vars(self))
        if all(getattr(self, budget) is None for budget in _BUDGETS):
            raise InputError("Training needs a budget: set max_minutes, max_epochs or max_steps.")
        for name in (*_BUDGETS, *_POSITIVE):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"'{name}' should be positive, got {getattr(self, name)}.")
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"'{name}' should be one of {', '.join(known)}, got '{value}'.")
        if self.processes > 1 and self.clock == "processor":
            raise InputError("'clock' should be 'wall' where several processes share a training.")
        if self.processes > self.batch_size:
            raise InputError(
                f"'processes' should be at most 'batch_size', {self.batch_size}: each takes a "
                f"share of the batch; got {self.processes}."
            )
        if self.seed < 0:
            raise InputError(f"'seed' should not be negative, got {self.seed}.")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.warm_up <= 1:
            raise InputError("'ema_decay' should be in [0, 1) and 'warm_up' in [0, 1].")

    def facts(self) -> dict[str, Any]:
        """Returns what decides the outcome; settings of scale only where they are not the usual.

        How long to wait for a process decides nothing.
        """
        usual = {
            "processes": 1,
            "shuffle_events": type(self).shuffle_events,
            "compile": "none",
        }
        given = dataclasses.asdict(self)
        del given["process_minutes"]
        return {name: value for name, value in given.items() if usual.get(name) != value}

    def now(self) -> float:
        """Reads the clock of the budget [s]."""
        return time.monotonic() if self.clock == "wall" else time.process_time()


@dataclass(frozen=True)
class TrainingHistory:
    """What happened during a training.

    Attributes:
        records: One dictionary per validation: ``step``, ``epoch``, ``seconds`` of the clock,
            ``train_loss`` (mean since the last record), ``validation_loss``, ``learning_rate``
            and ``metrics`` by name.
        total_steps: Number of steps of the plan that was in force at the end.
        best_step: Step whose averaged weights are the final ones.
        seed: Seed of the training.
        data_fingerprint: Checksum of the prepared training events.
        config: The fields of the training configuration.
    """

    records: list[dict[str, Any]]
    total_steps: int
    best_step: int
    seed: int
    data_fingerprint: str
    config: dict[str, Any]

    @property
    def best(self) -> dict[str, Any]:
        """The record of the final weights."""
        return next(record for record in self.records if record["step"] == self.best_step)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON-able values."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Writes the history as JSON."""
        write_json(path, self.to_dict())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the progress of a training, from 0 to 1, follows from the number of finished steps.

    Attributes:
        total_steps: Step at which the progress is 1.
        from_step: Step from which on the plan holds; it was made, or made anew, there.
        from_progress: Progress at that step.
        most_rounds: Most validations, where the configured number would cost too much time.
    """

    total_steps: int
    from_step: int = 0
    from_progress: float = 0.0
    most_rounds: int = sys.maxsize

    def progress(self, step: float) -> float:
        """Returns the progress after a number of steps."""
        share = (step - self.from_step) / max(self.total_steps - self.from_step, 1)
        return self.from_progress + share * (1 - self.from_progress)

    def next_round_end(self, step: int, rounds: int) -> int:
        """Returns after which step the round that follows `step` ends, the first one early."""
        rounds = min(rounds, self.most_rounds)
        marks = [_EARLY, *(k / rounds for k in range(1, rounds + 1))]
        ends = [self._step_at(mark) for mark in marks if mark > self.from_progress]
        return next((end for end in ends if end > step), self.total_steps)

    def rounds_left(self, step: int, rounds: int) -> int:
        """Returns how many rounds are still to come after a step."""
        rounds = min(rounds, self.most_rounds)
        return rounds - math.floor(rounds * self.progress(step) + _ROUNDING)

    def remade(self, step: int, steps_left: int) -> Plan:
        """Returns the plan that goes on from a step and ends `steps_left` steps later."""
        return dataclasses.replace(
            self,
            total_steps=step + steps_left,
            from_step=step,
            from_progress=self.progress(step),
        )

    def _step_at(self, progress: float) -> int:
        share = (progress - self.from_progress) / (1 - self.from_progress)
        return self.from_step + math.ceil(share * (self.total_steps - self.from_step) - _ROUNDING)


def learning_rate(progress: float, config: TrainingConfig) -> float:
    """Returns the rate at a progress: a linear warm-up, then a half cosine down to 0."""
    if progress < config.warm_up:
        return config.learning_rate * progress / config.warm_up
    share = (progress - config.warm_up) / max(1 - config.warm_up, _ROUNDING)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
