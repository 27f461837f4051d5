"""The figure of single events: what the posterior says about their masses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.estimators import silverman_bandwidth
from massrecon.inference.posterior import Posterior
from massrecon.visual.template import BAND, BLUE, LEGEND_ABOVE, VERMILION, finish, mass_label

_MAX_EVENTS = 12
_SPREAD = 4


def event_posteriors(
    posterior: Posterior, indices: Sequence[int] | None = None, level: float = 0.68
) -> go.Figure:
    """Draws the mass posteriors of a few events, with their intervals and the truth if known.

    A mass that has one value in all events and draws is left out, unless there is no other.

    Args:
        posterior: A posterior.
        indices: Positions of up to 12 events, one row of panels each; four events spread over the
            sample if not given.
        level: Probability of the shaded central interval.

    Raises:
        InputError: If there is no index or too many, or one is out of range.
    """
    if indices is None:
        indices = [len(posterior) * i // _SPREAD for i in range(min(_SPREAD, len(posterior)))]
    indices = [int(i) for i in indices]
    if not 0 < len(indices) <= _MAX_EVENTS:
        raise InputError(f"'indices' should name 1 to {_MAX_EVENTS} events, got {len(indices)}.")
    for i in indices:
        if not 0 <= i < len(posterior):
            raise InputError(f"There is no event {i}: the posterior has {len(posterior)} events.")
    chosen = posterior[indices]
    has_truth = chosen.truth is not None or chosen.masses is not None
    names = [n for n in posterior.mass_names if posterior.varies(n)] or posterior.mass_names
    masses = [posterior.mass_index(name) for name in names]
    samples, intervals = chosen.mass_samples()[..., masses], chosen.interval(level)[:, masses]
    truth = chosen.true_masses()[:, masses] if has_truth else None
    figure = make_subplots(
        len(indices), len(names), shared_xaxes=True, vertical_spacing=0.12 / len(indices)
    )
    for column, name in enumerate(names):
        grid = _density_grid(samples[..., column], None if truth is None else truth[:, column])
        for row in range(len(indices)):
            density = _kernel_density(samples[:, row, column], grid)
            _add_posterior(figure, row, column, grid, density, intervals[row, column], level)
            if truth is not None:
                value = float(truth[row, column])
                _add_truth_line(figure, row, column, value, float(density.max()))
        label = f"{mass_label(chosen.card.symbol(name))} [GeV]"
        figure.update_xaxes(title_text=label, row=len(indices), col=column + 1)
    for row, index in enumerate(indices):
        figure.update_yaxes(title_text=f"event {index}", row=row + 1, col=1)
    figure.update_yaxes(showticklabels=False, ticks="", rangemode="tozero", minor_ticks="")
    figure.update_layout(legend=LEGEND_ABOVE)
    caption = (
        f"Posterior density of the masses of single events ({posterior.n_draws} draws each), "
        f"shaded: central {100 * level:.0f} % interval"
        + ("." if truth is None else "; dashed: truth.")
    )
    return finish(figure, caption, height=140 + 150 * len(indices))


def _density_grid(samples: Tensor, truth: Tensor | None) -> Tensor:
    """Returns masses that cover the draws of all shown events and their truth."""
    values = samples if truth is None else torch.cat([samples, truth[None]])
    low, high = float(values.min()), float(values.max())
    room = max(0.15 * (high - low), 1e-3 * abs(high), 1e-6)
    return torch.linspace(low - room, high + room, 240, dtype=torch.float64)


def _kernel_density(draws: Tensor, grid: Tensor) -> Tensor:
    """Estimates the density of draws ``(S,)`` on a grid with Gaussian kernels."""
    step = float(grid[1] - grid[0])
    bandwidth = max(float(silverman_bandwidth(draws[None].to(torch.float64))[0]), step)
    distance = (grid[:, None] - draws.to(torch.float64)) / bandwidth
    return torch.exp(-0.5 * distance.square()).mean(1) / (bandwidth * math.sqrt(2 * math.pi))


def _add_posterior(
    figure: go.Figure,
    row: int,
    column: int,
    grid: Tensor,
    density: Tensor,
    interval: Tensor,
    level: float,
) -> None:
    inside = (grid >= interval[0]) & (grid <= interval[1])
    first = row == 0 and column == 0
    figure.add_trace(
        go.Scatter(x=grid[inside].numpy(), y=density[inside].numpy(), mode="lines", line_width=0,
                   fill="tozeroy", fillcolor=BAND, hoverinfo="skip",
                   name=f"central {100 * level:.0f} %", showlegend=first),
        row=row + 1, col=column + 1,
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(x=grid.numpy(), y=density.numpy(), mode="lines", name="posterior",
                   line={"color": BLUE, "width": 2}, showlegend=first),
        row=row + 1, col=column + 1,
    )  # fmt: skip


def _add_truth_line(figure: go.Figure, row: int, column: int, value: float, height: float) -> None:
    figure.add_trace(
        go.Scatter(x=[value, value], y=[0, 1.05 * height], mode="lines", name="truth",
                   line={"color": VERMILION, "width": 2, "dash": "dash"},
                   showlegend=row == 0 and column == 0),
        row=row + 1, col=column + 1,
    )  # fmt: skip
