"""README's Python examples run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from massrecon.events import writer
from tests.conftest import ToyEvents

README = Path(__file__).resolve().parents[1] / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("package", ["pyarrow", "pandas", "duckdb"])
def test_events_are_read_without_massrecon_as_printed(
    package: str, toy_events: ToyEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.setattr(writer, "EVENTS_PER_FILE", 100)
    events = toy_events(250, seed=4)
    events.save(tmp_path / "events")
    (example,) = [code for code in examples() if f"import {package}" in code]
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)  # the code is ours
    if package == "pyarrow":
        assert found["table"].column("jet1_px").to_pylist() == events.p4[:, 3, 0].tolist()
    elif package == "pandas":
        assert found["events"]["ptmiss_y"].tolist() == events.ptmiss[:, 1].tolist()
        assert found["events"]["lepton_charge"].dtype == "int8"
    else:
        counts = found["duckdb"].sql(found["query"]).fetchall()
        assert events.masses is not None
        low = 50 * (events.masses[:, 1] / 50).floor()
        there = events.present[:, 3]
        for edge, count, energy in counts:
            here = (low == edge) & there
            assert count == int(here.sum())
            assert energy == pytest.approx(events.p4[here, 3, 3].mean().item())
        assert sum(count for _, count, _ in counts) == int(there.sum())


def test_the_mixture_needs_no_training_as_printed(
    toy_events: ToyEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_events(60, seed=5).save(tmp_path / "events")
    (example,) = [code for code in examples() if "mixture_posterior" in code]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)  # the code is ours
    assert len(found["posterior"]) == 60
    assert found["posterior"].mass_names == ("chi20", "chi10")


def test_the_first_python_example_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    example = examples()[0]
    assert len(example.strip().splitlines()) <= 10
    script = tmp_path / "example.py"
    script.write_text(example)
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "no skill" in result.stdout.lower()
    assert [p.name for p in tmp_path.iterdir()] == ["example.py"]


def test_ten_events_are_measured_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [code for code in examples() if "mr.measure" in code]
    exec(example, {})  # the code is ours
    said = capsys.readouterr().out
    assert "chi20" in said
    assert "68 %" in said
