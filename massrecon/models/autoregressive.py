r"""One component after the other: the `autoregressive` family of the surrogate.

    log p(x | c) = sum_t log p(x_t | x_1 ... x_(t-1), c).

Each factor is a normal variable under a map that is shifted, scaled and bent by a monotonic
rational-quadratic spline, which a small network of its own places from the components before it
and the context. The density is exact, training sees all factors at once, and a draw passes T small
networks in a row. There is no common structure to be found first, as in a coupling flow, which
pays where components are many and events few.

References:
    C. Durkan et al., arXiv:1906.04032 (neural spline flows); G. Papamakarios, T. Pavlakou and
    I. Murray, arXiv:1705.07057 (autoregressive flows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import zuko.transforms
from torch import Tensor, nn

from massrecon.errors import InputError
from massrecon.models.head import Head
from massrecon.models.likelihood import normal_log_prob
from massrecon.models.network import mlp
from massrecon.models.noise import Draws

# largest log of a scale
_STRETCH = 3.0
# where splines act, and how zuko limits their slopes
_BOUND = 5.0
_SOFTNESS = 1 / math.log(1e3)
# rows of a draw: many calls of small operations cost more than memory beyond the cache
_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """The autoregressive head.

    Attributes:
        width: Width of the network of each component.
        bins: Bins of each spline.
        context_width: Width of the embedded context.
        dropout: Share of hidden components that are left out at random in training.
    """

    width: int = 64
    bins: int = 8
    context_width: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("bins", 2), ("context_width", 1)):
            if getattr(self, name) < least:
                raise InputError(f"'{name}' should be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"'dropout' should be in [0, 1), got {self.dropout}.")


class AutoregressiveHead(Head):
    """A chain of one-dimensional spline densities of x given a context."""

    family = "autoregressive"
    density = "exact"

    mask: Tensor

    def __init__(self, n_targets: int, context_dim: int, config: AutoregressiveConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        width, seen = config.width, n_targets + config.context_width
        self.embed = mlp(context_dim, config.context_width, config.context_width)
        before = torch.arange(n_targets) < torch.arange(n_targets).unsqueeze(1)
        self.register_buffer("mask", before.unsqueeze(-1).float(), persistent=False)
        self.first = _weights(n_targets, seen, width)
        self.second = _weights(n_targets, width, width)
        self.last = nn.Parameter(torch.zeros(n_targets, width, 3 * config.bins + 1))
        self.first_bias = nn.Parameter(torch.zeros(n_targets, width))
        self.second_bias = nn.Parameter(torch.zeros(n_targets, width))
        self.last_bias = nn.Parameter(torch.zeros(n_targets, 3 * config.bins + 1))

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density of each pair, ``(N,)``."""
        keep = 1 - self.config.dropout
        shape = (self.n_targets, len(x), self.config.width)
        chance = torch.rand(shape, generator=generator, device=generator.device)
        return -self._density(x.unsqueeze(0), context, (chance < keep).to(x) / keep)[0]

    def score(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density of each pair without dropout, ``(N,)``."""
        return -self.log_density(x.unsqueeze(0), context)[0]

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x, see `Head.log_density`."""
        return self._density(x, context, None)

    def _density(self, x: Tensor, context: Tensor, dropout: Tensor | None) -> Tensor:
        """Computes log p ``(G, N)``, with factors of the hidden components ``(T, G N, width)``."""
        embedded = self.embed(context).expand(*x.shape[:-1], -1)
        flat, shape = x.flatten(0, -2), x.shape[:-1]
        n = self.n_targets
        # all components at once: those that a network may not see have no weight
        seen = (self.first[:, :n] * self.mask).permute(1, 0, 2).flatten(1)
        context_weight = self.first[:, n:].permute(1, 0, 2).flatten(1)
        hidden = flat @ seen + embedded.flatten(0, -2) @ context_weight
        hidden = nn.functional.silu(hidden.unflatten(1, (n, -1)) + self.first_bias)
        hidden = hidden.transpose(0, 1)
        hidden = hidden + nn.functional.silu(
            torch.baddbmm(self.second_bias.unsqueeze(1), hidden, self.second)
        )
        if dropout is not None:
            hidden = hidden * dropout
        knots = torch.baddbmm(self.last_bias.unsqueeze(1), hidden, self.last).transpose(0, 1)
        z, change = self._straighten(flat, knots.float())
        return (normal_log_prob(z) + change.sum(dim=-1)).reshape(shape)

    def _split(self, knots: Tensor) -> tuple[Tensor, Tensor, zuko.transforms.MonotonicRQSTransform]:
        """Returns shift, log of the scale and spline from the last layer's output."""
        bins = self.config.bins
        shift, stretch, rest = knots[..., 0], knots[..., 1], knots[..., 2:]
        widths, heights, slopes = rest.split([bins, bins, bins - 1], dim=-1)
        spline = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes)
        return shift, _STRETCH * torch.tanh(stretch / _STRETCH), spline

    def _straighten(self, x: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
        shift, stretch, spline = self._split(knots)
        z, change = spline.call_and_ladj((x - shift) * torch.exp(-stretch))
        return z, change - stretch

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        shape = (len(draws.draw), len(draws.event), self.n_targets)
        everything = torch.ones(shape[1:], dtype=torch.bool, device=context.device)
        return self.draw_where(everything, context, draws)

    def draw_where(self, there: Tensor, context: Tensor, draws: Draws) -> Tensor:
        """Draws components that are `there` ``(N, T)``; the others stay noise, ``(S, N, T)``."""
        z = draws.normal(0, self.n_targets)
        # alike events side by side: then most components are there for all or none of a piece
        order = there.sum(dim=1).argsort(descending=True)
        z, there = z[:, order], there[order]
        embedded = self.embed(context[order]).expand(*z.shape[:-1], -1).flatten(0, -2)
        needed = there.expand(*z.shape[:-1], -1).flatten(0, -2)
        pieces = zip(
            *(v.split(_AT_ONCE) for v in (z.flatten(0, -2), embedded, needed)), strict=True
        )
        x = torch.cat([self._chain(*piece) for piece in pieces]).reshape(z.shape)
        return x[:, order.argsort()]

    def _chain(self, z: Tensor, embedded: Tensor, there: Tensor) -> Tensor:
        """Turns noise ``(N, T)`` into draws, component by component."""
        n, x = self.n_targets, z.clone()
        last = torch.where(there, torch.arange(1, len(z) + 1, device=z.device).unsqueeze(1), 0)
        for t, m in enumerate(last.amax(dim=0).tolist()):
            given = torch.addmm(self.first_bias[t], embedded[:m], self.first[t, n:])
            given = given.addmm_(x[:m, :t], self.first[t, :t])
            hidden = nn.functional.silu(given, inplace=True)
            bent = torch.addmm(self.second_bias[t], hidden, self.second[t])
            hidden = hidden.add_(nn.functional.silu(bent, inplace=True))
            knots = torch.addmm(self.last_bias[t], hidden, self.last[t])
            shift, stretch = knots[:, 0], _STRETCH * torch.tanh(knots[:, 1] / _STRETCH)
            bent = unbend(z[:m, t].contiguous(), knots[:, 2:], self.config.bins)
            x[:m, t] = bent * torch.exp(stretch) + shift
        return x


def unbend(y: Tensor, knots: Tensor, bins: int) -> Tensor:
    """Inverts the splines of `zuko.transforms.MonotonicRQSTransform`, for a chain of draws.

    It does the same arithmetic with a third of the passes over memory.

    Args:
        y: Values, shape ``(N,)``.
        knots: Unconstrained widths, heights and slopes, shape ``(N, 3 bins - 1)``.
        bins: Number of bins.

    Returns:
        x with spline(x) = y, shape ``(N,)``.
    """
    raw = knots[:, : 2 * bins]
    sizes = (raw / (1 + raw.abs() * (2 * _SOFTNESS))).unflatten(1, (2, bins)).softmax(dim=-1)
    ends = sizes.cumsum(dim=-1)
    inside = (y / (2 * _BOUND) + 0.5).clamp(0.0, 1.0)
    k = (ends[:, 1, :-1] < inside.unsqueeze(1)).sum(dim=1)
    index = k.view(-1, 1, 1).expand(-1, 2, 1)
    size = sizes.gather(2, index)[..., 0]
    (left, bottom), (width, height) = (ends.gather(2, index)[..., 0] - size).T, size.T
    around = nn.functional.pad(knots[:, 2 * bins :], (1, 1)).gather(1, torch.stack([k, k + 1], 1))
    first, last = (around / (1 + around.abs() * _SOFTNESS)).exp().T
    slope, rise = height / width, inside - bottom
    bend = rise * (first + last - 2 * slope)
    a, b, c = height * (slope - first) + bend, height * first - bend, -slope * rise
    x = left - 2 * c / (b + (b * b - 4 * a * c).clamp_min(0.0).sqrt()) * width
    return torch.where(y.abs() < _BOUND, (2 * x - 1) * _BOUND, y)


def _weights(n: int, n_in: int, n_out: int) -> nn.Parameter:
    """Makes the weights of n layers, spread as those of `nn.Linear`."""
    bound = 1 / math.sqrt(n_in)
    return nn.Parameter(torch.empty(n, n_in, n_out).uniform_(-bound, bound))
