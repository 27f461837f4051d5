"""Programs that fail on purpose, for `test_faults`: ``python -m tests.faulty worker|ACTION …``.

The worker makes parts of wino_udd from random numbers, so that it starts in a second; all else is
the real thing. The environment variable FAULT says what goes wrong: ``who:function:count:signal``
sends a signal when a function is called for the count-th time. `who` is ``self`` or ``parent``;
the function is given as ``module/attribute``. In a worker only those with the prefix ``worker-``
count, elsewhere only the others. FAULT_ONCE names a file that keeps a fault from happening twice.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.events import generator, pool, worker, writer
from massrecon.events.card import load_card
from massrecon.events.cells import count_cells
from massrecon.events.hard import GROUP_EVENTS, PART_GROUPS
from massrecon.events.part import Part
from massrecon.events.request import Request

COMMAND = (sys.executable, "-m", "tests.faulty", "worker")
MASSES = {"chi20": 600.0, "chi10": (50.0, 450.0)}
SELECTED = 300
PER_PART = SELECTED * PART_GROUPS
SEED = 5


def random_events(n_events: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Makes event arrays of wino_udd without any physics."""
    card = load_card("wino_udd")
    slots = len(card.slots)
    p3 = rng.normal(0.0, 100.0, (n_events, slots, 3))
    energy = np.sqrt((p3**2).sum(-1, keepdims=True)) + 0.1
    return {
        "p4": np.concatenate([p3, energy], axis=-1),
        "present": np.ones((n_events, slots), bool),
        "charge": rng.integers(-1, 2, (n_events, slots)).astype(np.int8),
        "flavour": np.zeros((n_events, slots), np.int8),
        "ptmiss": rng.normal(0.0, 50.0, (n_events, 2)),
        "weight": rng.uniform(0.5, 1.5, n_events),
        "partons": rng.normal(0.0, 100.0, (n_events, len(card.parton_names), 4)),
    }


class FastMaker:
    """Makes parts as `PartMaker` does, of random numbers."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def make(
        self, number: int, limit: Callable[[], int], progress: Callable[[int, int], None]
    ) -> Part:
        rng = np.random.default_rng([self.request.seed, number])
        made, groups = [], []
        for group in range(1, PART_GROUPS + 1):
            arrays, about = self._group(number, rng)
            made.append(arrays)
            groups.append(about)
            progress(GROUP_EVENTS * group, SELECTED * group)
            wait_at_gate(number)
            if SELECTED * group >= limit():
                break
        joined = {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}
        return Part(joined, groups, len(groups) == PART_GROUPS)

    def _group(
        self, number: int, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = random_events(SELECTED, rng)
        masses = self.request.prior.draw(rng, GROUP_EVENTS)
        selected = np.arange(GROUP_EVENTS) < SELECTED
        arrays |= {"masses": masses[selected], "block": np.full(SELECTED, number)}
        cells = count_cells(self.request.prior, masses, np.ones(GROUP_EVENTS), selected)
        flow = {"generated": GROUP_EVENTS, "selected": SELECTED}
        return arrays, {"cut_flow": flow, "cells": cells}


def wait_at_gate(number: int) -> None:
    """Waits, in every part but the first, for a file to be there."""
    gate = os.environ.get("FAULT_GATE")
    while gate and number > 0 and not Path(gate).exists():
        time.sleep(0.02)


def arm(in_worker: bool) -> None:
    """Prepares the fault that the environment asks for."""
    who, place, count, name = os.environ.get("FAULT", ":::").split(":")
    if not who or who.startswith("worker-") != in_worker:
        return
    target = os.getppid() if who.endswith("parent") else os.getpid()
    module, _, path = place.partition("/")
    *owners, attribute = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, attribute), 0

    @functools.wraps(original)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        once = os.environ.get("FAULT_ONCE")
        if calls == int(count) and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            os.kill(target, getattr(signal, name))
            time.sleep(0.2 if target != os.getpid() else 0.0)
        return original(*args, **kwargs)

    setattr(owner, attribute, faulty)


def simulate(out: str, n_events: str, workers: str) -> None:
    """Simulates without loading the events."""
    generator.simulate(
        "wino_udd", int(n_events), MASSES, seed=SEED, workers=int(workers), out=out, progress=False
    )


def save(out: str, n_events: str, append: str = "") -> None:
    """Writes events in pieces of 100, as an import does, or adds them."""
    from massrecon.events.store import StoreWriter

    rng = np.random.default_rng(int(n_events))
    made = {"made by": "tests", "events": int(n_events)}
    with StoreWriter(out, load_card("wino_udd"), provenance=made, append=bool(append)) as writer:
        for _ in range(int(n_events) // 100):
            writer.write(random_events(100, rng))


def merge(out: str, *sources: str) -> None:
    """Joins folders."""
    from massrecon.events.merging import merge_stores

    merge_stores(sources, out)


def import_file(out: str, source: str) -> None:
    """Imports a file."""
    from massrecon.events.importers import importing

    importing._result = lambda *_: None  # looked at elsewhere
    importing.import_events(source, "wino_udd", out, progress=False)


ACTIONS = {"simulate": simulate, "save": save, "merge": merge, "import": import_file}


def main() -> None:
    """Does what the command line says, with a fault."""
    action, *arguments = sys.argv[1:]
    pool.COMMAND = COMMAND
    if action == "worker":
        arm(in_worker=True)
        worker.maker_of = FastMaker
        worker.main()
        return
    writer.EVENTS_PER_FILE = 250
    if action != "cli":  # the events are looked at elsewhere: torch takes seconds to start
        generator.load_events = lambda folder: None
    arm(in_worker=False)
    if action == "cli":
        from massrecon.cli import main as command_line

        # a test that runs in the background hands on that ctrl-C is ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["massrecon", *arguments]
        command_line()
    else:
        ACTIONS[action](*arguments)


if __name__ == "__main__":
    main()
