"""The density of toys near an edge, and where it fits other events when it is moved as a whole.

With u = x / mass of the toys, each class c of resolution has a density g_c(u), smoothed by half of
the resolution. Events whose edge is r times that of the toys have

    p(x | c) = g_c(u / r) / r / (G_c(u_high / r) - G_c(u_low / r)),      u_low < u < u_high,

with the integral G_c; r is the only parameter. Values with a large resolution say little, and a
linear error no longer describes them: they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize_scalar
from torch import Tensor

from massrecon.errors import InputError

Floats = np.ndarray

_RANGE = (0.75, 1.2)
_CLASSES = np.array([0.02, 0.035, 0.05, 0.08])
"""Upper ends of the classes of resolution, relative to the mass."""

_GRID = np.linspace(0.4, 1.7, 2601)
_SMOOTHING = 0.5
_NOISE = 0.05
_BACKGROUND = 1e-3
_MIN_EVENTS = 50
_SEARCH = np.linspace(0.85, 1.15, 13)


@dataclass(frozen=True)
class EdgeTemplate:
    """Densities of toys near their edge.

    Attributes:
        mass: Mass of the toys [GeV].
        low: Start of the range of u = x / mass.
        high: Its end.
        densities: Densities on a grid of u, one row a class of resolution.
        integrals: Their integrals.
    """

    mass: float
    low: float
    high: float
    densities: Floats
    integrals: Floats

    @classmethod
    def of(cls, values: Tensor, errors: Tensor, mass: float) -> EdgeTemplate:
        """Takes the densities from toys.

        Args:
            values: Smallest masses [GeV], shape ``(N,)``.
            errors: Their resolutions [GeV], shape ``(N,)``.
            mass: The mass that they were made with [GeV].

        Raises:
            InputError: If fewer than 50 values lie near the edge.
        """
        u, kind = _classified(values, errors, mass)
        low = max(_RANGE[0], float(np.median(u[u < 1]))) if bool((u < 1).any()) else _RANGE[0]
        _refuse_few((u > low) & (u < _RANGE[1]), mass)
        spread = errors.detach().cpu().double().numpy()
        rows = []
        for number, most in enumerate(_CLASSES):
            here = u[kind == number]
            inside = spread[spread <= most * mass]
            width = _SMOOTHING * (np.median(inside) / mass if len(inside) else most)
            rows.append(_density(here, max(width, _NOISE * max(len(here), 1) ** -0.2)))
        densities = np.stack(rows)
        step = _GRID[1] - _GRID[0]
        return cls(mass, low, _RANGE[1], densities, densities.cumsum(axis=1) * step)

    def select(self, values: Tensor, errors: Tensor) -> tuple[Floats, Floats]:
        """Takes the values that count: u and class of resolution, each ``(n,)``.

        Raises:
            InputError: If fewer than 50 values lie near the edge.
        """
        u, kind = _classified(values, errors, self.mass)
        near = (u > self.low) & (u < self.high)
        _refuse_few(near, self.mass)
        return u[near], kind[near]

    def locate(self, u: Floats, kind: Floats) -> float:
        """Finds the most likely edge [GeV] of selected values."""
        counts = np.bincount(kind, minlength=len(_CLASSES))
        parts = [u[kind == number] for number in range(len(_CLASSES))]

        def loss(r: float) -> float:
            total = len(u) * np.log(r)
            for part, count, row, whole in zip(
                parts, counts, self.densities, self.integrals, strict=True
            ):
                ends = np.interp([self.low / r, self.high / r], _GRID, whole)
                total -= np.log(np.interp(part / r, _GRID, row)).sum()
                total += count * np.log(ends[1] - ends[0])
            return float(total)

        best = int(np.argmin([loss(r) for r in _SEARCH]))
        ends = _SEARCH[max(best - 1, 0)], _SEARCH[min(best + 1, len(_SEARCH) - 1)]
        found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 2e-5})
        return self.mass * float(found.x)

    def replicas(
        self, values: Tensor, errors: Tensor, n: int, n_replicas: int, seed: int
    ) -> Floats:
        """Draws samples of n events from toys and finds their edges [GeV], shape ``(R,)``."""
        rng = np.random.default_rng(seed)
        u, kind = self.select(values, errors)
        share = len(u) / len(values)
        found = []
        for _ in range(n_replicas):
            rows = rng.integers(len(u), size=max(rng.binomial(n, share), 1))
            found.append(self.locate(u[rows], kind[rows]))
        return np.array(found)


def _classified(values: Tensor, errors: Tensor, mass: float) -> tuple[Floats, Floats]:
    """Returns u = x / mass and the class of resolution of the values that are known well enough."""
    x, s = (t.detach().cpu().double().numpy() for t in (values, errors))
    kind = np.searchsorted(_CLASSES, s / mass)
    good = np.isfinite(x) & np.isfinite(s) & (kind < len(_CLASSES))
    return x[good] / mass, kind[good]


def _density(u: Floats, width: float) -> Floats:
    """Estimates a density on the grid, shape ``(M,)``; a little of it is constant."""
    step = _GRID[1] - _GRID[0]
    counts = np.histogram(u, np.append(_GRID - step / 2, _GRID[-1] + step / 2))[0]
    smooth = gaussian_filter1d(counts.astype(float), width / step, mode="constant")
    constant = np.full(len(_GRID), 1 / (_GRID[-1] - _GRID[0]))
    total = smooth.sum() * step
    if total == 0:
        return constant
    return _BACKGROUND * constant + (1 - _BACKGROUND) * smooth / total


def _refuse_few(near: Floats, mass: float) -> None:
    if int(near.sum()) < _MIN_EVENTS:
        raise InputError(
            f"Only {int(near.sum())} values with a resolution below {_CLASSES[-1]:.0%} lie near "
            f"{mass:.0f} GeV: pass more events."
        )
