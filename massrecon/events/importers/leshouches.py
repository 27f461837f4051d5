"""Les Houches files without a parton shower: the hard partons straight into our own detector.

Every outgoing quark or gluon becomes a spray of energy of its own in the hadronic calorimeter, so
that a jet is one parton with the calorimeter's resolution. A quick look, no simulation: use the
shower for anything that is compared with data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from massrecon.events.card import ProcessCard
from massrecon.events.importers.chunk import (
    LARGEST_CHUNK,
    Chunk,
    ReadOptions,
    refuse_other_energy,
)
from massrecon.events.importers.graph import Family, as_record, find_decay
from massrecon.events.lhe import LheFile
from massrecon.events.lheparse import INCOMING, OUTGOING
from massrecon.events.particles import Particles
from massrecon.events.tagging import heavy_flavour


class PartonReader:
    """Reads the hard collisions of a Les Houches file."""

    def __init__(self, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        """Reads and checks the whole file.

        Raises:
            ImportFileError: If it is not sound, or for another collision energy than the card.
        """
        self.card, self.options = card, options
        self.file = LheFile.open(path, skip_bad=options.skip_bad)
        refuse_other_energy(path, self.file.beam_energy, card)

    @property
    def skipped(self) -> dict[str, int]:
        """How many bad events were left out, by what was wrong with them."""
        return dict(self.file.skipped)

    def chunks(self) -> Iterator[Chunk]:
        """Yields all events in their order."""
        end = self.options.stop(self.file.n_events)
        for start in range(0, end, LARGEST_CHUNK):
            yield self._chunk(start, min(start + LARGEST_CHUNK, end))

    def _chunk(self, start: int, stop: int) -> Chunk:
        events, n = self.file.events(start, stop), stop - start
        status, mother = events.status, events.mothers[:, 0]
        parent = events.first[events.event] + mother
        hard = (mother >= 0) & (status[parent * (mother >= 0)] == INCOMING)
        family = Family(events.event, events.pdg, mother, hard, events.p4, events.rows[:, 10])
        final = status == OUTGOING
        partons, matched = find_decay(self.card, family, n) if self.options.truth else (None, None)
        tags = self.card.detector.tagging
        return Chunk(
            start=start,
            stop=stop,
            weights=self.file.weights(start, stop),
            particles=Particles(events.event[final], events.pdg[final], *events.p4[final].T),
            heavy=heavy_flavour(as_record(family, n)) if tags else None,
            partons=partons,
            matched=matched,
            cross_section_fb=self.file.cross_section_fb,
        )
