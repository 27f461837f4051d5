"""Les Houches event files: hard collisions of another generator, for Pythia to shower.

`LheFile.open` reads a file once, checks all of it, and remembers where each event lies. Slices of
it are files of their own, byte for byte as they were written, so that any part of a simulation can
be made again. Compressed files (``.gz``) are read as they are; an event deep inside one is reached
by reading all before it, so uncompressed files are faster for long simulations.

References:
    J. Alwall et al., Comput. Phys. Commun. 176 (2007) 300, hep-ph/0609017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from massrecon.errors import InputError
from massrecon.events.columns import VARIATION
from massrecon.events.lheparse import HardEvents, parse_event, parse_weights, split_block
from massrecon.events.lhereader import END, LheReader, listed_weights
from massrecon.events.particles import Floats, Integers
from massrecon.events.source import SourceFile, opened


@dataclass(frozen=True)
class LheFile:
    """A checked Les Houches event file.

    Attributes:
        source: The file and its checksum.
        cross_section_fb: Sum of the cross-sections of its processes [fb]; None if it gives none.
        beam_energies: Energies of the two beams [GeV].
        weight_names: Names of the alternative weights, the same in every event.
        skipped: How many bad events were left out, by what was wrong with them.
        spans: First byte and end of each good event in the uncompressed file, shape ``(N, 2)``.
        head: Everything before the first event.
    """

    source: SourceFile
    cross_section_fb: float | None
    beam_energies: tuple[float, float]
    weight_names: tuple[str, ...]
    skipped: Mapping[str, int]
    spans: Integers = field(repr=False)
    head: bytes = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, skip_bad: bool = False) -> LheFile:
        """Reads and checks a whole file.

        Args:
            path: The file, plain or compressed with gzip.
            skip_bad: Leave out events that are damaged, contradict physics or repeat an earlier
                one, instead of refusing the file. A file that ends too early or has no sound
                structure is always refused.

        Raises:
            ImportFileError: If the file cannot be read or is not sound; it names the event, counted
                from 0.
        """
        source = SourceFile.open(path)
        reader = LheReader(source.path, skip_bad)
        reader.read()
        source.check(content=True)
        return cls(
            source=source,
            cross_section_fb=reader.init.cross_section_fb,
            beam_energies=reader.init.beam_energies,
            weight_names=reader.weight_names,
            skipped=dict(reader.skipped),
            spans=np.array(reader.spans, np.int64).reshape(-1, 2),
            head=reader.head,
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    @property
    def sha256(self) -> str:
        """Checksum of the file."""
        return self.source.sha256

    @property
    def n_events(self) -> int:
        """Number of good events."""
        return len(self.spans)

    @property
    def beam_energy(self) -> float:
        """Centre-of-mass energy of the collisions [GeV]."""
        return 2.0 * float(np.sqrt(self.beam_energies[0] * self.beam_energies[1]))

    def write_slice(self, start: int, stop: int, target: str | Path) -> None:
        """Writes some of the events to a Les Houches file of their own, uncompressed.

        Args:
            start: First event.
            stop: End of the events.
            target: The file to write.

        Raises:
            ImportFileError: If the file has changed since it was opened.
            InputError: If there are no such events.
        """
        with Path(target).open("wb") as file:
            file.write(self.head)
            for block in self._blocks(start, stop):
                file.write(block)
            file.write(END + b"\n")

    def weights(self, start: int, stop: int) -> dict[str, Floats]:
        """Returns the weights of some of the events.

        Returns:
            ``weight`` as the file gives it, and ``weight_<name>`` for each alternative weight, each
            of shape ``(stop - start,)``.

        Raises:
            ImportFileError: If the file has changed since it was opened.
            InputError: If there are no such events.
        """
        listed = listed_weights(self.head)
        nominal, others = [], []
        for block in self._blocks(start, stop):
            body, tail = split_block(block)
            nominal.append(float(body.split(None, 3)[2]))
            found = parse_weights(tail, listed)
            others.append([found[name] for name in self.weight_names])
        table = np.array(others, float).reshape(len(nominal), len(self.weight_names))
        columns = {VARIATION + name: table[:, i] for i, name in enumerate(self.weight_names)}
        return {"weight": np.array(nominal, float), **columns}

    def events(self, start: int, stop: int) -> HardEvents:
        """Returns the particles of some of the events.

        Raises:
            ImportFileError: If the file has changed since it was opened.
            InputError: If there are no such events.
        """
        blocks = self._blocks(start, stop)
        return HardEvents.of([parse_event(split_block(block)[0]) for block in blocks])

    def _blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Reads events as they are written, after checking that the file is still the same."""
        if not 0 <= start <= stop <= self.n_events:
            raise InputError(
                f"'{self.path}' has {self.n_events} events: there is no slice [{start}, {stop})."
            )
        self.source.check()
        with opened(self.path) as stream:
            for low, high in self.spans[start:stop].tolist():
                stream.seek(low)
                yield stream.read(high - low)
