r"""The space of reconstructed events: objects of any card as a vector x, and back.

The objects that are there and their discrete attributes are an event's content (see
`massrecon.models.content`). Given the content, everything else is a vector of coordinates that
fulfil the selection by construction:

* size: l = log(1 + (pT - pT_min) / 20 GeV) of the hardest object of a kind, and the share
  l_k / l_(k-1), between 0 and 1, of each further one: thresholds and the order in pT always hold;
* eta within the acceptance of its kind, and log(1 + m / GeV) where objects are not massless;
* the azimuth, from the axis of the event. A mirror image has the opposite azimuths;
* for the second of two objects that were chosen by their invariant mass: the log of that mass, so
  that a resonance is one coordinate and stays as narrow as it is, and a direction on the contour
  cosh(Delta eta) - cos(Delta phi) = m^2 / (2 pT_1 pT_2).

Each coordinate passes a `QuantileMap` to a normal score z. A size and an azimuth together become a
point of the plane, with the radius r of Phi(z) = 1 - exp(-r^2 / 2): a uniform azimuth and any size
are a standard normal vector, and there is no cut at pi. Coordinates of absent objects are filled
with independent normal noise, which a density of x given the content learns at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.sections import SlotGroup
from massrecon.kinematics import fourvectors as fv
from massrecon.models.measured import Measured, contour, on_contour
from massrecon.models.quantiles import QuantileMap

P_0 = 20.0
"""Scale of the logarithm of transverse momenta [GeV]."""

DISCRETE = ("charge", "flavour", "btag", "tautag")
"""Attributes that belong to the content of an event."""

_MASSLESS = ("lepton", "photon")


@dataclass(frozen=True)
class Slot:
    """A slot of the card.

    Attributes:
        index: Its position.
        group: The kind of objects that it belongs to.
        rank: Its place within the kind, from 0 by falling pT.
    """

    index: int
    group: SlotGroup
    rank: int

    @property
    def paired(self) -> bool:
        """Whether it is the second of a pair that is chosen by its mass."""
        return self.rank == 1 and self.group.pair_mass is not None and self.group.minimum >= 2

    @property
    def massive(self) -> bool:
        """Whether its mass is a coordinate."""
        return self.group.kind not in _MASSLESS


@dataclass(frozen=True)
class Coordinate:
    """A scalar coordinate.

    Attributes:
        name: Such as ``jet1 size``.
        slot: Position of its slot, None for the missing momentum.
        low: Lower limit.
        high: Upper limit.
        turned: Whether it shares a plane with an azimuth.
        odd: Whether it changes sign when the beams are exchanged.
    """

    name: str
    slot: int | None
    low: float = 0.0
    high: float = math.inf
    turned: bool = False
    odd: bool = False


class EventSpace(nn.Module):
    """Takes events of a card to vectors x ``(N, T)`` and back, given their content.

    Args:
        card: The process card.
        own_axis: Whether azimuths count from the first slot that is always filled, which then has
            none; otherwise the axis is given from outside.
    """

    def __init__(self, card: ProcessCard, own_axis: bool) -> None:
        super().__init__()
        self.card = card
        self.slots = [
            Slot(index, group, rank)
            for index, (group, rank) in enumerate(
                (group, rank) for group in card.objects for rank in range(group.count)
            )
        ]
        self.extras = tuple(n for n in card.attribute_names if n not in DISCRETE)
        self.axis = self._axis_slot() if own_axis else None
        self.coordinates = self._coordinates()
        low, high = ([getattr(c, name) for c in self.coordinates] for name in ("low", "high"))
        self.map = QuantileMap(torch.tensor(low), torch.tensor(high))

    def _axis_slot(self) -> int:
        """Returns the first jet that is always there, or the first other object that is."""
        always = [s for s in self.slots if s.rank < s.group.minimum]
        if not always:
            raise InputError(
                f"The card '{self.card.name}' asks for no object at all, so its events have no "
                "axis: choose condition='partons'."
            )
        return next((s for s in always if s.group.kind == "jet"), always[0]).index

    def _coordinates(self) -> list[Coordinate]:
        found = []
        for slot in self.slots:
            name = self.card.slots[slot.index]
            size = math.inf if slot.rank == 0 else 1.0
            turned = slot.index != self.axis
            found.append(Coordinate(f"{name} size", slot.index, 0.0, size, turned))
            if slot.paired:
                found.append(Coordinate(f"{name} pair mass", slot.index, -math.inf))
            else:
                reach = slot.group.eta_max
                found.append(Coordinate(f"{name} eta", slot.index, -reach, reach, odd=True))
            if slot.massive:
                found.append(Coordinate(f"{name} mass", slot.index))
                found += [Coordinate(f"{name} {extra}", slot.index) for extra in self.extras]
        return [*found, Coordinate("ptmiss size", None, turned=True)]

    @property
    def n_scalars(self) -> int:
        """Number A of scalar coordinates; the azimuths of B of them follow."""
        return len(self.coordinates)

    @cached_property
    def _turned(self) -> Tensor:
        return torch.tensor([i for i, c in enumerate(self.coordinates) if c.turned])

    def __len__(self) -> int:
        """Number T = A + B of components of x."""
        return self.n_scalars + len(self._turned)

    @cached_property
    def _slot_of_raw(self) -> Tensor:
        """Slot of each raw coordinate, the number K of slots for the missing momentum."""
        missing = len(self.slots)
        scalars = [missing if c.slot is None else c.slot for c in self.coordinates]
        return torch.tensor([*scalars, *(scalars[i] for i in self._turned.tolist())])

    @cached_property
    def _order(self) -> Tensor:
        """Which raw coordinate each component of x comes from: slot by slot."""
        return torch.argsort(self._slot_of_raw, stable=True)

    @cached_property
    def _slot_of(self) -> Tensor:
        return self._slot_of_raw[self._order]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the T components of x."""
        scalars = [c.name for c in self.coordinates]
        turned = [scalars[i].replace(" size", " azimuth") for i in self._turned.tolist()]
        return tuple([*scalars, *turned][i] for i in self._order.tolist())

    def there(self, present: Tensor) -> Tensor:
        """Tells which components belong to objects that are `present` ``(N, K)``, ``(N, T)``."""
        return nn.functional.pad(present, (0, 1), value=True)[:, self._slot_of.to(present.device)]

    @cached_property
    def mirror_signs(self) -> tuple[Tensor, Tensor]:
        """Signs of the components under exchange of the beams and in a mirror, each ``(T,)``."""
        n = len(self._turned)
        odd = [-1.0 if c.odd else 1.0 for c in self.coordinates]
        for slot in self.slots:
            if slot.paired:  # the direction on the contour has Delta eta along u
                odd[self._size_of[slot.index]] = -1.0
        exchange = torch.tensor([*odd, *[1.0] * n])
        mirror = torch.tensor([*[1.0] * self.n_scalars, *[-1.0] * n])
        return exchange[self._order], mirror[self._order]

    @cached_property
    def _size_of(self) -> dict[int | None, int]:
        return {c.slot: i for i, c in enumerate(self.coordinates) if c.name.endswith(" size")}

    def axis_of(self, events: Events) -> Tensor:
        """Returns the azimuth of the axis of each event, shape ``(N,)``."""
        assert self.axis is not None
        return fv.phi(events.p4[:, self.axis].double())

    def raw(self, events: Events, axis: Tensor) -> Tensor:
        """Computes scalars and azimuths ``(N, A + B)``, float64; zero for absent objects."""
        seen = self._measure(events, axis)
        columns, angles = [], []
        for slot in self.slots:
            values, angle = self._raw_slot(seen, slot)
            columns += values
            angles += [] if slot.index == self.axis else [angle]
        columns.append(torch.log1p(seen.ptmiss[:, 0] / P_0))
        raw = torch.stack([*columns, *angles, seen.ptmiss[:, 1]], dim=-1)
        there = self.there(events.present)[:, self._order.argsort()]
        return torch.where(there, raw, 0.0)

    def _measure(self, events: Events, axis: Tensor) -> Measured:
        p4 = torch.where(events.present.unsqueeze(-1), events.p4, 1.0).double()
        ptmiss = events.ptmiss.double()
        phi = torch.atan2(ptmiss[:, 1], ptmiss[:, 0]) - axis
        extras = [events.attributes[name].double() for name in self.extras]
        return Measured(
            pt=fv.pt(p4),
            eta=fv.eta(p4),
            phi=fv.phi(p4) - axis.unsqueeze(1),
            mass=fv.mass(p4).clamp_min(0.0),
            ptmiss=torch.stack([torch.linalg.vector_norm(ptmiss, dim=-1), phi], dim=-1),
            extras=torch.stack(extras, dim=-1) if extras else p4[..., :0],
        )

    def _raw_slot(self, seen: Measured, slot: Slot) -> tuple[list[Tensor], Tensor]:
        i = slot.index
        size, angle = _log_size(seen.pt[:, i], slot), seen.phi[:, i]
        if slot.rank > 0:
            size = (size / _log_size(seen.pt[:, i - 1], slot).clamp_min(1e-9)).clamp(0.0, 1.0)
        if slot.paired:
            log_mass, angle = contour(seen, i)
            columns = [size, log_mass]
        else:
            columns = [size, seen.eta[:, i]]
        if slot.massive:
            columns += [seen.mass[:, i].log1p(), *seen.extras[:, i].unbind(dim=-1)]
        return columns, angle

    def fit(self, raw: Tensor, present: Tensor) -> None:
        """Sets the quantiles from raw coordinates ``(N, A + B)`` and presence ``(N, K)``."""
        scalars = raw[:, : self.n_scalars]
        there = self.there(present)[:, self._order.argsort()][:, : self.n_scalars]
        odd = torch.tensor([c.odd for c in self.coordinates])
        mirrored = torch.where(odd, -scalars, scalars)
        self.map.fit(torch.cat([scalars, mirrored]), torch.cat([there, there]))
        knots = self.map.knots[odd]
        self.map.knots[odd] = 0.5 * (knots - knots.flip(1))

    def encode(self, raw: Tensor) -> Tensor:
        """Takes raw coordinates ``(N, A + B)`` to x ``(N, T)``."""
        x = self.map(raw[:, : self.n_scalars])
        turned = self._turned.to(x.device)
        radius = (-2 * torch.special.log_ndtr(-x[:, turned].double())).sqrt().to(x)
        angle = raw[:, self.n_scalars :]
        x[:, turned] = radius * angle.cos()
        return torch.cat([x, radius * angle.sin()], dim=-1)[:, self._order.to(x.device)]

    def fill(self, x: Tensor, present: Tensor, generator: torch.Generator) -> Tensor:
        """Replaces the coordinates of absent objects by normal noise."""
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        return torch.where(self.there(present), x, noise)

    def decode(self, x: Tensor, axis: Tensor) -> Measured:
        """Takes x ``(N, T)`` to objects in polar form, with `axis` ``(N,)`` added to azimuths."""
        x, turned = x.double()[:, self._order.argsort()], self._turned
        scalars = x[:, : self.n_scalars].clone()
        u, v = scalars[:, turned], x[:, self.n_scalars :]
        share = -torch.expm1(-0.5 * (u.square() + v.square()))
        scalars[:, turned] = torch.special.ndtri(share.clamp(1e-15, 1 - 1e-15))
        angles = torch.atan2(v, u)
        scalars = self.map.inverse(scalars)
        return self._place(scalars.T, iter(angles.T), axis)

    def _place(self, columns: Tensor, turns: Iterator[Tensor], axis: Tensor) -> Measured:
        """Turns scalars ``(A, N)`` and azimuths into objects, slot by slot."""
        rest, k = iter(columns), len(self.slots)
        pt, eta, phi, mass = (columns.new_zeros(columns.shape[1], k) for _ in range(4))
        extras = columns.new_zeros(columns.shape[1], k, len(self.extras))
        size = columns[0]
        for slot in self.slots:
            i = slot.index
            size = next(rest) if slot.rank == 0 else next(rest) * size
            pt[:, i] = slot.group.pt_min + P_0 * torch.expm1(size)
            second = next(rest)
            phi[:, i] = axis if i == self.axis else next(turns) + axis
            if slot.paired:
                eta[:, i], phi[:, i] = on_contour(pt, eta, phi, i, second, phi[:, i] - axis)
            else:
                eta[:, i] = second
            if slot.massive:
                mass[:, i] = torch.expm1(next(rest))
                for b in range(len(self.extras)):
                    extras[:, i, b] = next(rest)
        missing = P_0 * torch.expm1(next(rest))
        ptmiss = torch.stack([missing, next(turns) + axis], dim=-1)
        return Measured(pt, eta, phi, mass, ptmiss, extras)

    def accepted(self, seen: Measured, present: Tensor) -> Tensor:
        """Tells which events ``(N,)`` fulfil the few cuts that coordinates cannot guarantee."""
        good = torch.ones(len(present), dtype=torch.bool)
        for slot in self.slots:
            if slot.paired:
                inside = seen.eta[:, slot.index].abs() <= slot.group.eta_max
                good &= inside | ~present[:, slot.index]
        if self.card.cuts.ptmiss_min > 0:
            good &= seen.ptmiss[:, 0] > self.card.cuts.ptmiss_min
        return good


def _log_size(pt: Tensor, slot: Slot) -> Tensor:
    return torch.log1p((pt - slot.group.pt_min).clamp_min(0.0) / P_0)
