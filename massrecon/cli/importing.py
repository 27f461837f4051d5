"""``massrecon import``: events from files of other programs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from massrecon.cli.values import assignments
from massrecon.errors import InputError


def import_file(
    file: Annotated[
        Path,
        typer.Argument(help="Delphes ROOT, Les Houches, HepMC3, Parquet or SPANet HDF5 file."),
    ],
    card: Annotated[str, typer.Option(help="Name of a process card, or path of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the events; an older one is replaced.")],
    format: Annotated[
        str | None,
        typer.Option(help="delphes, lhe, hepmc, parquet, spanet; found out if not given."),
    ] = None,
    jets: Annotated[
        str, typer.Option(help="particle_flow, calorimeter, or a jet branch of a Delphes file.")
    ] = "particle_flow",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad entries and say how many.")
    ] = False,
    parton_level: Annotated[
        bool, typer.Option("--parton-level", help="Les Houches partons without a shower.")
    ] = False,
    truth: Annotated[
        bool | None,
        typer.Option(help="Demand or drop the true particles; by default kept if there."),
    ] = None,
    mass: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE [GeV]: a true mass of the whole file.")
    ] = None,
    btag_point: Annotated[
        list[str] | None,
        typer.Option(help="Working point of a bit of Delphes' b-tag, from the lowest on."),
    ] = None,
    mapping: Annotated[
        list[str] | None, typer.Option(help="KIND=GROUP: where an HDF5 file has its objects.")
    ] = None,
    max_entries: Annotated[int | None, typer.Option(help="Most entries to read.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of shower and detector.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that shower; one for each core if not given.")
    ] = None,
) -> None:
    """Import the events of a file, checked and selected with a card."""
    from massrecon.events.importers import import_events

    masses = assignments(mass or [], "--mass")
    sample = import_events(
        file,
        card,
        out,
        format=format,
        jets=jets,
        skip_bad=skip_bad,
        seed=seed,
        parton_level=parton_level,
        truth=truth,
        masses={name: _number(name, value) for name, value in masses.items()} or None,
        btag_points=tuple(btag_point or ["medium"]),
        mapping=assignments(mapping or [], "--mapping"),
        n_max=max_entries,
        workers=workers,
    )
    made = sample.provenance.get("n_generated")
    truth_text = "with" if sample.partons is not None else "without"
    if len(sample) == 0:
        warnings.warn(
            f"No event passes the selection of '{card}': see it with 'massrecon cards show {card}',"
            " and whether the file is of that process.",
            stacklevel=1,
        )
    typer.echo(f"{len(sample)} selected events of {made}, {truth_text} truth, are in {out}")


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"'--mass {name}' should be a number [GeV], got '{value}'.") from None
