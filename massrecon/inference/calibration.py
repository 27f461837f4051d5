"""Calibration: does a posterior contain the truth as often as it says, everywhere in the plane?

All tests compare numbers u that are uniform for a calibrated posterior (see
`massrecon.inference.sbc`) with the uniform distribution. For levels c the share of events with
u <= c is drawn against c, with a band that the whole curve stays inside in 95 % of the cases:

- events with masses of their own: the band is found by simulation. Each level has a binomial
  interval, all of the same probability, which is lowered until a curve of uniform numbers leaves no
  interval in 95 % of the simulations;
- events that share their masses in blocks (`massrecon.inference.statistics.clusters`) fluctuate
  together: the band is a multiple of the standard error from the blocks, found by resampling them
  (a studentised bootstrap).

The p-value belongs to the same largest deviation, so that a curve leaves its band where
p < 5 %. A calibrated posterior is right on average over its prior, not at each true mass: see
`massrecon.inference.coverage`, and `massrecon.inference.neyman` for regions that cover everywhere.

References:
    T. Säilynoja, P.-C. Bürkner and A. Vehtari, arXiv:2103.10522, section 2 and Algorithm 1;
    S. Talts et al., arXiv:1804.06788.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference import sbc
from massrecon.inference.estimators import check_level
from massrecon.inference.griddensity import at_points, cell_volumes
from massrecon.inference.statistics import (
    clusters,
    effective_size,
    group_sums,
    mean_with_error,
)

if TYPE_CHECKING:
    from massrecon.inference.massgrid import MassGrid
    from massrecon.inference.posterior import Posterior

_LEVELS = 39  # 2.5 % apart
_SIMULATIONS = 2000
_FEWEST = 20  # events; below, no curve says anything


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationCurve:
    """The share of events with u <= level, which is the level itself for a calibrated posterior.

    Attributes:
        levels: Levels between 0 and 1, shape ``(L,)``.
        share: Share of the events, shape ``(L,)``.
        error: Its standard error, shape ``(L,)``.
        low: Lower end of the simultaneous band around `levels`, shape ``(L,)``.
        high: Upper end.
        p_value: Probability of a larger deviation for a calibrated posterior.
        n_events: Number of events.
        n_groups: Number of groups of events that fluctuate independently.
    """

    levels: Tensor
    share: Tensor
    error: Tensor
    low: Tensor
    high: Tensor
    p_value: float
    n_events: int
    n_groups: int

    def at(self, level: float) -> tuple[float, float]:
        """Interpolates share and standard error at a level, such as the coverage of 68 % regions.

        Raises:
            InputError: If the level is not between 0 and 1.
        """
        check_level(level)
        x = np.concatenate([[0.0], self.levels.numpy(), [1.0]])
        share = np.interp(level, x, np.concatenate([[0.0], self.share.numpy(), [1.0]]))
        error = np.interp(level, x, np.concatenate([[0.0], self.error.numpy(), [0.0]]))
        return float(share), float(error)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON."""
        return {
            "n_events": self.n_events,
            "n_groups": self.n_groups,
            "p_value": self.p_value,
            **{
                name: [round(x, 6) for x in getattr(self, name).tolist()]
                for name in ("levels", "share", "error", "low", "high")
            },
        }


