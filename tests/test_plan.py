"""The bookkeeping of a simulation: what is still needed, handed out, kept and dropped."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from massrecon.errors import GenerationError
from massrecon.events.card import ProcessCard
from massrecon.events.cells import summarise_cells
from massrecon.events.plan import Amount, Entry, PartPlan

SIZES = {"group_events": 100, "part_groups": 3}


def entry(number: int, *selected: int) -> Entry:
    groups: list[dict[str, Any]] = [
        {"cut_flow": {"generated": 100, "jet": n, "selected": n}, "cells": []} for n in selected
    ]
    complete = len(selected) == SIZES["part_groups"]
    return {"number": number, "n_events": sum(selected), "complete": complete, "groups": groups}


def plan_of(n_events: int | None, n_groups: int | None, *entries: Entry) -> PartPlan:
    return PartPlan(Amount(n_events, n_groups, **SIZES), {e["number"]: e for e in entries})


def test_a_number_of_collisions_is_cut_into_parts_and_groups() -> None:
    plan = plan_of(None, 7)
    assert plan.useful_workers() == 3
    assert [plan.assign(worker) for worker in range(4)] == [0, 1, 2, None]
    assert [plan.amount.groups_of(part) for part in range(4)] == [3, 3, 1, 0]
    assert plan.amount.goal == 700
    plan.add(entry(1, 0, 0, 0))
    plan.add(entry(2, 5))
    assert not plan.finished
    assert plan.n_events == 0, "nothing counts before the first part is there"
    plan.add(entry(0, 1, 0, 2))
    assert plan.finished
    assert plan.n_events == 8
    assert plan.totals()[0] == {"generated": 700, "jet": 8, "selected": 8}
    assert plan.advance() == 700


def test_nothing_selected_is_fine_for_collisions_and_not_for_events(card: ProcessCard) -> None:
    empty = plan_of(None, 3, entry(0, 0, 0, 0))
    empty.refuse_empty(card)
    assert empty.finished
    assert empty.n_events == 0
    wanting = plan_of(10, None, entry(0, 0, 0, 0))
    with pytest.raises(GenerationError, match="cut on 'jet' removed the last"):
        wanting.refuse_empty(card)


def test_a_sample_ends_with_the_group_that_completes_it() -> None:
    parts = (entry(0, 4, 4, 4), entry(1, 4, 4, 4))
    by_events = plan_of(13, None, *parts)
    assert by_events.n_events == 13
    assert by_events.totals()[0]["generated"] == 400
    by_collisions = plan_of(None, 5, *parts)
    assert by_collisions.n_events == 20
    assert by_collisions.totals()[0]["generated"] == 500


def test_a_part_that_ended_early_is_made_again_for_more() -> None:
    short = entry(1, 4)
    assert plan_of(16, None, entry(0, 4, 4, 4), short).finished
    for plan in (
        plan_of(17, None, entry(0, 4, 4, 4), short),
        plan_of(None, 5, entry(0, 4, 4, 4), short),
    ):
        assert not plan.finished
        assert 1 not in plan.done
        assert plan.assign(0) == 1
    assert plan_of(None, 4, entry(0, 4, 4, 4), short).finished


def test_the_end_of_a_file_ends_a_sample_of_events() -> None:
    plan = plan_of(1_000, 4, entry(0, 4, 4, 4))
    assert not plan.finished
    assert plan.assign(0) == 1
    assert plan.assign(1) is None
    plan.add(entry(1, 3))
    assert plan.finished
    assert plan.n_events == 15


def test_a_limit_counts_what_is_there_before() -> None:
    plan = plan_of(20, None, entry(0, 4, 4, 4))
    assert plan.assign(0) == 1
    assert plan.assign(1) is None, "one part more should be enough"
    plan.update(1, 100, 5)
    assert plan.limit(1) == 8
    assert plan.limit(2) == 3
    assert plan.advance() == 17
    assert plan_of(None, 6).limit(0) > 10**9


def test_sums_that_grow_with_the_parts_are_those_of_all_groups() -> None:
    rng = np.random.default_rng(5)
    parts = [entry(number, *rng.integers(0, 9, 3).tolist()) for number in range(12)]
    for part in parts:
        for group in part["groups"]:
            selected = group["cut_flow"]["selected"]
            group["cells"] = [
                {
                    "masses": {"chi20": float(mass)},
                    "n_generated": 50,
                    "n_selected": selected,
                    "weights": [50.0, 50.0, *rng.random(2).tolist()],
                    "trials": {"7": [90, 60, 50, *rng.random(2).tolist()]},
                }
                for mass in rng.choice(5, 2, replace=False)
            ]
    groups = [group for part in parts for group in part["groups"]][:32]
    growing = plan_of(None, 32)
    for number in rng.permutation(12).tolist()[::-1]:
        growing.add(parts[number])
        growing.totals()
    flow, cells = growing.totals()
    assert growing.finished
    assert flow["selected"] == sum(group["cut_flow"]["selected"] for group in groups)
    expected = summarise_cells([row for group in groups for row in group["cells"]], 0.5)
    assert cells.summary(0.5) == expected, "to the last bit"
    assert len(expected) == 5
    assert [json.loads(line)["number"] for line in growing.listing()] == list(range(12))
