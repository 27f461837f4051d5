"""Models and events that come with massrecon: small, complete, and as good as their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import massrecon as mr
from massrecon.cli import app
from massrecon.errors import ModelError, StoreError
from massrecon.events.store import SAMPLES, shipped_samples
from massrecon.inference.diagnostics import found_within
from massrecon.models import create_model, load_model
from massrecon.models.base import SHIPPED, WEIGHTS_FILE, shipped_models
from tests.conftest import ToyEvents

MOST_BYTES = 10_000_000


@pytest.mark.parametrize("name", shipped_models())
def test_card_of_a_model_says_where_it_comes_from(name: str) -> None:
    model = load_model(name)
    assert sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) < MOST_BYTES
    for entry in (
        "training_masses", "training_events", "budget", "seed", "git", "results", "limits",
        "training_prior", "reference",
    ):  # fmt: skip
        assert model.metadata[entry], entry
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("name", shipped_samples())
def test_events_that_come_with_massrecon_are_whole(name: str) -> None:
    events = mr.load_events(name)
    assert events.masses is not None
    background = events.masses.shape[1] == 0
    assert len(events) >= (100 if background else 400)
    assert sum(path.stat().st_size for path in (SAMPLES / name).iterdir()) < 2_000_000


def test_our_model_is_as_good_as_its_card_says() -> None:
    """On events of another seed than those of training and test."""
    model, events = load_model("wino_udd"), mr.load_events("wino_udd")
    results = model.metadata["results"]
    ranges = {mass: tuple(ends) for mass, ends in results["prior cut to"].items()}
    keep = torch.ones(len(events), dtype=torch.bool)
    assert events.masses is not None
    for mass, (low, high) in ranges.items():
        column = events.masses[:, events.card.mass_names.index(mass)]
        keep &= (column >= low) & (column <= high)
    # the masses of a draw do not depend on the steps of its momenta
    posterior = mr.reconstruct(model, events[keep], 200, steps=1, seed=3).within(ranges)
    hits = found_within(posterior.mass_samples(), posterior.true_masses(), 30.0, "window").double()
    for i, mass in enumerate(posterior.mass_names):
        said = results["efficiency"][mass]["window"]["30"]["value"]
        # events come in blocks of one mass point: the error is twice that of single events
        error = 2 * (said * (1 - said) / len(posterior)) ** 0.5
        assert abs(float(hits[:, i].mean()) - said) < 3.5 * error


def test_ten_events_have_confidence_regions(tmp_path: Path) -> None:
    """Critical values come along, for as few events as they were found for."""
    mr.load_events("wino_udd_600_200")[:10].save(tmp_path / "ten")
    out = tmp_path / "out"
    ran = CliRunner().invoke(
        app, ["measure", str(tmp_path / "ten"), "--model", "wino_udd", "--out", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    assert "68 % confidence region, from pseudo-experiments: m(chi20) " in ran.output
    assert "95 % confidence region" in ran.output
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))["measurement"]
    for level in ("0.68", "0.95"):
        for name in ("chi20", "chi10"):
            low, high = found["confidence_regions"][level][name]
            best = found["masses"][name]["mode"]
            assert low < best < high
            # a region of two masses reaches further than the interval of one
            inner = found["masses"][name][level]
            assert high - low > inner[1] - inner[0]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "95 % confidence region, from pseudo-experiments: m(χ̃₂⁰) " in report
    assert mr.measure(load_model("wino_udd"), mr.load_events("wino_udd")[:31]).regions is None


def test_half_precision_costs_nothing_that_matters(toy_events: ToyEvents, tmp_path: Path) -> None:
    events = toy_events(60, seed=5)
    model = create_model("cascade", events.card, preset="small", seed=1, targets="masses")
    model.fit_scaling(events)
    model.save(tmp_path / "full")
    model.save(tmp_path / "half", half=True)
    sizes = [(tmp_path / kind / WEIGHTS_FILE).stat().st_size for kind in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    values = model.true_targets(events)
    assert values is not None
    full, half = (load_model(tmp_path / kind).log_prob(values, events) for kind in ("full", "half"))
    torch.testing.assert_close(half, full, rtol=0, atol=0.02)


def test_folder_comes_before_a_name(
    toy_events: ToyEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy_events(7, seed=6).save("wino_udd")
    assert len(mr.load_events("wino_udd")) == 7
    with pytest.raises(ModelError, match="it has no model.json. By name there are: wino_"):
        load_model("wino_ud")
    with pytest.raises(StoreError, match="'wino_ud' holds no events"):
        mr.load_events("wino_ud")
