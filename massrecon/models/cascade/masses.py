r"""The density of the masses that takes each hypothesis about the decay as a peak of its own.

    p(m | event) = g_0 p_free(m | context) + sum_h g_h p_h(m)

The kinematic mixture proposes where the masses could be: hypothesis h has a mean, widths and
correlations. The network, which has seen all objects, decides how likely each hypothesis is (g_h)
and corrects its centre and its width; the free density is for events whose true assignment is not
among the hypotheses. Each peak is a product of one-dimensional logistic peaks, one mass conditioned
on those before, cut off at the ends of the prior and where decays are closed, so that the whole is
normalised exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from massrecon.models.head import Head
from massrecon.models.mass_head import (
    MassHead,
    MassHeadConfig,
    cut_peak_log_prob,
    draw_cut_peak,
    log_mass,
    peak_log_prob,
)
from massrecon.models.noise import Draws

# a logistic distribution of this scale has the width of a normal one
_LOGISTIC = math.sqrt(3) / math.pi
_LEAST_SCALE = 0.003
_UNSEEN_PARAMETERS = 2


def peak_width(n_masses: int) -> int:
    """Returns how many numbers describe a peak: logit, centres, log-widths, triangle."""
    return 1 + 2 * n_masses + n_masses * (n_masses - 1) // 2


def triangle_of(correlations: Tensor, n_masses: int) -> Tensor:
    """Computes the Cholesky factor of correlations, below its diagonal.

    Both are ``(..., pairs)``, the pairs (i, j) with j < i in rows.
    """
    rows: list[list[Tensor]] = []
    given = iter(correlations.clamp(-0.99, 0.99).unbind(dim=-1))
    for i in range(n_masses):
        row: list[Tensor] = []
        for j in range(i):
            value = next(given)
            for own, other in zip(row, rows[j], strict=False):
                value = value - own * other
            row.append(value / rows[j][j])
        left = correlations.new_ones(correlations.shape[:-1])
        for value in row:
            left = left - value**2
        row.append(left.clamp_min(0.01).sqrt())
        rows.append(row)
    below = [value for row in rows for value in row[:-1]]
    return torch.stack(below, dim=-1) if below else correlations


class HypothesisMasses(Head):
    """A free density of the masses, and a peak for each hypothesis.

    The context of an event is C numbers, and behind them `peak_width` numbers for each of H
    hypotheses: logit; for each mass of the card the centre, -1 and 1 at the ends of the range of
    hypotheses, and the log of the width in units of that range; the lower triangle of the Cholesky
    factor of the correlations. A logit of -inf stands for no hypothesis.

    Args:
        context_dim: Number C of components of the context proper.
        config: Sizes of the free density.
        hypotheses: Number H of hypotheses.
        of_card: For each component which mass of the card it is, in increasing order, and -1 for
            masses that no hypothesis speaks of, which come last.
        n_masses: Number of masses of the card.

    Attributes:
        free: The free density.
        range: Ends of the range of hypotheses in each component, shape ``(T, 2)``.
    """

    family = "cascade"
    density = "exact"
    range: Tensor

    def __init__(
        self,
        context_dim: int,
        config: MassHeadConfig,
        hypotheses: int,
        of_card: Sequence[int],
        n_masses: int,
    ) -> None:
        each = peak_width(n_masses)
        super().__init__(len(of_card), context_dim + hypotheses * each)
        self.free = MassHead(len(of_card), context_dim, config)
        self.shape, self.own_dim = (hypotheses, each), context_dim
        self.n_masses = n_masses
        self.seen = [i for i in of_card if i >= 0]
        self.gate = nn.Linear(context_dim, 1)
        unseen = len(of_card) - len(self.seen)
        self.unseen = nn.Linear(context_dim, _UNSEEN_PARAMETERS * unseen) if unseen else None
        self.register_buffer("range", torch.tensor([[-1.0, 1.0]]).repeat(len(of_card), 1))

    def fit_support(self, x: Tensor) -> None:
        """Sets the range of all densities to that of the training values."""
        self.free.fit_support(x)

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density of each pair, ``(N,)``; values are moved inside."""
        return -self.log_density(self.free.moved_inside(x), context)

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x, see `Head.log_density`."""
        return self._joined(self.free.log_density(x, self._split(context)[0]), x, context)

    def log_prob_on_grid(self, axes: Sequence[Tensor], context: Tensor) -> Tensor:
        """Computes log p on the product of axes, see `MassHead.log_prob_on_grid`.

        What only depends on the earlier masses is computed once for each value of these.
        """
        log_gate, centre, scale, factor = self._peaks(*self._split(context))
        total, columns, places = log_gate[:, 1:].unsqueeze(0), list[Tensor](), list[Tensor]()
        for j, axis in enumerate(axes):
            at, own_scale = _centre(j, centre, scale, factor, places), scale[..., j]
            low, high = self.free.ends(j, columns, total[..., :1])
            value = axis[:, None, None, None]
            found = peak_log_prob(value, at, own_scale) + (
                total - log_mass(low, high, at, own_scale)
            )
            found = found.masked_fill((value < low) | (value > high), -math.inf)
            columns = [_along(column, found[..., :1]) for column in columns]
            places = [_along(place, found) for place in places]
            columns.append(_joint(value.expand_as(found[..., :1])))
            places.append(_joint((value - at) / own_scale))
            total = _joint(found)
        free = self.free.log_prob_on_grid(axes, self._split(context)[0])
        log_p = torch.cat([(log_gate[:, 0] + free.flatten(1).T).unsqueeze(-1), total], dim=-1)
        return torch.logsumexp(log_p, dim=-1).T.reshape(free.shape)

    def _joined(self, free: Tensor, x: Tensor, context: Tensor) -> Tensor:
        """Adds the peaks of the hypotheses to the free density of x."""
        log_gate, centre, scale, factor = self._peaks(*self._split(context))
        columns, places = list(x.unsqueeze(-1).unbind(dim=-2)), []
        total = log_gate[..., 1:].expand(*x.shape[:-1], -1)
        for j, value in enumerate(columns):
            at = _centre(j, centre, scale, factor, places)
            low, high = self.free.ends(j, columns, value)
            total = total + cut_peak_log_prob(value, at, scale[..., j], low, high)
            places.append((value - at) / scale[..., j])
        log_p = torch.cat([(log_gate[..., 0] + free).unsqueeze(-1), total], dim=-1)
        return torch.logsumexp(log_p, dim=-1)

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        context, peaks = self._split(context)
        log_gate, centre, scale, factor = self._peaks(context, peaks)
        free = self.free.draw_block(context, draws, steps, solver)
        # the free density uses one stream of numbers for each mass
        choice = draws.uniform(self.n_targets, 1)
        share = log_gate.exp().cumsum(dim=-1)
        chosen = (share.expand(*choice.shape[:-1], -1) < choice).sum(dim=-1, keepdim=True)
        which = (chosen - 1).clamp(0, self.shape[0] - 1)
        columns, places = [], []
        for j in range(self.n_targets):
            own_scale = _chosen(scale[..., j], which)
            at = _chosen(_centre(j, centre, scale, factor, places), which)
            low, high = self.free.ends(j, columns, at)
            position = draws.uniform(self.n_targets + 1 + j, 1)
            columns.append(draw_cut_peak(position, at, own_scale, low, high))
            places.append((columns[j] - at) / own_scale)
        return torch.where(chosen > 0, torch.cat(columns, dim=-1), free)

    def _split(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Parts the context proper from the numbers of the hypotheses, ``(N, H, .)``."""
        return context[:, : self.own_dim], context[:, self.own_dim :].unflatten(-1, self.shape)

    def _peaks(self, context: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Computes what the peaks are made of.

        Returns:
            Log-weights ``(N, 1 + H)``, that of the free density first; centres and scales
            ``(N, H, T)``; lower triangles of the factor, rows of T, ``(N, H, T, T)``.
        """
        logit, place, log_width, low = peaks.float().split(
            (1, self.n_masses, self.n_masses, self.shape[1] - 1 - 2 * self.n_masses), dim=-1
        )
        log_gate = torch.log_softmax(torch.cat([self.gate(context), logit[..., 0]], -1), dim=-1)
        half = 0.5 * (self.range[:, 1] - self.range[:, 0])
        middle = 0.5 * (self.range[:, 1] + self.range[:, 0])
        place, log_width = place[..., self.seen], log_width[..., self.seen]
        factor = peaks.new_zeros(*peaks.shape[:-1], self.n_targets, self.n_targets)
        pairs = [(i, j) for i in range(self.n_masses) for j in range(i)]
        for column, (i, j) in enumerate(pairs):
            if i in self.seen and j in self.seen:
                factor[..., self.seen.index(i), self.seen.index(j)] = low[..., column]
        width = log_width.clamp(-8, 2).exp()
        if self.unseen is not None:
            other, other_width = self.unseen(context).chunk(2, dim=-1)
            place = torch.cat([place, _for_each(other, place)], dim=-1)
            width = torch.cat([width, _for_each(other_width.clamp(-8, 2).exp(), place)], dim=-1)
        # the conditional width of a correlated mass is the smaller
        own = (1 - (factor**2).sum(dim=-1)).clamp_min(0.01).sqrt()
        scale = 2 * half * (_LEAST_SCALE + _LOGISTIC * width)
        factor = factor / own.unsqueeze(-1)
        return log_gate, middle + half * place, scale * own, factor


def _centre(
    j: int, centre: Tensor, scale: Tensor, factor: Tensor, places: Sequence[Tensor]
) -> Tensor:
    """Computes the centres of component j, given where the earlier ones are in their peaks."""
    at = centre[..., j]
    for i, place in enumerate(places):
        at = at + scale[..., j] * factor[..., j, i] * place
    return at


def _joint(values: Tensor) -> Tensor:
    """Joins a new axis with the product of the earlier ones: ``(G, P, ...)`` to ``(P G, ...)``."""
    return values.transpose(0, 1).flatten(0, 1)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Repeats ``(P, ...)`` along the new axis of `like` ``(G, P, ...)``, as `_joint` does."""
    return _joint(values.unsqueeze(0).expand_as(like))


def _chosen(values: Tensor, which: Tensor) -> Tensor:
    """Picks the value of one hypothesis: ``(..., H)`` by ``(..., 1)``."""
    return values.expand(*which.shape[:-1], -1).gather(-1, which)


def _for_each(values: Tensor, like: Tensor) -> Tensor:
    """Repeats ``(N, U)`` for each hypothesis, ``(N, H, U)``."""
    return values.unsqueeze(1).expand(-1, like.shape[1], -1)
