"""Where the points of a scan run: this machine, any running Dask cluster, or a batch system."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massrecon.errors import InputError, RunError, reason, require_extra
from massrecon.events.cardfile import parse_yaml
from massrecon.events.children import usable_processors

BATCH_SYSTEMS = {"slurm": "SLURMCluster", "htcondor": "HTCondorCluster"}
"""Batch systems by the name that a profile gives, with their class in dask-jobqueue."""

_SETTINGS = {
    # a point whose worker died is counted and started again by the scan itself
    "distributed.scheduler.allowed-failures": 0,
    # looks at all stacks a hundred times a second, for a dashboard that nobody sees
    "distributed.worker.profile.enabled": False,
}

_NO_PAGES = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
"""Leaves Dask's pages out, which everybody can read who reaches their port."""

_PRIVATE = {
    "security": True,
    "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    "worker_extra_args": ["--no-dashboard"],
}
"""Options of a batch system's cluster that a profile may change: TLS, and no pages."""

_SUBMITS = {"slurm": "sbatch", "htcondor": "condor_submit"}

_MEGABYTE = 1e6
_MEMORY_OF_A_POINT = 1500.0  # [MB]
_LEFT_TO_OTHERS = 0.8  # share of the free memory that a scan may use


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """What runs the points.

    Attributes:
        workers: Number of points that run at a time on this machine; by default as many as there
            are cores and room in memory.
        scheduler: Address of the scheduler of a running cluster, such as ``tcp://host:8786``. Its
            workers need massrecon, and the folder of the scan under the same path.
        profile: YAML file that says how to ask a batch system for workers: ``system`` (slurm or
            htcondor), ``jobs``, the number of jobs, and the options of dask-jobqueue's cluster,
            such as ``cores``, ``memory``, ``walltime``, ``queue``. Its jobs and the scheduler
            speak TLS, with keys of this run that lie in the present folder (or in
            ``shared_temp_directory``) meanwhile, unless the profile sets ``security``.
        dashboard: Address of Dask's dashboard on this machine, such as ``127.0.0.1:8787``. It has
            no password, so that there is none by default.
    """

    workers: int | None = None
    scheduler: str | None = None
    profile: Path | None = None
    dashboard: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("workers", "scheduler", "profile") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude one another: give one of them.")
        if self.dashboard is not None and not self.is_local:
            raise InputError(
                "'dashboard' is that of workers on this machine: a running scheduler has its own, "
                "a profile sets it under 'scheduler_options'."
            )
        if self.workers is not None and self.workers < 1:
            raise InputError(f"'workers' should be at least 1, got {self.workers}.")

    @property
    def is_local(self) -> bool:
        """Whether the points run on this machine, by workers of our own."""
        return self.scheduler is None and self.profile is None


def local_workers(choice: ClusterChoice) -> int:
    """Returns how many points run at a time on this machine."""
    if choice.workers is not None:
        return choice.workers
    psutil = require_extra("psutil", extra="cluster")

    room = _LEFT_TO_OTHERS * psutil.virtual_memory().available / _MEGABYTE
    return max(1, min(usable_processors(), int(room / _MEMORY_OF_A_POINT)))


def fair_memory(choice: ClusterChoice, n_workers: int) -> float | None:
    """Returns how much memory a point may take on this machine [MB]; elsewhere that is unknown."""
    if not choice.is_local:
        return None
    psutil = require_extra("psutil", extra="cluster")

    return _LEFT_TO_OTHERS * psutil.virtual_memory().available / _MEGABYTE / n_workers


@contextlib.contextmanager
def connected(choice: ClusterChoice) -> Iterator[Any]:
    """Gives a Dask client of the chosen cluster, and ends what it started.

    Raises:
        InputError: If the scheduler does not answer, or a profile cannot be used.
        MissingExtraError: If Dask is not installed.
        RunError: If workers of our own do not start.
    """
    distributed = require_extra("distributed", extra="cluster")
    dask = require_extra("dask", extra="cluster")
    for name in ("distributed", "distributed.nanny", "distributed.scheduler", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        pages = {} if choice.dashboard else _NO_PAGES
        stack.enter_context(dask.config.set({**_SETTINGS, **pages}))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of Dask and its loop, about ports and slow ends
        if choice.scheduler is not None:
            client = _at_address(distributed, choice.scheduler)
        else:
            cluster = _from_profile(choice) if choice.profile else _local(distributed, choice)
            client = distributed.Client(stack.enter_context(cluster))
        yield stack.enter_context(client)


def is_lost(error: BaseException | None) -> bool:
    """Says of the error of a task whether its worker died, rather than that its work failed."""
    return error is None or type(error).__name__ in ("KilledWorker", "CancelledError")


def _local(distributed: Any, choice: ClusterChoice) -> Any:
    """Starts workers of one thread each, reachable by this user only."""
    try:
        return distributed.LocalCluster(
            n_workers=local_workers(choice),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=choice.dashboard or "127.0.0.1:0",
            scheduler_kwargs={"dashboard": choice.dashboard is not None},
            memory_limit=0,  # the points are watched, not the workers, which are small
            security=True,  # other users of the machine can reach its ports, but have no key
        )
    except RuntimeError as error:
        raise RunError(
            f"The workers did not start: {error} In a script, start the scan below the line  "
            "if __name__ == '__main__':"
        ) from error


def _at_address(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(
            f"No scheduler answers at '{address}': {error}. Start one with  dask scheduler"
        ) from error


def _from_profile(choice: ClusterChoice) -> Any:
    """Asks a batch system for workers."""
    system, jobs, options = read_profile(choice.profile)
    if shutil.which(_SUBMITS[system]) is None:
        raise InputError(
            f"{choice.profile}: there is no command '{_SUBMITS[system]}' here: run the scan where "
            f"jobs of {system} are submitted."
        )
    jobqueue = require_extra("dask_jobqueue", extra="cluster")
    try:
        cluster = getattr(jobqueue, BATCH_SYSTEMS[system])(**{**_PRIVATE, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"{choice.profile}: {error}.") from error
    cluster.scale(jobs=jobs)
    return cluster


def read_profile(path: Path | None) -> tuple[str, int, dict[str, Any]]:
    """Reads a profile: the batch system, the number of jobs, and the options of its cluster.

    Raises:
        InputError: If it cannot be used.
    """
    assert path is not None
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path), "profile")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The profile '{path}' cannot be read: {reason(error)}.") from error
    system, jobs = content.pop("system", None), content.pop("jobs", None)
    if system not in BATCH_SYSTEMS:
        raise InputError(
            f"{path}: 'system' should be one of {', '.join(BATCH_SYSTEMS)}, got {system!r}."
        )
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InputError(f"{path}: 'jobs' should be a positive whole number, got {jobs!r}.")
    return system, jobs, content
