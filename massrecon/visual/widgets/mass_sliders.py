"""Sliders for the two true masses, which follow the stored events: labels, and how far they go."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets as widgets

from massrecon.errors import MassReconError
from massrecon.visual.explore.mass_point import stored_points
from massrecon.visual.explore.sources import stored_events
from massrecon.visual.template import plain
from massrecon.visual.widgets.explorer import Explorer, slider

_STEP = 5.0  # [GeV]
_MASSES = ("m_parent", "m_daughter")
_EVENTS = ("events", "more_events")


def mass_sliders(explorer: Explorer) -> tuple[widgets.Widget, ...]:
    """Makes sliders on `m_parent` and `m_daughter` that go as far as the stored events.

    With other events, or events of another process, they change their labels and ends; a mass that
    is out of them moves to the nearest end.

    Args:
        explorer: An explorer with the traits `m_parent`, `m_daughter`, `events`, `more_events`.
    """
    made: list[Any] = []
    values = [getattr(explorer, name) for name in _MASSES]
    try:
        labels, ends = _labels_and_ends(explorer)
    except MassReconError:  # the explorer shows it
        labels, ends = ["First true mass", "Second true mass"], [(v, v) for v in values]
    for name, label, (low, high) in zip(_MASSES, labels, ends, strict=True):
        made.append(slider(explorer, name, label, low, high, _STEP, "GeV"))

    def follow(_: Any) -> None:
        try:
            labels, ends = _labels_and_ends(explorer)
        except MassReconError:
            return
        with explorer.held():
            for one, label, (low, high) in zip(made, labels, ends, strict=True):
                one.description = f"{label} [GeV]"
                one.min, one.max = min(low, one.max), high  # never the wrong way round
                one.min = low

    explorer.observe(follow, names=list(_EVENTS))
    return tuple(made)


def _labels_and_ends(explorer: Explorer) -> tuple[list[str], list[tuple[float, float]]]:
    """Finds what the sliders say and how far they go, in whole steps beyond the stored points."""
    points = stored_points(*(getattr(explorer, name) for name in _EVENTS))
    card = stored_events(getattr(explorer, _EVENTS[0])).card
    labels = [f"True m({plain(card.symbol(name))})" for name in card.mass_names]
    columns = list(zip(*points, strict=True))[:2]
    down = [_STEP * math.floor(min(column) / _STEP) for column in columns]
    up = [_STEP * math.ceil(max(column) / _STEP) for column in columns]
    return labels, list(zip(down, up, strict=True))
