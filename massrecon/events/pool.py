"""Worker processes of a simulation, started as programs of their own.

They do not import the user's script, so that a script without a ``__main__`` guard and a notebook
work alike, and they end when their parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import massrecon
from massrecon import errors

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")
_LOG_TAIL = 2000

SCRATCH = ".scratch"
"""Folder for the temporary files of the workers, beside the events."""


class WorkerPool:
    """Workers that make parts of one simulation."""

    def __init__(self, n_workers: int, job: Mapping[str, Any], folder: Path) -> None:
        """Starts the workers on a job; logs and temporary files go into `folder`."""
        self._scratch = folder / SCRATCH
        self._scratch.mkdir(exist_ok=True)
        self._answers: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._logs = [folder / f"worker-{i}.log" for i in range(n_workers)]
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        for i in range(n_workers):
            self._start(i, job)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def order(self, worker: int, part: int, limit: int) -> None:
        """Tells a worker to make a part, or lowers the limit of the one that it makes."""
        self._send(worker, {"part": part, "limit": limit})

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yields what the workers report.

        Raises:
            MassReconError: The error of a worker.
            GenerationError: If a worker died.
        """
        while True:
            worker, answer = self._answers.get()
            if answer is None:
                raise errors.GenerationError(self._obituary(worker))
            if "error" in answer:
                raise getattr(errors, answer["error"])(answer["message"])
            yield answer

    def close(self) -> None:
        """Stops all workers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                _close(pipe)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self, worker: int, job: Mapping[str, Any]) -> None:
        home = str(Path(massrecon.__file__).resolve().parents[1])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | dict.fromkeys(_THREADS, "1")
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        environment["TMPDIR"] = str(self._scratch.resolve())
        with self._logs[worker].open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "massrecon.events.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        self._processes.append(process)
        reader = threading.Thread(target=self._read, args=(worker, process), daemon=True)
        self._readers.append(reader)
        reader.start()
        self._send(worker, job)

    def _send(self, worker: int, message: Mapping[str, Any]) -> None:
        """Writes a line to a worker; that one is dead is for `answers` to report."""
        stdin = self._processes[worker].stdin
        with contextlib.suppress(BrokenPipeError):
            if stdin is not None:
                stdin.write(json.dumps(dict(message)) + "\n")
                stdin.flush()

    def _read(self, worker: int, process: subprocess.Popen[str]) -> None:
        """Passes on the answers of a worker, then None."""
        for line in process.stdout or ():
            try:
                self._answers.put((worker, json.loads(line)))
            except json.JSONDecodeError:
                break  # the worker was killed in the middle of a line
        self._answers.put((worker, None))

    def _obituary(self, worker: int) -> str:
        """Says how a worker ended and what it last wrote."""
        process = self._processes[worker]
        try:
            code: int | None = process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        log = self._logs[worker].read_text(encoding="utf-8", errors="replace").strip()
        return (
            f"A worker process ended unexpectedly (exit code {code}). Finished parts are kept: run "
            f"the same simulation again to go on. Last lines of its log:\n{log[-_LOG_TAIL:]}"
        )


def _close(pipe: Any) -> None:
    """Closes a pipe, even if something still waits to be written to a dead worker."""
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
