"""Fitted mixtures on disk, and those that come with massrecon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from massrecon.errors import InputError, StoreError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.inference.mixture import load_mixture, mixture_for, mixture_summaries
from massrecon.kinematics.mixture_events import MixtureOptions
from massrecon.models.mixture.files import (
    masses_of,
    read_mixture,
    save_mixture,
    shipped_mixtures,
)

PLANE = {"chi20": (400.0, 700.0), "chi10": (50.0, 500.0)}


def test_a_saved_mixture_comes_back(
    card: ProcessCard, toy_events: Callable[..., Events], tmp_path: Path
) -> None:
    options = MixtureOptions(most_objects={"jet": 5}, kept=30)
    mixture = mixture_for(card, PLANE, options=options, fitted=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).double()
    path = tmp_path / "mine.json"
    save_mixture(mixture, path, card="wino_udd", masses=PLANE, metrics={"log_prob": -10.5})
    again, events = load_mixture(path), toy_events(20, seed=1)
    assert again.options == options
    found, expected = (mixture_summaries(m, events) for m in (again, mixture))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    content = read_mixture(path)
    assert content["metrics"] == {"log_prob": -10.5}
    assert masses_of(content) == PLANE


@pytest.mark.parametrize("name", sorted(shipped_mixtures()))
def test_shipped_mixtures_load_and_know_how_good_they_are(name: str) -> None:
    content = read_mixture(shipped_mixtures()[name])
    mixture = load_mixture(shipped_mixtures()[name])
    free = [name for name, mass in content["masses"].items() if isinstance(mass, list)]
    assert sorted(mixture.scheme.names) == sorted(free)
    assert content["provenance"]["seed"] > 0
    for mass in mixture.scheme.names:
        figures = content["metrics"][mass]
        assert figures["attained"] > figures["no_skill"] - 3 * figures["error"]


def test_a_card_has_its_fitted_parameters_at_once(card: ProcessCard) -> None:
    at_once, by_name = mixture_for("wino_udd"), mixture_for(card, "plane")
    fitted = dict(load_mixture(shipped_mixtures()["wino_udd_plane"]).named_parameters())
    for name, parameter in at_once.named_parameters():
        assert torch.equal(parameter, fitted[name]), name
    assert at_once.region == by_name.region
    # with another region the response stays, and the component for outliers is that of the region
    other = dict(mixture_for(card, PLANE).named_parameters())
    assert torch.equal(other["chains.0.log_blur"], fitted["chains.0.log_blur"])
    assert other["outlier.centre"].tolist() == [550.0, 275.0]
    start = dict(mixture_for(card, PLANE, fitted=False).named_parameters())
    assert not torch.equal(start["chains.0.log_blur"], fitted["chains.0.log_blur"])


def test_files_that_are_no_mixture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixture.json"
    with pytest.raises(StoreError, match="cannot be read as a mixture: no such file"):
        load_mixture(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be read as a mixture: Expecting property name"):
        load_mixture(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(StoreError, match="its 'format' should be"):
        load_mixture(path)
    content = json.loads(shipped_mixtures()["wino_udd_plane"].read_text(encoding="utf-8"))
    del content["parameters"]["extra"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StoreError, match="does not fit this decay in extra"):
        load_mixture(path)
    content["options"]["depth"] = 3
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StoreError, match="options that this massrecon does not know"):
        load_mixture(path)
    with pytest.raises(InputError, match="Unknown fit of 'wino_udd' 'moon': choose from .*plane"):
        mixture_for(load_card("wino_udd"), "moon")
    with pytest.raises(InputError, match="No fit of 'wino_lle' comes with massrecon, got 'plane'"):
        mixture_for("wino_lle", "plane")
