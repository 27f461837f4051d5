"""Densities of the masses of single events, whatever they come from, on a grid of mass points.

A `MassDensities` says log p(m | y_i) for rows of events on a product of mass axes. `densities_of`
builds it from

* a model whose head has an exact joint density of the masses (`cascade`, `mass_head`);
* a model of the masses alone with any other density (`flow`, `flow_matching`, `diffusion`);
* a kinematic mixture, in closed form;
* draws (a model of more than the masses, without a density, or a saved posterior) through a smooth
  estimate of their density, see `DrawDensities`;
* a density that a posterior holds on a grid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from massrecon.errors import InputError, ModelError
from massrecon.events.container import Events
from massrecon.inference.massgrid import MassGrid, fixed_masses, product_points
from massrecon.inference.posterior import Posterior, mass_targets, reconstruct
from massrecon.inference.statistics import SAME_MASS
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.models.base import MassModel
from massrecon.models.cascade.head import SequentialHead
from massrecon.models.cascade.masses import HypothesisMasses
from massrecon.models.event_model import EventModel
from massrecon.models.head import Head
from massrecon.models.mass_head import MassHead
from massrecon.models.mixture import mass_posterior

_CONTEXT_CHUNK = 4096  # events that are prepared at a time
_NUMBERS = 2**23  # numbers worked on at a time
_PEAKS = 32  # numbers that a density needs for each point, about
_DRAWS = 512
_FARTHEST = -700.0  # in place of -inf, which cannot be interpolated


class MassDensities(ABC):
    """Densities of M masses for N events.

    Attributes:
        names: Names of the masses.
        source: What the densities come from, for reports.
        region: Where the masses may lie, if that is known.
        own_axes: The axes [GeV] by name, in the order of `names`, of densities that are known on a
            grid and interpolated in between; None for those that are known everywhere.
    """

    names: tuple[str, ...]
    source: str
    region: MassRegion | None = None
    own_axes: Mapping[str, Tensor] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Computes log p(m | y) [1 / GeV^M] on the product of axes [GeV], ``(n, G_1, ..., G_M)``.

        -inf where there is no probability.
        """


class HeadDensities(MassDensities):
    """The exact density of a head that models the masses on their own, first or only.

    The contexts of all events are kept in memory: 4 bytes times their length for each event.
    """

    def __init__(self, model: EventModel, events: Events, names: Sequence[str]) -> None:
        head, columns = _mass_density(model)
        self.model, self.head, self.names = model, head, tuple(names)
        self.source = f"exact density of the masses, model '{model.name}'"
        targets = model.targets
        kept = [targets.names[targets.kept[i]] for i in columns]
        wanted = mass_targets(model.card, model.target_names)
        place = {name: kept.index(wanted[model.card.mass_names.index(name)]) for name in names}
        self._order = [place[name] for name in names]
        self._offset, self._scale = targets.offset[columns], targets.scale[columns]
        self._context = _contexts(model, events)

    def __len__(self) -> int:
        return len(self._context)

    @torch.no_grad()
    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Computes the density on the product of axes, see `MassDensities.log_density`."""
        own: list[Tensor] = [torch.empty(0)] * len(axes)
        for axis, place in zip(axes, self._order, strict=True):
            x = axis.to(self._offset) - self._offset[place]
            own[place] = x / self._scale[place]
        context = self._context[rows].to(self._offset.device)
        size = math.prod(len(axis) for axis in axes) * _PEAKS
        step = max(1, _NUMBERS // size)
        parts = [_on_grid(self.head, own, part) for part in context.split(step)]
        found = torch.cat(parts) - self._scale.log().sum()
        return found.permute(0, *(1 + i for i in self._order)).double().cpu()


class ModelDensities(MassDensities):
    """The density of a model of the masses alone, point by point."""

    def __init__(self, model: MassModel, events: Events) -> None:
        fixed = fixed_masses(model)
        self.names = tuple(name for name in model.card.mass_names if name not in fixed)
        self.model, self.events, self._fixed = model, events, fixed
        self.source = f"{model.density} density of the masses, model '{model.name}'"

    def __len__(self) -> int:
        return len(self.events)

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Computes the density on the product of axes, see `MassDensities.log_density`."""
        events = self.events[rows]
        points = product_points(axes)
        columns = dict(zip(self.names, points.T, strict=True))
        columns |= {name: points.new_full((len(points),), m) for name, m in self._fixed.items()}
        values = torch.stack([columns[name] for name in self.model.card.mass_names], dim=-1)
        grid = values.unsqueeze(1).expand(-1, len(events), -1)
        found = self.model.log_prob(grid, events).T
        return found.reshape(len(events), *(len(axis) for axis in axes))


