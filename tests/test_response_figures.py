"""Figures of the detector: what they draw, with errors, from a sample made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from massrecon.events.performance import Matches, Performance
from massrecon.runs.notebooks import run_notebook
from massrecon.visual import figures

N = 4_000


@pytest.fixture(scope="module")
def sample() -> Performance:
    """Objects measured to 3 % and found 80 % of the time; jets to 10 % and always."""
    rng = np.random.default_rng(5)

    def matches(kinds: list[int], width: float, rate: float) -> Matches:
        pt = np.exp(rng.uniform(np.log(21), np.log(480), N))
        measured = pt * (1 + width * rng.standard_normal(N)) * (rng.random(N) < rate)
        return Matches(rng.choice(kinds, N), pt, rng.uniform(-4, 4, N), measured)

    return Performance(
        objects=matches([11, 13, 22], 0.03, 0.8),
        jets=matches([0], 0.10, 1.0),
        ptmiss=20.0 * rng.standard_normal((N, 2)),
        ht=rng.uniform(400, 3000, N),
        counts={"photon": np.full(N, 2), "jet": rng.poisson(5.0, N)},
        selected=rng.random(N) < 0.4,
    )


def traces(figure: go.Figure, column: int) -> list[go.Scatter]:
    axis = "x" if column == 1 else f"x{column}"
    return [trace for trace in figure.data if (trace.xaxis or "x") == axis]


def assert_flat(trace: go.Scatter, expected: float) -> None:
    y, error = np.array(trace.y), np.array(trace.error_y.array)
    assert len(y) >= 5
    assert np.all(error > 0)
    assert np.all(np.abs(y - expected) < 4.5 * error)


def test_objects_show_their_efficiency_and_resolution(sample: Performance) -> None:
    figure = figures.object_performance(sample)
    for column, expected in ((1, 80.0), (2, 3.0)):
        assert [trace.name for trace in traces(figure, column)] == ["electron", "muon", "photon"]
        for trace in traces(figure, column):
            assert_flat(trace, expected)
    assert sum(trace.showlegend for trace in figure.data) == 3


def test_jets_show_efficiency_response_and_resolution_by_region(sample: Performance) -> None:
    figure = figures.jet_performance(sample)
    for column, expected in ((1, 100.0), (2, 1.0), (3, 10.0)):
        assert len(traces(figure, column)) == len(figures.JET_REGIONS)
        for trace in traces(figure, column):
            assert_flat(trace, expected)
    assert traces(figure, 1)[1].name == "1.3 < |η| < 2.5"


def test_ptmiss_shows_distribution_and_width(sample: Performance) -> None:
    figure = figures.ptmiss_performance(sample)
    steps = [trace for trace in traces(figure, 1) if trace.mode == "lines"]
    assert [sum(trace.y[::2]) for trace in steps] == pytest.approx([N, N], rel=0.001)
    assert_flat(traces(figure, 2)[0], 20.0)
    assert "20." in figure.layout.meta["caption"] or "19." in figure.layout.meta["caption"]


def test_multiplicities_are_shares_of_all_collisions(sample: Performance) -> None:
    figure = figures.multiplicities(sample)
    for column, mean in ((1, 2.0), (2, 5.0)):
        line, points = traces(figure, column)
        assert sum(line.y[::2]) == pytest.approx(100.0)
        average = sum(x * y for x, y in zip(points.x, points.y, strict=True)) / 100
        assert average == pytest.approx(mean, abs=0.1)
    assert (
        "selects 4" in figure.layout.meta["caption"] or "selects 3" in figure.layout.meta["caption"]
    )
    assert figure.layout.xaxis.title.text == "photons (mean 2.00)"


def test_every_figure_names_the_size_of_the_sample_and_stays_small(sample: Performance) -> None:
    for draw in (
        figures.object_performance,
        figures.jet_performance,
        figures.ptmiss_performance,
        figures.multiplicities,
    ):
        figure = draw(sample)
        assert "4,000 collisions" in figure.layout.meta["caption"]
        assert len(figure.to_json()) < 60_000
        for axis in figure.select_xaxes():
            assert axis.title.text


def test_the_notebook_measures_and_draws(tmp_path: Path) -> None:
    for package in ("pythia8mc", "fastjet", "papermill"):
        pytest.importorskip(package)
    parameters = {"n_events": 500, "jets": "calorimeter", "seed": 3}
    summary = run_notebook("14_response", parameters, tmp_path, progress=False)
    assert summary["detector"]["jets"] == "calorimeter"
    assert summary["by_true_pt_gev"]["muon"]["efficiency"]["value"][2] == pytest.approx(
        0.85, abs=0.1
    )
    central = summary["jets_by_abs_eta_and_true_pt_gev"]["0-1.3"]
    assert central["response"]["value"][1] == pytest.approx(0.83, abs=0.04)
    assert summary["ptmiss_resolution_gev_by_ht_gev"]["number"][1] > 300
    executed = (tmp_path / "14_response.ipynb").read_text()
    assert executed.count('"application/vnd.plotly.v1+json"') == 4
