"""Figures of calibration and reach: what they draw is what they were given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.inference.calibration import calibration_report
from massrecon.inference.coverage import coverage_map
from massrecon.inference.rates import BinnedBackground, Reach, reach
from massrecon.inference.systematics import MassShift, Systematics
from massrecon.visual.calibration import (
    coverage_curves,
    coverage_maps,
    impacts_and_pulls,
    rank_histograms,
    region_coverage,
)
from massrecon.visual.reach import reach_over_plane
from tests.test_diagnostics import known_posterior


def test_rank_histograms_show_density_and_band(card: ProcessCard) -> None:
    report = calibration_report(known_posterior(card, 500, seed=1))
    figure = rank_histograms(
        report.ranks, dict(zip(report.mass_names, report.symbols, strict=True))
    )
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    np.testing.assert_allclose(marks[1].y, report.ranks["chi10"].density.numpy())
    assert "variance" in figure.layout.meta["caption"]
    with pytest.raises(InputError, match="at least one rank histogram"):
        rank_histograms({})


def test_coverage_curves_are_drawn_less_their_level(card: ProcessCard) -> None:
    curve = calibration_report(known_posterior(card, 500, seed=1)).tarp
    figure = coverage_curves({"before": curve, "after": curve})
    line = figure.data[2]
    np.testing.assert_allclose(line.y, 100 * (curve.share - curve.levels).numpy(), atol=1e-9)
    np.testing.assert_allclose(figure.data[1].y, 100 * (curve.high - curve.levels).numpy())
    assert line.name.startswith("before (p = ")
    with pytest.raises(InputError, match="at least one calibration curve"):
        coverage_curves({})


def test_coverage_maps_share_one_scale_and_leave_empty_cells_empty() -> None:
    masses = torch.rand(400, 2, generator=torch.Generator().manual_seed(1)).double()
    masses[:, 1] *= masses[:, 0]
    found = coverage_map(torch.rand(400), masses, ("a", "b"), bins=3)
    figure = coverage_maps([found, found], ["before", "after"])
    assert figure.data[0].z.shape == (3, 3)
    np.testing.assert_allclose(figure.data[0].z, 100 * (found.coverage.T.numpy() - 0.68))
    assert figure.data[0].text[2, 0] == ""
    assert figure.data[0].coloraxis == figure.data[1].coloraxis
    with pytest.raises(InputError, match="one or more of one level"):
        coverage_maps([found], ["a", "b"])


def test_region_coverage_shows_every_measurement() -> None:
    rates = {"signal": {1: (0.67, 0.01), 10: (0.69, 0.01)}, "with background": {10: (0.66, 0.02)}}
    figure = region_coverage(rates, 0.68, goal=(0.65, 0.71))
    assert list(figure.data[0].y) == [67.0, 69.0]
    assert list(figure.layout.xaxis.tickvals) == [1, 10]
    with pytest.raises(InputError, match="'rates' should hold coverage"):
        region_coverage({}, 0.68)


def test_impacts_and_pulls_are_those_of_the_systematics() -> None:
    masses = torch.tensor([[0.0, 0.0], [400.0, 0.0], [0.0, 400.0]])
    slopes = torch.tensor([[12.0, -4.0]]).expand(3, -1)
    shift = MassShift.fit("jet scale", "2 %", masses, slopes, torch.ones(3, 2))
    systematics = Systematics((shift,))
    pulls = torch.tensor([0.5]), torch.tensor([0.8])
    figure = impacts_and_pulls(systematics, torch.tensor([200.0, 100.0]), pulls, ("a", "b"))
    assert figure.data[0].x[0] == pytest.approx(12)
    assert figure.data[1].x[0] == pytest.approx(-4)
    assert figure.data[2].x[0] == pytest.approx(0.5)
    assert "2 %" in figure.layout.meta["caption"]
    with pytest.raises(InputError, match="'pulls' should have 1 values"):
        impacts_and_pulls(systematics, torch.tensor([200.0, 100.0]), pulls, ("a",))


def plane_reach(scale: float) -> Reach:
    masses = torch.cartesian_prod(torch.tensor([400.0, 500.0, 600.0]), torch.tensor([50.0, 150.0]))
    signal = scale * torch.exp(-(masses[:, :1] - 400) / 80) * torch.ones(6, 1)
    background = BinnedBackground(
        names=("tth",), counts=torch.tensor([[20.0]]), uncertainties=torch.tensor([0.1])
    )
    return reach(("a", "b"), masses, signal, background, 3000.0, missing=("VVV",))


def test_lines_of_reach_are_drawn_where_they_are_reached() -> None:
    figure = reach_over_plane(plane_reach(60.0))
    assert figure.data[0].z.shape == (2, 3)
    contours = [trace for trace in figure.data if trace.type == "contour"]
    assert [trace.contours.start for trace in contours] == [5.0, 3.0, 1.96]
    assert "Not included: VVV" in figure.layout.meta["caption"]
    weak = reach_over_plane(plane_reach(3.0))
    names = [trace.name for trace in weak.data if trace.type == "scatter"]
    assert "discovery, 5 σ (nowhere)" in names
    assert not any(trace.type == "contour" and trace.contours.start == 5.0 for trace in weak.data)


def test_a_plane_needs_two_masses() -> None:
    found = plane_reach(60.0)
    line = reach(("a", "b"), found.masses[:2], torch.ones(2, 1), found.background, 1.0)
    with pytest.raises(InputError, match="two or more values"):
        reach_over_plane(line)
    assert math.isfinite(float(line.discovery[0]))
