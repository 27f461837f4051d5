"""Benchmark of the simulation: ``python tests/benchmarks/simulate.py [n_events] [n_parts]``.

Compares, within one run, the whole chain from generation to stored parts with bare event generation
by Pythia (``nextBatch`` of the same events), stage by stage, in processor time: part by part in
turns, so that a busy machine slows both alike, and with the memory settings of a worker for both.
Before that the wall time of `simulate` with one and with two workers, in turns as well, the memory
of a worker, and selected events per second. With 0 events only the stages are measured.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from rows import ratio_of, row

import massrecon
from massrecon.events import hard, part, pool
from massrecon.events.hard import BLOCK_EVENTS, BLOCKS_PER_PART, EVENTS_PER_PART
from massrecon.events.part import PartMaker
from massrecon.events.partfile import write_part
from massrecon.events.pythia import SEED_MAX, Collider, Record
from massrecon.events.request import Request

MASSES = {"chi20": 600.0, "chi10": (50.0, 450.0)}
STAGES: dict[str, list[tuple[Any, str]]] = {
    "initialising": [(Collider, "restart")],
    "generation": [(Collider, "generate")],
    "flattening": [(Record, "stable"), (hard.Record, "join")],
    "truth": [
        (part, "match_partons"),
        (part, "check_matched"),
        (part, "check_masses"),
        (part, "heavy_flavour"),
    ],
    "detector": [(part, "detect")],
    "jets and selection": [(part, "select")],
    "counting": [(part, "count_cells"), (Collider, "tally"), (hard, "_since")],
}


def timed(function: Callable[..., Any], stage: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Adds the processor time of a function to a stage."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] += time.process_time() - start

    return wrapper


def watch(spent: dict[str, float]) -> None:
    """Puts a clock on every stage."""
    for stage, functions in STAGES.items():
        for owner, name in functions:
            function = getattr(owner, name)
            clocked = timed(function, stage, spent)
            # a class method is bound already
            setattr(
                owner, name, staticmethod(clocked) if hasattr(function, "__self__") else clocked
            )


def generate_bare(source: hard.ProcessSource, number: int) -> float:
    """Generates the collisions of a part with Pythia alone; returns its processor time [s]."""
    rng = np.random.default_rng([source.request.seed, number])
    masses = source.request.prior.draw(rng, BLOCKS_PER_PART)
    seeds = rng.integers(1, SEED_MAX, BLOCKS_PER_PART)
    collider = source.collider(source.tiers.index(masses[0]), fresh=True)
    start = time.process_time()
    for point, seed in zip(masses, seeds.tolist(), strict=True):
        collider._pythia.rndm.init(seed)
        collider._set_masses(point)
        collider._pythia.nextBatch(BLOCK_EVENTS, "skip")
    return time.process_time() - start


def time_stages(n_parts: int) -> tuple[list[float], dict[str, list[float]]]:
    """Measures bare Pythia and each stage of the chain, part by part [ms per generated event]."""
    request = Request.of("wino_udd", MASSES, 1, None)
    maker, bare_source = PartMaker(request), hard.ProcessSource(request)
    spent: dict[str, float] = defaultdict(float)
    watch(spent)
    bare, stages = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_parts + 1):
            bare.append(generate_bare(bare_source, number))
            spent.clear()
            start = time.process_time()
            made = maker.make(number, lambda: 2**62, lambda *_: None)
            inside = time.process_time()
            write_part(Path(folder) / "part.parquet", made.arrays, request.card)
            spent["writing"] += time.process_time() - inside
            spent["whole chain"] += time.process_time() - start
            stages.append(dict(spent))
    maker.close()
    bare_source.close()
    scale = 1e3 / EVENTS_PER_PART
    names = [*STAGES, "writing", "whole chain"]
    found = {n: [scale * part.get(n, 0.0) for part in stages[1:]] for n in names}
    return [scale * part for part in bare[1:]], found  # the first part loads modules


def print_stages(n_parts: int) -> None:
    """Prints the table of the stages."""
    bares, parts = time_stages(n_parts)
    report_ratios(bares, parts)
    bare = sum(bares) / n_parts
    spent = {stage: sum(times) / n_parts for stage, times in parts.items()}
    whole = spent.pop("whole chain")
    spent["the rest"] = whole - sum(spent.values())
    print(
        f"\nprocessor time per generated event [ms], {n_parts * EVENTS_PER_PART:,} events\n"
        f"  bare nextBatch        {bare:7.3f}"
    )
    for stage, milliseconds in spent.items():
        print(f"  {stage:20s}  {milliseconds:7.3f}  {milliseconds / bare:6.3f} x bare")
    print(f"  whole chain           {whole:7.3f}  {whole / bare:6.3f} x bare")
    started = whole - spent["initialising"]
    print(f"  without initialising  {started:7.3f}  {started / bare:6.3f} x bare")


def report_ratios(bare: list[float], parts: dict[str, list[float]]) -> None:
    """Hands over what the chain and its detector cost, for each collision."""
    peer = "Pythia's own generation of the same collisions"
    chain = zip(parts["whole chain"], parts["initialising"], strict=True)
    running = [whole - start for whole, start in chain]
    for what, times in (
        ("from collisions to stored events, once Pythia has started", running),
        ("the detector alone", parts["detector"]),
    ):
        ratio, spread = ratio_of(times, bare)
        row(what, ratio, peer, spread=spread)


def time_workers(n_events: int, workers: int) -> float:
    """Simulates and returns the wall time [s]."""
    start = time.perf_counter()
    sample = massrecon.simulate(
        "wino_udd", n_events, MASSES, seed=2, workers=workers, progress=False
    )
    seconds = time.perf_counter() - start
    print(
        f"{workers} worker(s): {n_events:,} selected events of "
        f"{sample.provenance['n_generated']:,} in {seconds:.1f} s, "
        f"{n_events / seconds:.0f} selected events/s; load of the machine "
        f"{os.getloadavg()[0]:.1f}"
    )
    return seconds


def main() -> None:
    """Prints all."""
    n_events = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    n_parts = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    if not pool.MEMORY.items() <= os.environ.items():  # the C library reads them at the start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | pool.MEMORY)
    massrecon.Events  # noqa: B018  (loads torch, which takes seconds and is not to be timed)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    wall: dict[int, list[float]] = {1: [], 2: []}
    for workers in (1, 2, 2, 1) if n_events else ():
        wall[workers].append(time_workers(n_events, workers))
    if n_events:
        print(f"2 workers are {min(wall[1]) / min(wall[2]):.2f} times as fast as one")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"peak memory of a worker: {peak:.0f} MB")
    print_stages(n_parts)


if __name__ == "__main__":
    main()
