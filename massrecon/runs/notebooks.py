"""Parameterised notebooks, checked before they run and kept when they fail.

A notebook declares its parameters in the cell tagged ``parameters`` as ``name: type = value``
lines with a trailing ``# [unit] help``; its last cell writes ``summary.json`` into the folder
given by the parameter ``out``.
"""

from __future__ import annotations

import ast
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import massrecon
from massrecon.errors import InputError, RunError, reason, require_extra, unknown_name
from massrecon.provenance import file_sha256, write_json

SUMMARY_FILE, RECORD_FILE = "summary.json", "run.json"
"""What a run leaves beside the executed notebook: its results, and what was asked for."""

_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "list": list}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook.

    Attributes:
        name: Its name.
        type_name: ``int``, ``float``, ``str``, ``bool`` or ``list``.
        default: The value that the notebook starts with.
        help: What it means, with its unit.
    """

    name: str
    type_name: str
    default: Any
    help: str

    def convert(self, value: Any) -> Any:
        """Converts a value, or its text from the command line, to the declared type.

        Raises:
            InputError: If it is not of that type.
        """
        wanted = _TYPES[self.type_name]
        if isinstance(value, str) and wanted is not str:
            value = self._parse(value)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if wanted is list and isinstance(value, tuple):
            value = list(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise InputError(
                f"Parameter '{self.name}' should be of type {self.type_name} "
                f"(default {self.default!r}), got {value!r}."
            )
        return value

    def _parse(self, text: str) -> Any:
        if self.type_name == "bool" and text.lower() in ("true", "false", "yes", "no"):
            return text.lower() in ("true", "yes")
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return [part.strip() for part in text.split(",")] if self.type_name == "list" else text


def notebook_folder() -> Path:
    """Returns the folder of the notebooks: the installed one, or the project's own."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "notebooks"
    return installed if installed.is_dir() else package.parent / "notebooks"


def find_notebook(name: str | Path) -> Path:
    """Finds a notebook by name (``01_simulate``), by the part after its number, or by path.

    Raises:
        InputError: If there is none; the message lists those that come with massrecon.
    """
    path = Path(name)
    if path.suffix == ".ipynb":
        if not path.is_file():
            raise InputError(f"No notebook at '{path}': check the path.")
        return path
    known = {p.stem: p for p in sorted(notebook_folder().glob("*.ipynb"))}
    for stem, found in known.items():
        if str(name) in (stem, stem.partition("_")[2]):
            return found
    raise unknown_name("notebook", str(name), known)


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """Reads the declared parameters of a notebook, in order.

    Raises:
        InputError: If the file is no notebook, has no cell tagged ``parameters``, or declares one
            without a plain default or with a type other than int, float, str, bool or list.
    """
    path = find_notebook(notebook)
    source = _tagged_source(path)
    lines, found = source.splitlines(), {}
    for statement in _statements(source, path):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise InputError(
                f"{path}: the parameters cell should hold lines 'name: type = value  # help' "
                f"only, found '{lines[statement.lineno - 1].strip()}'."
            )
        name, type_name = statement.target.id, ast.unparse(statement.annotation)
        if type_name not in _TYPES or statement.value is None:
            raise InputError(
                f"{path}: parameter '{name}' should have a default and one of the types "
                f"{', '.join(_TYPES)}, has '{type_name}'."
            )
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: the default of parameter '{name}' should be a plain value, has "
                f"'{ast.unparse(statement.value)}': compute it in the next cell."
            ) from error
        comment = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset or 0 :]
        found[name] = Parameter(name, type_name, default, comment.strip().lstrip("# "))
    return found


