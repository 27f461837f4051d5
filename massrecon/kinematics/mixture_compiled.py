"""The posterior by compiled kernels: a mixture's parameters and plans as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from massrecon.kinematics import mixture_kernel as kernel
from massrecon.kinematics.mixture_chains import PTMISS, ChainBuilder, Objects
from massrecon.kinematics.mixture_events import DetectedEvents, Plan
from massrecon.kinematics.mixture_parameters import FLOOR, ChainResponse
from massrecon.kinematics.mixture_posterior import (
    MassPosterior,
    PosteriorCollector,
    restricted,
)

if TYPE_CHECKING:
    from massrecon.kinematics.mixture import KinematicMixture

_BLOCK = 2**19


def compiled_posterior(
    mixture: KinematicMixture, events: DetectedEvents, momenta: Sequence[str]
) -> MassPosterior:
    """Computes what `KinematicMixture.posterior` does in torch."""
    nodes = [mixture.scheme.legs.topology.node(label) for label in momenta]
    collector = PosteriorCollector(
        mixture.outlier, mixture.scheme.names, mixture.options.kept, tuple(momenta), events.p4
    )
    for rows, plan, objects in mixture.sorter.groups(events, _BLOCK, by="configurations"):
        information = np.concatenate(
            [
                chain_information(mixture, side, builder, objects)
                for side, builder in enumerate(plan.builders)
            ],
            axis=1,
        )
        chosen = _hypotheses(mixture, plan, information, rows, collector.posterior)
        carried = [mixture.momenta_of(node, plan, objects) for node in nodes]
        collector.carry(
            rows,
            [p4[:, plan.pairs[chosen, side], torch.arange(len(rows))] for side, p4 in carried],
        )
    found = collector.posterior
    found.log_inside[:, :-1] = restricted(found, mixture.region.rows, None)[0][:, :-1]
    collector.normalise()
    return found


def chain_information(
    mixture: KinematicMixture, side: int, builder: ChainBuilder, objects: Objects
) -> np.ndarray:
    """Computes the information of one chain, shape ``(N, R C, F)``."""
    scheme, response = mixture.scheme, cast(ChainResponse, mixture.chains[side])
    m = len(scheme.names)
    out = np.empty(
        (len(objects.ptmiss_width), builder.n_roots * len(builder.index), m * (m + 1) // 2 + m + 1)
    )
    factor = dict(zip(mixture.sources, (2 * mixture.log_width).exp().tolist(), strict=True))
    variance, extra = objects.resolution**2, torch.zeros_like(objects.resolution)
    lossy = torch.zeros(len(objects.kinds))
    for kind, at in builder.columns.items():
        variance[at] *= factor[kind]
        if kind in builder.lossy:
            extra[at] = (mixture.extra[:, None, None] * objects.traits(at)).sum(0)
            lossy[at] = 1
    mother, solution = builder.mask(builder.chain.root, objects.p4) * 0, [1.0, 0.0, 0.0, 0.0, 0.0]
    if builder.solved:
        leg, node = builder.solved
        mother = builder.mask(node, objects.p4)
        real, unreal = _pair((2 * response.log_invisible).exp())
        known = [scheme.known[at.index] or 0.0 for at in (node, leg)]
        solution = [2.0, *known, real, unreal]
    lost = (builder.index < 0).sum(1)
    nodes = response.nodes
    kernel.chain_information(
        _array(objects.p4.permute(2, 1, 0)),
        _array(variance.T),
        _array(extra.T),
        _array(objects.ptmiss.T),
        _array(objects.ptmiss_width),
        factor.get(PTMISS, 0.0),
        _array(torch.stack([builder.mask(node, objects.p4) for node in nodes])),
        _array(builder.mask(builder.chain.root, objects.p4)),
        _array(mother),
        _array(lossy),
        np.array([float(builder.solved is not None and scheme.has_solved(n)) for n in nodes]),
        np.array([-1.0 if (p := scheme.parameter[n.index]) is None else p for n in nodes]),
        np.array([response.expected(node) for node in nodes]),
        _array(
            torch.stack([response.prior, response.shift, (2 * response.log_spread).exp()])[:, lost]
        ),
        _array(torch.stack([(2 * response.log_blur).exp(), response.power])[:, :, lost]),
        np.array(solution),
        FLOOR,
        out,
    )
    return out


def _pair(values: Tensor) -> tuple[float, float]:
    return (float(values[0]), float(values[1])) if len(values) else (0.0, 0.0)


def _hypotheses(
    mixture: KinematicMixture, plan: Plan, information: np.ndarray, rows: Tensor, to: MassPosterior
) -> Tensor:
    """Sums over hypotheses into a posterior; returns the numbers of those kept, ``(kept, n)``."""
    region, options = mixture.region, mixture.options
    chosen = np.zeros((len(rows), min(options.kept, len(plan.pairs))), np.int64)
    offsets = np.cumsum([0, *(b.n_roots * len(b.index) for b in plan.builders)])[:-1]
    ends = zip(region.low, region.high, region.middle, strict=True)
    kernel.hypotheses(
        information,
        plan.pairs.numpy() + offsets,
        rows.numpy(),
        np.array(region.middle),
        np.array([bound - middle for low, high, middle in ends for bound in (low, high)]),
        math.exp(-float(mixture.log_temperature)),
        math.log(options.least_weight),
        to.log_weight.numpy(),
        to.mean.numpy(),
        to.covariance.numpy(),
        chosen,
    )
    return torch.as_tensor(chosen.T)


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().double().numpy())
