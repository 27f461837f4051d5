"""Scans on a real local cluster: points run once, failures kept, faults survived."""

from __future__ import annotations

import gc
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import psutil
import pytest

from massrecon.errors import InputError, RunError, StoreError
from massrecon.events.manifest import locked
from massrecon.runs.scan import (
    ClusterChoice,
    Design,
    Limits,
    export_catalogue,
    load_catalogue,
    resume_scan,
    run_scan,
    scan_status,
)
from massrecon.runs.scan import clusters as clusters_module
from massrecon.runs.scan.catalogue import CATALOGUE, SCAN_FILE
from massrecon.runs.scan.clusters import read_profile
from massrecon.runs.scan.point import PointState
from tests.test_runs import write_notebook

PARAMETERS = """\
out: str = "results"  # folder for the results
m2: float = 600.0  # [GeV] mass of the parent
text: str = ""  # a text
act: str = ""  # what to do
folder: str = ""  # for notes
seed: int = 0  # seed
"""
ACT = """\
import os, pathlib, signal, time
notes = pathlib.Path(folder or out)
first = not (notes / f"{act}{m2}").exists()
(notes / f"{act}{m2}").touch()
print("at", m2)
if act == "raise":
    raise ArithmeticError("no such mass")
if act == "hang":
    time.sleep(600)
if act == "wait":
    time.sleep(0.5)
if act == "kill worker" and m2 == 500 and first:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
if act == "eat" and m2 == 500:
    eaten = bytearray(500_000_000)
    time.sleep(2)
if act == "crash":
    os._exit(7)
"""
SUM = """\
import json
summary = {"m2": m2, "double": 2 * m2, "text": text, "inner": {"seed": seed}, "list": [1, 2]}
pathlib.Path(out, "summary.json").write_text(json.dumps(summary))
"""
ONE = ClusterChoice(workers=1)
LIGHT = Limits(isolation="shared")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path, PARAMETERS, ACT, SUM)


def design(*m2: float, **content: Any) -> Design:
    return Design.model_validate({"axes": {"m2": list(m2)}, **content})


def run(notebook: Path, wanted: Design, out: Path, **options: Any) -> dict[str, int]:
    options = {"cluster": ONE, "limits": LIGHT, "progress": False, **options}
    return run_scan(notebook, wanted, out, **options)


def states(out: Path) -> dict[float, PointState]:
    found = [PointState.load(path.parent) for path in out.glob("points/*/state.json")]
    return {state.values["m2"]: state for state in found if state is not None}


def test_points_run_once_and_are_catalogued(
    notebook: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scan"
    nasty = "it's \"{m2}\" \\ \n __import__('os').abort() <script> {x}"
    wanted = design(400, 500, seeds=2, parameters={"text": nasty})
    assert run(notebook, wanted, out, most=1) == {"done": 1, "waiting": 3, "total": 4}
    assert run(notebook, wanted, out, progress=True) == {"done": 4, "total": 4}
    assert "3 done of 3" in capfd.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in out.glob("points/*/*")}
    assert run(notebook, wanted, out) == {"done": 4, "total": 4}
    assert {path: path.stat().st_mtime_ns for path in out.glob("points/*/*")} == before
    table = load_catalogue(out).to_pandas()
    assert sorted(zip(table["m2"], table["seed"], strict=True)) == [
        (400, 1), (400, 2), (500, 1), (500, 2),
    ]  # fmt: skip
    assert (table["summary.double"] == 2 * table["m2"]).all()
    assert (table["summary.inner.seed"] == table["seed"]).all()
    # nothing in a text is executed; only the axis is filled in
    assert set(table["summary.text"]) == {nasty.replace("{m2}", str(m)) for m in (400, 500)}
    path = str(out / CATALOGUE)
    assert duckdb.sql(f"select sum(\"summary.double\") from '{path}'").fetchall() == [(3600.0,)]
    assert len(pd.read_parquet(path)) == 4
    executed = next(out.glob("points/*/90_small.ipynb"))
    assert "at 400.0" in executed.read_text() or "at 500.0" in executed.read_text()
    export_catalogue(out, tmp_path / "t.csv")
    assert len(pd.read_csv(tmp_path / "t.csv")) == 4
    export_catalogue(out, tmp_path / "t.json")
    assert len(json.loads((tmp_path / "t.json").read_text())) == 4
    with pytest.raises(InputError, match=r"should end in one of .csv, .json, .parquet"):
        export_catalogue(out, tmp_path / "t.xls")


