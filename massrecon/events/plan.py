"""The bookkeeping of a simulation: which parts are done, under way, and still needed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard

_FIRST_GUESS = 0.3
"""Fraction of the collisions expected to be selected before any is made."""

_MARGIN = 1.01

_NO_LIMIT = 2**62

Entry = dict[str, Any]
"""A finished part in the manifest."""


@dataclass(frozen=True)
class Amount:
    """How much is wanted, and how it is cut into parts.

    Attributes:
        n_events: Number of selected events to stop at; None for no such limit.
        n_groups: Number of groups of collisions to stop at; None for no such limit.
        group_events: Collisions in a group.
        part_groups: Groups in a part.
    """

    n_events: int | None
    n_groups: int | None
    group_events: int
    part_groups: int

    @property
    def part_events(self) -> int:
        """Collisions in a part."""
        return self.group_events * self.part_groups

    @property
    def goal(self) -> int:
        """Selected events to stop at, or collisions where that is what was asked for."""
        return self.n_events or (self.n_groups or 0) * self.group_events

    def reached(self, n_events: int, n_groups: int) -> bool:
        """Says whether the sample is complete with so many events in so many groups."""
        enough = self.n_events is not None and n_events >= self.n_events
        return enough or (self.n_groups is not None and n_groups >= self.n_groups)

    def groups_of(self, part: int) -> int:
        """Returns how many groups of a part are wanted at most."""
        if self.n_groups is None:
            return self.part_groups
        return max(0, min(self.part_groups, self.n_groups - part * self.part_groups))


class PartPlan:
    """Which parts are done, being made, and still needed for the amount that is wanted."""

    def __init__(self, amount: Amount, done: dict[int, Entry]) -> None:
        self.amount = amount
        self.done = done
        self.assigned: dict[int, int] = {}
        self._progress: dict[int, tuple[int, int]] = {}
        self._drop_short()

    @property
    def finished(self) -> bool:
        """Whether the parts from the first on hold enough."""
        return self._enough(self._leading())

    @property
    def n_events(self) -> int:
        """Number of events of the sample, as far as its parts are done."""
        n_selected = sum(group["cut_flow"]["selected"] for group in self.needed_groups())
        return n_selected if self.amount.n_events is None else min(n_selected, self.amount.n_events)

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
        wanted = self.amount.n_events
        if self.assigned and wanted is not None:
            expected = len(self.assigned) * self._events_per_part()
            expected += sum(entry["n_events"] for entry in self.done.values())
            if expected >= _MARGIN * wanted:
                return None
        taken = {*self.done, *self.assigned.values()}
        part = next(number for number in range(len(taken) + 1) if number not in taken)
        if self.amount.groups_of(part) == 0:
            return None
        self.assigned[worker] = part
        return part

    def limit(self, part: int) -> int:
        """Returns how many events of a part are needed at most, given the parts before it."""
        if self.amount.n_events is None:
            return _NO_LIMIT
        before = sum(entry["n_events"] for number, entry in self.done.items() if number < part)
        before += sum(selected for p, (_, selected) in self._progress.items() if p < part)
        return max(1, self.amount.n_events - before)

    def useful_workers(self) -> int:
        """Returns with how many workers each has a part to make."""
        there = sum(entry["n_events"] for entry in self.done.values())
        parts = []
        if self.amount.n_events is not None:
            missing = max(1, self.amount.n_events - there)
            parts.append(-(-missing // int(_FIRST_GUESS * self.amount.part_events)))
        if self.amount.n_groups is not None:
            parts.append(-(-self.amount.n_groups // self.amount.part_groups) - len(self.done))
        return max(1, min(parts))

    def advance(self) -> int:
        """Number of events selected, or generated where that is what was asked for, so far."""
        if self.amount.n_events is not None:
            done = sum(entry["n_events"] for entry in self.done.values())
            under_way = sum(selected for _, selected in self._progress.values())
            return min(done + under_way, self.amount.n_events)
        groups = itertools.chain.from_iterable(entry["groups"] for entry in self.done.values())
        done = sum(group["cut_flow"]["generated"] for group in groups)
        return done + sum(generated for generated, _ in self._progress.values())

    def cut_flow(self) -> Counter[str]:
        """Adds up the cut flow of the needed groups."""
        total: Counter[str] = Counter()
        for group in self.needed_groups():
            total.update(group["cut_flow"])
        return total

    def needed_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of collisions from the first on, up to the one that completes."""
        needed, selected = [], 0
        for group in itertools.chain.from_iterable(entry["groups"] for entry in self._leading()):
            if self.amount.reached(selected, len(needed)):
                break
            needed.append(group)
            selected += group["cut_flow"]["selected"]
        return needed

    def refuse_empty(self, card: ProcessCard) -> None:
        """Refuses to go on when the selection removes everything.

        Raises:
            GenerationError: If selected events are wanted and a whole part has none; it names the
                cut that is to blame.
        """
        flow = self.cut_flow()
        if not flow or flow["selected"] or self.amount.n_events is None:
            return
        counts = ", ".join(f"{n} {name}" for name, n in flow.items() if name != "selected")
        blamed = next((name for name, n in flow.items() if n == 0), "selected")
        raise GenerationError(
            f"No event was selected: the cut on '{blamed}' removed the last ({counts}). Check "
            f"'objects' of the card '{card.name}' and the masses; to keep the few that pass, ask "
            "for a number of collisions, 'n_generated'."
        )

    def _enough(self, entries: Iterable[Entry]) -> bool:
        entries = list(entries)
        n_events = sum(entry["n_events"] for entry in entries)
        return self.amount.reached(n_events, sum(len(entry["groups"]) for entry in entries))

    def _leading(self) -> list[Entry]:
        """Returns the finished parts from the first on, without a gap, as far as needed."""
        found: list[Entry] = []
        while len(found) in self.done and not self._enough(found):
            found.append(self.done[len(found)])
        return found

    def _drop_short(self) -> None:
        """Forgets parts that ended early for a smaller sample and are too short for this one."""
        leading: list[Entry] = []
        for number, entry in enumerate(self._leading()):
            leading.append(entry)
            wanted = self.amount.groups_of(number)
            short = not entry["complete"] and len(entry["groups"]) < wanted
            if short and not self._enough(leading):
                del self.done[number]
                return

    def _events_per_part(self) -> float:
        """Estimates the number of selected events in a part."""
        flows = [g["cut_flow"] for entry in self.done.values() for g in entry["groups"]]
        under_way = self._progress.values()
        generated = sum(f["generated"] for f in flows) + sum(g for g, _ in under_way)
        selected = sum(f["selected"] for f in flows) + sum(s for _, s in under_way)
        return self.amount.part_events * (selected / generated if generated else _FIRST_GUESS)
