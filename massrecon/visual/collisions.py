"""Figures of collisions: what was reconstructed, and which masses the sample covers."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv
from massrecon.visual.template import BLUE, finish, mass_label

_COLUMNS = 3
_MAX_POINTS = 40


def event_overview(events: Events) -> go.Figure:
    """Draws distributions of the reconstructed objects of a sample.

    One panel for the transverse momentum of the leading object of each kind, the invariant mass
    of pairs that fill their two slots, the number of jets and the missing transverse momentum.

    Args:
        events: The events; weights are taken into account.

    Raises:
        InputError: If there is no event.
    """
    _refuse_empty(events)
    panels = _overview_panels(events)
    rows = -(-len(panels) // _COLUMNS)
    figure = make_subplots(rows, _COLUMNS, horizontal_spacing=0.07, vertical_spacing=0.36 / rows)
    for number, (label, values, present, edges) in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        _add_histogram(figure, values[present], events.weight[present], edges, row, column)
        figure.update_xaxes(title_text=label, row=row + 1, col=column + 1)
    figure.update_yaxes(title_text="events per bin", col=1)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_layout(margin={"l": 75, "r": 15, "t": 25, "b": 60})
    caption = (
        f"Reconstructed objects of {len(events):,} selected events of {events.card.title}; "
        "bars are statistical errors."
    )
    return finish(figure, caption, height=300 * rows)


def mass_coverage(events: Events, n_bins: int = 20) -> go.Figure:
    """Draws the true masses of a sample: each mass, and the plane of the first two that vary.

    Args:
        events: Events with true masses.
        n_bins: Bins of each mass.

    Raises:
        InputError: If there is no event, or no truth.
    """
    _refuse_empty(events)
    if events.masses is None:
        raise InputError("These events carry no true masses: there is no coverage to show.")
    varying = [i for i, m in enumerate(events.masses.T) if float(m.max() - m.min()) > 0]
    names = [events.card.mass_names[i] for i in (varying or range(events.masses.shape[1]))]
    labels = [f"{mass_label(events.card.symbol(name))} [GeV]" for name in names[:2]]
    columns = [events.masses[:, events.card.mass_names.index(name)] for name in names[:2]]
    if len(varying) > 1:
        figure = _mass_plane(columns, labels, n_bins)
    else:
        figure = make_subplots(1, 1)
        edges = _edges(columns[0], n_bins)
        points, index = columns[0].unique(return_inverse=True)
        weight = events.weight.new_zeros(len(points)).index_add_(0, index, events.weight)
        # events of a mass point come and go together, so it is the points that fluctuate
        _add_histogram(figure, points, weight, edges, 0, 0)
        figure.update_xaxes(title_text=labels[0])
        figure.update_yaxes(title_text="events per bin", rangemode="tozero")
    points = len(torch.unique(events.masses, dim=0))
    caption = f"True masses of {len(events):,} selected events at {points:,} mass points."
    return finish(figure, caption, height=420)


Panel = tuple[str, Tensor, Tensor, np.ndarray]


def _overview_panels(events: Events) -> list[Panel]:
    """Returns axis label, values (N,), presence (N,) and bin edges of each panel."""
    everywhere = torch.ones(len(events), dtype=torch.bool)
    panels: list[Panel] = []
    for group in events.card.objects:
        slots = events.slots_of(group.kind)
        leading, present = events.p4[:, slots[0]], events.present[:, slots[0]]
        name = group.kind if group.count == 1 else f"leading {group.kind}"
        panels.append(_panel(f"<i>p</i><sub>T</sub>({name}) [GeV]", fv.pt(leading), present))
        if group.pair_mass is not None:
            both = events.present[:, slots].all(1)
            mass = fv.mass(events.p4[:, slots].sum(1))
            edges = np.linspace(group.pair_mass - 20, group.pair_mass + 20, 41)
            panels.append((f"<i>m</i>({group.kind} pair) [GeV]", mass, both, edges))
    jets = events.present[:, events.slots_of("jet")].sum(1).double()
    panels.append(("number of jets", jets, everywhere, np.arange(jets.max().item() + 2) - 0.5))
    met = torch.linalg.vector_norm(events.ptmiss, dim=1)
    panels.append(_panel("missing <i>p</i><sub>T</sub> [GeV]", met, everywhere))
    return panels


def _panel(label: str, values: Tensor, present: Tensor) -> Panel:
    high = float(np.quantile(values[present].numpy(), 0.99)) if bool(present.any()) else 1.0
    return label, values, present, np.linspace(0, high, 41)


def _add_histogram(
    figure: go.Figure, values: Tensor, weight: Tensor, edges: np.ndarray, row: int, column: int
) -> None:
    x, w = values.numpy(), weight.numpy()
    counts = np.histogram(x, edges, weights=w)[0]
    errors = np.sqrt(np.histogram(x, edges, weights=w**2)[0])
    figure.add_trace(
        go.Scatter(x=np.repeat(edges, 2)[1:-1], y=np.repeat(counts, 2), mode="lines",
                   line={"color": BLUE, "width": 1.5}, hoverinfo="skip", showlegend=False),
        row=row + 1, col=column + 1,
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(x=(edges[1:] + edges[:-1]) / 2, y=counts, mode="markers", showlegend=False,
                   marker={"color": BLUE, "size": 1},
                   error_y={"array": errors, "width": 0, "thickness": 1.2}),
        row=row + 1, col=column + 1,
    )  # fmt: skip


def _mass_plane(masses: list[Tensor], labels: list[str], n_bins: int) -> go.Figure:
    x_edges, y_edges = (_edges(mass, n_bins) for mass in masses)
    counts = np.histogram2d(masses[0].numpy(), masses[1].numpy(), [x_edges, y_edges])[0]
    heat = go.Heatmap(
        x=x_edges, y=y_edges, z=np.where(counts > 0, counts, np.nan).T, colorscale="Viridis",
        colorbar={"title": "events"},
    )  # fmt: skip
    figure = go.Figure(heat)
    return figure.update_layout(xaxis_title=labels[0], yaxis_title=labels[1])


def _edges(values: Tensor, n_bins: int) -> np.ndarray:
    """Returns bin edges: around each value of a grid, even over a range."""
    points = np.unique(values.numpy())
    if len(points) == 1:
        return points[0] + np.array([-1.0, 1.0])
    if len(points) > _MAX_POINTS:
        return np.linspace(points[0], points[-1], n_bins + 1)
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def _refuse_empty(events: Events) -> None:
    if len(events) == 0:
        raise InputError("There are no events to show.")
