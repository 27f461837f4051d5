r"""From N events to masses: the product of single likelihoods, on a grid that follows it.

    log p(m | y_1 ... y_N) = log prior(m) + sum_i w_i log[(1 - f) r_i(m) + f] + const,

with r_i(m) = p(m | y_i) / pi(m), in which pi is the density of the selected training events, and f
the share of events that the densities do not describe (see `massrecon.inference.likelihood`). The
default f was chosen on pseudo-experiments with a trained model: it costs no resolution and keeps a
single wrong and sharp density from deciding::

    measurement = massrecon.measure(model, events)
    print(measurement)
    measurement.interval(0.68)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, unknown_name
from massrecon.events.container import Events
from massrecon.inference.composition import (
    Composition,
    Profile,
    at_logit,
    mixed,
    share_table,
)
from massrecon.inference.densities import MassDensities, densities_of
from massrecon.inference.goodness import Goodness, goodness
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.likelihood import (
    STEP,
    Calibration,
    LikelihoodDensities,
    MassLikelihood,
    Source,
    check_axes,
    checked_prior,
    log_ratios,
    training_prior_of,
    weighted_total,
    whole_grid,
)
from massrecon.inference.massgrid import product_points
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.neyman import METADATA, NeymanRegions
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.refinement import LEAST, PER_WIDTH, finer_axes, resampled
from massrecon.inference.statistics import effective_size
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.models.base import MassModel
from massrecon.provenance import versions

OUTLIERS = 0.01
"""Share of events that are taken to tell nothing of the masses."""

LogTerm = Callable[[Tensor], Tensor]
"""A further term of log L at mass points ``(G, M)``, such as that of the expected rate."""

_SUBSET = 2048  # events that find the place where the posterior is
_MORE = 16  # times as many events in the next round
_MANY = 20_000  # events whose log L is a parabola between grid points
_SHAPE = {1: 200, 2: 48}  # points on an axis that show any shape, for each number of masses
_ROUNDS = 24
_FEW = 24  # points on an axis that show the best composition
_SIDE_STEP = 3.0  # of the slopes of single events [GeV]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Sample:
    """N events whose likelihoods are added up on any axes."""

    densities: MassDensities
    trained: TrainingPrior
    weight: Tensor | None
    calibration: Calibration | None
    outliers: float
    log_term: LogTerm | None
    background: Composition | None

    def ratios(self, axes: Mapping[str, Tensor], stride: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yields log r of every stride-th event, some at a time, with their rows."""
        return log_ratios(
            self.densities,
            axes,
            self.trained,
            calibration=self.calibration,
            outliers=self.outliers,
            stride=stride,
        )

    def halves(self, axes: Mapping[str, Tensor], stride: int = 1) -> Tensor:
        """Adds up log r of the events with even and with odd number, shape ``(2, G)``.

        Background is profiled over all events together.
        """
        points = product_points([axes[name] for name in self.densities.names])
        total = tables = self._tables(axes, stride)
        if self.background is not None:
            found = self._profile(tables, points, stride)
            total = torch.stack([at_logit(tables[:, half], found.logit) for half in (0, 1)])
            rest = torch.where(found.total > -torch.inf, found.total - total.sum(0), 0.0)
            total = total + 0.5 * rest
        if self.log_term is not None:
            total = total + 0.5 * self.log_term(points)
        return total

    def composed(self, axes: Mapping[str, Tensor]) -> Profile | None:
        """Finds the composition of all events; None if there is only signal."""
        if self.background is None:
            return None
        points = product_points([axes[name] for name in self.densities.names])
        return self._profile(self._tables(axes, 1), points, 1)

    def _profile(self, tables: Tensor, points: Tensor, stride: int) -> Profile:
        assert self.background is not None
        weight = torch.ones(len(self.densities)) if self.weight is None else self.weight
        n = float(weight[::stride].sum())
        return self.background.profile(tables.sum(1), points, n, n / float(weight.sum()))

    def _tables(self, axes: Mapping[str, Tensor], stride: int) -> Tensor:
        """Adds up both halves, ``(2, G)``; with background at each share, ``(61, 2, G)``."""
        totals: list[Tensor | float] = [0.0, 0.0]
        for rows, found in self.ratios(axes, stride):
            for half in (0, 1):
                own = found[half::2]
                weight = None if self.weight is None else self.weight[rows][half::2]
                if self.background is None:
                    totals[half] = totals[half] + weighted_total(own, weight)
                else:
                    log_w = self.background.log_background[rows][half::2]
                    totals[half] = totals[half] + share_table(own, log_w, weight)
        return torch.stack([torch.as_tensor(t) for t in totals], dim=-2)


