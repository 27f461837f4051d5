"""The event store: folders of Parquet files and a manifest, each written whole or not at all.

A folder holds ``manifest.json`` and ``part-00000.parquet``, ``part-00001.parquet``, … The manifest
lists the parts with their checksums, the process card, and where the events come from. A simulation
replaces it after every part, so that a process that is killed leaves all finished parts valid;
whatever else writes events makes a new folder aside, which takes its place when it is complete.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from massrecon.errors import InputError, StoreError
from massrecon.events import writer
from massrecon.events.card import ProcessCard
from massrecon.events.columns import Arrays, empty_arrays
from massrecon.events.history import provenance_of_parts
from massrecon.events.manifest import (
    LOCK,
    MANIFEST,
    card_of,
    locked,
    part_name,
    read_manifest,
    refuse_foreign,
    write_manifest,
)
from massrecon.events.partfile import PartFile, write_part
from massrecon.events.writer import StoreWriter
from massrecon.provenance import file_sha256

if TYPE_CHECKING:
    from massrecon.events.container import Events

__all__ = [
    "LOCK",
    "MANIFEST",
    "SAMPLES",
    "StoreWriter",
    "append_events",
    "load_events",
    "locked",
    "open_folder",
    "part_name",
    "read_manifest",
    "refuse_foreign",
    "save_events",
    "shipped_samples",
    "write_manifest",
    "write_part",
]

SAMPLES = Path(__file__).parent / "samples"
"""Folder of the events that come with massrecon."""

_MAX_READERS = 4


def load_events(path: str | Path, partial: bool = False) -> Events:
    """Loads events from a folder of the event store or from a single Parquet file of one.

    A name of one of `shipped_samples` that is no folder stands for events that come with massrecon.

    Every file is read once and its checksum compared.

    Args:
        path: The folder or file.
        partial: Whether to be content with the parts that are there and whole, of a simulation
            that was interrupted or a folder that was damaged; a warning says what is missing.

    Raises:
        StoreError: If something is missing, damaged or of another format; the message names the
            file and the remedy.
    """
    from massrecon.events.container import Events

    path = shipped_or_own(path)
    if path.is_file() and path.suffix == ".parquet":
        part = PartFile.open(path)
        card = part.card()
        arrays, provenance = part.arrays(card), part.about | {"file": str(path)}
        arrays.pop("block", None)
    else:
        folder = open_folder(path, partial)
        card, arrays, provenance = folder.card, folder.read(), folder.provenance
    try:
        return Events.from_arrays(card, arrays, provenance).validate()
    except InputError as error:
        raise StoreError(f"'{path}': {error}") from error


def shipped_samples() -> list[str]:
    """Returns the names of the events that come with massrecon; `load_events` takes them."""
    return sorted(path.parent.name for path in SAMPLES.glob(f"*/{MANIFEST}"))


def shipped_or_own(path: str | Path) -> Path:
    """Returns the folder of events that come with massrecon for their name, else the path."""
    path = Path(path)
    return SAMPLES / path if not path.exists() and str(path) in shipped_samples() else path


def save_events(events: Events, path: str | Path, append: bool = False) -> None:
    """Saves events as a folder of the event store, in place of an older one.

    Args:
        events: The events.
        path: The folder.
        append: Whether to add to the events that are there, which must be of the same card.

    Raises:
        InputError: If the events are unphysical, or differ from those that are there in card,
            truth, attributes or alternative weights.
        StoreError: If the folder holds something else or a simulation to add to, or cannot be
            written.
    """
    arrays = events.to_arrays()
    with StoreWriter(path, events.card, provenance=events.provenance, append=append) as out:
        for start in range(0, max(len(events), 1), writer.EVENTS_PER_FILE):
            rows = slice(start, start + writer.EVENTS_PER_FILE)
            out.write({name: array[rows] for name, array in arrays.items()})


def append_events(events: Events, path: str | Path) -> None:
    """Adds events to a folder, which is made if there is none; all of them or none.

    Raises:
        InputError: See `save_events`.
        StoreError: See `save_events`.
    """
    save_events(events, path, append=True)


def open_folder(path: str | Path, partial: bool = False) -> Folder:
    """Opens a folder to read it whole or piece by piece, without torch.

    Args:
        path: The folder.
        partial: See `load_events`.

    Raises:
        StoreError: If it holds no events, or not all of them and `partial` is not set.
    """
    return Folder.open(Path(path), partial)


@dataclass(frozen=True)
class Folder:
    """A folder of which some parts are to be read.

    Attributes:
        path: The folder.
        card: The process.
        entries: The manifest's entries of the parts to read.
        n_events: Number of events to read: the last part may hold more.
        provenance: Where the events come from.
        simulated: Whether the same simulation can make missing parts again.
    """

    path: Path
    card: ProcessCard
    entries: Sequence[Mapping[str, Any]]
    n_events: int
    provenance: Mapping[str, Any]
    simulated: bool

    @classmethod
    def open(cls, path: Path, partial: bool) -> Folder:
        """Chooses the parts to read.

        Raises:
            StoreError: If there are too few, and `partial` is not set.
        """
        manifest = read_manifest(path)
        card = card_of(manifest["card"], path / MANIFEST)
        wanted, provenance = manifest["n_events"], manifest["provenance"]
        entries = manifest["parts"]
        if partial:
            entries = [entry for entry in entries if _is_whole(path, entry)]
        entries, there = _first(entries, wanted)
        # a simulation of a number of collisions does not know how many events there will be
        unfinished = there < wanted or provenance.get("finished") is False
        if unfinished:
            state = f"holds {there} of {wanted} events"
            if there >= wanted:
                state = f"holds {there} events of an unfinished sample"
            if not partial:
                raise StoreError(
                    f"'{path}' {state}, because the simulation was interrupted: run the same "
                    "simulation again to finish it, or use what is there with  "
                    "load_events(path, partial=True)"
                )
            provenance = provenance_of_parts(provenance, entries) | {"of_n_events": wanted}
            warnings.warn(
                f"'{path}' {state}, in {len(entries)} finished parts: only these are used.",
                stacklevel=4,
            )
        simulated = manifest["request"] is not None
        return cls(path, card, entries, min(there, wanted), provenance, simulated)

    def read(self) -> Arrays:
        """Reads all events, several parts at a time."""
        if not self.entries:
            raise StoreError(f"'{self.path}' holds no finished part: run the simulation again.")
        first = self.part(self.entries[0])
        wanted = first.wanted(self.card)
        wanted.pop("block", None)
        arrays = self._room(wanted)
        starts = [0]
        for entry in self.entries:
            starts.append(starts[-1] + entry["n_events"])

        def read_one(number: int) -> None:
            part = first if number == 0 else self.part(self.entries[number])
            if not part.schema.equals(first.schema):
                self._refuse_unlike(part, wanted)
            part.read_into(arrays, wanted, starts[number])

        with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as readers:
            for _ in readers.map(read_one, range(len(self.entries))):
                pass
        return arrays

    def _refuse_unlike(self, part: PartFile, wanted: Mapping[str, Sequence[str]]) -> None:
        """Refuses a part with other arrays than the first."""
        names = part.wanted(self.card).keys() - {"block"}
        if names != wanted.keys():
            raise StoreError(
                f"'{part.path}' differs from the first part in truth, attributes or alternative "
                f"weights ({', '.join(sorted(names ^ wanted.keys()))}): {self._remedy}."
            )

    def pieces(self) -> Iterator[Arrays]:
        """Yields the event arrays part by part, in the memory of one part.

        Raises:
            StoreError: If a part is missing or damaged.
        """
        missing = self.n_events
        for entry in self.entries:
            piece = self.part(entry).arrays(self.card)
            piece.pop("block", None)
            yield {name: array[:missing] for name, array in piece.items()}
            missing -= entry["n_events"]

    def part(self, entry: Mapping[str, Any]) -> PartFile:
        """Opens one part after checking that it is the one that was written."""
        path = self.path / part_name(entry["number"])
        part = PartFile.open(path, entry["sha256"], self._remedy)
        if part.n_events != entry["n_events"]:
            raise StoreError(
                f"'{path}' holds {part.n_events} events, the manifest says {entry['n_events']}: "
                f"{self._remedy}."
            )
        return part

    @property
    def _remedy(self) -> str:
        if self.simulated:
            return "run the same simulation again to restore it"
        return "restore it, or use the other parts with  load_events(path, partial=True)"

    def _room(self, wanted: Mapping[str, Sequence[str]]) -> Arrays:
        """Makes arrays for all events."""
        try:
            return empty_arrays(self.card, wanted, self.n_events)
        except (MemoryError, OverflowError, ValueError) as error:
            raise StoreError(
                f"'{self.path}' should hold {self.n_events} events, for which there is not enough "
                f"memory ({error}): read it part by part."
            ) from error


def _first(
    entries: Sequence[Mapping[str, Any]], wanted: int
) -> tuple[list[Mapping[str, Any]], int]:
    """Returns the first parts that hold enough events, at least one, and how many they hold."""
    chosen, there = [], 0
    for entry in entries:
        if there >= wanted and chosen:
            break
        chosen.append(entry)
        there += entry["n_events"]
    return chosen, there


def _is_whole(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / part_name(entry["number"])
    try:
        return file_sha256(path) == entry["sha256"]
    except OSError:
        return False
