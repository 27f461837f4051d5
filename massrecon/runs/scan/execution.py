"""Runs a point on a worker: hands it to a child process and watches its time and memory."""

from __future__ import annotations

import atexit
import dataclasses
import json
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from massrecon.errors import RunError
from massrecon.runs.scan.limits import Limits
from massrecon.runs.scan.point import Point, PointState, State, is_done

_LOOK = 0.25
"""Time between two looks at a running point [s]."""

_CLOSED = "its process ended without a word: it crashed, or the system killed it"
_MEGABYTE = 1e6

_children = threading.local()


def run_point(
    point: Point, scan: str, limits: Limits, memory: float | None, attempt: int
) -> PointState:
    """Runs a point, or finds that it is done, and leaves its state in its folder.

    Args:
        point: The point.
        scan: Folder of the scan.
        limits: What the point may take.
        memory: Largest memory of its processes [MB]; None for no limit.
        attempt: How often it has been started, this time included.
    """
    folder = point.folder(Path(scan))
    known = PointState.load(folder)
    if known is not None and is_done(folder):
        return known
    started = time.monotonic()
    state = PointState(
        state="running", attempts=attempt, host=socket.gethostname(),
        values=point.values, parameters=point.parameters,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    state.save(folder)
    request = {
        "notebook": str(Path(scan) / point.notebook), "parameters": point.parameters,
        "folder": str(folder),
    }  # fmt: skip
    outcome, error, peak = _watched(request, limits, memory)
    state = dataclasses.replace(
        state, state=outcome, error=error, peak_memory=round(peak, 1),
        seconds=round(time.monotonic() - started, 4),
    )  # fmt: skip
    state.save(folder)
    return state


def _watched(
    request: dict[str, Any], limits: Limits, memory: float | None
) -> tuple[State, str, float]:
    """Has a child run a request; kills it if it goes over a limit.

    Returns:
        What became of it, what went wrong, and the largest memory seen [MB].
    """
    child = _child(limits)
    child.ask(request)
    last = time.monotonic() + 60 * limits.minutes if limits.minutes is not None else None
    peak = 0.0
    while not child.has_answered(_LOOK):
        peak = max(peak, child.memory())
        if memory is not None and peak > memory:
            _drop(child)
            return "memory", f"It took {peak:.0f} MB of memory, more than {memory:.0f} MB.", peak
        if last is not None and time.monotonic() > last:
            _drop(child)
            return "timeout", f"It was not done after {limits.minutes:g} minutes.", peak
    try:
        error = child.answer()["error"]
    except RunError as closed:
        _drop(child)
        return "failed", str(closed), peak
    if limits.isolation == "kernel":
        _drop(child)
    return ("failed", error, peak) if error else ("done", "", peak)


class _Child:
    """A process that runs points, see `massrecon.runs.scan.child`."""

    def __init__(self, isolation: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "massrecon.runs.scan.child", isolation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # ctrl-C is for the scan, which ends its points itself
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is ready, or it is gone, which the answer will tell

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer will say so

    def has_answered(self, seconds: float) -> bool:
        """Waits for an answer, or for the end of the process, for some time."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def answer(self) -> dict[str, Any]:
        """Reads the answer.

        Raises:
            RunError: If the process ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            code = self._process.wait()
            raise RunError(f"Failed: {_CLOSED} (exit code {code}).")
        return json.loads(line)

    def is_alive(self) -> bool:
        """Tells whether the process still runs."""
        return self._process.poll() is None

    def memory(self) -> float:
        """Returns the memory of the process and all that it started [MB]."""
        total = 0
        for process in self._family():
            try:
                total += process.memory_info().rss
            except _gone():
                continue
        return total / _MEGABYTE

    def end(self) -> None:
        """Ends the process and all that it started."""
        for process in self._family():
            try:
                process.kill()
            except _gone():
                continue
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    def _family(self) -> list[Any]:
        import psutil

        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []


def _gone() -> type[Exception]:
    import psutil

    return psutil.Error


def _child(limits: Limits) -> _Child:
    """Returns the idle child of this thread of the worker, or a new one."""
    child = getattr(_children, "idle", None)
    if child is None or not child.is_alive():
        child = _children.idle = _Child(limits.isolation)
        atexit.register(child.end)
    return child


def _drop(child: _Child) -> None:
    child.end()
    atexit.unregister(child.end)
    _children.idle = None
