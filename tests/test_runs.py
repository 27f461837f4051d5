"""Notebook runs: parameters checked first, failures kept, finished runs recognised; reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from massrecon.errors import InputError, RunError
from massrecon.runs import notebooks as nb

PARAMETERS = """\
out: str = "results"  # folder for the results
n_events: int = 10  # number of events
width: float = 30.0  # [GeV] half-width of the window
masses: list = ["chi10=50:450"]  # one entry a particle
interactive: bool = False  # widgets
"""
LAST = """\
import json, pathlib
print("made", n_events)
pathlib.Path(out, "summary.json").write_text(json.dumps({"n": n_events, "masses": masses}))
"""


def write_notebook(folder: Path, *cells: str, tag: str = "parameters") -> Path:
    """Writes a notebook whose first code cell carries the tag."""
    content = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell{i}",
                "metadata": {"tags": [tag]} if i == 0 else {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for i, source in enumerate(cells)
        ],
    }
    path = folder / "90_small.ipynb"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_notebook(tmp_path, PARAMETERS, LAST)


def test_parameters_are_read_with_type_default_and_help(small: Path) -> None:
    found = nb.notebook_parameters(small)
    assert list(found) == ["out", "n_events", "width", "masses", "interactive"]
    assert found["width"] == nb.Parameter("width", "float", 30.0, "[GeV] half-width of the window")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n_events": "25"}, {"n_events": 25}),
        ({"width": "20"}, {"width": 20.0}),
        ({"width": 20}, {"width": 20.0}),
        ({"masses": "a=1,b=2"}, {"masses": ["a=1", "b=2"]}),
        ({"masses": "['a=50,100', 'b=2']"}, {"masses": ["a=50,100", "b=2"]}),
        ({"interactive": "true"}, {"interactive": True}),
        ({"out": "7"}, {"out": "7"}),
    ],
)
def test_text_becomes_the_declared_type(
    small: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert nb.check_parameters(small, given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_event": 3}, r"Unknown parameter of 90_small 'n_event' \(did you mean 'n_events'\?\)"),
        ({"n_events": "many"}, "'n_events' should be of type int .default 10., got 'many'"),
        ({"n_events": 2.5}, "should be of type int"),
        ({"n_events": True}, "should be of type int"),
        ({"width": "wide"}, "should be of type float"),
        ({"interactive": "perhaps"}, "should be of type bool"),
        ({"interactive": 1}, "should be of type bool"),
    ],
)
def test_a_bad_parameter_stops_the_run_before_it_starts(
    small: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        nb.run_notebook(small, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n = 3\n", "only, found 'n = 3'"),
        ("n: dict = {}\n", "one of the types int, float"),
        ("n: int\n", "should have a default"),
        ("n: int = max(1, 2)\n", r"default of parameter 'n' .* 'max\(1, 2\)': compute it in the"),
        ("%matplotlib inline\nn: int = 1\n", "is not plain Python in its line 1"),
    ],
)
def test_a_badly_declared_parameter_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nb.notebook_parameters(write_notebook(tmp_path, source))


def test_a_notebook_without_parameters_or_no_notebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cell tagged 'parameters'"):
        nb.notebook_parameters(write_notebook(tmp_path, PARAMETERS, tag="other"))
    (tmp_path / "text.ipynb").write_text("not json")
    with pytest.raises(InputError, match="is not a Jupyter notebook"):
        nb.notebook_parameters(tmp_path / "text.ipynb")
    with pytest.raises(InputError, match="Unknown notebook '03_reconstrct' .did you mean"):
        nb.find_notebook("03_reconstrct")
    assert nb.find_notebook("reconstruct").name == "03_reconstruct.ipynb"


def test_a_run_gives_its_summary_and_is_recognised_afterwards(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert nb.run_notebook(small, {"n_events": 7}, out) == {"n": 7, "masses": ["chi10=50:450"]}
    assert (out / "90_small.ipynb").is_file()
    record = nb.finished_run(small, {"n_events": "7"}, out)
    assert record is not None
    assert record["summary"]["n"] == 7
    assert record["wall_seconds"] > 0
    assert nb.finished_run(small, {"n_events": 8}, out) is None
    write_notebook(tmp_path, PARAMETERS, LAST + "# changed")
    assert nb.finished_run(small, {"n_events": 7}, out) is None


def test_a_failing_cell_is_named_and_the_notebook_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    nb.run_notebook(write_notebook(tmp_path, PARAMETERS, LAST), {}, out, progress=False)
    path = write_notebook(tmp_path, PARAMETERS, "1 / 0", LAST)
    with pytest.raises(RunError, match="failed with ZeroDivisionError: division by zero") as error:
        nb.run_notebook(path, {}, out, progress=False)
    assert str(out / "90_small.ipynb") in str(error.value)
    assert "ZeroDivisionError" in (out / "90_small.ipynb").read_text()
    assert not (out / "summary.json").exists()
    assert nb.finished_run(path, {}, out) is None


def test_a_notebook_without_summary_is_an_error(tmp_path: Path) -> None:
    path = write_notebook(tmp_path, PARAMETERS, "x = 1")
    with pytest.raises(RunError, match=r"wrote no summary\.json"):
        nb.run_notebook(path, {}, tmp_path / "out", progress=False)
