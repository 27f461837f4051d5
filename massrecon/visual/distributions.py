"""The figure of distributions: generated partons against true ones."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.posterior import Posterior
from massrecon.inference.statistics import clusters, effective_size, mean_with_error
from massrecon.inference.twosample import bin_shares, paired_agreement
from massrecon.visual.ratio_panels import (
    COLUMNS,
    Shares,
    add,
    add_generated,
    add_ratio,
    add_truth,
    common_edges,
    label_panel,
    note_above,
    panel_rows,
    ratio_grid,
)
from massrecon.visual.template import BLACK, LEGEND_ABOVE, finish, target_label

_NATURAL_WIDTH = 1e-4  # a fixed mass still has the narrow width of its particle


def truth_against_generated(
    posterior: Posterior, n_bins: int = 24, group: Tensor | None = None
) -> go.Figure:
    """Draws the generated distribution of every target over the true one, with their ratio.

    Truth and draws belong to the same events, so their distributions fluctuate together. The grey
    band around the truth is the error of the difference truth − generated, from the spread of the
    differences of events (of groups with one true mass, where the masses are continuous); χ²/dof
    is computed from the same differences. Error bars come from the number of draws alone.

    Args:
        posterior: A posterior with truth.
        n_bins: Bins of each distribution, at most; fewer where the truth has few distinct values.
        group: Number of the group of events that fluctuate together, shape ``(N,)``; found from
            the masses if not given, which takes those of a whole sample, not of a cell of it.

    Raises:
        InputError: If there is no truth or no event, or fewer than two bins.
    """
    if n_bins < 2:
        raise InputError(f"'n_bins' should be at least 2, got {n_bins}.")
    if len(posterior) == 0:
        raise InputError("The posterior holds no events: there is nothing to show.")
    group = clusters(posterior.true_masses()) if group is None else group
    figure = ratio_grid(len(posterior.target_names))
    for i, name in enumerate(posterior.target_names):
        truth, samples = posterior.true_target(name), posterior.target(name)
        shares = _shares(truth, samples, posterior.weights, group, n_bins)
        label = f"{target_label(posterior.card, name)} [GeV]"
        add_generated(figure, i, shares)
        if truth.max() - truth.min() <= _NATURAL_WIDTH * truth.abs().max():
            _add_fixed_truth(figure, i, shares, float(truth[0]), label)
            continue
        add_truth(figure, i, shares)
        add_ratio(figure, i, shares)
        test = paired_agreement(truth, samples, posterior.weights, group)
        label_panel(figure, i, label, "" if test is None else f"χ²/dof = {test.per_dof:.2f}")
    figure.update_layout(
        legend={**LEGEND_ABOVE, "y": 1.05, "traceorder": "reversed"},
        margin={"l": 70, "r": 15, "t": 90, "b": 60},
    )
    caption = (
        f"Parton-level truth (line; grey: statistical error of truth − generated, as in χ²/dof) "
        f"and generated values (points; {posterior.n_draws} draws for each of "
        f"{len(posterior):,} events), with the ratio generated/truth below."
    )
    return finish(
        figure, caption, height=150 + 300 * math.ceil(len(posterior.target_names) / COLUMNS)
    )


def _shares(truth: Tensor, samples: Tensor, weight: Tensor, group: Tensor, n_bins: int) -> Shares:
    distinct = len(truth.round(decimals=3).unique())
    if distinct > 1:  # a bin needs a few values to show more than the choice of mass points
        n_bins = min(n_bins, max(8, distinct // 8))
    edges = common_edges(truth, samples, n_bins)
    inside = slice(1, -1)  # without the open bins below and above
    true_bin = bin_shares(truth[None], edges)[:, inside].T
    by_event = bin_shares(samples, edges)[:, inside].T
    true_share, generated = ((x * weight).sum(1) / weight.sum() for x in (true_bin, by_event))
    _, true_error = mean_with_error(true_bin - by_event, weight, group)
    if len(samples) > 1:
        variance = by_event * (1 - by_event) / (len(samples) - 1)
        error = (variance * weight.square()).sum(1).sqrt() / weight.sum()
    else:
        error = (generated * (1 - generated) / effective_size(weight)).sqrt()
    arrays = (edges, true_share, true_error.nan_to_num(), generated, error)
    return Shares(*(tensor.cpu().numpy() for tensor in arrays))


def _add_fixed_truth(
    figure: go.Figure, panel: int, shares: Shares, value: float, label: str
) -> None:
    """Marks a truth that is the same for all events; it has no distribution to compare with."""
    upper, _, column = panel_rows(panel)
    line = go.Scatter(
        x=[value, value], y=[0, 1.1 * float(shares.generated.max())], mode="lines",
        line={"color": BLACK, "width": 1.5}, name="truth", legendgroup="truth",
        showlegend=panel == 0,
    )  # fmt: skip
    add(figure, upper, column, line)
    figure.update_xaxes(showticklabels=True, title_text=label, row=upper, col=column)
    note_above(figure, panel, f"truth fixed at {round(value, 1):g} GeV")
