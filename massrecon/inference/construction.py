r"""Neyman's construction from simulated events: what `NeymanRegions` need for a model of one's own.

Signal events are simulated at mass points over the plane, read once, and put together to pseudo-
experiments of N events, many times over. The test statistic at the true masses,

    lambda = 2 [max log L - log L(true masses)],

takes log L on two grids: a fine one around the true masses, where the maximum nearly always is, and
the coarse one of `massrecon.inference.likelihood.mass_likelihood` over all masses of the training
events. A single grid as coarse as the resolution would make mass points on its nodes differ from
those between them::

    pool = mr.simulate("wino_udd", 20_000, {"chi20": [450, 550, 650], "chi10": [100, 200, 300]})
    regions = neyman_regions(model, pool)
    print(mr.measure(model, events, regions=regions))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.combination import OUTLIERS
from massrecon.inference.densities import MassDensities, densities_of
from massrecon.inference.likelihood import (
    STEP,
    checked_prior,
    log_ratios,
    training_prior_of,
    whole_grid,
)
from massrecon.inference.massgrid import MassAxes, product_points
from massrecon.inference.neyman import LEVELS, NeymanRegions
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.pseudo import (
    experiments,
    ratio_statistic,
    refined_maximum,
    totals,
    value_at,
)
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.base import MassModel

REACH = 80.0
"""How far the fine grid goes to either side of its mass point [GeV]."""

FINE_STEP = 5.0
"""Distance of the points of the fine grid [GeV]."""

SIZES = (1, 5, 10, 30)
"""Numbers of events that are tried."""

_FEWEST = 5  # times as many events in a pool as in an experiment


@dataclass(frozen=True, eq=False)
class PriorGrid(MassAxes):
    """The product of one axis for each of M masses, and which of its points can be.

    Attributes:
        axes: Evenly rising values of each mass [GeV], by its name.
        inside: Which points the training prior contains, shape ``(G,)``.
    """

    inside: Tensor

    @classmethod
    def around(cls, masses: Tensor, prior: TrainingPrior) -> PriorGrid:
        """Builds the fine grid around a mass point ``(M,)`` [GeV], which is one of its nodes."""
        n = round(REACH / FINE_STEP)
        steps = FINE_STEP * torch.arange(-n, n + 1, dtype=torch.float64)
        values = zip(prior.names, masses.double(), strict=True)
        grid = MassAxes({name: value + steps for name, value in values})
        return cls(grid.axes, prior.region.contains(grid.points))


def two_grid_statistic(
    coarse: Tensor, fine: Tensor, plane: PriorGrid, window: PriorGrid, masses: Tensor
) -> Tensor:
    """Computes lambda of T experiments from log L on a coarse and on a fine grid.

    Args:
        coarse: log L over all masses, shape ``(T, G)``.
        fine: log L of the same experiments around the true masses, shape ``(T, F)``.
        plane: The coarse grid.
        window: The fine grid.
        masses: The true masses [GeV], shape ``(M,)``.

    Returns:
        Values, zero or larger, float64, shape ``(T,)``.

    Raises:
        ShapeError: If the shapes do not fit.
    """
    axes = list(window.axes.values())
    near = ratio_statistic(fine, axes, window.inside, masses)
    allowed = coarse.double().masked_fill(~plane.inside, -math.inf)
    best, place = refined_maximum(allowed, plane.shape)
    first, last = (torch.stack([axis[i] for axis in plane.axes.values()]) for i in (0, -1))
    found = first + place * (last - first) / (torch.tensor(plane.shape) - 1)
    elsewhere = ((found - masses).abs() > REACH).any(1)
    at_truth = value_at(fine.double().masked_fill(~window.inside, -math.inf), axes, masses)
    return torch.where(elsewhere, torch.maximum(near, 2 * (best - at_truth)), near)


def neyman_regions(
    source: MassModel | KinematicMixture,
    events: Events,
    *,
    sizes: Sequence[int] = SIZES,
    levels: Sequence[float] = LEVELS,
    n_experiments: int = 1000,
    training_prior: TrainingPrior | None = None,
    outliers: float = OUTLIERS,
    seed: int = 0,
) -> NeymanRegions:
    """Finds the critical values of a model from simulated signal events.

    Args:
        source: A trained model or a kinematic mixture.
        events: Simulated events at a few mass points, M + 3 or more for M masses, each with five
            times as many events as the largest experiment or more. Points inside the training
            range are best; regions are good between them.
        sizes: Numbers of events of an experiment.
        levels: Contents of the regions.
        n_experiments: Number of pseudo-experiments at each point and size.
        training_prior: The prior to divide out; None for the one that the model recorded.
        outliers: Share of events that are taken to tell nothing, that of the measurements.
        seed: Seed of the experiments.

    Returns:
        Critical values for ``measure(..., regions=...)``; as ``model.metadata[METADATA] =
        regions.to_dict()`` (`massrecon.inference.neyman.METADATA`) a model carries them along.

    Raises:
        InputError: If the events have no true masses, a point has too few of them, there are too
            few points, or the training prior is not known.
    """
    prior = training_prior_of(source, training_prior)
    region = None if prior is None else prior.region
    first = densities_of(source, events[:1], region=region)
    masses, groups = _by_point(events, first.names, _FEWEST * max(sizes))
    pools = [densities_of(source, events[rows], region=region) for rows in groups]
    return regions_from_densities(
        pools, masses, checked_prior(first, prior), sizes=sizes, levels=levels,
        n_experiments=n_experiments, outliers=outliers, seed=seed,
    )  # fmt: skip


def regions_from_densities(
    pools: Sequence[MassDensities],
    masses: Tensor,
    prior: TrainingPrior,
    *,
    sizes: Sequence[int] = SIZES,
    levels: Sequence[float] = LEVELS,
    n_experiments: int = 1000,
    outliers: float = OUTLIERS,
    seed: int = 0,
) -> NeymanRegions:
    """Finds critical values from densities of simulated events, see `neyman_regions`.

    Args:
        pools: Densities of the events of each of P mass points.
        masses: The true masses [GeV], shape ``(P, M)``.
        prior: The prior to divide out.
        sizes: Numbers of events of an experiment.
        levels: Contents of the regions.
        n_experiments: Number of pseudo-experiments at each point and size.
        outliers: Share of events that are taken to tell nothing.
        seed: Seed of the experiments.

    Raises:
        InputError: If there are too few points, or fewer events in a pool than in an experiment.
    """
    axes = whole_grid(prior, pools[0], STEP)
    plane = PriorGrid(axes, prior.region.contains(product_points(list(axes.values()))))
    found: dict[int, list[Tensor]] = {size: [] for size in sizes}
    for i, (pool, own) in enumerate(zip(pools, masses, strict=True)):
        window = PriorGrid.around(own, prior)
        tables = [
            torch.cat([r.float() for _, r in log_ratios(pool, g.axes, prior, outliers=outliers)])
            for g in (plane, window)
        ]
        for size in sizes:
            chosen = experiments(len(pool), size, n_experiments, seed + 1000 * size + 10 * i)
            coarse, fine = (totals(table, chosen) for table in tables)
            found[size].append(two_grid_statistic(coarse, fine, plane, window, own))
    statistics = {size: torch.stack(rows) for size, rows in found.items()}
    origin = {"source": pools[0].source, "events": sum(map(len, pools)), "seed": seed}
    return NeymanRegions.fit(
        prior.names, masses, statistics, levels, outliers=outliers, origin=origin
    )


def _by_point(events: Events, names: Sequence[str], fewest: int) -> tuple[Tensor, list[Tensor]]:
    """Returns the mass points of events ``(P, M)`` [GeV], and the rows of each."""
    if events.masses is None:
        raise InputError("Critical values need simulated events with their true masses.")
    masses = events.masses[:, [events.card.mass_names.index(name) for name in names]].double()
    own, index, counts = masses.unique(dim=0, return_inverse=True, return_counts=True)
    if int(counts.min()) < fewest:
        poorest = zip(names, own[counts.argmin()].tolist(), strict=True)
        at = ", ".join(f"{name} = {mass:g}" for name, mass in poorest)
        raise InputError(
            f"Experiments ask for {fewest} events or more at each mass point, got "
            f"{int(counts.min())} at {at} GeV: simulate more, or leave out the largest size."
        )
    return own, [(index == i).nonzero()[:, 0] for i in range(len(own))]
