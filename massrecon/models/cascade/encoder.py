"""Reads an event as objects, pairs of objects and hypotheses about the decay.

Objects and the event as a whole are tokens of a transformer whose attention knows the mass and the
distance of every pair. Hypotheses of the kinematic mixture join in the last layers. Learned queries
then gather the tokens into the context.

References:
    Attention with pair features: H. Qu, C. Li and S. Qian, arXiv:2202.03772, Eqs. (3) and (4).
    Pooling by learned queries: J. Lee et al., arXiv:1810.00825, Sec. 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv
from massrecon.models.base import Prepared
from massrecon.models.cascade.hypotheses import HypothesisReader
from massrecon.models.cascade.masses import peak_width, triangle_of
from massrecon.models.cascade.truth import invisible_labels
from massrecon.models.encoder import EncoderLayer, attention, masked_mean, token_mlp
from massrecon.models.event_encoder import EncoderConfig, EventReader
from massrecon.models.features import Scaling, rotate_and_flip
from massrecon.models.network import mlp

Given = Literal["nothing", "origins", "neutrinos", "both"]
Pooling = Literal["attention", "mean"]

_PAIR_FEATURES = 4
_PAIR_WIDTH = 32
_QUERIES = 4


@dataclass(frozen=True, kw_only=True)
class CascadeEncoderConfig(EncoderConfig):
    """Sizes and ingredients of the encoder; each ingredient can be left out to see what it gives.

    Attributes:
        joint_layers: Number of further layers in which objects and hypotheses meet.
        pair_bias: Whether masses and distances of pairs steer the attention.
        hypotheses: Number of hypotheses of the kinematic mixture that are read, 0 for none.
        hypothesis_peaks: Whether each of them is also a peak of the density of the masses.
        summaries: Whether the posterior of the kinematic mixture is read.
        pooling: How tokens become the context: ``"attention"`` or ``"mean"``.
        given: What the network is told of the truth, for the ceiling of what can be known:
            ``"nothing"``; ``"origins"``, from which side of the decay each object comes;
            ``"neutrinos"``, their momenta; ``"both"``.
    """

    dim: int = 128
    layers: int = 3
    heads: int = 8
    token_hidden: int = 256
    joint_layers: int = 1
    pair_bias: bool = True
    hypotheses: int = 16
    hypothesis_peaks: bool = True
    summaries: bool = True
    pooling: Pooling = "attention"
    given: Given = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("joint_layers", "hypotheses"):
            if getattr(self, name) < 0:
                raise InputError(f"'{name}' should not be negative, got {getattr(self, name)}.")
        for name, value, choices in (
            ("pooling", self.pooling, get_args(Pooling)),
            ("truth to be given", self.given, get_args(Given)),
        ):
            if value not in choices:
                raise unknown_name(name, value, choices)

    @property
    def reads_mixture(self) -> bool:
        """Whether anything of the kinematic mixture is read."""
        return self.summaries or self.hypotheses > 0

    @property
    def peaks_of_hypotheses(self) -> bool:
        """Whether the density of the masses has a peak for each hypothesis."""
        return self.hypothesis_peaks and self.hypotheses > 0

    @property
    def given_origins(self) -> bool:
        """Whether the true origins are an input."""
        return self.given in ("origins", "both")

    @property
    def given_neutrinos(self) -> bool:
        """Whether the true neutrinos are an input."""
        return self.given in ("neutrinos", "both")


class CascadeEncoder(EventReader):
    """A transformer over objects and hypotheses.

    Attributes:
        context_dim: Number C of components of the context.
        mixture: Reader of the kinematic mixture, None if it is not read.
        alike_sides: Whether the two sides of the decay cannot be told apart.
    """

    def __init__(self, card: ProcessCard, config: CascadeEncoderConfig) -> None:
        super().__init__(card)
        self.config = config
        self.context_dim = dim = config.dim
        names = [root.name for root in card.topology.roots]
        self.alike_sides = len(names) == 2 and names[0] == names[1]
        sizes, n_sides = (dim, config.heads, config.token_hidden), len(card.topology.roots)
        given = n_sides if config.given_origins else 0
        unseen = 4 * len(invisible_labels(card)) if config.given_neutrinos else 0
        self.object_scaling = Scaling(self.object_width)
        self.event_scaling = Scaling(self.event_width)
        self.embed = mlp(self.object_width + self.n_kinds + given, dim, dim)
        self.embed_event = mlp(self.event_width + unseen, dim, dim)
        self.layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.layers))
        self.joint = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.joint_layers))
        self.pairs = PairBias(config.layers, config.heads) if config.pair_bias else None
        self.mixture = None
        if config.reads_mixture:
            self.mixture = HypothesisReader(card, max(config.hypotheses, 1))
            self.embed_hypothesis = mlp(self.mixture.width, dim, dim)
            self.embed_summaries = mlp(self.mixture.summary_width, 2 * dim, dim)
        self.correction, self.n_masses = None, len(card.masses)
        if config.peaks_of_hypotheses:
            self.correction = nn.Linear(dim, peak_width(self.n_masses))
            nn.init.zeros_(self.correction.weight)
            nn.init.zeros_(self.correction.bias)
            self.context_dim += config.hypotheses * self.correction.out_features
        self.token_norm = nn.LayerNorm(dim)
        pools = {"attention": AttentionPool, "mean": MeanPool}
        self.pool = pools[config.pooling](*sizes)
        self.norm = nn.LayerNorm(dim)
        self.assignment = nn.Linear(dim, n_sides)

    def choose_mixture(self, events: Events) -> None:
        """Chooses the prior of the kinematic mixture from training events, if it is read."""
        if self.mixture is not None:
            self.mixture.choose_mixture(events)

    def prepare(self, events: Events) -> Prepared:
        """Gathers what is read of each event, see `EventReader` and `HypothesisReader`."""
        batch = super().prepare(events)
        return batch if self.mixture is None else {**batch, **self.mixture.prepare(events)}

    def turn(self, batch: Prepared, angle: Tensor, flip: Tensor) -> Prepared:
        """Turns events about the beam by angles ``(N,)`` and flips pz by signs ``(N,)``."""
        batch = super().turn(batch, angle, flip)
        if "neutrinos" in batch:
            batch["neutrinos"] = rotate_and_flip(batch["neutrinos"], angle, flip)
        return batch if self.mixture is None else self.mixture.turn(batch, angle, flip)

    def fit(self, prepared: Prepared) -> None:
        """Sets the scaling of all features from prepared training events."""
        objects, event = self.features(prepared)
        self.object_scaling.fit(objects[prepared["present"]])
        self.event_scaling.fit(event)
        if self.pairs is not None:
            self.pairs.fit(prepared["objects"], prepared["present"])
        if self.mixture is not None:
            self.mixture.fit(prepared)

    def forward(self, batch: Prepared) -> Tensor:
        """Computes the contexts of a prepared batch, shape ``(N, C)``."""
        return self.encode(batch)[0]

    def encode(self, batch: Prepared) -> tuple[Tensor, Tensor]:
        """Computes contexts ``(N, C)``, and logits of the origin of each object, ``(N, K, sides)``.

        A logit is that an object comes from a side of the decay, see
        `massrecon.models.cascade.truth.origins`.
        """
        tokens, present = self._objects(batch)
        biases: list[Tensor | None] = [None] * len(self.layers)
        if self.pairs is not None:
            # the token of the event has no bias
            biases = [functional.pad(b, (0, 1, 0, 1)) for b in self.pairs(batch["objects"])]
        for layer, bias in zip(self.layers, biases, strict=True):
            tokens = layer(tokens, present, bias)
        if self.mixture is not None and self.config.hypotheses:
            tokens = torch.cat([tokens, self.embed_hypothesis(self.mixture.features(batch))], 1)
            present = torch.cat([present, batch["hypothesis_present"]], 1)
        for layer in self.joint:
            tokens = layer(tokens, present)
        tokens = self.token_norm(tokens)
        context = self.norm(self.pool(tokens, present))
        if self.correction is not None:
            peaks = self._peaks(tokens[:, self.n_slots + 1 :], batch)
            context = torch.cat([context, peaks.flatten(1)], dim=1)
        return context, self.assignment(tokens[:, : self.n_slots])

    def _peaks(self, tokens: Tensor, batch: Prepared) -> Tensor:
        """Corrects what the mixture says of each hypothesis, see `HypothesisMasses`."""
        assert self.correction is not None
        m, gaussians = self.n_masses, batch["hypotheses"]
        place, log_width, correlations, logs = gaussians.split(
            (m, m, gaussians.shape[-1] - 2 * m - 2, 2), dim=-1
        )
        logit = logs[..., :1].masked_fill(~batch["hypothesis_present"].unsqueeze(-1), -torch.inf)
        given = torch.cat([logit, place, log_width, triangle_of(correlations, m)], dim=-1)
        return given + self.correction(tokens).float()

    def _objects(self, batch: Prepared) -> tuple[Tensor, Tensor]:
        """Embeds the objects and the event, ``(N, K + 1, dim)``, and says which are there."""
        objects, event = self.features(batch)
        kinds = self.kind_of_slot.expand(len(objects), -1, -1)
        columns = [self.object_scaling(objects), kinds]
        if self.config.given_origins:
            columns.append(batch["origins"])
        tokens = self.embed(torch.cat(columns, dim=-1))
        event = self.event_scaling(event)
        if self.config.given_neutrinos:
            event = torch.cat([event, 0.01 * batch["neutrinos"].flatten(1)], dim=1)
        last = self.embed_event(event)
        if self.mixture is not None and self.config.summaries:
            last = last + self.embed_summaries(self.mixture.summaries(batch))
        tokens = torch.cat([tokens, last.unsqueeze(1)], dim=1)
        return tokens, functional.pad(batch["present"], (0, 1), value=True)


class PairBias(nn.Module):
    """Turns the kinematics of pairs into an addition to the logits of attention.

    The features of two objects are the logs of their mass, of their distance Delta R, of the
    smaller pT times the distance, and of the share of the smaller pT.
    """

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.n_layers = layers
        self.scaling = Scaling(_PAIR_FEATURES)
        self.network = mlp(_PAIR_FEATURES, _PAIR_WIDTH, layers * heads)

    def fit(self, p4: Tensor, present: Tensor) -> None:
        """Sets the scaling from objects ``(N, K, 4)`` and their presence ``(N, K)``."""
        both = present.unsqueeze(1) & present.unsqueeze(2)
        both &= ~torch.eye(present.shape[1], dtype=torch.bool)
        self.scaling.fit(pair_features(p4)[both])

    def forward(self, p4: Tensor) -> list[Tensor]:
        """Computes the biases of all layers, each ``(N, heads, K, K)``."""
        bias = self.network(self.scaling(pair_features(p4)))
        return list(bias.permute(0, 3, 1, 2).chunk(self.n_layers, dim=1))


def pair_features(p4: Tensor) -> Tensor:
    """Computes the features of all pairs of objects ``(N, K, 4)`` [GeV], ``(N, K, K, 4)``."""
    pt = fv.pt(p4).clamp_min(1e-3)
    eta, phi = torch.asinh(p4[..., 2] / pt), fv.phi(p4)
    apart = fv.delta_phi(phi.unsqueeze(2), phi.unsqueeze(1))
    distance = torch.hypot(eta.unsqueeze(2) - eta.unsqueeze(1), apart).clamp_min(1e-2)
    smaller = torch.minimum(pt.unsqueeze(2), pt.unsqueeze(1))
    share = smaller / (pt.unsqueeze(2) + pt.unsqueeze(1))
    mass = 0.5 * fv.mass_squared(p4.unsqueeze(2) + p4.unsqueeze(1)).clamp_min(1.0).log()
    return torch.stack([mass, distance.log(), (smaller * distance).log(), share.log()], dim=-1)


class AttentionPool(nn.Module):
    """Gathers tokens with learned queries."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(0.02 * torch.randn(_QUERIES, dim))
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = mlp(_QUERIES * dim, hidden, dim)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Maps ``(N, K, dim)`` to ``(N, dim)``."""
        n, k, dim = tokens.shape
        split = self.key_value(tokens).view(n, k, 2, self.heads, dim // self.heads)
        key, value = split.permute(2, 0, 3, 1, 4)
        query = self.query.view(-1, self.heads, dim // self.heads).transpose(0, 1)
        mixed = attention(
            query.to(key).expand(n, -1, -1, -1), key, value, present[:, None, None, :]
        )
        return self.out(mixed.transpose(1, 2).flatten(1))


class MeanPool(nn.Module):
    """Averages tokens after an MLP."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.mlp = token_mlp(dim, hidden)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Maps ``(N, K, dim)`` to ``(N, dim)``."""
        return masked_mean(self.mlp(tokens), present)
