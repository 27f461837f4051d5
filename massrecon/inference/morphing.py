"""Stored events as another detector would have measured them: jets and ptmiss, moved together.

Three shifts are known for every measurement with jets: their energy scale, their resolution, and
what ptmiss holds besides objects (its soft term). Each changes the four-momenta of the jets or the
missing momentum; whatever a jet gains in the transverse plane, ptmiss loses. Then the jets are
ordered, cut and counted again, so that events enter and leave the selection.

Jets that begin below the threshold can move above it. So the events have to be stored with softer
jets than the selection wants, see `soft_jet_card`:

    card = mr.load_card("wino_udd")
    events = mr.simulate(soft_jet_card(card, 18.0), 20_000, masses, seed=1)
    up = morphed(events, DetectorShift(jet_scale=0.02), card)

Resolutions can only be made worse, by adding noise; the response to a better one is taken to be the
opposite. Electrons, muons and photons stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events

_JET = "jet"
# resolution of jets of the HL-LHC-like detector against pT: a fit to 14, 11, 8, 6 and 5 % at 40,
# 65, 115, 225 and 400 GeV, sigma / pT = sqrt(c^2 + s^2 / pT)
_CONSTANT, _STOCHASTIC = 0.029, 0.86
_MOST = 0.5  # scale shift beyond which linear morphing makes no sense


@dataclass(frozen=True, kw_only=True)
class DetectorShift:
    """How a detector differs from the simulated one.

    Attributes:
        jet_scale: Relative shift of the energy and momentum of all jets; 0.02 is 2 % up.
        jet_resolution: Relative growth of the resolution of jets, zero or positive.
        soft_ptmiss: Extra width of each component of ptmiss [GeV].
    """

    jet_scale: float = 0.0
    jet_resolution: float = 0.0
    soft_ptmiss: float = 0.0

    def __post_init__(self) -> None:
        if not abs(self.jet_scale) < _MOST:
            raise InputError(
                f"'jet_scale' should be a small relative shift, got {self.jet_scale}: 0.02 is 2 %."
            )
        for name in ("jet_resolution", "soft_ptmiss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"'{name}' should not be negative, got {getattr(self, name)}: noise can only "
                    "be added."
                )


def soft_jet_card(card: ProcessCard, pt_min: float = 18.0, count: int | None = None) -> ProcessCard:
    """Returns a card that keeps softer jets than another one, to morph its events from.

    Args:
        card: The process.
        pt_min: Lowest transverse momentum of jets [GeV].
        count: Number of slots for jets; four more than the card has if not given.

    Raises:
        InputError: If the card has no jets.
    """
    content = card.to_dict()
    content["name"] = f"{card.name}_soft_jets"
    jets = [group for group in content["objects"] if group["kind"] == _JET]
    if not jets:
        raise InputError(f"The card '{card.name}' has no jets to shift.")
    for group in jets:
        group["pt_min"] = min(pt_min, group["pt_min"])
        group["count"] = group["count"] + 4 if count is None else count
    return load_card(content)


def morphed(
    events: Events, shift: DetectorShift, card: ProcessCard | None = None, seed: int = 0
) -> Events:
    """Shifts jets and ptmiss of events and selects them again.

    Args:
        events: Events with jets softer than `card` wants, as far as its threshold can be crossed.
        shift: What to change.
        card: The card whose selection is applied; that of the events if not given.
        seed: Seed of what worsens resolutions.

    Returns:
        The events of the card that pass its selection, in their order.

    Raises:
        InputError: If the cards differ in more than their jets, or the events have no jets.
    """
    card = events.card if card is None else card
    jets = _jet_slots(events, card)
    generator = torch.Generator().manual_seed(seed)
    before = events.p4[:, jets]
    after = before * _factor(before, shift, generator).unsqueeze(-1)
    gained = torch.where(events.present[:, jets].unsqueeze(-1), after - before, 0.0).sum(1)
    noise = torch.randn(events.ptmiss.shape, generator=generator, dtype=torch.float64)
    ptmiss = events.ptmiss - gained[:, :2] + shift.soft_ptmiss * noise.to(events.ptmiss)
    return _selected(events, card, jets, after, ptmiss)


def _jet_slots(events: Events, card: ProcessCard) -> Tensor:
    others = [[g for g in c.objects if g.kind != _JET] for c in (events.card, card)]
    slots = events.slots_of(_JET)
    if others[0] != others[1] or _JET not in card.slot_kinds or not slots:
        raise InputError(
            f"The events of '{events.card.name}' and the card '{card.name}' should differ in their "
            "jets alone, and have some: simulate events with soft_jet_card(card)."
        )
    return torch.tensor(slots)


def _factor(p4: Tensor, shift: DetectorShift, generator: torch.Generator) -> Tensor:
    """Draws by how much each jet is scaled, ``(N, J)``."""
    pt = torch.hypot(p4[..., 0], p4[..., 1]).clamp_min(1.0)
    width = (_CONSTANT**2 + _STOCHASTIC**2 / pt).sqrt()
    extra = math.sqrt((1 + shift.jet_resolution) ** 2 - 1)
    noise = torch.randn(pt.shape, generator=generator, dtype=torch.float64).to(pt)
    return ((1 + shift.jet_scale) * (1 + extra * width * noise)).clamp_min(0.1)


def _selected(
    events: Events, card: ProcessCard, jets: Tensor, p4: Tensor, ptmiss: Tensor
) -> Events:
    """Orders, cuts and counts the jets, and fills the slots of the card."""
    group = next(group for group in card.objects if group.kind == _JET)
    pt = torch.hypot(p4[..., 0], p4[..., 1])
    eta = torch.asinh(p4[..., 2] / pt.clamp_min(1e-9))
    good = events.present[:, jets] & (pt > group.pt_min) & (eta.abs() < group.eta_max)
    order = torch.where(good, pt, -1.0).argsort(dim=1, descending=True, stable=True)
    order = order[:, : group.count]
    number = good.sum(1)
    passed = (number >= group.minimum) & (number <= (group.maximum or good.shape[1]))
    kept = good.gather(1, order)
    columns = {"p4": p4, "present": good}
    columns |= {name: values[:, jets] for name, values in events.attributes.items()}
    filled = {name: _filled(events, card, name, v, order, kept) for name, v in columns.items()}
    tensors = events.tensors() | filled | {"ptmiss": ptmiss}
    return events.of_tensors(
        card, {name: tensor[passed] for name, tensor in tensors.items()}, events.provenance
    )


def _filled(
    events: Events, card: ProcessCard, name: str, values: Tensor, order: Tensor, kept: Tensor
) -> Tensor:
    """Puts a property of the ordered jets beside that of the other objects, ``(N, K, ...)``."""
    old = events.tensors()[name]
    mask, index = kept, order
    if values.ndim == 3:
        mask, index = kept.unsqueeze(-1), order.unsqueeze(-1).expand(-1, -1, values.shape[-1])
    chosen = values.gather(1, index).masked_fill(~mask, 0)
    width = sum(group.count for group in card.objects if group.kind == _JET)
    if chosen.shape[1] < width:
        missing = chosen.new_zeros(len(chosen), width - chosen.shape[1], *chosen.shape[2:])
        chosen = torch.cat([chosen, missing], dim=1)
    others = iter(i for i, kind in enumerate(events.card.slot_kinds) if kind != _JET)
    own = iter(range(width))
    parts = [
        chosen[:, next(own)] if kind == _JET else old[:, next(others)] for kind in card.slot_kinds
    ]
    return torch.stack(parts, dim=1)
