"""The notebooks through papermill, as the stages of a small demonstration."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

import massrecon as mr
from massrecon.runs.demo import STAGES, DemoPlan, run_demo

PLAN = DemoPlan(n_events=500, max_minutes=0.08, n_samples=16, steps=10)
KEYS = {
    "process",
    "model",
    "published",
    "n_train",
    "n_test",
    "efficiency",
    "no_skill",
    "seed",
    "versions",
    "wall_seconds",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pythia8mc")
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, seed=3, plan=PLAN)
    return out


def test_the_summary_has_what_it_promises(results: Path) -> None:
    summary = json.loads((results / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["seed"] == 3
    assert set(summary["wall_seconds"]) == set(STAGES)
    for mass in ("chi20", "chi10"):
        for estimator in ("draw", "mean", "median", "window"):
            cell = summary["efficiency"][mass][estimator]["30"]
            assert 0 <= cell["value"] <= 1
            assert 0 < cell["error"] < 0.2
    published = summary["published"]
    assert (summary["model"], published["model"]) == ("cascade", "barman2025")
    assert published["no_skill"] == summary["no_skill"]  # they see the same events
    assert 0 <= published["efficiency"]["chi10"]["draw"]["30"]["value"] <= 1
    training = summary["stages"]["train"]
    assert training["n_train"] + training["n_validation"] + summary["n_test"] == 500


def test_the_test_events_have_masses_of_their_own(results: Path) -> None:
    everything = mr.load_events(results / "simulate" / "events")
    test = mr.load_events(results / "train" / "test_events")
    assert everything.masses is not None
    assert test.masses is not None
    points = set(test.masses[:, 1].tolist())
    with_these = sum(mass in points for mass in everything.masses[:, 1].tolist())
    assert with_these == len(test) > 0


def test_the_posterior_is_that_of_the_saved_model(results: Path) -> None:
    posterior = mr.Posterior.load(results / "reconstruct" / "posterior")
    model = mr.load_model(results / "train" / "model")
    test = mr.load_events(results / "train" / "test_events")
    again = mr.reconstruct(model, test[:5], n_samples=16, steps=10, seed=3)
    assert (again.samples - posterior.samples[:, :5]).abs().max() < 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_the_executed_notebooks_are_small_and_show_their_figures(results: Path, stage: str) -> None:
    executed = next((results / stage).glob("*.ipynb"))
    cells = nbformat.read(executed, as_version=4).cells
    figures = [
        output
        for cell in cells
        for output in cell.get("outputs", [])
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert figures
    assert executed.stat().st_size < 1_000_000
    assert not [o for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]


def test_the_report_is_one_file_with_numbers_and_figures(results: Path) -> None:
    report = (results / "report.html").read_text()
    assert "http://" not in report.split("<script")[0]
    assert report.count('class="plotly-graph-div"') >= 7
    assert "no skill" in report
    assert "No caption" not in report
    assert report.count("<figcaption></figcaption>") == 0


def test_a_second_run_keeps_finished_stages(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (results / "train" / "model" / "weights.safetensors").stat().st_mtime_ns
    run_demo(results, seed=3, plan=PLAN)
    assert capsys.readouterr().out.count("finished earlier, kept") == len(STAGES)
    assert (results / "train" / "model" / "weights.safetensors").stat().st_mtime_ns == before


def test_stages_after_one_that_is_redone_are_redone(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "train" / "run.json").unlink()
    run_demo(results, seed=3, plan=PLAN)
    # the simulation, and both stages of the published network, which do not read this training
    assert capsys.readouterr().out.count("finished earlier, kept") == 3


@pytest.mark.slow
def test_the_full_demonstration_beats_the_constant_and_knows_how_well(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    summary = run_demo(tmp_path, seed=7)
    assert summary["n_train"] + summary["n_test"] >= 20_000
    found = summary["efficiency"]["chi10"]["window"]["30"]
    guess = summary["no_skill"]["chi10"]["30"]
    assert found["value"] - 4 * (found["error"] ** 2 + guess["error"] ** 2) ** 0.5 > guess["value"]
    own = summary["self_consistency"]["chi10"]["30"]
    assert abs(own["predicted"] - own["attained"]) < 0.05
    published = summary["published"]["efficiency"]["chi10"]["window"]["30"]
    assert found["value"] > published["value"] + 3 * (found["error"] + published["error"])
