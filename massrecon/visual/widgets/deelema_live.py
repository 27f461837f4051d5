"""The DeeLeMa playground: the masses move while the network trains."""

from __future__ import annotations

import ipywidgets as widgets
import traitlets

from massrecon.visual.explore.deelema_live import TESTS, explore_deelema_live
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.widgets.controls import button, rows, switch
from massrecon.visual.widgets.explorer import Explorer, Progress, choice, slider

_LONGEST_WAIT = 60.0
_STARTS = {"B": (1300.0, 1000.0), "C": (250.0, 120.0)}


class DeeLeMaLive(Explorer):
    """Trains DeeLeMa beside the notebook and shows where its masses are after each epoch."""

    function = "massrecon.visual.explore.deelema_live:explore_deelema_live"
    notebook = "26_deelema_live"
    parameters = (
        "test", "contamination", "m_trial", "start_parent", "start_daughter", "anchored",
        "n_events", "epochs", "seed",
    )  # fmt: skip

    test = traitlets.Unicode("B", help="'B' for the toy, 'C' for top-quark pairs.")
    contamination = traitlets.Float(0.0, min=0.0, max=0.5, help="Share E_C of wrong pairings.")
    m_trial = traitlets.Float(-1.0, help="Trial mass [GeV]; negative for the true one.")
    start_parent = traitlets.Float(1300.0, min=1.0, help="Start of the produced mass [GeV].")
    start_daughter = traitlets.Float(1000.0, min=1.0, help="Start of the lower mass [GeV].")
    anchored = traitlets.Bool(True, help="Whether the masses are tied to the solvability edge.")
    n_events = traitlets.Int(5000, min=500, help="Number of events.")
    epochs = traitlets.Int(12, min=1, help="Passes over the events.")
    seed = traitlets.Int(1, min=0, help="Seed of events, weights and order.")

    def _controls(self) -> list[widgets.Widget]:
        self.observe(self._on_test, names="test")
        train = button("Train", self.train, "Start the fit with these settings", "play")
        return rows(
            [choice(self, "test", "events", TESTS),
             slider(self, "contamination", "wrong pairs E_C", 0.0, 0.5, 0.05)],
            [slider(self, "m_trial", "trial mass", -1, 1000, 1, "GeV"),
             switch(self, "anchored", "tied to the solvability edge")],
            [slider(self, "start_parent", "start A, t", 100, 2000, 10, "GeV"),
             slider(self, "start_daughter", "start B, W", 50, 1800, 10, "GeV")],
            [slider(self, "n_events", "number of events", 500, 20_000, 500),
             slider(self, "epochs", "epochs", 1, 40, 1)],
            [slider(self, "seed", "seed", 0, 100, 1), train],
        )  # fmt: skip

    def train(self) -> None:
        """Starts the fit; one that goes on is stopped first."""
        if self.working:
            self.stop()
            self.wait(_LONGEST_WAIT)
        self.start(self._train)

    def refresh(self) -> None:
        """Shows the start of a fit with these settings, which ends the one that goes on."""
        if self.working:
            self.stop()
            self.wait(_LONGEST_WAIT)
        super().refresh()

    def show_result(self, found: Exploration) -> None:
        """Shows a result; the slider of the trial mass goes to the true one if that was meant."""
        if self.m_trial < 0:
            with self.held():
                self.m_trial = self._asked["m_trial"] = found.data["trial_mass_GeV"]
        super().show_result(found)

    def _explore(self) -> Exploration:
        return explore_deelema_live(**self.arguments(), train=False)

    def _train(self, tell: Progress) -> Exploration:
        return explore_deelema_live(**self.arguments(), tell=tell, show=self.show_result)

    def _on_test(self, _: object) -> None:
        """Starts from masses that fit the other events."""
        if self.test in _STARTS:  # else the refresh says which there are
            with self.held():
                self.start_parent, self.start_daughter = _STARTS[self.test]
                self.m_trial = -1.0
