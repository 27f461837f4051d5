r"""The discrete diffusion of DDPM: noise schedule, denoiser and ancestral sampling.

Noise is added to a target x_0 in T small steps of variance beta_t. With alpha_t = 1 - beta_t and
alpha_bar_t = prod_{s<=t} alpha_s, the target after t steps is

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon,    epsilon ~ N(0, 1).

A network that predicts epsilon from (x_t, t, context) turns pure noise x_T back into a draw from
p(x_0 | context) in T random steps; `massrecon.models.samplers` has quicker ways.

References:
    J. Ho, A. Jain and P. Abbeel, arXiv:2006.11239, Eqs. (4), (11) and Algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from massrecon.errors import InputError
from massrecon.models.network import mlp

NoisePredictor = Callable[[Tensor, int], Tensor]
"""Predicts the noise in x_t from ``(x_t, t)``; it has the shape of x_t, ``(..., T)``."""


class NoiseSchedule(nn.Module):
    """A linear noise schedule: beta_t rises evenly from `beta_first` to `beta_last`.

    Attributes:
        betas: Variance added in each step, float64, shape ``(T,)``, always on the processor.
        alphas_bar: Share of the target's variance that is left after each step, likewise.
        signal: sqrt(alpha_bar_t), float32 on the module's device.
        spread: sqrt(1 - alpha_bar_t), float32 on the module's device.
    """

    signal: Tensor
    spread: Tensor

    def __init__(self, steps: int, beta_first: float, beta_last: float) -> None:
        super().__init__()
        # plain attributes: not every device has float64, and samplers read them as Python floats
        self.betas = torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)
        self.alphas_bar = torch.cumprod(1 - self.betas, dim=0)
        self._log_ratios = 0.5 * torch.log((1 - self.alphas_bar) / self.alphas_bar).numpy()
        self.register_buffer("signal", self.alphas_bar.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1 - self.alphas_bar).sqrt().float(), persistent=False)

    def __len__(self) -> int:
        return len(self.betas)

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns x_t for integer steps `t` (from 0), which broadcast to ``x_0[..., 0]``."""
        return self.signal[t].unsqueeze(-1) * x_0 + self.spread[t].unsqueeze(-1) * noise

    def factors(self, t: int) -> tuple[float, float]:
        """Returns signal and spread after a step, in double precision."""
        alpha_bar = float(self.alphas_bar[t])
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def log_ratio_times(self, n: int) -> list[float]:
        """Returns `n` + 1 even values of log(spread / signal), from the first step to the last."""
        first, last = (math.log(s / a) for a, s in (self.factors(0), self.factors(len(self) - 1)))
        return [first + (last - first) * i / n for i in range(n + 1)]

    def factors_at(self, log_ratio: float) -> tuple[float, float, float]:
        """Returns signal, spread and the (broken) step at a value of log(spread / signal)."""
        spread = 1 / math.sqrt(1 + math.exp(-2 * log_ratio))
        t = float(np.interp(log_ratio, self._log_ratios, np.arange(len(self))))
        return math.sqrt(1 - spread**2), spread, t

    def ddim_steps(self, steps: int) -> list[int]:
        """Chooses the steps that DDIM visits, falling from T - 1 to 0.

        They are spaced quadratically in t. At 50 steps even spacing leaves Gaussians of 0.2 units
        15 % too narrow, this one 5 %; denser still near 0, the jumps between noisy steps, which
        multiply the error of the predicted noise, would become too large.

        Raises:
            InputError: If `steps` is not between 1 and T.

        References:
            arXiv:2010.02502, appendix D.2, "quadratic".
        """
        if not 1 <= steps <= len(self):
            raise InputError(f"'steps' should be between 1 and {len(self)}, got {steps}.")
        last = len(self) - 1
        chosen: list[int] = []
        for position in range(steps - 1):
            wanted = round(last * (position / (steps - 1)) ** 2)
            earliest = chosen[-1] + 1 if chosen else 0
            chosen.append(max(wanted, earliest))
        return [last, *reversed(chosen)]


