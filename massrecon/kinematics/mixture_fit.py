"""Maximum-likelihood fit of the parameters of the kinematic mixture on simulated events.

The loss is the mean of -ln p(m_true | y) with all hypotheses summed; its gradient flows through the
weights, means and widths of all Gaussians. Masses, Jacobians and traits do not depend on the
parameters and are computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents, EventBlock

_BLOCK = 2**14
_MOST_EVENTS = 40  # of equal numbers of objects that enter a step together
_CLIP = 5.0


@dataclass(frozen=True, kw_only=True)
class MixtureFit:
    """How the parameters are fitted.

    Attributes:
        epochs: Passes over the training events.
        learning_rate: Largest step of Adam; it rises over the first passes and then falls to zero.
        batch: Least number of events of a step.
        seed: Seed of the order of the events.
    """

    epochs: int = 12
    learning_rate: float = 0.04
    batch: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.learning_rate <= 0:
            raise InputError("'epochs', 'batch' and 'learning_rate' should be positive.")


Examples = list[tuple[EventBlock, Tensor]]
"""Blocks of events with their true masses ``(N, M)``."""

Report = Callable[[int, float, float | None], None]
"""Is told the number of a pass, the training loss and the validation loss."""


def fit_parameters(
    mixture: KinematicMixture,
    events: DetectedEvents,
    masses: Tensor,
    validation: tuple[DetectedEvents, Tensor] | None = None,
    fit: MixtureFit | None = None,
    report: Report | None = None,
) -> KinematicMixture:
    """Fits a copy of a mixture to events of known masses.

    Args:
        mixture: Where to start; it is not changed.
        events: Training events.
        masses: Their true masses [GeV], in the order of ``mixture.scheme.names``, ``(N, M)``.
        validation: Events and masses to choose the best pass on; None for the last one.
        fit: How to fit.
        report: Called after each pass with its number, the training loss and the validation loss.

    Returns:
        The fitted mixture.

    Raises:
        ShapeError: If `masses` does not have its shape.
        InputError: If no event has an assignment, or a mass lies outside the region of the mixture.
    """
    fit = fit or MixtureFit()
    fitted = copy.deepcopy(mixture)
    examples = prepare(fitted, events, masses)
    held_out = None if validation is None else prepare(fitted, *validation)
    set_pivot(fitted, examples)
    generator = torch.Generator().manual_seed(fit.seed)
    optimizer = torch.optim.Adam(fitted.parameters(), lr=fit.learning_rate, betas=(0.9, 0.98))
    n_steps = fit.epochs * len(_batches(examples, fit.batch, torch.Generator().manual_seed(0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=fit.learning_rate, total_steps=n_steps + fit.epochs, pct_start=0.15
    )
    best, state = float("inf"), fitted.state_dict()
    for epoch in range(fit.epochs):
        losses = [
            _step(fitted, batch, optimizer, schedule)
            for batch in _batches(examples, fit.batch, generator)
        ]
        loss = None if held_out is None else mean_loss(fitted, held_out)
        if report is not None:
            report(epoch, sum(losses) / len(losses), loss)
        if loss is None or loss < best:
            best = best if loss is None else loss
            state = copy.deepcopy(fitted.state_dict())
    fitted.load_state_dict(state)
    return fitted


def prepare(mixture: KinematicMixture, events: DetectedEvents, masses: Tensor) -> Examples:
    """Computes once what does not depend on the parameters.

    Raises:
        ShapeError: If `masses` does not have shape ``(N, M)``.
        InputError: If no event has an assignment, or a mass lies outside the region of the mixture.
    """
    expected = (len(events), len(mixture.scheme.names))
    if tuple(masses.shape) != expected:
        raise ShapeError(f"'masses' should have shape {expected}, got {tuple(masses.shape)}.")
    outside = ~mixture.region.contains(masses)
    if bool(outside.any()):
        raise InputError(
            f"{int(outside.sum())} of {len(events)} events have masses outside the region of the "
            "mixture: widen the region, or leave these events out."
        )
    blocks = mixture.sorter.blocks(events, _BLOCK, most_events=_MOST_EVENTS)
    examples = [(block, masses[block.rows]) for block in blocks]
    if not examples:
        legs = mixture.scheme.legs
        needed = ", ".join(dict.fromkeys(legs.leg_kinds))
        raise InputError(
            f"None of {len(events)} events has the objects that '{legs.topology.text}' needs "
            f"({needed}): look at their kinds, or allow more to be missing."
        )
    return examples


@torch.no_grad()
def set_pivot(mixture: KinematicMixture, examples: Examples) -> None:
    """Lets the shares of broad components count from the median log evidence of these events."""
    found = torch.cat([mixture.log_evidence(block) for block, _ in examples])
    mixture.outlier.pivot.copy_(found.median())


@torch.no_grad()
def mean_loss(mixture: KinematicMixture, examples: Examples) -> float:
    """Computes the mean of -ln p(m_true | y)."""
    losses = [-mixture.log_prob(block, masses) for block, masses in examples]
    return float(torch.cat(losses).mean())


def _batches(examples: Examples, least: int, generator: torch.Generator) -> list[Examples]:
    """Joins shuffled blocks to batches of at least so many events."""
    batches: list[Examples] = [[]]
    size = 0
    for i in torch.randperm(len(examples), generator=generator).tolist():
        if size >= least:
            batches.append([])
            size = 0
        batches[-1].append(examples[i])
        size += len(examples[i][1])
    return batches


def _step(
    mixture: KinematicMixture,
    batch: Examples,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
) -> float:
    n_events, loss = sum(len(masses) for _, masses in batch), 0.0
    optimizer.zero_grad()
    for block, masses in batch:
        part = -mixture.log_prob(block, masses).sum() / n_events
        part.backward()
        loss += float(part.detach())
    torch.nn.utils.clip_grad_norm_(mixture.parameters(), _CLIP)
    optimizer.step()
    if schedule.last_epoch < schedule.total_steps - 1:
        schedule.step()
    return loss
