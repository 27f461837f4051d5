"""Simulation: generator, detector and selection in worker processes, into the event store.

The job is cut into parts (see `part`), each a pure function of the request and its number. The
sample is the first `n_events` selected events, or what is selected of the first `n_generated`
collisions, in the order of the parts, and so the same whatever the number of workers, and after any
interruption.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from tqdm import tqdm

from massrecon.errors import InputError, StoreError, reason, require_extra
from massrecon.events import toys
from massrecon.events.card import ProcessCard
from massrecon.events.children import usable_processors
from massrecon.events.hard import GROUP_EVENTS, PART_GROUPS
from massrecon.events.manifest import (
    MANIFEST,
    locked,
    part_name,
    read_manifest,
    refuse_foreign,
    write_manifest,
)
from massrecon.events.masses import MassRequest
from massrecon.events.plan import Amount, Entry, PartPlan
from massrecon.events.pool import SCRATCH, WorkerPool
from massrecon.events.request import Request
from massrecon.events.store import load_events
from massrecon.provenance import file_sha256

if TYPE_CHECKING:
    from massrecon.events.container import Events

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that was told to end."""


class Pool(Protocol):
    """Workers that make parts, of this machine or of a cluster; see `WorkerPool`."""

    def order(self, worker: int, part: int, limit: int) -> None:
        """Tells a worker to make a part, or lowers the limit of the one that it makes."""

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yields what the workers report."""
        ...


PoolMaker = Callable[[int, Mapping[str, Any], Path], AbstractContextManager[Pool]]
"""Starts workers, from their number, the job and the folder of the events."""


def simulate(
    card: str | Path | Mapping[str, Any] | ProcessCard,
    n_events: int | None = None,
    masses: MassRequest = None,
    seed: int = 0,
    workers: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    *,
    n_generated: int | None = None,
    pool: PoolMaker | None = None,
) -> Events:
    """Simulates collisions until `n_events` have passed the selection, or `n_generated` are made.

    The same card, masses, seed and settings give the same events, whatever the number of workers.
    Stopped by ctrl-C or SIGTERM, it keeps the finished parts in `out`.

    Args:
        card: Process card: a built-in name, the path of a YAML file, or its content.
        n_events: Number of selected events. Hard collisions from a file may end before.
        masses: For each mass a number, a ``(low, high)`` tuple for a continuous range, or a list
            for a grid [GeV]; or the same as a string, ``"50:450"`` or ``"50,100,150"``. Masses
            that are not given take the default of the card. Or the name of a preset of the card.
        seed: Random seed.
        workers: Number of processes; None for one per processor, at most 8.
        out: Folder to keep the events in. If it holds part of the same simulation, only the rest
            is made; if it holds another one, it is refused.
        progress: Whether to show a progress bar.
        settings: Options by name: ``multiparton`` (bool), ``ptmiss_noise`` [GeV], ``pythia`` (list
            of further Pythia settings), ``lhe`` (a Les Houches file to shower), ``skip_bad`` (bool:
            leave out bad events of that file), ``truth`` (bool: look up the true particles). Of a
            toy: the entries of its `phase_space`, such as ``contamination``.
        n_generated: Number of collisions to generate in place of `n_events`, rounded up to whole
            groups of 500 (5,000 of a toy); whatever passes the selection is kept, be it nothing.
            With a Les Houches file neither of the two means the whole file.
        pool: What makes the events in place of processes of this machine; see
            `massrecon.runs.simulation`.

    Raises:
        InputError: If an argument is wrong or a mass point has a closed decay.
        ImportFileError: If the Les Houches file cannot be used.
        StoreError: If `out` cannot be used.
        GenerationError: If Pythia fails, nothing is selected, or a worker dies.
        MissingExtraError: If Pythia or FastJet is not installed.
    """
    request = Request.of(card, masses, seed, settings)
    amount, workers = _amount(request, n_events, n_generated), _n_workers(workers)
    is_toy = request.settings.phase_space is not None
    if not is_toy and "pythia8mc" not in request.versions:
        require_extra("pythia8mc", extra="mc")
    if not is_toy and "fastjet" not in request.versions:
        require_extra("fastjet", extra="mc")
    maker = pool or WorkerPool
    if out is not None:
        return _run(request, amount, workers, maker, Path(out), progress)
    with tempfile.TemporaryDirectory(prefix="massrecon-") as folder:
        return _run(request, amount, workers, maker, Path(folder) / "events", progress)


def _amount(request: Request, n_events: int | None, n_generated: int | None) -> Amount:
    """Works out how much is wanted."""
    in_file = None if request.lhe is None else request.lhe.n_events
    if n_events is not None and n_generated is not None:
        raise InputError("'n_events' and 'n_generated' exclude each other: give one of them.")
    if n_events is not None:
        n_events = _count("n_events", n_events)
    elif n_generated is not None:
        n_generated = _count("n_generated", n_generated)
    elif in_file is None:
        raise InputError(
            "'n_events' is missing: say how many selected events you want, or 'n_generated', how "
            "many collisions."
        )
    if in_file is not None and n_generated is not None and n_generated > in_file:
        raise InputError(
            f"'n_generated' should be at most {in_file}, the number of events in "
            f"'{request.settings.lhe}', got {n_generated}."
        )
    limits = [number for number in (n_generated, in_file) if number is not None]
    sizes = (GROUP_EVENTS, PART_GROUPS)
    if request.settings.phase_space is not None:
        sizes = (toys.GROUP_EVENTS, toys.PART_GROUPS)
    n_groups = -(-min(limits) // sizes[0]) if limits else None
    return Amount(n_events, n_groups, *sizes)


def _count(name: str, value: Any) -> int:
    """Checks a number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"'{name}' should be a positive integer, got {value!r}.")
    return value


