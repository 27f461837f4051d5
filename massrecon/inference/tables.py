"""Tables that the diagnostics return: numbers with names, readable printed and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from massrecon.errors import unknown_name
from massrecon.inference.statistics import MassPoints, Rates, plain_numbers


@dataclass(frozen=True, eq=False)
class PointRates:
    """Efficiencies at the B points of a true mass.

    Attributes:
        points: The points.
        n_events: Number of events at each, shape ``(B,)``.
        rates: Efficiencies, shape ``(M, E, W, B)``: masses, estimators, windows, points; NaN where
            there are no events.
    """

    points: MassPoints
    n_events: Tensor
    rates: Rates


@dataclass(frozen=True, eq=False)
class NoSkill:
    """What the best constant guess attains.

    Attributes:
        constant: The guesses [GeV] that suit all events best, shape ``(M, W)``.
        rates: Their efficiencies on mass points that they were not chosen on, shape ``(M, W)``.
    """

    constant: Tensor
    rates: Rates


@dataclass(frozen=True, eq=False)
class SelfConsistency:
    """The efficiency that the posterior predicts for itself, and what it attains.

    Both belong to the window estimator on half of the draws. Over-confident posteriors predict more
    than they attain. All of shape ``(M, W)``.

    Attributes:
        predicted: Mean posterior probability of the window.
        attained: Fraction of events with the truth in the window.
        predicted_error: Standard error of `predicted`.
        attained_error: Standard error of `attained`.
        difference_error: Standard error of the difference, whose parts are correlated.
    """

    predicted: Tensor
    attained: Tensor
    predicted_error: Tensor
    attained_error: Tensor
    difference_error: Tensor

    @property
    def pull(self) -> Tensor:
        """Predicted less attained, in standard errors, shape ``(M, W)``."""
        return (self.predicted - self.attained) / self.difference_error


@dataclass(frozen=True, eq=False, kw_only=True)
class EfficiencyTable:
    """Efficiencies of M masses, E estimators and W windows; print it, or take `to_dict`.

    Attributes:
        mass_names: Names of the masses.
        symbols: Their symbols, in HTML.
        estimators: Names of the estimators.
        windows: Half-widths [GeV].
        n_events: Number of events.
        n_effective: Number of equally weighted events of the same statistical power.
        overall: Efficiencies over all events, shape ``(M, E, W)``.
        points: Efficiencies by true mass, under the name of the mass that varies.
        no_skill: The best constant guess.
        self_consistency: Predicted against attained; None where there is only one draw.
    """

    mass_names: tuple[str, ...]
    symbols: tuple[str, ...]
    estimators: tuple[str, ...]
    windows: tuple[float, ...]
    n_events: int
    n_effective: float
    overall: Rates
    points: Mapping[str, PointRates]
    no_skill: NoSkill
    self_consistency: SelfConsistency | None

    def at(self, mass: str, estimator: str, window: float) -> tuple[float, float]:
        """Returns an efficiency over all events and its error.

        Raises:
            InputError: If the mass, estimator or window is not in the table.
        """
        cell = self.position(mass, estimator, window)
        return float(self.overall.value[cell]), float(self.overall.error[cell])

    def position(self, mass: str, estimator: str, window: float) -> tuple[int, int, int]:
        """Returns the indices of a mass, an estimator and a window.

        Raises:
            InputError: If one of them is not in the table; the choices are listed.
        """
        return (
            _find("mass", mass, self.mass_names),
            _find("estimator", estimator, self.estimators),
            _find("window", f"{window:g}", [f"{w:g}" for w in self.windows]),
        )

    def is_trivial(self, mass: str) -> bool:
        """Tells whether a mass has one true value, which every estimate finds in all windows."""
        i = _find("mass", mass, self.mass_names)
        return len(self.points[mass].points) == 1 and bool((self.overall.value[i] == 1).all())

    def __str__(self) -> str:
        """Formats a table in percent, one block for each mass."""
        size = f"{self.n_events:,} events"
        if abs(self.n_effective - self.n_events) > 0.5:
            size += f" (weighted: equivalent to {self.n_effective:,.0f})"
        lines = [f"Efficiency [%]: |estimate − true mass| < window; {size}"]
        for i, mass in enumerate(self.mass_names):
            if self.is_trivial(mass):
                lines += ["", f"m({mass}) is the same in all events, and found in all of them."]
                continue
            heads = "".join(f"{f'{w:g} GeV':>14}" for w in self.windows)
            lines += ["", f"{f'm({mass})':<24}{heads}"]
            lines += [_row(label, *numbers) for label, *numbers in self._rows(i)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in plain numbers for JSON, windows as strings such as ``"10"``."""
        return {
            "n_events": self.n_events,
            "n_effective": self.n_effective,
            "efficiency": {
                mass: {name: _cells(self.windows, self.overall, (i, j)) for j, name in self._est()}
                for i, mass in enumerate(self.mass_names)
            },
            "no_skill": {mass: self._no_skill_dict(i) for i, mass in enumerate(self.mass_names)},
            "self_consistency": {
                mass: self._self_consistency_dict(i) for i, mass in enumerate(self.mass_names)
            },
            "points": {axis: self._points_dict(points) for axis, points in self.points.items()},
        }

    def _est(self) -> list[tuple[int, str]]:
        return list(enumerate(self.estimators))

    def _rows(self, i: int) -> list[tuple[str, Tensor, Tensor]]:
        value, error = self.overall.value[i], self.overall.error[i]
        rows = [(name, value[j], error[j]) for j, name in self._est()]
        rows.append(("no skill", self.no_skill.rates.value[i], self.no_skill.rates.error[i]))
        own = self.self_consistency
        if own is not None:
            rows.append(("self-check: predicted", own.predicted[i], own.predicted_error[i]))
            rows.append(("            attained", own.attained[i], own.attained_error[i]))
        return rows

    def _no_skill_dict(self, i: int) -> dict[str, dict[str, float]]:
        cells = _cells(self.windows, self.no_skill.rates, (i,))
        for cell, constant in zip(cells.values(), self.no_skill.constant[i], strict=True):
            cell["constant"] = float(constant)
        return cells

    def _self_consistency_dict(self, i: int) -> dict[str, dict[str, float | None]]:
        own = self.self_consistency
        if own is None:
            return {}
        return {
            f"{w:g}": {
                "predicted": float(own.predicted[i, k]),
                "predicted_error": plain_numbers(own.predicted_error[i, k]),
                "attained": float(own.attained[i, k]),
                "attained_error": plain_numbers(own.attained_error[i, k]),
                "difference_error": plain_numbers(own.difference_error[i, k]),
            }
            for k, w in enumerate(self.windows)
        }

    def _points_dict(self, points: PointRates) -> dict[str, Any]:
        edges = points.points.edges
        return {
            "value": points.points.value.tolist(),
            "edges": None if edges is None else edges.tolist(),
            "n_events": points.n_events.tolist(),
            "efficiency": {
                mass: {
                    name: {
                        f"{w:g}": _columns(points.rates, (i, j, k))
                        for k, w in enumerate(self.windows)
                    }
                    for j, name in self._est()
                }
                for i, mass in enumerate(self.mass_names)
            },
        }


def _find(kind: str, name: str, choices: tuple[str, ...] | list[str]) -> int:
    if name not in choices:
        raise unknown_name(kind, name, choices)
    return choices.index(name)


def _row(label: str, values: Tensor, errors: Tensor) -> str:
    cells = [f"{100 * v:.1f} ± {100 * e:.1f}" for v, e in zip(values, errors, strict=True)]
    return f"  {label:<22}" + "".join(f"{cell:>14}" for cell in cells)


def _cells(
    windows: tuple[float, ...], rates: Rates, row: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    numbers = zip(windows, rates.value[row], rates.error[row], strict=True)
    return {f"{w:g}": {"value": float(v), "error": float(e)} for w, v, e in numbers}


def _columns(rates: Rates, row: tuple[int, ...]) -> dict[str, list[float | None]]:
    return {
        name: plain_numbers(tensor[row])
        for name, tensor in (("value", rates.value), ("error", rates.error))
    }
