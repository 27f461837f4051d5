"""The bookkeeping of a simulation: which parts are done, under way, and still needed."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard
from massrecon.events.cells import CellSums

_FIRST_GUESS = 0.3
"""Fraction of the collisions expected to be selected before any is made."""

_MARGIN = 1.01

NO_LIMIT = 2**62
"""More events than any part has."""

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
        self._listed: dict[int, str] = {}
        # sums of the first parts, of which all groups are needed
        self._n_summed = 0
        self._summed: tuple[Counter[str], CellSums] = Counter(), CellSums()
        self._drop_short()

    @property
    def finished(self) -> bool:
        """Whether the parts from the first on hold enough."""
        return any(enough for _, enough in self._run())

    @property
    def n_events(self) -> int:
        """Number of events of the sample, as far as its parts are done."""
        n_selected = self.totals()[0]["selected"]
        return n_selected if self.amount.n_events is None else min(n_selected, self.amount.n_events)

    def add(self, entry: Entry) -> None:
        """Takes note of a finished part."""
        number = entry["number"]
        self.done[number] = entry
        self._listed.pop(number, None)
        self._progress.pop(number, None)
        self.assigned = {w: part for w, part in self.assigned.items() if part != number}
        self._drop_short()

    def listing(self) -> list[str]:
        """Returns the finished parts in their order, each as a line of JSON."""
        for number, entry in self.done.items():
            if number not in self._listed:
                self._listed[number] = json.dumps(entry, ensure_ascii=False)
        return [self._listed[number] for number in sorted(self.done)]

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
            return NO_LIMIT
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

    def totals(self) -> tuple[Counter[str], CellSums]:
        """Adds up cut flow and cells of the needed groups; only the new ones are looked at."""
        rest: list[Entry] = []
        for number, (entry, enough) in enumerate(self._run()):
            if enough:
                rest.append(entry)
            elif number == self._n_summed:
                _add_groups(self._summed, entry["groups"])
                self._n_summed += 1
        totals = self._summed[0].copy(), self._summed[1].copy()
        _add_groups(totals, self._needed(rest, totals[0]["selected"]))
        return totals

    def _needed(self, rest: list[Entry], selected: int) -> Iterator[dict[str, Any]]:
        """Yields the groups of the last parts, up to the one that completes the sample."""
        n_groups = sum(len(self.done[number]["groups"]) for number in range(self._n_summed))
        for group in itertools.chain.from_iterable(entry["groups"] for entry in rest):
            if self.amount.reached(selected, n_groups):
                return
            yield group
            selected, n_groups = selected + group["cut_flow"]["selected"], n_groups + 1

    def refuse_empty(self, card: ProcessCard) -> None:
        """Refuses to go on when the selection removes everything.

        Raises:
            GenerationError: If selected events are wanted and a whole part has none; it names the
                cut that is to blame.
        """
        flow, _ = self.totals()
        if not flow or flow["selected"] or self.amount.n_events is None:
            return
        counts = ", ".join(f"{n} {name}" for name, n in flow.items() if name != "selected")
        blamed = next((name for name, n in flow.items() if n == 0), "selected")
        raise GenerationError(
            f"No event was selected: the cut on '{blamed}' removed the last ({counts}). Check "
            f"'objects' of the card '{card.name}' and the masses; to keep the few that pass, ask "
            "for a number of collisions, 'n_generated'."
        )

    def _run(self) -> Iterator[tuple[Entry, bool]]:
        """Yields the parts from the first on, without a gap, as far as needed.

        With each it says whether the sample is complete.
        """
        n_events = n_groups = number = 0
        enough = False
        while number in self.done and not enough:
            entry = self.done[number]
            n_events, n_groups = n_events + entry["n_events"], n_groups + len(entry["groups"])
            enough = self.amount.reached(n_events, n_groups)
            yield entry, enough
            number += 1

    def _drop_short(self) -> None:
        """Forgets parts that ended early for a smaller sample and are too short for this one."""
        for number, (entry, enough) in enumerate(self._run()):
            wanted = self.amount.groups_of(number)
            short = not entry["complete"] and len(entry["groups"]) < wanted
            if short and not enough:
                del self.done[number]
                return

    def _events_per_part(self) -> float:
        """Estimates the number of selected events in a part."""
        flows = [g["cut_flow"] for entry in self.done.values() for g in entry["groups"]]
        under_way = self._progress.values()
        generated = sum(f["generated"] for f in flows) + sum(g for g, _ in under_way)
        selected = sum(f["selected"] for f in flows) + sum(s for _, s in under_way)
        return self.amount.part_events * (selected / generated if generated else _FIRST_GUESS)


def _add_groups(totals: tuple[Counter[str], CellSums], groups: Iterable[Mapping[str, Any]]) -> None:
    """Adds groups of collisions to their cut flow and cells."""
    for group in groups:
        totals[0].update(group["cut_flow"])
        totals[1].add(group["cells"])
