"""The explorer of ten events: play, and they arrive one by one."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
import traitlets

from massrecon.inference.combination import OUTLIERS
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import (
    SAMPLE,
    event_names,
    fill_tables,
    mass_table,
    model_names,
    stored_events,
)
from massrecon.visual.explore.ten_events import (
    ALL,
    drawn_events,
    events_to_do,
    explore_ten_events,
)
from massrecon.visual.widgets.controls import button, combo, player, rows, switch
from massrecon.visual.widgets.explorer import AT_ONCE, Explorer, Progress, slider
from massrecon.visual.widgets.mass_sliders import mass_sliders

_PAUSE = 900  # ms between two events
_MANY = 60  # events that are played one by one


class TenEventsExplorer(Explorer):
    """Events arrive one by one, signal or background, and the region of the masses shrinks."""

    function = "massrecon.visual.explore.ten_events:explore_ten_events"
    notebook = "24_ten_events"
    parameters = (
        *("model", "m_parent", "m_daughter", "n_events", "arrived", "background", "outliers"),
        *("luminosity", "with_background"),
        *("background_events", "events", "more_events", "whole", "seed"),
    )

    model = traitlets.Unicode(SAMPLE, help="model, folder of a trained one, or 'mixture'")
    m_parent = traitlets.Float(600.0, min=0.0, help="[GeV] true value of the first mass")
    m_daughter = traitlets.Float(200.0, min=0.0, help="[GeV] true value of the second mass")
    n_events = traitlets.Int(10, min=1, help="number of events that arrive")
    arrived = traitlets.Int(1, min=-1, help="how many have arrived; -1 for all")
    background = traitlets.Float(0.0, min=0.0, max=1.0, help="share of background events")
    outliers = traitlets.Float(OUTLIERS, min=0.0, help="share of events taken to tell nothing")
    luminosity = traitlets.Float(0.0, min=0.0, help="[fb^-1] of fresh events; 0 for stored ones")
    with_background = traitlets.Bool(False, help="a luminosity brings its background")
    background_events = traitlets.Unicode("background_tth", help="stored background events")
    events = traitlets.Unicode(SAMPLE, help="stored signal events, by name or folder")
    more_events = traitlets.Unicode("wino_udd_600_200", help="further ones; empty for none")
    whole = traitlets.Bool(False, help="show the whole mass plane")
    seed = traitlets.Int(1, min=0, help="seed of the choice and order of the events")

    def _controls(self) -> list[widgets.Widget]:
        if self.arrived < 1 and not self.luminosity:
            self.arrived = self.n_events
        moving, self._play = player(self, "arrived", "Arrived", self.n_events, 1, pause=_PAUSE)
        self._stored = [
            slider(self, "n_events", "Events", 1, 60, 1),
            slider(self, "background", "Background", 0.0, 0.8, 0.05),
        ]
        self.observe(self._on_luminosity, names="luminosity")
        self._on_luminosity()
        samples = event_names()
        return rows(
            (moving, button("Other events", self.shuffle, "Takes the next seed", "random")),
            (*self._stored, slider(self, "outliers", "Taken as outliers", 0.0, 0.8, 0.01)),
            (*mass_sliders(self), slider(self, "seed", "Seed", 0, 50, 1)),
            (slider(self, "luminosity", "Luminosity", 0.0, 6000.0, 100.0, "fb⁻¹"),
             switch(self, "with_background", "with the background that it brings"),
             button("Stored events", self.take_stored, "Sets the luminosity to 0", "archive")),
            (combo(self, "model", "Model", model_names()),
             combo(self, "background_events", "Background from", samples),
             switch(self, "whole", "Whole mass plane")),
        )  # fmt: skip

    def take_stored(self) -> None:
        """Takes stored events again, a given number of them."""
        self.luminosity = 0.0

    def shuffle(self) -> None:
        """Takes other events."""
        self.seed = self.seed % 50 + 1

    def prepare(self) -> None:
        """Computes the densities of all stored events beside the notebook, so that sliders fly.

        Not while another long work goes on, which it would end.
        """
        if not self.working:
            self.start(self._prepared, done=lambda _: None)

    def _prepared(self, tell: Progress) -> Exploration:
        card = stored_events(self.events).card.name
        stores = filter(None, (self.events, self.more_events, self.background_events))
        fill_tables([mass_table(self.model, store, card) for store in stores], tell)
        return self.found or self._explore()

    def _long_work(self) -> Callable[[Progress], Exploration] | None:
        """Simulates a luminosity or reads many events; the player goes as far as there are events.

        All fresh events have arrived at once, and the player goes through them afterwards.
        """
        total = drawn_events(self.arguments()) if self.luminosity else self.n_events
        if total is None:
            return self._drawn
        self._go_through(total)
        with self.held():
            self.arrived = min(self.arrived, total) if self.arrived > 0 else total
        if events_to_do(self.arguments()) > AT_ONCE:
            return lambda tell: explore_ten_events(**self._asked, tell=tell)
        return None

    def _drawn(self, tell: Progress) -> Exploration:
        """Simulates, and shows all events that came."""
        found = explore_ten_events(**{**self._asked, "arrived": ALL}, tell=tell)
        self._asked["arrived"] = found.data["arrived"]
        self._go_through(found.data["n_events"])
        with self.held():
            self.arrived = found.data["arrived"]
        return found

    def _go_through(self, total: int) -> None:
        """Lets the player end at the last event; many events come some at a time, and slower."""
        with self.held():
            self._play.max = total
        self._play.step = 1 + total // _MANY
        self._play.interval = _PAUSE if total <= _MANY else 3 * _PAUSE

    def _explore(self) -> Exploration:
        return explore_ten_events(**self.arguments())

    def _on_luminosity(self, _: object = None) -> None:
        """Lets the numbers of stored events be set only where they count."""
        for one in self._stored:
            one.set_trait("disabled", bool(self.luminosity))
