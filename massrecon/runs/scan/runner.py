"""Runs the points of a scan on a cluster, once each, and keeps the catalogue."""

from __future__ import annotations

import dataclasses
import math
import queue
import shutil
import statistics
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massrecon.errors import InputError, RunError, require_extra
from massrecon.events.manifest import locked
from massrecon.provenance import write_text
from massrecon.runs.notebooks import (
    converted,
    find_notebook,
    notebook_parameters,
    notebook_sha256,
)
from massrecon.runs.scan.catalogue import planned_points, rebuild_catalogue, write_plan
from massrecon.runs.scan.clusters import (
    ClusterChoice,
    connected,
    fair_memory,
    is_lost,
    local_workers,
)
from massrecon.runs.scan.design import Design, load_design, parameters_of, points_of
from massrecon.runs.scan.execution import run_point
from massrecon.runs.scan.limits import Limits
from massrecon.runs.scan.point import FAILURES, Point, PointState, is_done
from massrecon.runs.scan.progress import ScanProgress

_AHEAD = 8
"""Points that are handed out for each worker before earlier ones come back."""

_CATALOGUE_EVERY = 30.0
"""Time between two writings of the catalogue, at least [s]."""

_CATALOGUE_SHARE = 20.0
"""How many times longer than writing it took the catalogue may be out of date."""

_LOOK = 2.0
"""Time after which to look whether the scheduler is still there [s]."""

_Key = tuple[str, str, int]
"""Key of a task: the point and how often it has been started."""

_LEAST_ROOM = 1_000_000
"""A disk with less free space is full [bytes]."""


@dataclass(frozen=True)
class ScanPlan:
    """Points, and what is known of them.

    Attributes:
        points: The points.
        states: What is known of each point that was finished or failed, by its key.
        seconds: Median time of the finished points [s], None if there are none.
    """

    points: list[Point]
    states: dict[str, PointState]
    seconds: float | None

    @classmethod
    def of(cls, points: Sequence[Point], out: Path) -> ScanPlan:
        """Finds in the folder of a scan what is known of some points."""
        states = {}
        for point in points:
            state = PointState.load(point.folder(out))
            if state is not None and (state.state in FAILURES or is_done(point.folder(out))):
                states[point.key] = state
        times = [state.seconds for state in states.values() if state.state == "done"]
        return cls(list(points), states, statistics.median(times) if times else None)

    @property
    def waiting(self) -> list[Point]:
        """The points that were never finished."""
        return [point for point in self.points if point.key not in self.states]

    @property
    def failed(self) -> list[Point]:
        """The points that failed."""
        known = (point for point in self.points if point.key in self.states)
        return [point for point in known if self.states[point.key].state in FAILURES]

    def estimate(self, workers: int) -> float | None:
        """Returns how long the waiting points will take [s], None if that is unknown."""
        return None if self.seconds is None else self.seconds * len(self.waiting) / workers


def plan_scan(notebook: str | Path, design: Design | str | Path, out: str | Path) -> ScanPlan:
    """Checks every point of a design against a notebook and finds what is done already.

    Nothing is run or written.

    Raises:
        InputError: If the design, or a parameter of any of its points, is at fault.
    """
    path, out = find_notebook(notebook).resolve(), Path(out)
    if not isinstance(design, Design):
        design = load_design(design)
    known = notebook_parameters(path)
    if "out" in {*design.axes, *design.parameters, *(n for p in design.points for n in p)}:
        raise InputError("'out' is the folder of each point: leave it out of the design.")
    if design.seeds and "seed" not in known:
        raise InputError(f"{path.name} has no parameter 'seed': leave out 'seeds'.")
    copy, points = _copy_of(path), {}
    for values in points_of(design):
        wanted = parameters_of(values, design, known)
        point = Point.of(values, converted(wanted, known, path.stem), copy)
        points[point.key] = point
    return ScanPlan.of(list(points.values()), out)


def _copy_of(notebook: Path) -> str:
    """Names the scan's own copy of a notebook; another text of it has another name."""
    return f"notebooks/{notebook_sha256(notebook)[:12]}/{notebook.name}"


