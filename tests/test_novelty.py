"""Events that look unlike the training sample are noticed, others are left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from massrecon.errors import InputError, StoreError
from massrecon.events.container import Events
from massrecon.inference.novelty import (
    ALARM,
    DISTANCE,
    Reference,
    novelty,
    observables,
    recorded_reference,
)
from tests.conftest import ToyEvents


def scaled_jets(events: Events, scale: float) -> Events:
    """Scales the jets of events."""
    p4 = events.p4.clone()
    p4[:, list(events.slots_of("jet"))] *= scale
    return dataclasses.replace(events, p4=p4)


@pytest.fixture(scope="module")
def reference(toy_events: ToyEvents) -> Reference:
    return Reference.from_events(toy_events(8000, 1))


def test_events_of_any_true_mass_look_like_the_training_sample(
    reference: Reference, toy_events: ToyEvents
) -> None:
    alarms = 0
    for i, mass in enumerate((80.0, 150.0, 250.0, 350.0, 420.0)):
        for seed in range(8):
            events = toy_events(60, 100 * i + seed + 10, chi10=(mass, mass + 0.01))
            alarms += novelty(reference, events, [mass]).p_value < ALARM
    assert alarms <= 3  # 0.4 expected of 40


@pytest.mark.parametrize(("scale", "worst"), [(0.8, "jets"), (1.2, "jets")])
def test_shifted_jets_are_noticed_and_named(
    scale: float, worst: str, reference: Reference, toy_events: ToyEvents
) -> None:
    events = toy_events(300, 5, chi10=(200.0, 200.01))
    found = novelty(reference, scaled_jets(events, scale), [200.0])
    assert found.alarm
    assert "UNLIKE" in str(found)
    assert worst in str(found)
    shift = found.shifts["pT of jets"]
    assert shift < -0.1 if scale < 1 else shift > 0.1


def test_the_wrong_masses_are_noticed_too(reference: Reference, toy_events: ToyEvents) -> None:
    events = toy_events(300, 5, chi10=(100.0, 100.01))
    assert not novelty(reference, events, [100.0]).alarm
    assert novelty(reference, events, [400.0]).alarm


def test_strange_events_are_counted(reference: Reference, toy_events: ToyEvents) -> None:
    events = toy_events(100, 5, chi10=(200.0, 200.01))
    p4 = events.p4.clone()
    p4[7, 1:3] *= 30
    found = novelty(reference, dataclasses.replace(events, p4=p4), [200.0])
    assert 7 in found.far_events
    assert len(found.far_events) <= 3


def test_a_reference_is_saved(reference: Reference, toy_events: ToyEvents, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference.json")
    again = Reference.load(tmp_path / "reference.json")
    events = toy_events(50, 6)
    first, second = (novelty(r, events, [200.0]) for r in (reference, again))
    assert second.p_value == pytest.approx(first.p_value, rel=1e-3)
    assert set(first.p_values) == {*reference.names, DISTANCE}
    assert first.to_dict()["n_events"] == 50
    (tmp_path / "reference.json").write_text("[]")
    with pytest.raises(StoreError, match="no reference"):
        Reference.load(tmp_path / "reference.json")
    with pytest.raises(StoreError, match="cannot be read"):
        Reference.load(tmp_path / "nothing.json")
    assert recorded_reference(events)["reference"]["masses"] == ["chi10"]


def test_events_have_to_fit_the_reference(reference: Reference, toy_events: ToyEvents) -> None:
    events = toy_events(10, 1)
    with pytest.raises(InputError, match="no events"):
        novelty(reference, events[:0], [200.0])
    with pytest.raises(InputError, match="choose from chi10"):
        novelty(reference, events, [600.0, 200.0])
    other = dataclasses.replace(reference, names=("something",))
    with pytest.raises(InputError, match="other objects"):
        novelty(other, events, [200.0])
    assert recorded_reference(events) == {}


def test_observables_are_finite_for_empty_events(toy_events: ToyEvents) -> None:
    events = toy_events(5, 1)
    nothing = dataclasses.replace(events, present=torch.zeros_like(events.present))
    for values in observables(nothing).values():
        assert bool(values.isfinite().all())
