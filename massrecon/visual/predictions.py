"""The figure of predicted against true masses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.posterior import Posterior
from massrecon.inference.resolution import weighted_quantile
from massrecon.inference.statistics import MassPoints, mass_points
from massrecon.visual.template import (
    BLACK,
    LEGEND_ABOVE,
    VERMILION,
    WHITE_TO_BLUE,
    finish,
    mass_label,
    plain,
)

_CELLS = 48  # of the density map along each axis


def predicted_against_true(
    posterior: Posterior,
    mass: str = "chi10",
    estimator: str = "window",
    width: float = 30.0,
    bins: int | Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Draws estimated against true mass, with median and 68 % band, and the residuals below.

    Args:
        posterior: A posterior with truth.
        mass: Name of the mass.
        estimator: One of ``draw``, ``mean``, ``median``, ``window``.
        width: Half-width of the window [GeV], for ``window`` only.
        bins: Edges by mass name, or number of bins, for true masses that are not on a grid.

    Raises:
        InputError: If there is no truth or no event, or a name is unknown.
    """
    column = posterior.mass_index(mass)
    if len(posterior) == 0:
        raise InputError("The posterior holds no events: there is nothing to show.")
    truth = posterior.true_masses()[:, column].to(torch.float64).cpu()
    estimate = posterior.estimate(estimator, width)[:, column].cpu()
    weight = posterior.weights.cpu()
    points = mass_points(mass, truth, 12 if bins is None else bins)
    quantiles = _profile(points, estimate, weight)
    x_edges, y_edges = _map_edges(points, truth), _range_edges(estimate)
    figure = make_subplots(
        2, 1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.035
    )
    figure.add_trace(_density_map(truth, estimate, weight, x_edges, y_edges), row=1, col=1)
    diagonal = [float(x_edges[0]), float(x_edges[-1])]
    _add_profile(figure, points, quantiles, diagonal)
    symbol = mass_label(posterior.card.symbol(mass))
    figure.update_xaxes(range=diagonal)
    figure.update_xaxes(title_text=f"true {symbol} [GeV]", row=2)
    figure.update_yaxes(
        title_text=f"estimated {symbol} [GeV]", row=1,
        range=[min(diagonal[0], float(y_edges[0])), max(diagonal[1], float(y_edges[-1]))],
    )  # fmt: skip
    figure.update_yaxes(title_text="residual [GeV]", row=2)
    figure.update_layout(legend=LEGEND_ABOVE, margin={"l": 80})
    caption = (
        f"Estimated m({plain(posterior.card.symbol(mass))}) ({estimator}) against its true value "
        f"for {len(posterior):,} events; points: median and central 68 % of the estimates at each "
        "true mass, residuals below."
    )
    return finish(figure, caption, height=640)


def _profile(points: MassPoints, estimate: Tensor, weight: Tensor) -> np.ndarray:
    """Returns the 16, 50 and 84 % quantiles of the estimates at each point, shape ``(B, 3)``."""
    levels = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
    rows = []
    for i in range(len(points)):
        here = points.index == i
        empty = torch.full((3,), torch.nan, dtype=torch.float64)
        some = bool(here.any())
        rows.append(weighted_quantile(estimate[here], weight[here], levels) if some else empty)
    return torch.stack(rows).numpy()


def _map_edges(points: MassPoints, truth: Tensor) -> np.ndarray:
    """Returns cells along the true mass: one for each point of a grid."""
    if points.edges is not None:
        return _range_edges(truth)
    value = points.value.numpy()
    middle = (value[1:] + value[:-1]) / 2
    first = value[0] - (middle[0] - value[0] if len(middle) else 0.1 * value[0])
    last = 2 * value[-1] - (middle[-1] if len(middle) else 0.9 * value[-1])
    return np.concatenate([[first], middle, [last]])


def _range_edges(values: Tensor) -> np.ndarray:
    low, high = np.quantile(values.numpy(), [0.002, 0.998])
    room = max(0.02 * (high - low), 1e-3 * abs(high), 1e-6)
    return np.linspace(low - room, high + room, _CELLS + 1)


def _density_map(
    truth: Tensor, estimate: Tensor, weight: Tensor, x_edges: np.ndarray, y_edges: np.ndarray
) -> go.Heatmap:
    counts, _, _ = np.histogram2d(
        truth.numpy(), estimate.numpy(), bins=[x_edges, y_edges], weights=weight.numpy()
    )
    return go.Heatmap(
        x=x_edges, y=y_edges, z=np.round(counts.T, 6), colorscale=WHITE_TO_BLUE, zmin=0,
        colorbar={"title": {"text": "events"}, "len": 0.72, "y": 1.0, "yanchor": "top",
                  "thickness": 14},
    )  # fmt: skip


def _add_profile(
    figure: go.Figure, points: MassPoints, quantiles: np.ndarray, diagonal: list[float]
) -> None:
    """Adds the diagonal and the median with its 68 % band, and both as residuals below."""
    x = points.value.numpy()
    for row, offset in ((1, 0 * x), (2, x)):
        low, middle, high = quantiles.T - offset
        first = row == 1
        figure.add_trace(
            go.Scatter(x=diagonal, y=diagonal if first else [0, 0], mode="lines", name="exact",
                       line={"color": BLACK, "width": 1.2, "dash": "dash"}, showlegend=first,
                       hoverinfo="skip"),
            row=row, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=x, y=middle, mode="markers", name="median and 68 % of estimates",
                       error_y={"symmetric": False, "array": high - middle,
                                "arrayminus": middle - low, "thickness": 1.5, "width": 3},
                       marker={"color": VERMILION, "size": 7}, showlegend=first),
            row=row, col=1,
        )  # fmt: skip
