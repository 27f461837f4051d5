"""The user's own folder of notebooks and tutorials, JupyterLab on it, and one of them as a page.

Files are copied, never over an edit of the user's: the folder keeps the checksums of what was
copied, so that files that were not touched are renewed with a new version of massrecon, and edited
ones stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from massrecon.errors import InputError, RunError, reason, require_extra, unknown_name
from massrecon.provenance import file_sha256, write_json, write_text
from massrecon.runs.notebooks import notebook_folder

START = "notebooks/00_start.ipynb"
"""What opens first."""

PAGE = Path(__file__).parent / "page"
"""Template of a page that asks nothing of other machines."""

_RECORD = ".massrecon.json"
Outcome = Literal["new", "renewed", "unchanged", "kept"]


def copy_notebooks(folder: str | Path) -> dict[str, Outcome]:
    """Copies notebooks and tutorials into a folder of the user's.

    Args:
        folder: A folder, made if it is not there.

    Returns:
        What became of each file by its path: ``new``; ``renewed``, untouched since it was copied
        and replaced by a newer one; ``unchanged``; ``kept``, since the user has edited it.

    Raises:
        InputError: If the folder is a file, or cannot be written to.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file: choose a folder for the notebooks.")
    copied = _copied(folder)
    outcome: dict[str, Outcome] = {}
    try:
        for name, source in _sources():
            outcome[name] = _copy(source, folder / name, copied.get(name))
            if outcome[name] != "kept":
                copied[name] = file_sha256(source)
        write_json(folder / _RECORD, {"format": "massrecon-lab-1", "copied": copied})
    except OSError as error:
        raise InputError(
            f"'{folder}' cannot be written to: {reason(error)}. Choose another folder."
        ) from error
    return outcome


def open_lab(folder: str | Path, options: Sequence[str] = ()) -> None:
    """Opens JupyterLab on the start page of a folder, and waits until it ends.

    It listens on this machine alone and asks for its token, unless `options` say otherwise.

    Args:
        folder: A folder that `copy_notebooks` has filled.
        options: Further options of ``jupyter lab``, such as ``--no-browser``.

    Raises:
        MissingExtraError: If JupyterLab is not installed.
        RunError: If it ends with an error.
    """
    require_extra("jupyterlab", extra="jupyter")
    folder = Path(folder).resolve()
    places = [
        "--ip=127.0.0.1",
        f"--notebook-dir={folder}",
        f"--LabApp.default_url=/lab/tree/{START}",
    ]
    _serve("JupyterLab", ["jupyterlab", *places, *options], folder)


def open_app(folder: str | Path, notebook: str, options: Sequence[str] = ()) -> None:
    """Opens a notebook as a page of its own, without its code, and waits until it ends.

    Everyone who opens the page gets a Python of their own. It listens on this machine alone and
    asks for its token, unless `options` say otherwise.

    Args:
        folder: A folder that `copy_notebooks` has filled.
        notebook: Name of a notebook in it, such as one of the explorers.
        options: Further options of ``voila``, such as ``--no-browser``.

    Raises:
        MissingExtraError: If Voilà is not installed.
        InputError: If there is no such notebook.
        RunError: If it ends with an error.
    """
    require_extra("voila", extra="app")
    folder = Path(folder).resolve()
    path = folder / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        names = [found.stem for found in sorted(path.parent.glob("*.ipynb"))]
        raise unknown_name("notebook", notebook, names)
    own = ["--Voila.ip=127.0.0.1", "--Voila.auto_token=True", "--template=massrecon"]
    paths = [str(PAGE), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    changes = {"JUPYTER_PATH": os.pathsep.join(paths)}
    _serve("Voilà", ["voila", str(path), *own, *options], folder, changes)


def _serve(
    name: str, module: Sequence[str], folder: Path, changes: Mapping[str, str] | None = None
) -> None:
    """Runs a server in the foreground until it ends or is interrupted."""
    command = [sys.executable, "-m", *module]
    environment = os.environ | dict(changes or {})
    try:
        code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if code:
        raise RunError(f"{name} ended with exit code {code}: see its messages above.")


def summary_of(outcome: dict[str, Outcome]) -> str:
    """Writes the outcome of a copy in a line."""
    counts = Counter(outcome.values())
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def _sources() -> Iterator[tuple[str, Path]]:
    notebooks = notebook_folder()
    tutorials = notebooks.parent / "tutorials"
    for kind, place in (("notebooks", notebooks), ("tutorials", tutorials)):
        for path in sorted(place.glob("*.ipynb")):
            yield f"{kind}/{path.name}", path


def _copy(source: Path, target: Path, copied: str | None) -> Outcome:
    if not target.exists():
        write_text(target, source.read_text(encoding="utf-8"))
        return "new"
    present = file_sha256(target)
    if present == file_sha256(source):
        return "unchanged"
    if present != copied:
        return "kept"
    write_text(target, source.read_text(encoding="utf-8"))
    return "renewed"


def _copied(folder: Path) -> dict[str, str]:
    """Reads the checksums of what was copied; none if that is not known, so that all is kept."""
    try:
        content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in content["copied"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
