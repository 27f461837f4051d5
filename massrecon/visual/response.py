"""Figures of the detector: what it finds, how well it measures it, and how much there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from massrecon.events.performance import Measured, Performance
from massrecon.visual.template import COLOURS, DASHES, LEGEND_ABOVE, MARKERS, finish

OBJECT_EDGES = (20, 30, 40, 50, 70, 100, 150, 200, 300, 500)
"""Edges of the bins of true pT of leptons and photons [GeV]."""

JET_EDGES = (20, 30, 40, 50, 65, 80, 100, 130, 170, 220, 300, 400, 600)
"""The same for jets."""

JET_REGIONS = ((0.0, 1.3), (1.3, 2.5), (2.5, 4.0))
"""Ranges of absolute pseudorapidity of jets."""

HT_EDGES = (400, 600, 800, 1000, 1250, 1500, 2000, 3000)
"""Edges of the bins of the scalar sum of pT [GeV]."""

_ENOUGH = 10  # objects in a bin that is drawn
_KINDS = ("electron", "muon", "photon")
_LOG_PT = {"type": "log", "tickvals": [20, 50, 100, 200, 500], "minor": {"ticks": ""}}
_PT = "true <i>p</i><sub>T</sub> [GeV]"
_RESOLUTION = "<i>p</i><sub>T</sub> resolution [%]"


def object_performance(sample: Performance) -> go.Figure:
    """Draws efficiency and resolution of electrons, muons and photons against their true pT.

    Args:
        sample: Truth and reconstruction.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.11)
    for number, kind in enumerate(_KINDS):
        found = sample.of(kind)
        _add(figure, found.efficiency(OBJECT_EDGES), 100, kind, number, 1)
        _add(figure, found.response(OBJECT_EDGES)[1], 100, kind, number, 2)
    figure.update_xaxes(title_text=_PT, **_LOG_PT)
    figure.update_yaxes(title_text="efficiency [%]", range=[0, 103], col=1)
    figure.update_yaxes(title_text=_RESOLUTION, rangemode="tozero", col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        "Electrons, muons and photons of the hard collision with |η| < 2.5: how many are found, "
        "isolated and identified, and half of the central 68 % of measured over true pT. "
        f"{len(sample.ht):,} collisions; bars are statistical errors."
    )
    return finish(figure, caption, height=430)


def jet_performance(sample: Performance) -> go.Figure:
    """Draws efficiency, median response and resolution of jets by true pT and pseudorapidity.

    Args:
        sample: Truth and reconstruction.
    """
    figure = make_subplots(1, 3, horizontal_spacing=0.1)
    for number, (low, high) in enumerate(JET_REGIONS):
        jets, name = sample.jets.within(low, high), f"{low:g} < |η| < {high:g}"
        median, width = jets.response(JET_EDGES)
        for column, measured in enumerate((jets.efficiency(JET_EDGES), median, width), start=1):
            _add(figure, measured, 1 if column == 2 else 100, name, number, column)
    figure.update_xaxes(title_text=_PT, **_LOG_PT)
    figure.update_yaxes(title_text="efficiency [%]", range=[0, 103], col=1)
    figure.update_yaxes(title_text="median response", col=2)
    figure.update_yaxes(title_text=_RESOLUTION, rangemode="tozero", col=3)
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        "Jets against those of the true stable particles: how many are found above 25 GeV, the "
        "median of measured over true pT, and half of its central 68 %. Below about 40 GeV only "
        f"jets that fluctuate upwards pass the threshold. {len(sample.ht):,} collisions."
    )
    return finish(figure, caption, height=430)


