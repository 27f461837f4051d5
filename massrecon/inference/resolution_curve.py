"""How many events does it take? Bias, resolution and coverage of the masses against N.

Pseudo-experiments of N events are drawn from a pool of simulated events at one mass point, which
the model has not been trained on. Beside the combination stands what a histogram would say: the
peak of the sum of the single posteriors, each mass on its own, as if draws of all events were
filled into one histogram with the bins of the first grid, and a parabola drawn through the highest
three.

Errors are the spread of the result among parts of the pool, over the root of their number: they
hold the fluctuation of pool and experiments alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.combination import OUTLIERS
from massrecon.inference.densities import MassDensities, densities_of
from massrecon.inference.gridposterior import Estimator, GridPosterior
from massrecon.inference.likelihood import (
    STEP,
    Calibration,
    MassLikelihood,
    Source,
    checked_prior,
    log_ratios,
    training_prior_of,
    whole_grid,
)
from massrecon.inference.massgrid import product_points
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.pseudo import experiments, totals
from massrecon.inference.refinement import finer_axes
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.base import MassModel

NUMBERS = (1, 3, 10, 30, 100)
"""Numbers of events that are tried."""

COMBINED, PEAK = "combined", "peak of the sum"
"""The two methods: the product of likelihoods, and the highest bin of the sum of posteriors."""

_PARTS = 8
_ROUNDS = 3
_LEVELS = (0.68, 0.95)
_PER_POOL = 5  # an experiment takes at most this part of the events


@dataclass(frozen=True, eq=False, kw_only=True)
class ResolutionPoint:
    """What N events reach, as value and error of each mass, shape ``(M, 2)``.

    Attributes:
        n_events: Number N of events in an experiment.
        method: `COMBINED` or `PEAK`.
        bias: Mean of estimate minus truth [GeV].
        resolution: 68 % quantile of its size [GeV].
        claimed: Mean half-length of the 68 % interval [GeV]; NaN for the peak.
        coverage: Share of experiments whose joint region of a level holds the truth, and its error,
            by level; empty for the peak.
    """

    n_events: int
    method: str
    bias: Tensor
    resolution: Tensor
    claimed: Tensor
    coverage: Mapping[float, tuple[float, float]]


@dataclass(frozen=True, eq=False, kw_only=True)
class ResolutionCurve:
    """The resolution of masses against the number of events, at one mass point.

    Attributes:
        names: Names of the M masses.
        truth: True masses [GeV], shape ``(M,)``.
        points: Results by rising number of events and by method.
        events_per_fb: Selected events in 1 fb^-1, None where it is not known.
        n_pool: Number of simulated events.
        n_experiments: Number of pseudo-experiments for each number of events.
        seed: Their seed.
        source: What the densities came from.
        estimator: Point estimate of the combination.
        symbols: Symbols of the masses in HTML, by name.
    """

    names: tuple[str, ...]
    truth: Tensor
    points: tuple[ResolutionPoint, ...]
    events_per_fb: float | None
    n_pool: int
    n_experiments: int
    seed: int
    source: str
    estimator: str
    symbols: Mapping[str, str]

    def luminosity(self, n_events: float) -> float | None:
        """Returns the luminosity that gives so many selected events [fb^-1]."""
        return None if not self.events_per_fb else n_events / self.events_per_fb

    def of(self, method: str) -> list[ResolutionPoint]:
        """Returns the results of one method."""
        return [point for point in self.points if point.method == method]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, masses by name [GeV], each value with its error."""
        rows = []
        for point in self.points:
            row: dict[str, Any] = {"n_events": point.n_events, "method": point.method}
            row["luminosity_fb"] = self.luminosity(point.n_events)
            for key in ("bias", "resolution", "claimed"):
                values = getattr(point, key).tolist()
                row[key] = dict(zip(self.names, values, strict=True))
            row["coverage"] = {f"{k:g}": list(v) for k, v in point.coverage.items()}
            rows.append(row)
        return {
            "truth": dict(zip(self.names, self.truth.tolist(), strict=True)),
            "points": rows,
            "events_per_fb": self.events_per_fb,
            "n_pool": self.n_pool,
            "n_experiments": self.n_experiments,
            "seed": self.seed,
            "source": self.source,
            "estimator": self.estimator,
        }


