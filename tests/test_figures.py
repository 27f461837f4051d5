"""Figures by their data: traces, errors, labels and captions; offline and small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.inference.diagnostics import efficiency
from massrecon.inference.posterior import Posterior
from massrecon.inference.tables import EfficiencyTable
from massrecon.visual import figures
from massrecon.visual.template import COLOURS, DASHES, MARKERS

HISTORY = {
    "records": [
        {"step": 100, "seconds": 5.0, "train_loss": 1.0, "validation_loss": 0.9,
         "metrics": {"chi10 within 30 GeV": 0.2}},
        {"step": 200, "seconds": 10.0, "train_loss": 0.3, "validation_loss": 0.25,
         "metrics": {"chi10 within 30 GeV": 0.4}},
        {"step": 300, "seconds": 15.0, "train_loss": 0.2, "validation_loss": 0.28, "metrics": {}},
    ],
}  # fmt: skip


def toy_posterior(card: ProcessCard, n_events: int = 400, fixed: bool = True) -> Posterior:
    """Draws of width 20 GeV around a shifted truth; m(chi20) fixed, m(chi10) in blocks of 4."""
    generator = torch.Generator().manual_seed(0)
    truth = 100 * torch.randn(n_events, 8, generator=generator, dtype=torch.float64)
    m1 = 50 + 400 * torch.rand(n_events // 4, generator=generator, dtype=torch.float64)
    truth[:, 7] = m1.repeat_interleave(4)
    truth[:, 3] = 600.0 if fixed else truth[:, 7] + 200
    centre = truth + 20 * torch.randn(n_events, 8, generator=generator, dtype=torch.float64)
    draws = 20 * torch.randn(16, n_events, 8, generator=generator, dtype=torch.float64)
    return Posterior(centre + draws, card, truth, truth[:, [3, 7]])


@pytest.fixture(scope="module")
def posterior(card: ProcessCard) -> Posterior:
    return toy_posterior(card)


@pytest.fixture(scope="module")
def table(posterior: Posterior) -> EfficiencyTable:
    return efficiency(posterior)


@pytest.fixture(scope="module")
def all_figures(posterior: Posterior, table: EfficiencyTable) -> dict[str, go.Figure]:
    return {
        "truth_against_generated": figures.truth_against_generated(posterior),
        "efficiency_curve": figures.efficiency_curve(table),
        "predicted_against_true": figures.predicted_against_true(posterior),
        "training_curve": figures.training_curve(HISTORY),
        "event_posteriors": figures.event_posteriors(posterior),
        "self_consistency": figures.self_consistency(table),
    }


def named(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def axis_titles(figure: go.Figure) -> list[str]:
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    return [axis.title.text for axis in axes if axis.title.text]


def test_every_figure_has_the_house_style_a_caption_and_a_small_size(
    all_figures: dict[str, go.Figure],
) -> None:
    assert set(all_figures) <= set(figures.__all__)
    for name, figure in all_figures.items():
        caption = figure.layout.meta["caption"]
        assert len(caption) > 40, name
        assert "\n" not in caption, name
        assert figure.layout.template.layout.xaxis.mirror == "allticks", name
        text = figure.to_json()
        assert len(text) < 300_000, name
        assert "$" not in text, f"{name} needs LaTeX, which is not there offline"


def test_labels_carry_symbols_and_units(all_figures: dict[str, go.Figure]) -> None:
    neutralino = "<i>m</i>(χ̃<sub>1</sub><sup>0</sup>)"
    assert f"{neutralino} [GeV]" in axis_titles(all_figures["truth_against_generated"])
    assert f"true {neutralino} [GeV]" in axis_titles(all_figures["efficiency_curve"])
    assert f"efficiency for {neutralino} [%]" in axis_titles(all_figures["efficiency_curve"])
    assert f"estimated {neutralino} [GeV]" in axis_titles(all_figures["predicted_against_true"])
    assert f"{neutralino} [GeV]" in axis_titles(all_figures["event_posteriors"])
    assert "predicted efficiency [%]" in axis_titles(all_figures["self_consistency"])
    assert "optimiser step" in axis_titles(all_figures["training_curve"])


def test_curves_differ_in_colour_and_in_a_second_code() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
    assert len(set(MARKERS)) == len(COLOURS)
    assert len(set(zip(COLOURS, DASHES, strict=True))) == len(COLOURS)


def test_all_eight_targets_are_compared(
    posterior: Posterior, all_figures: dict[str, go.Figure]
) -> None:
    figure = all_figures["truth_against_generated"]
    assert len(named(figure, "truth")) == 8
    assert len(named(figure, "generated")) == 8
    ratios = named(figure, "generated / truth")
    assert len(ratios) == 7  # a fixed mass has no ratio
    targets = [t for t in axis_titles(figure) if t.endswith("[GeV]")]
    assert len(set(targets)) == 8
    notes = [note.text for note in figure.layout.annotations]
    assert sum(note.startswith("χ²/dof = ") for note in notes) == 7
    assert "truth fixed at 600 GeV" in notes
    truth, generated = named(figure, "truth")[0], named(figure, "generated")[0]
    edges, heights = np.asarray(truth.x)[::2], np.asarray(truth.y)[::2]
    counts, _ = np.histogram(posterior.true_target("chi20_px"), np.append(edges, truth.x[-1]))
    np.testing.assert_allclose(heights, counts / 400)
    draws, _ = np.histogram(posterior.target("chi20_px"), np.append(edges, truth.x[-1]))
    np.testing.assert_allclose(generated.y, draws / (16 * 400))
    np.testing.assert_allclose(
        np.asarray(ratios[0].y), np.clip(generated.y / np.where(counts, heights, np.nan), 0.5, 1.5)
    )
    assert bool((np.asarray(generated.error_y.array) > 0).any())


def test_ratios_outside_the_panel_are_arrows(all_figures: dict[str, go.Figure]) -> None:
    for trace in named(all_figures["truth_against_generated"], "generated / truth"):
        y, symbol = np.asarray(trace.y), np.asarray(trace.marker.symbol)
        assert bool((symbol[y == 1.5] == "triangle-up").all())
        assert bool((symbol[y == 0.5] == "triangle-down").all())


def test_one_draw_and_few_events_can_be_shown(card: ProcessCard) -> None:
    small = toy_posterior(card, 8)
    one = Posterior(small.samples[:1], card, small.truth, small.masses)
    assert len(named(figures.truth_against_generated(one), "generated")) == 8
    assert len(named(figures.event_posteriors(one, [0]), "posterior")) == 2


def test_the_efficiency_curve_shows_the_table(table: EfficiencyTable) -> None:
    figure = figures.efficiency_curve(table, "chi10", "median", windows=(10, 30))
    curve = named(figure, "within 30 GeV")[0]
    points = table.points["chi10"]
    np.testing.assert_allclose(curve.x, points.points.value)
    np.testing.assert_allclose(curve.y, 100 * points.rates.value[1, 2, 2])
    np.testing.assert_allclose(
        np.add(curve.y, curve.error_y.array), 100 * points.rates.high[1, 2, 2]
    )
    np.testing.assert_allclose(
        np.subtract(curve.y, curve.error_y.arrayminus), 100 * points.rates.low[1, 2, 2]
    )
    line = named(figure, "no skill, within 30 GeV")[0]
    np.testing.assert_allclose(line.y, 100 * float(table.no_skill.rates.value[1, 2]))
    assert max(line.error_y.array) == pytest.approx(100 * float(table.no_skill.rates.error[1, 2]))
    assert not named(figure, "within 20 GeV")


def test_a_fixed_mass_is_drawn_against_the_one_that_varies(table: EfficiencyTable) -> None:
    titles = axis_titles(figures.efficiency_curve(table, "chi20"))
    assert titles[0] == "true <i>m</i>(χ̃<sub>1</sub><sup>0</sup>) [GeV]"
    assert "efficiency for <i>m</i>(χ̃<sub>2</sub><sup>0</sup>) [%]" in titles


def test_predicted_against_true_counts_events_and_profiles_them(posterior: Posterior) -> None:
    figure = figures.predicted_against_true(posterior, "chi10", "mean", bins=4)
    heat = next(trace for trace in figure.data if isinstance(trace, go.Heatmap))
    assert 0.97 * 400 < np.sum(heat.z) <= 400
    direct, residual = named(figure, "median and 68 % of estimates")
    estimate = posterior.estimate("mean")[:, 1]
    truth = posterior.true_masses()[:, 1]
    first = truth < truth.min() + (truth.max() - truth.min()) / 4
    assert direct.y[0] == pytest.approx(float(estimate[first].quantile(0.5)), abs=2)
    np.testing.assert_allclose(np.subtract(direct.y, direct.x), residual.y)
    np.testing.assert_allclose(direct.error_y.array, residual.error_y.array)
    assert len(direct.x) == 4


@pytest.mark.parametrize("mass", ["chi20", "chi10"])
def test_predicted_against_true_on_a_grid_of_masses(card: ProcessCard, mass: str) -> None:
    masses = torch.tensor([[500.0, 100.0], [500.0, 200.0], [500.0, 350.0]]).double().repeat(40, 1)
    samples = torch.randn(4, 120, 8, generator=torch.Generator().manual_seed(1)).double()
    samples[..., [3, 7]] += masses
    figure = figures.predicted_against_true(Posterior(samples, card, masses=masses), mass)
    heat = next(trace for trace in figure.data if isinstance(trace, go.Heatmap))
    distinct = {"chi20": 1, "chi10": 3}[mass]
    assert len(heat.x) == distinct + 1
    assert len(named(figure, "median and 68 % of estimates")[0].x) == distinct


def test_the_training_curve_marks_the_best_step() -> None:
    figure = figures.training_curve(HISTORY)
    assert list(named(figure, "training")[0].y) == [1.0, 0.3, 0.2]
    assert list(named(figure, "validation")[0].y) == [0.9, 0.25, 0.28]
    assert list(named(figure, "chi10 within 30 GeV")[0].y) == [0.2, 0.4, None]
    assert {shape.x0 for shape in figure.layout.shapes} == {200}
    assert "best: step 200" in [note.text for note in figure.layout.annotations]
    chosen = figures.training_curve({**HISTORY, "best_step": 300})
    assert {shape.x0 for shape in chosen.layout.shapes} == {300}
    assert figure.layout.yaxis.type == "log"
    assert {0.2, 0.5, 1.0} <= set(figure.layout.yaxis.tickvals)


def test_a_training_without_metrics_has_one_panel() -> None:
    record = {"step": 10, "train_loss": 1.0, "validation_loss": None}
    figure = figures.training_curve({"records": [record]})
    assert len(list(figure.select_yaxes())) == 1


def test_event_posteriors_show_density_interval_and_truth(posterior: Posterior) -> None:
    figure = figures.event_posteriors(posterior, [3, 8])
    curves = named(figure, "posterior")
    assert len(curves) == 4
    for curve in curves:
        assert np.trapezoid(curve.y, curve.x) == pytest.approx(1, abs=0.02)
    lines = named(figure, "truth")
    truth = posterior.true_masses()[[3, 8]].T.flatten().tolist()
    assert [line.x[0] for line in lines] == pytest.approx(truth)
    shaded = named(figure, "central 68 %")
    interval = posterior.interval()[[3, 8]].transpose(0, 1).reshape(4, 2)
    for area, (low, high) in zip(shaded, interval.tolist(), strict=True):
        assert low <= min(area.x) < max(area.x) <= high


def test_event_posteriors_of_data_have_no_truth_line(posterior: Posterior) -> None:
    data = Posterior(posterior.samples, posterior.card)
    figure = figures.event_posteriors(data, [0])
    assert not named(figure, "truth")
    assert "truth" not in figure.layout.meta["caption"]


def test_self_consistency_shows_the_table(table: EfficiencyTable) -> None:
    figure = figures.self_consistency(table)
    own = table.self_consistency
    assert own is not None
    direct, difference = named(figure, "<i>m</i>(χ̃<sub>1</sub><sup>0</sup>)")
    np.testing.assert_allclose(direct.x, 100 * own.predicted[1])
    np.testing.assert_allclose(direct.y, 100 * own.attained[1])
    np.testing.assert_allclose(difference.y, 100 * (own.attained[1] - own.predicted[1]), atol=1e-9)
    np.testing.assert_allclose(difference.error_y.array, 100 * own.difference_error[1])


Draw = Callable[[Posterior, EfficiencyTable], go.Figure]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda p, t: figures.efficiency_curve(t, "chi30"), "Unknown mass 'chi30'.*chi20, chi10"),
        (lambda p, t: figures.efficiency_curve(t, "chi10", "mode"), "Unknown estimator 'mode'"),
        (lambda p, t: figures.efficiency_curve(t, windows=(15,)), "Unknown window '15'"),
        (lambda p, t: figures.efficiency_curve(t, axis="chi30"), "Unknown mass 'chi30'"),
        (lambda p, t: figures.predicted_against_true(p, "m1"), "Unknown mass 'm1'"),
        (lambda p, t: figures.predicted_against_true(p, "chi10", "x"), "Unknown estimator 'x'"),
        (lambda p, t: figures.predicted_against_true(p[[]]), "holds no events"),
        (lambda p, t: figures.truth_against_generated(p[[]]), "holds no events"),
        (lambda p, t: figures.truth_against_generated(p, n_bins=1), "'n_bins' should be at least"),
        (
            lambda p, t: figures.truth_against_generated(Posterior(p.samples, p.card)),
            "carries no truth",
        ),
        (lambda p, t: figures.event_posteriors(p, [400]), "no event 400: .* has 400 events"),
        (lambda p, t: figures.event_posteriors(p, []), "should name 1 to 12 events, got 0"),
        (lambda p, t: figures.training_curve({"records": []}), "'history' has no records"),
        (
            lambda p, t: figures.self_consistency(
                efficiency(Posterior(p.samples[:1], p.card, p.truth))
            ),
            "needs at least two draws",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    posterior: Posterior, table: EfficiencyTable, draw: Draw, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw(posterior, table)