def ptmiss_performance(sample: Performance) -> go.Figure:
    """Draws the distribution of measured minus true ptmiss, and its width against HT.

    Args:
        sample: Truth and reconstruction.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.11)
    edges = np.linspace(-100, 100, 51)
    for axis, name in enumerate(("x", "y")):
        counts = np.histogram(sample.ptmiss[:, axis], edges)[0]
        _add_counts(figure, edges, counts, f"<i>{name}</i>", axis, 1)
    width = sample.ptmiss_width(HT_EDGES)
    _add(figure, width, 1, "both axes", 2, 2)
    figure.update_xaxes(title_text="measured − true missing <i>p</i><sub>T</sub> [GeV]", col=1)
    figure.update_yaxes(title_text="collisions per bin", rangemode="tozero", col=1)
    figure.update_xaxes(title_text="<i>H</i><sub>T</sub> [GeV]", col=2)
    figure.update_yaxes(title_text="width of an axis [GeV]", rangemode="tozero", col=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    everywhere = sample.ptmiss_width((0, np.inf))
    caption = (
        "Missing transverse momentum, measured minus true: its two components, and half of their "
        "central 68 % against HT, the scalar sum of the measured pT; "
        f"{everywhere.value[0]:.1f} ± {everywhere.error[0]:.1f} GeV over all. "
        f"{len(sample.ht):,} collisions."
    )
    return finish(figure, caption, height=430)


def multiplicities(sample: Performance) -> go.Figure:
    """Draws how many objects of each kind pass the limits of the card in a collision.

    Args:
        sample: Truth and reconstruction.
    """
    kinds = list(sample.counts)
    figure = make_subplots(1, len(kinds), horizontal_spacing=0.09)
    total = len(sample.ht)
    for column, kind in enumerate(kinds, start=1):
        counts = np.bincount(sample.counts[kind])
        edges = np.arange(len(counts) + 1) - 0.5
        _add_counts(figure, edges, counts, kind, 0, column, 100 / total)
        mean = sample.counts[kind].mean()
        figure.update_xaxes(title_text=f"{kind}s (mean {mean:.2f})", col=column)
    figure.update_yaxes(title_text="collisions [%]", col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=False)
    rate, error = sample.selection_efficiency()
    caption = (
        "Objects within the limits of the card in all collisions, selected or not; the card "
        f"selects {100 * rate:.1f} ± {100 * error:.1f} %. {total:,} collisions."
    )
    return finish(figure, caption, height=360)


def _add(
    figure: go.Figure, measured: Measured, factor: float, name: str, number: int, column: int
) -> None:
    """Adds a quantity in bins that hold enough."""
    edges = np.minimum(measured.edges, 10_000)
    some = measured.number >= _ENOUGH
    colour, marker = COLOURS[number], MARKERS[number]
    figure.add_trace(
        go.Scatter(
            x=np.sqrt(edges[1:] * edges[:-1])[some],
            y=factor * measured.value[some],
            error_y={"array": factor * measured.error[some], "thickness": 1.5, "width": 0},
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=column == 1 or name == "both axes",
            line={"color": colour, "width": 1.5, "dash": DASHES[number]},
            marker={"color": colour, "size": 7, "symbol": marker},
        ),
        row=1,
        col=column,
    )


def _add_counts(
    figure: go.Figure,
    edges: Sequence[float] | np.ndarray,
    counts: np.ndarray,
    name: str,
    number: int,
    column: int,
    scale: float = 1.0,
) -> None:
    """Adds a histogram with its statistical errors."""
    edges, colour = np.asarray(edges), COLOURS[number]
    figure.add_trace(
        go.Scatter(
            x=np.repeat(edges, 2)[1:-1], y=np.repeat(scale * counts, 2), mode="lines", name=name,
            line={"color": colour, "width": 1.5, "dash": DASHES[number]},
        ),
        row=1, col=column,
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=(edges[1:] + edges[:-1]) / 2, y=scale * counts, mode="markers", showlegend=False,
            marker={"color": colour, "size": 1}, hoverinfo="skip",
            error_y={"array": scale * np.sqrt(counts), "width": 0, "thickness": 1.2},
        ),
        row=1, col=column,
    )  # fmt: skip
