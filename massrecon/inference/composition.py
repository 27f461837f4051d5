r"""What a sample is made of: signal, and background of an unknown share or of an expected rate.

With r_i(m) = p(y_i | m) / p(y_i | signal) from `massrecon.inference.likelihood` and the ratio

    w_i = p(y_i | background) / p(y_i | signal),

where "signal" is the whole training sample, N events of which a share f is background have, up to a
constant,

    log L(m, f) = T(m, f) = sum_i log[(1 - f) r_i(m) + f w_i].

An event that looks like background then counts little, however sharp its masses are. The share is
not known and profiled (`BackgroundShare`). With expected rates s(m) and b, whose uncertainties are
profiled, the number of events counts too (`ExpectedRates`), and f = b / (s + b):

    log L(m, b) = T(m, f) + N log(s + b) - s - b - (b - b_0)^2 / 2 sigma^2.

T is added up once at 61 shares, evenly spaced in logit f from 1e-4 to 1 - 1e-4, in which every term
of it is smooth, and taken in between with cubics, which are right to some 2e-5 for each event: any
knowledge of the rates costs no further pass over the events. What is profiled is looked for on a
grid, and then in ever smaller steps: many events know their composition better than any fixed grid.

References:
    R. Barlow, Nucl. Instrum. Meth. A 297 (1990) 496 (extended likelihood).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference.likelihood import weighted_total
from massrecon.inference.pseudo import FARTHEST

LOGITS = torch.linspace(-9.21, 9.21, 61, dtype=torch.float64)
"""Log-odds of background at which T is known."""

_LOGIT_STEP = float(LOGITS[1] - LOGITS[0])

_SIGMAS = 4.0  # how far from what is expected rates are looked for
_STEPS = 33
_FEW_STEPS = 9
_CLIMBS = 14  # rounds of a search, each with smaller steps
_SHRINK = 0.6  # of the steps, so that those left can still go farther than one of the last
_ZOOMS = 8
_DEPTH = 2.0  # below the highest log L a curve need not be known well


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """The likelihood of the masses at their best composition, and of the composition.

    Attributes:
        total: log L, -inf where the masses are not allowed, shape ``(G,)``.
        logit: Log-odds of background there, shape ``(G,)``.
        name: What the composition is told by, such as ``share of background``.
        interval: Computes its best value and the ends of its 68 % interval.
    """

    total: Tensor
    logit: Tensor
    name: str
    interval: Callable[[], tuple[float, float, float]]

    @cached_property
    def found(self) -> dict[str, tuple[float, float, float]]:
        """Best value, lower and upper end of the 68 % interval, by name; computed when asked."""
        return {self.name: self.interval()}


class Composition(ABC):
    """What is known of signal and background in a sample of N events.

    Attributes:
        log_background: log w of each event, as of `massrecon.inference.background`, ``(N,)``.
    """

    log_background: Tensor

    @abstractmethod
    def first(self, n: int) -> Composition:
        """Returns what is known of the first n events, where events arrive in random order."""

    @abstractmethod
    def profile(self, table: Tensor, points: Tensor, n: float, part: float = 1.0) -> Profile:
        """Finds the best composition at each mass point.

        Args:
            table: T at `LOGITS` and G mass points, see `share_table`, shape ``(61, G)``.
            points: The mass points [GeV], shape ``(G, M)``.
            n: Number of events in the table.
            part: Which part of all events they are.
        """


@dataclass(frozen=True, eq=False, kw_only=True)
class BackgroundShare(Composition):
    """An unknown share of background; the number of events tells nothing.

    Attributes:
        log_background: log w of each event, shape ``(N,)``.
        constraint: What is known of the share, as mean and standard deviation; None for nothing.

    Raises:
        InputError: If the constraint is not possible.
    """

    log_background: Tensor
    constraint: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and not (
            0 <= self.constraint[0] <= 1 and self.constraint[1] > 0
        ):
            raise InputError(
                "'constraint' should be a share in [0, 1] and a positive uncertainty, got "
                f"{self.constraint}."
            )

    def first(self, n: int) -> BackgroundShare:
        """Returns what is known of the first n events."""
        return replace(self, log_background=self.log_background[:n])

    def profile(self, table: Tensor, points: Tensor, n: float, part: float = 1.0) -> Profile:
        """Finds the best share at each mass point."""

        def log_likelihood(logit: Tensor) -> Tensor:
            return at_logit(table, logit) - part * self._penalty(logit)

        def curve(logit: float) -> float:
            return float(log_likelihood(table.new_full(table.shape[1:], logit)).max())

        start = LOGITS[(table - part * self._penalty(LOGITS).unsqueeze(1)).argmax(0)]
        logit = _climb(lambda x: log_likelihood(x[0]), start.unsqueeze(0), [_LOGIT_STEP])[0]
        logit = logit.clamp(float(LOGITS[0]), float(LOGITS[-1]))

        def interval() -> tuple[float, float, float]:
            ends = torch.tensor(_interval_of_curve(curve, LOGITS), dtype=torch.float64)
            best, low, high = ends.sigmoid().tolist()
            return best, low, high

        return Profile(
            total=log_likelihood(logit), logit=logit, name="share of background", interval=interval
        )

    def _penalty(self, logit: Tensor) -> Tensor:
        """Returns what a share costs that is not the one known beforehand."""
        if self.constraint is None:
            return torch.zeros_like(logit)
        mean, sigma = self.constraint
        return 0.5 * ((logit.sigmoid() - mean) / sigma).square()


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpectedRates(Composition):
    """Expected numbers of events: heavier particles are made more rarely.

    Attributes:
        log_background: log w of each event, shape ``(N,)``.
        signal: Gives the expected signal events at mass points ``(G, M)`` [GeV], shape ``(G,)``,
            such as a `massrecon.inference.rates.YieldMap` at a luminosity.
        background: Expected background events and their standard deviation.
        signal_uncertainty: Relative standard deviation of the expected signal.

    Raises:
        InputError: If a number is negative, or no background is expected.
    """

    log_background: Tensor
    signal: Callable[[Tensor], Tensor]
    background: tuple[float, float]
    signal_uncertainty: float = 0.0

    def __post_init__(self) -> None:
        if not (self.background[0] > 0 and self.background[1] >= 0):
            raise InputError(
                "'background' should be a positive number of events and its uncertainty, got "
                f"{self.background}."
            )
        if not self.signal_uncertainty >= 0:
            raise InputError(
                f"'signal_uncertainty' should not be negative, got {self.signal_uncertainty}."
            )

    def first(self, n: int) -> ExpectedRates:
        """Returns what is known of the first n events: their part of all rates."""
        part, signal = n / len(self.log_background), self.signal
        return replace(
            self,
            log_background=self.log_background[:n],
            signal=lambda points: part * signal(points),
            background=(part * self.background[0], part * self.background[1]),
        )

    def profile(self, table: Tensor, points: Tensor, n: float, part: float = 1.0) -> Profile:
        """Finds the best rates at each mass point, within their uncertainties."""
        expected = part * self.signal(points).double()
        if bool((expected < 0).any()):
            raise InputError("The expected signal should not be negative.")
        rates = _Rates(known=self, table=table, expected=expected, n=n, part=part)
        pulls = rates.best()
        total, logit = rates.log_likelihood(pulls)
        return Profile(
            total=total,
            logit=logit.clamp(float(LOGITS[0]), float(LOGITS[-1])),
            name="background events",
            interval=rates.background_interval,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rates:
    """The extended likelihood of G mass points as a function of the pulls of both rates."""

    known: ExpectedRates
    table: Tensor
    expected: Tensor
    n: float
    part: float

    def log_likelihood(self, pulls: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log L and the log-odds of background for pulls of both rates ``(2, G)``."""
        z, y = pulls
        mean, sigma = self.known.background
        b = self.part * (mean + z * sigma)
        s = self.expected * (y * math.log1p(self.known.signal_uncertainty)).exp()
        possible = b.clamp_min(1e-300)
        odds = possible.log() - s.clamp_min(1e-300).log()
        rate = s + possible
        penalty = 0.5 * self.part * (z.square() + y.square())
        value = at_logit(self.table, odds) + self.n * rate.log() - rate - penalty
        return torch.where(b > 0, value, -math.inf), odds

    def best(self, z: float | None = None) -> Tensor:
        """Finds the best pulls of each mass point, or of the signal at one pull of background."""
        steps = [_pulls(self.known.background[1], _STEPS) if z is None else [z]]
        steps.append(_pulls(self.known.signal_uncertainty, _FEW_STEPS))
        pairs = torch.cartesian_prod(*(torch.tensor(s, dtype=torch.float64) for s in steps))
        trials = pairs.unsqueeze(-1).expand(-1, -1, len(self.expected))
        values = torch.stack([self.log_likelihood(trial)[0] for trial in trials])
        start = pairs[values.argmax(0)].T
        widths = [s[1] - s[0] if len(s) > 1 else 0.0 for s in steps]
        return _climb(lambda pulls: self.log_likelihood(pulls)[0], start, widths)

    def background_interval(self) -> tuple[float, float, float]:
        """Finds the best number of background events and its 68 % interval."""
        mean, sigma = self.known.background
        if sigma == 0:
            return mean, mean, mean

        def curve(z: float) -> float:
            return float(self.log_likelihood(self.best(z))[0].max())

        possible = [z for z in _pulls(sigma, _STEPS) if mean + z * sigma > 0]
        found = _interval_of_curve(curve, torch.tensor(possible, dtype=torch.float64))
        best, low, high = (mean + z * sigma for z in found)
        return best, low, high


