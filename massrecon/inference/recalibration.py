r"""Recalibration: making posteriors say what simulation says, with corrections fitted to it.

Two corrections, fitted to simulated events that the model was not trained on:

`Temperature` raises the likelihood ratio of single events to a power, for densities on a grid,

    log r(m)  ->  log r(m) / T - log of its mean under the training prior,

T > 1 where the densities are over-confident. T is found by maximum likelihood of the true masses;
log-densities are concave in 1/T, so there is one answer. For T -> infinity the prior is left, so it
can do little harm: it is the one to use before events are combined.

`ConditionalPIT` bends the distribution of each mass, for draws. If u is the share of a posterior
below the truth, its density given where the posterior sits is modelled as

    log g(u | x) = sum_k c_k(x) b_k(u) - log Z(x),      c_k(x) = sum_p theta_kp x_p,

with b = z, z^2 - 1, P_3, ..., P_K, where z is the normal quantile of u and P_k Legendre polynomials
of 2u - 1, and with features x: position and width of the posterior. The first two correct bias and
width of a Gaussian exactly, the others its shape, differently in different places. With the
integral G of g the corrected distribution function is G(F(m) | x). Each mass is bent on its own and
ranks of draws are kept: marginal distributions are corrected, the correlation of masses stays as
the model had it.

References:
    C. Guo et al., arXiv:1706.04599, section 4.2 (temperature); J. Neyman, Skand. Aktuarietidskr. 20
    (1937) 150 (smooth alternatives to uniformity); B. Dey et al., arXiv:2205.14568 (conditional
    PIT).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError, StoreError
from massrecon.inference.estimators import central_interval, median
from massrecon.inference.griddensity import at_points
from massrecon.inference.polynomial import legendre
from massrecon.inference.posterior import Posterior
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.sbc import rank_values
from massrecon.inference.statistics import SAME_MASS, clusters, group_sums
from massrecon.provenance import read_json, write_json

if TYPE_CHECKING:
    from massrecon.inference.likelihood import MassLikelihood

DEGREE = 4
"""Number of terms of `ConditionalPIT`."""

_TEMPERATURE, _PIT = "massrecon-temperature-1", "massrecon-conditional-pit-1"
_NODES = 64  # of the quadrature in u
_STEPS = 60
_CONVERGED = 1e-9
_RIDGE = 1.0  # of each coefficient, in units of one event
_HOTTEST = 20.0
_EDGE = 5e-4  # normal quantiles end at 3.3 standard deviations
_TAIL = 10  # the outermost tenth of the draws says how a tail goes on


@dataclass(frozen=True, eq=False, kw_only=True)
class Temperature:
    """A power of the likelihood ratio of each event; see `massrecon.inference.recalibration`.

    It is the `calibration` that `mass_likelihood` and `measure` take.

    Attributes:
        value: Temperature T; above one where densities were over-confident.
        error: Its standard error.
        prior: The training prior, under which the mean ratio stays one.
        n_events: Number of events that it was fitted to.
    """

    value: float
    error: float
    prior: TrainingPrior
    n_events: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InputError(f"'value' should be a positive temperature, got {self.value}.")

    def __call__(self, log_ratio: Tensor, points: Tensor) -> Tensor:
        """Corrects log r ``(n, G)`` at evenly spaced mass points ``(G, M)`` [GeV].

        The mean ratio is one over these points, which should cover the whole prior: leave it to
        `massrecon.inference.likelihood.log_ratios` where they do not.
        """
        cooled = log_ratio / self.value
        log_prior = self.prior.log_density(points).to(cooled)
        share = torch.softmax(log_prior, dim=0).log()
        return cooled - torch.logsumexp(cooled + share, dim=1, keepdim=True)

    @classmethod
    def fit(
        cls, likelihood: MassLikelihood, masses: Tensor, group: Tensor | None = None
    ) -> Temperature:
        """Fits the temperature to simulated events that the model was not trained on.

        Args:
            likelihood: Likelihood of N events.
            masses: Their true masses [GeV], in the order of ``likelihood.names``, shape ``(N, M)``.
            group: Number of the group of events that fluctuate together, shape ``(N,)``; found from
                the masses if not given.

        Raises:
            InputError: If there are no events, the masses do not fit, or no temperature below 20 is
                best, which means that the events tell nothing.
        """
        if len(likelihood) == 0 or masses.shape != (len(likelihood), len(likelihood.names)):
            raise InputError(
                f"'masses' should have shape ({len(likelihood)}, {len(likelihood.names)}) and hold "
                f"at least one event, got {tuple(masses.shape)}."
            )
        log_r = likelihood.log_ratio[:, likelihood.inside].double()
        log_share = likelihood.prior.log_density(likelihood.points[likelihood.inside])
        log_share = torch.log_softmax(log_share.double(), dim=0)
        axes = list(likelihood.axes.values())
        true = at_points(axes, likelihood.log_ratio, masses).clamp_min(-1e4)
        beta, slopes, curvature = _best_power(log_r, log_share, true)
        number = clusters(masses) if group is None else group
        noise = float(group_sums(slopes, number).square().sum().sqrt())
        return cls(
            value=1 / beta,
            error=noise / curvature / beta**2,
            prior=likelihood.prior,
            n_events=len(masses),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `load_recalibration` reads back."""
        return {
            "format": _TEMPERATURE,
            "value": self.value,
            "error": self.error,
            "n_events": self.n_events,
            "prior": self.prior.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Temperature:
        """Rebuilds a temperature from plain data."""
        return cls(
            value=float(content["value"]),
            error=float(content["error"]),
            n_events=int(content["n_events"]),
            prior=TrainingPrior.from_dict(content["prior"]),
        )

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all; read it with `load_recalibration`."""
        write_json(path, self.to_dict())


def _best_power(log_r: Tensor, log_share: Tensor, true: Tensor) -> tuple[float, Tensor, float]:
    """Finds the best power by Newton's method; returns it, slopes of events ``(N,)``, curvature."""
    beta = 1.0
    for _ in range(_STEPS):
        slopes, curvature = _slope(beta, log_r, log_share, true)
        step = float(slopes.sum()) / curvature
        beta = min(max(beta + step, 0.5 * beta), 2 * beta)
        if 1 / beta > _HOTTEST:
            raise InputError(
                "These events tell nothing of the masses, or the densities are wrong: no "
                f"temperature below {_HOTTEST:g} is best."
            )
        if abs(step) < _CONVERGED:
            break
    return beta, *_slope(beta, log_r, log_share, true)


def _slope(beta: float, log_r: Tensor, log_share: Tensor, true: Tensor) -> tuple[Tensor, float]:
    """Differentiates the log-density of the truth by the power: slopes ``(N,)``, curvature."""
    slopes, curvature = torch.empty_like(true), 0.0
    for rows in torch.arange(len(true)).split(2048):
        finite = log_r[rows].clamp_min(-1e4)
        share = torch.softmax(beta * finite + log_share, dim=1)
        mean = (share * finite).sum(1)
        slopes[rows] = true[rows] - mean
        curvature += float((share * (finite - mean[:, None]).square()).sum())
    return slopes, max(curvature, 1e-12)


@dataclass(frozen=True, eq=False, kw_only=True)
class ConditionalPIT:
    """A bending of the distribution of each mass, by where its posterior sits.

    Attributes:
        names: Names of the M masses that are bent.
        centre: Means of the features, shape ``(M, P - 1)``.
        scale: Their spreads, likewise.
        coefficients: Coefficients theta, shape ``(M, K, P)``.
        n_events: Number of events that it was fitted to.
    """

    names: tuple[str, ...]
    centre: Tensor
    scale: Tensor
    coefficients: Tensor
    n_events: int = 0

    @classmethod
    def fit(cls, posterior: Posterior, degree: int = DEGREE, seed: int = 0) -> ConditionalPIT:
        """Fits the bending to a posterior of simulated events that were not trained on.

        Args:
            posterior: A posterior with truth and at least three draws.
            degree: Number K of terms.
            seed: Seed of what spreads ranks over their steps.

        Raises:
            InputError: If there is no truth, no mass varies, or an argument makes no sense.
        """
        if degree < 1 or posterior.n_draws < 3:
            raise InputError(
                f"The bending needs 'degree' >= 1 and three draws, got {degree} and "
                f"{posterior.n_draws}."
            )
        truth = posterior.true_masses().double()
        spread = (truth.amax(0) - truth.amin(0)).tolist()
        names = [n for n, w in zip(posterior.mass_names, spread, strict=True) if w > SAME_MASS]
        if not names:
            raise InputError("No true mass varies among these events: calibration needs a range.")
        ranks = rank_values(posterior.mass_samples(), truth, seed)
        centre, scale, coefficients = [], [], []
        for name in names:
            features = _features(posterior, name, names)
            centre.append(features.mean(0))
            scale.append(features.std(0).clamp_min(1e-9))
            x = _with_constant((features - centre[-1]) / scale[-1])
            u = ranks[:, posterior.mass_index(name)]
            coefficients.append(_fit_bending(u, x, posterior.weights, degree))
        return cls(
            names=tuple(names),
            centre=torch.stack(centre),
            scale=torch.stack(scale),
            coefficients=torch.stack(coefficients),
            n_events=len(posterior),
        )

    def __call__(self, posterior: Posterior) -> Posterior:
        """Bends the draws of the masses; other targets and the order of draws stay as they are.

        A joint density on a grid is dropped: use `Temperature` for those.

        Raises:
            InputError: If the posterior has no such mass.
        """
        samples = posterior.samples.clone()
        masses = posterior.mass_samples().double()
        for i, name in enumerate(self.names):
            features = _features(posterior, name, self.names)
            x = _with_constant((features - self.centre[i]) / self.scale[i])
            bent = _bent(masses[..., posterior.mass_index(name)], x @ self.coefficients[i].T)
            samples[..., posterior.mass_columns()[posterior.mass_index(name)]] = bent.to(samples)
        origin = {**posterior.provenance, "recalibrated": True}
        return replace(posterior, samples=samples, mass_density=None, provenance=origin)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `load_recalibration` reads back."""
        lists = {k: getattr(self, k).tolist() for k in ("centre", "scale", "coefficients")}
        return {"format": _PIT, "names": list(self.names), "n_events": self.n_events} | lists

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ConditionalPIT:
        """Rebuilds a bending from plain data."""
        lists = {
            k: torch.tensor(content[k], dtype=torch.float64)
            for k in ("centre", "scale", "coefficients")
        }
        return cls(names=tuple(content["names"]), n_events=int(content["n_events"]), **lists)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all; read it with `load_recalibration`."""
        write_json(path, self.to_dict())


def load_recalibration(path: str | Path) -> Temperature | ConditionalPIT:
    """Reads what `Temperature.save` or `ConditionalPIT.save` wrote.

    Raises:
        StoreError: If the file is missing, foreign or damaged.
    """
    kinds = {_TEMPERATURE: Temperature, _PIT: ConditionalPIT}
    content = read_json(path, "a recalibration")
    try:
        return kinds[content["format"]].from_dict(content)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"'{path}' cannot be read as a recalibration: {error!r}") from error


