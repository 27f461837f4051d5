r"""Exact densities along a probability flow: dx/dt = v(x, t), from the data to pure noise.

The density is carried along by the flow, d log p / dt = - div v, so that

    log p(x) = log N(x(t_end)) + integral of div v along the path through x.

The divergence is the trace of the full Jacobian, by one backward pass a dimension: for at most some
tens of dimensions no random estimate is needed. (Forward differentiation through torch.func does
the same arithmetic, but takes ten times as long for a few events.) Steps are fixed, Runge-Kutta of
fourth order: an adaptive solver would couple the events of a batch, whose densities would then
depend on each other.

References:
    R. T. Q. Chen et al., arXiv:1806.07366, Eq. (8); Y. Song et al., arXiv:2011.13456, section 4.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""The velocity v(x, t) of the flow, shape ``(..., T)`` -> ``(..., T)``, row by row."""


def flow_log_prob(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Computes the log-density of x at the first of `times`, given N(0, 1) at the last.

    Args:
        velocity: The velocity field.
        x: Values at the first time, shape ``(..., T)``.
        times: Times of the steps, in order.

    Returns:
        log p, shape ``(...)``.
    """
    total = x.new_zeros(x.shape[:-1])
    for start, stop in itertools.pairwise(times):
        x, change = _runge_kutta_step(velocity, x, start, stop)
        total = total + change
    return total + normal_log_prob(x)


def _runge_kutta_step(
    velocity: Velocity, x: Tensor, start: float, stop: float
) -> tuple[Tensor, Tensor]:
    step, middle = stop - start, 0.5 * (start + stop)
    v_1, div_1 = velocity_and_divergence(velocity, x, start)
    v_2, div_2 = velocity_and_divergence(velocity, x + 0.5 * step * v_1, middle)
    v_3, div_3 = velocity_and_divergence(velocity, x + 0.5 * step * v_2, middle)
    v_4, div_4 = velocity_and_divergence(velocity, x + step * v_3, stop)
    moved = x + (step / 6) * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
    return moved, (step / 6) * (div_1 + 2 * div_2 + 2 * div_3 + div_4)


@torch.enable_grad()
def velocity_and_divergence(velocity: Velocity, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Computes v ``(..., T)`` and the trace of its Jacobian ``(...)``, one component at a time."""
    x = x.detach().requires_grad_()
    v = velocity(x, t)
    trace = torch.zeros_like(x[..., 0])
    for i, component in enumerate(v.unbind(dim=-1)):
        kept = i + 1 < x.shape[-1]
        (gradient,) = torch.autograd.grad(component.sum(), x, retain_graph=kept)
        trace += gradient[..., i]
    return v.detach(), trace


def normal_log_prob(x: Tensor) -> Tensor:
    """Computes the log-density of independent standard normal components, ``(...)``."""
    return -0.5 * (x.square().sum(dim=-1) + x.shape[-1] * math.log(2 * math.pi))
