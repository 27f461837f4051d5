"""Where results come from, and files that are written whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import massrecon
from massrecon.errors import MassReconError, StoreError, reason


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of massrecon, Python and the installed ones of `packages`."""
    found = {"massrecon": massrecon.__version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 checksum of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Writes a file so that readers see the old or the new one whole, even after a crash."""
    with replacing_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; see `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(
    path: str | Path, what: str, failure: type[MassReconError] = StoreError
) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Args:
        path: The file.
        what: What it should be, for the message, such as ``"a training prior"``.
        failure: Which error to raise.

    Returns:
        Its content; empty if it is JSON of another kind.

    Raises:
        MassReconError: If it is missing or damaged: a StoreError unless `failure` is another.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise failure(f"'{path}' cannot be read as {what}: {reason(error)}.") from error
    return content if isinstance(content, dict) else {}


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Gives an empty file to write to, which takes the place of `path` when all went well.

    Readers see the old or the new file whole, even after a crash. If the block raises, the old one
    stays. What a killed process leaves is called ``.NAME.….PID.tmp``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(f".{os.getpid()}.tmp", f".{path.name}.", path.parent)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which takes the place of `path` when all went well.

    Everyone may read its files. The old folder stays as it was until then, and for good if the
    block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    fresh.chmod(0o755)
    try:
        yield fresh
        for file in fresh.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors keeps what it writes from others
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    put_in_place(fresh, path)


def put_in_place(fresh: Path, path: Path) -> None:
    """Lets a folder take the place of another one, which is removed.

    Where the system can exchange two folders in one step, readers see the old or the new one at any
    time, and so does whoever comes after a crash.

    Raises:
        OSError: If it cannot be done; then the old folder is still there.
    """
    if not path.exists():
        fresh.replace(path)
        return
    if not _exchange(fresh, path):
        old = path.parent / f"{fresh.name}.old"
        path.replace(old)
        fresh.replace(path)
        fresh = old
    shutil.rmtree(fresh, ignore_errors=True)


def _exchange(one: Path, two: Path) -> bool:
    """Exchanges two folders in one step, if the system can."""
    system = ctypes.CDLL(None)
    names = os.fsencode(one.absolute()), os.fsencode(two.absolute())
    if hasattr(system, "renameat2"):  # Linux; the last argument is RENAME_EXCHANGE
        return system.renameat2(-100, names[0], -100, names[1], 2) == 0
    if hasattr(system, "renamex_np"):  # macOS; RENAME_SWAP
        return system.renamex_np(*names, 2) == 0
    return False