def ancestral_sample(
    predict_noise: NoisePredictor,
    x_last: Tensor,
    schedule: NoiseSchedule,
    draw_noise: Callable[[int], Tensor],
) -> Tensor:
    """Samples by undoing all T noise steps one by one (DDPM, with variance beta_t).

    Args:
        predict_noise: The noise predictor.
        x_last: Standard normal start x_T, shape ``(..., T)``.
        schedule: The noise schedule.
        draw_noise: Gives standard normal noise of the same shape for a step t > 0.

    Returns:
        Draws of x_0, shape ``(..., T)``.

    References:
        arXiv:2006.11239, Algorithm 2.
    """
    x_t = x_last
    for t in reversed(range(len(schedule))):
        beta, alpha_bar = float(schedule.betas[t]), float(schedule.alphas_bar[t])
        drift = beta / math.sqrt(1 - alpha_bar)
        x_t = (x_t - drift * predict_noise(x_t, t)) / math.sqrt(1 - beta)
        if t > 0:
            x_t = x_t + math.sqrt(beta) * draw_noise(t)
    return x_t


class Denoiser(nn.Module):
    """Predicts the noise in x_t from x_t, the time step and the context of the event.

    Time embedding and context each pass an MLP to `dim`, are concatenated with the noised target
    (``2 dim + T`` inputs) and enter an MLP. The first layer of that MLP is linear in the three
    parts, so the shares of context and time are computed once per event and once per step.
    """

    def __init__(self, n_targets: int, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.time_mlp = mlp(dim, dim, dim)
        self.context_mlp = mlp(dim, dim, dim)
        self.first = nn.Linear(2 * dim + n_targets, hidden)
        self.rest = nn.Sequential(nn.SiLU(), mlp(hidden, *[hidden] * (layers - 1), n_targets))
        self._start_as_identity(n_targets)

    @torch.no_grad()
    def _start_as_identity(self, n_targets: int) -> None:
        """Sets the initial weights so that x_t itself is the first prediction of the noise.

        For most steps x_t is nearly pure noise, and sampling multiplies the error made there by
        up to 1 / sqrt(alpha_bar_T) = 2000. Since silu(z) - silu(-z) = z, two units per target
        carry it unchanged through all layers.
        """
        pairs = torch.zeros(n_targets, self.first.out_features)
        pairs[:, : 2 * n_targets] = torch.eye(n_targets).repeat_interleave(2, dim=1)
        pairs[:, 1 : 2 * n_targets : 2] *= -1
        carriers = slice(0, 2 * n_targets)
        *hidden, last = (layer for layer in self.rest.modules() if isinstance(layer, nn.Linear))
        self.first.weight[carriers] = 0.0
        self.first.bias[carriers] = 0.0
        self.first.weight[carriers, 2 * self.dim :] = pairs[:, carriers].T
        for layer in hidden:
            layer.weight[carriers] = pairs[:, carriers].T @ pairs
            layer.bias[carriers] = 0.0
        last.weight.copy_(pairs)
        last.bias.zero_()

    def embed_context(self, context: Tensor) -> Tensor:
        """Returns the context's share of the first layer, ``(N, dim)`` -> ``(N, hidden)``."""
        weight = self.first.weight[:, self.dim : 2 * self.dim]
        return functional.linear(self.context_mlp(context), weight)

    def embed_time(self, t: Tensor) -> Tensor:
        """Returns the share of the steps `t`, with the bias, ``(R,)`` -> ``(R, hidden)``."""
        embedded = self.time_mlp(sinusoidal_embedding(t, self.dim))
        return functional.linear(embedded, self.first.weight[:, : self.dim], self.first.bias)

    def forward(self, x_t: Tensor, time_share: Tensor, context_share: Tensor) -> Tensor:
        """Predicts the noise in `x_t`, shape ``(..., T)``, from the two shares of the first layer.

        The shares broadcast against each other and against ``(..., hidden)``.
        """
        weight = self.first.weight[:, 2 * self.dim :]
        return self.rest(functional.linear(x_t, weight) + (time_share + context_share))


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Embeds integer steps in sines and cosines of `dim` / 2 frequencies, ``(R,)`` -> ``(R, dim)``.

    References:
        A. Vaswani et al., arXiv:1706.03762, section 3.5.
    """
    exponent = torch.arange(dim // 2, device=t.device, dtype=torch.float32) / (dim // 2)
    phase = t.to(torch.float32).unsqueeze(-1) * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
