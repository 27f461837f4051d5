"""Benchmark of the simulation: ``python tests/benchmarks/simulate.py [n_events]``.

Compares, within one run, the whole chain from generation to stored arrays with bare event
generation by Pythia (``nextBatch``, the same events), stage by stage, in processor time; then the
wall time of `simulate` with one and with two workers.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

import massrecon
from massrecon.events.detector import detect
from massrecon.events.part import BLOCK_EVENTS, GROUP_BLOCKS, PartMaker
from massrecon.events.pythia import Record
from massrecon.events.request import Request
from massrecon.events.selection import select
from massrecon.events.store import write_part
from massrecon.events.truth import check_masses, match_partons

MASSES = {"chi20": 600.0, "chi10": (50.0, 450.0)}
N_GROUPS = 8


def time_stages() -> dict[str, float]:
    """Measures the processor time of each stage [ms per generated event]."""
    request = Request.of("wino_udd", MASSES, 1, None)
    maker, spent = PartMaker(request), defaultdict(float)
    points = request.prior.draw(np.random.default_rng(1), GROUP_BLOCKS * (N_GROUPS + 1))
    stored = []

    def clock(stage: str, since: float) -> float:
        spent[stage] += time.process_time() - since
        return time.process_time()

    for group in range(N_GROUPS + 1):
        if group == 1:  # the first group loads modules and fills caches
            spent.clear()
        blocks = range(group * GROUP_BLOCKS, (group + 1) * GROUP_BLOCKS)
        colliders = [maker._collider(points[b], {0}) for b in blocks]
        if group == 0:
            colliders[0].initialise()
        now = time.process_time()
        for collider, b in zip(colliders, blocks, strict=True):
            collider._pythia.rndm.init(b + 1)
            collider._set_masses(points[b])
            collider._pythia.nextBatch(BLOCK_EVENTS, "skip")
        now = clock("bare nextBatch", now)
        records = [
            collider.generate(points[b], b + 1, BLOCK_EVENTS)
            for collider, b in zip(colliders, blocks, strict=True)
        ]
        now = clock("generation", now)
        record = Record.join(records)
        particles = record.stable()
        now = clock("flattening", now)
        masses = np.repeat(points[blocks], [r.n_events for r in records], axis=0)
        partons, matched = match_partons(request.card, record)
        check_masses(request.card, partons[matched], masses[matched])
        now = clock("truth", now)
        response = detect(particles, record.n_events, np.random.default_rng(group))
        now = clock("detector", now)
        arrays, events, _ = select(request.card, response, matched)
        clock("jets and selection", now)
        arrays |= {"partons": partons[events], "masses": masses[events]}
        stored.append(arrays | {"weight": np.ones(len(events)), "block": events})
    with tempfile.TemporaryDirectory() as folder:
        now = time.process_time()
        joined = {name: np.concatenate([a[name] for a in stored[1:]]) for name in stored[0]}
        write_part(Path(folder) / "part.parquet", joined, request.card)
        clock("writing", now)
    maker.close()
    n_generated = N_GROUPS * GROUP_BLOCKS * BLOCK_EVENTS
    return {stage: 1e3 * seconds / n_generated for stage, seconds in spent.items()}


def main() -> None:
    """Prints the table."""
    n_events = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    spent = time_stages()
    bare = spent.pop("bare nextBatch")
    print(
        f"\nprocessor time per generated event [ms], {N_GROUPS * GROUP_BLOCKS * BLOCK_EVENTS} "
        f"events\n  bare nextBatch        {bare:7.3f}"
    )
    for stage, milliseconds in spent.items():
        print(f"  {stage:20s}  {milliseconds:7.3f}  {milliseconds / bare:6.3f} x bare")
    total = sum(spent.values())
    print(f"  whole chain           {total:7.3f}  {total / bare:6.3f} x bare")

    wall = {}
    for workers in (1, 2):
        start = time.perf_counter()
        sample = massrecon.simulate(
            "wino_udd", n_events, MASSES, seed=2, workers=workers, progress=False
        )
        wall[workers] = time.perf_counter() - start
        generated = sample.provenance["n_generated"]
        print(
            f"{workers} worker(s): {n_events} selected events of {generated} in "
            f"{wall[workers]:.1f} s, {n_events / wall[workers]:.0f} selected events/s"
        )
    print(f"2 workers are {wall[1] / wall[2]:.2f} times as fast as one")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"peak memory of a worker: {peak:.0f} MB")


if __name__ == "__main__":
    main()
