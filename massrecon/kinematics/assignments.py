"""Assignments: every distinct way to take reconstructed objects as the legs of a decay.

Two assignments are the same hypothesis if a symmetry of the decay turns one into the other; of each
such class exactly one is listed. A leg may have lost its object (index -1); an object without a leg
is extra, such as a jet of initial-state radiation.

Each chain on its own has few *configurations*; an assignment is one of each chain that share no
object. `Assignments` keeps this structure, so that sums over assignments stay cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.topology import Node, TopologyError

MISSING = -1
"""Index of the object of a leg that has none."""

_MOST_OBJECTS = 62


@dataclass(frozen=True, eq=False)
class Assignments:
    """All distinct assignments of K objects to L visible legs.

    Objects are numbered through, kind by kind in the order of `kinds`.

    Attributes:
        legs: The decay.
        kinds: Kind of each object, shape ``(K,)``.
        index: Object of each leg, -1 where it is missing, shape ``(A, L)``.
        chains: For each chain its C configurations: object of each of its legs, ``(C, L_s)``.
        chain_index: Configuration of each chain, shape ``(A, S)``.
    """

    legs: DecayLegs
    kinds: tuple[str, ...]
    index: Tensor
    chains: tuple[Tensor, ...]
    chain_index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_missing(self) -> Tensor:
        """Number of legs without an object, shape ``(A,)``."""
        return (self.index == MISSING).sum(1)

    @property
    def used(self) -> Tensor:
        """Which objects have a leg, shape ``(A, K)``; the others are extra."""
        return membership(self.index, len(self.kinds))

    def members(self, label: str) -> Tensor:
        """Returns which objects descend from a particle, shape ``(A, K)``.

        Raises:
            TopologyError: If there is no such particle.
        """
        below = set(self.legs.legs_below(self.legs.topology.node(label)))
        columns = [i for i, leg in enumerate(self.legs.visible) if leg in below]
        return membership(self.index[:, columns], len(self.kinds))


def membership(index: Tensor, n_objects: int) -> Tensor:
    """Turns lists of objects ``(A, L)``, -1 for none, to masks ``(A, K)``."""
    mask = torch.zeros(len(index), n_objects + 1, dtype=torch.bool)
    mask.scatter_(1, torch.where(index == MISSING, n_objects, index), True)
    return mask[:, :n_objects]


@dataclass(frozen=True)
class _Partial:
    """Configurations of some legs: objects ``(C, l)``, and the same as bits ``(C,)``."""

    legs: tuple[int, ...]
    index: np.ndarray
    bits: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> _Partial:
        return _Partial(self.legs, self.index[rows], self.bits[rows])

    def joined(self, other: _Partial, rows: tuple[np.ndarray, ...]) -> _Partial:
        first, second = rows
        index = np.concatenate([self.index[first], other.index[second]], axis=1)
        return _Partial(self.legs + other.legs, index, self.bits[first] | other.bits[second])


_NOTHING = _Partial((), np.zeros((1, 0), np.int64), np.zeros(1, np.int64))


class _Enumeration:
    """Finds the configurations of the chains of a decay for given objects."""

    def __init__(
        self, legs: DecayLegs, kinds: tuple[str, ...], missing: Mapping[str, int], bare: bool
    ) -> None:
        self.legs, self.kinds, self.missing, self.bare = legs, np.array(kinds), missing, bare
        self.leg_kinds = {leg.index: str(legs.kinds[leg.index]) for leg in legs.visible}

    def node(self, node: Node) -> _Partial:
        """Lists the configurations of the visible legs below a node."""
        if node.index in self.leg_kinds:
            return self.leg(node)
        if not node.children:
            return _NOTHING
        children = [self.legs.topology.nodes[child] for child in node.children]
        found = self.nodes(children)
        own = [found.legs.index(n.index) for n in children if n.index in self.leg_kinds]
        if not own or (self.bare and len(own) == 1):
            return found
        return found[(found.index[:, own] != MISSING).any(axis=1)]

    def leg(self, node: Node) -> _Partial:
        """Lists the objects that a leg may be; none at all comes last."""
        kind = self.leg_kinds[node.index]
        fitting = np.flatnonzero(self.kinds == kind)
        bits = np.int64(1) << fitting.astype(np.int64)
        if self.missing[kind] > 0:
            fitting, bits = np.append(fitting, MISSING), np.append(bits, 0)
        return _Partial((node.index,), fitting[:, None], bits)

    def nodes(self, nodes: Iterable[Node]) -> _Partial:
        """Lists the configurations of several nodes that share no object, each class once."""
        found = _NOTHING
        for group in self.legs.alike(nodes):
            found = self.join(found, self.group(group))
        return found

    def group(self, group: list[Node]) -> _Partial:
        """Lists those of exchangeable nodes: each next one is not before the one before it."""
        first = self.node(group[0])
        found, last = first, np.arange(len(first.bits))
        for other in group[1:]:
            following = _Partial(self.node(other).legs, first.index, first.bits)
            disjoint = (found.bits[:, None] & following.bits[None, :]) == 0
            rows = np.nonzero(disjoint & (last[:, None] <= np.arange(len(following.bits))))
            found, last = found.joined(following, rows), rows[1]
            kept = self.not_too_many_lost(found)
            found, last = found[kept], last[kept]
        return found

    def join(self, one: _Partial, other: _Partial) -> _Partial:
        """Combines the configurations of two sets of legs that share no object."""
        found = one.joined(other, np.nonzero((one.bits[:, None] & other.bits[None, :]) == 0))
        return found[self.not_too_many_lost(found)]

    def not_too_many_lost(self, found: _Partial) -> np.ndarray:
        """Says which configurations lost no more legs of a kind than allowed."""
        good = np.ones(len(found.bits), bool)
        of = np.array([self.leg_kinds[leg] for leg in found.legs])
        for kind in set(of.tolist()):
            good &= (found.index[:, of == kind] == MISSING).sum(axis=1) <= self.missing[kind]
        return good


def assign(
    legs: DecayLegs,
    counts: Mapping[str, int],
    missing: int | Mapping[str, int] = 0,
    extra: int | Mapping[str, int] | None = None,
    bare: bool = False,
) -> Assignments:
    """Lists all distinct assignments of objects to legs.

    A decaying particle that has visible legs of its own keeps at least one of them; see `bare`.

    Args:
        legs: The decay and the roles of its legs.
        counts: Number of objects by kind.
        missing: Most legs of each kind that may have lost their object, one number for all kinds or
            one for each; a kind that is not listed may lose none.
        extra: Most objects of each kind that may have no leg, likewise; None, or a kind that is not
            listed, has no limit.
        bare: Whether a particle may lose the only visible leg of its own.

    >>> top = DecayLegs.of("p p > t t~, (t > b W, W > q q), (t~ > b W, W > q q)",
    ...     kinds={"b": "jet", "q": "jet"}, like={"t~": "t"})
    >>> len(assign(top, {"jet": 6})), len(assign(top, {"jet": 7}))
    (90, 630)

    Raises:
        TopologyError: If there is no assignment; the message says which objects lack.
    """
    lost = _limits(legs, missing, 0)
    spare = _limits(legs, extra, _MOST_OBJECTS)
    _check_counts(legs, counts, lost, spare)
    kinds = tuple(kind for kind, count in counts.items() for _ in range(count))
    search = _Enumeration(legs, kinds, lost, bare)
    found = search.nodes(legs.topology.roots)
    columns = np.argsort(found.legs)
    index = found.index[:, columns]
    for kind, limit in spare.items():
        of = [i for i, leg_kind in enumerate(legs.leg_kinds) if leg_kind == kind]
        unused = counts.get(kind, 0) - (index[:, of] != MISSING).sum(axis=1)
        index = index[unused <= limit]
    if not len(index):
        raise TopologyError(
            f"No assignment of {_listed(counts)} to '{legs.topology.text}' keeps an object of "
            "every decay within the limits 'missing' and 'extra': widen them."
        )
    return _with_chains(legs, kinds, index)


def _with_chains(legs: DecayLegs, kinds: tuple[str, ...], index: np.ndarray) -> Assignments:
    """Finds the distinct configurations of each chain."""
    position = {leg.index: i for i, leg in enumerate(legs.visible)}
    chains, rows = [], []
    for chain in legs.chains:
        columns = [position[leg.index] for leg in chain.visible]
        distinct, inverse = np.unique(index[:, columns], axis=0, return_inverse=True)
        chains.append(torch.as_tensor(distinct))
        rows.append(torch.as_tensor(inverse.reshape(-1)))
    return Assignments(legs, kinds, torch.as_tensor(index), tuple(chains), torch.stack(rows, 1))


def _limits(legs: DecayLegs, limit: int | Mapping[str, int] | None, default: int) -> dict[str, int]:
    kinds = dict.fromkeys(legs.leg_kinds, default)
    if limit is None:
        return kinds
    if isinstance(limit, Mapping):
        for kind in limit:
            _check_kind(legs, kind)
        return kinds | dict(limit)
    return dict.fromkeys(kinds, limit)


def _check_kind(legs: DecayLegs, kind: str) -> None:
    if kind not in legs.leg_kinds:
        known = ", ".join(dict.fromkeys(legs.leg_kinds))
        raise TopologyError(
            f"No leg of '{legs.topology.text}' is of kind '{kind}': choose from {known}."
        )


def _check_counts(
    legs: DecayLegs, counts: Mapping[str, int], lost: Mapping[str, int], spare: Mapping[str, int]
) -> None:
    for kind, count in counts.items():
        _check_kind(legs, kind)
        if not isinstance(count, int) or count < 0:
            raise TopologyError(f"'counts' should be whole numbers, got {count!r} of '{kind}'.")
    if sum(counts.values()) > _MOST_OBJECTS:
        raise TopologyError(f"More than {_MOST_OBJECTS} objects cannot be assigned: keep fewer.")
    for kind in lost:
        needed, given = legs.leg_kinds.count(kind), counts.get(kind, 0)
        if given < needed - lost[kind]:
            raise TopologyError(
                f"'{legs.topology.text}' has {needed} legs of kind '{kind}' and at most "
                f"{lost[kind]} may be missing, but there are only {given} objects: allow more with "
                "'missing', or leave such events out."
            )
        if given - needed > spare[kind]:
            raise TopologyError(
                f"{given} objects of kind '{kind}' for {needed} legs leave at least "
                f"{given - needed} extra, more than {spare[kind]}: allow more with 'extra', or "
                "keep fewer objects."
            )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no objects"
