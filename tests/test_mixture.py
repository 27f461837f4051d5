"""The kinematic mixture: as a distribution, fitted, and as a Posterior."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from massrecon.errors import InputError, ShapeError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.mixture import (
    fit_mixture,
    legs_of,
    mass_posterior,
    mixture_for,
    mixture_posterior,
    mixture_summaries,
)
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents, MixtureOptions
from massrecon.kinematics.mixture_fit import MixtureFit, fit_parameters, mean_loss, prepare
from massrecon.kinematics.mixture_posterior import (
    LEAST_EVIDENCE,
    summary_names,
)
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable
from massrecon.kinematics.topology import TopologyError
from massrecon.models.mixture import detected, unknown_masses

ToyEvents = Callable[..., Events]

Start = tuple[KinematicMixture, Events]  # a mixture before its fit, and events
PLANE = {"chi20": (400.0, 700.0), "chi10": (50.0, 500.0)}
LINE = {"chi20": 600.0, "chi10": (50.0, 450.0)}
TOP = "p p > t t~, (t > b W, W > l nu), (t~ > b W, W > q q)"


@pytest.fixture(scope="module")
def wino(card: ProcessCard, toy_events: ToyEvents) -> Start:
    return mixture_for(card, PLANE, fitted=False), toy_events(60, seed=3)


def test_compiled_kernels_agree_with_torch(wino: Start) -> None:
    pytest.importorskip("numba")
    start, events = wino
    options = MixtureOptions(kept=4000, least_weight=1e-12)
    mixture = KinematicMixture(start.scheme, start.response, start.region, options)
    seen = detected(events[:25])
    one = mixture.posterior(seen, ("chi10_a",), backend="torch")
    two = mixture.posterior(seen, ("chi10_a",), backend="numba")
    masses = unknown_masses(mixture, events[:25])
    torch.testing.assert_close(one.log_prob(masses), two.log_prob(masses), rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(one.log_evidence, two.log_evidence, rtol=1e-3, atol=2e-2)
    mean_p4 = [(p.log_weight.exp()[..., None] * p.momenta["chi10_a"]).sum(1) for p in (one, two)]
    torch.testing.assert_close(*mean_p4, rtol=1e-2, atol=1.0)


def test_the_density_of_the_posterior_adds_up_to_one(wino: Start) -> None:
    mixture, events = wino
    found = mass_posterior(mixture, events)
    chi20 = torch.arange(401.0, 700.0, 2.0, dtype=torch.float64)
    chi10 = torch.arange(51.0, 500.0, 2.0, dtype=torch.float64)
    grid = torch.cartesian_prod(chi20, chi10)
    density = found.log_prob(grid[:, None].expand(-1, len(found), -1)).exp()
    total = density.sum(0) * 4
    assert float((total - 1).abs().mean()) < 0.02
    assert bool((density[~mixture.region.contains(grid)] == 0).all())
    marginal = density.unflatten(0, (len(chi20), len(chi10))).sum(0).T * 2
    distance = (found.marginal("chi10").density(chi10) - marginal).abs().sum(1) * 2
    assert float(distance.mean()) < 0.06


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_merged_hypotheses_keep_their_weight(wino: Start, backend: str) -> None:
    mixture, events = wino
    few, everything = (_with_kept(mixture, kept) for kept in (6, 4000))
    seen = detected(events)
    short, whole = (m.posterior(seen, backend=backend) for m in (few, everything))
    assert short.log_weight.shape[1] == 6 + 3
    assert int((whole.log_weight > -math.inf).sum(1).max()) > 100
    torch.testing.assert_close(short.log_evidence, whole.log_evidence, rtol=0, atol=0.15)
    off = (short.summaries()[:, 0] - whole.summaries()[:, 0]).abs()
    assert float(off.median()) < 5.0, off


def test_hypotheses_of_equal_weight_are_all_counted(wino: Start) -> None:
    """Doubled jets make hypotheses whose scores no limit can tell apart."""
    start, events = wino
    few, everything = (_with_kept(start, kept) for kept in (12, 4000))
    seen = detected(events[:25])
    jets = torch.tensor([kind == "jet" for kind in seen.kinds])
    p4 = torch.where(jets[:, None], seen.p4[:, jets][:, :1], seen.p4)
    doubled = DetectedEvents(p4, seen.present, seen.kinds, seen.ptmiss)
    short, whole = (m.posterior(doubled).log_evidence for m in (few, everything))
    torch.testing.assert_close(short, whole, rtol=1e-3, atol=0.1)
    expected = everything.posterior(doubled, backend="torch").log_evidence
    torch.testing.assert_close(whole, expected, rtol=1e-3, atol=2e-2)


def _with_kept(mixture: KinematicMixture, kept: int) -> KinematicMixture:
    options = MixtureOptions(kept=kept, least_weight=1e-12)
    again = KinematicMixture(mixture.scheme, mixture.response, mixture.region, options)
    again.load_state_dict(mixture.state_dict())
    return again


def test_tails_lie_around_the_hypotheses(wino: Start) -> None:
    mixture, events = wino
    whole = _with_kept(mixture, 4000)
    found, truth = mass_posterior(whole, events), unknown_masses(whole, events)
    share = found.log_weight[:, :4000].exp()
    low, high = (
        torch.tensor(x, dtype=torch.float64) for x in (whole.region.low, whole.region.high)
    )
    near = torch.minimum(torch.maximum(found.mean[:, :4000], low), high)
    centre = (share.unsqueeze(-1) * near).sum(1) / share.sum(1, keepdim=True)
    explained = found.log_evidence > LEAST_EVIDENCE
    assert int(explained.sum()) > 50
    for tail in (4000, 4001):
        mean = found.mean[:, tail]
        torch.testing.assert_close(mean[explained], centre[explained], rtol=1e-4, atol=0.1)
    width = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    factors = whole.outlier.log_factor.exp()
    torch.testing.assert_close(
        width[:, 4001] / width[:, 4000], (factors[1] / factors[0]).expand_as(truth)
    )
    blocks = whole.sorter.blocks(detected(events), 2**14)
    for block in blocks:
        expected = whole.log_prob(block, truth[block.rows]).detach()[explained[block.rows]]
        rows = block.rows[explained[block.rows]]
        torch.testing.assert_close(found.log_prob(truth)[rows], expected, rtol=1e-3, atol=0.02)


def test_threads_share_the_work(wino: Start) -> None:
    mixture, events = wino
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(mass_posterior(mixture, events).summaries())
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_draws_follow_the_density_and_stay_inside(wino: Start) -> None:
    mixture, events = wino
    found = mass_posterior(mixture, events)
    draws = found.sample(2000, seed=4)
    assert bool(mixture.region.contains(draws).all())
    assert torch.equal(draws, found.sample(2000, seed=4))
    assert not torch.equal(draws, found.sample(2000, seed=5))
    for i, name in enumerate(found.names):
        below = found.marginal(name).cumulative(torch.tensor([560.0 if i == 0 else 220.0]).double())
        share = (draws[..., i] < (560.0 if i == 0 else 220.0)).double().mean(0)
        assert float((below[:, 0] - share).abs().mean()) < 0.03


def test_summaries_describe_the_marginals(wino: Start) -> None:
    mixture, events = wino
    found = mass_posterior(mixture, events)
    summaries = dict(zip(found.summary_names, found.summaries().T, strict=True))
    assert len(summaries) == 10
    draws = found.sample(2000, seed=0)[..., 1]
    median = draws.median(0).values
    assert float((summaries["chi10_median"] - median).abs().median()) < 5
    centre, expected = summaries["chi10_window"], summaries["chi10_window_probability"]
    share = ((draws - centre).abs() < 30).double().mean(0)
    assert float((share - expected).abs().mean()) < 0.03
    assert bool((summaries["log_hypotheses"] >= 0).all())


def test_a_fit_learns_the_resolution_and_helps_on_new_events(
    card: ProcessCard, toy_events: ToyEvents
) -> None:
    train, test = toy_events(500, seed=21), toy_events(200, seed=22)
    start = mixture_for(card, LINE, options=MixtureOptions(most_objects={"jet": 6}), fitted=False)
    history: list[float] = []
    fitted = fit_mixture(
        train,
        start=start,
        fit=MixtureFit(epochs=5, batch=60),
        report=lambda _, loss, __: history.append(loss),
    )
    examples = prepare(start, detected(test), unknown_masses(start, test))
    assert mean_loss(fitted, examples) < mean_loss(start, examples) - 0.3
    assert history[-1] < history[0]
    truth = unknown_masses(fitted, test)[:, 0]
    found = mass_posterior(fitted, test).summaries()
    hit = ((found[:, 2] - truth).abs() < 30).double().mean()
    assert float(hit) > 0.7
    assert abs(float(hit - found[:, 3].mean())) < 0.12


def test_the_mixture_is_a_posterior_like_any_other(wino: Start) -> None:
    mixture, events = wino
    found = mixture_posterior(mixture, events, n_samples=32, seed=6)
    assert tuple(found.samples.shape) == (32, len(events), 8)
    assert bool(mixture.region.contains(found.mass_samples()).all())
    again = mixture_posterior(mixture, events, n_samples=32, seed=6)
    assert torch.equal(found.samples, again.samples)
    pz = found.target("chi20_pz").median(0).values
    # chi20 is h and three jets: its direction is found for most events
    agreement = torch.corrcoef(torch.stack([pz, found.true_target("chi20_pz")]))[0, 1]
    assert float(agreement) > 0.5


def test_a_known_mass_is_a_constant(card: ProcessCard, toy_events: ToyEvents) -> None:
    mixture = mixture_for(card, LINE)
    assert mixture.scheme.names == ("chi10",)
    found = mixture_posterior(mixture, toy_events(10, seed=1), n_samples=8)
    assert bool((found.mass_samples("chi20") == 600).all())
    assert float(found.mass_samples("chi10").std()) > 1


def test_data_without_truth_are_reconstructed(wino: Start) -> None:
    mixture, events = wino
    data = Events(
        card=events.card,
        p4=events.p4,
        present=events.present,
        ptmiss=events.ptmiss,
        weight=events.weight,
        attributes=events.attributes,
    )
    assert mixture_posterior(mixture, data[:5], n_samples=4).truth is None
    with pytest.raises(InputError, match="carry no true masses"):
        fit_mixture(data, PLANE)


def test_events_that_lack_objects_keep_the_prior(wino: Start) -> None:
    mixture, events = wino
    present = events.present[:3].clone()
    present[0, 4:] = False  # a single jet
    present[1, 0] = False  # no lepton
    seen = DetectedEvents(events.p4[:3], present, events.card.slot_kinds, events.ptmiss[:3])
    for backend in ("torch", "auto"):
        found = mixture.posterior(seen, backend=backend)
        summaries = found.summaries()
        assert bool(summaries.isfinite().all())
        assert bool((summaries[:2, -2] == LEAST_EVIDENCE).all())
        assert float(summaries[0, 1]) > 60  # as wide as the prior
        assert bool((found.log_weight[:2, :-1] == -math.inf).all())
        assert bool(
            found.log_prob(torch.tensor([560.0, 200.0]).expand(3, -1).double()).isfinite().all()
        )


def test_summaries_come_in_chunks_and_repeat_themselves(wino: Start) -> None:
    mixture, events = wino
    found = mixture_summaries(mixture, events, chunk=17)
    assert tuple(found.shape) == (len(events), len(summary_names(mixture.scheme.names)))
    assert torch.equal(found, mixture_summaries(mixture, events, chunk=17))
    torch.testing.assert_close(found, mixture_summaries(mixture, events), rtol=1e-6, atol=1e-6)


def test_roles_come_from_the_codes_of_the_card(card: ProcessCard) -> None:
    legs = legs_of(card)
    assert [leg.label for leg in legs.invisible] == ["nu"]
    assert legs.leg_kinds == ("photon", "photon", *["jet"] * 3, "lepton", *["jet"] * 3)


def test_masses_that_cannot_be_computed_are_refused() -> None:
    antler = DecayLegs.of("p p > A A, (A > a B, B > b C)", invisible=["C"])
    with pytest.raises(TopologyError, match="'C' cannot be computed.*C_a, C_b goes unseen"):
        MassScheme.of(antler, {"C": ["C"]})
    with pytest.raises(TopologyError, match="'A' cannot be computed"):
        MassScheme.of(antler, {"A": ["A"]})
    legs = DecayLegs.of(TOP, ["nu"], {"b": "jet", "q": "jet", "l": "lepton"})
    with pytest.raises(TopologyError, match="both known and unknown"):
        MassScheme.of(legs, {"t": ["t"]}, {"t": 172.5})
    with pytest.raises(TopologyError, match="given two masses"):
        MassScheme.of(legs, {"one": ["t"], "two": ["t"]})
    with pytest.raises(TopologyError, match="'x' is not in"):
        MassScheme.of(legs, {"x": ["x"]})


def test_wrong_input_is_refused(card: ProcessCard, toy_events: ToyEvents) -> None:
    with pytest.raises(InputError, match="Unknown mass 'chi30'"):
        mixture_for(card, {"chi30": 1.0})
    with pytest.raises(InputError, match="No mass of 'wino_udd' is unknown"):
        mixture_for(card, {"chi20": 600.0, "chi10": 200.0})
    with pytest.raises(InputError, match="should lie below"):
        MassRegion((500.0,), (400.0,))
    with pytest.raises(InputError, match="should lie below"):
        MassRegion((math.nan,), (400.0,))
    with pytest.raises(InputError, match="The gaps leave no mass point"):
        MassRegion((0.0, 0.0), (1.0, 1.0), (((1.0, -1.0), 5.0),)).inner_point()
    with pytest.raises(InputError, match="ascending"):
        ResponseTable({"jet": ((50, 30), (0.1, 0.1))}, ((1,), (1,)))
    with pytest.raises(InputError, match="positive"):
        ResponseTable({"jet": ((30, 50), (0.1, math.nan))}, ((1,), (1,)))
    with pytest.raises(InputError, match="'kept' should be at least 1"):
        MixtureOptions(kept=0)
    with pytest.raises(InputError, match="'least_weight' above 0"):
        MixtureOptions(least_weight=0.0)
    events = toy_events(4, seed=1)
    mixture = mixture_for(card, PLANE)
    with pytest.raises(ShapeError, match=r"'masses' should have shape \(\.\.\., 4, 2\)"):
        mass_posterior(mixture, events).log_prob(torch.zeros(4, 1))
    with pytest.raises(InputError, match="take a 'marginal' first"):
        mass_posterior(mixture, events).density(torch.zeros(3))
    with pytest.raises(InputError, match="outside the region"):
        prepare(mixture, detected(events), torch.zeros(4, 2).double())
    with pytest.raises(ShapeError, match="'ptmiss' should have shape"):
        DetectedEvents(events.p4, events.present, card.slot_kinds, events.ptmiss[:2])
    with pytest.raises(InputError, match="'epochs'"):
        MixtureFit(epochs=0)
    with pytest.raises(InputError, match="either in 'masses' or with 'start'"):
        fit_mixture(events, PLANE, start=mixture)
    with pytest.raises(InputError, match="There are no events"):
        mixture_posterior(mixture, events[:0])


def test_a_fit_without_any_assignment_says_so(card: ProcessCard, toy_events: ToyEvents) -> None:
    mixture, events = mixture_for(card, PLANE), detected(toy_events(4, seed=1))
    masses = torch.tensor([[600.0, 200.0]] * 4).double()
    renamed = DetectedEvents(
        events.p4, events.present, ("other",) * len(events.kinds), events.ptmiss
    )
    bare = DetectedEvents(events.p4, torch.zeros_like(events.present), events.kinds, events.ptmiss)
    for given in (renamed, bare):
        with pytest.raises(InputError, match=r"None of 4 events .* \(photon, jet, lepton\)"):
            prepare(mixture, given, masses)
        assert bool((mixture.posterior(given).log_evidence == LEAST_EVIDENCE).all())
    with pytest.raises(InputError, match="None of 0 events"):
        prepare(mixture, events[:0], masses[:0])


def test_a_response_may_begin_at_no_momentum() -> None:
    table = ResponseTable({"jet": ((0.0, 50.0), (0.4, 0.1))}, ((1,), (1,)))
    found = table.relative("jet", torch.tensor([0.0, 1e-3, 10.0, 50.0, 80.0]))
    assert found[:2].tolist() == pytest.approx([0.4, 0.4])
    assert 0.1 < float(found[2]) < 0.4
    assert found[3:].tolist() == pytest.approx([0.1, 0.1])


def test_a_density_does_not_depend_on_the_order_of_its_grid(wino: Start) -> None:
    mixture, events = wino
    marginal = mass_posterior(mixture, events[:5]).marginal("chi10")
    grid = torch.linspace(30.0, 570.0, 181, dtype=torch.float64)
    assert float(marginal.density(grid).sum()) > 0
    torch.testing.assert_close(
        marginal.density(grid.flip(0)), marginal.density(grid).flip(1), rtol=1e-4, atol=1e-7
    )


def test_a_fit_starts_from_a_copy_and_repeats_itself(
    card: ProcessCard, toy_events: ToyEvents
) -> None:
    start = mixture_for(card, LINE, options=MixtureOptions(most_objects={"jet": 5}), fitted=False)
    before = [p.clone() for p in start.parameters()]
    events = toy_events(60, seed=2)
    masses = unknown_masses(start, events)
    fits = [
        fit_parameters(start, detected(events), masses, fit=MixtureFit(epochs=1, batch=20))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*(f.parameters() for f in fits), strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(before, fits[0].parameters(), strict=True)]
    assert sum(changed) > len(changed) - 3
