"""``massrecon import``: the whole way, with the process that reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from massrecon.events.exporters import export_events
from massrecon.events.importers import import_events
from massrecon.events.store import load_events
from tests.samples import unpack, write_hepmc

REFERENCE = os.environ.get("MASSRECON_REFERENCE", "")
WITH_REFERENCE = pytest.mark.skipif(
    not REFERENCE, reason="set MASSRECON_REFERENCE to the folder of the reference files"
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "massrecon", "import", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_delphes_file_is_imported(tmp_path: Path) -> None:
    path = unpack("delphes_wino_udd.root", tmp_path)
    done = run(path, "--card", "wino_udd", "--out", tmp_path / "out", "--jets", "calorimeter")
    assert done.returncode == 0, done.stderr
    events = load_events(tmp_path / "out")
    assert f"{len(events)} selected events of 40, with truth, are in" in done.stdout
    assert events.card.detector.jets == "calorimeter"


def test_bad_events_are_refused_or_skipped_with_a_warning(tmp_path: Path) -> None:
    path = write_hepmc(tmp_path / "events.hepmc", 30)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"W 3.5000000000000000000000e+00", b"W nan", 1))
    refused = run(path, "--card", "wino_udd", "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "events.hepmc', entry 2: a number is not finite" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
    skipped = run(
        path, "--card", "wino_udd", "--out", tmp_path / "out", "--skip-bad", "--seed", "4"
    )
    assert skipped.returncode == 0, skipped.stderr
    assert "Warning: 1 of 30 entries" in skipped.stderr
    assert load_events(tmp_path / "out").provenance["cut_flow"]["sound"] == 29


def test_options_that_cannot_be_are_explained(tmp_path: Path) -> None:
    path = write_hepmc(tmp_path / "events.hepmc", 3)
    for options, message in (
        (["--mass", "chi20"], "'--mass' should be NAME=VALUE"),
        (["--mass", "chi20=heavy"], "'--mass chi20' should be a number"),
        (["--mass", "chi20=600"], "'masses' should give all masses of the card: chi10 is missing"),
        (["--mass", "chi3=600"], "Unknown mass 'chi3'"),
        (["--jets", "Jet"], "Unknown kind of jets 'Jet'"),
        (["--max-entries", "0"], "'n_max' should be a positive integer"),
    ):
        done = run(path, "--card", "wino_udd", "--out", tmp_path / "out", *options)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split()), done.stderr


def test_exports_come_back_as_parquet_and_another_card_selects_nothing(tmp_path: Path) -> None:
    events = load_events("wino_udd_600_200")[:5]
    export_events(events, tmp_path / "own.root")
    refused = run(tmp_path / "own.root", "--card", "wino_udd", "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "looks like an export of massrecon" in refused.stderr
    export_events(events, tmp_path / "own.parquet")
    arguments = ["--card", "wino_lle", "--out", tmp_path / "out"]
    nothing = run(tmp_path / "own.parquet", *arguments)
    assert nothing.returncode == 0, nothing.stderr
    assert "Warning: No event passes the selection of 'wino_lle'" in nothing.stderr
    assert "0 selected events of 5" in nothing.stdout


@WITH_REFERENCE
@pytest.mark.parametrize(("jets", "n_jets"), [("particle_flow", 4.75), ("calorimeter", 4.38)])
def test_the_reference_run_of_delphes(jets: str, n_jets: float) -> None:
    path = Path(REFERENCE) / "delphes" / "delphes_525_125.A.slim.root"
    events = import_events(path, "wino_udd", jets=jets, truth=False, progress=False)
    flow = events.provenance["cut_flow"]
    assert flow["read"] == 2000
    # the efficiency of 4,000 such events is .425
    assert flow["selected"] / flow["read"] == pytest.approx(0.425, abs=0.02)
    found = events.present[:, events.slots_of("jet")].sum(1).double()
    assert float(found.mean()) == pytest.approx(n_jets, abs=0.1)
    with_truth = import_events(path, "wino_udd", jets=jets, progress=False)
    assert with_truth.provenance["cut_flow"]["matched"] >= 0.98 * flow["read"]


@WITH_REFERENCE
def test_the_reference_file_of_hepmc() -> None:
    path = Path(REFERENCE) / "delphes" / "wino_udd_600_200.first50.hepmc.gz"
    events = import_events(path, "wino_udd", progress=False)
    assert events.provenance["cut_flow"]["matched"] == 50
    assert 10 <= len(events) <= 32
