"""Writing event folders that appear when they are complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import InputError, ShapeError, StoreError, reason
from massrecon.events.card import ProcessCard
from massrecon.events.checks import refuse_unphysical
from massrecon.events.columns import (
    VARIATION,
    Arrays,
    column_type,
    empty_arrays,
    layout,
    measured_arrays,
    no_events,
)
from massrecon.events.history import join_provenance
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
from massrecon.provenance import put_in_place

EVENTS_PER_FILE = 50_000


class StoreWriter:
    """Writes a folder of events piece by piece, in the memory of one file.

    The folder takes the place of an older one when the block ends; if it raises, or the process is
    killed, the older one stays as it was and nothing half-written is seen::

        with StoreWriter("events", card, provenance={"source": "mine"}) as writer:
            for arrays in pieces:
                writer.write(arrays)

    Attributes:
        card: The process.
        provenance: Where the events come from; may be added to until the block ends.
        n_events: Number of events written so far, without those that were there before.
    """

    def __init__(
        self,
        out: str | Path,
        card: ProcessCard,
        *,
        provenance: Mapping[str, Any] | None = None,
        append: bool = False,
    ) -> None:
        """Takes note of what to write; nothing is touched before the block begins.

        Args:
            out: The folder.
            card: The process.
            provenance: Where the events come from, plain data.
            append: Whether to add to the events of the folder in place of replacing them.
        """
        self.card = card
        self.provenance = dict(provenance or {})
        self.n_events = 0
        self._path = Path(out).resolve()
        self._fresh = self._path.with_name(f".{self._path.name}.writing")
        self._append = append
        self._older: dict[str, Any] | None = None
        self._entries: list[dict[str, Any]] = []
        self._names: frozenset[str] | None = None
        self._buffer: list[Arrays] = []
        self._stack = ExitStack()

    def __enter__(self) -> StoreWriter:
        """Locks the folder.

        Raises:
            StoreError: If the folder holds something else, is in use, or cannot be written.
        """
        refuse_foreign(self._path)
        try:
            self._stack.callback(_remove_if_new, self._path, new=not self._path.exists())
            self._path.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(locked(self._path))
            shutil.rmtree(self._fresh, ignore_errors=True)  # of a process that was killed
            self._stack.callback(shutil.rmtree, self._fresh, ignore_errors=True)
            self._fresh.mkdir()
            if self._append and (self._path / MANIFEST).exists():
                self._take_older()
        except OSError as error:
            self._stack.close()
            raise self._failure(error) from error
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                try:
                    self._finish()
                except OSError as error:
                    raise self._failure(error) from error

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds events.

        Args:
            arrays: Arrays named as the fields and attributes of `Events`, momenta in GeV;
                ``partons`` and ``masses`` are left out for events without truth, alternative
                weights are called ``weight_<name>``. Every call brings the same names.

        Raises:
            InputError: If names, shapes or values are wrong; see `refuse_unphysical`.
            StoreError: If a file cannot be written, for instance because the disk is full.
        """
        piece = {name: np.asarray(array) for name, array in arrays.items() if name != "block"}
        _refuse_misshaped(self.card, piece)
        if self._names is None:
            self._names = frozenset(piece)
        if piece.keys() != self._names:
            raise InputError(
                "Events of one folder should have the same truth, attributes and alternative "
                f"weights: {_difference(self._names, piece)}."
            )
        refuse_unphysical(self.card, piece, self.n_events)
        self.n_events += len(piece["weight"])
        self._buffer.append(piece)
        while sum(len(piece["weight"]) for piece in self._buffer) >= EVENTS_PER_FILE:
            self._write_file(EVENTS_PER_FILE)

    def _take_older(self) -> None:
        """Takes over the parts that are there already."""
        older = read_manifest(self._path)
        if older["request"] is not None:
            raise StoreError(
                f"'{self._path}' holds a simulation, which can only grow by the same one with "
                "more events: save to another folder, and join the two with  massrecon events merge"
            )
        card = card_of(older["card"], self._path)
        if card.fingerprint() != self.card.fingerprint():
            raise InputError(
                f"'{self._path}' holds events of another card ('{card.name}', or another version "
                f"of it) than '{self.card.name}': save to another folder."
            )
        first = part_name(older["parts"][0]["number"])
        names = PartFile.open(self._path / first, older["parts"][0]["sha256"]).wanted(card)
        self._names = frozenset(names.keys() - {"block"})
        for number, entry in enumerate(older["parts"]):
            _link(self._path / part_name(entry["number"]), self._fresh / part_name(number))
            self._entries.append(entry | {"number": number})
        self._older = older

    def _write_file(self, n_events: int) -> None:
        """Writes the first events of the buffer to a file."""
        if len(self._buffer) > 1:
            joined = {k: np.concatenate([p[k] for p in self._buffer]) for k in self._buffer[0]}
            self._buffer = [joined]
        arrays = self._buffer[0]
        number = len(self._entries)
        now = {name: array[:n_events] for name, array in arrays.items()}
        about = {"number": number, "provenance": self.provenance}
        digest = write_part(self._fresh / part_name(number), now, self.card, about)
        n_written = len(now["weight"])
        self._entries.append({"number": number, "n_events": n_written, "sha256": digest})
        later = {name: array[n_events:] for name, array in arrays.items()}
        self._buffer = [later] if len(later["weight"]) else []

    def _finish(self) -> None:
        """Writes what is left and puts the folder in its place."""
        if not self._buffer and not self._entries:
            self._buffer = [no_events(self.card)]
        if self._buffer:
            self._write_file(EVENTS_PER_FILE)
        provenance, n_events = self.provenance, self.n_events
        if self._older is not None:
            provenance = join_provenance([self._older["provenance"], provenance])
            n_events += self._older["n_events"]
        write_manifest(self._fresh, self.card, n_events, self._entries, provenance)
        put_in_place(self._fresh, self._path)

    def _failure(self, error: OSError) -> StoreError:
        return StoreError(
            f"'{self._path}' cannot be written: {reason(error)}. What was there before is "
            "unchanged: free some space, or choose another folder, and run the same command again."
        )


def _remove_if_new(folder: Path, *, new: bool) -> None:
    """Removes a folder that was made for nothing."""
    if new and folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK}:
        shutil.rmtree(folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the file system has no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _refuse_misshaped(card: ProcessCard, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses event arrays with names or shapes that are not those of the card."""
    known = layout(card)
    for name in measured_arrays(card):
        if name not in arrays:
            raise InputError(f"'{name}' is missing among the event arrays: add it.")
    n_events = len(arrays["weight"])
    for name, array in arrays.items():
        if name not in known and not name.startswith(VARIATION):
            raise InputError(f"Unknown event array '{name}': choose from {', '.join(known)}.")
        expected = empty_arrays(card, {name: known.get(name, [name])}, 0)[name].shape[1:]
        if array.shape != (n_events, *expected):
            raise ShapeError(
                f"'{name}' should have shape {(n_events, *expected)} for the card '{card.name}', "
                f"got {array.shape}."
            )
        if not np.can_cast(array.dtype, column_type(name), "same_kind"):
            raise InputError(
                f"'{name}' should be of type {np.dtype(column_type(name))}, got {array.dtype}."
            )


def _difference(expected: frozenset[str], got: Mapping[str, np.ndarray]) -> str:
    missing, more = sorted(expected - got.keys()), sorted(got.keys() - expected)
    parts = [f"missing {', '.join(missing)}"] if missing else []
    return "; ".join(parts + ([f"new {', '.join(more)}"] if more else []))
