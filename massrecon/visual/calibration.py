"""Figures of calibration: ranks, coverage with bands and over the plane, pulls and impacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.calibration import CalibrationCurve, RankHistogram
from massrecon.inference.coverage import CoverageMap
from massrecon.inference.statistics import MassPoints
from massrecon.inference.systematics import Systematics
from massrecon.visual.template import (
    BAND,
    BLACK,
    COLOURS,
    DASHES,
    LEGEND_ABOVE,
    MARKERS,
    Trace,
    drawing,
    finish,
    mass_label,
    plain,
)

_GAP = 0.08


def rank_histograms(
    histograms: Mapping[str, RankHistogram], symbols: Mapping[str, str] | None = None
) -> go.Figure:
    """Draws how the true masses are distributed over the ranks of their posteriors.

    Args:
        histograms: Rank histograms by mass, such as ``CalibrationReport.ranks``.
        symbols: Symbols in HTML by mass; the names if not given.

    Raises:
        InputError: If there is no histogram.
    """
    if not histograms:
        raise InputError("There should be at least one rank histogram to draw.")
    traces: list[Trace] = []
    for column, histogram in enumerate(histograms.values(), 1):
        traces += _ranks(histogram, column)
    titles = [mass_label((symbols or {}).get(name, name)) for name in histograms]
    spread = "; ".join(
        f"m({plain((symbols or {}).get(name, name))}): slope {h.slope:+.3f} ± {h.slope_error:.3f}, "
        f"variance {h.spread:.2f} ± {h.spread_error:.2f}"
        for name, h in histograms.items()
    )
    caption = (
        "Ranks of the true masses among draws of their posteriors. A valley is an over-confident "
        f"posterior (variance above one), a slope a bias. {spread}."
    )
    return drawing(traces, _side_by_side(titles), caption, height=420)


def _ranks(histogram: RankHistogram, column: int) -> list[Trace]:
    """Draws a histogram and its band in one of the panels."""
    edges, band = histogram.edges.numpy(), histogram.band.numpy()
    centre, first = (edges[1:] + edges[:-1]) / 2, column == 1
    low, high = (1 - band).clip(min=0), 1 + band
    place = {"xaxis": _axis("x", column), "yaxis": _axis("y", column)}
    bars: Trace = {
        "type": "scatter", "x": centre, "y": histogram.density.numpy(), "mode": "markers",
        "showlegend": first, "name": "events", "marker": {"color": COLOURS[0], "size": 7}, **place,
        "error_y": {"array": histogram.error.numpy(), "thickness": 1.5},
        "error_x": {"array": np.diff(edges) / 2, "thickness": 1, "width": 0},
    }  # fmt: skip
    return [*_band(centre, low, high, "95 % of calibrated posteriors", first, **place), bars]


def _axis(letter: str, column: int) -> str:
    return letter if column == 1 else f"{letter}{column}"


def _side_by_side(titles: Sequence[str]) -> dict[str, Any]:
    """Lays out panels of ranks, all at once: an explorer draws them while a slider moves."""
    width = (1 + _GAP) / len(titles) - _GAP
    layout: dict[str, Any] = {"legend": LEGEND_ABOVE, "annotations": []}
    for column, title in enumerate(titles, 1):
        left = (column - 1) * (width + _GAP)
        x, y = (f"{letter}axis{'' if column == 1 else column}" for letter in "xy")
        layout[x] = {"domain": [left, left + width], "anchor": _axis("y", column), "range": [0, 1],
                     "title": {"text": "share of draws below the truth"}}  # fmt: skip
        layout[y] = {"anchor": _axis("x", column), "rangemode": "tozero"}
        if column == 1:
            layout[y]["title"] = {"text": "events, relative to even ranks"}
        else:
            layout[y] |= {"matches": "y", "showticklabels": False}
        layout["annotations"].append(
            {"text": title, "x": left + width / 2, "y": 1.0, "xref": "paper", "yref": "paper",
             "xanchor": "center", "yanchor": "bottom", "showarrow": False, "font": {"size": 16}}
        )  # fmt: skip
    return layout


def coverage_curves(curves: Mapping[str, CalibrationCurve], title: str = "") -> go.Figure:
    """Draws the share of events with the truth inside regions, less the content of the regions.

    Args:
        curves: Curves by name, such as ``{"before": ..., "after": ...}``.
        title: Title of the figure.

    Raises:
        InputError: If there is no curve.
    """
    if not curves:
        raise InputError("There should be at least one calibration curve to draw.")
    first = next(iter(curves.values()))
    level = 100 * first.levels.numpy()
    low, high = (100 * end.numpy() - level for end in (first.low, first.high))
    traces = _band(level, low, high, "95 % of calibrated posteriors", True)
    for i, (name, curve) in enumerate(curves.items()):
        x = 100 * curve.levels.numpy()
        traces.append(
            {"type": "scatter", "x": x, "y": 100 * curve.share.numpy() - x, "mode": "lines",
             "name": f"{name} (p {_probability(curve.p_value)})",
             "line": {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)]}}
        )  # fmt: skip
    zero = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": 0, "y1": 0,
            "line": {"color": BLACK, "width": 1, "dash": "dot"}}  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "content of the region [%]"}, "range": [0, 100]},
        "yaxis": {"title": {"text": "coverage − content [% points]"}},
        "legend": LEGEND_ABOVE, "title": {"text": title, "x": 0.5}, "shapes": [zero],
        "margin": {"t": 75 if len(curves) < 4 else 100},  # for a second row of the legend
    }  # fmt: skip
    caption = (
        "How often regions hold the truth, less what they claim: below zero posteriors are "
        f"over-confident. {first.n_events:,} events in {first.n_groups:,} independent groups; a "
        "curve leaves the band in 5 % of the cases if the posterior is calibrated."
    )
    return drawing(traces, layout, caption, height=460)


def _probability(p: float) -> str:
    return f"= {p:.2g}" if p >= 0.001 else "&lt; 0.001"


def _band(
    x: np.ndarray, low: np.ndarray, high: np.ndarray, name: str, legend: bool, **place: str
) -> list[Trace]:
    edge: dict[str, Any] = {"type": "scatter", "x": x, "mode": "lines", "line": {"width": 0}}
    edge |= {"hoverinfo": "skip", "legendgroup": name, **place}
    filled = {"fill": "tonexty", "fillcolor": BAND, "name": name, "showlegend": legend}
    return [edge | {"y": low, "showlegend": False}, edge | {"y": high} | filled]


def coverage_maps(maps: Sequence[CoverageMap], titles: Sequence[str] | None = None) -> go.Figure:
    """Draws coverage over the plane of two true masses, side by side on one colour scale.

    Args:
        maps: One or more maps of one level.
        titles: A title for each; its level if not given.

    Raises:
        InputError: If there is no map, not one title for each, or the levels differ.
    """
    titles = [f"{100 * m.level:g} % regions" for m in maps] if titles is None else list(titles)
    if not maps or len(titles) != len(maps) or len({m.level for m in maps}) != 1:
        raise InputError(
            f"'maps' should be one or more of one level with a title each, got {len(maps)} and "
            f"{len(titles)}."
        )
    figure = make_subplots(
        cols=len(maps), horizontal_spacing=_GAP, subplot_titles=titles, shared_yaxes=True
    )
    for column, m in enumerate(maps, 1):
        figure.add_trace(_heat(m), row=1, col=column)
        symbol = mass_label(m.symbols[m.x.mass])
        figure.update_xaxes(title_text=f"true {symbol} [GeV]", row=1, col=column)
    first = maps[0]
    figure.update_yaxes(title_text=f"true {mass_label(first.symbols[first.y.mass])} [GeV]", col=1)
    away = max(
        10.0, *(float((100 * (m.coverage - m.level)).nan_to_num().abs().max()) for m in maps)
    )
    figure.update_layout(
        coloraxis={
            "cmin": -away, "cmax": away, "colorscale": "RdBu",
            "colorbar": {"title": {"text": "coverage − content [% points]", "side": "right"},
                         "thickness": 14},
        }
    )  # fmt: skip
    events = ", ".join(
        f"{plain(t)}: {int(m.n_events.sum()):,} events" for t, m in zip(titles, maps, strict=True)
    )
    caption = (
        f"How often {100 * first.level:g} % regions hold the truth, in cells of the true masses "
        f"[%], with errors from mass points. Red cells are over-confident. {events}."
    )
    return finish(figure, caption, height=460)


def _heat(m: CoverageMap) -> go.Heatmap:
    value, error = 100 * m.coverage.T.numpy(), 100 * m.error.T.numpy()

    def text(v: float, e: float) -> str:
        if not np.isfinite(v):
            return ""
        return f"{v:.0f}<br>±{e:.0f}" if np.isfinite(e) else f"{v:.0f}"

    def hover(v: float, e: float) -> str:
        return f"{v:.1f} ± {e:.1f} %" if np.isfinite(e) else f"{v:.1f} %"

    return go.Heatmap(
        x=_positions(m.x), y=_positions(m.y), z=value - 100 * m.level, coloraxis="coloraxis",
        text=np.vectorize(text, otypes=[str])(value, error), texttemplate="%{text}",
        textfont={"size": 10}, hoverongaps=False,
        hovertext=np.vectorize(hover, otypes=[str])(value, error),
        hovertemplate="%{x:.0f}, %{y:.0f} GeV: %{hovertext}<extra></extra>",
    )  # fmt: skip


def _positions(points: MassPoints) -> np.ndarray:
    edges: Tensor | None = points.edges
    return points.value.numpy() if edges is None else edges.numpy()


def region_coverage(
    rates: Mapping[str, Mapping[int, tuple[float, float]]],
    level: float,
    goal: tuple[float, float] | None = None,
) -> go.Figure:
    """Draws the coverage of regions against the number of events they are made of.

    Args:
        rates: Coverage and its error for each number of events, by kind of measurement.
        level: Content of the regions.
        goal: Lowest and highest coverage that is good enough; none drawn if not given.

    Raises:
        InputError: If there is nothing to draw.
    """
    if not rates or not all(rates.values()):
        raise InputError("'rates' should hold coverage for one or more numbers of events.")
    figure = go.Figure()
    if goal is not None:
        figure.add_hrect(y0=100 * goal[0], y1=100 * goal[1], fillcolor=BAND, line_width=0)
    figure.add_hline(y=100 * level, line={"color": BLACK, "width": 1, "dash": "dot"})
    for i, (name, by_size) in enumerate(rates.items()):
        shift = 1.03 ** (i - (len(rates) - 1) / 2)  # error bars beside each other
        figure.add_trace(
            go.Scatter(
                x=[size * shift for size in by_size], y=[100 * v for v, _ in by_size.values()],
                error_y={"array": [100 * e for _, e in by_size.values()], "thickness": 1.5},
                mode="lines+markers", name=name,
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)]},
                marker={"symbol": MARKERS[i % len(MARKERS)], "size": 9},
            )
        )  # fmt: skip
    sizes = sorted({size for by_size in rates.values() for size in by_size})
    figure.update_xaxes(title_text="events", type="log", tickvals=sizes, minor={"ticks": ""})
    figure.update_yaxes(title_text=f"coverage of {100 * level:g} % regions [%]")
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"How often {100 * level:g} % regions hold the true masses, averaged over mass points of "
        "the plane, with standard errors from the spread of the points."
    )
    return finish(figure, caption, height=440)


def impacts_and_pulls(
    systematics: Systematics,
    mass: Tensor,
    pulls: tuple[Tensor, Tensor],
    symbols: Sequence[str],
) -> go.Figure:
    """Draws what each nuisance parameter does to the masses, and what it would have to be.

    Args:
        systematics: The nuisance parameters.
        mass: Masses at which both are taken [GeV], shape ``(M,)``.
        pulls: Values and errors of one measurement from `Systematics.pulls`, each ``(K,)``.
        symbols: Symbols of the M masses, in HTML.

    Raises:
        InputError: If the numbers do not fit.
    """
    impacts = systematics.impacts(mass)
    values, errors = (t.reshape(-1) for t in pulls)
    if len(values) != len(impacts) or len(errors) != len(values) or len(symbols) != len(mass):
        raise InputError(
            f"'pulls' should have {len(impacts)} values and errors and 'symbols' {len(mass)} "
            f"entries, got {len(values)}, {len(errors)} and {len(symbols)}."
        )
    names = list(systematics.names)
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05)
    for i, symbol in enumerate(symbols):
        bars = go.Bar(
            x=impacts[:, i].tolist(), y=names, orientation="h", name=mass_label(symbol),
            marker={"color": COLOURS[i], "pattern": {"shape": ("", "/", "x")[i % 3]}},
        )  # fmt: skip
        figure.add_trace(bars, row=1, col=1)
    points = go.Scatter(
        x=values.tolist(), y=names, mode="markers", name="pull", showlegend=False,
        error_x={"array": errors.tolist()}, marker={"color": BLACK, "size": 9},
    )  # fmt: skip
    figure.add_trace(points, row=1, col=2)
    for x, dash in ((-1, "dash"), (0, "dot"), (1, "dash")):
        place: Any = {"row": 1, "col": 2}
        figure.add_vline(x=x, line={"color": BLACK, "width": 1, "dash": dash}, **place)
    figure.update_xaxes(title_text="shift of the masses for +1σ [GeV]", row=1, col=1)
    figure.update_xaxes(title_text="pull [σ]", range=[-2.5, 2.5], row=1, col=2)
    figure.update_yaxes(automargin=True)
    figure.update_layout(legend=LEGEND_ABOVE, barmode="group")
    one = "; ".join(f"{shift.name}: {shift.sigma}" for shift in systematics.shifts)
    caption = (
        "Left: by how much one standard deviation of each nuisance parameter moves the masses. "
        "Right: the values that explain the measurement if the masses are the given ones, with "
        f"errors; ±1 is what is known beforehand. One standard deviation is, {one}."
    )
    return finish(figure, caption, height=320 + 40 * len(names))
