"""Mass requests: fixed values, ranges and grids, closed channels, tiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.masses import Tiers, parse_masses


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        (300, "fixed", (300.0,)),
        (np.float64(300.0), "fixed", (300.0,)),
        ("300", "fixed", (300.0,)),
        ((50, 450), "range", (50.0, 450.0)),
        ("50:450", "range", (50.0, 450.0)),
        ([150, 50, 100], "grid", (50.0, 100.0, 150.0)),
        (np.array([50.0, 100.0]), "grid", (50.0, 100.0)),
        ("50,100,150", "grid", (50.0, 100.0, 150.0)),
    ],
)
def test_a_mass_is_read_in_every_spelling(
    card: ProcessCard, value: Any, kind: str, values: tuple[float, ...]
) -> None:
    choice = parse_masses(card, {"chi10": value}).choice("chi10")
    assert (choice.kind, choice.values) == (kind, values)


def test_masses_that_are_not_given_take_the_default(card: ProcessCard) -> None:
    points = parse_masses(card).draw(np.random.default_rng(1), 5)
    np.testing.assert_array_equal(points, [[600.0, 200.0]] * 5)


def test_a_request_is_stored_without_loss(card: ProcessCard) -> None:
    prior = parse_masses(card, {"chi20": (400.1, 700.3), "chi10": [50, 100.7]})
    assert parse_masses(card, prior.to_dict()) == prior


@pytest.mark.parametrize(
    ("masses", "message"),
    [
        (
            {"chi1": 300},
            r"Unknown mass 'chi1' \(did you mean 'chi10'\?\): choose from chi20, chi10",
        ),
        ({"chi10": "heavy"}, r"'chi10' should be a number, a range 'low:high' or a grid"),
        ({"chi10": "50:100:150"}, r"'chi10' should be a number, a range"),
        ({"chi10": (50, 100, 150)}, r"'chi10' should be a number, a range"),
        ({"chi10": []}, r"'chi10' should be a number"),
        ({"chi10": True}, r"'chi10' should be a number"),
        ({"chi10": None}, r"'chi10' should be a number"),
        ({"chi10": "450:50"}, r"range of 'chi10' should be low:high, got 450:50"),
        ({"chi10": (50, 50)}, r"range of 'chi10' should be low:high"),
        ({"chi10": -50}, r"'chi10' should be positive and finite, got -50"),
        ({"chi10": float("nan")}, r"'chi10' should be positive and finite"),
        ({"chi10": 5}, r"'chi10' = 5 GeV is outside the range 10 to 2400 GeV"),
        (["chi10=50"], r"'masses' should map names to values"),
        (
            "lines",
            r"Unknown preset of masses 'lines' \(did you mean 'line'\?\): choose from line, ",
        ),
    ],
)
def test_a_wrong_request_is_refused(card: ProcessCard, masses: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_masses(card, masses)


@pytest.mark.parametrize(
    "masses",
    [
        {"chi20": 600, "chi10": 480},
        {"chi20": 600, "chi10": (50, 480)},
        {"chi20": 600, "chi10": [50, 480]},
        {"chi20": (600, 700), "chi10": 480},
        {"chi20": [600, 700], "chi10": (50, 480)},
    ],
)
def test_a_closed_channel_is_refused_with_the_largest_mass(card: ProcessCard, masses: Any) -> None:
    with pytest.raises(
        InputError,
        match=r"chi20 > chi10 is closed at chi20 = 600, chi10 = 480 "
        r"GeV: it needs a gap of 126 GeV.*largest 'chi10' is 474 GeV.*smallest "
        r"'chi20' is 606 GeV",
    ):
        parse_masses(card, masses)


def test_the_last_open_point_is_accepted(card: ProcessCard) -> None:
    assert not parse_masses(card, {"chi20": 600, "chi10": (50, 474)}).partly_closed


def test_a_box_without_an_open_part_is_refused(card: ProcessCard) -> None:
    with pytest.raises(InputError, match="is closed"):
        parse_masses(card, {"chi20": (200, 300), "chi10": (180, 400)})


def test_channels_that_are_never_open_together_are_refused(card: ProcessCard) -> None:
    content = card.to_dict()
    opposite = {"parent": "chi10", "daughters": ["chi20"], "minimum_gap": 10.0}
    content["open_channels"].append(opposite)
    del content["presets"]
    with pytest.raises(InputError, match=r"No decay is open anywhere in the masses chi20=300:700"):
        parse_masses(load_card(content), {"chi20": (300, 700), "chi10": (200, 600)})


def test_the_open_part_of_a_box_is_filled_uniformly(card: ProcessCard) -> None:
    prior = parse_masses(card, {"chi20": (400, 600), "chi10": (200, 500)})
    assert prior.partly_closed
    points = prior.draw(np.random.default_rng(2), 20_000)
    gap = points[:, 0] - points[:, 1]
    assert gap.min() >= 126.0
    assert points.min(axis=0) == pytest.approx([400, 200], abs=3)
    # the open part is a trapezium: chi10 from 200 to chi20 - 126
    width = points[:, 0] - 326.0
    assert ((points[:, 1] - 200.0) / width).mean() == pytest.approx(0.5, abs=0.01)
    assert np.mean(width) == pytest.approx((74**2 + 74 * 274 + 274**2) * 2 / 3 / 348, rel=0.01)


def test_a_box_of_two_grids_is_cut_to_its_open_points(card: ProcessCard) -> None:
    masses = {"chi20": [400, 500, 600], "chi10": [100, 274, 300]}
    points = parse_masses(card, masses).draw(np.random.default_rng(1), 2_000)
    found = {tuple(point) for point in points.tolist()}
    everything = {(m2, m1) for m2 in (400.0, 500.0, 600.0) for m1 in (100.0, 274.0, 300.0)}
    assert found == everything - {(400.0, 300.0)}
    with pytest.raises(InputError, match="is closed"):
        parse_masses(card, {"chi20": [200, 300], "chi10": [180, 400]})


def test_the_presets_of_wino_udd_are_the_published_grids_and_their_ranges(
    card: ProcessCard,
) -> None:
    rng = np.random.default_rng(1)
    line = parse_masses(card, "line")
    assert line == parse_masses(card, {"chi20": 600, "chi10": (50, 450)})
    grid = np.unique(parse_masses(card, "published_line").draw(rng, 500), axis=0)
    np.testing.assert_array_equal(grid, [[600.0, m1] for m1 in range(50, 401, 50)])
    plane = np.unique(parse_masses(card, "published_plane").draw(rng, 5_000), axis=0)
    assert (plane % 50 == 0).all()
    assert plane.min(axis=0).tolist() == [400, 50]
    assert plane.max(axis=0).tolist() == [650, 500]
    assert (plane[:, 0] - plane[:, 1]).min() == 150
    assert len(plane) == 45
    wide = parse_masses(card, "plane").draw(rng, 5_000)
    assert (wide.min(axis=0) < plane.min(axis=0)).all(), "margins around the published region"
    assert (wide.max(axis=0) > plane.max(axis=0)).all()
    again = parse_masses(card, "plane").to_dict()
    assert parse_masses(card, again) == parse_masses(card, "plane")


def test_a_card_without_presets_or_masses_says_so(card: ProcessCard) -> None:
    content = card.to_dict()
    del content["presets"]
    with pytest.raises(InputError, match=r"got 'line': the card 'wino_udd' has no presets"):
        parse_masses(load_card(content), "line")
    prior = parse_masses(load_card("background_wh"))
    assert prior.draw(np.random.default_rng(1), 7).shape == (7, 0)
    assert Tiers.of(prior).index(np.zeros(0)) == 0
    with pytest.raises(InputError, match="Unknown mass 'chi10'"):
        parse_masses(load_card("background_wh"), {"chi10": 100})


def test_a_grid_is_drawn_evenly(card: ProcessCard) -> None:
    points = parse_masses(card, {"chi10": [50, 100, 150]}).draw(np.random.default_rng(1), 30_000)
    values, counts = np.unique(points[:, 1], return_counts=True)
    np.testing.assert_array_equal(values, [50, 100, 150])
    assert counts / 30_000 == pytest.approx([1 / 3] * 3, abs=0.012)


@pytest.mark.parametrize(
    ("chi20", "edges"),
    [
        (600, [600]),
        ((400, 700), [400, 500, 600]),
        ((400, 450), [400]),
        ([400, 450, 500, 620], [400, 500, 620]),
    ],
)
def test_pythia_never_moves_below_the_masses_it_started_from(
    card: ProcessCard, chi20: Any, edges: list[float]
) -> None:
    prior = parse_masses(card, {"chi20": chi20, "chi10": (50, 200)})
    tiers = Tiers.of(prior)
    assert tiers.edges == pytest.approx(edges)
    points = prior.draw(np.random.default_rng(1), 500)
    for point in points:
        start = tiers.start(tiers.index(point))
        assert start[0] <= point[0] < start[0] + 100.0 + 1e-9
        assert prior.is_open(start[None])[0]


def test_a_tier_starts_in_the_open_part(card: ProcessCard) -> None:
    tiers = Tiers.of(parse_masses(card, {"chi20": (200, 500), "chi10": (150, 450)}))
    assert tiers.edges[0] == pytest.approx(276.0)
