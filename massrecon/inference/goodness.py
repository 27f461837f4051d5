r"""Do N events fit together, and are their densities as sharp as they should be?

Three questions that need no truth and no further simulation:

* *Halves*: events of one pair of masses should lead to the same masses, whichever half is taken.
  2 [max log L_1 + max log L_2 - max log L] follows a chi-square with M degrees of freedom.
* *Sharpness*: for right densities the curvature of log L at its maximum equals the sum of the
  squared slopes of the events (the information identity). Densities that are too narrow have too
  steep slopes. For each mass, z compares the two in units of the error of their difference.
* *Evidence*: log r_i at the measured masses, of each event. Around -log(N) or lower for a few
  events means that these belong to something else.

References:
    S. S. Wilks, Ann. Math. Stat. 9 (1938) 60; H. White, Econometrica 50 (1982) 1 (information
    matrix test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST_EVENTS = 20
"""Below this number the sharpness is not computed: its error is not known."""

_LOWEST = -50.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Goodness:
    """How well events fit together.

    Attributes:
        halves: The statistic of the two halves; None for a single event.
        halves_p: Its probability to be larger, from the chi-square distribution.
        sharpness: z of each mass: above zero densities are too sharp, below too broad; empty for
            fewer than `LEAST_EVENTS` events.
        ratio: Sum of squared slopes over curvature of each mass, one if all is well.
        evidence: log r_i of each event at the measured masses, -50 at least, shape ``(N,)``.
    """

    halves: float | None
    halves_p: float | None
    sharpness: Mapping[str, float]
    ratio: Mapping[str, float]
    evidence: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, with quantiles of the evidence."""
        levels = torch.tensor([0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0], dtype=torch.float64)
        # torch.quantile takes no more numbers than these
        quantiles = torch.quantile(self.evidence[: 2**24], levels).tolist()
        return {
            "halves": self.halves,
            "halves_p": self.halves_p,
            "sharpness": dict(self.sharpness),
            "ratio": dict(self.ratio),
            "evidence": {f"{q:g}": v for q, v in zip(levels.tolist(), quantiles, strict=True)},
        }


def goodness(
    names: Sequence[str],
    halves: tuple[float, float, float],
    around: Tensor,
    steps: Sequence[float],
    weight: Tensor | None = None,
) -> Goodness:
    """Judges events from their densities around the measured masses.

    Args:
        names: Names of the M masses.
        halves: Largest log L of each half and of all events.
        around: log r_i at the measured masses and one step to each side of every mass, shape
            ``(N, 3, ..., 3)``.
        steps: The step of each mass [GeV].
        weight: Event weights, shape ``(N,)``.
    """
    n_events, n_masses = len(around), len(names)
    values = around.clamp_min(_LOWEST)
    middle = values[(slice(None), *[1] * n_masses)]
    weight = torch.ones_like(middle) if weight is None else weight.to(middle)
    sharpness, ratio = {}, {}
    for i, name in enumerate(names):
        rest = [1] * n_masses
        below, above = (
            values[(slice(None), *(end if j == i else r for j, r in enumerate(rest)))]
            for end in (0, 2)
        )
        slope = (above - below) / (2 * steps[i])
        bend = (above - 2 * middle + below) / steps[i] ** 2
        difference = weight * (slope.square() + bend)
        spread = float(difference.square().sum().sqrt())
        curvature = float(-(weight * bend).sum())
        if n_events >= LEAST_EVENTS and spread > 0 and curvature > 0:
            sharpness[name] = float(difference.sum()) / spread
            ratio[name] = float((weight * slope.square()).sum()) / curvature
    statistic = 2 * (halves[0] + halves[1] - halves[2]) if n_events > 1 else None
    return Goodness(
        halves=statistic,
        halves_p=None if statistic is None else chi_square_tail(statistic, n_masses),
        sharpness=sharpness,
        ratio=ratio,
        evidence=middle,
    )


def chi_square_tail(value: float, freedom: int) -> float:
    """Computes the probability that a chi-square with some degrees of freedom exceeds a value."""
    if not math.isfinite(value):
        return 0.0
    half = torch.tensor(max(value, 0.0) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), half))
