"""``massrecon scan``: one notebook at many points, and what to do with the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from massrecon.errors import InputError, RunError

if TYPE_CHECKING:
    from massrecon.runs.scan import ClusterChoice, Limits, ScanPlan

_MOST_ROWS = 20
_RUN = "run"


class _RunByDefault(TyperGroup):
    """A group whose command ``run`` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts ``run`` in front of what is no command."""
        if args and args[0] not in self.commands and args[0] not in ("--help",):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Run a notebook at many points: massrecon scan NOTEBOOK DESIGN.yaml --out FOLDER."
    " The other commands look at, go on with and export a scan.",
)

Folder = Annotated[Path, typer.Argument(help="Folder of the scan.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Points at a time on this machine.", show_default="by cores and memory"),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a running Dask scheduler: tcp://HOST:PORT.")
]
Profile = Annotated[
    Path | None, typer.Option(help="YAML file that says how to ask SLURM or HTCondor for workers.")
]
Dashboard = Annotated[
    str | None,
    typer.Option(
        help="Show Dask's dashboard at HOST:PORT of this machine; it has no password.",
        show_default="none",
    ),
]
Minutes = Annotated[float | None, typer.Option(help="Longest time of a point, in minutes.")]
Memory = Annotated[
    float | None,
    typer.Option(help="Largest memory of a point [MB].", show_default="a share of the machine's"),
]
Light = Annotated[
    bool,
    typer.Option(
        "--light",
        help="Run points one after another in one process, without a kernel each: for points"
        " of seconds.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not show how it goes.")]


@app.command(_RUN)
def run(
    notebook: Annotated[str, typer.Argument(help="Name of a notebook, or path of your own.")],
    design: Annotated[Path, typer.Argument(help="YAML file with the points.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the points, run nothing.")
    ] = False,
    first: Annotated[int | None, typer.Option(help="Run only so many points.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    profile: Profile = None,
    dashboard: Dashboard = None,
    minutes: Minutes = None,
    memory: Memory = None,
    light: Light = False,
    quiet: Quiet = False,
) -> None:
    """Run a notebook at the points of a design; the word run may be left out."""
    from massrecon.runs import scan

    cluster = _cluster(workers, scheduler, profile, dashboard)
    limits = _limits(minutes, memory, light)
    if dry_run:
        _show_plan(scan.plan_scan(notebook, design, out), cluster)
        return
    _report(
        scan.run_scan(
            notebook, design, out, cluster=cluster, limits=limits, most=first, progress=not quiet
        ),
        out,
    )


def _going_on(again: bool) -> Callable[..., None]:
    """Makes the command that goes on with a scan from its folder alone."""

    def go_on(
        folder: Folder,
        workers: Workers = None,
        scheduler: Scheduler = None,
        profile: Profile = None,
        dashboard: Dashboard = None,
        minutes: Minutes = None,
        memory: Memory = None,
        light: Light = False,
        quiet: Quiet = False,
    ) -> None:
        from massrecon.runs.scan import resume_scan

        cluster = _cluster(workers, scheduler, profile, dashboard)
        limits = _limits(minutes, memory, light)
        _report(
            resume_scan(folder, retry=again, cluster=cluster, limits=limits, progress=not quiet),
            folder,
        )

    return go_on


app.command("resume", help="Run the points that are not done yet.")(_going_on(again=False))
app.command("retry", help="Run the points that failed once more, and those that are not done.")(
    _going_on(again=True)
)


@app.command()
def status(folder: Folder) -> None:
    """Show how many points are in which state, and which failed."""
    from massrecon.runs.scan import scan_status
    from massrecon.runs.scan.progress import duration

    found = scan_status(folder)
    counts = ", ".join(f"{n:,} {state}" for state, n in found.counts.items())
    typer.echo(f"{counts} of {found.total:,}" + ("; a scan is at it" if found.running else ""))
    if found.seconds is not None:
        typer.echo(f"A point takes {duration(found.seconds)} (median).")
    for row in found.failures[:_MOST_ROWS]:
        typer.echo(row)
    if (more := len(found.failures) - _MOST_ROWS) > 0:
        typer.echo(f"… and {more:,} more: see catalogue.parquet")


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="Table to write: .csv, .json or .parquet.")],
) -> None:
    """Write the catalogue, with parameters and results of every point, as one table."""
    from massrecon.runs.scan import export_catalogue

    rows = export_catalogue(folder, out)
    typer.echo(f"{rows:,} points are in {out}")


def _cluster(
    workers: int | None, scheduler: str | None, profile: Path | None, dashboard: str | None
) -> ClusterChoice:
    from massrecon.runs.scan import ClusterChoice

    return ClusterChoice(workers=workers, scheduler=scheduler, profile=profile, dashboard=dashboard)


def _limits(minutes: float | None, memory: float | None, light: bool) -> Limits:
    from massrecon.runs.scan import Limits

    return Limits(minutes=minutes, memory=memory, isolation="shared" if light else "kernel")


def _show_plan(plan: ScanPlan, cluster: ClusterChoice) -> None:
    """Prints the table of the points and how long they may take."""
    from massrecon.runs.scan.clusters import local_workers
    from massrecon.runs.scan.progress import duration

    if not plan.points:
        raise InputError("The design has no points.")
    names = list(plan.points[0].values)
    rows = [[str(point.values.get(name, "")) for name in names] for point in plan.points]
    shown = rows[:_MOST_ROWS]
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    for row in (names, *shown):
        typer.echo("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    if len(rows) > _MOST_ROWS:
        typer.echo(f"… and {len(rows) - _MOST_ROWS:,} more")
    done = len(plan.points) - len(plan.waiting)
    typer.echo(f"{len(rows):,} points, {done:,} of them done or failed before.")
    workers = local_workers(cluster)
    seconds = plan.estimate(workers)
    typer.echo(
        f"Estimated time with {workers} workers: {duration(seconds)}."
        if seconds is not None
        else "Estimated time: unknown until a point is done; try  --first 1"
    )


def _report(counts: dict[str, int], folder: Path) -> None:
    """Prints the outcome; the exit code says whether every point is done."""
    total = counts.pop("total")
    parts = ", ".join(f"{n:,} {state}" for state, n in counts.items())
    typer.echo(f"{parts} of {total:,}. Results are in {folder}")
    if failed := total - counts.get("done", 0) - counts.get("waiting", 0):
        raise RunError(
            f"{failed:,} of {total:,} points failed: see  massrecon scan status '{folder}'"
        )
