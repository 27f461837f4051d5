"""The house style of figures: one plotly template, one set of colours, labels with units.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart; every line
also has its own dash and every marker its own symbol. Labels are Unicode and HTML, since LaTeX
needs a network connection in JupyterLab.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

from massrecon.events.card import ProcessCard

Trace = BaseTraceType | dict[str, Any]
"""A trace of a figure, or its entries with its ``type``."""

BLACK = "#000000"
GREY = "#7F7F7F"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Colours of curves in their order."""

DASHES = ("solid", "dash", "dashdot", "longdash", "dot", "longdashdot", "solid")
"""Dashes of curves, the second code beside the colour."""

MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
"""Marker symbols of curves, likewise."""

BAND = "rgba(127, 127, 127, 0.35)"
"""Fill of an uncertainty band."""

WHITE_TO_BLUE = [[0.0, "#FFFFFF"], [0.15, "#D6E6F4"], [0.5, "#6AAED6"], [1.0, "#0B4A8A"]]
"""Colours of densities and counts, white where there is nothing."""

LEGEND_ABOVE = {
    "orientation": "h",
    "x": 0.5,
    "xanchor": "center",
    "y": 1.01,
    "yanchor": "bottom",
    "bgcolor": "rgba(0, 0, 0, 0)",
}
"""Place of a legend above the panels."""

_AXIS = {
    "showline": True,
    "mirror": "allticks",
    "ticks": "inside",
    "ticklen": 6,
    "linecolor": BLACK,
    "linewidth": 1.2,
    "tickcolor": BLACK,
    "showgrid": False,
    "zeroline": False,
    "minor": {"ticks": "inside", "ticklen": 3, "tickcolor": BLACK},
    "ticklabeloverflow": "allow",  # to look for labels that stick out takes a sixth of the drawing
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "DejaVu Sans, Arial, Helvetica, sans-serif", "size": 14, "color": BLACK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": COLOURS,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 70, "r": 20, "t": 75, "b": 60},
        "hovermode": "closest",
    }
)

_COMPONENTS = {
    "px": "<i>p</i><sub>x</sub>",
    "py": "<i>p</i><sub>y</sub>",
    "pz": "<i>p</i><sub>z</sub>",
    "m": "<i>m</i>",
}


_UNICODE_DIGITS = {
    "sub": str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"),
    "sup": str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"),
}


def drawing(
    traces: Sequence[Trace], layout: Mapping[str, Any], caption: str, height: int
) -> go.Figure:
    """Makes a figure in the house style at once: what a slider moves is made many times.

    To add the style to a figure that is there, as `finish` does, takes twice as long.

    Args:
        traces: Traces, or plain dictionaries of them, whose entries are checked once and not twice.
        layout: What its layout has beside the style.
        caption: The one-line caption, which is kept in ``layout.meta["caption"]``.
        height: Height [pixels].
    """
    style = {"template": TEMPLATE, "height": height, "meta": {"caption": caption}}
    return go.Figure(list(traces), {**layout, **style})


def finish(figure: go.Figure, caption: str, height: int) -> go.Figure:
    """Applies the house style and keeps a one-line caption in ``layout.meta["caption"]``."""
    return figure.update_layout(template=TEMPLATE, height=height, meta={"caption": caption})


def plain(symbol: str) -> str:
    """Writes an HTML symbol in Unicode alone, for captions and text: ``χ̃₁⁰``."""
    text = symbol
    for tag, digits in _UNICODE_DIGITS.items():
        text = re.sub(f"<{tag}>(.*?)</{tag}>", lambda m, d=digits: m[1].translate(d), text)
    return text


def mass_label(symbol: str) -> str:
    """Labels the mass of a particle, without a unit."""
    return f"<i>m</i>({symbol})"


def target_label(card: ProcessCard, target: str) -> str:
    """Labels a target such as ``chi20_px``, without a unit."""
    particle, component = target.rsplit("_", 1)
    return f"{_COMPONENTS[component]}({card.symbol(particle)})"
