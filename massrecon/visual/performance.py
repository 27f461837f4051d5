"""Figures of performance: efficiency by true mass, and predicted against attained efficiency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.inference.tables import EfficiencyTable, SelfConsistency
from massrecon.visual.template import (
    BLACK,
    COLOURS,
    DASHES,
    LEGEND_ABOVE,
    MARKERS,
    finish,
    mass_label,
    plain,
)


def efficiency_curve(
    table: EfficiencyTable,
    mass: str = "chi10",
    estimator: str = "window",
    axis: str | None = None,
    windows: Sequence[float] | None = None,
) -> go.Figure:
    """Draws the efficiency of a mass against a true mass, with the no-skill lines.

    Args:
        table: Efficiencies.
        mass: The mass that is estimated.
        estimator: The estimator.
        axis: The true mass along the horizontal axis; if not given `mass`, or the first mass that
            varies where `mass` itself does not.
        windows: Half-widths to show [GeV]; all if not given.

    Raises:
        InputError: If a mass, estimator or window is not in the table.
    """
    shown = table.windows if windows is None else tuple(windows)
    cells = [table.position(mass, estimator, w) for w in shown]
    axis = _varying_axis(table, mass) if axis is None else axis
    if axis not in table.points:
        raise unknown_name("mass", axis, table.mass_names)
    figure = go.Figure()
    for number, (width, cell) in enumerate(zip(shown, cells, strict=True)):
        _add_curve(figure, table, cell, axis, number, f"within {width:g} GeV")
    figure.add_trace(
        go.Scatter(x=[None], y=[None], mode="lines", name="no skill (same colour)",
                   line={"color": BLACK, "width": 1.5, "dash": "dot"})
    )  # fmt: skip
    symbols = dict(zip(table.mass_names, table.symbols, strict=True))
    figure.update_xaxes(title_text=f"true {mass_label(symbols[axis])} [GeV]")
    figure.update_yaxes(
        title_text=f"efficiency for {mass_label(symbols[mass])} [%]", range=[0, 102]
    )
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"Share of events whose estimated m({plain(symbols[mass])}) ({estimator}) lies within a "
        "window around the truth, with 68 % binomial errors; dotted: the best constant guess. "
        f"{table.n_events:,} events."
    )
    return finish(figure, caption, height=480)


def efficiency_by_model(
    tables: Mapping[str, EfficiencyTable],
    mass: str,
    window: float = 30.0,
    estimators: Sequence[str] = ("window", "draw"),
    axis: str | None = None,
) -> go.Figure:
    """Draws the efficiency of a mass against a true mass for several models and estimators.

    Args:
        tables: Efficiencies of the same events, by the name of the model.
        mass: The mass that is estimated.
        window: Half-width of the window [GeV].
        estimators: The estimators, each with a dash of its own.
        axis: The true mass along the horizontal axis; `mass`, or what varies, if not given.

    Raises:
        InputError: If there is no table, or a name or window is not in one.
    """
    if not tables or not estimators:
        raise InputError("There should be at least one table and one estimator to draw.")
    first = next(iter(tables.values()))
    axis = _varying_axis(first, mass) if axis is None else axis
    if axis not in first.points:
        raise unknown_name("mass", axis, first.mass_names)
    figure = go.Figure()
    for model, (name, table) in enumerate(tables.items()):
        for number, estimator in enumerate(estimators):
            cell = table.position(mass, estimator, window)
            rates, points = table.points[axis].rates, table.points[axis].points
            value = _percent(rates.value[cell])
            ends = (_percent(rates.high[cell]) - value, value - _percent(rates.low[cell]))
            figure.add_trace(
                go.Scatter(
                    x=points.value.tolist(), y=value, mode="lines+markers",
                    name=f"{name}, {estimator}",
                    error_y={"symmetric": False, "array": ends[0], "arrayminus": ends[1]},
                    line={"color": COLOURS[model % len(COLOURS)], "dash": DASHES[number]},
                    marker={"symbol": MARKERS[model % len(MARKERS)], "size": 8},
                )
            )  # fmt: skip
    i, _, w = first.position(mass, estimators[0], window)
    figure.add_hline(
        y=100 * float(first.no_skill.rates.value[i, w]), line={"color": BLACK, "dash": "dot"},
        annotation_text="best constant guess", annotation_position="bottom right",
    )  # fmt: skip
    symbols = dict(zip(first.mass_names, first.symbols, strict=True))
    figure.update_xaxes(title_text=f"true {mass_label(symbols[axis])} [GeV]")
    label = f"{mass_label(symbols[mass])} within {window:g} GeV [%]"
    figure.update_yaxes(title_text=label, range=[0, 102])
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"Share of events whose m({plain(symbols[mass])}) is found within {window:g} GeV, by model "
        f"and estimator, with 68 % binomial errors. {first.n_events:,} events."
    )
    return finish(figure, caption, height=480)


def self_consistency(table: EfficiencyTable) -> go.Figure:
    """Draws the efficiency that the posterior predicts for itself against the one it attains.

    A mass with one value in all events and draws is left out, unless there is no other.

    Args:
        table: Efficiencies of a posterior with at least two draws.

    Raises:
        InputError: If the table has no self-consistency.
    """
    own = table.self_consistency
    if own is None:
        raise InputError("Self-consistency needs at least two draws for each event.")
    figure = make_subplots(1, 2, horizontal_spacing=0.11)
    last = 1.08 * max(table.windows)
    for column, x, y in ((1, [0, 100], [0, 100]), (2, [0, last], [0, 0])):
        line = go.Scatter(
            x=x, y=y, mode="lines", name="calibrated", hoverinfo="skip",
            line={"color": BLACK, "width": 1.2, "dash": "dash"}, showlegend=column == 1,
        )  # fmt: skip
        figure.add_trace(line, row=1, col=column)
    shown = [i for i, name in enumerate(table.mass_names) if not table.is_trivial(name)]
    for i in shown or range(len(table.mass_names)):
        _add_consistency(figure, table, own, i)
    for text, x, y in (("over-confident", 100, 6), ("under-confident", 3, 97)):
        side = "right" if x > 50 else "left"
        figure.add_annotation(text=text, x=x, y=y, xanchor=side, showarrow=False, row=1, col=1)
    figure.update_xaxes(title_text="predicted efficiency [%]", range=[0, 105], col=1)
    figure.update_xaxes(title_text="half-width of the window [GeV]", range=[0, last], col=2)
    figure.update_yaxes(title_text="attained efficiency [%]", range=[0, 105], col=1)
    figure.update_yaxes(title_text="attained − predicted [% points]", col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        "Efficiency that the posterior predicts for its own window estimate against the attained "
        "one (numbers: half-width of the window in GeV), and their difference. A calibrated "
        "posterior lies on the dashed line."
    )
    return finish(figure, caption, height=480)


def _add_consistency(
    figure: go.Figure, table: EfficiencyTable, own: SelfConsistency, i: int
) -> None:
    predicted, attained = _percent(own.predicted[i]), _percent(own.attained[i])
    style = {
        "line": {"color": COLOURS[i], "width": 1, "dash": "dot"},
        "marker": {"color": COLOURS[i], "symbol": MARKERS[i], "size": 8},
        "name": mass_label(table.symbols[i]),
        "legendgroup": table.mass_names[i],
    }
    errors = {
        "error_x": {"array": _percent(own.predicted_error[i].nan_to_num())},
        "error_y": {"array": _percent(own.attained_error[i].nan_to_num())},
    }
    direct = go.Scatter(
        x=predicted, y=attained, mode="lines+markers+text", **errors, **style,
        text=[f"{w:g}" for w in table.windows], textfont={"color": COLOURS[i], "size": 12},
        textposition="top left" if i % 2 == 0 else "bottom right",
    )  # fmt: skip
    shift = 0.006 * max(table.windows) * (2 * i - len(table.mass_names) + 1)
    difference = go.Scatter(
        x=[w + shift for w in table.windows], y=attained - predicted, mode="lines+markers",
        showlegend=False, **style,
        error_y={"array": _percent(own.difference_error[i].nan_to_num()), "thickness": 1.5},
    )  # fmt: skip
    figure.add_traces([direct, difference], rows=[1, 1], cols=[1, 2])


def _varying_axis(table: EfficiencyTable, mass: str) -> str:
    order = [mass, *(name for name in table.mass_names if name != mass)]
    return next((name for name in order if len(table.points[name].points) > 1), mass)


def _add_curve(
    figure: go.Figure,
    table: EfficiencyTable,
    cell: tuple[int, int, int],
    axis: str,
    number: int,
    name: str,
) -> None:
    points, rates = table.points[axis].points, table.points[axis].rates
    colour = COLOURS[number % len(COLOURS)]
    value = _percent(rates.value[cell])
    ends = points.value if points.edges is None else points.edges
    span = [float(ends[0]), float(ends[-1])]
    figure.add_trace(
        go.Scatter(
            x=points.value.tolist(),
            y=value,
            error_y={
                "symmetric": False,
                "array": _percent(rates.high[cell]) - value,
                "arrayminus": value - _percent(rates.low[cell]),
                "thickness": 1.5,
            },
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 1.5, "dash": DASHES[number % len(DASHES)]},
            marker={"color": colour, "size": 8, "symbol": MARKERS[number % len(MARKERS)]},
        )
    )
    mark = span[1] - 0.02 * number * (span[1] - span[0])  # error bars beside each other
    no_skill = 100 * float(table.no_skill.rates.value[cell[0], cell[2]])
    error = 100 * float(table.no_skill.rates.error[cell[0], cell[2]])
    figure.add_trace(
        go.Scatter(x=[span[0], mark, span[1]], y=[no_skill] * 3, mode="lines",
                   name=f"no skill, {name}", legendgroup=name, showlegend=False, cliponaxis=False,
                   error_y={"array": [0, error, 0], "thickness": 1.5, "width": 3},
                   line={"color": colour, "width": 1.5, "dash": "dot"})
    )  # fmt: skip


def _percent(values: Tensor) -> np.ndarray:
    return 100 * values.cpu().numpy()
