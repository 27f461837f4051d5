"""The user's folder of notebooks: copied, renewed, never over an edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from massrecon.cli import app
from massrecon.errors import InputError
from massrecon.runs import lab


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two notebooks and a tutorial of a package."""
    for name in ("notebooks/00_start", "notebooks/01_simulate", "tutorials/ten_events"):
        path = tmp_path / "package" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr(lab, "notebook_folder", lambda: tmp_path / "package" / "notebooks")
    return tmp_path / "package"


def test_edits_are_never_replaced(sources: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert set(lab.copy_notebooks(mine).values()) == {"new"}
    edited, untouched = (mine / "notebooks" / f"{n}.ipynb" for n in ("00_start", "01_simulate"))
    edited.write_text("my own work")
    (mine / "notebooks" / "99_mine.ipynb").write_text("mine")
    for path in sources.rglob("*.ipynb"):
        path.write_text("a newer version")
    outcome = lab.copy_notebooks(mine)
    assert outcome == {
        "notebooks/00_start.ipynb": "kept",
        "notebooks/01_simulate.ipynb": "renewed",
        "tutorials/ten_events.ipynb": "renewed",
    }
    assert edited.read_text() == "my own work"
    assert untouched.read_text() == "a newer version"
    assert (mine / "notebooks" / "99_mine.ipynb").read_text() == "mine"
    again = lab.copy_notebooks(mine)
    assert sorted(again.values()) == ["kept", "unchanged", "unchanged"]
    assert lab.summary_of(again) == "1 kept, 2 unchanged"


@pytest.mark.parametrize("record", ["{", "[]", '{"copied": 3}', None])
def test_without_a_record_everything_that_differs_is_kept(
    sources: Path, tmp_path: Path, record: str | None
) -> None:
    mine = tmp_path / "mine"
    lab.copy_notebooks(mine)
    path = mine / ".massrecon.json"
    path.unlink() if record is None else path.write_text(record)
    (sources / "notebooks" / "00_start.ipynb").write_text("a newer version")
    assert lab.copy_notebooks(mine)["notebooks/00_start.ipynb"] == "kept"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="is a file: choose a folder for the notebooks"):
        lab.copy_notebooks(tmp_path / "mine")


def test_command_copies_the_real_notebooks(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lab", str(tmp_path / "mine"), "--copy-only"])
    assert result.exit_code == 0, result.output
    start = tmp_path / "mine" / lab.START
    assert json.loads(start.read_text())["nbformat"] == 4
    assert (tmp_path / "mine" / "tutorials" / "what_mt2_and_m2_know.ipynb").is_file()
