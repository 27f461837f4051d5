"""Systematics: closed forms of a Gaussian likelihood, and morphed events that keep their books."""

from __future__ import annotations

import math

import pytest
import torch

from massrecon.errors import InputError, ShapeError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.inference.morphing import DetectorShift, morphed, soft_jet_card
from massrecon.inference.systematics import MassShift, Systematics, slope_of
from massrecon.kinematics import fourvectors as fv
from tests.conftest import ToyEvents

AXES = [torch.arange(0.0, 401.0, 5.0, dtype=torch.float64)] * 2
POINTS = torch.cartesian_prod(*AXES)


def constant_shift(name: str, first: float, second: float) -> MassShift:
    masses = torch.tensor([[0.0, 0.0], [400.0, 0.0], [0.0, 400.0]])
    slopes = torch.tensor([[first, second]]).expand(3, -1)
    return MassShift.fit(name, "one", masses, slopes, torch.ones(3, 2))


def gaussian(mean: list[float], covariance: torch.Tensor) -> torch.Tensor:
    away = POINTS - torch.tensor(mean, dtype=torch.float64)
    return -0.5 * torch.einsum("gi,ij,gj->g", away, torch.linalg.inv(covariance), away)[None]


def test_profiling_adds_the_covariance_of_the_shifts() -> None:
    covariance = torch.tensor([[225.0, 60.0], [60.0, 400.0]], dtype=torch.float64)
    shifts = (constant_shift("jes", 20.0, 12.0), constant_shift("soft", -3.0, 9.0))
    slopes = torch.tensor([[20.0, -3.0], [12.0, 9.0]], dtype=torch.float64)
    profiled = Systematics(shifts).profiled(gaussian([200.0, 180.0], covariance), AXES)
    expected = gaussian([200.0, 180.0], covariance + slopes @ slopes.T)
    near = expected > -2
    # linear interpolation between points 5 GeV apart, and steps of half a nuisance
    assert float((profiled - expected)[near].abs().max()) < 0.15
    assert float((profiled - gaussian([200.0, 180.0], covariance)).min()) >= 0


def test_what_is_not_allowed_stays_so() -> None:
    total = gaussian([200.0, 180.0], 400 * torch.eye(2).double())
    closed = POINTS[:, 1] > POINTS[:, 0]
    total = total.masked_fill(closed, -math.inf)
    profiled = Systematics((constant_shift("jes", 20.0, -20.0),)).profiled(total, AXES)
    assert bool((profiled[:, closed] == -math.inf).all())
    assert bool(profiled[:, ~closed].isfinite().all())
    small = Systematics((constant_shift("none", 0.1, 0.0),)).profiled(total, AXES)
    torch.testing.assert_close(small, total)


def test_pulls_and_their_errors_are_those_of_the_closed_form() -> None:
    covariance = 225.0 * torch.eye(2, dtype=torch.float64)
    systematics = Systematics((constant_shift("jes", 30.0, 0.0),))
    total = gaussian([230.0, 180.0], covariance)
    value, error = systematics.pulls(total, AXES, torch.tensor([200.0, 180.0]))
    assert float(value) == pytest.approx(30 * 30 / (225 + 900), rel=1e-3)
    assert float(error) == pytest.approx(math.sqrt(225 / (225 + 900)), rel=1e-3)
    impacts = systematics.impacts(torch.tensor([200.0, 180.0]))
    torch.testing.assert_close(impacts, torch.tensor([[30.0, 0.0]]).double())


def test_profiled_regions_cover_shifted_experiments_and_others_do_not() -> None:
    axes = [torch.arange(100.0, 301.0, 10.0, dtype=torch.float64)] * 2
    points = torch.cartesian_prod(*axes)
    generator = torch.Generator().manual_seed(4)
    delta = torch.randn(600, 1, generator=generator, dtype=torch.float64)
    noise = 15 * torch.randn(600, 2, generator=generator, dtype=torch.float64)
    seen = torch.tensor([200.0, 180.0]).double() + noise + delta * torch.tensor([20.0, 10.0])
    total = -0.5 * ((points - seen.unsqueeze(1)) / 15).square().sum(-1)
    profiled = Systematics((constant_shift("jes", 20.0, 10.0),)).profiled(total, axes)
    at_truth = int((points - torch.tensor([200.0, 180.0])).abs().sum(1).argmin())
    rates = [
        float((2 * (t.amax(1) - t[:, at_truth]) <= 2.279).double().mean())
        for t in (total, profiled)
    ]
    assert rates[0] < 0.56
    assert rates[1] == pytest.approx(0.68, abs=0.05)


