"""All figures: pure functions from results to plotly figures, each with a one-line caption.

A figure's caption is in ``figure.layout.meta["caption"]``. Figures hold binned numbers, never raw
draws, so that notebooks and reports with them stay small.
"""

from __future__ import annotations

from massrecon.visual.collisions import event_overview, mass_coverage
from massrecon.visual.distributions import truth_against_generated
from massrecon.visual.performance import efficiency_curve, self_consistency
from massrecon.visual.predictions import predicted_against_true
from massrecon.visual.single_events import event_posteriors
from massrecon.visual.training import training_curve

__all__ = [
    "efficiency_curve",
    "event_overview",
    "event_posteriors",
    "mass_coverage",
    "predicted_against_true",
    "self_consistency",
    "training_curve",
    "truth_against_generated",
]
