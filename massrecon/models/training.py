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
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from tqdm import tqdm

from massrecon.errors import ModelError, TrainingStopped
from massrecon.events.container import Events
from massrecon.events.stream import EventStream
from massrecon.models.base import HISTORY_FILE, MassModel, Prepared
from massrecon.models.batches import (
    NumberedBatches,
    length_of,
    numbered_generator,
    prepared_with_truth,
)
from massrecon.models.checkpoint import (
    STOP_FILE,
    TrainingState,
    fingerprint_of,
    identity_of,
)
from massrecon.models.devices import (
    check_compilation,
    chosen_device,
    compiled,
    eagerly,
    matrix_products,
    use_bf16,
)
from massrecon.models.planning import RESERVE, make_plan, most_steps
from massrecon.models.ranks import Rank, check_processes, others_started, together
from massrecon.models.recipe import Plan, TrainingConfig, TrainingHistory, learning_rate
from massrecon.models.streaming import PreparedParts, prepare_parts
from massrecon.models.supplies import (
    batches_of,
    hand_over,
    supplies_folder,
    taken_over,
    training_data,
)
from massrecon.models.validation import (
    Check,
    Metric,
    examined,
    refuse_no_events,
    validate_once,
)

__all__ = ["Metric", "TrainingConfig", "TrainingHistory", "train"]

# misfit of the plan, as a share of the budget, at which it is made anew
_MISFIT = 0.03


