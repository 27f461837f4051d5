"""What a point may take: time, memory, attempts, and how well it is kept apart from others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from massrecon.errors import InputError, unknown_name

Isolation = Literal["kernel", "shared"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of each point.

    Attributes:
        minutes: Longest time of a point [min]; None for no limit.
        memory: Largest memory of a point with all its processes [MB]; None for a fair share of
            the machine's. A point that goes over it is tried once more, alone, with all the memory
            that is free.
        attempts: How often a point is started when its workers die.
        isolation: ``"kernel"``: every point has a Jupyter kernel of its own. ``"shared"``: points
            run one after another in one process of each worker, with their own names but the
            same imported modules, working folder and environment: for points of less than a few
            seconds, whose time would go into starting kernels.
    """

    minutes: float | None = None
    memory: float | None = None
    attempts: int = 3
    isolation: Isolation = "kernel"

    def __post_init__(self) -> None:
        for name in ("minutes", "memory", "attempts"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"'{name}' should be positive, got {value:g}.")
        if self.isolation not in ("kernel", "shared"):
            raise unknown_name("isolation", self.isolation, ("kernel", "shared"))
