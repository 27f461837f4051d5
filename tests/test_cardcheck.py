"""Checks of card files: every mistake with its line, and never a crash."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from massrecon.errors import CardError
from massrecon.events import cardcheck
from massrecon.events.card import load_card
from massrecon.events.cardcheck import CardReport, check_card
from massrecon.events.library import FOLDERS, builtin_cards, find_card

WINO = find_card("wino_udd")[0]
ANTLER = find_card("antler")[0]
CHANNEL = "0.5 3  2  1  3"
SNIPPETS = [b"\t", b"[", b"{", b": ", b"- ", b"&a ", b"*a"]


def checked(folder: Path, text: str, name: str = "mine.yaml") -> CardReport:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return check_card(path)


def changed(*pairs: tuple[str, str], text: str = WINO) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def line_of(text: str, fragment: str) -> int:
    return text[: text.index(fragment)].count("\n") + 1


@pytest.mark.parametrize("name", builtin_cards())
def test_builtin_cards_have_no_mistakes(tmp_path: Path, name: str) -> None:
    report = checked(tmp_path, find_card(name)[0])
    assert report.mistakes == ()
    assert report.card == load_card(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        (CHANNEL, "0.4 3  2  1  3", "DECAY 1000022", "of 1000022 add up to 0.9: make it"),
        (
            CHANNEL,
            "0.5 2  2  1  3",
            "0.5 2  2  1  3",
            "says 2 decay products, but lists 3",
        ),
        (CHANNEL, "0.5 3  2  1  x", "0.5 3  2  1  x", "a decay reads 'fraction number"),
        ("DECAY 1000022 1.0e-03", "DECAY 1000022", "DECAY 1000022", "starts with 'DECAY code"),
        ("1.0 2 1000022 25", "1.0 2 1000022 23", "DECAY 1000023", "no decay chi20 > h chi10"),
        ("1000022 $chi10", "1000022 100.0", "1000022 100.0", r"write \$chi10"),
        ("25 1.250000e+02", "25 heavy", "25 heavy", "BLOCK MASS|block MASS reads"),
        ("25 1.250000e+02", "25 4.5e+02", "1.0 2 1000022 25", "into 650 GeV is closed"),
        ("minimum_gap: 126.0", "minimum_gap: 4000", "- {parent", "closed over the whole ranges"),
        ("default: 200.0", "default: 500.0", "masses:", "at the default masses.*is closed"),
        ("W > l nu,", "W > l l,", "decay:", "W > l l does not conserve electric charge"),
        ("chi10: chi10_a}", "chi10: h}", "targets:", "the mass of 'h' is not set by 'chi10'"),
        ("{pdg: 25,", "{pdg: 0,", "h: {pdg", "0 is no PDG code"),
        ('"24:onMode = off"', '"24:onMode off"', '"24:onMode off"', "should read 'Key:name = val"),
    ],
)
def test_a_mistake_is_found_at_its_line(
    tmp_path: Path, old: str, new: str, at: str, message: str
) -> None:
    text = changed((old, new))
    if new == "W > l l,":
        text = changed(('  nu: {pdg: [12, 14], symbol: "ν"}\n', ""), text=text)
    if "minimum_gap" in new:
        text = text[: text.index("presets:")] + text[text.index("open_channels:") :]
    report = checked(tmp_path, text)
    place = f"{tmp_path / 'mine.yaml'}:{line_of(text, at)}: "
    found = [mistake for mistake in report.mistakes if mistake.startswith(place)]
    assert found, report.mistakes
    assert any(re.search(message, mistake) for mistake in found), report.mistakes


def test_settings_that_pythia_does_not_know_are_found(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    text = changed(("SUSY:idVecA", "SUSY:idVectorA"), ("24:onIfAny", "24:onIfOny"))
    mistakes = checked(tmp_path, text).mistakes
    assert len(mistakes) == 2
    for mistake, fragment in zip(mistakes, ("idVectorA", "onIfOny"), strict=True):
        assert f":{line_of(text, fragment)}: " in mistake
        assert "Pythia does not accept" in mistake


def test_without_pythia_its_settings_are_left_out_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cardcheck, "unknown_settings", lambda settings: None)
    report = checked(tmp_path, changed(("SUSY:idVecA", "SUSY:idVectorA")))
    assert report.mistakes == ()
    assert any("pythia8mc is not installed" in hint for hint in report.hints)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = changed(
        ("beam_energy: 14000.0", "beam_energy: fast"),
        ("title:", "titel:"),
        ("kind: photon", "kind: muon"),
        ("chi10: chi10_a}", "chi10: chi10_c}"),
        ("h > gamma gamma,", "h > gamma gluon,"),
    )
    found = "\n".join(checked(tmp_path, text).mistakes)
    for fragment in ("'beam_energy'", "'titel'", "'muon'", "'chi10_c'", "'gluon'"):
        assert fragment in found
    assert "'title': this entry is missing" in found


def test_mistakes_come_in_the_order_of_the_lines(tmp_path: Path) -> None:
    folder = tmp_path / "a: strange:3: name"
    folder.mkdir()
    text = changed(("kind: photon", "kind: muon"), ("{pdg: 22, ", "{"), ("title:", "titel:"))
    mistakes = checked(folder, text).mistakes
    start = len(str(folder / "mine.yaml:"))
    lines = [int(mistake[start:].partition(":")[0]) for mistake in mistakes]
    assert len(lines) == 4
    assert lines == sorted(lines)


def test_mistakes_of_the_second_kind_come_together_too(tmp_path: Path) -> None:
    text = changed(
        ("1.0 2 1000022 25", "0.7 2 1000022 25"), ("1.0 2 1000022 24", "0.8 3 1000022 24")
    )
    assert len(checked(tmp_path, text).mistakes) == 3


def test_entries_that_occur_twice_are_all_listed(tmp_path: Path) -> None:
    text = changed(("beam_energy:", "name: one\nname: two\nbeam_energy:"))
    mistakes = checked(tmp_path, text).mistakes
    assert sum("'name' stands here again" in mistake for mistake in mistakes) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a", r"mine.yaml:\d+: not valid YAML: .*check indentation"),
        ("\tname: a", r"mine.yaml:1: not valid YAML: .*tab"),
        ("", "should be a mapping"),
        ("just words", "should be a mapping"),
        ("name: 2001-99-99", "a value cannot be read: month must be in"),
        ("? [a]\n: b", "not valid YAML: found unhashable key"),
        ("a: &x [*x]\nname: b", "'a': unknown entry"),
        ("[" * 3000, "nested too deeply|not valid YAML"),
        ("1: 2", "'1': |'card'"),
    ],
)
def test_broken_yaml_is_one_clear_mistake(tmp_path: Path, text: str, message: str) -> None:
    mistakes = checked(tmp_path, text).mistakes
    assert any(re.search(message, mistake) for mistake in mistakes), mistakes


def test_a_small_file_that_unfolds_to_a_huge_one_is_no_danger(tmp_path: Path) -> None:
    names = "abcdefghijklmnop"
    text = "a: &a [x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(names)
    )
    assert checked(tmp_path, text).mistakes


def test_files_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    assert "cannot be read" in check_card(tmp_path / "nowhere.yaml").mistakes[0]
    assert "cannot be read" in check_card(tmp_path).mistakes[0]
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00name")
    assert "cannot be read" in check_card(tmp_path / "bytes.yaml").mistakes[0]


def test_hints_do_not_count_as_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = ANTLER.index("open_channels:"), ANTLER.index("phase_space:")
    report = checked(tmp_path, ANTLER[:start] + ANTLER[end:])
    assert report.mistakes == ()
    assert any("add {parent: A, daughters: [B], minimum_gap: …}" in hint for hint in report.hints)
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    report = checked(tmp_path, ANTLER, "antler.yaml")
    assert any("the built-in card" in hint for hint in report.hints)
    report = checked(tmp_path, ANTLER.replace("name: antler", "name: other"), "another.yaml")
    assert any("call the file other.yaml" in hint for hint in report.hints)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_card_with_damaged_bytes_never_crashes_the_check(
    tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(ANTLER.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if action == "change":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del raw[at : at + data.draw(st.integers(1, 80))]
        elif action == "insert":
            raw[at:at] = data.draw(st.sampled_from(SNIPPETS))
        else:
            del raw[at + 1 :]
        raw = raw or bytearray(b" ")
    path = tmp_path / "damaged.yaml"
    path.write_bytes(bytes(raw))
    _check_agrees_with_loading(path)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.text("abAB_ >$\n", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abA", max_size=2), inner),
    max_leaves=5,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_card_with_wrong_values_never_crashes_the_check(
    tmp_path: Path, data: st.DataObject
) -> None:
    content = yaml.safe_load(data.draw(st.sampled_from([ANTLER, WINO])))
    for _ in range(data.draw(st.integers(1, 3))):
        inside, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(inside[key], dict) and inside[key] and data.draw(st.booleans()):
            inside, key = inside[key], data.draw(st.sampled_from(sorted(inside[key])))
        inside[key] = data.draw(VALUES)
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    _check_agrees_with_loading(path)


def _check_agrees_with_loading(path: Path) -> None:
    """A card that cannot be loaded has mistakes; one without mistakes can be loaded."""
    report = check_card(path)
    try:
        load_card(path)
    except CardError:
        assert report.mistakes
    else:
        assert report.card is not None
    assert all(str(path) in mistake for mistake in report.mistakes), report.mistakes