def _pulls(uncertainty: float, number: int) -> list[float]:
    return torch.linspace(-_SIGMAS, _SIGMAS, number).tolist() if uncertainty > 0 else [0.0]


def _climb(function: Callable[[Tensor], Tensor], start: Tensor, widths: Sequence[float]) -> Tensor:
    """Climbs to the maxima of a function of D numbers at G points, by steps that become smaller.

    Args:
        function: Takes the numbers ``(D, G)`` to values ``(G,)``.
        start: Where to begin, within a step of the maximum, shape ``(D, G)``.
        widths: The first step of each number; zero for one that stays.

    Returns:
        Where the maxima are, shape ``(D, G)``.
    """
    best, value = start, function(start)
    free = [[-width, 0.0, width] if width > 0 else [0.0] for width in widths]
    offsets = torch.tensor(list(itertools.product(*free)), dtype=torch.float64)
    for k in range(_CLIMBS):
        centre = best
        for offset in offsets[offsets.any(1)]:
            trial = centre + _SHRINK**k * offset.unsqueeze(1)
            found = function(trial)
            best = torch.where(found > value, trial, best)
            value = torch.maximum(found, value)
    return best


def _interval_of_curve(curve: Callable[[float], float], x: Tensor) -> tuple[float, float, float]:
    """Finds maximum and 68 % interval of log L, on points that close in on where it is high."""

    def values(x: Tensor) -> Tensor:
        return torch.tensor([curve(value) for value in x.tolist()], dtype=torch.float64)

    y = values(x)
    for _ in range(_ZOOMS if bool(y.max() > -math.inf) else 0):
        high = (y > y.max() - _DEPTH).nonzero()[:, 0]
        first, last = max(int(high[0]) - 1, 0), min(int(high[-1]) + 1, len(x) - 1)
        if 2 * (last - first) >= len(x) - 1:
            break
        x = torch.linspace(float(x[first]), float(x[last]), len(x), dtype=torch.float64)
        y = values(x)
    return interval_of(x, y)


