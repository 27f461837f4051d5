"""Pythia's own statistics, from which cross-sections follow.

Pythia finds a cross-section as the mean over the points of the phase space that it tried, one mean
for each subprocess, corrected for the hard collisions that it could not complete. It reports these
means since it was initialised; here they are undone into sums, so that the sums of single blocks of
collisions, at different masses, can be told apart and put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

FB_PER_MB = 1e12


class Trials(NamedTuple):
    """Pythia's own statistics of one subprocess; those of disjoint samples may be added.

    Attributes:
        tried: Number of points of the phase space that were tried.
        selected: How many of them became hard collisions.
        accepted: How many of those became complete events.
        total: Sum of the cross-section over the points that were tried [fb].
        squares: Sum of its square [fb^2].
    """

    tried: int
    selected: int
    accepted: int
    total: float
    squares: float

    @classmethod
    def zero(cls) -> Trials:
        """Nothing tried yet."""
        return cls(0, 0, 0, 0.0, 0.0)

    @classmethod
    def of(cls, tried: int, selected: int, accepted: int, mean: float, error: float) -> Trials:
        """Undoes the averages that Pythia reports: cross-section and its error [fb].

        Pythia's relative error squared is var / (tried mean^2) + 1/accepted - 1/selected.
        """
        if not (tried and accepted and mean):
            return cls(tried, selected, accepted, 0.0, 0.0)
        average = mean * selected / accepted
        spread = max((error / mean) ** 2 - 1 / accepted + 1 / selected, 0.0) * tried
        return cls(tried, selected, accepted, average * tried, average**2 * (spread + 1) * tried)

    def minus(self, earlier: Trials) -> Trials:
        """Returns what was added since an earlier state."""
        return Trials(
            self.tried - earlier.tried,
            self.selected - earlier.selected,
            self.accepted - earlier.accepted,
            self.total - earlier.total,
            self.squares - earlier.squares,
        )


Tally = Mapping[str, Trials]
"""Statistics by the code of the subprocess."""


def cross_section(subprocesses: Iterable[Trials]) -> tuple[float, float]:
    """Adds the cross-sections of the subprocesses; returns the sum and its error [fb]."""
    sigma = variance = 0.0
    for t in subprocesses:
        if t.accepted == 0 or t.total == 0.0:
            continue
        mean = t.total / t.tried
        here = mean * t.accepted / t.selected
        spread = max(t.squares / t.tried / mean**2 - 1.0, 0.0) / t.tried
        spread += (t.selected - t.accepted) / t.selected / t.accepted
        sigma += here
        variance += here**2 * spread
    return sigma, variance**0.5
