"""Simulation: generator, detector and selection in worker processes, into the event store.

The job is cut into parts (see `part`), each a pure function of the request and its number. The
sample is the first `n_events` selected events in the order of the parts, and so the same whatever
the number of workers, and after any interruption.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from massrecon.errors import InputError, StoreError, require_extra
from massrecon.events.card import ProcessCard
from massrecon.events.masses import MassRequest
from massrecon.events.plan import Entry, PartPlan
from massrecon.events.pool import SCRATCH, WorkerPool
from massrecon.events.request import Request
from massrecon.events.store import (
    MANIFEST,
    checksum,
    load_events,
    locked,
    part_name,
    read_manifest,
    refuse_foreign,
    write_manifest,
)

if TYPE_CHECKING:
    from massrecon.events.container import Events


def simulate(
    card: str | Path | Mapping[str, Any] | ProcessCard,
    n_events: int,
    masses: MassRequest = None,
    seed: int = 0,
    workers: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Events:
    """Simulates collisions until `n_events` have passed the selection of the card.

    The same card, masses, seed and settings give the same events, whatever the number of workers.

    Args:
        card: Process card: a built-in name, the path of a YAML file, or its content.
        n_events: Number of selected events.
        masses: For each mass a number, a ``(low, high)`` tuple for a continuous range, or a list
            for a grid [GeV]; or the same as a string, ``"50:450"`` or ``"50,100,150"``. Masses
            that are not given take the default of the card.
        seed: Random seed.
        workers: Number of processes; None for one per processor, at most 8.
        out: Folder to keep the events in. If it holds part of the same simulation, only the rest
            is made; if it holds another one, it is refused.
        progress: Whether to show a progress bar.
        settings: Options by name: ``multiparton`` (bool), ``ptmiss_noise`` [GeV], ``pythia`` (list
            of further Pythia settings).

    Raises:
        InputError: If an argument is wrong or a mass point has a closed decay.
        StoreError: If `out` cannot be used.
        GenerationError: If Pythia fails, nothing is selected, or a worker dies.
        MissingExtraError: If Pythia or FastJet is not installed.
    """
    request = Request.of(card, masses, seed, settings)
    n_events, workers = _count("n_events", n_events), _n_workers(workers)
    if "pythia8mc" not in request.versions:
        require_extra("pythia8mc", extra="mc")
    if "fastjet" not in request.versions:
        require_extra("fastjet", extra="mc")
    if out is not None:
        return _run(request, n_events, workers, Path(out), progress)
    with tempfile.TemporaryDirectory(prefix="massrecon-") as folder:
        return _run(request, n_events, workers, Path(folder) / "events", progress)


def _count(name: str, value: Any) -> int:
    """Checks a number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"'{name}' should be a positive integer, got {value!r}.")
    return value


def _n_workers(workers: int | None) -> int:
    """Checks or chooses the number of workers."""
    if workers is not None:
        return _count("workers", workers)
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def _run(request: Request, n_events: int, workers: int, folder: Path, progress: bool) -> Events:
    """Makes the parts that are missing in a folder and loads the sample."""
    refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder '{folder}' cannot be made: {error}.") from error
    with locked(folder):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        plan = PartPlan(n_events, _valid_parts(request, folder))
        _write(request, plan, folder)
        if not plan.finished:
            with tqdm(
                total=n_events,
                initial=plan.n_selected(),
                unit=" events",
                desc=request.card.name,
                disable=not progress,
            ) as bar:
                _make_parts(request, plan, workers, folder, bar)
        return load_events(folder)


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
        if path.exists() and checksum(path) == entry["sha256"]:
            kept[entry["number"]] = entry
    return kept


def _make_parts(request: Request, plan: PartPlan, workers: int, folder: Path, bar: tqdm) -> None:
    """Hands out parts to workers until there are enough events."""
    description = request.to_dict()
    job = description | {"card": request.card.to_dict(), "folder": str(folder)}
    n_workers = min(workers, plan.useful_workers())
    with WorkerPool(n_workers, job, folder) as pool:
        for worker in range(n_workers):
            _hand_out(plan, pool, worker)
        for answer in pool.answers():
            if "done" in answer:
                plan.add(answer["done"])
                _write(request, plan, folder)
                plan.refuse_empty(request.card)
            else:
                plan.update(answer["part"], answer["generated"], answer["selected"])
            bar.update(plan.n_selected() - bar.n)
            if plan.finished:
                return
            if "done" in answer:
                for idle in plan.idle(range(n_workers)):
                    _hand_out(plan, pool, idle)
            for busy, part in plan.assigned.items():
                pool.order(busy, part, plan.limit(part))


def _hand_out(plan: PartPlan, pool: WorkerPool, worker: int) -> None:
    """Gives a worker the next part, if one more is needed."""
    part = plan.assign(worker)
    if part is not None:
        pool.order(worker, part, plan.limit(part))


def _write(request: Request, plan: PartPlan, folder: Path) -> None:
    """Writes the manifest of what is there."""
    write_manifest(
        folder,
        request.card,
        plan.n_events,
        [plan.done[number] for number in sorted(plan.done)],
        _provenance(request, plan),
        request.to_dict(),
    )


def _provenance(request: Request, plan: PartPlan) -> dict[str, Any]:
    """Says where the sample comes from; the same however it was made."""
    flow = plan.cut_flow()
    return request.to_dict() | {
        "process": request.card.name,
        "versions": dict(request.versions),
        "prior": "uniform over the open part of the mass ranges"
        if request.prior.partly_closed
        else "uniform over the mass ranges",
        "n_events": plan.n_events,
        "n_generated": flow.get("generated", 0),
        "n_selected": flow.get("selected", 0),
        "cut_flow": dict(flow),
        "cross_sections_fb": plan.cross_sections(),
    }
