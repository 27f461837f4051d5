"""The kinematic mixture: what the decay topology alone says about the masses of an event.

Every assignment *a* of objects to the legs of the decay measures each resonance: masses y_a with
covariance S_a and, with the matrix H that maps the unknown masses to the resonances that have them,
a Gaussian in the masses m in closed form,

    p(m | y) ~ sum_a w_a N(m; C_a H^T S_a^-1 y_a, C_a),      C_a = (H^T S_a^-1 H)^-1,
    ln w_a = -chi^2_a / 2 + ln(det S_a^-1 / det C_a^-1) / 2 + prior of the assignment,

with chi^2_a the distance of y_a from the nearest H m. Resonances of known mass take part with their
value moved to y. Different chains have different objects, so that S_a has one block for each chain
and the information H^T S^-1 H is a sum over chains: it is computed once for each configuration
of a chain and added up for each assignment.

The prior of an assignment, the response of a chain that lost an object, and all widths are
parameters of `KinematicMixture`; `massrecon.kinematics.mixture_fit` fits them on simulated events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics.backends import Backend, choose_backend
from massrecon.kinematics.mixture_chains import PTMISS, SHARE, Objects
from massrecon.kinematics.mixture_compiled import compiled_posterior
from massrecon.kinematics.mixture_events import (
    DetectedEvents,
    EventBlock,
    EventSorter,
    MixtureOptions,
    Plan,
)
from massrecon.kinematics.mixture_invisible import Fillings
from massrecon.kinematics.mixture_outlier import Outlier
from massrecon.kinematics.mixture_parameters import ChainResponse, TrialPrior
from massrecon.kinematics.mixture_posterior import MassPosterior, PosteriorCollector
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable
from massrecon.kinematics.topology import Node

_BLOCK = 2**15


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Weighted Gaussians in the M masses: A hypotheses for each of N events.

    Attributes:
        log_weight: Log of the weights, not normalised, shape ``(A, N)``.
        mean: Means [GeV], M tensors ``(A, N)``.
        precision: Inverse covariances [1/GeV²].
        covariance: Covariances [GeV²].
        log_det: Log of the determinant of the precision, shape ``(A, N)``.
    """

    log_weight: Tensor
    mean: list[Tensor]
    precision: algebra.Matrix
    covariance: algebra.Matrix
    log_det: Tensor


