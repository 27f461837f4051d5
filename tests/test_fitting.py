"""Fitting: a model by name, trained, saved with where it comes from, and better than a constant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError, ModelError
from massrecon.models.training import TrainingConfig
from tests.conftest import ToyEvents


def test_a_short_fit_beats_the_constant_on_masses_it_never_saw(toy_events: ToyEvents) -> None:
    train, test = toy_events(6000, seed=1).split(by="masses", fractions=(0.8, 0.2), seed=1)
    model = mr.fit("barman2025", train, preset="small", max_epochs=6, seed=2, progress=False)
    posterior = mr.reconstruct(model, test, n_samples=32, steps=20)
    table = mr.efficiency(posterior, windows=(50,), estimators=("window",))
    value, error = table.at("chi10", "window", 50)
    no_skill = float(table.no_skill.rates.value[1, 0])
    assert value - 3 * error > no_skill
    assert set(model.metadata["metrics"]) == {"validation_loss", "chi10 within 30 GeV"}
    assert model.metadata["n_train"] + model.metadata["n_validation"] == len(train)


def test_a_saved_fit_gives_the_same_draws_and_is_not_trained_again(
    toy_events: ToyEvents, tmp_path: Path
) -> None:
    events = toy_events(400, seed=3)
    out = tmp_path / "model"
    recipe = TrainingConfig(max_steps=6, rounds=2, batch_size=64, metric_events=20, seed=4)
    model = mr.fit("barman2025", events, preset="small", training=recipe, out=out, progress=False)
    loaded = mr.load_model(out)
    for one in (loaded, mr.load_model(out)):
        draws = one.sample(events[:7], 3, steps=5, seed=1)
        assert torch.equal(draws, model.sample(events[:7], 3, steps=5, seed=1))
    header = json.loads((out / "model.json").read_text())
    assert header["seed"] == 4
    assert header["history"]["records"][-1]["step"] == 6
    assert len(header["data_fingerprint"]) > 8
    again = mr.fit("barman2025", events, preset="small", training=recipe, out=out, progress=False)
    assert again.metadata["history"] == model.metadata["history"]
    longer = replace(recipe, max_steps=8)
    with pytest.raises(ModelError, match="belongs to a training with other"):
        mr.fit("barman2025", events, preset="small", training=longer, out=out, progress=False)


def test_a_folder_of_other_things_is_refused_before_training(
    toy_events: ToyEvents, tmp_path: Path
) -> None:
    out = tmp_path / "notes"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="holds other files .'notes.txt'.: choose a new folder"):
        mr.fit("barman2025", toy_events(60, seed=5), preset="small", max_epochs=1, out=out)
    assert not (tmp_path / "notes.training").exists()


def test_bad_requests_are_refused(toy_events: ToyEvents) -> None:
    events = toy_events(60, seed=5)
    with pytest.raises(InputError, match="Unknown model 'barman'.*did you mean 'barman2025'"):
        mr.fit("barman", events, max_epochs=1)
    with pytest.raises(InputError, match="needs a budget"):
        mr.fit("barman2025", events)
    with pytest.raises(InputError, match="either in 'training' or on their own"):
        mr.fit("barman2025", events, training=TrainingConfig(max_steps=1), seed=3)
    p4 = events.p4.clone()
    p4[11, 0, 0] = torch.nan
    with pytest.raises(InputError, match="In 1 of 60 events 'p4' is not finite, first in event 11"):
        mr.fit("barman2025", replace(events, p4=p4), max_epochs=1)


def test_backgrounds_and_events_without_truth_are_reconstructed(toy_events: ToyEvents) -> None:
    events = toy_events(300, seed=8)
    recipe = TrainingConfig(max_steps=4, batch_size=64, metric_events=20, seed=4)
    model = mr.fit("barman2025", events, preset="small", training=recipe, progress=False)
    without_truth = replace(events, partons=None, masses=None)
    background = mr.Events(
        card=mr.load_card("background_wh"),
        p4=events.p4,
        present=events.present,
        attributes=events.attributes,
        ptmiss=events.ptmiss,
        weight=events.weight,
    )
    assert not background.has_targets
    draws = mr.reconstruct(model, events, n_samples=3, steps=4, seed=1)
    for other in (without_truth, background):
        posterior = mr.reconstruct(model, other, n_samples=3, steps=4, seed=1)
        assert torch.equal(posterior.samples, draws.samples)
        assert posterior.estimate("median").shape == draws.estimate("median").shape
        with pytest.raises(InputError, match="truth|targets"):
            mr.efficiency(posterior, windows=(30,))
