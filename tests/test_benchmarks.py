"""The table of ratios: rows arrive, whatever else fails, and a device that is not there is said."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ToyEvents

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """Imports a benchmark as if it were run from its folder."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def everything(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The runner, with three benchmarks of its own."""
    module = load("everything")
    (tmp_path / "good.py").write_text(
        "import sys\nfrom rows import row\nrow('a' + ''.join(sys.argv[1:]), 2.0, 'b', spread=0.5)\n"
    )
    (tmp_path / "bad.py").write_text(
        "from rows import row\nrow('c', 3.0, 'd')\nraise SystemExit(7)\n"
    )
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "BENCHMARKS", {"bad": (), "good": ("1",)})
    monkeypatch.setattr(module, "ON_A_DEVICE", ("good",))
    return module


def table(everything: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    out = everything.HERE / "results"
    monkeypatch.setattr(sys, "argv", ["everything.py", "--out", str(out), *arguments])
    with pytest.raises(SystemExit, match="failed: bad"):
        everything.main()
    return {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_a_failure_loses_no_rows(everything: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(everything, monkeypatch)["performance.json"]
    assert found["command"] == "make benchmark"
    assert found["machine"]["cores"] >= 1
    bad, good = found["benchmarks"]["bad"], found["benchmarks"]["good"]
    assert (bad["failed"], bad["rows"][0]["what"]) == ("ended with code 7", "c")
    assert good["failed"] == ""
    assert good["rows"] == [
        {"what": "a1--devicecpu", "ratio": 2.0, "spread": 0.5, "than": "b",
         "unit": "processor time", "note": ""}
    ]  # fmt: skip


def test_some_are_measured_again_and_a_device_has_its_own_table(
    everything: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(everything, monkeypatch)
    (everything.HERE / "good.py").write_text("from rows import row\nrow('new', 1.0, 'b')\n")
    assert set(table(everything, monkeypatch, "--device", "cuda")) == {
        "performance.json",
        "performance_cuda.json",
    }
    found = table(everything, monkeypatch, "good")["performance.json"]["benchmarks"]
    assert [row["what"] for one in found.values() for row in one["rows"]] == ["c", "new"]


def test_a_benchmark_that_hangs_is_stopped(everything: ModuleType) -> None:
    assert everything.run("slow", (), most_seconds=0.5)["failed"] == "stopped after 0 s"


def test_an_unknown_benchmark_is_named(
    everything: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["everything.py", "speed"])
    with pytest.raises(SystemExit):
        everything.main()
    assert "unknown benchmark 'speed': choose from bad, good" in capsys.readouterr().err


def test_every_benchmark_of_the_table_is_there_and_hands_over_rows(load: Any) -> None:
    module = importlib.reload(load("everything"))
    for name in module.BENCHMARKS:
        assert "from rows import" in (FOLDER / f"{name}.py").read_text(encoding="utf-8"), name


def test_ratios_are_of_medians_with_the_scatter(load: Any) -> None:
    rows = load("rows")
    assert rows.ratio_of([2.0, 2.0, 9.0], [1.0, 1.0, 1.0])[0] == 2.0
    assert rows.ratio_of([3.0], [2.0]) == (1.5, None)
    ratio, spread = rows.ratio_of([0.9, 1.0, 1.1], [2.0, 2.0, 2.0])
    assert (ratio, spread) == (0.5, pytest.approx(0.05))


def test_a_device_that_is_not_there_is_said(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = load("devices")
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["devices.py", "--device", "cuda"])
    devices.main()
    assert capsys.readouterr().out.strip().startswith("There is no 'cuda' device here")


def test_a_training_is_compared_with_its_matrix_products(
    load: Any, monkeypatch: pytest.MonkeyPatch, toy_events: ToyEvents
) -> None:
    devices, found = load("devices"), []
    monkeypatch.setattr(devices, "row", lambda *values, **_: found.append(values))
    monkeypatch.setattr(
        devices, "ways", lambda _: {"no way": lambda _: devices.contextlib.nullcontext()}
    )
    devices.report_training("flow_matching", toy_events(64, seed=1), "cpu", 96, 1)
    devices.report_draws("flow_matching", toy_events(8, seed=2), "cpu", 1)
    assert [values[2] for values in found] == ["its matrix products alone"] + 2 * ["plain float32"]
    assert found[0][1] > 0.5  # nothing is much faster than its own products
