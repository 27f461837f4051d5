"""The command ``massrecon``."""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import massrecon
from massrecon.cli import cards
from massrecon.cli import events as event_folders
from massrecon.cli import scan as scans
from massrecon.cli.importing import import_file
from massrecon.cli.measuring import measure
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

app.add_typer(cards.app, name="cards")
app.add_typer(event_folders.app, name="events")
app.add_typer(scans.app, name="scan")
app.command("import")(import_file)
app.command()(measure)


def main() -> None:
    """Runs the command line; an error of massrecon's own is printed without a traceback."""
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
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
def simulate(
    process: Annotated[str, typer.Argument(help="Name of a process card, or path of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the events; resumed if it is there.")],
    events: Annotated[
        int | None,
        typer.Option(help="Number of selected events.", show_default="20000, or a whole LHE file"),
    ] = None,
    generated: Annotated[
        int | None,
        typer.Option(
            help="Number of collisions to generate, in place of --events: keeps what is"
            " selected of them, for backgrounds that hardly ever are."
        ),
    ] = None,
    masses: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE [GeV]: 600 is fixed, 50:450 a continuous range, 50,100,150 a grid; or"
            " the name of a preset of the card."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed: the same seed gives the same events.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; one for each core if not given.")
    ] = None,
    multiparton: Annotated[
        bool, typer.Option("--multiparton", help="Simulate multiparton interactions: slower.")
    ] = False,
    ptmiss_noise: Annotated[
        float | None,
        typer.Option(help="Extra width of each component of ptmiss, for pile-up [GeV]."),
    ] = None,
    lhe: Annotated[
        Path | None, typer.Option(help="Les Houches file with the hard collisions to shower.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any other setting of 'simulate'; repeat for more."),
    ] = None,
) -> None:
    """Simulate collisions: generator, detector, selection, event store."""
    from massrecon.events.generator import simulate as simulate_events

    settings: dict[str, Any] = _values(option or [], "--set")
    given = {"multiparton": multiparton or None, "ptmiss_noise": ptmiss_noise, "lhe": lhe}
    settings |= {name: value for name, value in given.items() if value is not None}
    if events is None and generated is None and lhe is None:
        events = 20_000
    sample = simulate_events(
        process,
        n_events=events,
        masses=_mass_request(masses or []),
        seed=seed,
        workers=workers,
        out=out,
        settings=settings,
        n_generated=generated,
    )
    made = sample.provenance["n_generated"]
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
def reproduce(
    summary: Annotated[Path, typer.Argument(help="summary.json of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder for the new run.")],
    quiet: Annotated[bool, typer.Option(help="Do not show what the notebook prints.")] = False,
) -> None:
    """Run a result again from its own record, and compare the numbers."""
    from massrecon.runs.reproduce import reproduce as run_again

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
        f"{out / 'comparison.json'}."
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Your folder of notebooks; made, or brought up to date.")
    ] = Path("massrecon-notebooks"),
    copy_only: Annotated[
        bool, typer.Option("--copy-only", help="Copy the notebooks, do not open JupyterLab.")
    ] = False,
) -> None:
    """Open JupyterLab on notebooks and tutorials of your own; what you edited is never replaced.

    Other options go to JupyterLab, such as --no-browser.
    """
    from massrecon.runs.lab import copy_notebooks, open_lab, summary_of

    typer.echo(f"Notebooks in {folder}: {summary_of(copy_notebooks(folder))}")
    if not copy_only:
        open_lab(folder, context.args)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over: finished stages are redone.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of simulation, training and sampling.")] = 1,
) -> None:
    """Simulate, train, reconstruct: the whole chain in minutes, ending with a report."""
    from massrecon.runs.demo import run_demo

    run_demo(out, fresh=fresh, seed=seed)


def _mass_request(given: list[str]) -> dict[str, str] | str:
    """Reads the options ``--masses``: assignments, or the name of one preset."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    return _assignments(given, "--masses")


def _values(pairs: list[str], option: str) -> dict[str, Any]:
    """Reads NAME=VALUE options whose values are numbers, true or false, lists or text."""
    import yaml

    values = {}
    for name, text in _assignments(pairs, option).items():
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"'{option}' cannot read the value of '{name}': {error}.") from error
    return values


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
