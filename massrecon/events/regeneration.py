"""Making a part of a stored simulation again, from its manifest alone.

The manifest holds the whole process card and the request: masses, seed, settings and the versions
of the packages that generated the events. A part is a pure function of these and its number, so
with the same versions it comes out the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import GenerationError, StoreError
from massrecon.events.manifest import MANIFEST, card_of, part_name, read_manifest
from massrecon.events.part import Part
from massrecon.events.partfile import PartFile
from massrecon.events.plan import NO_LIMIT
from massrecon.events.request import Request
from massrecon.events.worker import maker_of


def regenerate(folder: str | Path, number: int) -> Part:
    """Generates one part of a stored simulation again, in this process.

    Args:
        folder: Folder of the event store.
        number: Number of the part.

    Raises:
        StoreError: If the folder holds no simulation, or no such part.
        GenerationError: If a package has another version than the one that made the part.
        ImportFileError: If its Les Houches file is not there any more.
        MissingExtraError: If Pythia or FastJet is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    entry = _entry(manifest, folder, number)
    request = _request(manifest, folder)
    made: list[int] = []

    def limit() -> int:
        """Ends the part with the group that it ended with when it was made."""
        return 0 if len(made) >= len(entry["groups"]) else NO_LIMIT

    maker = maker_of(request)
    try:
        return maker.make(number, limit, lambda _, selected: made.append(selected))
    finally:
        maker.close()


def regeneration_differences(folder: str | Path, number: int) -> list[str]:
    """Generates one part again and compares it bit for bit with the stored one.

    Returns:
        What differs: names of event arrays, ``"counts"``; empty if the two are identical.

    Raises:
        StoreError: If the folder holds no simulation, or the part is missing or damaged.
        GenerationError: See `regenerate`.
        ImportFileError: See `regenerate`.
        MissingExtraError: See `regenerate`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    entry = _entry(manifest, folder, number)
    card = card_of(manifest["card"], folder / MANIFEST)
    stored = PartFile.open(folder / part_name(number), entry["sha256"]).arrays(card)
    again = regenerate(folder, number)
    found = [
        name
        for name in sorted({*stored, *again.arrays})
        if name not in stored
        or name not in again.arrays
        or not _identical(stored[name], again.arrays[name])
    ]
    return found + (["counts"] if again.groups != entry["groups"] else [])


def _identical(one: np.ndarray, two: np.ndarray) -> bool:
    """Compares bit for bit, after the conversion to the type that is stored."""
    two = np.ascontiguousarray(two, one.dtype)
    return one.shape == two.shape and np.ascontiguousarray(one).tobytes() == two.tobytes()


def _entry(manifest: Mapping[str, Any], folder: Path, number: int) -> Mapping[str, Any]:
    """Returns the manifest's entry of a part."""
    if manifest["request"] is None:
        raise StoreError(
            f"'{folder}' does not hold a simulation as it was made (events were saved, joined or "
            "imported): it cannot be made again."
        )
    for entry in manifest["parts"]:
        if entry["number"] == number:
            return entry
    raise StoreError(f"'{folder}' has no part {number}: it has {len(manifest['parts'])} parts.")


def _request(manifest: Mapping[str, Any], folder: Path) -> Request:
    """Reads the request back and refuses other versions and another Les Houches file."""
    stored = manifest["request"]
    card = card_of(manifest["card"], folder / MANIFEST)
    request = Request.of(card, stored["masses"], stored["seed"], stored["settings"])
    differences = request.differences(stored)
    if differences:
        raise GenerationError(
            f"'{folder}' cannot be made again here ({'; '.join(differences)}): install the same "
            "versions, and put back the same files."
        )
    return request
