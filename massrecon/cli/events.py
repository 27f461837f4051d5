"""``massrecon events``: look after folders of events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Verify, repair, describe, merge and export folders of events.")

Folder = Annotated[Path, typer.Argument(help="Folder of events.", show_default=False)]


@app.command()
def verify(
    folder: Folder,
    regenerate: Annotated[
        int, typer.Option(min=0, help="Make so many parts again, and compare them bit for bit.")
    ] = 0,
) -> None:
    """Check every file of a folder: checksums, counts, columns, values. Exit code 1 on damage."""
    from massrecon.events.verification import verify_store

    report = verify_store(folder, regenerate)
    _show(str(report), good=report.ok)
    if not report.ok:
        typer.echo(
            "Run the same simulation again, or  massrecon events repair  to go on with the parts "
            "that are whole.",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def repair(folder: Folder) -> None:
    """Make a lost or damaged manifest anew from the parts that are whole; nothing is deleted."""
    from massrecon.events.verification import repair_store

    report = repair_store(folder)
    _show(str(report), good=report.ok)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def describe(
    folder: Folder,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with figures to this file, too.")
    ] = None,
) -> None:
    """Show what a folder holds: counts for each mass cell, cross-sections, objects, weights."""
    from massrecon.events.summary import describe_store

    summary = describe_store(folder)
    typer.echo(str(summary))
    if html is not None:
        from massrecon.runs.eventpage import write_event_page

        write_event_page(summary, html)
        typer.echo(f"\nThe page with figures is {html}")


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of events, two or more.")],
    out: Annotated[Path, typer.Option(help="New folder for all the events.")],
) -> None:
    """Join folders of events of one process into a new one; all or nothing."""
    from massrecon.events.merging import merge_stores

    n_events = merge_stores(folders, out)
    typer.echo(f"{n_events:,} events of {len(folders)} folders are in {out}")


@app.command()
def export(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(help="File to write: .parquet, .root or .h5.", show_default=False)
    ],
    format: Annotated[
        str | None, typer.Option(help="parquet, root or spanet; by the ending if not given.")
    ] = None,
) -> None:
    """Write the events of a folder to one file for other programs."""
    from massrecon.events.exporters import export_events
    from massrecon.events.store import load_events

    events = load_events(folder)
    export_events(events, file, format)
    typer.echo(f"{len(events)} events are in {file}")


def _show(text: str, good: bool) -> None:
    """Prints a report, the verdict in the last line coloured."""
    *lines, verdict = text.splitlines()
    for line in lines:
        typer.secho(line, fg="red" if line.startswith("DAMAGED") else None)
    typer.secho(verdict, fg="green" if good else "red", bold=True)
