"""What is left to the masses of an event if no assignment explains it: a few broad Gaussians.

With v_a the posterior weights of the hypotheses of an event, N(m; mu_a, C_a) their Gaussians and
mu_a' their means moved into the region, each *tail* r is one Gaussian around them, wider than they
are on average by a fitted factor k_r,

    N(m; sum_a v_a mu_a', k_r^2 P^-1),      P = sum_a v_a C_a^-1,

and the *outlier* is one Gaussian that is the same for all events. The log of their weights falls
with the log evidence L of the event, which says how well any assignment explains it: where the
hypotheses have the weight exp(L), each of these has

    exp(L + s_r - t_r (L - pivot)),      0 < t_r < 1.

Without tails the mixture is not sure enough of itself: all that its Gaussians do not explain would
lie anywhere in the region, although most of it lies near them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics.mixture_scheme import MassRegion

_FACTORS = (3.0, 8.0)
_LOG_SHARES = (-3.0, -2.0, -2.0)
_SLOPE = -1.5
_PIVOT = -40.0
_LEAST = 1e-9  # weight of the outlier in the mean of an event without an assignment


class Outlier(nn.Module):
    """The broad Gaussians of an event: one that is the same for all events, and R tails.

    Attributes:
        share: Of the outlier, then of each tail: s, and t before the sigmoid, ``(1 + R, 2)``.
        pivot: Log evidence at which s counts; a fit sets it to the median of its events.
        log_factor: Log of the factors k of each tail, ``(R, M)``.
        centre: Mean of the outlier [GeV], ``(M,)``.
        log_width: Log of its width in each mass [GeV], ``(M,)``.
    """

    def __init__(self, region: MassRegion) -> None:
        super().__init__()
        low, high = (torch.tensor(x, dtype=torch.float64) for x in (region.low, region.high))
        self.region = region
        start = torch.tensor([[s, _SLOPE] for s in _LOG_SHARES], dtype=torch.float64)
        self.share = nn.Parameter(start)
        self.pivot = nn.Parameter(torch.tensor(_PIVOT, dtype=torch.float64))
        factors = torch.tensor(_FACTORS, dtype=torch.float64).log()
        self.log_factor = nn.Parameter(factors[:, None].repeat(1, len(region.low)))
        self.centre = nn.Parameter((low + high) / 2)
        self.log_width = nn.Parameter((high - low).log())

    @property
    def n_tails(self) -> int:
        """Number of tails."""
        return len(self.log_factor)

    @property
    def mean(self) -> list[Tensor]:
        """Mean of the outlier before it is cut to the region, M tensors."""
        return list(self.centre)

    @property
    def covariance(self) -> algebra.Matrix:
        """Covariance of the outlier before it is cut to the region."""
        variances = (2 * self.log_width).exp()
        zero, n = torch.zeros_like(variances[0]), len(variances)
        return [[variances[i] if i == j else zero for j in range(n)] for i in range(n)]

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Computes the log weights inside the region from the log evidence ``(N,)``.

        The outlier comes first, then the tails, shape ``(1 + R, N)``.
        """
        level, slope = self.share.T.unsqueeze(-1)
        return log_evidence + level - slope.sigmoid() * (log_evidence - self.pivot)

    def log_inside(self) -> Tensor:
        """Computes the log of the part of the outlier inside the region."""
        return algebra.log_probability(self.mean, self.covariance, self.region.rows)

    def log_prob(self, masses: list[Tensor]) -> Tensor:
        """Computes the log density of the outlier inside the region at M tensors ``(N,)``."""
        inverse, log_det = algebra.invert(self.covariance)
        density = algebra.log_normal_density(masses, self.mean, inverse, -log_det)
        return density - self.log_inside()

    def tails(
        self, share: Tensor, mean: Sequence[Tensor], precision: algebra.Matrix
    ) -> tuple[list[Tensor], algebra.Matrix]:
        """Computes means ``(1, N)`` and covariances ``(R, N)`` of the tails, before the cut.

        Args:
            share: Posterior weights of A hypotheses, which add up to one, or to zero for an event
                that has none, shape ``(A, N)``.
            mean: Their means [GeV], M tensors ``(A, N)``.
            precision: Their inverse covariances [1/GeV²].
        """
        ends = zip(mean, self.region.low, self.region.high, strict=True)
        centre = [(share * x.clamp(low, high)).sum(0, keepdim=True) for x, low, high in ends]
        total = [[(share * p).sum(0, keepdim=True) for p in row] for row in precision]
        return self.tails_around(share.sum(0, keepdim=True), centre, total)

    def tails_around(
        self, weight: Tensor, centre: Sequence[Tensor], precision: algebra.Matrix
    ) -> tuple[list[Tensor], algebra.Matrix]:
        """Computes `tails` from sums over the hypotheses, all of shape ``(1, N)``.

        Args:
            weight: Sum of the weights.
            centre: Sums of weight times mean moved into the region, M tensors [GeV].
            precision: Sums of weight times inverse covariance [1/GeV²].
        """
        own, _ = algebra.invert(self.covariance)
        total = weight + _LEAST
        middle = [(x + _LEAST * c) / total for x, c in zip(centre, self.centre, strict=True)]
        average = [
            [(p + _LEAST * q) / total for p, q in zip(row, own_row, strict=True)]
            for row, own_row in zip(precision, own, strict=True)
        ]
        inverse, _ = algebra.invert(average)
        factor = self.log_factor.exp().T.unsqueeze(-1)
        widened = [
            [entry * factor[i] * factor[j] for j, entry in enumerate(row)]
            for i, row in enumerate(inverse)
        ]
        return middle, widened

    def tail_log_prob(
        self, masses: list[Tensor], mean: list[Tensor], covariance: algebra.Matrix
    ) -> Tensor:
        """Computes the log density of the tails inside the region at M tensors, ``(R, N)``."""
        inverse, log_det = algebra.invert(covariance)
        mean = [x.expand_as(log_det) for x in mean]
        density = algebra.log_normal_density(masses, mean, inverse, -log_det)
        return density - algebra.log_probability(mean, covariance, self.region.rows)
