"""Files are written whole or not at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

import massrecon
from massrecon.provenance import replacing_file, replacing_folder, versions, write_json


def test_versions_name_what_is_installed_only() -> None:
    found = versions("torch", "no-such-package")
    assert found["massrecon"] == massrecon.__version__
    assert set(found) == {"massrecon", "python", "torch"}


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"χ": 1})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == {"χ": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_file_is_swapped_in_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "table.bin"
    with replacing_file(target) as fresh:
        fresh.write_bytes(b"first")
    with pytest.raises(KeyboardInterrupt), replacing_file(target) as fresh:
        fresh.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"first"
    assert target.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["table.bin"]


def test_a_folder_is_swapped_in_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "results"
    with replacing_folder(target) as folder:
        (folder / "private").touch(mode=0o600)
        (folder / "a").write_text("first")
    with pytest.raises(RuntimeError, match="stop"), replacing_folder(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError("stop")
    assert (target / "a").read_text() == "first"
    assert stat.S_IMODE((target / "private").stat().st_mode) == 0o644
    with replacing_folder(target) as folder:
        (folder / "b").write_text("second")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
