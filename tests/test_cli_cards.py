"""``massrecon cards``: listing, showing, checking and copying."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from massrecon.cli import app
from massrecon.errors import CardError, InputError
from massrecon.events.card import load_card
from massrecon.events.library import FOLDERS, builtin_cards, find_card


def cards(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["cards", *map(str, arguments)])


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_list_names_every_card_with_what_matters() -> None:
    result = cards()
    assert result.exit_code == 0
    listed = [line for line in result.stdout.splitlines() if line and line[0].isalpha()]
    assert listed == list(builtin_cards())
    text = in_one_line(result.stdout)
    assert "toy, 13 TeV; seen: 2 a, 2 b; A 1000 (1 to 5000) GeV" in text
    assert "Pythia, 14 TeV; seen: 1 lepton, 2 photon, 10 jet (at least 2); chi20 600" in text
    assert "presets: line, plane" in text
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_own_cards_are_listed_with_their_file_and_broken_ones_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    assert cards("copy", "antler", tmp_path / "my_toy.yaml").exit_code == 0
    text = find_card("antler")[0]
    (tmp_path / "wino_udd.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "bad.yaml").write_text("name: bad\n", encoding="utf-8")
    shown = cards().stdout
    assert f"my_toy  [{tmp_path / 'my_toy.yaml'}]" in shown
    assert "bad.yaml]\n    cannot be used: " in shown
    assert "cannot be used: The name 'wino_udd' means the built-in card and" in shown


@pytest.mark.parametrize("name", builtin_cards())
def test_a_card_is_shown_with_every_particle(name: str, tmp_path: Path) -> None:
    svg = tmp_path / "diagram.svg"
    result = cards("show", name, "--svg", svg)
    assert result.exit_code == 0
    card = load_card(name)
    for label in card.parton_names:
        assert f"─ {label} " in result.stdout
    for mass in card.masses:
        assert f"Mass {mass} " in result.stdout
    assert f"massrecon simulate {name} --events" in result.stdout
    assert in_one_line(card.notes)[:60] in in_one_line(result.stdout)
    assert svg.read_text(encoding="utf-8").startswith("<svg ")


def test_the_call_that_is_shown_works() -> None:
    from massrecon.events.request import Request

    text = cards("show", "antler").stdout
    call = next(line for line in text.splitlines() if "massrecon.simulate(" in line)
    assert call.strip() == (
        'massrecon.simulate("antler", 1000, masses={"A": 1000, "B": 800, "C": 700})'
    )
    Request.of("antler", {"A": 1000, "B": 800, "C": 700}, 0, None)


def test_a_good_card_is_called_good(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert cards("copy", "wino_udd", path).exit_code == 0
    assert load_card(path).name == "mine"
    result = cards("check", path)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}: good")
    assert "chi20 600 (150 to 2500) GeV" in result.stdout


def test_every_mistake_of_every_file_is_shown_and_counted(tmp_path: Path) -> None:
    text = find_card("wino_udd")[0]
    (tmp_path / "one.yaml").write_text(text.replace("title:", "titel:"), encoding="utf-8")
    (tmp_path / "two.yaml").write_text("name: [", encoding="utf-8")
    (tmp_path / "good.yaml").write_text(text, encoding="utf-8")
    result = cards("check", tmp_path)
    assert result.exit_code == 1
    assert "one.yaml:3: 'title': this entry is missing" in result.stderr
    assert "one.yaml:4: 'titel': unknown entry (did you mean 'title'?)" in result.stderr
    assert "two.yaml:1: not valid YAML" in result.stderr
    assert result.stderr.strip().endswith("3 mistakes")
    assert "good.yaml: good" in result.stdout


def test_checking_nothing_is_refused(tmp_path: Path) -> None:
    result = cards("check", tmp_path)
    assert isinstance(result.exception, CardError)
    assert "holds no card" in str(result.exception)
    missing = cards("check", tmp_path / "nowhere.yaml")
    assert missing.exit_code == 1
    assert "cannot be read" in missing.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine.txt", "should end in .yaml"),
        ("1st.yaml", "'1st' cannot name a card"),
        ("there.yaml", "is there already"),
    ],
)
def test_a_copy_never_overwrites_and_has_a_good_name(
    tmp_path: Path, target: str, message: str
) -> None:
    (tmp_path / "there.yaml").write_text("precious", encoding="utf-8")
    result = cards("copy", "antler", tmp_path / target)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert (tmp_path / "there.yaml").read_text(encoding="utf-8") == "precious"


def test_an_unknown_card_is_one_clear_error() -> None:
    result = cards("show", "wino_ud")
    assert isinstance(result.exception, InputError)
    assert "did you mean 'wino_udd'?" in str(result.exception)