def _n_workers(workers: int | None) -> int:
    """Checks or chooses the number of workers."""
    return min(8, usable_processors()) if workers is None else _count("workers", workers)


def _run(
    request: Request,
    amount: Amount,
    workers: int,
    maker: PoolMaker,
    folder: Path,
    progress: bool,
) -> Events:
    """Makes the parts that are missing in a folder and loads the sample."""
    refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder '{folder}' cannot be made: {reason(error)}. Choose another place."
        ) from error
    with locked(folder), _ending_on_sigterm():
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        plan = PartPlan(amount, _valid_parts(request, folder))
        _write(request, plan, folder)
        if not plan.finished:
            in_events = amount.n_events is not None
            with tqdm(
                total=amount.goal,
                initial=plan.advance(),
                unit=" events" if in_events else " collisions",
                desc=request.card.name,
                disable=not progress,
            ) as bar:
                _make_parts(request, plan, workers, maker, folder, bar)
        return load_events(folder)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as ctrl-C does: workers are stopped, finished parts are kept.

    The process then exits with `TERMINATED`. Handlers of other programs are left in place.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _valid_parts(request: Request, folder: Path) -> dict[int, Entry]:
    """Returns the parts in a folder that can be kept.

    Raises:
        StoreError: If the folder holds another simulation.
    """
    if not (folder / MANIFEST).exists():
        return {}
    manifest = read_manifest(folder)
    stored = manifest["request"]
    differences = request.differences(stored) if stored else ["it holds saved events"]
    if differences:
        raise StoreError(
            f"'{folder}' holds another simulation ({'; '.join(differences)}): choose another "
            "folder, or ask for the same."
        )
    kept = {}
    for entry in manifest["parts"]:
        path = folder / part_name(entry["number"])
        if path.exists() and file_sha256(path) == entry["sha256"]:
            kept[entry["number"]] = entry
    return kept


def _make_parts(
    request: Request, plan: PartPlan, workers: int, maker: PoolMaker, folder: Path, bar: tqdm
) -> None:
    """Hands out parts to workers until there are enough events."""
    description = request.to_dict()
    job = description | {"card": request.card.to_dict(), "folder": str(folder)}
    job["amount"] = asdict(plan.amount)
    n_workers = min(workers, plan.useful_workers())
    with maker(n_workers, job, folder) as pool:
        for worker in range(n_workers):
            _hand_out(plan, pool, worker)
        for answer in pool.answers():
            if "done" in answer:
                plan.add(answer["done"])
                _write(request, plan, folder)
                plan.refuse_empty(request.card)
            else:
                plan.update(answer["part"], answer["generated"], answer["selected"])
            bar.update(plan.advance() - bar.n)
            if plan.finished:
                return
            if "done" in answer:
                for idle in plan.idle(range(n_workers)):
                    _hand_out(plan, pool, idle)
            for busy, part in plan.assigned.items():
                pool.order(busy, part, plan.limit(part))


def _hand_out(plan: PartPlan, pool: Pool, worker: int) -> None:
    """Gives a worker the next part, if one more is needed."""
    part = plan.assign(worker)
    if part is not None:
        pool.order(worker, part, plan.limit(part))


def _write(request: Request, plan: PartPlan, folder: Path) -> None:
    """Writes the manifest of what is there."""
    wanted = None if plan.finished else plan.amount.n_events
    write_manifest(
        folder,
        request.card,
        plan.n_events if wanted is None else wanted,
        plan.listing(),
        _provenance(request, plan),
        request.to_dict(),
    )


def _provenance(request: Request, plan: PartPlan) -> dict[str, Any]:
    """Says where the sample comes from; the same however it was made."""
    flow, cells = plan.totals()
    sigma = None if request.lhe is None else request.lhe.cross_section_fb
    fraction = request.branching_fraction
    return request.to_dict() | {
        "process": request.card.name,
        "versions": dict(request.versions),
        "prior": "uniform over the open part of the mass ranges"
        if request.prior.partly_closed
        else "uniform over the mass ranges",
        "finished": plan.finished,
        "n_events": plan.n_events,
        "n_generated": flow.get("generated", 0),
        "n_selected": flow.get("selected", 0),
        "cut_flow": dict(flow),
        "branching_fraction": fraction,
        "cells": cells.summary(fraction, sigma),
    }
