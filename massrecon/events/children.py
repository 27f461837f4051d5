"""Child processes of our own: how many there is room for, and their environment."""

from __future__ import annotations

import os
from pathlib import Path

import massrecon

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")


def usable_processors() -> int:
    """Returns how many processors this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def child_environment(threads: int) -> dict[str, str]:
    """Returns the environment for a Python process that runs a module of this very massrecon.

    It does not import what lies in the working folder, nor the user's script.

    Args:
        threads: Number of threads that its libraries may use.
    """
    home = str(Path(massrecon.__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **dict.fromkeys(_THREADS, str(threads)),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
    }
