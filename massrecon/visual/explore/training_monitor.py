"""Where a training stands: losses, validation metrics, time left."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from massrecon.models.progress import TrainingProgress, training_progress
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.template import finish
from massrecon.visual.training import training_curve

FOLDER = "results/train/model"
"""Where the notebook ``02_train`` trains by default."""


def explore_training_monitor(folder: str = FOLDER) -> Exploration:
    """Shows where a training stands, while it runs or afterwards.

    Args:
        folder: What was given as `checkpoint_dir` of `train` or as `out` of `massrecon.fit`, or a
            folder with a trained model. A training that has not written a checkpoint yet waits.

    Raises:
        ModelError: If a file there cannot be read.
    """
    found = training_progress(folder)
    data = _data(found)
    figure = training_curve(found.history()) if found.records else _waiting()
    return Exploration(figure=figure, data=data, reading=_reading(found, data, folder))


def _data(found: TrainingProgress) -> dict[str, Any]:
    last = found.records[-1] if found.records else {}
    best = next((r for r in found.records if r["step"] == found.best_step), last)
    return {
        "stage": found.stage,
        "step": found.step,
        "total_steps": found.total_steps,
        "seconds": found.seconds,
        "seconds_left": found.seconds_left,
        "train_loss": last.get("train_loss"),
        "validation_loss": last.get("validation_loss"),
        "best_step": found.best_step,
        "best_validation_loss": best.get("validation_loss"),
        "metrics": dict(last.get("metrics") or {}),
        "silent": found.is_silent,
    }


def _waiting() -> go.Figure:
    """Shows empty axes until there is something to draw."""
    figure = go.Figure(go.Scatter(x=[], y=[], showlegend=False))
    figure.add_annotation(
        text="no checkpoint yet", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False,
        font_size=18,
    )  # fmt: skip
    figure.update_xaxes(title_text="optimiser step", range=[0, 1])
    figure.update_yaxes(title_text="loss", range=[0, 1])
    return finish(figure, "A training that has not written a checkpoint yet.", height=340)


def _reading(found: TrainingProgress, data: dict[str, Any], folder: str) -> str:
    if found.stage == "waiting":
        return (
            f"There is no checkpoint of a training in '{folder}' yet: it comes after the first "
            "round. A training is started with massrecon.fit or the notebook 02_train."
        )
    text = f"Step {found.step:,} of {found.total_steps:,} after {_duration(found.seconds)}"
    if found.stage == "finished":
        text += "; finished"
    else:
        text += f"; about {_duration(found.seconds_left or 0.0)} left"
        text += "; stops after this round" if found.stage == "stopping" else ""
    text += (
        f". Loss {data['train_loss']:.4g}, validation {data['validation_loss']:.4g}, at best "
        f"{data['best_validation_loss']:.4g} at step {found.best_step:,}."
    )
    for name, value in data["metrics"].items():
        text += f" {name}: {value:.3g}."
    if data["silent"]:
        text += (
            f" The last checkpoint is {_duration(found.age)} old: the training was probably cut "
            "off, and the call that made it goes on from there."
        )
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
