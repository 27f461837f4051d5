"""Assignments: counts by hand and by brute force, symmetries, subsystems, clear refusals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from massrecon.kinematics.assignments import Assignments, assign
from massrecon.kinematics.legs import DecayLegs, subsystem, subsystems
from massrecon.kinematics.topology import TopologyError

WINO_UDD = (
    "p p > chi20 chi1, (chi20 > h chi10, h > gamma gamma, chi10 > u d s), "
    "(chi1 > W chi10, W > l nu, chi10 > u d s)"
)
WINO_LLE = "p p > chi1 chi1, (chi1 > W chi10, W > q q, chi10 > l l nu)"
HADRONIC_TOPS = "p p > t t~, (t > b W, W > q q), (t~ > b W, W > q q)"
DILEPTON_TOPS = "p p > t t~, (t > b W, W > l nu), (t~ > b W, W > l nu)"
ANTLER = "p p > A A, (A > a B, B > b C)"
JETS = {"u": "jet", "d": "jet", "s": "jet", "gamma": "photon", "l": "lepton"}
QUARKS = {"b": "jet", "q": "jet"}


def wino_udd() -> DecayLegs:
    return DecayLegs.of(WINO_UDD, invisible=["nu"], kinds=JETS)


def hadronic_tops() -> DecayLegs:
    return DecayLegs.of(HADRONIC_TOPS, kinds=QUARKS, like={"t~": "t"})


def count(legs: DecayLegs, counts: Mapping[str, int], **limits: int | Mapping[str, int]) -> int:
    return len(assign(legs, counts, **limits))


@pytest.mark.parametrize(("n_jets", "expected"), [(6, 20), (7, 7 * 20), (8, 28 * 20)])
def test_wino_udd_chooses_three_of_six_jets_and_radiates_the_rest(
    n_jets: int, expected: int
) -> None:
    assert count(wino_udd(), {"lepton": 1, "photon": 2, "jet": n_jets}) == expected


def test_missing_jets_are_shared_out_between_the_sides() -> None:
    objects = {"lepton": 1, "photon": 2, "jet": 5}
    # one lost: C(5,3) on either side; two lost, one radiated: 5 (C(4,2) + 2 C(4,3)) more
    assert count(wino_udd(), objects, missing={"jet": 1}) == 20
    assert count(wino_udd(), objects, missing={"jet": 2}, extra={"jet": 0}) == 20
    assert count(wino_udd(), objects, missing={"jet": 2}) == 20 + 5 * (6 + 2 * 4)


def test_a_decay_keeps_at_least_one_of_its_legs() -> None:
    found = assign(wino_udd(), {"lepton": 1, "photon": 2, "jet": 2}, missing={"jet": 6})
    assert len(found) == 2
    for label in ("chi10_a", "chi10_b"):
        assert (found.members(label).sum(1) == 1).all()


def test_four_leptons_and_four_jets_on_two_equal_sides() -> None:
    legs = DecayLegs.of(WINO_LLE, invisible=["nu"], kinds={"l": "lepton", "q": "jet"})
    assert count(legs, {"lepton": 4, "jet": 4}) == 6 * 6 // 2
    assert legs.n_symmetries == (2 * 2) ** 2 * 2


def test_tops_are_equal_only_if_they_are_said_to_be() -> None:
    assert count(hadronic_tops(), {"jet": 6}) == 720 // 8
    told_apart = DecayLegs.of(HADRONIC_TOPS, kinds=QUARKS)
    assert count(told_apart, {"jet": 6}) == 720 // 4
    dilepton = DecayLegs.of(
        DILEPTON_TOPS, invisible=["nu"], kinds={"b": "jet", "l": "lepton"}, like={"t~": "t"}
    )
    assert count(dilepton, {"lepton": 2, "jet": 2}) == 2


def test_an_antler_has_two_assignments_and_two_symmetries() -> None:
    legs = DecayLegs.of(ANTLER, invisible=["C"])
    found = assign(legs, {"a": 2, "b": 2})
    assert found.index.tolist() == [[0, 2, 1, 3], [0, 3, 1, 2]]
    assert legs.symmetries().tolist() == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_a_three_body_step_on_each_side() -> None:
    legs = DecayLegs.of("p p > g g, g > q q C", invisible=["C"], kinds={"q": "jet"})
    assert count(legs, {"jet": 4}) == 3
    assert legs.n_symmetries == 8


def brute_force(legs: DecayLegs, counts: Mapping[str, int], missing: int) -> set[tuple[int, ...]]:
    """All assignments, one of each symmetry class, by trying every one."""
    kinds = [kind for kind, n in counts.items() for _ in range(n)]
    choices = [[*(i for i, kind in enumerate(kinds) if kind == leg), -1] for leg in legs.leg_kinds]
    orders = legs.symmetries().tolist()
    found = set()
    for row in itertools.product(*choices):
        used = [i for i in row if i >= 0]
        if len(used) != len(set(used)) or not _allowed(legs, row, missing):
            continue
        found.add(min(tuple(row[i] for i in order) for order in orders))
    return found


def _allowed(legs: DecayLegs, row: tuple[int, ...], missing: int) -> bool:
    position = {leg.index: i for i, leg in enumerate(legs.visible)}
    for node in legs.resonances:
        own = [row[position[child]] for child in node.children if child in position]
        if own and max(own) < 0:
            return False
    by_kind = dict.fromkeys(legs.leg_kinds, 0)
    for kind, i in zip(legs.leg_kinds, row, strict=True):
        by_kind[kind] += i < 0
    return max(by_kind.values()) <= missing


@pytest.mark.parametrize(
    ("legs", "counts", "missing"),
    [
        (wino_udd(), {"jet": 5, "lepton": 1, "photon": 2}, 1),
        (hadronic_tops(), {"jet": 6}, 0),
        (hadronic_tops(), {"jet": 5}, 2),
        (DecayLegs.of(ANTLER, invisible=["C"]), {"a": 3, "b": 2}, 0),
        (DecayLegs.of("p p > Z Z Z, Z > q q", kinds={"q": "jet"}), {"jet": 6}, 1),
    ],
)
def test_every_class_is_listed_once(legs: DecayLegs, counts: dict[str, int], missing: int) -> None:
    found = [tuple(row) for row in assign(legs, counts, missing=missing).index.tolist()]
    orders = legs.symmetries().tolist()
    classes = [min(tuple(row[i] for i in order) for order in orders) for row in found]
    assert len(set(classes)) == len(found)
    assert set(classes) == brute_force(legs, counts, missing)


def test_chain_configurations_rebuild_the_assignments() -> None:
    found = assign(hadronic_tops(), {"jet": 7}, missing=1)
    rows = [chain[at] for chain, at in zip(found.chains, found.chain_index.T, strict=True)]
    assert torch.equal(torch.cat(rows, 1), found.index)
    assert torch.equal(found.used.sum(1) + found.n_missing, torch.full((len(found),), 6))


def test_members_of_a_resonance_are_those_of_its_legs() -> None:
    found: Assignments = assign(wino_udd(), {"lepton": 1, "photon": 2, "jet": 6})
    assert (found.members("chi20") == found.members("h") | found.members("chi10_a")).all()
    assert found.members("W").nonzero()[:, 1].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("counts", "limits", "message"),
    [
        ({"lepton": 1, "photon": 2, "jet": 5}, {}, "6 legs of kind 'jet'.*only 5 objects"),
        ({"photon": 2, "jet": 6}, {}, "1 legs of kind 'lepton'"),
        ({"lepton": 1, "photon": 2, "jet": 8}, {"extra": 1}, "at least 2 extra, more than 1"),
        ({"lepton": 1, "photon": 2, "jet": 6, "tau": 1}, {}, "kind 'tau': choose from photon"),
        ({"lepton": 1, "photon": 2, "jet": 1}, {"missing": 5}, "No assignment of 1 lepton"),
        ({"lepton": 1, "photon": 2, "jet": 70}, {}, "More than 62 objects"),
    ],
)
def test_impossible_assignments_say_what_lacks(
    counts: dict[str, int], limits: dict[str, int], message: str
) -> None:
    with pytest.raises(TopologyError, match=message):
        assign(wino_udd(), counts, **limits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"invisible": ["X"]}, "'X' is not a final leg"),
        ({"invisible": ["W"]}, "'W' is not a final leg"),
        ({"invisible": ["nu"], "kinds": {"nu": "jet"}}, "'nu' cannot be invisible and have a kind"),
        ({"like": {"t": "u"}}, "'like' names 't'"),
    ],
)
def test_roles_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        DecayLegs.of(WINO_UDD, **arguments)


def test_a_name_does_not_overrule_the_label_of_one_leg() -> None:
    with pytest.raises(TopologyError, match="'C_a' cannot be invisible and have a kind"):
        DecayLegs.of("p p > A A, A > a C", invisible=["C"], kinds={"C_a": "jet"})


def test_a_leg_that_is_seen_is_not_exchanged_with_one_that_is_not() -> None:
    legs = DecayLegs.of("p p > A A, A > a C", invisible=["C_a"])
    assert [leg.label for leg in legs.visible] == ["a_a", "a_b", "C_b"]
    assert legs.n_symmetries == 1
    assert len(assign(legs, {"a": 2, "C": 1})) == 2


def test_chains_know_their_legs() -> None:
    first, second = wino_udd().chains
    assert [node.label for node in first.resonances] == ["chi20", "h", "chi10_a"]
    assert [leg.label for leg in second.invisible] == ["nu"]
    assert len(first.visible) == 5


def test_subsystems_of_a_two_step_decay() -> None:
    legs = DecayLegs.of(ANTLER, invisible=["C"])
    assert list(subsystems(legs)) == ["a", "b", "ab"]
    side = subsystem(legs, "b").sides[1]
    assert (side.parent, side.visible, side.daughter, side.relatives) == (
        "B_b",
        ("b_b",),
        "C_b",
        (),
    )
    assert subsystem(legs, "ab").sides[0].visible == ("a_a", "b_a")


def test_subsystems_of_a_three_step_decay() -> None:
    legs = DecayLegs.of("p p > A A, (A > a B, (B > b C, C > c D))", invisible=["D"])
    assert list(subsystems(legs)) == ["a", "b", "c", "ab", "bc", "abc"]
    assert subsystem(legs, "abc").sides[0].relatives == ("B_a", "C_a")


@pytest.mark.parametrize(
    ("text", "invisible", "name", "message"),
    [
        (ANTLER, ["C"], "c", "no subsystem 'c': choose from a, b, ab"),
        ("p p > A A A, A > a C", ["C"], "a", "has 3 chains, not two"),
        ("p p > A B, A > a C, (B > a D, D > a C)", ["C"], "a", "have 1 and 2 steps"),
        (WINO_UDD, ["nu"], "a", "'chi20' does not decay to visible legs and one further"),
    ],
)
def test_missing_subsystems_are_explained(
    text: str, invisible: list[str], name: str, message: str
) -> None:
    with pytest.raises(TopologyError, match=message):
        subsystem(DecayLegs.of(text, invisible=invisible), name)


@pytest.mark.parametrize("count", [-1, 2.5])
def test_numbers_of_objects_are_whole(count: float) -> None:
    legs = DecayLegs.of("p p > A A, A > a b")
    with pytest.raises(TopologyError, match="'counts' should be whole numbers"):
        assign(legs, {"a": 2, "b": count})
