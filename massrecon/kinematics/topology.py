"""Decay topologies: who decays to whom, read from a decay string.

The notation is the one of matrix-element generators: the process, then each decay after a comma,
with brackets around a decay that has decays of its own::

    p p > chi20 chi1, (chi20 > h chi10, h > gamma gamma), (chi1 > W chi10, W > l nu)

A decay that is given once serves all like particles of its level, ``p p > A A, A > a B``; given
several times it is taken in order, and what is left stays undecayed.

Every particle of the tree gets a unique label. A name that occurs once is its own label; one that
occurs on both sides carries the side, ``chi10_a`` and ``chi10_b`` with side *a* the first particle
of the final state of the process; one that occurs several times on a side is numbered, ``gamma1``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from massrecon.errors import InputError

_TOKEN = re.compile(r"\s*([(),>]|[A-Za-z][\w+~\-]*)")
_SIDES = "abcdefgh"


class TopologyError(InputError):
    """A decay string cannot be read; the message points at the place."""


@dataclass(frozen=True)
class Node:
    """One particle of the decay tree.

    Attributes:
        name: Name as written in the decay string.
        label: Unique label in the tree.
        side: Letter of the produced particle that this one descends from.
        index: Position in `DecayTopology.nodes`.
        parent: Position of the mother, ``None`` for a produced particle.
        children: Positions of the daughters, empty for a final-state leg.
    """

    name: str
    label: str
    side: str
    index: int
    parent: int | None
    children: tuple[int, ...]


@dataclass(frozen=True)
class DecayTopology:
    """The decay tree of a process.

    Attributes:
        text: The decay string that it was read from.
        initial: Names of the incoming particles.
        nodes: All particles, depth first, each produced particle before its decay products.
    """

    text: str
    initial: tuple[str, ...]
    nodes: tuple[Node, ...]

    @classmethod
    def parse(cls, text: str) -> DecayTopology:
        """Reads a decay string.

        >>> topology = DecayTopology.parse("p p > t1 t2, t1 > b W, t2 > b W")
        >>> topology.labels
        ('t1', 'b_a', 'W_a', 't2', 'b_b', 'W_b')

        Raises:
            TopologyError: If the string is malformed, or a decay in it is impossible: of a particle
                that is not there, to one particle only, or to the particle itself.
        """
        initial, roots = _Parser(text).process()
        return cls(text=text, initial=initial, nodes=_number(roots))

    @property
    def roots(self) -> tuple[Node, ...]:
        """The particles produced by the collision."""
        return tuple(node for node in self.nodes if node.parent is None)

    @property
    def legs(self) -> tuple[Node, ...]:
        """The particles that do not decay further."""
        return tuple(node for node in self.nodes if not node.children)

    @property
    def labels(self) -> tuple[str, ...]:
        """The unique label of every particle, depth first."""
        return tuple(node.label for node in self.nodes)

    def node(self, label: str) -> Node:
        """Returns the particle called `label`.

        Raises:
            TopologyError: If there is none.
        """
        for node in self.nodes:
            if node.label == label:
                return node
        raise TopologyError(
            f"No particle '{label}' in '{self.text}': choose from {', '.join(self.labels)}."
        )

    def sketch(self) -> str:
        """Draws the tree as text, one particle a line."""
        lines = [" ".join(self.initial)]
        for root in self.roots:
            lines += self._branch(root, "", root is self.roots[-1])
        return "\n".join(lines)

    def _branch(self, node: Node, indent: str, last: bool) -> Iterator[str]:
        yield f"{indent}{'└─' if last else '├─'} {node.label}"
        deeper = indent + ("   " if last else "│  ")
        for child in node.children:
            yield from self._branch(self.nodes[child], deeper, child == node.children[-1])


class _Particle:
    """A particle while the tree is being read: name, place and, once it decays, its daughters."""

    def __init__(self, name: str, place: int) -> None:
        self.name, self.place = name, place
        self.daughters: list[_Particle] = []


class _Parser:
    """Recursive descent over the tokens of one decay string."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TopologyError(f"A decay string should be text, got {text!r}.")
        self.text = text
        self.tokens: list[tuple[str, int]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                self._fail("cannot be read here", position)
            self.tokens.append((match.group(1), match.start(1)))
            position = match.end()
        self.at = 0

    def process(self) -> tuple[tuple[str, ...], list[_Particle]]:
        initial = self._particles("an incoming particle")
        self._take(">")
        roots = self._particles("a produced particle")
        if len(roots) > len(_SIDES):
            self._fail(f"produces more than {len(_SIDES)} particles", 0)
        self._decays(roots)
        if self.at < len(self.tokens):
            self._fail("has something after its end", self.tokens[self.at][1])
        for root in roots:
            self._refuse_loops(root, ())
        return tuple(particle.name for particle in initial), roots

    def _decays(self, mothers: list[_Particle]) -> None:
        while self._next() == ",":
            self._take(",")
            if self._next() == "(":
                self._take("(")
                self._decays(self._step(mothers).daughters)
                self._take(")")
            else:
                self._step(mothers)
        _share_decays(mothers)

    def _step(self, mothers: list[_Particle]) -> _Particle:
        token, place = self._peek("a decaying particle")
        if not token[0].isalpha():
            self._fail("expects a decaying particle", place)
        self.at += 1
        mother = next((m for m in mothers if m.name == token and not m.daughters), None)
        if mother is None:
            there = ", ".join(m.name for m in mothers if not m.daughters) or "none"
            why = f"decays '{token}', which is not there (still undecayed: {there})"
            if any(d.name == token for m in mothers for d in m.daughters):
                why += "; a decay of a daughter belongs in brackets with that of its mother"
            self._fail(why, place)
        self._take(">")
        mother.daughters = self._particles("a daughter")
        if len(mother.daughters) < 2:
            self._fail(f"decays '{token}' to one particle only", place)
        return mother

    def _refuse_loops(self, particle: _Particle, mothers: tuple[str, ...]) -> None:
        """Refuses a particle among its own decay products: it would be heavier than itself."""
        for daughter in particle.daughters:
            below = (*mothers, particle.name)
            if daughter.name in below:
                self._fail(f"lets '{daughter.name}' decay to itself", daughter.place)
            self._refuse_loops(daughter, below)

    def _particles(self, what: str) -> list[_Particle]:
        found = []
        while self.at < len(self.tokens) and self.tokens[self.at][0][0].isalpha():
            found.append(_Particle(*self.tokens[self.at]))
            self.at += 1
        if not found:
            self._fail(f"expects {what}", self._peek(what)[1])
        return found

    def _next(self) -> str | None:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else None

    def _peek(self, what: str) -> tuple[str, int]:
        if self.at >= len(self.tokens):
            self._fail(f"ends where {what} is expected", len(self.text))
        return self.tokens[self.at]

    def _take(self, token: str) -> None:
        found, place = self._peek(f"'{token}'")
        if found != token:
            self._fail(f"expects '{token}', found '{found}'", place)
        self.at += 1

    def _fail(self, why: str, position: int) -> NoReturn:
        raise TopologyError(
            f"The decay string {why}, at the mark:\n  {self.text}\n  {' ' * position}^"
        )


def _share_decays(mothers: list[_Particle]) -> None:
    """Lets a decay that is given once serve all particles of its name."""
    for name in {mother.name for mother in mothers}:
        like = [mother for mother in mothers if mother.name == name]
        given = [mother.daughters for mother in like if mother.daughters]
        if len(given) == 1:
            for mother in like:
                mother.daughters = given[0]


def _number(roots: list[_Particle]) -> tuple[Node, ...]:
    """Flattens the tree depth first and gives every particle its label."""
    flat: list[tuple[_Particle, str, int | None]] = []

    def visit(particle: _Particle, side: str, parent: int | None) -> None:
        here = len(flat)
        flat.append((particle, side, parent))
        for daughter in particle.daughters:
            visit(daughter, side, here)

    for side, root in zip(_SIDES, roots, strict=False):
        visit(root, side, None)
    labels = _labels([(particle.name, side) for particle, side, _ in flat])
    children: list[list[int]] = [[] for _ in flat]
    for index, (_, _, parent) in enumerate(flat):
        if parent is not None:
            children[parent].append(index)
    return tuple(
        Node(particle.name, labels[i], side, i, parent, tuple(children[i]))
        for i, (particle, side, parent) in enumerate(flat)
    )


def _labels(names: list[tuple[str, str]]) -> list[str]:
    sides = {name: {s for n, s in names if n == name} for name, _ in names}
    times, seen, labels = Counter(names), Counter(), []
    for name, side in names:
        seen[name, side] += 1
        number = str(seen[name, side]) if times[name, side] > 1 else ""
        suffix = f"_{side}" if len(sides[name]) > 1 else ""
        labels.append(f"{name}{number}{suffix}")
    clash = [label for label, n in Counter(labels).items() if n > 1]
    if clash:
        raise TopologyError(f"The label '{clash[0]}' would name two particles: rename one of them.")
    return labels
