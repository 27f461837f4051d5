"""All figures: pure functions from results to plotly figures, each with a one-line caption.

A figure's caption is in ``figure.layout.meta["caption"]``. Figures hold binned numbers, never raw
draws, so that notebooks and reports with them stay small.
"""

from __future__ import annotations

from massrecon.visual.calibration import (
    coverage_curves,
    coverage_maps,
    impacts_and_pulls,
    rank_histograms,
    region_coverage,
)
from massrecon.visual.classical import (
    estimates_compared,
    kink,
    momentum_correlations,
    trial_mass_explorer,
    variable_distributions,
)
from massrecon.visual.collisions import event_overview, mass_coverage
from massrecon.visual.comparison import (
    agreement_compared,
    coverage_compared,
    efficiencies_compared,
)
from massrecon.visual.distributions import truth_against_generated
from massrecon.visual.mass_plane import efficiency_maps
from massrecon.visual.measurement import (
    growing_region,
    mass_marginals,
    mass_region,
    measurement_pulls,
    resolution_figure,
)
from massrecon.visual.performance import (
    efficiency_by_model,
    efficiency_curve,
    self_consistency,
)
from massrecon.visual.predictions import predicted_against_true
from massrecon.visual.reach import reach_over_plane
from massrecon.visual.response import (
    JET_REGIONS,
    jet_performance,
    multiplicities,
    object_performance,
    ptmiss_performance,
)
from massrecon.visual.scan import scan_curve, scan_map
from massrecon.visual.single_events import event_posteriors
from massrecon.visual.surrogate import surrogate_against_simulation
from massrecon.visual.training import training_curve
from massrecon.visual.unfolding import bias_by_iteration, unfolded_distributions

__all__ = [
    "JET_REGIONS",
    "agreement_compared",
    "bias_by_iteration",
    "coverage_compared",
    "coverage_curves",
    "coverage_maps",
    "efficiencies_compared",
    "efficiency_by_model",
    "efficiency_curve",
    "efficiency_maps",
    "estimates_compared",
    "event_overview",
    "event_posteriors",
    "growing_region",
    "impacts_and_pulls",
    "jet_performance",
    "kink",
    "mass_coverage",
    "mass_marginals",
    "mass_region",
    "measurement_pulls",
    "momentum_correlations",
    "multiplicities",
    "object_performance",
    "predicted_against_true",
    "ptmiss_performance",
    "rank_histograms",
    "reach_over_plane",
    "region_coverage",
    "resolution_figure",
    "scan_curve",
    "scan_map",
    "self_consistency",
    "surrogate_against_simulation",
    "training_curve",
    "trial_mass_explorer",
    "truth_against_generated",
    "unfolded_distributions",
    "variable_distributions",
]
