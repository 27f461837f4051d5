"""Settings of DeeLeMa, with the published recipe as a preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from massrecon.errors import InputError, unknown_name

Distance = Literal["l1", "l2", "huber", "squared_mass"]
Table = tuple[tuple[float, float], ...]

_CHOICES = {
    "distance": ("l1", "l2", "huber", "squared_mass"),
    "assignment": ("given", "soft"),
    "anchor": ("edge", "none"),
    "calibration": ("toys", "none"),
    "activation": ("silu", "gelu"),
    "schedule": ("onecycle", "polynomial"),
}
_POSITIVE = ("hidden", "layers", "temperature", "learning_rate", "mass_learning_rate")
_POSITIVE += ("batch_size", "epochs", "increment", "beam_energy", "n_toys")


@dataclass(frozen=True, kw_only=True)
class DeeLeMaConfig:
    """Settings of a fit; the defaults are our recipe.

    Attributes:
        m_invisible: Trial mass of each invisible species [GeV], by name.
        distance: Distance of two masses: ``"l1"``, ``"l2"``, ``"huber"``, or ``"squared_mass"``,
            the absolute difference of the squares.
        event_weight: Weight of the distances between masses of one event.
        batch_weight: Weight of the distances to the global masses.
        start: Start of the global masses [GeV], by species; empty for each `increment` above the
            heaviest that it decays to. Starts that are not ordered are raised.
        increment: See `start` [GeV].
        scale: Unit of momenta and masses in the network [GeV]; None for one from the events.
        frame: Whether events are turned and boosted to a frame of their own.
        normalise: Whether inputs are shifted and scaled to mean 0 and variance 1.
        assignment: ``"given"`` takes the visible particles as they come; ``"soft"`` weighs all ways
            to take them by how well they fit.
        temperature: Loss difference, in units of `scale`, that matters to the soft assignment.
        anchor: ``"edge"`` ties the global masses to the solvability edge of the same events,
            ``"none"`` leaves them to the loss alone.
        anchor_weight: Strength of the anchor relative to the loss.
        resolution: Relative momentum resolution of visible particles by name: pairs of pT [GeV] and
            resolution; the edge is unfolded with it. Empty for perfect measurement.
        calibration: ``"toys"`` corrects an edge that is not sharp by toys with this resolution and
            these widths, ``"none"`` takes it as fitted.
        widths: Natural widths by species [GeV], for the toys.
        beam_energy: Energy of the proton-proton collisions [GeV], for the toys.
        n_toys: Number of toys, 5000 at least; as many as there are events add 41 % to the errors.
        hidden: Width of the hidden layers.
        layers: Number of hidden layers.
        activation: ``"silu"``, or ``"gelu"`` with the hyperbolic tangent as published, which takes
            more than twice the time on processors.
        batch_norm: Whether hidden layers are normalised over the batch.
        learning_rate: Largest learning rate of the network.
        mass_learning_rate: The same of the global masses.
        schedule: ``"onecycle"`` or ``"polynomial"``: (1 - epoch / epochs)^2.
        batch_size: Events of a step.
        epochs: Passes over the events.
    """

    m_invisible: Mapping[str, float]
    distance: Distance = "l1"
    event_weight: float = 1.0
    batch_weight: float = 1.0
    start: Mapping[str, float] = field(default_factory=dict)
    increment: float = 300.0
    scale: float | None = None
    frame: bool = True
    normalise: bool = True
    assignment: Literal["given", "soft"] = "soft"
    temperature: float = 0.02
    anchor: Literal["edge", "none"] = "edge"
    anchor_weight: float = 10.0
    resolution: Mapping[str, Table] = field(default_factory=dict)
    calibration: Literal["toys", "none"] = "toys"
    widths: Mapping[str, float] = field(default_factory=dict)
    beam_energy: float = 13_000.0
    n_toys: int = 50_000
    hidden: int = 128
    layers: int = 4
    activation: Literal["silu", "gelu"] = "silu"
    batch_norm: bool = True
    learning_rate: float = 5e-3
    mass_learning_rate: float = 2e-2
    schedule: Literal["onecycle", "polynomial"] = "onecycle"
    batch_size: int = 2048
    epochs: int = 25

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_name(name, getattr(self, name), choices)
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise InputError(f"'{name}' should be positive, got {getattr(self, name)}.")
        if self.scale is not None and not self.scale > 0:
            raise InputError(f"'scale' should be positive [GeV], got {self.scale}.")
        for name, width in self.widths.items():
            if not width >= 0:
                raise InputError(f"The width of '{name}' should be at least 0 GeV, got {width}.")
        for name, mass in [*self.m_invisible.items(), *self.start.items()]:
            if not mass >= 0:
                raise InputError(f"The mass of '{name}' should be at least 0 GeV, got {mass}.")
        for name, table in self.resolution.items():
            _check_table(name, table)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> DeeLeMaConfig:
        """Returns a named recipe, with some fields changed.

        >>> DeeLeMaConfig.preset("published", m_invisible={"C": 700.0}).hidden
        256

        Args:
            name: ``"ours"``; ``"published"`` or ``"published_ttbar"``, those of Table II.
            **fields: Fields that differ, among them `m_invisible`.

        Raises:
            InputError: If the name or a field is unknown.
        """
        if name not in PRESETS:
            raise unknown_name("preset of DeeLeMa", name, PRESETS)
        known = {f.name for f in dataclasses.fields(cls)}
        for key in fields:
            if key not in known:
                raise unknown_name("setting of DeeLeMa", key, known)
        return cls(**{**PRESETS[name], **fields})


def _check_table(name: str, table: Table) -> None:
    """Checks that a resolution can be interpolated in log(pT).

    Raises:
        InputError: If it cannot.
    """
    try:
        pts, values = zip(*((float(pt), float(value)) for pt, value in table), strict=True)
    except (TypeError, ValueError):
        pts, values = (), ()
    rising = all(low < high for low, high in pairwise([0.0, *pts]))
    if not pts or not rising or not all(0 <= value < 1 for value in values):
        raise InputError(
            f"The resolution of '{name}' should be pairs of pT [GeV], rising from above 0, and a "
            f"relative resolution from 0 to 1, got {table!r}."
        )


_PUBLISHED: dict[str, Any] = {
    "distance": "l1",
    "increment": 300.0,
    "scale": 1000.0,
    "frame": False,
    "normalise": False,
    "assignment": "given",
    "anchor": "none",
    "hidden": 256,
    "layers": 5,
    "activation": "gelu",
    "batch_norm": True,
    "learning_rate": 1e-2,
    "mass_learning_rate": 1e-2,
    "schedule": "polynomial",
    "batch_size": 2048,
    "epochs": 100,
}

PRESETS: dict[str, Mapping[str, Any]] = {
    "ours": {},
    "published": _PUBLISHED,
    "published_ttbar": _PUBLISHED | {"learning_rate": 5e-4, "mass_learning_rate": 5e-4},
}
"""Named recipes as the fields that differ from the defaults.

The published ones follow Table II; the paper does not name the schedule, the polynomial one is that
of the released program.
"""
