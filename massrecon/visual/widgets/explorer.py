"""The base of all explorers: controls, figures that follow them, a reading, and how to repeat it.

An explorer is a box of widgets over a plain function of `massrecon.visual.explore`. Its public
traits are the arguments of that function, so that a notebook may set them as well as a mouse can::

    explorer = TopologyExplorer(decay="p p > A A, (A > a B, B > b C)")
    explorer.decay = "p p > A A, (A > a B)"
    explorer.found.data["assignments"]
"""

from __future__ import annotations

import contextlib
import html
import json
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from massrecon.errors import MassReconError, require_extra
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.widgets.slot import FigureSlot, Fit

Progress = Callable[[float, str], None]
"""Says how much of a work is done, 0 to 1, and what goes on; raises `Cancelled` after a stop."""

WIDE = widgets.Layout(width="100%")
"""Layout of a control that takes the width of its row."""

FIELD: dict[str, Any] = {
    "style": {"description_width": "9em"},
    "layout": {"width": "26em"},
}
"""Style and layout of a control with a label, which stands in a row with others."""

AT_ONCE = 24
"""Events whose densities take less than half a second: more are computed beside the notebook."""

_MARKED = "white-space:pre-wrap;font-family:var(--jp-code-font-family, monospace)"
_PLAIN = "user-select:text;white-space:pre-wrap;line-height:1.4"
_LONGEST = 60  # characters of a value in the status


class Cancelled(Exception):  # noqa: N818  no error: what was asked for
    """A long work was stopped by its user."""


