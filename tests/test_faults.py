"""Faults survived: killed processes, full disks, two writers; what was finished is never lost.

Every fault strikes at a chosen point of the program (see `faulty`), not after a chosen time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from massrecon.errors import GenerationError, StoreError
from massrecon.events import pool
from massrecon.events.generator import simulate
from massrecon.events.manifest import MANIFEST, locked
from massrecon.events.store import load_events, write_part
from massrecon.events.verification import verify_store
from tests.conftest import ToyEvents
from tests.faulty import COMMAND, MASSES, PER_PART, SEED
from tests.test_store import assert_same

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

param, slow = pytest.param, pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
N_EVENTS = 2 * PER_PART + 400
Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(fault: str = "", **more: str) -> dict[str, str]:
    """The environment of a program that fails."""
    return os.environ | {"OMP_NUM_THREADS": "1", "FAULT": fault or ":::"} | more


def run(*arguments: object, fault: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faulty", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(fault, **more), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def start(*arguments: object, fault: str = "", **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faulty", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(fault, **more), text=True, stderr=subprocess.PIPE
    )


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def workers_of(folder: Path) -> list[int]:
    """Finds running processes whose temporary files belong into a folder."""
    found, scratch = [], str(folder.resolve() / pool.SCRATCH).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            if b"TMPDIR=" + scratch in variables:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder of events but locks, logs and temporary files."""
    names = [p for p in folder.iterdir() if p.suffix in (".parquet", ".json")]
    return {path.name: path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "events"
    result = run("simulate", folder, N_EVENTS, 1)
    assert result.returncode == 0, result.stderr
    assert len(list(folder.glob("part-*.parquet"))) == 3
    return folder


@pytest.fixture
def fast_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `simulate` of this process use the quick workers."""
    monkeypatch.setattr(pool, "COMMAND", COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def simulate_here(folder: Path, workers: int = 1) -> None:
    simulate("wino_udd", N_EVENTS, MASSES, SEED, workers, folder, progress=False)


@pytest.mark.parametrize(
    "fault",
    [
        # stage of the simulation at which the main process is killed
        param("self:massrecon.events.plan/PartPlan.update:1:SIGKILL", marks=slow, id="generation"),
        param("worker-parent:os/fsync:2:SIGKILL", id="part half-written"),
        param("self:massrecon.events.plan/PartPlan.add:2:SIGKILL", marks=slow, id="part unlisted"),
        param("self:os/fsync:3:SIGKILL", marks=slow, id="manifest half-written"),
        param("self:massrecon.events.generator/load_events:1:SIGKILL", marks=slow, id="all there"),
    ],
)
def test_killed_at_any_stage_and_resumed_gives_the_same_bytes(
    tmp_path: Path, undisturbed: Path, fault: str
) -> None:
    folder = tmp_path / "events"
    result = run("simulate", folder, N_EVENTS, 1, fault=fault)
    assert result.returncode == -signal.SIGKILL, result.stderr
    wait_for(lambda: not workers_of(folder), 30)
    if fault.endswith("load_events:1:SIGKILL"):
        assert content(folder) == content(undisturbed)
    else:
        with pytest.raises(StoreError, match="interrupted"):
            load_events(folder)
    assert verify_store(folder).ok
    assert run("simulate", folder, N_EVENTS, 1).returncode == 0
    assert content(folder) == content(undisturbed)
    assert not [path.name for path in folder.glob(".*") if path.name != ".lock"]


def test_an_interrupted_folder_can_be_used_in_part(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "events"
    run("simulate", folder, N_EVENTS, 1, fault="self:os/fsync:3:SIGKILL")
    with pytest.warns(UserWarning, match=rf"holds {PER_PART} of {N_EVENTS} events, in 1 finished"):
        part = load_events(folder, partial=True)
    whole = load_events(undisturbed)
    assert_same(part, whole[:PER_PART])
    assert part.provenance["n_selected"] == PER_PART
    assert sum(cell["n_selected"] for cell in part.provenance["cells"]) == PER_PART


@slow
def test_two_workers_killed_and_resumed_give_the_events_of_one(
    tmp_path: Path, undisturbed: Path, fast_workers: None
) -> None:
    folder = tmp_path / "events"
    fault = "self:massrecon.events.plan/PartPlan.add:1:SIGKILL"
    assert run("simulate", folder, N_EVENTS, 2, fault=fault).returncode == -signal.SIGKILL
    simulate_here(folder, workers=2)
    one, two = load_events(undisturbed), load_events(folder)
    assert_same(one, two)
    assert one.provenance == two.provenance


@pytest.mark.parametrize("signal_name", ["SIGKILL", param("SIGSEGV", marks=slow)])
def test_a_worker_that_dies_once_is_replaced(
    tmp_path: Path, undisturbed: Path, fast_workers: None, monkeypatch: pytest.MonkeyPatch,
    signal_name: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("FAULT", f"worker-self:os/fsync:2:{signal_name}")
    monkeypatch.setenv("FAULT_ONCE", str(tmp_path / "happened"))
    folder = tmp_path / "events"
    expected = rf"(?s)ended unexpectedly \(killed by {signal_name}\) while it made part 1.* again"
    with pytest.warns(UserWarning, match=expected):
        simulate_here(folder)
    assert content(folder) == content(undisturbed)
    assert not [path.name for path in folder.glob(".*") if path.name != ".lock"]


@slow
def test_a_part_that_kills_every_worker_is_an_error_and_the_rest_is_kept(
    tmp_path: Path, undisturbed: Path, fast_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second worker begins with the second part, so its first write is that of the same part
    monkeypatch.setenv("FAULT", "worker-self:massrecon.events.worker/part_name:2:SIGKILL")
    folder = tmp_path / "events"
    with (
        pytest.warns(UserWarning, match="killed by SIGKILL"),
        pytest.raises(GenerationError, match=r"(?s)made part 2\..*second in a row.*run the same"),
    ):
        simulate_here(folder)
    assert verify_store(folder).ok
    monkeypatch.delenv("FAULT")
    simulate_here(folder)
    assert content(folder) == content(undisturbed)


@slow
def test_a_worker_that_falls_silent_is_replaced(
    tmp_path: Path, undisturbed: Path, fast_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PATIENCE", 30.0)
    monkeypatch.setenv("FAULT", "worker-self:os/fsync:2:SIGSTOP")
    monkeypatch.setenv("FAULT_ONCE", str(tmp_path / "happened"))
    with pytest.warns(UserWarning, match="killed by SIGKILL"):
        simulate_here(tmp_path / "events")
    assert content(tmp_path / "events") == content(undisturbed)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), param("SIGINT", 130, marks=slow)])
def test_told_to_stop_the_command_stops_cleanly_and_goes_on_later(
    tmp_path: Path, undisturbed: Path, name: str, code: int
) -> None:
    folder = tmp_path / "events"
    options = ["--events", N_EVENTS, "--seed", SEED, "--workers", 1, "--out", folder]
    masses = ["--masses", "chi20=600", "--masses", "chi10=50:450"]
    command = ["cli", "simulate", "wino_udd", *masses, *options]
    result = run(*command, fault=f"worker-parent:os/fsync:2:{name}")
    assert result.returncode == code, result.stderr
    assert "Finished parts are kept: the same command goes on." in result.stderr
    assert "Traceback" not in result.stderr
    assert not workers_of(folder)
    assert not list(folder.glob(".*.tmp"))
    assert verify_store(folder).ok
    assert json.loads((folder / MANIFEST).read_text())["parts"]
    result = run(*command)
    assert result.returncode == 0, result.stderr
    assert content(folder) == content(undisturbed)


def test_of_two_simulations_in_one_folder_the_second_is_refused(
    tmp_path: Path, undisturbed: Path
) -> None:
    folder, gate = tmp_path / "events", tmp_path / "gate"
    first = start("simulate", folder, N_EVENTS, 1, FAULT_GATE=str(gate))
    wait_for(lambda: (folder / "part-00000.parquet").exists())
    try:
        second = run("simulate", folder, N_EVENTS, 1)
        saving = run("save", folder, 300)
    finally:
        gate.touch()
        first.communicate(timeout=120)
    for other in (second, saving):
        assert other.returncode == 1
        assert "Another process is writing to" in other.stderr
    assert first.returncode == 0
    assert content(folder) == content(undisturbed)


# writing a folder aside, as imports do, adding to one, and joining two


def prepare(action: str, where: Path) -> tuple[object, ...]:
    """Makes what an action starts from; returns the command."""
    where.mkdir()
    target = where / "events"
    if action == "merge":
        run("save", where / "one", 300)
        run("save", where / "two", 600)
        return "merge", target, where / "one", where / "two"
    run("save", target, 700)
    return ("save", target, 600, *(["append"] if action == "append" else []))


@pytest.mark.parametrize(
    "action", [param("save", marks=slow), "append", param("merge", marks=slow)]
)
@pytest.mark.parametrize(
    "place",
    [
        param("os/fsync:2", marks=slow, id="part half-written"),
        param("massrecon.events.writer/write_manifest:1", marks=slow, id="parts written"),
        param("os/fsync:4", marks=slow, id="manifest half-written"),
        param("massrecon.events.writer/put_in_place:1", id="ready"),
        param("shutil/rmtree:2", marks=slow, id="in its place, the old one still there"),
    ],
)
def test_a_killed_writer_leaves_all_or_nothing(tmp_path: Path, action: str, place: str) -> None:
    command = prepare(action, tmp_path / "undisturbed")
    assert run(*command).returncode == 0
    new = content(tmp_path / "undisturbed" / "events")
    command = prepare(action, tmp_path / "killed")
    folder = tmp_path / "killed" / "events"
    old = content(folder) if folder.exists() else {}
    result = run(*command, fault=f"self:{place}:SIGKILL")
    assert result.returncode == -signal.SIGKILL, result.stderr
    done = place.startswith("shutil")
    assert content(folder) == (new if done else old)
    if old or done:
        assert verify_store(folder).ok
    if not (done and action in ("append", "merge")):  # the same once more would add twice
        assert run(*command).returncode == 0
        assert content(folder) == new
        assert not list(folder.parent.glob(".*"))


@slow
@pytest.mark.parametrize(
    "place", ["os/fsync:1", "os/fsync:3", "massrecon.events.writer/put_in_place:1"]
)
def test_a_killed_import_leaves_nothing_and_can_be_made_again(
    tmp_path: Path, toy_events: ToyEvents, place: str
) -> None:
    events, source = toy_events(600, seed=3), tmp_path / "source.parquet"
    write_part(source, events.to_arrays(), events.card)
    assert run("import", tmp_path / "undisturbed", source).returncode == 0
    folder = tmp_path / "events"
    result = run("import", folder, source, fault=f"self:{place}:SIGKILL")
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not content(folder)
    with pytest.raises(StoreError, match="holds no events"):
        load_events(folder)
    assert run("import", folder, source).returncode == 0
    assert content(folder) == content(tmp_path / "undisturbed")
    assert len(load_events(folder)) > 300
    assert not list(tmp_path.glob(".*"))


# a full disk, a disk that may only be read


def leave_free(disk: Path, kilobytes: int) -> Path:
    """Fills a disk but for some kilobytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, free - kilobytes * 1024))
    return ballast


