"""Gaussian mixtures in the masses of many events, cut to the region where masses may lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, unknown_name
from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics import mixture_gaussians as kernel
from massrecon.kinematics.backends import choose_backend
from massrecon.kinematics.mixture_outlier import Outlier
from massrecon.kinematics.mixture_scheme import MassRegion

WINDOW = 30.0
"""Half-width of the window of the summaries [GeV]."""

LEAST_EVIDENCE = -1000.0
"""Log of the evidence of an event that has no assignment."""

_STEP = 2.5  # of the grid on which summaries are computed [GeV]
_FINER = 2  # points at which the density is taken between two of them
_TINY = -50.0  # least exponent: products of denormal numbers are slow
_NONE = -1e4  # log of no weight at all
_CHUNK = 2**19  # numbers at a time
_ROUNDS = 40
_SWEEPS = 10


@dataclass(frozen=True, eq=False)
class MassPosterior:
    """A posterior of M masses for each of N events: A Gaussians, each cut to the region.

    Attributes:
        names: Names of the masses.
        region: Where the masses may lie.
        log_weight: Log of the weights, which add up to one, shape ``(N, A)``; -inf for none.
        mean: Means before the cut [GeV], shape ``(N, A, M)``.
        covariance: Covariances before the cut [GeV²], shape ``(N, A, M, M)``.
        log_inside: Log of the part of each Gaussian inside the region, shape ``(N, A)``.
        log_evidence: Log of the sum of all weights before they were normalised, ``(N,)``: small for
            events that no assignment explains, comparable among events of one process.
        momenta: Four-momenta of resonances that each component carries, by label, ``(N, A, 4)``.
    """

    names: tuple[str, ...]
    region: MassRegion
    log_weight: Tensor
    mean: Tensor
    covariance: Tensor
    log_inside: Tensor
    log_evidence: Tensor
    momenta: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.log_weight)

    def __repr__(self) -> str:
        return f"MassPosterior({', '.join(self.names)}; {len(self)} events)"

    def __getitem__(self, rows: Tensor | slice) -> MassPosterior:
        """Selects events."""
        return MassPosterior(
            self.names,
            self.region,
            self.log_weight[rows],
            self.mean[rows],
            self.covariance[rows],
            self.log_inside[rows],
            self.log_evidence[rows],
            {label: p4[rows] for label, p4 in self.momenta.items()},
        )

    def log_prob(self, masses: Tensor) -> Tensor:
        """Computes the log density [1/GeV^M] of masses ``(..., N, M)``, shape ``(..., N)``.

        It is -inf outside the region.

        Raises:
            ShapeError: If the last two axes are not (N, M).
        """
        shape = (len(self), len(self.names))
        if tuple(masses.shape[-2:]) != shape:
            raise ShapeError(
                f"'masses' should have shape (..., {shape[0]}, {shape[1]}), got "
                f"{tuple(masses.shape)}: one row for each event, ordered {', '.join(self.names)}."
            )
        inverse, log_det = algebra.invert(_entries(self.covariance))
        x = list(masses.unsqueeze(-2).unbind(-1))
        density = algebra.log_normal_density(x, list(self.mean.unbind(-1)), inverse, -log_det)
        total = torch.logsumexp(self.log_weight + density - self.log_inside, -1)
        return torch.where(self.region.contains(masses), total, -math.inf)

    def sample(self, n_samples: int, seed: int = 0) -> Tensor:
        """Draws masses [GeV], shape ``(S, N, M)``; the same seed gives the same draws."""
        return self.draw(n_samples, seed)[0]

    def draw(self, n_samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draws masses ``(S, N, M)`` [GeV] and says which component each is from, ``(S, N)``.

        Raises:
            InputError: If `n_samples` is not positive.
        """
        if n_samples < 1:
            raise InputError(f"'n_samples' should be at least 1, got {n_samples}.")
        generator = torch.Generator(self.mean.device).manual_seed(seed)
        chosen = torch.multinomial(
            self.log_weight.exp(), n_samples, replacement=True, generator=generator
        )
        at = chosen.unsqueeze(-1).expand(-1, -1, len(self.names))
        mean = self.mean.gather(1, at).flatten(0, 1)
        at = at.unsqueeze(-1).expand(-1, -1, -1, len(self.names))
        covariance = self.covariance.gather(1, at).flatten(0, 1)
        found = _draw_inside(mean, covariance, self.region, generator)
        return found.unflatten(0, chosen.shape).transpose(0, 1).contiguous(), chosen.T

    def marginal(self, name: str) -> MassPosterior:
        """Returns the posterior of one mass.

        A component that the bounds of the other masses cut is replaced by the Gaussian of the same
        mean and width in the mass, see `massrecon.kinematics.mixture_algebra.truncated`.

        Raises:
            InputError: If there is no mass of this name.
        """
        if name not in self.names:
            raise unknown_name("mass", name, self.names)
        at = self.names.index(name)
        own = [float(i == at) for i in range(len(self.names))]
        low, high = self.region.low[at], self.region.high[at]
        others = [row for row in self.region.rows if list(row[0]) != own]
        mean, variance, log_inside = self._last_of([*others, (own, low, high)])
        return MassPosterior(
            (name,),
            MassRegion((low,), (high,)),
            self.log_weight,
            mean.unsqueeze(-1),
            variance[..., None, None],
            log_inside,
            self.log_evidence,
        )

    def _last_of(self, rows: Sequence[algebra.Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean and variance of the last of some linear forms of the masses, ``(N, A)``.

        They are those under the conditions on the others, of each Gaussian; third comes the log of
        the probability of the last condition then.
        """
        if choose_backend("auto", self.mean.device) == "numba":
            _, mean, variance, inside = restricted(
                self.log_weight, self.mean, self.covariance, rows
            )
            return mean, variance.masked_fill_(self.log_weight.isinf(), 1.0), inside
        *others, (form, low, high) = rows
        means = list(self.mean.unbind(-1))
        _, mean, variance = algebra.truncated(means, _entries(self.covariance), others, [form])
        own = [((1.0,), low, high)]
        return mean[0], variance[0][0], algebra.log_probability(mean, variance, own)

    def density(self, grid: Tensor) -> Tensor:
        """Computes the density [1/GeV] of a single mass on a grid ``(G,)``, shape ``(N, G)``.

        The data type of the grid is that of the calculation.

        Raises:
            InputError: If there is more than one mass: take a `marginal` first.
        """
        self._refuse_several()
        inside = self.region.contains(grid.unsqueeze(-1))
        steps = grid.diff()
        even = len(grid) > 2 and bool((steps - steps[0]).abs().max() < 1e-4 * steps[0])
        if even and choose_backend("auto", self.mean.device) == "numba":
            return (self._even_density(grid) * inside).to(grid.dtype)
        mean, width = self._single()
        middle = (self.region.low[0] + self.region.high[0]) / 2
        scale = (1 / (math.sqrt(2) * width)).to(grid.dtype)
        start = ((middle - mean) / (math.sqrt(2) * width)).to(grid.dtype)
        height = self.log_weight - self.log_inside - (math.sqrt(2 * math.pi) * width).log()
        height = height.clamp_min(_NONE).to(grid.dtype)
        found = grid.new_empty(len(self), len(grid))
        step = max(1, _CHUNK // (mean.shape[1] * len(grid)))
        for first in range(0, len(self), step):
            rows = slice(first, first + step)
            pull = torch.addcmul(start[rows, :, None], scale[rows, :, None], grid - middle)
            log_density = torch.addcmul(height[rows, :, None], pull, pull, value=-1)
            found[rows] = log_density.clamp_min_(_TINY).exp_().sum(1)
        return found * inside

    def _even_density(self, grid: Tensor) -> Tensor:
        """Computes the density on an even grid, leaving out what only reaches in from afar."""
        found = self.mean.new_zeros(len(self), len(grid))
        first, step = float(grid[0]), float((grid[-1] - grid[0]) / (len(grid) - 1))
        weight, inside, mean, variance = (
            x.contiguous().numpy()
            for x in (
                self.log_weight,
                self.log_inside,
                self.mean[..., 0],
                self.covariance[..., 0, 0],
            )
        )
        kernel.add_gaussians(weight, inside, mean, variance, first, step, found.numpy())
        return found

    def cumulative(self, grid: Tensor) -> Tensor:
        """Computes the probability of a single mass below the points of a grid, ``(N, G)``.

        Raises:
            InputError: If there is more than one mass: take a `marginal` first.
        """
        mean, width = self._single()
        low, high = self.region.low[0], self.region.high[0]
        # a Gaussian that only reaches in with its far tail lies at the edge
        share, far = self.log_weight.exp(), self.log_inside < kernel.EDGE
        at_low, at_high = ((share * (far & side)).sum(1) for side in (mean < low, mean > high))
        weight = (self.log_weight - self.log_inside).where(~far, -math.inf).exp()
        x = torch.cat([grid.clamp(low, high), grid.new_tensor([low])])
        # in units of the width, mirrored where the mean is low: small tails are then accurate
        sign = torch.where(mean < (low + high) / 2, -1.0, 1.0).to(mean)
        chunks = []
        for rows in torch.arange(len(self)).split(max(1, _CHUNK // (mean.shape[1] * len(x)))):
            scale = (sign[rows] / width[rows]).unsqueeze(-1)
            tail = algebra.normal_below((x - mean[rows].unsqueeze(-1)) * scale)
            below = (tail[..., :-1] - tail[..., -1:]) * (sign * weight)[rows].unsqueeze(-1)
            chunks.append(below.sum(1))
        edges = at_low[:, None] * (grid > low) + at_high[:, None] * (grid >= high)
        return (torch.cat(chunks) + edges).clamp(0, 1)

    def _refuse_several(self) -> None:
        if len(self.names) != 1:
            raise InputError(
                f"This posterior is one of {', '.join(self.names)}: take a 'marginal' first."
            )

    def _single(self) -> tuple[Tensor, Tensor]:
        self._refuse_several()
        return self.mean[..., 0], self.covariance[..., 0, 0].sqrt()

    @property
    def summary_names(self) -> tuple[str, ...]:
        """Names of the `summaries`, four for each mass and two for the event."""
        return summary_names(self.names)

    def summaries(self, window: float = WINDOW) -> Tensor:
        """Summarises the posterior of each event, shape ``(N, 4 M + 2)``, for models to read.

        For each mass: median [GeV], half the width of the central 68 % [GeV], centre of the window
        of half-width `window` with the most probability [GeV], and this probability. For the event:
        log of the evidence, and log of the effective number of hypotheses, the entropy of weights.
        All are finite for any event; one without an assignment has the median of the prior and
        `LEAST_EVIDENCE`.
        """
        columns = [c for name in self.names for c in _summary(self.marginal(name), window)]
        weight = self.log_weight.exp()
        entropy = -(weight * self.log_weight.clamp_min(-100)).sum(1)
        return torch.stack([*columns, self.log_evidence, entropy], 1)


def _entries(covariance: Tensor) -> algebra.Matrix:
    """Lists the entries of matrices ``(..., M, M)``."""
    n = covariance.shape[-1]
    return [[covariance[..., i, j] for j in range(n)] for i in range(n)]


def summary_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of the summaries of a posterior of some masses."""
    kinds = ("median", "half_width", "window", "window_probability")
    return (*(f"{n}_{kind}" for n in names for kind in kinds), "log_evidence", "log_hypotheses")


def restricted(
    log_weight: Tensor, mean: Tensor, covariance: Tensor, rows: Sequence[algebra.Row]
) -> Tensor:
    """Restricts all components by a compiled kernel, shape ``(4, N, A)``; -inf weights get 0.

    Log of the probability of all conditions but the last; mean and variance of its form under
    these; log of its own probability then.
    """
    weights, means, covariances = (x.contiguous().numpy() for x in (log_weight, mean, covariance))
    found = torch.zeros(4, *log_weight.shape, dtype=log_weight.dtype)
    forms = np.array([list(row) for row, _, _ in rows], dtype=float)
    bounds = np.array([[low, high] for _, low, high in rows], dtype=float)
    kernel.restrict(weights, means, covariances, forms, bounds, found.numpy())
    return found


def log_inside_of(
    log_weight: Tensor, mean: Tensor, covariance: Tensor, rows: Sequence[algebra.Row]
) -> Tensor:
    """Computes the log of the part of each component that fulfils all conditions, ``(N, A)``."""
    if choose_backend("auto", mean.device) == "numba":
        found = restricted(log_weight, mean, covariance, rows)
        return found[0] + found[3]
    return algebra.log_probability(list(mean.unbind(-1)), _entries(covariance), rows)


def _weighted_sums(
    share: Tensor, mean: Tensor, covariance: Tensor, region: MassRegion
) -> tuple[list[Tensor], algebra.Matrix]:
    """Adds up means moved into the region and inverse covariances, times weights ``(N, A)``."""
    n, m = len(mean), mean.shape[2]
    centre, precision = mean.new_zeros(m, 1, n), mean.new_zeros(m, m, 1, n)
    bounds = np.array([region.low, region.high])
    kernel.add_up_components(
        share.numpy(), mean.numpy(), covariance.numpy(), bounds, centre.numpy(), precision.numpy()
    )
    return list(centre), [list(row) for row in precision]


def _summary(marginal: MassPosterior, window: float) -> list[Tensor]:
    low, high = marginal.region.low[0], marginal.region.high[0]
    steps = max(8, math.ceil((high - low) / min(_STEP, window / 4)))
    grid = torch.linspace(low, high, steps + 1, dtype=marginal.mean.dtype)
    grid = grid.to(marginal.mean.device)
    below = _binned(marginal, grid)
    ends = [_quantile(below, grid, level) for level in (0.16, 0.5, 0.84)]
    reach = min(round(window / ((high - low) / steps)), steps)
    padded = torch.nn.functional.pad(below, (reach, 0))
    upper = torch.cat([below[:, reach:], below[:, -1:].expand(-1, reach)], 1)
    best = (upper - padded[:, : len(grid)]).max(1)
    return [ends[1], (ends[2] - ends[0]) / 2, grid[best.indices], best.values]


def _binned(marginal: MassPosterior, grid: Tensor) -> Tensor:
    """Computes the probability below the points of a grid from the density between them."""
    step = float(grid[1] - grid[0])
    finer = (len(grid) - 1) * _FINER
    middles = grid[0] + (torch.arange(finer).to(grid) + 0.5) * (step / _FINER)
    mass = marginal.density(middles).unflatten(1, (-1, _FINER)).sum(2)
    below = torch.nn.functional.pad(mass.cumsum(1), (1, 0))
    total = below[:, -1:]
    # a posterior that only reaches in from afar lies at the edge
    exact = marginal.cumulative(grid) if bool((total <= 0).any()) else below
    return torch.where(total > 0, below / total.clamp_min(1e-300), exact)


def _quantile(below: Tensor, grid: Tensor, level: float) -> Tensor:
    above = (below < level).sum(1, keepdim=True).clamp(1, len(grid) - 1)
    low, high = below.gather(1, above - 1), below.gather(1, above)
    share = ((level - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return grid[above - 1].lerp(grid[above], share).squeeze(1)


def _draw_inside(
    mean: Tensor, covariance: Tensor, region: MassRegion, generator: torch.Generator
) -> Tensor:
    """Draws one point of each Gaussian ``(n, M)`` inside the region, by rejection, then Gibbs."""
    found = mean.clone()
    root = torch.linalg.cholesky(covariance)
    open_ = torch.arange(len(mean), device=mean.device)
    for _ in range(_ROUNDS):
        noise = torch.randn(
            len(open_), mean.shape[1], 1, generator=generator, dtype=mean.dtype, device=mean.device
        )
        tried = mean[open_] + (root[open_] @ noise).squeeze(-1)
        good = region.contains(tried)
        found[open_[good]] = tried[good]
        open_ = open_[~good]
        if not len(open_):
            return found
    found[open_] = _gibbs(mean[open_], covariance[open_], region, generator)
    return found


def _gibbs(
    mean: Tensor, covariance: Tensor, region: MassRegion, generator: torch.Generator
) -> Tensor:
    """Draws points of Gaussians that hardly reach into the region, one mass after the other."""
    precision = torch.linalg.inv(covariance)
    point = region.inner_point().to(mean).expand_as(mean).clone()
    for _ in range(_SWEEPS):
        for i in range(mean.shape[1]):
            width = precision[:, i, i].rsqrt()
            off = (point - mean).clone()
            off[:, i] = 0
            centre = mean[:, i] - (precision[:, i] * off).sum(1) * width**2
            low, high = region.interval(point, i)
            uniform = torch.rand(
                len(mean), generator=generator, dtype=mean.dtype, device=mean.device
            )
            point[:, i] = _truncated_normal(centre, width, low, high, uniform)
    return point


def _truncated_normal(
    centre: Tensor, width: Tensor, low: Tensor, high: Tensor, uniform: Tensor
) -> Tensor:
    """Inverts the cumulative; far in a tail the density falls exponentially from the near end."""
    a, b = (low - centre) / width, (high - centre) / width
    below, above = torch.special.ndtr(a), torch.special.ndtr(b)
    x = torch.special.ndtri((below + uniform * (above - below)).clamp(1e-300, 1 - 1e-16))
    near = torch.where(a > 0, a, b)
    tail = near + torch.sign(near) * -torch.log1p(-uniform) / near.abs().clamp_min(1e-6)
    x = torch.where(torch.minimum(a.abs(), b.abs()).gt(6) & (a * b > 0), tail, x)
    return (centre + width * torch.minimum(torch.maximum(x, a), b)).clamp(low, high)


class PosteriorCollector:
    """Collects the components of all events into one `MassPosterior`.

    Args:
        outlier: The last components of every event: the tails, then the outlier.
        names: Names of the masses.
        kept: Largest number of other components.
        labels: Labels of the resonances whose momenta are carried.
        p4: Momenta of the events ``(N, ...)``, for number and device.
    """

    def __init__(
        self,
        outlier: Outlier,
        names: tuple[str, ...],
        kept: int,
        labels: tuple[str, ...],
        p4: Tensor,
    ) -> None:
        size, m = (len(p4), kept + 1 + outlier.n_tails), len(names)
        empty = torch.zeros(size, dtype=torch.float64, device=p4.device)
        self.outlier, self.kept = outlier, kept
        self.posterior = MassPosterior(
            names=names,
            region=outlier.region,
            log_weight=empty.new_full(size, -math.inf),
            mean=empty.new_zeros(*size, m),
            covariance=torch.eye(m).to(empty).repeat(*size, 1, 1),
            log_inside=empty,
            log_evidence=empty.new_zeros(len(p4)),
            momenta={label: empty.new_zeros(*size, 4) for label in labels},
        )
        self.posterior.mean[:, -1] = torch.stack(outlier.mean)
        self.posterior.covariance[:, -1] = torch.stack(
            [torch.stack(row) for row in outlier.covariance]
        )
        self.posterior.log_inside[:, -1] = outlier.log_inside()

    def add(
        self,
        rows: Tensor,
        log_weight: Tensor,
        mean: Sequence[Tensor],
        covariance: algebra.Matrix,
        momenta: Sequence[Tensor],
    ) -> None:
        """Adds events with their components ``(k, n)``, and momenta ``(4, k, n)`` of these."""
        to, size = self.posterior, len(log_weight)
        to.log_weight[rows, :size] = log_weight.T
        to.log_inside[rows, :size] = algebra.log_probability(mean, covariance, to.region.rows).T
        to.mean[rows, :size] = torch.stack(list(mean), -1).transpose(0, 1)
        stacked = torch.stack([torch.stack(row, -1) for row in covariance], -2)
        to.covariance[rows, :size] = stacked.transpose(0, 1)
        self.carry(rows, momenta)

    def carry(self, rows: Tensor, momenta: Sequence[Tensor]) -> None:
        """Adds the momenta ``(4, k, n)``; broad components have those of the largest one."""
        log_weight = self.posterior.log_weight[rows, : self.kept]
        best = log_weight.argmax(1)
        for p4_of, p4 in zip(self.posterior.momenta.values(), momenta, strict=True):
            p4_of[rows, : p4.shape[1]] = p4.permute(2, 1, 0)
            p4_of[rows, self.kept :] = p4[:, best, torch.arange(len(rows))].T.unsqueeze(1)

    def normalise(self) -> None:
        """Adds the broad components and makes the weights add up to one."""
        to, kept = self.posterior, slice(None, self.kept)
        weights = to.log_weight[:, kept] + to.log_inside[:, kept]
        # an event without any assignment has the outlier alone
        to.log_evidence.copy_(torch.logsumexp(weights, 1).clamp_min(LEAST_EVIDENCE))
        self._add_tails((weights - to.log_evidence[:, None]).exp())
        log_outlier, *log_tails = self.outlier.log_weights(to.log_evidence)
        to.log_weight[:, kept] = weights
        to.log_weight[:, self.kept :] = torch.stack([*log_tails, log_outlier], 1)
        to.log_weight[to.log_evidence <= LEAST_EVIDENCE, self.kept : -1] = -math.inf
        to.log_weight.sub_(torch.logsumexp(to.log_weight, 1, keepdim=True))

    def _add_tails(self, share: Tensor) -> None:
        """Adds the tails of events whose hypotheses have these posterior weights ``(N, kept)``."""
        to, tails = self.posterior, slice(self.kept, -1)
        mean, covariance = to.mean[:, : self.kept], to.covariance[:, : self.kept]
        if choose_backend("auto", mean.device) == "numba":
            centre, precision = _weighted_sums(share, mean, covariance, to.region)
            mean, covariance = self.outlier.tails_around(share.sum(1)[None], centre, precision)
        else:
            entries = [list(row) for row in covariance.permute(2, 3, 1, 0)]
            precision, _ = algebra.invert(entries)
            mean, covariance = self.outlier.tails(share.T, list(mean.permute(2, 1, 0)), precision)
        to.mean[:, tails] = torch.stack([x.T.expand(-1, self.outlier.n_tails) for x in mean], -1)
        stacked = torch.stack([torch.stack(row, -1) for row in covariance], -2)
        to.covariance[:, tails] = stacked.transpose(0, 1)
        to.log_inside[:, tails] = log_inside_of(
            to.log_inside[:, tails], to.mean[:, tails], to.covariance[:, tails], to.region.rows
        )
