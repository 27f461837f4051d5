r"""First the masses, then the momenta: a density in two parts.

    p(masses, momenta | context) = p(masses | context) p(momenta | masses, context)

The masses have a direct joint density, normalised exactly and cut where decays are closed; the
momenta are carried from noise by a flow that is told the masses. So the masses, which matter most,
need no integration, and the momenta agree with them draw by draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.models.cascade.masses import HypothesisMasses, peak_width
from massrecon.models.flow_matching import FlowMatchingConfig, FlowMatchingHead
from massrecon.models.head import Head
from massrecon.models.mass_head import MassHead, MassHeadConfig
from massrecon.models.noise import Draws
from massrecon.models.samplers import Watch

_WAVES = 5
# keeps the noise of the momenta apart from that of the masses
_OTHER_STREAM = 0x5EED0000


@dataclass(frozen=True, kw_only=True)
class SequentialConfig:
    """The density of masses and momenta.

    Attributes:
        peaks: Number of logistic peaks of the density of each mass.
        mass_width: Width of the networks of the masses.
        mass_depth: Number of their residual blocks.
        width: Width of the network of the momenta.
        depth: Number of its residual blocks.
        noise_draws: How many pairs of time and noise train on each event at a time.
        steps: Network evaluations for a draw of the momenta when `sample` is not told.
        momenta_weight: Weight of the loss of the momenta against that of the masses.
    """

    peaks: int = 16
    mass_width: int = 192
    mass_depth: int = 2
    width: int = 192
    depth: int = 3
    noise_draws: int = 2
    steps: int = 20
    momenta_weight: float = 0.3

    def __post_init__(self) -> None:
        _ = self.masses, self.momenta  # both check their sizes
        if self.momenta_weight <= 0:
            raise InputError(f"'momenta_weight' should be positive, got {self.momenta_weight}.")

    @property
    def masses(self) -> MassHeadConfig:
        """What the density of the masses is told."""
        return MassHeadConfig(peaks=self.peaks, width=self.mass_width, depth=self.mass_depth)

    @property
    def momenta(self) -> FlowMatchingConfig:
        """What the flow of the momenta is told."""
        return FlowMatchingConfig(
            width=self.width, depth=self.depth, noise_draws=self.noise_draws, steps=self.steps
        )


class SequentialHead(Head):
    """A density of masses, and a flow of everything else given the masses.

    Args:
        n_targets: Number T of components of x.
        context_dim: Number of components of the context.
        config: Sizes.
        mass_columns: Which components are masses.
        peaks: What `HypothesisMasses` is told where hypotheses are part of the context: their
            number H, of which mass of the card each component is, and the number of these; None
            for a free density of the masses.

    Attributes:
        masses: The density of the masses.
        momenta: The flow of the other components; None if there are none.
    """

    family = "cascade"
    density = "ode"
    solvers = FlowMatchingHead.solvers

    def __init__(
        self,
        n_targets: int,
        context_dim: int,
        config: SequentialConfig,
        mass_columns: Sequence[int],
        peaks: tuple[int, Sequence[int], int] | None = None,
    ) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        self.mass_columns = list(mass_columns)
        self.other_columns = [i for i in range(n_targets) if i not in self.mass_columns]
        n_masses = len(self.mass_columns)
        self.masses: MassHead | HypothesisMasses
        if peaks is None:
            self.masses = MassHead(n_masses, context_dim, config.masses)
        else:
            context_dim -= peaks[0] * peak_width(peaks[2])
            self.masses = HypothesisMasses(context_dim, config.masses, *peaks)
        self.own_dim = context_dim
        self.momenta = None
        if self.other_columns:
            given = context_dim + n_masses * (1 + 2 * _WAVES)
            self.momenta = FlowMatchingHead(len(self.other_columns), given, config.momenta)

    @property
    def free(self) -> MassHead:
        """The density of the masses that no hypothesis enters."""
        return self.masses.free if isinstance(self.masses, HypothesisMasses) else self.masses

    def fit_support(self, x: Tensor) -> None:
        """Sets the range of the masses to that of the training values."""
        self.masses.fit_support(x[:, self.mass_columns])

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density of the masses, and adds the loss of the flow."""
        masses = x[:, self.mass_columns]
        loss = self.masses.loss(masses, context, generator)
        if self.momenta is None:
            return loss
        others, given = x[:, self.other_columns], self._given(masses, context)
        return loss + self.config.momenta_weight * self.momenta.loss(others, given, generator)

    def _given(self, masses: Tensor, context: Tensor) -> Tensor:
        """Joins contexts ``(N, C)`` with masses ``(..., N, M)`` and their waves."""
        low, high, context = self.free.lowest, self.free.highest, context[..., : self.own_dim]
        place = (masses - low) / (high - low)
        phase = place.unsqueeze(-1) * (math.pi * 2.0 ** torch.arange(_WAVES, device=place.device))
        columns = (2 * place - 1, phase.sin().flatten(-2), phase.cos().flatten(-2))
        return torch.cat([context.expand(*masses.shape[:-1], -1), *columns], dim=-1)

    def draw_block(
        self,
        context: Tensor,
        draws: Draws,
        steps: int | None,
        solver: str,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        masses = self.masses.draw_block(context, draws, None, "")
        x = masses.new_empty(*masses.shape[:-1], self.n_targets)
        x[..., self.mass_columns] = masses
        if self.momenta is not None:
            draws = dataclasses.replace(draws, seed=draws.seed + _OTHER_STREAM)
            given = self._given(masses, context)
            seen = None if watch is None else self._with_masses(x, watch)
            x[..., self.other_columns] = self.momenta.draw_block(given, draws, steps, solver, seen)
        return x

    def _with_masses(self, x: Tensor, watch: Watch) -> Watch:
        """Shows the way of the momenta together with the masses that they are given."""

        def watching(i: int, signal: float, spread: float, x_t: Tensor, x_0: Tensor) -> None:
            whole = [x.clone(), x.clone()]
            for part, others in zip(whole, (x_t, x_0), strict=True):
                part[..., self.other_columns] = others
            watch(i, signal, spread, *whole)

        return watching

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Computes log p of x, see `Head.log_density`."""
        masses = x[..., self.mass_columns]
        total = self.masses.log_density(masses, context)
        if self.momenta is not None:
            given = self._given(masses, context)
            total = total + self.momenta.log_density(x[..., self.other_columns], given)
        return total
