"""Every family on problems with known posteriors, judged by a classifier two-sample test.

The mean accuracy over three contexts of each problem must stay below 0.60 (0.5 is perfect), with
2000 draws of each. The stated budgets are steps of 256 fresh pairs; the forest sees them at once. A
generator and critic need most steps: after 2000 they stand next to thin crescents, not on them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from massrecon.models.diffusion import DiffusionConfig, DiffusionHead
from massrecon.models.flow import FlowConfig, FlowHead
from massrecon.models.flow_matching import FlowMatchingConfig, FlowMatchingHead
from massrecon.models.gan import GANConfig, GANHead
from massrecon.models.head import Head
from massrecon.models.mass_head import MassHead, MassHeadConfig
from massrecon.models.trees import TreesConfig, TreesHead
from massrecon.models.vae import VAEConfig, VAEHead
from tests.posteriors import (
    PROBLEMS,
    Budget,
    GaussianMixture,
    LinearGaussian,
    Problem,
    distance,
    train_head,
)

LIMIT = 0.60
BATCH = 256
HEADS: dict[str, Callable[[int, int, int], Head]] = {
    "diffusion": lambda T, C, w: DiffusionHead(T, C, DiffusionConfig(width=w, depth=2)),
    "flow_matching": lambda T, C, w: FlowMatchingHead(T, C, FlowMatchingConfig(width=w, depth=2)),
    "flow": lambda T, C, w: FlowHead(T, C, FlowConfig(width=w // 2, transforms=6, bins=8)),
    "mass_head": lambda T, C, w: MassHead(T, C, MassHeadConfig(width=w, depth=2)),
    "vae": lambda T, C, w: VAEHead(T, C, VAEConfig(width=w, depth=2, latent_dim=4)),
    "gan": lambda T, C, w: GANHead(T, C, GANConfig(width=w, depth=2, latent_dim=4)),
    "trees": lambda T, C, w: TreesHead(
        T, C, TreesConfig(n_trees=w // 4, leaf_events=80, features_tried=1.0)
    ),
}


def trained(name: str, problem: Problem, budget: Budget, width: int) -> Head:
    torch.manual_seed(0)
    head = HEADS[name](problem.n_targets, problem.context_dim, width)
    if isinstance(head, TreesHead):
        generator = torch.Generator().manual_seed(0)
        head.grow(*problem.pairs(budget.steps * budget.batch, generator))
        return head.eval()
    return train_head(head, problem, budget)


QUICK = {"gan": 400, "trees": 160}


@pytest.mark.parametrize("name", HEADS)
def test_linear_gaussian_posterior(name: str) -> None:
    budget = Budget(steps=QUICK.get(name, 200), batch=BATCH, rate=4e-3)
    head = trained(name, LinearGaussian(), budget, 64)
    found = distance(head, LinearGaussian(), n=1000)
    assert found <= LIMIT, f"{name} {found:.3f}"


class Shuffled(GaussianMixture):
    """Pairs that do not belong together: what is learned from them is the prior."""

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, context = super().pairs(n, generator)
        return x.roll(1, dims=0), context


class Narrow(LinearGaussian):
    """Pairs with the noise of the context underestimated."""

    noise = 0.6 * LinearGaussian.noise


@pytest.mark.parametrize(("broken", "truth"), [(Shuffled(), PROBLEMS[2]), (Narrow(), PROBLEMS[0])])
def test_a_broken_model_fails(broken: Problem, truth: Problem) -> None:
    head = trained("flow", broken, Budget(steps=150, batch=BATCH, rate=4e-3), 64)
    assert distance(head, truth, n=1000) > LIMIT


BUDGETS = {"gan": 3500, "mass_head": 2000, "trees": 600}


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("name", HEADS)
def test_known_posteriors(name: str, problem: Problem) -> None:
    budget = Budget(steps=BUDGETS.get(name, 1000), batch=BATCH)
    found = distance(trained(name, problem, budget, 128), problem)
    print(f"{name}, {problem.name}: {found:.3f}")
    assert found <= LIMIT
