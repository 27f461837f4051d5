"""The event display: views, the most probable assignment, and the choice of right or wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.generator import simulate
from massrecon.inference.likeliest import likely_assignments
from massrecon.inference.mixture import mixture_for
from massrecon.kinematics.transverse import mt2
from massrecon.visual.event_views import GROUPS, SeenObject, event_views, space_view
from massrecon.visual.explore.event_display import explore_event_display, window_estimates
from massrecon.visual.explore.sources import mass_table, stored_events
from massrecon.visual.widgets.event_display import EventDisplay


def test_assignments_are_whole_and_their_shares_add_up() -> None:
    events, mixture = stored_events("wino_udd"), mixture_for("wino_udd")
    for row in (6, 2):  # few objects
        found = likely_assignments(mixture, events[row], n_best=100_000)
        assert sum(one.probability for one in found) == pytest.approx(1.0)
        shares = [one.probability for one in found]
        assert shares == sorted(shares, reverse=True)
        for one in found[:5]:
            used = [slot for slot in one.slots.values() if slot >= 0]
            assert len(used) == len(set(used))
            assert bool(events.present[row, used].all())
            kinds = [events.card.slot_kinds[one.slots[leg]] for leg in ("l", "gamma1", "gamma2")]
            assert kinds == ["lepton", "photon", "photon"]


def test_the_neutrino_is_massless_and_its_w_has_the_mass_of_the_w() -> None:
    events, mixture = stored_events("wino_udd"), mixture_for("wino_udd")
    heavier = []
    for row in range(6):
        best = likely_assignments(mixture, events[row], 1)[0]
        neutrino, lepton = best.invisible["nu"].double(), events.p4[row, best.slots["l"]].double()
        metric = torch.tensor([-1.0, -1.0, -1.0, 1.0]).double()
        assert float((neutrino.square() * metric).sum().abs()) < 1e-3
        together = float(((neutrino + lepton).square() * metric).sum()) ** 0.5
        heavier.append(together - 80.379)
    assert min(heavier) > -0.5  # where there is no real solution, the nearest one is heavier
    assert sum(abs(off) < 0.5 for off in heavier) >= 3


def test_the_heaviest_weight_is_that_of_the_closed_form() -> None:
    """The largest components of the mixture's posterior are among the best assignments."""
    events, mixture = stored_events("wino_udd"), mixture_for("wino_udd")
    best = likely_assignments(mixture, events[0], 1)[0]
    assert best.probability > 0.5
    assert abs(best.masses["chi10"] - float(events.masses[0, 1])) < 60


def test_one_event_only() -> None:
    with pytest.raises(InputError, match="'events' should be one event, got 2"):
        likely_assignments(mixture_for("wino_udd"), stored_events("wino_udd")[:2])


def test_an_event_with_its_views_and_masses() -> None:
    found = explore_event_display(number=2)
    sample = stored_events("wino_udd")
    assert found.data["event"] == 2
    drawn = sum(len(t.x) for t in views(found.figure)[1:10:3])
    assert drawn >= 3
    labels = [label for t in views(found.figure) if t.text is not None for label in t.text]
    assert {"ptmiss", "ν", "γ1", "j1"} <= set(labels)
    assert set(found.panels) == {"Three dimensions", "Masses"}
    masses: Any = found.panels["Masses"].data
    step = masses[0].x[1] - masses[0].x[0]
    assert masses[0].z.sum() * step * step == pytest.approx(1.0, abs=1e-6)
    truth = dict(zip(sample.card.mass_names, sample.masses[2].tolist(), strict=True))
    off = abs(found.data["estimates_GeV"]["chi10"] - truth["chi10"])
    assert found.data["off_GeV"]["chi10"] == pytest.approx(off)
    assert found.data["M2CC_GeV"] is None  # one unseen particle only
    assert "m(χ̃₁⁰) estimated" in found.reading


def test_mt2_of_one_unseen_particle_is_below_the_mass_of_what_was_produced() -> None:
    sample, bounds = stored_events("wino_udd"), []
    for number in range(12):
        found = explore_event_display(number=number, model="")
        assert found.data["trial_mass_GeV"] == 0.0
        assert f"{found.data['MT2_GeV']:.1f} GeV with massless unseen particles" in found.reading
        seen: dict[str, Any] = {"a": 0.0, "b": 0.0}
        (best,) = likely_assignments(mixture_for("wino_udd"), sample[number : number + 1], 1)
        for leg, slot in best.slots.items():
            if slot >= 0:
                seen[sample.card.topology.node(leg).side] += sample.p4[number, slot].double()
        exact = mt2(seen["a"], seen["b"], sample.ptmiss[number].double(), 0.0)
        assert found.data["MT2_GeV"] == pytest.approx(float(exact))
        bounds.append(found.data["MT2_GeV"] / found.data["true_masses_GeV"]["chi20"])
    # jets that are measured high and wrong assignments are few
    assert sum(bound < 1.1 for bound in bounds) >= 9
    assert sum(bound > 0.5 for bound in bounds) >= 9


