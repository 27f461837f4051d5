"""Mass requests: which mass points to simulate, and the prior that they are drawn from.

Each mass of a card is fixed, drawn from a continuous range, or drawn from a grid of values::

    {"chi20": 600, "chi10": (50, 450)}          fixed and range
    {"chi20": "600", "chi10": "50:450"}         the same, as on the command line
    {"chi20": 600, "chi10": [50, 100, 150]}     fixed and grid
    "line"                                      a preset of the card

Points whose decay would be closed are refused; where two ranges or two grids span a box that is
partly closed, points are drawn uniformly from its open part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import OpenChannel, ProcessCard
from massrecon.events.particles import Floats

MassRequest = Mapping[str, Any] | str | None
"""Masses by name, or the name of a preset of the card; None for the defaults of the card."""

_N_PROBES = 100_000
_SPELLING = "a number, a range 'low:high' or a grid 'a,b,c'"


@dataclass(frozen=True)
class MassChoice:
    """How the values of one mass are chosen.

    Attributes:
        kind: ``"fixed"``, ``"range"`` or ``"grid"``.
        values: The value, the two ends, or the grid [GeV], ascending.
    """

    kind: Literal["fixed", "range", "grid"]
    values: tuple[float, ...]

    @property
    def low(self) -> float:
        """Lowest value [GeV]."""
        return self.values[0]

    @property
    def high(self) -> float:
        """Highest value [GeV]."""
        return self.values[-1]

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Draws `n` values, uniformly."""
        if self.kind == "range":
            return rng.uniform(self.low, self.high, n)
        return rng.choice(np.array(self.values), n)

    def __str__(self) -> str:
        return (":" if self.kind == "range" else ",").join(f"{value:g}" for value in self.values)


@dataclass(frozen=True)
class MassPrior:
    """The distribution of the mass points of a simulation.

    Attributes:
        card: The process.
        choices: One choice for each mass of the card, in its order.
    """

    card: ProcessCard
    choices: tuple[MassChoice, ...]

    @property
    def partly_closed(self) -> bool:
        """Whether the prior is the open part of a box of ranges."""
        channels = self.card.open_channels
        return any(_smallest_gap(self, channel) < channel.minimum_gap for channel in channels)

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Draws `n` open mass points [GeV], shape ``(n, M)``."""
        points = np.zeros((0 if self.choices else n, len(self.choices)))
        while len(points) < n:
            box = np.stack([choice.draw(rng, n) for choice in self.choices], axis=1)
            points = np.concatenate([points, box[self.is_open(box)]])
        return points[:n]

    def is_open(self, points: Floats) -> np.ndarray:
        """Says at which mass points ``(n, M)`` every decay of the card is open, shape ``(n,)``."""
        names, allowed = self.card.mass_names, np.ones(len(points), bool)
        for channel in self.card.open_channels:
            daughters = sum(points[:, names.index(name)] for name in channel.daughters)
            gap = points[:, names.index(channel.parent)] - daughters
            allowed &= gap >= channel.minimum_gap - 1e-9
        return allowed

    def to_dict(self) -> dict[str, str]:
        """Returns the request as strings that `parse_masses` reads back."""
        exact = {"range": ":", "grid": ",", "fixed": ","}
        return {
            name: exact[choice.kind].join(repr(value) for value in choice.values)
            for name, choice in zip(self.card.mass_names, self.choices, strict=True)
        }

    def choice(self, name: str) -> MassChoice:
        """Returns the choice for the mass called `name`."""
        return self.choices[self.card.mass_names.index(name)]


@dataclass(frozen=True)
class Tiers:
    """Slices of the mass that the cross-section falls with, each with its own initialisation.

    Pythia finds the maximum of the cross-section when it is initialised. From there the masses may
    be moved up but never down, so each slice is initialised at its lightest mass.

    Attributes:
        prior: The mass points.
        edges: Lower edges of the slices [GeV], ascending.
    """

    prior: MassPrior
    edges: tuple[float, ...]

    @classmethod
    def of(cls, prior: MassPrior) -> Tiers:
        """Cuts the prior into slices of at most the card's ``tier_step``."""
        name, step = prior.card.pythia.cross_section_mass, prior.card.pythia.tier_step
        if name is None:
            return cls(prior, (0.0,))
        choice = prior.choice(name)
        low = _lightest_open(prior, name)
        if choice.kind == "range":
            n_tiers = max(1, math.ceil((choice.high - low) / step - 1e-9))
            edges = tuple(np.linspace(low, choice.high, n_tiers + 1)[:-1].tolist())
        else:
            edges = []
            for value in choice.values:
                if not edges or value >= edges[-1] + step:
                    edges.append(value)
        return cls(prior, tuple(edges))

    def index(self, point: Floats) -> int:
        """Returns the slice that a mass point ``(M,)`` belongs to."""
        name = self.prior.card.pythia.cross_section_mass
        if name is None:
            return 0
        mass = point[self.prior.card.mass_names.index(name)]
        return int(np.searchsorted(np.array(self.edges), mass, side="right")) - 1

    def start(self, index: int) -> Floats:
        """Returns the mass point at which a slice is initialised, shape ``(M,)``."""
        name = self.prior.card.pythia.cross_section_mass
        ends = [
            (self.edges[index],) if mass == name else (choice.low, choice.high)
            for mass, choice in zip(self.prior.card.mass_names, self.prior.choices, strict=True)
        ]
        corners = np.array(list(itertools.product(*ends)))
        return corners[np.argmax(self.prior.is_open(corners))]


