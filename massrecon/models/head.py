"""The head of a family: a density of T numbers, given a context vector.

Every family is a `Head`: it learns p(x | context) from pairs, draws from it, and says how probable
an x is. Neither events nor masses are known here; an encoder in front gives the context, a
`TargetSpace` behind gives x a meaning. x should be near mean 0 and width 1, the context likewise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from massrecon.errors import InputError, ModelError, ShapeError, unknown_name
from massrecon.models.blocks import blocks
from massrecon.models.noise import Draws

DensityKind = Literal["exact", "ode", "bound", "none"]


class Head(nn.Module, ABC):
    """A learned conditional density p(x | context).

    Attributes:
        family: Name of the family, for messages.
        density: What `log_prob` returns: ``"exact"``, the density itself; ``"ode"``, the density of
            the probability flow, up to the steps of its solver; ``"bound"``, a lower bound;
            ``"none"``: it raises.
        solvers: Samplers to choose from, the default first; empty if a draw takes one pass.
        n_targets: Number T of components of x.
        context_dim: Number C of components of the context.
    """

    family: ClassVar[str]
    density: ClassVar[DensityKind]
    solvers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, n_targets: int, context_dim: int) -> None:
        super().__init__()
        if n_targets < 1 or context_dim < 1:
            raise InputError(
                f"A density needs at least one target and one number of context, got {n_targets} "
                f"and {context_dim}."
            )
        self.n_targets, self.context_dim = n_targets, context_dim

    @abstractmethod
    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the training loss of each pair.

        Args:
            x: True values, shape ``(N, T)``.
            context: What they are conditioned on, shape ``(N, C)``.
            generator: Source of the noise, on its own device.

        Returns:
            Losses to be averaged, weighted or not, shape ``(N,)``.
        """

    def score(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes how badly each pair is described, ``(N,)``: smaller is better; for validation.

        The loss itself, unless a family's loss does not fall as it gets better.
        """
        return self.loss(x, context, generator)

    @abstractmethod
    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, shape ``(S, N, T)``, for arguments that `sample` has checked.

        Args:
            context: Contexts, shape ``(N, C)``.
            draws: The random numbers of S draws for each.
            steps: Number of network evaluations; None for the configured one.
            solver: One of `solvers`, or empty.
        """

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x ``(G, N, T)`` given context ``(N, C)``, shape ``(G, N)``.

        Unlike `log_prob` it lets gradients through and takes all at once.
        """
        raise NotImplementedError

    def fit_support(self, x: Tensor) -> None:
        """Learns where x can be at all from the training values ``(N, T)``, if that matters."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the weights for the optimiser, by groups with a ``rate`` relative to the others.

        Other entries of a group, such as ``betas``, are given to the optimiser.
        """
        return [{"params": list(self.parameters()), "rate": 1.0}]

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        n_samples: int,
        *,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        batch_size: int = 8192,
    ) -> Tensor:
        """Draws from p(x | context).

        A draw depends on the seed and on the numbers of its event and draw, not on `batch_size`
        nor on how many draws are taken.

        Args:
            context: Contexts of N events, shape ``(N, C)``.
            n_samples: Number S of draws for each.
            steps: Number of network evaluations for a draw; by default the configured one.
            solver: One of `solvers`; by default the first.
            seed: Seed of the noise.
            batch_size: How many draws are worked on at a time; bounds the memory.

        Returns:
            Draws on the device of `context`, shape ``(S, N, T)``.

        Raises:
            InputError: If an argument is out of range, or the family has no such solver.
        """
        chosen = self.check_sampling(n_samples, steps, solver, batch_size)
        device = context.device
        out = torch.empty(n_samples, len(context), self.n_targets, device=device)
        for which, rows in blocks(n_samples, len(context), batch_size):
            draws = Draws.of_block(seed, which, rows, device)
            out[which, rows] = self.draw_block(context[rows], draws, steps, chosen).to(out)
        return out

    def check_sampling(
        self, n_samples: int, steps: int | None, solver: str | None, batch_size: int
    ) -> str:
        """Checks the arguments of `sample` and returns the solver.

        Raises:
            InputError: If one is out of range.
        """
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"'{name}' should be at least 1, got {value}.")
        if not self.solvers:
            if steps is not None or solver is not None:
                raise InputError(
                    f"The family '{self.family}' draws in a single pass: leave out 'steps' and "
                    "'solver'."
                )
            return ""
        if solver is not None and solver not in self.solvers:
            raise unknown_name(f"solver of {self.family}", solver, self.solvers)
        if steps is not None and steps < 1:
            raise InputError(f"'steps' should be at least 1, got {steps}.")
        return solver or self.solvers[0]

    @torch.no_grad()
    def log_prob(self, x: Tensor, context: Tensor, *, batch_size: int = 8192) -> Tensor:
        """Computes log p(x | context), see `density` for what it is.

        Args:
            x: Values, shape ``(N, T)``, or ``(G, N, T)`` for G values of each event.
            context: Contexts, shape ``(N, C)``.
            batch_size: How many values are worked on at a time; bounds the memory.

        Returns:
            Shape ``(N,)`` or ``(G, N)``.

        Raises:
            ModelError: If the family has no density.
            ShapeError: If the shapes do not fit.
        """
        if self.density == "none":
            raise ModelError(
                f"The family '{self.family}' has no density: draw from it with sample(), or choose "
                "flow, mass_head, diffusion or flow_matching."
            )
        values = x if x.ndim == 3 else x.unsqueeze(0)
        if values.shape[1:] != (len(context), self.n_targets):
            raise ShapeError(
                f"'x' should have shape ({len(context)}, {self.n_targets}), or a further axis in "
                f"front, got {tuple(x.shape)}."
            )
        found = torch.empty(values.shape[:2], device=x.device)
        for which, rows in blocks(len(values), len(context), batch_size):
            found[which, rows] = self.log_density(values[which, rows], context[rows])
        return found if x.ndim == 3 else found[0]
