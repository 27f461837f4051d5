"""What a validation looks at, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.models.base import MassModel, Prepared
from massrecon.models.batches import Chunks
from massrecon.models.ranks import Rank
from massrecon.models.recipe import TrainingConfig

Metric = Callable[[MassModel, Events], float]
"""A figure of merit to follow during the training."""


def refuse_no_events(train: Sized, validation: Sized) -> None:
    """Refuses to train or to validate on nothing.

    Raises:
        InputError: If there are no events for one of the two.
    """
    if len(train) == 0 or len(validation) == 0:
        raise InputError("Training needs events for training and for validation: one is empty.")


def examined(events: Events, config: TrainingConfig) -> Events:
    """Chooses about as many events as the metrics look at, evenly over a sample."""
    return events[:: math.ceil(len(events) / config.metric_events)]


@dataclass(frozen=True)
class Check:
    """What a validation looks at: prepared events for the loss, some events for the metrics.

    The metrics are for the first process; the others have no events to compute them on.
    """

    validation: Prepared
    events: Events | None
    metrics: Mapping[str, Metric]

    def chunks(self, config: TrainingConfig, rank: Rank) -> Chunks:
        """Returns the slices of the validation events that a process takes."""
        return Chunks(self.validation, 2 * config.batch_size, rank)

    def measure(self, model: MassModel) -> dict[str, float]:
        """Computes the metrics with the model's present weights."""
        if self.events is None:
            return {}
        with torch.no_grad():
            return {
                name: float(metric(model, self.events)) for name, metric in self.metrics.items()
            }


def validate_once(task: Any, check: Check) -> None:
    """Validates a copy of a task, to see how long that takes."""
    for number, chunk in check.chunks(task.config, task.rank):
        task.validation_step((number, {k: t.to(task.device) for k, t in chunk.items()}))
    task.pop_validation_losses()
    check.measure(task.model)
