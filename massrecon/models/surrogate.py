"""A surrogate of the event generator and the detector: p(reconstructed event | masses or partons).

Condition and target of the mass models are exchanged. The same heads learn the kinematics of an
event given its content and the truth, `ContentModel` learns the content, and `EventSpace` gives
both a meaning. What comes out are `Events` of the card like any others. They stand for selected
collisions: how many of all collisions are selected is known to the simulation alone.

References:
    A. Butter, T. Plehn and R. Winterhalder, SciPost Phys. 7 (2019) 075, arXiv:1907.03764;
    R. Verheyen, SciPost Phys. 13 (2022) 047, arXiv:2205.01697: flows for variable content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from massrecon.errors import InputError, ModelError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv
from massrecon.models.assembly import assembled, content_accepted, replaced
from massrecon.models.autoregressive import AutoregressiveConfig, AutoregressiveHead
from massrecon.models.base import MassModel, Prepared, read_header, rebuilt
from massrecon.models.blocks import blocks_with_context
from massrecon.models.content import ContentModel
from massrecon.models.diffusion import DiffusionConfig, DiffusionHead
from massrecon.models.event_model import weighted_mean
from massrecon.models.event_space import EventSpace
from massrecon.models.features import Scaling
from massrecon.models.flow import FlowConfig, FlowHead
from massrecon.models.flow_matching import FlowMatchingConfig, FlowMatchingHead
from massrecon.models.gan import GANConfig, GANHead
from massrecon.models.head import Head
from massrecon.models.noise import Draws
from massrecon.models.vae import VAEConfig, VAEHead

Condition = Literal["masses", "partons"]

HEADS: dict[str, tuple[Any, Any]] = {
    "autoregressive": (AutoregressiveHead, AutoregressiveConfig),
    "flow_matching": (FlowMatchingHead, FlowMatchingConfig),
    "diffusion": (DiffusionHead, DiffusionConfig),
    "flow": (FlowHead, FlowConfig),
    "vae": (VAEHead, VAEConfig),
    "gan": (GANHead, GANConfig),
}
"""Families that can learn the kinematics of events: head and configuration."""

# draws that miss a cut are drawn anew, at most so often, each time with another seed
_ATTEMPTS = 50
_NEXT_SEED = 7_919


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig:
    """What the surrogate consists of.

    Attributes:
        family: Family of the kinematics, one of `HEADS`.
        condition: ``"masses"``, the mass parameters, or ``"partons"``, the momenta of all
            particles of the decay tree.
        content_width: Width of the networks of the content.
        head: Fields of the family's configuration that differ from its defaults.
    """

    family: str = "autoregressive"
    condition: Condition = "masses"
    content_width: int = 64
    head: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in HEADS:
            raise unknown_name("family", self.family, HEADS)
        if self.condition not in get_args(Condition):
            raise unknown_name("condition", self.condition, get_args(Condition))
        if self.content_width < 1:
            raise InputError(f"'content_width' should be at least 1, got {self.content_width}.")
        known = [f.name for f in fields(HEADS[self.family][1])]
        for name in self.head:
            if name not in known:
                raise unknown_name(f"setting of {self.family}", name, known)


class Surrogate(MassModel):
    """A fast simulation of selected events of a card.

    Its targets are the coordinates of `EventSpace`; those who want events call `simulate`.
    """

    name = "surrogate"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"full": {}}
    config: SurrogateConfig
    head: Head | None

    def __init__(self, card: ProcessCard, config: SurrogateConfig) -> None:
        super().__init__(card, config)
        self.space = EventSpace(card, own_axis=config.condition == "masses")
        n = len(card.masses) if config.condition == "masses" else 6 * len(card.parton_names)
        self.scaling = Scaling(n)
        # a context needs a component, even where there is nothing to tell
        self.content = ContentModel(card, n + 1, config.content_width)
        self.head = None
        self._seed = torch.initial_seed()

    @classmethod
    def from_config(cls, card: ProcessCard, config: Mapping[str, Any]) -> Surrogate:
        """Builds an untrained surrogate from fields of `SurrogateConfig`."""
        return cls(card, SurrogateConfig(**config))

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the components of x, such as ``jet1 size``."""
        return self.space.names

    @property
    def trained_head(self) -> Head:
        """The head.

        Raises:
            ModelError: If the surrogate has not met any events yet.
        """
        if self.head is None:
            raise ModelError("This surrogate is untrained: make one with fit_surrogate.")
        return self.head

    def condition_of(self, events: Events) -> Tensor:
        """Returns the truth that events are conditioned on, float64, ``(N, M)`` or ``(N, P, 4)``.

        Raises:
            InputError: If the events do not carry it.
        """
        truth = events.masses if self.config.condition == "masses" else events.partons
        if truth is None:
            raise InputError(
                f"The surrogate needs the true {self.config.condition} of its events: use "
                "simulated events."
            )
        return truth.cpu().double()

    def prepare(self, events: Events) -> Prepared:
        """Computes condition, content and raw coordinates, each with its azimuths turned."""
        self.check_card(events)
        events = events.to("cpu")
        condition = self.condition_of(events)
        if self.config.condition == "masses":
            axis = self.space.axis_of(events)
        else:
            condition, axis = _turned_partons(condition)
        return {
            "targets": self.space.raw(events, axis).float(),
            "condition": condition.flatten(1).float(),
            "codes": self.content.codes(events),
            "present": events.present,
            "weight": events.weight.float(),
        }

    def fit_scaling(self, events: Events) -> None:
        """Sets all scales from training events and builds the networks."""
        prepared = self.prepare(events)
        device = self.device
        self.cpu()
        self.scaling.fit(self._features(prepared["condition"]))
        self.space.fit(prepared["targets"], prepared["present"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.content.fit(prepared["codes"], prepared["present"])
            self._build_head()
        self.to(device)

    def _build_head(self) -> None:
        head, config = HEADS[self.config.family]
        context_dim = self.content.context_dim + self.content.n_hot
        self.head = head(len(self.space), context_dim, config(**self.config.head))

    def _features(self, condition: Tensor) -> Tensor:
        if self.config.condition == "masses":
            return condition
        px, py, pz, m = condition.unflatten(1, (-1, 4)).unbind(dim=-1)
        pt = torch.hypot(px, py).clamp_min(1e-3)
        columns = (pt.log(), torch.asinh(pz / pt), px / pt, py / pt, torch.asinh(pz / 50.0), m)
        return torch.cat(columns, dim=1)

    def _context(self, condition: Tensor) -> Tensor:
        return nn.functional.pad(self.scaling(self._features(condition)), (0, 1), value=1.0)

    def augment(self, batch: Prepared, generator: torch.Generator) -> Prepared:
        """Chooses mirror images and exchanges of the beams, and flips partons accordingly."""
        n, device = len(batch["targets"]), generator.device
        signs = 1.0 - 2 * torch.randint(2, (n, 2), generator=generator, device=device)
        condition = batch["condition"]
        if self.config.condition == "partons":
            one = torch.ones_like(signs[:, 0])
            flips = torch.stack([one, signs[:, 1], signs[:, 0], one], dim=1)
            condition = (condition.unflatten(1, (-1, 4)) * flips.unsqueeze(1)).flatten(1)
        return {**batch, "condition": condition, "signs": signs}

    def _encoded(self, batch: Prepared, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns x and the context of the head."""
        x = self.space.encode(batch["targets"])
        if (signs := batch.get("signs")) is not None:
            for sign, pattern in zip(signs.unbind(dim=1), self.space.mirror_signs, strict=True):
                x = torch.where(sign.unsqueeze(1) < 0, x * pattern.to(x), x)
        x = self.space.fill(x, batch["present"], generator)
        return x, self._full_context(batch, slice(None))

    def _losses(self, batch: Prepared, generator: torch.Generator, train: bool) -> Tensor:
        x, context = self._encoded(batch, generator)
        head = self.trained_head
        classes = self.content.classes(batch["codes"])
        content = self.content.loss(classes, self._context(batch["condition"]))
        losses = content + (head.loss if train else head.score)(x, context, generator)
        return weighted_mean(losses, batch["weight"])

    def loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the loss of content and kinematics, averaged with the weights of the events."""
        return self._losses(batch, generator, train=True)

    def validation_loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the score of content and kinematics."""
        return self._losses(batch, generator, train=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of the head, and the content in one of its own."""
        content = {"params": list(self.content.parameters()), "rate": 1.0}
        return [
            group for group in (content, *self.trained_head.parameter_groups()) if group["params"]
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
        """Draws coordinates x given content and truth of each event, float64 ``(S, N, T)``."""
        head = self.trained_head
        chosen = head.check_sampling(n_samples, steps, solver, batch_size)
        prepared = self.prepare(events)
        drawn = torch.empty(n_samples, len(events), len(self.space), dtype=torch.float64)
        for which, rows, context in blocks_with_context(
            n_samples, len(events), batch_size, lambda rows: self._full_context(prepared, rows)
        ):
            draws = Draws.of_block(seed, which, rows, self.device)
            drawn[which, rows] = head.draw_block(context, draws, steps, chosen).cpu().double()
        return drawn

    def _full_context(self, prepared: Prepared, rows: slice) -> Tensor:
        """Returns what the head is conditioned on: truth and content of some events."""
        condition, codes = (prepared[name][rows].to(self.device) for name in ("condition", "codes"))
        hot = self.content.one_hot(self.content.classes(codes))
        return torch.cat([self._context(condition), hot], dim=1)

    @torch.no_grad()
    def simulate_truth(
        self,
        truth: Tensor,
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        batch_size: int = 8192,
    ) -> Events:
        """Simulates one event for each row of truth.

        Args:
            truth: Masses ``(N, M)``, or partons ``(N, P, 4)`` as in `Events` [GeV].
            seed: Seed of all draws; event i follows from the seed and i alone.
            steps: Network evaluations of a draw, for families that take steps.
            solver: Solver of these families.
            batch_size: How many events are worked on at a time; bounds the memory.

        Raises:
            InputError: If the truth does not fit, or an argument is out of range.
            ModelError: If the surrogate is untrained, or its events keep missing the cuts.
        """
        truth = self._checked(truth)
        numbers = torch.arange(len(truth))
        found, good = self._simulate(truth, numbers, seed, steps, solver, batch_size)
        for attempt in range(1, _ATTEMPTS):
            missed = (~good).nonzero()[:, 0]
            if len(missed) == 0:
                return found
            again, fine = self._simulate(
                truth[missed], missed, seed + _NEXT_SEED * attempt, steps, solver, batch_size
            )
            found, good = replaced(found, missed, again), good.index_put((missed,), fine)
        raise ModelError(
            f"{int((~good).sum())} of {len(good)} simulated events miss the cuts of the card after "
            f"{_ATTEMPTS} attempts: train the surrogate for longer."
        )

    def _checked(self, truth: Tensor) -> Tensor:
        truth = truth.cpu().double()
        wanted = (len(self.card.masses),)
        if self.config.condition == "partons":
            wanted = (len(self.card.parton_names), 4)
        if tuple(truth.shape[1:]) != wanted or not bool(truth.isfinite().all()):
            raise InputError(
                f"The true {self.config.condition} should be finite and of shape (N, "
                f"{', '.join(map(str, wanted))}), got {tuple(truth.shape)}."
            )
        return truth

    def _simulate(
        self,
        truth: Tensor,
        numbers: Tensor,
        seed: int,
        steps: int | None,
        solver: str | None,
        batch_size: int,
    ) -> tuple[Events, Tensor]:
        """Draws numbered events block by block, and tells which of them fulfil the cuts."""
        chosen = self.trained_head.check_sampling(1, steps, solver, batch_size)
        parts = []
        for rows in numbers.split(batch_size) if len(numbers) else [numbers]:
            first = sum(len(good) for _, good in parts)
            first_draw = torch.zeros(1, dtype=torch.int64, device=self.device)
            draws = Draws(seed, rows.to(self.device), first_draw)
            parts.append(self._block(truth[first : first + len(rows)], draws, steps, chosen))
        events, good = zip(*parts, strict=True)
        return Events.concat(list(events)), torch.cat(good)

    def _block(
        self, truth: Tensor, draws: Draws, steps: int | None, solver: str
    ) -> tuple[Events, Tensor]:
        condition, axis = truth, 2 * math.pi * draws.uniform(0, 1)[0, :, 0].cpu().double()
        if self.config.condition == "partons":
            condition, axis = _turned_partons(truth)
        context = self._context(condition.flatten(1).float().to(self.device))
        classes = self.content.draw(context, draws)
        context = torch.cat([context, self.content.one_hot(classes)], dim=1)
        present, attributes = self.content.unpack(classes)
        head = self.trained_head
        if isinstance(head, AutoregressiveHead):  # what is not there costs nothing
            x = head.draw_where(self.space.there(present), context, draws)[0]
        else:
            x = head.draw_block(context, draws, steps, solver)[0]
        seen = self.space.decode(x, axis.to(x.device)).cpu()
        present, attributes = present.cpu(), {n: values.cpu() for n, values in attributes.items()}
        good = self.space.accepted(seen, present) & content_accepted(self.card, present, attributes)
        origin = {"surrogate": {"family": self.config.family, "seed": draws.seed}}
        return assembled(self.space, seen, present, attributes, truth, origin), good

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Loads weights, building first the networks that they belong to."""
        if self.head is None and (value := state_dict.get("content.value")) is not None:
            self.content._allocate(*value.shape)
            self.content.size.copy_(state_dict["content.size"])
            self.content._build()
            self._build_head()
        return super().load_state_dict(state_dict, *args, **options)


def load_surrogate(folder: str | Path, device: str | torch.device = "cpu") -> Surrogate:
    """Rebuilds a saved surrogate, ready to simulate.

    Raises:
        ModelError: If the folder is missing, damaged, or holds something else.
    """
    header = read_header(folder)
    if header.get("model") != Surrogate.name:
        raise ModelError(f"'{folder}' holds a model '{header.get('model')}': use load_model.")
    return cast(Surrogate, rebuilt(folder, header, Surrogate, device))


def _turned_partons(partons: Tensor) -> tuple[Tensor, Tensor]:
    """Turns partons ``(N, P, 4)`` such that the first one is at azimuth 0; and by which angle."""
    axis = torch.atan2(partons[:, 0, 1], partons[:, 0, 0])
    return fv.rotate_z(partons, -axis.unsqueeze(1)), axis
