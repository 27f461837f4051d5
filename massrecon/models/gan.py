r"""A conditional Wasserstein GAN with a gradient penalty: the `gan` family.

A generator G makes x from noise z and the context; a critic f scores pairs (x, c). The critic
learns to score true pairs above made ones, as far as its slope in x stays at one,

    L_f = E f(G(z, c), c) - E f(x, c) + lambda E (|grad_x f(x', c)| - 1)^2,

with x' between a true and a made value; the generator learns to raise its score and to lower the
energy score S of what it makes for a context,

    L_G = - E f(G(z, c), c) + S,        S = E |x - G(z, c)| - E |G(z, c) - G(z', c)| / 2.

S is smallest for the true posterior and keeps the two from running around each other. Both take a
step at a time, with rates of their own. There is no density. Since L_f + L_G does not say how
good the generator is, validation uses S alone.

References:
    I. Gulrajani et al., arXiv:1704.00028, Algorithm 1; M. Heusel et al., arXiv:1706.08500 (two time
    scales); T. Gneiting and A. Raftery, J. Am. Stat. Assoc. 102 (2007) 359, Eq. (22).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.models.event_model import SMALL_ENCODER, EventConfig, EventModel
from massrecon.models.head import Head
from massrecon.models.network import ConditionedMLP
from massrecon.models.noise import Draws

_SCORE_DRAWS = 16


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    """The GAN head.

    Attributes:
        latent_dim: Components of the noise z.
        width: Width of generator and critic.
        depth: Number of their residual blocks.
        noise_draws: How many made values each context has at a time.
        penalty: Weight lambda of the gradient penalty.
        energy: Weight of the energy score, relative to the critic's.
        critic_rate: Learning rate of the critic, relative to that of the recipe.
        generator_rate: Learning rate of the generator, likewise.
    """

    latent_dim: int = 16
    width: int = 256
    depth: int = 3
    noise_draws: int = 4
    penalty: float = 1.0
    energy: float = 20.0
    critic_rate: float = 0.5
    generator_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"'{name}' should be at least 1, got {getattr(self, name)}.")
        if self.noise_draws < 2:
            raise InputError(f"'noise_draws' should be at least 2, got {self.noise_draws}.")
        for name in ("penalty", "energy", "critic_rate", "generator_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"'{name}' should be positive, got {getattr(self, name)}.")


class GANHead(Head):
    """A Wasserstein GAN of x given a context."""

    family = "gan"
    density = "none"

    def __init__(self, n_targets: int, context_dim: int, config: GANConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        sizes = (context_dim, config.width, config.depth)
        self.generator = ConditionedMLP(config.latent_dim, n_targets, *sizes)
        self.critic = ConditionedMLP(n_targets, 1, *sizes)
        # only differences of scores matter
        self.critic.last.bias.requires_grad_(False)
        # noise reaches x from the start
        torch.nn.init.normal_(self.generator.last.weight, std=config.width**-0.5)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns critic and generator, each with its own rate and short memory."""
        rates = (self.config.critic_rate, self.config.generator_rate)
        return [
            {
                "params": [p for p in part.parameters() if p.requires_grad],
                "rate": rate,
                "betas": (0.5, 0.9),
            }
            for part, rate in zip((self.critic, self.generator), rates, strict=True)
        ]

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes L_f + L_G of each pair, ``(N,)``; each acts on its own network alone."""
        made = self._make(context, self.config.noise_draws, generator)
        seen = self.critic.embed(context)
        true_score = self._criticise(x, seen)
        made_score = self._criticise(made.detach(), seen).mean(dim=0)
        critic_loss = made_score - true_score
        if torch.is_grad_enabled():
            slope = self._slope(x, made[0].detach(), seen, generator)
            critic_loss = critic_loss + self.config.penalty * (slope - 1).square()
        raised = self._score_of_frozen_critic(made, context).mean(dim=0)
        return critic_loss - raised + self.config.energy * _energy_score(made, x)

    def _score_of_frozen_critic(self, made: Tensor, context: Tensor) -> Tensor:
        frozen = {f"critic.{name}": p.detach() for name, p in self.critic.named_parameters()}
        return torch.func.functional_call(self, frozen, (made, context.detach()))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Scores values ``(..., N, T)`` of contexts ``(N, C)`` with the critic, ``(..., N)``."""
        return self._criticise(x, self.critic.embed(context))

    def _criticise(self, x: Tensor, seen: Tensor) -> Tensor:
        return self.critic(x, seen).squeeze(-1).float()

    def _make(self, context: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Makes `n` values for each context, shape ``(n, N, T)``."""
        shape = (n, len(context), self.config.latent_dim)
        z = torch.randn(shape, generator=generator, device=generator.device).to(context)
        return self.generator(z, self.generator.embed(context)).float()

    def _slope(self, x: Tensor, made: Tensor, seen: Tensor, generator: torch.Generator) -> Tensor:
        """Computes |grad_x f| at random places between true and made values, ``(N,)``."""
        share = torch.rand(len(x), 1, generator=generator, device=generator.device).to(x)
        between = (share * x + (1 - share) * made).requires_grad_()
        total = self._criticise(between, seen).sum()
        (gradient,) = torch.autograd.grad(total, between, create_graph=True)
        return (gradient.square().sum(dim=-1) + 1e-12).sqrt()

    def score(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the energy score of made values, ``(N,)``."""
        return _energy_score(self._make(context, _SCORE_DRAWS, generator), x)

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        z = draws.normal(0, self.config.latent_dim)
        return self.generator(z, self.generator.embed(context))


def _energy_score(made: Tensor, x: Tensor) -> Tensor:
    """Computes the energy score of made values ``(S, N, T)``, S > 1, against x, ``(N,)``."""
    apart = _distance(made, x).mean(dim=0)
    n = len(made)
    pairs = sum(_distance(made, made.roll(k, dims=0)).sum(dim=0) for k in range(1, n))
    return apart - pairs / (2 * n * (n - 1))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).square().sum(dim=-1) + 1e-12).sqrt()


@dataclass(frozen=True, kw_only=True)
class GANModelConfig(GANConfig, EventConfig):
    """Everything that the family `gan` can be told: head, encoder and targets."""

    def __post_init__(self) -> None:
        GANConfig.__post_init__(self)
        EventConfig.__post_init__(self)


class GAN(EventModel):
    """A Wasserstein GAN of any card's targets."""

    name = "gan"
    density = GANHead.density
    solvers = GANHead.solvers
    config_type = GANModelConfig
    head_type = GANHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {**SMALL_ENCODER, "width": 128, "depth": 2},
    }
