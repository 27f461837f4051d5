"""The kinematic mixture of `massrecon.kinematics.mixture` for process cards and their events.

`building` makes one from a card, `files` keeps its parameters and those that come with massrecon,
`reading` fits it and computes posteriors in closed form. Models read its hypotheses, and
`massrecon.inference.mixture` draws from it as from a trained model.
"""

from massrecon.models.mixture.building import legs_of, load_mixture, mixture_for, mixture_from
from massrecon.models.mixture.files import mixture_content, save_mixture, shipped_mixtures
from massrecon.models.mixture.reading import (
    detected,
    fit_mixture,
    mass_posterior,
    mixture_summaries,
    unknown_masses,
)

__all__ = [
    "detected",
    "fit_mixture",
    "legs_of",
    "load_mixture",
    "mass_posterior",
    "mixture_content",
    "mixture_for",
    "mixture_from",
    "mixture_summaries",
    "save_mixture",
    "shipped_mixtures",
    "unknown_masses",
]
