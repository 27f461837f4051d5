"""One Parquet file of events, which carries all that is needed to read it by itself.

The columns are plain scalars (see `columns`). The metadata of the file, under the key
``massrecon``, is JSON with ``schema``, ``card`` and ``about``: what the manifest says of this part,
so that a lost manifest can be made anew. Every page has a checksum of its own, which pyarrow tests
on request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import StoreError, reason
from massrecon.events.card import ProcessCard
from massrecon.events.columns import (
    Arrays,
    arrays_in,
    column_type,
    empty_arrays,
    to_columns,
)
from massrecon.events.manifest import READABLE, SCHEMA, card_of
from massrecon.provenance import file_sha256, replacing_file

METADATA_KEY = b"massrecon"
_ROWS_PER_GROUP = 16_384


def write_part(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    card: ProcessCard,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Writes event arrays to one Parquet file, whole or not at all.

    Args:
        path: The file.
        arrays: Arrays named as the fields and attributes of `Events`; ``partons``, ``masses`` and
            ``block`` may be missing.
        card: The process; it is kept in the file.
        about: What else the file shall say of itself, plain data.

    Returns:
        SHA-256 of the file.

    Raises:
        StoreError: If the file cannot be written, for instance because the disk is full.
    """
    content = {"schema": SCHEMA, "card": card.to_dict(), "about": dict(about or {})}
    metadata = json.dumps(content, ensure_ascii=False).encode()
    try:
        with replacing_file(path) as fresh:
            _write_table(fresh, _table(card, arrays, {METADATA_KEY: metadata}))
            digest = file_sha256(fresh)
    except OSError as error:
        raise StoreError(
            f"'{path}' cannot be written: {reason(error)}. The parts that were finished before are "
            "valid: free some space and run the same command again."
        ) from error
    return digest


