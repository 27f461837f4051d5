"""The base of all explorers: controls, figures that follow them, a reading, and how to repeat it.

An explorer is a box of widgets over a plain function of `massrecon.visual.explore`. Its public
traits are the arguments of that function, so that a notebook may set them as well as a mouse can::

    explorer = TopologyExplorer(decay="p p > A A, (A > a B, B > b C)")
    explorer.decay = "p p > A A, (A > a B)"
    explorer.found.data["assignments"]
"""

from __future__ import annotations

import html
import shlex
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from massrecon.errors import MassReconError, require_extra
from massrecon.visual.explore.exploration import Exploration

Progress = Callable[[float, str], None]
"""Says how much of a work is done, 0 to 1, and what goes on; raises `Cancelled` after a stop."""

WIDE = widgets.Layout(width="100%")
"""Layout of a control that takes the width of its row."""

_DESCRIPTION = {"description_width": "9em"}


class Cancelled(Exception):  # noqa: N818  no error: what was asked for
    """A long work was stopped by its user."""


class Explorer(widgets.VBox):
    """Controls above figures, with a reading, a button that shows how to repeat it, and a progress.

    A subclass names its plain function, its arguments, which are traits, and its notebook; it puts
    `controls` together in `_controls` and calls `refresh` when an argument has changed.

    Attributes:
        found: The last result; None before the first.
        failed: The message of the last error; empty if there was none.
    """

    function: ClassVar[str]
    """The plain function, as ``module:name``."""

    notebook: ClassVar[str]
    """The notebook that makes the same figure, by name."""

    parameters: ClassVar[tuple[str, ...]]
    """Traits that are arguments of the function and parameters of the notebook."""

    def __init__(self, **arguments: Any) -> None:
        """Builds the widgets and shows the first result.

        Args:
            **arguments: First values of the traits.

        Raises:
            MissingExtraError: If the extra `jupyter` is not installed.
        """
        require_extra("anywidget", extra="jupyter")
        self.found: Exploration | None = None
        self.failed = ""
        self._held = False
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()
        self._build()
        super().__init__(**arguments)
        self._arrange(self._controls())
        self.observe(self._on_argument, names=list(self.parameters))
        self.refresh()

    # what a subclass writes

    def _controls(self) -> list[widgets.Widget]:
        """Returns the rows of controls, linked to the traits."""
        raise NotImplementedError

    def _explore(self) -> Exploration:
        """Calls the plain function with what the traits say; quick, or it belongs in `start`."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that make the figure shown, in their order."""
        return {name: getattr(self, name) for name in self.parameters}

    # what a subclass uses

    def change(self, **arguments: Any) -> None:
        """Sets several arguments and refreshes once."""
        self._held = True
        try:
            for name, value in arguments.items():
                setattr(self, name, value)
        finally:
            self._held = False
        self.refresh()

    def refresh(self) -> None:
        """Explores with the present arguments and shows what was found, or the error."""
        try:
            found = self._explore()
        except MassReconError as error:
            self.fail(str(error))
            return
        self.show_result(found)

    def show_result(self, found: Exploration) -> None:
        """Shows a result in place of the one before."""
        self.found, self.failed = found, ""
        self._status.value = ""
        figures = {"": found.figure, **found.panels}
        if list(figures) != list(self._shown):
            self._shown = {title: go.FigureWidget(f) for title, f in figures.items()}
            self._place.children = [
                child
                for title, figure in self._shown.items()
                for child in ([_heading(title)] if title else []) + [figure]
            ]
        else:
            self._shown = {t: self._drawn(self._shown[t], f) for t, f in figures.items()}
        self._reading.value = f"<p>{html.escape(found.reading)}</p>"
        self._write_recipe()

    def fail(self, message: str) -> None:
        """Shows an error; the figure stays and is marked as that of earlier arguments."""
        self.failed = message
        stale = " The figure is that of the arguments before." if self.found is not None else ""
        self._status.value = f"<p role='alert'><b>⚠ {html.escape(message)}</b>{stale}</p>"

    def start(
        self,
        work: Callable[[Progress], Exploration],
        done: Callable[[Exploration], None] | None = None,
    ) -> None:
        """Does a long work beside the notebook, with a progress bar and a stop button.

        Args:
            work: Gets a function for its progress and returns the result; it may show others with
                `show_result` on the way.
            done: What to do with the result; shows it if not given. A work that was stopped has
                none.
        """
        if self.working:
            return
        self._stopping.clear()
        self._progress.value, self._stage.value = 0.0, ""
        self._bar.layout.display = "flex"
        self._worker = threading.Thread(
            target=self._work, args=(work, done or self.show_result), daemon=True
        )
        self._worker.start()

    def stop(self) -> None:
        """Asks the long work to end at its next step."""
        self._stopping.set()

    def wait(self, seconds: float | None = None) -> None:
        """Waits for the long work to end."""
        if self._worker is not None:
            self._worker.join(seconds)

    @property
    def working(self) -> bool:
        """Whether a long work goes on."""
        return self._worker is not None and self._worker.is_alive()

    @property
    def figure(self) -> go.FigureWidget | None:
        """The first figure shown."""
        return next(iter(self._shown.values()), None)

    def code(self) -> str:
        """Writes the Python that makes the same figure."""
        module, name = self.function.split(":")
        given = "".join(f"    {key}={value!r},\n" for key, value in self.arguments().items())
        return f"from {module} import {name}\n\nfound = {name}(\n{given})\nfound.figure.show()"

    def command(self) -> str:
        """Writes the command that makes the notebook with the same figure."""
        parts = ["massrecon", "run", self.notebook]
        for key, value in self.arguments().items():
            parts += ["-p", shlex.quote(f"{key}={value}")]
        return " ".join([*parts, "--out", f"results/{self.notebook}"])

    # how it is built

    def _build(self) -> None:
        self._shown: dict[str, go.FigureWidget] = {}
        self._place = widgets.VBox(layout=WIDE)
        self._reading = widgets.HTML().add_class("massrecon-reading")
        self._status = widgets.HTML().add_class("massrecon-status")
        self._progress = widgets.FloatProgress(min=0.0, max=1.0, layout=WIDE)
        self._stage = widgets.Label()
        stop = widgets.Button(description="Stop", icon="stop", tooltip="End this work")
        stop.on_click(lambda _: self.stop())
        self._bar = widgets.HBox([stop, self._progress, self._stage])
        self._bar.layout.display = "none"
        self._recipe = widgets.HTML().add_class("massrecon-recipe")
        self._recipe.layout.display = "none"
        self._ask = widgets.ToggleButton(
            description="Reproduce", icon="code", tooltip="Show the code and the command for this"
        )
        self._ask.observe(lambda _: self._write_recipe(), names="value")

    def _arrange(self, controls: list[widgets.Widget]) -> None:
        self.children = [
            *controls,
            self._bar,
            self._status,
            self._place,
            self._reading,
            self._ask,
            self._recipe,
        ]
        self.add_class("massrecon-explorer")

    def _on_argument(self, _: Any) -> None:
        if not self._held:
            self.refresh()

    def _work(self, work: Callable[[Progress], Exploration], done: Callable[..., None]) -> None:
        try:
            done(work(self._tell))
        except Cancelled:
            self._status.value = "<p>Stopped; the figure shows what was there.</p>"
        except MassReconError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._bar.layout.display = "none"

    def _tell(self, share: float, stage: str) -> None:
        if self._stopping.is_set():
            raise Cancelled
        self._progress.value, self._stage.value = share, stage

    def _drawn(self, shown: go.FigureWidget, figure: go.Figure) -> go.FigureWidget:
        """Brings a figure up to date in place, or puts a new one there if its traces are others."""
        if [t.type for t in shown.data] != [t.type for t in figure.data]:
            fresh = go.FigureWidget(figure)
            self._place.children = [fresh if c is shown else c for c in self._place.children]
            return fresh
        with shown.batch_update():
            for old, new in zip(shown.data, figure.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)
            shown.update_layout(figure.layout.to_plotly_json(), overwrite=True)
        return shown

    def _write_recipe(self) -> None:
        self._recipe.layout.display = "" if self._ask.value else "none"
        if self._ask.value:
            texts = [("Python", self.code()), ("Notebook, from a shell", self.command())]
            self._recipe.value = "".join(
                f"<p><b>{title}</b></p><pre>{html.escape(text)}</pre>" for title, text in texts
            )


