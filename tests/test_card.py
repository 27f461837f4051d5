"""Process cards: what they give, and how each mistake in one is reported."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from massrecon.errors import CardError, InputError
from massrecon.events.card import ProcessCard, load_card

TEXT = (files("massrecon.events") / "cards" / "wino_udd.yaml").read_text(encoding="utf-8")


def line_of(text: str, fragment: str) -> int:
    return text[: text.index(fragment)].count("\n") + 1


def written(tmp_path: Path, old: str, new: str) -> Path:
    assert TEXT.count(old) >= 1
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


def test_wino_udd_has_the_published_content(card: ProcessCard) -> None:
    jets = tuple(f"jet{i}" for i in range(1, 11))
    assert card.slots == ("lepton", "photon1", "photon2", *jets)
    assert card.slot_kinds == ("lepton", "photon", "photon", *("jet",) * 10)
    assert card.parton_names == (
        *("chi20", "h", "gamma1", "gamma2", "chi10_a", "u_a", "d_a", "s_a"),
        *("chi1", "W", "l", "nu", "chi10_b", "u_b", "d_b", "s_b"),
    )
    assert card.mass_names == ("chi20", "chi10")
    assert card.targets == {"chi20": "chi20", "chi10": "chi10_a"}
    assert card.target_names == (
        *("chi20_px", "chi20_py", "chi20_pz", "chi20_m"),
        *("chi10_px", "chi10_py", "chi10_pz", "chi10_m"),
    )


def test_every_mass_and_particle_has_a_symbol_without_latex(card: ProcessCard) -> None:
    names = (*card.mass_names, *card.parton_names)
    symbols = {name: card.symbol(name) for name in names}
    assert symbols["chi20"] == "χ̃<sub>2</sub><sup>0</sup>"
    assert symbols["gamma1"] == "γ<sub>1</sub>"
    assert symbols["chi10_b"] == "χ̃<sub>1</sub><sup>0</sup> (b)"
    assert not any(sign in symbol for symbol in symbols.values() for sign in "\\$_")
    assert len({symbols[label] for label in card.parton_names}) == len(card.parton_names)
    with pytest.raises(InputError, match=r"Unknown particle 'chi2' \(did you mean 'chi20'\?\)"):
        card.symbol("chi2")


def test_a_card_survives_the_round_trip_through_plain_data(card: ProcessCard) -> None:
    again = load_card(card.to_dict())
    assert again == card
    assert again.fingerprint() == card.fingerprint()
    assert load_card(card) is card
    changed = load_card({**card.to_dict(), "beam_energy": 13_000.0})
    assert changed.fingerprint() != card.fingerprint()


def test_a_card_is_frozen(card: ProcessCard) -> None:
    with pytest.raises(ValueError, match="frozen"):
        card.beam_energy = 13_000.0


def test_a_card_of_ones_own_is_loaded_from_its_path(tmp_path: Path) -> None:
    path = written(tmp_path, "name: wino_udd", "name: my_wino")
    assert load_card(path).name == load_card(str(path)).name == "my_wino"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("beam_energy: 14000.0", "beam_enrgy: 14000.0", r"did you mean 'beam_energy'\?"),
        ("beam_energy: 14000.0  # [GeV]", "", r"'beam_energy': this entry is missing"),
        ("beam_energy: 14000.0", "beam_energy: fast", r"'beam_energy': should be a number"),
        ("beam_energy: 14000.0", "beam_energy: -1", r"'beam_energy': .*greater than 0, got -1"),
        ("kind: photon, count: 2,", "kind: photon, n: 2,", r"'objects.1.n': unknown entry"),
        ("kind: photon, count: 2", "kind: photon, count: 3", r"'pair_mass' chooses a pair"),
        (
            "kind: photon",
            "kind: muon",
            r"'objects.1.kind': Unknown kind of object 'muon': choose from lepton, photon",
        ),
        ("kind: photon", "kind: jet", r"'jet' is listed twice|'pair_mass'"),
        ("minimum: 1, maximum: 1", "minimum: 2, maximum: 1", r"'maximum' should be at least"),
        ("default: 600.0", "default: 60.0", r"'range' should be positive, ordered and hold"),
        ("chi10: chi10_a", "chi10: chi10_c", r"Unknown particle 'chi10_c' \(did you mean"),
        ("targets: {chi20: chi20", "targets: {chi2: chi20", r"Unknown mass 'chi2' \(did you mean"),
        ("parent: chi20", "parent: chi2", r"'open_channels.0.parent': Unknown mass 'chi2'"),
        ("cross_section_mass: chi20", "cross_section_mass: h", r"Unknown mass 'h'"),
        ("1000022 $chi10", "1000022 $chi1", r"'pythia.spectrum': Unknown mass 'chi1'"),
        ("h > gamma gamma,", "h > gamma gluon,", r"particle 'gluon' .* missing under 'particles'"),
        ("(chi20 > h chi10,", "(chi2 > h chi10,", r"'decay': The decay string"),
        (
            "  s: {pdg: 3",
            "  c: {pdg: 4, symbol: c}\n  s: {pdg: 3",
            r"'c' does not occur in 'decay'",
        ),
        ("targets: {", "name: twice\ntargets: {", r"'name' stands here again after line 3"),
        ("targets: {", "targets: [", r"not valid YAML"),
    ],
)
def test_a_mistake_is_reported_with_file_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, old, new)
    with pytest.raises(CardError, match=message) as caught:
        load_card(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("kind: photon, count: 2,", "kind: photon, n: 2,", "n: 2,"),
        ("default: 200.0", "default: 5.0", "range: [10.0"),
        ("cross_section_mass: chi20", "cross_section_mass: h", "cross_section_mass: h"),
        ("targets: {chi20: chi20", "targets: {chi20: top", "targets: {chi20: top"),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    path = written(tmp_path, old, new)
    line = line_of(path.read_text(encoding="utf-8"), fragment)
    with pytest.raises(CardError) as caught:
        load_card(path)
    assert f"{path}:{line}:" in str(caught.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(TEXT.replace("title:", "titel:").replace("14000.0", "fast"), encoding="utf-8")
    with pytest.raises(CardError, match=r"(?s)beam_energy.*titel"):
        load_card(path)


def test_a_file_that_is_missing_or_no_mapping_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"nowhere\.yaml' cannot be read"):
        load_card(tmp_path / "nowhere.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- one\n- two\n")
    with pytest.raises(CardError, match="should be a mapping"):
        load_card(path)
    with pytest.raises(CardError, match="'name': this entry is missing"):
        load_card({"title": "no more"})


def test_an_unknown_name_lists_the_cards() -> None:
    with pytest.raises(InputError, match=r"Unknown process 'wino_ud'.*wino_udd.*\.yaml"):
        load_card("wino_ud")
