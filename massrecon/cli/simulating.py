"""``massrecon simulate``: collisions into a folder of events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from massrecon.cli.values import assignments, values_of
from massrecon.errors import InputError

if TYPE_CHECKING:
    from massrecon.events.generator import PoolMaker


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
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler: tcp://HOST:PORT.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="YAML file that says how to ask SLURM or HTCondor for workers."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any other setting of 'simulate'; repeat for more."),
    ] = None,
) -> None:
    """Simulate collisions: generator, detector, selection, event store."""
    from massrecon.events.generator import simulate as simulate_events

    settings: dict[str, Any] = values_of(option or [], "--set")
    given = {"multiparton": multiparton or None, "ptmiss_noise": ptmiss_noise, "lhe": lhe}
    settings |= {name: value for name, value in given.items() if value is not None}
    if events is None and generated is None and not _reads_file(process, settings):
        events = 20_000
    with _pool(workers, scheduler, profile) as (n_workers, pool):
        sample = simulate_events(
            process,
            n_events=events,
            masses=_mass_request(masses or []),
            seed=seed,
            workers=n_workers,
            out=out,
            settings=settings,
            n_generated=generated,
            pool=pool,
        )
    made = sample.provenance["n_generated"]
    typer.echo(f"{len(sample)} selected events of {made} generated ones are in {out}")


def _reads_file(process: str, settings: dict[str, Any]) -> bool:
    """Says whether the hard collisions come from a file, which may be taken whole."""
    from massrecon.events.card import load_card

    return "lhe" in settings or load_card(process).pythia.lhe is not None


@contextlib.contextmanager
def _pool(
    workers: int | None, scheduler: str | None, profile: Path | None
) -> Iterator[tuple[int | None, PoolMaker | None]]:
    """Chooses what makes the events: processes of this machine, or a cluster."""
    if scheduler is None and profile is None:
        yield workers, None
        return
    from massrecon.runs.scan import ClusterChoice
    from massrecon.runs.simulation import cluster_pool

    choice = ClusterChoice(workers=workers, scheduler=scheduler, profile=profile)
    with cluster_pool(choice) as (n_workers, pool):
        yield n_workers, pool


def _mass_request(given: list[str]) -> dict[str, str] | str:
    """Reads the options ``--masses``: assignments, or the name of one preset."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    for text in given:
        if text.count("=") > 1:
            raise InputError(
                f"'--masses' should be one NAME=VALUE, got '{text}': write --masses for each mass."
            )
    return assignments(given, "--masses")
