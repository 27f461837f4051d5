r"""The likelihood of the masses for each of many events, on a grid of mass points.

A posterior that was learned from simulated events contains the prior pi(m) of the selected training
events, acceptance included. Dividing it out leaves the likelihood up to a factor of the event,

    r_i(m) = p(m | y_i) / pi(m) = p(y_i | m, selected) / p(y_i | selected).

Its mean under pi is one for every event. That makes mixtures simple: with a share f of events that
the model does not describe, r becomes (1 - f) r + f; with background b, s r_i + (1 - s) p(y_i | b)
/ p(y_i | selected). The likelihood of N events is the product; nothing else enters::

    table = mass_likelihood(model, events)
    best = table.points[table.total().argmax()]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.container import Events, Index, event_rows
from massrecon.inference.densities import MassDensities, densities_of, interpolate
from massrecon.inference.massgrid import MassAxes, product_points
from massrecon.inference.posterior import Posterior
from massrecon.inference.prior import METADATA, TrainingPrior
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.models.base import MassModel

Calibration = Callable[[Tensor, Tensor], Tensor]
"""What corrects a likelihood: takes log r ``(n, G)`` and mass points ``(G, M)`` [GeV] to log r.

A factor of the event, the same at all points, does not matter: `log_ratios` brings the mean of r
under the training prior back to one, which the share of outliers and that of background refer to.
"""

Source = MassModel | KinematicMixture | MassPosterior | Posterior | MassDensities
"""Whatever densities of the masses can be made from."""

STEP = 10.0
"""Distance of the grid points where no axes are given [GeV]."""

_NUMBERS = 2**22  # numbers of a chunk
_MOST = 4096  # events of a chunk
# in place of -inf, which times a weight that is zero or negative would not exclude a point
_EXCLUDED = -7e5


@dataclass(frozen=True, eq=False, kw_only=True)
class MassLikelihood(MassAxes):
    """log r of N events at the G points of a product of mass axes.

    Attributes:
        axes: Values of each of the M masses [GeV], rising and evenly spaced, by name.
        inside: Which points are inside the training prior, shape ``(G,)``; the last axis is the
            fastest.
        log_ratio: log p(m | y_i) - log pi(m), shape ``(N, G)``; -inf outside, and where an event
            excludes a point.
        prior: The training prior pi.
        source: What the densities came from.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If an axis is too short, not rising or not even, or a value is not a number.
    """

    inside: Tensor
    log_ratio: Tensor
    prior: TrainingPrior
    source: str = ""

    def __post_init__(self) -> None:
        check_axes(self.axes)
        n_points = math.prod(self.shape)
        if self.inside.shape != (n_points,) or self.log_ratio.shape[1:] != (n_points,):
            raise ShapeError(
                f"'inside' and 'log_ratio' should have {n_points} points, got "
                f"{tuple(self.inside.shape)} and {tuple(self.log_ratio.shape)}."
            )
        if bool(self.log_ratio.isnan().any()) or bool((self.log_ratio == math.inf).any()):
            raise InputError("A log-likelihood should be a number or -inf: train the model again.")

    def __len__(self) -> int:
        return len(self.log_ratio)

    def __getitem__(self, index: Index) -> MassLikelihood:
        """Selects events by integer, slice, boolean mask or list of positions."""
        return replace(self, log_ratio=self.log_ratio[event_rows(index, len(self))])

    def calibrated(self, calibration: Calibration) -> MassLikelihood:
        """Applies a correction to log r of a table that covers the whole prior."""
        return replace(self, log_ratio=calibration(self.log_ratio, self.points))

    def with_outliers(self, share: float) -> MassLikelihood:
        """Lets a share of the events tell nothing of the masses; see `with_outliers`."""
        found = torch.where(self.inside, with_outliers(self.log_ratio, share), -math.inf)
        return replace(self, log_ratio=found)

    def total(self, weight: Tensor | None = None) -> Tensor:
        """Adds up the events, with weights ``(N,)`` or without, shape ``(G,)``."""
        return weighted_total(self.log_ratio, weight)


def mass_likelihood(
    source: Source,
    events: Events | None = None,
    *,
    axes: Mapping[str, Tensor] | None = None,
    step: float = STEP,
    prior: TrainingPrior | None = None,
    calibration: Calibration | None = None,
    outliers: float = 0.0,
    n_samples: int = 512,
    seed: int = 0,
) -> MassLikelihood:
    """Computes the likelihood of the masses for each event, on a grid.

    Args:
        source: A trained model or a kinematic mixture, with `events`; or a posterior of events.
        events: The events; their truth is not used.
        axes: Values of each mass [GeV] by name; None for the whole training prior in steps of
            `step`.
        step: Largest distance of grid points [GeV].
        prior: The training prior; None for the one that the model recorded when it was trained. A
            kinematic mixture has a flat prior of its own: leave it out. Dividing by the density of
            its training events instead drives masses to where few events were selected.
        calibration: A correction of log r.
        outliers: Share of events that tell nothing, see `with_outliers`.
        n_samples: Number of draws where a density has to be estimated from draws.
        seed: Seed of these draws.

    Returns:
        The table, N times G numbers of 8 bytes; for very many events use `massrecon.measure`, which
        adds them up without keeping them.

    Raises:
        InputError: If there are no events, the prior is not known, or the axes do not fit.
    """
    known = training_prior_of(source, prior)
    region = None if known is None else known.region
    densities = densities_of(source, events, region=region, n_samples=n_samples, seed=seed)
    known = checked_prior(densities, known)
    grid = checked_grid(axes, densities.names) if axes else whole_grid(known, densities, step)
    parts = log_ratios(densities, grid, known, calibration=calibration, outliers=outliers)
    table = torch.cat([part for _, part in parts])
    inside = known.region.contains(product_points(list(grid.values())))
    return MassLikelihood(
        axes=grid, inside=inside, log_ratio=table, prior=known, source=densities.source
    )


def log_ratios(
    densities: MassDensities,
    axes: Mapping[str, Tensor],
    prior: TrainingPrior,
    *,
    calibration: Calibration | None = None,
    outliers: float = 0.0,
    stride: int = 1,
) -> Iterator[tuple[slice, Tensor]]:
    """Computes log r for some events at a time, in bounded memory.

    Args:
        densities: Densities of N events.
        axes: Values of each mass [GeV] by name.
        prior: The training prior.
        calibration: A correction of log r.
        outliers: Share of events that tell nothing.
        stride: Takes every stride-th event only.

    Yields:
        The rows of the events, and log r, float64, shape ``(n, G)``.
    """
    values = [axes[name] for name in densities.names]
    points = product_points(values)
    log_prior = prior.log_density(points)
    inside = log_prior.isfinite()
    whole = None if calibration is None else _WholePrior(densities, prior)
    n_points = len(points) + (0 if whole is None else len(whole.points))
    step = stride * max(2, min(_MOST, _NUMBERS // n_points))
    for first in range(0, len(densities), step):
        rows = slice(first, min(first + step, len(densities)), stride)
        found = _divided(densities, values, log_prior, rows)
        if calibration is not None and whole is not None:
            found = whole.corrected(found, points, calibration, rows)
        found = with_outliers(found, outliers)
        yield rows, torch.where(inside, found, -math.inf)


def _divided(
    densities: MassDensities, values: Sequence[Tensor], log_prior: Tensor, rows: slice
) -> Tensor:
    """Divides densities by the prior where it is not zero, ``(n, G)``."""
    inside = log_prior.isfinite()
    return densities.log_density(values, rows).flatten(1) - log_prior.where(inside, 0.0)


class _WholePrior:
    """Corrects likelihoods on any points such that the mean of r over the whole prior is one.

    Points are often those around a measurement only: a mean over them would make every event,
    even one that excludes them, look like the others.
    """

    def __init__(self, densities: MassDensities, prior: TrainingPrior) -> None:
        axes = densities.own_axes or whole_grid(prior, densities, STEP)
        self._densities, self._values = densities, [axes[name] for name in densities.names]
        self.points = product_points(self._values)
        self._log_prior = prior.log_density(self.points)
        self._log_share = self._log_prior.log_softmax(0)

    def corrected(
        self, log_ratio: Tensor, points: Tensor, calibration: Calibration, rows: slice
    ) -> Tensor:
        """Corrects log r of some events at points ``(G, M)``, ``(n, G)``."""
        everywhere = _divided(self._densities, self._values, self._log_prior, rows)
        # both at once, so that a factor that the correction gives an event is that of both
        both = calibration(torch.cat([log_ratio, everywhere], 1), torch.cat([points, self.points]))
        found, everywhere = both.split([len(points), len(self.points)], dim=1)
        log_mean = torch.logsumexp(everywhere + self._log_share, dim=1, keepdim=True)
        return found - log_mean.where(log_mean.isfinite(), 0.0)


def with_outliers(log_ratio: Tensor, share: float) -> Tensor:
    """Lets a share f of the events tell nothing of the masses: log((1 - f) r + f).

    A single density that is wrong and sharp would else decide the product of many.

    Raises:
        InputError: If the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"'outliers' should be in [0, 1), got {share}.")
    if share == 0:
        return log_ratio
    return torch.logaddexp(log_ratio + math.log1p(-share), log_ratio.new_tensor(math.log(share)))


