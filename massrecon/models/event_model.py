"""A mass model from three parts: an encoder of events, a space of targets, and a family's head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.models.base import MassModel, Prepared, checked_targets
from massrecon.models.blocks import blocks_with_context
from massrecon.models.event_encoder import EncoderConfig, EventEncoder
from massrecon.models.features import random_turns
from massrecon.models.head import Head
from massrecon.models.noise import Draws
from massrecon.models.targets import Coordinates, TargetChoice, TargetSpace

SMALL_ENCODER: Mapping[str, int] = {"dim": 128, "layers": 2, "token_hidden": 256}
"""Sizes of an encoder that learns in minutes, for the preset ``small`` of every family."""

_EVENTS_TO_SCALE = 20_000


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What is learned, and in which coordinates.

    Attributes:
        targets: What is learned: ``"card"``, the particles that the card names; ``"masses"``, its
            mass parameters alone; ``"resonances"``, every particle of the decay tree; or some of
            these by their labels, such as ``"W l"``; or quantities of them, such as
            ``"cos l W, pt h"``, see `massrecon.models.quantities`.
        coordinates: ``"cartesian"``, (px, py, pz, m), or ``"polar"``, (log pT, eta, phi, m).
        target_noise: Width of the Gaussian noise on the targets in training, in units of their
            spread. It keeps a density finite where targets lie on a grid or on a mass shell.
    """

    targets: TargetChoice = "card"
    coordinates: Coordinates = "cartesian"
    target_noise: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.target_noise < 1:
            raise InputError(f"'target_noise' should be in [0, 1), got {self.target_noise}.")


@dataclass(frozen=True, kw_only=True)
class EventConfig(EncoderConfig, TargetConfig):
    """Targets and encoder; a family adds the fields of its head."""

    def __post_init__(self) -> None:
        EncoderConfig.__post_init__(self)
        TargetConfig.__post_init__(self)


