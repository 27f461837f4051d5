"""Which points a scan has: a design read from a YAML file.

A design names axes, values that are the same at all points, and conditions between them::

    design: grid
    axes:
      m2: {from: 400, to: 600, step: 50}
      m1: [50, 100, 200]
    constraints: ["m1 <= m2 - 126"]
    parameters: {n_events: 2000, masses: ["chi20={m2}", "chi10={m1}"]}
    seeds: [1, 2, 3]

An axis that is a parameter of the notebook gives it its values. The value of any axis takes the
place of its name in braces in the texts under ``parameters``; other braces stay as they are.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import qmc

from massrecon.errors import InputError, reason
from massrecon.events.cardfile import describe_errors, parse_yaml
from massrecon.runs.scan.constraints import Constraint

Value = bool | int | float | str | list[Any]

MOST_POINTS = 1_000_000
"""A design with more points is refused: it is likely a mistake."""

_TRIALS = 1000
_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Range(_Strict):
    """Values from one end to the other.

    Attributes:
        start: First value; ``from`` in a file.
        stop: Last value, included; ``to`` in a file.
        step: Distance of the values on a grid.
        integer: Whether random values are whole numbers.
    """

    start: float = Field(alias="from")
    stop: float = Field(alias="to")
    step: float | None = Field(default=None, gt=0)
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not (math.isfinite(self.start) and math.isfinite(self.stop) and self.start < self.stop):
            raise ValueError(f"'from' should be below 'to', got {self.start:g} and {self.stop:g}")
        if self.step and (self.stop - self.start) / self.step > MOST_POINTS:
            raise ValueError(f"a step of {self.step:g} gives more than {MOST_POINTS:,} values")
        return self

    def values(self) -> list[Any]:
        """Returns the values on the grid, whole ones as int."""
        assert self.step is not None
        n = math.floor((self.stop - self.start) / self.step + 1e-9)
        return [_plain(self.start + i * self.step) for i in range(n + 1)]

    def at(self, share: float) -> Any:
        """Returns the value at a share of the way, 0 to 1."""
        if self.integer:
            low, high = math.ceil(self.start), math.floor(self.stop)
            return min(low + int(share * (high - low + 1)), high)
        return self.start + share * (self.stop - self.start)


class Design(_Strict):
    """A design, as its file says it.

    Attributes:
        design: ``grid``, all combinations of the axes; ``random``, independent draws; ``sobol``,
            points of a scrambled Sobol sequence, more even than random ones; ``list``, `points`.
        axes: For each axis its values, or a range.
        points: The points of a list, as mappings of names to values.
        n_points: Number of points of a random or Sobol design, after the constraints.
        constraints: Comparisons such as ``m1 <= m2 - 126`` that all points fulfil.
        parameters: Values that are the same at all points; texts may name axes in braces.
        seeds: How often each point is run: the values of the parameter ``seed``, or their number.
        seed: Seed of a random or Sobol design.
    """

    design: Literal["grid", "random", "sobol", "list"] = "grid"
    axes: dict[str, Range | Annotated[list[Value], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    points: list[dict[str, Value]] = Field(default_factory=list)
    n_points: int | None = Field(default=None, ge=1, le=MOST_POINTS)
    constraints: list[str] = Field(default_factory=list)
    parameters: dict[str, Value] = Field(default_factory=dict)
    seeds: Annotated[int, Field(ge=1)] | list[int] = Field(default_factory=list)
    seed: int = 0

    @model_validator(mode="after")
    def _complete(self) -> Design:
        drawn = self.design in ("random", "sobol")
        if (self.design == "list") != bool(self.points):
            raise ValueError("'points' belongs to a design 'list', and to no other")
        if self.design != "list" and not self.axes:
            raise ValueError(f"a design '{self.design}' needs 'axes'")
        if drawn != (self.n_points is not None):
            raise ValueError("'n_points' belongs to a design 'random' or 'sobol', which needs it")
        for name, axis in self.axes.items():
            if not drawn and isinstance(axis, Range) and axis.step is None:
                raise ValueError(f"the axis '{name}' of a grid needs a 'step'")
        if "seed" in self.parameters and self.seeds:
            raise ValueError("'seeds' and a parameter 'seed' exclude one another")
        return self


def load_design(path: str | Path) -> Design:
    """Reads a design from a YAML file.

    Raises:
        InputError: If it cannot be read; the message gives file, line and remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The design '{path}' cannot be read: {reason(error)}.") from error
    content, lines = parse_yaml(text, str(path), "design")
    try:
        return Design.model_validate(content)
    except ValidationError as error:
        raise InputError(describe_errors(error, Design, lines)) from error


