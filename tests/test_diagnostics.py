"""Diagnostics against closed forms, and on posteriors that are wrong on purpose."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.card import ProcessCard
from massrecon.inference.diagnostics import efficiency
from massrecon.inference.posterior import Posterior
from massrecon.inference.resolution import mass_resolution, weighted_quantile
from massrecon.inference.statistics import (
    clusters,
    effective_size,
    mass_points,
    mean_with_error,
    wilson,
)
from massrecon.inference.twosample import agreement, bin_shares, c2st, paired_agreement

PRIOR_MEAN = torch.tensor([0, 0, 0, 600, 0, 0, 0, 250], dtype=torch.float64)
PRIOR_WIDTH = torch.tensor([150, 150, 400, 60, 100, 100, 300, 80], dtype=torch.float64)
NOISE = torch.tensor([60, 60, 150, 20, 60, 60, 150, 30], dtype=torch.float64)
PULL = PRIOR_WIDTH**2 / (PRIOR_WIDTH**2 + NOISE**2)
POSTERIOR_WIDTH = PULL.sqrt() * NOISE


def known_posterior(
    card: ProcessCard,
    n_events: int,
    n_draws: int = 64,
    seed: int = 0,
    *,
    spread: float = 1.0,
    shift: float = 0.0,
    block: int = 1,
) -> Posterior:
    """Makes the exact posterior of a Gaussian prior and measurement, or one wrong on purpose.

    `spread` scales the width of the draws (below one: over-confident), `shift` moves them [GeV],
    and `block` events in a row share their true masses.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = PRIOR_MEAN + PRIOR_WIDTH * normal(n_events, 8)
    truth[:, [3, 7]] = truth[::block][:, [3, 7]].repeat_interleave(block, 0)[:n_events]
    mean = PRIOR_MEAN + PULL * (truth + NOISE * normal(n_events, 8) - PRIOR_MEAN)
    samples = mean + shift + spread * POSTERIOR_WIDTH * normal(n_draws, n_events, 8)
    return Posterior(samples, card, truth, truth[:, [3, 7]])


def test_efficiencies_of_a_gaussian_posterior_follow_the_closed_forms(card: ProcessCard) -> None:
    table = efficiency(known_posterior(card, 6000))
    for mass, sigma in (("chi20", POSTERIOR_WIDTH[3]), ("chi10", POSTERIOR_WIDTH[7])):
        for w in (10, 20, 30, 50):
            one_draw, best = math.erf(w / (2 * sigma)), math.erf(w / (math.sqrt(2) * sigma))
            value, error = table.at(mass, "draw", w)
            assert abs(value - one_draw) < 4 * error, (mass, w)
            for name in ("mean", "median", "window"):
                value, error = table.at(mass, name, w)
                # 64 draws know the centre to σ/8: at most 4 % of the efficiency is lost
                assert 0.95 * best - 3 * error < value < best + 4 * error, (mass, name, w)


def test_errors_are_binomial_and_never_vanish(card: ProcessCard) -> None:
    table = efficiency(known_posterior(card, 1000), windows=(20, 500))
    value, error = table.at("chi10", "mean", 20)
    assert error == pytest.approx(math.sqrt(value * (1 - value) / 1000), rel=0.01)
    value, error = table.at("chi10", "mean", 500)
    assert value == 1
    assert 0 < error < 0.001


def test_no_skill_of_a_gaussian_prior(card: ProcessCard) -> None:
    table = efficiency(known_posterior(card, 6000, 4), estimators=("draw",))
    for i, sigma in enumerate(PRIOR_WIDTH[[3, 7]]):
        for k, w in enumerate(table.windows):
            expected = math.erf(w / (math.sqrt(2) * sigma))
            rate, error = table.no_skill.rates.value[i, k], table.no_skill.rates.error[i, k]
            assert abs(rate - expected) < 4 * error
            assert abs(table.no_skill.constant[i, k] - PRIOR_MEAN[[3, 7]][i]) < 0.6 * sigma