def _features(posterior: Posterior, name: str, names: tuple[str, ...] | list[str]) -> Tensor:
    """Computes position and width of the posterior of a mass, ``(N, P - 1)``."""
    samples = posterior.mass_samples().double()
    own = samples[..., posterior.mass_index(name)]
    ends = central_interval(own, 0.5)
    others = [median(samples[..., posterior.mass_index(n)]) for n in names if n != name]
    centre = median(own)
    width = (ends[:, 1] - ends[:, 0]).clamp_min(1e-6).log()
    return torch.stack([centre, centre.square(), width, *others], dim=1)


def _with_constant(features: Tensor) -> Tensor:
    # far outside the fitted range the bending stays that of its edge
    return torch.cat([torch.ones_like(features[:, :1]), features.clamp(-3, 3)], dim=1)


def _basis(u: Tensor, degree: int) -> Tensor:
    """Computes z, z^2 - 1, P_3, ..., P_K of u, shape ``(..., K)``."""
    z = torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE))
    higher = legendre(2 * u - 1, degree)[..., 3:].unbind(-1)
    return torch.stack([z, z.square() - 1, *higher][:degree], dim=-1)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[Tensor, Tensor]:
    """Returns nodes and weights of the quadrature on (-1, 1)."""
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    return torch.as_tensor(nodes), torch.as_tensor(shares)


