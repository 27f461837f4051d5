r"""The prior that a model was trained with: the density of the masses of selected training events.

A posterior p(m | y) learned from simulated events contains how often each mass point occurred among
them, pi(m): how the points were drawn, times the acceptance of the selection. It has to be divided
out before events are combined. Here it is a smooth function with the right support,

    log pi(m) = sum_k theta_k phi_k(m) - log Z(theta),

with products of Legendre polynomials phi_k up to a total degree, fitted by maximum likelihood to
the masses of the selected events, so that no density of the generated points has to be known. The
likelihood is concave, Newton's method finds its maximum. Simulated events come in blocks of one
mass point each: a polynomial of few terms smooths over blocks.

References:
    Exponential families of log-densities: C. J. Stone, Ann. Statist. 18 (1990) 717.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError, StoreError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.polynomial import legendre
from massrecon.inference.statistics import SAME_MASS
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.provenance import read_json, write_json

DEGREE = 4
"""Total degree of the polynomials."""

METADATA = "training_prior"
"""Entry of a model's metadata that holds its training prior."""

_NEWTON_STEPS = 60
_CONVERGED = 1e-9
_RIDGE = 1e-9
_FORMAT = "massrecon-training-prior-1"
_NODES = {1: 1024, 2: 160, 3: 40}  # of the quadrature, for each of so many masses
_PANEL = 4  # nodes of one Gauss-Legendre panel


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingPrior:
    """A density of the masses of selected events.

    Attributes:
        names: Names of the M masses that vary.
        region: Where they may lie.
        degrees: Degree of each polynomial in each mass, shape ``(K, M)``; K = 0 is a flat density.
        coefficients: Their coefficients, shape ``(K,)``.
        log_norm: Log of the normalisation [GeV^M].
        efficiency: Selected share of all generated events, where it is known.
        n_events: Number of events that it was fitted to.
    """

    names: tuple[str, ...]
    region: MassRegion
    degrees: Tensor
    coefficients: Tensor
    log_norm: float
    efficiency: float | None = None
    n_events: int = 0

    @classmethod
    def from_events(cls, events: Events, degree: int = DEGREE) -> TrainingPrior:
        """Fits the density to the true masses of selected events, with their weights.

        Args:
            events: Training events.
            degree: Total degree of the polynomials; in a mass on a grid it stays below the number
                of grid values.

        Raises:
            InputError: If the events carry no true masses, or none of their masses varies.
        """
        names, masses = varying_masses(events)
        weight = events.weight.double().cpu()
        region = region_of(events.card, _bounds(events, names, masses))
        return cls.fitted(names, region, masses, weight, degree, _efficiency(events))

    @classmethod
    def fitted(
        cls,
        names: Sequence[str],
        region: MassRegion,
        masses: Tensor,
        weight: Tensor | None = None,
        degree: int = DEGREE,
        efficiency: float | None = None,
    ) -> TrainingPrior:
        """Fits the density to masses ``(N, M)`` [GeV] inside a region.

        Raises:
            InputError: If `degree` is negative or there are no masses.
        """
        if degree < 0 or len(masses) == 0:
            raise InputError(
                f"A density needs at least one mass point and 'degree' >= 0, got {len(masses)} and "
                f"{degree}."
            )
        weight = masses.new_ones(len(masses)) if weight is None else weight
        degrees = _degrees([min(degree, len(column.unique()) - 1) for column in masses.T], degree)
        nodes, volume = quadrature(region)
        basis, target = _basis(nodes, degrees, region), _basis(masses.double(), degrees, region)
        mean = (target * weight[:, None]).sum(0) / weight.sum()
        coefficients, log_norm = _maximise(basis, volume, mean)
        return cls(
            names=tuple(names),
            region=region,
            degrees=degrees,
            coefficients=coefficients,
            log_norm=log_norm,
            efficiency=efficiency,
            n_events=len(masses),
        )

    @classmethod
    def flat(cls, names: Sequence[str], region: MassRegion) -> TrainingPrior:
        """Returns the density that is the same everywhere in a region."""
        _, volume = quadrature(region)
        return cls(
            names=tuple(names),
            region=region,
            degrees=torch.zeros(0, len(names), dtype=torch.int64),
            coefficients=torch.zeros(0, dtype=torch.float64),
            log_norm=float(volume.sum().log()),
        )

    def log_density(self, masses: Tensor) -> Tensor:
        """Computes log pi [1 / GeV^M] of masses ``(..., M)``, ``(...)``; -inf outside."""
        basis = _basis(masses.double(), self.degrees, self.region)
        found = basis @ self.coefficients.to(masses.device) - self.log_norm
        return torch.where(self.region.contains(masses.double()), found, -torch.inf)

    def acceptance(self, masses: Tensor) -> Tensor:
        """Computes the acceptance at masses ``(..., M)``, if points were generated uniformly.

        Raises:
            InputError: If the events did not say how many had been generated.
        """
        if self.efficiency is None:
            raise InputError("The events of this prior did not record how many were generated.")
        flat = TrainingPrior.flat(self.names, self.region)
        return self.efficiency * (self.log_density(masses) + flat.log_norm).exp()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `from_dict` reads back."""
        return {
            "format": _FORMAT,
            "names": list(self.names),
            "low": list(self.region.low),
            "high": list(self.region.high),
            "gaps": [[list(row), minimum] for row, minimum in self.region.gaps],
            "degrees": self.degrees.tolist(),
            "coefficients": self.coefficients.tolist(),
            "log_norm": self.log_norm,
            "efficiency": self.efficiency,
            "n_events": self.n_events,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainingPrior:
        """Rebuilds a prior from plain data.

        Raises:
            StoreError: If it is not that of a prior.
        """
        if content.get("format") != _FORMAT:
            raise StoreError(f"This is no training prior: its format is {content.get('format')!r}.")
        try:
            names = tuple(content["names"])
            gaps = tuple((tuple(row), minimum) for row, minimum in content["gaps"])
            region = MassRegion(tuple(content["low"]), tuple(content["high"]), gaps)
            degrees = torch.tensor(content["degrees"], dtype=torch.int64).reshape(-1, len(names))
            return cls(
                names=names,
                region=region,
                degrees=degrees,
                coefficients=torch.tensor(content["coefficients"], dtype=torch.float64),
                log_norm=float(content["log_norm"]),
                efficiency=content["efficiency"],
                n_events=int(content["n_events"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"This training prior is damaged: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Writes the prior to a JSON file, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TrainingPrior:
        """Reads a prior that `save` wrote.

        Raises:
            StoreError: If the file is missing, foreign or damaged.
        """
        return cls.from_dict(read_json(path, "a training prior"))


def recorded_prior(events: Events) -> dict[str, Any]:
    """Returns the entry of the prior for a model's metadata; nothing if no mass varies."""
    try:
        return {METADATA: TrainingPrior.from_events(events).to_dict()}
    except InputError:
        return {}


