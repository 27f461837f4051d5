"""One part of a simulation: a fixed number of collisions, a pure function of request and number.

A part is cut into groups, a group into blocks. All events of a block share a mass point and come
from one Pythia seed; all blocks of a group go through the detector together. Seeds and mass points
follow from the seed of the request and the number of the part alone, so that it does not matter
which worker makes a part, or when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from massrecon.events.cells import count_cells
from massrecon.events.columns import Arrays
from massrecon.events.detector import detect
from massrecon.events.hard import BLOCKS_PER_PART, PART_GROUPS, Group, source_of
from massrecon.events.particles import Integers, Mask
from massrecon.events.request import Request
from massrecon.events.selection import select
from massrecon.events.tagging import heavy_flavour
from massrecon.events.truth import check_masses, check_matched, match_partons


@dataclass(frozen=True)
class Part:
    """The selected events of one part.

    Attributes:
        arrays: Event arrays, as in `Events`, and ``block``, the number of the mass block.
        groups: For each group ``cut_flow``, the number of collisions after each step of the
            selection, and ``cells``, the rows of `count_cells`.
        complete: Whether all groups were made; False if enough events were found before.
    """

    arrays: Arrays
    groups: list[dict[str, Any]]
    complete: bool


class PartMaker:
    """Makes parts of one request."""

    def __init__(self, request: Request) -> None:
        """Prepares the source of the collisions."""
        self.request = request
        self.source = source_of(request)

    def close(self) -> None:
        """Removes temporary files."""
        self.source.close()

    def make(
        self, number: int, limit: Callable[[], int], progress: Callable[[int, int], None]
    ) -> Part:
        """Generates, measures and selects the events of a part.

        Args:
            number: Number of the part.
            limit: Says how many selected events are needed: the part ends with the group that
                reaches them.
            progress: Called after each group with the numbers of collisions and selected events.

        Raises:
            GenerationError: If Pythia fails, or its masses or decays are not those asked for.
        """
        made: list[Arrays] = []
        done: list[dict[str, Any]] = []
        ended = True
        for number_in_part, group in enumerate(self.source.groups(number)):
            # counted from 1: NumPy seeds [a, b] and [a, b, 0] alike
            noise = np.random.default_rng([self.request.seed, number, number_in_part + 1])
            arrays, about = self._measure(group, noise)
            arrays["block"] += number * BLOCKS_PER_PART
            made.append(arrays)
            done.append(about)
            n_selected = sum(group["cut_flow"]["selected"] for group in done)
            progress(sum(group["cut_flow"]["generated"] for group in done), n_selected)
            if n_selected >= limit():
                ended = len(done) == PART_GROUPS
                break
        joined = {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}
        return Part(joined, done, ended)

    def _measure(self, group: Group, rng: np.random.Generator) -> tuple[Arrays, dict[str, Any]]:
        """Runs truth matching, detector and selection on a group of collisions."""
        record = group.record
        truth, matched = self._truth(group)
        noise = {"ptmiss_noise": self.request.settings.ptmiss_noise}
        settings = self.request.card.detector.model_copy(update=noise)
        heavy = heavy_flavour(record) if settings.tagging else None
        card, particles = self.request.card, record.stable()
        response = detect(particles, record.n_events, rng, settings, heavy, card.objects)
        arrays, events, passed = select(card, response, matched & response.complete)
        reached = {
            f"{kind} candidates": int((matched & enough).sum())
            for kind, enough in response.reachable.items()
        }
        rows = group.rows[events]
        arrays |= {name: values[events] for name, values in truth.items()}
        arrays |= {name: values[rows] for name, values in group.weights.items()}
        arrays["block"] = group.block[rows]
        return arrays, self._describe(group, rows, int(matched.sum()), reached | passed)

    def _truth(self, group: Group) -> tuple[Arrays, Mask]:
        """Finds the true particles and masses, and the collisions where they are known."""
        card, n_events = self.request.card, group.record.n_events
        if not self.request.settings.truth:
            return {}, np.ones(n_events, bool)
        masses = group.masses[group.rows]
        partons, matched = match_partons(card, group.record)
        check_matched(card, int(matched.sum()), n_events)
        check_masses(card, partons[matched], masses[matched])
        return {"partons": partons, "masses": masses}, matched

    def _describe(
        self, group: Group, rows: Integers, n_matched: int, passed: dict[str, int]
    ) -> dict[str, Any]:
        """Counts what became of a group of collisions."""
        n_generated = len(group.block)
        flow = {"generated": n_generated}
        if self.request.lhe is not None:
            flow["showered"] = group.record.n_events
        if self.request.settings.truth:
            flow["matched"] = n_matched
        selected = np.zeros(n_generated, bool)
        selected[rows] = True
        cells = count_cells(
            self.request.prior, group.masses, group.weights["weight"], selected, group.trials
        )
        return {"cut_flow": flow | passed | {"selected": len(rows)}, "cells": cells}
