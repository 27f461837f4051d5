"""The explorer of calibration: break a posterior, see it fail, and recalibrate it."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
import traitlets

from massrecon.inference.recalibration import DEGREE
from massrecon.visual.explore.calibration import METHODS, TESTS, explore_calibration
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import (
    SAMPLE,
    are_drawn,
    event_names,
    mass_table,
    model_names,
)
from massrecon.visual.widgets.controls import combo, rows
from massrecon.visual.widgets.explorer import AT_ONCE, Explorer, Progress, choice, slider


class CalibrationExplorer(Explorer):
    """How often posteriors hold the truth, before and after they are recalibrated."""

    function = "massrecon.visual.explore.calibration:explore_calibration"
    notebook = "28_calibration"
    parameters = (
        *("model", "test", "sharpen", "recalibrated", "method", "degree", "n_samples", "events"),
        "seed",
    )

    model = traitlets.Unicode(SAMPLE, help="model, folder of a trained one, or 'mixture'")
    test = traitlets.Unicode("central", help="central, ranks or tarp")
    sharpen = traitlets.Float(1.0, min=0.1, max=10.0, help="factor that makes posteriors narrower")
    recalibrated = traitlets.Bool(False, help="fit and show the correction")
    method = traitlets.Unicode("bending", help="the correction: bending or temperature")
    degree = traitlets.Int(DEGREE, min=1, help="terms of the correction")
    n_samples = traitlets.Int(64, min=3, help="draws for each event")
    events = traitlets.Unicode(SAMPLE, help="stored events, by name or folder")
    seed = traitlets.Int(1, min=0, help="seed of draws, split and tests")

    def _controls(self) -> list[widgets.Widget]:
        recalibrate = widgets.ToggleButton(
            value=self.recalibrated, description="Recalibrate", icon="balance-scale",
            tooltip="Fits a correction to half of the mass points, and tests it on the others",
            layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        traitlets.link((recalibrate, "value"), (self, "recalibrated"))
        terms = slider(self, "degree", "Terms", 1, 8, 1)
        terms.set_trait("disabled", self.method != "bending")
        self.observe(lambda c: terms.set_trait("disabled", c["new"] != "bending"), names="method")
        return rows(
            (combo(self, "model", "Model", model_names()), choice(self, "test", "Test", TESTS),
             combo(self, "events", "Events", event_names())),
            (slider(self, "sharpen", "Sharpened by", 0.5, 2.0, 0.05), terms,
             slider(self, "seed", "Seed", 0, 50, 1)),
            (recalibrate, choice(self, "method", "Method", METHODS)),
        )  # fmt: skip

    def _long_work(self) -> Callable[[Progress], Exploration] | None:
        """Draws from events that have not been drawn from yet, or computes their densities."""
        if self.method == "temperature":
            table = mass_table(self.model, self.events)
            if len(table.missing(range(len(table.events)))) <= AT_ONCE:
                return None
        elif are_drawn(self.model, self.events, self.n_samples, self.seed):
            return None
        return lambda tell: explore_calibration(**self._asked, tell=tell)

    def _explore(self) -> Exploration:
        return explore_calibration(**self.arguments())
