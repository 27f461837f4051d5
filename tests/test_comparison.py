"""Judging several posteriors: exact, too narrow and shifted ones must be told apart."""

from __future__ import annotations

import json

import pytest

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.inference.comparison import (
    Judgement,
    agreement_table,
    comparison_table,
    coverage,
    judge,
    predicted_efficiency,
)
from massrecon.visual import figures
from tests.test_diagnostics import known_posterior


@pytest.fixture(scope="module")
def judgements(card: ProcessCard) -> dict[str, Judgement]:
    wrong = {"exact": {}, "narrow": {"spread": 0.5}, "shifted": {"shift": 40.0}}
    return {
        name: judge(known_posterior(card, 2000, seed=3, **options), windows=(30,))
        for name, options in wrong.items()
    }


def test_exact_intervals_cover(judgements: dict[str, Judgement]) -> None:
    for found in judgements["exact"].coverage.values():
        for level, value, error in zip(found.levels, found.attained, found.error, strict=True):
            # 64 draws: the ends of an interval are between draws, which widens it a little
            assert value == pytest.approx(level, abs=3.5 * error + 0.01)


def test_narrow_and_shifted_intervals_do_not_cover(judgements: dict[str, Judgement]) -> None:
    for name in ("narrow", "shifted"):
        for found in judgements[name].coverage.values():
            assert found.attained[0] < 0.68 - 5 * found.error[0]


def test_agreement_finds_the_shift(judgements: dict[str, Judgement]) -> None:
    exact, shifted = judgements["exact"], judgements["shifted"]
    for name, found in exact.targets.items():
        assert found.paired is not None
        assert found.paired.p_value > 1e-4
        assert found.sample.wasserstein < 3 * found.sample.wasserstein_noise
        moved = shifted.targets[name].paired
        assert moved is not None
        assert moved.p_value < 1e-4
    assert exact.momenta is not None
    assert shifted.momenta is not None
    assert exact.momenta.accuracy == pytest.approx(0.5, abs=4 * exact.momenta.error)
    assert shifted.momenta.accuracy > 0.5 + 5 * shifted.momenta.error


def test_judgement_is_json_and_a_table(judgements: dict[str, Judgement]) -> None:
    content = json.loads(json.dumps(judgements["exact"].to_dict()))
    assert set(content["coverage"]["chi10"]) == {"0.68", "0.95"}
    assert set(content["agreement"]) == set(judgements["exact"].targets)
    text = comparison_table(judgements, "chi10", 30)
    assert [line.split()[0] for line in text.splitlines()] == ["chi10", *judgements]
    costs = dict.fromkeys(judgements, 3.0)
    text_of_cost = agreement_table(judgements, "chi10", costs, costs)
    wasserstein = judgements["exact"].targets["chi10_m"].sample.wasserstein
    assert f"{wasserstein:.1f}" in text_of_cost.splitlines()[1]
    with pytest.raises(InputError, match="Unknown target of"):
        agreement_table(judgements, "chi99", costs, costs)
    value, error = predicted_efficiency(judgements["exact"].efficiency, "chi10", 30)
    assert f"{100 * value:.1f} ±  {100 * error:.1f}" in text


def test_bad_input_is_refused(card: ProcessCard, judgements: dict[str, Judgement]) -> None:
    with pytest.raises(InputError, match="at least two draws"):
        judge(known_posterior(card, 100, n_draws=1))
    with pytest.raises(InputError, match="Unknown mass"):
        coverage(known_posterior(card, 100), "chi99")
    with pytest.raises(InputError, match="'judgements' is empty"):
        figures.efficiencies_compared({}, "chi10")
    with pytest.raises(InputError, match="does not vary"):
        figures.coverage_compared(judgements, "chi99")


def test_figures_show_every_model(card: ProcessCard, judgements: dict[str, Judgement]) -> None:
    efficiencies = figures.efficiencies_compared(judgements, "chi10").to_dict()
    names = [trace["name"] for trace in efficiencies["data"]]
    assert names == ["draw", "mean", "median", "window", "predicted by the posterior itself"]
    expected = [100 * j.efficiency.at("chi10", "window", 30)[0] for j in judgements.values()]
    assert list(efficiencies["data"][3]["y"]) == pytest.approx(expected)
    covered = figures.coverage_compared(judgements, "chi10").to_dict()
    assert [len(trace["y"]) for trace in covered["data"]] == [3, 3]
    agreed = figures.agreement_compared(judgements, card).to_dict()
    assert len(agreed["data"]) == len(judgements["exact"].targets) + 1
    for figure in (efficiencies, covered, agreed):
        assert list(figure["layout"]["xaxis"]["ticktext"]) == list(judgements)
        assert figure["layout"]["meta"]["caption"]
