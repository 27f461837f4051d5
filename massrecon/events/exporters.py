"""Exports: events as a file for other programs, written whole or not at all.

``.parquet`` is one file of plain columns that carries the process card; ``.root`` a tree ``events``
with one flat branch for each of these columns; ``.h5`` the layout of SPANet, see `spanet_export`.
`as_awkward` gives the objects of each event as lists, for analyses with awkward and vector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from massrecon.errors import (
    InputError,
    MassReconError,
    StoreError,
    reason,
    require_extra,
    unknown_name,
)
from massrecon.events.columns import MOMENTUM, VARIATION, to_columns
from massrecon.events.partfile import write_part
from massrecon.events.spanet_export import write_spanet
from massrecon.provenance import replacing_file

if TYPE_CHECKING:
    from massrecon.events.container import Events

TREE = "events"
_STEP = 50_000
_SUFFIXES = {".parquet": "parquet", ".root": "root", ".h5": "spanet", ".hdf5": "spanet"}


def export_events(events: Events, path: str | Path, format: str | None = None) -> None:
    """Writes events to one file for other programs, in place of an older one.

    Args:
        events: The events.
        path: The file.
        format: ``parquet``, ``root`` or ``spanet`` (HDF5); None goes by the ending of the name.

    Raises:
        InputError: If there is no such format, or the ending says none.
        StoreError: If the file cannot be written; an older one is as it was.
        MissingExtraError: If the format needs a package that is not installed.
    """
    path = Path(path)
    if format is None and path.suffix not in _SUFFIXES:
        raise InputError(
            f"'{path.name}' should end in {', '.join(_SUFFIXES)}: or say which 'format' you want."
        )
    name = format or _SUFFIXES[path.suffix]
    if name not in _WRITERS:
        raise unknown_name("format", name, _WRITERS)
    if path.is_dir():
        raise StoreError(f"'{path}' is a folder: choose a file.")
    try:
        with replacing_file(path) as fresh:
            _WRITERS[name](events, fresh)
    except MassReconError:
        raise
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to HDF5
        raise StoreError(
            f"'{path}' cannot be written: {reason(error)}. Free some space or choose another place."
        ) from error


def as_awkward(events: Events) -> Any:
    """Returns the events as an awkward array of records, one for each event.

    Every kind of object (``lepton``, ``jet``, …) is a list of records with ``px``, ``py``, ``pz``,
    ``E`` [GeV] and its attributes, named ``Momentum4D`` for the package vector; ``ptmiss`` has
    ``px`` and ``py``; ``weight`` and ``variations`` are the weights; ``partons`` and ``masses`` the
    truth, where there is one.

    Raises:
        MissingExtraError: If awkward is not installed.
    """
    awkward = require_extra("awkward", extra="files")
    arrays, card = events.to_arrays(), events.card
    fields: dict[str, Any] = {}
    for group in card.objects:
        slots = list(events.slots_of(group.kind))
        present = arrays["present"][:, slots]
        columns = {c: arrays["p4"][:, slots, i] for i, c in enumerate(MOMENTUM)}
        columns |= {name: arrays[name][:, slots] for name in card.attribute_names}
        objects = {name: values[present] for name, values in columns.items()}
        record = awkward.zip(objects, with_name="Momentum4D")
        fields[group.kind] = awkward.unflatten(record, present.sum(axis=1))
    ptmiss = {"px": arrays["ptmiss"][:, 0], "py": arrays["ptmiss"][:, 1]}
    fields["ptmiss"] = awkward.zip(ptmiss, with_name="Momentum2D")
    fields["weight"] = arrays["weight"]
    others = {n.removeprefix(VARIATION): v for n, v in arrays.items() if n.startswith(VARIATION)}
    if others:
        fields["variations"] = awkward.zip(others)
    if "partons" in arrays:
        fields["partons"] = _truth(awkward, card.parton_names, arrays["partons"])
    if "masses" in arrays and card.mass_names:
        columns = {name: arrays["masses"][:, i] for i, name in enumerate(card.mass_names)}
        fields["masses"] = awkward.zip(columns)
    return awkward.zip(fields, depth_limit=1)


def _truth(awkward: Any, names: tuple[str, ...], partons: np.ndarray) -> Any:
    """Returns the true particles by label, as records that vector understands."""
    keys = ("px", "py", "pz", "mass")
    records = {
        name: awkward.zip(
            {key: partons[:, i, c] for c, key in enumerate(keys)}, with_name="Momentum4D"
        )
        for i, name in enumerate(names)
    }
    return awkward.zip(records, depth_limit=1)


def _write_parquet(events: Events, path: Path) -> None:
    """Writes one file that says what is in it."""
    arrays = events.to_arrays()
    columns = [name for name, _ in to_columns(events.card, arrays)]
    about = {"provenance": dict(events.provenance), "columns": columns, "n_events": len(events)}
    write_part(path, arrays, events.card, about)


def _write_root(events: Events, path: Path) -> None:
    """Writes a flat tree and the card as text."""
    uproot = require_extra("uproot", extra="files")
    arrays = events.to_arrays()
    names = [name for name, _ in to_columns(events.card, {k: v[:0] for k, v in arrays.items()})]
    branches = {name: re.sub(r"\W", "_", name) for name in names}
    if len(set(branches.values())) < len(names):
        raise InputError(
            "Two alternative weights have the same name in ROOT, where only letters, digits and _ "
            "are allowed: rename one."
        )
    with uproot.recreate(path) as file:
        file["card"] = json.dumps(events.card.to_dict(), ensure_ascii=True)
        tree = None
        for start in range(0, max(len(events), 1), _STEP):
            chunk = {name: array[start : start + _STEP] for name, array in arrays.items()}
            columns = {branches[n]: values for n, values in to_columns(events.card, chunk)}
            if tree is None:
                tree = file.mktree(TREE, {name: v.dtype for name, v in columns.items()})
            tree.extend(columns)


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "parquet": _write_parquet,
    "root": _write_root,
    "spanet": write_spanet,
}
"""What writes each format."""
