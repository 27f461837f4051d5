"""Figures of unfolding: distributions from several training samples, and how iterations help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from massrecon.errors import InputError
from massrecon.inference.unfolding import Unfolded
from massrecon.visual.template import (
    BAND,
    BLACK,
    COLOURS,
    DASHES,
    LEGEND_ABOVE,
    MARKERS,
    finish,
)


def unfolded_distributions(
    results: Mapping[str, Unfolded],
    truth: Tensor,
    truth_error: Tensor,
    label: str,
    iterations: Sequence[int] = (0, -1),
) -> go.Figure:
    """Draws what networks trained on different samples unfold, with their training samples.

    Args:
        results: What each network unfolds, by the name of its training sample; all in the same
            bins.
        truth: True shares of the measured events, shape ``(B,)``.
        truth_error: Their standard errors, shape ``(B,)``.
        label: Label of the quantity with its unit.
        iterations: After which iterations, one column of panels for each.

    Raises:
        InputError: If there is no result.
    """
    if not results:
        raise InputError("'results' is empty: unfold with at least one network.")
    figure = make_subplots(
        2, len(iterations), shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.03,
        horizontal_spacing=0.06, shared_yaxes=True,
    )  # fmt: skip
    for column, iteration in enumerate(iterations, start=1):
        _add_truth(figure, column, next(iter(results.values())).edges, truth, truth_error)
        for number, (name, result) in enumerate(results.items()):
            _add_result(figure, column, number, name, result, iteration, truth, len(results))
        count = range(len(next(iter(results.values())).share))[iteration]
        word = "iteration" if count == 1 else "iterations"
        title = "unfolded once" if count == 0 else f"after {count} {word} of the prior"
        figure.add_annotation(
            text=title, row=1, col=column, xref="x domain", yref="y domain", x=0.5, y=1.0,
            yanchor="bottom", showarrow=False,
        )  # fmt: skip
        figure.update_xaxes(title_text=label, row=2, col=column)
    figure.update_yaxes(title_text="share of events / bin", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="ratio to truth", row=2, col=1)
    figure.update_layout(legend={**LEGEND_ABOVE, "y": 1.07})
    caption = (
        "Truth of the measured events (black; grey: its error), the truths of the training samples "
        "(thin lines) and what networks trained on them unfold (points), with ratios to the truth."
    )
    return finish(figure, caption, height=560)


def _add_truth(figure: go.Figure, column: int, edges: Tensor, truth: Tensor, error: Tensor) -> None:
    x = np.repeat(edges.numpy(), 2)[1:-1]
    value, width = (np.repeat(t.numpy(), 2) for t in (truth, error))
    hidden = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False}
    for row, centre, half in (
        (1, value, width),
        (2, np.ones_like(value), width / np.maximum(value, 1e-12)),
    ):
        below = go.Scatter(x=x, y=centre - half, **hidden)
        above = go.Scatter(x=x, y=centre + half, fill="tonexty", fillcolor=BAND, **hidden)
        line = go.Scatter(
            x=x, y=centre, mode="lines", line={"color": BLACK, "width": 1.5}, name="truth",
            legendgroup="truth", showlegend=row == 1 and column == 1,
        )  # fmt: skip
        figure.add_traces([below, above, line], rows=[row] * 3, cols=[column] * 3)


def _add_result(
    figure: go.Figure, column: int, number: int, name: str, result: Unfolded, iteration: int,
    truth: Tensor, n_results: int,
) -> None:  # fmt: skip
    colour, x = COLOURS[number], np.repeat(result.edges.numpy(), 2)[1:-1]
    gap = float(result.edges.diff().mean()) / (n_results + 1)
    points = result.centres.numpy() + gap * (number - (n_results - 1) / 2)
    for row, scale in ((1, np.ones(len(truth))), (2, truth.clamp_min(1e-12).numpy())):
        prior = go.Scatter(
            x=x, y=np.repeat(result.prior.numpy() / scale, 2), mode="lines", opacity=0.6,
            line={"color": colour, "width": 1.2, "dash": DASHES[number + 1]},
            name=f"training, {name}", legendgroup=f"prior {name}",
            showlegend=row == 1 and column == 1,
        )  # fmt: skip
        found = go.Scatter(
            x=points, y=result.share[iteration].numpy() / scale, mode="markers",
            error_y={"array": result.error[iteration].numpy() / scale, "width": 0},
            marker={"color": colour, "size": 6, "symbol": MARKERS[number]},
            name=f"unfolded, {name}", legendgroup=name, showlegend=row == 1 and column == 1,
        )  # fmt: skip
        figure.add_traces([prior, found], rows=[row] * 2, cols=[column] * 2)


def bias_by_iteration(
    results: Mapping[str, Unfolded], truth: Tensor, truth_error: Tensor, label: str
) -> go.Figure:
    """Draws the bias of the unfolded mean against the number of iterations.

    Args:
        results: What each network unfolds, by the name of its training sample.
        truth: True shares of the measured events, shape ``(B,)``.
        truth_error: Their standard errors, shape ``(B,)``.
        label: Label of the quantity with its unit.

    Raises:
        InputError: If there is no result.
    """
    if not results:
        raise InputError("'results' is empty: unfold with at least one network.")
    figure = go.Figure()
    for number, (name, result) in enumerate(results.items()):
        true_mean = float(truth @ result.centres)
        means = [result.mean(k) for k in range(len(result.share))]
        style = {"color": COLOURS[number], "dash": DASHES[number]}
        figure.add_scatter(
            x=list(range(len(means))), y=[mean - true_mean for mean, _ in means], line=style,
            mode="lines+markers", marker={"symbol": MARKERS[number], "size": 7}, name=name,
            error_y={"array": [error for _, error in means], "width": 0},
        )  # fmt: skip
        if result.folded is not None:
            figure.add_scatter(
                x=[result.stop], y=[means[result.stop][0] - true_mean], mode="markers",
                marker={"color": COLOURS[number], "symbol": "circle-open", "size": 16},
                name=f"stop, {name}", showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=[-1], y=[float(result.prior @ result.centres) - true_mean], mode="markers",
            marker={"color": COLOURS[number], "symbol": MARKERS[number] + "-open", "size": 10},
            showlegend=False, name=f"training sample, {name}",
        )  # fmt: skip
    centres = next(iter(results.values())).centres
    spread = float(centres.square() @ truth_error.square()) ** 0.5
    figure.add_hrect(y0=-spread, y1=spread, fillcolor=BAND, line_width=0)
    figure.add_hline(y=0, line={"color": BLACK, "width": 1})
    count = max(len(result.share) for result in results.values())
    figure.update_xaxes(
        title_text="iterations of the prior",
        tickvals=list(range(-1, count)),
        ticktext=["training", *map(str, range(count))],
    )  # fmt: skip
    figure.update_yaxes(title_text=f"unfolded − true mean of {label}")
    figure.update_layout(legend={**LEGEND_ABOVE, "y": 1.02})
    caption = (
        "Difference between unfolded and true mean after each iteration, and (open) between the "
        "training sample and the truth; rings: where to stop; grey: statistical error of the truth."
    )
    return finish(figure, caption, height=420)