def test_failures_are_kept_and_others_go_on(notebook: Path, tmp_path: Path) -> None:
    """One raises, one hangs, one crashes its process, one is fine."""
    out = tmp_path / "scan"
    points = [
        {"m2": m, "act": act} for m, act in ((1, "raise"), (2, "hang"), (3, "crash"), (4, ""))
    ]
    wanted = Design.model_validate({"design": "list", "points": points})
    limits = Limits(isolation="shared", minutes=0.04)
    assert run(notebook, wanted, out, limits=limits) == {
        "failed": 2, "timeout": 1, "done": 1, "total": 4,
    }  # fmt: skip
    found = states(out)
    assert "Cell [3] of 90_small.ipynb failed with ArithmeticError: no such mass" in found[1].error
    assert found[2].error == "It was not done after 0.04 minutes."
    assert "exit code 7" in found[3].error
    kept = next(p for p in out.glob("points/*/90_small.ipynb") if "no such mass" in p.read_text())
    assert "ArithmeticError" in (kept.parent / "log.txt").read_text()
    status = scan_status(out)
    assert (status.counts, status.running) == ({"failed": 2, "timeout": 1, "done": 1}, False)
    assert any(line.startswith("timeout: m2=2, act=hang: It was not") for line in status.failures)
    # failures are no accidents: they are run again only when asked for
    assert run(notebook, wanted, out, limits=limits)["failed"] == 2
    assert states(out)[1].attempts == 1


def test_killed_worker_does_not_lose_its_point(notebook: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    wanted = design(400, 500, 600, parameters={"act": "kill worker", "folder": str(notes)})
    counts = run(notebook, wanted, tmp_path / "scan")
    assert counts == {"done": 3, "total": 3}
    assert states(tmp_path / "scan")[500].attempts == 2
    # another run, undisturbed, gives the same
    run(notebook, wanted, tmp_path / "other")
    one, other = (
        {r["key"]: r["summary.double"] for r in load_catalogue(tmp_path / name).to_pylist()}
        for name in ("scan", "other")
    )
    assert one == other


def test_catalogue_is_made_anew(notebook: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan"
    run(notebook, design(400), out)
    good = load_catalogue(out)
    (out / CATALOGUE).write_bytes(b"PAR1 nonsense")
    assert load_catalogue(out).equals(good)
    (out / CATALOGUE).unlink()
    assert load_catalogue(out).equals(good)
    plan = (out / SCAN_FILE).read_text()
    (out / SCAN_FILE).write_text(plan[:40])
    with pytest.raises(RunError, match="remove it, and start the scan again"):
        scan_status(out)
    (out / SCAN_FILE).unlink()
    with pytest.raises(RunError, match="holds no scan"):
        scan_status(out)
    assert run(notebook, design(400), out) == {"done": 1, "total": 1}
    # a state that was cut off counts as waiting, and is run again
    state = next(out.glob("points/*/state.json"))
    state.write_text(state.read_text()[:20])
    assert scan_status(out).counts == {"waiting": 1}
    assert resume_scan(out, cluster=ONE, limits=LIGHT, progress=False) == {"done": 1, "total": 1}


def test_second_scan_on_a_folder_is_refused(notebook: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan"
    out.mkdir()
    with locked(out):
        with pytest.raises(StoreError, match="Another process is writing to"):
            run(notebook, design(400), out)
        assert not (out / "points").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "'workers' should be at least 1, got 0"),
        ({"workers": 1, "scheduler": "tcp://x:1"}, "workers and scheduler exclude one another"),
        ({"scheduler": "tcp://x:1", "dashboard": ":1"}, "'dashboard' is that of workers on this"),
    ],
)
def test_wrong_clusters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClusterChoice(**options)