def resolution_curve(
    source: Source,
    events: Events,
    *,
    numbers: Sequence[int] = NUMBERS,
    estimator: Estimator = "median",
    n_experiments: int = 1000,
    training_prior: TrainingPrior | None = None,
    calibration: Calibration | None = None,
    outliers: float = OUTLIERS,
    step: float = STEP,
    seed: int = 0,
) -> ResolutionCurve:
    """Finds bias, resolution and coverage of the masses for several numbers of events.

    Args:
        source: A trained model or a kinematic mixture, or densities of the same events.
        events: Simulated events at one mass point, none of them seen in the training.
        numbers: Numbers of events of an experiment.
        estimator: Point estimate.
        n_experiments: Number of experiments for each.
        training_prior: The prior to divide out; None for the one that the model recorded.
        calibration: A correction of log r.
        outliers: Share of events that are taken to tell nothing.
        step: Distance of the points of the first grid, and width of the histogram's bins [GeV].
        seed: Seed of the experiments.

    Raises:
        InputError: If the events are not at one mass point, or are fewer than five times the
            largest number.
    """
    known = training_prior_of(source, training_prior)
    own = events if isinstance(source, MassModel | KinematicMixture) else None
    densities = densities_of(source, own, region=None if known is None else known.region)
    if len(densities) != len(events):
        raise InputError(f"There are {len(densities)} densities for {len(events)} events.")
    prior = checked_prior(densities, known)
    truth = one_mass_point(events, prior.names)
    numbers = _checked(numbers, len(events))
    pool = _Pool(densities, prior, calibration, outliers)
    table = pool.table(whole_grid(prior, densities, step))
    single, points = _marginals(table), []
    for n in numbers:
        table = pool.refined(table, n, n_experiments, seed)
        for method in (COMBINED, PEAK):
            points.append(_point(method, n, table, single, truth, estimator, n_experiments, seed))
    return ResolutionCurve(
        names=prior.names,
        truth=truth,
        points=tuple(points),
        events_per_fb=_events_per_fb(events),
        n_pool=len(events),
        n_experiments=n_experiments,
        seed=seed,
        source=densities.source,
        estimator=estimator,
        symbols={name: events.card.symbol(name) for name in prior.names},
    )


def _checked(numbers: Sequence[int], n_pool: int) -> list[int]:
    rising = sorted(set(numbers))
    if not rising or rising[0] < 1 or n_pool < _PER_POOL * rising[-1]:
        raise InputError(
            f"'numbers' should be positive and at most {n_pool // _PER_POOL}, a fifth of the "
            f"{n_pool} events, got {rising}: simulate more events at this mass point."
        )
    return rising


def one_mass_point(events: Events, names: Sequence[str]) -> Tensor:
    """Returns the true masses that all events share [GeV], shape ``(M,)``.

    Raises:
        InputError: If they carry no truth or differ.
    """
    if events.masses is None or len(events) == 0:
        raise InputError("Pseudo-experiments need simulated events: these carry no true masses.")
    masses = events.masses[:, [events.card.mass_names.index(name) for name in names]].cpu().double()
    if not bool((masses == masses[0]).all()):
        raise InputError(
            "Pseudo-experiments need events at one mass point, these have several: simulate fixed "
            "masses."
        )
    return masses[0]


class _Pool:
    """Densities of the simulated events, tabled on any axes."""

    def __init__(
        self,
        densities: MassDensities,
        prior: TrainingPrior,
        calibration: Calibration | None,
        outliers: float,
    ) -> None:
        self.densities, self.prior = densities, prior
        self.calibration, self.outliers = calibration, outliers

    def table(self, axes: Mapping[str, Tensor]) -> MassLikelihood:
        """Tabulates the likelihoods of all events."""
        parts = [
            found
            for _, found in log_ratios(
                self.densities,
                axes,
                self.prior,
                calibration=self.calibration,
                outliers=self.outliers,
            )
        ]
        inside = self.prior.region.contains(product_points(list(axes.values())))
        return MassLikelihood(
            axes=axes, inside=inside, log_ratio=torch.cat(parts), prior=self.prior
        )

    def refined(self, table: MassLikelihood, n: int, number: int, seed: int) -> MassLikelihood:
        """Follows the posteriors of some experiments of n events to where they are."""
        for _ in range(_ROUNDS):
            some = experiments(len(table), n, min(number, 200), seed + 7 * n + 1)
            axes = finer_axes(_posteriors(table, some), self.prior.region)
            if axes is None:
                break
            table = self.table(axes)
        return table


