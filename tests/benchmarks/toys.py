"""Speed of toys: ``python tests/benchmarks/toys.py [card] [events]``.

Prints the processor time of the phase space alone and of whole parts, and the time of a simulation
with 1 and 2 workers, the start of the workers included.
"""

from __future__ import annotations

import sys
import time

import torch

import massrecon
from massrecon.events.request import Request
from massrecon.events.toys import GROUP_EVENTS, PART_GROUPS, ToyMaker


def main() -> None:
    """Measures one card."""
    name = sys.argv[1] if len(sys.argv) > 1 else "antler"
    n_events = int(sys.argv[2]) if len(sys.argv) > 2 else 400_000
    torch.set_num_threads(1)
    request = Request.of(name, None, 1, {"contamination": 0.2})
    maker = ToyMaker(request)
    maker.make(0, lambda: 1, lambda *_: None)
    start = time.process_time()
    maker.make(1, lambda: 10**9, lambda *_: None)
    n_part = GROUP_EVENTS * PART_GROUPS
    print(f"{name}: {n_part / (time.process_time() - start):,.0f} events per CPU second, one part")
    for workers in (1, 2):
        start = time.perf_counter()
        made = massrecon.simulate(name, n_events, workers=workers, progress=False)
        seconds = time.perf_counter() - start
        print(f"{workers} worker(s): {len(made):,} events in {seconds:.1f} s, with start and files")


if __name__ == "__main__":
    main()