def test_the_constant_agrees_with_a_search_over_all_constants(card: ProcessCard) -> None:
    full = known_posterior(card, 300, 2)
    weight = torch.rand(300, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    posterior = Posterior(full.samples, card, full.truth, full.masses, weight)
    table = efficiency(posterior, windows=(30,), estimators=("draw",))
    truth = full.true_masses()[:, 1]

    def weight_within(constants: Tensor) -> Tensor:
        return (((truth - constants[:, None]).abs() < 30) * weight).sum(1)

    best = weight_within(torch.arange(0, 600, 0.05, dtype=torch.float64)).max()
    assert weight_within(table.no_skill.constant[1]) == pytest.approx(float(best), abs=1e-9)


def test_no_skill_does_not_follow_the_fluctuations_of_few_mass_points(card: ProcessCard) -> None:
    rates = []
    for seed in range(20):
        blocks = known_posterior(card, 600, 2, seed, block=20)
        table = efficiency(blocks, windows=(10,), estimators=("draw",))
        rates.append(float(table.no_skill.rates.value[1, 0]))
    expected = math.erf(10 / (math.sqrt(2) * 80))
    mean, error = torch.tensor(rates).mean(), torch.tensor(rates).std() / math.sqrt(20)
    # chosen on the same 30 points it would be about twice this
    assert expected - 0.03 - 3 * error < mean < expected + 3 * error


def test_no_skill_knows_that_events_of_a_block_share_their_masses(card: ProcessCard) -> None:
    single = efficiency(known_posterior(card, 4000, 2), windows=(30,), estimators=("draw",))
    blocks = known_posterior(card, 4000, 2, block=50)
    blocked = efficiency(blocks, windows=(30,), estimators=("draw",))
    ratio = blocked.no_skill.rates.error[1, 0] / single.no_skill.rates.error[1, 0]
    assert ratio == pytest.approx(math.sqrt(50), rel=0.25)


def test_a_calibrated_posterior_predicts_its_own_efficiency(card: ProcessCard) -> None:
    for block in (1, 20):
        own = efficiency(known_posterior(card, 4000, 32, block=block)).self_consistency
        assert own is not None
        assert float(own.pull.abs().max()) < 3.5


def test_a_few_draws_do_not_bias_self_consistency(card: ProcessCard) -> None:
    own = efficiency(known_posterior(card, 6000, 4, seed=3)).self_consistency
    assert own is not None
    assert float(own.pull.abs().max()) < 3.5


def test_over_confidence_shows_as_predicted_above_attained(card: ProcessCard) -> None:
    own = efficiency(known_posterior(card, 3000, spread=0.6)).self_consistency
    assert own is not None
    assert float(own.pull.min()) > 5


def test_under_confidence_shows_as_attained_above_predicted(card: ProcessCard) -> None:
    own = efficiency(known_posterior(card, 3000, spread=1.6)).self_consistency
    assert own is not None
    assert float(own.pull.max()) < -5


def test_one_draw_has_no_self_consistency(card: ProcessCard) -> None:
    table = efficiency(known_posterior(card, 50, 1))
    assert table.self_consistency is None
    assert table.to_dict()["self_consistency"] == {"chi20": {}, "chi10": {}}
    assert "predicted" not in str(table)


def test_integer_weights_equal_repeated_events(card: ProcessCard) -> None:
    full = known_posterior(card, 800, 16)
    weight = 1 + (torch.arange(800) % 3)
    weighted = Posterior(full.samples, card, full.truth, full.masses, weight.double())
    a = efficiency(weighted)
    b = efficiency(full[torch.arange(800).repeat_interleave(weight)])
    torch.testing.assert_close(a.overall.value, b.overall.value)
    torch.testing.assert_close(a.no_skill.rates.value, b.no_skill.rates.value)
    torch.testing.assert_close(a.self_consistency.predicted, b.self_consistency.predicted)
    assert a.n_effective == pytest.approx(float(weight.sum() ** 2 / (weight**2).sum()))
    assert bool((a.overall.error > b.overall.error).all())
    assert "weighted: equivalent to" in str(a)


def test_efficiency_by_point_of_a_mass_grid(card: ProcessCard) -> None:
    """Draws 15 GeV off at m = 200 only: no event there is within 10, all are elsewhere."""
    masses = torch.tensor([[600, 100], [600, 200], [600, 300]], dtype=torch.float64)
    masses = masses.repeat(5, 1)
    samples = torch.zeros(4, 15, 8, dtype=torch.float64)
    samples[..., [3, 7]] = masses
    samples[:, 1::3, 7] += 15
    table = efficiency(Posterior(samples, card, masses=masses), windows=(10, 20))
    points = table.points["chi10"]
    assert points.points.value.tolist() == [100, 200, 300]
    assert points.points.edges is None
    assert points.n_events.tolist() == [5, 5, 5]
    assert points.rates.value[1, 3, 0].tolist() == [1, 0, 1]
    assert points.rates.value[1, 3, 1].tolist() == [1, 1, 1]
    assert table.points["chi20"].points.value.tolist() == [600]
    assert table.at("chi10", "window", 10)[0] == pytest.approx(2 / 3)


def test_efficiency_by_bin_of_a_continuous_mass(card: ProcessCard) -> None:
    posterior = known_posterior(card, 900, 8)
    table = efficiency(posterior, bins={"chi10": [150, 250, 350]})
    points = table.points["chi10"]
    truth = posterior.true_masses()[:, 1]
    inside = [(truth >= a) & (truth < a + 100) for a in (150, 250)]
    assert points.n_events.tolist() == [int(rows.sum()) for rows in inside]
    hit = (posterior.estimate("median")[:, 1] - truth).abs() < 20
    expected = [float(hit[rows].double().mean()) for rows in inside]
    assert points.rates.value[1, 2, 1].tolist() == pytest.approx(expected)
    assert len(efficiency(posterior, bins=5).points["chi20"].points) == 5


def test_the_table_can_be_read_and_kept(card: ProcessCard) -> None:
    table = efficiency(known_posterior(card, 400, 8), windows=(10, 30))
    lines = str(table).splitlines()
    assert "400 events" in lines[0]
    blocks = [line for line in lines if line.startswith("m(")]
    assert blocks[0].split() == ["m(chi20)", "10", "GeV", "30", "GeV"]
    rows = [line for line in lines if line.startswith("  ")]
    assert len(rows) == 2 * 7
    assert len({len(line) for line in rows}) == 1  # aligned
    value, error = table.at("chi20", "draw", 10)
    assert rows[0].split()[:4] == ["draw", f"{100 * value:.1f}", "±", f"{100 * error:.1f}"]
    kept = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert kept["efficiency"]["chi20"]["draw"]["10"] == {"value": value, "error": error}
    assert set(kept["no_skill"]["chi10"]) == {"10", "30"}
    assert {"predicted", "attained"} <= set(kept["self_consistency"]["chi10"]["30"])
    assert len(kept["points"]["chi10"]["efficiency"]["chi20"]["window"]["30"]["value"]) == 8


def test_efficiency_refuses_what_makes_no_sense(card: ProcessCard) -> None:
    posterior = known_posterior(card, 20, 2)
    with pytest.raises(InputError, match="carries no truth"):
        efficiency(Posterior(posterior.samples, card))
    with pytest.raises(InputError, match="holds no events"):
        efficiency(posterior[[]])
    with pytest.raises(InputError, match="'windows' should be positive half-widths"):
        efficiency(posterior, windows=(10, -1))
    with pytest.raises(InputError, match="'estimators' is empty: choose from draw"):
        efficiency(posterior, estimators=())
    with pytest.raises(InputError, match="Unknown estimator 'modus'"):
        efficiency(posterior, estimators=("modus",))
    with pytest.raises(InputError, match="bin edges of 'chi10' should rise"):
        efficiency(posterior, bins={"chi10": [3, 2]})
    with pytest.raises(InputError, match="'bins' should be at least 1"):
        efficiency(posterior, bins=0)
    table = efficiency(posterior)
    with pytest.raises(InputError, match="Unknown mass 'chi30'.*chi20, chi10"):
        table.at("chi30", "draw", 10)
    with pytest.raises(InputError, match="Unknown window '15': choose from 10, 20, 30, 50"):
        table.at("chi10", "draw", 15)


def test_wilson_intervals_cover() -> None:
    """On average over p: for a single p the coverage jumps with the whole numbers of hits."""
    generator = torch.Generator().manual_seed(9)
    p, n = torch.rand(40_000, generator=generator), torch.tensor(100.0)
    rates = wilson(torch.binomial(n.expand(40_000), p, generator=generator) / n, n)
    covered = float(((rates.low <= p) & (p <= rates.high)).double().mean())
    assert covered == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)


