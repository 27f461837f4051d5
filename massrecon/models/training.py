"""Training: rounds of steps, each ending with a validation and a checkpoint.

What a step does (which events, how they are turned, which noise) is a pure function of the seed
and the number of the step. A killed training therefore resumes from its last checkpoint as if
nothing had happened. Lightning drives the loop, moves data to the device, clips gradients, sets
the precision and averages the weights; validation and the final model use the averaged weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from tqdm import tqdm

from massrecon.errors import InputError, ModelError
from massrecon.events.container import Events
from massrecon.models.base import MassModel, Prepared
from massrecon.models.batches import Batches, Chunks, length_of, numbered_generator
from massrecon.models.checkpoint import TrainingState, fingerprint_of, identity_of
from massrecon.models.devices import chosen_device, use_bf16
from massrecon.models.planning import RESERVE, make_plan, most_steps
from massrecon.models.recipe import TrainingConfig, TrainingHistory, learning_rate

__all__ = ["Metric", "TrainingConfig", "TrainingHistory", "train"]

HISTORY_FILE = "history.json"

Metric = Callable[[MassModel, Events], float]
"""A figure of merit to follow during the training."""

# misfit of the plan, as a share of the budget, at which it is made anew
_MISFIT = 0.03


def train(
    model: MassModel,
    train_events: Events,
    validation_events: Events,
    config: TrainingConfig,
    metrics: Mapping[str, Metric] | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> TrainingHistory:
    """Trains a model in place and leaves it with its best averaged weights.

    Args:
        model: An untrained model; its scaling is set from the training events.
        train_events: Events with truth.
        validation_events: Events with truth that the training never sees.
        config: Budget and recipe.
        metrics: Functions of (model, events) to report at each validation, by name.
        checkpoint_dir: Where to keep ``training.ckpt`` and ``history.json``. A training that was
            interrupted resumes from there, a finished one returns at once.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If there are no events, or they carry no truth.
        ModelError: If the checkpoint belongs to another training, or the loss is not finite.
    """
    if len(train_events) == 0 or len(validation_events) == 0:
        raise InputError("Training needs events for training and for validation: one is empty.")
    model.fit_scaling(train_events)
    data, validation = _prepared(model, train_events), _prepared(model, validation_events)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    fingerprint = fingerprint_of(data)
    identity = identity_of(model, config, fingerprint, fingerprint_of(validation))
    state = TrainingState.load(folder, identity) or TrainingState(identity=identity)
    examined = validation_events[:: math.ceil(len(validation_events) / config.metric_events)]
    check = _Check(Chunks(validation, 2 * config.batch_size), examined, metrics or {})
    task, batches = _Task(model.train(), config), Batches(data, config, state)
    if state.plan.total_steps == 0:
        state.plan = make_plan(task, batches, lambda trial: _validate_once(trial, check))
    if not state.finished:
        with _quiet_lightning():
            _run(task, batches, check, folder, progress)
    model.load_state_dict(state.best_weights)
    model.cpu().eval()
    history = TrainingHistory(
        records=state.records,
        total_steps=state.plan.total_steps,
        best_step=state.best_step,
        seed=config.seed,
        data_fingerprint=fingerprint,
        config=dataclasses.asdict(config),
    )
    if folder is not None:
        history.save(folder / HISTORY_FILE)
    return history


@dataclass(frozen=True)
class _Check:
    """What a validation looks at: prepared events for the loss, some events for the metrics."""

    chunks: Chunks
    events: Events
    metrics: Mapping[str, Metric]

    def measure(self, model: MassModel) -> dict[str, float]:
        """Computes the metrics with the model's present weights."""
        with torch.no_grad():
            return {
                name: float(metric(model, self.events)) for name, metric in self.metrics.items()
            }


