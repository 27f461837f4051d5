"""Events in the hands of a kinematic mixture: fitting, posteriors in closed form, summaries."""

from __future__ import annotations

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents
from massrecon.kinematics.mixture_fit import MixtureFit, Report, fit_parameters
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.models.mixture.building import Masses, mixture_for


def detected(events: Events) -> DetectedEvents:
    """Hands what the detector saw of events to the mixture, on the processor."""
    return DetectedEvents(
        events.p4.double().cpu(), events.present.cpu(), events.card.slot_kinds, events.ptmiss.cpu()
    )


def fit_mixture(
    events: Events,
    masses: Masses | None = None,
    *,
    start: KinematicMixture | None = None,
    validation: Events | None = None,
    fit: MixtureFit | None = None,
    report: Report | None = None,
) -> KinematicMixture:
    """Fits the kinematic mixture to simulated events by maximum likelihood.

    The masses of the events should be spread evenly over the prior region, as `simulate` does: how
    many are selected at each point, the acceptance, then becomes part of the fitted prior.

    Args:
        events: Simulated events.
        masses: Prior intervals and known masses, as in `mixture_for`.
        start: A mixture to start from, in place of `masses`.
        validation: Events to choose the best pass on; a tenth of the mass points of `events` if not
            given.
        fit: How to fit.
        report: Called after each pass with its number and the training and validation losses.

    Raises:
        InputError: If the events have no truth, masses outside the region, or values that are not
            physical.
    """
    if events.masses is None:
        raise InputError("A mixture is fitted on simulated events: these carry no true masses.")
    if start is not None and masses is not None:
        raise InputError("Give the masses either in 'masses' or with 'start'.")
    events.validate()
    mixture = start or mixture_for(events.card, masses)
    if validation is None:
        fit_seed = 0 if fit is None else fit.seed
        events, validation = events.split(by="masses", fractions=(0.9, 0.1), seed=fit_seed)
    held_out = detected(validation), unknown_masses(mixture, validation)
    return fit_parameters(
        mixture, detected(events), unknown_masses(mixture, events), held_out, fit, report
    )


def unknown_masses(mixture: KinematicMixture, events: Events) -> Tensor:
    """Returns the true values of the unknown masses [GeV], shape ``(N, M)``.

    Raises:
        InputError: If the events carry no truth.
    """
    if events.masses is None:
        raise InputError("These events carry no true masses.")
    columns = [events.card.mass_names.index(name) for name in mixture.scheme.names]
    return events.masses[:, columns].double().cpu()


def mass_posterior(mixture: KinematicMixture, events: Events) -> MassPosterior:
    """Computes the posterior of the unknown masses in closed form, with density and summaries.

    Raises:
        InputError: If there is no event or a value in them is not physical.
    """
    return mixture.posterior(checked(events))


def mixture_summaries(mixture: KinematicMixture, events: Events, chunk: int = 4096) -> Tensor:
    """Summarises the posterior of each event in bounded memory, shape ``(N, 4 M + 2)``.

    The columns are `massrecon.kinematics.mixture_posterior.summary_names` of the unknown masses;
    they are finite for any event, and the same at every call.

    Args:
        mixture: The mixture.
        events: Events of the card that it was built for.
        chunk: Number of events at a time.

    Raises:
        InputError: If there is no event or a value in them is not physical.
    """
    seen = checked(events)
    parts = [slice(first, first + chunk) for first in range(0, len(seen), chunk)]
    return torch.cat([mixture.posterior(seen[part]).summaries() for part in parts])


def checked(events: Events) -> DetectedEvents:
    """Hands events to the mixture after checking that there are some and all are physical.

    Raises:
        InputError: If there is no event or a value in them is not physical.
    """
    if len(events) == 0:
        raise InputError("There are no events to reconstruct.")
    return detected(events.validate())
