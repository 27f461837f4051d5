"""What a scan costs beyond its points: overhead of each point, and memory.

Runs thousands of tiny points in shared processes, and beside them the same cells in a bare loop::

    python tests/benchmarks/scan.py --points 10000 --record
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rows import row

from massrecon.provenance import versions, write_json
from massrecon.runs.scan import ClusterChoice, Design, Limits, load_catalogue, run_scan
from massrecon.runs.scan.shared_process import SharedProcess

RESULTS = Path(__file__).parent / "results" / "scan.json"
PARAMETERS = 'out: str = "results"  # folder\nx: float = 0.0  # a number\n'
BODY = (
    "import json, pathlib\n"
    'pathlib.Path(out, "summary.json").write_text(json.dumps({"square": x * x}))\n'
)


def write_notebook(folder: Path) -> Path:
    """Writes the smallest notebook that a scan takes."""
    cells = [
        {
            "cell_type": "code", "id": f"cell{i}", "source": source, "outputs": [],
            "metadata": {"tags": ["parameters"]} if i == 0 else {}, "execution_count": None,
        }
        for i, source in enumerate((PARAMETERS, BODY))
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    content = {
        "nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells,
    }  # fmt: skip
    path = folder / "tiny.ipynb"
    path.write_text(json.dumps(content))
    return path


class MemoryWatch(threading.Thread):
    """Records the memory of this process and of all that it started, once a second [MB]."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own: list[float] = []
        self.others: list[float] = []

    def run(self) -> None:
        me = psutil.Process()
        while True:
            self.own.append(me.memory_info().rss / 1e6)
            total = 0.0
            for process in me.children(recursive=True):
                try:
                    total += process.memory_info().rss / 1e6
                except psutil.Error:
                    continue
            self.others.append(total)
            time.sleep(1)


def bare_seconds(notebook: Path, folder: Path, n: int) -> tuple[float, float]:
    """Measures a point alone, on the clock and of a processor: the same notebook without Dask."""
    process = SharedProcess()
    process.run(notebook, {"x": 0.0}, folder / "first")
    started, used = time.monotonic(), processor_seconds()
    for i in range(n):
        process.run(notebook, {"x": float(i)}, folder / f"{i}")
    return (time.monotonic() - started) / n, (processor_seconds() - used) / n


def processor_seconds() -> float:
    """Returns the processor time of this process and of all that it started and that ended [s]."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        notebook = write_notebook(folder)
        alone, alone_used = bare_seconds(notebook, folder / "bare", 200)
        watch = MemoryWatch()
        watch.start()
        design = Design.model_validate(
            {"axes": {"x": {"from": 1, "to": arguments.points, "step": 1}}}
        )
        started, used = time.monotonic(), processor_seconds()
        counts = run_scan(
            notebook, design, folder / "scan", cluster=ClusterChoice(workers=arguments.workers),
            limits=Limits(isolation="shared"),
        )  # fmt: skip
        wall, used = time.monotonic() - started, processor_seconds() - used
        seconds = load_catalogue(folder / "scan").column("seconds").to_pylist()
    n, quarter = len(watch.own), max(1, len(watch.own) // 4)
    results: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/scan.py", *sys.argv[1:]]),
        "seed": None,
        "counts": counts,
        "workers": arguments.workers,
        "wall_seconds": round(wall, 1),
        "wall_ms_per_point_and_worker": 1000 * wall * arguments.workers / arguments.points,
        "median_ms_in_the_worker": 1000 * statistics.median(seconds),
        "ms_of_the_notebook_alone": 1000 * alone,
        "overhead_ms": 1000 * (wall * arguments.workers / arguments.points - alone),
        "processor_ms_per_point": 1000 * used / arguments.points,
        "processor_overhead_ms": 1000 * (used / arguments.points - alone_used),
        "own_memory_mb": [statistics.mean(watch.own[quarter : 2 * quarter]),
                          statistics.mean(watch.own[n - quarter :])],
        "memory_of_workers_mb": [statistics.mean(watch.others[quarter : 2 * quarter]),
                                 statistics.mean(watch.others[n - quarter :])],
        "largest_own_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "load": os.getloadavg()[0],
        "versions": versions("distributed", "papermill"),
    }  # fmt: skip
    for name, value in results.items():
        print(f"{name}: {value}")
    row(f"a point of a scan, one of {arguments.points:,}",
        results["wall_ms_per_point_and_worker"] / results["ms_of_the_notebook_alone"],
        "the same cells in a bare loop", unit="time on the clock and worker",
        note=f"overhead {results['overhead_ms']:.1f} ms, start of workers included")  # fmt: skip
    if arguments.record:
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
