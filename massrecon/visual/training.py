"""The figure of a training: losses and physics metrics against optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from massrecon.errors import InputError
from massrecon.visual.template import COLOURS, DASHES, GREY, LEGEND_ABOVE, MARKERS, finish

_LOSSES = {"train_loss": "training", "validation_loss": "validation"}


def training_curve(history: Mapping[str, Any]) -> go.Figure:
    """Draws the losses of a training, its metrics if it has any, and its best step.

    Args:
        history: ``TrainingHistory.to_dict()``: ``records``, each with ``step``, ``seconds``,
            ``train_loss``, ``validation_loss`` and perhaps ``metrics`` by name, and ``best_step``;
            without it, the step of the lowest validation loss is marked.

    Raises:
        InputError: If there are no records.
    """
    records = list(history.get("records", ()))
    if not records:
        raise InputError("'history' has no records: train for at least one validation.")
    metrics = list(dict.fromkeys(name for r in records for name in r.get("metrics") or {}))
    rows = 2 if metrics else 1
    figure = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.05)
    losses = {label: [r.get(key) for r in records] for key, label in _LOSSES.items()}
    _add_curves(figure, 1, records, losses, shift=0)
    figure.update_yaxes(title_text="loss", row=1, **_loss_axis(losses))
    if metrics:
        curves = {name: [(r.get("metrics") or {}).get(name) for r in records] for name in metrics}
        _add_curves(figure, 2, records, curves, shift=len(losses))
        figure.update_yaxes(title_text="validation metric", row=2)
    best = history.get("best_step") or _lowest(records)
    figure.add_vline(best, line={"color": GREY, "width": 1.5, "dash": "dot"})
    figure.add_annotation(
        text=f"best: step {best:,}", x=best, y=1, xref="x", yref="y domain", yanchor="bottom",
        showarrow=False, font_size=13,
    )  # fmt: skip
    figure.update_xaxes(title_text="optimiser step", row=rows)
    figure.update_layout(legend={**LEGEND_ABOVE, "y": 1.06}, margin={"t": 90})
    minutes = (records[-1].get("seconds") or 0) / 60
    caption = (
        f"Training and validation loss over {records[-1]['step']:,} steps ({minutes:.1f} minutes); "
        f"the final weights are those of step {best:,}."
    )
    return finish(figure, caption, height=340 + 180 * (rows - 1))


def _add_curves(
    figure: go.Figure,
    row: int,
    records: list[Mapping[str, Any]],
    curves: Mapping[str, list[float | None]],
    shift: int,
) -> None:
    steps = [record["step"] for record in records]
    seconds = [record.get("seconds") for record in records]
    for number, (name, values) in enumerate(curves.items(), start=shift):
        style = number % len(COLOURS)
        figure.add_trace(
            go.Scatter(
                x=steps, y=values, mode="lines+markers", name=name, customdata=seconds,
                hovertemplate="step %{x}: %{y:.4g}<br>after %{customdata:.0f} s",
                line={"color": COLOURS[style], "dash": DASHES[style]},
                marker={"symbol": MARKERS[style], "size": 6},
            ),
            row=row, col=1,
        )  # fmt: skip


def _loss_axis(losses: Mapping[str, list[float | None]]) -> dict[str, Any]:
    """Chooses a logarithmic axis where the losses span more than a factor three."""
    known = [x for values in losses.values() for x in values if x is not None and math.isfinite(x)]
    if not known or min(known) <= 0 or max(known) < 3 * min(known):
        return {}
    decades = range(math.floor(math.log10(min(known))), math.ceil(math.log10(max(known))) + 1)
    ticks = [round(digit * 10.0**k, -k) for k in decades for digit in (1, 2, 5)]
    return {
        "type": "log",
        "minor_ticks": "",
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
    }


def _lowest(records: list[Mapping[str, Any]]) -> int:
    """Returns the step with the lowest validation loss, the last where none is known."""
    known = [r for r in records if r.get("validation_loss") is not None]
    return min(known, key=lambda r: r["validation_loss"])["step"] if known else records[-1]["step"]
