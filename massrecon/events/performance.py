"""How well the detector measures: truth and reconstruction of simulated collisions, side by side.

True electrons, muons and photons are those of the hard collision and its decays, before they
radiate; true jets are anti-kT jets (R = 0.4) of all stable particles but neutrinos, more than
Delta R = 0.4 away from those. A lepton or photon is found where one of its kind is reconstructed
within Delta R < 0.1, a jet within 0.2. Widths are half the distance of the 16 % and 84 % quantiles,
which is the standard deviation of a Gaussian, and blind to tails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Any

import numpy as np

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.detector import Response, detect
from massrecon.events.hard import EVENTS_PER_PART, source_of
from massrecon.events.jets import JET_RADIUS, cluster, is_apart
from massrecon.events.masses import MassRequest
from massrecon.events.objects import Objects
from massrecon.events.particles import (
    ELECTRON,
    MUON,
    PHOTON,
    Floats,
    Integers,
    Mask,
    Particles,
    directions,
    distance,
    pairs_by,
    total_by,
)
from massrecon.events.pythia import Record
from massrecon.events.request import Request
from massrecon.events.sections import DetectorSettings, SlotGroup
from massrecon.events.selection import select
from massrecon.events.tagging import heavy_flavour

KINDS = {"electron": ELECTRON, "muon": MUON, "photon": PHOTON}
"""Leptons and photons by name, with their PDG codes."""

_TRUE_JET_PT_MIN = 20.0
_JETS = SlotGroup(kind="jet", count=1, pt_min=25.0, eta_max=5.0)
_NEAR, _NEAR_JET = 0.1, 0.2
_NEUTRINOS = (12, 14, 16)
_HARD = 23
_QUANTILES = (0.1587, 0.5, 0.8413)
# standard errors of median and half width of n Gaussian numbers, in widths / sqrt(n)
_MEDIAN_ERROR, _WIDTH_ERROR = 1.2533, 0.962


@dataclass(frozen=True)
class Measured:
    """A quantity in bins.

    Attributes:
        edges: Edges of the bins, shape ``(B + 1,)``.
        value: Value in each bin, NaN where there is nothing, shape ``(B,)``.
        error: Its standard error.
        number: Number of entries.
    """

    edges: Floats
    value: Floats
    error: Floats
    number: Integers

    def to_dict(self) -> dict[str, list[float | None]]:
        """Returns plain lists; what is not known is None."""
        lists = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {
            name: [None if x != x or abs(x) == np.inf else x for x in values]
            for name, values in lists.items()
        }


@dataclass(frozen=True)
class Matches:
    """True objects and what was found of them.

    Attributes:
        kind: 11, 13, 22, or 0 for jets, shape ``(n,)``.
        true_pt: True transverse momentum [GeV].
        true_eta: True pseudorapidity.
        measured_pt: Measured transverse momentum [GeV], 0 where the object was lost.
    """

    kind: Integers
    true_pt: Floats
    true_eta: Floats
    measured_pt: Floats

    def __getitem__(self, which: Mask | Integers) -> Matches:
        """Selects objects by mask or index."""
        return Matches(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Matches]) -> Matches:
        """Puts lists behind each other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def within(self, eta_min: float, eta_max: float) -> Matches:
        """Keeps the objects in a range of absolute pseudorapidity."""
        abs_eta = np.abs(self.true_eta)
        return self[(abs_eta >= eta_min) & (abs_eta < eta_max)]

    def efficiency(self, edges: Sequence[float]) -> Measured:
        """Computes the fraction that was found, in bins of the true pT."""
        bins = _bins(self.true_pt, edges)
        rates = [float(np.mean(self.measured_pt[b] > 0)) if len(b) else np.nan for b in bins]
        rate, number = np.array(rates), np.array([len(b) for b in bins])
        spread = np.sqrt(np.maximum(rate * (1 - rate), 0.0) / np.maximum(number, 1))
        # one more failure or success keeps the error of 0 and 1 from vanishing
        return Measured(np.array(edges), rate, np.maximum(spread, 1 / (number + 1.0)), number)

    def response(self, edges: Sequence[float]) -> tuple[Measured, Measured]:
        """Computes median and relative width of measured over true pT, in bins of the true pT."""
        found = self[self.measured_pt > 0]
        return _spread(found.true_pt, found.measured_pt / found.true_pt, edges)


