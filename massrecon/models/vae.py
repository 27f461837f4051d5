r"""A conditional variational autoencoder: the `vae` family.

A hidden z of standard normal components makes x: p(x | c) = integral of N(z) p(x | z, c) dz, with a
Gaussian decoder whose means and widths are learned. An encoder q(z | x, c) proposes the z that may
have made an x. Training and `log_prob` use the importance-weighted bound

    log p(x | c) >= E log (1 / K) sum_k p(x | z_k, c) N(z_k) / q(z_k | x, c),    z_k ~ q,

which rises to log p as K grows. The gradient of q is the doubly reparametrised one, whose noise
does not grow with K.

References:
    K. Sohn, H. Lee and X. Yan, NeurIPS 2015 (conditional VAE); Y. Burda, R. Grosse and
    R. Salakhutdinov, arXiv:1509.00519, Eq. (8); G. Tucker et al., arXiv:1810.04152, Eq. (8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.models.event_model import SMALL_ENCODER, EventConfig, EventModel
from massrecon.models.head import Head
from massrecon.models.likelihood import normal_log_prob
from massrecon.models.network import ConditionedMLP
from massrecon.models.noise import Draws, indexed_normal

_LOG_WIDTHS = (-5.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The VAE head.

    Attributes:
        latent_dim: Components of the hidden z.
        width: Width of encoder and decoder.
        depth: Number of their residual blocks.
        importance_samples: How many z train on each pair at a time.
        bound_samples: How many z the bound of `log_prob` uses.
    """

    latent_dim: int = 8
    width: int = 256
    depth: int = 3
    importance_samples: int = 8
    bound_samples: int = 256

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "depth", "importance_samples", "bound_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"'{name}' should be at least 1, got {getattr(self, name)}.")


class VAEHead(Head):
    """A variational autoencoder of x given a context; `log_prob` is a lower bound."""

    family = "vae"
    density = "bound"

    def __init__(self, n_targets: int, context_dim: int, config: VAEConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        sizes = (context_dim, config.width, config.depth)
        self.encoder = ConditionedMLP(n_targets, 2 * config.latent_dim, *sizes)
        self.decoder = ConditionedMLP(config.latent_dim, 2 * n_targets, *sizes)

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative importance-weighted bound of each pair, ``(N,)``."""
        shape = (self.config.importance_samples, len(x), self.config.latent_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(x)
        mean, log_width = self._proposal(x, self.encoder.embed(context))
        z = mean + log_width.exp() * noise
        # the gradient of q passes through z alone, weighted once more where it does
        q = _gaussian(z, mean.detach(), log_width.detach())
        log_weight = self._joint(x, z, self.decoder.embed(context)) - q
        weight = torch.softmax(log_weight.detach(), dim=0)
        if z.requires_grad:
            z.register_hook(lambda gradient: weight.unsqueeze(-1) * gradient)
        bound = torch.logsumexp(log_weight, dim=0) - math.log(len(z))
        # same value as the bound; the gradient is that of the weighted sum
        return -(bound.detach() + (weight * (log_weight - log_weight.detach())).sum(dim=0))

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes a lower bound of log p of x, see `Head.log_density`."""
        encoded, decoded = self.encoder.embed(context), self.decoder.embed(context)
        mean, log_width = self._proposal(x, encoded)
        total = x.new_full(x.shape[:-1], -math.inf)
        # the same noise for every value, so that the bound is smooth in x
        zero = torch.zeros((), dtype=torch.int64, device=x.device)
        for k in range(self.config.bound_samples):
            z = mean + log_width.exp() * indexed_normal(0, k, zero, zero, mean.shape[-1])
            log_weight = self._joint(x, z, decoded) - _gaussian(z, mean, log_width)
            total = torch.logaddexp(total, log_weight)
        return total - math.log(self.config.bound_samples)

    def _proposal(self, x: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_width = self.encoder(x, encoded).float().chunk(2, dim=-1)
        return mean, log_width.clamp(*_LOG_WIDTHS)

    def _decode(self, z: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_width = self.decoder(z, decoded).float().chunk(2, dim=-1)
        return mean, log_width.clamp(*_LOG_WIDTHS)

    def _joint(self, x: Tensor, z: Tensor, decoded: Tensor) -> Tensor:
        return normal_log_prob(z) + _gaussian(x, *self._decode(z, decoded))

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        z = draws.normal(0, self.config.latent_dim)
        mean, log_width = self._decode(z, self.decoder.embed(context))
        return mean + log_width.exp() * draws.normal(1, self.n_targets)


def _gaussian(x: Tensor, mean: Tensor, log_width: Tensor) -> Tensor:
    """Computes the log-density of independent Gaussians, ``(..., D)`` -> ``(...)``."""
    return normal_log_prob((x - mean) * torch.exp(-log_width)) - log_width.sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class VAEModelConfig(VAEConfig, EventConfig):
    """Everything that the family `vae` can be told: head, encoder and targets."""

    def __post_init__(self) -> None:
        VAEConfig.__post_init__(self)
        EventConfig.__post_init__(self)


class VAE(EventModel):
    """A variational autoencoder of any card's targets."""

    name = "vae"
    density = VAEHead.density
    solvers = VAEHead.solvers
    config_type = VAEModelConfig
    head_type = VAEHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {**SMALL_ENCODER, "width": 128, "depth": 2},
    }