class EventModel(MassModel):
    """The posterior of any card's targets; a family names its head and its configuration.

    The head is built when the training events have shown how many targets are independent, or with
    the saved weights.
    """

    head_type: ClassVar[Any]
    config: Any
    head: Head | None

    def __init__(self, card: ProcessCard, config: Any) -> None:
        super().__init__(card, config)
        self.encoder = self.build_encoder()
        self.targets = TargetSpace(card, config.targets, config.coordinates)
        self.head = None
        self._seed = torch.initial_seed()

    @classmethod
    def from_config(cls, card: ProcessCard, config: Mapping[str, Any]) -> EventModel:
        """Builds an untrained model from fields of the family's configuration."""
        return cls(card, cls.config_type(**config))

    def build_encoder(self) -> Any:
        """Builds what turns prepared events into contexts."""
        return EventEncoder(self.card, self.config)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the columns of the draws, such as ``chi20_px``."""
        return self.targets.names

    @property
    def trained_head(self) -> Head:
        """The head.

        Raises:
            ModelError: If the model has not met any events yet.
        """
        if self.head is None:
            raise ModelError(
                f"This model '{self.name}' is untrained: pass it through massrecon.fit, or call "
                "fit_scaling with training events first."
            )
        return self.head

    def true_targets(self, events: Events) -> Tensor | None:
        """Returns the true values of the targets [GeV], ``(N, R)``; None for data."""
        return self.targets.values(events) if self.targets.knows_truth(events) else None

    def prepare(self, events: Events) -> Prepared:
        """Computes the inputs of the encoder, ``weight`` (N,) and, with truth, ``targets``."""
        self.check_card(events)
        events = events.to("cpu")
        prepared: Prepared = {**self.encoder.prepare(events), "weight": events.weight.float()}
        if (targets := self.true_targets(events)) is not None:
            prepared["targets"] = targets.float()
        return prepared

    def fit_scaling(self, events: Events) -> None:
        """Sets the scaling of inputs and targets from training events, and builds the head.

        Inputs are scaled by what a part of the events, evenly chosen, has.

        Raises:
            InputError: If there are no events, they carry no truth, or no target varies.
        """
        events = events.to("cpu")
        truth = self.true_targets(events)
        if truth is None:
            raise InputError("Training needs events with truth: use simulated events.")
        if len(events) == 0:
            raise InputError("Training needs events: the sample is empty.")
        targets = self.into_frame(truth, events).float()
        device = self.device
        self.cpu()
        self.encoder.fit(self.prepare(events[:: math.ceil(len(events) / _EVENTS_TO_SCALE)]))
        self.targets.fit(targets)
        self._build_head()
        self.trained_head.fit_support(self.targets.encode(targets))
        self._adapt_head()
        self.to(device)

    def _build_head(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.head = self.head_type(len(self.targets), self.encoder.context_dim, self.config)

    def _adapt_head(self) -> None:
        """Tells the head what the card knows of the targets."""

    def augment(self, batch: Prepared, generator: torch.Generator) -> Prepared:
        """Turns events about the beam and flips pz."""
        angle, flip = random_turns(len(batch["objects"]), generator)
        turned = self.encoder.turn(batch, angle, flip)
        return {**turned, "targets": self.targets.turn(batch["targets"], angle, flip)}

    def encode(self, batch: Prepared) -> Tensor:
        """Computes the context of each event of a prepared batch, shape ``(N, C)``."""
        return self.encoder(batch)

    def loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the loss of the head, averaged with the weights of the events."""
        x = self.noisy_targets(batch, generator)
        losses = self.trained_head.loss(x, self.encode(batch), generator)
        return weighted_mean(losses, batch["weight"])

    def noisy_targets(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Returns the coordinates of the true targets with the noise of training, ``(N, T)``."""
        x = self.targets.encode(batch["targets"])
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        return x + self.config.target_noise * noise

    def validation_loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the score of the head, averaged with the weights of the events."""
        x = self.targets.encode(batch["targets"])
        losses = self.trained_head.score(x, self.encode(batch), generator)
        return weighted_mean(losses, batch["weight"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of the head, and the encoder in one of its own."""
        shared = {"params": list(self.encoder.parameters()), "rate": 1.0}
        return [
            group for group in (shared, *self.trained_head.parameter_groups()) if group["params"]
        ]

    @torch.no_grad()
    def sample(
        self,
        events: Events,
        n_samples: int,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        batch_size: int = 8192,
    ) -> Tensor:
        """Draws targets from the posterior of each event.

        A draw depends on the seed and on the numbers of its event and draw, not on `batch_size`
        nor on how many draws are taken.

        Args:
            events: Reconstructed events.
            n_samples: Number S of draws per event.
            steps: Number of network evaluations for a draw, by default the configured one.
            solver: One of `solvers`; by default the first.
            seed: Seed of the noise.
            batch_size: How many draws are worked on at a time; bounds the memory.

        Returns:
            Draws of ``target_names`` [GeV], float64 on the processor, shape ``(S, N, R)``.

        Raises:
            InputError: If an argument is out of range or the events follow another card.
            ModelError: If the model is untrained.
        """
        head = self.trained_head
        chosen = head.check_sampling(n_samples, steps, solver, batch_size)
        prepared = self.prepare(events)
        drawn = torch.empty(n_samples, len(events), len(self.target_names), dtype=torch.float64)
        for which, rows, context in blocks_with_context(
            n_samples, len(events), batch_size, lambda rows: self._context(prepared, rows)
        ):
            draws = Draws.of_block(seed, which, rows, self.device)
            drawn[which, rows] = self.targets.decode(head.draw_block(context, draws, steps, chosen))
        return self.out_of_frame(drawn, events)

    @torch.no_grad()
    def log_prob(self, targets: Tensor, events: Events, batch_size: int = 8192) -> Tensor:
        """Computes the log-density of the targets that vary, in GeV whatever the coordinates.

        What it is depends on the family's `density`: exact, that of the probability flow, or a
        lower bound. Columns that follow from others do not enter.

        Args:
            targets: Values of ``target_names`` [GeV], shape ``(N, R)``, or ``(G, N, R)`` for G
                values of each event.
            events: Reconstructed events.
            batch_size: How many values are worked on at a time; bounds the memory.

        Returns:
            log p, float64 on the processor, shape ``(N,)`` or ``(G, N)``.

        Raises:
            ModelError: If the family has no density, or the model is untrained.
            ShapeError: If the targets do not fit the events.
        """
        head = self.trained_head
        if head.density == "none":
            return super().log_prob(targets, events)
        values = checked_targets(targets, events, len(self.target_names)).cpu()
        values = self.into_frame(values, events)
        prepared = self.prepare(events)
        found = torch.empty(values.shape[:2], dtype=torch.float64)
        for which, rows, context in blocks_with_context(
            len(found), len(events), batch_size, lambda rows: self._context(prepared, rows)
        ):
            chunk = values[which, rows].to(self.device, torch.float32)
            density = head.log_prob(self.targets.encode(chunk), context, batch_size=batch_size)
            found[which, rows] = (density + self.targets.log_jacobian(chunk)).cpu().double()
        return found if targets.ndim == 3 else found[0]

    def into_frame(self, targets: Tensor, events: Events) -> Tensor:
        """Takes targets ``(..., N, R)`` to the frame that `prepare` puts the events into."""
        return targets

    def out_of_frame(self, targets: Tensor, events: Events) -> Tensor:
        """Takes targets ``(..., N, R)`` back from the frame that `prepare` puts the events into."""
        return targets

    def _context(self, prepared: Prepared, rows: slice) -> Tensor:
        return self.encode({name: t[rows].to(self.device) for name, t in prepared.items()})

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Loads weights, building first the head that they belong to."""
        if self.head is None and (kept := state_dict.get("targets.kept")) is not None:
            self.targets._allocate(len(kept))
            self.targets.kept.copy_(kept)
            self._build_head()
        return super().load_state_dict(state_dict, *args, **options)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Averages values of events with their weights, both ``(N,)``."""
    return (values * weight).sum() / weight.sum()
