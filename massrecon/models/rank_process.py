"""A further process of a training; see `massrecon.models.ranks`.

It is started as ``python -m massrecon.models.rank_process FOLDER NUMBER``, and ends with its
standard input at the latest.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from massrecon.models.rank_watch import READY, say, tell_place
from massrecon.models.training import join_training


def main() -> None:
    """Takes part in the training whose orders are in a folder."""
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    main_thread = threading.get_ident()
    threading.Thread(target=tell_place, args=(main_thread,), daemon=True).start()
    join_training(Path(sys.argv[1]), int(sys.argv[2]), lambda: say(READY))


def _end_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
