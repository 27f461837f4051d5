"""Importing: a file of another program becomes a folder of events."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from massrecon.errors import InputError, require_extra, unknown_name
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.columns import Arrays, no_events
from massrecon.events.importers.chunk import ReadOptions
from massrecon.events.importers.delphes import check_working_points
from massrecon.events.importers.formats import PACKAGES, find_format, source_files
from massrecon.events.importers.intake import Intake
from massrecon.events.importers.isolated import IsolatedReader
from massrecon.events.importers.showering import shower
from massrecon.events.pythia import SEED_MAX
from massrecon.events.source import SourceFile
from massrecon.events.writer import StoreWriter
from massrecon.provenance import versions

if TYPE_CHECKING:
    from massrecon.events.container import Events

_OWN_DETECTOR = ("lhe", "hepmc")
_JETS = ("particle_flow", "calorimeter")


def import_events(
    path: str | Path,
    card: str | Path | Mapping[str, Any] | ProcessCard,
    out: str | Path | None = None,
    *,
    format: str | None = None,
    jets: str = "particle_flow",
    skip_bad: bool = False,
    seed: int = 0,
    parton_level: bool = False,
    truth: bool | None = None,
    masses: Mapping[str, float] | None = None,
    btag_points: Sequence[str] = ("medium",),
    mapping: Mapping[str, str] | None = None,
    n_max: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Events:
    """Imports the events of a file, selected with a card.

    Delphes ROOT, SPANet HDF5 and Parquet files hold reconstructed objects; HepMC3 and Les Houches
    files go through our own detector, the latter through Pythia's shower before. The format is told
    from the content. Every entry is checked: momenta finite, in GeV and physical, none twice. The
    file must stay the same while it is read.

    Args:
        path: The file; or a folder of Parquet files.
        card: Process card: it says which objects are kept and which events selected.
        out: Folder to keep the events in; an older one is replaced when all went well. What Pythia
            showers is a simulation: its folder goes on where it stopped, and no other is replaced.
        format: ``delphes``, ``lhe``, ``hepmc``, ``parquet`` or ``spanet``; None to find out.
        jets: ``particle_flow``, ``calorimeter``, or the name of a jet branch of a Delphes file.
        skip_bad: Leave out bad entries, with a count and a warning, in place of refusing the file.
            Files that are truncated, of another format or otherwise unreadable are always refused,
            and so are those with more bad entries than good ones.
        seed: Random seed of shower and detector.
        parton_level: Whether the partons of a Les Houches file go straight into the detector.
        truth: True keeps the true particles and leaves out entries without the card's decay; False
            keeps none of the truth; None keeps it if at least 90 % of the first entries have it.
        masses: True masses of the whole file by name [GeV], where it does not give them itself.
        btag_points: Working points (``loose``, ``medium``, ``tight``) of the bits of a Delphes
            b-tag, from the lowest bit on.
        mapping: For HDF5 files, kinds of objects and ``ptmiss`` to the names of their groups.
        n_max: Most entries to read.
        workers: Number of processes that shower; None for one per processor, at most 8.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If an argument is wrong.
        ImportFileError: If the file cannot be read or is bad; it names file and entries.
        StoreError: If `out` cannot be used.
        GenerationError: If Pythia fails on a Les Houches file.
        MissingExtraError: If an optional package is not installed.
    """
    card = load_card(card)
    sources = source_files(path)
    kinds = {find_format(source, format) for source in sources}
    if Path(path).is_dir() and kinds != {"parquet"}:
        raise InputError(f"'{path}' is a folder: pass one file at a time.")
    kind = kinds.pop()
    _check_arguments(card, seed, jets, kind, masses, n_max)
    check_working_points(tuple(btag_points))
    if kind in _OWN_DETECTOR or jets in _JETS:
        card = _with_jets(card, jets)
    if kind == "lhe" and not parton_level:
        return shower(
            sources[0], card, out, seed=seed, skip_bad=skip_bad, truth=truth, masses=masses,
            n_max=n_max, workers=workers, progress=progress,
        )  # fmt: skip
    options = ReadOptions(
        jets, tuple(btag_points), mapping or {}, n_max, skip_bad, truth is not False
    )
    intake = Intake(card, seed=seed, skip_bad=skip_bad, truth=truth, masses=masses)
    about = {"source": _about(kind, sources, options), "seed": seed}
    with _sink(out, card, about) as sink:
        _take_all(sources, kind, card, options, intake, sink, progress)
        sink.provenance |= intake.finish(path) | {"versions": versions(*PACKAGES)}
    return _result(out, card, sink)


class Sink(Protocol):
    """What takes selected events: a folder or memory."""

    provenance: dict[str, Any]

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds events."""
        ...


