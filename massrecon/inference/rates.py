r"""Rates: expected yields over the mass plane, and how significant they would be.

The number of selected events is cross-section times acceptance times luminosity. `YieldMap` makes
a smooth function of the masses of what the simulation recorded. Whether such a signal would be
found, or excluded, follows from the profile likelihood of counts in bins,

    L(mu, theta) = prod_i Poisson(n_i | mu s_i + sum_k (1 + sigma_k theta_k) b_ki)
                   exp(-theta^2 / 2),

with its asymptotic distributions and the Asimov data set, in which every count is its expectation:

    Z_discovery = sqrt(-2 log L(0, theta^^) / L(1, 0)),       n = s + b,
    Z_exclusion = sqrt(-2 log L(1, theta^^) / L(0, 0)),       n = b.

For one bin without uncertainty these are sqrt(2[(s + b) log(1 + s / b) - s]) and
sqrt(2[s - b log(1 + s / b)]). Z > 5 is a discovery; Z > 1.96 an exclusion at 95 % confidence with
CLs (1.64 without). Asymptotic formulas are good to some 10 % from a few background events on; below
one they are too optimistic, see `poisson_significance`.

References:
    G. Cowan, K. Cranmer, E. Gross and O. Vitells, arXiv:1007.1727, Eqs. (12), (14), (97); for
    uncertain backgrounds the profile is found numerically; A. L. Read, J. Phys. G 28 (2002) 2693
    (CLs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference.polynomial import degrees_up_to, least_squares, terms

DISCOVERY = 5.0
"""Standard deviations of a discovery."""

EXCLUSION = 1.96
"""Standard deviations of an exclusion at 95 % confidence with CLs."""

_NEWTON = 60
_EMPTY = 1e-9  # smallest expected count


@dataclass(frozen=True, eq=False, kw_only=True)
class YieldMap:
    """Cross-section times acceptance of a signal as a function of its masses.

    log(sigma A) is a polynomial of the masses. Outside of the simulated points it stays as at their
    edge.

    Attributes:
        names: Names of the M masses.
        low: Smallest simulated masses [GeV], shape ``(M,)``.
        high: Largest.
        degrees: Degrees of the C terms in each mass, shape ``(C, M)``.
        coefficients: Their coefficients, shape ``(C,)``.
        residual: Standard deviation of the simulated points from the map, relative.
    """

    names: tuple[str, ...]
    low: Tensor
    high: Tensor
    degrees: Tensor
    coefficients: Tensor
    residual: float

    @classmethod
    def from_cells(
        cls, names: Sequence[str], cells: Sequence[Mapping[str, Any]], degree: int = 3
    ) -> YieldMap:
        """Fits the map to the cells that a simulation recorded.

        Args:
            names: Names of the masses that vary.
            cells: Entry ``cells`` of the provenance of events, at fixed masses, on a grid, or from
                a continuous range (the middle of each cell is then its point).
            degree: Total degree of the polynomial, at most.

        Raises:
            InputError: If a cross-section is unknown, or there are too few cells.
        """
        points, values, errors = [], [], []
        for cell in cells:
            rate = (cell["cross_section_fb"] or 0.0) * cell["acceptance"]
            if not rate > 0:
                continue
            points.append([_middle(cell["masses"][name]) for name in names])
            values.append(math.log(rate))
            relative = (cell["cross_section_error_fb"] or 0.0) / cell["cross_section_fb"]
            errors.append(math.hypot(relative, cell["acceptance_error"] / cell["acceptance"]))
        masses = torch.tensor(points, dtype=torch.float64).reshape(-1, len(names))
        if len(masses) < 2:
            raise InputError(
                f"{len(masses)} cells with a known cross-section are too few for a map: simulate "
                "signal at more mass points."
            )
        degrees = _possible_degrees(masses, degree)
        low, high = masses.aminmax(dim=0)
        basis = terms(masses, low, high, degrees)
        value, error = torch.tensor(values).double(), torch.tensor(errors).double()
        coefficients, _ = least_squares(basis, value, error.clamp_min(1e-3))
        return cls(
            names=tuple(names),
            low=low,
            high=high,
            degrees=degrees,
            coefficients=coefficients,
            residual=float((value - basis @ coefficients).std()),
        )

    def __call__(self, masses: Tensor, luminosity: float) -> Tensor:
        """Returns expected events at masses ``(G, M)`` [GeV] and a luminosity [fb^-1], ``(G,)``."""
        basis = terms(masses.double(), self.low, self.high, self.degrees)
        return luminosity * (basis @ self.coefficients).exp()


def _possible_degrees(masses: Tensor, degree: int) -> Tensor:
    """Returns the degrees of the largest polynomial that some mass points ``(P, M)`` determine."""
    most = torch.tensor([len(column.unique()) - 1 for column in masses.T])
    found = torch.zeros(1, masses.shape[1], dtype=torch.int64)
    for total in range(1, degree + 1):
        trial = degrees_up_to(masses.shape[1], total)
        trial = trial[(trial <= most).all(1)]
        if len(trial) < len(masses):
            found = trial
    return found


def _middle(mass: float | Sequence[float]) -> float:
    return float(mass) if isinstance(mass, int | float) else sum(mass) / len(mass)


def asimov_discovery(signal: float, background: float, uncertainty: float = 0.0) -> float:
    """Computes the median significance of a discovery in one bin.

    Args:
        signal: Expected signal events.
        background: Expected background events.
        uncertainty: Relative uncertainty of the background, as if it were measured by counting
            in a control region with 1 / uncertainty^2 events.

    Returns:
        Standard deviations.

    Raises:
        InputError: If an argument is negative, or there is no background.

    References:
        G. Cowan et al., arXiv:1007.1727, Eq. (97); with uncertainty G. Cowan, "Discovery
        sensitivity for a counting experiment with background uncertainty" (2012), Eq. (20).

    Example:
        >>> round(asimov_discovery(10.0, 10.0), 2), round(asimov_discovery(10.0, 10.0, 0.3), 2)
        (2.78, 1.9)
    """
    if signal < 0 or not background > 0 or uncertainty < 0:
        raise InputError(
            "'signal' and 'uncertainty' should not be negative and 'background' positive, got "
            f"{signal}, {uncertainty} and {background}."
        )
    s, b, variance = signal, background, (uncertainty * background) ** 2
    if variance == 0:
        return math.sqrt(max(0.0, 2 * ((s + b) * math.log1p(s / b) - s)))
    first = (s + b) * math.log((s + b) * (b + variance) / (b**2 + (s + b) * variance))
    second = b**2 / variance * math.log1p(variance * s / (b * (b + variance)))
    return math.sqrt(max(0.0, 2 * (first - second)))


def asimov_exclusion(signal: float, background: float) -> float:
    """Computes the median significance of an exclusion in one bin with a known background.

    Returns:
        Standard deviations; sqrt(2 s) without background.

    Raises:
        InputError: If an argument is negative.

    Example:
        >>> round(asimov_exclusion(10.0, 10.0), 2)
        2.48
    """
    if signal < 0 or background < 0:
        raise InputError(f"Yields should not be negative, got {signal} and {background}.")
    inner = signal if background == 0 else signal - background * math.log1p(signal / background)
    return math.sqrt(max(0.0, 2 * inner))


def poisson_significance(signal: float, background: float) -> float:
    """Computes the significance of the expected events, rounded down, without asymptotics.

    The probability that the background alone gives as many events or more, as the quantile of a
    normal distribution.

    Raises:
        InputError: If a yield is negative, or there is no background.
    """
    if signal < 0 or not background > 0:
        raise InputError(
            f"'signal' should not be negative and 'background' positive, got {signal} and "
            f"{background}."
        )
    seen = math.floor(signal + background)
    return float(stats.norm.isf(stats.poisson.sf(seen - 1, background))) if seen > 0 else -math.inf


@dataclass(frozen=True, eq=False, kw_only=True)
class BinnedBackground:
    """Expected background in bins, and how well it is known.

    Attributes:
        names: Names of the K backgrounds.
        counts: Expected events, shape ``(K, B)``.
        uncertainties: Relative uncertainty of each background, the same in all bins, ``(K,)``.
        simulated: Relative statistical uncertainty of the simulated sum of all in each bin,
            ``(B,)``; None if it is negligible.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If a number is negative.
    """

    names: tuple[str, ...]
    counts: Tensor
    uncertainties: Tensor
    simulated: Tensor | None = None

    def __post_init__(self) -> None:
        k = len(self.names)
        if self.counts.ndim != 2 or len(self.counts) != k or self.uncertainties.shape != (k,):
            raise ShapeError(
                f"'counts' should have shape ({k}, bins) and 'uncertainties' ({k},), got "
                f"{tuple(self.counts.shape)} and {tuple(self.uncertainties.shape)}."
            )
        if bool((self.counts < 0).any()) or bool((self.uncertainties < 0).any()):
            raise InputError("Expected counts and uncertainties should not be negative.")

    @property
    def total(self) -> Tensor:
        """Expected events in each bin, ``(B,)``."""
        return self.counts.sum(0)

    def shifts(self) -> Tensor:
        """Returns the change of each bin by one standard deviation of each nuisance, ``(T, B)``."""
        rows = self.counts * self.uncertainties.unsqueeze(1)
        if self.simulated is not None:
            rows = torch.cat([rows, torch.diag(self.total * self.simulated)])
        return rows.double()[(rows > 0).any(1)]


def discovery_significance(signal: Tensor, background: BinnedBackground) -> Tensor:
    """Computes the median significance of a discovery from counts in bins.

    Args:
        signal: Expected signal events of P models, shape ``(P, B)``.
        background: The background.

    Returns:
        Standard deviations, shape ``(P,)``.

    Raises:
        ShapeError: If the bins do not fit.
    """
    return _significance(signal, background, discovery=True)


def exclusion_significance(signal: Tensor, background: BinnedBackground) -> Tensor:
    """Computes the median significance of an exclusion from counts in bins; as for a discovery."""
    return _significance(signal, background, discovery=False)


def _significance(signal: Tensor, background: BinnedBackground, discovery: bool) -> Tensor:
    s, b = signal.double(), background.total.double()
    if s.ndim != 2 or s.shape[1] != len(b):
        raise ShapeError(f"'signal' should have shape (P, {len(b)}), got {tuple(s.shape)}.")
    data = s + b if discovery else b.expand_as(s)
    fixed = torch.zeros_like(s) if discovery else s
    right = -_poisson(data, data.clamp_min(_EMPTY)).sum(1)
    tested = profiled_likelihood(data, fixed + b, background.shifts())
    return (2 * (tested + right)).clamp_min(0).sqrt()


def profiled_likelihood(data: Tensor, expected: Tensor, shifts: Tensor) -> Tensor:
    """Minimises -log L over nuisance parameters, by Newton's method with damping.

    Args:
        data: Counts, shape ``(P, B)``.
        expected: Expected counts without shifts, shape ``(P, B)``.
        shifts: Change of the expected counts by one standard deviation, shape ``(T, B)``.

    Returns:
        -log L at the minimum, without the terms of the data alone, shape ``(P,)``.
    """
    theta = torch.zeros(len(data), len(shifts), dtype=torch.float64)
    value = _objective(theta, data, expected, shifts)
    for _ in range(_NEWTON if len(shifts) else 0):
        rate = (expected + theta @ shifts).clamp_min(_EMPTY)
        gradient = (1 - data / rate) @ shifts.T + theta
        hessian = torch.einsum("pb,tb,ub->ptu", data / rate**2, shifts, shifts)
        hessian = hessian + torch.eye(len(shifts), dtype=torch.float64)
        step = torch.linalg.solve(hessian, gradient)
        scale = torch.ones(len(data), 1, dtype=torch.float64)
        for _ in range(30):
            trial = _objective(theta - scale * step, data, expected, shifts)
            worse = trial > value + 1e-12
            if not bool(worse.any()):
                break
            scale = torch.where(worse.unsqueeze(1), scale / 2, scale)
        better = trial <= value
        theta = torch.where(better.unsqueeze(1), theta - scale * step, theta)
        converged = float((value - trial).abs().max()) < 1e-12
        value = torch.where(better, trial, value)
        if converged:
            break
    return value


def _objective(theta: Tensor, data: Tensor, expected: Tensor, shifts: Tensor) -> Tensor:
    rate = expected + theta @ shifts
    allowed = (rate > 0) | ((rate >= 0) & (data == 0))
    value = _poisson(data, rate.clamp_min(_EMPTY)).sum(1) + 0.5 * theta.square().sum(1)
    return torch.where(allowed.all(1), value, math.inf)


def _poisson(data: Tensor, rate: Tensor) -> Tensor:
    return rate - torch.xlogy(data, rate)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reach:
    """Significances over the mass plane.

    Attributes:
        names: Names of the M masses.
        symbols: Their symbols, in HTML.
        masses: Mass points [GeV], shape ``(P, M)``.
        luminosity: Integrated luminosity [fb^-1].
        yields: Expected signal events in all bins, shape ``(P,)``.
        discovery: Median significance of a discovery, shape ``(P,)``.
        exclusion: Median significance of an exclusion, shape ``(P,)``.
        background: The background.
        missing: Backgrounds that are not in it, named.
    """

    names: tuple[str, ...]
    symbols: tuple[str, ...]
    masses: Tensor
    luminosity: float
    yields: Tensor
    discovery: Tensor
    exclusion: Tensor
    background: BinnedBackground
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON."""
        names = ("masses", "yields", "discovery", "exclusion")
        return {
            "luminosity_fb": self.luminosity,
            **{name: getattr(self, name).tolist() for name in names},
            "backgrounds": {
                name: {"events": float(row.sum()), "relative_uncertainty": float(error)}
                for name, row, error in zip(
                    self.background.names,
                    self.background.counts,
                    self.background.uncertainties,
                    strict=True,
                )
            },
            "missing": list(self.missing),
        }


