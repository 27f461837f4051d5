"""Results run once more from their record: identical, different, without a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from massrecon.cli import app
from massrecon.errors import InputError, RunError
from massrecon.runs.notebooks import run_notebook
from massrecon.runs.reproduce import compare, reproduce
from tests.test_runs import write_notebook

PARAMETERS = """\
out: str = "results"  # folder for the results
n: int = 3  # a number
seed: int = 0  # seed
"""
BODY = """\
import json, pathlib, random, time
random.seed(seed)
summary = {"n": n, "draws": [random.random() for _ in range(n)], "wall_seconds": time.time()}
pathlib.Path(out, "summary.json").write_text(json.dumps(summary))
"""


def test_result_is_reproduced_and_a_changed_number_is_seen(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path, PARAMETERS, BODY)
    run_notebook(notebook, {"n": 2, "seed": 5}, tmp_path / "one", progress=False)
    found = reproduce(tmp_path / "one" / "summary.json", tmp_path / "two", progress=False)
    assert found.identical
    assert found.compared == 3
    assert json.loads((tmp_path / "two" / "comparison.json").read_text())["identical"]
    summary = tmp_path / "one" / "summary.json"
    content = json.loads(summary.read_text())
    content["draws"][1] += 1e-12
    summary.write_text(json.dumps(content))
    result = CliRunner().invoke(
        app, ["reproduce", str(summary), "--out", str(tmp_path / "three"), "--quiet"]
    )
    assert isinstance(result.exception, RunError)
    assert "draws[1]: " in result.output
    with pytest.raises(InputError, match="is the folder of the result itself"):
        reproduce(tmp_path / "one", tmp_path / "one")


def test_comparison_leaves_out_what_belongs_to_the_machine() -> None:
    before = {"a": 1, "b": [1.0, float("nan")], "wall_seconds": 1, "versions": {"x": "1"}, "c": {}}
    after = {"a": 1, "b": [1.0, float("nan")], "wall_seconds": 2, "versions": {"x": "2"}}
    assert compare(before, after).identical
    assert compare(before, {**after, "a": 1.0}).different == {"a": (1, 1.0)}
    assert compare({"events_per_second": 3.0}, {"events_per_second": 4.0}).identical
    assert not compare({"outliers": 0.01}, {"outliers": 0.02}).identical
    assert compare(before, {"b": [1.0]}).different.keys() == {"a", "b[1]"}


def test_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run.json' cannot be read .* 'massrecon run'"):
        reproduce(tmp_path, tmp_path / "out")
    for name in ("run.json", "summary.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="run.json' is no record of a run, .* names no notebook"):
        reproduce(tmp_path, tmp_path / "out")


def test_a_notebook_of_ones_own_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    own = write_notebook(tmp_path, PARAMETERS, BODY).rename(tmp_path / "simulate.ipynb")
    run_notebook(own, {"seed": 5}, tmp_path / "one", progress=False)
    assert reproduce(tmp_path / "one", tmp_path / "two", progress=False).identical
