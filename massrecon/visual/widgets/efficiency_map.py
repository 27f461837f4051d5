"""The explorer of efficiencies over the mass plane: click a cell to see what is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

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
from massrecon.visual.widgets.explorer import Explorer, Progress, choice, slider


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
        card = stored_events(self.events).card
        symbols = [plain(card.symbol(name)) for name in card.mass_names[:2]]
        self._axes = [self._axis(i, symbol) for i, symbol in enumerate(symbols)]
        self.observe(self._follow_cell, names="cell")
        return rows(
            (combo(self, "model", "Model", model_names()),
             choice(self, "mass", "Mass", list(card.mass_names)),
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

    def _axis(self, i: int, symbol: str) -> widgets.FloatSlider:
        """Makes the slider of one mass of the cell, for those without a mouse."""
        masses = stored_events(self.events).masses
        assert masses is not None
        column = masses[:, i]
        low, high = float(column.min()) // 5 * 5, float(column.max()) // 5 * 5 + 5
        made = widgets.FloatSlider(
            min=low, max=high, step=5, value=self.cell[i] if self.cell else (low + high) / 2,
            description=f"Cell m({symbol}) [GeV]", continuous_update=False,
            style={"description_width": "9em"}, layout=widgets.Layout(width="26em"),
        )  # fmt: skip
        made.observe(lambda _: self._set_cell(), names="value")
        return made

    def _set_cell(self) -> None:
        if not self._following:
            self.cell = [axis.value for axis in self._axes]

    _following = False

    def _follow_cell(self, _: Any) -> None:
        self._following = True
        for axis, value in zip(self._axes, self.cell, strict=False):
            axis.value = value
        self._following = False
