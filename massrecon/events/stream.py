"""Events of a folder that are read part by part, for samples larger than memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import InputError, StoreError
from massrecon.events.card import ProcessCard
from massrecon.events.columns import Arrays
from massrecon.events.container import Events
from massrecon.events.store import Folder, open_folder, shipped_or_own

_MANY_POINTS = 20
"""Number of mass points from which on whole points are set aside, in place of events."""

_COUNTED_POINTS = 1_000
"""Number of mass points up to which they are counted, so that their share is exact."""


@dataclass(frozen=True)
class _Aside:
    """Which events are set aside, part by part: a share of the mass points, or of the events."""

    share: float
    by_masses: bool
    seed: int

    def chosen(self, arrays: Mapping[str, np.ndarray], number: int) -> np.ndarray:
        """Tells which events of a part are set aside, shape ``(N,)``."""
        if not self.by_masses:
            rng = np.random.default_rng([self.seed, number])
            return rng.random(len(arrays["weight"])) < self.share
        points, which = np.unique(arrays["masses"], axis=0, return_inverse=True)
        drawn = np.array([_uniform(point, self.seed) for point in points])
        return (drawn < self.share)[which.reshape(-1)]


@dataclass(frozen=True)
class EventStream:
    """Events of a folder, of which one part at a time is in memory.

    Attributes:
        folder: The folder.
        sizes: Number of events of each part, without those that are set aside.
        aside: Which events are left out; None for none.
    """

    folder: Folder
    sizes: tuple[int, ...]
    aside: _Aside | None = None

    @classmethod
    def open(cls, path: str | Path, partial: bool = False) -> EventStream:
        """Opens a folder of the event store; no events are read yet.

        Args:
            path: The folder, or the name of events that come with massrecon.
            partial: See `massrecon.load_events`.

        Raises:
            StoreError: If it holds no events, or not all of them and `partial` is not set.
        """
        folder = open_folder(shipped_or_own(path), partial)
        if not folder.entries:
            raise StoreError(f"'{path}' holds no finished part: run the simulation again.")
        there = [entry["n_events"] for entry in folder.entries]
        there[-1] -= max(0, sum(there) - folder.n_events)
        return cls(folder, tuple(there))

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def card(self) -> ProcessCard:
        """The process."""
        return self.folder.card

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the events come from."""
        return dict(self.folder.provenance)

    @property
    def fingerprint(self) -> str:
        """Checksum of the files and of what is left out."""
        facts = [entry["sha256"] for entry in self.folder.entries]
        facts += [str(len(self)), repr(self.aside and dataclasses.astuple(self.aside))]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def part(self, number: int) -> Events:
        """Reads the events of one part, checked.

        Raises:
            StoreError: If its file is missing or damaged, or holds values that are not physical.
        """
        arrays = self._arrays(number)
        if self.aside is not None:
            arrays = _rows(arrays, ~self.aside.chosen(arrays, number))
        return self._events(arrays)

    def subsample(self, most: int) -> Events:
        """Reads a part of the events, evenly chosen, and those with the extreme masses.

        Args:
            most: How many to read, apart from the few with extreme masses.
        """
        step, seen = -(-len(self) // most), 0
        found: list[Events] = []
        extreme: list[Events] = []
        for number in range(len(self.sizes)):
            events = self.part(number)
            # a list copies, a slice would keep the whole part in memory
            if rows := list(range((-seen) % step, len(events), step)):
                found.append(events[rows])
            seen += len(events)
            if step > 1 and events.masses is not None and len(events):
                extreme = [_extreme(Events.concat([*extreme, _extreme(events)]))]
        return dataclasses.replace(Events.concat([*found, *extreme]), provenance=self.provenance)

    def set_aside(self, share: float, most: int, seed: int) -> tuple[EventStream, Events]:
        """Sets a share of the events aside, whole mass points where there are enough of them.

        Where there are fewer than twenty, or a single one has more than `most` events, they are
        chosen event by event.

        Args:
            share: Share of the events, or of the mass points.
            most: How many events to set aside at most; they are kept in memory.
            seed: Seed of the choice.

        Returns:
            The stream of the other events, and those that were set aside.

        Raises:
            InputError: If nothing would be left, or nothing set aside.
        """
        aside = self._aside(min(share, most / len(self)), seed)
        held, sizes = [], []
        for number in range(len(self.sizes)):
            arrays = self._arrays(number)
            chosen = aside.chosen(arrays, number)
            sizes.append(int((~chosen).sum()))
            held.append(self._events(_rows(arrays, chosen)))
        if not 0 < sum(sizes) < len(self):
            raise InputError(
                f"'{self.folder.path}' holds too few events to set some aside, {len(self)}: pass "
                "'validation'."
            )
        events = Events.concat([events for events in held if len(events)])
        rest = dataclasses.replace(self, sizes=tuple(sizes), aside=aside)
        return rest, dataclasses.replace(events, provenance=self.provenance)

    def _aside(self, share: float, seed: int) -> _Aside:
        """Chooses what to set aside: exactly a share of the mass points where they are counted."""
        points = self._points()
        if len(points) > _COUNTED_POINTS:
            return _Aside(share, by_masses=True, seed=seed)
        wanted = round(share * len(points))
        if len(points) < _MANY_POINTS or wanted == 0:
            return _Aside(share, by_masses=False, seed=seed)
        drawn = sorted(_uniform(np.frombuffer(point), seed) for point in points)
        return _Aside(drawn[wanted], by_masses=True, seed=seed)

    def _points(self) -> set[bytes]:
        """Returns the mass points, or those of the first parts if there are very many."""
        points: set[bytes] = set()
        for number in range(len(self.sizes)):
            arrays = self._arrays(number)
            if "masses" not in arrays:
                return set()
            points |= {point.tobytes() for point in np.unique(arrays["masses"], axis=0)}
            if len(points) > _COUNTED_POINTS:
                break
        return points

    def _arrays(self, number: int) -> Arrays:
        """Reads the arrays of a part, with the events that are set aside."""
        arrays = self.folder.part(self.folder.entries[number]).arrays(self.card)
        arrays.pop("block", None)
        before = sum(entry["n_events"] for entry in self.folder.entries[:number])
        return _rows(arrays, slice(0, self.folder.n_events - before))

    def _events(self, arrays: Mapping[str, np.ndarray]) -> Events:
        try:
            return Events.from_arrays(self.card, arrays, self.provenance).validate()
        except InputError as error:
            raise StoreError(f"'{self.folder.path}': {error}") from error


def _rows(arrays: Mapping[str, np.ndarray], rows: Any) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}


def _extreme(events: Events) -> Events:
    """Picks the events with the smallest and largest value of each mass."""
    assert events.masses is not None
    rows = {*events.masses.argmin(dim=0).tolist(), *events.masses.argmax(dim=0).tolist()}
    return events[sorted(rows)]


def _uniform(point: np.ndarray, seed: int) -> float:
    """Turns a mass point into a random number, the same in every part."""
    digest = hashlib.blake2b(point.tobytes(), digest_size=8, salt=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") / 2**64
