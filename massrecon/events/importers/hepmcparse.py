"""HepMC3 text files, event by event.

The text is read here and not with pyhepmc, whose reader (2.16.1) refuses sound events of Pythia in
which the history of initial-state radiation closes a loop, and cannot say where a file is damaged.

References:
    A. Buckley et al., Comput. Phys. Commun. 260 (2021) 107310, arXiv:1912.08005.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from massrecon.errors import ImportFileError
from massrecon.events.particles import Floats, Integers, Mask
from massrecon.events.source import opened

START = b"HepMC::Asciiv3-START_EVENT_LISTING"
END = b"HepMC::Asciiv3-END_EVENT_LISTING"
STABLE, BEAM, INCOMING = 1, 4, 21
TOLERANCE = 1e-5
"""Largest relative violation of mass shell (against E^2) and momentum conservation."""

_LINE_MAX = 1 << 20
_LINES_MAX = 1 << 20
_WORDS = 10
_UNITS = {b"GEV": 1.0, b"MEV": 1e-3}
_LENGTHS = (b"MM", b"CM")


@dataclass(frozen=True)
class Graph:
    """One event.

    Attributes:
        table: For each particle PDG code, px, py, pz, E, m [GeV] and status, shape ``(n, 7)``.
        mother: Position of the first particle that it comes from, -1 for none, shape ``(n,)``.
        hard: Whether it comes out of the hard collision, shape ``(n,)``.
        weights: Weights in the order of their names.
        cross_section_pb: Cross-section [pb], if given.
    """

    table: Floats
    mother: Integers
    hard: Mask
    weights: tuple[float, ...]
    cross_section_pb: float | None

    @property
    def pdg(self) -> Integers:
        """PDG codes, shape ``(n,)``."""
        return self.table[:, 0].astype(np.int64)

    @property
    def p4(self) -> Floats:
        """Four-momenta (px, py, pz, E) [GeV], shape ``(n, 4)``."""
        return self.table[:, 1:5]

    @property
    def mass(self) -> Floats:
        """Generated masses [GeV], shape ``(n,)``."""
        return self.table[:, 5]

    @property
    def status(self) -> Integers:
        """Status codes, shape ``(n,)``."""
        return self.table[:, 6].astype(np.int64)

    def check(self) -> None:
        """Checks the event against physics.

        Raises:
            ValueError: If a number is not finite, an energy negative, a particle off its mass, or
                the stable particles do not add up to the beams.
        """
        if not np.isfinite(self.table).all() or not np.isfinite(self.weights).all():
            raise ValueError("a number is not finite")
        p4, mass, status = self.p4, self.mass, self.status
        if (self.table[:, (0, 6)] != np.rint(self.table[:, (0, 6)])).any():
            raise ValueError("a code or status is not an integer")
        if (p4[:, 3] < 0)[status == STABLE].any():
            raise ValueError("the energy of a particle is negative")
        with np.errstate(over="ignore", invalid="ignore"):
            off = np.abs(p4[:, 3] ** 2 - np.sum(p4[:, :3] ** 2, axis=1) - mass * np.abs(mass))
            if not (off <= TOLERANCE * p4[:, 3] ** 2 + 1e-12).all():
                raise ValueError("a particle is off its mass")
        beams, stable = p4[status == BEAM].sum(axis=0), p4[status == STABLE].sum(axis=0)
        if beams[3] > 0 and (np.abs(stable - beams) > TOLERANCE * beams[3]).any():
            raise ValueError("the stable particles do not add up to the beams")

    @property
    def energy(self) -> float:
        """Energy of the beams [GeV]; 0 if there are none."""
        return float(self.p4[self.status == BEAM, 3].sum())


class HepMCFile:
    """The events of a file, one after the other.

    Attributes:
        weight_names: Names of the weights; empty if the file gives none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weight_names: tuple[str, ...] = ()
        self._n_events = 0

    def blocks(self) -> Iterator[list[bytes]]:
        """Yields the lines of each event.

        Raises:
            ImportFileError: If the file is truncated, or not of this format.
        """
        with opened(self.path) as stream:
            lines = self._lines(stream)
            block = [self._read_head(lines)]
            for line in itertools.chain(lines, [b""]):
                if line in (END, b"") or line.startswith(b"E "):
                    if line == b"":
                        self._refuse(f"ends too early, without '{END.decode()}',")
                    self._n_events += 1
                    yield block
                    block = []
                if line == END:
                    break
                block.append(line)
                if len(block) > _LINES_MAX:
                    self._refuse(f"has an event of more than {_LINES_MAX} lines")
            if next(lines, None) is not None:
                self._refuse("goes on after its end")

    def _lines(self, stream: BinaryIO) -> Iterator[bytes]:
        while line := stream.readline(_LINE_MAX):
            if len(line) == _LINE_MAX:
                self._refuse(f"has a line of more than {_LINE_MAX} bytes")
            if text := line.strip():
                yield text

    def _read_head(self, lines: Iterator[bytes]) -> bytes:
        """Reads up to the first event; returns its first line."""
        if not next(lines, b"").startswith(b"HepMC::Version"):
            self._refuse("is no HepMC file")
        start = next(lines, b"")
        if start != START:
            found = start[:60].decode("ascii", "replace")
            raise ImportFileError(
                f"'{self.path}' is not in the text format of HepMC3 but '{found}': convert it with "
                "the program convert_example of HepMC3."
            )
        for line in lines:
            if line.startswith(b"W "):
                text = line[2:].decode("utf-8", "replace")
                self.weight_names = tuple(name.strip() for name in text.split("\\|"))
            elif line.startswith(b"E "):
                return line
            elif not line.startswith((b"T ", b"A ", b"N ")):
                break
        self._refuse("has no event")

    def _refuse(self, what: str) -> NoReturn:
        raise ImportFileError(
            f"'{self.path}' {what} (after {self._n_events} events): fetch or make it again."
        )