def weighted_total(log_ratio: Tensor, weight: Tensor | None) -> Tensor:
    """Adds up log r of events, ``(n, G)`` -> ``(G,)``; an event of weight zero does not count."""
    if weight is None:
        return log_ratio.sum(0)
    used = weight != 0
    return weight[used].to(log_ratio) @ log_ratio[used].clamp_min(_EXCLUDED)


def training_prior_of(source: Source, prior: TrainingPrior | None) -> TrainingPrior | None:
    """Returns the prior that is given, or else recorded with a model; None if there is neither."""
    if prior is not None or not isinstance(source, MassModel):
        return prior
    recorded = source.metadata.get(METADATA)
    return None if recorded is None else TrainingPrior.from_dict(recorded)


def checked_prior(densities: MassDensities, prior: TrainingPrior | None) -> TrainingPrior:
    """Returns the prior to divide out; that of a kinematic mixture is flat if not given.

    Raises:
        InputError: If the prior is not known, or is of other masses.
    """
    if prior is None and densities.region is not None:
        return TrainingPrior.flat(densities.names, densities.region)
    if prior is None:
        raise InputError(
            "The training prior of these densities is not known: pass "
            "'prior=TrainingPrior.from_events(training_events)', from massrecon.inference.prior."
        )
    if prior.names != densities.names:
        raise InputError(
            f"The training prior is of {', '.join(prior.names)}, the densities are of "
            f"{', '.join(densities.names)}: pass the prior of the events this model learned from."
        )
    return prior


