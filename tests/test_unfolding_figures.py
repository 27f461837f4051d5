"""Figures of the surrogate and of unfolding hold the numbers that they should show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from massrecon.errors import InputError
from massrecon.inference.unfolding import binned_truth, unfold
from massrecon.visual import figures


def test_surrogate_figure_shows_both_samples_and_their_ratio() -> None:
    generator = torch.Generator().manual_seed(1)
    full = {"pt [GeV]": torch.rand(4000, generator=generator), "objects": torch.arange(4000) % 5}
    fast = {
        "pt [GeV]": torch.rand(4000, generator=generator) ** 2,
        "objects": torch.arange(400) % 5,
    }
    full["pt [GeV]"][:10] = torch.nan
    figure = figures.surrogate_against_simulation(full, fast)
    points = [t for t in figure.data if t.name == "surrogate"]
    assert [len(t.x) for t in points][1] == 5  # a bin for each whole number
    np.testing.assert_allclose(points[1].y, 0.2)
    assert points[0].y[0] > 0.1 > points[0].y[-1]
    notes = [a.text for a in figure.layout.annotations]
    assert float(notes[0].split("=")[1]) > 10 > 1 > float(notes[1].split("=")[1])
    with pytest.raises(InputError, match="same quantities"):
        figures.surrogate_against_simulation(full, {"pt [GeV]": fast["pt [GeV]"]})
    with pytest.raises(InputError, match="objects"):
        figures.surrogate_against_simulation(full, {**fast, "objects": torch.full((9,), torch.nan)})


def test_unfolding_figures_show_shares_and_bias() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(500, generator=generator).double()
    samples = (truth + 0.1 * torch.randn(20, 500, generator=generator)).clamp(0, 1)
    edges = torch.linspace(0, 1, 6, dtype=torch.float64)
    results = {
        name: unfold(samples, prior, edges, iterations=2, n_bootstrap=5)
        for name, prior in (("flat", torch.rand(900)), ("low", torch.rand(900) ** 2))
    }
    share, error = binned_truth(truth, edges)
    figure = figures.unfolded_distributions(results, share, error, "x [GeV]")
    found = {t.name: t for t in reversed(figure.data) if t.name}
    np.testing.assert_allclose(found["unfolded, low"].y, results["low"].share[0])
    np.testing.assert_allclose(found["training, flat"].y[::2], results["flat"].prior)
    figure = figures.bias_by_iteration(results, share, error, "x [GeV]")
    expected = [results["low"].mean(k)[0] - float(share @ results["low"].centres) for k in range(3)]
    np.testing.assert_allclose(next(t for t in figure.data if t.name == "low").y, expected)
    for draw in (figures.unfolded_distributions, figures.bias_by_iteration):
        with pytest.raises(InputError, match="empty"):
            draw({}, share, error, "x")
