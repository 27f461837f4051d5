"""Legs of a decay: who is seen as what, which exchanges change nothing, which parts are decays too.

A decay string says who decays to whom, not what is seen. `DecayLegs` adds it: each leg is invisible
or an object of a *kind* (``jet``, ``lepton``, …). A symmetry of the decay is an exchange of legs of
one kind and one mother, or of two equal branches, up to whole sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from massrecon.kinematics.topology import DecayTopology, Node, TopologyError

_Signature = tuple[object, ...]


@dataclass(frozen=True)
class Chain:
    """One produced particle with all that comes from it.

    Attributes:
        root: The produced particle.
        resonances: It and its descendants that decay, depth first.
        visible: The legs that are seen.
        invisible: The legs that are not.
    """

    root: Node
    resonances: tuple[Node, ...]
    visible: tuple[Node, ...]
    invisible: tuple[Node, ...]


@dataclass(frozen=True)
class DecayLegs:
    """A decay topology with the role of each leg; make it with `DecayLegs.of`.

    Attributes:
        topology: The decay tree.
        kinds: Kind of object of each node, None unless it is a visible leg.
        species: Name under which each node is compared with others.
    """

    topology: DecayTopology
    kinds: tuple[str | None, ...]
    species: tuple[str, ...]

    @classmethod
    def of(
        cls,
        topology: DecayTopology | str,
        invisible: Iterable[str] = (),
        kinds: Mapping[str, str] | None = None,
        like: Mapping[str, str] | None = None,
    ) -> DecayLegs:
        """Gives every leg its role.

        Args:
            topology: The decay tree or its string.
            invisible: Names or labels of the legs that leave no object.
            kinds: Kind of object by name or label; a visible leg that is not listed is a kind of
                its own, called by its name.
            like: Names by name for particles of equal mass, such as ``{"t~": "t"}``; branches are
                equal if they agree after this renaming.

        >>> legs = DecayLegs.of("p p > A A, (A > a B, B > b C)", invisible=["C"])
        >>> [leg.label for leg in legs.visible], legs.n_symmetries
        (['a_a', 'b_a', 'a_b', 'b_b'], 2)

        Raises:
            TopologyError: If a name is not that of a leg, or a leg has two roles.
        """
        if isinstance(topology, str):
            topology = DecayTopology.parse(topology)
        hidden, kinds, like = set(invisible), kinds or {}, like or {}
        _check_names(topology, hidden, kinds, like)
        found: list[str | None] = []
        for node in topology.nodes:
            unseen = node.children or hidden & {node.name, node.label}
            kind = kinds.get(node.label, kinds.get(node.name, node.name))
            found.append(None if unseen else kind)
        species = tuple(like.get(node.name, node.name) for node in topology.nodes)
        return cls(topology, tuple(found), species)

    @cached_property
    def visible(self) -> tuple[Node, ...]:
        """The L legs that are seen, depth first."""
        return tuple(n for n in self.topology.legs if self.kinds[n.index] is not None)

    @cached_property
    def invisible(self) -> tuple[Node, ...]:
        """The legs that are not seen."""
        return tuple(n for n in self.topology.legs if self.kinds[n.index] is None)

    @property
    def resonances(self) -> tuple[Node, ...]:
        """The particles that decay."""
        return tuple(node for node in self.topology.nodes if node.children)

    @property
    def leg_kinds(self) -> tuple[str, ...]:
        """Kind of each visible leg, shape ``(L,)``."""
        return tuple(kind for kind in self.kinds if kind is not None)

    @cached_property
    def chains(self) -> tuple[Chain, ...]:
        """The chains, one for each produced particle."""
        return tuple(self._chain(root) for root in self.topology.roots)

    def legs_below(self, node: Node) -> tuple[Node, ...]:
        """Returns the legs that descend from a particle, itself if it is one."""
        if not node.children:
            return (node,)
        below = (self.legs_below(self.topology.nodes[child]) for child in node.children)
        return tuple(itertools.chain.from_iterable(below))

    def _chain(self, root: Node) -> Chain:
        legs = self.legs_below(root)
        return Chain(
            root,
            tuple(n for n in self.resonances if n.side == root.side),
            tuple(n for n in legs if self.kinds[n.index] is not None),
            tuple(n for n in legs if self.kinds[n.index] is None),
        )

    @cached_property
    def signatures(self) -> tuple[_Signature, ...]:
        """What each node looks like; nodes of equal signature can be exchanged."""
        found: dict[int, _Signature] = {}
        for node in reversed(self.topology.nodes):
            kind = self.kinds[node.index]
            below = sorted((found[child] for child in node.children), key=repr)
            # a leg that is seen is not like one of the same name that is not
            is_seen, name = kind is not None, self.species[node.index] if kind is None else kind
            found[node.index] = (name, is_seen, *below)
        return tuple(found[index] for index in range(len(self.topology.nodes)))

    def alike(self, nodes: Iterable[Node]) -> list[list[Node]]:
        """Groups nodes that can be exchanged, in order of their first one."""
        groups: dict[_Signature, list[Node]] = {}
        for node in nodes:
            groups.setdefault(self.signatures[node.index], []).append(node)
        return list(groups.values())

    @property
    def n_symmetries(self) -> int:
        """Number of exchanges of visible legs that leave the decay as it is, identity included."""
        return len(self.symmetries())

    def symmetries(self) -> Tensor:
        """Lists these exchanges as permutations of the visible legs, shape ``(G, L)``."""
        position = {node.index: i for i, node in enumerate(self.visible)}
        rows = self._exchanges(self.topology.roots)
        if not position:
            return torch.zeros(1, 0, dtype=torch.long)
        return torch.unique(torch.tensor([[position[i] for i in row] for row in rows]), dim=0)

    def _exchanges(self, nodes: tuple[Node, ...]) -> list[tuple[int, ...]]:
        """Lists the visible legs below like-ordered nodes after every exchange."""
        orders: list[tuple[Node, ...]] = [()]
        for group in self.alike(nodes):
            orders = [o + p for o in orders for p in itertools.permutations(group)]
        places = [nodes.index(node) for group in self.alike(nodes) for node in group]
        rows = []
        for order in orders:
            arranged = [order[places.index(i)] for i in range(len(nodes))]
            below = [self._leg_orders(node) for node in arranged]
            rows += [tuple(itertools.chain(*choice)) for choice in itertools.product(*below)]
        return rows

    def _leg_orders(self, node: Node) -> list[tuple[int, ...]]:
        if not node.children:
            return [(node.index,) if self.kinds[node.index] is not None else ()]
        return self._exchanges(tuple(self.topology.nodes[child] for child in node.children))


@dataclass(frozen=True)
class SubsystemSide:
    """One side of a subsystem, as labels of particles.

    Attributes:
        parent: The particle whose mass is bounded.
        visible: Legs that are seen between parent and daughter.
        daughter: What counts as invisible, with a trial mass.
        relatives: Resonances between parent and daughter, whose masses may be constrained.
    """

    parent: str
    visible: tuple[str, ...]
    daughter: str
    relatives: tuple[str, ...]


@dataclass(frozen=True)
class Subsystem:
    """A part of two decay chains that is a pair of decays itself, such as (a), (b) or (ab).

    Attributes:
        name: One letter for each step of the chains that it covers.
        sides: The two sides.
    """

    name: str
    sides: tuple[SubsystemSide, SubsystemSide]


def subsystems(legs: DecayLegs) -> dict[str, Subsystem]:
    """Finds the subsystems of two chains of equally many steps.

    A step is a decay to visible legs and one further particle; the last one is invisible. The steps
    are called a, b, … from the produced particle down, and each run of them is a subsystem.

    >>> found = subsystems(DecayLegs.of("p p > A A, (A > a B, B > b C)", invisible=["C"]))
    >>> list(found), found["a"].sides[0].daughter, found["ab"].sides[0].relatives
    (['a', 'b', 'ab'], 'B_a', ('B_a',))

    Raises:
        TopologyError: If the decay does not have this form.
    """
    if len(legs.chains) != 2:
        raise _no_subsystems(legs, f"it has {len(legs.chains)} chains, not two")
    steps = [_steps(legs, chain.root) for chain in legs.chains]
    if len(steps[0]) != len(steps[1]):
        raise _no_subsystems(legs, f"its sides have {len(steps[0])} and {len(steps[1])} steps")
    found = {}
    for length in range(1, len(steps[0]) + 1):
        for start in range(len(steps[0]) - length + 1):
            name = "".join(chr(ord("a") + i) for i in range(start, start + length))
            one, other = (_side(side[start : start + length]) for side in steps)
            found[name] = Subsystem(name, (one, other))
    return found


def subsystem(legs: DecayLegs, name: str) -> Subsystem:
    """Returns the subsystem of this name.

    Raises:
        TopologyError: If there is none; the choices are listed.
    """
    found = subsystems(legs)
    if name not in found:
        raise TopologyError(
            f"'{legs.topology.text}' has no subsystem '{name}': choose from {', '.join(found)}."
        )
    return found[name]


_Step = tuple[Node, tuple[Node, ...], Node]


def _steps(legs: DecayLegs, node: Node) -> list[_Step]:
    """Follows a chain down: parent, visible legs and the further particle of each decay."""
    children = [legs.topology.nodes[child] for child in node.children]
    seen = tuple(child for child in children if legs.kinds[child.index] is not None)
    others = [child for child in children if legs.kinds[child.index] is None]
    if not seen or len(others) != 1:
        raise _no_subsystems(
            legs, f"'{node.label}' does not decay to visible legs and one further particle"
        )
    step = (node, seen, others[0])
    return [step, *_steps(legs, others[0])] if others[0].children else [step]


def _side(steps: list[_Step]) -> SubsystemSide:
    return SubsystemSide(
        steps[0][0].label,
        tuple(leg.label for _, seen, _ in steps for leg in seen),
        steps[-1][2].label,
        tuple(node.label for node, _, _ in steps[1:]),
    )


def _no_subsystems(legs: DecayLegs, why: str) -> TopologyError:
    return TopologyError(f"'{legs.topology.text}' has no subsystems: {why}.")


def _check_names(
    topology: DecayTopology, hidden: set[str], kinds: Mapping[str, str], like: Mapping[str, str]
) -> None:
    legs = {name for leg in topology.legs for name in (leg.name, leg.label)}
    for name in [*hidden, *kinds]:
        if name not in legs:
            raise TopologyError(
                f"'{name}' is not a final leg of '{topology.text}': choose from "
                f"{', '.join(leg.label for leg in topology.legs)}."
            )
    for name in like:
        if name not in {node.name for node in topology.nodes}:
            raise TopologyError(f"'like' names '{name}', which is not in '{topology.text}'.")
    both = hidden & set(kinds)
    # a label is meant for one leg alone, so that the name of all such legs does not overrule it
    both |= {leg.label for leg in topology.legs if leg.name in hidden and leg.label in kinds}
    if both:
        raise TopologyError(f"'{min(both)}' cannot be invisible and have a kind: drop one of them.")
