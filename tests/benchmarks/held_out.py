"""Calibration of the posterior of held-out events, before and after it is recalibrated."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference import sbc
from massrecon.inference.calibration import (
    CalibrationReport,
    calibration_curve,
    calibration_report,
)
from massrecon.inference.griddensity import at_points
from massrecon.inference.likelihood import MassLikelihood, mass_likelihood
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.recalibration import ConditionalPIT, Temperature
from massrecon.inference.statistics import clusters, group_sums
from massrecon.models.base import MassModel

STEP = 5.0
"""Distance of grid points [GeV]: many a peak is narrower than the 10 GeV of a measurement's first
grid."""


def held_out_calibration(
    model: MassModel, prior: TrainingPrior, held_out: Events, draws: int
) -> dict[str, Any]:
    """Tests the posterior of held-out events before and after it is recalibrated on one half."""
    parts = [
        mass_likelihood(model, held_out[i : i + 2000], step=STEP, prior=prior)
        for i in range(0, len(held_out), 2000)
    ]
    table = torch.cat([part.log_ratio.float() for part in parts])
    likelihood = dataclasses.replace(parts[0], log_ratio=table)
    truth = held_out.masses
    assert truth is not None
    group = truth.unique(dim=0, return_inverse=True)[1]
    half = torch.randperm(int(group.max()) + 1, generator=torch.Generator().manual_seed(3)) % 2
    first, second = (half[group] == 0).nonzero()[:, 0], (half[group] == 1).nonzero()[:, 0]
    temperature = Temperature.fit(likelihood[first], truth[first])
    # steps only concern the momenta, which are not judged here
    posterior = mr.reconstruct(model, held_out, n_samples=draws, steps=1, seed=3)
    bending = ConditionalPIT.fit(posterior[first])
    cooled = likelihood[second].calibrated(temperature)
    masses = truth[second]
    before, after = posterior[second], bending(posterior[second])
    return {
        "n_fit": len(first), "n_test": len(second), "draws": draws,
        "temperature": {"value": temperature.value, "error": temperature.error},
        "joint_density": {
            "before": joint(likelihood[second], masses), "after_temperature": joint(cooled, masses),
        },
        "marginals": {
            "before": account_of(calibration_report(before)),
            "after_bending": account_of(calibration_report(after)),
        },
        "log_score": {
            "before": scored(likelihood[second], masses),
            "after_temperature": scored(cooled, masses),
        },
    }  # fmt: skip


def joint(likelihood: MassLikelihood, masses: Tensor) -> dict[str, Any]:
    """Measures the expected coverage of regions of highest posterior density."""
    log_p = likelihood.log_ratio + likelihood.prior.log_density(likelihood.points)
    at_truth = at_points(list(likelihood.axes.values()), log_p, masses)
    values = sbc.density_values(log_p[:, likelihood.inside], at_truth)
    curve = calibration_curve(values, clusters(masses))
    shares = {str(c): [round(x, 4) for x in curve.at(c)] for c in (0.38, 0.5, 0.68, 0.9, 0.95)}
    return {"p_value": curve.p_value, "coverage_and_error": shares}


def scored(likelihood: MassLikelihood, masses: Tensor) -> dict[str, float]:
    """Averages log r at the truth: the larger the better."""
    found = at_points(list(likelihood.axes.values()), likelihood.log_ratio, masses).clamp_min(-20)
    group = clusters(masses)
    error = group_sums(found - found.mean(), group).square().sum().sqrt() / len(found)
    return {"mean": float(found.mean()), "error": float(error)}


def account_of(report: CalibrationReport) -> dict[str, Any]:
    """Returns what a table needs of a report."""
    account: dict[str, Any] = {"tarp_p_value": report.tarp.p_value}
    for mass in report.mass_names:
        curve, histogram = report.central[mass], report.ranks[mass]
        account[mass] = {
            "rank_p_value": report.rank_curves[mass].p_value,
            "central_p_value": curve.p_value,
            "central_68": [round(x, 4) for x in curve.at(0.68)],
            "central_95": [round(x, 4) for x in curve.at(0.95)],
            "slope": [histogram.slope, histogram.slope_error],
            "spread": [histogram.spread, histogram.spread_error],
        }
    return account
