"""Calibration of the edges: templates, toys, and masses of smeared and wide resonances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics import fourvectors as fv
from massrecon.models.deelema import DeeLeMa, DeeLeMaConfig, Structure, study
from massrecon.models.deelema.calibration import ToySimulator, anchor_edges
from massrecon.models.deelema.template import EdgeTemplate

TOP = study.TEST_RUNS["C"]
STRUCTURE = Structure(TOP.legs)
CONFIG = TOP.config("ours", n_toys=6_000)


def smeared_edge(n: int, mass: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draws values with resolutions of 1 to 10 %, the larger ones with tails."""
    rng = np.random.default_rng(seed)
    errors = mass * rng.uniform(0.01, 0.1, n)
    true = mass * (1 - 0.6 * rng.random(n) ** 2)
    return torch.as_tensor(true + errors * rng.standard_t(4, n)), torch.as_tensor(errors)


@pytest.fixture(scope="module")
def tops() -> tuple[Tensor, Tensor]:
    toys = ToySimulator(STRUCTURE, CONFIG, seen={"b": 0.0, "l": 0.0}, recoil=0.0)
    return toys(TOP.truth, 6000, 77)


def test_a_template_finds_by_how_much_an_edge_has_moved() -> None:
    template = EdgeTemplate.of(*smeared_edge(40_000, 500.0, seed=1), 500.0)
    at = {m: template.locate(*template.select(*smeared_edge(20_000, m, 2))) for m in (490.0, 515.0)}
    assert at[490.0] == pytest.approx(490.0, abs=2.5)
    assert at[515.0] - at[490.0] == pytest.approx(25.0, abs=1.5)


def test_replicas_scatter_as_samples_do() -> None:
    toys = smeared_edge(40_000, 500.0, seed=3)
    template = EdgeTemplate.of(*toys, 500.0)
    samples = [template.select(*smeared_edge(2000, 500.0, seed)) for seed in range(10, 50)]
    scatter = np.std([template.locate(*sample) for sample in samples])
    drawn = template.replicas(*toys, 2000, 60, seed=1)
    assert drawn.std() == pytest.approx(scatter, rel=0.45)
    assert drawn.mean() == pytest.approx(500.0, abs=3.0)


def test_a_template_needs_values_near_the_edge() -> None:
    values, errors = smeared_edge(400, 500.0, seed=4)
    with pytest.raises(InputError, match="Only 0 values with a resolution below 8%"):
        EdgeTemplate.of(values, errors + 100.0, 500.0)


def test_toys_look_like_the_events(tops: tuple[Tensor, Tensor]) -> None:
    visible, ptmiss = tops
    sharp = ToySimulator(STRUCTURE, replace(CONFIG, resolution={}), {}, recoil=40.0)
    again = ToySimulator.like(STRUCTURE, CONFIG, *sharp(TOP.truth, 4000, 5))
    assert again.recoil == pytest.approx(40.0, rel=0.1)
    assert again.seen == {"b": 0.0, "l": 0.0}
    toys = ToySimulator.like(STRUCTURE, CONFIG, visible, ptmiss)
    assert toys.recoil == 0.0
    there, missing = toys(TOP.truth, 6000, 5)
    for one, other in ((there[:, 0], visible[:, 0]), (there[:, 1], visible[:, 1])):
        assert float(fv.pt(one).median()) == pytest.approx(float(fv.pt(other).median()), rel=0.05)
    torch.testing.assert_close(missing, -there[..., :2].sum(1))


def test_calibrated_masses_of_smeared_tops_are_right(tops: tuple[Tensor, Tensor]) -> None:
    edges = anchor_edges(STRUCTURE, CONFIG, *tops, n_bootstrap=30, seed=3)
    for name, edge in edges.items():
        assert edge.value == pytest.approx(TOP.truth[name], rel=0.02)
        assert edge.value == edge.fit.value + edge.shift
        assert 0.001 < edge.error / edge.value < 0.02
        low, high = edge.interval()
        assert low < edge.value < high


def test_toys_may_come_from_elsewhere_or_be_left_out(tops: tuple[Tensor, Tensor]) -> None:
    asked: list[tuple[set[str], int]] = []
    toys = ToySimulator(STRUCTURE, CONFIG, {}, 0.0)

    def simulate(masses: Mapping[str, float], n: int, seed: int) -> tuple[Tensor, Tensor]:
        asked.append((set(masses), n))
        return toys(masses, n, seed)

    part = tops[0][:2000], tops[1][:2000]
    settings = replace(CONFIG, n_toys=5000)
    anchor_edges(STRUCTURE, settings, *part, simulate=simulate, n_bootstrap=2)
    assert asked[-1] == ({"t", "W"}, 5000)
    plain = anchor_edges(STRUCTURE, replace(settings, calibration="none"), *part, n_bootstrap=2)
    assert all(edge.shift == 0.0 for edge in plain.values())


def test_widths_of_unknown_species_are_refused() -> None:
    with pytest.raises(InputError, match="'widths' names 'Z'"):
        DeeLeMa(TOP.legs, DeeLeMaConfig(m_invisible={"nu": 0.0}, widths={"Z": 2.5}))
    with pytest.raises(InputError, match="width of 'W' should be at least 0"):
        DeeLeMaConfig(m_invisible={"nu": 0.0}, widths={"W": -1.0})
