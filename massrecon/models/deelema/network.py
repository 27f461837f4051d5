"""The network of DeeLeMa and its global masses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from massrecon.errors import InputError
from massrecon.models.deelema.config import DeeLeMaConfig
from massrecon.models.deelema.structure import Structure

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
}
_CURVE = 5.0
_LEAST_INCREMENT = 1.0


class Network(nn.Module):
    """Layers from the visible momenta of an event to its unknown momentum components.

    Attributes:
        shift: Mean of the inputs.
        spread: Standard deviation of the inputs.
    """

    shift: Tensor
    spread: Tensor

    def __init__(self, n_inputs: int, n_outputs: int, config: DeeLeMaConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = n_inputs
        for _ in range(config.layers):
            layers.append(nn.Linear(size, config.hidden))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(config.hidden))
            layers.append(_ACTIVATIONS[config.activation]())
            size = config.hidden
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(size, n_outputs)
        self.register_buffer("shift", torch.zeros(n_inputs))
        self.register_buffer("spread", torch.ones(n_inputs))

    def set_scaling(self, inputs: Tensor) -> None:
        """Takes mean and spread from inputs of shape ``(N, F)``."""
        self.shift.copy_(inputs.mean(0))
        spread = inputs.std(0)
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Computes unknown components ``(N, U)`` from inputs ``(N, F)``."""
        return self.last(self.layers((inputs - self.shift) / self.spread))


class OrderedMasses(nn.Module):
    """Trainable masses of the groups, each above the heaviest that it decays to.

    A mass is that bound plus an increment f(x) = (x + sqrt(x^2 + c^2)) / 2 of its parameter x,
    which is positive and has slope one far from zero.
    """

    trial: Tensor

    def __init__(self, structure: Structure, config: DeeLeMaConfig, scale: float) -> None:
        super().__init__()
        _check_species("m_invisible", config.m_invisible, structure.invisible_species)
        missing = set(structure.invisible_species) - set(config.m_invisible)
        if missing:
            raise InputError(f"'m_invisible' lacks the trial mass of '{min(missing)}' [GeV].")
        _check_species("start", config.start, structure.groups)
        _check_species("widths", config.widths, structure.groups)
        self.structure, self.scale = structure, scale
        trial = [config.m_invisible[name] / scale for name in structure.invisible_species]
        self.register_buffer("trial", torch.tensor(trial))
        self.increments = nn.Parameter(torch.zeros(len(structure.groups)))
        self._start(config)

    def _start(self, config: DeeLeMaConfig) -> None:
        """Sets the parameters so that the masses have their starts."""
        for row, name in enumerate(self.structure.groups):
            bound = self._bound(row)
            self._set(row, config.start.get(name, bound + config.increment) - bound)

    def assign(self, masses: Mapping[str, float]) -> None:
        """Sets masses [GeV] by species, as far as their order allows."""
        for row, name in enumerate(self.structure.groups):
            if name in masses:
                self._set(row, masses[name] - self._bound(row))

    @torch.no_grad()
    def keep_sensitive(self) -> None:
        """Keeps the parameters where masses follow them: a long step must not bury one at 0."""
        self.increments.clamp_(min=-_CURVE / self.scale)

    @torch.no_grad()
    def _bound(self, row: int) -> float:
        """Computes the mass [GeV] that a group has to exceed."""
        return float(self._bounds(self._masses_up_to(row), row)) * self.scale

    @torch.no_grad()
    def _set(self, row: int, increment: float) -> None:
        increment = max(increment, _LEAST_INCREMENT)
        self.increments[row] = (increment - _CURVE**2 / (4 * increment)) / self.scale

    def forward(self) -> Tensor:
        """Returns the masses of the groups in units of the scale, shape ``(G,)``."""
        found = self._masses_up_to(len(self.structure.groups))
        return torch.stack([found[name] for name in self.structure.groups])

    def _masses_up_to(self, n: int) -> dict[str, Tensor]:
        found = dict(zip(self.structure.invisible_species, self.trial, strict=True))
        curve = (_CURVE / self.scale) ** 2
        for row in range(n):
            x = self.increments[row]
            increment = 0.5 * (x + (x.square() + curve).sqrt())
            found[self.structure.groups[row]] = self._bounds(found, row) + increment
        return found

    def _bounds(self, found: Mapping[str, Tensor], row: int) -> Tensor:
        """Computes the sum of masses of the heaviest decay of a group."""
        decays = self.structure.decays[row]
        return torch.stack([torch.stack([found[s] for s in names]).sum() for names in decays]).max()


def _check_species(argument: str, given: Mapping[str, float], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise InputError(
                f"'{argument}' names '{name}': choose from {', '.join(dict.fromkeys(known))}."
            )