def _posteriors(table: MassLikelihood, chosen: Tensor) -> GridPosterior:
    total = totals(table.log_ratio, chosen)
    return GridPosterior.from_log_likelihood(
        table.axes, torch.where(table.inside, total, -math.inf)
    )


def _marginals(table: MassLikelihood) -> list[tuple[Tensor, Tensor]]:
    """Returns bins of each mass and the posterior of single events in them, ``(E, G_i)``."""
    log_prior = table.prior.log_density(table.points)
    single = GridPosterior.from_log_likelihood(table.axes, table.log_ratio + log_prior)
    return [(axis, single.marginal(name)) for name, axis in table.axes.items()]


def _point(
    method: str,
    n: int,
    table: MassLikelihood,
    single: Sequence[tuple[Tensor, Tensor]],
    truth: Tensor,
    estimator: Estimator,
    number: int,
    seed: int,
) -> ResolutionPoint:
    """Judges one method on experiments of the whole pool; errors from parts of the pool."""
    whole = experiments(len(table), n, number, seed + n)
    value = _judge(method, table, single, truth, estimator, whole)
    parts = [
        _judge(method, table, single, truth, estimator, chosen)
        for chosen in _of_parts(len(table), n, max(number // _PARTS, 50), seed + n)
    ]
    error = {k: torch.stack([p[k] for p in parts]).std(0) / math.sqrt(_PARTS) for k in value}
    pair = {k: torch.stack([value[k], error[k]], dim=-1) for k in value}
    coverage = {
        level: (float(pair[f"{level}"][0]), float(pair[f"{level}"][1]))
        for level in _LEVELS
        if f"{level}" in pair
    }
    return ResolutionPoint(
        n_events=n,
        method=method,
        bias=pair["bias"],
        resolution=pair["resolution"],
        claimed=pair["claimed"],
        coverage=coverage,
    )


def _of_parts(n_pool: int, n: int, number: int, seed: int) -> Iterator[Tensor]:
    """Draws experiments from each part of the pool, events more than once if it is small."""
    for part in range(_PARTS):
        own = torch.arange(part, n_pool, _PARTS)
        weight = None if len(own) >= _PER_POOL * n else torch.ones(len(own))
        yield own[experiments(len(own), n, number, seed + 1000 * (part + 1), weight)]


def _judge(
    method: str,
    table: MassLikelihood,
    single: Sequence[tuple[Tensor, Tensor]],
    truth: Tensor,
    estimator: Estimator,
    chosen: Tensor,
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if method == PEAK:
        columns = [_peak(axis, totals(density, chosen)) for axis, density in single]
        estimate = torch.stack(columns, dim=-1)
        found["claimed"] = torch.full_like(truth, math.nan)
    else:
        posterior = _posteriors(table, chosen)
        estimate, level = posterior.estimate(estimator), posterior.level_at(truth)
        interval = posterior.interval(_LEVELS[0])
        found["claimed"] = (interval[..., 1] - interval[..., 0]).mean(0) / 2
        found |= {f"{q}": (level <= q).double().mean() for q in _LEVELS}
    off = estimate - truth
    found["bias"] = off.mean(0)
    found["resolution"] = torch.quantile(off.abs(), _LEVELS[0], dim=0)
    return found


def _peak(axis: Tensor, heights: Tensor) -> Tensor:
    """Finds the top of a parabola through the highest bin and its neighbours, ``(E,)``."""
    at = heights.argmax(1, keepdim=True)
    left, middle, right = (
        heights.gather(1, (at + k).clamp(0, len(axis) - 1))[:, 0] for k in (-1, 0, 1)
    )
    bend = left - 2 * middle + right
    shift = (0.5 * (left - right) / bend.where(bend < 0, 1.0)).where(bend < 0, 0.0)
    return axis[at[:, 0]] + (axis[1] - axis[0]) * shift.clamp(-0.5, 0.5)


def _events_per_fb(events: Events) -> float | None:
    """Returns cross-section times acceptance [fb], None where the events do not know it."""
    try:
        own = events.provenance
        n_stored = sum(sample["n_events"] for sample in own.get("joined", (own,)))
        return float(events.expected(1.0).sum()) * n_stored / len(events)
    except (InputError, KeyError):
        return None
