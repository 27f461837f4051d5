"""Saved models: identical samples after loading, and refusal of what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.models import MassModel, create_model, load_model
from massrecon.models.base import HEADER_FILE, WEIGHTS_FILE, read_header

ToyEvents = Callable[..., Events]


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(20, seed=21)


@pytest.fixture(scope="module")
def model(card: ProcessCard, events: Events) -> MassModel:
    model = create_model(
        "barman2025", card, "small", dim=16, denoiser_hidden=16, diffusion_steps=50, beta_last=0.3
    )
    model.fit_scaling(events)
    return model.eval()


def edit_header(folder: Path, **changes: object) -> None:
    header = json.loads((folder / HEADER_FILE).read_text())
    (folder / HEADER_FILE).write_text(json.dumps({**header, **changes}))


def test_loaded_model_gives_identical_samples(
    model: MassModel, events: Events, tmp_path: Path
) -> None:
    before = model.sample(events, 4, seed=7)
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.card.fingerprint() == model.card.fingerprint()
    assert torch.equal(loaded.sample(events, 4, seed=7), before)
    assert torch.equal(loaded.loss(events), model.loss(events))


def test_metadata_travels_with_the_model(model: MassModel, tmp_path: Path) -> None:
    model.metadata = {"seed": 5, "metrics": {"chi10": 0.3}}
    loaded = load_model(model.save(tmp_path / "m", preset="small"))
    assert loaded.metadata == {"seed": 5, "metrics": {"chi10": 0.3}, "preset": "small"}
    model.metadata = {}


def test_header_is_a_model_card(model: MassModel, tmp_path: Path) -> None:
    metrics = {"chi10": 0.4}
    model.save(tmp_path / "m", seed=3, data_fingerprint="abc", metrics=metrics, history=[1, 2])
    header = read_header(tmp_path / "m")
    assert header["model"] == "barman2025"
    assert header["config"]["dim"] == 16
    assert header["card"] == json.loads(json.dumps(model.card.to_dict()))
    assert header["targets"] == list(model.target_names)
    assert header["seed"] == 3
    assert header["data_fingerprint"] == "abc"
    assert header["metrics"] == metrics
    assert header["versions"].keys() >= {"massrecon", "torch", "python"}
    assert header["parameters"] == sum(p.numel() for p in model.parameters())
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [HEADER_FILE, WEIGHTS_FILE]


def test_saved_model_is_replaced_and_leaves_nothing_behind(
    model: MassModel, tmp_path: Path
) -> None:
    model.save(tmp_path / "m", seed=1)
    model.save(tmp_path / "m", seed=2)
    assert read_header(tmp_path / "m")["seed"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_failed_save_keeps_the_old_model(model: MassModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m", seed=1)
    with pytest.raises(InputError, match="metadata of a model must be JSON"):
        model.save(tmp_path / "m", metrics=object())
    with pytest.raises(InputError, match="'config' is written by save"):
        model.save(tmp_path / "m", config={})
    assert read_header(tmp_path / "m")["seed"] == 1
    assert load_model(tmp_path / "m").target_names == model.target_names
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_foreign_folders_are_not_overwritten(model: MassModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ModelError, match=r"holds other files \('thesis.tex'\): choose a new"):
        model.save(tmp_path)
    with pytest.raises(ModelError, match="is a file: choose a new folder"):
        model.save(tmp_path / "thesis.tex")
    other = tmp_path / "other"
    other.mkdir()
    (other / HEADER_FILE).write_text('{"name": "a model of another program"}')
    with pytest.raises(ModelError, match="was not written by massrecon"):
        model.save(other)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_truncated_weights_are_refused(model: MassModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "m") / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"weights.safetensors' is damaged: its checksum"):
        load_model(tmp_path / "m")


def test_a_changed_bit_is_noticed(model: MassModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "m") / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: its checksum"):
        load_model(tmp_path / "m")


def test_missing_parts_are_named(model: MassModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a saved model: it has no model.json"):
        load_model(tmp_path / "nowhere")
    (model.save(tmp_path / "m") / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=r"has no weights.safetensors"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", r"model.json' is damaged"),
        ("[]", "was not written by massrecon"),
        ('{"model": "x"}', "was not written by massrecon"),
    ],
)
def test_unreadable_headers_are_refused(
    model: MassModel, tmp_path: Path, content: str, message: str
) -> None:
    (model.save(tmp_path / "m") / HEADER_FILE).write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, this massrecon reads up to 1: install"),
        ({"format_version": None}, "format version None"),
        ({"model": "oracle"}, "holds a model 'oracle', unknown .* it knows barman2025"),
        ({"config": {"dim": 16, "wings": 2}}, "does not describe a model .*wings"),
        ({"config": {"dim": 32}}, "does not describe a model"),
        ({"config": None}, "does not describe a model"),
        ({"card": {"name": "x"}}, "does not describe a model"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    model: MassModel, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    edit_header(model.save(tmp_path / "m"), **changes)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m")


def test_nothing_is_unpickled(tmp_path: Path, model: MassModel) -> None:
    folder = model.save(tmp_path / "m")
    torch.save({"evil": 1}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="is damaged"):
        load_model(folder)


@pytest.mark.gpu
def test_model_moves_to_the_accelerator(model: MassModel, events: Events, tmp_path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "mps"
    if device == "mps" and not torch.backends.mps.is_available():
        pytest.skip("no accelerator")
    loaded = load_model(model.save(tmp_path / "m"), device=device)
    assert loaded.device.type == device
    samples = loaded.sample(events, 4, seed=7)
    assert samples.dtype == torch.float64
    assert samples.device.type == "cpu"
    torch.testing.assert_close(samples, model.sample(events, 4, seed=7), rtol=1e-2, atol=1.0)
