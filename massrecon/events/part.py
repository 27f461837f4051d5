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

from massrecon.events.detector import detect
from massrecon.events.masses import Tiers
from massrecon.events.particles import Floats
from massrecon.events.pythia import SEED_MAX, Collider, Record
from massrecon.events.request import Request
from massrecon.events.selection import select
from massrecon.events.truth import check_masses, check_matched, match_partons

BLOCK_EVENTS = 50
GROUP_BLOCKS = 10
PART_GROUPS = 6
BLOCKS_PER_PART = GROUP_BLOCKS * PART_GROUPS
EVENTS_PER_PART = BLOCK_EVENTS * BLOCKS_PER_PART

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """The selected events of one part.

    Attributes:
        arrays: Event arrays, as in `Events`, and ``block``, the number of the mass block.
        groups: For each group ``cut_flow``, the number of collisions after each step of the
            selection, and ``cross_sections``, the cross-section of each tier of masses that was
            used so far [fb].
        complete: Whether all groups were made, or enough events were found before.
    """

    arrays: Arrays
    groups: list[dict[str, Any]]
    complete: bool


class PartMaker:
    """Makes parts of one request; keeps one Pythia for each tier of masses between parts."""

    def __init__(self, request: Request) -> None:
        """Cuts the mass range of the request into tiers."""
        self.request = request
        self.tiers = Tiers.of(request.prior)
        self._colliders: dict[int, Collider] = {}

    def close(self) -> None:
        """Removes temporary files."""
        for collider in self._colliders.values():
            collider.close()

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
        rng = np.random.default_rng([self.request.seed, number])
        masses = self.request.prior.draw(rng, BLOCKS_PER_PART)
        seeds = rng.integers(1, SEED_MAX, BLOCKS_PER_PART)
        used: set[int] = set()
        made: list[Arrays] = []
        done: list[dict[str, Any]] = []
        for number_in_part, blocks in enumerate(np.split(np.arange(BLOCKS_PER_PART), PART_GROUPS)):
            colliders = [self._collider(masses[b], used) for b in blocks]
            records = [
                collider.generate(masses[b], int(seeds[b]), BLOCK_EVENTS)
                for collider, b in zip(colliders, blocks, strict=True)
            ]
            block = np.repeat(blocks, [record.n_events for record in records])
            # counted from 1: NumPy seeds [a, b] and [a, b, 0] alike
            noise = np.random.default_rng([self.request.seed, number, number_in_part + 1])
            arrays, flow = self._measure(Record.join(records), masses[block], noise)
            arrays["block"] = number * BLOCKS_PER_PART + block[arrays.pop("event")]
            made.append(arrays)
            done.append({"cut_flow": flow, "cross_sections": self._cross_sections(used)})
            n_selected = sum(group["cut_flow"]["selected"] for group in done)
            progress(sum(group["cut_flow"]["generated"] for group in done), n_selected)
            if n_selected >= limit():
                break
        joined = {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}
        return Part(joined, done, len(done) == PART_GROUPS)

    def _cross_sections(self, used: set[int]) -> dict[str, float]:
        """Returns the cross-section of each tier by its lower edge."""
        return {
            f"{self.tiers.edges[tier]:g}": self._colliders[tier].cross_section()
            for tier in sorted(used)
        }

    def _collider(self, point: Floats, used: set[int]) -> Collider:
        """Returns the Pythia of a mass point's tier, newly initialised once in every part."""
        tier = self.tiers.index(point)
        if tier not in self._colliders:
            self._colliders[tier] = Collider(
                self.request.card,
                self.tiers.start(tier),
                self.request.settings.multiparton,
                self.request.settings.pythia,
            )
        if tier not in used:
            self._colliders[tier].initialise()
            used.add(tier)
        return self._colliders[tier]

    def _measure(
        self, record: Record, masses: Floats, rng: np.random.Generator
    ) -> tuple[Arrays, dict[str, int]]:
        """Runs truth matching, detector and selection on a group of collisions."""
        card = self.request.card
        partons, matched = match_partons(card, record)
        check_matched(card, int(matched.sum()), record.n_events)
        check_masses(card, partons[matched], masses[matched])
        noise = self.request.settings.ptmiss_noise
        response = detect(record.stable(), record.n_events, rng, noise)
        arrays, events, passed = select(card, response, matched)
        arrays |= {
            "event": events,
            "weight": np.ones(len(events)),
            "partons": partons[events],
            "masses": masses[events],
        }
        flow = {"generated": record.n_events, "matched": int(matched.sum()), **passed}
        return arrays, flow | {"selected": len(events)}
