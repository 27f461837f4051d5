"""Reading in a process of its own, so that no damaged file takes ours down."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from massrecon import errors
from massrecon.events.card import ProcessCard
from massrecon.events.children import child_environment
from massrecon.events.importers.chunk import Chunk, ReadOptions
from massrecon.events.importers.messages import LENGTH, pack, unpack

PATIENCE = 300.0
"""How long a reader may be silent before it counts as stuck [s]."""

SPEED = 1e6
"""What a reader that checks a whole file before it answers reads at least [bytes/s]."""

_LOG_TAIL = 600


class IsolatedReader:
    """A reader in a process of its own.

    Attributes:
        skipped: How many bad events the reader itself left out, by what was wrong with them.
    """

    def __init__(self, format: str, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        self.path = path
        self.skipped: dict[str, int] = {}
        self._request = {
            "format": format,
            "path": str(path),
            "card": card.to_dict(),
            "options": options,
        }
        self._patience = PATIENCE + path.stat().st_size / SPEED
        self._n_read = 0

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries in their order.

        Raises:
            ImportFileError: If the file cannot be read, or the process crashes or is stuck.
        """
        with tempfile.TemporaryFile() as log:
            process = _start(log)
            try:
                yield from self._answers(process, log)
            finally:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(BrokenPipeError):
                        if pipe is not None:
                            pipe.close()

    def _answers(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> Iterator[Chunk]:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # that it is dead shows below
            process.stdin.write(pack(self._request))
            process.stdin.close()
        while True:
            length = self._read(process, LENGTH, log)
            kind, *content = unpack(self._read(process, int.from_bytes(length, "little"), log))
            if kind == "end":
                self.skipped = content[0]
                return
            if kind == "error":
                raise getattr(errors, content[0])(content[1])
            self._n_read = content[0].stop
            yield content[0]

    def _read(self, process: subprocess.Popen[bytes], length: int, log: IO[bytes]) -> bytes:
        """Reads so many bytes, but does not wait for ever."""
        assert process.stdout is not None
        handle, pieces, missing = process.stdout.fileno(), [], length
        deadline = time.monotonic() + self._patience
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while missing > 0:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    raise self._failure(
                        f"got stuck: nothing was read for {self._patience:.1f} s", log
                    )
                piece = os.read(handle, min(missing, 1 << 20))
                if not piece:
                    raise self._failure(f"crashed (exit code {process.wait()})", log)
                pieces.append(piece)
                missing -= len(piece)
        return b"".join(pieces)

    def _failure(self, what: str, log: IO[bytes]) -> errors.ImportFileError:
        log.seek(0)
        tail = log.read()[-_LOG_TAIL:].decode("utf-8", "replace").strip()
        return errors.ImportFileError(
            f"Reading '{self.path}' {what} after entry {self._n_read}: the file is damaged, fetch "
            f"or make it again.{' Last lines of the log: ' + tail if tail else ''}"
        )


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts the process; it does not import the user's script."""
    return subprocess.Popen(
        [sys.executable, "-m", "massrecon.events.importers.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=child_environment(threads=1),
    )
