"""The process that runs points for a worker: ``python -m massrecon.runs.scan.child ISOLATION``.

It says ``ready`` when it is, then reads one request per line from its standard input, as JSON, and
answers each with one line. It ends, with all processes that it started, as soon as its input is
closed: no point outlives the worker that asked for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from massrecon.errors import MassReconError
from massrecon.runs.scan.point import LOG_FILE, is_done

LOCK_FILE = ".lock"


def main() -> None:
    """Answers requests until the input is closed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # what a point prints, in Python or below, goes to its log
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    execute = _executor(sys.argv[1])
    print("ready", file=answers, flush=True)
    while True:
        answer = _answer(json.loads(requests.get()), execute)
        print(json.dumps(answer), file=answers, flush=True)


def _executor(isolation: str) -> Callable[..., Any]:
    """Returns what runs a notebook: in a kernel of its own, or in this process."""
    if isolation == "kernel":
        from massrecon.runs.notebooks import run_notebook

        return run_notebook
    from massrecon.runs.scan.shared_process import SharedProcess

    return SharedProcess().run


def _listen(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    _end()


def _end() -> None:
    """Ends this process and all that it started, at once."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(1)


def _answer(request: dict[str, Any], execute: Callable[..., Any]) -> dict[str, Any]:
    """Runs one point and tells how it went: an empty ``error`` for success."""
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    screen = os.dup(2)
    os.dup2(log, 2)
    os.dup2(log, 1)
    try:
        with (folder / LOCK_FILE).open("w") as lock:
            # a worker that was given up may still be at this point
            fcntl.flock(lock, fcntl.LOCK_EX)
            return {"error": "" if is_done(folder) else _error_of(request, execute)}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(screen, 2)
        os.dup2(screen, 1)
        os.close(log)
        os.close(screen)


def _error_of(request: dict[str, Any], execute: Callable[..., Any]) -> str:
    try:
        execute(request["notebook"], request["parameters"], request["folder"])
    except (MassReconError, OSError) as error:
        print(error, file=sys.stderr)
        return str(error)
    except Exception as error:  # whatever a notebook's machinery raises must not end the scan
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main()
