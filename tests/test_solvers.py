"""Solving two-step pair decays, on toys with known momenta."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.kinematics import solvers
from massrecon.kinematics.fourvectors import boost, from_pxpypzm, mass, rotate_z
from massrecon.kinematics.phasespace import Beams, PhaseSpace
from massrecon.kinematics.solvers import (
    _ellipse,
    neutrino_weight,
    pair_solutions,
    smeared_solutions,
    solvable_fraction,
)
from massrecon.kinematics.topology import DecayTopology

TOP = {"A": 173.0, "B": 80.4, "C": 0.0}
HEAVY = {"A": 1000.0, "B": 800.0, "C": 700.0}


def toys(masses: dict[str, float], n: int, seed: int) -> dict[str, Tensor]:
    topology = DecayTopology.parse("p p > A A, (A > a B, B > b C), (A > a B, B > b C)")
    full = {name: torch.full((n,), m, dtype=torch.float64) for name, m in masses.items()}
    collisions = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0, recoil=40.0))
    rows = from_pxpypzm(collisions.sample(full, torch.Generator().manual_seed(seed)))
    return dict(zip(topology.labels, rows.unbind(1), strict=True))


def event(toy: dict[str, Tensor]) -> tuple[Tensor, ...]:
    ptmiss = (toy["C_a"] + toy["C_b"])[:, :2]
    return toy["a_a"], toy["b_a"], toy["a_b"], toy["b_b"], ptmiss


def distance(found: Tensor, truth: Tensor) -> Tensor:
    """Largest difference of the nearest solution to the truth [GeV]."""
    return (found - truth.unsqueeze(-2)).abs().amax(-1).nan_to_num(torch.inf)


@pytest.mark.parametrize("masses", [TOP, HEAVY], ids=["top", "heavy"])
def test_the_truth_is_among_the_solutions(masses: dict[str, float]) -> None:
    toy = toys(masses, 2000, seed=1)
    solved = pair_solutions(*event(toy), masses["A"], masses["B"], masses["C"])
    off = distance(solved.invisible_a, toy["C_a"]) + distance(solved.invisible_b, toy["C_b"])
    found = (off.amin(-1) < 1e-2).double().mean()
    assert found > 0.998, f"found in {found:.4f} of 2000 events with seed 1"


@pytest.mark.parametrize("masses", [TOP, HEAVY], ids=["top", "heavy"])
def test_every_solution_solves_the_equations(masses: dict[str, float]) -> None:
    toy = toys(masses, 2000, seed=2)
    a_a, b_a, a_b, b_b, ptmiss = event(toy)
    solved = pair_solutions(a_a, b_a, a_b, b_b, ptmiss, masses["A"], masses["B"], masses["C"])
    row = solved.exists.nonzero()[:, 0]
    q_a, q_b = solved.invisible_a[solved.exists], solved.invisible_b[solved.exists]
    torch.testing.assert_close((q_a + q_b)[:, :2], ptmiss[row], rtol=0, atol=1e-4)
    for upper, lower, q in ((a_a, b_a, q_a), (a_b, b_b, q_b)):
        for system, wanted in ((upper[row] + lower[row] + q, "A"), (lower[row] + q, "B")):
            got = mass(system)
            torch.testing.assert_close(got, torch.full_like(got, masses[wanted]), rtol=1e-6, atol=0)
    assert torch.isnan(solved.invisible_a[~solved.exists]).all()


def test_the_number_of_solutions_is_even_and_they_come_first() -> None:
    solved = pair_solutions(*event(toys(TOP, 3000, seed=3)), 173.0, 80.4)
    odd = (solved.n_solutions % 2 == 1).double().mean()
    assert odd < 1e-3
    assert (solved.exists[:, :-1] >= solved.exists[:, 1:]).all()


def test_a_dense_scan_finds_the_same_number_of_solutions() -> None:
    """The ellipse of side b is walked; crossings with that of side a are counted."""
    toy = toys(TOP, 40, seed=4)
    a_a, b_a, a_b, b_b, ptmiss = event(toy)
    solved = pair_solutions(a_a, b_a, a_b, b_b, ptmiss, 173.0, 80.4)
    phi = torch.linspace(0, 2 * torch.pi, 20_001, dtype=torch.float64)
    for i in range(40):
        # one neutrino of side b for every point of its own ellipse, from the solver of one side
        q_b = _one_side(a_b[i], b_b[i], phi)
        q_a = ptmiss[i] - q_b[:, :2]
        off = _mass_gap(a_a[i], b_a[i], q_a)
        crossings = sum(
            int((branch[1:].sign() * branch[:-1].sign() < 0).sum()) for branch in off.unbind(-1)
        )
        assert crossings == int(solved.n_solutions[i]), f"event {i} of seed 4"


def _one_side(upper: Tensor, lower: Tensor, phi: Tensor) -> Tensor:
    """Massless neutrinos with m(lower + q) = 80.4 and m(upper + lower + q) = 173, by projection."""
    masses = (torch.tensor([m], dtype=torch.float64) for m in (173.0, 80.4, 0.0))
    return _ellipse(upper[None], lower[None], *masses).at(phi.cos()[None], phi.sin()[None])[0]


def _mass_gap(upper: Tensor, lower: Tensor, q: Tensor) -> Tensor:
    """m(upper + lower + q) - 173 for both pz that give m(lower + q) = 80.4; NaN where none does."""
    half = 0.5 * 80.4**2 + q @ lower[:2]
    pt_squared = lower[:2].square().sum()
    root = (half**2 - pt_squared * q.square().sum(-1)).sqrt()
    pz = torch.stack([half * lower[2] + s * lower[3] * root for s in (1, -1)], -1) / pt_squared
    q_full = torch.cat([q.unsqueeze(1).expand(-1, 2, -1), pz.unsqueeze(-1)], -1)
    q4 = torch.cat([q_full, torch.linalg.vector_norm(q_full, dim=-1, keepdim=True)], -1)
    return mass(upper + lower + q4) - 173.0


def test_rotations_and_exchange_of_sides_change_nothing_else() -> None:
    a_a, b_a, a_b, b_b, ptmiss = event(toys(TOP, 200, seed=5))
    straight = pair_solutions(a_a, b_a, a_b, b_b, ptmiss, 173.0, 80.4)
    swapped = pair_solutions(a_b, b_b, a_a, b_a, ptmiss, 173.0, 80.4)
    assert torch.equal(straight.n_solutions, swapped.n_solutions)
    angle = torch.tensor(1.234, dtype=torch.float64)
    turned = pair_solutions(
        *(rotate_z(v, angle) for v in (a_a, b_a, a_b, b_b, ptmiss)), 173.0, 80.4
    )
    assert torch.equal(straight.n_solutions, turned.n_solutions)
    energy = straight.invisible_a[..., 3].nan_to_num().sort(-1)[0]
    torch.testing.assert_close(
        turned.invisible_a[..., 3].nan_to_num().sort(-1)[0], energy, rtol=1e-5, atol=1e-5
    )


def test_longitudinal_boosts_move_the_solutions_along() -> None:
    a_a, b_a, a_b, b_b, ptmiss = event(toys(HEAVY, 100, seed=6))
    beta = torch.tensor([0.0, 0.0, 0.4], dtype=torch.float64)
    moved = [boost(p4, beta.expand(100, 3)) for p4 in (a_a, b_a, a_b, b_b)]
    straight = pair_solutions(a_a, b_a, a_b, b_b, ptmiss, 1000.0, 800.0, 700.0)
    boosted = pair_solutions(*moved, ptmiss, 1000.0, 800.0, 700.0)
    assert torch.equal(straight.n_solutions, boosted.n_solutions)
    expected = boost(straight.invisible_a, beta.expand(100, 4, 3))[..., 3].nan_to_num().sort(-1)[0]
    got = boosted.invisible_a[..., 3].nan_to_num().sort(-1)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_batch_dimensions_and_masses_broadcast() -> None:
    toy = event(toys(TOP, 6, seed=7))
    masses = torch.tensor([[150.0], [173.0]], dtype=torch.float64)
    both = pair_solutions(*toy, masses, 80.4)
    assert both.invisible_a.shape == (2, 6, 4, 4)
    one = pair_solutions(*toy, 173.0, 80.4)
    assert torch.equal(both.exists[1], one.exists)
    single = pair_solutions(*(v[0] for v in toy), 173.0, 80.4)
    assert single.invisible_a.shape == (4, 4)
    empty = pair_solutions(*(v[:0] for v in toy), 173.0, 80.4)
    assert empty.exists.shape == (0, 4)


def test_smearing_finds_solutions_where_there_were_none() -> None:
    toy = event(toys(TOP, 300, seed=8))
    blurred = toy[4] + 15 * torch.randn(
        300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8)
    )
    event_ = (*toy[:4], blurred)
    plain = pair_solutions(*event_, 173.0, 80.4).exists.any(-1)
    smeared = smeared_solutions(
        *event_, 173.0, 80.4, upper_resolution=0.1, ptmiss_resolution=15.0, n_smear=40, seed=1
    )
    assert smeared.exists.shape == (40, 300, 4)
    assert plain.double().mean() < 0.9
    assert smeared.exists.any(-1).any(0).double().mean() > plain.double().mean() + 0.1
    again = smeared_solutions(
        *event_, 173.0, 80.4, upper_resolution=0.1, ptmiss_resolution=15.0, n_smear=40, seed=1
    )
    assert torch.equal(smeared.exists, again.exists)


def test_the_solvable_fraction_is_one_from_the_true_mass_on() -> None:
    toy = event(toys(HEAVY, 400, seed=9))
    parents = torch.tensor([980.0, 1000.0, 1020.0], dtype=torch.float64)
    daughters = torch.tensor([800.0, 800.0, 810.0], dtype=torch.float64)
    fraction = solvable_fraction(*toy, parents, daughters, 700.0)
    assert fraction[0] < 0.7
    assert fraction[1] > 0.99
    assert fraction[2] > 0.98
    with pytest.raises(InputError, match="needs events"):
        solvable_fraction(*(v[:0] for v in toy), parents, daughters)


def test_the_neutrino_weight_prefers_the_true_mass() -> None:
    toy = event(toys(TOP, 400, seed=10))
    masses = torch.tensor([[140.0], [173.0], [215.0]], dtype=torch.float64)
    weight = neutrino_weight(*toy, masses, 80.4, ptmiss_resolution=10.0)
    assert weight.shape == (3, 400)
    assert (weight >= 0).all()
    mean = weight.clamp_min(1e-12).log().mean(1)
    assert mean[1] > mean[0]
    assert mean[1] > mean[2]


def test_wrong_shapes_are_named() -> None:
    p4 = torch.ones(3, 4)
    with pytest.raises(ShapeError, match="'ptmiss' should have shape"):
        pair_solutions(p4, p4, p4, p4, torch.ones(3, 3), 173.0, 80.4)
    with pytest.raises(ShapeError, match="'lower_b' should have shape"):
        pair_solutions(p4, p4, p4, torch.ones(3, 3), torch.ones(3, 2), 173.0, 80.4)


def test_batches_that_do_not_fit_together_are_named() -> None:
    three, two = torch.ones(3, 4), torch.ones(2, 4)
    with pytest.raises(InputError, match=r"'upper_a' \(3,\), 'lower_a' \(2,\)"):
        pair_solutions(three, two, two, two, torch.ones(2, 2), 173.0, 80.4)
    with pytest.raises(ShapeError, match="'lower_b' should have shape"):
        neutrino_weight(
            two, two, two, three[:, :3], two[:, :2], 173.0, 80.4, ptmiss_resolution=10.0
        )
    with pytest.raises(InputError, match="'ptmiss_resolution' should be positive, got 0"):
        neutrino_weight(two, two, two, two, two[:, :2], 173.0, 80.4, ptmiss_resolution=0.0)


def test_no_events_have_no_solutions_and_no_weights() -> None:
    p4, ptmiss = torch.ones(3, 0, 4), torch.ones(3, 0, 2)
    assert pair_solutions(p4, p4, p4, p4, ptmiss, 173.0, 80.4).exists.shape == (3, 0, 4)
    weight = neutrino_weight(p4, p4, p4, p4, ptmiss, 173.0, 80.4, ptmiss_resolution=10.0)
    assert weight.shape == (3, 0)


def test_weights_of_many_events_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    momenta = event(toys(TOP, 7, seed=9))
    whole = neutrino_weight(*momenta, 173.0, 80.4, ptmiss_resolution=20.0)
    monkeypatch.setattr(solvers, "CHUNK", 2 * 82**2)
    largest = 0

    def watched(*given: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, len(given[0][0]))
        return weigh(*given)

    weigh = solvers._weight
    monkeypatch.setattr(solvers, "_weight", watched)
    parts = neutrino_weight(*momenta, 173.0, 80.4, ptmiss_resolution=20.0)
    assert largest == 2
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


def test_whole_numbers_as_masses_leave_the_invisible_mass_as_it_is() -> None:
    momenta = event(toys(HEAVY, 200, seed=10))
    parent, daughter = torch.tensor([1000, 990]), torch.tensor([800, 800])
    found = solvable_fraction(*momenta, parent, daughter, 705.5)
    expected = solvable_fraction(*momenta, parent.double(), daughter.double(), 705.5)
    assert torch.equal(found, expected)
    assert solvable_fraction(*momenta, torch.ones(0, 2), torch.ones(0, 2)).shape == (0, 2)


def test_each_event_may_have_its_own_resolution_of_ptmiss() -> None:
    momenta = event(toys(TOP, 3, seed=11))
    given = {"upper_resolution": 0.0, "n_smear": 20, "seed": 1}
    alone = smeared_solutions(*momenta, 173.0, 80.4, ptmiss_resolution=10.0, **given)
    widths = torch.tensor([10.0, 0.0, 10.0], dtype=torch.float64)
    found = smeared_solutions(*momenta, 173.0, 80.4, ptmiss_resolution=widths, **given)
    assert torch.equal(found.exists[:, [0, 2]], alone.exists[:, [0, 2]])
    exact = pair_solutions(*momenta, 173.0, 80.4)
    assert torch.equal(found.exists[:, 1], exact.exists[1].expand(20, 4))
