"""The kinematic-mixture posterior of a card's masses: no network, only the decay topology.

`mixture_for` builds it from a process card, `fit_mixture` fits its few dozen parameters on
simulated events, and `mixture_posterior` gives the same `Posterior` as a trained model does, so
that every estimator and diagnostic applies::

    mixture = fit_mixture(train, masses={"chi20": (400, 650), "chi10": (50, 500)})
    posterior = mixture_posterior(mixture, test, n_samples=200, seed=1)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.posterior import Posterior
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents, MixtureOptions
from massrecon.kinematics.mixture_fit import MixtureFit, Report, fit_parameters
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable
from massrecon.kinematics.topology import TopologyError
from massrecon.provenance import versions

Masses = Mapping[str, float | tuple[float, float]]

RESPONSE = ResponseTable(
    objects={
        "jet": ((30, 50, 80, 150, 300, 600), (0.15, 0.145, 0.115, 0.08, 0.06, 0.05)),
        "photon": ((20, 50, 100), (0.043, 0.032, 0.024)),
        "lepton": ((20, 100), (0.014, 0.018)),
    },
    ptmiss=((500, 800, 1250, 1800), (18, 20, 23, 30)),
)
"""Resolutions of the HL-LHC-like detector of `massrecon.events.detector`."""

KNOWN_MASSES = {6: 172.5, 23: 91.188, 24: 80.379, 25: 125.0}
"""Masses of known resonances by PDG code [GeV]."""

_KINDS = {11: "lepton", 13: "lepton", 22: "photon"} | dict.fromkeys((1, 2, 3, 4, 5, 21), "jet")
_NEUTRINOS = (12, 14, 16)
_NEW_PARTICLES_FROM = 1_000_000
_STRETCH = (0.7, 1.5)


def legs_of(card: ProcessCard) -> DecayLegs:
    """Reads the role of each leg from the PDG codes of a card.

    Neutrinos and new stable particles are invisible; quarks and gluons are jets.

    Raises:
        TopologyError: If a leg is neither, such as a tau.
    """
    kinds, invisible = {}, []
    for leg in card.topology.legs:
        codes = {abs(code) for code in card.particles[leg.name].pdg}
        found = {_KINDS.get(code) for code in codes}
        if all(code in _NEUTRINOS or code >= _NEW_PARTICLES_FROM for code in codes):
            invisible.append(leg.name)
        elif leg.name in {group.kind for group in card.objects}:
            kinds[leg.name] = leg.name
        elif len(found) == 1 and None not in found:
            kinds[leg.name] = str(found.pop())
        else:
            raise TopologyError(
                f"The leg '{leg.label}' of '{card.name}' with the PDG codes {sorted(codes)} is not "
                "one kind of object: name leptons, photons or quarks."
            )
    like = {
        node.name: f"pdg{sorted(abs(code) for code in card.particles[node.name].pdg)}"
        for node in card.topology.nodes
    }
    return DecayLegs.of(card.topology, invisible, kinds, like)


def mixture_for(
    card: ProcessCard,
    masses: Masses | None = None,
    response: ResponseTable = RESPONSE,
    options: MixtureOptions | None = None,
) -> KinematicMixture:
    """Builds the kinematic mixture of a card with its start parameters.

    Args:
        card: The process.
        masses: For each mass of the card an interval of its flat prior, or one number if it is
            known [GeV]; a mass that is not listed may lie in the range of the card.
        response: Resolutions of the objects.
        options: What is summed over.

    Raises:
        InputError: If a name is not a mass of the card, or no mass is unknown.
        TopologyError: If a mass cannot be computed from what is seen.
    """
    ranges: dict[str, float | tuple[float, float]] = {
        name: mass.range for name, mass in card.masses.items()
    }
    for name in masses or {}:
        if name not in ranges:
            raise unknown_name("mass", name, ranges)
    ranges |= dict(masses or {})
    free = {name: limits for name, limits in ranges.items() if isinstance(limits, tuple)}
    fixed = {name: float(m) for name, m in ranges.items() if not isinstance(m, tuple)}
    if not free:
        raise InputError(f"No mass of '{card.name}' is unknown: give an interval for at least one.")
    carriers = {name: _carriers(card, name) for name in ranges}
    known = {
        node: KNOWN_MASSES[code]
        for node, particle in card.particles.items()
        for code in particle.pdg
        if abs(code) in KNOWN_MASSES
    }
    for node in itertools.chain(*carriers.values()):
        known.pop(node, None)
    known |= {node: mass for name, mass in fixed.items() for node in carriers[name]}
    scheme = MassScheme.of(legs_of(card), {name: carriers[name] for name in free}, known)
    region = MassRegion(
        tuple(float(low) for low, _ in free.values()),
        tuple(float(high) for _, high in free.values()),
        _gaps(card, tuple(free), fixed),
    )
    return KinematicMixture(scheme, response, region, options)


def _carriers(card: ProcessCard, mass: str) -> list[str]:
    """Returns the names of the particles that have a mass of the card."""
    codes = set(card.masses[mass].sets)
    return [name for name, particle in card.particles.items() if codes & set(particle.pdg)]


def _gaps(
    card: ProcessCard, free: tuple[str, ...], fixed: Mapping[str, float]
) -> tuple[tuple[tuple[float, ...], float], ...]:
    """Turns the open channels of a card into conditions on its unknown masses."""
    gaps = []
    for channel in card.open_channels:
        row, minimum = dict.fromkeys(free, 0.0), channel.minimum_gap
        for name, sign in [(channel.parent, 1.0), *((d, -1.0) for d in channel.daughters)]:
            if name in fixed:
                minimum -= sign * fixed[name]
            else:
                row[name] += sign
        if any(row.values()):
            gaps.append((tuple(row.values()), minimum))
    return tuple(gaps)


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
        TopologyError: If an event has too few objects.
    """
    return mixture.posterior(_checked(events))


