"""What the readers of all formats hand over: ranges of entries of a file, as flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from massrecon.errors import ImportFileError
from massrecon.events.card import ProcessCard
from massrecon.events.columns import VARIATION
from massrecon.events.jets import FATJET_RADIUS, JET_RADIUS, is_apart
from massrecon.events.objects import Objects
from massrecon.events.particles import (
    Floats,
    Mask,
    Particles,
    finite_rows,
)
from massrecon.events.sections import SlotGroup

LARGEST_CHUNK = 5_000
"""Most entries of a chunk."""


@dataclass(frozen=True)
class ReadOptions:
    """What the readers must know; each uses its own part of it.

    Attributes:
        jets: ``particle_flow``, ``calorimeter`` or the branch of a Delphes file.
        btag_points: Working points of the bits of a Delphes b-tag, from the lowest bit on.
        mapping: Kinds of objects and ``ptmiss`` to the names of the groups of an HDF5 file.
        n_max: Most entries to read, or None for all.
        skip_bad: Whether bad entries are to be left out.
        truth: Whether to look for the decay tree.
    """

    jets: str = "particle_flow"
    btag_points: tuple[str, ...] = ("medium",)
    mapping: Mapping[str, str] = field(default_factory=dict)
    n_max: int | None = None
    skip_bad: bool = False
    truth: bool = True

    def stop(self, n_entries: int) -> int:
        """Returns the end of the entries to read."""
        return n_entries if self.n_max is None else min(n_entries, self.n_max)


@dataclass(frozen=True)
class Chunk:
    """Some entries of a file.

    Attributes:
        start: First entry.
        stop: End of the entries; there are n = stop - start.
        weights: ``weight`` and alternative weights ``weight_<name>``, each ``(n,)``.
        objects: Reconstructed objects by kind, `event` counting from 0 in the chunk.
        overlaps: Whether jets may still be leptons or photons once more.
        ptmiss: Reconstructed missing transverse momentum (px, py) [GeV], shape ``(n, 2)``.
        particles: Stable particles for our own detector, in place of `objects` and `ptmiss`.
        heavy: Heavy quarks and visible taus that the tags of its jets are made from, likewise.
        partons: True particles of the decay tree (px, py, pz, m) [GeV], shape ``(n, P, 4)``, or
            None if the format has none.
        matched: Entries in which the decay tree was found, shape ``(n,)``.
        masses: True mass parameters [GeV], shape ``(n, M)``, where the file gives them.
        cross_section_fb: Cross-section that the file gives [fb].
        defects: What is wrong with entries, by description, each a mask ``(n,)``.
    """

    start: int
    stop: int
    weights: Mapping[str, Floats]
    objects: Mapping[str, Objects] = field(default_factory=dict)
    overlaps: bool = False
    ptmiss: Floats | None = None
    particles: Particles | None = None
    heavy: Particles | None = None
    partons: Floats | None = None
    matched: Mask | None = None
    masses: Floats | None = None
    cross_section_fb: float | None = None
    defects: Mapping[str, Mask] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    def all_defects(self, beam_energy: float) -> dict[str, Mask]:
        """Adds what can be checked of every format to the reader's own list.

        Args:
            beam_energy: Centre-of-mass energy of the collisions [GeV]; nothing has more.
        """
        found = dict(self.defects)
        for name, values in self.weights.items():
            what = "the weight" if name == "weight" else f"'{name.removeprefix(VARIATION)}'"
            found[f"{what} is not finite"] = ~np.isfinite(values)
        if self.ptmiss is not None:
            finite = finite_rows(self.ptmiss)
            found["ptmiss is not finite"] = ~finite
            size = np.hypot(*np.where(finite[:, None], self.ptmiss, 0.0).T)
            found["ptmiss exceeds the collision energy: are the units GeV?"] = size > beam_energy
        for kind, objects in self.objects.items():
            found |= momentum_defects(kind, objects.event, objects.p4, len(self), beam_energy)
        if self.particles is not None:
            one = self.particles
            found |= momentum_defects("particle", one.event, one.p4, len(self), beam_energy)
        if self.partons is not None and self.matched is not None:
            found["its truth is not finite"] = ~finite_rows(self.partons) & self.matched
        return {what: mask for what, mask in found.items() if mask.any()}

    def fingerprints(self) -> np.ndarray:
        """Returns a number for each entry that only the very same momenta share, ``(n,)``.

        Entries without any object are 0.
        """
        total = np.zeros(len(self), np.uint64)
        if self.particles is not None:
            parts = [(self.particles.event, self.particles.p4)]
        else:
            parts = [(objects.event, objects.p4) for _, objects in sorted(self.objects.items())]
        for number, (event, p4) in enumerate(parts, start=1):
            np.add.at(total, event, _mixed(p4, number))
        return total


def momentum_defects(
    kind: str, event: np.ndarray, p4: Floats, n: int, beam_energy: float
) -> dict[str, Mask]:
    """Finds entries with unphysical momenta, by description, each a mask ``(n,)``."""
    finite = finite_rows(p4)
    safe = np.where(finite[:, None], p4, 0.0)
    length = np.sqrt(np.sum(safe[:, :3] ** 2, axis=1))
    faults = {
        f"a {kind} is not finite": ~finite,
        f"the energy of a {kind} is negative": safe[:, 3] < 0,
        f"a {kind} exceeds the collision energy: are the units GeV?": safe[:, 3] > beam_energy,
        # files store momenta to six or seven digits
        f"a {kind} has |p| > E": length > safe[:, 3] * (1 + 1e-5) + 1e-6,
    }
    return {what: np.bincount(event[bad], minlength=n) > 0 for what, bad in faults.items()}


def _mixed(p4: Floats, kind: int) -> np.ndarray:
    """Hashes each momentum to 64 bits, shape ``(k,)``."""
    bits = np.ascontiguousarray(p4, np.float64).view(np.uint64).reshape(-1, 4)
    mixed = np.full(len(bits), kind, np.uint64)
    for i in range(4):
        mixed = (mixed ^ bits[:, i]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


class Reader(Protocol):
    """Reads one file, chunk by chunk."""

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries in their order."""
        ...