def parse_graph(block: Sequence[bytes]) -> Graph:
    """Reads one event.

    Args:
        block: Its lines.

    Raises:
        ValueError: If a line cannot be read or counts do not agree.
    """
    lines: dict[bytes, list[bytes]] = {kind: [] for kind in (b"E ", b"P ", b"V ", b"U ", b"W ")}
    for line in block:
        lines.setdefault(line[:2], []).append(line)
    rows = _numbers(lines[b"P "])
    if int(lines[b"E "][0].split()[3]) != len(rows):
        raise ValueError(f"it has {len(rows)} particles and says otherwise")
    if (rows[:, 0] != np.arange(1, len(rows) + 1)).any():
        raise ValueError("its particles are not numbered in order")
    scale = _unit(lines[b"U "])
    table = np.concatenate([rows[:, 2:3], rows[:, 3:8] * scale, rows[:, 8:9]], axis=1)
    mother, hard = _parents(rows[:, 1], _incoming(lines[b"V "], len(rows)), table[:, 6])
    weights = tuple(float(w) for w in lines[b"W "][0].split()[1:]) if lines[b"W "] else (1.0,)
    return Graph(table, mother, hard, weights, _cross_section(lines.get(b"A ", [])))


def _numbers(lines: Sequence[bytes]) -> Floats:
    """Reads the nine numbers of each particle, shape ``(n, 9)``."""
    import pyarrow
    import pyarrow.csv

    text = b"\n".join(lines)
    names = [str(i) for i in range(_WORDS)]
    kinds = {name: pyarrow.float64() for name in names[1:]} | {"0": pyarrow.string()}
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(text),
            pyarrow.csv.ReadOptions(column_names=names, use_threads=False),
            pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(column_types=kinds, null_values=[]),
        )
        rows = np.stack([column.to_numpy() for column in table.columns[1:]], axis=1)
    except pyarrow.ArrowException:  # numbers that are spelt in another way, or wrong
        rows = _numbers_of_any_spelling(lines)
    if len(rows) != len(lines):
        raise ValueError("a particle cannot be read")
    return rows


def _numbers_of_any_spelling(lines: Sequence[bytes]) -> Floats:
    words = [line.split()[1:] for line in lines]
    if any(len(row) != _WORDS - 1 for row in words):
        raise ValueError("a particle has too many or too few numbers")
    if any(b"_" in line for line in lines):
        raise ValueError("there is an underscore among its numbers")
    rows = np.array([[float(word) for word in row] for row in words], np.float64)
    return rows.reshape(-1, _WORDS - 1)


def _incoming(lines: Sequence[bytes], n: int) -> dict[int, list[int]]:
    """Reads the particles that go into each vertex, counted from 1."""
    words = [line.split(None, 4) for line in lines]
    vertices = {int(w[1]): [int(x) for x in w[3].strip(b"[]").split(b",")] for w in words}
    if len(vertices) != len(lines) or any(number >= 0 for number in vertices):
        raise ValueError("its vertices are not numbered")
    if any(not 0 < p <= n for particles in vertices.values() for p in particles):
        raise ValueError("a vertex has a particle that is not there")
    return vertices


def _parents(
    parents: Floats, incoming: dict[int, list[int]], status: Floats
) -> tuple[Integers, Mask]:
    """Finds the first mother of each particle, and whether it comes out of the hard collision."""
    n, size = len(parents), max((-number for number in incoming), default=0) + 1
    if not (np.rint(parents) == parents).all() or (parents > n).any() or (parents <= -size).any():
        raise ValueError("a particle comes from one that is not there")
    first, from_hard = np.zeros(size, np.int64), np.zeros(size, bool)
    for number, particles in incoming.items():
        first[-number] = particles[0]
        from_hard[-number] = all(status[p - 1] == INCOMING for p in particles)
    whole = parents.astype(np.int64)
    vertex, single = np.maximum(-whole, 0), np.maximum(whole, 0)
    if (first[vertex] == 0)[whole < 0].any():
        raise ValueError("a vertex is missing")
    mother = np.where(whole < 0, first[vertex], single) - 1
    hard = np.where(whole < 0, from_hard[vertex], (status[single - 1] == INCOMING) & (whole > 0))
    return mother, hard


def _unit(lines: Sequence[bytes]) -> float:
    """Returns one unit of momentum [GeV]."""
    words = lines[0].split() if lines else [b"U", b"GEV", b"MM"]
    if len(words) != 3 or words[1] not in _UNITS or words[2] not in _LENGTHS:
        raise ValueError("its units are not GEV or MEV and MM or CM")
    return _UNITS[words[1]]


def _cross_section(lines: Sequence[bytes]) -> float | None:
    for line in lines:
        if line.startswith(b"A 0 GenCrossSection "):
            value = float(line.split()[3])
            return value if np.isfinite(value) and value > 0 else None
    return None
