"""Cards without free masses, both production channels in one card, and collisions counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from massrecon.errors import CardError, GenerationError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.library import builtin_cards
from massrecon.events.pythia import Collider
from massrecon.events.request import Request
from massrecon.events.store import load_events
from massrecon.events.trials import cross_section
from massrecon.events.truth import check_matched, match_partons

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

QUICK = (
    "PartonLevel:ISR = off",
    "PartonLevel:FSR = off",
    "BeamRemnants:primordialKT = off",
    "HadronLevel:all = off",
)

# cross-sections times the branching fractions to electrons and muons [fb], from an independent run
# of the same version of Pythia, quoted to two or three digits
PUBLISHED = {
    "background_wh": (0.61, ["24:offIfAny = 15"]),
    "background_zh": (0.10, ["23:offIfAny = 15"]),
    "background_tth": (0.98, []),
    "background_wgamma": (9.8e3, ["24:offIfAny = 15"]),
    "background_diphoton": (165e3, []),
    "background_ttbar": (622e3, []),
    "background_zz": (78.0, ["23:offIfAny = 15"]),
    "background_wz": (367.0, ["23:offIfAny = 15", "24:offIfAny = 15"]),
    "background_tth_4l": (128.0, []),
}
FOUR_LEPTONS = ("background_zz", "background_wz", "background_tth_4l")


def hard_collisions(
    card: ProcessCard, n: int, masses: tuple[float, ...] = (), extra: tuple[str, ...] = ()
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Cross-section and error [fb], true particles and which collisions were matched."""
    point = np.array(masses)
    with Collider(card, point, multiparton=False, extra=(*QUICK, *extra)) as collider:
        collider.initialise()
        record = collider.generate(point, 11, n)
        sigma, error = cross_section(collider.tally().values())
    partons, matched = match_partons(card, record)
    return sigma, error, partons, matched


@pytest.mark.parametrize("name", [n for n in builtin_cards() if n.startswith("background_")])
def test_a_background_is_what_its_card_says(name: str) -> None:
    card = load_card(name)
    signal_card = load_card("wino_lle" if name in FOUR_LEPTONS else "wino_udd")
    assert (card.objects, card.cuts) == (signal_card.objects, signal_card.cuts)
    assert (card.masses, card.targets) == ({}, {})
    value, only_light_leptons = PUBLISHED.get(name, (0.0, []))
    sigma, error, partons, matched = hard_collisions(card, 400, extra=tuple(only_light_leptons))
    check_matched(card, int(matched.sum()), len(matched))
    if value:
        # the error of the quoted value is not known: 3 % covers its digits and statistics
        assert abs(sigma - value) < 4 * error + 0.03 * value
    total = np.zeros((int(matched.sum()), 3))
    for node in card.topology.roots:
        total += partons[matched, node.index, :3]
    assert np.abs(total[:, :2]).max() < 1e-6, "the hard collision balances"
    for node in card.topology.nodes:
        if node.children:
            children = partons[matched][:, list(node.children), :3].sum(axis=1)
            np.testing.assert_allclose(children, partons[matched, node.index, :3], atol=1e-6)


def test_a_card_names_the_one_that_it_borrows_from(tmp_path: Path) -> None:
    lender = tmp_path / "lender.yaml"
    text = (Path(__file__).parents[1] / "massrecon/events/cards/wino_udd.yaml").read_text()
    lender.write_text(text.replace("count: 10", "count: 7").replace("wino_udd", "lender"))
    background = text.replace("wino_udd", "mine")
    objects = background[background.index("objects:") : background.index("targets:")]
    path = tmp_path / "mine.yaml"
    path.write_text(background.replace(objects, "objects: lender.yaml\n\n"))
    assert load_card(path).objects == load_card(lender).objects
    assert load_card(path).to_dict()["objects"][2]["count"] == 7
    path.write_text(background.replace(objects, "objects: wino_ud\n\n"))
    with pytest.raises(CardError, match=r"mine\.yaml:\d+: 'objects': Unknown process 'wino_ud'"):
        load_card(path)
    path.write_text(background.replace(objects, "objects: mine.yaml\n\n"))
    with pytest.raises(CardError, match=r"'mine.yaml' takes this from 'mine.yaml' itself"):
        load_card(path)


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rare") / "events"
    simulate("background_wgamma", n_generated=600, seed=2, workers=1, out=folder, progress=False)
    return folder


def test_a_number_of_collisions_is_generated_whatever_is_selected(rare: Path) -> None:
    events = load_events(rare)
    made = events.provenance
    assert made["n_generated"] == made["cut_flow"]["generated"] == 1_000, "whole groups of 500"
    assert made["n_selected"] == len(events) < 5
    assert not events.has_targets
    assert events.masses is not None
    assert events.masses.shape == (len(events), 0)
    [cell] = made["cells"]
    assert cell["masses"] == {}
    assert cell["acceptance"] == len(events) / 1_000
    assert cell["cross_section_fb"] == pytest.approx(15.2e3, rel=0.1)
    assert events.expected(3000.0).sum().item() == pytest.approx(
        cell["cross_section_fb"] * cell["acceptance"] * 3000.0
    )


