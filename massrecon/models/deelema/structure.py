"""What a decay topology says about missing momenta: unknowns, targets, on-shell relations, order.

Every invisible leg has a trial mass and three unknown momentum components; ptmiss removes two of
all. A *target* is a resonance whose mass depends on an unknown, that is with an invisible leg below
it. Resonances of one species share one global mass, and two of them in an event should agree: these
are the on-shell relations. A species is heavier than the sum of what it decays to.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from massrecon.kinematics.assignments import assign
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.topology import Node, TopologyError


@dataclass(frozen=True)
class Target:
    """A resonance whose mass is to be found.

    Attributes:
        label: Its label in the topology.
        species: Its species, which has one global mass.
        visible: Positions of its visible legs.
        invisible: Positions of its invisible legs.
    """

    label: str
    species: str
    visible: tuple[int, ...]
    invisible: tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """The problem that a decay with invisible legs poses.

    Attributes:
        legs: The decay with the role of each leg.
    """

    legs: DecayLegs

    def __post_init__(self) -> None:
        if not self.legs.invisible:
            raise TopologyError(
                f"'{self.legs.topology.text}' has no invisible leg: name some with 'invisible'."
            )
        if not self.targets:
            raise TopologyError(f"'{self.legs.topology.text}' has no decay with an invisible leg.")

    @property
    def n_unknown(self) -> int:
        """Number of unknown momentum components of an event."""
        return 3 * len(self.legs.invisible) - 2

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets, depth first."""
        seen = {node: i for i, node in enumerate(self.legs.visible)}
        unseen = {node: i for i, node in enumerate(self.legs.invisible)}
        found = []
        for node in self.legs.resonances:
            below = self.legs.legs_below(node)
            hidden = tuple(unseen[leg] for leg in below if leg in unseen)
            if hidden:
                visible = tuple(seen[leg] for leg in below if leg in seen)
                found.append(Target(node.label, self.species(node), visible, hidden))
        return tuple(found)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Species of the targets, each once, daughters before mothers."""
        order = [self.species(n) for n in reversed(self.legs.resonances)]
        wanted = {target.species for target in self.targets}
        return tuple(dict.fromkeys(name for name in order if name in wanted))

    @cached_property
    def group_of(self) -> tuple[int, ...]:
        """Position in `groups` of each target."""
        return tuple(self.groups.index(target.species) for target in self.targets)

    @cached_property
    def relations(self) -> tuple[tuple[int, int], ...]:
        """Pairs of targets that have the same mass."""
        pairs = itertools.combinations(range(len(self.targets)), 2)
        return tuple((i, j) for i, j in pairs if self.group_of[i] == self.group_of[j])

    @cached_property
    def invisible_species(self) -> tuple[str, ...]:
        """Species of each invisible leg."""
        return tuple(self.species(node) for node in self.legs.invisible)

    @cached_property
    def decays(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """For each of `groups`, the species it decays to: invisible ones and other groups."""
        heavy = {*self.groups, *self.invisible_species}
        found: dict[str, dict[tuple[str, ...], None]] = {name: {} for name in self.groups}
        for node in self.legs.resonances:
            name = self.species(node)
            if name in found:
                below = [self.species(self.legs.topology.nodes[i]) for i in node.children]
                found[name][tuple(sorted(s for s in below if s in heavy))] = None
        return tuple(tuple(found[name]) for name in self.groups)

    @cached_property
    def permutations(self) -> Tensor:
        """Ways to take the visible objects as legs, the given one first, shape ``(P, L)``.

        Objects of one kind are exchanged. Of ways that a symmetry of the decay turns into each
        other one is listed, that in which most legs, and first the deepest, keep their objects: so
        an invisible particle keeps its name with the visible one that was made along with it.
        """
        kinds = self.legs.leg_kinds
        order = sorted(range(len(kinds)), key=lambda i: list(dict.fromkeys(kinds)).index(kinds[i]))
        counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        rows = torch.tensor(order)[assign(self.legs, counts).index]
        same = self.legs.symmetries()
        given = torch.arange(len(kinds))
        kept = rows[:, same] == given
        depth = torch.tensor([self._depth(leg) for leg in self.legs.visible])
        # a deeper leg counts for more than all that are less deep
        worth = (kept * (len(kinds) + 1.0) ** depth).sum(-1)
        chosen = rows[:, same][torch.arange(len(rows)), worth.argmax(1)]
        is_given = kept.all(-1).any(-1)
        return torch.cat([given[None], chosen[~is_given]])

    @cached_property
    def exchange(self) -> tuple[Tensor, Tensor] | None:
        """Exchange of two equal sides: orders of visible and invisible legs; None without one."""
        if len(self.legs.chains) != 2:
            return None
        one, other = self.legs.chains
        signatures = [[self._role(n) for n in self._tree(c.root)] for c in (one, other)]
        if signatures[0] != signatures[1]:
            return None
        swapped = []
        for legs, parts in (
            (self.legs.visible, (other.visible, one.visible)),
            (self.legs.invisible, (other.invisible, one.invisible)),
        ):
            swapped.append(torch.tensor([legs.index(node) for part in parts for node in part]))
        return swapped[0], swapped[1]

    def species(self, node: Node) -> str:
        """Returns the species of a particle."""
        return self.legs.species[node.index]

    def _depth(self, node: Node) -> int:
        depth = 0
        while node.parent is not None:
            node, depth = self.legs.topology.nodes[node.parent], depth + 1
        return depth

    def _tree(self, node: Node) -> list[Node]:
        nodes = self.legs.topology.nodes
        return [node, *(n for child in node.children for n in self._tree(nodes[child]))]

    def _role(self, node: Node) -> tuple[str, str | None, int]:
        kind = self.legs.kinds[node.index]
        return (self.species(node) if kind is None else "", kind, len(node.children))
