"""Figures of DeeLeMa, and the study behind its notebook."""

from __future__ import annotations

import pytest
import torch

from massrecon.errors import InputError
from massrecon.models.deelema import study
from massrecon.visual import deelema as figures

EPOCHS = [
    {"epoch": 1, "loss": 90.0, "B": 900.0, "A": 1100.0},
    {"epoch": 2, "loss": 9.0, "B": 801.0, "A": 1002.0},
]


def test_heat_maps_hold_counts_and_correlations() -> None:
    true = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)) * 100
    figure = figures.momentum_correlation(true, {"itself": true, "opposite": -true})
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(heats) == 6
    assert all(trace.customdata.sum() <= 500 for trace in heats)
    assert "itself 1.00, 1.00, 1.00; opposite -1.00" in figure.layout.meta["caption"]
    with pytest.raises(InputError, match="at least one method"):
        figures.momentum_correlation(true, {})


def test_mass_distributions_show_shares_and_the_spread() -> None:
    masses = 800 + 10 * torch.randn(1000, generator=torch.Generator().manual_seed(2))
    panel = figures.MassPanel(
        species="B", upper={"side a": masses}, lower={"bound": masses - 100}, truth=800.0
    )
    figure = figures.mass_distributions([panel])
    curves = {trace.name: trace for trace in figure.data}
    assert sum(curves["side a"].y) == pytest.approx(1.0)
    assert f"B, side a: {float(masses.mean()):.1f} ± " in figure.layout.meta["caption"]
    with pytest.raises(InputError, match="at least one species"):
        figures.mass_distributions([])


def test_the_history_draws_masses_and_loss() -> None:
    figure = figures.mass_history(EPOCHS, {"A": 1000.0})
    assert [list(trace.y) for trace in figure.data] == [[900, 801], [1100, 1002], [90, 9]]
    with pytest.raises(InputError, match="empty"):
        figures.mass_history([])


def test_the_live_figure_follows_the_fit() -> None:
    pytest.importorskip("anywidget")
    live = figures.LiveMasses(["B", "A"], {"A": 1000.0})
    for entry in EPOCHS:
        live(entry)
    assert [list(trace.y) for trace in live.figure.data] == [[900, 801], [1100, 1002], [90, 9]]
    live(EPOCHS[0])  # a new fit starts over
    assert list(live.figure.data[0].x) == [1]


def test_dependences_are_relative_to_the_truth() -> None:
    fits = {"ours": [{"A": 1010.0}, {"A": 990.0}]}
    figure = figures.start_dependence([0.0, 1.0], fits, {"A": 1000.0})
    assert list(figure.data[0].y) == pytest.approx([1.0, -1.0])
    shown = figures.contamination_dependence("A", 1000.0, {"ours": [(0.0, 1001.0, 12.0)]})
    assert shown.data[0].error_y.array[0] == 12.0
    with pytest.raises(InputError, match="Nothing to draw"):
        figures.start_dependence([], fits, {"A": 1.0})
    with pytest.raises(InputError, match="empty"):
        figures.contamination_dependence("A", 1000.0, {})


def test_the_scan_names_its_estimate() -> None:
    figure = figures.trial_mass_scan([1.0, 2.0], {"A": [3.0, 1.0]}, (1.8, 1.5, 2.1), 2.0)
    assert "estimate 1.8 GeV, 68 % interval 1.5 to 2.1 GeV" in figure.layout.meta["caption"]
    unknown = figures.trial_mass_scan([1.0, 2.0], {"A": [3.0, 1.0]}, (float("nan"), 1.0, 2.0))
    assert "the mass is not known" in unknown.layout.meta["caption"]
    with pytest.raises(InputError, match="scan at least one"):
        figures.trial_mass_scan([], {})


@pytest.mark.parametrize("test", ["B", "C"])
def test_a_study_runs_from_events_to_resolutions(test: str) -> None:
    fits = list(
        study.run_study(
            test, contaminations=[0.5], n_events=1500, n_test=300, progress=False,
            n_bootstrap=4, starts=[0.3], epochs=2, hidden=16, layers=2, batch_size=256,
            n_toys=6_000,
        )
    )  # fmt: skip
    run = study.TEST_RUNS[test]
    assert len(fits) == 1
    assert fits[0].model.masses == pytest.approx(run.truth, rel=0.005 if test == "B" else 0.05)
    bounds = study.classical_bounds(fits[0].model, fits[0].test)
    low, high = bounds.lower.values()
    good = high.isfinite()
    assert bool((low[good] <= high[good] * (1 + 1e-6)).all())
    rows = {row["variable"]: row for row in study.classical_rows(fits)}
    assert list(rows) == ["MT2(ab)", "M2CC(ab)", "MT2(b)", "M2CC(b)"]
    assert [row["ends at"] for row in rows.values()] == [
        m for m in run.truth.values() for _ in "ab"
    ]
    assert rows["M2CC(b)"]["99 % below"] >= rows["MT2(b)"]["99 % below"]
    assert rows["MT2(b)"]["no solution [%]"] == 0
    found = study.momentum_resolution(fits[0], run.truth)
    assert found["DeeLeMa"]["answered"] == 1.0
    assert 0 < found["M2CC(ab)"]["px"] < 2000
    table = study.text_table([fit.row() for fit in fits])
    assert table.splitlines()[0].split()[:3] == ["contamination", "seed", "start"]


def test_unknown_test_runs_are_named() -> None:
    with pytest.raises(InputError, match="choose from A, B, C"):
        next(study.run_study("D"))
