"""The anchor: global masses from the solvability edge of the same unlabelled events.

An event cannot be solved with global masses below its M2. A species is bounded if it occurs once
above each of two invisible legs, however long and however different the two sides are: by M2CC if a
second species above or below it does so too, else by MT2. Other species are left to the loss.

The smallest M2 of all ways to take the visible particles as legs includes the true way, so that
without resolution and width it never exceeds the true mass, whatever the share of wrong pairings;
its edge is the true mass. M2CC ends in a step there; the density of MT2 falls to zero, so that its
edge comes out about a per cent low: see `calibration`, also for resolution and width.

The resolution of each value is propagated through the exact derivative of M2 by the momenta of the
visible particles, which ptmiss balances.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics.constrained import m2_cc
from massrecon.kinematics.topology import TopologyError
from massrecon.kinematics.transverse import mt2
from massrecon.models.deelema.config import Table
from massrecon.models.deelema.edge import EdgeFit, bootstrap_edge, fit_edge
from massrecon.models.deelema.structure import Structure, Target


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The measured edge of one species.

    Attributes:
        species: The species.
        fit: The fitted edge.
        replicas: Edges of bootstrap samples [GeV], shape ``(R,)``.
        shift: What a calibration added to the fitted edge [GeV].
    """

    species: str
    fit: EdgeFit
    replicas: Tensor
    shift: float = 0.0

    @property
    def value(self) -> float:
        """The edge, as calibrated [GeV]."""
        return self.fit.value + self.shift

    @property
    def error(self) -> float:
        """Half the central 68.3 % range of the replicas [GeV]."""
        low, high = self.interval()
        return 0.5 * (high - low)

    def interval(self, level: float = 0.6827) -> tuple[float, float]:
        """Returns the confidence interval [GeV]: the replicas mirrored at the edge."""
        tails = torch.tensor([0.5 * (1 + level), 0.5 * (1 - level)], dtype=torch.float64)
        low, high = (2 * self.value - self.replicas.quantile(tails)).tolist()
        return low, high


@dataclass(frozen=True)
class _Bound:
    """How a species is bounded: legs by position, for each of its two particles.

    Attributes:
        species: The species.
        visible: Its visible legs.
        hidden: Its invisible leg.
        relative: Visible legs of the particles whose masses are equal too; None if there are none.
    """

    species: str
    visible: tuple[tuple[int, ...], tuple[int, ...]]
    hidden: tuple[int, int]
    relative: tuple[tuple[int, ...], tuple[int, ...]] | None


def bounds_of(structure: Structure) -> tuple[_Bound, ...]:
    """Finds the species with a solvability edge.

    These are the ones with two particles in an event, of which each decays to one of two invisible
    legs. The two sides need not be alike beyond that.

    Raises:
        TopologyError: If there is none.
    """
    if len(structure.legs.invisible) != 2:
        n = len(structure.legs.invisible)
        raise _no_edge(structure, f"it has {n} invisible legs, not two")
    pairs = _pairs(structure)
    if not pairs:
        raise _no_edge(structure, "no particle occurs once on either side")
    found = []
    for name, (one, other) in pairs.items():
        relatives = [_relative((one, other), pair) for key, pair in pairs.items() if key != name]
        # the deepest one comes first, as in `groups`
        best = next((r for r in relatives if r is not None), None)
        hidden = (one.invisible[0], other.invisible[0])
        found.append(_Bound(name, (one.visible, other.visible), hidden, best))
    return tuple(found)


def _pairs(structure: Structure) -> dict[str, tuple[Target, Target]]:
    """Finds pairs of equal particles, one above each invisible leg, by species."""
    found = {}
    for name in structure.groups:
        same = [t for t in structure.targets if t.species == name]
        sides = sorted(t.invisible for t in same)
        if sides == [(0,), (1,)] and all(t.visible for t in same):
            one, other = sorted(same, key=lambda t: t.invisible)
            found[name] = one, other
    return found


