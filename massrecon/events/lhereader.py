"""One checking pass over a Les Houches event file."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from massrecon.errors import ImportFileError
from massrecon.events.lheparse import (
    HardEvents,
    defects,
    parse_event,
    parse_weights,
    split_block,
)
from massrecon.events.source import opened

END = b"</LesHouchesEvents>"

_LINE_MAX = 1 << 20
_LINES_MAX = 1 << 14
_HEAD_MAX = 1 << 26
_BATCH = 500
_LISTED = re.compile(rb"<weight\s[^>]*?id\s*=\s*(['\"])(.*?)\1")
_FB_PER_PB = 1000.0

Span = tuple[int, int]
Line = tuple[int, bytes]


@dataclass(frozen=True)
class Init:
    """What the ``<init>`` block says.

    Attributes:
        beam_energies: Energies of the two beams [GeV].
        cross_section_fb: Sum of the cross-sections of all processes [fb]; None if it gives none.
        listed: Names of the alternative weights that are announced.
    """

    beam_energies: tuple[float, float]
    cross_section_fb: float | None
    listed: tuple[str, ...]

    @classmethod
    def parse(cls, head: bytes, path: Path) -> Init:
        """Reads everything before the first event.

        Raises:
            ImportFileError: If the block is damaged.
        """
        lines = head[head.rindex(b"<init") :].split(b"\n")[1:]
        try:
            beams = [float(word) for word in lines[0].split()]
            rows = [[float(word) for word in line.split()] for line in lines[1 : int(beams[9]) + 1]]
            sound = len(rows) == beams[9] and all(len(row) == 4 for row in rows) and rows
            sound = sound and min(beams[2:4]) > 0 and np.isfinite(np.array(rows)).all()
        except (ValueError, IndexError, OverflowError):
            sound, beams, rows = False, [], []
        if not sound:
            raise ImportFileError(
                f"'{path}' has a damaged '<init>' block: it should give two beams, the number of "
                "processes and four finite numbers for each. Make the file again."
            )
        total = sum(row[0] for row in rows) * _FB_PER_PB
        return cls((beams[2], beams[3]), total if total > 0 else None, listed_weights(head))


def listed_weights(head: bytes) -> tuple[str, ...]:
    """Returns the names of the weights that the header announces."""
    return tuple(match[2].decode("utf-8", "replace").strip() for match in _LISTED.finditer(head))


class LheReader:
    """Reads and checks a whole file; afterwards its attributes say what was found.

    Attributes:
        head: Everything before the first event.
        init: What the ``<init>`` block says.
        spans: First byte and end of each good event.
        weight_names: Names of the alternative weights of every event.
        skipped: How many events were left out, by what was wrong with them.
    """

    def __init__(self, path: Path, skip_bad: bool) -> None:
        self.path = path
        self.skip_bad = skip_bad
        self.head = b""
        self.spans: list[Span] = []
        self.weight_names: tuple[str, ...] = ()
        self.skipped: Counter[str] = Counter()
        self._n_events = 0
        self._batch: list[tuple[int, Span, list[float], list[list[float]]]] = []
        self._fingerprints = array("Q")

    def read(self) -> None:
        """Reads everything.

        Raises:
            ImportFileError: If the file or, unless bad ones are skipped, an event is not sound.
        """
        with opened(self.path) as stream:
            lines = self._lines(stream)
            self.head = self._read_head(lines)
            self.init = Init.parse(self.head, self.path)
            self._read_events(lines)
        self._check_batch()
        self._drop_repeated()

    def _lines(self, stream: BinaryIO) -> Iterator[Line]:
        at = 0
        while line := stream.readline(_LINE_MAX):
            if len(line) == _LINE_MAX:
                self._refuse(f"has a line of more than {_LINE_MAX:,} bytes")
            yield at, line
            at += len(line)

    def _read_head(self, lines: Iterator[Line]) -> bytes:
        """Reads up to the end of the ``<init>`` block."""
        head, size, inside = [], 0, False
        for _, line in lines:
            text = line.strip()
            if not head and not text.startswith(b"<LesHouchesEvents"):
                raise ImportFileError(
                    f"'{self.path}' is no Les Houches event file: it does not begin with "
                    "'<LesHouchesEvents'."
                )
            head.append(line)
            size += len(line)
            inside |= text.startswith(b"<init>") or text.startswith(b"<init ")
            if inside and text == b"</init>":
                return b"".join(head)
            if text.startswith((b"<event", END)) or size > _HEAD_MAX:
                break
        self._refuse("has no complete '<init>' block")

    def _read_events(self, lines: Iterator[Line]) -> None:
        for start, line in lines:
            text = line.strip()
            if text == END:
                if any(after.strip().startswith(b"<") for _, after in lines):
                    self._refuse(f"goes on after its end '{END.decode()}': split it")
                return
            if text.startswith((b"<event>", b"<event ")):
                self._take(*self._read_event(start, line, lines))
            elif text and not text.startswith((b"#", b"<!--")):
                self._refuse(f"has unexpected text at byte {start}")
        self._refuse(f"ends too early, without '{END.decode()}'")

    def _read_event(self, start: int, first: bytes, lines: Iterator[Line]) -> tuple[Span, bytes]:
        """Reads one event block and where it lies."""
        block = [first]
        for at, line in lines:
            block.append(line)
            text = line.strip()
            if text == b"</event>":
                return (start, at + len(line)), b"".join(block)
            if text.startswith((b"<event", END)) or len(block) > _LINES_MAX:
                break
        self._refuse("ends too early or lacks '</event>'")

    def _take(self, span: Span, block: bytes) -> None:
        """Reads the numbers of an event and puts it into the batch to check."""
        number = self._n_events
        self._n_events += 1
        body, tail = split_block(block)
        try:
            header, rows = parse_event(body)
            names = tuple(parse_weights(tail, self.init.listed))
        except (ValueError, OverflowError, IndexError) as error:
            return self._defect(number, str(error))
        if not self.spans and not self._batch:
            self.weight_names = names
        if names != self.weight_names:
            return self._defect(number, "its weights have other names than those before")
        self._batch.append((number, span, header, rows))
        digest = hashlib.blake2b(body.split(b"\n", 2)[-1], digest_size=8).digest()
        self._fingerprints.append(int.from_bytes(digest, "little"))
        if len(self._batch) >= _BATCH:
            self._check_batch()

    def _check_batch(self) -> None:
        """Checks the physics of a batch of events."""
        if not self._batch:
            return
        events = HardEvents.of([(header, rows) for _, _, header, rows in self._batch])
        found = defects(events, max(self.init.beam_energies))
        for i in sorted(found):
            self._defect(self._batch[i][0], found[i])
        first = len(self._fingerprints) - len(self._batch)
        for i in sorted(found, reverse=True):
            del self._fingerprints[first + i]
        self.spans += [span for i, (_, span, _, _) in enumerate(self._batch) if i not in found]
        self._batch = []

    def _drop_repeated(self) -> None:
        """Finds events with the very same particles as an earlier one."""
        fingerprints = np.frombuffer(self._fingerprints, np.uint64)
        first = np.unique(fingerprints, return_index=True)[1]
        repeated = np.setdiff1d(np.arange(len(fingerprints)), first)
        if not len(repeated):
            return
        self._defect(int(repeated[0]), "it repeats an earlier event", len(repeated))
        self.spans = [self.spans[i] for i in np.sort(first).tolist()]

    def _defect(self, number: int, what: str, times: int = 1) -> None:
        """Counts a bad event, or refuses the file because of it."""
        if not self.skip_bad:
            others = f" (and {times - 1} more)" if times > 1 else ""
            raise ImportFileError(
                f"'{self.path}', event {number}{others}: {what}. Repair the file, or leave out its "
                "bad events with skip_bad=True (--skip-bad)."
            )
        self.skipped[what] += times

    def _refuse(self, what: str) -> NoReturn:
        raise ImportFileError(
            f"'{self.path}' {what} (after {self._n_events} events): fetch or make it again."
        )
