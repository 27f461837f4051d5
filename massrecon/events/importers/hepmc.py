"""HepMC3 files: stable particles for our own detector, and the decay tree of the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from massrecon.events.card import ProcessCard
from massrecon.events.columns import VARIATION
from massrecon.events.importers.chunk import Chunk, ReadOptions, refuse_other_energy
from massrecon.events.importers.graph import Family, as_record, find_decay
from massrecon.events.importers.hepmcparse import STABLE, Graph, HepMCFile, parse_graph
from massrecon.events.particles import Floats, Particles
from massrecon.events.tagging import heavy_flavour

_EVENTS = 200
_NOMINAL = ("default", "weight", "nominal")


class HepMCReader:
    """Reads a HepMC3 text file, plain or compressed with gzip."""

    def __init__(self, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        self.path, self.card, self.options = path, card, options
        self._file = HepMCFile(path)
        self._names: tuple[str, ...] = ()

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries in their order.

        Raises:
            ImportFileError: If the file is truncated, or not of this format.
        """
        start, graphs = 0, []
        for number, block in enumerate(self._file.blocks()):
            if number >= self.options.stop(number + 1):
                continue  # the rest is only checked for being complete
            graphs.append(self._parse(block))
            if len(graphs) == _EVENTS:
                yield self._chunk(start, graphs)
                start, graphs = start + _EVENTS, []
        if graphs:
            yield self._chunk(start, graphs)

    def _parse(self, block: list[bytes]) -> Graph | str:
        """Reads an event, or says what is wrong with it."""
        try:
            graph = parse_graph(block)
            graph.check()
        except (ValueError, IndexError, OverflowError) as error:
            return str(error)
        if not self._names:
            self._names = self._weight_names(len(graph.weights))
        if len(graph.weights) != len(self._names):
            return f"it has {len(graph.weights)} weights, others have {len(self._names)}"
        if graph.energy:
            refuse_other_energy(self.path, graph.energy, self.card)
        return graph

    def _weight_names(self, n: int) -> tuple[str, ...]:
        names = self._file.weight_names
        return names if len(names) == len(set(names)) == n else tuple(map(str, range(n)))

    def _chunk(self, start: int, graphs: list[Graph | str]) -> Chunk:
        n = len(graphs)
        defects: dict[str, np.ndarray] = {}
        for i, graph in enumerate(graphs):
            if isinstance(graph, str):
                defects.setdefault(graph, np.zeros(n, bool))[i] = True
        good = [(i, graph) for i, graph in enumerate(graphs) if isinstance(graph, Graph)]
        family, stable = _joined(good)
        partons, matched = (None, None)
        if self.options.truth:
            partons, matched = find_decay(self.card, family, n)
        tags = self.card.detector.tagging
        given = [graph.cross_section_pb for _, graph in good if graph.cross_section_pb]
        return Chunk(
            start=start,
            stop=start + n,
            weights=self._weights(good, n),
            particles=stable,
            heavy=heavy_flavour(as_record(family, n)) if tags else None,
            partons=partons,
            matched=matched,
            cross_section_fb=given[-1] * 1000.0 if given else None,
            defects=defects,
        )

    def _weights(self, good: list[tuple[int, Graph]], n: int) -> dict[str, Floats]:
        """Returns the nominal weight, and all others by name."""
        table = np.ones((n, max(len(self._names), 1)))
        for i, graph in good:
            table[i] = graph.weights
        lower = [name.lower() for name in self._names]
        nominal = next((lower.index(name) for name in _NOMINAL if name in lower), 0)
        others = {
            VARIATION + name: table[:, i] for i, name in enumerate(self._names) if i != nominal
        }
        return {"weight": table[:, nominal], **others}


def _joined(good: list[tuple[int, Graph]]) -> tuple[Family, Particles]:
    """Joins events to flat arrays: all particles, and the stable ones."""
    event = np.repeat([i for i, _ in good], [len(g.table) for _, g in good]).astype(np.int64)
    table = np.concatenate([np.zeros((0, 7)), *(g.table for _, g in good)])
    mother = np.concatenate([np.zeros(0, np.int64), *(g.mother for _, g in good)])
    hard = np.concatenate([np.zeros(0, bool), *(g.hard for _, g in good)])
    pdg, p4 = table[:, 0].astype(np.int64), table[:, 1:5]
    family = Family(event, pdg, mother, hard, p4, table[:, 5])
    final = table[:, 6] == STABLE
    return family, Particles(event[final], pdg[final], *p4[final].T)