def calibration_curve(
    values: Tensor,
    group: Tensor | None = None,
    weight: Tensor | None = None,
    levels: Sequence[float] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> CalibrationCurve:
    """Compares values with the uniform distribution, with a simultaneous band.

    Args:
        values: Values of `massrecon.inference.sbc`, between 0 and 1, shape ``(N,)``.
        group: Number of the group of events that fluctuate together, shape ``(N,)``; each event on
            its own if not given.
        weight: Event weights, shape ``(N,)``; ones if not given.
        levels: Levels between 0 and 1, rising; 39 even ones if not given.
        confidence: Probability that a calibrated posterior stays inside the band.
        seed: Seed of the simulation of the band.

    Raises:
        ShapeError: If the shapes do not fit, or there are fewer than 20 events.
        InputError: If there are fewer than two groups, a value is not between 0 and 1, or the
            levels do not rise.

    Example:
        >>> u = torch.rand(400, generator=torch.Generator().manual_seed(1))
        >>> calibration_curve(u).p_value > 0.05, calibration_curve(u.sqrt()).p_value < 0.01
        (True, True)
    """
    u, weight = _checked_values(values, weight)
    grid = _checked_levels(levels)
    inside = (u <= grid.unsqueeze(1)).double()
    alone = group is None or int(group.max()) + 1 == len(u)
    number = torch.arange(len(u)) if group is None else group.cpu()
    if int(number.max()) < 1:
        raise InputError("All events share one group: calibration needs more mass points.")
    share, error = mean_with_error(inside, weight, number)
    if alone and bool((weight == weight[0]).all()):
        counts = inside.sum(1).long()
        low, high, p_value = _independent_band(counts, grid, len(u), confidence, seed)
    else:
        low, high, p_value = _grouped_band(inside, share, grid, weight, number, confidence, seed)
    return CalibrationCurve(
        levels=grid,
        share=share,
        error=error,
        low=low.clamp(0, 1),
        high=high.clamp(0, 1),
        p_value=p_value,
        n_events=len(u),
        n_groups=int(number.max()) + 1,
    )


def _checked_values(values: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    u = values.detach().cpu().double()
    if u.ndim != 1 or len(u) < _FEWEST:
        raise ShapeError(
            f"'values' should have shape (N,) with {_FEWEST} or more events, got {tuple(u.shape)}."
        )
    if not bool(((u >= 0) & (u <= 1)).all()):
        raise InputError("'values' should be between 0 and 1: use the functions of inference.sbc.")
    weight = torch.ones_like(u) if weight is None else weight.cpu().double()
    if weight.shape != u.shape:
        raise ShapeError(f"'weight' should have shape ({len(u)},), got {tuple(weight.shape)}.")
    return u, weight


def _checked_levels(levels: Sequence[float] | None) -> Tensor:
    if levels is None:
        return torch.linspace(0, 1, _LEVELS + 2, dtype=torch.float64)[1:-1]
    grid = torch.as_tensor(levels, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) == 0 or not bool((grid.diff() > 0).all()):
        raise InputError(f"'levels' should rise, got {list(levels)}.")
    if float(grid[0]) <= 0 or float(grid[-1]) >= 1:
        raise InputError(f"'levels' should be between 0 and 1, got {list(levels)}.")
    return grid


def _tails(counts: np.ndarray, n: int, levels: np.ndarray) -> np.ndarray:
    """Computes two-sided binomial tail probabilities of counts ``(..., L)``."""
    below, above = stats.binom.cdf(counts, n, levels), stats.binom.sf(counts - 1, n, levels)
    return np.minimum(1.0, 2 * np.minimum(below, above))


@lru_cache(maxsize=64)
def _smallest_tails(n: int, levels: tuple[float, ...], seed: int) -> np.ndarray:
    """Simulates curves of n uniform numbers and returns the smallest tail of each."""
    grid = np.array(levels)
    steps = np.diff(np.concatenate([[0.0], grid, [1.0]]))
    drawn = np.random.default_rng(seed).multinomial(n, steps, size=_SIMULATIONS)
    return _tails(drawn.cumsum(1)[:, :-1], n, grid).min(1)


def _independent_band(
    counts: Tensor, levels: Tensor, n: int, confidence: float, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Finds the band of independent events and the p-value of their curve."""
    grid = levels.numpy()
    smallest = _smallest_tails(n, tuple(levels.tolist()), seed)
    pointwise = float(np.quantile(smallest, 1 - confidence))
    found = float(_tails(counts.numpy(), n, grid).min())
    low = stats.binom.ppf(pointwise / 2, n, grid) / n
    high = stats.binom.ppf(1 - pointwise / 2, n, grid) / n
    p_value = (1 + np.count_nonzero(smallest <= found)) / (1 + _SIMULATIONS)
    return torch.from_numpy(low), torch.from_numpy(high), float(p_value)


@lru_cache(maxsize=1)
def _resamplings(count: int, seed: int) -> list[np.ndarray]:
    """Draws how often each of some groups is taken in each resampled set, in four parts.

    Kept, as all curves of a report share it; no group is ever taken 256 times.
    """
    rng = np.random.default_rng(seed)
    even = np.full(count, 1 / count)
    sizes = (_SIMULATIONS // 4,) * 4
    return [rng.multinomial(count, even, size=n).T.astype(np.uint8) for n in sizes]


def _grouped_band(
    inside: Tensor,
    share: Tensor,
    levels: Tensor,
    weight: Tensor,
    group: Tensor,
    confidence: float,
    seed: int,
) -> tuple[Tensor, Tensor, float]:
    """Finds the band from groups that fluctuate independently, by resampling them.

    Deviations are divided by their own standard error in each resampled set: so few groups in a
    tail widen the band. Standard errors are never below those of independent events.
    """
    sums = group_sums((inside - levels.unsqueeze(1)) * weight, group) / float(weight.sum())
    count = sums.shape[1]
    floor = levels * (1 - levels) / float(effective_size(weight))

    total, squares = sums.sum(1, keepdim=True), sums.square().sum(1, keepdim=True)
    error = torch.maximum(squares - total.square() / count, floor.unsqueeze(1)).sqrt()[:, 0]
    # in units of the error, so that single precision is plenty
    unit = error.unsqueeze(1)
    sums, total, least = ((x / unit).float() for x in (sums, total, floor.sqrt().unsqueeze(1)))
    largest = []
    for times in _resamplings(count, seed):
        drawn = torch.from_numpy(times).float()
        own, variance = sums @ drawn, sums.square() @ drawn
        variance.addcmul_(own, own, value=-1 / count).clamp_(min=least.square())
        largest.append(own.sub_(total).square_().div_(variance).amax(0))
    ratio = torch.cat(largest).sqrt().double()
    width = float(torch.quantile(ratio, confidence)) * error
    found = float(((share - levels).abs() / error).max())
    p_value = (1 + int((ratio >= found).sum())) / (1 + _SIMULATIONS)
    return levels - width, levels + width, p_value


@dataclass(frozen=True, eq=False, kw_only=True)
class RankHistogram:
    """The distribution of `sbc.rank_values` over equal bins, relative to a uniform one.

    Attributes:
        edges: Edges of the bins, shape ``(B + 1,)``.
        density: One for a calibrated posterior, shape ``(B,)``.
        error: Standard error, from groups of events, shape ``(B,)``.
        band: Half-width that all bins together stay inside with probability 95 %, for a calibrated
            posterior, shape ``(B,)``.
        slope: Mean of 2u - 1: positive where the posterior lies too low.
        slope_error: Its standard error.
        spread: Mean square of u - 1/2 relative to that of a uniform number: above one where the
            posterior is too narrow.
        spread_error: Its standard error.
    """

    edges: Tensor
    density: Tensor
    error: Tensor
    band: Tensor
    slope: float
    slope_error: float
    spread: float
    spread_error: float

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON."""
        names = ("slope", "slope_error", "spread", "spread_error")
        lists = {name: getattr(self, name).tolist() for name in ("edges", "density", "error")}
        return lists | {name: getattr(self, name) for name in names}


def rank_histogram(
    values: Tensor, group: Tensor | None = None, weight: Tensor | None = None, bins: int = 20
) -> RankHistogram:
    """Counts rank values in equal bins.

    Args:
        values: Values of `massrecon.inference.sbc.rank_values` of one target, shape ``(N,)``.
        group: Number of the group of events that fluctuate together, shape ``(N,)``.
        weight: Event weights, shape ``(N,)``.
        bins: Number of bins B.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If a value is not between 0 and 1, or there are fewer than two bins.
    """
    if bins < 2:
        raise InputError(f"'bins' should be at least 2, got {bins}.")
    u, weight = _checked_values(values, weight)
    number = torch.arange(len(u)) if group is None else group.cpu()
    hit = torch.nn.functional.one_hot((u * bins).long().clamp(max=bins - 1), bins).double().T
    share, error = mean_with_error(hit, weight, number)
    # at least what uniform numbers would give: an empty bin is not known exactly
    floor = math.sqrt((1 - 1 / bins) / bins / float(effective_size(weight)))
    error = error.clamp_min(floor)
    centred = 2 * u - 1
    moments = torch.stack([centred, 3 * centred.square()])
    mean, mean_error = mean_with_error(moments, weight, number)
    return RankHistogram(
        edges=torch.linspace(0, 1, bins + 1, dtype=torch.float64),
        density=share * bins,
        error=error * bins,
        band=float(stats.norm.isf(0.025 / bins)) * error * bins,
        slope=float(mean[0]),
        slope_error=float(mean_error[0]),
        spread=float(mean[1]),
        spread_error=float(mean_error[1]),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationReport:
    """All tests of a posterior.

    Attributes:
        mass_names: Masses that were tested: those that vary.
        symbols: Their symbols, in HTML.
        ranks: Rank histogram of each mass.
        rank_curves: Curve of the rank values of each mass.
        central: Expected coverage of central intervals of each mass.
        tarp: Curve of TARP in all tested masses together.
        density: Expected coverage of the regions of highest density of all masses together; None
            where the posterior has no joint density.
    """

    mass_names: tuple[str, ...]
    symbols: tuple[str, ...]
    ranks: Mapping[str, RankHistogram]
    rank_curves: Mapping[str, CalibrationCurve]
    central: Mapping[str, CalibrationCurve]
    tarp: CalibrationCurve
    density: CalibrationCurve | None

    @property
    def p_value(self) -> float:
        """Smallest p-value of all tests times their number, at most one (Bonferroni)."""
        curves = [*self.rank_curves.values(), *self.central.values(), self.tarp]
        if self.density is not None:
            curves.append(self.density)
        return min(1.0, len(curves) * min(curve.p_value for curve in curves))

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON."""
        content: dict[str, Any] = {"p_value": self.p_value, "tarp": self.tarp.to_dict()}
        if self.density is not None:
            content["density"] = self.density.to_dict()
        for name in ("ranks", "rank_curves", "central"):
            content[name] = {mass: one.to_dict() for mass, one in getattr(self, name).items()}
        return content


def calibration_report(posterior: Posterior, seed: int = 0) -> CalibrationReport:
    """Tests the masses of a posterior: ranks, central intervals, TARP, and highest density.

    Args:
        posterior: A posterior with truth, of events drawn from the prior it was trained with: a
            sample cut on its true masses fails even if the posterior is right. With
            `Posterior.mass_density` its joint density is tested too.
        seed: Seed of reference points, ranks and bands.

    Raises:
        InputError: If there is no truth, too few events, or no mass varies.
    """
    truth = posterior.true_masses().double()
    columns = (truth.amax(0) > truth.amin(0)).nonzero()[:, 0]
    if len(columns) == 0:
        raise InputError("No true mass varies among these events: calibration needs a range.")
    names = tuple(posterior.mass_names[i] for i in columns.tolist())
    samples = posterior.mass_samples()[..., columns]
    truth, group, weight = truth[:, columns], clusters(truth), posterior.weights
    ranks = dict(zip(names, sbc.rank_values(samples, truth, seed).T, strict=True))

    def curve(values: Tensor) -> CalibrationCurve:
        return calibration_curve(values, group, weight, seed=seed)

    density = posterior.mass_density
    return CalibrationReport(
        mass_names=names,
        symbols=tuple(posterior.card.symbol(name) for name in names),
        ranks={name: rank_histogram(u, group, weight) for name, u in ranks.items()},
        rank_curves={name: curve(u) for name, u in ranks.items()},
        central={name: curve(sbc.central_values(u)) for name, u in ranks.items()},
        tarp=curve(sbc.tarp_values(samples, truth, seed=seed)),
        density=None if density is None else curve(_on_grid(density, posterior)),
    )


def _on_grid(density: MassGrid, posterior: Posterior) -> Tensor:
    """Computes the contents of the regions of highest density that just hold the truth."""
    truth, axes = posterior.true_masses().double(), list(density.axes.values())
    columns = [posterior.mass_names.index(name) for name in density.axes]
    log_p = density.log_density.flatten(1)
    at_truth = at_points(axes, log_p, truth[:, columns])
    return sbc.density_values(log_p, at_truth, cell_volumes(axes))
