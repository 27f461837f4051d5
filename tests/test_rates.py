"""Rates: formulas, pyhf as the reference of the profile likelihood, and yields over the plane."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from massrecon.errors import InputError, ShapeError
from massrecon.inference.rates import (
    BinnedBackground,
    YieldMap,
    asimov_discovery,
    asimov_exclusion,
    binned_counts,
    discovery_significance,
    exclusion_significance,
    poisson_significance,
    reach,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyhf

BACKGROUND = BinnedBackground(
    names=("tth", "wh"),
    counts=torch.tensor([[20.0, 8.0, 2.0], [10.0, 3.0, 0.5]]),
    uncertainties=torch.tensor([0.2, 0.3]),
    simulated=torch.tensor([0.05, 0.1, 0.2]),
)


def one_bin(background: float) -> BinnedBackground:
    return BinnedBackground(
        names=("b",), counts=torch.tensor([[background]]), uncertainties=torch.zeros(1)
    )


@pytest.mark.parametrize(("s", "b"), [(1.0, 100.0), (10.0, 10.0), (5.0, 0.5)])
def test_one_bin_follows_the_formulas(s: float, b: float) -> None:
    signal = torch.tensor([[s]])
    found = discovery_significance(signal, one_bin(b)), exclusion_significance(signal, one_bin(b))
    assert float(found[0]) == pytest.approx(asimov_discovery(s, b), rel=1e-6)
    assert float(found[1]) == pytest.approx(asimov_exclusion(s, b), rel=1e-6)
    assert asimov_discovery(0.01 * s, b) == pytest.approx(0.01 * s / math.sqrt(b), rel=0.02)
    assert asimov_discovery(s, b, 0.2) < asimov_discovery(s, b, 1e-6) + 1e-9
    assert asimov_discovery(s, b, 1e-5) == pytest.approx(asimov_discovery(s, b), rel=1e-4)


def pyhf_model(signal: torch.Tensor) -> Any:
    """The same model in pyhf: linear shapes for each background and each bin."""

    def sample(name: str, row: torch.Tensor, relative: float) -> dict[str, Any]:
        assert BACKGROUND.simulated is not None
        shifts = {f"norm_{name}": row * relative}
        for i, error in enumerate(BACKGROUND.simulated.tolist()):
            shifts[f"mc{i}"] = torch.where(torch.arange(3) == i, row * error, 0.0)
        modifiers = [
            {
                "name": key,
                "type": "histosys",
                "data": {"hi_data": (row + d).tolist(), "lo_data": (row - d).tolist()},
            }
            for key, d in shifts.items()
        ]
        return {"name": name, "data": row.tolist(), "modifiers": modifiers}

    strength = [{"name": "mu", "type": "normfactor", "data": None}]
    rows = zip(
        BACKGROUND.names, BACKGROUND.counts.double(), BACKGROUND.uncertainties.tolist(), strict=True
    )
    samples = [{"name": "signal", "data": signal.tolist(), "modifiers": strength}]
    samples += [sample(*row) for row in rows]
    return pyhf.Model({"channels": [{"name": "c", "samples": samples}]}, poi_name="mu")


@pytest.mark.parametrize("signal", [[3.0, 5.0, 8.0], [1.0, 1.0, 1.0]])
def test_several_uncertain_bins_agree_with_pyhf(signal: list[float]) -> None:
    row = torch.tensor(signal, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pyhf_model(row)
    start, fixed = model.config.suggested_init(), model.config.suggested_fixed()
    bounds, poi = model.config.suggested_bounds(), model.config.poi_index
    data = {}
    for strength in (0.0, 1.0):
        parameters = list(start)
        parameters[poi] = strength
        data[strength] = model.expected_data(parameters)
    statistics = pyhf.infer.test_statistics
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q_0 = statistics.q0(0.0, data[1.0], model, start, bounds, fixed)
        q_1 = statistics.qmu_tilde(1.0, data[0.0], model, start, bounds, fixed)
    found = (
        discovery_significance(row[None], BACKGROUND),
        exclusion_significance(row[None], BACKGROUND),
    )
    assert float(found[0]) == pytest.approx(math.sqrt(float(q_0)), rel=2e-4)
    assert float(found[1]) == pytest.approx(math.sqrt(float(q_1)), rel=2e-4)


def test_models_do_not_depend_on_their_neighbours() -> None:
    signal = torch.tensor([[3.0, 5.0, 8.0], [0.0, 0.0, 0.0], [300.0, 1.0, 0.0]])
    together = discovery_significance(signal, BACKGROUND)
    alone = torch.cat([discovery_significance(s[None], BACKGROUND) for s in signal])
    torch.testing.assert_close(together, alone)
    assert float(together[1]) == 0.0


def test_few_events_are_less_significant_than_asymptotics_say() -> None:
    assert poisson_significance(3.0, 0.1) < asimov_discovery(3.0, 0.1)
    assert poisson_significance(100.0, 1000.0) == pytest.approx(
        asimov_discovery(100.0, 1000.0), abs=0.05
    )
    assert asimov_exclusion(2.0, 0.0) == pytest.approx(2.0)


def test_a_map_of_yields_follows_the_cells() -> None:
    def rate(heavy: float, light: float) -> float:
        return math.exp(-heavy / 100 - 0.001 * light)

    cells = [
        {
            "masses": {"heavy": float(heavy), "light": [light - 25.0, light + 25.0]},
            "cross_section_fb": 2 * rate(heavy, light),
            "cross_section_error_fb": 0.001 * rate(heavy, light),
            "acceptance": 0.5,
            "acceptance_error": 0.005,
        }
        for heavy in (400, 500, 600, 700)
        for light in (100.0, 200.0, 300.0)
    ]
    found = YieldMap.from_cells(("heavy", "light"), cells)
    masses = torch.tensor([[450.0, 150.0], [650.0, 250.0]])
    expected = torch.tensor([3000 * rate(450, 150), 3000 * rate(650, 250)]).double()
    torch.testing.assert_close(found(masses, 3000.0), expected, rtol=1e-4, atol=0)
    assert found.residual < 1e-4
    with pytest.raises(InputError, match="too few for a map"):
        YieldMap.from_cells(("heavy", "light"), cells[:1])


def test_the_reach_of_a_plane_is_that_of_its_points() -> None:
    masses = torch.tensor([[500.0, 100.0], [600.0, 100.0]])
    signal = torch.tensor([[6.0, 10.0, 16.0], [3.0, 5.0, 8.0]])
    found = reach(("a", "b"), masses, signal, BACKGROUND, 3000.0, missing=("W gamma gamma",))
    torch.testing.assert_close(found.discovery, discovery_significance(signal, BACKGROUND))
    torch.testing.assert_close(found.yields, torch.tensor([32.0, 16.0]))
    content = found.to_dict()
    assert content["backgrounds"]["tth"]["events"] == 30.0
    assert content["missing"] == ["W gamma gamma"]


def test_counts_in_bins_keep_all_weight() -> None:
    counts, squares = binned_counts(
        torch.tensor([-9.0, 0.0, 0.5, 7.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), (0.2, 1.0)
    )
    assert counts.tolist() == [3.0, 3.0, 4.0]
    assert squares.tolist() == [5.0, 9.0, 16.0]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="'background' positive"):
        asimov_discovery(1.0, 0.0)
    with pytest.raises(InputError, match="should not be negative"):
        asimov_exclusion(-1.0, 0.0)
    with pytest.raises(ShapeError, match="'signal' should have shape"):
        discovery_significance(torch.ones(1, 2), BACKGROUND)
    with pytest.raises(ShapeError, match="'counts' should have shape"):
        BinnedBackground(names=("a",), counts=torch.ones(2, 2), uncertainties=torch.ones(1))
    with pytest.raises(ShapeError, match="'masses' should have shape"):
        reach(("a", "b"), torch.ones(3, 2), torch.ones(2, 3), BACKGROUND, 1.0)
