"""The way of draws from noise to targets, for every family that denoises.

These are `barman2025`, `diffusion` and `flow_matching`; of `cascade` the momenta, since its masses
are drawn directly. The last state is what `MassModel.sample` returns for the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import ModelError
from massrecon.events.container import Events
from massrecon.models.barman2025 import Barman2025
from massrecon.models.base import MassModel
from massrecon.models.cascade.head import SequentialHead
from massrecon.models.event_model import EventModel
from massrecon.models.noise import Draws
from massrecon.models.paths import PathHead
from massrecon.models.samplers import Watch

DENOISING = ("barman2025", "diffusion", "flow_matching", "cascade")
"""Families that denoise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """States of S draws for N events at L levels of noise, and the draws as the last of L + 1.

    Attributes:
        names: Names of the R targets.
        carried: Which targets start as noise, shape ``(R,)``; the others are drawn directly.
        signal: Share of the target at each level, the last one 1, shape ``(L + 1,)``.
        spread: Share of the noise at each level, the last one 0, shape ``(L + 1,)``.
        states: Noised targets [GeV], as if they were targets, float64, ``(L + 1, S, N, R)``.
        predicted: Targets that the network expects behind each level [GeV], likewise.
    """

    names: tuple[str, ...]
    carried: Tensor
    signal: Tensor
    spread: Tensor
    states: Tensor
    predicted: Tensor

    def __len__(self) -> int:
        return len(self.states)


@torch.no_grad()
def trajectory(
    model: MassModel,
    events: Events,
    n_samples: int,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
) -> Trajectory:
    """Draws targets and keeps every state on the way; for a few events.

    Args:
        model: A trained model of a family that denoises.
        events: Events of the model's card.
        n_samples: Number S of draws for each event.
        steps: Network evaluations for a draw; None for the model's own default.
        solver: Sampler, one of ``model.solvers``; None for the model's own default.
        seed: Seed of the draws.

    Raises:
        ModelError: If the family does not denoise.
        InputError: If an argument is out of range, or the events follow another card.
    """
    kept: dict[int, tuple[float, float, Tensor, Tensor]] = {}

    def watch(i: int, signal: float, spread: float, x_t: Tensor, x_0: Tensor) -> None:
        kept[i] = (signal, spread, x_t, x_0)

    draws = Draws.of_block(seed, slice(0, n_samples), slice(0, len(events)), model.device)
    if isinstance(model, Barman2025):
        way = _published(model, events, n_samples, steps, solver, draws, watch)
    else:
        way = _modern(model, events, n_samples, steps, solver, draws, watch)
    last, decode, carried = way
    kept[len(kept)] = (1.0, 0.0, last, last)
    rows = [kept[i] for i in sorted(kept)]
    return Trajectory(
        names=model.target_names,
        carried=carried,
        signal=torch.tensor([row[0] for row in rows], dtype=torch.float64),
        spread=torch.tensor([row[1] for row in rows], dtype=torch.float64),
        states=torch.stack([decode(row[2]) for row in rows]),
        predicted=torch.stack([decode(row[3]) for row in rows]),
    )


_Way = tuple[Tensor, Callable[[Tensor], Tensor], Tensor]
"""The draws as coordinates, what takes coordinates to targets, and which targets move."""


def _published(
    model: Barman2025,
    events: Events,
    n_samples: int,
    steps: int | None,
    solver: str | None,
    draws: Draws,
    watch: Watch,
) -> _Way:
    solver = solver or model.solvers[0]
    model._check_sampling(n_samples, steps, solver, n_samples)
    shares = model.denoiser.embed_time(torch.arange(len(model.schedule), device=model.device))
    context = model._context(model.prepare(events), slice(0, len(events)))
    last = model.draw_block(context, shares, draws, solver, steps, watch)

    def decode(x: Tensor) -> Tensor:
        return model.target_scaling.inverse(x).cpu().double()

    return last, decode, torch.ones(len(model.target_names), dtype=torch.bool)


def _modern(
    model: MassModel,
    events: Events,
    n_samples: int,
    steps: int | None,
    solver: str | None,
    draws: Draws,
    watch: Watch,
) -> _Way:
    head = _denoising_head(model)
    assert isinstance(model, EventModel)
    chosen = head.check_sampling(n_samples, steps, solver, n_samples)
    context = model._context(model.prepare(events), slice(0, len(events)))
    last = head.draw_block(context, draws, steps, chosen, watch)

    def decode(x: Tensor) -> Tensor:
        return model.out_of_frame(model.targets.decode(x).cpu().double(), events)

    return last, decode, _carried(model, head)


def _denoising_head(model: MassModel) -> PathHead | SequentialHead:
    head = model.trained_head if isinstance(model, EventModel) else None
    if isinstance(head, PathHead) or (isinstance(head, SequentialHead) and head.momenta):
        return head
    raise ModelError(
        f"The model '{model.name}' does not denoise: choose one of {', '.join(DENOISING)}, the "
        "last with more targets than the masses."
    )


def _carried(model: EventModel, head: PathHead | SequentialHead) -> Tensor:
    """Says which targets move when the components that start as noise do."""
    moving = torch.ones(len(model.targets))
    if isinstance(head, SequentialHead):
        moving[head.mass_columns] = 0.0
    rest = torch.zeros(1, len(model.targets))
    ends = [model.targets.decode(rest + sign * moving) for sign in (-1.0, 1.0)]
    return (ends[1] - ends[0]).abs()[0] > 1e-6
