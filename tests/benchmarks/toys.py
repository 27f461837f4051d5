"""Speed of toys: ``python tests/benchmarks/toys.py [card] [events]``.

Prints the processor time of whole parts and of their phase space alone, and the time of a
simulation with 1 and 2 workers, the start of the workers included.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from rows import in_turns, ratio_of, row

import massrecon
from massrecon.events.request import Request
from massrecon.events.toys import BLOCK_EVENTS, GROUP_EVENTS, PART_GROUPS, ToyMaker


def main() -> None:
    """Measures one card."""
    name = sys.argv[1] if len(sys.argv) > 1 else "antler"
    n_events = int(sys.argv[2]) if len(sys.argv) > 2 else 400_000
    torch.set_num_threads(1)
    request = Request.of(name, None, 1, {"contamination": 0.2})
    maker = ToyMaker(request)
    n_part = GROUP_EVENTS * PART_GROUPS
    rng = np.random.default_rng(1)
    masses = np.repeat(request.prior.draw(rng, GROUP_EVENTS // BLOCK_EVENTS), BLOCK_EVENTS, axis=0)
    whole, bare = in_turns(
        lambda: maker.make(1, lambda: 10**9, lambda *_: None),
        lambda: [maker._sample(masses, rng) for _ in range(PART_GROUPS)],
    )
    print(f"{name}: {n_part / min(whole):,.0f} events per CPU second, one part")
    ratio, spread = ratio_of(whole, bare)
    row(f"toys of {name}: smeared, selected, counted", ratio, "their phase space", spread=spread)
    for workers in (1, 2):
        start = time.perf_counter()
        made = massrecon.simulate(name, n_events, workers=workers, progress=False)
        seconds = time.perf_counter() - start
        print(f"{workers} worker(s): {len(made):,} events in {seconds:.1f} s, with start and files")


if __name__ == "__main__":
    main()