def mixture_posterior(
    mixture: KinematicMixture, events: Events, n_samples: int = 200, seed: int = 0
) -> Posterior:
    """Draws from the kinematic mixture, as `massrecon.reconstruct` does from a trained model.

    The momentum of a target is the one of the drawn component, stretched with the drawn mass, as a
    common error of the energy scale would do.

    Args:
        mixture: The mixture, fitted or not.
        events: Events of the card that it was built for.
        n_samples: Number S of draws for each event.
        seed: Seed of the draws.

    Raises:
        InputError: If there is no event or a value in them is not physical.
        TopologyError: If an event has too few objects.
    """
    card = events.card
    found = mixture.posterior(_checked(events), tuple(card.targets.values()))
    masses, component = found.draw(n_samples, seed)
    columns = []
    for name, label in card.targets.items():
        p4 = found.momenta[label].gather(1, component.T.unsqueeze(-1).expand(-1, -1, 4))
        p4 = p4.transpose(0, 1)
        seen = (p4[..., 3] ** 2 - (p4[..., :3] ** 2).sum(-1)).clamp_min(1.0).sqrt()
        mass = _mass_of(mixture, masses, name, label)
        stretch = (mass / seen).clamp(*_STRETCH)
        columns += [p4[..., :3] * stretch.unsqueeze(-1), mass.unsqueeze(-1)]
    return Posterior(
        samples=torch.cat(columns, -1),
        card=card,
        truth=events.targets().cpu() if events.has_targets else None,
        masses=None if events.masses is None else events.masses.cpu(),
        weight=events.weight.cpu(),
        provenance={
            "model": "kinematic mixture",
            "decay": re.sub(r"\s+", " ", card.decay),
            "n_samples": n_samples,
            "seed": seed,
            "parameters": {n: p.tolist() for n, p in mixture.named_parameters()},
            "events": dict(events.provenance),
            "versions": versions("torch"),
        },
    )


def _checked(events: Events) -> DetectedEvents:
    if len(events) == 0:
        raise InputError("There are no events to reconstruct.")
    return detected(events.validate())


def _mass_of(mixture: KinematicMixture, masses: Tensor, name: str, label: str) -> Tensor:
    if name in mixture.scheme.names:
        return masses[..., mixture.scheme.names.index(name)]
    known = mixture.scheme.known[mixture.scheme.legs.topology.node(label).index]
    return torch.full_like(masses[..., 0], float(known or 0.0))