def points_of(design: Design) -> list[dict[str, Any]]:
    """Returns the points of a design: for each the values of all names, without duplicates.

    `parameters_of` turns a point into parameters of a notebook.

    Raises:
        InputError: If a constraint cannot be used, or leaves no point.
    """
    constraints = [Constraint(text) for text in design.constraints]
    kept: dict[str, dict[str, Any]] = {}
    wanted = design.n_points or MOST_POINTS
    for number, point in enumerate(_candidates(design)):
        if number > _TRIALS * wanted:
            raise InputError(
                f"The constraints let through {len(kept)} of {number} points: widen the axes or "
                "the constraints."
            )
        if all(constraint.holds(point) for constraint in constraints):
            kept[repr(sorted(point.items(), key=lambda item: item[0]))] = point
        if design.n_points is not None and len(kept) == wanted:
            break
        if len(kept) > MOST_POINTS:
            raise InputError(f"The design has more than {MOST_POINTS:,} points: coarsen its axes.")
    if not kept:
        raise InputError("No point of the design fulfils its constraints: widen them or the axes.")
    return [{**point, **seed} for point in kept.values() for seed in _seeds(design)]


def parameters_of(point: Mapping[str, Any], design: Design, known: Mapping[str, Any]) -> dict:
    """Turns a point into parameters of a notebook.

    Args:
        point: Values of the axes.
        design: What is the same at all points.
        known: The parameters that the notebook declares.

    Raises:
        InputError: If an axis is neither a parameter nor named by a text.
    """
    fixed = {name: _filled(value, point) for name, value in design.parameters.items()}
    used = set(_PLACE.findall(str(list(design.parameters.values()))))
    for name in point:
        if name not in known and name not in used:
            raise InputError(
                f"The axis '{name}' is no parameter of the notebook (it has "
                f"{', '.join(known)}), and no text under 'parameters' names it as '{{{name}}}'."
            )
    return {**fixed, **{name: value for name, value in point.items() if name in known}}


def _candidates(design: Design) -> Iterator[dict[str, Any]]:
    if design.design == "list":
        yield from design.points
        return
    names = list(design.axes)
    if design.design == "grid":
        values = [a.values() if isinstance(a, Range) else a for a in design.axes.values()]
        yield from (dict(zip(names, row, strict=True)) for row in itertools.product(*values))
        return
    for shares in _shares(design):
        yield {
            name: axis.at(share) if isinstance(axis, Range) else axis[int(share * len(axis))]
            for (name, axis), share in zip(design.axes.items(), shares, strict=True)
        }


def _shares(design: Design) -> Iterator[list[float]]:
    """Draws points of the unit cube without end; the same ones for the same seed."""
    n = len(design.axes)
    if design.design == "random":
        generator = np.random.default_rng(design.seed)
        while True:
            yield generator.random(n).tolist()
    sequence = qmc.Sobol(n, rng=design.seed)
    size = 256
    while True:
        yield from sequence.random(size).tolist()


def _seeds(design: Design) -> list[dict[str, int]]:
    seeds = range(1, design.seeds + 1) if isinstance(design.seeds, int) else design.seeds
    return [{"seed": seed} for seed in seeds] or [{}]


def _filled(value: Any, point: Mapping[str, Any]) -> Any:
    """Puts values in place of their names in braces; other braces stay as they are."""
    if isinstance(value, list):
        return [_filled(item, point) for item in value]
    if not isinstance(value, str):
        return value
    if (whole := _PLACE.fullmatch(value)) and whole[1] in point:
        return point[whole[1]]
    return _PLACE.sub(
        lambda found: _text(point[found[1]]) if found[1] in point else found[0], value
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value == round(value, 4) else str(value)


def _plain(value: float) -> Any:
    rounded = round(value, 9)
    return int(rounded) if rounded.is_integer() else rounded
