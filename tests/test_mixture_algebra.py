"""Algebra of the mixture: small matrices in closed form, Gaussians cut to a region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics import mixture_gaussians as kernel
from massrecon.kinematics.mixture_outlier import Outlier
from massrecon.kinematics.mixture_posterior import MassPosterior, restricted
from massrecon.kinematics.mixture_scheme import MassRegion


def test_matrices_are_inverted_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(50, 4, 4, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    entries = [[matrix[:, i, j] for j in range(4)] for i in range(4)]
    inverse, log_det = algebra.invert(entries)
    stacked = torch.stack([torch.stack(row, -1) for row in inverse], -2)
    torch.testing.assert_close(stacked, torch.linalg.inv(matrix))
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet)
    again = algebra.unpacked(algebra.packed(entries), 4)
    assert all(torch.equal(again[i][j], entries[i][j]) for i in range(4) for j in range(4))


def test_probability_of_a_region_agrees_with_random_points() -> None:
    mean = [torch.tensor([420.0, 560.0]).double(), torch.tensor([120.0, 400.0]).double()]
    covariance = torch.tensor([[900.0, 500.0], [500.0, 1600.0]]).double()
    entries = [[covariance[i, j].expand(2) for j in range(2)] for i in range(2)]
    region = MassRegion((400.0, 50.0), (650.0, 500.0), (((1.0, -1.0), 150.0),))
    found = algebra.log_probability(mean, entries, region.rows).exp()
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(400_000, 2, generator=generator, dtype=torch.float64)
    points = noise @ torch.linalg.cholesky(covariance).T
    for i in range(2):
        inside = region.contains(points + torch.stack([m[i] for m in mean])).double().mean()
        assert abs(float(found[i] - inside)) < 0.015


def test_components_outside_the_region_are_drawn_at_its_edge() -> None:
    region = MassRegion((100.0, 100.0), (200.0, 200.0), (((1.0, -1.0), 20.0),))
    covariance = torch.tensor([[25.0, 0.0], [0.0, 100.0]]).double()
    found = MassPosterior(
        names=("a", "b"),
        region=region,
        log_weight=torch.zeros(1, 1).double(),
        mean=torch.tensor([[[300.0, 150.0]]]).double(),
        covariance=covariance[None, None],
        log_inside=torch.zeros(1, 1).double(),
        log_evidence=torch.zeros(1).double(),
    )
    draws = found.sample(500, seed=1)[:, 0]
    assert bool(region.contains(draws).all())
    # the tail 100 GeV = 20 widths away falls within 25 / 100 GeV
    assert 199.5 < float(draws[:, 0].mean()) < 200
    assert abs(float(draws[:, 1].mean()) - 150) < 2.5


@pytest.mark.parametrize("n_components", [1, 7, 64, 70])
def test_compiled_cuts_are_those_of_torch(n_components: int) -> None:
    """Of components inside, at an edge and far outside, in any number."""
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(n_components)
    shape = (3, n_components, 2)
    mean = torch.tensor([100.0, 50.0]) + 150 * torch.rand(shape, generator=generator).double()
    root = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT * 100 ** torch.rand(shape[:2], generator=generator)[..., None, None]
    covariance = covariance + 0.5 * torch.eye(2, dtype=torch.float64)
    log_weight = torch.zeros(shape[:2]).double()
    log_weight[1, :5] = -torch.inf
    rows = [((1.0, 0.0), 120.0, 200.0), ((1.0, -1.0), 20.0, torch.inf), ((0.0, 1.0), 60.0, 150.0)]
    found = restricted(log_weight, mean, covariance, rows)
    means = list(mean.unbind(-1))
    entries = [[covariance[..., i, j] for j in range(2)] for i in range(2)]
    log_p, image, variance = algebra.truncated(means, entries, rows[:2], [rows[2][0]])
    last = algebra.log_probability(image, variance, [((1.0,), 60.0, 150.0)])
    there = ~log_weight.isinf()
    for ours, expected in zip(found, (log_p, image[0], variance[0][0], last), strict=True):
        torch.testing.assert_close(ours[there], expected[there], rtol=1e-7, atol=1e-7)
        assert bool((ours[~there] == 0).all())
    if n_components == 70:  # all kinds are there
        assert float(last.max()) > -1e-6
        assert float(last.min()) < -300


def test_compiled_sums_of_components_give_the_tails_of_torch() -> None:
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(6)
    region = MassRegion((100.0, 300.0, 10.0), (200.0, 400.0, 50.0))
    n, a, m = 5, 7, 3
    mean = 400 * torch.rand(n, a, m, generator=generator, dtype=torch.float64)
    root = torch.randn(n, a, m, m, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT + 4 * torch.eye(m, dtype=torch.float64)
    share = torch.rand(n, a, generator=generator, dtype=torch.float64)
    share[1], share[2, 3] = 0.0, 0.0
    centre, precision = mean.new_zeros(m, 1, n), mean.new_zeros(m, m, 1, n)
    bounds = np.array([region.low, region.high])
    kernel.add_up_components(
        *(x.numpy() for x in (share, mean, covariance)), bounds, centre.numpy(), precision.numpy()
    )
    outlier = Outlier(region)
    total = [list(row) for row in precision]
    found = outlier.tails_around(share.sum(1)[None], list(centre), total)
    inverse = covariance.inverse().permute(2, 3, 1, 0)
    expected = outlier.tails(share.T, list(mean.permute(2, 1, 0)), inverse)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
