"""Figures of a measurement: what they draw is what was measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from massrecon.errors import InputError, ShapeError
from massrecon.inference.combination import measure
from massrecon.inference.construction import regions_from_densities
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.resolution_curve import (
    COMBINED,
    PEAK,
    ResolutionCurve,
    ResolutionPoint,
)
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.visual.contours import contour_lines
from massrecon.visual.measurement import (
    growing_region,
    mass_marginals,
    mass_region,
    measurement_pulls,
    resolution_figure,
)
from tests.gaussians import COVARIANCE, NAMES, PLANE, TRUTH, GaussianDensities, gaussian_events


@pytest.fixture(scope="module")
def measurements() -> list[MassMeasurement]:
    seen = gaussian_events(8, 1)
    found = [measure(GaussianDensities(seen[:n]), outliers=0.0) for n in (4, 8)]
    return [dataclasses.replace(m, truth=TRUTH, symbols={"chi10": "χ"}) for m in found]


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Area of a polygon."""
    return 0.5 * abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])))


def test_a_circle_is_found() -> None:
    x, y = np.linspace(-3, 3, 61), np.linspace(-4, 4, 71)
    values = x[None] ** 2 + y[:, None] ** 2
    (line,) = contour_lines(x, y, values, 4.0)
    assert (line[0][0], line[1][0]) == (line[0][-1], line[1][-1])
    assert area(*line) == pytest.approx(4 * np.pi, rel=0.005)
    assert np.allclose(np.hypot(*line), 2.0, atol=0.01)


def test_islands_holes_and_ends_are_closed() -> None:
    x = np.linspace(0, 10, 101)
    rings = np.abs(np.abs(x[None] - 5) - 2.5) + 0 * x[:, None] + np.abs(x[:, None] - 5)
    assert len(contour_lines(x, x, rings, 1.0)) == 2
    hole = np.abs(np.hypot(x[None] - 5, x[:, None] - 5) - 3)
    lines = contour_lines(x, x, hole, 1.0)
    assert sorted(round(area(*line)) for line in lines) == [13, 50]  # radii 2 and 4
    (cut,) = contour_lines(x, x, x[None] + 0 * x[:, None], 5.0)
    assert area(*cut) == pytest.approx(5.05 * 10.1, rel=0.02)  # up to half a step beyond
    assert contour_lines(x, x, rings, -1.0) == []


def test_saddles_do_not_end_a_line() -> None:
    values = np.random.default_rng(1).normal(size=(40, 30))
    lines = contour_lines(np.arange(30.0), np.arange(40.0), values, 0.0)
    assert len(lines) > 20
    for x, y in lines:
        assert (x[0], y[0]) == (x[-1], y[-1])
        assert np.hypot(np.diff(x), np.diff(y)).max() < 1.5


def test_the_region_has_the_area_of_the_gaussian(measurements: list[MassMeasurement]) -> None:
    figure = mass_region(measurements[1])
    traces = {trace.name: trace for trace in figure.data if trace.name}
    for level in (0.68, 0.95):
        rim = traces[f"{level:.0%}"]
        exact = -2 * np.log(1 - level) * np.pi * float(COVARIANCE.det().sqrt()) / 8
        x, y = np.array(rim.x[:-1]), np.array(rim.y[:-1])  # None ends the line
        assert area(x.astype(float), y.astype(float)) == pytest.approx(exact, rel=0.04)
    assert traces["truth"].x[0] == 200.0
    assert traces["truth"].y[0] == 600.0
    caption = figure.layout.meta["caption"]
    assert "8 events" in caption
    assert "m(χ)" in caption


