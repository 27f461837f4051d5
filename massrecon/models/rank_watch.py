"""Notices that one of several processes of a training hangs, and ends it.

Every further process writes a line a second, from a thread of its own, with the place its main
thread is at. Two things end a process: no line at all, as of one that was stopped or whose machine
has no memory left; and a first process that waits for the others without end, as for one that is
stuck in a file system or a lock. Times count only while the first process itself runs, so that a
training which was suspended by ctrl-Z or a closed lid goes on.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from massrecon.errors import ModelError

READY = "ready"
"""What a process writes when it is about to meet the others."""

_AT, _WAITING = "at ", "waiting "
_BEAT = 1.0
_LOOK = 0.5
_SILENT = 0.2
"""Share of the longest wait after which a process without any line is given up."""
_START = 600.0
"""Longest time to load torch and the events, on the slowest of disks [s]."""
_WAITS = ("torch/distributed/", "torch/autograd/graph.py", "torch/nn/parallel/distributed.py")
"""Files whose functions are where a process waits for the others; backward passes do, too."""


def say(line: str) -> None:
    """Writes a line to the standard output at once, whichever thread says it."""
    os.write(1, f"{line}\n".encode())


def tell_place(thread: int) -> None:
    """Says the place of a thread, once a second, without end."""
    while True:
        frame = sys._current_frames().get(thread)
        if frame is not None:
            say(f"{_WAITING if _waits(frame) else _AT}{_place(frame)}")
        time.sleep(_BEAT)


class RankWatch(threading.Thread):
    """Listens to the other processes of a training and ends one that hangs.

    Attributes:
        verdict: Why processes were ended; None while all is well.
    """

    def __init__(self, others: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
        """Takes the other processes, by number from 1 on, and the longest wait [s]."""
        super().__init__(name="massrecon-ranks", daemon=True)
        self.verdict: ModelError | None = None
        self._others = dict(enumerate(others, start=1))
        self._seconds, self._first = seconds, threading.get_ident()
        self._quiet = dict.fromkeys(self._others, 0.0)
        self._places: dict[int, str] = {}
        self._rest = dict.fromkeys(self._others, b"")
        self._news = threading.Condition()
        self._ready: set[int] = set()
        self._gone: set[int] = set()
        self._over = threading.Event()
        self._frame: FrameType | None = None
        self._waited = 0.0

    def await_ready(self) -> int | None:
        """Waits until all processes can meet; returns the number of one that ended before."""
        with self._news:
            self._news.wait_for(lambda: self._gone or self._all_ready())
            return min(self._gone, default=None)

    def end(self) -> None:
        """Stops listening."""
        self._over.set()
        self.join()
        self._frame = None

    def run(self) -> None:
        """Listens until it is told not to, or a process hangs."""
        looked = time.monotonic()
        while not self._over.is_set() and self.verdict is None:
            self._listen()
            now = time.monotonic()
            passed, looked = min(now - looked, 2 * _LOOK), now
            self._count(passed)
            self._judge()

    def _all_ready(self) -> bool:
        return len(self._ready) == len(self._others)

    def _listen(self) -> None:
        """Reads what there is to read; a little later, so that this costs nothing."""
        self._over.wait(_LOOK if self._all_ready() else _LOOK / 10)
        heard = {p.stdout: n for n, p in self._others.items() if p.stdout and n not in self._gone}
        for pipe in select.select(list(heard), [], [], 0)[0]:
            self._hear(heard[pipe], os.read(pipe.fileno(), 1 << 16))

    def _hear(self, number: int, said: bytes) -> None:
        with self._news:
            if not said:
                self._gone.add(number)
            *lines, self._rest[number] = (self._rest[number] + said).split(b"\n")
            for line in (raw.decode("utf-8", "replace") for raw in lines):
                if line == READY:
                    self._ready.add(number)
                elif line.startswith((_AT, _WAITING)):
                    self._places[number] = line
            self._quiet[number] = 0.0
            self._news.notify_all()

    def _count(self, passed: float) -> None:
        """Adds up for how long others have been silent, and the first process has waited."""
        for number in self._quiet:
            self._quiet[number] += passed
        if not self._all_ready():
            self._waited += passed
            return
        frame = sys._current_frames().get(self._first)
        # the frame is kept, so that another one at the same place is told from it
        same = frame is not None and frame is self._frame
        self._waited = self._waited + passed if same else 0.0
        self._frame = frame if frame is not None and _waits(frame) else None

    def _judge(self) -> None:
        """Ends processes that hang: the first process's connection to them then breaks."""
        for number in self._quiet.keys() - self._gone:
            limit = _SILENT * self._seconds if number in self._places else _START
            if self._quiet[number] > limit:
                self._condemn([number], f"gave no sign of life for {limit:.0f} s")
                return
        limit = self._seconds if self._all_ready() else max(self._seconds, _START)
        if self._waited > limit:
            stuck = [n for n in self._others if not self._places.get(n, "").startswith(_WAITING)]
            self._condemn(
                stuck or list(self._others),
                f"kept the others waiting for {limit:.0f} s",
            )

    def _condemn(self, numbers: list[int], reason: str) -> None:
        where = "; ".join(
            f"process {n} was {self._places.get(n, 'starting')}" for n in self._others
        )
        named = " and ".join(map(str, numbers))
        pids = ", ".join(str(self._others[n].pid) for n in numbers)
        self.verdict = ModelError(
            f"Process {named} of the training (process id {pids}) {reason} and was ended; "
            f"{where}. It was stopped or hangs: see that the machine has memory left and its disks "
            "answer, or set 'process_minutes' higher where it was only slow. The same call goes on "
            "from the last checkpoint."
        )
        for other in self._others.values():
            other.kill()
        with self._news:
            self._gone.update(self._others)
            self._news.notify_all()


def _waits(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename).as_posix()
    return any(part in path for part in _WAITS)


def _place(frame: FrameType) -> str:
    """Names the place of a frame, and where the package called it."""
    names = [_name(frame)]
    outer = frame.f_back
    while outer is not None and "massrecon" not in outer.f_globals.get("__name__", ""):
        outer = outer.f_back
    if outer is not None and "massrecon" not in frame.f_globals.get("__name__", ""):
        names.append(f"called from {_name(outer)}")
    return ", ".join(names)


def _name(frame: FrameType) -> str:
    module = frame.f_globals.get("__name__", "?")
    return f"in {module}.{frame.f_code.co_name}, line {frame.f_lineno}"
