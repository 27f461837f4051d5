"""From drawn coordinates and content to the events of a card: the last step of a surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from massrecon.events.card import ProcessCard
from massrecon.events.columns import column_type
from massrecon.events.container import Events
from massrecon.events.selection import MEDIUM
from massrecon.models.event_space import EventSpace
from massrecon.models.measured import Measured, momenta


def assembled(
    space: EventSpace,
    seen: Measured,
    present: Tensor,
    attributes: Mapping[str, Tensor],
    truth: Tensor,
    provenance: Mapping[str, Any],
) -> Events:
    """Puts events together.

    Args:
        space: Coordinates of the card.
        seen: Objects of N events in polar form.
        present: Which of them are there, shape ``(N, K)``.
        attributes: Discrete attributes, each ``(N, K)``.
        truth: Masses ``(N, M)`` or partons ``(N, P, 4)`` [GeV] that the events come from.
        provenance: Where the events come from.
    """
    flavour = attributes.get("flavour", torch.zeros_like(present, dtype=torch.int64))
    named = {
        name: torch.where(present, seen.extras[..., b], 0.0) for b, name in enumerate(space.extras)
    }
    for name, values in attributes.items():
        named[name] = torch.as_tensor(values.numpy().astype(column_type(name)))
    size, angle = seen.ptmiss.unbind(dim=-1)
    return Events(
        card=space.card,
        p4=momenta(seen, present, flavour),
        present=present,
        ptmiss=torch.stack([size * angle.cos(), size * angle.sin()], dim=-1),
        weight=torch.ones(len(present), dtype=torch.float64),
        attributes=named,
        partons=truth if truth.ndim == 3 else None,
        masses=truth if truth.ndim == 2 else None,
        provenance=dict(provenance),
    )


def content_accepted(
    card: ProcessCard, present: Tensor, attributes: Mapping[str, Tensor]
) -> Tensor:
    """Tells which contents fulfil the cuts of the card on charges and tags, shape ``(N,)``."""
    kinds = torch.tensor([kind == "lepton" for kind in card.slot_kinds])
    good = torch.ones(len(present), dtype=torch.bool)
    if card.cuts.lepton_charge is not None:
        good &= attributes["charge"][:, kinds].sum(dim=1) == card.cuts.lepton_charge
    if card.cuts.btags > 0:
        jets = torch.tensor([kind == "jet" for kind in card.slot_kinds])
        good &= (attributes["btag"][:, jets] >= MEDIUM).sum(dim=1) >= card.cuts.btags
    return good


def replaced(events: Events, rows: Tensor, others: Events) -> Events:
    """Puts other events into some rows."""
    tensors = {}
    for name, tensor in events.tensors().items():
        tensors[name] = tensor.index_put((rows,), others.tensors()[name])
    return events.with_tensors(tensors, events.provenance)