def _products(values: Tensor) -> Tensor:
    """Multiplies all columns with each other, ``(N, K)`` -> ``(N, K * K)``."""
    return (values[:, :, None] * values[:, None, :]).flatten(1)


def _fit_bending(u: Tensor, x: Tensor, weight: Tensor, degree: int) -> Tensor:
    """Finds the coefficients ``(K, P)`` by maximum likelihood with Newton's method."""
    nodes, shares = _quadrature()
    basis, log_share = _basis((nodes + 1) / 2, degree), (shares / 2).log()
    pairs, pairs_of_x = _products(basis), _products(x)
    target = _basis(u, degree)
    width = x.shape[1]
    size = degree * width
    theta = torch.zeros(size, dtype=torch.float64)
    weight = weight / weight.mean()
    best = -math.inf
    for _ in range(_STEPS):
        c = x @ theta.reshape(degree, -1).T
        log_g = c @ basis.T + log_share
        norm = torch.logsumexp(log_g, dim=1)
        value = float((weight * ((c * target).sum(1) - norm)).sum()) - _RIDGE / 2 * float(
            theta.square().sum()
        )
        share = (log_g - norm[:, None]).exp()
        mean = share @ basis
        spread = share @ pairs - _products(mean)
        gradient = ((weight[:, None] * (target - mean)).T @ x).flatten()
        hessian = (weight[:, None] * spread).T @ pairs_of_x  # (kl, pq), in the order (kp, lq) next
        hessian = hessian.reshape(degree, degree, width, width).transpose(1, 2).reshape(size, size)
        step = torch.linalg.solve(
            hessian + _RIDGE * torch.eye(size, dtype=torch.float64), gradient - _RIDGE * theta
        )
        if abs(value - best) < 1e-7 * (1 + abs(value)):
            break
        best, theta = value, theta + step * min(1.0, 1.0 / float(step.abs().max().clamp_min(1e-12)))
    return theta.reshape(degree, -1)


