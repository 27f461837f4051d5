"""Cross-section and acceptance by mass cell: counts, weights, errors, joining, expected events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.cells import (
    Cell,
    count_cells,
    expected_yields,
    merge_cells,
    summarise_cells,
)
from massrecon.events.masses import parse_masses
from massrecon.events.trials import Trials

FIXED = {"chi20": 600, "chi10": 200}


def sample(
    card: ProcessCard, masses: Any, n: int, seed: int, acceptance: float = 0.4
) -> tuple[list[Cell], np.ndarray, np.ndarray, np.ndarray]:
    """Counts `n` collisions with weights from 0.5 to 1.5; also their masses, weights and fate."""
    rng = np.random.default_rng(seed)
    prior = parse_masses(card, masses)
    points, weight = prior.draw(rng, n), rng.uniform(0.5, 1.5, n)
    selected = rng.random(n) < acceptance
    trials = [(points[0], {"7": Trials.of(4 * n, n, n, 12.0, 0.1)})]
    return count_cells(prior, points, weight, selected, trials), points, weight, selected


def test_a_range_is_cut_into_cells_and_a_grid_is_not(card: ProcessCard) -> None:
    rows, points, weight, selected = sample(card, {"chi20": [500, 600], "chi10": (60, 160)}, 999, 1)
    cells = summarise_cells(rows)
    assert [cell["masses"] for cell in cells] == [
        {"chi20": m2, "chi10": [m1, m1 + 50.0]} for m2 in (500.0, 600.0) for m1 in (50, 100, 150)
    ]
    for cell in cells:
        low, high = cell["masses"]["chi10"]
        here = (points[:, 0] == cell["masses"]["chi20"]) & (points[:, 1] // 50 == low // 50)
        assert high == low + 50
        assert cell["n_generated"] == here.sum()
        assert cell["n_selected"] == (here & selected).sum()
        assert cell["weight_generated"] == pytest.approx(weight[here].sum())
        assert cell["weight_selected"] == pytest.approx(weight[here & selected].sum())
    with_trials = [cell for cell in cells if cell["cross_section_fb"] is not None]
    assert len(with_trials) == 1
    assert with_trials[0]["cross_section_fb"] == pytest.approx(12.0)
    assert with_trials[0]["cross_section_error_fb"] == pytest.approx(0.1)


def test_groups_add_up_whatever_their_order(card: ProcessCard) -> None:
    groups = [sample(card, {"chi10": (50, 450)}, 500, seed)[0] for seed in range(4)]
    forward = summarise_cells([row for group in groups for row in group])
    backward = summarise_cells([row for group in reversed(groups) for row in group])
    assert sum(cell["n_generated"] for cell in forward) == 2_000
    for one, two in zip(forward, backward, strict=True):
        assert one["masses"] == two["masses"]
        assert one["acceptance_error"] == pytest.approx(two["acceptance_error"])
        assert one["cross_section_fb"] == pytest.approx(two["cross_section_fb"])


def test_the_errors_are_those_of_repeated_samples(card: ProcessCard) -> None:
    found = [summarise_cells(sample(card, FIXED, 400, seed)[0])[0] for seed in range(300)]
    acceptance = np.array([cell["acceptance"] for cell in found])
    errors = np.array([cell["acceptance_error"] for cell in found])
    assert acceptance.mean() == pytest.approx(0.4, abs=4 * acceptance.std() / 300**0.5)
    assert errors.mean() == pytest.approx(acceptance.std(), rel=0.15)
    # weights from 0.5 to 1.5 cost 1/24 of the statistics
    assert errors.mean() == pytest.approx((0.24 / 400 * 13 / 12) ** 0.5, rel=0.05)


def test_branching_fraction_and_the_cross_section_of_a_file(card: ProcessCard) -> None:
    rows = sample(card, FIXED, 100, 1)[0]
    assert summarise_cells(rows, 0.25)[0]["cross_section_fb"] == pytest.approx(3.0)
    assert summarise_cells(rows, 0.25)[0]["cross_section_error_fb"] == pytest.approx(0.025)
    of_file = summarise_cells(rows, 0.5, 40.0)[0]
    assert of_file["cross_section_fb"] == 20.0
    assert of_file["cross_section_error_fb"] is None


def test_joined_samples_are_averaged_by_their_size(card: ProcessCard) -> None:
    one = summarise_cells(sample(card, FIXED, 1_000, 1)[0])
    two = summarise_cells(sample(card, FIXED, 3_000, 2)[0])
    both = merge_cells([one, two])
    together = summarise_cells(sample(card, FIXED, 1_000, 1)[0] + sample(card, FIXED, 3_000, 2)[0])
    assert len(both) == 1
    for name in ("n_generated", "weight_selected", "acceptance", "acceptance_error"):
        assert both[0][name] == pytest.approx(together[0][name], rel=2e-3), name
    assert both[0]["cross_section_error_fb"] == pytest.approx(0.1 * (1 + 9) ** 0.5 / 4)
    unknown = [{**two[0], "cross_section_fb": None, "cross_section_error_fb": None}]
    assert merge_cells([one, unknown])[0]["cross_section_fb"] is None
    other = summarise_cells(sample(card, {"chi20": 500}, 10, 3)[0])
    assert [cell["masses"]["chi20"] for cell in merge_cells([one, other])] == [500.0, 600.0]


def test_yields_add_up_to_cross_section_times_acceptance_times_luminosity(
    card: ProcessCard,
) -> None:
    rows, points, weight, selected = sample(card, {"chi10": [100, 200]}, 600, 4)
    extra, *_ = sample(card, {"chi10": [100, 200]}, 600, 4)  # the same again, for trials at both
    extra[0]["trials"], extra[1]["trials"] = extra[1]["trials"], extra[0]["trials"]
    cells = summarise_cells([*rows, *extra])
    points, weight = np.concatenate([points[selected]] * 2), np.concatenate([weight[selected]] * 2)
    n = len(weight)
    provenance = {"cells": cells, "n_selected": n, "n_events": n}
    yields = expected_yields(provenance, card.mass_names, points, weight, 3000.0)
    for cell in cells:
        here = points[:, 1] == cell["masses"]["chi10"]
        wanted = cell["cross_section_fb"] * cell["acceptance"] * 3000.0
        assert yields[here].sum() == pytest.approx(wanted)
    # a sample that stops before its last group does stands for all of it
    cut = expected_yields({**provenance, "n_events": n // 2}, card.mass_names, points, weight, 1.0)
    assert cut.sum() == pytest.approx(2 * yields.sum() / 3000.0, rel=1e-2)


def test_what_cannot_be_counted_is_refused(card: ProcessCard) -> None:
    rows, points, weight, _ = sample(card, {"chi10": (50, 150)}, 60, 5)
    made = {"cells": summarise_cells(rows), "n_selected": 1, "n_events": 1}
    with pytest.raises(InputError, match="masses from a continuous range"):
        expected_yields(made, card.mass_names, points, weight, 1.0)
    with pytest.raises(InputError, match="cross-section of these events is not known"):
        expected_yields({}, card.mass_names, points, weight, 1.0)
    with pytest.raises(InputError, match="'luminosity' should be positive"):
        expected_yields(made, card.mass_names, points, weight, 0.0)
    fixed = {**made, "cells": summarise_cells(sample(card, FIXED, 10, 1)[0])}
    with pytest.raises(InputError, match="60 of 60 events are at masses of no cell of their prov"):
        expected_yields(fixed, card.mass_names, points, weight, 1.0)
    fixed["cells"][0]["cross_section_fb"] = None
    with pytest.raises(InputError, match="cross-section of these events is not known"):
        expected_yields(fixed, card.mass_names, np.array([[600.0, 200.0]]), np.ones(1), 1.0)
