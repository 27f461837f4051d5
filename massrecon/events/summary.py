"""What a folder of events holds, in numbers: made part by part, in the memory of one part."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.events.cells import CELL_WIDTH
from massrecon.events.columns import VARIATION, Arrays
from massrecon.events.history import JOINED
from massrecon.events.manifest import read_manifest
from massrecon.events.store import open_folder

Row = Sequence[object]
"""One row of a table."""


@dataclass
class _Counts:
    """Sums over the events, added to part by part."""

    n_events: int = 0
    n_parts: int = 0
    has_truth: bool = False
    ptmiss: float = 0.0
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    multiplicity: dict[str, np.ndarray] = field(default_factory=dict)
    cells: dict[tuple[float, ...], int] = field(default_factory=dict)

    def add(self, arrays: Arrays, kinds: np.ndarray) -> None:
        """Adds the events of a part."""
        self.n_parts += 1
        self.n_events += len(arrays["weight"])
        self.has_truth |= "partons" in arrays
        self.ptmiss += float(np.hypot(*arrays["ptmiss"].T).sum())
        for name, values in arrays.items():
            if name == "weight" or name.startswith(VARIATION):
                sums = [values.sum(), (values**2).sum(), (values < 0).sum()]
                self.weights[name] = self.weights.get(name, np.zeros(3)) + sums
        for kind in dict.fromkeys(kinds.tolist()):
            there = arrays["present"][:, kinds == kind]
            found = np.bincount(there.sum(axis=1), minlength=there.shape[1] + 1)
            self.multiplicity[kind] = self.multiplicity.get(kind, 0) + found
        if arrays.get("masses") is not None:
            low = CELL_WIDTH * np.floor(arrays["masses"] / CELL_WIDTH)
            for corner, count in zip(*np.unique(low, axis=0, return_counts=True), strict=True):
                key = tuple(corner.tolist())
                self.cells[key] = self.cells.get(key, 0) + int(count)


@dataclass(frozen=True)
class StoreSummary:
    """What a folder of events holds.

    Attributes:
        path: The folder.
        title: Name and title of the process.
        facts: Names and values of single facts.
        cut_flow: Rows of a table: how many collisions passed each step; the first row is the head.
        cells: Likewise for each cell of the mass plane, masses and cross-sections in GeV and fb.
        objects: Likewise for each kind of object: how many events have none, one, two, … of them.
        weights: Likewise for the event weights and each alternative.
    """

    path: Path
    title: str
    facts: Mapping[str, str]
    cut_flow: Sequence[Row]
    cells: Sequence[Row]
    objects: Sequence[Row]
    weights: Sequence[Row]

    def __str__(self) -> str:
        width = max(len(name) for name in self.facts)
        lines = [f"{self.path}: {self.title}", ""]
        lines += [f"  {name:{width}}  {value}" for name, value in self.facts.items()]
        for title, rows in self.tables().items():
            lines += ["", f"  {title}", *_aligned(rows)]
        return "\n".join(lines)

    def tables(self) -> dict[str, Sequence[Row]]:
        """Returns the tables that have rows, by title."""
        tables = {
            "Collisions after each step": self.cut_flow,
            "Mass cells": self.cells,
            "Events by number of objects": self.objects,
            "Event weights": self.weights,
        }
        return {title: rows for title, rows in tables.items() if len(rows) > 1}


def describe_store(path: str | Path) -> StoreSummary:
    """Describes a folder of events; of an unfinished simulation, the parts that are there.

    Args:
        path: The folder.

    Raises:
        StoreError: If it holds no events or is damaged.
    """
    manifest = read_manifest(Path(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is unfinished is among the facts
        folder = open_folder(path, partial=True)
    counts, kinds = _Counts(), np.array(folder.card.slot_kinds)
    for arrays in folder.pieces():
        counts.add(arrays, kinds)
    flow = folder.provenance.get("cut_flow", {})
    return StoreSummary(
        path=Path(path),
        title=f"{folder.card.name}, {folder.card.title}",
        facts=_facts(folder.provenance, counts, manifest),
        cut_flow=_cut_flow(flow),
        cells=_cells(folder.provenance, folder.card.mass_names, counts),
        objects=_objects(counts),
        weights=_weights(counts),
    )


def _facts(
    provenance: Mapping[str, Any], counts: _Counts, manifest: Mapping[str, Any]
) -> dict[str, str]:
    """Lists single facts."""
    facts = {"events": f"{counts.n_events:,} in {counts.n_parts} files"}
    if "of_n_events" in provenance:
        wanted = f"of {manifest['n_events']:,} events" if manifest["n_events"] else ""
        facts["state"] = f"NOT FINISHED or incomplete: these are the whole parts {wanted}".rstrip()
    made_by = "a simulation" if manifest["request"] else "saved or imported events"
    if JOINED in provenance:
        made_by = f"{len(provenance[JOINED])} samples joined"
    facts["made by"] = made_by
    facts["truth"] = "yes" if counts.has_truth else "no"
    for name in ("seed", "prior", "source", "format"):
        if isinstance(provenance.get(name), str | int):
            facts[name] = str(provenance[name])
    for name in ("masses", "settings", "versions"):
        if isinstance(provenance.get(name), Mapping):
            pairs = [(k, v) for k, v in provenance[name].items() if v not in (None, [], {})]
            facts |= {name: ", ".join(f"{key} {value}" for key, value in pairs)} if pairs else {}
    if counts.n_events:
        facts["mean missing pT"] = f"{counts.ptmiss / counts.n_events:.1f} GeV"
    return facts


def _cut_flow(flow: Mapping[str, int]) -> list[Row]:
    """Makes the table of the selection."""
    rows: list[Row] = [("step", "collisions", "of all")]
    generated = next(iter(flow.values()), 0)
    for step, count in flow.items():
        rows.append((step, f"{count:,}", f"{count / generated:.4f}" if generated else "-"))
    return rows


def _cells(provenance: Mapping[str, Any], names: Sequence[str], counts: _Counts) -> list[Row]:
    """Makes the table of the mass cells; without those of a simulation, of the events' masses."""
    if not provenance.get("cells"):
        rows: list[Row] = [(*(f"{name} [GeV]" for name in names), "events")]
        for corner, count in sorted(counts.cells.items()) if names else ():
            rows.append((*(f"{low:g} to {low + CELL_WIDTH:g}" for low in corner), f"{count:,}"))
        return rows
    head = ("generated", "selected", "acceptance", "cross-section [fb]")
    rows = [(*(f"{name} [GeV]" for name in names), *head)]
    for cell in provenance["cells"]:
        masses = [cell["masses"][name] for name in names]
        shown = [f"{m[0]:g} to {m[1]:g}" if isinstance(m, list) else f"{m:g}" for m in masses]
        numbers = (f"{cell['n_generated']:,}", f"{cell['n_selected']:,}")
        acceptance = _with_error(cell["acceptance"], cell["acceptance_error"])
        sigma = _with_error(cell["cross_section_fb"], cell["cross_section_error_fb"])
        rows.append((*shown, *numbers, acceptance, sigma))
    return rows


