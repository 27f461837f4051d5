"""Decay topologies: trees, labels, and errors that point at the place."""

from __future__ import annotations

import pytest

from massrecon.kinematics.topology import DecayTopology, TopologyError

WINO = (
    "p p > chi20 chi1, (chi20 > h chi10, h > gamma gamma, chi10 > u d s), "
    "(chi1 > W chi10, W > l nu, chi10 > u d s)"
)


def test_labels_tell_sides_and_repetitions_apart() -> None:
    topology = DecayTopology.parse(WINO)
    expected = "chi20 h gamma1 gamma2 chi10_a u_a d_a s_a chi1 W l nu chi10_b u_b d_b s_b"
    assert topology.labels == tuple(expected.split())
    assert topology.initial == ("p", "p")


def test_parents_and_children_agree() -> None:
    topology = DecayTopology.parse(WINO)
    for node in topology.nodes:
        assert all(topology.nodes[child].parent == node.index for child in node.children)
    assert [topology.nodes[i].label for i in topology.node("chi10_b").children] == [
        "u_b",
        "d_b",
        "s_b",
    ]
    assert topology.node("nu").side == "b"
    assert [node.label for node in topology.roots] == ["chi20", "chi1"]
    assert len(topology.legs) == 10


def test_like_particles_on_one_side_decay_in_order() -> None:
    topology = DecayTopology.parse("p p > A A, (A > Z Z), (A > Z Z, Z > q q, Z > v v)")
    assert topology.labels[:2] == ("A_a", "Z1_a")
    assert [topology.nodes[i].name for i in topology.node("Z1_b").children] == ["q", "q"]
    assert [topology.nodes[i].label for i in topology.node("Z2_b").children] == ["v1", "v2"]


def test_a_decay_that_is_given_once_serves_all_like_particles() -> None:
    antler = DecayTopology.parse("p p > A A, (A > a B, B > b C)")
    assert " ".join(antler.labels) == "A_a a_a B_a b_a C_a A_b a_b B_b b_b C_b"
    deeper = DecayTopology.parse("p p > A A A, (A > Z Z, Z > e e), (A > f g)")
    assert [deeper.nodes[i].name for i in deeper.node("Z2").children] == ["e", "e"]
    assert deeper.node("A_c").children == ()  # two decays of three particles: taken in order


def test_sketch_shows_every_particle_once() -> None:
    topology = DecayTopology.parse(WINO)
    lines = topology.sketch().splitlines()
    assert [line.split()[-1] for line in lines[1:]] == list(topology.labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p p > a b, c > d e", "decays 'c', which is not there"),
        ("p p > a b, (a > c d", r"ends where '\)' is expected"),
        ("p p > a b)", "has something after its end"),
        ("p p > a $ b", "cannot be read here"),
        ("p p >", "ends where a produced particle is expected"),
        ("", "ends where an incoming particle is expected"),
        ("p p > a b, a > , b > c", "expects a daughter"),
        ("p p > a, a > b c, a > d e", "still undecayed: none"),
        ("p p > a a, a > b c, b > d e", "'b', which is not there .* belongs in brackets"),
        ("p p > a a, a > b", "decays 'a' to one particle only"),
        ("p p > a a, a > a b", "lets 'a' decay to itself"),
        ("p p > a a, (a > b c, (b > d e, e > a f))", "lets 'a' decay to itself"),
    ],
)
def test_a_bad_string_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message) as error:
        DecayTopology.parse(text)
    assert "^" in str(error.value)


def test_the_mark_of_a_loop_stands_below_the_daughter() -> None:
    text = "p p > b X, b > b Wb"
    with pytest.raises(TopologyError) as error:
        DecayTopology.parse(text)
    mark = str(error.value).splitlines()[-1]
    assert mark.index("^") - 2 == text.index("b Wb")


def test_something_that_is_no_text_is_refused() -> None:
    with pytest.raises(TopologyError, match="should be text, got 5"):
        DecayTopology.parse(5)


def test_an_unknown_label_lists_the_choices() -> None:
    with pytest.raises(TopologyError, match="No particle 'chi10'.*chi10_a"):
        DecayTopology.parse(WINO).node("chi10")
