"""The kinematic-mixture posterior of a card's masses: no network, only the decay topology.

`mixture_for` builds it from a process card, `fit_mixture` fits its few dozen parameters on
simulated events, and `mixture_posterior` gives the same `Posterior` as a trained model does, so
that every estimator and diagnostic applies::

    mixture = fit_mixture(train, masses={"chi20": (400, 650), "chi10": (50, 500)})
    posterior = mixture_posterior(mixture, test, n_samples=200, seed=1)

For the built-in cards fitted parameters come with massrecon::

    posterior = mixture_posterior(mixture_for("wino_udd"), events)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.inference.mixture_files import (
    masses_of,
    options_of,
    put_parameters,
    read_mixture,
    shipped_for,
    shipped_mixtures,
)
from massrecon.inference.posterior import Posterior
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents, MixtureOptions
from massrecon.kinematics.mixture_fit import MixtureFit, Report, fit_parameters
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable
from massrecon.kinematics.topology import Node, TopologyError
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

PERFECT, PERFECT_PTMISS = 0.003, 3.0
"""Resolutions of toys without smearing, relative and [GeV]: sums need a width."""

KNOWN_MASSES = {6: 172.5, 23: 91.188, 24: 80.379, 25: 125.0}
"""Masses of known resonances by PDG code [GeV]."""

_KINDS = {11: "lepton", 13: "lepton", 22: "photon"} | dict.fromkeys(
    (1, 2, 3, 4, 5, 21, 23, 24, 25), "jet"
)
_NEUTRINOS = (12, 14, 16)
_NEW_PARTICLES_FROM = 1_000_000
_STRETCH = (0.7, 1.5)


def legs_of(card: ProcessCard) -> DecayLegs:
    """Reads from a card which legs of its decay are seen, and as what kind of object.

    In a toy the particles of its object slots are seen, and all others are invisible, whatever
    their PDG codes. Otherwise the codes decide: neutrinos and new particles are invisible; quarks,
    gluons, and bosons whose decay is left open are jets. Sides are alike if the same masses are
    unknown in them.

    Raises:
        TopologyError: If a leg is neither, such as a tau.
    """
    kinds, invisible = {}, []
    slots = None if card.phase_space is None else {group.kind for group in card.objects}
    for leg in card.topology.legs:
        codes = {abs(code) for code in card.particles[leg.name].pdg}
        found = {_KINDS.get(code) for code in codes}
        if slots is not None and leg.name in slots:
            kinds[leg.name] = leg.name
        elif slots is not None or all(
            code in _NEUTRINOS or code >= _NEW_PARTICLES_FROM for code in codes
        ):
            invisible.append(leg.name)
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
    like |= {node: mass for mass in card.masses for node in _carriers(card, mass)}
    return DecayLegs.of(card.topology, invisible, kinds, like)


def mixture_for(
    card: ProcessCard | str,
    masses: Masses | str | None = None,
    response: ResponseTable | None = None,
    options: MixtureOptions | None = None,
    *,
    fitted: bool = True,
) -> KinematicMixture:
    """Builds the kinematic mixture of a card, fitted if massrecon has parameters for it.

    Args:
        card: The process, or its name.
        masses: For each mass of the card an interval of its flat prior, or one number if it is
            known [GeV]; a mass that is not listed may lie in the range of the card. A string is the
            name of a shipped fit of the card, such as ``plane``; without masses it is the one with
            the most free masses.
        response: Resolutions of the objects; `response_of` the card if not given.
        options: What is summed over.
        fitted: Whether to start from parameters that come with massrecon, if they were fitted with
            the same masses free. They are calibrated for the intervals they were fitted on.

    Raises:
        InputError: If a name is not a mass of the card, or no mass is unknown.
        TopologyError: If a mass cannot be computed from what is seen.
    """
    card = load_card(card) if isinstance(card, str) else card
    content = shipped_for(card.name, masses) if fitted or isinstance(masses, str) else None
    if isinstance(masses, str) and content is None:
        names = [n.removeprefix(f"{card.name}_") for n in shipped_mixtures() if card.name in n]
        raise unknown_name(f"fit of '{card.name}'", masses, names)
    if content is not None and (masses is None or isinstance(masses, str)):
        masses = masses_of(content)
    ranges = _ranges(card, cast(Masses | None, masses))
    if content is not None and options is None:
        options = options_of(content)
    mixture = _build(card, ranges, response or response_of(card), options)
    if fitted and content is not None and options == options_of(content):
        _put(mixture, content, ranges == masses_of(content))
    return mixture


def load_mixture(path: str | Path, card: ProcessCard | None = None) -> KinematicMixture:
    """Loads a mixture that `save_mixture` saved.

    Args:
        path: The file.
        card: The process, if its card is not to be loaded by the name in the file.

    Raises:
        StoreError: If the file cannot be read or does not fit the card.
    """
    content = read_mixture(path)
    return mixture_from(content, card or load_card(content["card"]), str(path))


def mixture_from(content: Mapping[str, Any], card: ProcessCard, path: str) -> KinematicMixture:
    """Builds the mixture of a card that `mixture_content` describes.

    Raises:
        StoreError: If it does not fit the card; the message names `path`.
    """
    ranges = _ranges(card, masses_of(content))
    mixture = _build(card, ranges, response_of(card), options_of(content))
    put_parameters(mixture, content, path)
    return mixture


def _put(mixture: KinematicMixture, content: dict[str, Any], whole: bool) -> None:
    """Puts shipped parameters in; the outlier stays that of the region if the region is another."""
    if not whole:
        own = {n: p.tolist() for n, p in mixture.named_parameters() if n.startswith("outlier.")}
        own = {
            n: values for n, values in own.items() if n in ("outlier.centre", "outlier.log_width")
        }
        content = {**content, "parameters": {**content["parameters"], **own}}
    put_parameters(mixture, content, content["name"])


def _ranges(card: ProcessCard, masses: Masses | None) -> dict[str, float | tuple[float, float]]:
    ranges: dict[str, float | tuple[float, float]] = {
        name: mass.range for name, mass in card.masses.items()
    }
    for name in masses or {}:
        if name not in ranges:
            raise unknown_name("mass", name, ranges)
    return ranges | dict(masses or {})


def _build(
    card: ProcessCard,
    ranges: dict[str, float | tuple[float, float]],
    response: ResponseTable,
    options: MixtureOptions | None,
) -> KinematicMixture:
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


def response_of(card: ProcessCard) -> ResponseTable:
    """Returns the resolutions with which the events of a card are seen.

    They are those of the HL-LHC-like detector, or for a toy the smearing of its card.
    """
    toy = card.phase_space
    if toy is None:
        return RESPONSE
    objects: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        group.kind: ((1.0,), (PERFECT,)) for group in card.objects
    }
    for kind, table in toy.smearing.items():
        objects[kind] = ([pt for pt, _ in table], [width for _, width in table])
    return ResponseTable(objects, ((1.0,), (PERFECT_PTMISS,)))


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
    """
    return mixture.posterior(_checked(events))


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
    seen = _checked(events)
    parts = [slice(first, first + chunk) for first in range(0, len(seen), chunk)]
    return torch.cat([mixture.posterior(seen[part]).summaries() for part in parts])


