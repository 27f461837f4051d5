"""How a scan goes: one line for each state, the time left, and failures as they happen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from massrecon.runs.scan.point import FAILURES, LOG_FILE, Point, PointState, failure_line

_LINES = ("done", "running", "waiting", *FAILURES)
_BETWEEN = 30.0
"""Time between two lines of a log that is no terminal [s]."""


class ScanProgress:
    """Shows how many points are in which state.

    On a terminal the lines are redrawn; into a file goes a line now and then.

    Attributes:
        counts: Number of points by state.
    """

    def __init__(self, total: int, show: bool) -> None:
        self.total, self.counts = total, Counter(waiting=total)
        self._show, self._started = show, time.monotonic()
        self._console = Console(stderr=True)
        self._said = self._started
        columns = (TextColumn("{task.description:>8}"), BarColumn(), TextColumn("{task.fields[n]}"))
        self._bars = Progress(*columns, console=self._console, refresh_per_second=2)
        self._live = show and sys.stderr.isatty()
        self._rows = {
            state: self._bars.add_task(state, total=max(total, 1), n="", visible=False)
            for state in _LINES
        }

    def __enter__(self) -> ScanProgress:
        if self._live:
            self._bars.start()
        self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw(last=True)
        if self._live:
            self._bars.stop()

    def started(self, n: int = 1) -> None:
        """Counts points that were handed to workers."""
        self.counts["waiting"] -= n
        self.counts["running"] += n
        self._draw()

    def ended(self, point: Point, state: PointState) -> None:
        """Counts a point that ended, and names it if it failed."""
        self.counts["running"] -= 1
        self.counts[state.state] += 1
        if self._show and state.state in FAILURES:
            line = failure_line(point, state.state, state.error)
            text = f"{line} (points/{point.key}/{LOG_FILE})"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._draw()

    def put_back(self) -> None:
        """Counts a point that ended as waiting again."""
        self.counts["running"] -= 1
        self.counts["waiting"] += 1
        self._draw()

    def time_left(self) -> float | None:
        """Estimates the time left [s], None while nothing is known."""
        ended = sum(self.counts[state] for state in ("done", *FAILURES))
        left = self.counts["waiting"] + self.counts["running"]
        if not ended:
            return None
        return (time.monotonic() - self._started) / ended * left

    def _draw(self, last: bool = False) -> None:
        if not self._show:
            return
        if not self._live:
            self._say(last)
            return
        for state, row in self._rows.items():
            n = self.counts[state]
            text = f"{n:,} of {self.total:,}, {self._left()}" if state == "done" else f"{n:,}"
            self._bars.update(row, completed=n, n=text, visible=n > 0 or state == "done")

    def _say(self, last: bool) -> None:
        now = time.monotonic()
        if not last and now - self._said < _BETWEEN:
            return
        self._said = now
        parts = [f"{self.counts[s]:,} {s}" for s in _LINES if self.counts[s] or s == "done"]
        text = f"{', '.join(parts)} of {self.total:,}; {self._left()}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        left = self.time_left()
        return "time left unknown" if left is None else f"about {duration(left)} left"


def duration(seconds: float) -> str:
    """Writes a time for people: ``42 s``, ``3 min``, ``5 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