def _bent(draws: Tensor, coefficients: Tensor) -> Tensor:
    """Moves draws ``(S, N)`` to the quantiles of the bent distribution with coefficients (N, K)."""
    n_draws = len(draws)
    ordered, order = draws.sort(dim=0)
    grid = torch.linspace(0, 1, 8 * _NODES + 1, dtype=torch.float64)
    log_g = coefficients @ _basis(grid, coefficients.shape[1]).T
    density = (log_g - log_g.amax(1, keepdim=True)).exp()
    total = torch.cat(
        [torch.zeros_like(density[:, :1]), torch.cumulative_trapezoid(density, dim=1)], dim=1
    )
    total = total / total[:, -1:]
    level = torch.arange(1, n_draws + 1, dtype=torch.float64) / (n_draws + 1)
    level = level.expand(draws.shape[1], -1).contiguous()
    right = torch.searchsorted(total, level).clamp(1, len(grid) - 1)
    low, high = total.gather(1, right - 1), total.gather(1, right)
    u = grid[right - 1] + (level - low) / (high - low).clamp_min(1e-15) * (grid[1] - grid[0])
    moved = _quantiles(ordered, u.T.clamp(1e-9, 1 - 1e-9))
    return torch.empty_like(draws).scatter_(0, order, moved)


def _quantiles(ordered: Tensor, level: Tensor) -> Tensor:
    """Interpolates ordered draws ``(S, N)`` at levels ``(Q, N)``, with exponential tails."""
    last = len(ordered) - 1
    position = level * (last + 2) - 1
    inner = position.clamp(0, last)
    below = inner.floor().long().clamp(max=max(last - 1, 0))
    share = inner - below
    found = (1 - share) * ordered.gather(0, below) + share * ordered.gather(
        0, (below + 1).clamp(max=last)
    )
    k = max(1, len(ordered) // _TAIL)
    # the expected distance from the outermost of k + 1 exponential draws to the innermost
    steps = sum(1 / i for i in range(1, k + 1))
    edge = 1 / (last + 2)
    lower, upper = (ordered[k] - ordered[0]) / steps, (ordered[-1] - ordered[last - k]) / steps
    found = found + lower * (level / edge).clamp(max=1).log()
    return found - upper * ((1 - level) / edge).clamp(max=1).log()
