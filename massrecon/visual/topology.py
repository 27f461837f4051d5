"""Figures of a decay: its diagram on paper, and tables of what follows from it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.kinematics.legs import DecayLegs
from massrecon.visual.diagram import decay_diagram
from massrecon.visual.template import BLACK, finish

_SIZE = re.compile(r'width="(\d+)" height="(\d+)" role="img"')
_HEAD = "#DCE6EE"
_ROW_HEIGHT = 28
_LARGEST = 620.0
_UNSAFE = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def diagram_figure(source: ProcessCard | DecayLegs) -> go.Figure:
    """Draws a decay as a plotly figure that holds the SVG of `decay_diagram` as an image.

    An image runs no script and loads nothing, whatever the names in the decay are.

    Args:
        source: A process card, or a decay with the roles of its legs.
    """
    svg = decay_diagram(source, dark=False)
    found = _SIZE.search(svg)
    width, height = (float(found[1]), float(found[2])) if found else (800.0, 400.0)
    data = base64.b64encode(svg.encode()).decode()
    figure = go.Figure()
    figure.add_layout_image(
        source=f"data:image/svg+xml;base64,{data}", x=0, y=1, sizex=1, sizey=1, xref="paper",
        yref="paper", sizing="contain", xanchor="left", yanchor="top", layer="below",
    )  # fmt: skip
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10}, dragmode=False)
    legs = source.topology.legs
    caption = f"The decay with {len(legs)} final particles; width of the drawing {width:.0f}."
    return finish(figure, caption, height=round(min(height, _LARGEST)) + 20)


def table_figure(columns: Mapping[str, Sequence[object]], caption: str) -> go.Figure:
    """Shows a table.

    Args:
        columns: The entries of each column by its heading, equally many; markup in them is shown as
            text.
        caption: What the table shows.

    Raises:
        InputError: If there is no column, or their lengths differ.
    """
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise InputError(f"'columns' should be one or more of equal length, got {lengths or 0}.")
    cells = [[str(v).translate(_UNSAFE) for v in values] for values in columns.values()]
    style = {"align": "left", "height": _ROW_HEIGHT, "line": {"color": "#B8C4CE"}}
    font = {"color": BLACK, "size": 13}
    widths = [
        max(map(len, [head, *column])) + 2 for head, column in zip(columns, cells, strict=True)
    ]
    figure = go.Figure(
        go.Table(
            header={**style, "values": [f"<b>{name}</b>" for name in columns],
                    "fill": {"color": _HEAD}, "font": font},
            cells={**style, "values": cells, "fill": {"color": "white"}, "font": font},
            columnwidth=[min(width, 60) for width in widths],
        )
    )  # fmt: skip
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10})
    rows = min(lengths.pop() + 1, 14)
    return finish(figure, caption, height=_ROW_HEIGHT * rows + 40)
