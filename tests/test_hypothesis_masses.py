"""The density of masses with a peak for each hypothesis: normalisation, draws, shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from massrecon.models.cascade.masses import HypothesisMasses, peak_width, triangle_of
from massrecon.models.mass_head import MassHeadConfig
from tests.weights import stirred

SIZES = MassHeadConfig(peaks=3, width=8, depth=1)
LOW, HIGH = -2.0, 3.0


def density(of_card: tuple[int, ...] = (0, 1), seed: int = 1) -> HypothesisMasses:
    """A density with three hypotheses in the two masses of a card, and three numbers of context."""
    torch.manual_seed(seed)
    found = HypothesisMasses(3, SIZES, 3, of_card, 2)
    found.fit_support(torch.tensor([[LOW] * len(of_card), [HIGH] * len(of_card)]))
    for j in range(len(of_card)):
        found.range[j] = torch.tensor([LOW, HIGH])
    return stirred(found, seed=seed)


def context_of(n: int, seed: int = 2, peaks: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(n, 3, generator=generator)
    if peaks is None:
        peaks = torch.cat(
            [
                torch.randn(n, 3, 1, generator=generator),
                torch.rand(n, 3, 2, generator=generator) * 2 - 1,
                -2.5 + 0.3 * torch.randn(n, 3, 2, generator=generator),
                torch.rand(n, 3, 1, generator=generator) * 1.6 - 0.8,
            ],
            dim=-1,
        )
    return torch.cat([own, peaks.flatten(1)], dim=1)


def grid(n: int) -> tuple[Tensor, float]:
    edge = torch.linspace(LOW - 0.2, HIGH + 0.2, n + 1)
    middle = 0.5 * (edge[1:] + edge[:-1])
    return torch.cartesian_prod(middle, middle), float(edge[1] - edge[0]) ** 2


def test_density_is_normalised_also_under_a_ceiling() -> None:
    masses = density()
    masses.free.set_ceiling(1, 0, 0.5, 1.0)
    x, area = grid(700)
    log_p = masses.log_prob(x.unsqueeze(1).expand(-1, 4, -1), context_of(4), batch_size=10**6)
    torch.testing.assert_close(log_p.exp().sum(0) * area, torch.ones(4), rtol=0, atol=0.01)
    assert bool((log_p[x[:, 1] > x[:, 0] + 0.5 + 0.05] == -math.inf).all())


def test_draws_follow_the_density() -> None:
    masses = density()
    context = context_of(3)
    x, area = grid(400)
    weight = masses.log_prob(x.unsqueeze(1).expand(-1, 3, -1), context).exp() * area
    mean = (weight.unsqueeze(-1) * x.unsqueeze(1)).sum(0)
    square = (weight.unsqueeze(-1) * (x.unsqueeze(1) - mean) ** 2).sum(0)
    product = (weight * (x[:, None, 0] - mean[:, 0]) * (x[:, None, 1] - mean[:, 1])).sum(0)
    draws = masses.sample(context, 20_000, seed=5)
    error = float(square.sqrt().amax()) / math.sqrt(20_000)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=5 * error)
    torch.testing.assert_close(draws.var(0), square, rtol=0.06, atol=0)
    off = draws - draws.mean(0)
    torch.testing.assert_close((off[..., 0] * off[..., 1]).mean(0), product, rtol=0, atol=0.06)


def test_one_certain_hypothesis_is_the_gaussian_of_the_mixture() -> None:
    """Means, widths and correlation of the peak are those that the mixture gives."""
    masses = density()
    place, width, correlation = (0.2, -0.1), (0.04, 0.06), 0.6
    peak = [30.0, *place, *(math.log(w) for w in width), correlation]
    nothing = [-math.inf, 0.0, 0.0, 0.0, 0.0, 0.0]
    context = context_of(1, peaks=torch.tensor([[peak, nothing, nothing]]))
    draws = masses.sample(context, 40_000, seed=3)[:, 0]
    span, middle = HIGH - LOW, 0.5 * (HIGH + LOW)
    wanted = torch.tensor([middle + 0.5 * span * at for at in place])
    torch.testing.assert_close(draws.mean(0), wanted, rtol=0, atol=0.01)
    # the smallest scale of a peak is added to the width
    least = 0.003 * math.pi / math.sqrt(3)
    spread = torch.tensor([span * (w + least) for w in width])
    torch.testing.assert_close(draws.std(0), spread, rtol=0.04, atol=0)
    assert float(torch.corrcoef(draws.T)[0, 1]) == pytest.approx(correlation, abs=0.03)


def test_absent_hypotheses_have_no_say() -> None:
    masses = density()
    context = context_of(4).unflatten(1, (-1,))
    peaks = context[:, 3:].unflatten(1, (3, 6)).clone()
    peaks[:, 1, 0] = -math.inf
    one = torch.cat([context[:, :3], peaks.flatten(1)], dim=1)
    peaks[:, 1, 1:] = 0.9
    other = torch.cat([context[:, :3], peaks.flatten(1)], dim=1).requires_grad_()
    x = torch.rand(4, 2) * 2
    found = masses.loss(x, other, torch.Generator())
    torch.testing.assert_close(found, masses.loss(x, one, torch.Generator()))
    found.sum().backward()
    assert other.grad is not None
    assert bool(torch.isfinite(other.grad).all())


def test_masses_without_hypotheses_have_a_density_too() -> None:
    """A third mass, such as that of the W, is no mass of the card."""
    masses = density(of_card=(0, 1, -1))
    context = context_of(2)
    axis = torch.linspace(LOW - 0.2, HIGH + 0.2, 81)
    x = torch.cartesian_prod(axis, axis, axis)
    log_p = masses.log_prob(x.unsqueeze(1).expand(-1, 2, -1), context, batch_size=10**6)
    total = log_p.exp().sum(0) * float(axis[1] - axis[0]) ** 3
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=0.05)
    draws = masses.sample(context, 4000, seed=1)
    weight = log_p.exp() / log_p.exp().sum(0)
    mean = (weight.unsqueeze(-1) * x.unsqueeze(1)).sum(0)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.12)


def test_triangle_is_the_cholesky_factor() -> None:
    torch.manual_seed(0)
    for n in (1, 2, 4):
        root = torch.randn(5, n, n + 2)
        covariance = root @ root.transpose(1, 2)
        width = covariance.diagonal(dim1=1, dim2=2).sqrt()
        correlation = covariance / (width.unsqueeze(1) * width.unsqueeze(2))
        wanted = torch.linalg.cholesky(correlation)
        rows, columns = torch.tril_indices(n, n, offset=-1)
        found = triangle_of(correlation[:, rows, columns], n)
        assert peak_width(n) == 1 + 2 * n + found.shape[1]
        torch.testing.assert_close(found, wanted[:, rows, columns], rtol=1e-3, atol=1e-3)
    # where the correlations are, also off the processor
    assert triangle_of(torch.zeros(2, 6, device="meta"), 4).device.type == "meta"
