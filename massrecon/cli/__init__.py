"""The command ``massrecon``."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

import massrecon
from massrecon.cli import cards
from massrecon.cli import events as event_folders
from massrecon.cli import scan as scans
from massrecon.cli.importing import import_file
from massrecon.cli.measuring import measure
from massrecon.cli.opening import lab, page
from massrecon.cli.simulating import simulate
from massrecon.cli.training import train
from massrecon.cli.values import assignments
from massrecon.errors import InputError, MassReconError, RunError

app = typer.Typer(
    name="massrecon",
    help="Masses of new particles from collider events.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_STOPPED = "Stopped. Finished parts are kept: the same command goes on."
_MOST_DIFFERENCES = 20
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
# How often a thread of torch looks for work before it sleeps. The usual 300,000 cost nothing on an
# idle machine, but beside other programs threads wait for one another: steps took ten times longer.
_SPINS = "3000"

app.add_typer(cards.app, name="cards")
app.add_typer(event_folders.app, name="events")
app.add_typer(scans.app, name="scan")
app.command("import")(import_file)
app.command()(simulate)
app.command()(train)
app.command()(measure)
_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_OPEN)(lab)
app.command("app", context_settings=_OPEN)(page)


def main() -> None:
    """Runs the command line; an error of massrecon's own is printed without a traceback."""
    warnings.showwarning = lambda message, *_, **__: typer.secho(
        f"Warning: {message}", fg="yellow", err=True
    )
    if "OMP_WAIT_POLICY" not in os.environ:  # for this process and the notebooks that it runs
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        app()
    except MassReconError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except SystemExit as end:  # typer makes one of ctrl-C
        if end.code in (_INTERRUPTED, _TERMINATED):
            typer.secho(_STOPPED, err=True)
        raise


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
def run(
    notebook: Annotated[str, typer.Argument(help="Name of a notebook, or path of your own.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the executed notebook and its results.", show_default="results/NAME"
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="KEY=VALUE; repeat for more.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Do not show what the notebook prints.")] = False,
) -> None:
    """Run a notebook with parameters, checked first, and write its summary.json."""
    from massrecon.runs.notebooks import run_notebook

    out = out or Path("results") / Path(notebook).stem
    run_notebook(notebook, assignments(parameter or [], "-p"), out, progress=not quiet)
    typer.echo(f"Results are in {out}")


@app.command()
def reproduce(
    summary: Annotated[Path, typer.Argument(help="summary.json of a finished run.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the new run.", show_default="that of the summary, _again"),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Do not show what the notebook prints.")] = False,
) -> None:
    """Run a result again from its own record, and compare the numbers."""
    from massrecon.runs.reproduce import COMPARISON
    from massrecon.runs.reproduce import reproduce as run_again

    out = out or summary.absolute().parent.with_name(f"{summary.absolute().parent.name}_again")
    found = run_again(summary, out, progress=not quiet)
    for note in found.notes:
        typer.echo(f"Note: {note}")
    if found.identical:
        typer.echo(f"All {found.compared:,} values are identical.")
        return
    for name, (before, after) in list(found.different.items())[:_MOST_DIFFERENCES]:
        typer.echo(f"{name}: {before} before, {after} now")
    raise RunError(
        f"{len(found.different):,} values differ, {found.compared:,} were compared: see "
        f"{out / COMPARISON}."
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over: finished stages are redone.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of simulation, training and sampling.")] = 1,
) -> None:
    """Simulate, train, reconstruct: the whole chain in minutes, ending with a report."""
    from massrecon.runs.demo import run_demo

    run_demo(out, fresh=fresh, seed=seed)