class Explorer(widgets.VBox):
    """Controls above figures, with a reading, a button that shows how to repeat it, and a progress.

    A subclass names its plain function, its arguments, which are traits, and its notebook; it puts
    `controls` together in `_controls` and calls `refresh` when an argument has changed.

    Attributes:
        found: The last result; None before the first.
        failed: The message of the last error; empty if there was none.
        made_with: The arguments of the figure that is shown, which are no longer those of the
            traits after an error, or while a long work goes on.
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
        self.made_with: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self._held = False
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()
        self._next: Any = None
        self._shows = False
        self._turn = threading.RLock()
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

    def _long_work(self) -> Callable[[Progress], Exploration] | None:
        """Returns the work that has to be done beside the notebook, or None to explore at once."""
        return None

    def arguments(self) -> dict[str, Any]:
        """Returns what the traits say now, in the order of `parameters`."""
        return {name: getattr(self, name) for name in self.parameters}

    def figure_made(self, title: str, figure: go.FigureWidget) -> None:
        """Is called with every new figure widget, the first one without title; for clicks."""

    # what a subclass uses

    def change(self, **arguments: Any) -> None:
        """Sets several arguments and refreshes once."""
        with self.held():
            for name, value in arguments.items():
                setattr(self, name, value)
        self.refresh()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lets arguments be set without a refresh for each."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def refresh(self) -> None:
        """Explores with the present arguments and shows what was found, or the error."""
        try:
            work = self._long_work()
            found = self._explore() if work is None else None
        except MassReconError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}")
            raise
        else:
            if work is not None:
                self.start(work, self._answer)
            elif found is not None:
                self._overtake()
                self.show_result(found)

    def _answer(self, found: Exploration) -> None:
        """Shows what a refresh has found beside the notebook."""
        self.show_result(found)

    def _overtake(self) -> None:
        """Ends the long work of an earlier refresh, whose result would come after a newer one.

        What a button has started goes on, and so does what prepares.
        """
        with self._turn:
            if self._shows and threading.current_thread() is not self._worker:
                self._shows, self._next = False, None
                self._stopping.set()

    def settled(self, explore: Callable[..., Exploration]) -> Callable[[Progress], Exploration]:
        """Makes a long work that goes on until its result is that of the present arguments.

        Args:
            explore: The plain function, which takes the arguments and `tell`.
        """

        def work(tell: Progress) -> Exploration:
            while True:
                self._asked = self.arguments()
                found = explore(**self._asked, tell=tell)
                if self.arguments() == self._asked:
                    return found
                tell(0.0, "the arguments have changed")

        return work

    def show_result(self, found: Exploration) -> None:
        """Shows a result in place of the one before.

        It counts as made with the present arguments; from a long work, with those of its start.
        """
        in_work = threading.current_thread() is self._worker
        self.made_with = dict(self._asked) if in_work else self.arguments()
        self.found, self.failed = found, ""
        self._status.value = self._still() if self.made_with != self.arguments() else ""
        self._reading.value = f"<p>{html.escape(found.reading)}</p>"
        for title, figure in self._place_figures(found):
            self.figure_made(title, figure)
        self._write_recipe()

    def fail(self, message: str) -> None:
        """Shows an error; the figure stays, with the arguments that it was made with."""
        self.failed = message
        stale = self._still() if self.found is not None else ""
        style = f" style='{_MARKED}'" if "\n" in message else ""
        text = f"<b{style}>⚠ {html.escape(message)}</b>"
        self._status.value = f"<p role='alert'>{text}</p>{stale}"

    def _still(self) -> str:
        """Says which arguments the figure shown was made with: all that differ from the present."""
        now = self.arguments()
        old = {name: value for name, value in self.made_with.items() if value != now[name]}
        if not old:
            return "<p>The figure is the one from before.</p>"
        listed = ", ".join(f"{name} = {_short(value)}" for name, value in old.items())
        return f"<p>The figure was made with {html.escape(listed)}.</p>"

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

        A work that still goes on is stopped, and the new one begins when it has ended.
        """
        asked = (self.arguments(), work, done or self.show_result)
        with self._turn:
            if self.working:
                self._next = asked
                self._stopping.set()
                return
            self._begin(*asked)

    def stop(self) -> None:
        """Asks the long work to end at its next step."""
        self._stopping.set()

    def wait(self, seconds: float | None = None) -> None:
        """Waits for the long work to end, and for the one that waits for its end."""
        worker = None
        while worker is not self._worker and self._worker is not None:
            worker = self._worker
            worker.join(seconds)

    @property
    def working(self) -> bool:
        """Whether a long work goes on."""
        return self._worker is not None and self._worker.is_alive()

    @property
    def figure(self) -> go.FigureWidget | None:
        """The first figure shown."""
        return next((slot.shown for slot in self._slots.values()), None)

    @property
    def figures(self) -> dict[str, go.FigureWidget]:
        """All figures shown, by title; the first one has none."""
        return {title: slot.shown for title, slot in self._slots.items()}

    def code(self) -> str:
        """Writes the Python that makes the figure shown."""
        module, name = self.function.split(":")
        given = "".join(f"    {key}={value!r},\n" for key, value in self._recipe_of().items())
        return f"from {module} import {name}\n\nfound = {name}(\n{given})\nfound.figure.show()"

    def command(self) -> str:
        """Writes the command that makes the notebook with the figure shown."""
        parts = ["massrecon", "run", self.notebook]
        for key, value in self._recipe_of().items():
            parts += ["-p", shlex.quote(f"{key}={value}")]
        return " ".join([*parts, "-p interactive=False", "--out", f"results/{self.notebook}"])

    def papermill(self) -> str:
        """Writes the command of papermill that makes the same notebook.

        Its paths are those of the notebook that this explorer is in, where that is so.
        """
        own = Path.cwd() / f"{self.notebook}.ipynb"
        source = str(own) if own.is_file() else f"notebooks/{self.notebook}.ipynb"
        made = f"{source.removesuffix('.ipynb')}.out.ipynb"
        parts = ["papermill", shlex.quote(source), shlex.quote(made)]
        for key, value in {**self._recipe_of(), "interactive": False}.items():
            parts += ["-y", shlex.quote(f"{key}: {json.dumps(value, ensure_ascii=False)}")]
        return " ".join(parts)

    # how it is built

    def _build(self) -> None:
        self._slots: dict[str, FigureSlot] = {}
        self._place = widgets.VBox(layout=WIDE)
        self._fit = Fit()
        self._reading = widgets.HTML().add_class("massrecon-reading")
        self._status = widgets.HTML().add_class("massrecon-status")
        room = widgets.Layout(flex="1 1 0", width="auto", min_width="6em")
        self._progress = widgets.FloatProgress(min=0.0, max=1.0, layout=room)
        self._stage = widgets.Label(layout=widgets.Layout(flex="0 0 auto"))  # never cut off
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
            self._fit,
        ]
        self.add_class("massrecon-explorer")

    def _on_argument(self, _: Any) -> None:
        if not self._held:
            self.refresh()

    def _begin(
        self,
        asked: dict[str, Any],
        work: Callable[[Progress], Exploration],
        done: Callable[[Exploration], None],
    ) -> None:
        self._stopping.clear()
        self._shows = done == self._answer
        self._asked = asked
        self._progress.value, self._stage.value = 0.0, ""
        self._bar.layout.display = "flex"
        self._worker = threading.Thread(target=self._work, args=(work, done), daemon=True)
        self._worker.start()

    def _work(self, work: Callable[[Progress], Exploration], done: Callable[..., None]) -> None:
        shows = self._shows
        try:
            found = work(self._tell)
            if shows and self._stopping.is_set():
                raise Cancelled
            done(found)
        except Cancelled:
            if not self._is_overtaken(shows):
                still = self._still() if self.made_with != self.arguments() else ""
                self._status.value = f"<p>Stopped; the figure shows what was there.</p>{still}"
        except MassReconError as error:
            if not self._is_overtaken(shows):
                self.fail(str(error))
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            with self._turn:
                following, self._next = self._next, None
                if following is None:
                    self._shows = False
                    self._bar.layout.display = "none"
                else:
                    self._begin(*following)

    def _is_overtaken(self, shows: bool) -> bool:
        """Whether something newer is shown, or begins now, so that a work has nothing to say."""
        return self._next is not None or self._shows != shows

    def _tell(self, share: float, stage: str) -> None:
        if self._stopping.is_set():
            raise Cancelled
        self._progress.value, self._stage.value = share, stage

    def _place_figures(self, found: Exploration) -> list[tuple[str, go.FigureWidget]]:
        """Shows figures in their places, the first in the first; returns those that are new.

        Each is shown before the next is asked for, which may be made only then.
        """
        slots, before, fresh = {}, list(self._slots.values()), []
        children: list[widgets.Widget] = []
        for i, (title, figure) in enumerate(chain([("", found.figure)], found.panels.items())):
            slot = before[i] if i < len(before) else FigureSlot(figure, self._fitted)
            if i >= len(before) or slot.show(figure):
                fresh.append((title, slot.shown))
            slots[title] = slot
            heading = slot.heading
            heading.value = f"<b>{html.escape(title)}</b>"
            children += [heading, slot] if title else [slot]
        self._slots = slots
        if list(self._place.children) != children:
            self._place.children = children
        return fresh

    def _fitted(self) -> None:
        """Tells a figure that has been drawn how wide it may be."""
        self._fit.drawn += 1

    def _recipe_of(self) -> dict[str, Any]:
        return self.made_with or self.arguments()

    def _write_recipe(self) -> None:
        self._recipe.layout.display = "" if self._ask.value else "none"
        if self._ask.value:
            texts = [
                ("Python", self.code()),
                ("Notebook, from a shell", self.command()),
                ("The same with papermill", self.papermill()),
            ]
            self._recipe.value = "".join(
                f"<p><b>{title}</b></p><pre style='{_PLAIN}'>{html.escape(text)}</pre>"
                for title, text in texts
            )


