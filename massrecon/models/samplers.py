r"""Samplers: from noise to a draw, for every family that predicts the clean value.

At a noise level with signal a and spread s a noised target is x_t = a x_0 + s epsilon. A predictor
gives the expected x_0 and epsilon = (x_t - a x_0) / s for x_t at the i-th of a falling row of
levels, at the end of which x_0 itself stands. With the ratio r = s / a all of these go along

    d(x_t / a) / dr = epsilon,

which `ancestral` disturbs with fresh noise. `ddim` takes Euler steps, `heun` second-order steps
(two evaluations each), `dpm_solver` steps in -log r that remember the previous x_0.

References:
    J. Song, C. Meng and S. Ermon, arXiv:2010.02502, Eq. (12): DDIM, and with sigma_t = 0.
    T. Karras et al., arXiv:2206.00364, Algorithm 1: Heun's method.
    C. Lu et al., arXiv:2211.01095, Algorithm 2: DPM-Solver++(2M).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Predictor = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Predicts (x_0, epsilon) from x_t at the i-th level; all have the shape of x_t."""

NoiseSource = Callable[[int], Tensor]
"""Gives standard normal noise of the shape of x_t for the i-th level."""


Watch = Callable[[int, float, float, Tensor, Tensor], None]
"""Is shown the way of draws: the number of a level, its signal and spread, x_t and the predicted
x_0. A level may be shown twice, since `heun` tries it first; the second time counts."""


@dataclass(frozen=True)
class NoiseLevels:
    """A row of noise levels from the noisiest to the cleanest.

    Attributes:
        signal: Factor a of the clean target at each level.
        spread: Factor s of the noise at each level, not zero.
    """

    signal: Sequence[float]
    spread: Sequence[float]

    def __len__(self) -> int:
        return len(self.signal)

    def at(self, i: int) -> tuple[float, float]:
        """Returns signal and spread of a level; behind the last one there is no noise."""
        return (self.signal[i], self.spread[i]) if i < len(self) else (1.0, 0.0)


def count_levels(solver: str, steps: int) -> int:
    """Returns how many levels a solver visits with `steps` evaluations of its predictor."""
    return (steps + 1) // 2 if solver == "heun" else steps


def watched(predict: Predictor, levels: NoiseLevels, watch: Watch | None) -> Predictor:
    """Lets somebody watch what a sampler asks its predictor."""
    if watch is None:
        return predict

    def watching(x_t: Tensor, i: int) -> tuple[Tensor, Tensor]:
        x_0, epsilon = predict(x_t, i)
        watch(i, *levels.at(i), x_t, x_0)
        return x_0, epsilon

    return watching


def ddim(predict: Predictor, x_t: Tensor, levels: NoiseLevels, noise: NoiseSource) -> Tensor:
    """Samples along the deterministic path, one evaluation a level; see `SOLVERS`."""
    for i in range(len(levels)):
        signal, spread = levels.at(i + 1)
        x_0, epsilon = predict(x_t, i)
        x_t = signal * x_0 + spread * epsilon
    return x_t


def heun(predict: Predictor, x_t: Tensor, levels: NoiseLevels, noise: NoiseSource) -> Tensor:
    """Samples along the deterministic path to second order, two evaluations for all but the last.

    The signal of the first level must not be zero; see `SOLVERS`.
    """
    for i in range(len(levels)):
        x_0, epsilon = predict(x_t, i)
        if i + 1 == len(levels):
            return x_0
        (signal, spread), (next_signal, next_spread) = levels.at(i), levels.at(i + 1)
        step = next_signal * (next_spread / next_signal - spread / signal)
        start = (next_signal / signal) * x_t
        _, corrected = predict(start + step * epsilon, i + 1)
        x_t = start + 0.5 * step * (epsilon + corrected)
    return x_t


def dpm_solver(predict: Predictor, x_t: Tensor, levels: NoiseLevels, noise: NoiseSource) -> Tensor:
    """Samples with DPM-Solver++(2M), one evaluation a level, the last step of first order."""
    previous, previous_gap = None, math.inf
    for i in range(len(levels)):
        x_0, _ = predict(x_t, i)
        (signal, spread), (next_signal, next_spread) = levels.at(i), levels.at(i + 1)
        gap = _log_ratio(next_signal, next_spread) - _log_ratio(signal, spread)
        ahead = x_0
        if previous is not None and math.isfinite(gap):
            ahead = x_0 + (gap / (2 * previous_gap)) * (x_0 - previous)
        x_t = (next_spread / spread) * x_t + (next_signal - next_spread * signal / spread) * ahead
        previous, previous_gap = x_0, gap
    return x_t


def ancestral(predict: Predictor, x_t: Tensor, levels: NoiseLevels, noise: NoiseSource) -> Tensor:
    """Samples with fresh noise at every level, of the variance of p(x_s | x_t, x_0)."""
    for i in range(len(levels)):
        x_0, epsilon = predict(x_t, i)
        if i + 1 == len(levels):
            return x_0
        (signal, spread), (next_signal, next_spread) = levels.at(i), levels.at(i + 1)
        shrink = (next_spread / next_signal) / (spread / signal) if signal > 0 else 0.0
        kept, fresh = shrink * next_spread, math.sqrt(1 - shrink**2) * next_spread
        x_t = next_signal * x_0 + kept * epsilon + fresh * noise(i + 1)
    return x_t


def _log_ratio(signal: float, spread: float) -> float:
    """Returns log(signal / spread), infinite at either end."""
    if spread == 0.0:
        return math.inf
    return math.log(signal / spread) if signal > 0 else -math.inf


SOLVERS: dict[str, Callable[[Predictor, Tensor, NoiseLevels, NoiseSource], Tensor]] = {
    "dpm++": dpm_solver,
    "ddim": ddim,
    "heun": heun,
    "ancestral": ancestral,
}
"""Samplers by name. Each takes the predictor, standard normal noise x_t of the first level with
shape ``(..., T)``, the levels and a source of fresh noise, and returns draws of x_0."""
