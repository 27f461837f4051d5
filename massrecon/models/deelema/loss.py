"""The loss of DeeLeMa: masses of one event agree with each other and with the global ones.

    L = sum_relations d(m_i, m_j) + sum_targets d(M_f, m_i)

for each event and each way to take its visible particles as legs; M_f are the global masses. Soft
assignment replaces the loss of the given way by

    -T log( mean_ways exp(-L / T) ),

which for T -> 0 is the smallest one: a wrong way no longer counts where another one fits.

References:
    K. Ban et al., Phys. Rev. Res. 5 (2023) 043186, Eq. (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from massrecon.models.deelema.config import DeeLeMaConfig
from massrecon.models.deelema.momenta import safe_root
from massrecon.models.deelema.structure import Structure

_HUBER = 0.01


def _huber(x: Tensor) -> Tensor:
    return torch.where(x.abs() < _HUBER, 0.5 * x.square() / _HUBER, x.abs() - 0.5 * _HUBER)


_DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": torch.abs,
    "l2": torch.square,
    "huber": _huber,
    "squared_mass": torch.abs,
}


class Loss:
    """The loss of events as a function of squared masses, in units of the scale."""

    def __init__(self, structure: Structure, config: DeeLeMaConfig) -> None:
        self.structure, self.config = structure, config
        self.distance = _DISTANCES[config.distance]
        self.group = list(structure.group_of)
        self.first = [i for i, _ in structure.relations]
        self.second = [j for _, j in structure.relations]

    def each(self, squared: Tensor, global_masses: Tensor) -> Tensor:
        """Computes the loss of each event.

        Args:
            squared: Squared masses of the targets, shape ``(..., T)``.
            global_masses: Global masses of the groups, shape ``(G,)``.

        Returns:
            Losses, shape ``(...)``.
        """
        wanted = global_masses[self.group]
        if self.config.distance == "squared_mass":
            masses, wanted = squared, wanted.square()
        else:
            masses = safe_root(squared)
        batch = self.distance(masses - wanted).sum(-1)
        event = self.distance(masses[..., self.first] - masses[..., self.second]).sum(-1)
        return self.config.batch_weight * batch + self.config.event_weight * event

    def total(self, losses: Tensor) -> Tensor:
        """Averages losses ``(P, N)`` over events, the ways combined softly, a scalar."""
        if len(losses) == 1:
            return losses.mean()
        temperature = self.config.temperature
        soft = torch.logsumexp(-losses / temperature, dim=0) - math.log(len(losses))
        return -temperature * soft.mean()

    def weights(self, losses: Tensor) -> Tensor:
        """Computes the probabilities of the ways from their losses, both ``(P, N)``."""
        return torch.softmax(-losses / self.config.temperature, dim=0)


def anchor_penalty(masses: Tensor, edges: Tensor, errors: Tensor) -> Tensor:
    """Computes how far global masses are from their edges: linear beyond about one error.

    Args:
        masses: Global masses, shape ``(G,)``.
        edges: Edges in the same unit, shape ``(G,)``; NaN where there is none.
        errors: Their errors, shape ``(G,)``.
    """
    known = edges.isfinite()
    pull = (masses[known] - edges[known]) / errors[known]
    return (errors[known] * ((1 + pull.square()).sqrt() - 1)).sum()
