"""The process that reads a file of others: ``python -m massrecon.events.importers.child``.

Damaged files make libraries crash, hang or ask for all memory. They are therefore read in a process
of its own, with a limit on its memory; see `isolated.read_chunks`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from massrecon.errors import MassReconError
from massrecon.events.card import load_card
from massrecon.events.importers.chunk import brief
from massrecon.events.importers.formats import reader_class
from massrecon.events.importers.messages import send, unpack

MEMORY = 4 << 30
"""What a reader may allocate [bytes]."""


def main() -> None:
    """Reads the file that is asked for on the standard input and writes its chunks."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # libraries that print do not disturb the chunks
        request = unpack(sys.stdin.buffer.read())
        limit_memory()
        answer(request, out)


def answer(request: dict[str, Any], out: BinaryIO) -> None:
    """Sends all chunks of a file, then what the reader left out; or the error that it ended in."""
    try:
        card = load_card(request["card"])
        reader = reader_class(request["format"])(Path(request["path"]), card, request["options"])
        for chunk in reader.chunks():
            send(out, ("chunk", chunk))
        send(out, ("end", getattr(reader, "skipped", {})))
    except MassReconError as error:
        send(out, ("error", type(error).__name__, str(error)))
    except MemoryError:
        what = f"asks for more than {MEMORY >> 30} GiB of memory: it is damaged."
        send(out, ("error", "ImportFileError", f"'{request['path']}' {what}"))
    except Exception as error:  # whatever a library does with a damaged file
        traceback.print_exc()
        what = f"cannot be read ({brief(error)}): it is damaged, fetch or make it again."
        send(out, ("error", "ImportFileError", f"'{request['path']}' {what}"))


def limit_memory() -> None:
    """Limits the memory of this process, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
