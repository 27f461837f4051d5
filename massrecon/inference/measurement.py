"""A measurement: the posterior of the masses of many events, and what may be said of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from massrecon.errors import InputError, StoreError
from massrecon.inference.goodness import Goodness
from massrecon.inference.gridposterior import ESTIMATORS, Estimator, GridPosterior
from massrecon.inference.massgrid import MassAxes, step_of
from massrecon.inference.neyman import NeymanRegions
from massrecon.inference.refinement import resampled
from massrecon.kinematics.mixture_scheme import MassRegion
from massrecon.provenance import replacing_folder, write_json

LEVELS = (0.68, 0.95)
"""Probabilities of the regions and intervals that are quoted."""

_FINER = 4  # points in a step of the grid that show where a confidence region ends
_EDGE = 0.02  # part of a range that counts as its end
_MUCH_AT_EDGE = 0.05
_COARSE = 0.05
_FORMAT = "massrecon-measurement-1"
_TENSORS, _DESCRIPTION = "measurement.safetensors", "measurement.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class MassMeasurement:
    """The masses that N events agree on, with their uncertainty.

    Attributes:
        posterior: Joint posterior of the masses, on a grid.
        goodness: Whether the events fit together.
        n_events: Number of events.
        effective_events: (sum w)^2 / sum w^2 of their weights.
        prior: ``"flat"`` or ``"training"``.
        outliers: Share of events that were taken to tell nothing.
        source: What the densities came from.
        region: Where the masses may lie.
        grid_error: Relative difference of the norm on every other point of the grid.
        composition: Best value and ends of the 68 % interval of the share or the number of
            background events, by name; empty for signal alone.
        regions: Critical values of the likelihood ratio for such measurements, from pseudo-
            experiments; None where there are none.
        truth: True masses [GeV], shape ``(M,)``, where the events know them and agree.
        symbols: Symbols of the masses in HTML, by name, where the process is known.
        provenance: Where model and events come from.
    """

    posterior: GridPosterior
    goodness: Goodness
    n_events: int
    effective_events: float
    prior: str
    outliers: float
    source: str
    region: MassRegion
    grid_error: float
    composition: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    regions: NeymanRegions | None = None
    truth: Tensor | None = None
    symbols: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the M masses."""
        return self.posterior.names

    def __str__(self) -> str:
        intervals, best = self.interval(LEVELS[0]).tolist(), self.estimate().tolist()
        rows = [
            f"m({name}) = {m:.1f} (+{high - m:.1f} -{m - low:.1f}) GeV"
            for name, m, (low, high) in zip(self.names, best, intervals, strict=True)
        ]
        return f"{', '.join(rows)} at 68 %, from {self.n_events:,} events"

    def estimate(self, estimator: Estimator = "median", width: float = 30.0) -> Tensor:
        """Returns a point estimate [GeV], shape ``(M,)``: mode, mean, median or window."""
        return self.posterior.estimate(estimator, width)

    def interval(self, level: float = 0.68) -> Tensor:
        """Returns the shortest interval of each mass that holds `level`, ``(M, 2)`` [GeV]."""
        return self.posterior.interval(level)

    def contains(self, masses: Tensor, level: float = 0.68) -> bool:
        """Tells whether the joint region of `level` holds some masses ``(M,)`` [GeV]."""
        return bool(self.posterior.level_at(torch.as_tensor(masses).double()) <= level)

    def confidence_region(self, level: float = 0.68, finer: int = 1) -> tuple[MassAxes, Tensor]:
        """Finds the masses that pseudo-experiments do not exclude (Neyman's construction).

        Unlike the region of highest density it holds the true masses in `level` of all
        measurements, wherever they are, even if the densities of single events are wrong.

        Args:
            level: Content, one of `LEVELS` unless the critical values were found for others.
            finer: Points in a step of the posterior's grid.

        Returns:
            Mass axes [GeV], and which of their points are in the region, shape ``(G,)``.

        Raises:
            InputError: If there are no critical values, or not for this level.
        """
        grid, excess = self.confidence_excess(level, finer)
        return grid, excess <= 0

    def confidence_excess(self, level: float = 0.68, finer: int = 1) -> tuple[MassAxes, Tensor]:
        """Computes how far the likelihood ratio lambda is above its critical value, ``(G,)``.

        Arguments and errors are those of `confidence_region`, which is where it is not above zero.
        """
        known, number = self._critical_of(level)
        axes = {name: _finer_axis(axis, finer) for name, axis in self.posterior.axes.items()}
        grid = MassAxes(axes)
        log_prob = resampled(self.posterior.log_prob, self.posterior.axes, axes)
        statistic = 2 * (self._highest() - log_prob)
        return grid, statistic - known.critical(grid.points, self.n_events)[number]

    def confidence_ranges(self, level: float = 0.68) -> Tensor:
        """Returns the ends of `confidence_region` along each mass [GeV], shape ``(M, 2)``.

        The true masses lie between all of them at once at least as often as `level`.
        """
        grid, excess = self.confidence_excess(level, _FINER if len(self.names) < 3 else 1)
        # the best point is always inside
        held = grid.points[excess <= excess.min().clamp_min(0)]
        half = torch.tensor([step_of(axis) / 2 for axis in grid.axes.values()]).to(held)
        return torch.stack([held.amin(0) - half, held.amax(0) + half], dim=-1)

    def in_confidence_region(self, masses: Tensor, level: float = 0.68) -> bool:
        """Tells whether `confidence_region` holds some masses ``(M,)`` [GeV]."""
        known, number = self._critical_of(level)
        masses = torch.as_tensor(masses).double()
        statistic = 2 * (self._highest() - self.posterior.log_prob_at(masses))
        return bool(statistic <= known.critical(masses.reshape(1, -1), self.n_events)[number, 0])

    def _highest(self) -> Tensor:
        """Returns log p at its maximum, between grid points."""
        at_mode = self.posterior.log_prob_at(self.posterior.mode())
        return torch.maximum(self.posterior.log_prob.amax(), at_mode)

    def _critical_of(self, level: float) -> tuple[NeymanRegions, int]:
        if self.regions is None:
            raise InputError(
                "There are no critical values for this measurement: find them for the model with "
                "massrecon.inference.construction.neyman_regions, and pass 'regions' to measure."
            )
        if level not in self.regions.levels:
            known = ", ".join(f"{value:g}" for value in self.regions.levels)
            raise InputError(f"'level' should be one of {known} in a confidence region.")
        return self.regions, self.regions.levels.index(level)

    @property
    def notes(self) -> list[str]:
        """What a reader has to know before using the numbers, one sentence each."""
        found = [
            f"{share:.0%} of the probability is at the {end} end of the training range of {name} "
            f"({value:g} GeV): the true mass may lie beyond."
            for name, end, value, share in _at_edges(self.posterior, self.region)
        ]
        p = self.goodness.halves_p
        if p is not None and p < 0.01:
            found.append(f"The two halves of the events disagree (p = {p:.2g}).")
        for name, z in self.goodness.sharpness.items():
            if z > 3:
                found.append(f"Densities are too sharp in {name} (z = {z:.1f}): recalibrate.")
        if self.grid_error > _COARSE:
            found.append(f"The grid resolves the posterior to {self.grid_error:.1%} only.")
        if self.source.startswith("Gaussian kernels"):
            found.append("The densities were estimated from draws.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain data: masses in GeV by name."""
        masses: dict[str, Any] = {}
        for i, name in enumerate(self.names):
            own = {kind: float(self.estimate(kind)[i]) for kind in ESTIMATORS}
            own |= {f"{level:g}": self.interval(level)[i].tolist() for level in LEVELS}
            masses[name] = own
        found = {
            "masses": masses,
            "correlation": self.posterior.correlation().tolist(),
            "region_volume": {f"{level:g}": float(self.posterior.area(level)) for level in LEVELS},
            "n_events": self.n_events,
            "effective_events": self.effective_events,
            "prior": self.prior,
            "outliers": self.outliers,
            "source": self.source,
            "grid_error": self.grid_error,
            "goodness": self.goodness.to_dict(),
            "composition": {name: list(found) for name, found in self.composition.items()},
            "notes": self.notes,
        }
        if self.regions is not None:
            found["confidence_regions"] = {
                f"{level:g}": dict(
                    zip(self.names, self.confidence_ranges(level).tolist(), strict=True)
                )
                for level in self.regions.levels
            }
        if self.truth is not None:
            found["truth"] = dict(zip(self.names, self.truth.tolist(), strict=True))
            found["level_of_truth"] = float(self.posterior.level_at(self.truth))
        return found

    def save(self, path: str | Path) -> None:
        """Writes the measurement to a folder, whole or not at all; read it with `load`."""
        tensors = {f"axis_{i}": axis for i, axis in enumerate(self.posterior.axes.values())}
        tensors |= {"log_prob": self.posterior.log_prob, "evidence": self.goodness.evidence}
        if self.truth is not None:
            tensors["truth"] = self.truth
        region = {"low": self.region.low, "high": self.region.high, "gaps": self.region.gaps}
        description = {
            "format": _FORMAT,
            "names": list(self.names),
            "region": region,
            "symbols": dict(self.symbols),
            "results": self.to_dict(),
            "neyman": None if self.regions is None else self.regions.to_dict(),
            "provenance": dict(self.provenance),
        }
        with replacing_folder(path) as folder:
            kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(kept, folder / _TENSORS)
            write_json(folder / _DESCRIPTION, description)

    @classmethod
    def load(cls, path: str | Path) -> MassMeasurement:
        """Reads a measurement that `save` wrote.

        Raises:
            StoreError: If the folder is missing, foreign or damaged.
        """
        folder = Path(path)
        try:
            content = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise StoreError(f"'{folder}' does not hold a measurement of this massrecon.")
            return cls._rebuilt(content, load_file(folder / _TENSORS))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise StoreError(f"'{folder}' does not hold a whole measurement: {error}") from error

    @classmethod
    def _rebuilt(cls, content: Mapping[str, Any], tensors: dict[str, Tensor]) -> MassMeasurement:
        axes = {name: tensors[f"axis_{i}"] for i, name in enumerate(content["names"])}
        own, region = content["results"], content["region"]
        fit = own["goodness"]
        gaps = tuple((tuple(row), minimum) for row, minimum in region["gaps"])
        critical = content.get("neyman")
        return cls(
            posterior=GridPosterior(axes, tensors["log_prob"]),
            goodness=Goodness(
                halves=fit["halves"],
                halves_p=fit["halves_p"],
                sharpness=fit["sharpness"],
                ratio=fit["ratio"],
                evidence=tensors["evidence"],
            ),
            n_events=own["n_events"],
            effective_events=own["effective_events"],
            prior=own["prior"],
            outliers=own["outliers"],
            source=own["source"],
            region=MassRegion(tuple(region["low"]), tuple(region["high"]), gaps),
            grid_error=own["grid_error"],
            composition={k: tuple(v) for k, v in own.get("composition", {}).items()},
            regions=None if critical is None else NeymanRegions.from_dict(critical),
            truth=tensors.get("truth"),
            symbols=content["symbols"],
            provenance=content["provenance"],
        )


def _finer_axis(axis: Tensor, finer: int) -> Tensor:
    """Puts `finer` points into each cell of an axis."""
    step = step_of(axis) / finer
    return axis[0] - step_of(axis) / 2 + step * (torch.arange(finer * len(axis)).to(axis) + 0.5)


def _at_edges(posterior: GridPosterior, region: MassRegion) -> list[tuple[str, str, float, float]]:
    """Lists the ends of the training range that hold much probability."""
    found = []
    for i, (name, axis) in enumerate(posterior.axes.items()):
        density = posterior.marginal(name) * float(axis[1] - axis[0])
        low, high = region.low[i], region.high[i]
        room = _EDGE * (high - low)
        for end, value, near in (
            ("lower", low, axis < low + room),
            ("upper", high, axis > high - room),
        ):
            share = float(density[near].sum())
            if share > _MUCH_AT_EDGE:
                found.append((name, end, value, share))
    return found
