"""A worker process of a simulation: reads part numbers, makes the parts, reports progress.

It is started as ``python -m massrecon.events.worker``. The first line on standard input describes
the job; each further line is a part to make, or a lower limit for the part being made. Answers are
JSON lines on standard output. Whatever Pythia prints goes to standard error instead, which the
parent collects in a log file. The worker ends when its standard input does, so it never outlives
its parent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from massrecon.errors import MassReconError
from massrecon.events.part import PartMaker
from massrecon.events.request import Request
from massrecon.events.store import part_name, write_part


class _Orders:
    """The lines of standard input, read in the background."""

    def __init__(self, source: TextIO) -> None:
        self._source = source
        self._parts: queue.Queue[int] = queue.Queue()
        self._limits: dict[int, int] = {}
        self.job = json.loads(source.readline() or "null")
        threading.Thread(target=self._read, daemon=True).start()

    def next_part(self) -> int:
        """Waits for the next part to make."""
        return self._parts.get()

    def limit(self, part: int) -> int:
        """Returns after how many selected events a part may end."""
        return self._limits[part]

    def _read(self) -> None:
        for line in self._source:
            order = json.loads(line)
            new = order["part"] not in self._limits
            self._limits[order["part"]] = order["limit"]
            if new:
                self._parts.put(order["part"])
        os._exit(0)


def main() -> None:
    """Makes parts until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    orders = _Orders(sys.stdin)

    def tell(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")

    if orders.job is None:
        return
    try:
        _work(orders, tell)
    except MassReconError as error:
        tell(error=type(error).__name__, message=str(error))


def _work(orders: _Orders, tell: Any) -> None:
    """Makes the parts that are ordered, one after the other."""
    job = orders.job
    request = Request.of(job["card"], job["masses"], job["seed"], job["settings"])
    folder, maker = Path(job["folder"]), PartMaker(request)
    while True:
        number = orders.next_part()

        def report(generated: int, selected: int, number: int = number) -> None:
            tell(part=number, generated=generated, selected=selected)

        part = maker.make(number, lambda number=number: orders.limit(number), report)
        digest = write_part(folder / part_name(number), part.arrays, request.card)
        tell(
            part=number,
            done={
                "number": number,
                "n_events": len(part.arrays["weight"]),
                "sha256": digest,
                "complete": part.complete,
                "groups": part.groups,
            },
        )


if __name__ == "__main__":
    main()
