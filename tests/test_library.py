"""Cards of one's own: found by name everywhere, and clashes reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from massrecon.errors import CardError, InputError
from massrecon.events.card import load_card
from massrecon.events.library import FOLDERS, builtin_cards, card_names, find_card, own_cards
from massrecon.events.request import Request


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of cards of one's own with one toy in it."""
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    write(tmp_path, "my_toy")
    return tmp_path


def write(folder: Path, stem: str, name: str | None = None) -> Path:
    text = find_card("antler")[0].replace("name: antler", f"name: {name or stem}")
    path = folder / f"{stem}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_builtin_card_loads_under_its_name() -> None:
    assert {"antler", "antler_ttbar", "wino_udd"} <= set(builtin_cards())
    for name in builtin_cards():
        assert load_card(name).name == name


def test_a_card_in_ones_own_folder_works_by_name(folder: Path) -> None:
    assert own_cards() == {"my_toy": (folder / "my_toy.yaml",)}
    assert set(card_names()) == {*builtin_cards(), "my_toy"}
    assert load_card("my_toy").name == "my_toy"
    assert Request.of("my_toy", {"A": 1500}, 1, None).card.name == "my_toy"


def test_several_folders_are_searched(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path_factory.mktemp("second")
    write(second, "other_toy")
    monkeypatch.setenv(FOLDERS, f"{folder}{os.pathsep}{second}")
    assert set(own_cards()) == {"my_toy", "other_toy"}
    assert load_card("other_toy").name == "other_toy"


def test_an_unknown_name_is_compared_with_ones_own(folder: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown process 'my_toi' \(did you mean 'my_toy'\?\)"):
        load_card("my_toi")


def test_a_name_that_means_two_cards_is_refused(folder: Path) -> None:
    write(folder, "wino_udd")
    with pytest.raises(CardError, match="'wino_udd' means the built-in card and '.*wino_udd.yaml'"):
        load_card("wino_udd")
    assert load_card(folder / "wino_udd.yaml").name == "wino_udd"
    (folder / "my_toy.yml").write_text((folder / "my_toy.yaml").read_text(encoding="utf-8"))
    with pytest.raises(CardError, match="'my_toy' means '.*yaml' and '.*yml': rename"):
        load_card("my_toy")


def test_a_file_that_is_called_otherwise_than_its_card_is_refused(folder: Path) -> None:
    write(folder, "renamed", "my_other")
    with pytest.raises(CardError, match="calls itself 'my_other': call the file my_other.yaml"):
        load_card("renamed")


def test_mistakes_in_ones_own_card_name_the_file(folder: Path) -> None:
    path = write(folder, "broken")
    path.write_text(path.read_text(encoding="utf-8").replace("beam_energy", "energy"))
    with pytest.raises(CardError, match=r"broken.yaml:\d+: 'energy': unknown entry"):
        load_card("broken")


def test_a_folder_that_is_not_there_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS, "/nowhere/at/all")
    with pytest.raises(CardError, match=f"{FOLDERS} names the folder '/nowhere/at/all'"):
        load_card("antler")
