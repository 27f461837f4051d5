"""Simulation on a Dask cluster: the same events as on one machine, whatever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import massrecon as mr
from massrecon.errors import GenerationError, InputError
from massrecon.events.store import part_name, read_manifest
from massrecon.runs import simulation
from massrecon.runs.scan import ClusterChoice
from massrecon.runs.simulation import cluster_pool

distributed = pytest.importorskip("distributed")


@pytest.fixture
def threads() -> Iterator[str]:
    """A scheduler with two workers in threads of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster:
            yield cluster.scheduler_address
    simulation._close_all()


def on_cluster(address: str, out: Path, **request: Any) -> mr.Events:
    with cluster_pool(ClusterChoice(scheduler=address)) as (workers, pool):
        assert workers == 2
        return mr.simulate(
            "antler", seed=4, out=out, progress=False, workers=workers, pool=pool, **request
        )


def same(one: mr.Events, two: mr.Events) -> bool:
    a, b = one.tensors(), two.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cluster_makes_the_same_files(threads: str, tmp_path: Path) -> None:
    assert len(names_of_the_same_files(threads, tmp_path, 10_000)) == 1


@pytest.mark.slow
def test_a_cluster_shares_out_parts_and_makes_again_what_is_lost(
    threads: str, tmp_path: Path
) -> None:
    names = names_of_the_same_files(threads, tmp_path, 110_000)
    assert len(names) == 2
    kept = (tmp_path / "b" / names[0]).stat().st_mtime_ns
    (tmp_path / "b" / names[1]).unlink()
    again = on_cluster(threads, tmp_path / "b", n_generated=110_000)
    assert same(again, mr.load_events(tmp_path / "a"))
    assert (tmp_path / "b" / names[0]).stat().st_mtime_ns == kept


def names_of_the_same_files(address: str, tmp_path: Path, n: int) -> list[str]:
    """Compares a simulation of this machine with one of the cluster; returns the parts' names."""
    local = mr.simulate(
        "antler", seed=4, out=tmp_path / "a", progress=False, workers=1, n_generated=n
    )
    assert same(local, on_cluster(address, tmp_path / "b", n_generated=n))
    names = [part_name(entry["number"]) for entry in read_manifest(tmp_path / "a")["parts"]]
    for name in (*names, "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    left = {path.name for path in (tmp_path / "b").iterdir()}
    assert left == {*names, "manifest.json", ".lock"}
    return names


def test_errors_of_workers_come_back(threads: str, tmp_path: Path) -> None:
    with cluster_pool(ClusterChoice(scheduler=threads)) as (_, pool):
        with pytest.raises(InputError, match="'n_events' should be a positive integer"):
            mr.simulate("antler", n_events=0, out=tmp_path / "a", pool=pool)
        job = {"card": "antler", "masses": None, "seed": 1, "settings": None, "versions": {}}
        with (
            pytest.raises(GenerationError, match=r"worker of the cluster has the versions"),
            pool(1, job, tmp_path) as workers,
        ):
            workers.order(0, 0, 100)
            next(workers.answers())
    assert not list(tmp_path.glob(".cluster-*"))


def test_a_part_that_nobody_waits_for_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="The simulation is over"):
        simulation.make_part({}, str(tmp_path / "gone"), 0, 10)


def test_a_profile_says_how_many_parts_are_made_at_a_time(tmp_path: Path) -> None:
    profile = tmp_path / "slurm.yaml"
    profile.write_text("system: slurm\njobs: 5\ncores: 4\nmemory: 8GB\n")
    assert simulation._slots(ClusterChoice(profile=profile), None) == 20
    assert simulation._slots(ClusterChoice(workers=3), None) == 3


@pytest.mark.slow
def test_the_command_simulates_on_a_cluster_with_a_worker_that_dies(tmp_path: Path) -> None:
    """Real processes, real Pythia; one worker is killed in the middle of its part."""
    pytest.importorskip("pythia8mc")
    from typer.testing import CliRunner

    from massrecon.cli import app

    request = ["simulate", "wino_udd", "--generated", "6500", "--seed", "5"]
    killed: list[int] = []

    def kill(cluster: Any) -> None:
        workers = [w.pid for w in cluster.workers.values()]
        until = time.monotonic() + 120
        while time.monotonic() < until and not killed:
            for pid in workers:
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(pid).children(recursive=True):
                        if "massrecon.events.worker" in " ".join(child.cmdline()):
                            time.sleep(2)
                            os.kill(child.parent().pid, signal.SIGKILL)
                            killed.append(child.pid)
                            return
            time.sleep(0.2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster:
            killer = threading.Thread(target=kill, args=(cluster,))
            killer.start()
            address = ["--scheduler", cluster.scheduler_address]
            done = CliRunner().invoke(app, [*request, "--out", str(tmp_path / "b"), *address])
            killer.join()
    assert done.exit_code == 0, done.output
    assert killed
    alone = CliRunner().invoke(app, [*request, "--out", str(tmp_path / "a"), "--workers", "1"])
    assert alone.exit_code == 0, alone.output
    assert same(mr.load_events(tmp_path / "a"), mr.load_events(tmp_path / "b"))
    for path in (tmp_path / "a").glob("part-*.parquet"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
