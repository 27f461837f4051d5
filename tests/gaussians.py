"""Events whose likelihood is a Gaussian in the masses: every answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from massrecon.inference.densities import MassDensities
from massrecon.inference.massgrid import product_points
from massrecon.inference.prior import TrainingPrior
from massrecon.kinematics.mixture_scheme import MassRegion

NAMES = ("chi20", "chi10")
PLANE = MassRegion((350.0, 25.0), (700.0, 575.0), (((1.0, -1.0), 126.0),))
COVARIANCE = torch.tensor([[1600.0, 800.0], [800.0, 2500.0]], dtype=torch.float64)
TRUTH = torch.tensor([600.0, 200.0], dtype=torch.float64)


class GaussianDensities(MassDensities):
    """p(m | y) proportional to prior(m) N(y; m, C), up to a factor of the event."""

    source = "Gaussian toy"

    def __init__(
        self,
        seen: Tensor,
        covariance: Tensor = COVARIANCE,
        names: Sequence[str] = NAMES,
        prior: TrainingPrior | None = None,
        region: MassRegion | None = PLANE,
    ) -> None:
        self.seen, self.names, self.prior, self.region = seen, tuple(names), prior, region
        self.precision = torch.linalg.inv(covariance)
        self.norm = -0.5 * float(torch.logdet(2 * math.pi * covariance))

    def __len__(self) -> int:
        return len(self.seen)

    def log_density(self, axes: Sequence[Tensor], rows: slice) -> Tensor:
        """Computes the density on the product of axes."""
        points, seen = product_points(axes), self.seen[rows]
        own = ((points @ self.precision) * points).sum(1)
        theirs = ((seen @ self.precision) * seen).sum(1, keepdim=True)
        found = self.norm - 0.5 * (own + theirs) + seen @ self.precision @ points.T
        if self.prior is not None:
            found = found + self.prior.log_density(points)
        return found.reshape(-1, *(len(axis) for axis in axes))


def gaussian_events(n: int, seed: int, truth: Tensor = TRUTH, scale: float = 1.0) -> Tensor:
    """Draws what n events show, shape ``(n, 2)``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return truth + scale * noise @ torch.linalg.cholesky(COVARIANCE).T
