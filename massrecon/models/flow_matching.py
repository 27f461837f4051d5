r"""Conditional flow matching along straight paths: the `flow_matching` family.

Noise and target are joined by x_t = (1 - t) x_0 + t epsilon, the network learns the mean velocity
epsilon - x_0, and a draw follows dx/dt = v from t = 1 back to 0.

References:
    Y. Lipman et al., arXiv:2210.02747, Eq. (23) with sigma_min = 0; X. Liu, C. Gong and Q. Liu,
    arXiv:2209.03003.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from massrecon.models.event_model import SMALL_ENCODER, EventConfig, EventModel
from massrecon.models.noise import Draws
from massrecon.models.paths import PathConfig, PathHead
from massrecon.models.samplers import Watch


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig(PathConfig):
    """The flow-matching head; see `PathConfig`."""


class FlowMatchingHead(PathHead):
    """A flow along straight paths from noise to x, given a context."""

    family = "flow_matching"
    solvers = ("heun", "euler", "dpm++")
    end: ClassVar[float] = 1.0

    @staticmethod
    def mixing(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns 1 - t, t and their derivatives."""
        one = torch.ones_like(t)
        return one - t, t, -one, one

    def spread_times(self, share: Tensor) -> Tensor:
        """Spreads training times evenly."""
        return share

    def sampling_times(self, n_levels: int) -> Sequence[float]:
        """Returns even times from 1 downwards."""
        return [1 - i / n_levels for i in range(n_levels)]

    def draw_block(
        self,
        context: Tensor,
        draws: Draws,
        steps: int | None,
        solver: str,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        if solver == "dpm++":
            return super().draw_block(context, draws, steps, solver, watch)
        evaluations = steps or self.config.steps
        shares, x = self.network.embed(context), draws.normal(0, self.n_targets)
        heun = solver == "heun" and evaluations > 1
        times = [*self.sampling_times(evaluations // 2 if heun else evaluations), 0.0]
        for i, (t, t_next) in enumerate(itertools.pairwise(times)):
            v = self.velocity(x, t, shares)
            if watch is not None:
                watch(i, 1 - t, t, x, x - t * v)
            if heun:
                ahead = self.velocity(x + (t_next - t) * v, t_next, shares)
                v = 0.5 * (v + ahead)
            x = x + (t_next - t) * v
        return x


@dataclass(frozen=True, kw_only=True)
class FlowMatchingModelConfig(FlowMatchingConfig, EventConfig):
    """Everything that the family `flow_matching` can be told: head, encoder and targets."""

    def __post_init__(self) -> None:
        FlowMatchingConfig.__post_init__(self)
        EventConfig.__post_init__(self)


class FlowMatching(EventModel):
    """Flow matching of any card's targets."""

    name = "flow_matching"
    density = FlowMatchingHead.density
    solvers = FlowMatchingHead.solvers
    config_type = FlowMatchingModelConfig
    head_type = FlowMatchingHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {**SMALL_ENCODER, "width": 128, "depth": 3, "noise_draws": 8},
    }
