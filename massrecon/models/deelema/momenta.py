"""From the network's numbers to invisible momenta and the masses of the targets.

The numbers are unknown momentum components. Trial masses and ptmiss hold exactly: with I invisible
particles,

    q_iT = ptmiss / I + u_i,   u_I = -(u_1 + ... + u_(I-1)),   E_i = sqrt(m_i^2 + |q_i|^2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from massrecon.models.deelema.structure import Structure

_LEAST = 1e-12


def invisible_momenta(unknown: Tensor, ptmiss: Tensor, trial_masses: Tensor) -> Tensor:
    """Completes invisible momenta.

    Args:
        unknown: Unknown components, shape ``(..., 3 I - 2)``: the longitudinal ones of all
            particles, then the transverse ones u of all but the last.
        ptmiss: Missing transverse momentum, shape ``(..., 2)``.
        trial_masses: Trial masses of the particles, shape ``(I,)``.

    Returns:
        Four-momenta (px, py, pz, E), shape ``(..., I, 4)``.
    """
    n = len(trial_masses)
    pz = unknown[..., :n, None]
    free = unknown[..., n:].reshape(*unknown.shape[:-1], n - 1, 2)
    offsets = torch.cat([free, -free.sum(-2, keepdim=True)], dim=-2)
    p3 = torch.cat([ptmiss.unsqueeze(-2) / n + offsets, pz], dim=-1)
    energy = (p3.square().sum(-1) + trial_masses.square()).sqrt()
    return torch.cat([p3, energy.unsqueeze(-1)], dim=-1)


def unknown_components(invisible: Tensor, ptmiss: Tensor) -> Tensor:
    """Inverts `invisible_momenta`: unknown components ``(..., 3 I - 2)``."""
    n = invisible.shape[-2]
    offsets = invisible[..., :-1, :2] - ptmiss.unsqueeze(-2) / n
    return torch.cat([invisible[..., 2], offsets.flatten(-2)], dim=-1)


class MassFunction:
    """Squared masses of all targets of a decay as a function of the momenta."""

    def __init__(self, structure: Structure, device: torch.device | str = "cpu") -> None:
        n_visible, n_hidden = len(structure.legs.visible), len(structure.legs.invisible)
        seen = torch.zeros(len(structure.targets), n_visible)
        unseen = torch.zeros(len(structure.targets), n_hidden)
        for row, target in enumerate(structure.targets):
            seen[row, list(target.visible)] = 1.0
            unseen[row, list(target.invisible)] = 1.0
        self.seen, self.unseen = seen.to(device), unseen.to(device)

    def visible_sums(self, visible: Tensor) -> Tensor:
        """Sums the visible momenta ``(..., L, 4)`` below each target, shape ``(..., T, 4)``."""
        return self.seen.to(visible.dtype) @ visible

    def squared(self, visible_sums: Tensor, invisible: Tensor) -> Tensor:
        """Computes squared masses, shape ``(..., T)``."""
        total = visible_sums + self.unseen.to(invisible.dtype) @ invisible
        return total[..., 3].square() - total[..., :3].square().sum(-1)


def safe_root(squared: Tensor) -> Tensor:
    """Takes square roots with a finite gradient at zero and below."""
    return squared.clamp_min(_LEAST).sqrt()
