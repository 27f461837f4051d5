r"""Frequentist regions: critical values of the likelihood ratio, found from simulation.

A region of masses is the set of points that a test does not reject. The test statistic is

    lambda(m) = 2 [max log L - log L(m)],

and m is in the region of N events if lambda(m) <= q(m, N). If the densities of single events were
exact and events many, q would be the quantile of a chi-squared distribution (Wilks). Here it is
found from pseudo-experiments at mass points over the plane (Neyman's construction), so that regions
cover at every mass whatever the densities are: a wrong density makes a region larger, not wrong.

Between the simulated points log q is interpolated by a sum of cones and a plane,

    log q(m, N) = sum_p a_p(N) |x - x_p| + c_0(N) + c(N) x,      x = masses scaled to (-1, 1),

which follows sharp changes, such as near a closed decay, without overshooting elsewhere. It need
not run through the points, whose quantiles fluctuate: how smooth it is is chosen such that each
point is predicted best by the others. Between sizes it is linear in log N; outside of the simulated
points x is moved to their edge.

References:
    J. Neyman, Phil. Trans. R. Soc. A 236 (1937) 333; G. Feldman and R. Cousins, Phys. Rev. D 57
    (1998) 3873, physics/9711021, section IV; S. Wilks, Ann. Math. Stat. 9 (1938) 60.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, StoreError
from massrecon.inference.polynomial import scaled
from massrecon.provenance import read_json, write_json

LEVELS = (0.68, 0.95)
"""Contents of the regions."""

METADATA = "neyman"
"""Name of the critical values in the metadata of a model, as `NeymanRegions.to_dict` gives them."""

_FORMAT = "massrecon-neyman-1"
_SMALLEST = 1e-3  # of a critical value
_FEWEST = 100  # experiments at a point
_SMOOTHINGS = tuple(10 ** (k / 2) for k in range(-6, 7))


@dataclass(frozen=True, eq=False, kw_only=True)
class NeymanRegions:
    """Critical values of the likelihood ratio over the mass plane.

    Attributes:
        names: Names of the M masses.
        levels: Contents of the regions, rising.
        sizes: Numbers of events that were simulated, rising.
        low: Smallest simulated masses [GeV], shape ``(M,)``.
        high: Largest.
        nodes: The simulated points, scaled, shape ``(P, M)``.
        weights: Heights a_p of the cones, shape ``(levels, sizes, P)``.
        plane: Coefficients c of the plane, shape ``(levels, sizes, 1 + M)``.
        error: How far log q of a point is from what the others predict, root mean square, shape
            ``(levels, sizes)``.
        n_experiments: Number of pseudo-experiments at each point.
        outliers: Share of the events that were taken to tell nothing; None if not known.
        origin: What was simulated, for reports.
    """

    names: tuple[str, ...]
    levels: tuple[float, ...]
    sizes: tuple[int, ...]
    low: Tensor
    high: Tensor
    nodes: Tensor
    weights: Tensor
    plane: Tensor
    error: Tensor
    n_experiments: int
    outliers: float | None
    origin: Mapping[str, Any]

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        masses: Tensor,
        statistics: Mapping[int, Tensor],
        levels: Sequence[float] = LEVELS,
        outliers: float | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> NeymanRegions:
        """Finds critical values from the test statistic of pseudo-experiments.

        Args:
            names: Names of the M masses.
            masses: The P mass points that were simulated [GeV], shape ``(P, M)``.
            statistics: For each number of events, lambda at the true masses of T experiments at
                each point (`massrecon.inference.pseudo.ratio_statistic`), shape ``(P, T)``.
            levels: Contents of the regions, between 0 and 1.
            outliers: Share of the events that were taken to tell nothing: `massrecon.measure` uses
                the regions for no other.
            origin: What was simulated, for reports; plain data.

        Raises:
            ShapeError: If the shapes do not fit.
            InputError: If there are too few experiments or points, or a level is out of range.
        """
        levels, sizes = tuple(sorted(levels)), tuple(sorted(statistics))
        _check(names, masses, statistics, levels)
        low, high = masses.double().aminmax(dim=0)
        nodes = scaled(masses, low, high)
        shape = (len(levels), len(sizes))
        weights = torch.zeros(*shape, len(masses), dtype=torch.float64)
        plane = torch.zeros(*shape, 1 + len(names), dtype=torch.float64)
        error = torch.zeros(shape, dtype=torch.float64)
        for (i, level), (j, size) in itertools.product(enumerate(levels), enumerate(sizes)):
            value = log_quantile(statistics[size], level)[0]
            weights[i, j], plane[i, j], error[i, j] = _smoothest(nodes, value)
        return cls(
            names=tuple(names),
            levels=levels,
            sizes=sizes,
            low=low,
            high=high,
            nodes=nodes,
            weights=weights,
            plane=plane,
            error=error,
            n_experiments=next(iter(statistics.values())).shape[1],
            outliers=outliers,
            origin=dict(origin or {}),
        )

    def critical(self, masses: Tensor, n_events: int) -> Tensor:
        """Returns the critical values q of mass points ``(G, M)`` [GeV], shape ``(levels, G)``.

        Raises:
            InputError: If fewer or more events are asked for than were simulated.
        """
        if not self.sizes[0] <= n_events <= self.sizes[-1]:
            raise InputError(
                f"Critical values are known for {self.sizes[0]} to {self.sizes[-1]} events, got "
                f"{n_events}: simulate pseudo-experiments of that size."
            )
        place = np.interp(math.log(n_events), np.log(self.sizes), np.arange(len(self.sizes)))
        left = min(int(place), max(len(self.sizes) - 2, 0))
        share = float(place) - left
        basis = _cones_and_plane(scaled(masses, self.low, self.high), self.nodes)
        both = torch.cat([self.weights, self.plane], dim=-1)
        theta = both[:, left]
        if len(self.sizes) > 1:
            theta = (1 - share) * theta + share * both[:, left + 1]
        return (theta @ basis.T).exp()

    def region(self, total: Tensor, points: Tensor, n_events: int) -> Tensor:
        """Finds which mass points are in the regions of a measurement.

        Args:
            total: log L of all events at each point, -inf where it is not allowed, ``(G,)``.
            points: The mass points [GeV], shape ``(G, M)``.
            n_events: Number of events.

        Returns:
            True inside, shape ``(levels, G)``.
        """
        statistic = 2 * (total.max() - total)
        return statistic <= self.critical(points, n_events)

    def covers(self, statistic: Tensor, mass: Tensor, n_events: int) -> Tensor:
        """Tells which experiments have a true mass point ``(M,)`` in their regions.

        Args:
            statistic: lambda at the true masses, shape ``(T,)``.
            mass: The true masses [GeV].
            n_events: Number of events in an experiment.

        Returns:
            Shape ``(levels, T)``.
        """
        return statistic <= self.critical(mass.reshape(1, -1), n_events)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `from_dict` reads back."""
        tensors = ("low", "high", "nodes", "weights", "plane", "error")
        return {
            "format": _FORMAT,
            "names": list(self.names),
            "levels": list(self.levels),
            "sizes": list(self.sizes),
            **{name: getattr(self, name).tolist() for name in tensors},
            "n_experiments": self.n_experiments,
            "outliers": self.outliers,
            "origin": dict(self.origin),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> NeymanRegions:
        """Rebuilds critical values from plain data.

        Raises:
            StoreError: If it is not that of critical values.
        """
        if content.get("format") != _FORMAT:
            raise StoreError(f"These are no critical values: format {content.get('format')!r}.")
        try:
            numbers = {
                name: torch.tensor(content[name], dtype=torch.float64)
                for name in ("low", "high", "nodes", "weights", "plane", "error")
            }
            return cls(
                names=tuple(content["names"]),
                levels=tuple(content["levels"]),
                sizes=tuple(content["sizes"]),
                n_experiments=int(content["n_experiments"]),
                outliers=content.get("outliers"),
                origin=content["origin"],
                **numbers,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"These critical values are damaged: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> NeymanRegions:
        """Reads what `save` wrote.

        Raises:
            StoreError: If the file is missing, foreign or damaged.
        """
        return cls.from_dict(read_json(path, "critical values"))


def log_quantile(statistics: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Computes the log of a quantile of each row, and its standard error from order statistics.

    Args:
        statistics: Values, shape ``(P, T)``.
        level: Probability below the quantile.

    Returns:
        Logs and their errors, each ``(P,)``.
    """
    n = statistics.shape[1]
    half = math.sqrt(level * (1 - level) / n)
    ends = torch.tensor([level, max(level - half, 0.0), min(level + half, 1.0)])
    found = torch.quantile(statistics.double(), ends.double(), dim=1).clamp_min(_SMALLEST).log()
    return found[0], ((found[2] - found[1]) / 2).clamp_min(0.2 / math.sqrt(n))


def _check(
    names: Sequence[str], masses: Tensor, statistics: Mapping[int, Tensor], levels: Sequence[float]
) -> None:
    if masses.ndim != 2 or masses.shape[1] != len(names) or not statistics:
        raise ShapeError(
            f"'masses' should have shape (P, {len(names)}), got {tuple(masses.shape)}, and "
            "'statistics' an entry for each number of events."
        )
    for size, values in statistics.items():
        if values.ndim != 2 or len(values) != len(masses):
            raise ShapeError(
                f"'statistics' of {size} events should have shape ({len(masses)}, T), got "
                f"{tuple(values.shape)}."
            )
        if values.shape[1] < _FEWEST or not bool(values.isfinite().all()):
            raise InputError(
                f"'statistics' of {size} events should be finite and of {_FEWEST} or more "
                f"experiments, got {values.shape[1]}."
            )
    if len(masses) < len(names) + 3:
        raise InputError(
            f"Critical values need {len(names) + 3} mass points or more, got {len(masses)}: "
            "simulate more."
        )
    if not levels or not all(0 < level < 1 for level in levels):
        raise InputError(f"'levels' should be between 0 and 1, got {list(levels)}.")


def _cones_and_plane(x: Tensor, nodes: Tensor) -> Tensor:
    """Computes distances from the nodes, one, and x, shape ``(G, P + 1 + M)``."""
    distance = torch.cdist(x, nodes, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cat([distance, torch.ones_like(x[:, :1]), x], dim=1)


def _smoothest(nodes: Tensor, value: Tensor) -> tuple[Tensor, Tensor, float]:
    """Fits cones and a plane with the smoothing whose left-out points are predicted best.

    The smoothing s solves (K - s 1) a + P c = value, P^T a = 0 with K the distances, a minus sign
    because distances are conditionally negative. A left-out residual is a_p over the p-th diagonal
    element of the inverse matrix.
    """
    n, columns = len(nodes), _cones_and_plane(nodes, nodes)
    kernel, plane = columns[:, :n], columns[:, n:]
    zero = torch.zeros(plane.shape[1], plane.shape[1], dtype=torch.float64)
    right = torch.cat([value, zero[0]])
    best: tuple[float, Tensor] | None = None
    for smoothing in _SMOOTHINGS:
        inner = kernel - smoothing * torch.eye(n, dtype=torch.float64)
        matrix = torch.cat(
            [torch.cat([inner, plane], dim=1), torch.cat([plane.T, zero], dim=1)], dim=0
        )
        inverse = torch.linalg.pinv(matrix)
        theta = inverse @ right
        left_out = theta[:n] / torch.diagonal(inverse)[:n]
        error = float(left_out.square().mean().sqrt())
        if best is None or error < best[0]:
            best = error, theta
    assert best is not None
    return best[1][:n], best[1][n:], best[0]