def test_more_collisions_go_on_where_fewer_ended(tmp_path: Path) -> None:
    request = {"card": "background_tth", "seed": 3, "progress": False}
    small = simulate(**request, n_generated=500, workers=1, out=tmp_path / "events")
    assert 20 < len(small) < 150
    large = simulate(**request, n_generated=900, workers=2, out=tmp_path / "events")
    assert large.provenance["n_generated"] == 1_000
    assert torch.equal(large.p4[: len(small)], small.p4)
    again = simulate(**request, n_generated=500, workers=1, out=tmp_path / "events")
    assert torch.equal(again.p4, small.p4)
    assert again.provenance == small.provenance
    as_many = simulate(**request, n_events=len(small) + 1, workers=1, out=tmp_path / "events")
    assert torch.equal(as_many.p4, large.p4[: len(small) + 1])


def test_no_selected_event_at_all_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(GenerationError, match="ask for a number of collisions, 'n_generated'"):
        simulate("background_diphoton", 10, seed=1, workers=1, progress=False)


def test_both_production_channels_of_wino_lle_are_matched() -> None:
    card = load_card("wino_lle")
    point = np.array([1500.0, 300.0])
    with Collider(card, point, multiparton=False, extra=QUICK) as collider:
        collider.initialise()
        record = collider.generate(point, 5, 600)
        sigma, error = cross_section(collider.tally().values())
    assert sigma == pytest.approx(0.10, abs=4 * error + 0.005)
    partons, matched = match_partons(card, record)
    assert matched.all()
    first = record.columns["id"][record.first[:-1, None] + [5, 6]]
    two_charginos = (np.abs(first) == 1000024).all(axis=1)
    assert 0.2 < two_charginos.mean() < 0.5
    labels = card.parton_names
    for label in ("chi2", "chi1"):
        np.testing.assert_allclose(partons[:, labels.index(label), 3], 1500.0, atol=0.01)
    boson = partons[:, labels.index("B"), 3]
    assert np.median(boson[two_charginos]) == pytest.approx(80.4, abs=0.5)
    assert np.median(boson[~two_charginos]) == pytest.approx(125.0, abs=0.1)
    # where two charginos are produced, chi2 is the positive one
    entry = record.first[:-1] + np.where(first[:, 0] > 0, 5, 6)
    positive = record.columns["pz"][entry]
    found = partons[:, labels.index("chi2"), 2]
    np.testing.assert_allclose(found[two_charginos], positive[two_charginos], atol=1e-6)


def test_tops_have_their_widths() -> None:
    card = load_card("ttbar_dilepton")
    _, _, partons, matched = hard_collisions(card, 1_500, (173.0, 80.419))
    assert matched.all()
    for name, mass, width in (("t", 173.0, 1.4915), ("W", 80.419, 2.0476)):
        found = partons[:, [card.parton_names.index(f"{name}_{side}") for side in "ab"], 3].ravel()
        low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
        assert middle == pytest.approx(mass, abs=0.15)
        # half of a Breit-Wigner curve lies within half its width
        assert high - low == pytest.approx(width, rel=0.15)
        assert np.abs(found - mass).max() <= 40.5
        assert np.abs(found - mass).max() > 4 * width


def test_b_tagged_dilepton_events_have_opposite_charges(tmp_path: Path) -> None:
    events = simulate("ttbar_dilepton", 40, seed=4, workers=1, progress=False)
    leptons = events.attributes["charge"][:, events.slots_of("lepton")]
    assert (leptons.sum(dim=1) == 0).all()
    tags = events.attributes["btag"][:, events.slots_of("jet")]
    assert ((tags >= 2).sum(dim=1) >= 2).all()
    assert events.masses is not None
    assert events.masses[0].tolist() == [173.0, 80.419]
    assert events.partons is not None
    tops = events.partons[:, [i for i, p in enumerate(events.card.parton_names) if p[:2] == "t_"]]
    assert tops[..., 3].std() > 0.5
    assert 0.03 < events.provenance["cells"][0]["acceptance"] < 0.3


def test_an_event_of_a_background_is_worth_its_cross_section() -> None:
    events = simulate("background_tth", n_generated=500, seed=6, workers=1, progress=False)
    [cell] = events.provenance["cells"]
    both = Events.concat([events[:10], events[10:]])
    assert events.expected(140.0).sum() == pytest.approx(
        140.0 * cell["cross_section_fb"] * cell["acceptance"]
    )
    assert len(both) == len(events)
    assert events[:10].expected(140.0).sum() < events.expected(140.0).sum()


def test_a_file_named_by_a_card_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = load_card("lhe_wgammagamma").to_dict()
    assert content["pythia"]["lhe"] == "events.lhe"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    far = load_card(tmp_path / "mine.yaml")
    assert far.pythia.lhe == str(tmp_path / "events.lhe")
    monkeypatch.chdir(tmp_path)
    near = load_card("./mine.yaml")
    assert near.fingerprint() == far.fingerprint()
    other = {**content, "pythia": {**content["pythia"], "lhe": "others.lhe"}}
    assert load_card(other).fingerprint() != far.fingerprint()


def test_settings_of_a_request_are_kept(card: ProcessCard) -> None:
    request = Request.of(card, "line", 1, {"ptmiss_noise": 12.5, "truth": False})
    again = Request.of(card, request.to_dict()["masses"], 1, request.to_dict()["settings"])
    assert again.to_dict() == request.to_dict()
    assert again.settings.ptmiss_noise == 12.5
    assert not again.settings.truth