def _write_table(path: Path, table: Any) -> None:
    """Writes a table so that it is read quickly and any damage is noticed."""
    import pyarrow.parquet

    with path.open("wb") as file:
        pyarrow.parquet.write_table(
            table,
            file,
            row_group_size=_ROWS_PER_GROUP,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def _table(
    card: ProcessCard, arrays: Mapping[str, np.ndarray], metadata: dict[bytes, bytes]
) -> Any:
    """Makes a table without empty cells, which is read faster than one that may have some."""
    import pyarrow

    columns = {name: pyarrow.array(values) for name, values in to_columns(card, arrays)}
    fields = [pyarrow.field(name, c.type, nullable=False) for name, c in columns.items()]
    return pyarrow.table(list(columns.values()), schema=pyarrow.schema(fields, metadata))


@dataclass(frozen=True)
class PartFile:
    """An open part: read from disk once, checked, ready to be copied into event arrays.

    Attributes:
        path: The file.
        parquet: The file as pyarrow sees it, in memory.
        schema: Its columns and metadata.
        sha256: Checksum of the file.
    """

    path: Path
    parquet: Any = field(repr=False)
    schema: Any = field(repr=False)
    sha256: str

    @classmethod
    def open(
        cls, path: str | Path, sha256: str | None = None, remedy: str = "restore it"
    ) -> PartFile:
        """Reads a file and checks it against a checksum, or page by page if none is given.

        Args:
            path: The file.
            sha256: What its checksum should be.
            remedy: What the error shall advise if the file is missing or damaged.

        Raises:
            StoreError: If it is missing, damaged, or was not written by massrecon.
        """
        import pyarrow
        import pyarrow.parquet

        path = Path(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"'{path}' is missing: {remedy}.") from None
        except OSError as error:
            raise StoreError(f"'{path}' cannot be read ({reason(error)}): {remedy}.") from error
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256:
            raise StoreError(f"'{path}' is damaged (its checksum differs): {remedy}.")
        try:
            source = pyarrow.BufferReader(data)
            parquet = pyarrow.parquet.ParquetFile(source, page_checksum_verification=sha256 is None)
            return cls(path, parquet, parquet.schema_arrow, found)
        except (OSError, pyarrow.ArrowException) as error:
            raise StoreError(f"'{path}' cannot be read ({error}): {remedy}.") from error

    @property
    def n_events(self) -> int:
        """Number of events in the file."""
        return self.parquet.metadata.num_rows

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of itself beside the card; empty if it says nothing.

        Raises:
            StoreError: If massrecon did not write the file.
        """
        return dict(_content(self.schema, self.path).get("about") or {})

    def card(self) -> ProcessCard:
        """Returns the process card that the file carries.

        Raises:
            StoreError: If it cannot be used.
        """
        return card_of(_content(self.schema, self.path)["card"], self.path)

    def wanted(self, card: ProcessCard) -> dict[str, list[str]]:
        """Returns the event arrays that the file holds, each with its columns.

        Raises:
            StoreError: If columns are missing or of another type than the card asks for.
        """
        types = {field.name: str(field.type) for field in self.schema}
        try:
            found = arrays_in(card, types)
        except KeyError as error:
            raise self._misfit(card, f"the column {error} is missing") from error
        for name, columns in found.items():
            expected = _TYPE_NAMES[np.dtype(column_type(name)).name]
            for column in columns:
                if types[column] != expected:
                    raise self._misfit(
                        card, f"the column '{column}' holds {types[column]} in place of {expected}"
                    )
        return found

    def _misfit(self, card: ProcessCard, problem: str) -> StoreError:
        return StoreError(f"'{self.path}' does not fit the card '{card.name}': {problem}.")

    def read_into(
        self, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, list[str]], start: int
    ) -> None:
        """Copies the events into event arrays, from row `start` on, as far as they reach.

        Raises:
            StoreError: If the file cannot be read, or has empty cells.
        """
        import pyarrow

        columns = [column for names in wanted.values() for column in names]
        end = len(arrays["weight"])
        try:
            for batch in self.parquet.iter_batches(
                _ROWS_PER_GROUP, columns=columns, use_threads=False
            ):
                n = min(batch.num_rows, end - start)
                if n <= 0:
                    break
                self._copy(batch, arrays, wanted, slice(start, start + n), n)
                start += n
        except (OSError, pyarrow.ArrowException) as error:
            raise StoreError(f"'{self.path}' cannot be read ({error}): restore it.") from error

    def _copy(
        self,
        batch: Any,
        arrays: Mapping[str, np.ndarray],
        wanted: Mapping[str, list[str]],
        rows: slice,
        n: int,
    ) -> None:
        """Copies one batch of rows."""
        for name, columns in wanted.items():
            target = arrays[name][rows].reshape(n, -1) if columns else None
            for i, column in enumerate(columns):
                values = batch.column(column)
                if values.null_count:
                    raise StoreError(f"'{self.path}' has empty cells in '{column}': restore it.")
                target[:, i] = values.to_numpy(zero_copy_only=False)[:n]  # type: ignore[index]  there are columns

    def arrays(self, card: ProcessCard) -> Arrays:
        """Returns the event arrays of the file.

        Raises:
            StoreError: If the file does not fit the card or cannot be read.
        """
        wanted = self.wanted(card)
        arrays = empty_arrays(card, wanted, self.n_events)
        self.read_into(arrays, wanted, 0)
        return arrays


_TYPE_NAMES = {"float64": "double", "bool": "bool", "int8": "int8", "int64": "int64"}


def parts_in(folder: Path) -> list[Path]:
    """Lists the files of a folder that are named as parts, in their order."""
    named = [path for path in folder.glob("part-*.parquet") if path.stem[5:].isdecimal()]
    return sorted(named, key=lambda path: int(path.stem[5:]))


def _content(schema: Any, path: Path) -> Mapping[str, Any]:
    """Reads what a file says of itself: ``schema``, ``card``, ``about``."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise StoreError(f"'{path}' was not written by massrecon: it carries no process card.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"'{path}' is damaged (its card: {error}): restore it.") from error
    if not isinstance(content, dict) or "card" not in content:
        raise StoreError(f"'{path}' is damaged (it carries no process card): restore it.")
    if content.get("schema") not in READABLE:
        raise StoreError(
            f"'{path}' has schema {content.get('schema')}, this version of massrecon reads up to "
            f"{SCHEMA}: use the version that wrote it."
        )
    return content
