"""Benchmark of the event store: ``python tests/benchmarks/store.py [n_events] [folder]``.

Saves events of wino_udd (with truth, about 1.1 kB each), once as `save` cuts them into files and
once in parts as small as those of a simulation, and loads them in a fresh process with all checks.
Prints times, MB/s and the peak memory of loading over the size of the arrays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from rows import ratio_of, row

from massrecon.events import writer
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.columns import Arrays
from massrecon.events.store import StoreWriter

PIECE = 50_000
SIMULATED_PART = 1_250
MB = 1e6
REPEATS = 7  # a process may be held up where it asks for memory first

LOAD = """
import pathlib, resource, sys, time
import massrecon.events.container, pyarrow.parquet
from massrecon.events.store import load_events

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

start = time.process_time()
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.parquet")):
    pyarrow.parquet.read_table(path, use_threads=False)
bare = time.process_time() - start
before = megabytes()
start, processor = time.perf_counter(), time.process_time()
events = load_events(sys.argv[1])
seconds, processor = time.perf_counter() - start, time.process_time() - processor
size = sum(array.nbytes for array in events.to_arrays().values()) / 1e6
peak = megabytes() - before
print(f"{len(events)} {size:.0f} {seconds:.3f} {processor:.3f} {peak:.0f} {bare:.3f}")
"""


def make_piece(card: ProcessCard, n_events: int, seed: int) -> Arrays:
    """Makes events of no physics: random momenta, all slots filled."""
    rng = np.random.default_rng(seed)
    slots, partons = len(card.slots), len(card.parton_names)
    p3 = rng.normal(0.0, 100.0, (n_events, slots, 3))
    energy = np.sqrt((p3**2).sum(-1, keepdims=True)) * (1 + 1e-9)
    tags = rng.integers(-1, 2, (n_events, slots)).astype(np.int8)
    return {
        "p4": np.concatenate([p3, energy], axis=-1),
        "present": np.ones((n_events, slots), bool),
        **dict.fromkeys(card.attribute_names, tags),
        "ptmiss": rng.normal(0.0, 50.0, (n_events, 2)),
        "weight": np.ones(n_events),
        "partons": rng.normal(0.0, 200.0, (n_events, partons, 4)),
        "masses": np.stack([np.full(n_events, 600.0), rng.uniform(50, 450, n_events)], axis=1),
    }


def measure(folder: Path, n_events: int, events_per_file: int) -> None:
    """Saves and loads one folder and prints a line each."""
    card = load_card("wino_udd")
    writer.EVENTS_PER_FILE = events_per_file
    spent = 0.0
    start = time.perf_counter()
    with StoreWriter(folder, card, provenance={"benchmark": True}) as out:
        for number, first in enumerate(range(0, n_events, PIECE)):
            now = time.perf_counter()
            piece = make_piece(card, min(PIECE, n_events - first), number)
            spent += time.perf_counter() - now
            out.write(piece)
    saving = time.perf_counter() - start - spent
    on_disk = sum(path.stat().st_size for path in folder.iterdir()) / MB
    files = len(list(folder.glob("*.parquet")))
    print(
        f"{n_events:,} events in {files} files, {on_disk:.0f} MB on disk\n"
        f"  save  {saving:6.2f} s  {on_disk / saving:5.0f} MB/s"
    )
    loads, bares = [], []
    for _ in range(REPEATS):
        command = [sys.executable, "-c", LOAD, str(folder)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        size, seconds, processor, peak, bare = map(float, shown[1:])
        loads.append(processor)
        bares.append(bare)
        print(
            f"  load  {seconds:6.2f} s  {size / seconds:5.0f} MB/s, processor {processor:.2f} s at "
            f"load {os.getloadavg()[0]:.1f}; arrays {size:.0f} MB, peak memory {peak:.0f} MB = "
            f"{peak / size:.2f} x arrays"
        )
    ratio, spread = ratio_of(loads, bares)
    row(f"loading {files} files with all checks", ratio, "reading them with pyarrow alone",
        spread=spread, note=f"{n_events:,} events")  # fmt: skip


def main() -> None:
    """Prints the table."""
    n_events = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    where = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(prefix="massrecon-store-", dir=where) as scratch:
        for events_per_file in (writer.EVENTS_PER_FILE, SIMULATED_PART):
            measure(Path(scratch) / "events", n_events, events_per_file)
            shutil.rmtree(Path(scratch) / "events")


if __name__ == "__main__":
    main()