def test_wrong_limits() -> None:
    with pytest.raises(InputError, match="'minutes' should be positive, got -1"):
        Limits(minutes=-1)
    with pytest.raises(InputError, match="Unknown isolation 'none'"):
        Limits(isolation="none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("system: pbs\njobs: 1", "'system' should be one of slurm, htcondor, got 'pbs'"),
        ("system: slurm\njobs: true", "'jobs' should be a positive whole number, got True"),
        ("- 1", "a profile should be a mapping"),
        ("system: slurm\njobs: 1\njobs: 2", "'jobs' stands here again after line 2"),
    ],
)
def test_wrong_profiles(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_profile(path)


def test_profile_becomes_a_batch_job(tmp_path: Path) -> None:
    """The script that dask-jobqueue would hand to SLURM has what the profile says."""
    import dask_jobqueue

    path = tmp_path / "profile.yaml"
    path.write_text(
        "system: slurm\njobs: 3\ncores: 4\nprocesses: 4\nmemory: 16GB\nwalltime: '02:00:00'\n"
        "queue: long\n"
    )
    system, jobs, options = read_profile(path)
    cluster = getattr(dask_jobqueue, clusters_module.BATCH_SYSTEMS[system])
    script = cluster.job_cls(name="x", scheduler="tcp://1.2.3.4:1", **options).job_script()
    assert jobs == 3
    assert "#SBATCH -p long" in script
    assert "#SBATCH -t 02:00:00" in script


def reachable() -> list[tuple[str, int]]:
    """Addresses at which this process and those it started listen."""
    me = psutil.Process()
    found = []
    for process in (me, *me.children(recursive=True)):
        listening = (c for c in process.net_connections("inet") if c.status == "LISTEN")
        found += [(c.laddr.ip, c.laddr.port) for c in listening]
    return found


def page_of(port: int, path: str) -> int | None:
    """The answer of a port to a request for a page; None where it does not speak HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


PAGES = ("/", "/status", "/info/main/workers.html", "/json/counts.json", "/metrics")


def test_a_local_cluster_is_for_this_user_alone() -> None:
    before = set(reachable())
    with clusters_module.connected(ONE) as client:
        listening = set(reachable()) - before
        assert len(listening) >= 2
        assert {ip for ip, _ in listening} == {"127.0.0.1"}
        assert client.scheduler.address.startswith("tls://")
        answers = {page_of(port, path) for _, port in listening for path in PAGES}
        assert answers <= {None, 404}


def test_a_dashboard_is_there_only_on_demand() -> None:
    before = set(reachable())
    with clusters_module.connected(ClusterChoice(workers=1, dashboard="127.0.0.1:0")):
        listening = set(reachable()) - before
        assert {ip for ip, _ in listening} == {"127.0.0.1"}
        assert 200 in {page_of(port, "/json/counts.json") for _, port in listening}


def test_a_batch_system_gets_keys_and_no_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for SLURM keeps the script that it is handed."""
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        f"system: slurm\njobs: 1\ncores: 1\nmemory: 1GB\nshared_temp_directory: {tmp_path}\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(InputError, match="there is no command 'sbatch' here"),
        clusters_module.connected(ClusterChoice(profile=profile)),
    ):
        pytest.fail("It connected.")
    for name, does in {"sbatch": f"cat $1 > {tmp_path}/job", "scancel": "true"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\necho Submitted batch job 7\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    before = set(reachable())
    with clusters_module.connected(ClusterChoice(profile=profile)) as client:
        assert client.scheduler.address.startswith("tls://")
        wait_for((tmp_path / "job").is_file, 60)
        script = (tmp_path / "job").read_text()
        listening = set(reachable()) - before
        assert {page_of(port, path) for _, port in listening for path in PAGES} <= {None, 404}
    assert "--protocol tls://" in script
    assert "--no-dashboard" in script
    keys = re.findall(r"--tls-key (\S+)", script)
    assert [Path(key).parent for key in keys] == [tmp_path]
    del client
    gc.collect()  # dask-jobqueue leaves it to this to close its files, and so to remove them
    assert not Path(keys[0]).exists()


@pytest.fixture
def command(notebook: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line in a process group of its own."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from massrecon.cli import main; main()", "scan", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
            start_new_session=True,
        )  # fmt: skip

    return start


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def n_done(out: Path) -> int:
    return sum(state.state == "done" for state in states(out).values())


def test_ctrl_c_ends_everything_and_the_scan_can_go_on(
    command: Callable[..., subprocess.Popen[str]], notebook: Path, tmp_path: Path
) -> None:
    out, plan = tmp_path / "scan", tmp_path / "design.yaml"
    plan.write_text("axes: {m2: {from: 1, to: 200, step: 1}}\nparameters: {act: wait}\n")
    scan = command(str(notebook), str(plan), "--out", str(out), "--light", "--workers", "1")
    wait_for(lambda: n_done(out) >= 2)
    family = psutil.Process(scan.pid).children(recursive=True)
    assert family
    os.kill(scan.pid, signal.SIGINT)
    said, _ = scan.communicate(timeout=60)
    assert scan.returncode == 130, said
    assert "Stopped" in said
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    finished = n_done(out)
    assert 2 <= finished < 200
    assert scan_status(out).counts == {"done": finished, "waiting": 200 - finished}
    before = {path: path.stat().st_mtime_ns for path in out.glob("points/*/summary.json")}
    again = command(str(notebook), str(plan), "--out", str(out), "--light", "--first", "1")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert n_done(out) == finished + 1
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


@pytest.mark.slow
def test_kernels_keep_points_apart(notebook: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan"
    assert run(notebook, design(400, 500), out, limits=Limits()) == {"done": 2, "total": 2}
    content = json.loads(next(out.glob("points/*/90_small.ipynb")).read_text())
    assert content["metadata"]["papermill"]["parameters"]["m2"] in (400.0, 500.0)
    light = run(notebook, design(400, 500), tmp_path / "light")
    assert light == {"done": 2, "total": 2}
    one, other = (
        {r["key"]: r["summary.double"] for r in load_catalogue(place).to_pylist()}
        for place in (out, tmp_path / "light")
    )
    assert one == other


@pytest.mark.slow
def test_points_that_eat_memory_are_tried_alone(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = design(400, 500, parameters={"act": "eat"})
    limits = Limits(isolation="shared", memory=400)
    assert run(notebook, wanted, tmp_path / "scan", limits=limits) == {"done": 2, "total": 2}
    assert states(tmp_path / "scan")[500].attempts == 2
    assert states(tmp_path / "scan")[500].peak_memory > 500
    monkeypatch.setattr("massrecon.runs.scan.runner.fair_memory", lambda *_: 400.0)
    counts = run(notebook, wanted, tmp_path / "small", limits=limits)
    assert counts == {"done": 1, "memory": 1, "total": 2}
    assert "more than 400 MB" in states(tmp_path / "small")[500].error


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler and a worker that were started by hand."""
    here = tmp_path / "scheduler.json"
    with (tmp_path / "dask.log").open("w") as log:
        options = {"cwd": tmp_path, "stdout": log, "stderr": log}
        module = [sys.executable, "-m", "distributed.cli"]
        scheduler = subprocess.Popen(
            [*module[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
             "--no-dashboard", "--scheduler-file", str(here)], **options,
        )  # fmt: skip
        wait_for(here.is_file)
        address = json.loads(here.read_text())["address"]
        worker = subprocess.Popen(
            [*module[:2], "distributed.cli.dask_worker", address, "--nthreads", "1",
             "--no-dashboard", "--death-timeout", "60"], **options,
        )  # fmt: skip
        yield address, scheduler
        for process in (worker, scheduler):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_killed_scheduler_loses_at_most_the_running_points(
    command: Callable[..., subprocess.Popen[str]],
    foreign: tuple[str, subprocess.Popen[bytes]],
    notebook: Path,
    tmp_path: Path,
) -> None:
    address, scheduler = foreign
    out, plan = tmp_path / "scan", tmp_path / "design.yaml"
    plan.write_text("axes: {m2: {from: 1, to: 12, step: 1}}\nparameters: {act: wait}\n")
    scan = command(str(notebook), str(plan), "--out", str(out), "--light", "--scheduler", address)
    wait_for(lambda: n_done(out) >= 2)
    scheduler.kill()
    said, _ = scan.communicate(timeout=120)
    assert scan.returncode == 1, said
    assert "scheduler does not answer any more" in said
    finished = n_done(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("points/*/summary.json")}
    counts = resume_scan(out, cluster=ONE, limits=LIGHT, progress=False)
    assert counts == {"done": 12, "total": 12}
    kept = [path for path, at in before.items() if path.stat().st_mtime_ns == at]
    assert len(kept) >= finished >= 2


@pytest.mark.slow
def test_full_disk_stops_the_scan_and_leaves_it_resumable(notebook: Path, small_disk: Path) -> None:
    out = small_disk / "scan"
    run(notebook, design(400), out)
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    with pytest.raises((RunError, OSError), match=r"full|cannot write|No space"):
        run(notebook, design(400, 500, 600), out)
    filler.unlink()
    assert run(notebook, design(400, 500, 600), out) == {"done": 3, "total": 3}