def varying_masses(events: Events) -> tuple[tuple[str, ...], Tensor]:
    """Returns the names of the masses that vary among events, and their values ``(N, M)`` [GeV].

    Raises:
        InputError: If the events carry no true masses, or none varies.
    """
    if events.masses is None or len(events) == 0:
        raise InputError("A training prior needs events with true masses: use simulated events.")
    masses = events.masses.double().cpu()
    spread = masses.amax(0) - masses.amin(0)
    free = [i for i, width in enumerate(spread.tolist()) if width > SAME_MASS]
    if not free:
        raise InputError("All events have the same masses: simulate a range of masses.")
    return tuple(events.card.mass_names[i] for i in free), masses[:, free]


def region_of(card: ProcessCard, bounds: Mapping[str, tuple[float, float]]) -> MassRegion:
    """Returns where the masses of a card may lie.

    Args:
        card: The process, which says which decays have to be open.
        bounds: Lowest and highest value of each mass [GeV] by name; those of a mass that does not
            vary are equal, and it is not part of the region.
    """
    free = [name for name, (low, high) in bounds.items() if high > low]
    gaps = []
    for channel in card.open_channels:
        row, minimum = [0.0] * len(free), channel.minimum_gap
        for name, sign in [(channel.parent, 1.0), *((d, -1.0) for d in channel.daughters)]:
            if name in free:
                row[free.index(name)] += sign
            elif name in bounds:
                minimum -= sign * bounds[name][0]
        if any(row):
            gaps.append((tuple(row), minimum))
    low, high = zip(*(bounds[name] for name in free), strict=True)
    return MassRegion(low, high, tuple(gaps))


