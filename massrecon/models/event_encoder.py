"""Reads one reconstructed event of any card into a context vector.

Every object of the card is a token: its momentum in Cartesian and polar form, its mass, its
attributes and its kind. One more token holds the missing momentum and sums over the event. Behind
the transformer every token passes the same MLP, and the mean over those present is the context.
Like objects are interchangeable, and nothing depends on the slots that are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv
from massrecon.models.base import Prepared
from massrecon.models.encoder import TransformerEncoder, masked_mean, token_mlp
from massrecon.models.features import Scaling, rotate_and_flip

_FLAVOURS = (11, 13, 15)
_MOMENTUM_FEATURES = 10
_EVENT_FEATURES = 9


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the encoder of events.

    Attributes:
        dim: Width of tokens and context.
        layers: Number of transformer layers.
        heads: Number of attention heads.
        token_hidden: Hidden width of the MLPs that act on each token.
    """

    dim: int = 256
    layers: int = 4
    heads: int = 4
    token_hidden: int = 512

    def __post_init__(self) -> None:
        for field in ("layers", "heads", "token_hidden"):
            if getattr(self, field) < 1:
                raise InputError(f"'{field}' should be at least 1, got {getattr(self, field)}.")
        if self.dim < 2 or self.dim % self.heads:
            raise InputError(
                f"'dim' should be a multiple of 'heads', got {self.dim} and {self.heads}."
            )


class EventReader(nn.Module):
    """The features of objects and of whole events, for the slots of any card.

    Attributes:
        n_slots: Number K of object slots.
        n_kinds: Number of kinds of objects.
        object_width: Number F of features of an object, its kind apart.
        event_width: Number G of features of an event.
    """

    kind_of_slot: Tensor

    def __init__(self, card: ProcessCard) -> None:
        super().__init__()
        kinds = tuple(dict.fromkeys(card.slot_kinds))
        self.attribute_names = tuple(n for n in card.attribute_names if n != "flavour")
        index = torch.tensor([kinds.index(kind) for kind in card.slot_kinds])
        one_hot = nn.functional.one_hot(index, len(kinds)).float()
        self.register_buffer("kind_of_slot", one_hot, persistent=False)
        self.n_slots, self.n_kinds = one_hot.shape
        self.object_width = _MOMENTUM_FEATURES + len(self.attribute_names) + len(_FLAVOURS)
        self.event_width = _EVENT_FEATURES + len(kinds)

    def prepare(self, events: Events) -> Prepared:
        """Gathers what is read of each event, absent objects as zeros.

        Returns:
            ``objects`` (N, K, 4) and ``ptmiss`` (N, 2) in GeV, ``present`` (N, K), and
            ``attributes`` (N, K, A): mass [GeV], attributes, flavour.
        """
        there = events.present
        p4 = torch.where(there.unsqueeze(-1), events.p4, 0.0).double()
        columns = [fv.mass(p4).clamp_min(0.0), *_attributes(events, self.attribute_names)]
        attributes = torch.stack([column.to(p4) for column in columns], dim=-1)
        return {
            "objects": p4.float(),
            "present": there,
            "attributes": torch.where(there.unsqueeze(-1), attributes, 0.0).float(),
            "ptmiss": events.ptmiss.float(),
        }

    def turn(self, batch: Prepared, angle: Tensor, flip: Tensor) -> Prepared:
        """Turns events about the beam by angles ``(N,)`` and flips pz by signs ``(N,)``."""
        ptmiss = batch["ptmiss"]
        return {
            **batch,
            "objects": rotate_and_flip(batch["objects"], angle, flip),
            "ptmiss": fv.rotate_z(ptmiss, angle.to(ptmiss)),
        }

    def features(self, batch: Prepared) -> tuple[Tensor, Tensor]:
        """Computes the features of objects ``(N, K, F)`` and of events ``(N, G)``."""
        p4, attributes = batch["objects"], batch["attributes"]
        there = batch["present"].to(p4.dtype)
        px, py, pz, energy = p4.unbind(dim=-1)
        pt = torch.hypot(px, py)
        safe = pt.clamp_min(1e-3)
        polar = (
            safe.log(),
            torch.asinh(pz / safe),
            px / safe,
            py / safe,
            energy.clamp_min(1e-3).log(),
        )
        mass, flavour = attributes[..., 0].log1p(), attributes[..., -1]
        flavours = [(flavour == code).to(p4.dtype) for code in _FLAVOURS]
        columns = [*(0.01 * p4).unbind(dim=-1), *polar, mass, *flavours]
        objects = torch.cat([torch.stack(columns, dim=-1), attributes[..., 1:-1]], dim=-1)
        return objects, self._event_features(batch["ptmiss"], p4, pt, there)

    def _event_features(self, ptmiss: Tensor, p4: Tensor, pt: Tensor, there: Tensor) -> Tensor:
        met = torch.linalg.vector_norm(ptmiss, dim=-1).clamp_min(1e-3)
        total = p4.sum(dim=1)
        momentum = torch.linalg.vector_norm(total[:, :3], dim=-1)
        mass = (total[:, 3].square() - momentum.square()).clamp_min(1.0).sqrt()
        scalars = [
            met.log(),
            ptmiss[:, 0] / met,
            ptmiss[:, 1] / met,
            0.01 * ptmiss[:, 0],
            0.01 * ptmiss[:, 1],
            pt.sum(dim=1).clamp_min(1.0).log(),
            mass.log(),
            0.001 * total[:, 2],
            torch.hypot(total[:, 0], total[:, 1]).clamp_min(1e-3).log(),
        ]
        return torch.cat([torch.stack(scalars, dim=-1), there @ self.kind_of_slot], dim=-1)


