"""Groups of collisions, ready for the detector: Pythia's own process, or hard collisions of a file.

Both kinds of source are pure functions of the request and the number of the part. Pythia's own
process runs through mass points drawn from the prior, one for each block of collisions; a file is
cut into slices, one for each part, in its own order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from massrecon.errors import GenerationError
from massrecon.events.lhe import LheFile
from massrecon.events.lheparse import INCOMING
from massrecon.events.masses import Tiers
from massrecon.events.particles import Floats, Integers
from massrecon.events.pythia import SEED_MAX, Collider, Record
from massrecon.events.request import Request
from massrecon.events.trials import Tally, Trials

BLOCK_EVENTS = 50
GROUP_BLOCKS = 10
PART_GROUPS = 6
BLOCKS_PER_PART = GROUP_BLOCKS * PART_GROUPS
GROUP_EVENTS = BLOCK_EVENTS * GROUP_BLOCKS
EVENTS_PER_PART = BLOCK_EVENTS * BLOCKS_PER_PART

# Pythia gives massless quarks and leptons of a file their masses, which changes the fractions
_X_TOLERANCE = 0.02
_LOOK_AHEAD = 20


@dataclass(frozen=True)
class Group:
    """Collisions that go through the detector together.

    Attributes:
        record: Their event records.
        rows: Position of each record among the N generated collisions; Pythia leaves out those that
            it gives up on, shape ``(n,)``.
        block: Number of the block within the part of each generated collision, shape ``(N,)``.
        masses: Mass point of each generated collision [GeV], shape ``(N, M)``.
        weights: ``weight`` and alternative weights ``weight_<name>``, each ``(N,)``.
        trials: Mass point and Pythia's statistics of each block.
    """

    record: Record
    rows: Integers
    block: Integers
    masses: Floats
    weights: dict[str, Floats]
    trials: list[tuple[Floats, Tally]]


class Source(Protocol):
    """Where hard collisions come from."""

    def groups(self, number: int) -> Iterator[Group]:
        """Yields the groups of one part."""
        ...

    def close(self) -> None:
        """Removes temporary files."""
        ...


def source_of(request: Request) -> Source:
    """Returns the source of a request."""
    return ProcessSource(request) if request.lhe is None else FileSource(request, request.lhe)


class ProcessSource:
    """Pythia's own process; keeps one Pythia for each tier of masses between parts."""

    def __init__(self, request: Request) -> None:
        """Cuts the mass range of the request into tiers."""
        self.request = request
        self.tiers = Tiers.of(request.prior)
        self._colliders: dict[int, Collider] = {}

    def close(self) -> None:
        """Removes temporary files."""
        for collider in self._colliders.values():
            collider.close()

    def groups(self, number: int) -> Iterator[Group]:
        """Yields the groups of one part."""
        rng = np.random.default_rng([self.request.seed, number])
        masses = self.request.prior.draw(rng, BLOCKS_PER_PART)
        seeds = rng.integers(1, SEED_MAX, BLOCKS_PER_PART)
        before: dict[int, Tally] = {}
        for blocks in np.split(np.arange(BLOCKS_PER_PART), PART_GROUPS):
            records, trials = [], []
            for b in blocks:
                tier = self.tiers.index(masses[b])
                collider = self.collider(tier, fresh=tier not in before)
                records.append(collider.generate(masses[b], int(seeds[b]), BLOCK_EVENTS))
                now = collider.tally()
                trials.append((masses[b], _since(before.get(tier, {}), now)))
                before[tier] = now
            record = Record.join(records)
            block = np.repeat(blocks, [one.n_events for one in records])
            rows, weights = np.arange(record.n_events), {"weight": record.info["weight"]}
            yield Group(record, rows, block, masses[block], weights, trials)

    def collider(self, tier: int, fresh: bool) -> Collider:
        """Returns the Pythia of a tier of masses, started anew where `fresh`."""
        settings = self.request.settings
        if tier not in self._colliders:
            self._colliders[tier] = Collider(
                self.request.card,
                self.tiers.start(tier),
                settings.multiparton,
                settings.pythia,
            )
        if fresh:
            self._colliders[tier].restart()
        return self._colliders[tier]