def measure(
    source: Source | MassLikelihood,
    events: Events | None = None,
    *,
    prior: Literal["flat", "training"] = "flat",
    masses: Mapping[str, tuple[float, float]] | None = None,
    weights: Tensor | None = None,
    training_prior: TrainingPrior | None = None,
    calibration: Calibration | None = None,
    outliers: float = OUTLIERS,
    log_term: LogTerm | None = None,
    background: Composition | None = None,
    regions: NeymanRegions | None = None,
    step: float = STEP,
    n_samples: int = 512,
    seed: int = 0,
) -> MassMeasurement:
    """Measures masses from events of one process, one event or millions.

    Args:
        source: A trained model or a kinematic mixture, with `events`; or a posterior, densities or
            likelihoods of events.
        events: Reconstructed events, simulated or real. Their truth is kept to be shown beside the
            result, and not used.
        prior: Prior of the measurement: ``"flat"`` in the masses, or that of the training events.
        masses: Ranges of the masses to search [GeV], by name, within the training range.
        weights: Event weights, shape ``(N,)``; one if not given, whatever the events carry.
        training_prior: The prior to divide out; None for the one that the model recorded.
        calibration: A correction of log r, see `massrecon.inference.likelihood.Calibration`.
        outliers: Share of events that are taken to tell nothing.
        log_term: A further term of log L of the masses, such as that of another measurement.
        background: What is known of background among the events: a `BackgroundShare` or the
            `ExpectedRates` of `massrecon.inference.composition`; None for signal alone.
        regions: Critical values for confidence regions, see
            `massrecon.inference.construction.neyman_regions`; None for those that come with a
            model, which are used for the measurements that they hold for.
        step: Distance of the points of the first grid [GeV].
        n_samples: Number of draws where a density has to be estimated from draws.
        seed: Seed of these draws.

    Returns:
        The measurement.

    Raises:
        InputError: If there are no events, an argument is out of range, the events exclude all
            masses, or the training prior is not known.
        ShapeError: If there is not one weight, or one ratio of the background, for each event.
    """
    if prior not in ("flat", "training"):
        raise unknown_name("prior", str(prior), ("flat", "training"))
    sample = _sample(
        source, events, weights, training_prior, calibration, outliers, log_term, background,
        n_samples, seed,
    )  # fmt: skip
    region = _searched(sample.trained.region, sample.trained.names, masses)
    axes, halves = _converged(sample, region, prior, step)
    posterior = _posterior(sample.trained, region, prior, axes, halves.sum(0))
    n_events = len(sample.densities)
    composed = sample.composed(
        {name: axis[:: 1 + len(axis) // _FEW].clone() for name, axis in axes.items()}
    )
    return MassMeasurement(
        posterior=posterior,
        goodness=_goodness(sample, posterior, region, halves, composed),
        composition={} if composed is None else composed.found,
        regions=_critical_values(source, regions, sample, prior),
        n_events=n_events,
        effective_events=_effective(sample.weight, n_events),
        prior=prior,
        outliers=outliers,
        source=sample.densities.source,
        region=region,
        grid_error=_grid_error(posterior),
        truth=_common_truth(source, events, sample.trained.names),
        symbols=symbols_of(source, events, sample.trained.names),
        provenance=_provenance(source, events),
    )


def _critical_values(
    source: Any, given: NeymanRegions | None, sample: _Sample, prior: str
) -> NeymanRegions | None:
    """Returns the critical values that hold for a measurement, if there are any.

    Raises:
        InputError: If they were asked for and hold for another kind of measurement.
    """
    known = given
    if given is None and isinstance(source, MassModel) and METADATA in source.metadata:
        known = NeymanRegions.from_dict(source.metadata[METADATA])
    if known is None:
        return None
    n_events = len(sample.densities)
    unlike = {
        f"of {', '.join(known.names)}": known.names != sample.trained.names,
        f"for {known.sizes[0]} to {known.sizes[-1]} events": not (
            known.sizes[0] <= n_events <= known.sizes[-1]
        ),
        f"for a share {known.outliers} of outliers": known.outliers != sample.outliers,
        "for a flat prior": prior != "flat",
        "for events without weights, calibration, background or further terms": any(
            part is not None
            for part in (sample.weight, sample.calibration, sample.background, sample.log_term)
        ),
    }
    if not any(unlike.values()):
        return known
    if given is not None:
        reasons = "; ".join(text for text, is_so in unlike.items() if is_so)
        raise InputError(f"The 'regions' do not hold for this measurement: they are {reasons}.")
    return None


def _sample(
    source: Source | MassLikelihood,
    events: Events | None,
    weights: Tensor | None,
    training_prior: TrainingPrior | None,
    calibration: Calibration | None,
    outliers: float,
    log_term: LogTerm | None,
    background: Composition | None,
    n_samples: int,
    seed: int,
) -> _Sample:
    """Checks the arguments and builds what is added up."""
    if isinstance(source, MassLikelihood):
        training_prior = training_prior or source.prior
        source = LikelihoodDensities(source)
    known = training_prior_of(source, training_prior)
    region = None if known is None else known.region
    densities = densities_of(source, events, region=region, n_samples=n_samples, seed=seed)
    if weights is not None:
        weights = torch.as_tensor(weights, dtype=torch.float64).cpu()
        if weights.shape != (len(densities),):
            raise ShapeError(
                f"'weights' should have shape ({len(densities)},), got {tuple(weights.shape)}."
            )
        if not bool(weights.isfinite().all()) or not float(weights.sum()) > 0:
            raise InputError("'weights' should be finite and add up to a positive number.")
    if background is not None and background.log_background.shape != (len(densities),):
        raise ShapeError(
            f"'background' should have one ratio for each of {len(densities)} events, got shape "
            f"{tuple(background.log_background.shape)}."
        )
    return _Sample(
        densities=densities,
        trained=checked_prior(densities, known),
        weight=weights,
        calibration=calibration,
        outliers=outliers,
        log_term=log_term,
        background=background,
    )


def _searched(
    region: MassRegion, names: tuple[str, ...], masses: Mapping[str, tuple[float, float]] | None
) -> MassRegion:
    """Cuts the region of the training events to the ranges that are asked for."""
    low, high = list(region.low), list(region.high)
    for name, (first, last) in (masses or {}).items():
        if name not in names:
            raise unknown_name("mass", name, names)
        i = names.index(name)
        if not region.low[i] - 1e-6 <= first < last <= region.high[i] + 1e-6:
            raise InputError(
                f"The range of '{name}' should lie within that of the training events, "
                f"{region.low[i]:g} to {region.high[i]:g} GeV, got {first:g} to {last:g}: a model "
                "knows nothing outside; train one on a wider range."
            )
        low[i], high[i] = max(first, low[i]), min(last, high[i])
    return MassRegion(tuple(low), tuple(high), region.gaps)


def _converged(
    sample: _Sample, region: MassRegion, prior: str, step: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Finds axes that resolve the posterior, and log L of both halves on them, ``(2, G)``."""
    flat = TrainingPrior.flat(sample.trained.names, region)
    axes = whole_grid(flat, sample.densities, step)
    if (own := sample.densities.own_axes) is not None:
        check_axes(own)
        axes, known = dict(own), sample.halves(own)
    else:
        axes, known = _located(sample, region, prior, axes)
    own, halves = axes, known
    for _ in range(_ROUNDS):
        posterior = _posterior(sample.trained, region, prior, axes, halves.sum(0))
        if (finer := finer_axes(posterior, region, PER_WIDTH)) is None:
            break
        axes, halves = finer, resampled(known, own, finer)
    return axes, halves


def _located(
    sample: _Sample, region: MassRegion, prior: str, axes: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Finds axes near the posterior with the densities themselves: some events first, then all."""
    n_events = len(sample.densities)
    few = n_events <= _MANY
    per_width, least = (PER_WIDTH, _SHAPE.get(len(axes), LEAST)) if few else (1.0, LEAST)
    stride = max(1, n_events // _SUBSET)
    for _ in range(_ROUNDS):
        halves = sample.halves(axes, stride)
        posterior = _posterior(sample.trained, region, prior, axes, halves.sum(0))
        finer = finer_axes(posterior, region, per_width, least)
        if finer is None and stride == 1:
            return axes, halves
        axes, stride = (axes, stride // _MORE or 1) if finer is None else (finer, stride)
    return axes, sample.halves(axes)


def _posterior(
    trained: TrainingPrior,
    region: MassRegion,
    prior: str,
    axes: Mapping[str, Tensor],
    log_likelihood: Tensor,
) -> GridPosterior:
    points = product_points(list(axes.values()))
    total = log_likelihood + (trained.log_density(points) if prior == "training" else 0.0)
    total = torch.where(region.contains(points), total, -torch.inf)
    return GridPosterior.from_log_likelihood(axes, total)


def _goodness(
    sample: _Sample,
    posterior: GridPosterior,
    region: MassRegion,
    halves: Tensor,
    composed: Profile | None,
) -> Goodness:
    """Takes the densities around the measured masses and judges them."""
    best, axes, steps = posterior.mode().tolist(), {}, []
    known = sample.densities.own_axes
    for i, (name, at) in enumerate(zip(posterior.names, best, strict=True)):
        if known is None:
            centre = min(max(at, region.low[i] + _SIDE_STEP), region.high[i] - _SIDE_STEP)
            axes[name] = centre + _SIDE_STEP * torch.tensor([-1.0, 0.0, 1.0]).double()
        else:
            own = known[name]
            nearest = int((own - at).abs().argmin().clamp(1, len(own) - 2))
            axes[name] = own[nearest - 1 : nearest + 2]
        steps.append(float(axes[name][1] - axes[name][0]))
    around = torch.cat([found for _, found in sample.ratios(axes)])
    if composed is not None and sample.background is not None:
        share = float(composed.logit[composed.total.argmax()].sigmoid())
        around = mixed(around, sample.background.log_background, share)
    searched = halves.masked_fill(~region.contains(posterior.points), -torch.inf)
    tops = [float(part.amax()) for part in (*searched, searched.sum(0))]
    shape = (-1, *[3] * len(axes))
    return goodness(
        posterior.names, (tops[0], tops[1], tops[2]), around.reshape(shape), steps, sample.weight
    )


def _grid_error(posterior: GridPosterior) -> float:
    """Compares the norm on the even and on the odd points of each axis."""
    grid = posterior.probability().reshape(posterior.shape)
    worst = 0.0
    for i in range(grid.ndim):
        other = grid.sum([j for j in range(grid.ndim) if j != i]) if grid.ndim > 1 else grid
        worst = max(worst, abs(float(other[::2].sum() - other[1::2].sum())))
    return worst


def _effective(weights: Tensor | None, n_events: int) -> float:
    return float(n_events) if weights is None else float(effective_size(weights))


def _common_truth(source: Any, events: Events | None, names: tuple[str, ...]) -> Tensor | None:
    """Returns the true masses if all events share them."""
    card = getattr(events if events is not None else source, "card", None)
    masses = getattr(events if events is not None else source, "masses", None)
    if not isinstance(masses, Tensor) or card is None or len(masses) == 0:
        return None
    if any(name not in card.mass_names for name in names):
        return None
    found = masses[:, [card.mass_names.index(name) for name in names]].double().cpu()
    return found[0] if bool((found == found[0]).all()) else None


def symbols_of(source: Any, events: Events | None, names: Sequence[str]) -> dict[str, str]:
    """Returns the symbols of masses in HTML, where a card comes with the events or the source."""
    card = getattr(events if events is not None else source, "card", None)
    return {} if card is None else {name: card.symbol(name) for name in names}


def _provenance(source: Any, events: Events | None) -> dict[str, Any]:
    own = events.provenance if events is not None else getattr(source, "provenance", {})
    kept = {name: value for name, value in own.items() if name != "cells"}
    model = source.name if isinstance(source, MassModel) else type(source).__name__
    return {"model": model, "events": kept, "versions": versions("torch")}
