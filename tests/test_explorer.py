"""The base of the explorers: figures that follow, what is stale, long work, the recipe."""

from __future__ import annotations

import dataclasses
import shlex
import threading
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import pytest
import traitlets
import yaml

from massrecon.errors import InputError
from massrecon.visual.explore.exploration import Exploration, Later
from massrecon.visual.widgets.controls import button, entry, player, switch
from massrecon.visual.widgets.explorer import Cancelled, Explorer, Progress, choice, slider
from massrecon.visual.widgets.slot import FigureSlot, _changes


def explore_line(slope: float = 1.0, points: int = 2, kind: str = "lines") -> Exploration:
    """Draws a straight line."""
    if slope < 0:
        raise InputError(f"'slope' should not be negative, got {slope}: take its size.")
    x = list(range(points))
    y = [slope * value for value in x]
    trace = go.Bar(x=x, y=y) if kind == "bars" else go.Scatter(x=x, y=y)
    return Exploration(figure=go.Figure(trace), data={"end": y[-1]}, reading=f"slope <{slope:g}>")


class LineExplorer(Explorer):
    function = "tests.test_explorer:explore_line"
    notebook = "99_line"
    parameters: ClassVar[tuple[str, ...]] = ("slope", "points", "kind")

    slope = traitlets.Float(1.0)
    points = traitlets.Int(2)
    kind = traitlets.Unicode("lines")

    def _controls(self) -> list[widgets.Widget]:
        return [
            slider(self, "slope", "Slope", -1, 5, 0.1, "GeV"),
            choice(self, "kind", "Kind", ["lines", "bars"]),
        ]

    def _explore(self) -> Exploration:
        return explore_line(**self.arguments())


def texts(explorer: Explorer) -> str:
    """All text that is shown."""
    found, todo = [], list(explorer.children)
    while todo:
        child = todo.pop()
        todo += list(getattr(child, "children", ()))
        if isinstance(child, widgets.HTML):
            found.append(child.value)
    return " ".join(found)


def ends(explorer: Explorer) -> list[float]:
    figure = explorer.figure
    assert figure is not None
    return list(figure.data[0].y)


def test_a_trait_moves_the_figure_in_place() -> None:
    explorer = LineExplorer(points=3)
    figure = explorer.figure
    assert ends(explorer) == [0, 1, 2]
    explorer.slope = 2.0
    assert explorer.figure is figure
    assert ends(explorer) == [0, 2, 4]
    assert explorer.found is not None
    assert explorer.found.data == {"end": 4.0}
    assert "slope &lt;2&gt;" in texts(explorer)


def test_controls_and_traits_are_one() -> None:
    explorer = LineExplorer()
    control, menu = explorer.children[:2]
    control.value = 3.0
    menu.value = "bars"
    assert (explorer.slope, explorer.kind) == (3.0, "bars")
    explorer.slope = 0.5
    assert control.value == 0.5
    assert "[GeV]" in control.description


def test_a_number_beyond_the_ends_of_its_slider_is_kept() -> None:
    explorer = LineExplorer(slope=9.0)
    control = explorer.children[0]
    assert (explorer.slope, control.value, control.max) == (9.0, 9.0, 9.0)
    assert ends(explorer) == [0, 9]
    explorer.slope = 12.0
    assert (explorer.slope, control.value, control.max) == (12.0, 12.0, 12.0)
    assert ends(explorer) == [0, 12]
    control.value = 2.0
    assert ends(explorer) == [0, 2]


def test_a_menu_takes_what_it_did_not_list() -> None:
    explorer = LineExplorer(kind="dots")
    menu = explorer.children[1]
    assert (explorer.kind, menu.value) == ("dots", "dots")
    seen: list[str] = []
    explorer.observe(lambda change: seen.append(change["new"]), names="kind")
    explorer.kind = "steps"
    assert (explorer.kind, menu.value, seen) == ("steps", "steps", ["steps"])
    menu.value = "bars"
    assert explorer.kind == "bars"
    assert explorer.figure is not None
    assert explorer.figure.data[0].type == "bar"
    assert [value for _, value in menu.options] == ["lines", "bars", "dots", "steps"]


def test_the_first_figure_is_shown_before_the_next_is_made() -> None:
    seen: list[list[float]] = []

    class Two(LineExplorer):
        def _explore(self) -> Exploration:
            found = explore_line(**self.arguments())

            def below() -> go.Figure:
                if self.figure is not None:
                    seen.append(ends(self))
                return go.Figure(go.Bar(x=[0], y=[self.slope]))

            return dataclasses.replace(found, panels=Later({"Slope": below}))

    explorer = Two(points=3)
    explorer.slope = 2.0
    assert seen == [[0, 2, 4]]
    assert explorer.found is not None
    assert list(explorer.found.panels) == ["Slope"]
    assert explorer.found.panels["Slope"] is explorer.found.panels["Slope"]
    assert list(explorer._slots["Slope"].shown.data[0].y) == [2.0]
    assert len(seen) == 1


