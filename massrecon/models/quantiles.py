r"""Monotone maps that turn each column of a sample into a standard normal variable.

A column is described by its quantiles at evenly spaced normal scores z_k, joined by straight lines.
Beyond the outermost knot a bounded column runs to its limit in proportion to the tail probability,
value = limit + (q_0 - limit) Phi(z) / Phi(z_0), so that nothing is ever drawn past a limit; an
unbounded one goes on along a straight line.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from massrecon.errors import InputError

_KNOTS = 65
_REACH = 3.2
# knots over which the slope of an unbounded tail is taken
_TAIL = 4
# share of a tail next to a limit in which values are not told apart
_NEAREST = 1e-4


class QuantileMap(nn.Module):
    """An invertible map of A columns to standard normal scores, kept with the weights.

    Args:
        low: Lower limits of the columns, ``-inf`` for none, shape ``(A,)``.
        high: Upper limits, ``inf`` for none, shape ``(A,)``.
    """

    low: Tensor
    high: Tensor
    scores: Tensor
    knots: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        scores = torch.linspace(-_REACH, _REACH, _KNOTS, dtype=torch.float64)
        self.register_buffer("low", low.double(), persistent=False)
        self.register_buffer("high", high.double(), persistent=False)
        self.register_buffer("scores", scores, persistent=False)
        self.register_buffer("knots", scores.repeat(len(low), 1))

    def fit(self, values: Tensor, there: Tensor) -> None:
        """Sets the quantiles from values ``(N, A)``, of which those `there` count, ``(N, A)``.

        A column that is there in fewer than two events keeps the map that it has.

        Raises:
            InputError: If a value is not finite.
        """
        if not bool(values[there].isfinite().all()):
            raise InputError(
                "The quantiles need finite values: check the training events with "
                "events.validate()."
            )
        levels = torch.special.ndtr(self.scores)
        for column in range(values.shape[1]):
            chosen = values[there[:, column], column].double()
            if len(chosen) < 2:
                continue
            quantiles = torch.quantile(chosen, levels)
            # equal values would leave no room between two knots
            spread = 1e-6 * float(quantiles[-1] - quantiles[0]) + 1e-6
            room = spread * torch.linspace(0, 1, _KNOTS, dtype=torch.float64)
            self.knots[column] = self._inside(quantiles + room, column)

    def _inside(self, knots: Tensor, column: int) -> Tensor:
        """Keeps knots strictly between the limits."""
        low, high = float(self.low[column]), float(self.high[column])
        width = float(knots[-1] - knots[0])
        margin = 1e-6 * width * torch.linspace(0, 1, _KNOTS, dtype=torch.float64)
        knots = torch.maximum(knots, low + 1e-6 * width + margin)
        return torch.minimum(knots, high - 2e-6 * width + margin)

    def forward(self, values: Tensor) -> Tensor:
        """Takes values ``(N, A)`` to normal scores, same shape, in the dtype of `values`."""
        columns = values.double().T.contiguous()
        first, last = self.knots[:, :1], self.knots[:, -1:]
        inner = _interpolate(columns, self.knots, self.scores.expand_as(self.knots))
        slope_low, slope_high = self._slopes()
        tail = torch.special.ndtr(self.scores[0])
        below_low, above_high = columns - self.low.unsqueeze(1), self.high.unsqueeze(1) - columns
        share_low = (below_low / (first - self.low.unsqueeze(1))).clamp(_NEAREST, 1.0)
        share_high = (above_high / (self.high.unsqueeze(1) - last)).clamp(_NEAREST, 1.0)
        lower = torch.where(
            self.low.isfinite().unsqueeze(1),
            torch.special.ndtri(tail * share_low),
            self.scores[0] + (columns - first) / slope_low,
        )
        upper = torch.where(
            self.high.isfinite().unsqueeze(1),
            -torch.special.ndtri(tail * share_high),
            self.scores[-1] + (columns - last) / slope_high,
        )
        scores = torch.where(columns < first, lower, torch.where(columns > last, upper, inner))
        return scores.T.to(values)

    def inverse(self, scores: Tensor) -> Tensor:
        """Takes normal scores ``(N, A)`` to values within the limits, same shape."""
        columns = scores.double().T.contiguous()
        # the scores of the knots are even, so the place between them needs no search
        place = (columns + _REACH) * ((_KNOTS - 1) / (2 * _REACH))
        left = place.long().clamp_(0, _KNOTS - 2)
        below, above = self.knots.gather(1, left), self.knots.gather(1, left + 1)
        values = torch.lerp(below, above, place - left)
        slope_low, slope_high = self._slopes()
        # few values are in the tails, and their probabilities are slow to compute
        for side, knots, limits, slopes, outside in (
            (1.0, self.knots[:, 0], self.low, slope_low, columns < self.scores[0]),
            (-1.0, self.knots[:, -1], self.high, slope_high, columns > self.scores[-1]),
        ):
            column = outside.nonzero()[:, 0]
            beyond = side * columns[outside]
            share = torch.special.ndtr(beyond) / torch.special.ndtr(self.scores[0])
            knot, limit = knots[column], limits[column]
            straight = knot + side * (beyond - self.scores[0]) * slopes[column, 0]
            bounded = limit + (knot - limit) * share
            values[outside] = torch.where(limit.isfinite(), bounded, straight)
        return values.T.to(scores)

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """Returns value over score in the lower and upper tail, each ``(A, 1)``."""
        run = self.scores[_TAIL] - self.scores[0]
        low = (self.knots[:, _TAIL] - self.knots[:, 0]) / run
        high = (self.knots[:, -1] - self.knots[:, -1 - _TAIL]) / run
        return low.unsqueeze(1), high.unsqueeze(1)


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolates rows y(x) ``(A, Q)`` linearly at points ``(A, N)``."""
    right = torch.searchsorted(x.contiguous(), at).clamp(1, x.shape[1] - 1)
    x_0, x_1 = x.gather(1, right - 1), x.gather(1, right)
    y_0, y_1 = y.gather(1, right - 1), y.gather(1, right)
    return y_0 + (at - x_0) / (x_1 - x_0) * (y_1 - y_0)