class EventEncoder(EventReader):
    """A transformer over the objects of an event.

    Attributes:
        context_dim: Number C of components of the context.
    """

    def __init__(self, card: ProcessCard, config: EncoderConfig) -> None:
        super().__init__(card)
        self.context_dim = dim = config.dim
        self.object_scaling = Scaling(self.object_width)
        self.event_scaling = Scaling(self.event_width)
        self.embed = nn.Linear(self.object_width + self.n_kinds, dim)
        self.embed_event = nn.Linear(self.event_width, dim)
        self.encoder = TransformerEncoder(dim, config.heads, config.layers, config.token_hidden)
        self.token_mlp = token_mlp(dim, config.token_hidden)
        self.norm = nn.LayerNorm(dim)

    def fit(self, prepared: Prepared) -> None:
        """Sets the scaling of the features from prepared training events."""
        objects, event = self.features(prepared)
        self.object_scaling.fit(objects[prepared["present"]])
        self.event_scaling.fit(event)

    def forward(self, batch: Prepared) -> Tensor:
        """Computes the contexts of a prepared batch, shape ``(N, C)``."""
        objects, event = self.features(batch)
        present = batch["present"]
        kinds = self.kind_of_slot.expand(len(objects), -1, -1)
        tokens = self.embed(torch.cat([self.object_scaling(objects), kinds], dim=-1))
        last = self.embed_event(self.event_scaling(event)).unsqueeze(1)
        present = nn.functional.pad(present, (0, 1), value=True)
        encoded = self.encoder(torch.cat([tokens, last], dim=1), present)
        return self.norm(masked_mean(self.token_mlp(encoded), present))


def _attributes(events: Events, names: Sequence[str]) -> list[Tensor]:
    """Returns the attributes of objects and their flavour, each ``(N, K)``.

    Raises:
        InputError: If the events lack one.
    """
    wanted = [*names, "flavour"]
    if missing := [name for name in wanted if name not in events.attributes]:
        raise InputError(
            f"The events of '{events.card.name}' lack the attribute '{missing[0]}' of their "
            "objects: simulate or import them with the model's card."
        )
    return [events.attributes[name] for name in wanted]