class MixtureDensities(MassDensities):
    """The closed form of the kinematic mixture."""

    def __init__(self, posterior: MassPosterior) -> None:
        self.posterior, self.names, self.region = posterior, posterior.names, posterior.region
        self.source = "kinematic mixture"

    def __len__(self) -> int:
        return len(self.posterior)

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Computes the density on the product of axes, see `MassDensities.log_density`."""
        posterior = self.posterior[rows]
        points = product_points(axes)
        step = max(1, _NUMBERS // max(posterior.log_weight.numel(), 1))
        parts = [
            posterior.log_prob(part.unsqueeze(1).expand(-1, len(posterior), -1))
            for part in points.split(step)
        ]
        return torch.cat(parts).T.reshape(len(posterior), *(len(axis) for axis in axes))


class DrawDensities(MassDensities):
    r"""A smooth density of draws: Gaussian kernels, corrected at the ends of the region.

    The kernels of an event have the covariance h^2 C of its S draws, h = S^(-1/(M+4)) (Scott's
    rule), and the draws are moved towards their mean by sqrt(1 - h^2), so that the estimate has the
    covariance of the draws and is not too wide. At each point it is divided by the part of a kernel
    around this point that lies inside the region (taken as a product over the sides), which leaves
    no slope at the ends. Beyond the outermost draws the density falls as a kernel does: with S
    draws nothing is known there, so combine events with an outlier share.

    References:
        Kernels of constant covariance: M. West, J. R. Stat. Soc. B 55 (1993) 409; division by the
        kernel's inner part: M. C. Jones, Stat. Comput. 3 (1993) 135.
    """

    def __init__(
        self, samples: Tensor, names: Sequence[str], region: MassRegion | None, source: str
    ) -> None:
        self.names, self.region, self.source = tuple(names), region, source
        samples = samples.double().transpose(0, 1)
        n_draws, n_masses = samples.shape[1:]
        if n_draws < 2 * n_masses:
            raise InputError(
                f"A density of {n_masses} masses needs more than {n_draws} draws, at least "
                f"{2 * n_masses}: reconstruct with n_samples=256."
            )
        width = n_draws ** (-1 / (n_masses + 4))
        centre = samples.mean(1, keepdim=True)
        spread = samples - centre
        covariance = spread.transpose(1, 2) @ spread / (n_draws - 1)
        covariance = covariance + 1e-6 * torch.eye(n_masses).to(covariance)
        self._kernel = width**2 * covariance
        self._inverse_root = torch.linalg.inv(torch.linalg.cholesky(self._kernel))
        self._centres = centre + math.sqrt(1 - width**2) * spread

    def __len__(self) -> int:
        return len(self._centres)

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Computes the density on the product of axes, see `MassDensities.log_density`."""
        points = product_points(axes)
        root, centres = self._inverse_root[rows], self._centres[rows]
        scaled = (root.unsqueeze(1) @ centres.unsqueeze(-1)).squeeze(-1)
        step = max(1, _NUMBERS // max(scaled.numel(), 1))
        parts = []
        for part in points.split(step):
            at = torch.einsum("nij,gj->ngi", root, part)
            squared = torch.cdist(at, scaled).square()
            parts.append(torch.logsumexp(-0.5 * squared, -1))
        n_masses = len(axes)
        norm = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * n_masses * math.log(
            2 * math.pi
        )
        found = torch.cat(parts, dim=1) + (norm - math.log(scaled.shape[1])).unsqueeze(1)
        if self.region is not None:
            found = found - self._log_inside(points, rows)
            found = torch.where(self.region.contains(points), found, -math.inf)
        return found.reshape(-1, *(len(axis) for axis in axes))

    def _log_inside(self, points: Tensor, rows: slice) -> Tensor:
        """Computes the log of the part of a kernel around each point inside the region, (n, G)."""
        assert self.region is not None
        total = points.new_zeros(len(self._kernel[rows]), len(points))
        for row, low, high in self.region.rows:
            direction = points.new_tensor(row)
            width = (direction @ self._kernel[rows] @ direction).sqrt().unsqueeze(1)
            at = points @ direction
            for end, sign in ((low, 1.0), (high, -1.0)):
                if math.isfinite(end):
                    total = total + torch.special.log_ndtr(sign * (at - end) / width)
        return total


class GridDensities(MassDensities):
    """A density that is known on a grid, linear in its log between the points."""

    def __init__(self, grid: MassGrid, source: str) -> None:
        self.grid, self.names, self.source = grid, tuple(grid.axes), source
        self.own_axes = grid.axes

    def __len__(self) -> int:
        return len(self.grid)

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Interpolates the density to the product of axes; -inf outside of the grid."""
        found = self.grid.log_density[rows].double()
        for dim, (own, axis) in enumerate(zip(self.grid.axes.values(), axes, strict=True), 1):
            found = interpolate(found, own.double(), axis.double(), dim)
        return found


def interpolate(values: Tensor, own: Tensor, axis: Tensor, dim: int) -> Tensor:
    """Interpolates values on an axis linearly to another one; -inf beyond its ends."""
    right = torch.searchsorted(own, axis).clamp(1, len(own) - 1)
    share = (axis - own[right - 1]) / (own[right] - own[right - 1])
    shape = [1] * values.ndim
    shape[dim] = len(axis)
    share = share.reshape(shape)
    below, above = values.index_select(dim, right - 1), values.index_select(dim, right)
    mixed = torch.where(
        share <= 0,
        below,
        torch.where(
            share >= 1,
            above,
            torch.lerp(below.clamp_min(_FARTHEST), above.clamp_min(_FARTHEST), share),
        ),
    )
    mixed = torch.where(
        (below.isinf() & (share < 1)) | (above.isinf() & (share > 0)), -math.inf, mixed
    )
    return torch.where((share < -1e-9) | (share > 1 + 1e-9), -math.inf, mixed)


def densities_of(
    source: MassModel | KinematicMixture | MassPosterior | Posterior | MassDensities,
    events: Events | None = None,
    *,
    region: MassRegion | None = None,
    n_samples: int = _DRAWS,
    seed: int = 0,
) -> MassDensities:
    """Builds the densities of the masses of events from a model, a mixture or a posterior.

    Args:
        source: A trained model or a mixture, with `events`; or a posterior of some events.
        events: The events; only for a model or a mixture.
        region: Where the masses may lie, for a density of draws.
        n_samples: Number of draws for each event where a density has to be estimated from them.
        seed: Seed of these draws.

    Raises:
        InputError: If there are no events, or events are missing or given twice.
    """
    if isinstance(source, MassModel | KinematicMixture):
        if events is None:
            raise InputError("A model needs events: pass them as the second argument.")
        if len(events) == 0:
            raise InputError("There are no events to measure masses from.")
        if isinstance(source, KinematicMixture):
            return MixtureDensities(mass_posterior(source, events))
        return _model_densities(source, events.validate(), region, n_samples, seed)
    if events is not None:
        raise InputError("A posterior brings its own events: leave out 'events'.")
    if isinstance(source, MassDensities):
        found = source
    elif isinstance(source, MassPosterior):
        found = MixtureDensities(source)
    else:
        found = _posterior_densities(source, region)
    if len(found) == 0:
        raise InputError("There are no events to measure masses from.")
    return found


def _model_densities(
    model: MassModel, events: Events, region: MassRegion | None, n_samples: int, seed: int
) -> MassDensities:
    if isinstance(model, EventModel) and (names := _exact_masses(model)):
        return HeadDensities(model, events, names)
    own = [f"{name}_m" for name in model.card.mass_names]
    if list(model.target_names) == own and model.density in ("exact", "ode"):
        return ModelDensities(model, events)
    return _posterior_densities(reconstruct(model, events, n_samples, seed=seed), region)


def _posterior_densities(posterior: Posterior, region: MassRegion | None) -> MassDensities:
    model = posterior.provenance.get("model", "draws")
    if posterior.mass_density is not None:
        return GridDensities(posterior.mass_density, f"density on a grid, model '{model}'")
    samples = posterior.mass_samples()
    free = [i for i, width in enumerate(samples.flatten(0, 1).std(0).tolist()) if width > SAME_MASS]
    if not free:
        raise ModelError("No mass varies among these draws: there is nothing to measure.")
    names = [posterior.mass_names[i] for i in free]
    source = f"Gaussian kernels over {posterior.n_draws} draws, model '{model}'"
    return DrawDensities(samples[..., free], names, region, source)


def _exact_masses(model: EventModel) -> tuple[str, ...]:
    """Names the masses that a head models on their own; none if it cannot, or models others."""
    head = model.trained_head
    if isinstance(head, MassHead):
        columns = list(range(len(model.targets)))
    elif isinstance(head, SequentialHead):
        columns = head.mass_columns
    else:
        return ()
    kept = {model.targets.names[model.targets.kept[i]] for i in columns}
    wanted = mass_targets(model.card, model.target_names)
    names = [n for n, target in zip(model.card.mass_names, wanted, strict=True) if target in kept]
    return tuple(names) if len(names) == len(kept) else ()


def _on_grid(head: Head, axes: Sequence[Tensor], context: Tensor) -> Tensor:
    """Computes the density of a head on the product of axes, ``(N, G_1, ..., G_T)``."""
    if isinstance(head, MassHead | HypothesisMasses):
        return head.log_prob_on_grid(axes, context)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    found = head.log_prob(points.unsqueeze(1).expand(-1, len(context), -1), context)
    return found.T.reshape(len(context), *(len(axis) for axis in axes))


def _mass_density(model: EventModel) -> tuple[Head, list[int]]:
    head = model.trained_head
    if isinstance(head, SequentialHead):
        return head.masses, head.mass_columns
    assert isinstance(head, MassHead)
    return head, list(range(len(model.targets)))


@torch.no_grad()
def _contexts(model: EventModel, events: Events) -> Tensor:
    """Computes the contexts of events, in bounded memory but for the result, ``(N, C)``."""
    parts = []
    for first in range(0, len(events), _CONTEXT_CHUNK):
        prepared = model.prepare(events[first : first + _CONTEXT_CHUNK])
        for rows in torch.arange(len(prepared["weight"])).split(512):
            batch = {name: t[rows].to(model.device) for name, t in prepared.items()}
            parts.append(model.encode(batch).float().cpu())
    return torch.cat(parts)