def test_lines_with_gaps_that_stay_are_not_sent_again() -> None:
    old, new = (go.Scatter(x=np.array([0.0, np.nan, 1.0]), y=np.array([0.0, y])) for y in (1, 2))
    assert list(_changes(old, new)) == ["y"]
    assert list(_changes(old, go.Scatter(x=np.array([0.0, np.nan, 2.0]), y=old.y))) == ["x"]


def test_tables_with_gaps_are_sent_as_json() -> None:
    """NaN is no JSON: what reads it warns into the notebook, or fails."""
    gaps = np.array([[1.0, np.nan], [np.inf, 4.0]])
    first, second = (go.Figure(go.Heatmap(z=f * gaps, customdata=gaps)) for f in (1.0, 2.0))
    slot = FigureSlot(first, lambda: None)
    for figure, state in (
        (first, slot.shown._widget_data[0]),
        (second, _changes(slot.shown.data[0], second.data[0])),
    ):
        assert np.asarray(state["z"]).tolist() == [
            [figure.data[0].z[0, 0], None],
            [None, figure.data[0].z[1, 1]],
        ]
    assert not slot.show(second)
    assert _changes(slot.shown.data[0], second.data[0]) == {}


def test_another_kind_of_figure_is_laid_over_the_old_one_until_it_is_drawn() -> None:
    made: list[str] = []

    class Watched(LineExplorer):
        def figure_made(self, title: str, figure: go.FigureWidget) -> None:
            made.append(figure.data[0].type)

    explorer = Watched()
    slot = explorer._slots[""]
    explorer.kind = "bars"
    assert made == ["scatter", "bar"]
    assert explorer.figure is not None
    assert explorer.figure.data[0].type == "bar"
    areas = [layer.layout.grid_area for layer in slot.children]
    assert len(areas) == 2
    assert areas[0] == areas[1]
    drawn = explorer._fit.drawn
    explorer.figure._js2py_traceDeltas = {"trace_edit_id": 0, "trace_deltas": []}
    assert explorer._fit.drawn == drawn + 1
    assert [layer.children[0] for layer in slot.children] == [explorer.figure]


def test_a_figure_is_complete_when_the_browser_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced: list[int] = []
    plain = widgets.Widget.open

    def noted(self: widgets.Widget) -> None:
        if isinstance(self, go.FigureWidget):
            announced.append(len(self.get_state()["_widget_data"]))
        plain(self)

    monkeypatch.setattr(widgets.Widget, "open", noted)
    LineExplorer()
    assert announced == [1]


def test_an_error_says_what_the_figure_was_made_with() -> None:
    explorer = LineExplorer(slope=2.0)
    explorer.slope = -1.0
    shown = texts(explorer)
    assert "&#x27;slope&#x27; should not be negative" in shown
    assert "made with slope = 2.0." in shown
    assert "points" not in shown
    assert "slope=2.0" in explorer.code()
    assert "slope=2.0" in explorer.command()
    explorer.slope = 3.0
    assert explorer.failed == ""
    assert "role='alert'" not in texts(explorer)
    assert "slope=3.0" in explorer.code()


def test_an_error_at_once_leaves_no_figure_and_a_recipe_of_what_was_asked() -> None:
    explorer = LineExplorer(slope=-1.0)
    assert explorer.figure is None
    assert explorer.found is None
    assert "made with" not in texts(explorer)
    assert "slope=-1.0" in explorer.code()


def test_a_mistake_in_the_program_is_shown_and_raised() -> None:
    explorer = LineExplorer()
    with pytest.raises(IndexError):
        explorer.points = 0
    assert explorer.failed.startswith("IndexError")


def test_change_refreshes_once() -> None:
    seen: list[dict[str, Any]] = []

    class Counted(LineExplorer):
        def _explore(self) -> Exploration:
            seen.append(self.arguments())
            return super()._explore()

    explorer = Counted()
    explorer.change(slope=2.0, points=4)
    assert seen[1:] == [{"slope": 2.0, "points": 4, "kind": "lines"}]


def test_the_code_makes_the_same_figure() -> None:
    explorer = LineExplorer(slope=1.5, points=4)
    scope: dict[str, Any] = {}
    exec(explorer.code().replace("found.figure.show()", ""), scope)
    assert list(scope["found"].figure.data[0].y) == ends(explorer)
    assert explorer.command() == (
        "massrecon run 99_line -p slope=1.5 -p points=4 -p kind=lines "
        "-p interactive=False --out results/99_line"
    )


def test_the_command_of_papermill_knows_where_its_notebook_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    explorer = LineExplorer(slope=1.5, points=4)
    words = shlex.split(explorer.papermill())
    assert words[:3] == ["papermill", "notebooks/99_line.ipynb", "notebooks/99_line.out.ipynb"]
    given = [yaml.safe_load(text) for text in words[4::2]]
    assert given == [{"slope": 1.5}, {"points": 4}, {"kind": "lines"}, {"interactive": False}]
    assert set(words[3::2]) == {"-y"}
    (tmp_path / "99_line.ipynb").write_text("{}")
    assert shlex.split(explorer.papermill())[1] == str(tmp_path / "99_line.ipynb")


