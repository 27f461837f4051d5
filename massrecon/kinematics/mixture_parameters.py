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
from massrecon.kinematics.mixture_invisible import Fillings
from massrecon.kinematics.mixture_scheme import MassScheme
from massrecon.kinematics.topology import Node

FLOOR = 1.0
"""Least width of a measured mass [GeV]."""

BARE = 10.0
"""Relative width of a mass if a decay in it lost all that is seen of it."""


class ChainResponse(nn.Module):
    """The response of one chain.

    Attributes:
        prior: Log of the relative probability to lose as many legs, shape ``(P,)``.
        shift: Relative shift of the objects that can get lost, ``(P,)``.
        log_spread: Log of their common relative width, ``(P,)``.
        log_blur: Log of a relative width of each measured mass, ``(d, P)``.
        power: Power of each measured mass in the prior, from phase space, ``(d, P)``.
        way: Weights of the `WAYS` of a solution in the log of its probability, ``(4,)``.
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
        solved = scheme.solved_in(chain)
        has_solved = any(scheme.contains(node, leg) for node in self.nodes for leg in solved)
        self.prior = nn.Parameter(-0.8 * lost)
        self.shift = nn.Parameter(0.1 + 0.0 * lost)
        self.log_spread = nn.Parameter((0.03 + 0.07 * lost).log())
        self.log_blur = nn.Parameter(math.log(0.03) * by_mass)
        self.power = nn.Parameter(-by_mass)
        # a single leg takes all of ptmiss: nothing is integrated over
        start = -1.0 if len(scheme.legs.invisible) > 1 else 0.0
        self.way = nn.Parameter(torch.tensor([start, start, 0.0, 0.0], dtype=torch.float64))
        widths = [12.0, 24.0] if has_solved else []
        self.log_invisible = nn.Parameter(torch.tensor(widths, dtype=torch.float64).log())

    def information(self, terms: ChainTerms, widths: Mapping[str, Tensor], extra: Tensor) -> Tensor:
        """Computes H^T S^-1 H (on and above its diagonal), H^T S^-1 y and the log weight.

        Unknown masses are counted from `origin`, which keeps the numbers small.

        Args:
            terms: What the objects say.
            widths: Factor on the resolution of each source.
            extra: Weights of the traits of extra objects, shape ``(T,)``.

        Returns:
            One row for each entry, shape ``(M (M + 1) / 2 + M + 1, W C, N)``.
        """
        lost, trial = terms.lost, terms.trial
        weight = self.prior[lost][:, None] - (extra[:, None, None] * terms.traits).sum(0)
        weight = weight + algebra.dot(list(self.way), terms.ways)
        if not self.nodes:  # a chain without a measured mass only has a weight
            weight = weight.expand(torch.broadcast_shapes(weight.shape, (1, 1, 1)))
            m = len(self.scheme.names)
            zeros = [torch.zeros_like(weight)] * (m * (m + 1) // 2 + m)
            return torch.stack([*zeros, weight]).flatten(1, 2)
        columns = zip(terms.mass, terms.lean, terms.by_trial, self.nodes, strict=True)
        values = [
            mass + self.shift[lost][:, None] * lean - self.expected(node) - self._moved(by, trial)
            for mass, lean, by, node in columns
        ]
        inverse, log_det = algebra.invert(self._covariance(terms, widths))
        pull = algebra.times(inverse, values)
        power = self.power[:, lost][..., None]
        log_weight = (
            weight
            - 0.5 * (log_det + algebra.dot(values, pull))
            + algebra.sum_of([p * mass.log() for p, mass in zip(power, terms.mass, strict=True)])
        )
        mapped = self._mapped(inverse, pull, terms.by_trial)
        return torch.stack(torch.broadcast_tensors(*mapped, log_weight)).flatten(1, 2)

    def _moved(self, by_trial: Mapping[int, Tensor], trial: Tensor) -> Tensor | float:
        """Returns by how much a mass changes between the origin and the trial masses."""
        origin = [self.origin[p] for p in self.scheme.tried]
        return sum(by * (trial[k] - origin[k]) for k, by in by_trial.items())

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
                    bare = BARE**2 * terms.bare[i].to(blur)[:, None]
                    parts.append((blur[i] + bare) * terms.mass[i] ** 2 + FLOOR**2)
                    parts += self._solution_width(i, terms)
                matrix[i][j] = matrix[j][i] = algebra.sum_of(parts)
        return matrix

    def _solution_width(self, i: int, terms: ChainTerms) -> list[Tensor]:
        unreal = terms.unreal[i]
        if unreal is None:
            return []
        real, not_real = (2 * self.log_invisible).exp()
        return [torch.where(unreal, not_real, real)]

    def _mapped(
        self, inverse: algebra.Matrix, pull: list[Tensor], by_trial: list[Mapping[int, Tensor]]
    ) -> list[Tensor]:
        """Maps the information on the measured masses to the unknown ones."""
        size, zero = len(self.scheme.names), torch.zeros_like(pull[0])
        design = [self._design(node, by) for node, by in zip(self.nodes, by_trial, strict=True)]
        matrix: algebra.Matrix = [[zero] * size for _ in range(size)]
        vector = [zero] * size
        for i, row in enumerate(design):
            for p, h in row.items():
                vector[p] = vector[p] + h * pull[i]
                for j, other in enumerate(design):
                    for q, k in other.items():
                        matrix[p][q] = matrix[p][q] + h * inverse[i][j] * k
        return [*algebra.packed(matrix), *vector]

    def _design(self, node: Node, by_trial: Mapping[int, Tensor]) -> dict[int, Tensor | float]:
        """Returns the row of H of a measured mass, by unknown mass."""
        row: dict[int, Tensor | float] = {}
        parameter = self.scheme.parameter[node.index]
        if parameter is not None:
            row[parameter] = 1.0
        for k, by in by_trial.items():
            p = self.scheme.tried[k]
            row[p] = row.get(p, 0.0) - by
        return row


def _most_lost(scheme: MassScheme, chain: Chain, lossy: frozenset[str]) -> int:
    """Counts the legs of a chain that can be lost while each decay of several keeps one."""
    most, legs = 0, scheme.legs
    for node in chain.resonances:
        own = [kind for child in node.children if (kind := legs.kinds[child]) is not None]
        can = sum(kind in lossy for kind in own)
        most += min(can, max(1, len(own) - 1)) if own else 0
    return most


class TrialPrior(nn.Module):
    """What trial masses and shares of ptmiss add to a hypothesis, see `Fillings`.

    Attributes:
        power: Power of each trial mass in the prior, shape ``(P,)``.
    """

    def __init__(self, scheme: MassScheme, fillings: Fillings, origin: Sequence[float]) -> None:
        super().__init__()
        self.scheme, self.fillings, self.origin = scheme, fillings, origin
        self.power = nn.Parameter(torch.zeros(len(scheme.tried), dtype=torch.float64))

    def information(self) -> Tensor:
        """Computes the rows of `ChainResponse.information` of each filling, ``(..., F)``."""
        size, fillings = len(self.scheme.names), self.fillings
        zero = torch.zeros_like(fillings.log_weight)
        matrix: algebra.Matrix = [[zero] * size for _ in range(size)]
        vector, log_weight = [zero] * size, fillings.log_weight
        for k, p in enumerate(self.scheme.tried):
            trial, inverse = fillings.trial[:, k], fillings.trial_width[k] ** -2
            value = trial - self.origin[p]
            matrix[p][p] = zero + inverse
            vector[p] = value * inverse
            log_weight = log_weight + self.power[k] * trial.log() - 0.5 * value**2 * inverse
        return torch.stack([*algebra.packed(matrix), *vector, log_weight])
