"""The joint density of the masses of each event on a grid: what single events are combined from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from massrecon.errors import InputError, ModelError, ShapeError, unknown_name

if TYPE_CHECKING:
    from massrecon.events.container import Events
    from massrecon.models.base import MassModel

_LOG_DENSITY = "mass_log_density"
_AXIS = "mass_axis_"


@dataclass(frozen=True, eq=False)
class MassAxes:
    """The product of one axis for each of M masses.

    Attributes:
        axes: Values of each mass [GeV], rising, by its name.
    """

    axes: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the M masses."""
        return tuple(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of points on each axis."""
        return tuple(len(axis) for axis in self.axes.values())

    @property
    def points(self) -> Tensor:
        """The mass points [GeV], the last mass fastest, shape ``(G, M)``."""
        return product_points(list(self.axes.values()))

    @property
    def volume(self) -> float:
        """Volume of the cell of a point where the values rise evenly [GeV^M]."""
        return math.prod(step_of(axis) for axis in self.axes.values())


@dataclass(frozen=True, eq=False)
class MassGrid(MassAxes):
    """log p(masses | event) on the product of one axis for each mass.

    Attributes:
        axes: Values of each mass [GeV], rising, by its name.
        log_density: log p [1 / GeV^M], float64, shape ``(N, G_1, ..., G_M)``; -inf where there is
            no probability.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If an axis does not rise, or a density is not a number.
    """

    log_density: Tensor

    def __post_init__(self) -> None:
        if tuple(self.log_density.shape[1:]) != self.shape:
            raise ShapeError(
                f"'log_density' should have shape (N, {', '.join(map(str, self.shape))}), got "
                f"{tuple(self.log_density.shape)}."
            )
        for name, axis in self.axes.items():
            if len(axis) < 2 or not bool((axis.diff() > 0).all()):
                raise InputError(f"The grid of '{name}' should have two or more rising values.")
        if bool(self.log_density.isnan().any()) or bool((self.log_density == torch.inf).any()):
            raise InputError("A log-density should be a number or -inf: train the model again.")

    def __len__(self) -> int:
        return len(self.log_density)

    def __getitem__(self, rows: slice | Tensor) -> MassGrid:
        """Selects events."""
        return dataclasses.replace(self, log_density=self.log_density[rows])

    def normalisation(self) -> Tensor:
        """Computes the integral over the grid, ``(N,)``: one where the grid holds everything."""
        total = self.log_density.exp()
        for axis in reversed(list(self.axes.values())):
            total = torch.trapezoid(total, axis.to(total), dim=-1)
        return total

    def marginal(self, mass: str) -> Tensor:
        """Computes the density of one mass [1 / GeV], shape ``(N, G)``.

        Raises:
            InputError: If the grid has no such mass.
        """
        names = list(self.axes)
        if mass not in names:
            raise unknown_name("mass", mass, names)
        density = self.log_density.exp()
        for i, name in reversed(list(enumerate(names))):
            if name != mass:
                density = torch.trapezoid(density, self.axes[name].to(density), dim=1 + i)
        return density

    def to_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors to be saved, by name."""
        axes = {f"{_AXIS}{i}_{name}": axis for i, (name, axis) in enumerate(self.axes.items())}
        tensors = {_LOG_DENSITY: self.log_density, **axes}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> MassGrid | None:
        """Takes the tensors of a grid out of `tensors`, if there are any."""
        if _LOG_DENSITY not in tensors:
            return None
        named = sorted(name for name in tensors if name.startswith(_AXIS))
        axes = {name.removeprefix(_AXIS).partition("_")[2]: tensors.pop(name) for name in named}
        return cls(axes, tensors.pop(_LOG_DENSITY))


def density_on_grid(
    model: MassModel, events: Events, axes: Mapping[str, Tensor], batch_size: int = 8192
) -> MassGrid:
    """Computes the joint density of the masses of each event on a grid.

    Args:
        model: A trained model of the masses alone (``targets="masses"``) that has a density.
        events: N events of the model's card.
        axes: Values [GeV] of each mass that varied in the training, rising, by name.
        batch_size: How many values are worked on at a time; bounds the memory.

    Raises:
        InputError: If the model learns more than the masses, or an axis is missing or not known.
        ModelError: If the family has no density.
    """
    names = [f"{mass}_m" for mass in model.card.mass_names]
    if list(model.target_names) != names:
        raise InputError(
            f"A density of the masses alone needs a model with targets='masses'; this "
            f"'{model.name}' learns {', '.join(model.target_names)}."
        )
    if model.density == "none":
        raise ModelError(f"The model '{model.name}' has no density: draw from it instead.")
    fixed = fixed_masses(model)
    for mass in axes:
        if mass not in model.card.mass_names or mass in fixed:
            free = [name for name in model.card.mass_names if name not in fixed]
            raise unknown_name("free mass", mass, free)
    if missing := [m for m in model.card.mass_names if m not in axes and m not in fixed]:
        raise InputError(f"'mass_grid' should have values of '{missing[0]}' too, which varies.")
    columns = [torch.as_tensor(axis, dtype=torch.float64) for axis in axes.values()]
    points = product_points(columns)
    values = torch.zeros(len(points), len(names), dtype=torch.float64)
    for i, mass in enumerate(model.card.mass_names):
        values[:, i] = points[:, list(axes).index(mass)] if mass in axes else fixed[mass]
    grid = values.unsqueeze(1).expand(-1, len(events), -1)
    found = model.log_prob(grid, events, batch_size=batch_size)
    shape = [len(column) for column in columns]
    return MassGrid(dict(zip(axes, columns, strict=True)), found.T.reshape(-1, *shape))


def fixed_masses(model: MassModel) -> dict[str, float]:
    """Returns the masses that did not vary in the training of a model of the masses alone [GeV]."""
    targets = getattr(model, "targets", None)
    if targets is None:
        return {}
    free = set(targets.kept.tolist())
    names = model.card.mass_names
    return {name: float(targets.origin[i]) for i, name in enumerate(names) if i not in free}


def product_points(axes: Sequence[Tensor]) -> Tensor:
    """Lists the points of a product of axes, the last axis fastest, ``(G, M)``."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2).double()


def step_of(axis: Tensor) -> float:
    """Returns the distance of the values of an axis that rises evenly, in its unit."""
    return float(axis[-1] - axis[0]) / (len(axis) - 1)
