"""Simulation on a Dask cluster, the same that runs scans.

The parts of a simulation are pure functions of the request and their number. So a cluster makes the
same events as the processes of one machine: bit for bit, resumable, whoever makes which part. Its
workers need massrecon with the same versions, and the folder of the events under the same path.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import shutil
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from massrecon.errors import GenerationError
from massrecon.events.generator import PoolMaker
from massrecon.events.pool import WorkerPool
from massrecon.events.request import Request
from massrecon.runs.scan.clusters import (
    ClusterChoice,
    connected,
    is_lost,
    local_workers,
    read_profile,
)

_ATTEMPTS = 3
"""How often a part is started whose workers die."""

_LOOK = 2.0
"""Time after which to look whether the scheduler is still there [s]."""

_pools = threading.local()


@contextlib.contextmanager
def cluster_pool(choice: ClusterChoice) -> Iterator[tuple[int, PoolMaker]]:
    """Connects with a cluster that shall make events.

    Example::

        with cluster_pool(ClusterChoice(scheduler="tcp://host:8786")) as (workers, pool):
            mr.simulate("wino_udd", 1_000_000, seed=1, out=folder, workers=workers, pool=pool)

    Yields:
        The number of parts to make at a time, and what `massrecon.simulate` takes as ``pool``.

    Raises:
        InputError: If the scheduler does not answer, or a profile cannot be used.
        MissingExtraError: If Dask is not installed.
    """
    with connected(choice) as client:
        yield _slots(choice, client), partial(ClusterPool.started, client)


def _slots(choice: ClusterChoice, client: Any) -> int:
    """Returns how many parts the cluster makes at a time, once all of its workers are there."""
    if choice.is_local:
        return local_workers(choice)
    if choice.profile is not None:
        _, jobs, options = read_profile(choice.profile)
        return jobs * int(options.get("cores", 1))
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return max(1, sum(worker["nthreads"] for worker in workers))


class ClusterPool:
    """Makes the parts of one simulation on a cluster; see `massrecon.events.generator.Pool`."""

    def __init__(self, client: Any, job: Mapping[str, Any], token: Path) -> None:
        """Takes a job; workers go on as long as the file `token` is there."""
        self._client, self._job, self._token = client, dict(job), token
        self._futures: dict[str, tuple[Any, int, int]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._attempts: Counter[int] = Counter()

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, client: Any, n_workers: int, job: Mapping[str, Any], folder: Path
    ) -> Iterator[ClusterPool]:
        """Gives a pool for one simulation; in the end its workers are told to stop."""
        folder = folder.resolve()
        # the next simulation in this folder removes it, should this process be killed
        token = folder / f".cluster-{uuid.uuid4().hex}.tmp"
        token.touch()
        pool = cls(client, {**job, "folder": str(folder)}, token)
        try:
            yield pool
        finally:
            token.unlink(missing_ok=True)
            pool.close()

    def order(self, worker: int, part: int, limit: int) -> None:
        """Hands a part to the cluster; a part under way keeps its limit."""
        if all(part != other for _, other, _ in self._futures.values()):
            self._attempts[part] = 0
            self._submit(part, limit)

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yields what became of the parts.

        Raises:
            MassReconError: The error of a worker.
            GenerationError: If workers die again and again, or the scheduler is gone.
        """
        while True:
            try:
                key = self._ended.get(timeout=_LOOK)
            except queue.Empty:
                self._check_scheduler()
                continue
            self._check_scheduler()
            future, part, limit = self._futures.pop(key)
            if future.status == "finished":
                yield {"part": part, "done": future.result()}
                continue
            error = future.exception() if future.status == "error" else None
            if error is not None and not is_lost(error):
                raise error
            if self._attempts[part] >= _ATTEMPTS:
                raise GenerationError(
                    f"The workers that made part {part} died {_ATTEMPTS} times: see their logs. "
                    "Finished parts are kept: run the same simulation again to go on."
                )
            self._submit(part, limit)

    def close(self) -> None:
        """Drops the parts that wait, and lets those under way end at their next group."""
        futures = [future for future, _, _ in self._futures.values()]
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.cancel(futures)
            self._client.run(close_idle)

    def _submit(self, part: int, limit: int) -> None:
        self._attempts[part] += 1
        key = f"{self._token.stem}-{part}-{self._attempts[part]}"
        future = self._client.submit(
            make_part, self._job, str(self._token), part, limit, key=key, pure=False
        )
        self._futures[key] = future, part, limit
        future.add_done_callback(lambda _, key=key: self._ended.put(key))

    def _check_scheduler(self) -> None:
        if self._client.status != "running":
            raise GenerationError(
                "The scheduler does not answer any more. Finished parts are kept: run the same "
                "simulation again to go on."
            )


def make_part(job: dict[str, Any], token: str, part: int, limit: int) -> dict[str, Any]:
    """Makes a part on a worker of the cluster, in a process of its own that serves several parts.

    Args:
        job: The simulation, as a process of `massrecon.events.worker` gets it.
        token: File without which nobody waits for the part any more.
        part: Number of the part.
        limit: After how many selected events it may end.

    Returns:
        The entry of the part for the manifest.

    Raises:
        GenerationError: If nobody waits for it, or this worker has other versions.
    """
    if not Path(token).exists():
        raise GenerationError("The simulation is over.")
    pool = _pool_of(job)
    _busy.add(id(pool))
    try:
        pool.order(0, part, limit)
        for answer in pool.answers():
            if answer["part"] == part and "done" in answer:
                return answer["done"]
            if not Path(token).exists():
                break
        raise GenerationError("The simulation is over.")
    except BaseException:
        _close_pool()
        raise
    finally:
        _busy.discard(id(pool))


def close_idle() -> None:
    """Ends the idle processes of a worker of the cluster; the others notice themselves."""
    for name, (pool, folder) in list(_started.items()):
        if name not in _busy:
            _end(pool, folder)


def _close_all() -> None:
    for pool, folder in list(_started.values()):
        _end(pool, folder)


_started: dict[int, tuple[WorkerPool, str]] = {}
_busy: set[int] = set()


def _pool_of(job: dict[str, Any]) -> WorkerPool:
    """Returns the process of this thread of the worker for a job, or starts one."""
    text = json.dumps(job, sort_keys=True)
    if getattr(_pools, "job", None) == text and id(_pools.pool) in _started:
        return _pools.pool
    _close_pool()
    here = Request.of(job["card"], job["masses"], job["seed"], job["settings"]).to_dict()
    if here["versions"] != job["versions"]:
        raise GenerationError(
            f"A worker of the cluster has the versions {here['versions']}, this simulation "
            f"{job['versions']}: install the same on all of them."
        )
    folder = tempfile.mkdtemp(prefix="massrecon-")
    _pools.pool, _pools.job = WorkerPool(1, job, Path(folder)), text
    _started[id(_pools.pool)] = _pools.pool, folder
    return _pools.pool


def _close_pool() -> None:
    """Ends the process of this thread, if there is one."""
    pool = getattr(_pools, "pool", None)
    if pool is not None and id(pool) in _started:
        _end(*_started[id(pool)])


def _end(pool: WorkerPool, folder: str) -> None:
    if _started.pop(id(pool), None) is not None:
        pool.close()
        shutil.rmtree(folder, ignore_errors=True)


atexit.register(_close_all)