def _statements(source: str, path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise InputError(
            f"{path}: the parameters cell is not plain Python in its line {error.lineno} "
            f"({error.msg}): it should hold lines 'name: type = value  # help' only."
        ) from error


def _tagged_source(path: Path) -> str:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Jupyter notebook: {reason(error)}.") from error
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return "".join(cell["source"])
    raise InputError(f"{path} has no cell tagged 'parameters': tag the cell that declares them.")


def check_parameters(notebook: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checks parameter names and types against a notebook and converts the values.

    Raises:
        InputError: If a name is unknown or a value has the wrong type.
    """
    return converted(values, notebook_parameters(notebook), find_notebook(notebook).stem)


def converted(
    values: Mapping[str, Any], declared: Mapping[str, Parameter], notebook: str
) -> dict[str, Any]:
    """Checks and converts parameters like `check_parameters`, for a notebook that was read before.

    Raises:
        InputError: If a name is unknown or a value has the wrong type.
    """
    checked = {}
    for name, value in values.items():
        if name not in declared:
            raise unknown_name(f"parameter of {notebook}", name, declared)
        checked[name] = declared[name].convert(value)
    return checked


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any],
    out: str | Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Executes a notebook and returns its summary.

    The executed notebook and ``summary.json`` are in `out` afterwards. A notebook that fails is
    kept there too, with the error in the failing cell.

    Args:
        notebook: Name or path.
        parameters: Values by name; text is converted to the declared type.
        out: Folder for the results, given to the notebook as its parameter ``out``.
        progress: Shows the cells and what they print while they run.

    Raises:
        InputError: If a parameter is unknown or of the wrong type; nothing has run then.
        RunError: If a cell fails, or the notebook wrote no summary.
    """
    path, out = find_notebook(notebook), Path(out).resolve()
    checked = check_parameters(path, {**parameters, "out": str(out)})
    papermill = require_extra("papermill", extra="jupyter")
    # its own reading of the parameters, less able than ours, would only warn
    logging.getLogger("papermill").setLevel(logging.ERROR)
    executed, started = out / path.name, time.monotonic()
    start_run(out)
    try:
        papermill.execute_notebook(
            str(path),
            str(executed),
            parameters=checked,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout if progress else None,
            stderr_file=sys.stderr if progress else None,
            store_widget_state=False,
            config=_kernel_config(),
        )
    except papermill.PapermillExecutionError as error:
        raise RunError(
            f"Cell [{error.exec_count}] of {path.name} failed with {error.ename}: {error.evalue}\n"
            f"The executed notebook is kept at {executed}."
        ) from error
    return finish_run(path, checked, out, time.monotonic() - started)


def start_run(out: Path) -> None:
    """Makes the folder of a run; a failed run must not leave an older run's numbers."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in (out / SUMMARY_FILE, out / RECORD_FILE):
        stale.unlink(missing_ok=True)


def finish_run(
    path: Path, parameters: Mapping[str, Any], out: Path, seconds: float
) -> dict[str, Any]:
    """Records a run of a notebook with checked parameters, and returns its summary.

    Raises:
        RunError: If the notebook wrote no summary.
    """
    summary = out / SUMMARY_FILE
    if not summary.is_file():
        raise RunError(
            f"{path.name} wrote no summary.json: its last cell should. See {out / path.name}."
        )
    write_json(out / RECORD_FILE, {**_request(path, parameters), "wall_seconds": round(seconds, 1)})
    return json.loads(summary.read_text(encoding="utf-8"))


def _kernel_config() -> Any:
    """Encrypts the traffic with the kernel where it can be: the ports are open to every user."""
    traitlets_config = require_extra("traitlets.config", extra="jupyter")
    return traitlets_config.Config({"KernelManager": {"transport_encryption": "auto"}})


def finished_run(
    notebook: str | Path, parameters: Mapping[str, Any], out: str | Path
) -> dict[str, Any] | None:
    """Returns the record of a finished run of the same notebook with the same parameters.

    The record has the request, ``wall_seconds``, and under ``summary`` the run's summary; None if
    `out` holds no such run.
    """
    path, out = find_notebook(notebook), Path(out).resolve()
    request = _request(path, check_parameters(path, {**parameters, "out": str(out)}))
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
        summary = json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or {key: record.get(key) for key in request} != request:
        return None
    return {**record, "summary": summary}


def forget_run(out: str | Path) -> None:
    """Makes a finished run count as not done; its results stay until they are replaced."""
    (Path(out) / RECORD_FILE).unlink(missing_ok=True)


def notebook_sha256(notebook: str | Path) -> str:
    """Returns the SHA-256 checksum of a notebook as hexadecimal digits."""
    return file_sha256(find_notebook(notebook))


def _request(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "notebook": path.name,
        "notebook_sha256": notebook_sha256(path),
        "massrecon": massrecon.__version__,
        "parameters": dict(parameters),
    }
