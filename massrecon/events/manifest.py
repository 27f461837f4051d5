"""The manifest of an event folder, and the lock that keeps two writers apart.

``manifest.json`` lists the parts with their checksums, the process card, and where the events come
from. It is replaced whole: a reader sees the old or the new one, even if the writer was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from massrecon.errors import CardError, StoreError, reason
from massrecon.events.card import ProcessCard, load_card
from massrecon.provenance import write_text

FORMAT = "massrecon-events"
SCHEMA = 2
"""Layout of manifest and parts: 2 has checksums of the manifest and of pages."""

READABLE = (1, SCHEMA)
MANIFEST = "manifest.json"
LOCK = ".lock"
_CHECKSUM = ',\n  "sha256": "'


def part_name(number: int) -> str:
    """Returns the file name of a part."""
    return f"part-{number:05d}.parquet"


def write_manifest(
    folder: Path,
    card: ProcessCard,
    n_events: int,
    entries: Sequence[Mapping[str, Any] | str],
    provenance: Mapping[str, Any],
    request: Mapping[str, Any] | None = None,
) -> None:
    """Writes the manifest, whole or not at all.

    Args:
        folder: Folder of the event store.
        card: The process.
        n_events: Number of events.
        entries: The parts, as plain data or as JSON.
        provenance: Where the events come from.
        request: What a simulation was asked for.

    Raises:
        StoreError: If it cannot be written.
    """
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "card": card.to_dict(),
        "n_events": n_events,
        "request": request,
        "provenance": dict(provenance),
        "parts": entries,
    }
    try:
        write_text(folder / MANIFEST, manifest_text(content))
    except OSError as error:
        raise StoreError(
            f"'{folder / MANIFEST}' cannot be written: {reason(error)}. The parts that were "
            "finished before are valid: free some space and run the same command again."
        ) from error


def manifest_text(content: Mapping[str, Any]) -> str:
    """Writes a manifest as JSON, one part a line, with the checksum of all that at the end."""
    head = {name: value for name, value in content.items() if name not in ("parts", "sha256")}
    start = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    parts = (
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        for part in content["parts"]
    )
    lines = ",\n".join(f"    {part}" for part in parts)
    text = f'{start},\n  "parts": [\n{lines}\n  ]'
    return f'{text}{_CHECKSUM}{_digest(text)}"\n}}\n'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks the manifest of a folder.

    Raises:
        StoreError: If it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(_absence(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"'{path}' is damaged ({reason(error)}): {_repair(folder)}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(
            f"'{path}' is not the manifest of an event folder: pass a folder written by 'simulate' "
            "or 'save'."
        )
    schema = manifest.get("schema")
    if schema not in READABLE:
        raise StoreError(
            f"'{path}' has schema {schema}, this version of massrecon reads up to {SCHEMA}: use "
            "the version that wrote it, or simulate again."
        )
    fault = _fault(manifest)
    if schema > 1 and manifest.get("sha256") != _digest(text.rpartition(_CHECKSUM)[0]):
        fault = "its checksum differs"
    if fault:
        raise StoreError(f"'{path}' is damaged ({fault}): {_repair(folder)}.")
    return manifest


def card_of(content: Any, path: Path) -> ProcessCard:
    """Returns the process card that a file of the store carries.

    Raises:
        StoreError: If it cannot be used.
    """
    if not isinstance(content, dict):
        raise StoreError(f"The process card in '{path}' cannot be used: it is not a mapping.")
    try:
        return load_card(content)
    except CardError as error:
        raise StoreError(f"The process card in '{path}' cannot be used: {error}") from error


def refuse_foreign(folder: Path) -> None:
    """Refuses to write into a file, or a folder that holds something other than events.

    Raises:
        StoreError: If so.
    """
    if folder.is_file():
        raise StoreError(f"'{folder}' is a file: choose a folder for the events.")
    if not (folder / MANIFEST).exists() and any(folder.glob("part-*.parquet")):
        raise StoreError(_absence(folder))
    ours = (MANIFEST, LOCK)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / n).exists() for n in ours):
        raise StoreError(
            f"'{folder}' is not empty and holds no events: choose a new or an empty folder."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder; ends with the process at the latest.

    Raises:
        StoreError: If another process is at it, or the folder cannot be written to.
    """
    with _lock(folder):
        yield


def _lock(folder: Path) -> TextIO:
    """Opens and locks the lock file; again if the folder was replaced meanwhile."""
    while True:
        try:
            file = (folder / LOCK).open("w")
        except OSError as error:
            raise StoreError(
                f"The folder '{folder}' cannot be written to: {reason(error)}. Check its "
                "permissions, or choose another folder."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise StoreError(
                f"Another process is writing to '{folder}': wait for it, or choose another folder."
            ) from error
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            raise StoreError(
                f"The folder '{folder}' cannot be locked: {reason(error)}. Choose one on a file "
                "system that has locks."
            ) from error
        file.close()


def _absence(folder: Path) -> str:
    """Says that a folder has no manifest, and what may be done."""
    text = f"'{folder}' holds no events: there is no {MANIFEST}. "
    if folder.is_dir() and any(folder.glob("part-*.parquet")):
        return text + f"There are parts of events, though: {_repair(folder)}."
    return text + ("Pass a folder written by 'simulate' or 'save', or one of its .parquet files.")


def _repair(folder: Path) -> str:
    return f"restore it, or make it anew from the parts with  massrecon events repair '{folder}'"


def _fault(manifest: Mapping[str, Any]) -> str:
    """Says what is wrong with the entries of a manifest; nothing if all is well."""
    if not _is_count(manifest.get("n_events")):
        return f"'n_events' is {manifest.get('n_events')!r}"
    for name, kinds in (("provenance", dict), ("request", (dict, type(None))), ("parts", list)):
        if not isinstance(manifest.get(name), kinds):
            return f"'{name}' is missing or not as expected"
    numbers = set()
    for entry in manifest["parts"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            return "an entry of 'parts' has no checksum"
        if not _is_count(entry.get("number")) or not _is_count(entry.get("n_events")):
            return "an entry of 'parts' has no number or count"
        numbers.add(entry["number"])
    return "" if len(numbers) == len(manifest["parts"]) else "a part is listed twice"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
