r"""A normalising flow of coupling layers with rational-quadratic splines: the `flow` family.

Each layer warps half of the components by monotonic splines whose knots follow from the other half
and the context, so that the density is exact and a draw takes a single pass:

    log p(x | c) = log N(z) + log |det dz / dx|,    z = f(x; c).

Splines act between -5 and 5; beyond, the map is the identity. The network starts as an identity.

References:
    C. Durkan et al., arXiv:1906.04032 (neural spline flows); the layers are those of zuko.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import zuko.flows
from torch import Tensor, nn

from massrecon.errors import InputError
from massrecon.models.event_model import SMALL_ENCODER, EventConfig, EventModel
from massrecon.models.head import Head
from massrecon.models.likelihood import normal_log_prob
from massrecon.models.network import mlp
from massrecon.models.noise import Draws


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The flow head.

    Attributes:
        transforms: Number of coupling layers.
        bins: Bins of each spline.
        width: Width of the networks that place the knots.
        depth: Number of their hidden layers.
    """

    transforms: int = 8
    bins: int = 16
    width: int = 256
    depth: int = 2

    def __post_init__(self) -> None:
        for name, least in (("transforms", 1), ("bins", 2), ("width", 1), ("depth", 1)):
            if getattr(self, name) < least:
                raise InputError(f"'{name}' should be at least {least}, got {getattr(self, name)}.")


class FlowHead(Head):
    """A coupling spline flow of x given a context."""

    family = "flow"
    density = "exact"

    def __init__(self, n_targets: int, context_dim: int, config: FlowConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        self.embed = mlp(context_dim, config.width, config.width)
        self.layers = nn.ModuleList(
            _coupling(n_targets, config, number) for number in range(config.transforms)
        )
        for layer in self.layers:
            for last in list(layer.parameters())[-2:]:
                nn.init.zeros_(last)

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density of each pair, ``(N,)``."""
        return -self.log_density(x.unsqueeze(0), context)[0]

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x, see `Head.log_density`."""
        embedded = self.embed(context).expand(*x.shape[:-1], -1)
        total = x.new_zeros(x.shape[:-1])
        for layer in self.layers:
            x, change = layer(embedded).call_and_ladj(x)
            # a single component is warped on its own, and zuko then keeps its axis
            total = total + (change.squeeze(-1) if change.ndim == x.ndim else change)
        return total + normal_log_prob(x)

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        x = draws.normal(0, self.n_targets)
        embedded = self.embed(context).expand(*x.shape[:-1], -1)
        for layer in reversed(self.layers):
            x = layer(embedded).inv(x)
        return x


def _coupling(n_targets: int, config: FlowConfig, number: int) -> nn.Module:
    """Builds a layer; the components that are warped differ from layer to layer."""
    order = torch.arange(n_targets)
    # halves by each binary digit of the position in turn, so that every pair is parted
    digits = max((n_targets - 1).bit_length(), 1)
    kept = (order >> ((number // 2) % digits)) % 2 == number % 2
    bins = config.bins
    return zuko.flows.GeneralCouplingTransform(
        n_targets,
        config.width,
        mask=cast(torch.BoolTensor, kept),
        univariate=zuko.transforms.MonotonicRQSTransform,
        shapes=cast(list[torch.Size], [(bins,), (bins,), (bins - 1,)]),
        hidden_features=[config.width] * config.depth,
        activation=nn.SiLU,
    )


@dataclass(frozen=True, kw_only=True)
class FlowModelConfig(FlowConfig, EventConfig):
    """Everything that the family `flow` can be told: head, encoder and targets."""

    def __post_init__(self) -> None:
        FlowConfig.__post_init__(self)
        EventConfig.__post_init__(self)


class Flow(EventModel):
    """A coupling spline flow of any card's targets."""

    name = "flow"
    density = FlowHead.density
    solvers = FlowHead.solvers
    config_type = FlowModelConfig
    head_type = FlowHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {**SMALL_ENCODER, "transforms": 6, "bins": 8, "width": 128},
    }
