"""Coverage in the cells of the mass plane: where a posterior can be trusted, and where not.

A calibrated posterior is right on average over its prior. At one true mass it need not be: near the
edge of the prior its regions hold the truth more or less often than they say. The errors of a cell
come from its mass points, whose events fluctuate together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import ShapeError
from massrecon.inference.estimators import check_level
from massrecon.inference.statistics import (
    MassPoints,
    clusters,
    mass_points,
    means_in_cells,
    plain_numbers,
    plane_cells,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class CoverageMap:
    """Coverage in the cells of two true masses.

    Attributes:
        level: Content of the regions.
        x: Points or bins of the true mass along the first axis, X of them.
        y: The same along the second axis, Y of them.
        symbols: Symbols of the two masses, in HTML, by name.
        n_events: Number of events in each cell, shape ``(X, Y)``.
        coverage: Share of the regions that hold the truth, NaN without events, shape ``(X, Y)``.
        error: Its standard error, from groups of events, shape ``(X, Y)``; NaN for one group.
    """

    level: float
    x: MassPoints
    y: MassPoints
    symbols: Mapping[str, str]
    n_events: Tensor
    coverage: Tensor
    error: Tensor

    def pulls(self) -> Tensor:
        """Returns (coverage - level) / error, shape ``(X, Y)``."""
        return (self.coverage - self.level) / self.error

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON; None where there are no events."""
        return {
            "level": self.level,
            self.x.mass: self.x.value.tolist(),
            self.y.mass: self.y.value.tolist(),
            "n_events": self.n_events.tolist(),
            "coverage": plain_numbers(self.coverage),
            "error": plain_numbers(self.error),
        }


def coverage_map(
    values: Tensor,
    masses: Tensor,
    names: Sequence[str],
    level: float = 0.68,
    bins: int | Mapping[str, Sequence[float]] = 6,
    symbols: Mapping[str, str] | None = None,
) -> CoverageMap:
    """Computes the coverage of regions of one content in the cells of two true masses.

    Args:
        values: Contents of the regions that just hold the truth (`sbc.central_values`,
            `sbc.density_values`), shape ``(N,)``.
        masses: The two true masses of each event [GeV], shape ``(N, 2)``.
        names: Their names.
        level: Content of the regions, between 0 and 1.
        bins: Edges by mass name [GeV], or number of bins, for masses that are not on a grid.
        symbols: Symbols in HTML by mass name; the names if not given.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If the level is not between 0 and 1.
    """
    if masses.shape != (len(values), 2) or len(names) != 2:
        raise ShapeError(
            f"'masses' should have shape ({len(values)}, 2) with a name for each, got "
            f"{tuple(masses.shape)} and {list(names)}."
        )
    check_level(level)
    truth = masses.double()
    x, y = (mass_points(name, truth[:, i], bins) for i, name in enumerate(names))
    cell, shape = plane_cells(x, y), (len(x), len(y))
    inside = (values <= level).double()
    coverage, error = means_in_cells(
        inside, torch.ones_like(inside), clusters(truth), cell, len(x) * len(y)
    )
    count = torch.bincount(cell[cell >= 0], minlength=len(x) * len(y))
    return CoverageMap(
        level=level,
        x=x,
        y=y,
        symbols={name: (symbols or {}).get(name, name) for name in names},
        n_events=count.reshape(shape),
        coverage=coverage.reshape(shape),
        error=error.reshape(shape),
    )
