"""Worker processes of a simulation, started as programs of their own.

They do not import the user's script, so that a script without a ``__main__`` guard and a notebook
work alike, and they end when their parent does. A worker that dies or falls silent is replaced
once: parts are pure functions of the request, so that the events stay the same.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from massrecon import errors
from massrecon.events.children import child_environment

_LOG_TAIL = 2000

COMMAND = (sys.executable, "-m", "massrecon.events.worker")
"""What starts a worker."""

MEMORY = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""Lets the C library of Linux keep freed memory for the next events.

To give it back and ask for it again costs a few per cent of the time.
"""

SCRATCH = ".scratch"
"""Folder for the temporary files of the workers, beside the events."""

_BEAT = 0.5  # [s] between two calls of `waited`

PATIENCE = 180.0
"""After how many seconds without a sign a busy worker is taken for dead and replaced.

It gives one after every group of collisions, which takes seconds."""


@dataclass
class _Worker:
    """One worker: its process, its orders, and when it was last heard of."""

    process: subprocess.Popen[str]
    reader: threading.Thread
    log: Path
    limits: dict[int, int] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    restarted: bool = False


class WorkerPool:
    """Workers that make parts of one simulation."""

    def __init__(self, n_workers: int, job: Mapping[str, Any], folder: Path) -> None:
        """Starts the workers on a job; logs and temporary files go into `folder`.

        Raises:
            StoreError: If `folder` cannot be written.
        """
        self._folder, self._job = folder, dict(job)
        self._answers: queue.Queue[tuple[int, int, dict[str, Any] | None]] = queue.Queue()
        self._workers: dict[int, _Worker] = {}
        self._ended: list[_Worker] = []
        try:
            (folder / SCRATCH).mkdir(exist_ok=True)
            for i in range(n_workers):
                self._workers[i] = self._start(i)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise errors.StoreError(
                    f"The workers cannot write to '{folder}': {errors.reason(error)}. Free some "
                    "space and run the same command again."
                ) from error
            raise

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def order(self, worker: int, part: int, limit: int) -> None:
        """Tells a worker to make a part, or lowers the limit of the one that it makes."""
        known = self._workers[worker]
        if not known.limits:
            known.heard = time.monotonic()
        known.limits[part] = limit
        _send(known, {"part": part, "limit": limit})

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yields what the workers report.

        Raises:
            MassReconError: The error of a worker.
            GenerationError: If a worker died, and so did the one in its place.
        """
        while True:
            try:
                number, pid, answer = self._answers.get(timeout=min(_BEAT, PATIENCE / 10))
            except queue.Empty:
                self.waited()
                self._kill_silent()
                continue
            worker = self._workers[number]
            if pid != worker.process.pid:
                continue  # of a worker that was replaced
            worker.heard = time.monotonic()
            if answer is None:
                self._replace(number)
            elif "error" in answer:
                raise getattr(errors, answer["error"])(answer["message"])
            else:
                if "done" in answer:
                    worker.limits.pop(answer["part"], None)
                yield answer
                self._kill_silent()

    def waited(self) -> None:
        """Is called twice a second while nothing is heard; one that raises ends the simulation."""

    def close(self) -> None:
        """Stops all workers and removes their temporary files."""
        workers = [*self._workers.values(), *self._ended]
        for worker in workers:
            worker.process.terminate()
            worker.process.send_signal(signal.SIGCONT)  # one that was stopped
        for worker in workers:
            try:
                worker.process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.reader.join()
            for pipe in (worker.process.stdin, worker.process.stdout):
                _close(pipe)
            for leftover in self._folder.glob(f".*.{worker.process.pid}.tmp"):
                leftover.unlink(missing_ok=True)
        shutil.rmtree(self._folder / SCRATCH, ignore_errors=True)

    def _start(self, number: int) -> _Worker:
        environment = MEMORY | child_environment(threads=1)
        environment["TMPDIR"] = str((self._folder / SCRATCH).resolve())
        log_path = self._folder / f"worker-{number}.log"
        with log_path.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        reader = threading.Thread(target=self._read, args=(number, process), daemon=True)
        reader.start()
        worker = _Worker(process, reader, log_path)
        _send(worker, self._job)
        return worker

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        """Passes on the answers of a worker, then None."""
        for line in process.stdout or ():
            try:
                self._answers.put((number, process.pid, json.loads(line)))
            except json.JSONDecodeError:
                break  # the worker was killed in the middle of a line
        self._answers.put((number, process.pid, None))

    def _replace(self, number: int) -> None:
        """Starts a new worker in place of a dead one, with its orders; but only once."""
        dead = self._workers[number]
        obituary = _obituary(dead)
        if dead.restarted:
            raise errors.GenerationError(
                f"{obituary}\nIt was the second in a row. Finished parts are kept: run the same "
                "simulation again to go on."
            )
        warnings.warn(f"{obituary}\nA new one makes its part again.", stacklevel=4)
        self._ended.append(dead)
        fresh = self._workers[number] = self._start(number)
        fresh.restarted = True
        for part, limit in dead.limits.items():
            self.order(number, part, limit)

    def _kill_silent(self) -> None:
        """Kills busy workers that gave no sign for too long; they are then replaced."""
        for worker in self._workers.values():
            if worker.limits and time.monotonic() - worker.heard > PATIENCE:
                worker.process.kill()


def _send(worker: _Worker, message: Mapping[str, Any]) -> None:
    """Writes a line to a worker; that one is dead is for `answers` to report."""
    stdin = worker.process.stdin
    with contextlib.suppress(BrokenPipeError):
        if stdin is not None:
            stdin.write(json.dumps(dict(message)) + "\n")
            stdin.flush()


def _obituary(worker: _Worker) -> str:
    """Says how a worker ended and what it last wrote."""
    try:
        code: int | None = worker.process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        code = None
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    text = f"A worker process ended unexpectedly ({how})"
    if worker.limits:
        text += f" while it made part {min(worker.limits)}"
    log = worker.log.read_text(encoding="utf-8", errors="replace").strip()
    return f"{text}." + (f" Last lines of '{worker.log}':\n{log[-_LOG_TAIL:]}" if log else "")


def _close(pipe: Any) -> None:
    """Closes a pipe, even if something still waits to be written to a dead worker."""
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