def mixed(log_ratio: Tensor, log_background: Tensor, share: float) -> Tensor:
    """Mixes signal and background: log[(1 - f) r + f w] of each event.

    Args:
        log_ratio: log r of signal at G mass points, shape ``(N, G)``.
        log_background: log w, shape ``(N,)``.
        share: Share f of background, in [0, 1].

    Raises:
        InputError: If the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"'share' should be in [0, 1], got {share}.")
    if share == 0:
        return log_ratio
    background = (log_background.to(log_ratio) + math.log(share)).unsqueeze(1)
    if share == 1:
        return background.expand_as(log_ratio)
    return torch.logaddexp(log_ratio + math.log1p(-share), background)


def share_table(log_ratio: Tensor, log_background: Tensor, weight: Tensor | None = None) -> Tensor:
    """Adds up T = sum_i log[(1 - f) r_i + f w_i] at the shares of `LOGITS`.

    Args:
        log_ratio: log r of signal at G mass points, -inf where it is not allowed, ``(N, G)``.
        log_background: log w, shape ``(N,)``.
        weight: Weights of the events, shape ``(N,)``; one if not given.

    Returns:
        T, -inf where no event allows the masses, float64, shape ``(61, G)``.

    Raises:
        ShapeError: If the shapes do not fit.
    """
    if log_ratio.ndim != 2 or log_background.shape != log_ratio.shape[:1]:
        raise ShapeError(
            f"'log_ratio' should have shape (N, G) and 'log_background' (N,), got "
            f"{tuple(log_ratio.shape)} and {tuple(log_background.shape)}."
        )
    # one logarithm of a sum instead of two of its terms: three times as fast
    signal = log_ratio.double().clamp(FARTHEST, -FARTHEST).exp()
    background = log_background.double().clamp(FARTHEST, -FARTHEST).exp().unsqueeze(1)
    rows = [
        weighted_total(torch.lerp(signal, background, f).log_(), weight)
        for f in LOGITS.sigmoid().tolist()
    ]
    table = torch.stack(rows)
    if len(log_ratio):
        table = table.masked_fill(~(log_ratio > -math.inf).any(0), -math.inf)
    return table


def at_logit(table: Tensor, logit: Tensor) -> Tensor:
    """Interpolates T at one share for each mass point, with cubics; the ends hold outside.

    Args:
        table: T at `LOGITS`, shape ``(61, G)``.
        logit: Log-odds of background, shape ``(G,)``.
    """
    place = ((logit - LOGITS[0]) / _LOGIT_STEP).clamp(0, len(LOGITS) - 1)
    left = place.floor().long().clamp(1, len(LOGITS) - 3)
    t = place - left
    weights = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    known = table.clamp_min(-1e300)  # -inf times a weight of zero is not a number
    total = torch.zeros_like(t)
    for k, own in enumerate(weights, -1):
        total += own * known.gather(0, (left + k).unsqueeze(0))[0]
    return torch.where(table[0] == -math.inf, -math.inf, total)


def interval_of(x: Tensor, log_likelihood: Tensor, drop: float = 0.5) -> tuple[float, float, float]:
    """Finds maximum and interval of a likelihood, by a parabola and by linear interpolation.

    Args:
        x: Rising values, shape ``(F,)``.
        log_likelihood: log L, shape ``(F,)``.
        drop: By how much log L falls to the ends of the interval.

    Returns:
        The best value, and the lower and upper ends; the ends of `x` where it does not fall so far.
    """
    x, y = x.double(), log_likelihood.double()
    i = int(y.argmax())
    best, top = float(x[i]), float(y[i])
    if 0 < i < len(x) - 1:
        a, b = float(x[i - 1] - x[i]), float(x[i + 1] - x[i])
        da, db = float(y[i - 1] - y[i]), float(y[i + 1] - y[i])
        curvature = (da / a - db / b) / (a - b)
        if math.isfinite(curvature) and curvature < 0:
            slope = da / a - curvature * a
            best, top = best - slope / (2 * curvature), top - slope**2 / (4 * curvature)
    below, level = (y < top - drop).tolist(), top - drop
    ends = [float(x[0]), float(x[-1])]
    for side, order in enumerate((range(i, 0, -1), range(i, len(x) - 1))):
        for k in order:
            other = k - 1 if side == 0 else k + 1
            if below[other]:
                share = (float(y[k]) - level) / max(float(y[k] - y[other]), 1e-300)
                ends[side] = float(x[k]) + min(max(share, 0.0), 1.0) * float(x[other] - x[k])
                break
    return best, ends[0], ends[1]
