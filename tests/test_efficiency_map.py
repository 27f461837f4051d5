"""Efficiency in cells of the mass plane: counting, prediction, figure."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.card import load_card
from massrecon.inference.diagnostics import efficiency
from massrecon.inference.efficiency_map import EfficiencyMap, efficiency_map
from massrecon.inference.posterior import Posterior
from massrecon.visual import figures

WIDTH = {400.0: 20.0, 600.0: 60.0}  # of the posterior, by m(chi20) [GeV]


def posterior(width: float = 1.0, n_draws: int = 60) -> Posterior:
    """Gaussian posteriors, wider at 600 than at 400 GeV, too narrow or wide by a factor."""
    generator = torch.Generator().manual_seed(1)
    points = torch.cartesian_prod(torch.tensor([400.0, 600.0]), torch.tensor([100.0, 200.0, 250.0]))
    truth = points.repeat_interleave(400, 0)[:-400].double()  # no events at (600, 250)
    sigma = torch.tensor([WIDTH[float(m)] for m in truth[:, 0]])
    centre = truth + sigma.unsqueeze(1) * torch.randn(truth.shape, generator=generator)
    noise = torch.randn(n_draws, *truth.shape, generator=generator)
    masses = centre + width * sigma.unsqueeze(1) * noise
    samples = torch.zeros(*masses.shape[:2], 8, dtype=torch.float64)
    samples[..., [3, 7]] = masses.double()
    return Posterior(samples, load_card("wino_udd"), masses=truth)


def test_cells_count_what_they_hold() -> None:
    found = efficiency_map(posterior(), "chi10", 30.0, "median")
    assert found.n_events.tolist() == [[400, 400, 400], [400, 400, 0]]
    assert found.x.value.tolist() == [400.0, 600.0]
    # the median of 60 draws is wider than the centre by its own error
    for row, sigma in enumerate(WIDTH.values()):
        spread = sigma * math.sqrt(1 + math.pi / (2 * 60))
        wanted = math.erf(30 / (math.sqrt(2) * spread))
        pull = (found.attained.value[row, :2] - wanted) / found.attained.error[row, :2]
        assert float(pull.abs().max()) < 3.5
    assert bool(found.attained.value[1, 2].isnan())
    assert found.to_dict()["attained"][1][2] is None


def test_cells_add_up_to_the_table() -> None:
    p = posterior()
    found = efficiency_map(p, "chi20", 30.0)
    inside = found.n_events > 0
    total = (found.attained.value * found.n_events)[inside].sum() / found.n_events.sum()
    table = efficiency(p, windows=(30.0,))
    assert float(total) == pytest.approx(table.at("chi20", "window", 30.0)[0])


@pytest.mark.parametrize(("width", "sign"), [(1.0, 0), (0.5, 1), (2.0, -1)])
def test_prediction_tells_too_narrow_posteriors(width: float, sign: int) -> None:
    found = efficiency_map(posterior(width), "chi10", 30.0)
    assert found.predicted is not None
    assert found.difference_error is not None
    pull = (found.predicted - found.attained.value) / found.difference_error
    pull = pull[found.n_events > 0]
    if sign:
        assert float((sign * pull).min()) > 3
    else:
        assert float(pull.abs().max()) < 3.5


def test_continuous_masses_fall_into_bins() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(600, 2, generator=generator, dtype=torch.float64)
    truth = torch.stack([400 + 200 * truth[:, 0], 50 + 200 * truth[:, 1]], 1)
    samples = torch.zeros(4, 600, 8, dtype=torch.float64)
    samples[..., [3, 7]] = truth
    p = Posterior(samples, load_card("wino_udd"), masses=truth)
    assert efficiency_map(p, "chi10", 5.0, bins=3).n_events.shape == (3, 3)
    edges = {"chi20": (400.0, 500.0), "chi10": (50.0, 100.0, 250.0)}
    found = efficiency_map(p, "chi10", 5.0, bins=edges)
    assert found.n_events.shape == (1, 2)
    assert int(found.n_events.sum()) == int((truth[:, 0] < 500).sum())
    assert bool((found.attained.value == 1).all())


def test_single_draws_predict_nothing() -> None:
    found = efficiency_map(posterior(n_draws=1), "chi10", 30.0, "draw")
    assert found.predicted is None
    assert "predicted" not in found.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mass": "chi30"}, "Unknown mass 'chi30'"),
        ({"mass": "chi10", "estimator": "mode"}, "Unknown estimator 'mode'"),
        ({"mass": "chi10", "window": 0.0}, "'window' should be a positive half-width"),
        ({"mass": "chi10", "axes": ("chi20", "chi")}, "Unknown mass 'chi'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        efficiency_map(posterior(n_draws=2), **arguments)


def test_a_line_of_masses_has_no_map() -> None:
    p = posterior(n_draws=2)
    rows = p.true_masses()[:, 0] == 400
    with pytest.raises(InputError, match="needs two masses that vary among the events, got chi10"):
        efficiency_map(p[rows], "chi10")


def test_figure_shows_every_cell() -> None:
    maps: list[EfficiencyMap] = [efficiency_map(posterior(), m, 30.0) for m in ("chi20", "chi10")]
    figure: Any = figures.efficiency_maps(maps)
    heat = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    assert len(heat) == 2
    assert heat[0].z.shape == (3, 2)
    assert heat[0].text[2][1] == ""
    assert heat[0].z[0][0] == pytest.approx(100 * float(maps[0].attained.value[0, 0]))
    assert "2,000 events" in figure.layout.meta["caption"]
    with pytest.raises(InputError, match="with a title each, got 2 and 1"):
        figures.efficiency_maps(maps, ["one"])


def test_events_of_one_mass_point_count_as_one_in_the_error_of_a_cell() -> None:
    # a continuous range of masses: 300 points of 20 events, all of a point right or wrong together
    generator = torch.Generator().manual_seed(2)
    points = torch.tensor([400.0, 100.0]) + 100 * torch.rand(300, 2, generator=generator)
    off = torch.where(torch.rand(300, 1, generator=generator) < 0.5, 100.0, 0.0)
    truth, centre = (x.repeat_interleave(20, 0).double() for x in (points, points + off))
    noise = torch.randn(20, *truth.shape, generator=generator)
    samples = torch.zeros(20, len(truth), 8, dtype=torch.float64)
    samples[..., [3, 7]] = centre + noise
    found = efficiency_map(Posterior(samples, load_card("wino_udd"), masses=truth), "chi10")
    assert found.difference_error is not None
    n_points = found.n_events / 20
    # right or wrong with probability 1/2, as many times as there are points in the cell
    expected = 0.5 / n_points.sqrt()
    assert float((found.difference_error / expected).median()) == pytest.approx(1, abs=0.15)
