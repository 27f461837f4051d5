"""Runs the benchmarks of speed one after the other and writes one table of ratios.

::

    OMP_NUM_THREADS=1 python tests/benchmarks/everything.py [--device cuda] [NAME ...]

Each benchmark is a program of its own that hands over rows (see `rows`). The table is written after
each, into ``results/performance.json`` (``performance_cuda.json`` for another device): one that
fails loses no rows of others, and names given run these alone and leave the others as they were.
Run it on an idle machine; the load beside each benchmark says how idle it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from massrecon.provenance import versions, write_json

HERE = Path(__file__).parent
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "simulate": ("0", "4"),
    "toys": (),
    "store": ("200000",),
    "kinematics": ("--events", "0", "--batch", "20000"),
    "mixture": ("--events", "1000"),
    "models": ("training", "steps", "draws"),
    "devices": (),
    "combination": ("speed",),
    "scan": ("--points", "1000"),
    "widgets": (),
    "demo": (),
}
"""The benchmarks in their order, with what they are called with."""

ON_A_DEVICE = ("devices",)
"""Benchmarks that run on a GPU, too."""

MOST_SECONDS = 3600


def run(
    name: str, arguments: tuple[str, ...], most_seconds: float = MOST_SECONDS
) -> dict[str, Any]:
    """Runs a benchmark, and returns its rows, what it took, and how it failed if it did."""
    command = ["python", f"tests/benchmarks/{name}.py", *arguments]
    load, started = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "MASSRECON_ROWS": str(rows)}
        failed = _outcome([sys.executable, str(HERE / f"{name}.py"), *arguments], surroundings,
                          most_seconds)  # fmt: skip
        text = rows.read_text(encoding="utf-8") if rows.exists() else ""
    return {
        "command": " ".join(command),
        "seconds": round(time.monotonic() - started),
        "load": round(max(load, os.getloadavg()[0]), 1),
        "failed": failed,
        "rows": [json.loads(line) for line in text.splitlines()],
    }


def _outcome(command: list[str], surroundings: dict[str, str], most_seconds: float) -> str:
    """Runs a command, its output to ours; returns how it failed, or nothing."""
    try:
        done = subprocess.run(command, env=surroundings, timeout=most_seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {most_seconds:.0f} s"
    return "" if done.returncode == 0 else f"ended with code {done.returncode}"


def machine(device: str) -> dict[str, Any]:
    """Describes what the ratios were measured on."""
    about: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "device": device}
    if device.startswith("cuda"):
        import torch

        about["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return about


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Runs what was asked for and records it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the table")
    arguments = parser.parse_args()
    device, names = arguments.device, arguments.names
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"unknown benchmark '{min(unknown)}': choose from {', '.join(BENCHMARKS)}")
    path = arguments.out / f"performance{'' if device == 'cpu' else '_' + device}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["benchmarks"] if path.is_file() else {}
    made = "make benchmark" + ("" if device == "cpu" else f" DEVICE={device}")
    for name in names or BENCHMARKS:
        own = ("--device", device) if name in ON_A_DEVICE else ()
        kept[name] = run(name, (*BENCHMARKS[name], *own))
        print(f"{name}: {len(kept[name]['rows'])} rows {kept[name]['failed']}", flush=True)
        table = {one: kept[one] for one in BENCHMARKS if one in kept}
        about = {"command": made, "seed": None, "machine": machine(device)}
        write_json(path, about | {"benchmarks": table, "versions": versions("torch", "numba")})
    if failed := [name for name, one in kept.items() if one["failed"]]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
