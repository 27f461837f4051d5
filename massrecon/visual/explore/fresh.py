"""Fresh events for explorers: simulated while their user looks on, and stopped at once.

The number of signal events of a luminosity L is a Poisson number with the mean

    s = sigma BR A L,

cross-section times branching fraction times acceptance, all three from a simulation at these
masses; that of background events likewise, from what the simulation of stored ones recorded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.pool import WorkerPool
from massrecon.visual.explore.sources import Tell, stored_events

MOST = 1000
"""Most events of either kind that are simulated for a luminosity."""

_PILOT = 500  # collisions that tell the acceptance
_SPARE = 150  # background events that are left to train a classifier with
_OTHER_STREAM = 0x1E5  # keeps numbers of events apart from the events
_KEPT = 32
_MADE: dict[str, Events] = {}


@dataclass(frozen=True, kw_only=True, eq=False)
class LuminositySample:
    """What a luminosity brings: signal, and background if it was asked for.

    Attributes:
        signal: The signal events that were drawn.
        background: The background events that were drawn; None without background.
        spare: Further background events, to tell background from signal with; None without.
        expected_signal: Expected number of signal events, and its error from the simulation.
        expected_background: Expected number of background events; zero without.
    """

    signal: Events
    background: Events | None
    spare: Events | None
    expected_signal: tuple[float, float]
    expected_background: float


def luminosity_sample(
    like: str,
    masses: tuple[float, float],
    luminosity: float,
    background: str = "",
    seed: int = 1,
    tell: Tell | None = None,
) -> LuminositySample:
    """Simulates as many events as a luminosity brings; the same arguments give the same events.

    Args:
        like: Stored signal events, whose process card is taken.
        masses: The two masses [GeV].
        luminosity: Integrated luminosity [fb^-1].
        background: Stored background events, whose card and rate are taken; empty for none.
        seed: Seed of the events and of their Poisson numbers.
        tell: Is told of the progress; it may raise to stop.

    Raises:
        InputError: If the luminosity brings no event or more than 1,000 of either kind, or a rate
            is not known.
        MissingExtraError: If Pythia is not installed.
    """
    if not 0 < luminosity < math.inf:
        raise InputError(f"'luminosity' should be positive, in fb^-1, got {luminosity}.")
    card = stored_events(like).card
    point = dict(zip(card.mass_names, masses, strict=True))
    half = 0.5 if background else 1.0
    pilot = simulated(card, point, seed, n_generated=_PILOT, tell=_part(tell, 0.0, 0.4 * half))
    expected = _expected(pilot, luminosity)
    generator = torch.Generator().manual_seed(seed + _OTHER_STREAM)
    n_signal = _poisson("signal", expected[0], generator)
    kind = None if not background else stored_events(background)
    rate = 0.0 if kind is None else float(kind.expected(luminosity).sum())
    n_background = _poisson("background", rate, generator) if kind is not None else 0
    if n_signal + n_background == 0:
        raise InputError(
            f"No event is seen with seed {seed}: {expected[0]:.2g} are expected in "
            f"{luminosity:g} fb^-1. Take a larger 'luminosity', or another 'seed'."
        )
    signal = pilot
    if n_signal > len(pilot):
        told = _part(tell, 0.4 * half, half)
        signal = simulated(card, point, seed, n_events=n_signal, tell=told)
    false, spare = None, None
    if kind is not None:
        of = kind.provenance.get("masses") or None
        size, told = 2 * n_background + _SPARE, _part(tell, half, 1.0)
        false = simulated(kind.card, of, seed, n_events=size, tell=told)
        false, spare = false[:n_background], false[n_background:]
    return LuminositySample(
        signal=signal[:n_signal],
        background=false,
        spare=spare,
        expected_signal=expected,
        expected_background=rate,
    )


def simulated(
    card: ProcessCard,
    masses: Mapping[str, Any] | None,
    seed: int,
    *,
    n_events: int | None = None,
    n_generated: int | None = None,
    tell: Tell | None = None,
) -> Events:
    """Simulates events as `massrecon.simulate` does, and keeps them; equal arguments, same object.

    Args:
        card: Process card.
        masses: Masses [GeV] by name; None for those of the card.
        seed: Seed.
        n_events: Number of selected events.
        n_generated: Number of collisions, in place of `n_events`.
        tell: Is told of the progress, at least twice a second; it may raise to stop.

    Raises:
        MissingExtraError: If Pythia is not installed.
    """
    masses = dict(masses) if masses else None
    told = (card.fingerprint(), masses, seed, n_events, n_generated)
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    if key not in _MADE:
        goal = n_events or n_generated or 0
        unit = "collisions" if n_events is None else "events"

        def pool(n_workers: int, job: Mapping[str, Any], folder: Path) -> WorkerPool:
            return _ToldPool(n_workers, job, folder, _Progress(tell, goal, card.name, unit))

        found = simulate(
            card, n_events, masses, 1000 * seed, progress=False, n_generated=n_generated, pool=pool
        )
        if len(_MADE) >= _KEPT:
            _MADE.pop(next(iter(_MADE)))
        _MADE[key] = found
    return _MADE[key]


class _Progress:
    """Tells how much of a simulation is done."""

    def __init__(self, tell: Tell | None, goal: int, name: str, unit: str) -> None:
        self._tell, self._goal, self._name, self._unit = tell, goal, name, unit
        self._made: dict[int, int] = {}

    def hear(self, answer: Mapping[str, Any]) -> None:
        """Takes note of what a worker reports."""
        if "done" not in answer:
            of = "generated" if self._unit == "collisions" else "selected"
            self._made[answer["part"]] = answer[of]
        self()

    def __call__(self) -> None:
        if self._tell is not None:
            made = min(sum(self._made.values()), self._goal)
            text = f"{self._name}: {made:,} of {self._goal:,} {self._unit} simulated"
            self._tell(made / max(self._goal, 1), text)


class _ToldPool(WorkerPool):
    """Workers whose progress is told, and who are stopped when the one who hears it raises."""

    def __init__(
        self, n_workers: int, job: Mapping[str, Any], folder: Path, progress: _Progress
    ) -> None:
        self._progress = progress
        super().__init__(n_workers, job, folder)

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yields what the workers report."""
        for answer in super().answers():
            self._progress.hear(answer)
            yield answer

    def waited(self) -> None:
        """Tells the progress while nothing is heard, so that a stop is noticed."""
        self._progress()


def _expected(pilot: Events, luminosity: float) -> tuple[float, float]:
    """Returns the expected number of events of a luminosity, and its error from the simulation."""
    (cell,) = pilot.provenance["cells"]
    if not cell["cross_section_fb"]:
        raise InputError(
            f"The cross-section of '{pilot.card.name}' is not known: set 'luminosity' to 0."
        )
    value = luminosity * cell["cross_section_fb"] * cell["acceptance"]
    cross = (cell["cross_section_error_fb"] or 0.0) / cell["cross_section_fb"]
    accepted = cell["acceptance_error"] / max(cell["acceptance"], 1e-12)
    return value, value * math.hypot(cross, accepted)


def _poisson(what: str, mean: float, generator: torch.Generator) -> int:
    if mean > MOST:
        raise InputError(
            f"{mean:,.0f} {what} events are expected, and at most {MOST:,} are simulated here: "
            "take a smaller 'luminosity'."
        )
    return int(torch.poisson(torch.tensor(mean, dtype=torch.float64), generator=generator))


def _part(tell: Tell | None, low: float, high: float) -> Tell | None:
    """Makes a part of a work out of a whole one."""
    if tell is None:
        return None
    return lambda share, text: tell(low + (high - low) * share, text)