def slider(
    explorer: Explorer, name: str, label: str, low: float, high: float, step: float, unit: str = ""
) -> widgets.Widget:
    """Makes a slider on a number of an explorer; it answers when it is let go.

    Args:
        explorer: Whose trait it moves.
        name: Name of the trait, a `Float` or an `Int`.
        label: What it says.
        low: Lowest value.
        high: Highest value.
        step: Step.
        unit: Unit, said behind the label.
    """
    whole = isinstance(explorer.traits()[name], traitlets.Int)
    kind = widgets.IntSlider if whole else widgets.FloatSlider
    made = kind(
        min=low, max=high, step=step, value=getattr(explorer, name), continuous_update=False,
        description=f"{label} [{unit}]" if unit else label, style=_DESCRIPTION,
        layout=widgets.Layout(width="26em"),
    )  # fmt: skip
    traitlets.link((made, "value"), (explorer, name))
    return made


def choice(
    explorer: Explorer, name: str, label: str, options: Mapping[str, Any] | list[Any]
) -> widgets.Dropdown:
    """Makes a menu on a trait of an explorer.

    Args:
        explorer: Whose trait it sets.
        name: Name of the trait.
        label: What it says.
        options: Values, or values by what the menu calls them.
    """
    rows = list(options.items()) if isinstance(options, Mapping) else options
    made = widgets.Dropdown(
        options=rows, value=getattr(explorer, name), description=label, style=_DESCRIPTION,
        layout=widgets.Layout(width="26em"),
    )  # fmt: skip
    traitlets.link((made, "value"), (explorer, name))
    return made


def _heading(title: str) -> widgets.HTML:
    return widgets.HTML(f"<b>{html.escape(title)}</b>")