class ReaderClass(Protocol):
    """Makes readers."""

    def __call__(self, path: Any, card: ProcessCard, options: ReadOptions) -> Reader:
        """Opens a file."""
        ...


@dataclass(frozen=True)
class Found:
    """Reconstructed objects of a chunk, as the selection wants them.

    Attributes:
        objects: Objects by kind.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(n, 2)``.
    """

    objects: Mapping[str, Objects]
    ptmiss: Floats

    def find(self, group: SlotGroup, wanted: Mask) -> Objects:
        """Returns the objects of one kind in the wanted entries."""
        objects = self.objects[group.kind]
        return objects[wanted[objects.event]]


def without_overlaps(objects: Mapping[str, Objects], card: ProcessCard) -> dict[str, Objects]:
    """Removes jets that are one of the card's leptons or photons.

    A jet goes that is closer to a lepton or photon within the card's limits than its own radius,
    Delta R = 0.4, or 0.8 of large-radius jets.
    """
    groups = {group.kind: group for group in card.objects}
    cleaned = dict(objects)
    for jets, radius in (("jet", JET_RADIUS), ("fatjet", FATJET_RADIUS)):
        for kind in ("lepton", "photon"):
            if jets in cleaned and kind in groups and kind in objects:
                with np.errstate(all="ignore"):  # bad momenta are near nothing
                    taken = objects[kind].accepted(groups[kind])
                    apart = is_apart(cleaned[jets], taken, radius)
                cleaned[jets] = cleaned[jets][apart]
    return cleaned


_BEAM_TOLERANCE = 0.01


def refuse_other_energy(path: Any, energy: float, card: ProcessCard) -> None:
    """Refuses a file whose collisions have another energy than those of the card.

    Args:
        path: The file, for the message.
        energy: Centre-of-mass energy of its collisions [GeV].
        card: The process.

    Raises:
        ImportFileError: If the two differ by more than a hundredth.
    """
    if abs(energy / card.beam_energy - 1) > _BEAM_TOLERANCE:
        raise ImportFileError(
            f"'{path}' has collisions at {energy:g} GeV, the card '{card.name}' is for "
            f"{card.beam_energy:g} GeV: check the units of the file, or change the 'beam_energy' "
            "of the card."
        )


def brief(error: Exception) -> str:
    """Returns kind and first line of an error of another library."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def unreadable_entries(path: Any, start: int, stop: int, what: str) -> ImportFileError:
    """Builds the error for a range of entries that cannot be read."""
    return ImportFileError(f"'{path}', entries {start} to {stop - 1}: {what}")
