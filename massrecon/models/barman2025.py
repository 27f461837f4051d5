"""The published network: a transformer encoder conditions a diffusion model of eight targets.

Eight tokens enter: the lepton, two photons and four leading jets as (px, py, pz, E), and one
token of summary observables. Behind the encoder layers every token passes the same two-layer MLP;
the mean over the tokens that are present is the context of the event. For a card with four leptons
and no photons, the second process of the publication, the tokens are the leptons and one of missing
energy, distances of the leptons and their angles to ptmiss. A denoiser learns to predict the noise
in (px, py, pz, m) of the two new particles, given the context and the time step, with the plain
mean square of the noise error as its loss.

Where the publication is silent, this is our choice: one linear embedding per kind of object (so
that a photon differs from a jet, and like objects stay interchangeable), normalisation in front
of each encoder layer, the widths and number of the hidden layers, the initial weights of the
denoiser, and the scaling of inputs and targets. The azimuth of the missing energy is not an input.

References:
    R. K. Barman, A. Choudhury and S. Sarkar, arXiv:2507.20869, and slides of a talk on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.models import features
from massrecon.models.base import MassModel, Prepared, checked_targets
from massrecon.models.blocks import blocks_with_context
from massrecon.models.ddpm import Denoiser, NoiseSchedule, ancestral_sample
from massrecon.models.encoder import TransformerEncoder, masked_mean, token_mlp
from massrecon.models.likelihood import flow_log_prob
from massrecon.models.noise import Draws
from massrecon.models.samplers import SOLVERS, NoiseLevels, Watch, count_levels, watched

OBJECT_COUNTS = {"lepton": 1, "photon": 2, "jet": 4}
"""How many leading objects of each kind the published network reads."""

FOUR_LEPTONS = {"lepton": 4}
"""The same for the second process of the publication, whose events need not have jets."""

# Runge-Kutta steps of the density
_DENSITY_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Barman2025Config:
    """Sizes of the network; the defaults are the published ones where these are known.

    Attributes:
        dim: Width of tokens, context and time embedding.
        layers: Number of encoder layers.
        heads: Number of attention heads.
        token_hidden: Hidden width of the two-layer MLPs that act on each token.
        denoiser_hidden: Width of the hidden layers of the denoiser.
        denoiser_layers: Number of hidden layers of the denoiser.
        diffusion_steps: Number T of noise steps.
        beta_first: Noise variance of the first step.
        beta_last: Noise variance of the last step.
        noise_draws: How many pairs of step and noise train on each event's context at a time.
        ddim_steps: Number of DDIM steps when `sample` is not told.
    """

    dim: int = 256
    layers: int = 4
    heads: int = 4
    token_hidden: int = 512
    denoiser_hidden: int = 512
    denoiser_layers: int = 3
    diffusion_steps: int = 1500
    beta_first: float = 1e-5
    beta_last: float = 0.02
    noise_draws: int = 4
    ddim_steps: int = 50

    def __post_init__(self) -> None:
        for field in ("layers", "heads", "denoiser_layers", "noise_draws", "diffusion_steps"):
            if getattr(self, field) < 1:
                raise InputError(f"'{field}' should be at least 1, got {getattr(self, field)}.")
        if self.dim < 2 or self.dim % (2 * self.heads):
            raise InputError(
                f"'dim' should be a multiple of twice 'heads', got {self.dim} and {self.heads}."
            )
        if not 1 <= self.ddim_steps <= self.diffusion_steps:
            raise InputError(
                f"'ddim_steps' should be between 1 and 'diffusion_steps' = {self.diffusion_steps}, "
                f"got {self.ddim_steps}."
            )
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise InputError(
                f"Expected 0 < beta_first <= beta_last < 1, got {self.beta_first} and "
                f"{self.beta_last}."
            )


def counts_of(card: ProcessCard) -> dict[str, int]:
    """Returns which of the two published sets of objects is read from a card's events."""
    four = card.slot_kinds.count("lepton") >= FOUR_LEPTONS["lepton"]
    return FOUR_LEPTONS if four and "photon" not in card.slot_kinds else OBJECT_COUNTS


