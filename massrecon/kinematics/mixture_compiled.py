"""The posterior by compiled kernels: a mixture's parameters and plans as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from massrecon.kinematics import mixture_kernel as kernel
from massrecon.kinematics import mixture_sums as sums
from massrecon.kinematics.backends import threads_of_torch
from massrecon.kinematics.mixture_arrays import ChainNumbers, ChainTables, EventNumbers
from massrecon.kinematics.mixture_chains import PTMISS, SHARE, ChainBuilder, Objects
from massrecon.kinematics.mixture_events import DetectedEvents, Plan
from massrecon.kinematics.mixture_parameters import BARE, FLOOR, ChainResponse
from massrecon.kinematics.mixture_posterior import (
    MassPosterior,
    PosteriorCollector,
    log_inside_of,
)
from massrecon.kinematics.vector_rows import LANES, VECTOR

if TYPE_CHECKING:
    from massrecon.kinematics.mixture import KinematicMixture

_BLOCK = 2**17  # configurations of events: what they say stays near the processor
_PARTS = 2  # blocks are smaller by this where several threads share them


def compiled_posterior(
    mixture: KinematicMixture, events: DetectedEvents, momenta: Sequence[str]
) -> MassPosterior:
    """Computes what `KinematicMixture.posterior` does in torch."""
    nodes = [mixture.scheme.legs.topology.node(label) for label in momenta]
    collector = PosteriorCollector(
        mixture.outlier, mixture.scheme.names, mixture.options.kept, tuple(momenta), events.p4
    )
    choice = _choice(mixture)
    numbers: dict[int, ChainNumbers] = {}  # of each chain, the same for any number of objects

    def work(group: tuple[Tensor, Plan, Objects]) -> None:
        rows, plan, objects = group
        information = _information(mixture, plan, objects, numbers)
        chosen = _sum(information, plan, choice, rows, collector.posterior)
        carried = [mixture.momenta_of(node, plan, objects) for node in nodes]
        collector.carry(
            rows,
            [p4[:, plan.pairs[chosen, side], torch.arange(len(rows))] for side, p4 in carried],
        )

    with threads_of_torch() as threads:
        block = _BLOCK if threads == 1 else _BLOCK // _PARTS
        groups = mixture.sorter.groups(events, block, by="configurations")
        if threads == 1:
            for group in groups:
                work(group)
        else:  # kernels do not hold the lock of the interpreter, and events have rows of their own
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, groups))
    found = collector.posterior
    kept = slice(None, mixture.options.kept)
    inside = log_inside_of(found.log_weight, found.mean, found.covariance, mixture.region.rows)
    found.log_inside[:, kept] = inside[:, kept]
    collector.normalise()
    return found


def _information(
    mixture: KinematicMixture, plan: Plan, objects: Objects, numbers: dict[int, ChainNumbers]
) -> np.ndarray:
    """Computes the information of all chains, one after the other, ``(blocks, rows, E lanes)``.

    The `numbers` of chains that are not there yet are added.
    """
    m = len(mixture.scheme.names)
    n_blocks, size = -(-len(objects.ptmiss_width) // LANES), m * (m + 1) // 2 + m + 1
    out, first = np.empty((n_blocks, plan.n_configurations, size * LANES)), 0
    objects = objects.padded(VECTOR)  # their numbers go where nothing is read
    seen = _event_numbers(mixture, plan.builders[0], objects)
    for side, builder in enumerate(plan.builders):
        if side not in numbers:
            numbers[side] = _chain_numbers(mixture, side, builder)
        event = seen._replace(share=_shares(mixture, builder, objects)) if side else seen
        kernel.chain_information(event, _tables(builder), numbers[side], first, out)
        first += builder.n_ways * len(builder.index)
    return out


def _event_numbers(
    mixture: KinematicMixture, builder: ChainBuilder, objects: Objects
) -> EventNumbers:
    factor = dict(zip(mixture.sources, (2 * mixture.log_width).exp().tolist(), strict=True))
    variance, extra = objects.resolution**2, torch.zeros_like(objects.resolution)
    lossy = torch.zeros(len(objects.kinds))
    for kind, at in builder.columns.items():
        variance[at] *= factor[kind]
        if kind in builder.lossy:
            extra[at] = (mixture.extra[:, None, None] * objects.traits(at)).sum(0)
            lossy[at] = 1
    return EventNumbers(
        p4=_array(objects.p4.transpose(0, 1)),
        variance=_array(variance),
        extra=_array(extra),
        lossy=_array(lossy),
        share=_shares(mixture, builder, objects),
        ptmiss=_array(objects.ptmiss_width**2),
        cell=_array(builder.fillings.cell_width(objects.ptmiss) ** 2),
    )


def _shares(mixture: KinematicMixture, builder: ChainBuilder, objects: Objects) -> np.ndarray:
    """Returns the share of ptmiss of each solved leg of a chain, shape ``(L, F, 2, N)``."""
    legs = mixture.scheme.legs.invisible
    places = [legs.index(leg) for leg in builder.solved]
    share = [builder.fillings.momenta(place, objects.ptmiss) for place in places]
    shape = (0, 2, 1, len(objects.ptmiss_width))
    shares = torch.stack(share) if share else objects.p4.new_zeros(shape)
    return _array(shares.transpose(1, 2))


def _chain_numbers(mixture: KinematicMixture, side: int, builder: ChainBuilder) -> ChainNumbers:
    scheme, response = mixture.scheme, cast(ChainResponse, mixture.chains[side])
    factor = dict(zip(mixture.sources, (2 * mixture.log_width).exp().tolist(), strict=True))
    nodes, mothers = response.nodes, [builder.mother(i) for i in range(len(builder.solved))]
    origin = torch.tensor([mixture.region.middle[p] for p in scheme.tried], dtype=torch.float64)
    return ChainNumbers(
        prior=_array(response.prior),
        shift=_array(response.shift),
        spread=_array((2 * response.log_spread).exp()),
        blur=_array((2 * response.log_blur).exp()),
        power=_array(response.power),
        way=_array(response.way),
        invisible=_array((2 * response.log_invisible).exp()),
        parameter=_integers([-1 if (p := scheme.parameter[n.index]) is None else p for n in nodes]),
        expected=np.array([response.expected(node) for node in nodes], dtype=float),
        tried=_integers([-1 if mother.tried is None else mother.tried for mother in mothers]),
        own=np.array([mother.own for mother in mothers], dtype=float),
        mass=_array(torch.stack([m.mass for m in mothers]) if mothers else torch.zeros(0, 1)),
        cell=np.array([mother.trial_width for mother in mothers], dtype=float),
        trial=_array(builder.fillings.trial - origin),
        trial_parameter=_integers(list(scheme.tried)),
        filling=_filling(mixture, side, builder),
        factors=np.array([factor.get(PTMISS, 0.0), factor.get(SHARE, 0.0)]),
        constants=np.array([FLOOR**2, BARE**2, float(builder.whole)]),
    )


def _filling(mixture: KinematicMixture, side: int, builder: ChainBuilder) -> np.ndarray:
    """Returns what fillings add to the rows of a chain: something in the first one that has any."""
    rows = mixture.trial.information().T
    n_fillings = len(builder.fillings) if builder.solved else 1
    if side == mixture.filled_side:
        return _array(rows)
    return np.zeros((n_fillings, rows.shape[1]))


@lru_cache(maxsize=512)
def _tables(builder: ChainBuilder) -> ChainTables:
    """Lists the distinct sets of objects of a chain, and which set is what."""
    like = torch.zeros((), dtype=torch.bool)
    nodes, legs = builder.measured, builder.solved
    mothers = [builder.scheme.mother(leg) for leg in legs]
    masks = [builder.mask(node, like) for node in [builder.chain.root, *nodes, *mothers]]
    sets, number = torch.unique(torch.cat(masks), dim=0, return_inverse=True)
    number = number.reshape(len(masks), -1).numpy()
    members = np.zeros((len(sets), max(1, sets.shape[1])), np.int64)
    for u, row in enumerate(sets.numpy()):
        members[u, : row.sum()] = np.flatnonzero(row)
    of_mothers = number[1 + len(nodes) :]
    distinct = [np.unique(row) for row in of_mothers]
    padded = np.full((len(legs), max([1, *(len(row) for row in distinct)])), -1)
    for i, row in enumerate(distinct):
        padded[i, : len(row)] = row
    places = [np.searchsorted(row, of) for row, of in zip(distinct, of_mothers, strict=True)]
    inside = [[builder.scheme.contains(node, leg) for leg in legs] for node in nodes]
    return ChainTables(
        members=members,
        n_members=sets.sum(1).numpy().astype(np.int64),
        chain=_integers(number[0]),
        node=_integers(number[1 : 1 + len(nodes)]),
        mother=_integers(places).reshape(len(legs), len(builder.index)),
        mothers=_integers(padded),
        inside=np.array(inside, dtype=bool).reshape(len(nodes), len(legs)),
        under=_integers([builder.under(node) for node in nodes]),
        smaller=_integers([[builder.smaller(i, j) for j in nodes] for i in nodes]).reshape(
            len(nodes), len(nodes)
        ),
        bare=builder.bare.numpy(),
        lost=_integers((builder.index < 0).sum(1).numpy()),
        touches=_touches(builder),
    )


def _touches(builder: ChainBuilder) -> np.ndarray:
    """Returns which unknown masses change what is expected of the resonances, ``(d, M)``."""
    scheme = builder.scheme
    found = np.zeros((len(builder.measured), len(scheme.names)), dtype=bool)
    for i, node in enumerate(builder.measured):
        own = scheme.parameter[node.index]
        tried = [builder.mother(leg).tried for leg in builder.legs_in(node)]
        for p in [own, *(scheme.tried[k] for k in tried if k is not None)]:
            if p is not None:
                found[i, p] = True
    return found


def _choice(mixture: KinematicMixture) -> sums.Choice:
    region = mixture.region
    ends = zip(region.low, region.high, region.middle, strict=True)
    return sums.Choice(
        origin=np.array(region.middle),
        bounds=np.array([bound - middle for low, high, middle in ends for bound in (low, high)]),
        power=math.exp(-float(mixture.log_temperature)),
        least=math.log(mixture.options.least_weight),
        kept=mixture.options.kept,
    )


def _sum(
    information: np.ndarray, plan: Plan, choice: sums.Choice, rows: Tensor, to: MassPosterior
) -> Tensor:
    """Sums over hypotheses into a posterior; returns the numbers of those kept, ``(kept, n)``."""
    chosen = np.zeros((len(rows), min(choice.kept, len(plan.pairs))), np.int64)
    sums.sum_hypotheses(
        information,
        _hypotheses(plan),
        choice,
        rows.numpy(),
        sums.Results(to.log_weight.numpy(), to.mean.numpy(), to.covariance.numpy()),
        chosen,
    )
    return torch.as_tensor(chosen.T)


@lru_cache(maxsize=512)
def _hypotheses(plan: Plan) -> np.ndarray:
    """Lists the rows of each hypothesis among those of all chains, ``(S, A)``."""
    offsets = np.cumsum([0, *(b.n_ways * len(b.index) for b in plan.builders)])[:-1]
    return np.ascontiguousarray((plan.pairs.numpy() + offsets).T)


def _integers(values: object) -> np.ndarray:
    return np.ascontiguousarray(np.array(values, dtype=np.int64))


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().double().numpy())