def test_effective_size_and_errors_of_weighted_means() -> None:
    assert float(effective_size(torch.full((7,), 3.0))) == pytest.approx(7)
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    mean, error = mean_with_error(values, torch.ones(4), torch.arange(4))
    assert float(mean) == 3
    assert float(error) == pytest.approx(float(values.std()) / 2)
    pairs, pair_error = mean_with_error(
        values.repeat_interleave(2), torch.ones(8), torch.arange(4).repeat_interleave(2)
    )
    assert (float(pairs), float(pair_error)) == pytest.approx((3, float(error)))


def test_a_grid_of_masses_is_no_cluster_and_a_continuum_is() -> None:
    grid = torch.tensor([[600.0, 100.0], [600.0, 200.0]]).repeat(30, 1)
    assert len(clusters(grid).unique()) == 60
    continuum = torch.rand(30, 1).repeat_interleave(4, 0)
    assert len(clusters(continuum).unique()) == 30


def test_mass_points_hold_every_event_once() -> None:
    truth = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 400
    points = mass_points("chi10", truth, 7)
    assert int(points.total(torch.ones(500)).sum()) == 500
    assert len(points) == 7


def test_bias_and_resolution_of_known_draws(card: ProcessCard) -> None:
    posterior = known_posterior(card, 20_000, 1, shift=12.0)
    table = mass_resolution(posterior, "chi10", "draw", bins={"chi10": [240, 260]})
    # near the centre of the prior: draw − truth = 12 + noise through the pull + posterior spread
    width = math.sqrt(float((PULL[7] * NOISE[7]) ** 2 + POSTERIOR_WIDTH[7] ** 2))
    assert abs(float(table.bias) - 12) < 4 * float(table.bias_error)
    # the central 68 % of a Gaussian end at 0.994 σ
    assert abs(float(table.resolution) - 0.994 * width) < 4 * float(table.resolution_error)
    expected = 1.2533 * width / math.sqrt(int(table.n_events))
    assert float(table.bias_error) == pytest.approx(expected, rel=0.3)
    json.dumps(table.to_dict(), allow_nan=False)


