"""The bookkeeping of a simulation: which parts are done, under way, and still needed."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard
from massrecon.events.part import EVENTS_PER_PART

_FIRST_GUESS = 0.3
"""Fraction of the collisions expected to be selected before any is made."""

_MARGIN = 1.01

Entry = dict[str, Any]
"""A finished part in the manifest."""


class PartPlan:
    """Which parts are done, being made, and still needed for the first `n_events` events."""

    def __init__(self, n_events: int, done: dict[int, Entry]) -> None:
        self.n_events = n_events
        self.done = done
        self.assigned: dict[int, int] = {}
        self._progress: dict[int, tuple[int, int]] = {}
        self._drop_short()

    @property
    def finished(self) -> bool:
        """Whether the parts from the first on hold enough events."""
        return sum(entry["n_events"] for entry in self._leading()) >= self.n_events

    def add(self, entry: Entry) -> None:
        """Takes note of a finished part."""
        number = entry["number"]
        self.done[number] = entry
        self._progress.pop(number, None)
        self.assigned = {w: part for w, part in self.assigned.items() if part != number}
        self._drop_short()

    def update(self, part: int, generated: int, selected: int) -> None:
        """Takes note of the progress of a part."""
        self._progress[part] = generated, selected

    def idle(self, workers: range) -> list[int]:
        """Returns the workers without a part."""
        return [worker for worker in workers if worker not in self.assigned]

    def assign(self, worker: int) -> int | None:
        """Chooses the next part for a worker, None if the parts under way should be enough."""
        expected = len(self.assigned) * self._events_per_part()
        expected += sum(entry["n_events"] for entry in self.done.values())
        if self.assigned and expected >= _MARGIN * self.n_events:
            return None
        taken = {*self.done, *self.assigned.values()}
        part = next(number for number in range(len(taken) + 1) if number not in taken)
        self.assigned[worker] = part
        return part

    def limit(self, part: int) -> int:
        """Returns how many events of a part are needed at most, given the parts before it."""
        before = sum(entry["n_events"] for number, entry in self.done.items() if number < part)
        before += sum(selected for p, (_, selected) in self._progress.items() if p < part)
        return max(1, self.n_events - before)

    def useful_workers(self) -> int:
        """Returns with how many workers each has a part to make."""
        there = sum(entry["n_events"] for entry in self.done.values())
        missing = max(1, self.n_events - there)
        return max(1, -(-missing // int(_FIRST_GUESS * EVENTS_PER_PART)))

    def n_selected(self) -> int:
        """Number of events selected so far, as far as they are needed."""
        done = sum(entry["n_events"] for entry in self.done.values())
        under_way = sum(selected for _, selected in self._progress.values())
        return min(done + under_way, self.n_events)

    def cut_flow(self) -> Counter[str]:
        """Adds up the cut flow, up to the group of collisions that holds the last event."""
        total: Counter[str] = Counter()
        for group in itertools.chain.from_iterable(self._needed_groups()):
            total.update(group["cut_flow"])
        return total

    def cross_sections(self) -> dict[str, float]:
        """Returns the mean cross-section [fb] of each tier of masses, by its lower edge [GeV]."""
        found: dict[str, list[float]] = {}
        for groups in self._needed_groups():
            for edge, value in groups[-1]["cross_sections"].items():
                found.setdefault(edge, []).append(value)
        return {edge: sum(values) / len(values) for edge, values in found.items()}

    def refuse_empty(self, card: ProcessCard) -> None:
        """Refuses to go on when the selection removes everything.

        Raises:
            GenerationError: If a whole part has no event; it names the cut that is to blame.
        """
        flow = self.cut_flow()
        if not flow or flow["selected"]:
            return
        counts = ", ".join(f"{n} {name}" for name, n in flow.items() if name != "selected")
        blamed = next((name for name, n in flow.items() if n == 0), "selected")
        raise GenerationError(
            f"No event was selected: the cut on '{blamed}' removed the last ({counts}). Check "
            f"'objects' of the card '{card.name}' and the masses."
        )

    def _leading(self) -> list[Entry]:
        """Returns the finished parts from the first on, without a gap, as far as needed."""
        found, total = [], 0
        while len(found) in self.done and total < self.n_events:
            found.append(self.done[len(found)])
            total += found[-1]["n_events"]
        return found

    def _needed_groups(self) -> list[list[dict[str, Any]]]:
        """Returns the groups of each leading part, up to the one that holds the last event."""
        needed, selected = [], 0
        for entry in self._leading():
            needed.append([])
            for group in entry["groups"]:
                if selected < self.n_events:
                    needed[-1].append(group)
                    selected += group["cut_flow"]["selected"]
        return needed

    def _drop_short(self) -> None:
        """Forgets parts that ended early for a smaller sample and are too short for this one."""
        total = 0
        for number, entry in enumerate(self._leading()):
            total += entry["n_events"]
            if not entry["complete"] and total < self.n_events:
                del self.done[number]
                return

    def _events_per_part(self) -> float:
        """Estimates the number of selected events in a part."""
        flows = [g["cut_flow"] for entry in self.done.values() for g in entry["groups"]]
        under_way = self._progress.values()
        generated = sum(f["generated"] for f in flows) + sum(g for g, _ in under_way)
        selected = sum(f["selected"] for f in flows) + sum(s for _, s in under_way)
        return EVENTS_PER_PART * (selected / generated if generated else _FIRST_GUESS)
