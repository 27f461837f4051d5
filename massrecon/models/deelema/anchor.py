"""The anchor: global masses from the solvability edge of the same unlabelled events.

An event cannot be solved with global masses below its M2 (with both equalities, M2CC; for a single
step, MT2). The smallest M2 of all ways to take the visible particles as legs includes the true way,
so that without resolution and width it never exceeds the true mass, whatever the share of wrong
pairings; its edge is the true mass. M2CC ends in a step there; the density of MT2 falls to zero, so
that its edge comes out about a per cent low. Each species has the subsystem that begins with its
own decay and ends with the invisible particle.

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
from massrecon.kinematics.legs import Subsystem, subsystems
from massrecon.kinematics.topology import TopologyError
from massrecon.kinematics.transverse import mt2
from massrecon.models.deelema.config import Table
from massrecon.models.deelema.edge import EdgeFit, bootstrap_edge, fit_edge
from massrecon.models.deelema.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The measured edge of one species.

    Attributes:
        species: The species.
        fit: The fitted edge.
        replicas: Edges of bootstrap samples [GeV], shape ``(R,)``.
    """

    species: str
    fit: EdgeFit
    replicas: Tensor

    @property
    def value(self) -> float:
        """The edge [GeV]."""
        return self.fit.value

    @property
    def error(self) -> float:
        """Half the central 68.3 % range of the replicas [GeV]."""
        low, high = self.interval()
        return 0.5 * (high - low)

    def interval(self, level: float = 0.6827) -> tuple[float, float]:
        """Returns the confidence interval [GeV]: the replicas mirrored at the edge."""
        tails = torch.tensor([0.5 * (1 + level), 0.5 * (1 - level)], dtype=torch.float64)
        high, low = (2 * self.value - self.replicas.quantile(tails)).tolist()[::-1]
        return low, high


@dataclass(frozen=True)
class _Step:
    """A species with its subsystem, and the one-step tail of longer chains."""

    species: str
    sides: Subsystem
    lower: tuple[tuple[str, ...], tuple[str, ...]] | None
    name: str


def anchored_species(structure: Structure) -> tuple[_Step, ...]:
    """Finds the species with a solvability edge: two equal chains of one or two steps.

    Raises:
        TopologyError: If the decay does not have this form.
    """
    if structure.exchange is None or len(structure.legs.chains) != 2:
        raise _no_edge(structure, "it has not two equal chains")
    try:
        found = subsystems(structure.legs)
    except TopologyError as error:
        raise _no_edge(structure, str(error)) from error
    longest = max(found, key=len)
    if len(longest) > 2:
        raise _no_edge(structure, f"its chains have {len(longest)} steps, more than two")
    if len(longest) == 1:
        return (_step(structure, found["a"], None, "a"),)
    lower = tuple(side.visible for side in found["b"].sides)
    return tuple(_step(structure, found[name], lower, name) for name in ("b", "ab"))


def _step(
    structure: Structure, part: Subsystem, lower: tuple[tuple[str, ...], ...] | None, name: str
) -> _Step:
    node = structure.legs.topology.node(part.sides[0].parent)
    pair = None if lower is None else (lower[0], lower[1])
    return _Step(structure.species(node), part, pair, name)


def _no_edge(structure: Structure, why: str) -> TopologyError:
    return TopologyError(
        f"'{structure.legs.topology.text}' has no solvability edge here ({why}): set 'anchor' to "
        '"none".'
    )


def smallest_masses(
    structure: Structure,
    visible: Tensor,
    ptmiss: Tensor,
    m_invisible: float,
    resolution: Mapping[str, Table],
    permutations: Tensor | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Computes the smallest solvable mass of each species for each event.

    Args:
        structure: The decay.
        visible: Visible momenta (px, py, pz, E) [GeV], shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        m_invisible: Trial mass [GeV].
        resolution: Relative momentum resolutions by name of the visible particle.
        permutations: Ways to take the particles as legs; None for all.

    Returns:
        For each species values and resolutions [GeV], each ``(N,)``; infinite where no way has a
        solution.
    """
    ways = structure.permutations if permutations is None else permutations
    spread = _resolutions(structure, visible, resolution)
    found = {}
    for step in anchored_species(structure):
        parts = [_one_way(structure, step, visible, ptmiss, m_invisible, spread, w) for w in ways]
        values = torch.stack([value for value, _ in parts])
        errors = torch.stack([error for _, error in parts])
        values = torch.where(values.isfinite(), values, math.inf)
        best = values.argmin(0, keepdim=True)
        found[step.species] = (values.gather(0, best)[0], errors.gather(0, best)[0])
    return found


def _one_way(
    structure: Structure,
    step: _Step,
    visible: Tensor,
    ptmiss: Tensor,
    m_invisible: float,
    spread: Tensor | None,
    way: Tensor,
) -> tuple[Tensor, Tensor]:
    """Computes values and resolutions of one way, each ``(N,)``."""
    if spread is None:
        value = _variable(structure, step, visible, ptmiss, m_invisible, way)
        return value, torch.zeros_like(value)
    factors = torch.zeros_like(visible[..., 0], requires_grad=True)
    change = visible * factors.unsqueeze(-1)
    value = _variable(
        structure, step, visible + change, ptmiss - change[..., :2].sum(1), m_invisible, way
    )
    (slope,) = torch.autograd.grad(value[value.isfinite()].sum(), factors)
    return value.detach(), (slope * spread).square().sum(1).sqrt()


def _variable(
    structure: Structure,
    step: _Step,
    visible: Tensor,
    ptmiss: Tensor,
    m_invisible: float,
    way: Tensor,
) -> Tensor:
    """Computes M2CC, or MT2 of a single step, shape ``(N,)``."""
    labels = [leg.label for leg in structure.legs.visible]
    taken = visible[:, way]

    def total(names: tuple[str, ...]) -> Tensor:
        return taken[:, [labels.index(name) for name in names]].sum(1)

    with warnings.catch_warnings():
        # a wrong way often has no solution, which is what is asked here
        warnings.simplefilter("ignore", RuntimeWarning)
        if step.lower is None:
            one, other = (total(side.visible) for side in step.sides.sides)
            return mt2(one, other, ptmiss, m_invisible)
        below = [total(names) for names in step.lower]
        roots = [chain.visible for chain in structure.legs.chains]
        upper = [
            total(tuple(leg.label for leg in legs)) - low
            for legs, low in zip(roots, below, strict=True)
        ]
        name = "b" if step.name == "b" else "ab"
        return m2_cc(upper[0], below[0], upper[1], below[1], ptmiss, m_invisible, name).value


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
    m_invisible: float,
    resolution: Mapping[str, Table] | None = None,
    n_bootstrap: int = 100,
    seed: int = 0,
) -> dict[str, Edge]:
    """Measures the solvability edge of each species, with bootstrap replicas.

    Args:
        structure: The decay.
        visible: Visible momenta [GeV], shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        m_invisible: Trial mass [GeV].
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
    edges = {}
    for species, (values, errors) in found.items():
        fit = fit_edge(values, errors)
        replicas = bootstrap_edge(fit, values, errors, n_bootstrap, seed)
        edges[species] = Edge(species=species, fit=fit, replicas=replicas)
    return edges