def reach(
    names: Sequence[str],
    masses: Tensor,
    signal: Tensor,
    background: BinnedBackground,
    luminosity: float,
    symbols: Sequence[str] | None = None,
    missing: Sequence[str] = (),
) -> Reach:
    """Computes the significances of signals over the mass plane.

    Args:
        names: Names of the M masses.
        masses: Mass points [GeV], shape ``(P, M)``.
        signal: Expected signal events in bins at each point, shape ``(P, B)``.
        background: The background in the same bins, at the same luminosity.
        luminosity: Integrated luminosity [fb^-1].
        symbols: Symbols of the masses in HTML; their names if not given.
        missing: Names of backgrounds that are left out.

    Raises:
        ShapeError: If the shapes do not fit.
    """
    if masses.shape != (len(signal), len(names)):
        raise ShapeError(
            f"'masses' should have shape ({len(signal)}, {len(names)}), got {tuple(masses.shape)}."
        )
    return Reach(
        names=tuple(names),
        symbols=tuple(symbols or names),
        masses=masses,
        luminosity=float(luminosity),
        yields=signal.sum(1),
        discovery=discovery_significance(signal, background),
        exclusion=exclusion_significance(signal, background),
        background=background,
        missing=tuple(missing),
    )


def binned_counts(score: Tensor, weight: Tensor, edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Adds up weights in bins of a score, such as `BackgroundRatio`; the outer bins are open.

    Args:
        score: Score of each event, shape ``(N,)``.
        weight: What each event stands for, such as ``events.expected(luminosity)``, ``(N,)``.
        edges: Inner edges of the bins, rising, B - 1 of them.

    Returns:
        Sums, and sums of squared weights, each ``(B,)``.
    """
    index = torch.bucketize(score.double(), torch.tensor(list(edges), dtype=torch.float64))
    sums = torch.zeros(2, len(edges) + 1, dtype=torch.float64)
    sums.index_add_(1, index, torch.stack([weight.double(), weight.double().square()]))
    return sums[0], sums[1]
