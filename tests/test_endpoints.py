"""Kinematic endpoints: the fit on known distributions, and on toys of a decay chain."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.kinematics.constrained import m2_cc
from massrecon.kinematics.endpoints import fit_endpoint, fit_kink, visible_mass_edge
from massrecon.kinematics.fourvectors import from_pxpypzm, mass
from massrecon.kinematics.phasespace import Beams, PhaseSpace
from massrecon.kinematics.topology import DecayTopology
from massrecon.kinematics.transverse import mt2, mt2_solution

EDGE = 290.4737509655563  # of 1000 > 800 > 700 GeV


def triangle(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return EDGE * torch.rand(n, generator=generator, dtype=torch.float64).sqrt()


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heavy_toys(n: int, seed: int) -> dict[str, Tensor]:
    topology = DecayTopology.parse("p p > A A, (A > a B, B > b C), (A > a B, B > b C)")
    masses = {"A": 1000.0, "B": 800.0, "C": 700.0}
    full = {name: torch.full((n,), m, dtype=torch.float64) for name, m in masses.items()}
    collisions = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0))
    rows = from_pxpypzm(collisions.sample(full, torch.Generator().manual_seed(seed)))
    return dict(zip(topology.labels, rows.unbind(1), strict=True))


def coverage(samples: list[Tensor], true: float, **options: float) -> float:
    fits = [fit_endpoint(values, **options) for values in samples]
    return sum(fit.low < true < fit.high for fit in fits) / len(fits)


def test_the_edge_of_the_visible_mass_is_reached_and_never_passed() -> None:
    toy = heavy_toys(20_000, seed=1)
    edge = float(visible_mass_edge(1000.0, 800.0, 700.0))
    largest = float(mass(toy["a_a"] + toy["b_a"]).max())
    assert edge - 0.1 < largest <= edge * (1 + 1e-9)


def test_the_edge_with_massive_visible_particles_is_the_one_of_the_breakup_momenta() -> None:
    # m_C = 0 and a massless: m_ab^2 = m_A^2 - m_B^2 + m_b^2 for b back to back with a
    edge = float(visible_mass_edge(500.0, 300.0, 0.0, 0.0, 0.0))
    assert edge == pytest.approx((500.0**2 - 300.0**2) ** 0.5, rel=1e-12)
    assert torch.isnan(visible_mass_edge(500.0, 300.0, 290.0, 0.0, 20.0))
    # at threshold the visible particles are at rest beside each other
    assert float(visible_mass_edge(310.0, 300.0, 280.0, 10.0, 20.0)) == pytest.approx(30.0)


def test_the_edge_exists_at_threshold_in_spite_of_rounding() -> None:
    daughter = 70.0 + 0.1 * torch.arange(200, dtype=torch.float64)
    upper = 30.2 + 0.01 * torch.arange(200, dtype=torch.float64)
    edge = visible_mass_edge(daughter + upper, daughter, daughter / 3, upper, 1.0)
    assert edge.isfinite().all()


def test_a_sharp_edge_is_found_to_a_fraction_of_a_gev() -> None:
    fit = fit_endpoint(triangle(2000, seed=1), power=0.0)
    assert abs(fit.value - EDGE) < 0.5
    assert fit.low < fit.value < fit.high
    assert fit.high - fit.low < 0.5
    assert fit.p_value > 0.01
    area = torch.trapezoid(fit.density, fit.grid)
    assert float(area) == pytest.approx(1.0, abs=1e-6)


def test_resolution_and_background_are_seen_through() -> None:
    background = 400 * torch.rand(
        150, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    values = torch.cat([triangle(2000, seed=2) + 8.0 * noise(2000, seed=2), background])
    fit = fit_endpoint(values, low=200.0, high=400.0, resolution=8.0, power=0.0)
    assert abs(fit.value - EDGE) < 4.0
    assert fit.background > 0
    ignored = fit_endpoint(values, low=200.0, high=400.0, power=0.0)
    assert abs(ignored.value - EDGE) > abs(fit.value - EDGE)


def test_the_interval_of_a_sharp_edge_covers() -> None:
    got = coverage([triangle(400, seed) for seed in range(60)], EDGE, low=150.0, power=0.0)
    assert 0.5 < got < 0.86  # three standard deviations of 60 toys around 0.68


def test_the_interval_shrinks_as_events_come_in() -> None:
    widths = []
    for n in (200, 3200):
        fit = fit_endpoint(triangle(n, seed=5), low=150.0, power=0.0)
        widths.append(fit.high - fit.low)
    assert widths[1] < widths[0] / 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["edge", "blurred edge", "mt2 b", "mt2 ab, balanced", "m2cc ab", "m2cc a", "m2cc b"],
)
def test_68_percent_intervals_cover(kind: str) -> None:
    n, per = 300, 1000
    options: dict[str, float] = {}
    if kind.endswith("edge"):
        blur = 8.0 if kind == "blurred edge" else 0.0
        samples = [triangle(per, s) + blur * noise(per, s + n) for s in range(n)]
        options, true = {"power": 0.0, "resolution": blur, "low": 150.0}, EDGE
    elif kind.startswith("m2cc"):
        name = kind.split()[1]
        toy = heavy_toys(n * per, seed=7)
        visible = (toy[label] for label in ("a_a", "b_a", "a_b", "b_b"))
        ptmiss, trial = (toy["C_a"] + toy["C_b"])[:, :2], 800.0 if name == "a" else 700.0
        with warnings.catch_warnings():  # in a few of the 300,000 events no minimum is found
            warnings.simplefilter("ignore", RuntimeWarning)
            solved = m2_cc(*visible, ptmiss, trial, name)
        assert solved.converged.double().mean() > 0.9999
        samples, true = list(solved.value.split(per)), 800.0 if name == "b" else 1000.0
    else:
        toy = heavy_toys(n * per, seed=7)
        ptmiss = (toy["C_a"] + toy["C_b"])[:, :2]
        upper = kind.startswith("mt2 ab")
        side_a = toy["b_a"] + toy["a_a"] if upper else toy["b_a"]
        side_b = toy["b_b"] + toy["a_b"] if upper else toy["b_b"]
        solved = mt2_solution(side_a, side_b, ptmiss, 700.0)
        values = torch.where(solved.balanced, solved.value, torch.nan)
        samples, true = list(values.split(per)), 1000.0 if upper else 800.0
    got = coverage(samples, true, **options)
    assert 0.63 <= got <= 0.73, f"{kind}: {got:.3f} of {n} toys with {per} events"


def test_the_kink_of_mt2_gives_both_masses() -> None:
    toy = heavy_toys(6000, seed=8)
    ptmiss = (toy["C_a"] + toy["C_b"])[:, :2]
    side_a, side_b = toy["a_a"] + toy["b_a"], toy["a_b"] + toy["b_b"]
    trials = torch.linspace(500.0, 900.0, 9, dtype=torch.float64)
    fits = []
    for trial in trials.tolist():
        largest = mt2(side_a, side_b, ptmiss, trial).max()
        fits.append((float(largest), 1.0))
    ends, errors = torch.tensor(fits, dtype=torch.float64).unbind(1)
    kink = fit_kink(trials, ends, errors)
    assert abs(kink.m_invisible - 700.0) < 25.0
    assert abs(kink.m_parent - 1000.0) < 25.0
    assert kink.slope_above > kink.slope_below
    assert kink.m_invisible_error > 0


def test_a_kink_of_two_straight_lines_is_exact() -> None:
    trials = torch.linspace(0.0, 100.0, 21, dtype=torch.float64)
    ends = 200.0 + torch.where(trials < 40.0, 0.5 * (trials - 40.0), 0.9 * (trials - 40.0))
    kink = fit_kink(trials, ends, torch.full_like(ends, 0.05))
    assert abs(kink.m_invisible - 40.0) < 3 * kink.m_invisible_error + 0.25
    assert kink.slope_below == pytest.approx(0.5, abs=0.02)
    assert kink.slope_above == pytest.approx(0.9, abs=0.02)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ShapeError, match="'values' should have shape"):
        fit_endpoint(torch.ones(3, 3))
    with pytest.raises(InputError, match="at least 20 values, got 5"):
        fit_endpoint(torch.arange(5.0))
    with pytest.raises(InputError, match="at least 20 values between"):
        fit_endpoint(triangle(100, seed=1), low=289.9)
    with pytest.raises(InputError, match="at least 7 trial masses"):
        fit_kink(*(torch.ones(5, dtype=torch.float64) for _ in range(3)))
    with pytest.raises(InputError, match="'errors' should be positive"):
        fit_kink(*(torch.arange(8, dtype=torch.float64) for _ in range(3)))
    with pytest.raises(ShapeError, match="one shape"):
        fit_kink(torch.ones(8), torch.ones(7), torch.ones(8))


def test_points_that_are_no_points_are_named() -> None:
    trials, errors = torch.arange(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    ends = trials.clone()
    ends[3] = torch.nan
    with pytest.raises(InputError, match="'endpoints' should be finite"):
        fit_kink(trials, ends, errors)
    with pytest.raises(InputError, match="'trial_masses' should all differ"):
        fit_kink(trials // 2, trials, errors)


def test_a_range_with_too_few_values_does_not_lose_the_fit_of_a_wider_one() -> None:
    # narrow peaks below the end, which the model does not describe, and many values beyond it
    peaks = torch.tensor([100.0] * 8 + [150.0, 152.0, 155.0, 159.0], dtype=torch.float64)
    values = peaks.repeat(25) + torch.linspace(0.0, 0.1, 300, dtype=torch.float64)
    beyond = torch.linspace(200.0, 300.0, 150, dtype=torch.float64)
    fit = fit_endpoint(torch.cat([values, beyond]), high=160.0, power=0.0)
    assert fit.p_value < 0.1
    assert 159.0 < fit.value < 160.0
    with pytest.raises(InputError, match="Less than 20 of 100 values"):
        fit_endpoint(torch.full((100,), 5.0))
