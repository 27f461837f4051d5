"""``massrecon train``: a model from a folder of events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from massrecon.cli.values import values_of
from massrecon.errors import InputError


def train(
    model: Annotated[str, typer.Argument(help="Family of the model, such as cascade.")],
    events: Annotated[Path, typer.Argument(help="Folder of simulated events.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; a training is resumed there.")],
    preset: Annotated[str, typer.Option(help="Size of the network: full or small.")] = "full",
    minutes: Annotated[float | None, typer.Option(help="Budget in time, in minutes.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Budget in passes over the events.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Folder of events to validate on.", show_default="a tenth of the events"),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Read the events part by part: they may exceed memory."),
    ] = False,
    processes: Annotated[
        int, typer.Option(help="Processes that share the training, one for each GPU.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed: the same seed gives the same model.")] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE: a setting of the family, such as targets=masses, or of the training,"
            " such as batch_size=512; repeat for more.",
        ),
    ] = None,
) -> None:
    """Train a model on simulated events; cut off, the same command goes on."""
    from massrecon.events.store import load_events
    from massrecon.inference.fitting import fit
    from massrecon.models.recipe import TrainingConfig

    if minutes is None and epochs is None and steps is None:
        raise InputError("Say how long to train: --minutes, --epochs or --steps.")
    given = values_of(option or [], "--set")
    _refuse_twofold(given)
    settings, fields = _parted(given, TrainingConfig)
    settings |= {"max_minutes": minutes, "max_epochs": epochs, "max_steps": steps}
    settings |= {"accelerator": device, "processes": processes, "seed": seed}
    fitted = fit(
        model,
        events if stream else load_events(events),
        preset=preset,
        validation=None if validation is None else load_events(validation),
        training=TrainingConfig(**settings),
        out=out,
        options=fields,
    )
    shown = ", ".join(f"{k} {v:.4g}" for k, v in fitted.metadata["metrics"].items())
    typer.echo(f"{fitted.metadata['n_train']:,} training events; {shown}. The model is in {out}")


_OPTIONS = {
    "max_minutes": "--minutes",
    "max_epochs": "--epochs",
    "max_steps": "--steps",
    "accelerator": "--device",
    "processes": "--processes",
    "seed": "--seed",
}
"""Settings of the training with an option of their own."""


def _refuse_twofold(given: dict[str, Any]) -> None:
    """Refuses with --set what has an option of its own, which would win without a word."""
    for name in given:
        if name in _OPTIONS:
            raise InputError(f"'--set {name}' has an option of its own: write {_OPTIONS[name]}.")


def _parted(values: dict[str, Any], recipe: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts settings of the training from those of the model."""
    known = recipe.__dataclass_fields__
    of_training = {name: value for name, value in values.items() if name in known}
    return of_training, {name: v for name, v in values.items() if name not in known}