class _Task(pl.LightningModule):
    """What Lightning drives: the loss of a numbered batch, and the optimiser."""

    def __init__(self, model: MassModel, config: TrainingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.validation_losses: list[tuple[Tensor, int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds AdamW; the rate is set anew in each step."""
        return torch.optim.AdamW(
            self.model.parameter_groups(), lr=0.0, weight_decay=self.config.weight_decay
        )

    def training_step(self, batch: tuple[int, Prepared], batch_idx: int = 0) -> Tensor:
        """Computes the loss of a numbered batch."""
        step, events = batch
        generator = numbered_generator(self.device, self.config.seed, "step", step)
        if self.config.augment:
            events = self.model.augment(events, generator)
        return self.model.loss_prepared(events, generator)

    def validation_step(self, batch: tuple[int, Prepared], batch_idx: int = 0) -> None:
        """Adds the loss of a chunk, with the same noise each time, to those of the others."""
        number, events = batch
        generator = numbered_generator(self.device, self.config.seed, "validation", number)
        loss = self.model.validation_loss_prepared(events, generator)
        self.validation_losses.append((loss, length_of(events)))

    def pop_validation_loss(self) -> float:
        """Returns the mean loss of the chunks validated since the last call."""
        total = sum(float(loss) * n for loss, n in self.validation_losses)
        n_events = sum(n for _, n in self.validation_losses)
        self.validation_losses.clear()
        return total / n_events


class _Rounds(pl.Callback):
    """Ends each round with a record, the best weights and a checkpoint.

    It stands before the weight averaging in the list of callbacks: so the averaged weights are
    still in place when a validation ends.
    """

    def __init__(
        self,
        batches: Batches,
        check: _Check,
        averaging: WeightAveraging,
        folder: Path | None,
        bar: tqdm,
    ) -> None:
        self.batches, self.state, self.config = batches, batches.state, batches.config
        self.check, self.averaging, self.folder, self.bar = check, averaging, folder, bar
        self.started = self.config.now() - self.state.seconds
        self.round_started = self.trained_until = self.started
        self.round_first_step = self.state.step
        self.train_losses: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts back what the checkpoint holds."""
        if loop := self.state.loop:
            trainer.optimizers[0].load_state_dict(loop["optimizer"])
            self.averaging.on_load_checkpoint(trainer, pl_module, loop)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the learning rate of the step."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._rate(batch[0]) * group["rate"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the round."""
        self.round_started, self.round_first_step = self.config.now(), self.state.step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the clock when the steps of the round are done."""
        self.trained_until = self.config.now()

    def _rate(self, step: int) -> float:
        return learning_rate(self.state.plan.progress(step + 0.5), self.config)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the step."""
        self.state.step = batch[0] + 1
        self.train_losses.append(outputs["loss"].detach())
        self.bar.update()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records the round and keeps the averaged weights if they are the best so far."""
        assert isinstance(pl_module, _Task)
        state, validation_loss = self.state, pl_module.pop_validation_loss()
        train_loss = float(torch.stack(self.train_losses).mean())
        self.train_losses.clear()
        if not math.isfinite(train_loss + validation_loss):
            raise ModelError(
                f"The loss is not finite after {state.step} steps: lower 'learning_rate', now "
                f"{self.config.learning_rate:g}."
            )
        state.rounds_since_best += 1
        if validation_loss < state.best_loss:
            state.best_loss, state.best_step = validation_loss, state.step
            state.rounds_since_best = 0
            state.best_weights = _to_cpu(pl_module.model.state_dict())
        metrics = self.check.measure(pl_module.model)
        self._record(train_loss, validation_loss, metrics)

    def _record(self, train_loss: float, validation_loss: float, metrics: dict[str, float]) -> None:
        state = self.state
        state.seconds = self.config.now() - self.started
        record = {
            "step": state.step,
            "epoch": round(state.step / self.batches.steps_per_epoch, 3),
            "seconds": round(state.seconds, 3),
            "train_loss": train_loss,
            "validation_loss": validation_loss,
            "learning_rate": self._rate(state.step - 1),
            "metrics": metrics,
        }
        state.records.append(record)
        shown = {"loss": train_loss, "validation": validation_loss, **metrics}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the checkpoint and stops if the plan is done or patience is at its end."""
        state, patience = self.state, self.config.patience
        out_of_patience = patience is not None and state.rounds_since_best >= patience
        state.finished = out_of_patience or state.step >= state.plan.total_steps
        if not state.finished:
            self._keep_to_the_time()
        if self.folder is not None:
            self._save(trainer, pl_module, self.folder)
        trainer.should_stop = state.finished

    def _keep_to_the_time(self) -> None:
        """Makes the plan anew if it would miss the budget in time by more than a little."""
        state, config = self.state, self.config
        if config.max_minutes is None:
            return
        budget = (1 - RESERVE) * 60 * config.max_minutes
        now = self.config.now()
        per_step = (self.trained_until - self.round_started) / (state.step - self.round_first_step)
        checks = state.plan.rounds_left(state.step, config.rounds) * (now - self.trained_until)
        left = budget - (now - self.started) - checks
        planned = (state.plan.total_steps - state.step) * per_step
        if abs(left - planned) > _MISFIT * budget:
            steps = min(int(left / per_step), most_steps(self.batches) - state.step)
            state.plan = state.plan.remade(state.step, max(1, steps))
            self.bar.total = state.plan.total_steps

    def _save(self, trainer: pl.Trainer, task: pl.LightningModule, folder: Path) -> None:
        loop: dict[str, Any] = {"state_dict": task.state_dict()}
        self.averaging.on_save_checkpoint(trainer, task, loop)
        loop["optimizer"] = trainer.optimizers[0].state_dict()
        self.state.loop = {} if self.state.finished else loop
        self.state.save(folder)


def _run(
    task: _Task,
    batches: Batches,
    check: _Check,
    folder: Path | None,
    progress: bool,
) -> None:
    state, config = batches.state, task.config
    averaging = WeightAveraging(avg_fn=_moving_average(config.ema_decay), use_buffers=False)
    device = chosen_device(config.accelerator)
    # a terminal is redrawn often, a log file gets a line now and then
    interval = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(
        total=state.plan.total_steps,
        initial=state.step,
        desc="train",
        unit="step",
        mininterval=interval,
        disable=not progress,
    ) as bar:
        trainer = pl.Trainer(
            accelerator={"mps": "mps", "cuda": "gpu"}.get(device, "cpu"),
            devices=1,
            precision="bf16-mixed" if use_bf16(config.precision, device) else "32-true",
            max_epochs=-1,
            gradient_clip_val=config.gradient_clip,
            num_sanity_val_steps=0,
            callbacks=[_Rounds(batches, check, averaging, folder, bar), averaging],
            # one process, also inside a batch system's allocation
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, batches, check.chunks)


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Makes an exponential average that forgets its untrained beginnings quickly."""

    def average(averaged: Tensor, current: Tensor, n_averaged: Tensor) -> Tensor:
        keep = ((1 + n_averaged) / (10 + n_averaged)).clamp_max(decay)
        return keep * averaged + (1 - keep) * current

    return average


def _validate_once(task: _Task, check: _Check) -> None:
    for number, chunk in check.chunks:
        task.validation_step((number, {k: t.to(task.device) for k, t in chunk.items()}))
    task.pop_validation_loss()
    check.measure(task.model)


def _prepared(model: MassModel, events: Events) -> Prepared:
    data = model.prepare(events)
    if "targets" not in data:
        raise InputError("Training needs events with truth: use simulated events.")
    return data


def _to_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hides Lightning's banners and tips, and lets an interrupt end the training like any other.

    Lightning turns Ctrl-C into an exit and then ignores the signal for good, which would end a
    notebook's kernel.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    on_interrupt = signal.getsignal(signal.SIGINT)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch's trees in a way that newer torch deprecates
            warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
            yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from stop
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
