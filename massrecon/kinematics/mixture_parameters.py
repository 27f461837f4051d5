"""How a decay chain answers: parameters that turn measured masses into Gaussians.

A chain that lost an object, or whose partons radiated, measures its resonances too low and less
well. Its parameters depend on the number of lost legs; they are fitted on simulated events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics.legs import Chain
from massrecon.kinematics.mixture_chains import ChainTerms
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme
from massrecon.kinematics.topology import Node

FLOOR = 1.0
"""Least width of a measured mass [GeV]."""


class ChainResponse(nn.Module):
    """The response of one chain.

    Attributes:
        prior: Log of the relative probability to lose as many legs, shape ``(P,)``.
        shift: Relative shift of the objects that can get lost, ``(P,)``.
        log_spread: Log of their common relative width, ``(P,)``.
        log_blur: Log of a relative width of each measured mass, ``(d, P)``.
        power: Power of each measured mass in the prior, from phase space, ``(d, P)``.
        log_invisible: Log of a width [GeV] of masses with the solved invisible leg, for real and
            for unreal solutions, ``(2,)``; empty without one.
    """

    def __init__(
        self, scheme: MassScheme, chain: Chain, lossy: frozenset[str], origin: Sequence[float]
    ) -> None:
        super().__init__()
        self.scheme, self.origin = scheme, origin
        self.nodes = scheme.measured(chain)
        lost = torch.arange(_most_lost(scheme, chain, lossy) + 1, dtype=torch.float64)
        by_mass = torch.ones(len(self.nodes), len(lost), dtype=torch.float64)
        self.has_solved = any(scheme.has_solved(node) for node in self.nodes)
        self.prior = nn.Parameter(-0.8 * lost)
        self.shift = nn.Parameter(0.1 + 0.0 * lost)
        self.log_spread = nn.Parameter((0.03 + 0.07 * lost).log())
        self.log_blur = nn.Parameter(math.log(0.03) * by_mass)
        self.power = nn.Parameter(-by_mass)
        widths = [12.0, 24.0] if self.has_solved else []
        self.log_invisible = nn.Parameter(torch.tensor(widths, dtype=torch.float64).log())

    def information(self, terms: ChainTerms, widths: Mapping[str, Tensor], extra: Tensor) -> Tensor:
        """Computes H^T S^-1 H (on and above its diagonal), H^T S^-1 y and the log weight.

        Unknown masses are counted from `origin`, which keeps the numbers small.

        Args:
            terms: What the objects say.
            widths: Factor on the resolution of each source.
            extra: Weights of the traits of extra objects, shape ``(T,)``.

        Returns:
            One row for each entry, shape ``(M (M + 1) / 2 + M + 1, R C, N)``.
        """
        lost = terms.lost
        values = [
            mass + self.shift[lost][:, None] * lean - self.expected(node)
            for mass, lean, node in zip(terms.mass, terms.lean, self.nodes, strict=True)
        ]
        inverse, log_det = algebra.invert(self._covariance(terms, widths))
        pull = algebra.times(inverse, values)
        power = self.power[:, lost][..., None]
        log_weight = (
            self.prior[lost][:, None]
            - (extra[:, None, None] * terms.traits).sum(0)
            - 0.5 * (log_det + algebra.dot(values, pull))
            + algebra.sum_of([p * mass.log() for p, mass in zip(power, terms.mass, strict=True)])
        )
        rows = torch.broadcast_tensors(*self._mapped(inverse, pull), log_weight)
        return torch.stack(rows).flatten(1, 2)

    def expected(self, node: Node) -> float:
        """Returns the known mass of a resonance, or the origin of its unknown one."""
        parameter, known = self.scheme.parameter[node.index], self.scheme.known[node.index]
        return self.origin[parameter] if parameter is not None else (known or 0.0)

    def _covariance(self, terms: ChainTerms, widths: Mapping[str, Tensor]) -> algebra.Matrix:
        """Adds up the sources of uncertainty."""
        size, lost = len(self.nodes), terms.lost
        spread = (2 * self.log_spread[lost]).exp()[:, None]
        blur = (2 * self.log_blur[:, lost]).exp()[..., None]
        entries = iter(range(size * (size + 1) // 2))
        matrix: algebra.Matrix = [[spread] * size for _ in range(size)]
        for i in range(size):
            for j in range(i, size):
                entry = next(entries)
                parts = [spread * terms.lean[i] * terms.lean[j]]
                for name, covariance in terms.covariance.items():
                    term = covariance[entry]
                    if term is not None:
                        parts.append(widths[name] ** 2 * term)
                if i == j:
                    parts.append(blur[i] * terms.mass[i] ** 2 + FLOOR**2)
                    parts += self._solution_width(i, terms)
                matrix[i][j] = matrix[j][i] = algebra.sum_of(parts)
        return matrix

    def _solution_width(self, i: int, terms: ChainTerms) -> list[Tensor]:
        if terms.unreal is None or not self.scheme.has_solved(self.nodes[i]):
            return []
        real, unreal = (2 * self.log_invisible).exp()
        return [torch.where(terms.unreal, unreal, real)]

    def _mapped(self, inverse: algebra.Matrix, pull: list[Tensor]) -> list[Tensor]:
        """Maps the information on the measured masses to the unknown ones."""
        zero = torch.zeros_like(pull[0])
        of = [self.scheme.parameter[node.index] for node in self.nodes]
        size = len(self.scheme.names)
        matrix: algebra.Matrix = [[zero] * size for _ in range(size)]
        vector = [zero] * size
        for i, p in enumerate(of):
            if p is None:
                continue
            vector[p] = vector[p] + pull[i]
            for j, q in enumerate(of):
                if q is not None:
                    matrix[p][q] = matrix[p][q] + inverse[i][j]
        return [*algebra.packed(matrix), *vector]


def _most_lost(scheme: MassScheme, chain: Chain, lossy: frozenset[str]) -> int:
    """Counts the legs of a chain that can be lost while each decay keeps one of its own."""
    most, legs = 0, scheme.legs
    for node in chain.resonances:
        own = [kind for child in node.children if (kind := legs.kinds[child]) is not None]
        can = sum(kind in lossy for kind in own)
        most += min(can, len(own) - 1) if own else 0
    return most


class Outlier(nn.Module):
    """The component for events that no assignment explains: one broad Gaussian.

    Attributes:
        share: Log of its weight where the others add up to one, and how it follows their sum (a
            sigmoid: 0 not at all, 1 in proportion), ``(2,)``.
        centre: Its mean [GeV], ``(M,)``.
        log_width: Log of its width in each mass [GeV], ``(M,)``.
    """

    def __init__(self, region: MassRegion) -> None:
        super().__init__()
        low, high = (torch.tensor(x, dtype=torch.float64) for x in (region.low, region.high))
        self.region = region
        self.share = nn.Parameter(torch.tensor([-3.0, 4.0], dtype=torch.float64))
        self.centre = nn.Parameter((low + high) / 2)
        self.log_width = nn.Parameter((high - low).log())

    @property
    def mean(self) -> list[Tensor]:
        """Its mean before it is cut to the region, M tensors."""
        return list(self.centre)

    @property
    def covariance(self) -> algebra.Matrix:
        """Its covariance before it is cut to the region."""
        variances = (2 * self.log_width).exp()
        zero, n = torch.zeros_like(variances[0]), len(variances)
        return [[variances[i] if i == j else zero for j in range(n)] for i in range(n)]

    def log_weight(self, log_evidence: Tensor) -> Tensor:
        """Computes its log weight from the log of the sum of the others inside the region."""
        return self.share[0] + self.share[1].sigmoid() * log_evidence

    def log_inside(self) -> Tensor:
        """Computes the log of its part inside the region."""
        return algebra.log_probability(self.mean, self.covariance, self.region.rows)

    def log_prob(self, masses: list[Tensor]) -> Tensor:
        """Computes its log density inside the region at M tensors ``(N,)``."""
        inverse, log_det = algebra.invert(self.covariance)
        density = algebra.log_normal_density(masses, self.mean, inverse, -log_det)
        return density - self.log_inside()
