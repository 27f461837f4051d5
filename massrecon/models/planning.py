"""How many steps a training takes: from its budget, in time or in passes over the events."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from massrecon.models.batches import NumberedBatches
from massrecon.models.devices import chosen_device, use_bf16
from massrecon.models.recipe import Plan, TrainingConfig

RESERVE = 0.05
"""Share of a budget in time that is left for what the trial steps do not see."""

# most of a budget in time that validations may take
_VALIDATING = 0.25


def most_steps(batches: NumberedBatches) -> int:
    """Returns how many steps `max_steps` and `max_epochs` allow."""
    config = batches.config
    limits = [sys.maxsize]
    if config.max_steps is not None:
        limits.append(config.max_steps)
    if config.max_epochs is not None:
        limits.append(config.max_epochs * batches.steps_per_epoch)
    return min(limits)


def make_plan(task: Any, batches: NumberedBatches, validate: Callable[[Any], None]) -> Plan:
    """Turns the budget into a number of steps and, if validations are slow, fewer rounds.

    Args:
        task: The Lightning module that is trained; this module knows nothing of Lightning.
        batches: The training batches.
        validate: Validates a copy of the task once.
    """
    if task.config.max_minutes is None:
        return Plan(total_steps=most_steps(batches))
    plan = _plan_in_time(task, batches, validate)
    return dataclasses.replace(plan, total_steps=min(most_steps(batches), plan.total_steps))


def _plan_in_time(task: Any, batches: NumberedBatches, validate: Callable[[Any], None]) -> Plan:
    """Finds how many steps fit into `max_minutes`, from trial steps and validations on a copy."""
    config = task.config
    started = config.now()
    assert config.max_minutes is not None
    budget = 60 * config.max_minutes
    device = chosen_device(config.accelerator)
    trial = copy.deepcopy(task).to(device)
    optimizer = trial.configure_optimizers()
    bf16 = use_bf16(config.precision, device)
    times: list[float] = []
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        # the first steps are slow: memory is not yet mapped, kernels not yet chosen
        while len(times) < 8 or (len(times) < 40 and config.now() - started < 0.02 * budget):
            times.append(
                _seconds(config, lambda: _trial_step(trial, optimizer, batches, len(times)))
            )
        with torch.no_grad():
            validation = _seconds(config, lambda: validate(trial))
    left = (1 - RESERVE) * budget - (config.now() - started)
    most_rounds = max(2, int(_VALIDATING * budget / validation) - 1)
    left -= validation * (min(config.rounds, most_rounds) + 1)
    steps = max(1, int(left / statistics.median(times[3:])))
    return Plan(total_steps=steps, most_rounds=most_rounds)


def _trial_step(
    task: Any, optimizer: torch.optim.Optimizer, batches: NumberedBatches, number: int
) -> None:
    step, batch = batches.batch(number)
    batch = {name: tensor.to(task.device) for name, tensor in batch.items()}
    optimizer.zero_grad()
    loss = task.training_step((step, batch))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(task.parameters(), task.config.gradient_clip)
    optimizer.step()
    # waits for the device
    float(loss.detach())


def _seconds(config: TrainingConfig, work: Callable[[], None]) -> float:
    start = config.now()
    work()
    return config.now() - start