class KinematicMixture(nn.Module):
    """Gaussian mixtures in the masses from all assignments; its parameters can be fitted.

    Args:
        scheme: Unknown and known masses of the decay.
        response: Resolutions of the objects and of ptmiss.
        region: Where the masses may lie; the prior is flat there.
        options: What is summed over.

    Attributes:
        chains: The response of each chain.
        trial: The prior of the trial masses.
        log_width: Log of a factor on the resolution of each source in `sources`.
        extra: Weights of the traits of an extra object in the log of its probability.
        log_temperature: Log of the temperature T; weights are raised to 1 / T.
        outlier: Broad components for what no assignment explains.
    """

    def __init__(
        self,
        scheme: MassScheme,
        response: ResponseTable,
        region: MassRegion,
        options: MixtureOptions | None = None,
    ) -> None:
        super().__init__()
        region.check_size(len(scheme.names))
        self.scheme, self.response, self.region = scheme, response, region
        self.options = options or MixtureOptions()
        fillings = Fillings.of(scheme, region, self.options.shares, self.options.trials)
        self.sorter = EventSorter(scheme, fillings, response, self.options)
        lossy = frozenset(self.options.missing)
        kinds = tuple(dict.fromkeys(scheme.legs.leg_kinds))
        self.sources = (*kinds, PTMISS, SHARE) if scheme.solved else kinds
        self.trial = TrialPrior(scheme, fillings, region.middle)
        self.chains = nn.ModuleList(
            ChainResponse(scheme, chain, lossy, region.middle) for chain in scheme.legs.chains
        )
        self.log_width = nn.Parameter(torch.zeros(len(self.sources), dtype=torch.float64))
        self.extra = nn.Parameter(torch.tensor([0.0, -1.0, -0.5, 0.0], dtype=torch.float64))
        self.log_temperature = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.outlier = Outlier(region)

    def gaussians(self, block: EventBlock) -> Gaussians:
        """Computes the Gaussian of every hypothesis, chain by chain and then added up."""
        return self._combined(self._information(block), block.plan.pairs)

    def _information(self, block: EventBlock) -> list[Tensor]:
        widths = dict(zip(self.sources, self.log_width.exp(), strict=True))
        found = [
            cast(ChainResponse, chain).information(terms, widths, self.extra)
            for chain, terms in zip(self.chains, block.terms, strict=True)
        ]
        if self.filled_side is not None:
            builder = block.plan.builders[self.filled_side]
            shape = (builder.n_roots, len(builder.fillings), len(builder.index))
            rows = found[self.filled_side].unflatten(1, shape)
            filling = self.trial.information()[:, None, :, None, None].to(rows)
            found[self.filled_side] = (rows + filling).flatten(1, 3)
        return found

    @property
    def filled_side(self) -> int | None:
        """The chain that counts shares and trial masses, which are common to all chains."""
        with_legs = [bool(self.scheme.solved_in(chain)) for chain in self.scheme.legs.chains]
        return with_legs.index(True) if any(with_legs) else None

    def _combined(self, information: Sequence[Tensor], pairs: Tensor) -> Gaussians:
        size = len(self.scheme.names)
        rows = zip(information, pairs.T, strict=True)
        total = algebra.sum_of([rows_of.index_select(1, at) for rows_of, at in rows])
        n_entries = size * (size + 1) // 2
        precision = algebra.unpacked(list(total[:n_entries]), size)
        vector = list(total[n_entries:-1])
        covariance, log_det = algebra.invert(precision)
        off = algebra.times(covariance, vector)
        log_weight = total[-1] + 0.5 * (algebra.dot(vector, off) - log_det)
        log_weight = log_weight * (-self.log_temperature).exp().to(log_weight)
        mean = [x + origin for x, origin in zip(off, self.region.middle, strict=True)]
        return Gaussians(log_weight, mean, precision, covariance, log_det)

    def log_prob(self, block: EventBlock, masses: Tensor) -> Tensor:
        """Computes the log density of masses ``(N, M)`` [GeV] for the events of a block ``(N,)``.

        All hypotheses count, and gradients flow to the parameters.
        """
        found, x = self.gaussians(block), list(masses.T)
        weight = found.log_weight + self._log_inside(found)
        log_evidence = torch.logsumexp(weight, 0)
        tails = self.outlier.tails((weight - log_evidence).exp(), found.mean, found.precision)
        broad = torch.cat([self.outlier.log_prob(x)[None], self.outlier.tail_log_prob(x, *tails)])
        log_broad = self.outlier.log_weights(log_evidence)
        density = algebra.log_normal_density(x, found.mean, found.precision, found.log_det)
        parts = torch.logsumexp(found.log_weight + density, 0)
        total = torch.logaddexp(log_evidence, torch.logsumexp(log_broad, 0))
        return torch.logaddexp(parts, torch.logsumexp(log_broad + broad, 0)) - total

    def log_evidence(self, block: EventBlock) -> Tensor:
        """Computes the log of the sum of the weights of all hypotheses inside the region, (N,)."""
        found = self.gaussians(block)
        return torch.logsumexp(found.log_weight + self._log_inside(found), 0)

    def _log_inside(self, found: Gaussians) -> Tensor:
        return algebra.log_probability(found.mean, found.covariance, self.region.rows)

    @torch.no_grad()
    def posterior(
        self, events: DetectedEvents, momenta: Sequence[str] = (), backend: Backend = "auto"
    ) -> MassPosterior:
        """Computes the posterior of the masses of each event, keeping the largest components.

        An event whose objects allow no assignment has the outlier alone.

        Args:
            events: The events.
            momenta: Labels of resonances whose momentum each component should carry.
            backend: ``numba`` runs compiled kernels on processors, ``torch`` everywhere; ``auto``
                takes Numba where it is installed.

        Raises:
            TopologyError: If a label is not in the decay.
            MissingExtraError: If Numba is asked for and not installed.
        """
        if choose_backend(backend, events.p4.device) == "numba":
            return compiled_posterior(self, events, momenta)
        return self._posterior(events, momenta)

    def _posterior(self, events: DetectedEvents, momenta: Sequence[str]) -> MassPosterior:
        """Computes the posterior in torch, in blocks."""
        collector = PosteriorCollector(
            self.outlier, self.scheme.names, self.options.kept, tuple(momenta), events.p4
        )
        nodes = [self.scheme.legs.topology.node(label) for label in momenta]
        for block in self.sorter.blocks(events, _BLOCK, by="configurations"):
            information, plan = self._information(block), block.plan
            carried = [self.momenta_of(node, plan, block.objects) for node in nodes]
            for part in torch.arange(len(block.rows)).split(max(1, _BLOCK // len(plan.pairs))):
                pieces = [rows[:, :, part[0] : part[-1] + 1].float() for rows in information]
                found = self._combined(pieces, plan.pairs)
                best = self._best(found)
                collector.add(
                    rows=block.rows[part],
                    log_weight=best.log_weight,
                    mean=best.mean,
                    covariance=best.covariance,
                    momenta=[p4[:, plan.pairs[best.indices, side], part] for side, p4 in carried],
                )
        collector.normalise()
        return collector.posterior

    def _best(self, found: Gaussians) -> _Best:
        """Keeps the largest hypotheses and merges the others of an event into the last one."""
        score = found.log_weight
        for i, mean in enumerate(found.mean):
            off = mean - mean.clamp(self.region.low[i], self.region.high[i])
            score = torch.addcdiv(score, off.square_(), found.covariance[i][i], value=-0.5)
        best = score.topk(min(self.options.kept, len(score)), 0)
        least = best.values[0] + math.log(self.options.least_weight)
        log_weight = _at(found.log_weight, best.indices)
        kept = _Best(
            log_weight.masked_fill(best.values < least, -math.inf),
            [_at(x, best.indices) for x in found.mean],
            [[_at(x, best.indices) for x in row] for row in found.covariance],
            best.indices,
        )
        rest = (score <= best.values[-1]) & (score >= least)
        crowded = rest.sum(0) > 1
        if bool(crowded.any()):
            weight = (score - best.values[-1]).exp().masked_fill(~rest, 0.0)
            self._merge(found, weight, best.values[-1], crowded, kept)
        return kept

    def _merge(
        self, found: Gaussians, weight: Tensor, largest: Tensor, where: Tensor, into: _Best
    ) -> None:
        """Puts the moments of hypotheses of some weights in the last place of some events.

        Their means are moved into the region; weights are relative to the log weight `largest`.
        """
        total, ends = weight.sum(0), zip(self.region.low, self.region.high, strict=True)
        share = weight / total
        near = [mean.clamp(*end) for mean, end in zip(found.mean, ends, strict=True)]
        centre = [(share * mean).sum(0) for mean in near]
        off = [mean - middle for mean, middle in zip(near, centre, strict=True)]
        into.log_weight[-1] = torch.where(where, largest + total.log(), into.log_weight[-1])
        for i, middle in enumerate(centre):
            into.mean[i][-1] = torch.where(where, middle, into.mean[i][-1])
            for j, entry in enumerate(found.covariance[i]):
                second = (share * (entry + off[i] * off[j])).sum(0)
                into.covariance[i][j][-1] = torch.where(where, second, into.covariance[i][j][-1])

    def momenta_of(self, node: Node, plan: Plan, objects: Objects) -> tuple[int, Tensor]:
        """Returns the chain of a resonance and its momenta, shape ``(4, W C, N)``."""
        side = [chain.root.side for chain in self.scheme.legs.chains].index(node.side)
        builder = plan.builders[side]
        p4 = builder.momenta(node, objects)
        return side, p4.expand(-1, builder.n_ways, -1, -1).flatten(1, 2)


class _Best(NamedTuple):
    """What is kept: log weights, -inf for negligible ones, Gaussians, and their numbers."""

    log_weight: Tensor
    mean: list[Tensor]
    covariance: algebra.Matrix
    indices: Tensor


def _at(values: Tensor, indices: Tensor) -> Tensor:
    return values.gather(0, indices).double()
