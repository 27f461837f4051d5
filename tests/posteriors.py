"""Problems whose posterior is known exactly, to test any family of densities against.

Each draws pairs (x, context), and exact draws of p(x | context) for any context; all are scaled to
about mean 0 and width 1. The budget of a training is a number of steps with fresh pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from massrecon.inference.twosample import c2st
from massrecon.models.head import Head


class Problem(ABC):
    """A joint distribution of x and context with a known posterior."""

    name: ClassVar[str]
    n_targets: ClassVar[int] = 2
    context_dim: ClassVar[int] = 2
    examples: ClassVar[tuple[tuple[float, ...], ...]]
    """Contexts at which the posterior is compared."""

    @abstractmethod
    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws x ``(n, T)`` and context ``(n, C)`` from their joint distribution."""

    @abstractmethod
    def posterior(self, context: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the exact posterior of one context ``(C,)``, shape ``(n, T)``."""


class LinearGaussian(Problem):
    """x ~ N(0, 1) in three dimensions, context = A x + noise."""

    name = "linear-Gaussian"
    n_targets = 3
    examples = ((0.0, 0.0), (1.2, -0.5), (-0.8, 1.5))
    matrix = torch.tensor([[0.8, 0.4, 0.0], [-0.3, 0.5, 0.7]])
    noise = torch.tensor([0.3, 0.5])

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws pairs."""
        x = torch.randn(n, 3, generator=generator)
        return x, x @ self.matrix.T + self.noise * torch.randn(n, 2, generator=generator)

    def posterior(self, context: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the Gaussian with precision 1 + A^T A / noise^2."""
        weighted = self.matrix / self.noise.square().unsqueeze(1)
        covariance = torch.linalg.inv(torch.eye(3) + self.matrix.T @ weighted)
        mean = covariance @ weighted.T @ context
        root = torch.linalg.cholesky(covariance)
        return mean + torch.randn(n, 3, generator=generator) @ root.T


class TwoMoons(Problem):
    """Two crescents (D. Greenberg et al., arXiv:1905.07488, appendix A.5.1), three times as thick.

    With a ~ U(-pi/2, pi/2) and r ~ N(0.1, 0.03), context = (r cos a + 0.25 - |x1 + x2| / sqrt 2,
    r sin a + (x2 - x1) / sqrt 2), x uniform in (-1, 1). The contexts compared are such that both
    crescents lie inside.
    """

    name = "two moons"
    examples = ((0.0, 0.0), (-0.3, 0.2), (-0.2, -0.4))
    radius, thickness = 0.1, 0.03
    scale = 1 / math.sqrt(3.0)

    def _crescent(self, n: int, generator: torch.Generator) -> Tensor:
        angle = math.pi * (torch.rand(n, generator=generator) - 0.5)
        r = self.radius + self.thickness * torch.randn(n, generator=generator)
        return torch.stack([r * angle.cos() + 0.25, r * angle.sin()], dim=1)

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws pairs."""
        x = 2 * torch.rand(n, 2, generator=generator) - 1
        shift = torch.stack([-(x[:, 0] + x[:, 1]).abs(), x[:, 1] - x[:, 0]], dim=1) / math.sqrt(2)
        return x / self.scale, (self._crescent(n, generator) + shift) / 0.5

    def posterior(self, context: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Inverts the map of the crescent, with either sign of x1 + x2."""
        q = math.sqrt(2) * (self._crescent(n, generator) - 0.5 * context)
        sign = 2.0 * torch.randint(2, (n,), generator=generator) - 1
        total, difference = sign * q[:, 0], -q[:, 1]
        x = torch.stack([total - difference, total + difference], dim=1) / 2
        return x / self.scale


class GaussianMixture(Problem):
    """x uniform in (-4, 4), context = x + noise of width 1 or 0.1, half each.

    As task T.7 of J.-M. Lueckmann et al., arXiv:2101.04653, whose prior reaches to 10.
    """

    name = "2-D mixture"
    examples = ((0.0, 0.0), (0.7, -0.4), (-0.9, -0.9))
    scale = 4 / math.sqrt(3.0)

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws pairs."""
        x = 8 * torch.rand(n, 2, generator=generator) - 4
        return x / self.scale, (x + self._noise(n, generator)) / self.scale

    def _noise(self, n: int, generator: torch.Generator) -> Tensor:
        wide = torch.randint(2, (n, 1), generator=generator).bool()
        return torch.randn(n, 2, generator=generator) * torch.where(wide, 1.0, 0.1)

    def posterior(self, context: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draws context minus noise, where that lies inside the prior."""
        x = self.scale * context - self._noise(4 * n, generator)
        return x[(x.abs() < 4).all(dim=1)][:n] / self.scale


PROBLEMS: tuple[Problem, ...] = (LinearGaussian(), TwoMoons(), GaussianMixture())


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a head is trained: `steps` of `batch` fresh pairs, cosine from `rate`."""

    steps: int
    batch: int = 512
    rate: float = 2e-3


def train_head(head: Head, problem: Problem, budget: Budget, seed: int = 0) -> Head:
    """Trains a head on pairs of a problem."""
    generator = torch.Generator().manual_seed(seed)
    head.fit_support(problem.pairs(20_000, generator)[0])
    groups = [{**group, "initial": group["rate"]} for group in head.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, lr=budget.rate, weight_decay=0.0)
    for step in range(budget.steps):
        progress = step / budget.steps
        rate = (
            budget.rate * min(1.0, 20 * progress + 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        optimizer.zero_grad()
        head.loss(*problem.pairs(budget.batch, generator), generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    return head.eval()


def distance(
    head: Head, problem: Problem, n: int = 2000, seed: int = 1, **options: object
) -> float:
    """Returns the mean accuracy of a classifier between draws and the exact posterior."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.tensor(problem.examples)
    draws = head.sample(contexts, n, seed=seed, **options)
    found = [
        c2st(draws[:, i], problem.posterior(context, n, generator), seed=seed).accuracy
        for i, context in enumerate(contexts)
    ]
    return sum(found) / len(found)
