"""Events sorted by what they hold, so that all events of a block have the same assignments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.kinematics.assignments import Assignments, assign
from massrecon.kinematics.mixture_chains import ChainBuilder, ChainTerms, Objects
from massrecon.kinematics.mixture_invisible import Fillings
from massrecon.kinematics.mixture_scheme import MassScheme, ResponseTable
from massrecon.kinematics.topology import TopologyError

Unit = Literal["hypotheses", "configurations"]


@dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """What the mixture sums over.

    Attributes:
        most_objects: Most objects of each kind that are looked at, those with the largest pT; a
            kind that is not listed has no limit.
        missing: Most legs of each kind that may have lost their object. Objects of these kinds may
            also be extra, in any number.
        shares: Ways to share ptmiss among several invisible legs.
        trials: Trial values of each unknown mass that solves for an invisible leg.
        kept: Number of Gaussians kept for each event: those of largest weight, and in the last
            place, where there are more, one with the moments of all others.
        least_weight: Hypotheses of less weight, relative to the largest, are left out.

    Raises:
        InputError: If no Gaussian would be kept.
    """

    most_objects: Mapping[str, int] = field(default_factory=lambda: {"jet": 8})
    missing: Mapping[str, int] = field(default_factory=lambda: {"jet": 4})
    shares: int = 24
    trials: int = 12
    kept: int = 32
    least_weight: float = 1e-4

    def __post_init__(self) -> None:
        if self.kept < 1 or not 0 < self.least_weight <= 1:
            raise InputError(
                f"'kept' should be at least 1 and 'least_weight' above 0 and not above 1, got "
                f"{self.kept} and {self.least_weight:g}."
            )


@dataclass(frozen=True, eq=False)
class DetectedEvents:
    """What the mixture reads of N events with K slots.

    Attributes:
        p4: Four-momenta (px, py, pz, E) [GeV], by falling pT within a kind, shape ``(N, K, 4)``.
        present: Which slots hold an object, shape ``(N, K)``.
        kinds: Kind of each slot; slots of kinds that the decay does not have are not looked at.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.

    Raises:
        ShapeError: If a shape does not fit.
        InputError: If a value is not finite.
    """

    p4: Tensor
    present: Tensor
    kinds: tuple[str, ...]
    ptmiss: Tensor

    def __post_init__(self) -> None:
        n, slots = len(self.p4), len(self.kinds)
        expected = {"p4": (n, slots, 4), "present": (n, slots), "ptmiss": (n, 2)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ShapeError(f"'{name}' should have shape {shape}, got {found}.")
        values = self.p4.where(self.present.unsqueeze(-1), 0.0)
        good = values.isfinite().flatten(1).all(1) & self.ptmiss.isfinite().all(1)
        if not bool(good.all()):
            first = int((~good).nonzero()[0])
            raise InputError(
                f"An object or ptmiss is not finite in {int((~good).sum())} of {n} events, first "
                f"in event {first}: remove these events."
            )

    def __len__(self) -> int:
        return len(self.p4)

    def __getitem__(self, rows: Tensor | slice) -> DetectedEvents:
        """Selects events by mask, positions or slice."""
        return DetectedEvents(self.p4[rows], self.present[rows], self.kinds, self.ptmiss[rows])


@dataclass(frozen=True, eq=False)
class Plan:
    """The assignments for some numbers of objects, and how to add up the chains.

    Attributes:
        assignments: The assignments.
        builders: One for each chain.
        pairs: For each hypothesis (assignment, filling and choice of roots) the row of each chain,
            ways by configurations, shape ``(A, S)``.
    """

    assignments: Assignments
    builders: tuple[ChainBuilder, ...]
    pairs: Tensor

    @property
    def n_configurations(self) -> int:
        """Number of configurations of all chains, in all ways."""
        return sum(builder.n_ways * len(builder.index) for builder in self.builders)


@dataclass(frozen=True, eq=False)
class EventBlock:
    """Events with equally many objects of each kind, ready for the sum over assignments.

    Attributes:
        rows: Positions of the events in the sample, shape ``(N,)``.
        plan: Their assignments.
        objects: Their objects.
        terms: What each chain says.
    """

    rows: Tensor
    plan: Plan
    objects: Objects
    terms: tuple[ChainTerms, ...]


class EventSorter:
    """Sorts events into blocks and computes what their chains say."""

    def __init__(
        self,
        scheme: MassScheme,
        fillings: Fillings,
        response: ResponseTable,
        options: MixtureOptions,
    ) -> None:
        self.scheme, self.fillings = scheme, fillings
        self.response, self.options = response, options
        self.plan = lru_cache(maxsize=256)(self._plan)

    def blocks(
        self,
        events: DetectedEvents,
        size: int,
        by: Unit = "hypotheses",
        most_events: int | None = None,
    ) -> Iterator[EventBlock]:
        """Yields all events that have an assignment in blocks, with what their chains say.

        Args:
            events: The events.
            size: Number of events of a block times the number of hypotheses, or of configurations
                of all chains.
            by: Which of the two.
            most_events: Most events of a block.
        """
        for rows, plan, objects in self.groups(events, size, by, most_events):
            terms = tuple(builder.terms(objects) for builder in plan.builders)
            yield EventBlock(rows, plan, objects, terms)

    def groups(
        self, events: DetectedEvents, size: int, by: Unit, most_events: int | None = None
    ) -> Iterator[tuple[Tensor, Plan, Objects]]:
        """Yields positions, assignments and objects of events with equally many objects.

        Events whose objects allow no assignment are left out.
        """
        kinds = tuple(k for k in dict.fromkeys(events.kinds) if k in self.scheme.legs.leg_kinds)
        counts = self.counts(events, kinds)
        sum_pt = (torch.hypot(events.p4[..., 0], events.p4[..., 1]) * events.present).sum(1)
        # one number for each event: a list of all counts would set off garbage collections
        places = (len(events.kinds) + 1) ** torch.arange(len(kinds)).flip(0).to(counts)
        keys = (counts * places).sum(1)
        for key in keys.unique():
            rows = (keys == key).nonzero().flatten()
            number = counts[rows[0]].tolist()
            plan = self.plan(tuple(zip(kinds, number, strict=True)))
            if plan is None:
                continue
            width = len(plan.pairs) if by == "hypotheses" else plan.n_configurations
            step = max(1, min(size // width, most_events or size))
            for at in rows.split(step):
                p4 = _leading(events, at, dict(zip(kinds, number, strict=True)))
                objects = Objects.of(
                    p4, plan.assignments.kinds, events.ptmiss[at], sum_pt[at], self.response
                )
                yield at, plan, objects

    def counts(self, events: DetectedEvents, kinds: Sequence[str]) -> Tensor:
        """Counts the objects of each kind that are looked at, shape ``(N, kinds)``."""
        columns = []
        for kind in kinds:
            there = events.present[:, [i for i, k in enumerate(events.kinds) if k == kind]].sum(1)
            limit = self.options.most_objects.get(kind)
            columns.append(there if limit is None else there.clamp(max=limit))
        return torch.stack(columns, 1) if columns else events.present.new_zeros(len(events), 0)

    def _plan(self, counts: tuple[tuple[str, int], ...]) -> Plan | None:
        """Makes the plan for these numbers of objects; None if they allow no assignment."""
        legs = self.scheme.legs
        lost = {k: n for k, n in self.options.missing.items() if k in legs.leg_kinds}
        try:
            assignments = assign(legs, dict(counts), missing=lost, bare=True)
        except TopologyError:
            return None
        builders = tuple(
            ChainBuilder(self.scheme, self.fillings, assignments, s, frozenset(lost))
            for s in range(len(legs.chains))
        )
        return Plan(assignments, builders, _hypotheses(assignments, builders, len(self.fillings)))


def _hypotheses(
    assignments: Assignments, builders: Sequence[ChainBuilder], n_fillings: int
) -> Tensor:
    """Lists the rows of the chains that belong together: equal fillings, any roots."""
    found = []
    roots = itertools.product(*(range(builder.n_roots) for builder in builders))
    for root, filling in itertools.product(roots, range(n_fillings)):
        ways = [
            r * n_fillings + filling if builder.solved else 0
            for r, builder in zip(root, builders, strict=True)
        ]
        sizes = [len(builder.index) for builder in builders]
        found.append(assignments.chain_index + torch.tensor(ways) * torch.tensor(sizes))
    return torch.cat(found)


def _leading(events: DetectedEvents, rows: Tensor, counts: Mapping[str, int]) -> Tensor:
    """Returns the first present objects of each kind of some events, shape ``(N, K, 4)``."""
    p4, present, found = events.p4[rows], events.present[rows], []
    for kind, count in counts.items():
        slots = [i for i, k in enumerate(events.kinds) if k == kind]
        if bool(present[:, slots[:count]].all()):
            found.append(p4[:, slots[:count]])
            continue
        absent = (~present[:, slots]).to(torch.int8)
        order = absent.argsort(dim=1, stable=True)[:, :count]
        found.append(p4[:, slots].gather(1, order.unsqueeze(-1).expand(-1, -1, 4)))
    return torch.cat(found, 1)