def test_an_empty_bin_has_no_resolution(card: ProcessCard) -> None:
    table = mass_resolution(known_posterior(card, 20, 4), "chi20", bins={"chi20": [0, 1, 2000]})
    assert table.n_events.tolist() == [0, 20]
    assert table.to_dict()["bias"][0] is None
    with pytest.raises(InputError, match="Unknown mass 'chi2'"):
        mass_resolution(known_posterior(card, 20, 4), "chi2")


def test_weighted_quantiles_equal_those_of_repeated_values() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = 1.0 + (torch.arange(4000) % 3)
    levels = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
    repeated = values.repeat_interleave(weight.long()).quantile(levels)
    torch.testing.assert_close(
        weighted_quantile(values, weight.double(), levels), repeated, rtol=0, atol=0.01
    )


def normal(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()


def test_agreement_accepts_samples_of_one_law() -> None:
    results = [agreement(normal(800, 2 * i), normal(1200, 2 * i + 1)) for i in range(100)]
    assert sum(r.chi_square.per_dof for r in results) / 100 == pytest.approx(1, abs=0.12)
    for p_values in ([r.chi_square.p_value for r in results], [r.ks_p_value for r in results]):
        assert sum(p < 0.1 for p in p_values) <= 20
        assert sum(p_values) / 100 == pytest.approx(0.5, abs=0.12)
    ratio = sum(r.wasserstein for r in results) / sum(r.wasserstein_noise for r in results)
    assert ratio == pytest.approx(1, abs=0.1)


def test_agreement_refuses_shifted_samples() -> None:
    result = agreement(normal(2000, 1), normal(2000, 2, shift=0.3))
    assert result.chi_square.p_value < 1e-6
    assert result.ks_p_value < 1e-6
    assert result.wasserstein == pytest.approx(0.3, abs=4 * 1 / math.sqrt(1000))
    assert result.wasserstein > 5 * result.wasserstein_noise


def test_agreement_of_samples_that_hardly_overlap() -> None:
    """The last bins hold values of one sample only."""
    low, high = torch.linspace(0, 1, 40).double(), torch.linspace(0.9, 9, 90).double()
    for truth, generated in ((low, high), (high, low)):
        assert agreement(truth, generated).chi_square.p_value < 1e-6


def test_agreement_counts_weights() -> None:
    a, b = normal(1000, 1), normal(1500, 2)
    double = agreement(a, b, truth_weight=torch.full((1000,), 2.0), generated_weight=None)
    plain = agreement(a, b)
    assert double.ks == pytest.approx(plain.ks)
    assert double.chi_square.value == pytest.approx(plain.chi_square.value)
    tilted = agreement(a, b, truth_weight=torch.exp(0.5 * a))  # moves the mean to 0.5
    assert tilted.wasserstein == pytest.approx(0.5, abs=0.15)


def test_agreement_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ShapeError, match=r"'truth' should have shape \(N,\), got \(2, 2\)"):
        agreement(torch.zeros(2, 2), torch.zeros(4))
    with pytest.raises(ShapeError, match="'generated_weight' should have shape"):
        agreement(torch.zeros(4), torch.zeros(4), generated_weight=torch.ones(3))
    with pytest.raises(InputError, match="'generated' should hold at least two finite values"):
        agreement(torch.zeros(4), torch.tensor([1.0, torch.nan]))
    with pytest.raises(InputError, match="'n_bins' should be at least 2"):
        agreement(torch.zeros(4), torch.zeros(4), n_bins=1)