def slider(
    explorer: Explorer, name: str, label: str, low: float, high: float, step: float, unit: str = ""
) -> widgets.Widget:
    """Makes a slider on a number of an explorer; it answers when it is let go.

    Its ends move out where the number is set beyond them.

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
    value = getattr(explorer, name)
    made = kind(
        min=min(low, value), max=max(high, value), step=step, value=value,
        continuous_update=False, description=f"{label} [{unit}]" if unit else label, **FIELD,
    )  # fmt: skip

    def widen(change: Any) -> None:
        made.min, made.max = min(made.min, change["new"]), max(made.max, change["new"])

    explorer.observe(widen, names=name)  # before the link, by which a slider would cut the number
    traitlets.link((made, "value"), (explorer, name))
    return made


def choice(
    explorer: Explorer, name: str, label: str, options: Mapping[str, Any] | Sequence[Any]
) -> widgets.Dropdown:
    """Makes a menu on a trait of an explorer.

    Another value that the trait is given is added to the menu: the plain function says whether it
    can be used.

    Args:
        explorer: Whose trait it sets.
        name: Name of the trait.
        label: What it says.
        options: Values, or values by what the menu calls them.
    """
    named = options if isinstance(options, Mapping) else {str(value): value for value in options}
    value = getattr(explorer, name)
    made = widgets.Dropdown(
        options=_with(named.items(), value), value=value, description=label, **FIELD
    )

    def admit(change: Any) -> None:
        wanted = _with(made.options, change["new"])
        if len(wanted) > len(made.options):
            link.unlink()  # new options select the first one
            made.options, made.value = wanted, change["new"]
            link.link()

    explorer.observe(admit, names=name)  # before the link, which refuses what is not in the menu
    link = traitlets.link((made, "value"), (explorer, name))
    return made


def _with(options: Iterable[tuple[str, Any]], value: Any) -> list[tuple[str, Any]]:
    """Adds a value to the options of a menu, if it is not among them."""
    listed = list(options)
    return listed if value in [known for _, known in listed] else [*listed, (str(value), value)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
