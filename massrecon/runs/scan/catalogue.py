"""The catalogue of a scan: one row per point, as a Parquet file that any table library reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from massrecon.errors import RunError, reason
from massrecon.provenance import replacing_file, write_json
from massrecon.runs.notebooks import SUMMARY_FILE
from massrecon.runs.scan.point import Point, PointState

CATALOGUE = "catalogue.parquet"
SCAN_FILE = "scan.json"

_OWN = ("key", "state", "attempts", "seconds", "peak_memory", "host", "error")
_COMPRESSION = "zstd"


def rebuild_catalogue(scan: str | Path, running: bool = False) -> pa.Table:
    """Makes the catalogue from the folders of the points, and writes it.

    Args:
        scan: Folder of the scan.
        running: Whether a scan is at it; if not, points that say so were cut off.

    Raises:
        RunError: If the folder holds no scan.
    """
    scan = Path(scan)
    table = _table([_row(scan, point, running) for point in planned_points(scan)])
    write_table(scan / CATALOGUE, table)
    return table


def load_catalogue(scan: str | Path) -> pa.Table:
    """Reads the catalogue of a scan; makes it anew from the points if it cannot be read.

    Returns:
        One row per point: ``key``, ``state``, ``attempts``, ``seconds``, ``peak_memory`` [MB],
        ``host``, ``error``, the values of the axes by their names, and the numbers and
        texts of its summary as ``summary.…``.

    Raises:
        RunError: If the folder holds no scan.
    """
    scan = Path(scan)
    planned_points(scan)
    try:
        return pq.read_table(scan / CATALOGUE)
    except (OSError, pa.ArrowException):
        return rebuild_catalogue(scan)


def write_plan(scan: Path, points: Iterable[Point]) -> None:
    """Writes what the scan consists of; points of earlier designs stay in it."""
    known = {point.key: point for point in (planned_points(scan) if is_scan(scan) else [])}
    known |= {point.key: point for point in points}
    write_json(
        scan / SCAN_FILE,
        {"format": 1, "points": [dataclasses.asdict(point) for point in known.values()]},
    )


def is_scan(folder: Path) -> bool:
    """Tells whether a folder is that of a scan."""
    return (folder / SCAN_FILE).is_file()


def planned_points(scan: Path) -> list[Point]:
    """Reads which points a scan has.

    Raises:
        RunError: If the folder holds no scan, or its list of points is damaged.
    """
    try:
        content = json.loads((scan / SCAN_FILE).read_text(encoding="utf-8"))
        return [Point(**entry) for entry in content["points"]]
    except FileNotFoundError as error:
        raise RunError(
            f"'{scan}' holds no scan: pass the folder that was given to 'massrecon scan' as --out."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"'{scan / SCAN_FILE}' cannot be read ({reason(error)}): remove it, and start the scan "
            "again with its notebook and design; finished points are found."
        ) from error


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table so that readers see the old or the new file whole."""
    with replacing_file(path) as fresh:
        pq.write_table(table, fresh, compression=_COMPRESSION)


def _row(scan: Path, point: Point, running: bool) -> dict[str, Any]:
    folder = point.folder(scan)
    state = PointState.load(folder) or PointState(state="waiting")
    if state.state == "running" and not running:
        state = dataclasses.replace(state, state="waiting")
    row = {"key": point.key, **{name: getattr(state, name) for name in _OWN[1:]}}
    row |= {(f"value.{n}" if n in _OWN else n): _cell(v) for n, v in point.values.items()}
    if state.state == "done":
        row |= _flat("summary", _summary(folder))
    return row


def _summary(folder: Path) -> Any:
    try:
        return json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Names every number and text inside mappings by its path."""
    if not isinstance(value, Mapping):
        return {name: _cell(value)}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(f"{name}.{key}", inner)
    return found


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Makes a table of rows that need not have the same columns."""
    names = dict.fromkeys(_OWN) | dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Makes a column: numbers where all are, texts otherwise."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    return pa.array(values)