def quadrature(region: MassRegion) -> tuple[Tensor, Tensor]:
    """Returns nodes ``(Q, M)`` [GeV] and weights ``(Q,)`` for integrals over a region.

    Gauss-Legendre panels in one mass after the other, between its ends given the earlier ones.
    """
    n_masses = len(region.low)
    panels = max(_NODES.get(n_masses, 16) // _PANEL, 2)
    x, w = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(_PANEL))
    share = ((torch.arange(panels)[:, None] + (x + 1) / 2) / panels).flatten()
    weight = (w / 2 / panels).repeat(panels)
    nodes, volume = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for k in range(n_masses):
        low, high = _ends(region, nodes, k)
        here = low[:, None] + (high - low)[:, None] * share
        volume = (volume[:, None] * (high - low)[:, None] * weight).flatten()
        nodes = torch.cat([nodes.repeat_interleave(len(share), 0), here.reshape(-1, 1)], dim=1)
    return nodes[volume > 0], volume[volume > 0]


def _ends(region: MassRegion, earlier: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ends of mass `k` given the earlier ones ``(n, k)``, each ``(n,)``."""
    low = earlier.new_full((len(earlier),), region.low[k])
    high = earlier.new_full((len(earlier),), region.high[k])
    for row, minimum in region.gaps:
        if row[k] == 0 or any(row[k + 1 :]):
            continue
        bound = (minimum - earlier @ earlier.new_tensor(row[:k])) / row[k]
        if row[k] > 0:
            low = torch.maximum(low, bound)
        else:
            high = torch.minimum(high, bound)
    return low, torch.maximum(low, high)


def _bounds(events: Events, names: Sequence[str], masses: Tensor) -> dict[str, tuple[float, float]]:
    """Returns the ends of each mass: of the range that was asked for, or the outermost values."""
    asked = events.provenance.get("masses", {})
    bounds = {}
    for i, name in enumerate(events.card.mass_names):
        if name not in names:
            assert events.masses is not None
            bounds[name] = (float(events.masses[0, i]),) * 2
            continue
        column = masses[:, names.index(name)]
        bounds[name] = (float(column.min()), float(column.max()))
        low, colon, high = str(asked.get(name, "")).partition(":")
        if colon:
            bounds[name] = (min(float(low), bounds[name][0]), max(float(high), bounds[name][1]))
    return bounds


def _efficiency(events: Events) -> float | None:
    generated = events.provenance.get("n_generated")
    selected = events.provenance.get("n_selected")
    return selected / generated if generated and selected else None


def _degrees(most: Sequence[int], total: int) -> Tensor:
    """Lists the degrees of the polynomials, all but the constant, shape ``(K, M)``."""
    every = itertools.product(*(range(m + 1) for m in most))
    found = [degrees for degrees in every if 0 < sum(degrees) <= total]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, len(most))


def _basis(masses: Tensor, degrees: Tensor, region: MassRegion) -> Tensor:
    """Computes the polynomials at masses ``(..., M)``, shape ``(..., K)``."""
    low, high = masses.new_tensor(region.low), masses.new_tensor(region.high)
    x = 2 * (masses - low) / (high - low) - 1
    polynomials = legendre(x, int(degrees.max()) if len(degrees) else 0)  # (..., M, D)
    columns = [polynomials[..., i, degrees[:, i].to(x.device)] for i in range(x.shape[-1])]
    return torch.stack(columns).prod(0)


def _maximise(basis: Tensor, volume: Tensor, mean: Tensor) -> tuple[Tensor, float]:
    """Finds the coefficients whose density has the mean polynomials `mean`, by Newton's method."""
    theta = torch.zeros_like(mean)
    value, log_norm = _objective(theta, basis, volume, mean)
    for _ in range(_NEWTON_STEPS if len(theta) else 0):
        density = volume * (basis @ theta - log_norm).exp()
        expected = density @ basis
        centred = basis - expected
        hessian = centred.T @ (density[:, None] * centred)
        hessian = hessian + _RIDGE * torch.eye(len(theta)).to(hessian)
        gradient = mean - expected
        step = torch.linalg.solve(hessian, gradient)
        scale, slope = 1.0, float(gradient @ step)
        while scale > 1e-6:
            trial, norm = _objective(theta + scale * step, basis, volume, mean)
            if trial >= value + 1e-4 * scale * slope:
                break
            scale /= 2
        theta, value, log_norm = theta + scale * step, trial, norm
        if slope < _CONVERGED:
            break
    return theta, float(log_norm)


def _objective(theta: Tensor, basis: Tensor, volume: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    log_norm = torch.logsumexp(basis @ theta + volume.log(), 0)
    return theta @ mean - log_norm, log_norm
