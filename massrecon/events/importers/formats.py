"""The formats that can be imported, told apart by their first bytes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from massrecon.errors import ImportFileError, InputError, unknown_name
from massrecon.events.importers.chunk import ReaderClass
from massrecon.events.manifest import MANIFEST
from massrecon.events.source import SourceFile, opened

READERS = {
    "delphes": ("massrecon.events.importers.delphes", "DelphesReader"),
    "hepmc": ("massrecon.events.importers.hepmc", "HepMCReader"),
    "lhe": ("massrecon.events.importers.leshouches", "PartonReader"),
    "parquet": ("massrecon.events.importers.table", "TableReader"),
    "spanet": ("massrecon.events.importers.spanet", "SpanetReader"),
}
"""Module and class of the reader of each format."""

PACKAGES = ("uproot", "awkward", "h5py", "pyarrow", "fastjet", "numpy")
"""Packages whose version imported events may depend on."""

_MAGIC = {
    b"root": "delphes",
    b"\x89HDF\r\n\x1a\n": "spanet",
    b"PAR1": "parquet",
    b"<LesHouchesEvents": "lhe",
    b"HepMC::Version": "hepmc",
}
_GZIPPED = ("lhe", "hepmc")
_PEEK = 64


def reader_class(name: str) -> ReaderClass:
    """Returns the reader of a format.

    Raises:
        InputError: If there is no such format.
    """
    if name not in READERS:
        raise unknown_name("format", name, READERS)
    module, attribute = READERS[name]
    return cast(ReaderClass, getattr(importlib.import_module(module), attribute))


def find_format(source: SourceFile, wanted: str | None = None) -> str:
    """Tells the format of a file from its content.

    Args:
        source: The file.
        wanted: The format that it should have, or None.

    Raises:
        InputError: If there is no such format as `wanted`.
        ImportFileError: If the file is of another format, or of none that is known.
    """
    if wanted is not None and wanted not in READERS:
        raise unknown_name("format", wanted, READERS)
    with opened(source.path) as stream:
        start = stream.read(_PEEK).lstrip()
    found = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if found is None:
        raise ImportFileError(
            f"'{source.path}' is none of the known formats ({', '.join(READERS)}) or damaged at "
            "its start: pass a Delphes ROOT, Les Houches, HepMC3, Parquet or SPANet HDF5 file."
        )
    if source.is_compressed and found not in _GZIPPED:
        raise ImportFileError(f"'{source.path}' is compressed with gzip: unpack it first.")
    if wanted not in (None, found):
        raise ImportFileError(
            f"'{source.path}' looks like {found}, not {wanted}: leave out 'format'."
        )
    return found


def source_files(path: str | Path) -> list[SourceFile]:
    """Lists the files to import: the file itself, or the Parquet files of a folder.

    Raises:
        ImportFileError: If a file cannot be read, or the folder has none.
        InputError: If the folder is one of our own.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [SourceFile.open(path)]
    if (folder / MANIFEST).exists():
        raise InputError(
            f"'{folder}' is a folder of events already: load it with load_events, or import one of "
            "its .parquet files."
        )
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ImportFileError(f"'{folder}' is a folder without Parquet files: pass a file.")
    return [SourceFile.open(file) for file in files]