@dataclass(frozen=True)
class Performance:
    """What the detector made of N collisions.

    Attributes:
        objects: True electrons, muons and photons.
        jets: True jets.
        ptmiss: Measured minus true ptmiss (px, py) [GeV], shape ``(N, 2)``.
        ht: Sum of the transverse momenta of the energy flow [GeV], shape ``(N,)``.
        counts: Number of objects within the limits of the card, by kind, each ``(N,)``.
        selected: Whether the card selects the collision, shape ``(N,)``.
    """

    objects: Matches
    jets: Matches
    ptmiss: Floats
    ht: Floats
    counts: Mapping[str, Integers]
    selected: Mask

    @classmethod
    def join(cls, parts: Sequence[Performance]) -> Performance:
        """Puts samples behind each other."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("ptmiss", "ht", "selected")
        }
        counts = {
            kind: np.concatenate([part.counts[kind] for part in parts]) for kind in parts[0].counts
        }
        objects, jets = ([getattr(part, name) for part in parts] for name in ("objects", "jets"))
        return cls(Matches.join(objects), Matches.join(jets), counts=counts, **arrays)

    def of(self, kind: str, eta_max: float = 2.5) -> Matches:
        """Returns the true electrons, muons, photons or jets within `eta_max`.

        Raises:
            InputError: If there is no such kind.
        """
        if kind == "jet":
            return self.jets.within(0.0, eta_max)
        if kind not in KINDS:
            raise InputError(f"'kind' should be one of jet, {', '.join(KINDS)}, got {kind!r}.")
        return self.objects[self.objects.kind == KINDS[kind]].within(0.0, eta_max)

    def ptmiss_width(self, edges: Sequence[float]) -> Measured:
        """Computes the resolution of a component of ptmiss [GeV] in bins of HT."""
        both = np.concatenate([self.ptmiss[:, 0], self.ptmiss[:, 1]])
        return _width(np.tile(self.ht, 2), both, edges)

    def selection_efficiency(self) -> tuple[float, float]:
        """Returns the fraction of selected collisions and its standard error."""
        rate = float(np.mean(self.selected))
        return rate, float(np.sqrt(rate * (1.0 - rate) / len(self.selected)))


def measure_performance(
    card: Any,
    n_events: int,
    masses: MassRequest = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    detector: DetectorSettings | None = None,
) -> Performance:
    """Simulates collisions and compares what the detector finds with the truth.

    Args:
        card: The process: a name, the path of a card, or a card.
        n_events: Number of collisions to generate.
        masses: Masses by name, as for `simulate`.
        seed: Random seed.
        settings: Options of the simulation, as for `simulate`.
        detector: Options of the detector; those of the card by default.

    Raises:
        InputError: If an argument is wrong, or the card generates toys without a detector.
        GenerationError: If Pythia fails.
    """
    if n_events < 1:
        raise InputError(f"'n_events' should be at least 1, got {n_events}.")
    request = Request.of(card, masses, seed, settings)
    if request.settings.phase_space is not None:
        raise InputError(f"The toys of the card '{request.card.name}' meet no detector.")
    if detector is None:
        noise = {"ptmiss_noise": request.settings.ptmiss_noise}
        detector = request.card.detector.model_copy(update=noise)
    parts, missing = [], n_events
    for record, rng in collisions(request):
        record = record.part(0, min(missing, record.n_events))
        parts.append(compare(request.card, record, rng, detector))
        missing -= record.n_events
        if missing == 0:
            break
    return Performance.join(parts)


def collisions(request: Request) -> Iterator[tuple[Record, np.random.Generator]]:
    """Yields groups of collisions, each with its source of noise, as `simulate` makes them.

    Args:
        request: What to simulate; without a file of hard collisions there is no end.
    """
    source = source_of(request)
    n_file = np.inf if request.lhe is None else request.lhe.n_events
    try:
        for number in count():
            if number * EVENTS_PER_PART >= n_file:
                return
            for i, group in enumerate(source.groups(number)):
                yield group.record, np.random.default_rng([request.seed, number, i + 1])
    finally:
        source.close()


def compare(
    card: ProcessCard, record: Record, rng: np.random.Generator, detector: DetectorSettings
) -> Performance:
    """Runs the detector on a batch of collisions and compares it with the truth.

    Args:
        card: The process.
        record: Event records of N collisions.
        rng: Source of all smearing.
        detector: Options of the detector.
    """
    particles, n_events = record.stable(), record.n_events
    heavy = heavy_flavour(record) if detector.tagging else None
    response = detect(particles, n_events, rng, detector, heavy)
    everywhere = np.ones(n_events, bool)
    _, events, _ = select(card, response, everywhere)
    selected = np.isin(np.arange(n_events), events)
    prompt = _prompt(record)
    true_jets = _true_jets(particles, prompt, n_events)
    counts = {
        group.kind: np.bincount(
            response.find(group, everywhere).accepted(group).event, minlength=n_events
        )
        for group in card.objects
    }
    return Performance(
        objects=match(prompt, _objects(response), _NEAR),
        jets=match(true_jets, _jets(response, everywhere), _NEAR_JET),
        ptmiss=response.ptmiss - _neutrino_momentum(particles, n_events),
        ht=response.ht,
        counts=counts,
        selected=selected,
    )


def _prompt(record: Record) -> Objects:
    """Lists the electrons, muons and photons of the hard collision and its decays."""
    code = np.abs(record.columns["id"]).astype(np.int64)
    hard = (np.abs(record.columns["status"]) == _HARD) & np.isin(code, list(KINDS.values()))
    entries = np.flatnonzero(hard)
    event = np.searchsorted(record.first, entries, side="right") - 1
    p4 = np.stack([record.columns[name][entries] for name in ("px", "py", "pz", "e")], axis=1)
    return Objects(event, p4, {"flavour": code[entries]})


def _objects(response: Response) -> Objects:
    found = response.objects
    return Objects(found.event, found.p4, {"flavour": found.kind})


def _jets(response: Response, everywhere: Mask) -> Objects:
    jets = response.find(_JETS, everywhere)
    return Objects(jets.event, jets.p4, {"flavour": np.zeros(len(jets.event), np.int64)})


def _true_jets(particles: Particles, prompt: Objects, n_events: int) -> Objects:
    """Clusters all stable particles but neutrinos, apart from prompt leptons and photons."""
    seen = particles[~np.isin(np.abs(particles.pdg), _NEUTRINOS)]
    clusters = cluster(seen.event, seen.p4, n_events, _TRUE_JET_PT_MIN, JET_RADIUS)
    jets = Objects(
        clusters.event, clusters.p4, {"flavour": np.zeros(len(clusters.event), np.int64)}
    )
    return jets[is_apart(jets, prompt, JET_RADIUS)]


def _neutrino_momentum(particles: Particles, n_events: int) -> Floats:
    """Sums the transverse momenta of the neutrinos, shape ``(n_events, 2)`` [GeV]."""
    unseen = particles[np.isin(np.abs(particles.pdg), _NEUTRINOS)]
    return np.stack([total_by(unseen.event, p, n_events) for p in (unseen.px, unseen.py)], axis=1)


def match(truth: Objects, found: Objects, radius: float) -> Matches:
    """Gives each true object the nearest one found of its kind, if it is near enough.

    Args:
        truth: True objects, with the attribute ``flavour``.
        found: Reconstructed objects, ordered by collision, with the attribute ``flavour``.
        radius: Largest distance Delta R.
    """
    pt, eta, phi = directions(truth.p4)
    found_pt, found_eta, found_phi = directions(found.p4)
    one, other = pairs_by(truth.event, found.event)
    away = distance(eta[one], phi[one], found_eta[other], found_phi[other])
    same = truth.attributes["flavour"][one] == found.attributes["flavour"][other]
    near = np.flatnonzero(same & (away < radius))
    near = near[np.argsort(-away[near], kind="stable")]
    measured = np.zeros(len(pt))
    measured[one[near]] = found_pt[other[near]]  # the nearest comes last
    return Matches(truth.attributes["flavour"], pt, eta, measured)


def _bins(x: Floats, edges: Sequence[float]) -> list[Integers]:
    """Lists the entries of each bin, lower edge included."""
    index = np.searchsorted(np.array(edges), x, side="right") - 1
    return [np.flatnonzero(index == i) for i in range(len(edges) - 1)]


def _spread(x: Floats, ratio: Floats, edges: Sequence[float]) -> tuple[Measured, Measured]:
    """Computes the median of a ratio and its width relative to the true value, with errors."""
    bins = [b if len(b) > 1 else np.zeros(0, np.int64) for b in _bins(x, edges)]
    nothing = (np.nan,) * 3
    low, middle, high = np.array(
        [np.quantile(ratio[b], _QUANTILES) if len(b) else nothing for b in bins]
    ).T
    number = np.array([len(b) for b in bins])
    width, root = (high - low) / 2, np.sqrt(np.maximum(number, 1))
    return (
        Measured(np.array(edges), middle, _MEDIAN_ERROR * width / root, number),
        Measured(np.array(edges), width, _WIDTH_ERROR * width / root, number),
    )


def _width(x: Floats, values: Floats, edges: Sequence[float]) -> Measured:
    return _spread(x, values, edges)[1]