def test_slopes_are_measured_from_shifted_samples() -> None:
    generator = torch.Generator().manual_seed(5)
    seen = 200 + 20 * torch.randn(400, 2, generator=generator, dtype=torch.float64)

    def table(delta: float) -> torch.Tensor:
        moved = seen + delta * torch.tensor([8.0, -3.0])
        return -0.5 * ((POINTS - moved.unsqueeze(1)) / 20).square().sum(-1)

    inside = torch.ones(len(POINTS), dtype=torch.bool)
    slope, error = slope_of(table(0), {1.0: table(1.0), -2.0: table(-2.0)}, AXES, inside)
    torch.testing.assert_close(slope, torch.tensor([8.0, -3.0]).double(), atol=0.05, rtol=0)
    assert float(error.max()) < 0.1
    with pytest.raises(InputError, match="'shifted' should hold samples"):
        slope_of(table(0), {}, AXES, inside)


def test_shifts_are_polynomials_and_come_back_from_plain_data() -> None:
    masses = torch.cartesian_prod(torch.tensor([0.0, 200.0, 400.0]), torch.tensor([0.0, 400.0]))
    slopes = torch.stack([5 + 0.01 * masses[:, 0], 2 - 0.02 * masses[:, 1]], 1)
    shift = MassShift.fit("jes", "2 %", masses, slopes, torch.full_like(slopes, 0.1))
    found = shift(torch.tensor([[100.0, 100.0]]))
    torch.testing.assert_close(found, torch.tensor([[6.0, 0.0]]).double(), atol=1e-5, rtol=0)
    again = Systematics.from_dict(Systematics((shift,)).to_dict())
    assert again.names == ("jes",)
    torch.testing.assert_close(again.impacts(masses[1])[0], shift(masses[1:2])[0])
    with pytest.raises(ShapeError, match="'slopes' and 'errors'"):
        MassShift.fit("jes", "2 %", masses, slopes[:2], slopes)
    with pytest.raises(InputError, match="needs 3 mass points"):
        MassShift.fit("jes", "2 %", masses[:2], slopes[:2], slopes[:2])


@pytest.fixture
def soft_events(card: ProcessCard, toy_events: ToyEvents) -> Events:
    """Toy events with jets from 15 GeV on, more than the card has slots for."""
    events = toy_events(400, seed=3)
    arrays = events.to_arrays()
    generator = torch.Generator().manual_seed(1)
    soft = 15 + 15 * torch.rand(400, generator=generator, dtype=torch.float64)
    zero = torch.zeros_like(soft)
    extra = torch.stack([soft, zero, zero, soft], 1).numpy()
    soft_card = soft_jet_card(card, pt_min=15.0)
    width = len(soft_card.slots) - len(card.slots)
    for name, values in arrays.items():
        if name in ("p4", "present", "charge", "flavour"):
            more = torch.zeros(400, width, *values.shape[2:]).numpy().astype(values.dtype)
            arrays[name] = torch.cat([torch.as_tensor(values), torch.as_tensor(more)], 1).numpy()
    arrays["p4"][:, -1], arrays["present"][:, -1] = extra, True
    return Events.from_arrays(soft_card, arrays)


