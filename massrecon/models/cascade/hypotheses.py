"""What the kinematic mixture says of an event, as inputs of a network.

The mixture weighs every assignment of objects to the decay and turns it into a Gaussian in the
masses. The heaviest Gaussians of an event become tokens, each with the momenta that its assignment
gives to the particles whose masses are sought; the posterior that all of them add up to becomes a
row of numbers, its summaries and its marginal in each mass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.toycard import mass_parameter
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.kinematics.topology import TopologyError
from massrecon.models.features import Scaling, rotate_and_flip
from massrecon.models.mixture import detected, mixture_content, mixture_for, mixture_from

BINS = 40
"""Bins of the marginal of each mass."""

_LEAST_LOG = -12.0
_LARGEST_LOG_EVIDENCE = 60.0
_LEAST_BIN = 1e-2
_CHUNK = 4096
_SMALLEST_SPREAD = 1.0  # a mass that varies less among the training events is known [GeV]
_MOMENTUM_FEATURES = 7


class HypothesisReader(nn.Module):
    """Reads the hypotheses of the kinematic mixture, the same at every call.

    The mixture, with its parameters, is kept with the weights of the model, so that a later fit of
    the mixture does not change what a trained network sees.

    Args:
        card: The process.
        count: Number H of hypotheses of an event, the heaviest ones.

    Attributes:
        carriers: Labels of the C particles whose momenta a hypothesis carries.
        width: Number of features of a hypothesis.
        summary_width: Number of summaries of an event.
    """

    content: Tensor

    def __init__(self, card: ProcessCard, count: int) -> None:
        super().__init__()
        self.card, self.count = card, count
        self.carriers = mass_carriers(card)
        m = len(card.masses)
        self.width = 2 * m + m * (m - 1) // 2 + 2 + _MOMENTUM_FEATURES * len(self.carriers)
        self.summary_width = (4 + BINS) * m + 2
        self.scaling, self.summary_scaling = Scaling(self.width), Scaling(self.summary_width)
        self.register_buffer("content", torch.zeros(0, dtype=torch.uint8))
        self._mixture: list[KinematicMixture] = []

    def choose_mixture(self, events: Events) -> None:
        """Builds the mixture whose prior covers the masses of training events.

        Raises:
            InputError: If the events carry no true masses, or all of them are the same.
            TopologyError: If the masses of the card cannot be computed from what is seen.
        """
        if events.masses is None:
            raise InputError("Hypotheses need a mass prior: train on events with true masses.")
        ends = zip(events.masses.amin(0).tolist(), events.masses.amax(0).tolist(), strict=True)
        masses = {
            name: (low, high) if high - low > _SMALLEST_SPREAD else 0.5 * (low + high)
            for name, (low, high) in zip(self.card.mass_names, ends, strict=True)
        }
        try:
            mixture = mixture_for(self.card, masses)
        except TopologyError as error:
            raise TopologyError(
                f"{error} To train without the kinematic mixture, pass "
                "options={'hypotheses': 0, 'summaries': False}."
            ) from error
        text = json.dumps(mixture_content(mixture, self.card.name, masses))
        self.content = torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)
        self._mixture.clear()

    @property
    def mixture(self) -> KinematicMixture:
        """The mixture.

        Raises:
            ModelError: If there is none yet.
        """
        if not self._mixture:
            if not len(self.content):
                raise ModelError(
                    "This model is untrained: pass it through massrecon.fit, or call fit_scaling "
                    "with training events first."
                )
            content = json.loads(bytes(self.content.tolist()))
            self._mixture.append(mixture_from(content, self.card, "the model's mixture"))
        return self._mixture[0]

    def prepare(self, events: Events) -> dict[str, Tensor]:
        """Computes hypotheses and summaries of events.

        Returns:
            ``hypotheses`` (N, H, .): mean, width and correlation of the masses, log weight and log
            part inside the prior; ``hypothesis_present`` (N, H); ``hypothesis_momenta``
            (N, H, C, 4) [GeV]; ``summaries`` (N, .).
        """
        seen = detected(events)
        parts = [
            self._read(self.mixture.posterior(seen[rows], self.carriers))
            for rows in _chunks(len(events))
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _read(self, posterior: MassPosterior) -> dict[str, Tensor]:
        count = min(self.count, posterior.log_weight.shape[1])
        log_weight, at = posterior.log_weight.topk(count, dim=1)
        present = log_weight > _LEAST_LOG
        momenta = torch.stack([_pick(posterior.momenta[name], at) for name in self.carriers], 2)
        found = {
            "hypotheses": torch.where(present[..., None], self._gaussians(posterior, at), 0.0),
            "hypothesis_present": present,
            "hypothesis_momenta": torch.where(present[..., None, None], momenta, 0.0),
        }
        missing = self.count - count
        padded = {
            name: nn.functional.pad(t, (0, 0) * (t.ndim - 2) + (0, missing))
            for name, t in found.items()
        }
        return {
            **{name: t if t.dtype == torch.bool else t.float() for name, t in padded.items()},
            "summaries": self._summaries(posterior).float(),
        }

    def _gaussians(self, posterior: MassPosterior, at: Tensor) -> Tensor:
        """Computes the features of chosen Gaussians; a known mass has none but zeros."""
        low, span = _range(posterior)
        mean = (2 * (_pick(posterior.mean, at) - low) / span - 1).clamp(-3, 3)
        covariance = _pick(posterior.covariance, at)
        width = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6).sqrt()
        m = len(self.card.masses)
        full = mean.new_zeros(*at.shape, 2 * m + m * (m - 1) // 2)
        own = [self.card.mass_names.index(name) for name in posterior.names]
        full[..., own] = mean
        full[..., [m + i for i in own]] = (width / span).log()
        pairs = [(i, j) for i in range(m) for j in range(i)]
        for i, mass in enumerate(own):
            for j, other in enumerate(own[:i]):
                column = 2 * m + pairs.index((max(mass, other), min(mass, other)))
                full[..., column] = covariance[..., i, j] / (width[..., i] * width[..., j])
        logs = [posterior.log_weight, posterior.log_inside]
        columns = [log.gather(1, at).clamp_min(_LEAST_LOG).unsqueeze(-1) for log in logs]
        return torch.cat([full, *columns], dim=-1)

    def _summaries(self, posterior: MassPosterior) -> Tensor:
        found = posterior.summaries()
        found[:, -2].clamp_(-_LARGEST_LOG_EVIDENCE, _LARGEST_LOG_EVIDENCE)
        full = found.new_zeros(len(found), self.summary_width)
        full[:, -2:] = found[:, -2:]
        low, span = _range(posterior)
        for i, name in enumerate(posterior.names):
            first = (4 + BINS) * self.card.mass_names.index(name)
            edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64) * span[i] + low[i]
            share = posterior.marginal(name).cumulative(edges).diff(dim=1)
            full[:, first : first + 4] = found[:, 4 * i : 4 * i + 4]
            full[:, first + 4 : first + 4 + BINS] = (share * BINS).clamp_min(_LEAST_BIN).log()
        return full

    def turn(self, batch: dict[str, Tensor], angle: Tensor, flip: Tensor) -> dict[str, Tensor]:
        """Turns the momenta of hypotheses about the beam by angles and flips pz by signs."""
        turned = rotate_and_flip(batch["hypothesis_momenta"], angle, flip)
        return {**batch, "hypothesis_momenta": turned}

    def fit(self, prepared: dict[str, Tensor]) -> None:
        """Sets the scaling of all features from prepared training events."""
        self.scaling.fit(self._features(prepared)[prepared["hypothesis_present"]])
        self.summary_scaling.fit(prepared["summaries"])

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """Computes the scaled features of hypotheses, shape ``(N, H, width)``."""
        return self.scaling(self._features(batch))

    def summaries(self, batch: dict[str, Tensor]) -> Tensor:
        """Computes the scaled summaries, shape ``(N, summary_width)``."""
        return self.summary_scaling(batch["summaries"])

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        p4 = batch["hypothesis_momenta"]
        pt = fv.pt(p4).clamp_min(0.1)
        eta = torch.asinh(p4[..., 2] / pt).clamp(-6, 6)
        mass = 0.5 * fv.mass_squared(p4).clamp_min(1.0).log()
        momenta = (0.01 * p4.flatten(2), pt.log(), eta, mass)
        return torch.cat([batch["hypotheses"], *momenta], dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Makes room for the saved mixture, whose length may be any."""
        if (saved := state_dict.get(prefix + "content")) is not None:
            self.content = torch.zeros_like(saved)
            self._mixture.clear()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def mass_carriers(card: ProcessCard) -> tuple[str, ...]:
    """Returns the labels of the decaying particles that have a mass of the card."""
    return tuple(
        node.label
        for node in card.topology.nodes
        if node.children and mass_parameter(card, node.name) is not None
    )


def _range(posterior: MassPosterior) -> tuple[Tensor, Tensor]:
    low, high = (
        torch.tensor(end, dtype=torch.float64)
        for end in (posterior.region.low, posterior.region.high)
    )
    return low, high - low


def _pick(values: Tensor, at: Tensor) -> Tensor:
    """Picks hypotheses ``(N, H)`` from values ``(N, A, ...)``."""
    index = at.reshape(*at.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def _chunks(n_events: int) -> Iterator[slice]:
    return (slice(first, first + _CHUNK) for first in range(0, n_events, _CHUNK))
