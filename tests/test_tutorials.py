"""The tutorials run from the first to the last cell, and what they show stays small."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.ipynb"))
FAST = ("deelema_on_ttbar", "ten_events", "what_mt2_and_m2_know", "your_own_files")
MARKED = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else [pytest.mark.slow])
    for path in TUTORIALS
]


@pytest.mark.parametrize("path", MARKED)
def test_a_tutorial_runs_and_its_assertions_hold(path: Path, tmp_path: Path) -> None:
    for package in ("nbval", "ipykernel"):
        pytest.importorskip(package)
    own = tmp_path / path.name  # what it writes stays there
    shutil.copy(path, own)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-c", os.devnull]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(own)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_asserts_and_stays_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "assert " in text
    assert len(text.encode()) <= 300_000
