"""Background: odds that are calibrated, from classifiers that did not see the events they judge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.background import (
    BackgroundRatio,
    expected_composition,
    observables,
    with_background,
)
from tests.conftest import ToyEvents


@pytest.fixture(scope="module")
def samples(toy_events: ToyEvents) -> tuple[Events, Events]:
    """Signal, and a background of the same slots with half the energy in its jets."""
    signal, other = toy_events(700, seed=1), toy_events(700, seed=2)
    arrays = other.to_arrays()
    jets = list(other.slots_of("jet"))
    arrays["p4"][:, jets] *= 0.7
    return signal, Events.from_arrays(other.card, arrays)


def test_odds_are_calibrated_and_events_are_judged_by_strangers(
    samples: tuple[Events, Events],
) -> None:
    signal, background = samples
    ratio = BackgroundRatio.fit(signal, {"soft": background}, seed=1)
    assert 0.7 < ratio.separation < 0.99
    own, other = ratio.signal, ratio.backgrounds["soft"]
    # the mean of p(y | b) / p(y | s) over signal is the part of b where s can be, jets above 25 GeV
    assert 0.6 < float(own.exp().mean()) < 1.1
    together = torch.cat([own, other])
    is_background = torch.arange(len(together)) >= len(own)
    for low, high in ((-3, -0.5), (-0.5, 0.5), (0.5, 3)):
        here = (together > low) & (together <= high)
        claimed = torch.sigmoid(together[here]).mean()
        seen = is_background[here].double().mean()
        assert float(claimed - seen) == pytest.approx(0, abs=0.08)
    assert float(ratio(background).mean()) > float(other.mean())  # seen in training: too sure


def test_observables_are_named_and_know_what_is_missing(samples: tuple[Events, Events]) -> None:
    values, names = observables(samples[0])
    assert values.shape == (700, len(names))
    column = names.index("jet5_pt")
    missing = ~samples[0].present[:, samples[0].card.slots.index("jet5")]
    assert torch.equal(values[:, column].isnan(), missing)
    mass = values[:, names.index("photon_mass")]
    assert float(mass.median()) == pytest.approx(125, abs=3)
    assert not bool(values[:, names.index("sum_pt")].isnan().any())


def test_background_comes_in_expected_numbers_and_is_not_used_twice(
    samples: tuple[Events, Events],
) -> None:
    signal, pool = samples
    cell = {"cross_section_fb": 0.1, "cross_section_error_fb": 0.0, "acceptance": 0.7}
    cell |= {
        "masses": {"chi20": 600.0, "chi10": 200.0},
        "acceptance_error": 0.0,
        "n_generated": 1000,
        "n_selected": 700,
    }
    cell |= {"weight_generated": 1000.0, "weight_selected": 700.0}
    masses = torch.tensor([[600.0, 200.0]]).expand(700, 2)
    pool = replace(
        pool, masses=masses, provenance={"cells": [cell], "n_selected": 700, "n_events": 700}
    )
    seen, rest = with_background(signal[:30], {"soft": pool}, luminosity=1000.0, seed=1)
    number = len(seen) - 30
    assert 45 < number < 97  # Poisson of 70
    assert len(rest["soft"]) == 700 - number
    assert seen.masses is None
    sums = {round(float(x), 3) for x in seen.p4.sum((1, 2))}
    assert not sums & {round(float(x), 3) for x in rest["soft"].p4.sum((1, 2))}
    composition, ratio = expected_composition(seen, signal, rest, seed=1)
    assert ratio.separation > 0.7
    assert composition.log_background.shape == (len(seen),)
    with pytest.raises(InputError, match="more than twice as many"):
        with_background(signal[:30], {"soft": pool}, luminosity=1e4)


def test_wrong_arguments_are_named(samples: tuple[Events, Events]) -> None:
    signal, background = samples
    with pytest.raises(InputError, match="'backgrounds' is empty"):
        BackgroundRatio.fit(signal, {})
    with pytest.raises(InputError, match="needs 100 events"):
        BackgroundRatio.fit(signal[:10], {"b": background})
    with pytest.raises(InputError, match="a number of events for 'b'"):
        BackgroundRatio.fit(signal, {"b": background}, yields={})