def mixture_posterior(
    mixture: KinematicMixture, events: Events, n_samples: int = 200, seed: int = 0
) -> Posterior:
    """Draws from the kinematic mixture, as `massrecon.reconstruct` does from a trained model.

    The momentum of a target is the one of the drawn component, stretched with the drawn mass, as a
    common error of the energy scale would do. If the two sides of a decay are alike, which of them
    is called the first cannot be known: each draw takes one at random.

    Args:
        mixture: The mixture, fitted or not.
        events: Events of the card that it was built for.
        n_samples: Number S of draws for each event.
        seed: Seed of the draws.

    Raises:
        InputError: If there is no event or a value in them is not physical.
    """
    card = events.card
    labels = [twin for label in card.targets.values() for twin in _twins(mixture, label)]
    found = mixture.posterior(_checked(events), tuple(dict.fromkeys(labels)))
    masses, component = found.draw(n_samples, seed)
    side = _sides(masses.shape[:2], seed)
    columns = []
    for name, label in card.targets.items():
        momenta = [found.momenta[twin] for twin in _twins(mixture, label)]
        at = component.T.unsqueeze(-1).expand(-1, -1, 4)
        drawn = torch.stack([p4.gather(1, at).transpose(0, 1) for p4 in momenta])
        p4 = drawn.gather(0, side.expand(1, -1, -1, 4) % len(drawn))[0]
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


def _twins(mixture: KinematicMixture, label: str) -> list[str]:
    """Returns the label of a particle, and that of its like on a side that is alike."""
    legs = mixture.scheme.legs
    node = legs.topology.node(label)
    found = [label]
    for group in legs.alike(legs.topology.roots):
        if node.side in [root.side for root in group]:
            sides = [root.side for root in group if root.side != node.side]
            found += [other.label for other in _like(legs, node) if other.side in sides]
    return found


def _like(legs: DecayLegs, node: Node) -> list[Node]:
    """Returns the particles that look like one and have the same place on their side."""
    own = [n for n in legs.topology.nodes if n.side == node.side]
    place = [n for n in own if legs.signatures[n.index] == legs.signatures[node.index]].index(node)
    found = []
    for side in sorted({n.side for n in legs.topology.nodes} - {node.side}):
        like = [
            n
            for n in legs.topology.nodes
            if n.side == side and legs.signatures[n.index] == legs.signatures[node.index]
        ]
        found += like[place : place + 1]
    return found


def _sides(shape: torch.Size, seed: int) -> Tensor:
    """Draws which of two like sides is called the first, shape ``(S, N, 1)``."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(2, (*shape, 1), generator=generator)


def _checked(events: Events) -> DetectedEvents:
    if len(events) == 0:
        raise InputError("There are no events to reconstruct.")
    return detected(events.validate())


def _mass_of(mixture: KinematicMixture, masses: Tensor, name: str, label: str) -> Tensor:
    if name in mixture.scheme.names:
        return masses[..., mixture.scheme.names.index(name)]
    known = mixture.scheme.known[mixture.scheme.legs.topology.node(label).index]
    return torch.full_like(masses[..., 0], float(known or 0.0))