def _objects(counts: _Counts) -> list[Row]:
    """Makes the table of multiplicities."""
    most = max((len(found) for found in counts.multiplicity.values()), default=0)
    rows: list[Row] = [("kind", "mean", *map(str, range(most)))]
    for kind, found in counts.multiplicity.items():
        total = max(int(found.sum()), 1)
        mean = float((np.arange(len(found)) * found).sum()) / total
        blank = [""] * (most - len(found))
        rows.append((kind, f"{mean:.2f}", *(f"{n:,}" for n in found.tolist()), *blank))
    return rows


def _weights(counts: _Counts) -> list[Row]:
    """Makes the table of the weights."""
    rows: list[Row] = [("weight", "sum", "events of equal precision", "negative")]
    for name, (total, squares, negative) in counts.weights.items():
        effective = total**2 / squares if squares else 0.0
        rows.append((name, f"{total:,.6g}", f"{effective:,.1f}", f"{int(negative):,}"))
    return rows


def _with_error(value: float | None, error: float | None) -> str:
    """Writes a number to the precision of its error."""
    if value is None:
        return "unknown"
    if not error:
        return f"{value:.4g}"
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _aligned(rows: Sequence[Row]) -> list[str]:
    """Writes a table as lines of text."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    return [
        "    " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]
