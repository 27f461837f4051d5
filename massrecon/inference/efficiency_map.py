"""Efficiency over the plane of two true masses, cell by cell, attained and predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.inference import estimators as est
from massrecon.inference.diagnostics import found_within, predicted_and_attained
from massrecon.inference.posterior import Posterior
from massrecon.inference.statistics import (
    SAME_MASS,
    MassPoints,
    Rates,
    clusters,
    mass_points,
    means_in_cells,
    plain_numbers,
    plane_cells,
    wilson,
)

_CELLS = 6  # along a continuous true mass, if the caller does not say


@dataclass(frozen=True, eq=False, kw_only=True)
class EfficiencyMap:
    """Efficiencies of one mass in the cells of two true masses.

    Attributes:
        mass: The mass that is estimated.
        estimator: How it is estimated.
        window: Half-width that counts as right [GeV].
        x: Points or bins of the true mass along the first axis, X of them.
        y: The same along the second axis, Y of them.
        symbols: Symbols of the masses, in HTML, by name.
        n_events: Number of events in each cell, shape ``(X, Y)``.
        attained: Efficiencies with 68 % intervals, shape ``(X, Y)``; NaN where there are no events.
        predicted: Mean probability that the posteriors give the same windows, from draws that the
            windows were not chosen on, shape ``(X, Y)``; None where there is a single draw.
        difference_error: Standard error of predicted less attained, from groups of events that
            share a mass point, shape ``(X, Y)``.
    """

    mass: str
    estimator: str
    window: float
    x: MassPoints
    y: MassPoints
    symbols: Mapping[str, str]
    n_events: Tensor
    attained: Rates
    predicted: Tensor | None
    difference_error: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON; None where there are no events."""
        content = {
            "mass": self.mass,
            "estimator": self.estimator,
            "window": self.window,
            self.x.mass: self.x.value.tolist(),
            self.y.mass: self.y.value.tolist(),
            "n_events": self.n_events.tolist(),
            "attained": plain_numbers(self.attained.value),
            "attained_error": plain_numbers(self.attained.error),
        }
        if self.predicted is not None and self.difference_error is not None:
            content["predicted"] = plain_numbers(self.predicted)
            content["difference_error"] = plain_numbers(self.difference_error)
        return content


def efficiency_map(
    posterior: Posterior,
    mass: str,
    window: float = 30.0,
    estimator: str = "window",
    axes: tuple[str, str] | None = None,
    bins: int | Mapping[str, Sequence[float]] = _CELLS,
) -> EfficiencyMap:
    """Measures the efficiency of a mass in the cells of two true masses.

    Args:
        posterior: A posterior with truth.
        mass: The mass that is estimated.
        window: Half-width that counts as right [GeV].
        estimator: ``draw``, ``mean``, ``median`` or ``window``.
        axes: The two true masses; the first two that vary if not given.
        bins: Edges by mass name [GeV], or number of bins, for masses that are not on a grid.

    Raises:
        InputError: If there is no truth, a name is unknown, or fewer than two masses vary.
    """
    if estimator not in est.ESTIMATORS:
        raise unknown_name("estimator", estimator, est.ESTIMATORS)
    if not 0 < window < math.inf:
        raise InputError(f"'window' should be a positive half-width in GeV, got {window}.")
    truth, weight = posterior.true_masses().double(), posterior.weights
    i = posterior.mass_index(mass)
    x, y = (
        mass_points(name, truth[:, posterior.mass_index(name)], bins)
        for name in axes or _varying(posterior.mass_names, truth)
    )
    cell, shape = plane_cells(x, y), (len(x), len(y))
    draws, own = posterior.mass_samples()[..., [i]], truth[:, [i]]
    hit = found_within(draws, own, window, estimator)[:, 0]
    sums = [_sums(values, cell, shape) for values in (hit * weight, weight, weight.square())]
    mean = error = None
    if len(draws) > 1:
        predicted, attained = (v[:, 0] for v in predicted_and_attained(draws, own, window))
        values = torch.stack([predicted, predicted - attained])
        mean, error = means_in_cells(values, weight, clusters(truth), cell, len(x) * len(y))
    return EfficiencyMap(
        mass=mass,
        estimator=estimator,
        window=float(window),
        x=x,
        y=y,
        symbols={name: posterior.card.symbol(name) for name in posterior.mass_names},
        n_events=_sums(torch.ones_like(weight), cell, shape).long(),
        attained=wilson(sums[0] / sums[1], sums[1].square() / sums[2]),
        predicted=None if mean is None else mean[0].reshape(shape),
        difference_error=None if error is None else error[1].reshape(shape),
    )


def _varying(mass_names: Sequence[str], truth: Tensor) -> tuple[str, str]:
    spread = truth.amax(dim=0) - truth.amin(dim=0)
    names = [name for name, width in zip(mass_names, spread, strict=True) if width > SAME_MASS]
    if len(names) < 2:
        raise InputError(
            "A map needs two masses that vary among the events, got "
            f"{', '.join(names) or 'none'}: draw the efficiency against one mass instead."
        )
    return names[0], names[1]


def _sums(values: Tensor, cell: Tensor, shape: tuple[int, int]) -> Tensor:
    """Adds up values ``(N,)`` in each cell."""
    inside = cell >= 0
    sums = values.new_zeros(shape[0] * shape[1])
    return sums.index_add_(0, cell[inside], values[inside]).reshape(shape)