def views(figure: Any) -> list[Any]:
    return list(figure.data)


def test_right_and_wrong_answers_can_be_chosen() -> None:
    wrong = explore_event_display(off_low=60.0, mass="chi10", n_events=40)
    right = explore_event_display(off_high=30.0, mass="chi10", n_events=40)
    assert wrong.data["off_GeV"]["chi10"] >= 60.0
    assert right.data["off_GeV"]["chi10"] <= 30.0
    assert wrong.data["events_that_fit"] + right.data["events_that_fit"] < 40
    with pytest.raises(InputError, match="None of 40 events has m.chi10. between 950 and 960"):
        explore_event_display(off_low=950.0, off_high=960.0, mass="chi10", n_events=40)
    with pytest.raises(InputError, match="'off_low' below 'off_high'"):
        explore_event_display(off_low=10.0, off_high=5.0)
    with pytest.raises(InputError, match="Unknown mass 'chi1'"):
        explore_event_display(mass="chi1")
    with pytest.raises(InputError, match="no event number 300: choose 0 to 199"):
        explore_event_display(number=300)


def test_window_estimates_against_a_loop() -> None:
    table = mass_table("wino_udd").likelihood([0, 1, 2])
    found = window_estimates(table, 30.0)
    prior = table.prior.log_density(table.points)
    weight = (table.log_ratio + prior).masked_fill(~table.inside, -torch.inf).softmax(1)
    for row in range(3):
        marginal = weight[row].reshape(table.shape).sum(0)
        axis = list(table.axes.values())[1]
        held = [float(marginal[(axis - centre).abs() < 30].sum()) for centre in axis]
        best = float(axis[held.index(max(held))])
        assert abs(float(found[row, 1]) - best) <= 10.0


def test_two_unseen_ends_give_mt2(tmp_path: Path) -> None:
    simulate("antler", 100, seed=3, progress=False).save(tmp_path / "toy")
    found = explore_event_display(events=str(tmp_path / "toy"), model="")
    assert 700.0 < found.data["MT2_GeV"] <= found.data["M2CC_GeV"] + 1e-6
    assert set(found.data["invisible_GeV"]) == {"C_a", "C_b"}
    total = torch.tensor(list(found.data["invisible_GeV"].values())).sum(0)[:2]
    assert total.tolist() == pytest.approx(found.data["ptmiss_GeV"], abs=1e-3)
    assert list(found.panels) == ["Three dimensions"]


def test_views_place_objects_where_they_are() -> None:
    one = SeenObject(label="x", kind="jet", group=GROUPS[0], p3=(3.0, 4.0, 0.0), note="taken as u")
    assert one.pt == 5.0
    assert one.eta == 0.0
    assert "taken as u" in one.about
    flat: Any = views(event_views([one]))[1]
    assert (flat.x[0], flat.y[0]) == (3.0, 4.0)
    along: Any = next(t for t in views(space_view([one], 90.0, 0.0)) if t.name == "side a")
    assert (along.x[0], along.y[0]) == pytest.approx((3.0, 4.0))
    assert views(space_view([one], webgl=True))[0].type == "scatter3d"
    with pytest.raises(InputError, match="'objects' is empty"):
        event_views([])
    with pytest.raises(InputError, match="Unknown group 'z'"):
        event_views([SeenObject(label="x", kind="jet", group="z", p3=(1, 1, 1))])


def test_stepping_and_filtering_in_the_widget() -> None:
    display = EventDisplay(n_events=40)
    assert display._number.max == 39
    display.step(1)
    assert display.found is not None
    assert display.found.data["event"] == 1
    display.change(mass="chi10", off_low=60.0)
    display.wait()
    assert display.failed == ""
    assert display.number == 0
    assert display.found.data["off_GeV"]["chi10"] >= 60.0
    assert display._number.max == display.found.data["events_that_fit"] - 1
    display.off_high = 50.0
    assert "'off_low' below 'off_high'" in display.failed
    display.change(off_low=0.0, off_high=1000.0)
    display.step(-1)
    assert display.number == 0
    display.events = "wino_udd_600_200"
    assert display.found.data["true_masses_GeV"] == {"chi20": 600.0, "chi10": 200.0}
