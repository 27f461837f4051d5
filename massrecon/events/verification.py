"""Looking after folders of events: what is damaged, and making a lost manifest anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from massrecon.errors import (
    GenerationError,
    ImportFileError,
    MassReconError,
    MissingExtraError,
    StoreError,
)
from massrecon.events.card import ProcessCard
from massrecon.events.checks import refuse_unphysical
from massrecon.events.history import provenance_of_parts
from massrecon.events.manifest import (
    MANIFEST,
    card_of,
    locked,
    part_name,
    read_manifest,
    write_manifest,
)
from massrecon.events.partfile import PartFile, parts_in

DAMAGED = "damaged-"
"""What `repair_store` puts before the name of a part that cannot be read."""


@dataclass(frozen=True)
class FileReport:
    """What was found out about one file.

    Attributes:
        name: Its name.
        n_events: Number of events in it; None if it cannot be read, or holds none.
        problems: What is wrong with it; empty if all is well.
    """

    name: str
    n_events: int | None = None
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = "" if self.n_events is None else f"  {self.n_events:,} events"
        if not self.problems:
            return f"ok       {self.name}{count}"
        return "\n".join(f"DAMAGED  {self.name}{count}: {problem}" for problem in self.problems)


@dataclass(frozen=True)
class StoreReport:
    """What was found out about a folder.

    Attributes:
        path: The folder.
        files: One report for each file.
        notes: What should be known, but is no damage: an unfinished simulation, files left over.
    """

    path: Path
    files: Sequence[FileReport]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not any(file.problems for file in self.files)

    def __str__(self) -> str:
        lines = [str(file) for file in self.files] + [f"note     {note}" for note in self.notes]
        bad = sum(bool(file.problems) for file in self.files)
        total = sum(file.n_events or 0 for file in self.files)
        verdict = "all is well" if self.ok else f"{bad} damaged"
        lines.append(f"'{self.path}': {len(self.files)} files, {total:,} events, {verdict}")
        return "\n".join(lines)


def verify_store(path: str | Path, regenerate: int = 0) -> StoreReport:
    """Checks every file of a folder of events.

    Recomputes checksums and row counts, compares columns and their types with the card, the card of
    each part with that of the manifest, and the counts with each other; and checks that all values
    are finite and physical.

    Args:
        path: The folder.
        regenerate: Number of parts, evenly over a simulation, to make again and to compare bit for
            bit. With other versions of the programs, or without them or the Les Houches file that
            they need, this is left out, with a note.

    Raises:
        StoreError: If it holds no events at all, or events to regenerate that were not simulated.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder)
        card = card_of(manifest["card"], folder / MANIFEST)
    except StoreError as error:
        if not any(parts_in(folder)):
            raise
        files = [FileReport(MANIFEST, None, (str(error),))]
        return StoreReport(folder, files + [_verify_alone(file) for file in parts_in(folder)])
    files = [_verify_part(folder, entry, card) for entry in manifest["parts"]]
    notes = _notes(folder, manifest)
    chosen = range(0, len(files), max(1, -(-len(files) // regenerate))) if regenerate else ()
    for i in chosen:
        if not files[i].problems:
            files[i], said = _regenerated(folder, files[i], manifest["parts"][i]["number"])
            notes.append(said)
    return StoreReport(folder, [FileReport(MANIFEST), *files], notes)


def repair_store(path: str | Path) -> StoreReport:
    """Makes the manifest of a folder anew from the parts that are whole.

    Parts that cannot be read are kept under a name that begins with ``damaged-``. A simulation can
    then be finished by running it again. Nothing is done to a folder in which all is well.

    Args:
        path: The folder.

    Returns:
        What `verify_store` finds afterwards, with notes on what was done.

    Raises:
        StoreError: If no part is whole, the parts are of different processes, or another process is
            writing to the folder.
    """
    folder = Path(path)
    found = verify_store(folder)
    if found.ok:
        return found
    with locked(folder):
        old = _old_manifest(folder)
        whole, bad = [], []
        for file in parts_in(folder):
            (bad if _verify_alone(file).problems else whole).append(file)
        if not whole:
            raise StoreError(f"'{folder}' holds no part that is whole: simulate or import again.")
        notes = [_set_aside(file) for file in bad]
        _write_anew(folder, [PartFile.open(file) for file in whole], old)
    report = verify_store(folder)
    done = f"the manifest was made anew from {len(whole)} parts"
    return StoreReport(folder, report.files, [done, *notes, *report.notes])


def _verify_part(folder: Path, entry: Mapping[str, Any], card: ProcessCard) -> FileReport:
    """Checks one part against the manifest."""
    name = part_name(entry["number"])
    try:
        part = PartFile.open(folder / name, entry["sha256"])
    except StoreError as error:
        return FileReport(name, None, (_brief(error, folder / name),))
    problems = _faults(part, card)
    if part.n_events != entry["n_events"]:
        problems.append(f"holds {part.n_events} events, the manifest says {entry['n_events']}")
    selected = sum(group["cut_flow"]["selected"] for group in entry.get("groups", ()))
    if "groups" in entry and selected != entry["n_events"]:
        problems.append(f"its cut flow counts {selected} selected events")
    return FileReport(name, part.n_events, tuple(problems))


def _regenerated(folder: Path, file: FileReport, number: int) -> tuple[FileReport, str]:
    """Makes a part again and compares; returns the report of its file, and a note."""
    from massrecon.events.regeneration import regeneration_differences

    try:
        differences = regeneration_differences(folder, number)
    except (GenerationError, ImportFileError, MissingExtraError) as error:
        return file, f"{file.name} was not made again: {error}"
    if not differences:
        return file, f"{file.name} was made again and is the same, bit for bit"
    problem = f"made again it differs in {', '.join(differences)}"
    return FileReport(file.name, file.n_events, (problem,)), f"{file.name} was made again"


def _verify_alone(file: Path) -> FileReport:
    """Checks one part by itself, page by page."""
    try:
        part = PartFile.open(file)
        problems = _faults(part, part.card())
    except StoreError as error:
        return FileReport(file.name, None, (_brief(error, file),))
    return FileReport(file.name, part.n_events, tuple(problems))


def _faults(part: PartFile, card: ProcessCard) -> list[str]:
    """Lists what is wrong with the content of a part."""
    problems = []
    try:
        if part.card().fingerprint() != card.fingerprint():
            problems.append("it carries another process card than the manifest")
        refuse_unphysical(card, part.arrays(card))
    except MassReconError as error:
        problems.append(_brief(error, part.path))
    return problems


def _brief(error: Exception, file: Path) -> str:
    return str(error).removeprefix(f"'{file}' ").rstrip(".")


def _notes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Lists what is no damage, but should be known."""
    notes = []
    there = sum(entry["n_events"] for entry in manifest["parts"])
    unfinished = manifest["provenance"].get("finished") is False
    if there < manifest["n_events"] or unfinished:
        notes.append(
            f"the simulation is not finished ({there} of {manifest['n_events']} events): run it "
            "again to go on"
        )
    listed = {part_name(entry["number"]) for entry in manifest["parts"]}
    for file in parts_in(folder):
        if file.name not in listed:
            notes.append(f"{file.name} is not in the manifest, of a process that was cut off")
    notes += [f"{file.name} is set aside" for file in sorted(folder.glob(f"{DAMAGED}*"))]
    left = [file.name for file in folder.glob(".*.tmp")]
    return notes + ([f"temporary files are left: {', '.join(left)}"] if left else [])


def _old_manifest(folder: Path) -> dict[str, Any]:
    """Returns what can still be used of the old manifest."""
    try:
        return read_manifest(folder)
    except StoreError:
        return {}


def _set_aside(file: Path) -> str:
    """Renames a part that cannot be read."""
    target = file.with_name(DAMAGED + file.name)
    file.replace(target)
    return f"{file.name} is damaged and now called {target.name}"


def _write_anew(folder: Path, parts: Sequence[PartFile], old: Mapping[str, Any]) -> None:
    """Writes a manifest of the parts that are whole."""
    known = {entry["sha256"]: entry for entry in old.get("parts", ())}
    entries = [known.get(part.sha256) or _entry(part) for part in parts]
    card, about = parts[0].card(), parts[0].about
    request = about.get("request") or old.get("request")
    for part in parts[1:]:
        other = part.about.get("request") or old.get("request")
        if part.card().fingerprint() != card.fingerprint() or other != request:
            raise StoreError(
                f"'{part.path}' is of another process or simulation than "
                f"'{parts[0].path.name}': move it to a folder of its own."
            )
    there = sum(entry["n_events"] for entry in entries)
    provenance = old.get("provenance") or about.get("provenance") or dict(request or {})
    provenance = provenance_of_parts(provenance, entries) | {"repaired": True}
    # whether more was wanted is only known to the old manifest, or to who runs it again
    wanted = there if request is None else old.get("n_events", there)
    write_manifest(folder, card, wanted, entries, provenance, request)


def _entry(part: PartFile) -> dict[str, Any]:
    """Makes the manifest's entry of a part from what the part says of itself."""
    about = part.about
    entry = {name: about[name] for name in ("complete", "groups") if name in about}
    number = int(part.path.stem.removeprefix("part-"))
    return {"number": number, "n_events": part.n_events, "sha256": part.sha256} | entry
