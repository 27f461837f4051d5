"""The explorer of denoising: play, pause and scrub through the levels of noise."""

from __future__ import annotations

import contextlib
from typing import Any

import ipywidgets as widgets
import traitlets

from massrecon.errors import MassReconError
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.visual.explore.denoising import explore_denoising, way_of
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import (
    MIXTURE,
    SAMPLE,
    event_names,
    load_source,
    model_names,
    stored_events,
)
from massrecon.visual.widgets.controls import combo, player, rows
from massrecon.visual.widgets.explorer import Explorer, choice, slider

_PAUSE = 350  # ms between two steps


class DenoisingExplorer(Explorer):
    """The draws of one event from noise to targets."""

    function = "massrecon.visual.explore.denoising:explore_denoising"
    notebook = "23_denoising"
    parameters = (
        *("model", "event", "step", "across", "up", "n_samples", "steps", "solver", "events"),
        "seed",
    )

    model = traitlets.Unicode(SAMPLE, help="model, or folder of a trained one")
    event = traitlets.Int(0, min=0, help="number of the event")
    step = traitlets.Int(0, min=-1, help="level of noise; 0 is pure noise, -1 the end")
    across = traitlets.Unicode("", help="target along the horizontal axis; '' for a choice")
    up = traitlets.Unicode("", help="target along the vertical axis; '' for a choice")
    n_samples = traitlets.Int(200, min=2, help="number of draws")
    steps = traitlets.Int(40, min=0, help="network evaluations; 0 for the model's own default")
    solver = traitlets.Unicode("", help="sampler; '' for the model's own default")
    events = traitlets.Unicode("wino_udd_600_200", help="stored events, by name or folder")
    seed = traitlets.Int(1, min=0, help="seed of the noise")

    def _controls(self) -> list[widgets.Widget]:
        self._end = self._last()
        if self.step < 0:
            self.step = self._end
        moving, self._play = player(self, "step", "Step", self._end, pause=_PAUSE)
        models = [name for name in model_names() if name != MIXTURE]
        targets = self._targets()
        self._axes = [choice(self, "across", "Across", targets), choice(self, "up", "Up", targets)]
        last = len(stored_events(self.events)) - 1
        self._event: Any = slider(self, "event", "Event", 0, last, 1)
        self.observe(self._on_model, names="model")
        self.observe(self._on_events, names="events")
        return rows(
            (moving,),
            (self._event, *self._axes),
            (combo(self, "model", "Model", models), combo(self, "events", "Events", event_names()),
             slider(self, "steps", "Evaluations", 2, 100, 2)),
            (slider(self, "n_samples", "Draws", 10, 500, 10),
             slider(self, "seed", "Seed", 0, 50, 1),
             combo(self, "solver", "Sampler", ["", "heun", "euler", "dpm++", "ddim", "ancestral"],
                   "the model's own")),
        )  # fmt: skip

    def _explore(self) -> Exploration:
        """Explores; the player goes as far as the way of the present model and sampler."""
        end = self._last()
        if end != self._end:
            with self.held():
                self._end = self._play.max = end
                self.step = min(self.step, end)
        return explore_denoising(**self.arguments())

    def _last(self) -> int:
        way, _ = way_of(
            self.model, self.event, self.n_samples, self.steps, self.solver, self.events, self.seed
        )
        return len(way) - 1

    def _targets(self) -> dict[str, str]:
        source = load_source(self.model)
        names = () if isinstance(source, KinematicMixture) else source.target_names
        return {"chosen for me": "", **{name: name for name in names}}

    def _on_model(self, _: object) -> None:
        """Offers the targets of another model, and lets it choose among them."""
        with self.held(), contextlib.suppress(MassReconError):  # the message comes with the refresh
            targets = list(self._targets().items())
            for menu in self._axes:
                if list(menu.options) != targets:
                    menu.options = targets

    def _on_events(self, _: object) -> None:
        """Lets the slider end at the last of other events."""
        with self.held(), contextlib.suppress(MassReconError):
            self._event.max = len(stored_events(self.events)) - 1
