"""A process that reads each file in a fork of itself, for tests that read thousands of bad files.

What happens in the fork is what happens in the process that reads for `import_events`: a crash or
a hang is reported as such. Run as ``python -m tests.forked``.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from massrecon import errors
from massrecon.events.card import ProcessCard
from massrecon.events.importers import child
from massrecon.events.importers.chunk import Chunk, ReadOptions
from massrecon.events.importers.messages import pack, unpack

PATIENCE = 20.0
ROOT = Path(__file__).resolve().parents[1]


def serve() -> None:
    """Answers requests until the input ends."""
    for name in ("awkward", "h5py", "pyarrow.parquet", "uproot"):
        importlib.import_module(name)  # once, before the forks
    for name in ("delphes", "hepmc", "leshouches", "spanet", "table"):
        importlib.import_module(f"massrecon.events.importers.{name}")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while length := sys.stdin.buffer.read(8):
        request = unpack(sys.stdin.buffer.read(int.from_bytes(length, "little")))
        with tempfile.TemporaryFile() as answer:
            status = _fork(request, answer)
            answer.seek(0)
            content = pickle.dumps((status, answer.read()))
        out.write(len(content).to_bytes(8, "little") + content)
        out.flush()


def _fork(request: dict[str, Any], answer: Any) -> str:
    """Reads a file in a fork; says how that ended."""
    fork = os.fork()
    if fork == 0:
        child.limit_memory()
        child.answer(request, answer)
        os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(fork, os.WNOHANG)
        if ended:
            return "ended" if status == 0 else f"crashed ({status})"
        time.sleep(0.002)
    os.kill(fork, signal.SIGKILL)
    os.waitpid(fork, 0)
    return "stuck"


class ForkServer:
    """The process, seen from the tests.

    Attributes:
        crashes: How many readers crashed or were stuck so far.
    """

    def __init__(self) -> None:
        self.crashes = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def reader(self, format: str, path: Path, card: ProcessCard, options: ReadOptions) -> Any:
        """Stands in for `IsolatedReader`."""
        content = card.to_dict()
        request = {"format": format, "path": str(path), "card": content, "options": options}
        return ForkedReader(self, request)

    def ask(self, request: dict[str, Any]) -> tuple[str, bytes]:
        """Returns how the reading ended and what was read."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        content = pack(request)
        self._process.stdin.write(len(content).to_bytes(8, "little") + content)
        self._process.stdin.flush()
        length = int.from_bytes(self._process.stdout.read(8), "little")
        status, answer = pickle.loads(self._process.stdout.read(length))
        self.crashes += status != "ended"
        return status, answer


class ForkedReader:
    """A reader whose chunks come from a fork."""

    def __init__(self, server: ForkServer, request: dict[str, Any]) -> None:
        self.server, self.request = server, request
        self.skipped: dict[str, int] = {}

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries."""
        status, answer = self.server.ask(self.request)
        if status != "ended":
            raise errors.ImportFileError(f"Reading '{self.request['path']}' {status}.")
        pipe = io.BytesIO(answer)
        while length := pipe.read(8):
            kind, *content = unpack(pipe.read(int.from_bytes(length, "little")))
            if kind == "error":
                raise getattr(errors, content[0])(content[1])
            if kind == "end":
                self.skipped = content[0]
                return
            yield content[0]


if __name__ == "__main__":
    serve()
