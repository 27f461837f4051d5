r"""Kinematic endpoints: where distributions end, and what that says about the masses.

Near its endpoint x_e a distribution is modelled as

    f(x) = (1 - b) S(x) + b U(x),    S(x) ~ t^p (1 + c t),    t = (x_e - x) / (x_e - low) > 0

with a flat background U, folded with a Gaussian resolution. A sharp edge, such as that of the mass
of two visible particles of one chain, has p = 0; the distributions of MT2 and M2 end with larger
powers. What is not known, c, b and perhaps p, is summed over grids with equal weights, and the
interval of x_e is taken from what remains, with a flat prior. For a sharp edge this gives the exact
interval above the largest value, where a least-squares error would be meaningless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError

_POWERS = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0], dtype=torch.float64)
_CURVATURES = torch.tensor(
    [-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.2, 0.5, 1.0, 2.0, 4.0],
    dtype=torch.float64,
)
_BACKGROUNDS = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2, 0.4], dtype=torch.float64)
_QUANTILES = torch.tensor([0.158655, 0.5, 0.841345], dtype=torch.float64)
_RANGES = (0.5, 0.3, 0.2, 0.12, 0.08, 0.05, 0.03)
_P_VALUE_MIN = 0.1
_N_ZOOMS = 3
_N_ENDPOINTS = 61
_N_BINS = 120
_MIN_EVENTS = 20
_NEGLIGIBLE = 14.0
_KERNEL_POINTS = 31
_KINK_POINTS = 7


@dataclass(frozen=True)
class EndpointFit:
    """A fitted endpoint.

    Attributes:
        value: Median of the endpoint [GeV].
        low: Lower end of the central 68.3 % interval [GeV].
        high: Upper end [GeV].
        power: Most probable power p of the distribution at its end.
        background: Most probable fraction of background in the fitted range.
        n_events: Number of values in the fitted range.
        fit_from: Start of the fitted range [GeV].
        p_value: Probability of a larger chi-squared, if the model describes the range.
        grid: Endpoints at which the density is known [GeV], shape ``(G,)``.
        density: Probability density of the endpoint [1/GeV], shape ``(G,)``.
    """

    value: float
    low: float
    high: float
    power: float
    background: float
    n_events: int
    fit_from: float
    p_value: float
    grid: Tensor
    density: Tensor


@dataclass(frozen=True)
class KinkFit:
    """The kink of an endpoint as a function of the trial mass.

    Attributes:
        m_invisible: Trial mass of the kink [GeV].
        m_invisible_error: Its standard deviation [GeV].
        m_parent: Endpoint at the kink [GeV].
        m_parent_error: Its standard deviation [GeV].
        slope_below: Slope of the endpoint just below the kink.
        slope_above: Slope just above it.
    """

    m_invisible: float
    m_invisible_error: float
    m_parent: float
    m_parent_error: float
    slope_below: float
    slope_above: float


def visible_mass_edge(
    m_parent: Tensor | float,
    m_daughter: Tensor | float,
    m_invisible: Tensor | float,
    m_upper: Tensor | float = 0.0,
    m_lower: Tensor | float = 0.0,
) -> Tensor:
    """Computes the largest invariant mass of the two visible particles of A -> a B, B -> b C.

    It is reached when a and b fly apart in the rest frame of B.

    Args:
        m_parent: Mass of A [GeV].
        m_daughter: Mass of B [GeV].
        m_invisible: Mass of C [GeV].
        m_upper: Mass of a [GeV].
        m_lower: Mass of b [GeV].

    Returns:
        The edge [GeV]; NaN where a decay is closed. All shapes broadcast.

    References:
        B. C. Allanach, C. G. Lester, M. A. Parker, B. R. Webber, JHEP 09 (2000) 004,
        hep-ph/0007009, for massless visible particles.

    >>> visible_mass_edge(1000.0, 800.0, 700.0)
    tensor(290.4738, dtype=torch.float64)
    """
    parent, daughter, invisible, upper, lower = (
        torch.as_tensor(m, dtype=torch.float64)
        for m in (m_parent, m_daughter, m_invisible, m_upper, m_lower)
    )
    energy_upper = (parent**2 - daughter**2 - upper**2) / (2 * daughter)
    energy_lower = (daughter**2 + lower**2 - invisible**2) / (2 * daughter)
    # at threshold a decay product is at rest, and rounding may make its momentum imaginary
    upper_squared, lower_squared = (
        (energy**2 - mass**2).clamp_min(0)
        for energy, mass in ((energy_upper, upper), (energy_lower, lower))
    )
    momenta = upper_squared.sqrt() * lower_squared.sqrt()
    squared = upper**2 + lower**2 + 2 * (energy_upper * energy_lower + momenta)
    is_open = (parent >= daughter + upper) & (daughter >= invisible + lower)
    return torch.where(is_open, squared.sqrt(), torch.nan)


def fit_endpoint(
    values: Tensor,
    *,
    low: float | None = None,
    high: float | None = None,
    resolution: float = 0.0,
    power: float | None = None,
    background: bool = True,
) -> EndpointFit:
    """Fits the upper endpoint of a distribution, with an interval that covers.

    Args:
        values: The variable of each event [GeV], shape ``(N,)``; NaN is left out.
        low: Start of the fitted range [GeV]; None for the widest of some ranges, from the upper
            half to the last 3 % of the values, that the model describes (p-value above 0.1).
        high: End of the fitted range [GeV]; None for a quarter of the range beyond the largest
            value.
        resolution: Gaussian width of the variable [GeV].
        power: The power p with which the distribution ends, where it is known: 0 for a sharp edge;
            None integrates over powers from 0 to 3.
        background: Whether events beyond the endpoint are allowed for.

    Raises:
        ShapeError: If `values` is not one-dimensional.
        InputError: If fewer than 20 values lie in the range, or the range is empty.
    """
    if values.ndim != 1:
        raise ShapeError(f"'values' should have shape (N,), got {tuple(values.shape)}.")
    values = values.detach().cpu().double()
    values = values[torch.isfinite(values)]
    powers = _POWERS if power is None else torch.tensor([power], dtype=torch.float64)
    fractions = _BACKGROUNDS if background else _BACKGROUNDS[:1]
    fit = None
    for start in _starts(values, high) if low is None else [low]:
        inside, end = _in_range(values, start, high)
        fit = _Model(start, end, resolution, powers, fractions).fit(inside)
        if fit.p_value > _P_VALUE_MIN:
            break
    if fit is None and len(values) < _MIN_EVENTS:
        raise InputError(
            f"An endpoint needs at least {_MIN_EVENTS} values, got {len(values)}: pass more events."
        )
    if fit is None:
        raise InputError(
            f"Less than {_MIN_EVENTS} of {len(values)} values lie between their middle and the end "
            "of the range: raise 'high' or set 'low'; an endpoint of equal values cannot be fitted."
        )
    return fit


def fit_kink(trial_masses: Tensor, endpoints: Tensor, errors: Tensor) -> KinkFit:
    """Fits the trial mass at which the endpoint of MT2 or M2 bends.

    On each side of the kink the endpoint is a parabola; both meet at the kink. Where that does not
    describe the points, their errors are enlarged until it does (by the root of chi-squared over
    degrees of freedom). With more than seven points the result is that of the seven nearest to the
    kink, and its distance from that of all points is added to the errors in quadrature.

    Args:
        trial_masses: Trial masses of the invisible particle [GeV], shape ``(T,)``, T >= 7.
        endpoints: Endpoints [GeV], shape ``(T,)``.
        errors: Their standard deviations [GeV], shape ``(T,)``.

    Raises:
        ShapeError: If the shapes differ.
        InputError: If there are too few points, two have the same trial mass, one is not finite, or
            an error is not positive.
    """
    if not trial_masses.shape == endpoints.shape == errors.shape or trial_masses.ndim != 1:
        raise ShapeError(
            "'trial_masses', 'endpoints' and 'errors' should have one shape (T,), got "
            f"{tuple(trial_masses.shape)}, {tuple(endpoints.shape)}, {tuple(errors.shape)}."
        )
    if len(trial_masses) < 7:
        raise InputError(f"A kink needs at least 7 trial masses, got {len(trial_masses)}.")
    for name, given in (("trial_masses", trial_masses), ("endpoints", endpoints)):
        if not bool(given.isfinite().all()):
            raise InputError(f"'{name}' should be finite: leave out the points that are not.")
    if len(trial_masses.unique()) < len(trial_masses):
        raise InputError("'trial_masses' should all differ: pass one endpoint for each.")
    if not bool((errors > 0).all()):
        raise InputError("'errors' should be positive: use the errors of `fit_endpoint`.")
    x, order = trial_masses.detach().cpu().double().sort()
    y, sigma = (t.detach().cpu().double()[order] for t in (endpoints, errors))
    whole = _kink_between_parabolas(x, y, sigma)
    if len(x) <= _KINK_POINTS:
        return whole
    near = (x - whole.m_invisible).abs().argsort()[:_KINK_POINTS].sort().values
    local = _kink_between_parabolas(x[near], y[near], sigma[near])
    return replace(
        local,
        m_invisible_error=math.hypot(
            local.m_invisible_error, local.m_invisible - whole.m_invisible
        ),
        m_parent_error=math.hypot(local.m_parent_error, local.m_parent - whole.m_parent),
    )


def _kink_between_parabolas(x: Tensor, y: Tensor, sigma: Tensor) -> KinkFit:
    """Fits the kink with all points, all of shape ``(T,)``, in rising order."""
    kinks = torch.linspace(float(x[2]), float(x[-3]), 401, dtype=torch.float64)
    offset = x - kinks.unsqueeze(-1)
    below, above = offset.clamp_max(0), offset.clamp_min(0)
    basis = torch.stack([torch.ones_like(offset), below, below**2, above, above**2], dim=-1)
    weighted = basis / sigma.unsqueeze(-1)
    normal = weighted.mT @ weighted
    right = weighted.mT @ (y / sigma).unsqueeze(-1)
    solution = torch.linalg.solve(normal, right.expand(len(kinks), -1, -1)).squeeze(-1)
    chi_squared = ((y - (basis @ solution.unsqueeze(-1)).squeeze(-1)) / sigma).square().sum(-1)
    worse = (chi_squared.min() / max(len(x) - 6, 1)).clamp_min(1.0)
    weight = (0.5 * (chi_squared.min() - chi_squared) / worse).exp()
    weight = weight / weight.sum()
    mean, height = (weight * kinks).sum(), (weight * solution[:, 0]).sum()
    inner = worse * torch.linalg.inv(normal)[:, 0, 0]
    best = int(chi_squared.argmin())
    return KinkFit(
        m_invisible=float(mean),
        m_invisible_error=float((weight * (kinks - mean).square()).sum().sqrt()),
        m_parent=float(height),
        m_parent_error=float((weight * (inner + (solution[:, 0] - height).square())).sum().sqrt()),
        slope_below=float(solution[best, 1]),
        slope_above=float(solution[best, 3]),
    )


def _starts(values: Tensor, high: float | None) -> list[float]:
    """Lists starts of the fitted range, widest first, that leave enough values."""
    fractions = [f for f in _RANGES if f * len(values) >= _MIN_EVENTS]
    starts = [float(values.quantile(1 - fraction)) for fraction in fractions]
    below = values if high is None else values[values < high]
    # fewer than their fraction, where values are equal or lie beyond the end
    return [s for s in starts if int((below > s).sum()) >= _MIN_EVENTS]


def _in_range(values: Tensor, low: float, high: float | None) -> tuple[Tensor, float]:
    """Returns the values within the range, and its end."""
    inside = values[values > low]
    if high is None:
        largest = float(inside.max()) if len(inside) else low
        high = largest + 0.25 * (largest - low)
    inside = inside[inside < high]
    if len(inside) < _MIN_EVENTS:
        raise InputError(
            f"An endpoint needs at least {_MIN_EVENTS} values between 'low' = {low:g} and {high:g} "
            f"GeV, got {len(inside)}: widen the range."
        )
    return inside, high


def _zoom(ends: Tensor, log_density: Tensor) -> Tensor:
    """Returns a finer grid over the endpoints that are not excluded."""
    alive = torch.nonzero(log_density > log_density.max() - _NEGLIGIBLE).flatten()
    first, last = max(int(alive[0]) - 1, 0), min(int(alive[-1]) + 1, len(ends) - 1)
    return torch.linspace(float(ends[first]), float(ends[last]), _N_ENDPOINTS, dtype=torch.float64)


@dataclass(frozen=True)
class _Model:
    """The model of the distribution in one range, with the grids of what is integrated out."""

    low: float
    high: float
    resolution: float
    powers: Tensor
    fractions: Tensor

    def fit(self, values: Tensor) -> EndpointFit:
        """Finds the density of the endpoint given the values in the range."""
        largest = float(values.max())
        first = self.low + 0.05 * (largest - self.low)
        last = self.high + 6.0 * self.resolution
        ends = torch.linspace(first, last, _N_ENDPOINTS, dtype=torch.float64)
        for _ in range(_N_ZOOMS):
            log_likelihood = self._log_likelihood(values, ends)
            ends = _zoom(ends, log_likelihood.flatten(1).logsumexp(1))
        log_likelihood = self._log_likelihood(values, ends)
        best = torch.unravel_index(log_likelihood.argmax(), log_likelihood.shape)
        log_density = log_likelihood.flatten(1).logsumexp(1)
        density = (log_density - log_density.max()).exp()
        steps = 0.5 * (density[1:] + density[:-1]) * ends.diff()
        cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
        low, middle, high = _interpolate(_QUANTILES * cumulative[-1], cumulative, ends).tolist()
        return EndpointFit(
            value=middle,
            low=low,
            high=high,
            power=float(self.powers[best[1]]),
            background=float(self.fractions[best[3]]),
            n_events=len(values),
            fit_from=self.low,
            p_value=self._p_value(values, ends, tuple(int(i) for i in best)),
            grid=ends,
            density=density / cumulative[-1],
        )

    def _probabilities(self, edges: Tensor, ends: Tensor) -> Tensor:
        """Computes the probabilities of bins, ``(G, powers, curvatures, backgrounds, bins)``."""
        shape = _bin_probabilities(edges, ends, self.low, self.resolution, self.powers)
        flat = edges.diff() / (self.high - self.low)
        share = self.fractions[:, None]
        return (1 - share) * shape.unsqueeze(-2) + share * flat

    def _log_likelihood(self, values: Tensor, ends: Tensor) -> Tensor:
        """Computes log likelihoods ``(G, powers, curvatures, backgrounds)``."""
        edges = _bin_edges(ends, self.low, self.high)
        counts = torch.histogram(values, edges)[0]
        probabilities = self._probabilities(edges, ends)[..., counts > 0]
        return probabilities.clamp_min(1e-300).log() @ counts[counts > 0]

    def _p_value(self, values: Tensor, ends: Tensor, best: tuple[int, ...]) -> float:
        """Compares counts with the best fit in groups of bins of about equal expectation."""
        edges = _bin_edges(ends, self.low, self.high)
        counts = torch.histogram(values, edges)[0]
        end, *others = best
        expected = self._probabilities(edges, ends[end : end + 1])[0][tuple(others)] * len(values)
        n_groups = max(4, min(20, len(values) // 12))
        group = (expected.cumsum(0) * n_groups / len(values)).long().clamp_max(n_groups - 1)
        seen, wanted = (torch.zeros(n_groups, dtype=torch.float64) for _ in range(2))
        seen.index_add_(0, group, counts)
        wanted.index_add_(0, group, expected)
        chi_squared = ((seen - wanted).square() / wanted.clamp_min(1.0)).sum()
        n_fitted = 2 + (len(self.powers) > 1) + (len(self.fractions) > 1)
        dof = torch.tensor(max(n_groups - 1 - n_fitted, 1) / 2, dtype=torch.float64)
        return float(torch.special.gammaincc(dof, 0.5 * chi_squared))


def _bin_edges(ends: Tensor, low: float, high: float) -> Tensor:
    """Bins the range, half of the bins where the endpoint may lie."""
    first, last = max(float(ends[0]), low), min(float(ends[-1]), high)
    coarse = torch.linspace(low, high, _N_BINS // 2 + 1, dtype=torch.float64)
    fine = torch.linspace(first, last, _N_BINS // 2 + 1, dtype=torch.float64)
    return torch.cat([coarse, fine]).unique()


def _bin_probabilities(
    edges: Tensor, ends: Tensor, low: float, resolution: float, powers: Tensor
) -> Tensor:
    """Integrates the folded signal over the bins, shape ``(G, powers, curvatures, bins)``."""
    if resolution > 0.0:
        z = torch.linspace(-4.0, 4.0, _KERNEL_POINTS, dtype=torch.float64)
        weights = (-0.5 * z**2).exp()
        shifts, weights = z * resolution, weights / weights.sum()
    else:
        shifts, weights = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    below = low - 4.0 * resolution
    total = torch.zeros((), dtype=torch.float64)
    for shift, weight in zip(shifts, weights, strict=True):
        total = total + weight * _cumulative(edges - shift, ends, below, powers)
    probabilities = -total.diff(dim=-1)
    return probabilities / probabilities.sum(-1, keepdim=True).clamp_min(1e-300)


def _cumulative(x: Tensor, ends: Tensor, low: float, powers: Tensor) -> Tensor:
    """Integrates t^p (1 + c t) from each x to the endpoint, ``(G, powers, curvatures, X)``."""
    t = ((ends[:, None] - x) / (ends[:, None] - low)).clamp_min(0.0)
    power = powers[:, None]
    leading = t.unsqueeze(1) ** (power + 1)
    first = leading / (power + 1)
    second = leading * t.unsqueeze(1) / (power + 2)
    return first.unsqueeze(2) + _CURVATURES[:, None] * second.unsqueeze(2)


def _interpolate(where: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolates y(x) linearly; x ascends."""
    right = torch.searchsorted(x, where).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    return y0 + (y1 - y0) * (where - x0) / (x1 - x0).clamp_min(1e-300)
