"""Posterior: what a model says about each event, as draws of the targets and as a density.

Draws have shape ``(S, N, T)``: S draws for N events of T targets, by default ``card.target_names``,
which are (px, py, pz, m) of each reconstructed particle. The masses are M of these columns. A model
of the masses alone may also give their joint density, on a `MassGrid`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from massrecon.errors import InputError, ShapeError, StoreError, unknown_name
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Index, event_rows
from massrecon.inference import estimators
from massrecon.inference.massgrid import MassGrid, density_on_grid
from massrecon.provenance import file_sha256, read_json, replacing_folder, versions, write_json

if TYPE_CHECKING:
    from massrecon.events.container import Events
    from massrecon.models.base import MassModel

_RELATIVE_WIDTH = 1e-3
_FORMAT = "massrecon-posterior-1"
_TENSORS = "posterior.safetensors"
_DESCRIPTION = "posterior.json"
# draws that a network works on together: few enough for a processor's cache, many for a GPU
_DRAWS_AT_ONCE, _DRAWS_AT_ONCE_ELSEWHERE = 2048, 65536


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the targets for N events, with the truth where it is known.

    Attributes:
        samples: Draws of the targets [GeV], float64, shape ``(S, N, T)``.
        card: The process card that names the T targets and M masses.
        truth: True targets [GeV], shape ``(N, T)``; None for data.
        masses: True mass parameters [GeV], shape ``(N, M)``; None for data.
        weight: Event weights, shape ``(N,)``; None if all are one.
        provenance: Where the draws come from: model, sampler, seed, events, versions.
        names: Names of the targets where they are not ``card.target_names``.
        mass_density: Joint density of the masses, where the model has one.

    Raises:
        ShapeError: If a tensor does not have its shape.
        InputError: If a value is not finite, or the weights do not add up to a positive number.
    """

    samples: Tensor
    card: ProcessCard
    truth: Tensor | None = None
    masses: Tensor | None = None
    weight: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    mass_density: MassGrid | None = None

    def __post_init__(self) -> None:
        targets = len(self.target_names)
        shape = tuple(self.samples.shape)
        if len(shape) != 3 or shape[0] == 0 or shape[2] != targets:
            raise ShapeError(
                f"'samples' should have shape (draws, events, {targets}) for the targets of "
                f"'{self.card.name}', got {shape}."
            )
        expected = {
            "samples": shape,
            "truth": (shape[1], targets),
            "masses": (shape[1], len(self.card.mass_names)),
            "weight": (shape[1],),
        }
        for name, tensor in self._tensors().items():
            _check(name, tensor, expected[name])
        if self.mass_density is not None and len(self.mass_density) != shape[1]:
            raise ShapeError(
                f"'mass_density' should be of the {shape[1]} events of 'samples', got "
                f"{len(self.mass_density)}."
            )
        if self.weight is not None and len(self) and not self.weight.sum() > 0:
            raise InputError("The weights should add up to a positive number.")

    def __len__(self) -> int:
        return self.samples.shape[1]

    def __repr__(self) -> str:
        truth = "without" if self.truth is None and self.masses is None else "with"
        return (
            f"Posterior({self.card.name}, {len(self)} events, {self.n_draws} draws, {truth} truth)"
        )

    def __getitem__(self, index: Index) -> Posterior:
        """Selects events by integer, slice, boolean mask or list of positions."""
        rows = event_rows(index, len(self))
        selected = {
            name: tensor[:, rows] if name == "samples" else tensor[rows]
            for name, tensor in self._tensors().items()
        }
        return replace(
            self,
            mass_density=None if self.mass_density is None else self.mass_density[rows],
            **selected,
        )

    @property
    def n_draws(self) -> int:
        """Number S of draws for each event."""
        return self.samples.shape[0]

    @property
    def mass_names(self) -> tuple[str, ...]:
        """Names of the M masses."""
        return tuple(self.card.mass_names)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the T targets, such as ``chi20_px``."""
        return tuple(self.card.target_names) if self.names is None else self.names

    @property
    def weights(self) -> Tensor:
        """Event weights, ones if there are none, float64, shape ``(N,)``."""
        if self.weight is None:
            return torch.ones(len(self), dtype=torch.float64, device=self.samples.device)
        return self.weight.to(torch.float64)

    def target(self, name: str) -> Tensor:
        """Returns the draws of one target [GeV], shape ``(S, N)``, without copying them."""
        return self.samples[..., self._target_index(name)]

    def true_target(self, name: str) -> Tensor:
        """Returns the truth of one target [GeV], shape ``(N,)``.

        Raises:
            InputError: If there is no truth, or the name is unknown.
        """
        column = self._target_index(name)
        if self.truth is None:
            raise _no_truth()
        return self.truth[:, column]

    def mass_samples(self, mass: str | None = None) -> Tensor:
        """Returns the draws of all masses, shape ``(S, N, M)``, or of one, ``(S, N)`` [GeV]."""
        if mass is not None:
            return self.samples[..., self.mass_columns()[self.mass_index(mass)]]
        return self.samples[..., self.mass_columns()]

    def true_masses(self) -> Tensor:
        """Returns the true masses [GeV], shape ``(N, M)``.

        These are the mass parameters, or the masses of the true particles where the parameters
        are not kept.

        Raises:
            InputError: If there is no truth.
        """
        if self.masses is not None:
            return self.masses
        if self.truth is None:
            raise _no_truth()
        return self.truth[:, self.mass_columns()]

    def varies(self, mass: str) -> bool:
        """Tells whether a mass differs among the true values or the draws, by over a thousandth.

        A network that was trained on one value of a mass returns that value whatever it sees.

        Raises:
            InputError: If the name is unknown.
        """
        draws = self.mass_samples(mass)
        known = self.truth is not None or self.masses is not None
        truth = self.true_masses()[:, self.mass_index(mass)] if known else draws[0]
        scale = _RELATIVE_WIDTH * draws.mean().abs()
        return bool(draws.std(correction=0) > scale or truth.max() - truth.min() > scale)

    def mass_index(self, mass: str) -> int:
        """Returns the position of a mass.

        Raises:
            InputError: If the name is unknown; the choices are listed.
        """
        if mass not in self.mass_names:
            raise unknown_name("mass", mass, self.mass_names)
        return self.mass_names.index(mass)

    def within(self, ranges: Mapping[str, tuple[float, float]], seed: int = 0) -> Posterior:
        """Cuts the prior of the masses to ranges that are known to hold the truth.

        Draws outside give way to draws of the same event inside, taken at random. Where an event
        has none inside, the masses of its draws are moved to the nearest ends.

        Args:
            ranges: Lowest and highest value of masses by name [GeV]; others stay as they are.
            seed: Seed of the choice.

        Returns:
            A posterior with as many draws, and without a density.

        Raises:
            InputError: If a name is unknown or a range is empty.
        """
        inside = torch.ones(self.samples.shape[:2], dtype=torch.bool)
        moved = self.samples.clone()
        columns = self.mass_columns()
        for name, (low, high) in ranges.items():
            column = columns[self.mass_index(name)]
            if not low < high:
                raise InputError(f"The range of '{name}' is empty: got {low:g} to {high:g} GeV.")
            values = self.samples[..., column]
            inside &= (values >= low) & (values <= high)
            moved[..., column] = values.clamp(low, high)
        some = inside.any(dim=0)
        generator = torch.Generator().manual_seed(seed)
        share = torch.where(some, inside.double(), 1.0).T
        chosen = torch.multinomial(share, self.n_draws, replacement=True, generator=generator).T
        other = self.samples.gather(0, chosen.unsqueeze(-1).expand_as(self.samples))
        kept = torch.where((inside | ~some).unsqueeze(-1), moved, other)
        return replace(self, samples=kept, mass_density=None)

    def estimate(self, estimator: str = "window", width: float = 30.0) -> Tensor:
        """Estimates the masses of each event.

        Args:
            estimator: One of ``draw``, ``mean``, ``median``, ``window``; see
                `massrecon.inference.estimators`.
            width: Half-width of the window [GeV], for ``window`` only.

        Returns:
            Estimates [GeV], shape ``(N, M)``.

        Raises:
            InputError: If the estimator is unknown.
        """
        return estimators.estimate(self.mass_samples(), estimator, width)

    def interval(
        self, level: float = 0.68, kind: Literal["central", "shortest"] = "central"
    ) -> Tensor:
        """Computes an interval of each mass that holds the truth with probability `level`.

        Returns:
            Lower and upper ends [GeV], shape ``(N, M, 2)``.
        """
        return estimators.interval(self.mass_samples(), level, kind)

    def save(self, path: str | Path) -> None:
        """Writes the posterior to a folder, whole or not at all; read it with `load`."""
        with replacing_folder(path) as folder:
            tensors = {name: t.detach().cpu().contiguous() for name, t in self._tensors().items()}
            if self.mass_density is not None:
                tensors |= self.mass_density.to_tensors()
            save_file(tensors, folder / _TENSORS)
            description = {
                "format": _FORMAT,
                "sha256": file_sha256(folder / _TENSORS),
                "n_draws": self.n_draws,
                "n_events": len(self),
                "target_names": list(self.target_names),
                "card": self.card.to_dict(),
                "provenance": dict(self.provenance),
            }
            write_json(folder / _DESCRIPTION, description)

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """Reads a posterior that `save` wrote.

        Raises:
            StoreError: If the folder is missing, foreign or damaged.
        """
        folder = Path(path)
        description = _read_description(folder)
        try:
            if file_sha256(folder / _TENSORS) != description["sha256"]:
                raise StoreError(
                    f"'{folder / _TENSORS}' is damaged: its checksum differs from the one in "
                    f"{_DESCRIPTION}. Reconstruct the events again."
                )
            tensors = load_file(folder / _TENSORS)
            density = MassGrid.from_tensors(tensors)
            card, names = load_card(description["card"]), tuple(description["target_names"])
            return cls(
                card=card,
                provenance=description["provenance"],
                names=None if names == tuple(card.target_names) else names,
                mass_density=density,
                **tensors,
            )
        except (OSError, KeyError, TypeError, SafetensorError, InputError) as error:
            raise StoreError(f"'{folder}' does not hold a whole posterior: {error}") from error

    def mass_columns(self) -> list[int]:
        """Finds the column of each mass: its own, or the one of the particle that has it."""
        return [self._target_index(name) for name in mass_targets(self.card, self.target_names)]

    def _target_index(self, name: str) -> int:
        if name not in self.target_names:
            raise unknown_name("target", name, self.target_names)
        return self.target_names.index(name)

    def _tensors(self) -> dict[str, Tensor]:
        named = {
            "samples": self.samples,
            "truth": self.truth,
            "masses": self.masses,
            "weight": self.weight,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def reconstruct(
    model: MassModel,
    events: Events,
    n_samples: int = 64,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    mass_grid: Mapping[str, Tensor] | None = None,
) -> Posterior:
    """Reconstructs the targets of each event: draws from the posterior of a trained model.

    Args:
        model: A trained model.
        events: Events of the model's card, simulated or real, or a background with the same slots.
        n_samples: Number S of draws for each event.
        steps: Steps of the sampler; None for the model's own default.
        solver: Sampler, one of ``model.solvers``; None for the model's own default.
        seed: Seed of the draws.
        mass_grid: For each mass that the model lets vary, the values [GeV] at which to compute the
            joint density too; see `massrecon.inference.massgrid.density_on_grid`.

    Returns:
        The posterior; with the truth where the events carry it.

    Raises:
        InputError: If there are no events, a value in them is not physical, `n_samples` is not
            positive, the events belong to a card with other targets, or the model has no density
            of the masses alone though `mass_grid` asks for it.
    """
    if n_samples < 1:
        raise InputError(f"'n_samples' should be at least 1, got {n_samples}.")
    card = _common_card(model, events)
    events.validate()
    at_once = _DRAWS_AT_ONCE if model.device.type == "cpu" else _DRAWS_AT_ONCE_ELSEWHERE
    how: dict[str, Any] = {"steps": steps, "solver": solver, "seed": seed}
    samples = model.sample(events, n_samples, **how, batch_size=at_once)
    truth = model.true_targets(events)
    return Posterior(
        samples=samples.cpu(),
        card=card,
        truth=None if truth is None else truth.cpu(),
        masses=None if events.masses is None or card is not events.card else events.masses.cpu(),
        weight=events.weight.cpu(),
        provenance={
            "model": model.name,
            "n_samples": n_samples,
            **how,
            "events": dict(events.provenance),
            "versions": versions("torch"),
        },
        names=None if model.target_names == tuple(card.target_names) else model.target_names,
        mass_density=None if mass_grid is None else density_on_grid(model, events, mass_grid),
    )


def _common_card(model: MassModel, events: Events) -> ProcessCard:
    """Returns the card whose targets a model finds in events, and refuses events of others."""
    if len(events) == 0:
        raise InputError("There are no events to reconstruct.")
    # a background has no targets of its own: it is reconstructed as if it were the model's process
    card = events.card if events.card.targets else model.card
    if tuple(card.target_names) != tuple(model.card.target_names):
        raise InputError(
            f"The model reconstructs {', '.join(model.card.target_names)}, but the events of "
            f"'{card.name}' have {', '.join(card.target_names)}: use a model trained on this card."
        )
    return card


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"'{name}' should have shape {shape}, got {tuple(tensor.shape)}.")
    if bool(tensor.isfinite().all()):
        return
    axis = 1 if name == "samples" else 0
    bad = ~tensor.isfinite().movedim(axis, 0).reshape(shape[axis], -1).all(1)
    raise InputError(
        f"'{name}' is not finite in {int(bad.sum())} of {shape[axis]} events, first in event "
        f"{int(bad.nonzero()[0])}: remove these events, or train the model again."
    )


def mass_targets(card: ProcessCard, target_names: Sequence[str]) -> list[str]:
    """Names the target that tells each mass: its own, or that of the particle that has it."""
    own = [f"{name}_m" for name in card.mass_names]
    if set(own) <= set(target_names):
        return own
    return [f"{_particle_with(card, name)}_m" for name in card.mass_names]


def _particle_with(card: ProcessCard, mass: str) -> str:
    """Returns the label of the card's target, or of the first particle, that has a mass."""
    if mass in card.targets:
        return card.targets[mass]
    nodes, belongs_to = card.topology.nodes, card.masses[mass].belongs_to
    return next((n.label for n in nodes if belongs_to(card.particles[n.name])), mass)


def _no_truth() -> InputError:
    return InputError("This posterior carries no truth: reconstruct simulated events to have it.")


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise StoreError(f"'{folder}' is not a posterior: it has no {_DESCRIPTION}.")
    description = read_json(path, "the description of a posterior")
    if description.get("format") != _FORMAT:
        raise StoreError(f"'{path}' does not describe a posterior of this version of massrecon.")
    return description
