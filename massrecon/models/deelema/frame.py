"""The frame of an event: what a collision has no direction for is taken out, exactly.

Physics does not change under boosts along the beam, turns about it, mirror images, and the exchange
of two equal sides. Each event is boosted until its visible particles have no longitudinal momentum,
turned until ptmiss points along x, mirrored until the first side flies to positive y and z, and its
sides are ordered by visible energy. Every step is linear and is undone for the invisible momenta.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.models.deelema.structure import Structure


@dataclass(frozen=True)
class Frame:
    """Transformations of N events.

    Attributes:
        rapidity: Longitudinal boosts, shape ``(N,)``.
        angle: Turns about the beam [rad], shape ``(N,)``.
        mirror: Signs of y and z, shape ``(N, 2)``.
        exchanged: Whether the sides are exchanged, shape ``(N,)``.
        order: Order of the invisible legs after an exchange; None if there is none.
    """

    rapidity: Tensor
    angle: Tensor
    mirror: Tensor
    exchanged: Tensor
    order: Tensor | None

    def undo(self, invisible: Tensor) -> Tensor:
        """Brings invisible momenta ``(N, I, 4)`` back to the laboratory."""
        q = _exchange(invisible, self.order, self.exchanged)
        q = _mirror(q, self.mirror)
        return _boost(_turn(q, self.angle), self.rapidity)


def to_frame(structure: Structure, visible: Tensor, ptmiss: Tensor) -> tuple[Tensor, Tensor, Frame]:
    """Brings events to their frame.

    Args:
        structure: The decay.
        visible: Visible momenta (px, py, pz, E) [GeV], shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.

    Returns:
        Visible momenta, ptmiss ``(N, 2)`` along x, and the transformations.
    """
    total = visible.sum(1)
    rapidity = torch.atanh((total[:, 2] / total[:, 3]).clamp(-1 + 1e-12, 1 - 1e-12))
    angle = torch.atan2(ptmiss[:, 1], ptmiss[:, 0])
    moved = _turn(_boost(visible, -rapidity), -angle)
    orders, exchanged = structure.exchange, torch.zeros_like(angle, dtype=torch.bool)
    first = [structure.legs.visible.index(leg) for leg in structure.legs.chains[0].visible]
    if orders is not None:
        energy = moved[..., 3]
        exchanged = energy[:, first].sum(1) < energy[:, orders[0][first]].sum(1)
        moved = _exchange(moved, orders[0], exchanged)
    side = moved[:, first].sum(1)
    mirror = torch.where(side[:, 1:3] < 0, -1.0, 1.0).to(visible.dtype)
    magnitude = torch.hypot(ptmiss[:, 0], ptmiss[:, 1])
    along = torch.stack([magnitude, torch.zeros_like(magnitude)], dim=1)
    order = None if orders is None else orders[1]
    return _mirror(moved, mirror), along, Frame(rapidity, angle, mirror, exchanged, order)


def _boost(p4: Tensor, rapidity: Tensor) -> Tensor:
    """Adds a rapidity to momenta ``(N, K, 4)``."""
    cosh, sinh = rapidity.cosh()[:, None], rapidity.sinh()[:, None]
    px, py, pz, energy = p4.unbind(-1)
    return torch.stack([px, py, cosh * pz + sinh * energy, cosh * energy + sinh * pz], dim=-1)


def _turn(p4: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    px, py, pz, energy = p4.unbind(-1)
    return torch.stack([cos * px - sin * py, sin * px + cos * py, pz, energy], dim=-1)


def _mirror(p4: Tensor, signs: Tensor) -> Tensor:
    one = torch.ones_like(signs[:, :1])
    return p4 * torch.cat([one, signs, one], dim=1)[:, None]


def _exchange(p4: Tensor, order: Tensor | None, exchanged: Tensor) -> Tensor:
    if order is None:
        return p4
    return torch.where(exchanged[:, None, None], p4[:, order.to(p4.device)], p4)