def parse_masses(card: ProcessCard, masses: MassRequest = None) -> MassPrior:
    """Reads a mass request and checks it against the card.

    Args:
        card: The process.
        masses: For each mass a number, a ``(low, high)`` tuple or ``"low:high"`` for a range, or a
            list or ``"a,b,c"`` for a grid [GeV]; or the name of a preset of the card. Masses that
            are not given take the card's default.

    Raises:
        InputError: If a name is unknown, a value is not allowed, or a decay would be closed.
    """
    if isinstance(masses, str):
        masses = _preset(card, masses)
    if masses is not None and not isinstance(masses, Mapping):
        raise InputError(f"'masses' should map names to values, got {masses!r}.")
    given = dict(masses or {})
    for name in given:
        if name not in card.masses:
            raise unknown_name("mass", name, card.mass_names)
    choices = [
        _choice(card, name, given.get(name, parameter.default))
        for name, parameter in card.masses.items()
    ]
    prior = MassPrior(card, tuple(choices))
    for channel in card.open_channels:
        _refuse_closed(prior, channel)
    if prior.partly_closed:
        _refuse_empty(prior)
    return prior


def _preset(card: ProcessCard, name: str) -> Mapping[str, Any]:
    """Returns the masses that the card calls `name`."""
    if name in card.presets:
        return card.presets[name]
    if not card.presets:
        raise InputError(
            f"'masses' should map names to values, got '{name}': the card '{card.name}' has no "
            "presets."
        )
    unknown = unknown_name("preset of masses", name, card.presets)
    example = next(f"{mass}={parameter.default:g}" for mass, parameter in card.masses.items())
    raise InputError(f"{str(unknown)[:-1]}, or give masses by name, such as {example}.")


def _choice(card: ProcessCard, name: str, value: Any) -> MassChoice:
    kind, values = _read(name, value)
    low, high = card.masses[name].range
    for mass in values:
        if not (math.isfinite(mass) and mass > 0):
            raise InputError(f"Mass '{name}' should be positive and finite, got {mass:g} GeV.")
        if not low <= mass <= high:
            raise InputError(
                f"Mass '{name}' = {mass:g} GeV is outside the range {low:g} to {high:g} GeV of the "
                f"card '{card.name}'."
            )
    if kind == "range" and values[0] >= values[1]:
        raise InputError(
            f"The range of '{name}' should be low:high, got {values[0]:g}:{values[1]:g}."
        )
    return MassChoice(kind, values if kind == "range" else tuple(sorted(set(values))))


