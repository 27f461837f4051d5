"""The place of a figure on the screen, where one figure follows another without flicker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import traitlets
from plotly.basedatatypes import BaseFigure

_LAYER = "1 / 1 / 2 / 2"
_CONFIG = {"responsive": True, "displaylogo": False}  # as wide as the page
_DRAWN = "_js2py_traceDeltas"  # what the browser sends when it has drawn a figure

# A figure widget brings plotly along, 5 MB of it, and a page gives up on one that is not ready
# after two seconds. Here one widget brings it for all figures, which wait for it; what Python says
# of a figure in the meantime is kept and said again.
_FIGURE = """
const plotly = () => (globalThis.massreconPlotly ??= Promise.withResolvers()).promise;
const NEWS = ["update", "restyle", "relayout", "addTraces", "deleteTraces", "moveTraces",
  "animate", "removeLayoutProps", "removeTraceProps"].map((name) => "_py2js_" + name);
export default () => {
  let figure;
  const missed = [];
  return {
    initialize({ model }) {
      for (const name of NEWS) model.on("change:" + name, () => {
        const news = model.get(name);
        if (!figure && news) missed.push([name, news]);
      });
    },
    async render({ model, el }) {
      const make = await plotly();
      const first = !figure;
      if (first) (figure = make()).initialize({ model });
      const end = figure.render({ model, el });
      for (const [name, news] of missed.splice(0)) {
        model.set(name, news);
        model.set(name, null);
      }
      return end;
    },
  };
};
"""
_FIT = """
function initialize({ model }) {
  const found = (globalThis.massreconPlotly ??= Promise.withResolvers());
  if (found.loading) return;
  found.loading = true;
  const url = URL.createObjectURL(new Blob([model.get("code")], { type: "text/javascript" }));
  import(url).then((bundle) => found.resolve(bundle.default), found.reject);
}
function render({ model, el }) {
  const tell = () => window.dispatchEvent(new Event("resize"));
  el.style.width = "100%";
  const observer = new ResizeObserver(tell);
  observer.observe(el);
  model.on("change:drawn", tell);
  return () => observer.disconnect();
}
export default { initialize, render };
"""


class Fit(anywidget.AnyWidget):
    """Brings plotly for all figures, and makes these as wide as the page.

    A figure widget is drawn before it has a place there.

    Attributes:
        code: The program of a figure widget.
        drawn: How many figures have been drawn; each is told the width that there is.
    """

    _esm = _FIT
    code = traitlets.Unicode().tag(sync=True)
    drawn = traitlets.Int(0).tag(sync=True)

    def __init__(self) -> None:
        super().__init__(code=str(go.FigureWidget._esm))


class WholeFigure(go.FigureWidget):
    """A figure widget that the browser is told of when it is complete.

    A figure widget is announced empty and filled right afterwards; a browser that is busy draws
    some of them before they are filled, and they stay empty.
    """

    _esm = _FIGURE
    _complete = False

    def __init__(self, figure: go.Figure) -> None:
        traces = [_sendable(trace.to_plotly_json()) for trace in _traces(figure)]
        super().__init__(data=traces, layout=figure.layout)
        self._config = _CONFIG
        self._complete = True
        self.open()

    def open(self) -> None:
        """Announces the widget, once it is complete."""
        if self._complete:
            super().open()


class FigureSlot(widgets.Box):
    """Shows one figure after the other in the same place.

    A figure with traces of the same kinds as the one before is brought up to date in place. Another
    one gets a widget of its own, since a figure widget keeps for later views only what it was made
    with: it is laid over the one before, which goes when the new one has been drawn.

    Attributes:
        shown: The present figure.
        heading: What may stand above it.
    """

    def __init__(self, figure: go.Figure, drawn: Callable[[], None]) -> None:
        """Shows the first figure.

        Args:
            figure: The figure.
            drawn: Is called whenever the browser has drawn a figure for the first time.
        """
        self._drawn = drawn
        self.heading = widgets.HTML()
        super().__init__(layout=widgets.Layout(display="grid", width="100%"))
        self._last = figure
        self._put(figure)

    def show(self, figure: go.Figure) -> bool:
        """Shows a figure; tells whether it has got a widget of its own."""
        if figure is self._last:  # kept by its explorer, since nothing in it has changed
            return False
        self._last = figure
        if _kinds(figure) != _kinds(self.shown):
            self._put(figure)
            return True
        with self.shown.batch_update():
            for old, new in zip(_traces(self.shown), _traces(figure), strict=True):
                old.update(_changes(old, new), overwrite=True)
            self.shown.update_layout(_changes(self.shown.layout, figure.layout), overwrite=True)
        return False

    def _put(self, figure: go.Figure) -> None:
        self.shown = WholeFigure(figure)
        layer = widgets.VBox([self.shown], layout=widgets.Layout(grid_area=_LAYER, width="100%"))
        before = self.children[-1:]
        self.children = (*before, layer)
        fresh = self.shown

        def first(change: Any) -> None:
            if change["new"] is not None:  # plotly takes the message away while it reads it
                fresh.unobserve(first, names=_DRAWN)
                self._clear(layer)

        fresh.observe(first, names=_DRAWN)

    def _clear(self, layer: widgets.Widget) -> None:
        """Takes away what is below the last figure, once that is drawn."""
        if self.children[-1] is layer:
            self.children = (layer,)
        self._drawn()


def _traces(figure: BaseFigure) -> list[Any]:
    return list(figure.data)


def _kinds(figure: BaseFigure) -> list[str]:
    return [trace.type for trace in _traces(figure)]


def _changes(old: Any, new: Any) -> dict[str, Any]:
    """Lists the entries in which a trace or a layout differs from the one before.

    To send the others again would take most of the time of a slider.
    """
    before, after = old.to_plotly_json(), _sendable(new.to_plotly_json())
    gone = {key: None for key in before if key not in after and key != "uid"}
    return gone | {k: v for k, v in after.items() if not _same(before.get(k), v)}


def _sendable(entry: Any) -> Any:
    """Puts None for what is no number in tables: they are sent as JSON, which has no NaN."""
    if isinstance(entry, np.ndarray):
        if entry.ndim < 2 or entry.dtype.kind != "f" or np.isfinite(entry).all():
            return entry
        table = entry.astype(object)
        table[~np.isfinite(entry)] = None
        return table
    if isinstance(entry, dict):
        return {key: _sendable(value) for key, value in entry.items()}
    return [_sendable(value) for value in entry] if isinstance(entry, list) else entry


def _same(one: Any, other: Any) -> bool:
    """Compares entries that may be arrays, or hold some."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        a, b = np.asarray(one), np.asarray(other)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other