# a part has 2,000 kB and a manifest 20 kB
@pytest.mark.parametrize(
    "kilobytes", [0, 2_200, *(param(free, marks=slow) for free in (4, 12, 40, 1_000, 4_500))]
)
def test_a_full_disk_is_reported_at_every_stage_and_survived(
    small_disk: Path, undisturbed: Path, fast_workers: None, kilobytes: int
) -> None:
    folder = small_disk / "events"
    folder.mkdir()
    ballast = leave_free(small_disk, kilobytes)
    message = r"no space left on device.*(same command|another folder)"
    with pytest.raises(StoreError, match=message):
        simulate_here(folder)
    assert not list(folder.glob(".*.tmp"))
    if (folder / MANIFEST).exists():
        assert verify_store(folder).ok
    ballast.unlink()
    simulate_here(folder)
    assert content(folder) == content(undisturbed)


@pytest.mark.parametrize(
    "action", ["save", param("append", marks=slow), param("merge", marks=slow)]
)
@pytest.mark.parametrize("kilobytes", [200, *(param(free, marks=slow) for free in (0, 8, 700))])
def test_a_full_disk_leaves_the_old_events(small_disk: Path, action: str, kilobytes: int) -> None:
    command = prepare(action, small_disk / "work")
    folder = small_disk / "work" / "events"
    old = content(folder) if folder.exists() else {}
    ballast = leave_free(small_disk, kilobytes)
    result = run(*command)
    assert result.returncode == 1
    assert "StoreError" in result.stderr
    assert "No space left on device" in result.stderr
    assert (content(folder) if folder.exists() else {}) == old
    assert not list(folder.parent.glob(".*"))
    ballast.unlink()
    assert run(*command).returncode == 0
    assert verify_store(folder).ok


@slow
def test_a_folder_that_may_only_be_read_is_refused_and_can_be_read(
    small_disk: Path, undisturbed: Path
) -> None:
    folder = small_disk / "events"
    folder.mkdir()
    for name, data in content(undisturbed).items():
        (folder / name).write_bytes(data)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert len(load_events(folder)) == N_EVENTS
    assert verify_store(folder).ok
    for command in (("simulate", folder, N_EVENTS + 1, 1), ("save", small_disk / "new", 100)):
        result = run(*command)
        assert result.returncode == 1
        assert "StoreError" in result.stderr
        assert "Read-only file system" in result.stderr


def test_a_lock_on_a_folder_that_was_replaced_is_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    run("save", folder, 100)
    with locked(folder):
        folder.rename(tmp_path / "old")
        run("save", folder, 100)
        with locked(folder):  # the new one is free, and then locked too
            for place in (folder, tmp_path / "old"):
                with pytest.raises(StoreError, match="Another process is writing"), locked(place):
                    pass
