r"""The joint density of a few masses, directly: the `mass_head` family.

The joint density is a product of one-dimensional ones, each conditioned on the masses before it,

    p(x_1, ..., x_T | c) = prod_j p(x_j | x_1, ..., x_{j-1}, c),

and each of these a mixture of logistic peaks cut off at the ends of its range. So it is smooth,
normalised exactly, drawn from in one pass by inverting the cumulative distribution, as sharp as
need be, and not smeared beyond the edges of the prior. A ceiling may depend on an earlier mass: a
decay must be open, such as m(chi10) < m(chi20) - 126 GeV, and no probability is spent where it is
closed. The earlier masses enter the network in waves, so that sharp correlations can be learned.

References:
    Peaks and ends: T. Salimans et al., arXiv:1701.05517, Eq. (2), here continuous and cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.models.event_model import SMALL_ENCODER, EventConfig, EventModel
from massrecon.models.head import Head
from massrecon.models.network import ConditionedMLP
from massrecon.models.noise import Draws
from massrecon.models.targets import TargetChoice, TargetSpace

_WAVES = 5
_MARGIN = 0.01
_LEAST_ROOM = 1e-3


@dataclass(frozen=True, kw_only=True)
class MassHeadConfig:
    """The direct density.

    Attributes:
        peaks: Number of logistic peaks of each one-dimensional density.
        width: Width of the networks.
        depth: Number of their residual blocks.
        least_scale: Smallest scale of a peak, in units of the width of the prior.
    """

    peaks: int = 16
    width: int = 256
    depth: int = 3
    least_scale: float = 0.003

    def __post_init__(self) -> None:
        for name in ("peaks", "width", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"'{name}' should be at least 1, got {getattr(self, name)}.")
        if not 0 < self.least_scale < 1:
            raise InputError(f"'least_scale' should be in (0, 1), got {self.least_scale}.")


class MassHead(Head):
    """A product of one-dimensional mixtures of x given a context.

    Attributes:
        lowest: Lower end of each component, shape ``(T,)``; set by `fit_support`.
        highest: Upper end, likewise.
        ceiling_of: For each component the earlier one that bounds it, or -1, shape ``(T,)``.
        ceiling: Offset and slope of that bound, shape ``(T, 2)``.
    """

    family = "mass_head"
    density = "exact"
    lowest: Tensor
    highest: Tensor
    ceiling_of: Tensor
    ceiling: Tensor

    def __init__(self, n_targets: int, context_dim: int, config: MassHeadConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        self.networks = nn.ModuleList(
            ConditionedMLP(
                1 + j * (2 * _WAVES + 1), 3 * config.peaks, context_dim, config.width, config.depth
            )
            for j in range(n_targets)
        )
        self.register_buffer("lowest", torch.full((n_targets,), -5.0))
        self.register_buffer("highest", torch.full((n_targets,), 5.0))
        self.register_buffer("ceiling_of", torch.full((n_targets,), -1))
        self.register_buffer("ceiling", torch.zeros(n_targets, 2))

    def fit_support(self, x: Tensor) -> None:
        """Sets the ends to those of the training values, with a hundredth of the range to spare."""
        low, high = x.amin(dim=0), x.amax(dim=0)
        margin = (_MARGIN * (high - low)).clamp_min(_LEAST_ROOM)
        self.lowest.copy_(low - margin)
        self.highest.copy_(high + margin)

    def set_ceiling(self, component: int, earlier: int, offset: float, slope: float) -> None:
        """Bounds a component from above by ``offset + slope * x[earlier]``.

        Raises:
            InputError: If the other component does not come before.
        """
        if not 0 <= earlier < component < self.n_targets:
            raise InputError(
                f"A ceiling of component {component} should follow from an earlier one, got "
                f"{earlier}."
            )
        self.ceiling_of[component] = earlier
        self.ceiling[component] = torch.tensor([offset, slope])

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density of each pair, ``(N,)``; values are moved inside."""
        return -self.log_density(self.moved_inside(x), context)

    def moved_inside(self, x: Tensor) -> Tensor:
        """Moves values ``(..., T)`` outside of the range to its nearest end."""
        inside: list[Tensor] = []
        for j, value in enumerate(x.unbind(dim=-1)):
            low, high = self.ends(j, inside, value)
            inside.append(torch.minimum(torch.maximum(value, low), high))
        return torch.stack(inside, dim=-1)

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x, see `Head.log_density`."""
        columns = list(x.unbind(dim=-1))
        total = torch.zeros_like(columns[0])
        for j, value in enumerate(columns):
            peaks = self._peaks(j, columns[:j], context)
            low, high = self.ends(j, columns, value)
            total = total + _cut_mixture_log_prob(value, *peaks, low, high)
        return total

    def log_prob_on_grid(self, axes: Sequence[Tensor], context: Tensor) -> Tensor:
        """Computes log p(x | context) on the product of axes, ``(N, G_1, ..., G_T)``.

        The network of a component runs once for each value of the components before it, not once
        for each point of the grid.

        Args:
            axes: Values of each component, shapes ``(G_1,)`` to ``(G_T,)``.
            context: Contexts, shape ``(N, C)``.
        """
        total, columns = context.new_zeros(1, len(context)), list[Tensor]()
        for j, axis in enumerate(axes):
            low, high = self.ends(j, columns, total)
            peaks = self._peaks(j, columns, context)
            found = total + _cut_mixture_log_prob(axis[:, None, None], *peaks, low, high)
            shape = (len(total), len(axis), len(context))
            total = found.transpose(0, 1).flatten(0, 1)
            columns = [c.unsqueeze(1).expand(shape).flatten(0, 1) for c in columns]
            columns.append(axis[None, :, None].expand(shape).flatten(0, 1))
        return total.T.reshape(len(context), *(len(axis) for axis in axes))

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        columns: list[Tensor] = []
        template = draws.uniform(0, 1)[..., 0]
        for j in range(self.n_targets):
            low, high = self.ends(j, columns, template)
            peaks = self._peaks(j, columns, context)
            choice, position = draws.uniform(j, 2).unbind(dim=-1)
            columns.append(_draw_cut_mixture(choice, position, *peaks, low, high))
        return torch.stack(columns, dim=-1)

    def ends(self, j: int, columns: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns lower and upper end of component j, given the earlier ones, shaped as `like`."""
        low, high = self.lowest[j].expand_as(like), self.highest[j].expand_as(like)
        earlier = int(self.ceiling_of[j])
        if earlier >= 0:
            offset, slope = self.ceiling[j]
            high = torch.minimum(high, offset + slope * columns[earlier])
            high = torch.maximum(high, low + _LEAST_ROOM)
        return low, high

    def _peaks(
        self, j: int, columns: list[Tensor], context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes log-weights, centres and scales of the peaks, each ``(..., N, K)``."""
        network = cast(ConditionedMLP, self.networks[j])
        shares = network.embed(context)
        low, span = self.lowest, self.highest - self.lowest
        like = columns[0] if columns else context[:, 0]
        inputs = [torch.ones_like(like)]
        for i, column in enumerate(columns[:j]):
            place = (column - low[i]) / span[i]
            inputs.append(2 * place - 1)
            for wave in range(_WAVES):
                phase = math.pi * 2**wave * place
                inputs += [phase.sin(), phase.cos()]
        logits, centre, scale = network(torch.stack(inputs, -1), shares).float().chunk(3, dim=-1)
        n = self.config.peaks
        even = (torch.arange(n, device=centre.device) + 0.5) / n
        centre = low[j] + span[j] * (even + centre)
        scale = span[j] * (self.config.least_scale + functional.softplus(scale - math.log(n)))
        return torch.log_softmax(logits, dim=-1), centre, scale


def _cut_mixture_log_prob(
    x: Tensor, log_weight: Tensor, centre: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Computes the log-density of a mixture of logistic peaks between two ends; -inf outside."""
    peak = peak_log_prob(x.unsqueeze(-1), centre, scale)
    inside = log_mass(low.unsqueeze(-1), high.unsqueeze(-1), centre, scale)
    log_p = torch.logsumexp(log_weight + peak, -1) - torch.logsumexp(log_weight + inside, -1)
    return torch.where((x >= low) & (x <= high), log_p, -math.inf)


def cut_peak_log_prob(
    x: Tensor, centre: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Computes the log-density of one logistic peak between two ends; -inf outside."""
    log_p = peak_log_prob(x, centre, scale) - log_mass(low, high, centre, scale)
    return torch.where((x >= low) & (x <= high), log_p, -math.inf)


def peak_log_prob(x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Computes the log-density of a logistic peak that nothing cuts off."""
    away = ((x - centre) / scale).abs()
    return away + 2 * functional.logsigmoid(-away) - scale.log()


def log_mass(low: Tensor, high: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Computes the log of the part of a logistic peak between two ends, without cancellation."""
    a, b = (low - centre) / scale, (high - centre) / scale
    apart = torch.log(-torch.expm1(a - b))
    return functional.logsigmoid(b) + functional.logsigmoid(-a) + apart


def _draw_cut_mixture(
    choice: Tensor,
    position: Tensor,
    log_weight: Tensor,
    centre: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Draws from the mixture with two uniform numbers: which peak, and where in it."""
    inside = log_mass(low.unsqueeze(-1), high.unsqueeze(-1), centre, scale)
    share = torch.softmax(log_weight + inside, dim=-1).cumsum(dim=-1)
    shape = (*choice.shape, share.shape[-1])
    k = (share.expand(shape) < choice.unsqueeze(-1)).sum(dim=-1).clamp_max(shape[-1] - 1)
    centre, scale = (
        t.expand(shape).gather(-1, k.unsqueeze(-1)).squeeze(-1) for t in (centre, scale)
    )
    return draw_cut_peak(position, centre, scale, low, high)


def draw_cut_peak(
    position: Tensor, centre: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Draws from a logistic peak between two ends, by inverting its cumulative distribution.

    All arguments have the same shape; `position` is uniform between 0 and 1.
    """
    # double precision keeps the tails of a peak that lies outside
    centre, scale = centre.double(), scale.double()
    ends = [torch.sigmoid((end.double() - centre) / scale) for end in (low, high)]
    level = ends[0] + position.double() * (ends[1] - ends[0])
    drawn = centre + scale * torch.logit(level, eps=1e-15)
    return torch.minimum(torch.maximum(drawn.to(position.dtype), low), high)


@dataclass(frozen=True, kw_only=True)
class MassHeadModelConfig(MassHeadConfig, EventConfig):
    """Everything that the family `mass_head` can be told: density, encoder and targets."""

    targets: TargetChoice = "masses"

    def __post_init__(self) -> None:
        MassHeadConfig.__post_init__(self)
        EventConfig.__post_init__(self)


class MassDensity(EventModel):
    """The joint density of a card's masses, where its decays are open."""

    name = "mass_head"
    density = MassHead.density
    config_type = MassHeadModelConfig
    head_type = MassHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {**SMALL_ENCODER, "width": 128, "depth": 2},
    }

    def _adapt_head(self) -> None:
        """Sets the ceilings that follow from the decays that the card requires to be open."""
        head = self.trained_head
        assert isinstance(head, MassHead)
        set_ceilings(head, self.card, self.targets, range(len(self.targets)))


def set_ceilings(
    head: MassHead, card: ProcessCard, targets: TargetSpace, columns: Sequence[int]
) -> None:
    """Bounds masses from above where the card requires a decay to be open.

    Args:
        head: The density of some masses.
        card: The process.
        targets: All targets, with their scaling.
        columns: Which of the kept targets the density is of, in its order.
    """
    kept = targets.kept.tolist()
    names = [targets.names[kept[i]] for i in columns]
    offset, scale = targets.offset.tolist(), targets.scale.tolist()
    for channel in card.open_channels:
        pair = [f"{name}_m" for name in (channel.parent, *channel.daughters)]
        if len(pair) != 2 or not set(pair) <= set(names):
            continue
        parent, daughter = (names.index(name) for name in pair)
        if parent < daughter:
            above, below = columns[parent], columns[daughter]
            gap = offset[above] - channel.minimum_gap - offset[below]
            head.set_ceiling(daughter, parent, gap / scale[below], scale[above] / scale[below])
