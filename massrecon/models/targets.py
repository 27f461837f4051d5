r"""What a model learns: which numbers of the truth, and in which coordinates.

A `TargetSpace` takes columns of the truth in GeV to the x of a `Head` and back. Three steps lead
there, each with its exact Jacobian:

1. Columns that follow from others are left out: a mass that is fixed, the equal masses of two like
   particles, the momentum of the last daughter of a decay. They are found in the training events
   (each column that the earlier ones determine linearly, to a thousandth) and put back afterwards.
2. In polar coordinates the momentum of a particle becomes (l cos phi, l sin phi, eta) with
   l = asinh(pT / p_0), which is log pT for hard particles. The azimuth is periodic by
   construction, there is no cut at pi, and the plane is covered once, so densities stay exact.
3. Each coordinate is scaled to width one; the scaling commutes with rotations about the beam.

Densities are per GeV of the columns that are kept, whatever the coordinates.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import COMPONENTS, ProcessCard
from massrecon.events.container import Events
from massrecon.models.quantities import is_quantity, quantity_names, quantity_values

TargetChoice = str
"""``"card"``, ``"masses"``, ``"resonances"``, labels of particles, or quantities of them."""

Coordinates = Literal["cartesian", "polar"]

_TOLERANCE = 1e-3
_EVENTS_TO_COMPARE = 5000
# a column that spreads less [GeV] is not worth learning, such as the mass of an electron or muon
_SMALLEST = 0.3


class TargetSpace(nn.Module):
    """The targets of a model and their coordinates.

    Attributes:
        names: Names of the R columns of the truth, such as ``chi20_px``.
        kept: Positions of the T columns that are modelled, shape ``(T,)``; set by `fit`.
    """

    kept: Tensor
    origin: Tensor
    mixing: Tensor
    offset: Tensor
    scale: Tensor
    turning: Tensor

    def __init__(self, card: ProcessCard, choice: TargetChoice, coordinates: Coordinates) -> None:
        super().__init__()
        if coordinates not in get_args(Coordinates):
            raise unknown_name("choice of coordinates", coordinates, get_args(Coordinates))
        self.card, self.choice, self.coordinates = card, choice, coordinates
        self.names = column_names(card, choice)
        if not self.names:
            raise InputError(
                f"The card '{card.name}' names no {'masses' if choice == 'masses' else 'targets'} "
                "to learn: choose another process, or targets='resonances'."
            )
        self._allocate(0)

    def _allocate(self, n_kept: int) -> None:
        n = len(self.names)
        self.register_buffer("kept", torch.zeros(n_kept, dtype=torch.int64))
        self.register_buffer("origin", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("mixing", torch.zeros(n_kept, n, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(n_kept))
        self.register_buffer("scale", torch.ones(n_kept))
        # p_0 of the polar coordinates, at the px of each particle that has them
        self.register_buffer("turning", torch.zeros(n_kept))

    def __len__(self) -> int:
        return len(self.kept)

    def knows_truth(self, events: Events) -> bool:
        """Tells whether events carry the truth of these columns."""
        if events.card.masses.keys() != self.card.masses.keys():
            return False
        if self.choice == "masses":
            return events.masses is not None
        return events.partons is not None and events.card.parton_names == self.card.parton_names

    def values(self, events: Events) -> Tensor:
        """Returns the true columns of events [GeV], float64 on the processor, shape ``(N, R)``."""
        if self.choice == "masses":
            assert events.masses is not None
            return events.masses.cpu().double().clone()
        if self.choice == "card":
            return events.targets().cpu().double()
        assert events.partons is not None
        if is_quantity(self.choice):
            return quantity_values(self.card, self.choice, events.partons.cpu())
        rows = [self.card.parton_names.index(n) for n in particles_of(self.card, self.choice)]
        return events.partons[:, rows].cpu().double().flatten(1)

    def fit(self, values: Tensor) -> None:
        """Finds the independent columns and the scaling from training values ``(N, R)`` [GeV].

        Raises:
            InputError: If no column varies, or a value is not finite.
        """
        values = values.double()
        if len(values) == 0 or not bool(values.isfinite().all()):
            raise InputError(
                f"The scaling needs finite targets of at least one event, got {len(values)}: "
                "check the training events with events.validate()."
            )
        some = values[:: math.ceil(len(values) / _EVENTS_TO_COMPARE)]
        kept = independent_columns(some)
        if not kept:
            raise InputError(
                f"None of the targets {', '.join(self.names[:4])}, … varies among the training "
                "events: simulate a range of masses, or choose other targets."
            )
        self._allocate(len(kept))
        self.kept.copy_(torch.tensor(kept))
        self._fit_relations(some)
        self._fit_scaling(values[:, kept])

    def _fit_relations(self, values: Tensor) -> None:
        """Finds how the other columns follow from the kept ones, by least squares."""
        free = values[:, self.kept]
        mean, mean_free = values.mean(dim=0), free.mean(dim=0)
        fitted = torch.linalg.lstsq(free - mean_free, values - mean).solution
        # what the fit leaves of rounding would mix the columns
        scale = values.std(dim=0, correction=0) / free.std(dim=0, correction=0).unsqueeze(1)
        mixing = torch.where(fitted.abs() < 10 * _TOLERANCE * scale, 0.0, fitted)
        nearest = mixing.round()
        mixing = torch.where((mixing - nearest).abs() < 10 * _TOLERANCE, nearest, mixing)
        mixing[:, self.kept] = torch.eye(len(self), dtype=torch.float64)
        self.mixing.copy_(mixing)
        self.origin.copy_(mean - mean_free @ mixing)

    def _fit_scaling(self, free: Tensor) -> None:
        for first in self._momenta():
            pt = torch.hypot(free[:, first], free[:, first + 1])
            self.turning[first] = float(pt.median()) / 3 if self.coordinates == "polar" else 0.0
        coordinates = self._curve(free)
        offset, scale = coordinates.mean(dim=0), coordinates.std(dim=0, correction=0)
        for first in self._momenta():
            rows = slice(first, first + 3)
            root = coordinates[:, rows].square().mean(dim=0).sqrt()
            offset[rows] = 0.0
            scale[rows] = root
            scale[first : first + 2] = (0.5 * root[:2].square().sum()).sqrt()
        self.offset.copy_(offset)
        self.scale.copy_(scale)

    def _momenta(self) -> list[int]:
        """Returns where a whole (px, py, pz) begins among the kept columns."""
        kept = [self.names[i] for i in self.kept.tolist()]
        wanted = tuple(f"_{c}" for c in COMPONENTS[:3])
        return [
            i
            for i, name in enumerate(kept[:-2])
            if name.endswith(wanted[0])
            and kept[i + 1 : i + 3] == [name[:-3] + ending for ending in wanted[1:]]
        ]

    def encode(self, values: Tensor) -> Tensor:
        """Takes columns ``(..., R)`` [GeV] to coordinates x of width one, ``(..., T)``."""
        return (self._curve(values[..., self.kept]) - self.offset) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Takes x ``(..., T)`` to columns [GeV], float64 on the processor, ``(..., R)``."""
        scale, offset = self.scale.cpu().double(), self.offset.cpu().double()
        free = self._straighten(x.cpu().double() * scale + offset)
        return self.origin.cpu() + free @ self.mixing.cpu()

    def log_jacobian(self, values: Tensor) -> Tensor:
        """Computes log |det dx / d(kept columns)| [1 / GeV^T] at ``(..., R)``, ``(...)``."""
        free = values[..., self.kept]
        total = -self.scale.log().sum().expand(free.shape[:-1]).to(free)
        for first in self._curved():
            px, py, pz = free[..., first : first + 3].unbind(dim=-1)
            pt, p_0 = torch.hypot(px, py).clamp_min(1e-9), self.turning[first]
            stretch = torch.asinh(pt / p_0) / (pt * torch.hypot(pt, p_0))
            total = total + stretch.log() - torch.hypot(pt, pz).log()
        return total

    def _curved(self) -> list[int]:
        return [first for first in self._momenta() if float(self.turning[first]) > 0]

    def _curve(self, free: Tensor) -> Tensor:
        """Takes kept columns to polar coordinates where these are asked for."""
        columns = list(free.unbind(dim=-1))
        for first in self._curved():
            px, py, pz = columns[first : first + 3]
            pt, p_0 = torch.hypot(px, py).clamp_min(1e-9), self.turning[first]
            stretch = torch.asinh(pt / p_0) / pt
            columns[first : first + 3] = [px * stretch, py * stretch, torch.asinh(pz / pt)]
        return torch.stack(columns, dim=-1)

    def _straighten(self, coordinates: Tensor) -> Tensor:
        """Takes polar coordinates back to kept columns."""
        columns = list(coordinates.unbind(dim=-1))
        for first in self._curved():
            u, v, eta = columns[first : first + 3]
            length = torch.hypot(u, v).clamp_min(1e-12)
            pt = self.turning[first].double().cpu() * torch.sinh(length)
            columns[first : first + 3] = [u * pt / length, v * pt / length, pt * torch.sinh(eta)]
        return torch.stack(columns, dim=-1)

    def turn(self, values: Tensor, angle: Tensor, flip: Tensor) -> Tensor:
        """Turns the columns of events about the beam and flips pz.

        Args:
            values: Columns [GeV], shape ``(..., N, R)``; masses and quantities stay as they are.
            angle: Angle of each event [rad], shape ``(N,)``.
            flip: 1 or -1 for each event, shape ``(N,)``.
        """
        if self.choice == "masses" or is_quantity(self.choice):
            return values
        angle, flip = (t.to(values).unsqueeze(-1) for t in (angle, flip))
        px, py, pz, m = values.unflatten(-1, (-1, 4)).unbind(dim=-1)
        cos, sin = angle.cos(), angle.sin()
        turned = (cos * px - sin * py, sin * px + cos * py, flip * pz, m)
        return torch.stack(turned, dim=-1).flatten(-2)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        """Makes room for as many kept columns as the saved targets have."""
        if (kept := state_dict.get(prefix + "kept")) is not None:
            self._allocate(len(kept))
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]  of torch, private


