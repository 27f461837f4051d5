"""Parquet files with the columns of our own store, written by massrecon, pandas or anything else.

A file needs ``<slot>_px``, ``_py``, ``_pz`` and ``_E`` [GeV] for every object slot (``jet1``, … as
many as there are), ``ptmiss_x`` and ``ptmiss_y``. ``<slot>_present``, the attributes
(``<slot>_charge``, …), ``weight``, ``weight_<name>`` and the truth columns are taken if they are
there; without ``_present`` an object is there if its energy is a number other than zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import ImportFileError
from massrecon.events.card import COMPONENTS, ProcessCard, load_card
from massrecon.events.columns import MOMENTUM, VARIATION, column_type, layout, measured_arrays
from massrecon.events.importers.chunk import (
    LARGEST_CHUNK,
    Chunk,
    ReadOptions,
    brief,
    unreadable_entries,
)
from massrecon.events.objects import Objects
from massrecon.events.partfile import METADATA_KEY
from massrecon.events.particles import Floats, Mask

Columns = dict[str, np.ndarray]


class TableReader:
    """Reads a Parquet file."""

    def __init__(self, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        """Opens the file and checks that its columns are there.

        Raises:
            ImportFileError: If the file is no Parquet file or lacks a column.
        """
        self.path, self.card, self.options = path, card, options
        self._file = self._open()
        schema = self._file.schema_arrow
        self._types = dict(zip(schema.names, map(str, schema.types), strict=True))
        self._slots = {group.kind: self._slots_of(group.kind) for group in card.objects}
        self._truth = [f"parton_{name}_{c}" for name in card.parton_names for c in COMPONENTS]
        self._masses = [f"mass_{name}" for name in card.mass_names]
        self._wanted = self._columns(schema)

    def chunks(self) -> Iterator[Chunk]:
        """Yields all rows in their order."""
        stop = self.options.stop(self._file.metadata.num_rows)
        start = 0
        batches = self._batches()
        while start < stop:
            try:
                batch = next(batches)
            except StopIteration:
                raise unreadable_entries(self.path, start, stop, "are missing.") from None
            except Exception as error:  # damaged data ends in many kinds of errors
                raise unreadable_entries(
                    self.path, start, stop, f"cannot be read ({brief(error)}). The file is damaged:"
                    " fetch or make it again."
                ) from error  # fmt: skip
            n = min(batch.num_rows, stop - start)
            columns = {name: _plain(batch.column(name))[:n] for name in self._wanted}
            yield self._chunk(start, start + n, columns)
            start += n

    def _open(self) -> Any:
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path, page_checksum_verification=True)
        except Exception as error:  # damaged data ends in many kinds of errors
            raise ImportFileError(
                f"'{self.path}' cannot be read as a Parquet file ({brief(error)}): it is truncated "
                "or damaged, fetch or make it again."
            ) from error

    def _batches(self) -> Iterator[Any]:
        return self._file.iter_batches(LARGEST_CHUNK, columns=self._wanted, use_threads=False)

    def _slots_of(self, kind: str) -> list[str]:
        """Lists the slots of a kind that the file has."""
        found = [kind] if f"{kind}_px" in self._types else []
        number = 1
        while f"{kind}{number}_px" in self._types:
            found.append(f"{kind}{number}")
            number += 1
        return found

    def _promised(self, metadata: Mapping[bytes, bytes]) -> list[str]:
        """Lists the columns that a file of our own says it has, since nothing else guards them."""
        if METADATA_KEY not in metadata:
            return []
        try:
            content = json.loads(metadata[METADATA_KEY])
            about, card = content["about"], load_card(content["card"])
            n_events = about.get("n_events", self._file.metadata.num_rows)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ImportFileError(
                f"'{self.path}' is damaged (what it says of itself: {brief(error)}). Make it again."
            ) from error
        if n_events != self._file.metadata.num_rows:
            raise ImportFileError(
                f"'{self.path}' is damaged: it has {self._file.metadata.num_rows} events and says "
                f"{n_events}. Make it again."
            )
        columns = layout(card)
        needed = [column for name in measured_arrays(card) for column in columns[name]]
        return about.get("columns") or needed

    def _columns(self, schema: Any) -> list[str]:
        """Lists the columns to read, after checking that they are there and hold numbers."""
        wanted, optional = ["ptmiss_x", "ptmiss_y"], ["weight"]
        for kind, slots in self._slots.items():
            wanted += [f"{slot}_{c}" for slot in slots or [kind] for c in MOMENTUM]
            optional += [f"{s}_{a}" for s in slots for a in ("present", *self.card.attribute_names)]
        missing = [name for name in wanted if name not in self._types]
        if missing:
            raise ImportFileError(
                f"'{self.path}' lacks the column '{missing[0]}' that the card '{self.card.name}' "
                f"asks for: it has {', '.join(list(self._types)[:20])}, …"
            )
        lost = [name for name in self._promised(schema.metadata or {}) if name not in self._types]
        if lost:
            raise ImportFileError(
                f"'{self.path}' is damaged: it says it had the column '{lost[0]}'. Make it again."
            )
        truth = [*self._truth, *self._masses]
        self._has_truth = self.options.truth and set(truth) <= self._types.keys() and bool(truth)
        wanted += truth if self._has_truth else []
        optional += [name for name in self._types if name.startswith(VARIATION)]
        wanted += [name for name in optional if name in self._types]
        numbers = ("double", "float", "halffloat", "int", "uint", "bool")
        for name in wanted:
            if not self._types[name].startswith(numbers):
                raise ImportFileError(
                    f"The column '{name}' of '{self.path}' holds {self._types[name]}, not numbers."
                )
        return wanted

    def _chunk(self, start: int, stop: int, columns: Columns) -> Chunk:
        n, defects = stop - start, {}
        objects = {kind: self._objects(slots, columns, n) for kind, slots in self._slots.items()}
        weights = {"weight": columns.get("weight", np.ones(n))}
        weights |= {name: columns[name] for name in columns if name.startswith(VARIATION)}
        partons = masses = None
        if self._has_truth:
            partons = _stack(columns, self._truth, n).reshape(n, -1, len(COMPONENTS))
            masses = _stack(columns, self._masses, n)
            defects["a mass is not finite"] = ~np.isfinite(masses).all(axis=1)
        return Chunk(
            start=start,
            stop=stop,
            weights={name: values.astype(np.float64) for name, values in weights.items()},
            objects=objects,
            ptmiss=_stack(columns, ["ptmiss_x", "ptmiss_y"], n),
            partons=partons,
            matched=None if partons is None else np.ones(n, bool),
            masses=masses,
            defects=defects,
        )

    def _objects(self, slots: list[str], columns: Columns, n: int) -> Objects:
        p4 = np.stack([_stack(columns, [f"{s}_{c}" for c in MOMENTUM], n) for s in slots], axis=1)
        present = np.stack([self._present(s, columns, p4[:, i]) for i, s in enumerate(slots)], 1)
        event = np.nonzero(present)[0]
        attributes = {}
        for name in self.card.attribute_names:
            values = [columns.get(f"{slot}_{name}", np.zeros(n)) for slot in slots]
            values = np.nan_to_num(np.stack(values, axis=1)[present])
            attributes[name] = values.astype(column_type(name))
        return Objects(event, p4[present], attributes)

    @staticmethod
    def _present(slot: str, columns: Columns, p4: Floats) -> Mask:
        if f"{slot}_present" in columns:
            return columns[f"{slot}_present"].astype(bool)
        return ~np.isnan(p4[:, 3]) & (p4[:, 3] != 0.0)


def _plain(column: Any) -> np.ndarray:
    """Returns a column as NumPy array; empty cells are not a number, or False."""
    import pyarrow

    if pyarrow.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy(zero_copy_only=False)
    return column.to_numpy(zero_copy_only=False)


def _stack(columns: Columns, names: list[str], n: int) -> Floats:
    stacked = [np.asarray(columns[name], np.float64) for name in names]
    return np.stack(stacked, axis=1) if stacked else np.zeros((n, 0))
