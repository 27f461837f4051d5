"""The solvability edge: bounds, sharp and smooth fits, anchors, unknown invisible mass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.phasespace import PhaseSpace
from massrecon.kinematics.production import Beams
from massrecon.kinematics.topology import TopologyError
from massrecon.models.deelema import (
    DeeLeMa,
    DeeLeMaConfig,
    Edge,
    Structure,
    measure_edges,
    scan_trial_mass,
)
from massrecon.models.deelema.anchor import bounds_of, smallest_masses
from massrecon.models.deelema.edge import bootstrap_edge, fit_edge

LEGS = DecayLegs.of("p p > A A, (A > a B, B > b C)", invisible=["C"])
SLOTS = [0, 2, 1, 3]


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(
        "antler", 2500, seed=4, workers=1, progress=False, settings={"contamination": 0.5}
    )


def falling(n: int, edge: float, width: float, seed: int) -> Tensor:
    """Draws values whose density has a step at the edge, smeared."""
    rng = np.random.default_rng(seed)
    x = edge * (1 - 0.6 * rng.random(n)) + width * rng.standard_normal(n)
    return torch.as_tensor(x)


def test_the_smallest_mass_never_exceeds_the_true_one_whatever_the_pairing(events: Events) -> None:
    found = smallest_masses(
        Structure(LEGS), events.p4[:, SLOTS], events.ptmiss, 700.0, resolution={}
    )
    assert list(found) == ["B", "A"]
    for name, truth in (("B", 800.0), ("A", 1000.0)):
        values = found[name][0]
        assert bool(values.isfinite().all())
        assert float(values.max()) < truth * (1 + 1e-6)
        assert float(values.max()) > 0.995 * truth
    given = smallest_masses(
        Structure(LEGS), events.p4[:, SLOTS], events.ptmiss, 700.0, {}, torch.arange(4)[None]
    )
    # half of the given pairings are wrong, and many of them bound nothing
    assert float((given["A"][0] > 1001.0).double().mean()) > 0.1


def test_a_sharp_edge_is_found_beyond_the_largest_value() -> None:
    values = falling(2000, 500.0, 0.0, seed=1)
    fit = fit_edge(values)
    assert fit.sharp
    assert float(values.max()) < fit.value < float(values.max()) + 1.0
    assert fit.value == pytest.approx(500.0, abs=1.0)


def test_a_smeared_edge_is_unfolded() -> None:
    values = falling(4000, 500.0, 8.0, seed=2)
    known = fit_edge(values, torch.full_like(values, 8.0))
    assert known.value == pytest.approx(500.0, abs=5.0)
    assert known.width < 7.0
    fitted = fit_edge(values)
    assert not fitted.sharp
    assert fitted.value == pytest.approx(500.0, abs=5.0)
    assert fitted.width == pytest.approx(8.0, abs=4.0)


def test_the_best_measured_values_decide() -> None:
    rng = np.random.default_rng(3)
    errors = torch.as_tensor(rng.choice([5.0, 60.0], 6000))
    values = falling(6000, 500.0, 0.0, seed=4) + errors * torch.as_tensor(rng.standard_normal(6000))
    assert fit_edge(values, errors).value == pytest.approx(500.0, abs=4.0)


def test_the_resolution_is_that_of_smearing_again(events: Events) -> None:
    visible, ptmiss = events.p4[:400, SLOTS], events.ptmiss[:400]
    table = {"a": ((1.0, 0.001),)}
    _, errors = smallest_masses(
        Structure(LEGS), visible, ptmiss, 700.0, table, torch.arange(4)[None]
    )["A"]
    generator = torch.Generator().manual_seed(1)
    factors = torch.ones(400, 4, 1, dtype=torch.float64)
    moved = []
    for _ in range(25):
        noise = 0.001 * torch.randn(400, 2, 1, generator=generator, dtype=torch.float64)
        factors[:, [0, 2]] = 1 + noise
        shifted = ptmiss - (visible * (factors - 1))[..., :2].sum(1)
        again = smallest_masses(
            Structure(LEGS), visible * factors, shifted, 700.0, {}, torch.arange(4)[None]
        )
        moved.append(again["A"][0])
    spread = torch.stack(moved).std(0)
    good = spread.isfinite() & (errors > 0)
    assert float((spread[good] / errors[good]).median()) == pytest.approx(1.0, abs=0.1)


def test_intervals_follow_the_replicas() -> None:
    values = falling(1500, 500.0, 6.0, seed=5)
    errors = torch.full_like(values, 6.0)
    fit = fit_edge(values, errors)
    replicas = bootstrap_edge(fit, values, errors, 12, seed=1)
    edge = Edge(species="A", fit=fit, replicas=replicas)
    low, high = edge.interval()
    assert low < high
    assert edge.error == pytest.approx(0.5 * (high - low))
    assert 0.1 < edge.error < 5.0
    assert torch.equal(replicas, bootstrap_edge(fit, values, errors, 12, seed=1))


@pytest.mark.slow
def test_sharp_intervals_cover() -> None:
    hits = 0
    for seed in range(50):
        values = falling(800, 500.0, 0.0, seed)
        fit = fit_edge(values)
        replicas = bootstrap_edge(fit, values, torch.zeros_like(values), 40, seed)
        low, high = Edge(species="A", fit=fit, replicas=replicas).interval()
        hits += low <= 500.0 <= high
    # 34 +- 3.3, and some more for what the unknown power adds
    assert 26 <= hits <= 46


def test_too_few_values_are_refused() -> None:
    with pytest.raises(InputError, match="at least 50 values"):
        fit_edge(torch.ones(10))


@pytest.mark.parametrize("start", [0.8, 2.0])
def test_an_anchored_fit_forgets_its_start(events: Events, start: float) -> None:
    config = DeeLeMaConfig(
        m_invisible={"C": 700.0}, hidden=16, layers=2, epochs=2,
        start={"B": 800 * start, "A": 1000 * start},
    )  # fmt: skip
    model = DeeLeMa(LEGS, config).fit(events, progress=False, n_bootstrap=5)
    assert model.masses == pytest.approx({"A": 1000.0, "B": 800.0}, rel=2e-3)
    low, high = model.intervals["A"]
    assert low < high < 1010.0


def test_edges_of_a_single_step_come_from_mt2() -> None:
    single = DecayLegs.of("p p > A A, (A > a C)", invisible=["C"])
    space = PhaseSpace(topology=single.topology, beams=Beams(energy=13_000.0))
    points = {"A": torch.full((4000,), 500.0), "C": torch.full((4000,), 100.0)}
    p4 = fv.from_pxpypzm(space.sample(points, torch.Generator().manual_seed(1)))
    visible, hidden = p4[:, [1, 4]], p4[:, [2, 5]]
    edges = measure_edges(Structure(single), visible, hidden[..., :2].sum(1), 100.0, n_bootstrap=5)
    assert edges["A"].value == pytest.approx(500.0, rel=0.02)


def sampled(text: str, masses: dict[str, float], n: int, **beams: Any) -> tuple[Tensor, Tensor]:
    """Makes visible momenta and ptmiss of a decay to invisible C."""
    legs = DecayLegs.of(text, invisible=["C"])
    space = PhaseSpace(topology=legs.topology, beams=Beams(energy=13_000.0, **beams))
    points = {name: torch.full((n,), m) for name, m in masses.items()}
    p4 = fv.from_pxpypzm(space.sample(points, torch.Generator().manual_seed(1)))
    hidden = p4[:, [leg.index for leg in legs.invisible]]
    return p4[:, [leg.index for leg in legs.visible]], hidden[..., :2].sum(1)


@pytest.mark.parametrize(
    ("text", "species"),
    [
        ("p p > A A, (A > a B, (B > b D, D > d C))", ["D", "B", "A"]),
        ("p p > A A, (A > a B, B > b C), (A > d C)", ["A"]),
        ("p p > H, (H > A A, (A > a B, B > b C), (A > a B, B > b C))", ["B", "A"]),
    ],
)
def test_longer_and_unequal_sides_have_edges_too(text: str, species: list[str]) -> None:
    structure = Structure(DecayLegs.of(text, invisible=["C"]))
    assert [bound.species for bound in bounds_of(structure)] == species
    names = {node.name for node in structure.legs.topology.nodes}
    masses = {"H": 2500.0, "A": 1000.0, "B": 800.0, "D": 650.0, "C": 500.0}
    masses = {name: m for name, m in masses.items() if name in names}
    visible, ptmiss = sampled(text, masses, 1500, recoil=50.0)
    found = smallest_masses(structure, visible, ptmiss, {"C": 500.0}, {})
    for name in species:
        largest = float(found[name][0].max())
        assert 0.97 * masses[name] < largest < (1 + 1e-6) * masses[name]


def test_decays_without_an_edge_say_so(events: Events) -> None:
    for text, why in (
        ("p p > A A, (A > a C C)", "4 invisible legs, not two"),
        ("p p > A B, (A > a C), (B > b C)", "no particle occurs once on either side"),
    ):
        structure = Structure(DecayLegs.of(text, invisible=["C"]))
        n = len(structure.legs.visible)
        with pytest.raises(TopologyError, match=f'{why}.*"none"'):
            measure_edges(structure, torch.ones(9, n, 4), torch.ones(9, 2), 1.0)
    with pytest.raises(InputError, match="'resolution' names 'x'"):
        measure_edges(
            Structure(LEGS), events.p4[:, SLOTS], events.ptmiss, 700.0, {"x": ((1.0, 0.1),)}
        )


def test_the_invisible_mass_is_where_the_tail_is_shortest(events: Events) -> None:
    masses = [500.0, 580.0, 640.0, 680.0, 720.0, 760.0, 820.0, 900.0]
    found = scan_trial_mass(
        Structure(LEGS), events.p4[:, SLOTS], events.ptmiss, masses, n_bootstrap=10
    )
    assert found.value == pytest.approx(700.0, rel=0.05)
    assert found.depth > 0.5
    assert found.interval[0] <= found.value <= found.interval[1]
    beyond = scan_trial_mass(
        Structure(LEGS),
        events.p4[:, SLOTS],
        events.ptmiss,
        [m + 300 for m in masses],
        n_bootstrap=2,
    )
    # all trial masses are too heavy: the tail only grows
    assert np.isnan(beyond.value)
    assert beyond.interval == (800.0, 1200.0)
    with pytest.raises(InputError, match="7 trial masses"):
        scan_trial_mass(Structure(LEGS), events.p4[:, SLOTS], events.ptmiss, masses[:5])