class Memory:
    """Keeps events in memory."""

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        self.provenance = dict(provenance)
        self._pieces: list[Mapping[str, np.ndarray]] = []

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds events."""
        self._pieces.append(arrays)

    def arrays(self) -> Arrays:
        """Returns all events."""
        names = self._pieces[0]
        return {name: np.concatenate([piece[name] for piece in self._pieces]) for name in names}


@contextmanager
def _sink(
    out: str | Path | None, card: ProcessCard, provenance: Mapping[str, Any]
) -> Iterator[Sink]:
    if out is None:
        yield Memory(provenance)
        return
    with StoreWriter(out, card, provenance=provenance) as writer:
        yield writer


def _take_all(
    sources: Sequence[SourceFile],
    kind: str,
    card: ProcessCard,
    options: ReadOptions,
    intake: Intake,
    sink: Sink,
    progress: bool,
) -> None:
    """Reads all files, and checks that they are still what they were."""
    some = False
    with tqdm(desc="importing", unit=" entries", disable=not progress) as bar:
        for source in sources:
            reader = IsolatedReader(kind, source.path, card, options)
            for chunk in reader.chunks():
                sink.write(intake.take(chunk, source.path))
                some = True
                bar.update(len(chunk))
            intake.skipped.update(reader.skipped)
            intake.n_read += sum(reader.skipped.values())
            source.check(content=True)
    if not some:
        sink.write(no_events(card))
    if intake.skipped:
        listed = "; ".join(f"{n}: {what}" for what, n in intake.skipped.most_common())
        warnings.warn(
            f"{sum(intake.skipped.values())} of {intake.n_read} entries of '{sources[0].path}' "
            f"were left out ({listed}).",
            stacklevel=4,
        )


def _result(out: str | Path | None, card: ProcessCard, sink: Sink) -> Events:
    from massrecon.events.container import Events
    from massrecon.events.store import load_events

    if out is not None:
        return load_events(out)
    assert isinstance(sink, Memory)
    return Events.from_arrays(card, sink.arrays(), sink.provenance).validate()


def _about(kind: str, sources: Sequence[SourceFile], options: ReadOptions) -> dict[str, Any]:
    """Describes the files and how they are read, for the provenance."""
    about: dict[str, Any] = {"format": kind, "files": [source.to_dict() for source in sources]}
    about["jets"] = options.jets
    if kind == "delphes":
        about["btag_points"] = list(options.btag_points)
    if options.mapping:
        about["mapping"] = dict(options.mapping)
    return about | {"entries": [0, options.n_max]}


def _with_jets(card: ProcessCard, jets: str) -> ProcessCard:
    """Returns the card for the kind of jets that is imported."""
    if card.detector.jets == jets:
        return card
    content = card.to_dict()
    content["detector"] = {**content.get("detector", {}), "jets": jets}
    return load_card(content)


def _check_arguments(
    card: ProcessCard,
    seed: int,
    jets: str,
    kind: str,
    masses: Mapping[str, float] | None,
    n_max: int | None,
) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEED_MAX:
        raise InputError(f"'seed' should be an integer from 0 to {SEED_MAX}, got {seed!r}.")
    if n_max is not None and (not isinstance(n_max, int) or n_max < 1):
        raise InputError(f"'n_max' should be a positive integer, got {n_max!r}.")
    if kind != "delphes" and jets not in _JETS:
        raise unknown_name("kind of jets", jets, _JETS)
    if kind in _OWN_DETECTOR:
        require_extra("fastjet", extra="mc")
    for name in masses or {}:
        if name not in card.masses:
            raise unknown_name("mass", name, card.masses)
    if masses and set(masses) != set(card.masses):
        missing = ", ".join(sorted(set(card.masses) - set(masses)))
        raise InputError(f"'masses' should give all masses of the card: {missing} is missing.")
    for name, value in (masses or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"'masses' should be positive numbers [GeV], got {name} = {value!r}.")
