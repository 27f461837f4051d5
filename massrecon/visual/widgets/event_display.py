"""The event display: step through events, right ones and wrong ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import traitlets

from massrecon.errors import MassReconError
from massrecon.visual.explore.event_display import explore_event_display, missing_rows
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import SAMPLE, event_names, model_names, stored_events
from massrecon.visual.widgets.controls import button, rows, switch
from massrecon.visual.widgets.explorer import Explorer, Progress, choice, slider

_FEW = 10  # densities that are computed while the reader waits


class EventDisplay(Explorer):
    """Shows one event in three views, its most probable assignment and its masses."""

    function = "massrecon.visual.explore.event_display:explore_event_display"
    notebook = "22_event_display"
    parameters = (
        "events", "model", "number", "mass", "off_low", "off_high", "n_events", "width", "azimuth",
        "elevation", "webgl",
    )  # fmt: skip

    events = traitlets.Unicode(SAMPLE, help="Stored events, by name or folder.")
    model = traitlets.Unicode(SAMPLE, help="Model, 'mixture', or empty for no posterior.")
    number = traitlets.Int(0, min=0, help="Number of the event among those that fit.")
    mass = traitlets.Unicode("", help="Mass that is compared with the truth; empty for the last.")
    off_low = traitlets.Float(0.0, min=0.0, help="Smallest distance from the truth [GeV].")
    off_high = traitlets.Float(1000.0, help="Largest distance from the truth [GeV].")
    n_events = traitlets.Int(200, min=1, help="How many stored events are looked through.")
    width = traitlets.Float(30.0, min=1.0, help="Half-width of the window estimate [GeV].")
    azimuth = traitlets.Float(30.0, help="Turn of the view in three dimensions [degrees].")
    elevation = traitlets.Float(20.0, help="Height of the view in three dimensions [degrees].")
    webgl = traitlets.Bool(False, help="Whether to draw that view with WebGL.")

    def _controls(self) -> list[widgets.Widget]:
        models = {"none": "", **{name: name for name in model_names()}}
        self._mass = choice(self, "mass", "compared mass", self._masses())
        self._number: Any = slider(self, "number", "event", 0, 10_000, 1)
        self.observe(self._on_events, names="events")
        self.observe(self._on_filter, names=["model", "mass", "off_low", "off_high", "n_events"])
        step = [
            button("Previous", lambda: self.step(-1), "Go to the event before", "arrow-left"),
            button("Next", lambda: self.step(1), "Go to the next event", "arrow-right"),
        ]
        return rows(
            [choice(self, "events", "events", event_names()),
             choice(self, "model", "model", models)],
            [self._number, *step],
            [self._mass, slider(self, "n_events", "looked through", 20, 1000, 20)],
            [slider(self, "off_low", "off at least", 0, 500, 5, "GeV"),
             slider(self, "off_high", "off at most", 5, 1000, 5, "GeV")],
            [slider(self, "azimuth", "turned by", -180, 180, 5, "°"),
             slider(self, "elevation", "seen from", -90, 90, 5, "°")],
            [slider(self, "width", "window", 5, 100, 5, "GeV"),
             switch(self, "webgl", "turn with the mouse (needs WebGL)")],
        )  # fmt: skip

    def step(self, by: int) -> None:
        """Goes some events on; stays at the first and the last."""
        last = self.found.data["events_that_fit"] - 1 if self.found is not None else 0
        self.number = min(max(self.number + by, 0), last)

    def _long_work(self) -> Callable[[Progress], Exploration] | None:
        """Looks through many events for the first time."""
        given = (self.events, self.model, self.off_low, self.off_high, self.n_events)
        if self.found is not None and missing_rows(*given) > _FEW:
            return self.settled(explore_event_display)
        return None

    def show_result(self, found: Exploration) -> None:
        """Shows an event, and lets the slider end at the last one that fits."""
        super().show_result(found)
        self._number.max = max(found.data["events_that_fit"] - 1, 0)

    def _explore(self) -> Exploration:
        return explore_event_display(**self.arguments())

    def _masses(self) -> dict[str, str]:
        names = stored_events(self.events).card.mass_names
        return {"the last one": "", **{name: name for name in names}}

    def _on_events(self, _: object) -> None:
        """Starts at the first event of other events, with their own masses to choose from."""
        with self.held():
            self.number, self.mass = 0, ""
            with contextlib.suppress(MassReconError):  # the message comes with the refresh
                self._mass.options = list(self._masses().items())

    def _on_filter(self, _: object) -> None:
        with self.held():
            self.number = 0