def train(
    model: MassModel,
    train_events: Events | EventStream,
    validation_events: Events,
    config: TrainingConfig,
    metrics: Mapping[str, Metric] | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> TrainingHistory:
    """Trains a model in place and leaves it with its best averaged weights.

    Args:
        model: An untrained model; its scaling is set from the training events.
        train_events: Events with truth; those of a stream need not fit into memory together: they
            are prepared part by part into files in `checkpoint_dir`, or in a temporary folder.
        validation_events: Events with truth that the training never sees.
        config: Budget and recipe.
        metrics: Functions of (model, events) to report at each validation, by name.
        checkpoint_dir: Where to keep ``training.ckpt`` and ``history.json``. A training that was
            interrupted resumes from there, a finished one returns at once. One that finds a file
            called ``stop`` there ends after its present round, with its checkpoint.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If there are no events, or they carry no truth.
        ModelError: If the checkpoint belongs to another training, or the loss is not finite.
        TrainingStopped: If the training was asked to stop; the same call goes on.
    """
    refuse_no_events(train_events, validation_events)
    device = chosen_device(config.accelerator)
    check_compilation(config.compile, device)
    check_processes(config.processes, device, min(len(train_events), len(validation_events)))
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    data, fingerprint = training_data(model, train_events, config)
    validation = prepared_with_truth(model, validation_events)
    identity = identity_of(model, config, fingerprint, fingerprint_of(validation))
    state = TrainingState.load(folder, identity) or TrainingState(identity=identity)
    check = Check(validation, examined(validation_events, config), metrics or {})
    if not state.finished:
        with supplies_folder(folder, identity) as supplies:
            if isinstance(data, EventStream):
                data = prepare_parts(model, data, supplies, progress)
            task = _Task(model.train(), config, Rank(0, config.processes))
            _plan_and_run(task, data, state, check, folder, supplies, progress)
            if not state.finished:  # leaves what was prepared to the next call
                raise _stopped(state, folder)
    model.load_state_dict(state.best_weights)
    model.cpu().eval()
    history = _history(state, config, fingerprint)
    if folder is not None:
        history.save(folder / HISTORY_FILE)
    return history


def _history(state: TrainingState, config: TrainingConfig, fingerprint: str) -> TrainingHistory:
    return TrainingHistory(
        records=state.records,
        total_steps=state.plan.total_steps,
        best_step=state.best_step,
        seed=config.seed,
        data_fingerprint=fingerprint,
        config=dataclasses.asdict(config),
    )


def _stopped(state: TrainingState, folder: Path | None) -> TrainingStopped:
    return TrainingStopped(
        f"The training was asked to stop: it ended after step {state.step:,} of "
        f"{state.plan.total_steps:,}. Its checkpoint is kept in '{folder}': the same call goes on."
    )


def _plan_and_run(
    task: _Task,
    data: Prepared | PreparedParts,
    state: TrainingState,
    check: Check,
    folder: Path | None,
    supplies: Path,
    progress: bool,
) -> None:
    """Makes the plan, if there is none, and trains with as many processes as are wanted."""
    config, device = task.config, chosen_device(task.config.accelerator)
    batches = batches_of(data, config, state, task.rank)
    if state.plan.total_steps == 0:
        state.plan = make_plan(task, batches, lambda trial: validate_once(trial, check))
    with contextlib.ExitStack() as stack:
        if config.processes > 1:
            hand_over(supplies, task.model, data, check.validation, state, config)
            minutes = config.process_minutes
            stack.enter_context(others_started(config.processes, supplies, device, minutes))
        stack.enter_context(_quiet_lightning())
        _run(task, batches, check, folder, progress)


def join_training(supplies: Path, number: int, ready: Callable[[], None]) -> None:
    """Takes part, as a further process, in a training that another one has started.

    Args:
        supplies: Folder with all that is needed.
        number: Number of this process, from 1 on.
        ready: Called when everything is there and the processes can meet.
    """
    model, data, validation, state, config = taken_over(supplies)
    ready()
    rank = Rank(number, config.processes)
    check = Check(validation, None, {})
    with together(rank, supplies, chosen_device(config.accelerator)), _quiet_lightning():
        task = _Task(model.train(), config, rank)
        _run(task, batches_of(data, config, state, rank), check, None, progress=False)


class _Task(pl.LightningModule):
    """What Lightning drives: the loss of a numbered batch, and the optimiser."""

    def __init__(self, model: MassModel, config: TrainingConfig, rank: Rank) -> None:
        super().__init__()
        self.model, self.config, self.rank = model, config, rank
        self.validation_losses: list[tuple[Tensor, int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds AdamW; the rate is set anew in each step."""
        return torch.optim.AdamW(
            self.model.parameter_groups(), lr=0.0, weight_decay=self.config.weight_decay
        )

    def training_step(self, batch: tuple[int, Prepared], batch_idx: int = 0) -> Tensor:
        """Computes the loss of a numbered batch, or what a process adds to it."""
        step, events = batch
        share = events.get("share", 1.0)
        events = {name: tensor for name, tensor in events.items() if name != "share"}
        stream = self.rank.stream("step")
        generator = numbered_generator(self.device, self.config.seed, stream, step)
        if self.config.augment:
            events = self.model.augment(events, generator)
        if self.config.compile == "graphs":  # what the last step left behind may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
        return share * self.model.loss_prepared(events, generator)

    def validation_step(self, batch: tuple[int, Prepared], batch_idx: int = 0) -> None:
        """Adds the loss of a chunk, with the same noise each time, to those of the others."""
        number, events = batch
        generator = numbered_generator(self.device, self.config.seed, "validation", number)
        with eagerly(self.config.compile):
            loss = self.model.validation_loss_prepared(events, generator)
        self.validation_losses.append((loss, length_of(events)))

    def pop_validation_losses(self) -> tuple[float, int]:
        """Returns the sum of the losses of the events validated since the last call, and how many.

        With several processes, of those that this process validated.
        """
        total = sum(float(loss) * n for loss, n in self.validation_losses)
        n_events = sum(n for _, n in self.validation_losses)
        self.validation_losses.clear()
        return total, n_events


class _Rounds(pl.Callback):
    """Ends each round with a record, the best weights and a checkpoint.

    It stands before the weight averaging in the list of callbacks: so the averaged weights are
    still in place when a validation ends.
    """

    def __init__(
        self,
        batches: NumberedBatches,
        check: Check,
        averaging: WeightAveraging,
        folder: Path | None,
        bar: tqdm,
    ) -> None:
        self.batches, self.state, self.config = batches, batches.state, batches.config
        self.rank = batches.rank
        self.check, self.averaging, self.folder, self.bar = check, averaging, folder, bar
        self.started = self.config.now() - self.state.seconds
        self.round_started = self.trained_until = self.started
        self.round_first_step = self.state.step
        self.train_losses: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts back what the checkpoint holds; a stop file from before is not for this run."""
        self._asked_to_stop()
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
        own_loss = float(torch.stack(self.train_losses).mean())
        self.train_losses.clear()
        total, n_events, train_loss = self.rank.summed(
            *pl_module.pop_validation_losses(), own_loss / self.rank.world
        )
        state, validation_loss = self.state, total / n_events
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
        with eagerly(self.config.compile):
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
        if not state.finished and self.rank.is_first:
            self._keep_to_the_time()
        self._agree()
        if self.folder is not None:
            self._save(trainer, pl_module, self.folder)
        trainer.should_stop = state.finished or bool(*self.rank.agreed(self._asked_to_stop()))

    def _asked_to_stop(self) -> bool:
        """Tells whether there is a stop file, and takes it away, so that a resume goes on."""
        if self.folder is None or not (self.folder / STOP_FILE).exists():
            return False
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        return True

    def _agree(self) -> None:
        """Follows the plan of the first process, whose clock counts."""
        steps, start, progress, rounds = self.rank.agreed(*dataclasses.astuple(self.state.plan))
        if not self.rank.is_first:
            self.state.plan = Plan(
                total_steps=int(steps),
                from_step=int(start),
                from_progress=progress,
                most_rounds=int(rounds),
            )

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


class _Environment(LightningEnvironment):
    """Tells Lightning which of the processes this is; they have been started already."""

    creates_processes_externally = True  # type: ignore[assignment]  a property there

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.rank = rank

    def local_rank(self) -> int:
        """Returns the number of this process, and of its GPU."""
        return self.rank.number


def _strategy_of(rank: Rank) -> DDPStrategy | str:
    """Chooses how gradients are averaged over processes, which all have the same weights."""
    if rank.world == 1:
        return "auto"
    return DDPStrategy(
        cluster_environment=_Environment(rank),
        static_graph=True,  # some losses leave out a part of the network, always the same
        broadcast_buffers=False,  # scalings, which never change
    )


def _run(
    task: _Task,
    batches: NumberedBatches,
    check: Check,
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
            devices=task.rank.world,
            strategy=_strategy_of(task.rank),
            precision="bf16-mixed" if use_bf16(config.precision, device) else "32-true",
            max_epochs=-1,
            gradient_clip_val=config.gradient_clip,
            num_sanity_val_steps=0,
            callbacks=[_Rounds(batches, check, averaging, folder, bar), averaging],
            # the processes are ours, also inside a batch system's allocation
            plugins=[LightningEnvironment()] if task.rank.world == 1 else [],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with compiled(task.model, config.compile), matrix_products(config.precision, device):
            trainer.fit(task, batches, check.chunks(config, task.rank))


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Makes an exponential average that forgets its untrained beginnings quickly."""

    def average(averaged: Tensor, current: Tensor, n_averaged: Tensor) -> Tensor:
        keep = ((1 + n_averaged) / (10 + n_averaged)).clamp_max(decay)
        return keep * averaged + (1 - keep) * current

    return average


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
            # and torch 2.13 a setting that older ones know by no other name
            warnings.filterwarnings(
                "ignore", message=r".*broadcast_buffers", category=FutureWarning
            )
            yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from stop
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