def column_names(card: ProcessCard, choice: TargetChoice) -> tuple[str, ...]:
    """Returns the names of the columns of a choice of targets."""
    if choice == "masses":
        return tuple(f"{mass}_m" for mass in card.masses)
    if choice == "card":
        return tuple(card.target_names)
    if is_quantity(choice):
        return quantity_names(card, choice)
    return tuple(f"{n}_{component}" for n in particles_of(card, choice) for component in COMPONENTS)


def particles_of(card: ProcessCard, choice: TargetChoice) -> tuple[str, ...]:
    """Returns the labels of the particles of the decay tree that a choice names.

    Raises:
        InputError: If there is no such particle.
    """
    if choice == "resonances":
        return tuple(card.parton_names)
    for label in choice.split() or [choice]:
        if label not in card.parton_names:
            choices = ("card", "masses", "resonances", *card.parton_names)
            raise unknown_name("choice of targets", label, choices)
    return tuple(choice.split())


def independent_columns(values: Tensor) -> list[int]:
    """Finds the columns of ``(N, R)`` that the ones before them do not determine linearly.

    A column counts as determined where less than a thousandth of its spread is left, and as
    constant where its spread is less than a thousandth of its size.
    """
    rest = values - values.mean(dim=0)
    spread = rest.square().mean(dim=0).sqrt()
    size = values.square().mean(dim=0).sqrt()
    kept = []
    for column in range(values.shape[1]):
        left = rest[:, column]
        width = float(left.square().mean().sqrt())
        constant = float(spread[column]) <= max(_TOLERANCE * float(size[column]), _SMALLEST)
        if constant or width <= _TOLERANCE * float(spread[column]):
            continue
        kept.append(column)
        direction = left / left.norm()
        # earlier columns stay as they are: only later ones are compared with this one
        rest[:, column:] -= torch.outer(direction, direction @ rest[:, column:])
    return kept
