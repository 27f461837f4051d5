"""``massrecon measure``: from a folder of events to masses and a report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from massrecon.cli import app
from massrecon.errors import InputError
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.novelty import recorded_reference
from massrecon.inference.prior import recorded_prior
from massrecon.models import create_model
from massrecon.runs.measuring import measure_file
from tests.conftest import ToyEvents


@pytest.fixture(scope="module")
def folders(toy_events: ToyEvents, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained model that knows its training sample, one that does not, and events."""
    place = tmp_path_factory.mktemp("measure")
    train = toy_events(400, 1)
    model = create_model("mass_head", train.card, "small", seed=1)
    model.fit_scaling(train)
    model.save(place / "forgetful")
    model.save(place / "model", **recorded_prior(train), **recorded_reference(train))
    train.save(place / "train")
    seen = toy_events(40, 2, chi10=(200.0, 200.01))
    seen = dataclasses.replace(seen, partons=None, masses=None)
    seen.save(place / "seen")
    p4 = seen.p4.clone()
    p4[:, 3:] *= 1.6
    dataclasses.replace(seen, p4=p4).save(place / "strange")
    soft = toy_events(300, 3)
    p4 = soft.p4.clone()
    p4[:, 3:] *= 0.7
    dataclasses.replace(soft, p4=p4).save(place / "background")
    return {path.name: path for path in place.iterdir()}


def test_masses_are_printed_and_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["measure", str(folders["seen"]), "--model", str(folders["model"])]
    arguments += ["--masses", "chi10=190:210"]  # the model is untrained
    ran = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "m(chi10) = " in ran.output
    assert "look like the training sample" in ran.output
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["measurement"]["n_events"] == 40
    assert "truth" not in results["measurement"]
    assert not results["likeness"]["alarm"]
    loaded = MassMeasurement.load(out / "measurement")
    assert loaded.to_dict() == results["measurement"]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "m(χ̃₁⁰) [GeV]" in report
    assert "src=" not in report.split("<figure>")[0]  # nothing is loaded from elsewhere


def test_strange_events_are_warned_of(folders: dict[str, Path], tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        app,
        ["measure", str(folders["strange"]), "--model", str(folders["model"]),
         "--out", str(tmp_path / "out"), "--masses", "chi10=100:300"],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "UNLIKE the training sample" in ran.output


def test_training_events_stand_in_for_a_record(folders: dict[str, Path], tmp_path: Path) -> None:
    seen, model = folders["seen"], folders["forgetful"]
    with pytest.raises(InputError, match="training prior of these densities is not known"):
        measure_file(seen, model, tmp_path / "out")
    found = measure_file(
        seen, model, tmp_path / "out", training=folders["train"], masses={"chi10": (190, 210)}
    )
    assert found.likeness is not None
    assert found.warnings == found.measurement.notes


def test_background_is_counted_where_it_may_be(folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["measure", str(folders["seen"]), "--model", str(folders["model"])]
    arguments += ["--masses", "chi10=190:210", "--background", str(folders["background"])]
    with pytest.raises(InputError, match="pass 'training'"):
        measure_file(
            folders["seen"], folders["model"], tmp_path, backgrounds=[folders["background"]]
        )
    arguments += ["--training", str(folders["train"]), "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "share of background: " in ran.output
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    best, low, high = results["measurement"]["composition"]["share of background"]
    assert 0 <= low <= best <= high < 0.6  # all of the 40 events are signal
    assert results["separation"] > 0.7
    assert results["likeness"] is None
    assert "background, which is unlike it" in results["warnings"][-1]
    assert "ROC curve" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    ran = CliRunner().invoke(app, [*arguments, "--luminosity", "3000"])
    assert "cross-section" in str(ran.exception)  # toys have none
    with pytest.raises(InputError, match="'luminosity' needs 'backgrounds'"):
        measure_file(folders["seen"], folders["model"], tmp_path, luminosity=3000.0)
    with pytest.raises(InputError, match="two backgrounds"):
        measure_file(
            folders["seen"], folders["model"], tmp_path, training=folders["train"],
            backgrounds=[folders["background"]] * 2,
        )  # fmt: skip


def test_the_report_escapes_what_it_is_given(folders: dict[str, Path], tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)<"
    evil.symlink_to(folders["seen"])
    measure_file(evil, folders["model"], tmp_path / "out")
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in report
    assert "&lt;script&gt;alert(1)&lt;" in report


def test_what_is_no_model_or_range_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    seen = folders["seen"]
    with pytest.raises(InputError, match="neither the folder of a trained model nor one of"):
        measure_file(seen, tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(InputError, match="no file or folder"):
        measure_file(tmp_path / "nothing", folders["model"], tmp_path / "out")
    (tmp_path / "file.root").write_bytes(b"")
    with pytest.raises(InputError, match="pass 'card'"):
        measure_file(tmp_path / "file.root", "mixture", tmp_path / "out")
    for bad in ("chi10", "chi10=200", "chi10=a:b", "=1:2"):
        ran = CliRunner().invoke(app, ["measure", str(seen), "--model", "mixture", "--masses", bad])
        assert isinstance(ran.exception, InputError)
        assert "NAME=LOW:HIGH" in str(ran.exception)
