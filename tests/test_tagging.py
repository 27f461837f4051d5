"""Tags: the flavour of jets, and tag rates against the formulas of the cards."""

from __future__ import annotations

import numpy as np
import pytest

from massrecon.events.card import load_card
from massrecon.events.detector import detect
from massrecon.events.objects import Objects
from massrecon.events.particles import Particles
from massrecon.events.pythia import Collider, Record
from massrecon.events.sections import DetectorSettings, SlotGroup
from massrecon.events.tagging import draw_tags, flavours, heavy_flavour, tag_probability

N = 20_000


def massless(pt: np.ndarray, eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Four-momenta of massless particles."""
    p3 = [pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
    return np.stack([*p3, pt * np.cosh(eta)], axis=1)


def at(event: list[int], pt: list[float], eta: list[float], phi: list[float]) -> Objects:
    return Objects(np.array(event), massless(np.array(pt), np.array(eta), np.array(phi)))


def record_of(rows: list[tuple[int, int, float, float]], lengths: list[int]) -> Record:
    """Rows of code, mother, pT and eta at phi = 0."""
    code, mother, pt, eta = (np.array(column) for column in zip(*rows, strict=True))
    p4 = massless(pt, eta, np.zeros(len(pt)))
    columns = dict(zip(("px", "py", "pz", "e"), p4.T, strict=True))
    columns |= {"id": code.astype(np.int32), "mother1": mother.astype(np.int32)}
    return Record(columns, np.concatenate([[0], np.cumsum(lengths)]))


def test_the_truth_holds_quarks_and_the_visible_part_of_decayed_taus() -> None:
    record = record_of(
        [(5, 0, 50.0, 1.0), (21, 0, 80.0, 0.0), (-4, 0, 20.0, -2.0), (5, 0, 4.0, 0.0),
         (4, 0, 90.0, 4.5), (24, 0, 80.0, 0.0),
         (24, 0, 80.0, 0.0), (15, 0, 40.0, 0.5), (-16, 0, 30.0, 0.0), (15, 1, 40.0, 0.5),
         (16, 3, 15.0, 0.5)],
        [6, 5],
    )  # fmt: skip
    heavy = heavy_flavour(record)
    assert heavy.event.tolist() == [0, 0, 1]
    assert heavy.pdg.tolist() == [5, 4, 15]
    np.testing.assert_allclose(heavy.px, [50.0, 20.0, 25.0])


def test_the_heaviest_quark_within_half_a_unit_gives_the_flavour() -> None:
    jets = at([0, 0, 0, 0, 1, 2], [50.0] * 6, [0.0, 2.0, -2.0, 3.0, 0.0, 0.0], [0.0] * 6)
    truth = at([0, 0, 0, 0, 2], [30.0] * 5, [0.1, 0.3, 2.49, -1.4, 0.0], [0.0, 0.0, 0.0, 0.0, 0.4])
    codes = np.array([4, 5, 15, 5, 4])
    heavy = Particles(truth.event, codes, *truth.p4.T)
    quark, lepton = flavours(jets, heavy)
    assert quark.tolist() == [5, 0, 0, 0, 0, 4]
    assert lepton.tolist() == [0, 15, 0, 0, 0, 0]


# the formulas of BTagging and TauTagging in delphes_card_HLLHC.tcl
@pytest.mark.parametrize(
    ("tag", "flavour", "pt", "eta", "expected"),
    [
        ("b", 5, 60.0, 1.0, 0.75),
        ("b", 5, 60.0, -3.0, 0.60),
        ("b", 5, 1000.0, 1.0, 0.75 * 0.8),
        ("b", 4, 60.0, 1.0, 0.10),
        ("b", 4, 60.0, 3.0, 0.06),
        ("b", 0, 60.0, 1.0, 0.01),
        ("b", 0, 60.0, 3.0, 0.0075),
        ("b", 5, 60.0, 4.1, 0.0),
        ("b", 5, 9.0, 0.0, 0.0),
        ("tau", 15, 60.0, 1.0, 0.60),
        ("tau", 15, 60.0, 3.0, 0.45),
        ("tau", 15, 2000.0, 0.0, 0.60 * 0.6),
        ("tau", 0, 900.0, 1.0, 0.01),
        ("tau", 0, 60.0, 3.0, 0.0075),
    ],
)
def test_tag_rates_are_those_of_the_card(
    tag: str, flavour: int, pt: float, eta: float, expected: float
) -> None:
    jets = at(list(range(N)), [pt] * N, [eta] * N, [0.0] * N)
    assert tag_probability(tag, "medium", np.array([flavour]), jets.p4[:1]) == pytest.approx(
        expected
    )
    codes = np.full(N, flavour or 1)
    heavy = Particles(jets.event, codes, *jets.p4.T) if flavour else Particles.none()
    tags = draw_tags(jets, heavy, np.random.default_rng(3))
    rate = (tags["btag"] >= 2).mean() if tag == "b" else tags["tautag"].mean()
    assert abs(rate - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / N)


def test_working_points_are_nested_and_grow_with_purity() -> None:
    for flavour in (0, 4, 5):
        for eta in (0.0, 3.0):
            p4 = massless(np.array([80.0]), np.array([eta]), np.zeros(1))
            loose, medium, tight = (
                tag_probability("b", point, np.array([flavour]), p4)[0]
                for point in ("loose", "medium", "tight")
            )
            assert 1 > loose > medium > tight > 0
    jets = at(list(range(N)), [80.0] * N, [0.0] * N, [0.0] * N)
    heavy = Particles(jets.event, np.full(N, 5), *jets.p4.T)
    btag = draw_tags(jets, heavy, np.random.default_rng(1))["btag"]
    rates = [(btag >= point).mean() for point in (1, 2, 3)]
    np.testing.assert_allclose(rates, [0.85, 0.75, 0.50], atol=0.015)


def test_jets_of_top_quarks_are_tagged_as_often_as_b_jets() -> None:
    pytest.importorskip("pythia8mc")
    pytest.importorskip("fastjet")
    card = load_card("ttbar_dilepton")
    start = np.array([parameter.default for parameter in card.masses.values()])
    with Collider(card, start, False) as collider:
        collider.initialise()
        record = collider.generate(start, 11, 500)
    settings = DetectorSettings(tagging=True)
    heavy = heavy_flavour(record)
    group = SlotGroup(kind="jet", count=4, pt_min=30.0, eta_max=2.5)
    everywhere = np.ones(record.n_events, bool)
    particles = record.stable()
    found = (
        detect(particles, record.n_events, np.random.default_rng(1), settings, heavy)
        .find(group, everywhere)
        .accepted(group)
    )
    quark, _ = flavours(found, heavy)
    is_bottom = quark == 5
    assert 1.3 < is_bottom.sum() / record.n_events < 2.1
    rate = (found.attributes["btag"][is_bottom] >= 2).mean()
    assert abs(rate - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / is_bottom.sum())
    untagged = detect(particles, record.n_events, np.random.default_rng(1))
    assert "btag" not in untagged.find(group, everywhere).attributes
    np.testing.assert_array_equal(
        untagged.find(group, everywhere).accepted(group).p4, found.p4, "tags change nothing else"
    )
