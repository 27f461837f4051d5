"""Decay diagrams: valid SVG with every particle, laid out without overlaps."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from massrecon.events.card import load_card
from massrecon.events.library import builtin_cards
from massrecon.kinematics.topology import DecayTopology
from massrecon.visual.diagram import decay_diagram

SVG = "{http://www.w3.org/2000/svg}"


def drawn(source: object) -> ElementTree.Element:
    return ElementTree.fromstring(decay_diagram(source))


def words(element: ElementTree.Element) -> str:
    """The text of an element without its zero-width ends."""
    return "".join(element.itertext()).replace("\u200b", "")


def symbols(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [text for text in svg.iter(f"{SVG}text") if text.get("font-size")]


@pytest.mark.parametrize("name", builtin_cards())
def test_every_particle_of_a_card_is_drawn_inside_the_picture(name: str) -> None:
    card = load_card(name)
    svg = drawn(card)
    plain = [re.sub(r"<.*?>", "", card.particles[n.name].symbol) for n in card.topology.nodes]
    shown = [words(text).split(" ")[0] for text in symbols(svg)]
    assert sorted(shown) == sorted([*plain, *card.topology.initial])
    width, height = float(svg.get("width", 0)), float(svg.get("height", 0))
    for text in svg.iter(f"{SVG}text"):
        assert 0 < float(text.get("x", 0)) < width
        assert 0 < float(text.get("y", 0)) < height
    vertices = [c for c in svg.iter(f"{SVG}circle") if c.get("r") == "3.4"]
    assert len(vertices) == sum(bool(node.children) for node in card.topology.nodes)


@pytest.mark.parametrize("name", builtin_cards())
def test_symbols_do_not_overlap(name: str) -> None:
    places = [(float(t.get("x", 0)), float(t.get("y", 0))) for t in symbols(drawn(load_card(name)))]
    for one, two in itertools.combinations(places, 2):
        assert abs(one[0] - two[0]) > 20 or abs(one[1] - two[1]) > 20, (one, two)


def test_masses_stand_under_the_symbols() -> None:
    text = words(drawn(load_card("antler")))
    for mass in ("1000", "800", "700", "13 TeV"):
        assert mass in text


def test_lines_tell_kinds_apart() -> None:
    svg = decay_diagram(load_card("wino_udd"))
    styles = re.findall(r'<path class="line"[^>]*style="([^"]*)"', svg)
    legend = 4  # lepton, photon, jet, invisible
    assert sum("stroke:var(--jet)" in style for style in styles) == 6 + 1
    assert sum("stroke:var(--photon)" in style for style in styles) == 2 + 1
    assert sum("stroke-dasharray:1 7" in style for style in styles) == 1 + 1
    assert sum("stroke-dasharray:9 6" in style for style in styles) == 1  # the Higgs boson
    assert len(styles) == 16 + legend
    assert sum(len(path) > 400 for path in re.findall(r' d="([^"]*)"', svg)) == 3  # W and photons


def test_in_a_toy_what_has_no_slot_is_invisible() -> None:
    svg = decay_diagram(load_card("antler"))
    assert svg.count("stroke:var(--visible)") == 4 + 1
    assert svg.count("stroke:var(--invisible)") == 2 + 1


def test_a_topology_alone_can_be_drawn() -> None:
    topology = DecayTopology.parse("p p > X, (X > g Y, Y > gamma nu)")
    svg = drawn(topology)
    assert sorted(words(t) for t in symbols(svg)) == sorted(["p", "p", "X", "g", "Y", "γ", "ν"])
    assert "side a" not in words(svg)


def test_signs_of_markup_are_escaped() -> None:
    content = load_card("antler").to_dict() | {"title": 'a <b> & "c"'}
    svg = drawn(load_card(content))
    assert svg.findtext(f"{SVG}title") == 'a <b> & "c"'
    assert "prefers-color-scheme:dark" in words(svg)
