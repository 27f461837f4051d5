"""The command ``massrecon``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import massrecon
from massrecon.cli import cards
from massrecon.cli import events as event_folders
from massrecon.errors import InputError, MassReconError

app = typer.Typer(
    name="massrecon",
    help="Masses of new particles from collider events.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cards.app, name="cards")
app.add_typer(event_folders.app, name="events")


def main() -> None:
    """Runs the command line; an error of massrecon's own is printed without a traceback."""
    try:
        app()
    except MassReconError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        typer.secho("Stopped. Finished parts are kept: the same command goes on.", err=True)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"massrecon {massrecon.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Masses of new particles from collider events."""


@app.command()
def simulate(
    process: Annotated[str, typer.Argument(help="Name of a process card, or path of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the events; resumed if it is there.")],
    events: Annotated[int, typer.Option(help="Number of selected events.")] = 20_000,
    masses: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE [GeV]: 600 is fixed, 50:450 a continuous range, 50,100,150 a grid."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed: the same seed gives the same events.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; one for each core if not given.")
    ] = None,
    multiparton: Annotated[
        bool, typer.Option("--multiparton", help="Simulate multiparton interactions: slower.")
    ] = False,
) -> None:
    """Simulate collisions: generator, detector, selection, event store."""
    from massrecon.events.generator import simulate as simulate_events

    sample = simulate_events(
        process,
        n_events=events,
        masses=_assignments(masses or [], "--masses"),
        seed=seed,
        workers=workers,
        out=out,
        settings={"multiparton": True} if multiparton else None,
    )
    made = sample.provenance.get("n_generated")
    typer.echo(f"{len(sample)} selected events of {made} generated ones are in {out}")


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="Name of a notebook, or path of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the executed notebook and its results.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="KEY=VALUE; repeat for more.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Do not show what the notebook prints.")] = False,
) -> None:
    """Run a notebook with parameters, checked first, and write its summary.json."""
    from massrecon.runs.notebooks import run_notebook

    run_notebook(notebook, _assignments(parameter or [], "-p"), out, progress=not quiet)
    typer.echo(f"Results are in {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over: finished stages are redone.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of simulation, training and sampling.")] = 1,
) -> None:
    """Simulate, train, reconstruct: the whole chain in minutes, ending with a report."""
    from massrecon.runs.demo import run_demo

    run_demo(out, fresh=fresh, seed=seed)


def _assignments(pairs: list[str], option: str) -> dict[str, str]:
    """Reads NAME=VALUE options."""
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"'{option}' should be NAME=VALUE, got '{pair}'.")
        if name.strip() in values:
            raise InputError(f"'{option}' gives '{name.strip()}' twice: give it once.")
        values[name.strip()] = value.strip()
    return values