def _relative(
    pair: tuple[Target, Target], other: tuple[Target, Target]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the visible legs of another pair, if both decay to or come from this one."""
    here, there = ([set(t.visible) for t in targets] for targets in (pair, other))
    below = all(b < a for a, b in zip(here, there, strict=True))
    above = all(a < b for a, b in zip(here, there, strict=True))
    return (other[0].visible, other[1].visible) if below or above else None


def _no_edge(structure: Structure, why: str) -> TopologyError:
    return TopologyError(
        f"'{structure.legs.topology.text}' has no solvability edge here ({why}): set 'anchor' to "
        '"none".'
    )


def smallest_masses(
    structure: Structure,
    visible: Tensor,
    ptmiss: Tensor,
    m_invisible: float | Mapping[str, float],
    resolution: Mapping[str, Table],
    permutations: Tensor | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Computes the smallest solvable mass of each species for each event.

    Args:
        structure: The decay.
        visible: Visible momenta (px, py, pz, E) [GeV], shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        m_invisible: Trial mass [GeV], for all or by species.
        resolution: Relative momentum resolutions by name of the visible particle.
        permutations: Ways to take the particles as legs; None for all.

    Returns:
        For each species values and resolutions [GeV], each ``(N,)``; infinite where no way has a
        solution.
    """
    ways = structure.permutations if permutations is None else permutations
    trials = _trials(structure, m_invisible)
    spread = _resolutions(structure, visible, resolution)
    found = {}
    for bound in bounds_of(structure):
        parts = [_one_way(bound, visible, ptmiss, trials, spread, way) for way in ways]
        values = torch.stack([value for value, _ in parts])
        errors = torch.stack([error for _, error in parts])
        values = torch.where(values.isfinite(), values, math.inf)
        best = values.argmin(0, keepdim=True)
        found[bound.species] = (values.gather(0, best)[0], errors.gather(0, best)[0])
    return found


def _trials(structure: Structure, m_invisible: float | Mapping[str, float]) -> tuple[float, ...]:
    """Returns the trial mass of each invisible leg [GeV]."""
    names = structure.invisible_species
    if isinstance(m_invisible, Mapping):
        return tuple(float(m_invisible[name]) for name in names)
    return tuple(float(m_invisible) for _ in names)


def _one_way(
    bound: _Bound,
    visible: Tensor,
    ptmiss: Tensor,
    trials: tuple[float, ...],
    spread: Tensor | None,
    way: Tensor,
) -> tuple[Tensor, Tensor]:
    """Computes values and resolutions of one way, each ``(N,)``."""
    if spread is None:
        value = _variable(bound, visible[:, way], ptmiss, trials)
        return value, torch.zeros_like(value)
    factors = torch.zeros_like(visible[..., 0], requires_grad=True)
    change = visible * factors.unsqueeze(-1)
    value = _variable(bound, (visible + change)[:, way], ptmiss - change[..., :2].sum(1), trials)
    (slope,) = torch.autograd.grad(value[value.isfinite()].sum(), factors)
    return value.detach(), (slope * spread).square().sum(1).sqrt()


def _variable(bound: _Bound, legs: Tensor, ptmiss: Tensor, trials: tuple[float, ...]) -> Tensor:
    """Computes M2CC, or MT2 without a relative, of legs ``(N, L, 4)``, shape ``(N,)``."""
    one, other = (legs[:, list(rows)].sum(1) for rows in bound.visible)
    trial, trial_b = (trials[i] for i in bound.hidden)
    with warnings.catch_warnings():
        # a wrong way often has no solution, which is what is asked here
        warnings.simplefilter("ignore", RuntimeWarning)
        if bound.relative is None:
            return mt2(one, other, ptmiss, trial, trial_b)
        near, far = (legs[:, list(rows)].sum(1) for rows in bound.relative)
        if len(bound.relative[0]) < len(bound.visible[0]):
            return m2_cc(
                one - near, near, other - far, far, ptmiss, trial, "ab", m_invisible_b=trial_b
            ).value
        return m2_cc(
            near - one, one, far - other, other, ptmiss, trial, "b", m_invisible_b=trial_b
        ).value


def _resolutions(
    structure: Structure, visible: Tensor, tables: Mapping[str, Table]
) -> Tensor | None:
    """Looks up relative resolutions, shape ``(N, L)``; None if all are perfect."""
    names = [leg.name for leg in structure.legs.visible]
    for name in tables:
        if name not in names:
            raise InputError(
                f"'resolution' names '{name}': choose from {', '.join(dict.fromkeys(names))}."
            )
    if not tables:
        return None
    pt = torch.hypot(visible[..., 0], visible[..., 1]).clamp_min(1e-9).log().cpu().numpy()
    found = np.zeros(pt.shape)
    for column, name in enumerate(names):
        if name in tables:
            nodes, values = np.array(tables[name]).T
            found[:, column] = np.interp(pt[:, column], np.log(nodes), values)
    return torch.as_tensor(found).to(visible.device)


def measure_edges(
    structure: Structure,
    visible: Tensor,
    ptmiss: Tensor,
    m_invisible: float | Mapping[str, float],
    resolution: Mapping[str, Table] | None = None,
    n_bootstrap: int = 100,
    seed: int = 0,
) -> dict[str, Edge]:
    """Measures the solvability edge of each species, with bootstrap replicas.

    Args:
        structure: The decay.
        visible: Visible momenta [GeV], shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        m_invisible: Trial mass [GeV], for all or by species.
        resolution: Relative momentum resolutions by name of the visible particle.
        n_bootstrap: Number of replicas.
        seed: Seed of the replicas.

    Raises:
        TopologyError: If the decay has no edge of this kind.
        InputError: If too few events lie near the edge.
    """
    found = smallest_masses(
        structure, visible.double(), ptmiss.double(), m_invisible, resolution or {}
    )
    return {
        species: bootstrapped(species, fit_edge(*pair), *pair, n_bootstrap, seed)
        for species, pair in found.items()
    }


def bootstrapped(
    species: str, fit: EdgeFit, values: Tensor, errors: Tensor, n_bootstrap: int, seed: int
) -> Edge:
    """Adds replicas to a fitted edge."""
    replicas = bootstrap_edge(fit, values, errors, n_bootstrap, seed)
    return Edge(species=species, fit=fit, replicas=replicas)
