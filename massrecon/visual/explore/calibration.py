"""Calibration: where the truth lies in posteriors, before and after they are recalibrated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from massrecon.errors import InputError, unknown_name
from massrecon.inference.calibration import (
    CalibrationCurve,
    CalibrationReport,
    calibration_report,
)
from massrecon.inference.estimators import median
from massrecon.inference.posterior import Posterior
from massrecon.inference.recalibration import DEGREE, ConditionalPIT
from massrecon.inference.statistics import clusters
from massrecon.visual.calibration import coverage_curves, rank_histograms
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import SAMPLE, Tell, mass_draws
from massrecon.visual.template import plain

TESTS = {
    "central intervals of each mass": "central",
    "ranks of each mass": "ranks",
    "both masses together (TARP)": "tarp",
}
"""Tests by what a menu calls them."""

_LEVEL = 0.68
_FEWEST_POINTS = 8


def explore_calibration(
    model: str = SAMPLE,
    test: str = "central",
    sharpen: float = 1.0,
    recalibrated: bool = False,
    degree: int = DEGREE,
    n_samples: int = 64,
    events: str = SAMPLE,
    seed: int = 1,
    *,
    tell: Tell | None = None,
) -> Exploration:
    """Tests the mass posteriors of a model, and recalibrates them.

    The events are split by their mass points: the correction is fitted to one half and tested, as
    the posterior before it is, on the other. They should be spread as those of the training were.

    Args:
        model: Name of a model, folder of a trained one, or ``mixture`` for the kinematic mixture.
        test: ``central`` (coverage of central intervals), ``ranks`` or ``tarp``.
        sharpen: Factor by which all draws are drawn to their median, to break a good posterior:
            above one it becomes over-confident, below one timid.
        recalibrated: Whether to fit and show the correction.
        degree: Number of terms of the correction.
        n_samples: Number of draws for each event.
        events: Stored events, by name or folder.
        seed: Seed of the draws, the split and the tests.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or there are too few mass points.
    """
    if test not in TESTS.values():
        raise unknown_name("test", test, TESTS.values())
    if not 0.1 <= sharpen <= 10:
        raise InputError(f"'sharpen' should be from 0.1 to 10, got {sharpen}.")
    drawn = sharpened(mass_draws(model, events, n_samples, seed, tell), sharpen)
    to_fit, to_test = _halves(drawn, seed)
    posteriors = {"before": to_test}
    if recalibrated:
        correction = ConditionalPIT.fit(to_fit, degree, seed)
        posteriors["after"] = correction(to_test)
    reports = {name: calibration_report(own, seed) for name, own in posteriors.items()}
    symbols = dict(zip(reports["before"].mass_names, reports["before"].symbols, strict=True))
    data = {
        "model": model,
        "sharpen": sharpen,
        "n_fitted": len(to_fit),
        "n_tested": len(to_test),
        **{name: _numbers(report) for name, report in reports.items()},
    }
    panels = {
        f"Ranks of the truth, {name} recalibration": rank_histograms(report.ranks, symbols)
        for name, report in reports.items()
    }
    return Exploration(
        figure=coverage_curves(_curves(reports, test, symbols)),
        data=data,
        reading=_reading(data, symbols),
        panels=panels,
    )


def sharpened(posterior: Posterior, factor: float) -> Posterior:
    """Moves the draws of each mass towards their median, so that their spread falls by a factor."""
    if factor == 1:
        return posterior
    middle = torch.stack(
        [median(posterior.mass_samples(name)) for name in posterior.mass_names], dim=-1
    )
    samples = middle + (posterior.mass_samples() - middle) / factor
    return dataclasses.replace(posterior, samples=samples, mass_density=None)


def _halves(posterior: Posterior, seed: int) -> tuple[Posterior, Posterior]:
    """Splits events by mass points: those of one point fluctuate together."""
    n_points = len(posterior.true_masses().unique(dim=0))
    if n_points < _FEWEST_POINTS:
        raise InputError(
            f"'events' should have {_FEWEST_POINTS} mass points or more, got {n_points}: take "
            f"events from all over the plane, such as '{SAMPLE}'."
        )
    group = clusters(posterior.true_masses())
    n_groups = int(group.max()) + 1
    order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    fitted = (order < n_groups // 2)[group]
    return posterior[fitted], posterior[~fitted]


def _curves(
    reports: Mapping[str, CalibrationReport], test: str, symbols: Mapping[str, str]
) -> dict[str, CalibrationCurve]:
    found = {}
    for when, report in reports.items():
        if test == "tarp":
            found[f"both masses, {when}"] = report.tarp
            continue
        of_mass = report.central if test == "central" else report.rank_curves
        for name, curve in of_mass.items():
            found[f"<i>m</i>({symbols[name]}), {when}"] = curve
    return found


def _numbers(report: CalibrationReport) -> dict[str, Any]:
    masses = {}
    for name in report.mass_names:
        coverage, error = report.central[name].at(_LEVEL)
        ranks = report.ranks[name]
        masses[name] = {
            "coverage_of_68": coverage,
            "coverage_error": error,
            "central_p": report.central[name].p_value,
            "ranks_p": report.rank_curves[name].p_value,
            "slope": ranks.slope,
            "slope_error": ranks.slope_error,
            "variance": ranks.spread,
            "variance_error": ranks.spread_error,
        }
    return {"p_value": report.p_value, "tarp_p": report.tarp.p_value, "masses": masses}


def _reading(data: Mapping[str, Any], symbols: Mapping[str, str]) -> str:
    parts = []
    for when in ("before", "after"):
        if when not in data:
            continue
        rows = [
            f"m({plain(symbols[name])}) {100 * own['coverage_of_68']:.0f} ± "
            f"{100 * own['coverage_error']:.0f} %"
            for name, own in data[when]["masses"].items()
        ]
        p = data[when]["p_value"]
        verdict = "no deviation is seen" if p > 0.05 else "they are not calibrated"
        if when == "before":
            parts.append(f"68 % intervals hold the truth in {', '.join(rows)}")
        else:
            parts.append(f"after recalibration in {', '.join(rows)}")
        parts[-1] += f" (all tests together p = {p:.2g}: {verdict})"
    broken = ""
    if data["sharpen"] != 1:
        broken = f" The posteriors of {data['model']} were sharpened by {data['sharpen']:g}."
    return (
        f"{'; '.join(parts)}. {data['n_tested']:,} events tested, {data['n_fitted']:,} others for "
        f"the correction.{broken}"
    )
