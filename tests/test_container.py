"""Events: shapes, selection, splits by mass, and values checked where data enters."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from massrecon.errors import InputError, ShapeError
from massrecon.events.container import Events
from tests.conftest import ToyEvents


def test_selection_keeps_all_parts_of_an_event_together(toy_events: ToyEvents) -> None:
    events = toy_events(50, seed=1)
    rows = [3, 41, 7]
    for index in (rows, np.array(rows), torch.tensor(rows)):
        chosen = events[index]
        assert torch.equal(chosen.p4, events.p4[rows])
        assert torch.equal(chosen.attributes["charge"], events.attributes["charge"][rows])
        assert chosen.partons is not None
        assert events.partons is not None
        assert torch.equal(chosen.partons, events.partons[rows])
    assert len(events[-1]) == 1
    for one in (np.int64(3), np.array(3), torch.tensor(3)):
        assert torch.equal(events[one].p4, events.p4[3:4])
    assert len(events[events.ptmiss[:, 0] > 1e9]) == 0
    assert len(events[10:20]) == 10
    for beyond in (50, np.int64(50)):
        with pytest.raises(IndexError, match="Event 50 is out of range: there are 50 events"):
            events[beyond]


def test_targets_are_the_rows_named_by_the_card(toy_events: ToyEvents) -> None:
    events = toy_events(20, seed=2)
    assert events.partons is not None
    assert events.masses is not None
    names = events.card.target_names
    targets = events.targets()
    assert targets.shape == (20, 8)
    torch.testing.assert_close(targets[:, names.index("chi20_m")], events.masses[:, 0])
    torch.testing.assert_close(targets[:, names.index("chi10_m")], events.masses[:, 1])
    row = events.card.parton_names.index("chi10_a")
    assert torch.equal(targets[:, names.index("chi10_px")], events.partons[:, row, 0])


def test_a_split_by_masses_shares_no_mass_point(toy_events: ToyEvents) -> None:
    events = toy_events(1000, seed=3)
    parts = events.split(by="masses", fractions=(0.7, 0.2, 0.1), seed=5)
    points = [set(part.masses[:, 1].tolist()) for part in parts if part.masses is not None]
    assert not points[0] & points[1]
    assert not points[0] & points[2]
    assert not points[1] & points[2]
    assert [len(p) for p in points] == [70, 20, 10]
    assert sum(len(part) for part in parts) == 1000
    again = events.split(by="masses", fractions=(0.7, 0.2, 0.1), seed=5)
    assert torch.equal(again[2].p4, parts[2].p4)
    other = events.split(by="masses", fractions=(0.7, 0.2, 0.1), seed=6)
    assert not torch.equal(other[2].masses, parts[2].masses)


def test_a_split_by_events_is_disjoint_and_complete(toy_events: ToyEvents) -> None:
    events = toy_events(101, seed=3)
    first, second = events.split(by="events", fractions=(0.5, 0.5), seed=1)
    joined = torch.cat([first.p4[:, 0, 0], second.p4[:, 0, 0]])
    assert torch.equal(joined.sort().values, events.p4[:, 0, 0].sort().values)


def test_bad_splits_are_refused(toy_events: ToyEvents) -> None:
    events = toy_events(20, seed=3)
    with pytest.raises(InputError, match="add up to 1"):
        events.split(fractions=(0.8, 0.3))
    with pytest.raises(InputError, match="Cannot split 2 mass points into 3 samples"):
        events.split(fractions=(0.4, 0.3, 0.3))
    with pytest.raises(InputError, match=r"Cannot split 1 events into 2 samples: simulate more\.$"):
        events[:1].split(by="events")
    with pytest.raises(InputError, match="'fractions' should be positive and add up to 1"):
        events.split(fractions=())
    with pytest.raises(InputError, match="'by' should be 'masses' or 'events', got 'mass'"):
        events.split(by="mass")
    with pytest.raises(InputError, match="no true masses"):
        replace(events, masses=None).split()


def test_joined_samples_come_in_order(toy_events: ToyEvents) -> None:
    events = toy_events(30, seed=4)
    joined = Events.concat([events[:10], events[10:]])
    assert torch.equal(joined.p4, events.p4)
    assert [p["seed"] for p in joined.provenance["joined"]] == [4, 4]
    with pytest.raises(InputError, match="differ in truth"):
        Events.concat([events, replace(events, masses=None)])
    with pytest.raises(InputError, match="at least one sample"):
        Events.concat([])


@pytest.mark.parametrize(
    ("component", "value", "message"),
    [
        (0, float("nan"), r"In 2 of 40 events 'p4' is not finite, first in event 7 \(slot 'jet1'"),
        (3, -5.0, r"In 2 of 40 events the energy of an object is negative, first in event 7"),
        (0, 1e5, r"In 2 of 40 events an object has \|p\| > E, first in event 7"),
    ],
)
def test_bad_values_are_reported_with_count_and_first_index(
    toy_events: ToyEvents, component: int, value: float, message: str
) -> None:
    events = toy_events(40, seed=5)
    assert events.validate() is events
    slot = events.slots_of("jet")[0]
    p4 = events.p4.clone()
    p4[[7, 30], slot, component] = value
    with pytest.raises(InputError, match=message):
        replace(events, p4=p4).validate()


def test_a_bad_weight_or_ptmiss_is_reported(toy_events: ToyEvents) -> None:
    events = toy_events(40, seed=5)
    for name in ("weight", "ptmiss", "masses"):
        tensor = getattr(events, name).clone()
        tensor[3] = float("inf")
        with pytest.raises(InputError, match=f"'{name}' is not finite, first in event 3"):
            replace(events, **{name: tensor}).validate()


def test_wrong_shapes_are_refused(toy_events: ToyEvents) -> None:
    events = toy_events(10, seed=6)
    with pytest.raises(ShapeError, match=r"'ptmiss' should have shape \(10, 2\)"):
        replace(events, ptmiss=events.ptmiss[:, :1])
    with pytest.raises(ShapeError, match=r"'charge' should have shape \(10, 13\)"):
        replace(events, attributes={"charge": torch.zeros(10, 3)})


def test_a_notebook_shows_what_the_events_are(toy_events: ToyEvents) -> None:
    events = toy_events(20, seed=1)
    shown = events._repr_html_()
    assert "wino_udd: pp → χ̃₁± χ̃₂⁰" in shown
    assert "<td style='text-align:left'>20, sum of weights 20</td>" in shown
    assert "1 lepton, 2 photon, 10 jet" in shown
    assert "chi20 600 GeV; chi10 " in shown
    assert "alternative weights" not in shown
    data = replace(events, masses=None, partons=None, variations={"<pdf>": events.weight})
    assert "<td style='text-align:left'>none</td>" in data._repr_html_()
    assert "&lt;pdf&gt;" in data._repr_html_()
    assert "true masses" not in events[:0]._repr_html_()


def test_events_go_to_other_processes_and_come_back(toy_events: ToyEvents) -> None:
    events = replace(toy_events(20, seed=1), variations={"pdf": torch.ones(20).double()})
    again = pickle.loads(pickle.dumps(events))
    assert torch.equal(again.p4, events.p4)
    assert torch.equal(again.variations["pdf"], events.variations["pdf"])
    assert again.card == events.card
    assert again.provenance == events.provenance
