"""The figure of a surrogate simulation: its distributions over those of the full one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.twosample import agreement, bin_shares
from massrecon.visual.ratio_panels import (
    COLUMNS,
    Shares,
    add_generated,
    add_ratio,
    add_truth,
    common_edges,
    label_panel,
    ratio_grid,
)
from massrecon.visual.template import LEGEND_ABOVE, finish

_FEW_VALUES = 25


def surrogate_against_simulation(
    simulated: Mapping[str, Tensor], surrogate: Mapping[str, Tensor], n_bins: int = 30
) -> go.Figure:
    """Draws distributions of a surrogate over those of the full simulation, with their ratio.

    Args:
        simulated: Quantities of simulated events by label, each ``(N,)``; NaN where an event has
            none, which is left out.
        surrogate: The same quantities of the surrogate's events, each ``(K,)``.
        n_bins: Bins of each distribution; whole numbers have one bin each.

    Raises:
        InputError: If the quantities differ, or one of them is never there.
    """
    if not simulated or simulated.keys() != surrogate.keys():
        raise InputError("'simulated' and 'surrogate' should hold the same quantities, at least 1.")
    figure = ratio_grid(len(simulated))
    for panel, (label, values) in enumerate(simulated.items()):
        there, fast = (x[x.isfinite()].double() for x in (values, surrogate[label]))
        if min(len(there), len(fast)) < 2:
            raise InputError(f"'{label}' is there in fewer than two events: leave it out.")
        shares = _compare(there, fast, n_bins)
        add_generated(figure, panel, shares)
        add_truth(figure, panel, shares)
        add_ratio(figure, panel, shares)
        test = agreement(there, fast).chi_square
        label_panel(figure, panel, label, f"χ²/dof = {test.per_dof:.2f}")
    for before, name in (("truth", "simulation"), ("generated", "surrogate")):
        figure.update_traces(name=name, selector={"name": before})
    figure.update_layout(
        legend={**LEGEND_ABOVE, "y": 1.05, "traceorder": "reversed"},
        margin={"l": 70, "r": 15, "t": 90, "b": 60},
    )
    caption = (
        "Full simulation (line; grey: statistical error) and surrogate (points), each normalised "
        "to one, with the ratio surrogate/simulation below."
    )
    return finish(figure, caption, height=150 + 300 * math.ceil(len(simulated) / COLUMNS))


def _compare(simulated: Tensor, surrogate: Tensor, n_bins: int) -> Shares:
    whole = bool((simulated == simulated.round()).all())
    if whole and float(simulated.max() - simulated.min()) <= _FEW_VALUES:
        low, high = float(simulated.min()), float(simulated.max())
        edges = torch.arange(low - 0.5, high + 1, dtype=torch.float64)
    else:
        edges = common_edges(simulated, surrogate, n_bins)
    truth, generated = (
        bin_shares(x[None], edges)[:, 1:-1].mean(dim=0).numpy() for x in (simulated, surrogate)
    )
    return Shares(
        edges=edges.numpy(),
        truth=truth,
        truth_error=np.sqrt(truth * (1 - truth) / len(simulated)),
        generated=generated,
        generated_error=np.sqrt(generated * (1 - generated) / len(surrogate)),
    )