def run_scan(
    notebook: str | Path,
    design: Design | str | Path,
    out: str | Path,
    *,
    cluster: ClusterChoice | None = None,
    limits: Limits | None = None,
    most: int | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Runs a notebook at all points of a design that are not done yet.

    A point that failed is left alone, see `resume_scan`. Interrupted, killed or repeated, the same
    call goes on where it stopped.

    Args:
        notebook: Name or path.
        design: The design, or the file that holds it.
        out: Folder of the scan. Each point has a folder ``points/KEY`` with the executed notebook,
            ``summary.json``, ``state.json`` and ``log.txt``; the catalogue is
            ``catalogue.parquet``.
        cluster: What runs the points; by default all cores of this machine.
        limits: What a point may take.
        most: Number of points after which to stop; by default none.
        progress: Whether to show how it goes.

    Returns:
        Number of points of the design by state, ``total`` among them.

    Raises:
        InputError: If design, notebook or options are at fault; nothing has run then.
        RunError: If the disk is full or the scheduler is gone.
        StoreError: If another scan is writing to the folder.
    """
    out, path = Path(out).resolve(), find_notebook(notebook)
    plan = plan_scan(path, design, out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        write_text(out / plan.points[0].notebook, path.read_text(encoding="utf-8"))
        write_plan(out, plan.points)
        run = _Run(out, cluster or ClusterChoice(), limits or Limits(), progress)
        return run.settle(plan, plan.waiting[:most])


def resume_scan(
    out: str | Path,
    *,
    retry: bool = False,
    cluster: ClusterChoice | None = None,
    limits: Limits | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Runs the points of a scan that are not done yet, from its folder alone.

    Args:
        out: Folder of the scan.
        retry: Whether to run also the points that failed.
        cluster: What runs the points; by default all cores of this machine.
        limits: What a point may take.
        progress: Whether to show how it goes.

    Returns:
        Number of points by state, ``total`` among them.

    Raises:
        RunError: If the folder holds no scan, the disk is full or the scheduler is gone.
        StoreError: If another scan is writing to the folder.
    """
    out = Path(out).resolve()
    planned_points(out)
    with locked(out):
        plan = ScanPlan.of(planned_points(out), out)
        run = _Run(out, cluster or ClusterChoice(), limits or Limits(), progress)
        return run.settle(plan, [*plan.waiting, *(plan.failed if retry else [])])


class _Run:
    """One call of `run_scan` or `resume_scan`."""

    def __init__(self, out: Path, cluster: ClusterChoice, limits: Limits, progress: bool) -> None:
        self.out, self.cluster, self.limits, self.progress = out, cluster, limits, progress
        self.distributed = require_extra("distributed", extra="cluster")
        self.attempts: Counter[str] = Counter()
        self.catalogued, self.pause = time.monotonic(), _CATALOGUE_EVERY

    def settle(self, plan: ScanPlan, todo: list[Point]) -> dict[str, int]:
        """Runs some points of a plan and counts all its points by state."""
        settled = Counter(state.state for state in plan.states.values())
        settled.subtract(plan.states[p.key].state for p in todo if p.key in plan.states)
        shown = ScanProgress(len(todo), self.progress)
        try:
            with shown:
                if todo:
                    rebuild_catalogue(self.out, running=True)  # readers find one from the start
                    self._work(todo, shown)
        finally:
            rebuild_catalogue(self.out)
        settled.update(shown.counts)
        settled["waiting"] += len(plan.points) - settled.total()
        return {**{state: n for state, n in settled.items() if n}, "total": len(plan.points)}

    def _work(self, points: list[Point], shown: ScanProgress) -> None:
        """Runs points; those that took too much memory once more, one at a time."""
        share = fair_memory(self.cluster, local_workers(self.cluster))
        memory = self.limits.memory or share
        hungry = self._round(points, memory, self.cluster, shown, last=False)
        if hungry:
            alone = self.cluster
            if alone.is_local:
                alone = dataclasses.replace(alone, workers=1)
            self._round(hungry, fair_memory(alone, 1) or memory, alone, shown, last=True)

    def _round(
        self,
        points: list[Point],
        memory: float | None,
        cluster: ClusterChoice,
        shown: ScanProgress,
        last: bool,
    ) -> list[Point]:
        """Runs points and returns those that should be tried again alone."""
        waiting, hungry = deque(points), []
        with connected(cluster) as client:
            running = _Running(client, self.out)
            while waiting or running:
                room = 1 if last else _AHEAD * max(1, running.n_workers())
                while waiting and len(running) < room:
                    running.start(self._work_of(waiting.popleft(), memory))
                    shown.started()
                point, state = running.next_ended()
                if state is None and self.attempts[point.key] >= self.limits.attempts:
                    state = self._lost(point)
                if state is None:
                    shown.put_back()
                    waiting.append(point)
                elif state.state == "memory" and not last:
                    shown.put_back()
                    hungry.append(point)
                else:
                    self._refuse_full_disk(state)
                    shown.ended(point, state)
                self._keep_catalogue()
        return hungry

    def _work_of(self, point: Point, memory: float | None) -> tuple[Any, ...]:
        self.attempts[point.key] += 1
        return point, str(self.out), self.limits, memory, self.attempts[point.key]

    def _lost(self, point: Point) -> PointState:
        """Notes that the workers of a point died again and again."""
        state = PointState(
            state="lost", attempts=self.attempts[point.key], values=point.values,
            parameters=point.parameters, error="Its workers died: see their logs.",
        )  # fmt: skip
        point.folder(self.out).mkdir(parents=True, exist_ok=True)
        state.save(point.folder(self.out))
        return state

    def _refuse_full_disk(self, state: PointState) -> None:
        """Stops before every point that is left fails for want of space."""
        if state.state in FAILURES and shutil.disk_usage(self.out).free < _LEAST_ROOM:
            raise RunError(
                f"The disk of '{self.out}' is full: free some space, then run "
                f"massrecon scan retry '{self.out}'."
            )

    def _keep_catalogue(self) -> None:
        """Writes the catalogue now and then, rarely enough that it costs little."""
        if time.monotonic() - self.catalogued < self.pause:
            return
        started = time.monotonic()
        rebuild_catalogue(self.out, running=True)
        self.catalogued = time.monotonic()
        self.pause = max(_CATALOGUE_EVERY, _CATALOGUE_SHARE * (self.catalogued - started))


class _Running:
    """The points that a cluster is at."""

    def __init__(self, client: Any, out: Path) -> None:
        self._client, self._out = client, out
        self._futures: dict[_Key, tuple[Any, Point]] = {}
        self._ended: queue.SimpleQueue[_Key] = queue.SimpleQueue()
        self._n_workers, self._counted = 0, -math.inf

    def __len__(self) -> int:
        return len(self._futures)

    def n_workers(self) -> int:
        """Returns how many workers there were, seconds ago at most."""
        if not self._n_workers or time.monotonic() - self._counted > _LOOK:
            self._n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
            self._counted = time.monotonic()
        return self._n_workers

    def start(self, work: tuple[Any, ...]) -> None:
        """Hands a point to the cluster."""
        point, attempt = work[0], work[-1]
        # the scheduler keeps what it learns of each first part of a key for good
        key = ("point", point.key, attempt)
        future = self._client.submit(run_point, *work, key=key, pure=False)
        self._futures[key] = (future, point)
        future.add_done_callback(lambda _, key=key: self._ended.put(key))

    def next_ended(self) -> tuple[Point, PointState | None]:
        """Waits for a point to end, and returns what became of it; None if its worker died.

        Raises:
            RunError: If the scheduler is gone, or a worker cannot do its work.
        """
        while True:
            try:
                key = self._ended.get(timeout=_LOOK)
                break
            except queue.Empty:
                self._check_scheduler()
        self._check_scheduler()
        future, point = self._futures.pop(key)
        if future.status == "finished":
            # the file is at hand, the worker's answer two connections away
            return point, self._state_on_disk(point, key[-1]) or future.result()
        error = future.exception() if future.status == "error" else None
        if isinstance(error, OSError):
            raise RunError(
                f"A worker cannot write: {error}. See to its disk; then the same command goes on."
            )
        if error is not None and not is_lost(error):
            raise error
        return point, None

    def _state_on_disk(self, point: Point, attempt: int) -> PointState | None:
        """Reads how a point ended; None where the disk of another machine does not say so yet."""
        state = PointState.load(point.folder(self._out))
        if state is None or state.state not in ("done", *FAILURES):
            return None
        return state if state.state == "done" or state.attempts == attempt else None

    def _check_scheduler(self) -> None:
        if self._client.status != "running":
            raise RunError(
                "The scheduler does not answer any more. Finished points are kept: the same "
                "command, or 'massrecon scan resume', goes on."
            )