def test_the_recipe_is_plain_text_that_follows() -> None:
    explorer = LineExplorer()
    explorer._ask.value = True
    assert "<pre style='user-select:text" in explorer._recipe.value
    explorer.slope = 4.0
    assert "slope=4.0" in explorer._recipe.value


def held_back(result: float) -> tuple[LineExplorer, threading.Event, threading.Event]:
    """Makes an explorer whose work at slope 2 waits to be let go, then shows the slope `result`."""
    going, done = threading.Event(), threading.Event()

    class SlowAtTwo(LineExplorer):
        def _long_work(self) -> Any:
            return self._slow if self.slope == 2.0 else None

        def _slow(self, tell: Progress) -> Exploration:
            going.set()
            assert done.wait(10)
            return explore_line(slope=result)

    return SlowAtTwo(), going, done


def test_a_newer_result_is_not_overtaken_by_a_long_work() -> None:
    explorer, going, done = held_back(2.0)
    explorer.slope = 2.0
    assert going.wait(10)
    explorer.slope = 5.0
    done.set()
    explorer.wait(10)
    assert ends(explorer) == [0, 5]
    assert explorer._status.value == ""
    assert explorer._bar.layout.display == "none"


def test_the_error_of_an_overtaken_work_is_not_shown() -> None:
    explorer, going, done = held_back(-2.0)
    explorer.slope = 2.0
    assert going.wait(10)
    explorer.slope = 5.0
    done.set()
    explorer.wait(10)
    assert ends(explorer) == [0, 5]
    assert (explorer.failed, explorer._status.value) == ("", "")


def test_what_prepares_goes_on_while_sliders_move() -> None:
    explorer, going, done = LineExplorer(), threading.Event(), threading.Event()
    ended: list[float] = []

    def work(tell: Progress) -> Exploration:
        going.set()
        assert done.wait(10)
        tell(1.0, "prepared")
        return explore_line(slope=2.0)

    explorer.start(work, done=lambda found: ended.append(found.data["end"]))
    assert going.wait(10)
    explorer.slope = 5.0
    done.set()
    explorer.wait(10)
    assert ended == [2.0]
    assert ends(explorer) == [0, 5]


def test_long_work_shows_what_it_was_asked_though_the_traits_went_on() -> None:
    explorer, going, done = LineExplorer(), threading.Event(), threading.Event()

    def work(tell: Progress) -> Exploration:
        tell(0.5, "half")
        going.set()
        assert done.wait(10)
        return explore_line(slope=2.0)

    explorer.change(slope=2.0)
    explorer.start(work)
    assert going.wait(10)
    assert explorer.working
    assert (explorer._progress.value, explorer._stage.value) == (0.5, "half")
    explorer.slope = 3.0
    done.set()
    explorer.wait(10)
    assert ends(explorer) == [0, 2]
    assert explorer.made_with["slope"] == 2.0
    assert "made with slope = 2.0" in texts(explorer)


def in_endless_work() -> LineExplorer:
    explorer, going = LineExplorer(), threading.Event()

    def endless(tell: Progress) -> Exploration:
        while True:
            tell(0.1, "on and on")
            going.set()

    explorer.start(endless)
    assert going.wait(10)
    return explorer


def test_long_work_can_be_stopped() -> None:
    explorer = in_endless_work()
    explorer.stop()
    explorer.wait(10)
    assert not explorer.working
    assert "Stopped" in texts(explorer)
    with pytest.raises(Cancelled):
        explorer._tell(0.2, "")


def test_new_long_work_takes_the_place_of_the_old() -> None:
    explorer = in_endless_work()
    explorer.change(slope=4.0)
    explorer.start(lambda _: explore_line(slope=4.0, points=3))
    explorer.wait(10)
    assert not explorer.working
    assert ends(explorer) == [0, 4, 8]
    assert explorer.made_with["slope"] == 4.0
    assert "Stopped" not in texts(explorer)


def test_an_error_in_long_work_is_shown() -> None:
    explorer = LineExplorer()
    explorer.start(lambda _: explore_line(slope=-2.0))
    explorer.wait(10)
    assert "got -2.0" in explorer.failed
    assert explorer._bar.layout.display == "none"


def test_switch_entry_player_and_button() -> None:
    class Rich(LineExplorer):
        bold = traitlets.Bool(False)
        pressed = 0

        def _controls(self) -> list[widgets.Widget]:
            def press() -> None:
                self.pressed += 1

            row, self.play = player(self, "points", "Step", last=9, first=2)
            return [switch(self, "bold", "Bold"), entry(self, "kind", "Kind"), row,
                    button("Do", press, "does it")]  # fmt: skip

    explorer = Rich()
    bold, kind, row, press = explorer.children[:4]
    bold.value, kind.value = True, "bars"
    press.click()
    assert (explorer.bold, explorer.kind, explorer.pressed) == (True, "bars", 1)
    explorer.play.max = 20
    explorer.play.value = 5
    assert len(ends(explorer)) == 5
    assert row.children[1].value == 5
    assert row.children[1].max == 20
