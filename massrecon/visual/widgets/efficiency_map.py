"""The explorer of efficiencies over the mass plane: click a cell to see what is in it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from massrecon.errors import MassReconError
from massrecon.inference.estimators import ESTIMATORS
from massrecon.visual.explore.efficiency_map import explore_efficiency_map
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import (
    SAMPLE,
    are_drawn,
    event_names,
    model_names,
    stored_events,
)
from massrecon.visual.template import plain
from massrecon.visual.widgets.controls import button, combo, rows
from massrecon.visual.widgets.explorer import FIELD, Explorer, Progress, choice, slider

_STEP = 5.0  # [GeV]


class EfficiencyMapExplorer(Explorer):
    """How often a mass is found, over the plane of true masses, and one cell of it in full."""

    function = "massrecon.visual.explore.efficiency_map:explore_efficiency_map"
    notebook = "21_efficiency_map"
    parameters = (
        *("model", "mass", "estimator", "window", "cell", "bins", "n_samples", "events", "seed"),
    )

    model = traitlets.Unicode(SAMPLE, help="model, folder of a trained one, or 'mixture'")
    mass = traitlets.Unicode("chi10", help="the mass that is estimated")
    estimator = traitlets.Unicode("window", help="draw, mean, median or window")
    window = traitlets.Float(30.0, min=0.1, help="[GeV] half-width that counts as right")
    cell = traitlets.List(traitlets.Float(), help="[GeV] two true masses in a cell; [] for none")
    bins = traitlets.Int(6, min=2, help="cells along each true mass")
    n_samples = traitlets.Int(64, min=1, help="draws for each event")
    events = traitlets.Unicode(SAMPLE, help="stored events, by name or folder")
    seed = traitlets.Int(1, min=0, help="seed of the draws")

    def _controls(self) -> list[widgets.Widget]:
        self._mass = choice(self, "mass", "Mass", [])
        self._axes = [self._axis(i) for i in range(2)]
        self._fit_to_events()
        self.observe(self._follow_cell, names="cell")
        self.observe(self._on_events, names="events")
        return rows(
            (combo(self, "model", "Model", model_names()), self._mass,
             choice(self, "estimator", "Estimator", list(ESTIMATORS))),
            (slider(self, "window", "Window ±", 5, 100, 5, "GeV"),
             slider(self, "bins", "Cells a side", 2, 12, 1),
             combo(self, "events", "Events", event_names())),
            (*self._axes, button("Close cell", self.close_cell, "Shows the map alone", "times")),
        )  # fmt: skip

    def close_cell(self) -> None:
        """Shows the map alone."""
        self.cell = []

    def _long_work(self) -> Callable[[Progress], Exploration] | None:
        """Draws from events that have not been drawn from yet."""
        if are_drawn(self.model, self.events, self.n_samples, self.seed):
            return None
        return lambda tell: explore_efficiency_map(**self._asked, tell=tell)

    def figure_made(self, title: str, figure: go.FigureWidget) -> None:
        """Lets a click on the map open a cell."""
        if title == "":
            heat: Any = figure.data[0]
            heat.on_click(self._clicked)

    def _explore(self) -> Exploration:
        return explore_efficiency_map(**self.arguments())

    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        if points.xs and points.ys:
            self.cell = [float(points.xs[0]), float(points.ys[0])]

    def _axis(self, i: int) -> widgets.FloatSlider:
        """Makes the slider of one mass of the cell, for those without a mouse."""
        made = widgets.FloatSlider(step=_STEP, continuous_update=False, **FIELD)
        made.observe(lambda _: self._set_cell(), names="value")
        return made

    def _fit_to_events(self) -> None:
        """Gives the menu the masses of the events, and the sliders of the cell their ends."""
        sample = stored_events(self.events)
        names, mass = sample.card.mass_names, self.mass
        if not names or sample.masses is None:  # the refresh says so
            return
        self._mass.options = [(name, name) for name in names]
        self.mass = mass
        self._following = True
        for i, (axis, name) in enumerate(zip(self._axes, names, strict=False)):
            column = sample.masses[:, i]
            low = _STEP * math.floor(float(column.min()) / _STEP)
            high = _STEP * math.floor(float(column.max()) / _STEP) + _STEP
            axis.description = f"Cell m({plain(sample.card.symbol(name))}) [GeV]"
            axis.min, axis.max = min(low, axis.max), high  # never the wrong way round
            axis.min = low
            axis.value = self.cell[i] if len(self.cell) == len(self._axes) else (low + high) / 2
        self._following = False

    def _on_events(self, _: Any) -> None:
        """Starts from the last mass and the map alone where the masses are those of others."""
        with self.held(), contextlib.suppress(MassReconError):  # the message comes with the refresh
            names = stored_events(self.events).card.mass_names
            if names and self.mass not in names:
                self.mass, self.cell = names[-1], []
            self._fit_to_events()

    def _set_cell(self) -> None:
        if not self._following:
            self.cell = [axis.value for axis in self._axes]

    _following = False

    def _follow_cell(self, _: Any) -> None:
        self._following = True
        for axis, value in zip(self._axes, self.cell, strict=False):
            axis.value = value
        self._following = False