def whole_grid(prior: TrainingPrior, densities: MassDensities, step: float) -> dict[str, Tensor]:
    """Returns axes over the whole region of the prior (and of the densities, if they know it)."""
    if not step > 0:
        raise InputError(f"'step' should be positive, got {step}.")
    grid = {}
    for i, name in enumerate(prior.names):
        low, high = prior.region.low[i], prior.region.high[i]
        if densities.region is not None:
            low, high = max(low, densities.region.low[i]), min(high, densities.region.high[i])
        grid[name] = centres(low, high, max(8, math.ceil((high - low) / step)))
    return grid


def centres(low: float, high: float, n: int) -> Tensor:
    """Returns the centres of n equal cells between two ends [GeV]."""
    return low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def checked_grid(axes: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Puts axes into the order of the masses.

    Raises:
        InputError: If a name is missing or unknown.
    """
    if set(axes) != set(names):
        raise InputError(f"'axes' should be of {', '.join(names)}, got {', '.join(axes)}.")
    return {name: torch.as_tensor(axes[name], dtype=torch.float64) for name in names}


def check_axes(axes: Mapping[str, Tensor]) -> None:
    """Refuses axes that are not rising evenly.

    Raises:
        InputError: If so.
    """
    for name, axis in axes.items():
        steps = axis.diff()
        even = axis.ndim == 1 and len(axis) > 1 and bool((steps > 0).all())
        if not even or float((steps - steps.mean()).abs().max()) > 1e-6 * float(steps.mean()):
            raise InputError(f"The axis of '{name}' should have two or more evenly rising values.")


class LikelihoodDensities(MassDensities):
    """A table of log r as densities again: r times the prior, linear in its log in between."""

    def __init__(self, table: MassLikelihood) -> None:
        self.table, self.names, self.source = table, table.names, table.source
        self.region, self.own_axes = table.prior.region, table.axes

    def __len__(self) -> int:
        return len(self.table)

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Interpolates the table to the product of axes; -inf outside of it."""
        found = self.table.log_ratio[rows].unflatten(1, self.table.shape)
        for dim, (own, axis) in enumerate(zip(self.table.axes.values(), axes, strict=True), 1):
            found = interpolate(found, own, axis, dim)
        log_prior = self.table.prior.log_density(product_points(axes))
        return found + log_prior.reshape(found.shape[1:])
