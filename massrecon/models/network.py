"""Small networks that families share: an MLP steered by a context, and features of a time."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


class ConditionedMLP(nn.Module):
    """A residual MLP of x in which a context, and perhaps a time, steer every block.

    A block adds ``W_2 silu(W_1 norm(h) + share)`` to its input. The shares are linear in the
    embedded context and in the time, so those of the context are computed once per event and those
    of the time once per step of a sampler. The last layer starts at zero.

    Args:
        n_in: Components of x.
        n_out: Components of the output.
        context_dim: Components of the context.
        width: Width of the blocks.
        depth: Number of blocks.
        n_times: Number of time features, 0 for a network without a time.
    """

    def __init__(
        self, n_in: int, n_out: int, context_dim: int, width: int, depth: int, n_times: int = 0
    ) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.first = nn.Linear(n_in, width)
        self.context_mlp = mlp(context_dim, width, depth * width)
        self.time_mlp = mlp(n_times, width, depth * width) if n_times else None
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.ups = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.downs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, n_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def embed(self, context: Tensor) -> Tensor:
        """Returns the shares of the context, ``(..., C)`` -> ``(..., depth, width)``."""
        return self.context_mlp(context).unflatten(-1, (self.depth, self.width))

    def embed_time(self, features: Tensor) -> Tensor:
        """Returns the shares of times, ``(..., n_times)`` -> ``(..., depth, width)``."""
        assert self.time_mlp is not None
        return self.time_mlp(features).unflatten(-1, (self.depth, self.width))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """Maps ``(..., n_in)`` to ``(..., n_out)``; shares broadcast to ``(..., depth, width)``."""
        hidden = self.first(x)
        layers = zip(self.norms, self.ups, self.downs, shares.unbind(-2), strict=True)
        for norm, up, down, share in layers:
            hidden = hidden + down(nn.functional.silu(up(norm(hidden)) + share))
        return self.last(hidden)


def mlp(*widths: int) -> nn.Sequential:
    """Builds linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


TIME_FEATURES = 32
"""Number of features of `noise_features`."""


def noise_features(log_ratio: Tensor) -> Tensor:
    """Expands the log of noise over signal in waves, ``(...)`` -> ``(..., TIME_FEATURES)``.

    The shortest wave is about one unit long; beyond ±8, all but noise or all but signal, nothing
    changes any more.
    """
    steps = torch.arange(TIME_FEATURES // 2, device=log_ratio.device)
    waves = (math.pi / 16) * 2 ** (0.25 * steps)
    phase = log_ratio.clamp(-8, 8).unsqueeze(-1) * waves
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
