"""The kinematic mixture of a process card: which legs are seen, which masses are unknown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from massrecon.errors import InputError, StoreError, unknown_name
from massrecon.events.card import ProcessCard, load_card
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import MixtureOptions
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable
from massrecon.kinematics.topology import TopologyError
from massrecon.models.mixture.files import (
    masses_of,
    options_of,
    put_parameters,
    read_mixture,
    shipped_for,
    shipped_mixtures,
)

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
        raise _no_fit(card.name, masses)
    if content is not None and (masses is None or isinstance(masses, str)):
        masses = masses_of(content)
    ranges = _ranges(card, cast(Masses | None, masses))
    if content is not None and options is None:
        options = options_of(content)
    mixture = _build(card, ranges, response or response_of(card), options)
    if fitted and content is not None and options == options_of(content):
        _put(mixture, content, ranges == masses_of(content))
    return mixture


def _no_fit(card: str, name: str) -> InputError:
    """Builds the error for a fit of a card that does not come with massrecon."""
    contents = [read_mixture(path) for path in shipped_mixtures().values()]
    names = [c["name"].removeprefix(f"{card}_") for c in contents if c["card"] == card]
    if names:
        return unknown_name(f"fit of '{card}'", name, names)
    return InputError(
        f"No fit of '{card}' comes with massrecon, got '{name}': give an interval for each unknown "
        "mass, or fit one with fit_mixture."
    )


def load_mixture(path: str | Path, card: ProcessCard | None = None) -> KinematicMixture:
    """Loads a mixture that `save_mixture` saved.

    Args:
        path: The file.
        card: The process, if its card is not to be loaded by the name in the file.

    Raises:
        StoreError: If the file cannot be read or does not fit the card.
        InputError: If there is no card of the name in the file.
    """
    content = read_mixture(path)
    return mixture_from(content, card or load_card(content["card"]), str(path))


def mixture_from(content: Mapping[str, Any], card: ProcessCard, path: str) -> KinematicMixture:
    """Builds the mixture of a card that `mixture_content` describes.

    Raises:
        StoreError: If it does not fit the card; the message names `path`.
    """
    ranges = _ranges(card, masses_of(content))
    try:
        options = options_of(content)
    except TypeError as error:
        raise StoreError(
            f"'{path}' has options that this massrecon does not know ({error}): fit the mixture "
            "again."
        ) from error
    mixture = _build(card, ranges, response_of(card), options)
    put_parameters(mixture, content, path)
    return mixture


def _put(mixture: KinematicMixture, content: dict[str, Any], whole: bool) -> None:
    """Puts shipped parameters in; the outlier stays that of the region if the region is another."""
    if not whole:
        of_region = ("outlier.centre", "outlier.log_width")
        own = {n: p.tolist() for n, p in mixture.named_parameters() if n in of_region}
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
    parameter = card.masses[mass]
    return [name for name, particle in card.particles.items() if parameter.belongs_to(particle)]


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