class Barman2025(MassModel):
    """The diffusion model of arXiv:2507.20869."""

    name = "barman2025"
    config_type = Barman2025Config
    density = "ode"
    solvers = ("ddim", "ancestral", "dpm++", "heun")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "small": {
            "dim": 128,
            "layers": 2,
            "token_hidden": 256,
            "denoiser_hidden": 256,
            "noise_draws": 8,
        },
    }
    config: Barman2025Config

    def __init__(self, card: ProcessCard, config: Barman2025Config) -> None:
        super().__init__(card, config)
        dim, n_targets = config.dim, len(self.target_names)
        self._counts = counts_of(card)
        self._four = self._counts == FOUR_LEPTONS
        n_extra = len(features.FOUR_LEPTON_NAMES if self._four else features.EXTRA_NAMES)
        self._slots = features.leading_slots(card, self._counts, self.name)
        self.momentum_scaling = features.Scaling(4)
        self.extra_scaling = features.Scaling(n_extra)
        self.target_scaling = features.Scaling(n_targets)
        self.embed = nn.ModuleDict({kind: nn.Linear(4, dim) for kind in self._counts})
        self.embed_extra = nn.Linear(n_extra, dim)
        self.encoder = TransformerEncoder(dim, config.heads, config.layers, config.token_hidden)
        self.token_mlp = token_mlp(dim, config.token_hidden)
        self.denoiser = Denoiser(n_targets, dim, config.denoiser_hidden, config.denoiser_layers)
        self.schedule = NoiseSchedule(config.diffusion_steps, config.beta_first, config.beta_last)

    @classmethod
    def from_config(cls, card: ProcessCard, config: Mapping[str, Any]) -> Barman2025:
        """Builds an untrained model from fields of `Barman2025Config`."""
        return cls(card, Barman2025Config(**config))

    def prepare(self, events: Events) -> Prepared:
        """Computes ``objects`` (N, 7, 4), ``present`` (N, 7), ``extra`` (N, 8), ``targets``.

        With four leptons they are (N, 4, 4), (N, 4) and (N, 11).
        """
        self.check_card(events)
        events = events.to("cpu")
        kinds = [features.objects(events, slots) for slots in self._slots.values()]
        prepared = {
            "objects": torch.cat([p4 for p4, _ in kinds], dim=1).float(),
            "present": torch.cat([present for _, present in kinds], dim=1),
            "extra": self._extra(kinds, events.ptmiss).float(),
        }
        if events.has_targets:
            prepared["targets"] = events.targets().float()
        return prepared

    def _extra(self, kinds: list[tuple[Tensor, Tensor]], ptmiss: Tensor) -> Tensor:
        if self._four:
            return features.four_lepton_observables(*kinds, ptmiss=ptmiss)
        return features.extra_observables(*kinds, ptmiss=ptmiss)

    def fit_scaling(self, events: Events) -> None:
        """Sets the scaling of inputs and targets from the training events."""
        prepared = self.prepare(events)
        self.momentum_scaling.fit_momenta(prepared["objects"][prepared["present"]])
        self.extra_scaling.fit(prepared["extra"])
        self.target_scaling.fit_momenta(events.targets())

    def augment(self, batch: Prepared, generator: torch.Generator) -> Prepared:
        """Turns events about the beam and flips pz; the summary observables do not change."""
        rows = batch["targets"].unflatten(-1, (-1, 4))
        turned, rows = features.augment_momenta(batch["objects"], rows, generator=generator)
        return {**batch, "objects": turned, "targets": rows.flatten(1)}

    def encode(self, batch: Prepared) -> Tensor:
        """Computes the context of each event of a prepared batch, shape ``(N, dim)``."""
        scaled = self.momentum_scaling(batch["objects"])
        groups = scaled.split(list(self._counts.values()), dim=1)
        tokens = [self.embed[kind](g) for kind, g in zip(self._counts, groups, strict=True)]
        tokens.append(self.embed_extra(self.extra_scaling(batch["extra"])).unsqueeze(1))
        present = functional.pad(batch["present"], (0, 1), value=True)
        encoded = self.token_mlp(self.encoder(torch.cat(tokens, dim=1), present))
        return masked_mean(encoded, present)

    def loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the mean square of the error of the predicted noise.

        Each event's context serves `noise_draws` pairs of step and noise. Their steps are drawn
        one from each of as many equal ranges of [0, T), which leaves the expectation as it is
        and makes the loss less noisy.
        """
        x_0 = self.target_scaling(batch["targets"]).unsqueeze(1)
        shape = (len(x_0), self.config.noise_draws)
        device = generator.device
        strata = torch.arange(shape[1], device=device)
        share = (strata + torch.rand(shape, generator=generator, device=device)) / shape[1]
        # rounding in float32 can reach T itself
        t = (share * len(self.schedule)).long().clamp_max(len(self.schedule) - 1).to(x_0.device)
        noise = torch.randn((*shape, x_0.shape[-1]), generator=generator, device=device)
        noise = noise.to(x_0.device)
        predicted = self._predict(self.schedule.add_noise(x_0, t, noise), t, self.encode(batch))
        return functional.mse_loss(predicted.float(), noise)

    def _predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        # there are only T different steps: embed each of those that occur once
        steps, position = torch.unique(t, return_inverse=True)
        time_share = functional.embedding(position, self.denoiser.embed_time(steps))
        return self.denoiser(x_t, time_share, self.denoiser.embed_context(context).unsqueeze(1))

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
            steps: Number of network evaluations for a draw, by default the configured one;
                ancestral sampling always takes all T.
            solver: ``"ddim"`` (deterministic path, few steps; the default), ``"ancestral"`` (as
                published), ``"dpm++"`` or ``"heun"``.
            seed: Seed of the noise.
            batch_size: How many draws are worked on at a time; bounds the memory.

        Returns:
            Draws of ``target_names`` [GeV], float64 on the processor, shape ``(S, N, T)``.

        Raises:
            InputError: If an argument is out of range or the events follow another card.
        """
        solver = solver or self.solvers[0]
        self._check_sampling(n_samples, steps, solver, batch_size)
        prepared = self.prepare(events)
        draws = torch.empty(n_samples, len(events), len(self.target_names), dtype=torch.float64)
        time_shares = self.denoiser.embed_time(torch.arange(len(self.schedule), device=self.device))
        for which, rows, context in blocks_with_context(
            n_samples, len(events), batch_size, lambda rows: self._context(prepared, rows)
        ):
            numbers = Draws.of_block(seed, which, rows, self.device)
            x_0 = self.draw_block(context, time_shares, numbers, solver, steps)
            draws[which, rows] = self.target_scaling.inverse(x_0)
        return draws

    def _context(self, prepared: Prepared, rows: slice) -> Tensor:
        """Returns the context's share of the denoiser's first layer for some of the events."""
        chunk = {name: t[rows].to(self.device) for name, t in prepared.items()}
        return self.denoiser.embed_context(self.encode(chunk))

    def draw_block(
        self,
        context: Tensor,
        shares: Tensor,
        draws: Draws,
        solver: str,
        steps: int | None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draws scaled targets ``(S, N, T)`` for embedded contexts and time steps."""
        schedule, width = self.schedule, len(self.target_names)
        start = draws.normal(len(schedule), width)
        if solver == "ancestral":

            def noise(x: Tensor, t: int) -> Tensor:
                found = self.denoiser(x, shares[t], context)
                if watch is not None:
                    signal, spread = schedule.factors(t)
                    x_0 = (x - spread * found) / signal
                    watch(len(schedule) - 1 - t, signal, spread, x, x_0)
                return found

            return ancestral_sample(
                noise,
                start,
                schedule,
                lambda t: draws.normal(t, width),
            )
        visited = schedule.ddim_steps(count_levels(solver, steps or self.config.ddim_steps))
        levels = NoiseLevels(*zip(*map(schedule.factors, visited), strict=True))

        def predict(x_t: Tensor, i: int) -> tuple[Tensor, Tensor]:
            signal, spread = levels.at(i)
            noise = self.denoiser(x_t, shares[visited[i]], context)
            return (x_t - spread * noise) / signal, noise

        seen = watched(predict, levels, watch)
        return SOLVERS[solver](seen, start, levels, lambda i: draws.normal(i, width))

    @torch.no_grad()
    def log_prob(
        self,
        targets: Tensor,
        events: Events,
        batch_size: int = 2048,
    ) -> Tensor:
        """Computes the log-density of the probability flow at `targets`.

        In u = log(sigma), with sigma the noise over the signal, the flow of a noise predictor is
        dx_t / du = s (epsilon - s x_t), with s the share of the noise; between the integer steps of
        the training the time is interpolated. A target that did not vary in training has no
        meaningful density.

        Args:
            targets: Values of ``target_names`` [GeV], shape ``(N, T)`` or ``(G, N, T)``.
            events: Reconstructed events.
            batch_size: How many values are worked on at a time; bounds the memory.

        Returns:
            log p [1 / GeV^T], float64 on the processor, shape ``(N,)`` or ``(G, N)``.

        Raises:
            ShapeError: If the targets do not fit the events.
        """
        values = checked_targets(targets, events, len(self.target_names))
        prepared = self.prepare(events)
        found = torch.empty(values.shape[:2], dtype=torch.float64)
        times = self.schedule.log_ratio_times(_DENSITY_STEPS)
        first_signal = self.schedule.factors_at(times[0])[0]
        for which, rows, context in blocks_with_context(
            len(found), len(events), batch_size, lambda rows: self._context(prepared, rows)
        ):
            x_0 = self.target_scaling(values[which, rows].float().to(self.device))
            flow = self._velocity(context)
            found[which, rows] = flow_log_prob(flow, first_signal * x_0, times).cpu().double()
        found -= self.target_scaling.scale.double().log().sum().cpu()
        return found if targets.ndim == 3 else found[0]

    def _velocity(self, context: Tensor) -> Callable[[Tensor, float], Tensor]:
        def velocity(x_t: Tensor, log_ratio: float) -> Tensor:
            _, spread, t = self.schedule.factors_at(log_ratio)
            time = self.denoiser.embed_time(torch.tensor([t], device=x_t.device))
            return spread * (self.denoiser(x_t, time, context) - spread * x_t)

        return velocity

    def _check_sampling(
        self, n_samples: int, steps: int | None, solver: str, batch_size: int
    ) -> None:
        if solver not in self.solvers:
            raise unknown_name("solver", solver, self.solvers)
        if steps is not None and not 1 <= steps <= len(self.schedule):
            raise InputError(f"'steps' should be between 1 and {len(self.schedule)}, got {steps}.")
        if solver == "ancestral" and steps not in (None, len(self.schedule)):
            raise InputError(
                f"Ancestral sampling takes all {len(self.schedule)} steps, got steps={steps}: "
                "leave it out, or choose solver='ddim'."
            )
        for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"'{name}' should be at least 1, got {value}.")
