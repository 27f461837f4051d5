"""The monitor of trainings: follows one that runs, stops it, and lets it go on."""

from __future__ import annotations

import html
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import ipywidgets as widgets
import traitlets

from massrecon.errors import InputError, MassReconError
from massrecon.models.progress import ask_to_stop, training_progress
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.training_monitor import FOLDER, explore_training_monitor
from massrecon.visual.widgets.controls import button, entry, rows, switch
from massrecon.visual.widgets.explorer import Explorer, slider

COMMAND = "massrecon run 02_train --out results/train"
"""What trains into the folder that is shown first."""

_TAIL = 600  # characters of a failed command's output


class TrainingMonitor(Explorer):
    """Follows a training through its checkpoints, whoever runs it.

    To resume, the command that made it is run again: a training goes on from its checkpoint.
    """

    function = "massrecon.visual.explore.training_monitor:explore_training_monitor"
    notebook = "27_training_monitor"
    parameters = ("folder",)

    folder = traitlets.Unicode(FOLDER, help="Folder of the training, or of its model.")
    resume_with = traitlets.Unicode(COMMAND, help="Command of massrecon that trains into it.")
    every = traitlets.Float(3.0, min=0.05, help="Time between two looks [s].")
    watch = traitlets.Bool(False, help="Whether to look again and again.")

    def _controls(self) -> list[widgets.Widget]:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()
        self._watched: threading.Thread | None = None
        self._ending = threading.Event()
        self._stop_asked = False
        self._seen: tuple[object, ...] = ()
        self._note = widgets.HTML().add_class("massrecon-status")
        self.observe(self._on_watch, names="watch")
        stop = button(
            "Stop the training", self.stop_training, "End it after its present round", "pause"
        )
        resume = button("Start or resume", self.resume, "Run the command", "play")
        if self.watch:
            self._on_watch()
        return [*rows(
            [entry(self, "folder", "folder", "of a training or model"),
             button("Look", self.refresh, "Read the files now", "refresh")],
            [switch(self, "watch", "keep watching"),
             slider(self, "every", "look every", 1, 60, 1, "s")],
            [entry(self, "resume_with", "command", "massrecon run 02_train --out …"), resume, stop],
        ), self._note]  # fmt: skip

    def stop_training(self) -> None:
        """Asks the training to end after its present round; its checkpoint stays."""
        try:
            ask_to_stop(self.folder)
        except MassReconError as error:
            self._say(f"⚠ {error}")
            return
        self._stop_asked = True
        self._say("Asked: the training ends after its present round.")
        self.refresh()

    def resume(self) -> None:
        """Runs the command beside the notebook, and watches."""
        if self._process is not None and self._process.poll() is None:
            self._say("The command runs already.")
            return
        try:
            words = resume_command(self.resume_with)
        except InputError as error:
            self._say(f"⚠ {error}")
            return
        self._log = Path(f"{self.folder}.log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        self._stop_asked = False
        self._say(f"Runs: {self.resume_with}; its output is in {self._log}.")
        self.watch = True

    def close(self) -> None:
        """Ends the watching with the widget; a command that runs goes on."""
        self.watch = False
        super().close()

    def _explore(self) -> Exploration:
        return explore_training_monitor(self.folder)

    def _say(self, text: str) -> None:
        self._note.value = f"<p>{html.escape(text)}</p>"

    def _on_watch(self, _: object = None) -> None:
        self._ending.set()
        if self.watch:
            self._ending = threading.Event()
            self._watched = threading.Thread(
                target=self._look_on, args=(self._ending,), daemon=True
            )
            self._watched.start()

    def _look_on(self, ending: threading.Event) -> None:
        """Looks at the files until told to end, and shows what has changed."""
        while not ending.wait(self.every):
            self._look_at_the_command()
            try:
                found = training_progress(self.folder)
            except MassReconError:  # shown by the refresh
                found = None
            now = () if found is None else (found.step, found.stage, found.is_silent)
            if now != self._seen:
                self._seen = now
                self.refresh()

    def _look_at_the_command(self) -> None:
        """Says how the command ended, once it has."""
        if self._process is None or self._process.poll() is None:
            return
        code, self._process = self._process.returncode, None
        if code == 0:
            self._say("The command has ended.")
        elif self._stop_asked:
            self._say("The training has stopped; 'Start or resume' goes on from its checkpoint.")
        else:
            words = self._log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]
            self._say(f"⚠ It ended with {code}: …{words}")


def resume_command(text: str) -> list[str]:
    """Turns a command of massrecon into the words of a process of this Python.

    Raises:
        InputError: If it is not a command of massrecon, or its quotes do not match.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"'resume_with' cannot be read: {error}.") from error
    if len(words) < 2 or words[0] != "massrecon":
        raise InputError(f"'resume_with' should begin with 'massrecon', such as '{COMMAND}'.")
    return [sys.executable, "-m", "massrecon", *words[1:]]
