"""Several invisible legs in the mixture: solved, shared, fitted and calibrated on toys."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.card import load_card
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.inference.mixture import (
    fit_mixture,
    legs_of,
    mass_posterior,
    mixture_for,
    mixture_posterior,
    mixture_summaries,
)
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents, MixtureOptions
from massrecon.kinematics.mixture_fit import MixtureFit
from massrecon.kinematics.mixture_invisible import Fillings, Mother, solve
from massrecon.models.mixture import detected, unknown_masses

ANTLER = {"A": (850.0, 1200.0), "B": (720.0, 1000.0), "C": 700.0}
FEW = MixtureOptions(shares=8, trials=4, kept=4000, least_weight=1e-12)


@pytest.fixture(scope="module")
def antler() -> tuple[KinematicMixture, Events]:
    events = simulate("antler", n_events=40, masses=ANTLER, seed=3, workers=1, progress=False)
    return mixture_for(events.card, ANTLER, options=FEW, fitted=False), events


def random_p4(n: int, mass: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    p = 80 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return torch.cat([p, (p.square().sum(1, keepdim=True) + mass**2).sqrt()], 1)


@pytest.mark.parametrize("own", [0.0, 60.0])
def test_one_root_is_the_true_momentum(own: float) -> None:
    leg, visible = random_p4(200, own, seed=1), random_p4(200, 20.0, seed=2)
    mass = fv.mass(leg + visible)
    found = solve(
        Mother(mass[:1], None, 0.0, own),
        visible.T[:, None],
        mass[None, None],
        leg[:, :2].T[:, None, None].expand(2, 2, 1, -1),
        torch.tensor([1.0, -1.0]).double()[:, None, None],
        (torch.full((1, 1, 1), 1e-9).double(), torch.zeros(1, 1, 1).double()),
    )
    # an exact double root may look unreal by rounding
    assert float(found.pull.max()) < 1e-3
    off = (found.p4[2, :, 0] - leg[:, 2]).abs().amin(0)
    assert float((off / leg[:, 3]).max()) < 1e-5
    total = found.p4[:, :, 0] + visible.T[:, None]
    torch.testing.assert_close(
        fv.mass(total.movedim(0, -1)), mass.expand(2, -1), rtol=1e-5, atol=1e-3
    )


def test_shares_add_up_to_ptmiss_and_turn_with_it(antler: tuple[KinematicMixture, Events]) -> None:
    fillings = antler[0].sorter.fillings
    ptmiss = torch.tensor([[30.0, 0.0], [40.0, 90.0]]).double()
    parts = [fillings.momenta(i, ptmiss) for i in range(2)]
    torch.testing.assert_close(sum(parts), ptmiss[:, None].expand_as(parts[0]))
    turned = torch.stack([-ptmiss[1], ptmiss[0]])
    first = fillings.momenta(0, turned)
    torch.testing.assert_close(torch.stack([first[1], -first[0]]), parts[0])
    # with each way to share, the sides exchanged is another one
    distance = (parts[0][:, :, None] - parts[1][:, None]).abs().sum(0)
    assert float(distance.amin(1).max()) < 1e-9


def test_densities_of_shares_integrate_to_their_plane() -> None:
    mixture = mixture_for(
        load_card("antler"), ANTLER, options=MixtureOptions(shares=400), fitted=False
    )
    fillings: Fillings = mixture.sorter.fillings
    z = fillings.shares[:, 0] * 2**0.5
    weight = fillings.log_weight.exp() / 400
    # the mean of f / g over the points is the integral of f: a Gaussian of width 0.7
    normal = (-0.5 * (z / 0.7).square().sum(1)).exp() / (2 * torch.pi * 0.49)
    per_share = (normal * weight).unflatten(0, (400, -1))[:, 0].sum()
    assert abs(float(per_share) - 1) < 0.05


def test_masses_move_with_trial_masses(antler: tuple[KinematicMixture, Events]) -> None:
    mixture, events = antler
    (block,) = list(mixture.sorter.blocks(detected(events[:6]), 10**7))
    builder, step = block.plan.builders[0], 1e-4
    # with hardly any width the slopes are exact; else they are kept finite at double roots
    sharp = dataclasses.replace(block.objects, ptmiss_width=1e-9 * block.objects.ptmiss_width)
    narrow = dataclasses.replace(
        builder.fillings,
        cell=1e-9 * builder.fillings.cell,
        trial_width=1e-9 * builder.fillings.trial_width,
    )
    before, builder.fillings = builder.fillings, narrow
    terms = builder.terms(sharp)
    builder.fillings = dataclasses.replace(narrow, trial=narrow.trial + step)
    moved = (builder.terms(sharp).mass[0] - terms.mass[0]) / step
    builder.fillings = before
    (unreal,) = terms.unreal
    assert unreal is not None
    expected = terms.by_trial[0][0].expand_as(moved)
    smooth = ~unreal & (expected.abs() < 100)
    assert float(smooth.double().mean()) > 0.1
    assert float((moved / expected - 1)[smooth].abs().quantile(0.9)) < 1e-3


def test_compiled_kernels_agree_with_torch_for_two_invisible_legs(
    antler: tuple[KinematicMixture, Events],
) -> None:
    pytest.importorskip("numba")
    mixture, events = antler
    one, two = (mass_posterior_by(mixture, events, b) for b in ("torch", "numba"))
    masses = unknown_masses(mixture, events)
    torch.testing.assert_close(one.log_prob(masses), two.log_prob(masses), rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(one.log_evidence, two.log_evidence, rtol=1e-3, atol=2e-2)


def mass_posterior_by(mixture: KinematicMixture, events: Events, backend: Any) -> Any:
    return mixture.posterior(detected(events), backend=backend)


def test_exchanging_like_sides_changes_nothing(antler: tuple[KinematicMixture, Events]) -> None:
    mixture, events = antler
    seen = detected(events)
    swapped = DetectedEvents(seen.p4[:, [1, 0, 3, 2]], seen.present, seen.kinds, seen.ptmiss)
    masses = unknown_masses(mixture, events)
    one, two = (mixture.posterior(e).log_prob(masses) for e in (seen, swapped))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


def test_draws_take_like_sides_in_turn(antler: tuple[KinematicMixture, Events]) -> None:
    mixture, events = antler
    found = mixture_posterior(mixture, events, n_samples=400, seed=2)
    pz = found.target("A_pz")
    other = mixture_posterior(mixture, events, n_samples=400, seed=3).target("A_pz")
    assert float((pz.mean(0) - other.mean(0)).abs().median()) < 0.4 * float(pz.std(0).median())
    # what both sides carry along the beam is measured: draws on the two sides spread about half
    assert float(pz.std(0).median()) > 50


def test_a_fit_on_toys_predicts_what_it_attains() -> None:
    masses = {"t": (120.0, 240.0), "W": 80.419}
    events = simulate(
        "antler_ttbar", n_events=900, masses=masses, seed=5, workers=1, progress=False
    )
    train, test = events.split(by="masses", fractions=(0.6, 0.4), seed=1)
    start = mixture_for(events.card, masses, options=MixtureOptions(shares=12), fitted=False)
    fitted = fit_mixture(train, start=start, fit=MixtureFit(epochs=8, batch=30, learning_rate=0.06))
    truth = unknown_masses(fitted, test)
    gain = mass_posterior(fitted, test).log_prob(truth) - mass_posterior(start, test).log_prob(
        truth
    )
    assert float(gain.mean()) > 0.05
    summaries = mixture_summaries(fitted, test)
    hit = ((summaries[:, 2] - truth[:, 0]).abs() < 30).double().mean()
    assert float(hit) > 0.65  # the best constant gets a half
    assert abs(float(hit - summaries[:, 3].mean())) < 0.1


def test_like_sides_of_the_lepton_card_are_alike() -> None:
    legs = legs_of(load_card("wino_lle"))
    assert [leg.label for leg in legs.invisible] == ["nu_a", "nu_b"]
    assert legs.leg_kinds.count("lepton") == 4
    assert legs.leg_kinds.count("jet") == 2
    assert legs.n_symmetries == 8


def test_wrong_fillings_are_refused() -> None:
    with pytest.raises(InputError, match="'shares' and 'trials'"):
        mixture_for(load_card("antler"), ANTLER, options=MixtureOptions(shares=0), fitted=False)
