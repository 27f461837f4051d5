"""One row of the table of ratios: what took how much of what else, inside one run.

A benchmark calls `row` for each ratio that it measured. Run by itself it prints them; under
`tests/benchmarks/everything.py` the rows also go to the file that the variable ``MASSRECON_ROWS``
names, one line of JSON each, at once: what a benchmark measured before it failed is not lost.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

VARIABLE = "MASSRECON_ROWS"


def row(
    what: str,
    ratio: float,
    than: str,
    *,
    spread: float | None = None,
    unit: str = "processor time",
    note: str = "",
) -> None:
    """Hands over one ratio.

    Args:
        what: What was measured.
        ratio: How much of it there is for one of `than`.
        than: What it is compared with.
        spread: Scatter of the ratio over its repeats, or its statistical error; None if it was
            measured once.
        unit: Of what the ratio is: processor time, time on the clock, memory, speed.
        note: What else has to be known.
    """
    about = {"what": what, "ratio": ratio, "spread": spread, "than": than, "unit": unit}
    scatter = "" if spread is None else f" ± {spread:.2g}"
    print(f"= {what}: {ratio:.3g}{scatter} of {than} ({unit}){' ' * bool(note)}{note}", flush=True)
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, "note": note}, ensure_ascii=False) + "\n")


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Returns the time of one call [s]: of the processor, or on the clock for another device."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def in_turns(
    *works: Callable[[], object], repeats: int = 5, device: str = "cpu"
) -> list[list[float]]:
    """Returns the times of each piece of work, in turns, after one call of each to warm up."""
    for work in works:
        work()
    times = [[seconds(work, device) for work in works] for _ in range(repeats)]
    return [list(column) for column in zip(*times, strict=True)]


def ratio_of(times: Sequence[float], others: Sequence[float]) -> tuple[float, float | None]:
    """Returns the ratio of the medians, and the scatter of the ratio from turn to turn."""
    ratio = statistics.median(times) / statistics.median(others)
    if min(len(times), len(others)) < 2:
        return ratio, None
    scatter = (statistics.stdev(t) / statistics.mean(t) for t in (times, others))
    return ratio, ratio * math.hypot(*scatter)


def _wait(device: str) -> None:
    """Waits for what a device was asked to do."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