@pytest.mark.parametrize("block", [1, 20])
def test_paired_agreement_accepts_a_calibrated_posterior(card: ProcessCard, block: int) -> None:
    tests = []
    for seed in range(60):
        posterior = known_posterior(card, 1600, 8, seed=seed, block=block)
        group = clusters(posterior.true_masses())
        truth = posterior.true_target("chi10_m")
        tests.append(paired_agreement(truth, posterior.target("chi10_m"), group=group))
    assert sum(t.per_dof for t in tests) / 60 == pytest.approx(1, abs=0.2)
    assert sum(t.p_value < 0.05 for t in tests) <= 9


def test_paired_agreement_refuses_a_shifted_posterior(card: ProcessCard) -> None:
    posterior = known_posterior(card, 2000, 16, shift=8.0)
    test = paired_agreement(posterior.true_target("chi10_px"), posterior.target("chi10_px"))
    assert test is not None
    assert test.p_value < 1e-4


def test_paired_agreement_is_silent_without_variation() -> None:
    samples = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    assert paired_agreement(torch.full((200,), 600.0), samples) is None
    assert paired_agreement(samples[0, :10], samples[:, :10]) is None


def test_bin_shares_add_up() -> None:
    samples = torch.tensor([[0.5, 5.0], [1.5, -3.0]])
    shares = bin_shares(samples, torch.tensor([0.0, 1.0, 2.0]))
    assert shares.tolist() == [[0, 0.5, 0.5, 0], [0.5, 0, 0, 0.5]]


def test_c2st_tells_samples_apart_only_where_they_differ() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 3000, 4, generator=generator)
    same = c2st(a, b, seed=1)
    assert same.n_events == 6000
    assert abs(same.accuracy - 0.5) < 4 * same.error
    assert same.error == pytest.approx(0.5 / math.sqrt(6000), rel=0.01)
    shifted = c2st(a, b + torch.tensor([1.0, 0, 0, 0]), seed=1)
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))  # of any classifier
    assert shifted.accuracy > 0.6
    assert best - 0.03 < shifted.accuracy < best + 4 * shifted.error


def test_c2st_repeats_with_its_seed_and_refuses_nonsense() -> None:
    a, b = torch.randn(2, 100, 2, generator=torch.Generator().manual_seed(4))
    assert c2st(a, b, seed=2) == c2st(a, b, seed=2)
    with pytest.raises(ShapeError, match="equal columns, got 2 and 1"):
        c2st(a, b[:, :1])
    with pytest.raises(InputError, match="needs 20 events of each sample, got 5"):
        c2st(a, b[:5])
    with pytest.raises(InputError, match="should be finite"):
        c2st(a, torch.full_like(b, torch.nan))
