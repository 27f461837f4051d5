"""Fine mass grids around single mass points, beside a coarse one over the whole plane.

Thirty events know their masses better than the 10 GeV of a grid over the plane, and mass points on
its nodes would get other critical values than points between them. Near the true masses, where the
likelihood is largest, it is computed in steps of 5 GeV; the coarse grid still tells of maxima that
are further away.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from massrecon.inference.massgrid import product_points
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.pseudo import ratio_statistic, refined_maximum, value_at

REACH = 80.0  # of a window to either side of its mass point [GeV]
STEP = 5.0  # [GeV]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A product of mass axes.

    Attributes:
        axes: Evenly rising values of each mass [GeV], by its name.
        inside: Which points the training prior contains, shape ``(G,)``.
    """

    axes: dict[str, Tensor]
    inside: Tensor

    @classmethod
    def around(cls, mass: Tensor, prior: TrainingPrior) -> Grid:
        """Builds the window around a mass point ``(M,)`` [GeV], which is one of its nodes."""
        steps = STEP * torch.arange(-round(REACH / STEP), round(REACH / STEP) + 1)
        axes = {
            name: value + steps.double()
            for name, value in zip(prior.names, mass.double(), strict=True)
        }
        return cls(axes, prior.region.contains(product_points(list(axes.values()))))

    @property
    def values(self) -> list[Tensor]:
        """The axes."""
        return list(self.axes.values())


def statistic(plane: Tensor, window: Tensor, grid: Grid, fine: Grid, mass: Tensor) -> Tensor:
    """Computes lambda = 2 [max log L - log L(mass)] with the maximum from both grids.

    Args:
        plane: log L of T experiments on the grid over the plane, shape ``(T, G)``.
        window: log L of the same experiments on the window, shape ``(T, F)``.
        grid: The grid over the plane.
        fine: The window around the mass point.
        mass: The mass point [GeV], shape ``(M,)``.

    Returns:
        Values, zero or larger, shape ``(T,)``.
    """
    near = ratio_statistic(window, fine.values, fine.inside, mass)
    shape = [len(axis) for axis in grid.values]
    best, place = refined_maximum(plane.double().masked_fill(~grid.inside, -math.inf), shape)
    start = torch.stack([axis[0] for axis in grid.values])
    step = torch.stack([axis[1] - axis[0] for axis in grid.values])
    beyond = ((start + place * step - mass).abs() > REACH).any(1)
    allowed = window.double().masked_fill(~fine.inside, -math.inf)
    far = 2 * (best - value_at(allowed, fine.values, mass))
    return torch.where(beyond, torch.maximum(near, far), near)
