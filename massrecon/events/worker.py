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
from typing import TYPE_CHECKING, Any, TextIO

from massrecon.errors import MassReconError, StoreError
from massrecon.events.manifest import part_name
from massrecon.events.part import PartMaker
from massrecon.events.partfile import write_part
from massrecon.events.plan import Amount
from massrecon.events.request import Request

if TYPE_CHECKING:
    from massrecon.events.toys import ToyMaker

_FREE = "Free some space and run the same command again: finished parts are kept."


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
    except OSError as error:
        message = (
            f"A temporary file in '{orders.job['folder']}' cannot be written: {error}. {_FREE}"
        )
        tell(error=StoreError.__name__, message=message)


def _work(orders: _Orders, tell: Any) -> None:
    """Makes the parts that are ordered, one after the other."""
    job = orders.job
    request = Request.of(job["card"], job["masses"], job["seed"], job["settings"])
    folder, maker = Path(job["folder"]), maker_of(request)
    amount = Amount(**job["amount"])
    while True:
        number = orders.next_part()

        groups: list[int] = []

        def report(
            generated: int, selected: int, number: int = number, groups: list[int] = groups
        ) -> None:
            groups.append(selected)
            tell(part=number, generated=generated, selected=selected)

        def limit(number: int = number, groups: list[int] = groups) -> int:
            enough = len(groups) >= amount.groups_of(number)
            return 0 if enough else orders.limit(number)

        part = maker.make(number, limit, report)
        entry = {
            "number": number,
            "n_events": len(part.arrays["weight"]),
            "complete": part.complete,
            "groups": part.groups,
        }
        about = entry | {"request": request.to_dict()}
        digest = write_part(folder / part_name(number), part.arrays, request.card, about)
        tell(part=number, done=entry | {"sha256": digest})


def maker_of(request: Request) -> PartMaker | ToyMaker:
    """Chooses what makes the parts of a card; toys need neither Pythia nor a detector."""
    if request.settings.phase_space is None:
        return PartMaker(request)
    from massrecon.events.toys import ToyMaker

    return ToyMaker(request)


if __name__ == "__main__":
    main()
