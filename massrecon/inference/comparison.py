"""Posteriors of the same events from several models, judged by the same measures.

Three questions are asked of each: how often is it right, does it know how often, and do its draws
follow the distributions of the truth?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.inference.diagnostics import efficiency
from massrecon.inference.posterior import Posterior
from massrecon.inference.statistics import clusters, mean_with_error
from massrecon.inference.tables import EfficiencyTable
from massrecon.inference.twosample import (
    Agreement,
    ChiSquare,
    ClassifierTest,
    agreement,
    c2st,
    paired_agreement,
)

LEVELS = (0.68, 0.95)
"""Probabilities of the intervals whose coverage is measured."""

# a target that spreads less, relative to its size, is fixed but for a natural width
_FIXED = 0.01


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often central intervals of a mass hold the truth.

    Attributes:
        levels: The probabilities that the posterior gives them.
        attained: Fraction of events with the truth inside, one for each level.
        error: Its standard error, from groups of events that share a mass point.
    """

    levels: tuple[float, ...]
    attained: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TargetAgreement:
    """How well draws of one target follow its true distribution.

    Attributes:
        paired: χ² of draws and truth of the same events; one per degree of freedom if calibrated.
            None where there are too few mass points.
        sample: One draw for each event against the truth, as two samples.
    """

    paired: ChiSquare | None
    sample: Agreement


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the measures say about one posterior.

    Attributes:
        efficiency: Efficiencies with errors, no-skill line and the posterior's own prediction.
        coverage: Coverage by name of the mass, of the masses that vary.
        targets: Agreement by name of the target, of the targets that vary.
        momenta: Whether a classifier tells one draw for each event from the truth, by all momentum
            components together; None where the posterior has none.
    """

    efficiency: EfficiencyTable
    coverage: Mapping[str, Coverage]
    targets: Mapping[str, TargetAgreement]
    momenta: ClassifierTest | None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON-able values."""
        return {
            **self.efficiency.to_dict(),
            "coverage": {
                name: {
                    f"{level:g}": {"value": value, "error": error}
                    for level, value, error in zip(c.levels, c.attained, c.error, strict=True)
                }
                for name, c in self.coverage.items()
            },
            "agreement": {name: _numbers(found) for name, found in self.targets.items()},
            "c2st_momenta": None
            if self.momenta is None
            else {"value": self.momenta.accuracy, "error": self.momenta.error},
        }


