"""From the chunks of a reader to selected events: checks, detector, selection, truth, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from massrecon.errors import ImportFileError
from massrecon.events.card import ProcessCard
from massrecon.events.cells import summarise_cells
from massrecon.events.columns import Arrays
from massrecon.events.detector import detect
from massrecon.events.importers.chunk import Chunk, Found, without_overlaps
from massrecon.events.importers.graph import BROAD, mass_points
from massrecon.events.objects import Reconstruction
from massrecon.events.particles import Floats, Mask, Particles
from massrecon.events.selection import select

UNMATCHED_MAX = 0.1
"""Largest fraction of entries without the decay tree for which truth is kept unasked."""

BAD_MAX = 0.5
"""Largest fraction of entries that may be skipped."""

_ODD = 10
"""Entries without the decay tree that any chunk may have: few of few are no large fraction."""

REPEATED = "it repeats an earlier entry"


class Intake:
    """Takes in the chunks of one import and keeps count.

    Attributes:
        n_read: Entries read.
        skipped: Entries left out, by what was wrong with them.
        flow: How many entries passed each step.
        truth: Whether the true particles are kept; None as long as that is open.
        known_masses: True masses of all entries [GeV], in the order of the card; None if not given.
        cross_section_fb: Cross-section that the file gave last [fb], None if none.
    """

    def __init__(
        self,
        card: ProcessCard,
        *,
        seed: int = 0,
        skip_bad: bool = False,
        truth: bool | None = None,
        masses: Mapping[str, float] | None = None,
    ) -> None:
        self.card, self.seed, self.skip_bad, self.truth = card, seed, skip_bad, truth
        self.known_masses = None if not masses else [masses[name] for name in card.mass_names]
        self._unasked = truth is None
        self.n_read = 0
        self.skipped: Counter[str] = Counter()
        self.flow: Counter[str] = Counter()
        self.cross_section_fb: float | None = None
        self._seen = np.zeros(0, np.uint64)
        self._weights = np.zeros(4)
        self._resonances: dict[str, float] = {}
        self._low = np.full(len(card.mass_names), np.inf)
        self._high = np.full(len(card.mass_names), -np.inf)

    def take(self, chunk: Chunk, path: Any) -> Arrays:
        """Checks and selects the entries of a chunk.

        Args:
            chunk: The entries.
            path: The file, for messages.

        Returns:
            Event arrays of those that are selected.

        Raises:
            ImportFileError: If an entry is bad and bad ones are not to be skipped, or too many
                are; or if the decay tree is missing in too many.
        """
        good = ~self._bad(chunk, path)
        self.n_read += len(chunk)
        self.cross_section_fb = chunk.cross_section_fb or self.cross_section_fb
        known = self._matched(chunk, good, path)
        masses = self._masses(chunk, known)
        arrays, events, passed = select(self.card, self._reconstruct(chunk, good), known)
        arrays |= {name: values[events] for name, values in chunk.weights.items()}
        if self.truth and chunk.partons is not None:
            arrays["partons"] = chunk.partons[events]
        if masses is not None:
            arrays["masses"] = masses[events]
        self._count(chunk, good, known, passed, events)
        return arrays

    def finish(self, path: Any) -> dict[str, Any]:
        """Checks the sums and returns them for the provenance.

        Raises:
            ImportFileError: If more entries were skipped, or lack the decay tree, than may be.
        """
        n_skipped = sum(self.skipped.values())
        if n_skipped > BAD_MAX * self.n_read:
            what = self.skipped.most_common(1)[0][0]
            raise ImportFileError(
                f"'{path}': {n_skipped} of {self.n_read} entries are bad, most often because "
                f"{what}. That is more than can be skipped: check what the file is."
            )
        flow = {"read": self.n_read, "sound": self.n_read - n_skipped, **self.flow}
        counts = {"n_generated": flow["sound"], "n_selected": flow.get("selected", 0)}
        summary: dict[str, Any] = {"cut_flow": flow, "skipped": dict(self.skipped), **counts}
        row = {"masses": self._cell(), "weights": self._weights.tolist(), "trials": {}, **counts}
        cells = summarise_cells([row], cross_section_fb=self.cross_section_fb)
        return summary | {"truth": bool(self.truth), "cells": cells}

    def _bad(self, chunk: Chunk, path: Any) -> Mask:
        """Finds bad entries and counts them, or refuses the file because of them."""
        defects = chunk.all_defects(self.card.beam_energy)
        bad = np.zeros(len(chunk), bool)
        repeated = self._repeated(chunk, np.any([bad, *defects.values()], axis=0))
        defects |= {REPEATED: repeated}
        for what, mask in defects.items():
            if (mask & ~bad).any():
                self.skipped[what] += int((mask & ~bad).sum())
            bad |= mask
        if bad.any() and not self.skip_bad:
            first = int(np.flatnonzero(bad)[0])
            what = next(text for text, mask in defects.items() if mask[first])
            raise ImportFileError(
                f"'{path}', entry {chunk.start + first}: {what} ({int(bad.sum())} of the entries "
                f"{chunk.start} to {chunk.stop - 1} are bad). Repair the file, or leave out its "
                "bad entries with skip_bad=True (--skip-bad)."
            )
        return bad

    def _repeated(self, chunk: Chunk, bad: Mask) -> Mask:
        """Marks entries with the very same momenta as an earlier one."""
        number = chunk.fingerprints()
        number[bad] = 0
        first = np.zeros(len(number), bool)
        first[np.unique(number, return_index=True)[1]] = True
        place = np.searchsorted(self._seen, number)
        there = np.zeros(len(number), bool)
        inside = place < len(self._seen)
        there[inside] = self._seen[place[inside]] == number[inside]
        repeated = (number != 0) & (there | ~first)
        new = np.sort(number[(number != 0) & ~repeated])
        self._seen = np.insert(self._seen, np.searchsorted(self._seen, new), new)
        return repeated

    def _matched(self, chunk: Chunk, good: Mask, path: Any) -> Mask:
        """Returns the sound entries that may be selected; decides about truth if that is open."""
        if chunk.matched is None and self.truth:
            raise ImportFileError(
                f"'{path}' has no true particles, or not all of the card '{self.card.name}': leave "
                "out truth=True."
            )
        if chunk.matched is None or self.truth is False:
            self.truth = False
            return good
        n_good, n_unmatched = int(good.sum()), int((good & ~chunk.matched).sum())
        few = n_unmatched <= UNMATCHED_MAX * n_good
        if self.truth is None:
            self.truth = few and n_good > 0
        elif self._unasked and not few and n_unmatched > _ODD:
            raise ImportFileError(
                f"'{path}', entries {chunk.start} to {chunk.stop - 1}: the decay of the card "
                f"'{self.card.name}' is missing in {n_unmatched} of them, though it was there "
                "before. Say truth=True to leave them out, or truth=False (--no-truth) to keep all."
            )
        return good & chunk.matched if self.truth else good

    def _masses(self, chunk: Chunk, known: Mask) -> Floats | None:
        """Returns the mass parameters of all entries, where they are known."""
        masses = None
        if self.known_masses is not None:
            masses = np.tile(np.array(self.known_masses), (len(chunk), 1))
        elif self.truth and chunk.partons is not None:
            masses = chunk.masses
            if masses is None:
                masses = np.zeros((len(chunk), len(self.card.mass_names)))
                masses[known] = mass_points(self.card, chunk.partons[known])
                self._keep_broad(masses, known)
        if masses is not None and known.any():
            self._low = np.minimum(self._low, masses[known].min(axis=0))
            self._high = np.maximum(self._high, masses[known].max(axis=0))
        return masses

    def _keep_broad(self, masses: Floats, known: Mask) -> None:
        """Gives resonances the mass in all entries that they had in the first ones."""
        for i, (name, parameter) in enumerate(self.card.masses.items()):
            if parameter.tolerance > BROAD and known.any():
                masses[known, i] = self._resonances.setdefault(name, masses[known][0, i])

    def _reconstruct(self, chunk: Chunk, good: Mask) -> Reconstruction:
        """Returns the reconstructed objects, of our own detector where the file has particles."""
        if chunk.particles is None:
            assert chunk.ptmiss is not None
            objects = chunk.objects
            return Found(
                without_overlaps(objects, self.card) if chunk.overlaps else objects, chunk.ptmiss
            )
        rng = np.random.default_rng([self.seed, chunk.start + 1])
        heavy = None if chunk.heavy is None else _sound(chunk.heavy, good)
        settings = self.card.detector
        return detect(_sound(chunk.particles, good), len(chunk), rng, settings, heavy)

    def _count(
        self, chunk: Chunk, good: Mask, known: Mask, passed: dict[str, int], events: np.ndarray
    ) -> None:
        steps = {"matched": int(known.sum())} if self.truth else {}
        self.flow.update(steps | passed | {"selected": len(events)})
        weight = chunk.weights["weight"]
        for i, chosen in enumerate((weight[good], weight[events])):
            self._weights[2 * i : 2 * i + 2] += chosen.sum(), (chosen**2).sum()

    def _cell(self) -> dict[str, Any]:
        """Names the masses of the sample: values, or ranges."""
        pairs = zip(self.card.mass_names, self._low.tolist(), self._high.tolist(), strict=True)
        return {
            name: low if low == high else [low, high] for name, low, high in pairs if low <= high
        }


def _sound(particles: Particles, good: Mask) -> Particles:
    """Leaves out the particles of bad entries."""
    return particles[good[particles.event]]
