"""Runs a result once more from its own record, and compares.

A run leaves ``run.json`` beside its ``summary.json``: notebook, checksum, parameters, version. On
the same machine with the same versions and the same number of threads the same seed gives the same
numbers, but for times and for what a training gets done in a given time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import massrecon
from massrecon.errors import InputError, reason
from massrecon.provenance import write_json
from massrecon.runs.notebooks import (
    RECORD_FILE,
    SUMMARY_FILE,
    notebook_folder,
    notebook_sha256,
    run_notebook,
)

COMPARISON = "comparison.json"

_OF_THE_MACHINE = {"second", "seconds", "minutes", "versions", "device", "out"}
"""Words in the names of values that another machine, or another time, changes."""


@dataclass(frozen=True)
class Comparison:
    """How two summaries differ.

    Attributes:
        compared: Number of values that both have.
        different: By the path of a value: the one of the record and the new one; None for a value
            that only one of them has.
        notes: What may explain differences, such as another version.
    """

    compared: int
    different: dict[str, tuple[Any, Any]]
    notes: list[str]

    @property
    def identical(self) -> bool:
        """Whether all values are the same."""
        return not self.different


def reproduce(summary: str | Path, out: str | Path, progress: bool = True) -> Comparison:
    """Runs the notebook of a result again with its parameters, and compares the summaries.

    Values that belong to the machine or the moment (times, versions, device, folders) are left out.
    The comparison is written to ``comparison.json`` in `out`.

    Args:
        summary: ``summary.json`` of a run, or the folder that holds it.
        out: Folder for the new run.
        progress: Whether to show what the notebook prints.

    Raises:
        InputError: If there is no record of the run, or `out` is its own folder.
        RunError: If the notebook fails.
    """
    summary = Path(summary)
    if not summary.exists():
        raise InputError(f"There is no '{summary}': pass the {SUMMARY_FILE} of a 'massrecon run'.")
    folder = summary.parent if summary.is_file() else summary
    record, before = _read_record(folder / RECORD_FILE), _read(folder / SUMMARY_FILE)
    if Path(out).resolve() == folder.resolve():
        raise InputError(f"'out' is the folder of the result itself, '{out}': choose another.")
    notebook = notebook_folder() / record["notebook"]
    if not notebook.is_file():  # one of the user's own: the executed copy has the same cells
        notebook = folder / record["notebook"]
    parameters = {name: v for name, v in record["parameters"].items() if name != "out"}
    notes = _notes(record, notebook)
    after = run_notebook(notebook, parameters, out, progress)
    found = compare(before, after, notes)
    write_json(
        Path(out) / COMPARISON,
        {"of": str(folder), "compared": found.compared, "identical": found.identical,
         "different": found.different, "notes": notes},
    )  # fmt: skip
    return found


def compare(before: Any, after: Any, notes: list[str] | None = None) -> Comparison:
    """Compares two summaries value by value; a value that is no number equals itself."""
    one, other = dict(_values(before)), dict(_values(after))
    both = one.keys() & other.keys()
    different = {
        name: (one.get(name), other.get(name))
        for name in sorted(one.keys() | other.keys())
        if name not in both or not _same(one[name], other[name])
    }
    return Comparison(len(both), different, notes or [])


def _values(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Lists all values of a summary that a second run should give again, by their paths."""
    if isinstance(content, Mapping):
        for name, inner in content.items():
            if _OF_THE_MACHINE.isdisjoint(str(name).split("_")):
                yield from _values(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(content, list):
        for number, inner in enumerate(content):
            yield from _values(inner, f"{path}[{number}]")
    else:
        yield path, content


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


def _notes(record: Mapping[str, Any], notebook: Path) -> list[str]:
    notes = []
    if record.get("massrecon") != massrecon.__version__:
        notes.append(
            f"the record is of massrecon {record.get('massrecon')}, this is {massrecon.__version__}"
        )
    if record.get("notebook_sha256") != notebook_sha256(notebook):
        notes.append(f"{record['notebook']} is not the very file that was run")
    return notes


def _read_record(path: Path) -> dict[str, Any]:
    """Reads what a run was asked for."""
    record = _read(path)
    notebook, parameters = record.get("notebook"), record.get("parameters")
    if not isinstance(notebook, str) or not isinstance(parameters, dict):
        raise InputError(
            f"'{path}' is no record of a run, for it names no notebook or no parameters: pass the "
            f"{SUMMARY_FILE} of a finished 'massrecon run'."
        )
    return record | {"notebook": Path(notebook).name}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' cannot be read ({reason(error)}): pass the {SUMMARY_FILE} of a finished "
            f"'massrecon run', which has a {RECORD_FILE} beside it."
        ) from error
    return content if isinstance(content, dict) else {}
