"""A point of a scan: its parameters, its folder, and how far it is.

The file ``state.json`` in the folder of a point is the truth about it; the catalogue is made from
these files and can be made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import massrecon
from massrecon.provenance import write_json
from massrecon.runs.notebooks import SUMMARY_FILE

State = Literal["waiting", "running", "done", "failed", "timeout", "memory", "lost"]
"""What became of a point.

``failed``: its notebook raised; ``timeout``, ``memory``: it went over a limit; ``lost``: its
workers died. A point that says ``running`` while no scan runs was cut off and counts as waiting.
"""

FAILURES: tuple[State, ...] = ("failed", "timeout", "memory", "lost")

STATE_FILE = "state.json"
LOG_FILE = "log.txt"
_KEY_LENGTH = 20


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        values: Values of the axes and the seed.
        parameters: Parameters of the notebook, checked, without ``out``.
        notebook: The scan's own copy of the notebook, below the folder of the scan.
        key: Checksum of the notebook, the parameters and the version of massrecon: what the
            results depend on.
    """

    values: dict[str, Any]
    parameters: dict[str, Any]
    notebook: str
    key: str

    @classmethod
    def of(cls, values: Mapping[str, Any], parameters: Mapping[str, Any], notebook: str) -> Point:
        """Makes a point; the path of the copy of the notebook holds the notebook's checksum."""
        facts = [notebook, dict(parameters), massrecon.__version__]
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
        return cls(dict(values), dict(parameters), notebook, key)

    def folder(self, scan: Path) -> Path:
        """Returns the folder of the point within that of its scan."""
        return scan / "points" / self.key


def failure_line(point: Point, state: str, error: str) -> str:
    """Says in a line which point failed, how, and the first line of what went wrong."""
    values = ", ".join(f"{name}={value}" for name, value in point.values.items())
    return f"{state}: {values}: {error.splitlines()[0] if error else ''}"


@dataclass(frozen=True, kw_only=True)
class PointState:
    """How far a point is.

    Attributes:
        state: What became of it.
        attempts: How often it was started.
        seconds: Time of the last attempt [s].
        peak_memory: Largest memory of its processes, where it was watched [MB].
        host: Name of the machine that ran it last.
        error: What went wrong, with the failing cell where there is one.
        values: Values of the axes and the seed.
        parameters: Parameters of the notebook.
    """

    state: State
    attempts: int = 0
    seconds: float = 0.0
    peak_memory: float = 0.0
    host: str = ""
    error: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the state into the folder of the point, whole or not at all.

        That a point is running is not forced to the disk: one that is cut off counts as waiting
        whatever is left of it.
        """
        content = dataclasses.asdict(self)
        if self.state == "running":
            (folder / STATE_FILE).write_text(json.dumps(content), encoding="utf-8")
        else:
            write_json(folder / STATE_FILE, content)

    @classmethod
    def load(cls, folder: Path) -> PointState | None:
        """Reads the state of a point; None if there is none that can be read."""
        try:
            return cls(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def is_done(folder: Path) -> bool:
    """Tells whether a point is finished, its summary included."""
    state = PointState.load(folder)
    return state is not None and state.state == "done" and (folder / SUMMARY_FILE).is_file()
