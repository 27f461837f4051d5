r"""Families that carry noise into targets along a path: what diffusion and flow matching share.

A path mixes the target with noise, x_t = a(t) x_0 + s(t) epsilon, from x_0 at t = 0 to pure noise
at the end. A network learns the mean velocity v(x, t) = E[a'(t) x_0 + s'(t) epsilon | x_t = x].
Both paths here have a s' - s a' = 1, so that

    x_0 = s' x_t - s v,        epsilon = a v - a' x_t,

and the flow dx/dt = v takes noise to draws, and back with the exact density.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.models.head import DensityKind, Head
from massrecon.models.likelihood import flow_log_prob
from massrecon.models.network import TIME_FEATURES, ConditionedMLP, noise_features
from massrecon.models.noise import Draws
from massrecon.models.samplers import SOLVERS, NoiseLevels, Watch, count_levels, watched


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """What the heads of diffusion and flow matching have in common.

    Attributes:
        width: Width of the network.
        depth: Number of its residual blocks.
        noise_draws: How many pairs of time and noise train on each context at a time.
        steps: Network evaluations for a draw when `sample` is not told.
        density_steps: Runge-Kutta steps of `log_prob`, four evaluations each.
    """

    width: int = 256
    depth: int = 4
    noise_draws: int = 4
    steps: int = 20
    density_steps: int = 40

    def __post_init__(self) -> None:
        for name in ("width", "depth", "noise_draws", "steps", "density_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"'{name}' should be at least 1, got {getattr(self, name)}.")


class PathHead(Head):
    """A density that is carried from pure noise by a learned velocity."""

    density: ClassVar[DensityKind] = "ode"
    end: ClassVar[float]
    """Time of pure noise."""

    def __init__(self, n_targets: int, context_dim: int, config: PathConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        self.network = ConditionedMLP(
            n_targets, n_targets, context_dim, config.width, config.depth, TIME_FEATURES
        )

    @staticmethod
    @abstractmethod
    def mixing(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns a, s and their derivatives a', s' at times `t`, each with its shape."""

    @abstractmethod
    def spread_times(self, share: Tensor) -> Tensor:
        """Turns uniform numbers between 0 and 1 into training times."""

    @abstractmethod
    def sampling_times(self, n_levels: int) -> Sequence[float]:
        """Returns the falling times that a sampler visits, without 0."""

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the mean square error of the velocity of each pair, ``(N,)``.

        The times of the `noise_draws` pairs of a row are drawn one from each of as many equally
        probable ranges, which leaves the expectation as it is and makes the loss less noisy.
        """
        shape, device = (len(x), self.config.noise_draws), generator.device
        strata = torch.arange(shape[1], device=device)
        share = (strata + torch.rand(shape, generator=generator, device=device)) / shape[1]
        noise = torch.randn((*shape, self.n_targets), generator=generator, device=device).to(x)
        t = self.spread_times(share.to(x))
        a, s, da, ds = (factor.unsqueeze(-1) for factor in self.mixing(t))
        x_0 = x.unsqueeze(1)
        shares = self.network.embed(context).unsqueeze(1) + self._embed_time(t)
        predicted = self.network(a * x_0 + s * noise, shares)
        return (predicted.float() - (da * x_0 + ds * noise)).square().mean(dim=(1, 2))

    def _embed_time(self, t: Tensor) -> Tensor:
        a, s, _, _ = self.mixing(t)
        log_ratio = s.clamp_min(1e-4).log() - a.clamp_min(1e-4).log()
        return self.network.embed_time(noise_features(log_ratio))

    def velocity(self, x_t: Tensor, t: float, shares: Tensor) -> Tensor:
        """Computes v at a time for embedded contexts `shares`, shape of `x_t`."""
        time = torch.full((), t, dtype=x_t.dtype, device=x_t.device)
        return self.network(x_t, shares + self._embed_time(time))

    def draw_block(
        self,
        context: Tensor,
        draws: Draws,
        steps: int | None,
        solver: str,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        shares = self.network.embed(context)
        times = self.sampling_times(count_levels(solver, steps or self.config.steps))
        factors = [[float(f) for f in self.mixing(torch.tensor(t).double())] for t in times]

        def predict(x_t: Tensor, i: int) -> tuple[Tensor, Tensor]:
            a, s, da, ds = factors[i]
            v = self.velocity(x_t, times[i], shares)
            return ds * x_t - s * v, a * v - da * x_t

        levels = NoiseLevels([f[0] for f in factors], [f[1] for f in factors])
        start = draws.normal(0, self.n_targets)
        seen = watched(predict, levels, watch)
        return SOLVERS[solver](seen, start, levels, lambda i: draws.normal(i, self.n_targets))

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x, see `Head.log_density`."""
        shares = self.network.embed(context)
        return flow_log_prob(lambda y, t: self.velocity(y, t, shares), x, self.density_times())

    def density_times(self) -> list[float]:
        """Returns the times that `log_prob` steps through, from 0 to the end."""
        n = self.config.density_steps
        return [self.end * i / n for i in range(n + 1)]