def test_confidence_regions_are_drawn_where_the_likelihood_ratio_is_critical() -> None:
    points = torch.cartesian_prod(torch.tensor([450.0, 600.0]), torch.tensor([100.0, 250.0, 310.0]))
    pools = [
        GaussianDensities(gaussian_events(300, i, at.double()), COVARIANCE)
        for i, at in enumerate(points)
    ]
    prior = TrainingPrior.flat(NAMES, PLANE)
    regions = regions_from_densities(
        pools, points.double(), prior, sizes=(8,), n_experiments=200, outliers=0.0
    )
    seen = GaussianDensities(gaussian_events(8, 1))
    found = measure(seen, training_prior=prior, outliers=0.0, regions=regions)
    figure = mass_region(found)
    drawn = {trace.name: trace for trace in figure.data}
    line = drawn["68% confidence"]
    at = np.array([line.y[:-1], line.x[:-1]], dtype=float).T  # chi10 is drawn across
    statistic = [
        2 * float(found.posterior.log_prob.max() - found.posterior.log_prob_at(torch.tensor(m)))
        for m in at
    ]
    critical = regions.critical(torch.tensor(at), 8)[0].numpy()
    np.testing.assert_allclose(statistic, critical, rtol=0.12)
    assert "95% confidence" in drawn
    assert "Dotted: confidence regions" in figure.layout.meta["caption"]
    plain = mass_region(dataclasses.replace(found, regions=None))
    assert not any("confidence" in (trace.name or "") for trace in plain.data)
    assert "confidence" not in plain.layout.meta["caption"]


def test_frames_show_one_measurement_each(measurements: list[MassMeasurement]) -> None:
    figure = growing_region(measurements)
    assert [frame.name for frame in figure.frames] == ["4", "8"]
    assert len(figure.layout.sliders[0].steps) == 2
    outer = [frame.data[0] for frame in figure.frames]
    sizes = [area(np.array(t.x[:-1], float), np.array(t.y[:-1], float)) for t in outer]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, rel=0.05)


def test_marginals_are_shaded_between_their_intervals(measurements: list[MassMeasurement]) -> None:
    figure = mass_marginals(measurements[0])
    low, high = measurements[0].interval(0.68)[0].tolist()
    (inner,) = (t for t in figure.data if t.name == "68%" and t.xaxis == "x")
    assert (inner.x[0], inner.x[-1]) == pytest.approx((low, high))
    assert "4 events" in figure.layout.meta["caption"]


def test_one_mass_has_no_plane() -> None:
    toy = GaussianDensities(
        torch.tensor([[40.0]]).double(), torch.eye(1).double() * 25, ("m",),
        region=MassRegion((0.0,), (100.0,)),
    )  # fmt: skip
    found = measure(toy, outliers=0.0)
    with pytest.raises(InputError, match="mass_marginals"):
        mass_region(found)
    assert len(mass_marginals(found).data) == 3


def curve(events_per_fb: float | None) -> ResolutionCurve:
    """Makes a curve by hand."""
    points = [
        ResolutionPoint(
            n_events=n, method=method, bias=torch.zeros(2, 2),
            resolution=torch.tensor([[40 / n**0.5, 1.0], [50 / n**0.5, 2.0]]),
            claimed=torch.zeros(2, 2), coverage={},
        )
        for n in (1, 10) for method in (COMBINED, PEAK)
    ]  # fmt: skip
    return ResolutionCurve(
        names=("chi20", "chi10"), truth=TRUTH, points=tuple(points), events_per_fb=events_per_fb,
        n_pool=100, n_experiments=50, seed=1, source="toy", estimator="median",
        symbols={"chi20": "X", "chi10": "χ"},
    )  # fmt: skip


def test_the_resolution_is_drawn_with_luminosities() -> None:
    figure = resolution_figure({"cascade": curve(0.004)}, goal=15.0)
    first = figure.data[0]
    assert list(first.x) == [1, 10]
    assert first.y[1] == pytest.approx(40 / 10**0.5)
    assert list(first.error_y.array) == [1.0, 1.0]
    texts = [note.text for note in figure.layout.annotations]
    assert "2,500" in texts
    assert "luminosity [fb<sup>−1</sup>]" in texts
    assert "15 GeV" in figure.layout.meta["caption"]
    unknown = resolution_figure({"cascade": curve(None)})
    assert not any("luminosity" in note.text for note in unknown.layout.annotations)
    with pytest.raises(InputError, match="no curve"):
        resolution_figure({})


def test_pulls_are_counted() -> None:
    pulls = torch.tensor([[0.0, 9.0], [0.1, -9.0], [0.0, 0.3]])
    figure = measurement_pulls(("a", "b"), pulls)
    assert sum(figure.data[0].y) == 3
    assert figure.data[2].y[0] == figure.data[2].y[-1] == 1  # beyond the ends count at the ends
    with pytest.raises(ShapeError, match=r"\(measurements, 2\)"):
        measurement_pulls(("a", "b"), pulls[:, :1])