class FileSource:
    """The hard collisions of a Les Houches file, in its order; each part is a slice of it."""

    def __init__(self, request: Request, file: LheFile) -> None:
        self.request = request
        self.file = file
        self._folder = tempfile.TemporaryDirectory(prefix="massrecon-lhe-")

    def close(self) -> None:
        """Removes temporary files."""
        self._folder.cleanup()

    def groups(self, number: int) -> Iterator[Group]:
        """Yields the groups of one part; the last one of the file may be short."""
        start = number * EVENTS_PER_PART
        stop = min(start + EVENTS_PER_PART, self.file.n_events)
        rng = np.random.default_rng([self.request.seed, number])
        point = self.request.prior.draw(rng, 1)
        seeds = rng.integers(1, SEED_MAX, BLOCKS_PER_PART + 1)
        weights = self.file.weights(start, stop)
        path = Path(self._folder.name) / "slice.lhe"
        self.file.write_slice(start, stop, path)
        settings = self.request.settings
        with Collider(
            self.request.card, point[0], settings.multiparton, settings.pythia, path
        ) as collider:
            collider.initialise()
            showers = _Showers(collider, seeds.tolist(), point[0], self.file, start, stop)
            for first in range(0, stop - start, GROUP_EVENTS):
                here = np.arange(first, min(first + GROUP_EVENTS, stop - start))
                record, rows = showers.up_to(int(here[-1]) + 1)
                of_group = {name: values[here] for name, values in weights.items()}
                masses = np.repeat(point, len(here), axis=0)
                yield Group(record, rows - first, here // BLOCK_EVENTS, masses, of_group, [])
        path.unlink()


class _Showers:
    """The showered events of a slice of a file, and which hard collision each belongs to.

    Pythia passes over hard collisions that it cannot use without saying which. They are told from
    the flavours and momentum fractions of the incoming partons, in the order of the file.
    """

    def __init__(
        self,
        collider: Collider,
        seeds: list[int],
        point: Floats,
        file: LheFile,
        start: int,
        stop: int,
    ) -> None:
        self._collider = collider
        self._seeds = iter(seeds)
        self._point = point
        self._incoming = _incoming(file, start, stop)
        self._where = f"'{file.path}', events {start} to {stop - 1}"
        self._made = (Record.empty(), np.zeros(0, np.int64))
        self._next = 0

    def up_to(self, end: int) -> tuple[Record, Integers]:
        """Returns the showers that were not returned before, of the collisions before `end`."""
        record, rows = self._made
        while self._next < end:
            batch = self._collider.generate(self._point, next(self._seeds), BLOCK_EVENTS)
            record = Record.join([record, batch])
            rows = np.concatenate([rows, self._recognise(batch)])
            if self._collider.at_end():
                self._next = len(self._incoming)
        n = int(np.searchsorted(rows, end))
        self._made = (record.part(n, record.n_events), rows[n:])
        return record.part(0, n), rows[:n]

    def _recognise(self, batch: Record) -> Integers:
        """Finds the hard collisions of a batch, shape ``(n,)``."""
        found = []
        for seen in _ordered(*(batch.info[name] for name in ("id1", "id2", "x1", "x2"))):
            ahead = self._incoming[self._next :]
            off = np.abs(ahead[:, 2:] / seen[2:] - 1.0).max(axis=1)
            off[(ahead[:, :2] != seen[:2]).any(axis=1) | (off > _X_TOLERANCE)] = np.inf
            near = off[: _LOOK_AHEAD if np.isfinite(off[:_LOOK_AHEAD]).any() else None]
            if not np.isfinite(near).any():
                raise GenerationError(
                    f"Pythia showered a collision that is not in its place in {self._where}: "
                    "leave out Pythia settings that change the hard collisions."
                )
            found.append(self._next + int(np.argmin(near)))
            self._next = found[-1] + 1
        return np.array(found, np.int64)


def _incoming(file: LheFile, start: int, stop: int) -> Floats:
    """Returns codes and momentum fractions of the incoming partons, shape ``(n, 4)``."""
    events = file.events(start, stop)
    partons = np.flatnonzero(events.status == INCOMING)
    energy, code = events.p4[partons, 3].reshape(-1, 2), events.pdg[partons].reshape(-1, 2)
    along = 2.0 * energy / file.beam_energy
    return _ordered(code[:, 0], code[:, 1], along[:, 0], along[:, 1])


def _ordered(id1: np.ndarray, id2: np.ndarray, x1: np.ndarray, x2: np.ndarray) -> Floats:
    """Puts the parton with the larger momentum fraction first, shape ``(n, 4)``."""
    table = np.stack([id1, id2, x1, x2], axis=1).astype(np.float64)
    swap = table[:, 3] > table[:, 2]
    table[swap] = table[swap][:, [1, 0, 3, 2]]
    return table


def _since(before: Tally, now: Tally) -> dict[str, Trials]:
    """Returns what was added to Pythia's statistics."""
    return {code: trials.minus(before.get(code, Trials.zero())) for code, trials in now.items()}
