"""Which masses of a decay are unknown, which are known, and which resonances measure them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, unknown_name
from massrecon.kinematics.legs import Chain, DecayLegs
from massrecon.kinematics.topology import Node, TopologyError

_LEAST_PT = 1e-3  # [GeV]; a table may begin at 0, which has no log


@dataclass(frozen=True)
class MassScheme:
    """Unknown and known masses of the resonances of a decay; make it with `MassScheme.of`.

    Attributes:
        legs: The decay and the roles of its legs.
        names: Names of the M unknown masses.
        parameter: For each node the position of its unknown mass, or None.
        known: For each node its known mass [GeV], or None.
    """

    legs: DecayLegs
    names: tuple[str, ...]
    parameter: tuple[int | None, ...]
    known: tuple[float | None, ...]

    @classmethod
    def of(
        cls,
        legs: DecayLegs,
        masses: Mapping[str, Sequence[str]],
        known: Mapping[str, float] | None = None,
    ) -> MassScheme:
        """Gives the resonances their masses.

        Args:
            legs: The decay and the roles of its legs.
            masses: For each unknown mass the names or labels of the resonances that have it.
            known: Known masses [GeV] by name or label; an invisible leg without one is massless.
                A resonance that is in neither adds no information.

        Raises:
            TopologyError: If a name is not in the decay, a resonance is given twice, or an unknown
                mass cannot be computed from what is seen.
        """
        known = known or {}
        topology = legs.topology
        names = {name for node in topology.nodes for name in (node.name, node.label)}
        for name in [*known, *(name for group in masses.values() for name in group)]:
            if name not in names:
                raise TopologyError(f"'{name}' is not in '{topology.text}'.")
        if not masses:
            raise InputError("'masses' is empty: name at least one unknown mass.")
        parameter = tuple(_parameter_of(node, masses) for node in topology.nodes)
        values = tuple(known.get(n.label, known.get(n.name)) for n in topology.nodes)
        scheme = cls(legs, tuple(masses), parameter, values)
        scheme._check()
        return scheme

    @cached_property
    def solved(self) -> tuple[Node, ...]:
        """The invisible legs that follow from their share of `ptmiss` and the mass of their mother.

        The mother has a mass, known or unknown, and only this leg of it goes unseen.
        """
        return tuple(leg for leg in self.legs.invisible if self._is_solved(leg))

    def _is_solved(self, leg: Node) -> bool:
        if leg.parent is None:
            return False
        below = self.legs.legs_below(self.mother(leg))
        alone = [other for other in below if other in self.legs.invisible] == [leg]
        return alone and len(below) > 1 and self.has_mass(self.mother(leg))

    def mother(self, leg: Node) -> Node:
        """Returns the particle that a leg comes from."""
        return self.legs.topology.nodes[cast(int, leg.parent)]

    def has_mass(self, node: Node) -> bool:
        """Whether a particle has a known or an unknown mass."""
        return self.parameter[node.index] is not None or self.known[node.index] is not None

    @cached_property
    def tried(self) -> tuple[int, ...]:
        """The unknown masses of which trial values are taken, to solve for invisible legs."""
        found = {self.parameter[self.mother(leg).index] for leg in self.solved}
        return tuple(sorted(p for p in found if p is not None))

    def solved_in(self, chain: Chain) -> tuple[Node, ...]:
        """Returns the solved invisible legs of a chain."""
        return tuple(leg for leg in self.solved if leg in chain.invisible)

    def contains(self, node: Node, leg: Node) -> bool:
        """Whether a leg descends from a resonance."""
        return leg in self.legs.legs_below(node)

    def is_measured(self, node: Node) -> bool:
        """Whether the four-momentum of a resonance follows from what is seen and solved."""
        hidden = [leg for leg in self.legs.legs_below(node) if leg in self.legs.invisible]
        return all(leg in self.solved for leg in hidden)

    def measured(self, chain: Chain) -> tuple[Node, ...]:
        """The resonances of a chain that say something about a mass, depth first.

        The mothers of solved legs are not among them: their masses are put in.
        """
        mothers = [self.mother(leg) for leg in self.solved]
        return tuple(
            node
            for node in chain.resonances
            if self.is_measured(node) and node not in mothers and self.has_mass(node)
        )

    def _check(self) -> None:
        nodes = self.legs.topology.nodes
        for node in nodes:
            if self.parameter[node.index] is not None and self.known[node.index] is not None:
                raise TopologyError(f"The mass of '{node.label}' is both known and unknown.")
        for i, name in enumerate(self.names):
            having = [n for n in nodes if self.parameter[n.index] == i]
            if not any(node.children and self.is_measured(node) for node in having):
                lost = ", ".join(leg.label for leg in self.legs.invisible) or "no leg"
                raise TopologyError(
                    f"The mass '{name}' cannot be computed in '{self.legs.topology.text}': "
                    f"{lost} goes unseen. An invisible leg is solved if it is the only one of its "
                    "mother and the mother has a mass; its own mass is put in as a number, with "
                    f"'known' here or in the 'masses' of a card, such as {{'{name}': 100.0}}."
                )


def _parameter_of(node: Node, masses: Mapping[str, Sequence[str]]) -> int | None:
    found = [i for i, group in enumerate(masses.values()) if {node.name, node.label} & set(group)]
    if len(found) > 1:
        raise TopologyError(f"'{node.label}' is given two masses in 'masses'.")
    return found[0] if found else None


@dataclass(frozen=True)
class ResponseTable:
    """Resolution of each kind of object and of `ptmiss`, as tables to interpolate.

    Attributes:
        objects: For each kind transverse momenta [GeV], ascending, and relative resolutions there.
        ptmiss: Scalar sums of all transverse momenta [GeV], ascending, and resolutions of each
            component of `ptmiss` there [GeV].
    """

    objects: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    ptmiss: tuple[Sequence[float], Sequence[float]]

    def __post_init__(self) -> None:
        for name, (at, values) in [*self.objects.items(), ("ptmiss", self.ptmiss)]:
            rising = all(a < b for a, b in itertools.pairwise(at))
            positive = all(value > 0 for value in values)
            if len(at) != len(values) or not len(at) or not rising or not positive:
                raise InputError(
                    f"The response of '{name}' should be two lists of one length, the first one "
                    "ascending and the second one positive."
                )

    def relative(self, kind: str, pt: Tensor) -> Tensor:
        """Interpolates the relative resolution in log(pT), constant beyond the ends.

        A pT below 1 MeV counts as that.

        Raises:
            InputError: If the table does not have this kind.
        """
        if kind not in self.objects:
            raise unknown_name("kind in the response table", kind, self.objects)
        at, values = self.objects[kind]
        positions = torch.as_tensor(at, dtype=pt.dtype, device=pt.device)
        x, positions = (t.clamp_min(_LEAST_PT).log() for t in (pt, positions))
        return _interpolate(x, positions, values)

    def ptmiss_width(self, sum_pt: Tensor) -> Tensor:
        """Interpolates the resolution of each component of `ptmiss` [GeV]."""
        at, values = self.ptmiss
        return _interpolate(
            sum_pt, torch.as_tensor(at, dtype=sum_pt.dtype, device=sum_pt.device), values
        )


def _interpolate(x: Tensor, at: Tensor, values: Sequence[float]) -> Tensor:
    y = torch.as_tensor(values, dtype=x.dtype, device=x.device)
    if len(y) == 1:
        return y[0].expand_as(x)
    above = torch.searchsorted(at, x.contiguous()).clamp(1, len(y) - 1)
    share = ((x - at[above - 1]) / (at[above] - at[above - 1])).clamp(0, 1)
    return y[above - 1].lerp(y[above], share)


@dataclass(frozen=True)
class MassRegion:
    """Where the masses may lie: an interval each, and gaps between them.

    The prior is flat inside and zero outside.

    Attributes:
        low: Lowest masses [GeV], one for each.
        high: Highest masses [GeV].
        gaps: Linear conditions: coefficients of the masses, and the smallest value of their sum
            [GeV]; ``((1, -1), 126)`` says m_1 - m_2 >= 126.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    gaps: tuple[tuple[tuple[float, ...], float], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.low)
        if len(self.high) != n or any(len(row) != n for row, _ in self.gaps):
            raise ShapeError("'low', 'high' and each gap should have one number for each mass.")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise InputError(f"'low' {self.low} should lie below 'high' {self.high}.")

    @property
    def middle(self) -> tuple[float, ...]:
        """The middle of each interval [GeV]."""
        return tuple((a + b) / 2 for a, b in zip(self.low, self.high, strict=True))

    @property
    def rows(self) -> list[tuple[tuple[float, ...], float, float]]:
        """The same as conditions low <= row . masses <= high."""
        n = len(self.low)
        bounds = zip(self.low, self.high, strict=True)
        boxes = [(tuple(float(i == j) for j in range(n)), *b) for i, b in enumerate(bounds)]
        return boxes + [(tuple(row), minimum, math.inf) for row, minimum in self.gaps]

    def check_size(self, n_masses: int) -> None:
        """Refuses a region of another number of masses.

        Raises:
            ShapeError: If it does not have `n_masses`.
        """
        if len(self.low) != n_masses:
            raise ShapeError(f"The region has {len(self.low)} masses, but {n_masses} are unknown.")

    def contains(self, masses: Tensor) -> Tensor:
        """Says which points ``(..., M)`` lie inside, shape ``(...)``."""
        inside = (masses >= masses.new_tensor(self.low)).all(-1)
        inside = inside & (masses <= masses.new_tensor(self.high)).all(-1)
        for row, minimum in self.gaps:
            inside = inside & ((masses * masses.new_tensor(row)).sum(-1) >= minimum)
        return inside

    def interval(self, masses: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Returns where mass `at` may lie if the others of ``(n, M)`` stay, each ``(n,)``."""
        low = masses.new_full((len(masses),), self.low[at])
        high = masses.new_full((len(masses),), self.high[at])
        for row, minimum in self.gaps:
            if row[at] == 0:
                continue
            others = masses @ masses.new_tensor(row) - row[at] * masses[:, at]
            bound = (minimum - others) / row[at]
            low, high = (
                (torch.maximum(low, bound), high)
                if row[at] > 0
                else (low, torch.minimum(high, bound))
            )
        return low, torch.maximum(low, high)

    def inner_point(self) -> Tensor:
        """Returns a point inside the region, the mean of random ones, shape ``(M,)``.

        Raises:
            InputError: If no point is found: the gaps leave nothing of the box.
        """
        generator = torch.Generator().manual_seed(0)
        box = torch.rand(20_000, len(self.low), generator=generator, dtype=torch.float64)
        low, high = torch.tensor(self.low).double(), torch.tensor(self.high).double()
        points = low + box * (high - low)
        points = points[self.contains(points)]
        if not len(points):
            raise InputError("The gaps leave no mass point between 'low' and 'high'.")
        return points.mean(0)
