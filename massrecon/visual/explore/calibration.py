"""Calibration: where the truth lies in posteriors, before and after they are recalibrated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.container import Events
from massrecon.inference.calibration import (
    CalibrationCurve,
    CalibrationReport,
    calibration_report,
)
from massrecon.inference.estimators import median
from massrecon.inference.likelihood import MassLikelihood
from massrecon.inference.posterior import Posterior, mass_targets
from massrecon.inference.recalibration import DEGREE, ConditionalPIT, Temperature
from massrecon.inference.statistics import clusters
from massrecon.visual.calibration import coverage_curves, rank_histograms
from massrecon.visual.explore.exploration import Exploration, Later
from massrecon.visual.explore.sources import SAMPLE, Tell, mass_draws, mass_table
from massrecon.visual.template import plain

TESTS = {
    "central intervals of each mass": "central",
    "ranks of each mass": "ranks",
    "both masses together (TARP)": "tarp",
}
"""Tests by what a menu calls them."""

METHODS = {
    "bending of each mass (draws)": "bending",
    "temperature (joint density)": "temperature",
}
"""Corrections by what a menu calls them."""

_LEVEL = 0.68
_FEWEST_POINTS = 8


def explore_calibration(
    model: str = SAMPLE,
    test: str = "central",
    sharpen: float = 1.0,
    recalibrated: bool = False,
    method: str = "bending",
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
    See `massrecon.inference.recalibration` for the corrections. That of the temperature starts from
    the joint density on a grid, and what is tested are draws from it; to sharpen it by a factor is
    to raise its likelihoods to the square of it, which makes a normal distribution so much narrower
    and leaves those that end at an edge of the prior wider.

    Args:
        model: Name of a model, folder of a trained one, or ``mixture`` for the kinematic mixture.
        test: ``central`` (coverage of central intervals), ``ranks`` or ``tarp``.
        sharpen: Factor by which all draws are drawn to their median, to break a good posterior:
            above one it becomes over-confident, below one timid.
        recalibrated: Whether to fit and show the correction.
        method: ``bending`` (`ConditionalPIT`) or ``temperature`` (`Temperature`).
        degree: Number of terms of the bending.
        n_samples: Number of draws for each event.
        events: Stored events, by name or folder.
        seed: Seed of the draws, the split and the tests.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or there are too few mass points.
    """
    _check(test, method, sharpen)
    if method == "temperature":
        made = _tempered(model, events, sharpen, recalibrated, n_samples, seed, tell)
    else:
        made = _bent(model, events, sharpen, recalibrated, degree, n_samples, seed, tell)
    reports = {name: calibration_report(own, seed) for name, own in made.posteriors.items()}
    symbols = dict(zip(reports["before"].mass_names, reports["before"].symbols, strict=True))
    data = {"model": model, "sharpen": sharpen, "method": method, **_results(made, reports)}
    ranks = {
        f"Ranks of the truth, {name} recalibration": partial(rank_histograms, own.ranks, symbols)
        for name, own in reports.items()
    }
    figure = coverage_curves(_curves(reports, test, symbols))
    reading = _reading(data, symbols)
    return Exploration(figure=figure, data=data, reading=reading, panels=Later(ranks))


def _check(test: str, method: str, sharpen: float) -> None:
    if test not in TESTS.values():
        raise unknown_name("test", test, TESTS.values())
    if method not in METHODS.values():
        raise unknown_name("method", method, METHODS.values())
    if not 0.1 <= sharpen <= 10:
        raise InputError(f"'sharpen' should be from 0.1 to 10, got {sharpen}.")


def sharpened(posterior: Posterior, factor: float) -> Posterior:
    """Moves the draws of each mass towards their median, so that their spread falls by a factor."""
    if factor == 1:
        return posterior
    middle = torch.stack(
        [median(posterior.mass_samples(name)) for name in posterior.mass_names], dim=-1
    )
    samples = middle + (posterior.mass_samples() - middle) / factor
    return dataclasses.replace(posterior, samples=samples, mass_density=None)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """Posteriors before and, if asked for, after a correction, of the events that are tested."""

    posteriors: dict[str, Posterior]
    n_fitted: int
    temperature: tuple[float, float] | None = None


def _bent(
    model: str,
    events: str,
    sharpen: float,
    recalibrated: bool,
    degree: int,
    n_samples: int,
    seed: int,
    tell: Tell | None,
) -> _Made:
    """Bends the draws of each mass."""
    drawn = sharpened(mass_draws(model, events, n_samples, seed, tell), sharpen)
    fitted = _to_fit(drawn.true_masses(), seed)
    posteriors = {"before": drawn[~fitted]}
    if recalibrated:
        correction = ConditionalPIT.fit(drawn[fitted], degree, seed)
        posteriors["after"] = correction(posteriors["before"])
    return _Made(posteriors=posteriors, n_fitted=int(fitted.sum()))


