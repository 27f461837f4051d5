"""What a network sees: chosen objects, summary observables, invertible scaling, augmentation.

Features and targets are kept in GeV. Collisions of two equal beams do not change under a rotation
about the beam or under the exchange of the two beam directions; scaling and augmentation respect
both symmetries.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from massrecon.errors import CardError, InputError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv

EXTRA_NAMES = (
    "met",
    "delta_r_min_lepton_jet",
    "delta_r_max_lepton_jet",
    "delta_r_min_lepton_photon",
    "delta_r_max_lepton_photon",
    "delta_r_min_photon_jet",
    "delta_r_max_photon_jet",
    "sum_pt_jets",
)
"""The summary observables of `extra_observables`, in order."""

_LEPTON_PAIRS = tuple(itertools.combinations(range(4), 2))

FOUR_LEPTON_NAMES = (
    "met",
    *(f"delta_r_lepton{i + 1}_lepton{j + 1}" for i, j in _LEPTON_PAIRS),
    *(f"delta_phi_lepton{i + 1}_ptmiss" for i in range(4)),
)
"""The summary observables of `four_lepton_observables`, in order."""


def leading_slots(card: ProcessCard, counts: dict[str, int], model: str) -> dict[str, list[int]]:
    """Finds the first slots of each kind that a model reads.

    Args:
        card: The process card.
        counts: How many objects of each kind are read, in the order of the tokens.
        model: Name of the model, for the message.

    Raises:
        CardError: If the card has too few slots of a kind.
    """
    slots = {}
    for kind, count in counts.items():
        found = [i for i, slot_kind in enumerate(card.slot_kinds) if slot_kind == kind]
        if len(found) < count:
            needed = ", ".join(f"{n} {k}" for k, n in counts.items())
            raise CardError(
                f"The model '{model}' reads {needed} slots, but the card '{card.name}' has only "
                f"{len(found)} of kind '{kind}': choose another model or card."
            )
        slots[kind] = found[:count]
    return slots


def objects(events: Events, slots: list[int]) -> tuple[Tensor, Tensor]:
    """Returns momenta ``(N, K, 4)`` [GeV] and presence ``(N, K)`` of some slots, absent ones 0."""
    present = events.present[:, slots]
    return torch.where(present.unsqueeze(-1), events.p4[:, slots], 0.0), present


def extra_observables(
    leptons: tuple[Tensor, Tensor],
    photons: tuple[Tensor, Tensor],
    jets: tuple[Tensor, Tensor],
    ptmiss: Tensor,
) -> Tensor:
    """Computes the eight summary observables named in `EXTRA_NAMES`.

    Args:
        leptons: Momenta (px, py, pz, E) [GeV], shape ``(N, K, 4)``, and presence ``(N, K)``.
        photons: The same for photons.
        jets: The same for jets.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.

    Returns:
        Missing energy [GeV], smallest and largest Delta R of the three kinds of pairs, sum of the
        jets' pT [GeV]; shape ``(N, 8)``. A Delta R is 0 in an event without such a pair.
    """
    met = torch.linalg.vector_norm(ptmiss, dim=-1)
    pairs = ((leptons, jets), (leptons, photons), (photons, jets))
    distances = [d for first, second in pairs for d in _delta_r_range(first, second)]
    sum_pt = (fv.pt(jets[0]) * jets[1]).sum(dim=-1)
    return torch.stack([met, *distances, sum_pt], dim=-1)


def four_lepton_observables(leptons: tuple[Tensor, Tensor], ptmiss: Tensor) -> Tensor:
    """Computes the eleven summary observables named in `FOUR_LEPTON_NAMES`.

    Args:
        leptons: Momenta (px, py, pz, E) [GeV], shape ``(N, 4, 4)``, and presence ``(N, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.

    Returns:
        Missing energy [GeV], Delta R of each pair of leptons, and the angle of each lepton to the
        missing momentum between 0 and pi [rad]; shape ``(N, 11)``. What belongs to an absent
        lepton is 0.
    """
    p4, present = leptons
    first, second = (list(ends) for ends in zip(*_LEPTON_PAIRS, strict=True))
    distance = fv.delta_r(p4[:, first], p4[:, second])
    distance = torch.where(present[:, first] & present[:, second], distance, 0.0)
    azimuth = torch.atan2(ptmiss[:, 1], ptmiss[:, 0]).unsqueeze(1)
    angle = torch.where(present, fv.delta_phi(fv.phi(p4), azimuth).abs(), 0.0)
    met = torch.linalg.vector_norm(ptmiss, dim=-1, keepdim=True)
    return torch.cat([met, distance, angle], dim=-1)


def _delta_r_range(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    distance = fv.delta_r(first[0].unsqueeze(2), second[0].unsqueeze(1)).flatten(1)
    paired = (first[1].unsqueeze(2) & second[1].unsqueeze(1)).flatten(1)
    least = torch.where(paired, distance, math.inf).amin(dim=1)
    largest = torch.where(paired, distance, 0.0).amax(dim=1)
    return torch.where(paired.any(dim=1), least, 0.0), largest


class Scaling(nn.Module):
    """An invertible linear map of each column to mean 0 and width 1, kept with the weights."""

    offset: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, values: Tensor) -> None:
        """Sets offset and scale from `values`, shape ``(N, width)``.

        A column that does not vary (a mass that is fixed in the sample) keeps the scale 1.

        Raises:
            InputError: If there is no value, or one is not finite.
        """
        values = _checked(values)
        self._set(values.mean(dim=0), values.std(dim=0, correction=0))

    def fit_momenta(self, values: Tensor) -> None:
        """Sets offset and scale from rows of (px, py, pz, E or m) groups, shape ``(N, 4 G)``.

        Momenta keep their zero, and px and py share their scale, so that the map commutes with
        rotations about the beam and with pz -> -pz.

        Raises:
            InputError: If there is no value, or one is not finite.
        """
        rows = _checked(values).unflatten(-1, (-1, 4))
        offset, scale = rows.mean(dim=0), rows.std(dim=0, correction=0)
        offset[:, :3] = 0.0
        scale[:, :2] = rows[..., :2].square().mean(dim=(0, 2)).sqrt().unsqueeze(-1)
        scale[:, 2] = rows[..., 2].square().mean(dim=0).sqrt()
        self._set(offset.flatten(), scale.flatten())

    def _set(self, offset: Tensor, scale: Tensor) -> None:
        varies = scale > 1e-6 * (1 + offset.abs())
        self.offset.copy_(offset)
        self.scale.copy_(torch.where(varies, scale, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Scales physical values, shape ``(..., width)``."""
        return (values - self.offset) / self.scale

    def inverse(self, scaled: Tensor) -> Tensor:
        """Returns physical values in float64 on the processor, shape ``(..., width)``."""
        return scaled.cpu().double() * self.scale.cpu().double() + self.offset.cpu().double()


def _checked(values: Tensor) -> Tensor:
    if len(values) == 0 or not bool(torch.isfinite(values).all()):
        raise InputError(
            f"The scaling needs finite values of at least one event, got {len(values)}: check "
            "the training events with events.validate()."
        )
    return values.double()


def augment_momenta(*groups: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Turns each event by a random angle about the beam and flips pz in half of the events.

    Args:
        *groups: Tensors of (px, py, pz, …) rows, shape ``(N, …, 4)``, turned together.
        generator: Source of the angles and flips.

    Returns:
        New tensors of the same shapes.
    """
    angle, flip = random_turns(len(groups[0]), generator)
    return tuple(rotate_and_flip(group, angle, flip) for group in groups)


def random_turns(n_events: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws angles about the beam [rad] and signs of pz, each ``(N,)``."""
    device = generator.device
    angle = 2 * math.pi * torch.rand(n_events, generator=generator, device=device)
    return angle, 1.0 - 2 * torch.randint(2, (n_events,), generator=generator, device=device)


def rotate_and_flip(momenta: Tensor, angle: Tensor, flip: Tensor) -> Tensor:
    """Turns momenta about the beam and multiplies pz by a sign.

    Args:
        momenta: Rows of (px, py, pz, E or m), shape ``(N, ..., 4)``.
        angle: Angle of each event [rad], shape ``(N,)``.
        flip: 1 or -1 for each event, shape ``(N,)``.
    """
    shape = (-1,) + (1,) * (momenta.ndim - 2)
    turned = fv.rotate_z(momenta, angle.to(momenta).view(shape))
    px, py, pz, last = turned.unbind(dim=-1)
    return torch.stack([px, py, flip.to(momenta).view(shape) * pz, last], dim=-1)
