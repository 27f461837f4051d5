"""DeeLeMa: masses and invisible momenta from a decay topology and unlabelled events."""

from __future__ import annotations

from massrecon.models.deelema.anchor import Edge, measure_edges
from massrecon.models.deelema.config import PRESETS, DeeLeMaConfig
from massrecon.models.deelema.model import DeeLeMa, Prediction
from massrecon.models.deelema.scan import TrialMassScan, scan_trial_mass
from massrecon.models.deelema.structure import Structure

__all__ = [
    "PRESETS",
    "DeeLeMa",
    "DeeLeMaConfig",
    "Edge",
    "Prediction",
    "Structure",
    "TrialMassScan",
    "measure_edges",
    "scan_trial_mass",
]
