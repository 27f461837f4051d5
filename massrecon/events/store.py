"""The event store: a folder of Parquet files and a manifest, each written whole or not at all.

A folder holds ``manifest.json`` and ``part-00000.parquet``, ``part-00001.parquet``, … The manifest
lists the parts with their checksums, the process card, and where the events come from. It is
replaced after every part, so that a process that is killed leaves all finished parts valid.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from massrecon.errors import CardError, InputError, StoreError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.columns import Arrays, from_columns, to_columns
from massrecon.provenance import replacing_folder, write_json

if TYPE_CHECKING:
    from massrecon.events.container import Events

FORMAT = "massrecon-events"
SCHEMA = 1
MANIFEST = "manifest.json"
_METADATA_KEY = b"massrecon"
_EVENTS_PER_FILE = 100_000


def part_name(number: int) -> str:
    """Returns the file name of a part."""
    return f"part-{number:05d}.parquet"


def write_part(path: str | Path, arrays: Mapping[str, np.ndarray], card: ProcessCard) -> str:
    """Writes event arrays to one Parquet file, whole or not at all.

    Args:
        path: The file.
        arrays: Arrays named as the fields and attributes of `Events`; ``partons``, ``masses`` and
            ``block`` may be missing.
        card: The process; it is kept in the file.

    Returns:
        SHA-256 of the file.

    Raises:
        StoreError: If the file cannot be written, for instance because the disk is full.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = json.dumps({"schema": SCHEMA, "card": card.to_dict()}, ensure_ascii=False)
    table = pyarrow.table(dict(to_columns(card, arrays)))
    table = table.replace_schema_metadata({_METADATA_KEY: metadata.encode()})
    try:
        with temporary.open("wb") as file:
            pyarrow.parquet.write_table(
                table, file, compression="none", use_dictionary=False, write_statistics=False
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"'{path}' cannot be written: {error}. The parts that were finished before are valid: "
            "free some space and run the same command again."
        ) from error
    return checksum(path)


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_events(path: str | Path) -> Events:
    """Loads events from a folder of the event store or from a single Parquet file of one.

    Args:
        path: The folder or file.

    Raises:
        StoreError: If something is missing, damaged or of another format; the message names the
            file and the remedy.
    """
    from massrecon.events.container import Events

    path = Path(path)
    if path.is_file() and path.suffix == ".parquet":
        arrays, card = _read_part(path)
        return _to_events(Events, card, [arrays], {"file": str(path)}, path)
    manifest = read_manifest(path)
    card = _card_of(manifest["card"], path / MANIFEST)
    parts, missing = [], manifest["n_events"]
    for entry in manifest["parts"]:
        if missing > 0 or not parts:
            parts.append(_read_entry(path, entry, card))
            missing -= len(parts[-1]["weight"])
    if missing > 0:
        raise StoreError(
            f"'{path}' holds {manifest['n_events'] - missing} of {manifest['n_events']} events, "
            "because the simulation was interrupted: run the same simulation again to finish it."
        )
    events = _to_events(Events, card, parts, manifest["provenance"], path)
    return events[: manifest["n_events"]]


def save_events(events: Events, path: str | Path) -> None:
    """Saves events as a folder of the event store, in place of an older one.

    Raises:
        StoreError: If the folder holds something else, or cannot be written.
    """
    path = Path(path)
    refuse_foreign(path)
    arrays = events.to_arrays()
    with replacing_folder(path) as folder:
        entries = []
        for number, start in enumerate(range(0, max(len(events), 1), _EVENTS_PER_FILE)):
            chunk = {k: array[start : start + _EVENTS_PER_FILE] for k, array in arrays.items()}
            digest = write_part(folder / part_name(number), chunk, events.card)
            entries.append({"number": number, "n_events": len(chunk["weight"]), "sha256": digest})
        write_manifest(folder, events.card, len(events), entries, dict(events.provenance))


def write_manifest(
    folder: Path,
    card: ProcessCard,
    n_events: int,
    entries: list[dict[str, Any]],
    provenance: Mapping[str, Any],
    request: Mapping[str, Any] | None = None,
) -> None:
    """Writes the manifest, whole or not at all.

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
        write_json(folder / MANIFEST, content)
    except OSError as error:
        raise StoreError(f"'{folder / MANIFEST}' cannot be written: {error}.") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks the manifest of a folder.

    Raises:
        StoreError: If it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            f"'{folder}' holds no events: there is no {MANIFEST}. Pass a folder written by "
            "'simulate' or 'save', or one of its .parquet files."
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"'{path}' is damaged ({error}): restore it or simulate again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"'{path}' is not the manifest of an event folder.")
    if manifest.get("schema") != SCHEMA:
        raise StoreError(
            f"'{path}' has schema {manifest.get('schema')}, this version of massrecon reads "
            f"{SCHEMA}: use the version that wrote it, or simulate again."
        )
    return manifest


def refuse_foreign(folder: Path) -> None:
    """Refuses to write into a file, or a folder that holds something other than events.

    Raises:
        StoreError: If so.
    """
    if folder.is_file():
        raise StoreError(f"'{folder}' is a file: choose a folder for the events.")
    ours = (MANIFEST, LOCK)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / n).exists() for n in ours):
        raise StoreError(
            f"'{folder}' is not empty and holds no events: choose a new or an empty folder."
        )


LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from simulating into a folder; ends with the process at the latest.

    Raises:
        StoreError: If another process is at it.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"Another process is writing to '{folder}': wait for it, or choose another folder."
            ) from error
        yield


def _read_entry(folder: Path, entry: Mapping[str, Any], card: ProcessCard) -> Arrays:
    """Reads one part of a folder after checking that it is the one that was written."""
    path = folder / part_name(entry["number"])
    remedy = "delete it and run the same simulation again to restore it"
    if not path.exists():
        raise StoreError(f"'{path}' is missing: {remedy.removeprefix('delete it and ')}.")
    if checksum(path) != entry["sha256"]:
        raise StoreError(f"'{path}' is damaged (its checksum differs): {remedy}.")
    return _read_part(path, card)[0]


def _read_part(path: Path, card: ProcessCard | None = None) -> tuple[Arrays, ProcessCard]:
    """Reads one Parquet file, and the card that it carries unless one is given."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise StoreError(f"'{path}' cannot be read ({error}): restore it.") from error
    if card is None:
        text = (table.schema.metadata or {}).get(_METADATA_KEY)
        if text is None:
            raise StoreError(f"'{path}' was not written by massrecon: it carries no process card.")
        card = _card_of(json.loads(text)["card"], path)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    try:
        return from_columns(card, columns), card
    except KeyError as error:
        raise StoreError(
            f"'{path}' does not fit the card '{card.name}': the column {error} is missing."
        ) from error


def _card_of(content: Any, path: Path) -> ProcessCard:
    try:
        return load_card(content)
    except CardError as error:
        raise StoreError(f"The process card in '{path}' cannot be used: {error}") from error


def _to_events(
    container: type[Events],
    card: ProcessCard,
    parts: list[Arrays],
    provenance: Mapping[str, Any],
    path: Path,
) -> Events:
    names = [name for name in parts[0] if name != "block"]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
    try:
        return container.from_arrays(card, arrays, provenance).validate()
    except InputError as error:
        raise StoreError(f"'{path}': {error}") from error
