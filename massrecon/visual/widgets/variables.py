"""The explorer of MT2 and M2: one event, the endpoint, the kink."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets as widgets
import traitlets

from massrecon.errors import MassReconError
from massrecon.inference.classical import SUBSYSTEMS
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.variables import TOYS, explore_variables, pending
from massrecon.visual.widgets.controls import entry, list_entry, rows, switch
from massrecon.visual.widgets.explorer import Explorer, choice, slider


class VariablesExplorer(Explorer):
    """Shows MT2 and M2CC of one event over all splittings of ptmiss, and of a sample.

    The contour and the distributions answer at once; the fits of the endpoints follow.
    """

    function = "massrecon.visual.explore.variables:explore_variables"
    notebook = "25_variables"
    parameters = (
        "process", "masses", "events", "n_events", "level", "subsystem", "event", "m_trial",
        "scan", "seed",
    )  # fmt: skip

    process = traitlets.Unicode("antler", help="Process card that is simulated.")
    masses = traitlets.List(traitlets.Unicode(), help="Its masses as NAME=VALUE [GeV].")
    events = traitlets.Unicode("", help="Folder of stored events in place of simulated ones.")
    n_events = traitlets.Int(1500, min=100, help="Number of events.")
    level = traitlets.Unicode("partons", help="'partons' or 'objects'.")
    subsystem = traitlets.Unicode("ab", help="'ab', 'a' or 'b'.")
    event = traitlets.Int(0, min=0, help="Number of the event that is shown.")
    m_trial = traitlets.Float(-1.0, help="Trial mass [GeV]; negative for the true one.")
    scan = traitlets.Bool(False, help="Whether to scan trial masses for the kink.")
    seed = traitlets.Int(1, min=0, help="Seed of the simulation.")

    def _controls(self) -> list[widgets.Widget]:
        self._trial: Any = slider(self, "m_trial", "trial mass", -1, 1000, 1, "GeV")
        self._event: Any = slider(self, "event", "event", 0, 10_000, 1)
        self.observe(self._on_sample, names=["process", "masses", "events", "subsystem"])
        return rows(
            [choice(self, "process", "process", TOYS),
             list_entry(self, "masses", "masses [GeV]", "A=1000, B=800, C=700")],
            [choice(self, "level", "level", ["partons", "objects"]),
             choice(self, "subsystem", "subsystem", list(SUBSYSTEMS))],
            [entry(self, "events", "stored events", "folder; empty to simulate"),
             slider(self, "n_events", "number of events", 100, 5000, 100)],
            [self._event, self._trial],
            [switch(self, "scan", "scan trial masses for the kink"),
             slider(self, "seed", "seed", 0, 100, 1)],
        )  # fmt: skip

    def _on_sample(self, _: object) -> None:
        """Goes back to the true trial mass and the first event of other events."""
        with self.held():
            self.m_trial, self.event = -1.0, 0

    def refresh(self) -> None:
        """Shows what is quick at once; events, fits and scans follow beside the notebook."""
        try:
            slow = pending(**self.arguments())
        except MassReconError as error:
            self.fail(str(error))
            return
        if "events" in slow and self.found is not None:
            self._later(bar=True)
            return
        super().refresh()
        if slow and not self.failed:
            self._later(bar=slow != {"fit"})

    def show_result(self, found: Exploration) -> None:
        """Shows a result, and sets the sliders to the sample: their ends, the true trial mass."""
        if self.m_trial < 0:
            with self.held():
                self.m_trial = self._asked["m_trial"] = found.data["trial_mass_GeV"]
        super().show_result(found)
        self._event.max = found.data["n_events"] - 1
        # not below what was asked for, or the slider would change it
        self._trial.max = max(round(found.data["true_parent_mass_GeV"]), math.ceil(self.m_trial))

    def _explore(self) -> Exploration:
        slow = pending(**self.arguments())
        quick = {**self.arguments(), "scan": self.scan and "scan" not in slow}
        return explore_variables(**quick, fit="fit" not in slow)

    def _later(self, bar: bool) -> None:
        self.start(self.settled(explore_variables))
        if not bar:
            self._bar.layout.display = "none"