def test_no_shift_only_applies_the_selection(soft_events: Events, card: ProcessCard) -> None:
    same = morphed(soft_events, DetectorShift(), card)
    assert same.card.fingerprint() == card.fingerprint()
    jets = list(same.slots_of("jet"))
    pt = fv.pt(same.p4[:, jets])
    assert bool((pt[same.present[:, jets]] > 25).all())
    assert bool((pt.diff(dim=1) <= 0).all())
    counted = (fv.pt(soft_events.p4) > 25)[:, list(soft_events.slots_of("jet"))].sum(1)
    assert torch.equal(same.present[:, jets].sum(1), counted[counted >= 2])
    clean = [i for i, kind in enumerate(card.slot_kinds) if kind != "jet"]
    torch.testing.assert_close(same.p4[:, clean], soft_events.p4[counted >= 2][:, clean])


def test_what_jets_gain_ptmiss_loses(soft_events: Events) -> None:
    # the threshold of the soft card lies below all jets that there are
    up = morphed(soft_events, DetectorShift(jet_scale=0.1))
    assert len(up) == len(soft_events)
    torch.testing.assert_close(
        up.p4[..., :2].sum(1) + up.ptmiss, soft_events.p4[..., :2].sum(1) + soft_events.ptmiss
    )
    jets = list(up.slots_of("jet"))
    torch.testing.assert_close(
        up.p4[:, jets].sum(1), 1.1 * soft_events.p4[:, list(soft_events.slots_of("jet"))].sum(1)
    )


def test_jets_move_across_the_threshold(soft_events: Events, card: ProcessCard) -> None:
    numbers = [
        float(morphed(soft_events, DetectorShift(jet_scale=s), card).present.sum(1).double().mean())
        for s in (-0.1, 0.0, 0.1)
    ]
    assert numbers[0] < numbers[1] < numbers[2]


def test_worse_resolutions_widen_and_do_not_shift(soft_events: Events, card: ProcessCard) -> None:
    nominal = morphed(soft_events, DetectorShift(), card)
    noisy = morphed(soft_events, DetectorShift(jet_resolution=1.0), card, seed=1)
    jet = nominal.slots_of("jet")[0]
    n = min(len(noisy), len(nominal))
    ratio = fv.pt(noisy.p4[:n, jet]) / fv.pt(nominal.p4[:n, jet])
    assert float(ratio.std()) > 0.02
    soft = morphed(soft_events, DetectorShift(soft_ptmiss=10.0), card, seed=1)
    moved = soft.ptmiss - nominal.ptmiss
    assert float(moved.std()) == pytest.approx(10.0, rel=0.1)
    assert abs(float(moved.mean())) < 1.5
    torch.testing.assert_close(soft.p4, nominal.p4)


def test_wrong_arguments_are_named(soft_events: Events, card: ProcessCard) -> None:
    with pytest.raises(InputError, match="'jet_scale' should be a small relative shift"):
        DetectorShift(jet_scale=2.0)
    with pytest.raises(InputError, match="'soft_ptmiss' should not be negative"):
        DetectorShift(soft_ptmiss=-1.0)
    other = card.to_dict()
    other["objects"][0]["pt_min"] = 30.0
    with pytest.raises(InputError, match="differ in their jets alone"):
        morphed(soft_events, DetectorShift(), load_card(other))
    with pytest.raises(InputError, match="has no jets to shift"):
        soft_jet_card(load_card(card.to_dict() | {"objects": card.to_dict()["objects"][:2]}))
    with pytest.raises(ShapeError, match="a column for each point"):
        Systematics((constant_shift("jes", 1.0, 1.0),)).profiled(torch.zeros(1, 5), AXES)


def test_a_shift_that_is_much_larger_than_the_resolution_leaves_no_holes() -> None:
    covariance = 36.0 * torch.eye(2, dtype=torch.float64)
    shift = torch.tensor([[60.0], [0.0]], dtype=torch.float64)
    profiled = Systematics((constant_shift("jes", 60.0, 0.0),)).profiled(
        gaussian([200.0, 180.0], covariance), AXES
    )
    expected = gaussian([200.0, 180.0], covariance + shift @ shift.T)
    near = (POINTS[:, 1] == 180) & ((POINTS[:, 0] - 200).abs() <= 120)
    assert float((profiled - expected)[:, near].abs().max()) < 0.2
