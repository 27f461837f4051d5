"""Runs a notebook in this very process: for points so short that starting a kernel is the work.

The notebook's names are its own and are gone afterwards; imported modules, the working folder and
the environment are shared with the points that this process runs before and after.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from massrecon.errors import RunError, require_extra
from massrecon.provenance import write_text
from massrecon.runs.notebooks import check_parameters, find_notebook, finish_run, start_run


class SharedProcess:
    """An IPython shell that runs one notebook after another."""

    def __init__(self) -> None:
        shells = require_extra("IPython.core.interactiveshell", extra="jupyter")
        traitlets_config = require_extra("traitlets.config", extra="jupyter")
        logging.getLogger("papermill").setLevel(logging.ERROR)
        self._shell = shells.InteractiveShell.instance(
            colors="nocolor", config=traitlets_config.Config({"HistoryManager": {"enabled": False}})
        )
        self._own_names = dict(self._shell.user_ns)
        self._capture = require_extra("IPython.utils.capture", extra="jupyter").capture_output
        self._parameterize = require_extra("papermill.parameterize", extra="jupyter")
        self._load = require_extra("papermill.iorw", extra="jupyter").load_notebook_node

    def run(self, notebook: str | Path, parameters: Mapping[str, Any], out: str | Path) -> None:
        """Executes a notebook like `massrecon.runs.notebooks.run_notebook`, in this process.

        Raises:
            InputError: If a parameter is unknown or of the wrong type; nothing has run then.
            RunError: If a cell fails, or the notebook wrote no summary.
        """
        path, out = find_notebook(notebook), Path(out).resolve()
        checked = check_parameters(path, {**parameters, "out": str(out)})
        started = time.monotonic()
        start_run(out)
        content = self._parameterize.parameterize_notebook(self._load(str(path)), checked)
        try:
            self._run_cells(content, path)
        finally:
            self._forget()
            # the format's own writer checks every cell against its schema: 20 ms
            write_text(out / path.name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        finish_run(path, checked, out, time.monotonic() - started)

    def _forget(self) -> None:
        """Drops the notebook's names; the shell's own reset would spend 60 ms on garbage."""
        names = self._shell.user_ns
        for name in names.keys() - self._own_names.keys():
            del names[name]
        names.update(self._own_names)

    def _run_cells(self, content: Any, path: Path) -> None:
        for number, cell in enumerate(content.cells, start=1):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            with self._capture() as captured:
                result = self._shell.run_cell(cell.source, store_history=False)
            cell.execution_count = number
            cell.outputs = _outputs(captured)
            error = result.error_before_exec or result.error_in_exec
            if error is not None:
                cell.outputs.append(_error_output(error))
                raise RunError(
                    f"Cell [{number}] of {path.name} failed with {type(error).__name__}: {error}\n"
                    "The executed notebook is kept beside the log."
                ) from error


def _outputs(captured: Any) -> list[dict[str, Any]]:
    """Returns what a cell printed and showed as outputs of the notebook format."""
    streams = (("stdout", captured.stdout), ("stderr", captured.stderr))
    outputs: list[dict[str, Any]] = [
        {"output_type": "stream", "name": name, "text": text} for name, text in streams if text
    ]
    for shown in captured.outputs:
        data, metadata = shown._repr_mimebundle_()
        outputs.append({"output_type": "display_data", "data": data, "metadata": metadata})
    return outputs


def _error_output(error: BaseException) -> dict[str, Any]:
    name, text = type(error).__name__, str(error)
    return {"output_type": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