def _read(name: str, value: Any) -> tuple[Literal["fixed", "range", "grid"], tuple[float, ...]]:
    """Reads one value of a request as its kind and its numbers."""
    kind = "range" if isinstance(value, tuple) else "grid"
    if isinstance(value, str):
        kind = "range" if ":" in value else "grid"
        value = value.split(":" if kind == "range" else ",")
    elif not isinstance(value, Iterable):
        value = [value]
    try:
        if any(isinstance(item, bool) for item in value):
            raise TypeError
        values = tuple(float(item) for item in value)
    except (TypeError, ValueError):
        raise InputError(f"Mass '{name}' should be {_SPELLING}, got {value!r}.") from None
    if not values or (kind == "range" and len(values) != 2):
        raise InputError(f"Mass '{name}' should be {_SPELLING}, got {value!r}.")
    return ("fixed" if kind == "grid" and len(values) == 1 else kind), values


def _smallest_gap(prior: MassPrior, channel: OpenChannel) -> float:
    """Returns the smallest mass that is left over for the other decay products [GeV]."""
    daughters = sum(prior.choice(name).high for name in channel.daughters)
    return prior.choice(channel.parent).low - daughters


def _refuse_closed(prior: MassPrior, channel: OpenChannel) -> None:
    """Refuses points with a closed channel, except for part of a box of several ranges."""
    smallest, gap = _smallest_gap(prior, channel), channel.minimum_gap
    if smallest >= gap or _is_partly_open(prior, channel):
        return
    parent, first = prior.choice(channel.parent).low, channel.daughters[0]
    daughters = [(name, prior.choice(name).high) for name in channel.daughters]
    point = ", ".join(f"{name} = {mass:g}" for name, mass in [(channel.parent, parent), *daughters])
    raise InputError(
        f"The decay {channel.parent} > {' '.join(channel.daughters)} is closed at {point} GeV: it "
        f"needs a gap of {gap:g} GeV. At this {channel.parent} the largest '{first}' is "
        f"{daughters[0][1] + smallest - gap:g} GeV; at this {first} the smallest "
        f"'{channel.parent}' is {parent + gap - smallest:g} GeV."
    )


def _is_partly_open(prior: MassPrior, channel: OpenChannel) -> bool:
    """Says whether two or more ranges, or two or more grids alone, span a box with an open part.

    Ranges do so at every point of the grids beside them.
    """
    parent = prior.choice(channel.parent)
    daughters = [prior.choice(name) for name in channel.daughters]
    kinds = [choice.kind for choice in (parent, *daughters)]
    if kinds.count("grid") > 1 and "range" not in kinds:
        return parent.high - sum(d.low for d in daughters) >= channel.minimum_gap - 1e-9
    n_ranges = sum(choice.kind == "range" for choice in (parent, *daughters))
    highest = parent.high if parent.kind == "range" else parent.low
    lightest = sum(d.low if d.kind == "range" else d.high for d in daughters)
    return n_ranges > 1 and highest - lightest > channel.minimum_gap


def _refuse_empty(prior: MassPrior) -> None:
    """Refuses a box whose open part is empty, or too small to be found."""
    rng = np.random.default_rng(0)
    box = np.stack([choice.draw(rng, _N_PROBES) for choice in prior.choices], axis=1)
    if not prior.is_open(box).any():
        names = ", ".join(
            f"{n}={c}" for n, c in zip(prior.card.mass_names, prior.choices, strict=True)
        )
        raise InputError(f"No decay is open anywhere in the masses {names}: change the ranges.")


def _lightest_open(prior: MassPrior, name: str) -> float:
    """Returns the lowest value of a mass at which some point of the prior is open [GeV]."""
    low = prior.choice(name).low
    for channel in prior.card.open_channels:
        if channel.parent == name:
            daughters = sum(prior.choice(daughter).low for daughter in channel.daughters)
            low = max(low, daughters + channel.minimum_gap)
    return low
