"""The explorer of a mass point: sliders for the true masses, the posterior follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import traitlets

from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.mass_point import events_to_do, explore_mass_point
from massrecon.visual.explore.sources import (
    SAMPLE,
    event_names,
    fill_tables,
    mass_table,
    model_names,
)
from massrecon.visual.widgets.controls import button, combo, rows, switch
from massrecon.visual.widgets.explorer import AT_ONCE, Explorer, Progress, slider
from massrecon.visual.widgets.mass_sliders import mass_sliders


class MassPointExplorer(Explorer):
    """What events with given true masses say about them, with one model or two side by side."""

    function = "massrecon.visual.explore.mass_point:explore_mass_point"
    notebook = "20_mass_point"
    parameters = (
        *("model", "compare", "m_parent", "m_daughter", "n_events", "width", "events"),
        *("more_events", "fresh", "whole", "seed"),
    )

    model = traitlets.Unicode(SAMPLE, help="model, folder of a trained one, or 'mixture'")
    compare = traitlets.Unicode("", help="a second one beside it; empty for none")
    m_parent = traitlets.Float(600.0, min=0.0, help="[GeV] true value of the first mass")
    m_daughter = traitlets.Float(200.0, min=0.0, help="[GeV] true value of the second mass")
    n_events = traitlets.Int(10, min=1, help="number of events")
    width = traitlets.Float(30.0, min=0.1, help="[GeV] half-width of the window estimate")
    events = traitlets.Unicode(SAMPLE, help="stored events, by name or folder")
    more_events = traitlets.Unicode("wino_udd_600_200", help="further ones; empty for none")
    fresh = traitlets.Bool(False, help="simulate events of exactly these masses")
    whole = traitlets.Bool(False, help="show the whole mass plane")
    seed = traitlets.Int(1, min=0, help="seed of choice, draw and simulation")

    def _controls(self) -> list[widgets.Widget]:
        models, samples = model_names(), event_names()
        self.observe(self._on_masses, names=["m_parent", "m_daughter", "n_events", "seed"])
        simulate = button(
            "Simulate events here", self.simulate,
            "Simulates events of exactly these masses, in seconds; needs the extra 'mc'", "bolt",
        )  # fmt: skip
        return rows(
            (*mass_sliders(self),
             slider(self, "n_events", "Events", 1, 100, 1)),
            (combo(self, "model", "Model", models),
             combo(self, "compare", "Compare with", ["", *models], "nothing"),
             combo(self, "events", "Stored events", samples)),
            (slider(self, "width", "Window ±", 5, 60, 5, "GeV"),
             slider(self, "seed", "Seed", 0, 50, 1),
             switch(self, "whole", "Whole mass plane"), simulate),
        )  # fmt: skip

    def simulate(self) -> None:
        """Simulates events at the masses of the sliders; moving one takes stored events again."""
        self.change(fresh=True)

    def prepare(self) -> None:
        """Computes the densities of all stored events beside the notebook, so that sliders fly.

        Not while another long work goes on, which it would end.
        """
        if not self.working:
            self.start(self._prepared, done=lambda _: None)

    def _long_work(self) -> Callable[[Progress], Exploration] | None:
        """Simulates events, or reads many that are new."""
        to_do = events_to_do(self.arguments())
        if to_do > AT_ONCE or (self.fresh and to_do):
            return lambda tell: explore_mass_point(**self._asked, tell=tell)
        return None

    def _explore(self) -> Exploration:
        return explore_mass_point(**self.arguments())

    def _prepared(self, tell: Progress) -> Exploration:
        names = [name for name in (self.model, self.compare) if name]
        stores = [name for name in (self.events, self.more_events) if name]
        fill_tables([mass_table(name, store) for name in names for store in stores], tell)
        return self.found or self._explore()

    def _on_masses(self, _: Any) -> None:
        if self.fresh and not self._held:
            with self.held():
                self.fresh = False
