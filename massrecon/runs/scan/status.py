"""What became of a scan: counts, failures, and the catalogue as a table of other formats."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from massrecon.errors import InputError, StoreError
from massrecon.events.manifest import locked
from massrecon.provenance import write_text
from massrecon.runs.scan.catalogue import planned_points, rebuild_catalogue, write_table
from massrecon.runs.scan.point import FAILURES, failure_line


@dataclass(frozen=True)
class ScanStatus:
    """How far a scan is.

    Attributes:
        counts: Number of points by state.
        total: Number of points.
        running: Whether a process is at the scan now.
        seconds: Median time of the finished points [s], None if there are none.
        failures: A line for each failed point.
    """

    counts: dict[str, int]
    total: int
    running: bool
    seconds: float | None
    failures: list[str]


def scan_status(folder: str | Path) -> ScanStatus:
    """Looks at every point of a scan, and writes the catalogue anew.

    Raises:
        RunError: If the folder holds no scan.
    """
    folder = Path(folder)
    points = {point.key: point for point in planned_points(folder)}
    running = _is_running(folder)
    rows = rebuild_catalogue(folder, running).to_pylist()
    failures = []
    for row in rows:
        if row["state"] in FAILURES:
            line = failure_line(points[row["key"]], row["state"], row["error"])
            failures.append(f"{line} (points/{row['key']})")
    times = [row["seconds"] for row in rows if row["state"] == "done"]
    middle = statistics.median(times) if times else None
    counts = Counter(row["state"] for row in rows)
    return ScanStatus(dict(counts), len(rows), running, middle, failures)


def _is_running(folder: Path) -> bool:
    try:
        with locked(folder):
            return False
    except StoreError:
        return True


def export_catalogue(folder: str | Path, out: str | Path) -> int:
    """Writes the catalogue of a scan, as it is now, to a table.

    Args:
        folder: Folder of the scan.
        out: File that ends in ``.csv``, ``.json`` or ``.parquet``.

    Returns:
        Number of points.

    Raises:
        InputError: If the file has another ending.
        RunError: If the folder holds no scan.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix not in _WRITERS:
        raise InputError(f"'{out}' should end in one of {', '.join(_WRITERS)}.")
    table = rebuild_catalogue(folder, _is_running(folder))
    _WRITERS[out.suffix](out, table)
    return table.num_rows


def _write_csv(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    write_text(path, sink.getvalue().to_pybytes().decode("utf-8"))


def _write_json(path: Path, table: pa.Table) -> None:
    write_text(path, json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n")


_WRITERS: dict[str, Callable[[Path, pa.Table], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": write_table,
}