def _tempered(
    model: str,
    events: str,
    sharpen: float,
    recalibrated: bool,
    n_samples: int,
    seed: int,
    tell: Tell | None,
) -> _Made:
    """Raises the likelihoods of all masses to a power."""
    table = mass_table(model, events)
    likelihood = table.likelihood(range(len(table.events)), tell)
    if sharpen != 1:
        powers = likelihood.log_ratio * sharpen**2
        likelihood = dataclasses.replace(likelihood, log_ratio=powers)
    sample, found = table.events, None
    if sample.masses is None:
        raise InputError("'events' should carry true masses: take simulated ones.")
    columns = [sample.card.mass_names.index(name) for name in likelihood.names]
    truth = sample.masses.double().cpu()[:, columns]
    fitted = _to_fit(truth, seed)

    def drawn(own: MassLikelihood) -> Posterior:
        return grid_draws(own, sample[~fitted], n_samples, seed)

    posteriors = {"before": drawn(likelihood[~fitted])}
    if recalibrated:
        found = Temperature.fit(likelihood[fitted], truth[fitted])
        posteriors["after"] = drawn(likelihood[~fitted].calibrated(found))
    return _Made(
        posteriors=posteriors,
        n_fitted=int(fitted.sum()),
        temperature=None if found is None else (found.value, found.error),
    )


def _to_fit(truth: Tensor, seed: int) -> Tensor:
    """Chooses half of the mass points, shape ``(N,)``: events of one point fluctuate together."""
    n_points = len(truth.unique(dim=0))
    if n_points < _FEWEST_POINTS:
        raise InputError(
            f"'events' should have {_FEWEST_POINTS} mass points or more, got {n_points}: take "
            f"events from all over the plane, such as '{SAMPLE}'."
        )
    group = clusters(truth)
    n_groups = int(group.max()) + 1
    order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    return (order < n_groups // 2)[group]


def grid_draws(likelihood: MassLikelihood, events: Events, n_samples: int, seed: int) -> Posterior:
    """Draws masses from posteriors on a grid, evenly within its cells.

    The same seed draws at the same probabilities, so that two likelihoods can be compared.

    Args:
        likelihood: Likelihoods of N events; the training prior makes posteriors of them.
        events: The events, for their truth and card.
        n_samples: Number of draws S for each event.
        seed: Seed of the draws.

    Returns:
        A posterior of the masses on the grid alone.
    """
    log_prior = likelihood.prior.log_density(likelihood.points)
    log_density = (likelihood.log_ratio + log_prior).masked_fill(~likelihood.inside, -math.inf)
    below = log_density.double().softmax(1).cumsum(1)
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(n_samples, len(below), generator=generator, dtype=torch.float64)
    cell = torch.searchsorted(below, (level.T * below[:, -1:]).contiguous())
    masses = likelihood.points.double()[cell.clamp(max=below.shape[1] - 1).T]
    steps = masses.new_tensor([float(axis[1] - axis[0]) for axis in likelihood.axes.values()])
    apart = torch.rand(masses.shape, generator=generator, dtype=torch.float64) - 0.5
    card = events.card
    spread = (masses + steps * apart).unbind(-1)
    drawn = dict(zip(likelihood.names, spread, strict=True))
    for i, name in enumerate(card.mass_names):  # those that do not vary
        if name not in drawn and events.masses is not None:
            drawn[name] = events.masses[:, i].double().cpu().expand(n_samples, -1)
    return Posterior(
        samples=torch.stack([drawn[name] for name in card.mass_names], dim=-1),
        card=card,
        names=tuple(mass_targets(card, card.target_names)),
        masses=None if events.masses is None else events.masses.cpu(),
        weight=events.weight.cpu(),
        provenance={"seed": seed},
    )


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


def _results(made: _Made, reports: Mapping[str, CalibrationReport]) -> dict[str, Any]:
    return {
        "n_fitted": made.n_fitted,
        "n_tested": len(made.posteriors["before"]),
        "temperature": made.temperature,
        **{name: _numbers(report) for name, report in reports.items()},
    }


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
    if data["temperature"] is not None:
        value, error = data["temperature"]
        parts[-1] += f", with a temperature of {value:.2f} ± {error:.2f}"
    broken = ""
    if data["sharpen"] != 1:
        broken = f" The posteriors of {data['model']} were sharpened by {data['sharpen']:g}."
    return (
        f"{'; '.join(parts)}. {data['n_tested']:,} events tested, {data['n_fitted']:,} others for "
        f"the correction.{broken}"
    )