def judge(
    posterior: Posterior,
    windows: Sequence[float] = (10, 20, 30, 50),
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> Judgement:
    """Judges a posterior of events with truth.

    Args:
        posterior: A posterior with truth and at least two draws for each event.
        windows: Half-widths of the efficiencies [GeV].
        levels: Probabilities of the intervals whose coverage is measured.
        seed: Seed of the classifier.

    Raises:
        InputError: If there is no truth, or only one draw for each event.
    """
    if posterior.n_draws < 2:
        raise InputError("Judging a posterior needs at least two draws for each event, got one.")
    group = clusters(posterior.true_masses())
    return Judgement(
        efficiency=efficiency(posterior, windows=windows),
        coverage={
            name: coverage(posterior, name, levels)
            for name in posterior.mass_names
            if posterior.varies(name)
        },
        targets={
            name: _target_agreement(posterior, name, group)
            for name in posterior.target_names
            if _spreads(posterior.true_target(name))
        },
        momenta=_momenta_test(posterior, seed),
    )


def coverage(posterior: Posterior, mass: str, levels: Sequence[float] = LEVELS) -> Coverage:
    """Measures how often central intervals of a mass hold the truth.

    Args:
        posterior: A posterior with truth.
        mass: Name of the mass.
        levels: Probabilities of the intervals.

    Raises:
        InputError: If there is no truth, the mass is unknown, or a level is not in (0, 1).
    """
    i = posterior.mass_index(mass)
    truth = posterior.true_masses()
    group = clusters(truth)
    inside = []
    for level in levels:
        low, high = posterior.interval(level)[:, i].unbind(-1)
        inside.append(((truth[:, i] >= low) & (truth[:, i] <= high)).double())
    value, error = mean_with_error(torch.stack(inside), posterior.weights, group)
    return Coverage(
        levels=tuple(levels), attained=tuple(value.tolist()), error=tuple(error.tolist())
    )


def comparison_table(judgements: Mapping[str, Judgement], mass: str, window: float) -> str:
    """Formats efficiencies and coverage of several models as text, in percent with errors.

    The last column is how often intervals of the first level that was judged hold the truth.

    Args:
        judgements: What the measures say, by the name of the model.
        mass: A mass that varies.
        window: Half-width of the window [GeV].

    Raises:
        InputError: If mass or window are unknown.
    """
    levels = [found.coverage[mass].levels[0] for found in judgements.values()]
    interval = f"{100 * levels[0]:.0f} % int." if len(set(levels)) == 1 else "interval"
    columns = ("draw", "median", "window", "predicted", interval)
    rows = [f"{mass} within {window:g} GeV".ljust(24) + "".join(f"{c:>14s}" for c in columns)]
    for name, found in judgements.items():
        table, covered = found.efficiency, found.coverage[mass]
        cells = [table.at(mass, estimator, window) for estimator in columns[:3]]
        cells.append(predicted_efficiency(table, mass, window))
        cells.append((covered.attained[0], covered.error[0]))
        shown = (f"{100 * value:6.1f} ± {100 * error:4.1f}" for value, error in cells)
        rows.append(name.ljust(24) + "".join(f"{cell:>14s}" for cell in shown))
    return "\n".join(rows)


def agreement_table(
    judgements: Mapping[str, Judgement],
    mass: str,
    minutes: Mapping[str, float],
    draws_per_second: Mapping[str, float],
) -> str:
    """Formats how draws of a mass agree with its truth, and what each model costs, as text.

    The columns are χ² per degree of freedom of draws and truth of the same events, the Wasserstein
    distance of one draw for each event from the truth and what it would be between samples of the
    same distribution, the accuracy of a classifier on momenta, and the time.

    Args:
        judgements: What the measures say, by the name of the model.
        mass: A mass that varies and is a target of every model.
        minutes: Training time of each model [min].
        draws_per_second: Speed of each model.

    Raises:
        InputError: If the mass is no target of a model.
    """
    columns = ("χ²/dof", "Wasserstein", "noise", "C2ST momenta", "minutes", "draws/s")
    rows = [f"{mass}, [GeV]".ljust(24) + "".join(f"{c:>14s}" for c in columns)]
    for name, found in judgements.items():
        if (target := found.targets.get(f"{mass}_m")) is None:
            raise unknown_name(f"target of '{name}'", f"{mass}_m", found.targets)
        test = found.momenta
        cells = (
            "-" if target.paired is None else f"{target.paired.per_dof:.2f}",
            f"{target.sample.wasserstein:.1f}",
            f"{target.sample.wasserstein_noise:.1f}",
            "-" if test is None else f"{test.accuracy:.3f} ± {test.error:.3f}",
            f"{minutes[name]:.1f}",
            f"{draws_per_second[name]:,.0f}",
        )
        rows.append(name.ljust(24) + "".join(f"{cell:>14s}" for cell in cells))
    return "\n".join(rows)


def predicted_efficiency(table: EfficiencyTable, mass: str, window: float) -> tuple[float, float]:
    """Returns the efficiency that a posterior predicts for its window estimate, and its error.

    Raises:
        InputError: If mass or window are unknown, or the posterior has a single draw.
    """
    if table.self_consistency is None:
        raise InputError("A predicted efficiency needs at least two draws for each event.")
    i, _, w = table.position(mass, table.estimators[0], window)
    own = table.self_consistency
    return float(own.predicted[i, w]), float(own.predicted_error[i, w])


def _target_agreement(posterior: Posterior, name: str, group: Tensor) -> TargetAgreement:
    truth, draws, weight = posterior.true_target(name), posterior.target(name), posterior.weights
    return TargetAgreement(
        paired=paired_agreement(truth, draws, weight, group),
        sample=agreement(truth, draws[0], truth_weight=weight, generated_weight=weight),
    )


def _spreads(truth: Tensor) -> bool:
    return bool(truth.max() - truth.min() > _FIXED * truth.abs().max())


def _momenta_test(posterior: Posterior, seed: int) -> ClassifierTest | None:
    names = [name for name in posterior.target_names if not name.endswith("_m")]
    if not names:
        return None
    truth = torch.stack([posterior.true_target(name) for name in names], dim=-1)
    draws = torch.stack([posterior.target(name)[0] for name in names], dim=-1)
    return c2st(truth, draws, seed=seed)


def _numbers(found: TargetAgreement) -> dict[str, float | None]:
    paired, sample = found.paired, found.sample
    return {
        "chi_square_per_dof": None if paired is None else paired.per_dof,
        "p_value": None if paired is None else paired.p_value,
        "wasserstein": sample.wasserstein,
        "wasserstein_noise": sample.wasserstein_noise,
    }
