"""Processes that share a training: how they start, what they are told, how they agree.

The first process is the caller's own. The others are started as programs and find all that they
need in a folder: model, prepared events, recipe and the state of the training. A script therefore
needs no ``__main__`` guard, a notebook works as a script does, and nothing is unpickled. They meet
through a file, talk over the loopback interface alone, and end when their standard input does, so
that none outlives the first. One that hangs is ended; see `massrecon.models.rank_watch`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from massrecon.errors import InputError, MassReconError, ModelError
from massrecon.events.children import child_environment
from massrecon.models.rank_watch import RankWatch

COMMAND = (sys.executable, "-m", "massrecon.models.rank_process")
"""What starts a process; the folder with its orders and its number follow."""

_ORDERS = "orders.json"
_MEETING = "meeting"
_LOG_TAIL = 2000
_NO_LIMIT = timedelta(days=7)  # between processors it is the watch that notices
_TIMEOUT_OF_GPUS = timedelta(minutes=30)  # after which torch itself gives NCCL up
_LAST_WORDS = 10.0
_GOODBYE = 60.0
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class Rank:
    """One of the processes that share a training.

    Attributes:
        number: Its number; the first, 0, keeps the records and writes the files.
        world: How many there are.
    """

    number: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the caller's own process."""
        return self.number == 0

    def share(self, rows: Tensor) -> Tensor:
        """Returns the rows of a batch that are this process's."""
        return rows[self.number :: self.world]

    def stream(self, name: str) -> str:
        """Names random numbers that each process should have of its own."""
        return name if self.is_first else f"{name} of {self.number}"

    def summed(self, *values: float) -> tuple[float, ...]:
        """Adds up numbers over all processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def agreed(self, *values: float) -> tuple[float, ...]:
        """Returns the numbers of the first process."""
        return self.summed(*(value if self.is_first else 0.0 for value in values))


ALONE = Rank()
"""The only process of a training."""


def check_processes(processes: int, device: str, n_events: int) -> None:
    """Refuses more processes than there is room for.

    Raises:
        InputError: If there are fewer GPUs or events, or a group of processes is there already.
    """
    if processes == 1:
        return
    if not dist.is_available():
        raise InputError("This torch cannot use several processes: set 'processes' to 1.")
    if dist.is_initialized():
        raise InputError(
            "'processes' starts the processes of a training itself: call it from a single one, "
            "not under torchrun or srun."
        )
    room = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, processes)
    if processes > room:
        raise InputError(f"'processes' should be at most {room}, the GPUs here, got {processes}.")
    if processes > n_events:
        raise InputError(f"'processes' is {processes}, but there are only {n_events} events.")


def write_orders(folder: Path, orders: Mapping[str, Any]) -> None:
    """Writes what the processes shall do."""
    (folder / _ORDERS).write_text(json.dumps(dict(orders)), encoding="utf-8")


def read_orders(folder: Path) -> dict[str, Any]:
    """Reads what the processes shall do."""
    return json.loads((folder / _ORDERS).read_text(encoding="utf-8"))


@contextlib.contextmanager
def together(rank: Rank, folder: Path, device: str) -> Iterator[None]:
    """Connects this process with the others while the block runs."""
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    limit = _TIMEOUT_OF_GPUS if device == "cuda" else _NO_LIMIT
    with _environment({"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _LOOPBACK)}):
        store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage]  documented
            str(folder / _MEETING), rank.world
        )
        dist.init_process_group(
            backend, store=store, rank=rank.number, world_size=rank.world, timeout=limit
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def others_started(world: int, folder: Path, device: str, minutes: float) -> Iterator[None]:
    """Starts the other processes of a training, connects with them, and ends them.

    Args:
        world: Number of processes, the caller's among them.
        folder: Folder with the orders; logs go there.
        device: ``"cpu"`` or ``"cuda"``.
        minutes: How long the first process waits for the others in a step [min].

    Raises:
        ModelError: If one of them ends before its time, with its last words, or hangs.
    """
    threads = torch.get_num_threads()
    each = max(1, threads // world) if device == "cpu" else threads
    others: list[subprocess.Popen[bytes]] = []
    watch = None
    try:
        for number in range(1, world):
            others.append(_started(number, folder, each))
        watch = RankWatch(others, 60 * minutes)
        watch.start()
        if (number := watch.await_ready()) is not None:
            raise watch.verdict or _obituary(number, others[number - 1], folder)
        torch.set_num_threads(each)
        with together(Rank(0, world), folder, device):
            yield
        for other in others:
            other.wait(timeout=_GOODBYE)
    except MassReconError:
        raise
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        if cause := (watch and watch.verdict) or _cause(others, folder):
            raise cause from error
        raise
    finally:
        torch.set_num_threads(threads)
        if watch is not None:
            watch.end()
        _end(others)


def _started(number: int, folder: Path, threads: int) -> subprocess.Popen[bytes]:
    with _log_of(number, folder).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [*COMMAND, str(folder), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(threads),
            start_new_session=True,  # ctrl-C is for the first process, which ends the others
        )


def _log_of(number: int, folder: Path) -> Path:
    return folder / f"process-{number}.log"


def _cause(others: list[subprocess.Popen[bytes]], folder: Path) -> ModelError | None:
    """Says which process broke the connection, None if all are well."""
    for other in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            other.wait(timeout=_LAST_WORDS / len(others))
    for number, other in enumerate(others, start=1):
        if other.poll():
            return _obituary(number, other, folder)
    return None


def _obituary(number: int, other: subprocess.Popen[bytes], folder: Path) -> ModelError:
    with contextlib.suppress(subprocess.TimeoutExpired):
        other.wait(timeout=_LAST_WORDS)
    log = _log_of(number, folder).read_text(encoding="utf-8", errors="replace").strip()
    return ModelError(
        f"Process {number} of the training ended unexpectedly (exit code {other.returncode}). The "
        f"same call goes on from the last checkpoint. Its last words:\n{log[-_LOG_TAIL:]}"
    )


def _end(others: list[subprocess.Popen[bytes]]) -> None:
    for other in others:
        other.kill()
        other.wait()
        for pipe in (other.stdin, other.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, and puts back all of them afterwards."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
