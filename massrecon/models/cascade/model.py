"""The family `cascade`: all that is measured and all that the decay implies, masses first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.models.base import Prepared
from massrecon.models.cascade import truth
from massrecon.models.cascade.encoder import CascadeEncoder, CascadeEncoderConfig
from massrecon.models.cascade.head import SequentialConfig, SequentialHead
from massrecon.models.cascade.masses import HypothesisMasses
from massrecon.models.event_model import EventModel, TargetConfig, weighted_mean
from massrecon.models.mass_head import set_ceilings


@dataclass(frozen=True, kw_only=True)
class CascadeConfig(SequentialConfig, CascadeEncoderConfig, TargetConfig):
    """Everything that the family `cascade` can be told: head, encoder and targets.

    Attributes:
        canonical: Whether events are turned to a common direction (leptons and photons at azimuth
            0 and forward, see `canonical_frame`) instead of being turned at random in training.
        assignment_weight: Weight of the auxiliary loss, from which side of the decay objects come.
    """

    canonical: bool = True
    assignment_weight: float = 0.1

    def __post_init__(self) -> None:
        SequentialConfig.__post_init__(self)
        CascadeEncoderConfig.__post_init__(self)
        TargetConfig.__post_init__(self)
        if self.assignment_weight < 0:
            raise InputError(
                f"'assignment_weight' should not be negative, got {self.assignment_weight}."
            )


class Cascade(EventModel):
    """The posterior of masses, and of momenta given the masses, from objects and hypotheses."""

    name = "cascade"
    density = SequentialHead.density
    solvers = SequentialHead.solvers
    config_type = CascadeConfig
    head_type = SequentialHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {"layers": 2, "mass_width": 128, "width": 128, "hypotheses": 8},
    }
    encoder: CascadeEncoder

    def build_encoder(self) -> CascadeEncoder:
        """Builds the encoder of objects and hypotheses."""
        return CascadeEncoder(self.card, self.config)

    def _build_head(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            columns, peaks = self._mass_columns(), None
            if self.config.peaks_of_hypotheses:
                of_card = [self._mass_of_card(column) for column in columns]
                peaks = (self.config.hypotheses, of_card, len(self.card.masses))
            self.head = SequentialHead(
                len(self.targets), self.encoder.context_dim, self.config, columns, peaks
            )

    def _mass_columns(self) -> list[int]:
        """Returns which of the kept targets are masses, those of the card first, in its order.

        Raises:
            InputError: If no mass varies.
        """
        masses = [i for i, name in enumerate(self._kept_names()) if name.endswith("_m")]
        if not masses:
            raise InputError(
                "No mass varies among the training events: simulate a range of masses."
            )
        others = len(self.card.masses)
        return sorted(masses, key=lambda i: self._mass_of_card(i) % (others + 1))

    def _kept_names(self) -> list[str]:
        return [self.target_names[i] for i in self.targets.kept.tolist()]

    def _mass_of_card(self, column: int) -> int:
        """Returns which mass of the card a kept target is, -1 for none."""
        name = self._kept_names()[column].removesuffix("_m")
        return self.card.mass_names.index(name) if name in self.card.mass_names else -1

    def _adapt_head(self) -> None:
        head = cast(SequentialHead, self.trained_head)
        set_ceilings(head.free, self.card, self.targets, head.mass_columns)
        if isinstance(head.masses, HypothesisMasses):
            self._set_range(head.masses, head.mass_columns)

    def _set_range(self, masses: HypothesisMasses, columns: list[int]) -> None:
        """Tells the peaks of hypotheses where the ends of their range are among the targets."""
        assert self.encoder.mixture is not None
        mixture = self.encoder.mixture.mixture
        ends = zip(mixture.region.low, mixture.region.high, strict=True)
        range_of = dict(zip(mixture.scheme.names, ends, strict=True))
        for j, column in enumerate(columns):
            mass = self._mass_of_card(column)
            if mass >= 0 and (name := self.card.mass_names[mass]) in range_of:
                offset, scale = self.targets.offset[column], self.targets.scale[column]
                masses.range[j] = (torch.tensor(range_of[name]) - offset) / scale

    def fit_scaling(self, events: Events) -> None:
        """Chooses the prior of the hypotheses and sets the scaling, from training events."""
        self.encoder.choose_mixture(events)
        super().fit_scaling(events)

    def prepare(self, events: Events) -> Prepared:
        """Computes the inputs, and with truth ``targets`` and ``origins``, see `EventModel`.

        Raises:
            InputError: If the configuration gives the network truth that the events lack.
        """
        batch = super().prepare(events)
        events = events.to("cpu")
        own = events.card.parton_names == self.card.parton_names  # a background decays otherwise
        if own and truth.knows_origins(events):
            batch["origins"] = truth.origins(events)
        elif self.config.given != "nothing":
            raise InputError(
                f"This model is told the true {self.config.given}: its events need the truth."
            )
        if self.config.given_neutrinos:
            batch["neutrinos"] = truth.invisible_momenta(events)
        if not self.config.canonical:
            return batch
        batch = self.encoder.turn(batch, *canonical_frame(events))
        if "targets" in batch:
            batch["targets"] = self.into_frame(batch["targets"], events)
        return batch

    def augment(self, batch: Prepared, generator: torch.Generator) -> Prepared:
        """Turns events about the beam and flips pz, unless all are in a common frame."""
        return batch if self.config.canonical else super().augment(batch, generator)

    def loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the loss of the head and the auxiliary loss of the origins of objects."""
        context, logits = self.encoder.encode(batch)
        losses = self.trained_head.loss(self.noisy_targets(batch, generator), context, generator)
        if self.config.assignment_weight and "origins" in batch:
            losses = losses + self.config.assignment_weight * self._origin_loss(logits, batch)
        return weighted_mean(losses, batch["weight"])

    def _origin_loss(self, logits: Tensor, batch: Prepared) -> Tensor:
        """Computes the mean cross-entropy of the origins of the objects of each event, ``(N,)``.

        Where the sides of a decay are alike, the naming of sides that fits better counts.
        """
        present = batch["present"].unsqueeze(-1).to(logits)
        labels = batch["origins"].to(logits)
        namings = [labels, labels.flip(-1)] if self.encoder.alike_sides else [labels]
        losses = [(_cross_entropy(logits, naming) * present).sum(dim=(1, 2)) for naming in namings]
        return torch.stack(losses).amin(dim=0) / present.sum(dim=(1, 2)).clamp_min(1)

    def into_frame(self, targets: Tensor, events: Events) -> Tensor:
        """Turns targets as `prepare` turns their events."""
        if not self.config.canonical:
            return targets
        return self.targets.turn(targets, *canonical_frame(events))

    def out_of_frame(self, targets: Tensor, events: Events) -> Tensor:
        """Turns targets back."""
        if not self.config.canonical:
            return targets
        angle, flip = canonical_frame(events)
        return self.targets.turn(targets, -angle, flip)


def canonical_frame(events: Events) -> tuple[Tensor, Tensor]:
    """Returns how to turn each event so that its objects but the jets are at azimuth 0, forward.

    These are leptons and photons, and large-radius jets. Where an event has none, the missing
    momentum gives the azimuth and all objects the sign.

    Returns:
        Angles ``(N,)`` [rad] and signs of pz ``(N,)``, float32 on the processor.
    """
    events = events.to("cpu")
    clean = torch.tensor([kind != "jet" for kind in events.card.slot_kinds])
    p4 = torch.where(events.present.unsqueeze(-1), events.p4, 0.0).float()
    everything = torch.cat([events.ptmiss.float(), p4[..., 2].sum(dim=1, keepdim=True)], dim=1)
    some = (events.present & clean).any(dim=1, keepdim=True)
    total = torch.where(some, p4[:, clean, :3].sum(dim=1), everything)
    angle = -torch.atan2(total[:, 1], total[:, 0])
    return angle, torch.where(total[:, 2] < 0, -1.0, 1.0)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
