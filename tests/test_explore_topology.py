"""The explorer of decays: what it counts, what it shows, and errors while a string is typed."""

from __future__ import annotations

import base64
import math
import time
from typing import Any

import pytest

from massrecon.errors import InputError
from massrecon.kinematics.assignments import assign
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.topology import TopologyError
from massrecon.visual.explore.topology import count_symmetries, explore_topology
from massrecon.visual.topology import table_figure
from massrecon.visual.widgets.topology import TopologyExplorer


def svg_of(figure: object) -> str:
    source: str = figure.layout.images[0].source
    return base64.b64decode(source.partition("base64,")[2]).decode()


def cells(figure: Any) -> list[list[str]]:
    return figure.data[0].cells.values


def test_a_decay_string_gives_assignments_and_subsystems() -> None:
    found = explore_topology(kinds=["a=jet", "b=jet"])
    assert found.data["visible"] == {"a_a": "jet", "b_a": "jet", "a_b": "jet", "b_b": "jet"}
    assert found.data["assignments"] == 12  # 4! orders, two of which are the same by exchange
    assert list(found.data["subsystems"]) == ["a", "b", "ab"]
    assert list(found.panels) == ["Assignments", "Particles", "Subsystems"]
    assert len(cells(found.panels["Assignments"])[0]) == 12
    assert "12 distinct ways" in found.reading


def test_the_diagram_knows_what_is_not_seen() -> None:
    svg = svg_of(explore_topology().figure)
    assert svg.count("stroke:var(--invisible)") == 2 + 1
    assert "prefers-color-scheme" not in svg  # the paper of figures is white


def test_a_card_brings_roles_and_masses() -> None:
    found = explore_topology(card="wino_udd", decay="never read")
    assert found.data["symmetries"] == 2 * 6 * 6
    assert found.data["masses_gev"] == {"chi20": 600.0, "chi10": 200.0}
    table = cells(found.panels["Particles"])
    masses = dict(zip(table[0], table[3], strict=True))
    assert masses["chi10_b"] == "chi10: 10 to 2400, here 200"


@pytest.mark.parametrize("missing", [0, 1])
def test_counts_agree_with_the_list(missing: int) -> None:
    text, kinds = "p p > t t, (t > b W, W > q q)", {"b": "jet", "q": "jet"}
    entries = [f"{name}={kind}" for name, kind in kinds.items()]
    found = explore_topology(text, kinds=entries, extra=1, missing=missing)
    legs = DecayLegs.of(text, kinds=kinds)
    assert found.data["assignments"] == len(assign(legs, {"jet": 7}, missing=missing))
    assert count_symmetries(legs) == legs.n_symmetries == 8


def test_too_many_assignments_are_counted_not_listed() -> None:
    text = "p p > X Y, X > a b c d e f, Y > g h i j k l"
    kinds = [f"{name}=jet" for name in "abcdefghijkl"]
    start = time.process_time()
    found = explore_topology(text, kinds=kinds)
    assert found.data["assignments"] == math.comb(12, 6)
    huge = explore_topology(text, kinds=kinds, extra=10)
    assert time.process_time() - start < 5
    assert huge.data["assignments"] == math.comb(22, 6) * math.comb(16, 6)
    assert cells(huge.panels["Assignments"])[0][0] == "too many to list"


def test_bad_arguments() -> None:
    with pytest.raises(TopologyError, match="at the mark"):
        explore_topology("p p > A A, (A > a")
    with pytest.raises(InputError, match="'kinds' should have entries NAME=KIND"):
        explore_topology(kinds=["b=<script>"])
    with pytest.raises(InputError, match="should not be negative"):
        explore_topology(extra=-1)
    with pytest.raises(InputError, match="equal length"):
        table_figure({"a": [1], "b": []}, "")


def test_markup_in_a_table_is_text() -> None:
    figure = table_figure({"name": ["<a href='x'>b</a>"]}, "")
    assert cells(figure)[0][0] == "&lt;a href='x'&gt;b&lt;/a&gt;"


def test_while_typing_the_last_good_diagram_stays() -> None:
    explorer = TopologyExplorer()
    good = svg_of(explorer.figure)
    explorer.decay = "p p > A A, (A > a B, B > b"
    assert "decays 'B' to one particle only" in explorer.failed
    assert svg_of(explorer.figure) == good
    assert "white-space:pre-wrap" in explorer._status.value  # the mark stands below its place
    assert "made with decay" in explorer._status.value
    explorer.decay = "p p > A A, (A > a B, B > b <img src=x onerror=alert(1)>"
    assert "<img" not in explorer._status.value
    explorer.decay = "p p > A A, A > a C"
    assert explorer.failed == ""
    assert svg_of(explorer.figure) != good
    assert explorer.found is not None
    assert list(explorer.found.data["subsystems"]) == ["a"]


def test_choosing_a_card_and_typing_on() -> None:
    explorer = TopologyExplorer()
    explorer.card = "wino_udd"
    assert explorer.decay.startswith("p p > chi20 chi1, (chi20 > h chi10")
    assert explorer.found is not None
    assert explorer.found.data["symmetries"] == 72
    explorer.decay = "p p > A A, A > a C"
    assert explorer.card == ""
    assert explorer.failed == ""
    assert "explore_topology" in explorer.code()
    assert "29_topology" in explorer.command()


def test_a_card_that_cannot_be_read_is_said_and_left_by_typing() -> None:
    explorer = TopologyExplorer()
    decay = explorer.decay
    explorer.card = "nonsense"
    assert "nonsense" in explorer.failed
    assert explorer.decay == decay
    explorer.decay = "p p > A A, A > a C"
    assert (explorer.card, explorer.failed) == ("", "")
    assert "nonsense" in TopologyExplorer(card="nonsense").failed
