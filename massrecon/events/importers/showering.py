"""Les Houches files through Pythia's shower and our detector, as a simulation of their own.

The events are those of ``simulate(card, settings={"lhe": path})``: they can be resumed, and made
again bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.lhe import LheFile
from massrecon.events.lheparse import INCOMING, HardEvents
from massrecon.events.pythia import switches_on_process
from massrecon.events.source import SourceFile

if TYPE_CHECKING:
    from massrecon.events.container import Events

_LOOK_AT = 200
_FOUND_MIN = 0.99


def shower(
    source: SourceFile,
    card: ProcessCard,
    out: str | Path | None,
    *,
    seed: int,
    skip_bad: bool,
    truth: bool | None,
    masses: Mapping[str, float] | None,
    n_max: int | None,
    workers: int | None,
    progress: bool,
) -> Events:
    """Showers and measures the events of a Les Houches file; arguments as in `import_events`.

    Raises:
        ImportFileError: If the file is not sound.
        GenerationError: If Pythia fails.
    """
    from massrecon.events.generator import simulate

    file = LheFile.open(source.path, skip_bad=skip_bad)
    first = file.events(0, min(_LOOK_AT, file.n_events))
    if truth is None:
        truth = has_roots(card, first)
    found = masses_in(card, first) if masses is None else dict(masses)
    settings: dict[str, Any] = {"lhe": str(source.path), "skip_bad": skip_bad, "truth": truth}
    return simulate(
        without_processes(card),
        masses=found or None,
        seed=seed,
        workers=workers,
        out=out,
        progress=progress,
        settings=settings,
        n_generated=None if n_max is None else min(n_max, file.n_events),
    )


def without_processes(card: ProcessCard) -> ProcessCard:
    """Returns the card without the settings that make Pythia add collisions of its own."""
    content = card.to_dict()
    settings = content.get("pythia", {}).get("settings", [])
    kept = [line for line in settings if not switches_on_process(line)]
    if kept == settings:
        return card
    content["pythia"] = {**content["pythia"], "settings": kept}
    return load_card(content)


def has_roots(card: ProcessCard, events: HardEvents) -> bool:
    """Says whether the hard collisions produce what the card's decay starts from."""
    mother = events.mothers[:, 0]
    parent = events.first[events.event] + np.maximum(mother, 0)
    hard = (mother >= 0) & (events.status[parent] == INCOMING)
    found = np.ones(events.n_events, bool)
    for root in card.topology.roots:
        codes = np.abs(card.particles[root.name].pdg)
        here = hard & np.isin(np.abs(events.pdg), codes)
        found &= np.bincount(events.event[here], minlength=events.n_events) > 0
    return bool(found.mean() >= _FOUND_MIN) if len(found) else False


def masses_in(card: ProcessCard, events: HardEvents) -> dict[str, float]:
    """Reads the mass parameters off the particles of hard collisions, as far as they are there.

    Raises:
        InputError: If a mass is not the same in all events.
    """
    found = {}
    for name, parameter in card.masses.items():
        here = np.isin(np.abs(events.pdg), np.abs(parameter.sets))
        values = events.rows[here, 10]
        if not len(values):
            continue
        if np.ptp(values) > 2 * parameter.tolerance:
            raise InputError(
                f"The mass '{name}' runs from {values.min():g} to {values.max():g} GeV in the file:"
                " split it by mass, and import each with masses=…"
            )
        found[name] = round(float(np.median(values)), 6)
    return found
