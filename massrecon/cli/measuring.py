"""``massrecon measure``: masses from a file of events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from massrecon.errors import InputError


def measure(
    events: Annotated[
        Path, typer.Argument(help="Folder of events, or a file as for 'massrecon import'.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="Folder of a trained model, the name of one that comes with massrecon, such as"
            " wino_udd, or 'mixture', which needs no training."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path(
        "results/measure"
    ),
    card: Annotated[
        str | None, typer.Option(help="Process card of a file; that of the model if not given.")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(help="Folder of the training events, for a model without record of them."),
    ] = None,
    masses: Annotated[
        list[str] | None, typer.Option(help="NAME=LOW:HIGH [GeV]: range of a mass to search.")
    ] = None,
    background: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of simulated background that may be among the events; repeat for more."
        ),
    ] = None,
    luminosity: Annotated[
        float | None,
        typer.Option(help="Integrated luminosity [1/fb]: lets the expected rates count, too."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed, where densities are estimated.")] = 0,
) -> None:
    """Measure masses from events, simulated or real, and say whether to trust them."""
    from massrecon.runs.measuring import REPORT, measure_file

    ranges = dict(_range(text) for text in masses or []) or None
    found = measure_file(
        events, model, out, card=card, training=training, masses=ranges,
        backgrounds=background or (), luminosity=luminosity, seed=seed,
    )  # fmt: skip
    typer.echo(str(found.measurement))
    for line in found.confidence:
        typer.echo(line)
    for name, (best, low, high) in found.measurement.composition.items():
        typer.echo(f"{name}: {best:.3g}, {low:.3g} to {high:.3g} at 68 %")
    if found.likeness is not None and not found.likeness.alarm:
        typer.echo(str(found.likeness))
    for warning in found.warnings:
        typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    typer.echo(f"The report is {out / REPORT}")


def _range(text: str) -> tuple[str, tuple[float, float]]:
    """Reads NAME=LOW:HIGH."""
    name, equals, ends = text.partition("=")
    low, colon, high = ends.partition(":")
    try:
        if name.strip() and equals and colon:
            return name.strip(), (float(low), float(high))
    except ValueError:
        pass
    raise InputError(f"'--masses' should be NAME=LOW:HIGH [GeV], got '{text}'.")
