"""Energy flow: tracks and neutral excesses of both calorimeters, in two steps.

The first step measures what leptons and photons are made of: tracks of electrons and muons, and the
electromagnetic calorimeter. Most collisions that the selection is going to drop can be told by
then. The second step, charged hadrons and the hadronic calorimeter, is the longer one, and need
only be taken for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from massrecon.events.calorimeter import ECAL, HCAL, Balance, Calorimeter, Deposits
from massrecon.events.particles import (
    ELECTRON,
    HADRON,
    LONG_LIVED,
    MUON,
    PHOTON,
    Floats,
    Flow,
    Integers,
    Mask,
    Particles,
)
from massrecon.events.tracking import Passage, Tracks, separable

_LONG_LIVED_ECAL_SHARE = 0.3


@dataclass(frozen=True)
class FirstStep:
    """Leptons and photons of many collisions, measured, and what the hadrons start from.

    Attributes:
        flow: Electrons, muons and photons, ordered by collision.
        tracks: Tracks of electrons and muons.
        keys: Key of the tower or muon of each of these tracks.
        ecal: The electromagnetic calorimeter.
        hadrons: Charged hadrons that may leave a track.
        entering: Everything that reaches the hadronic calorimeter.
    """

    flow: Flow
    tracks: Tracks
    keys: Integers
    ecal: Balance
    hadrons: Passage
    entering: Passage

    @classmethod
    def measure(
        cls, particles: Particles, rng: np.random.Generator, magnetic_field: float = 0.0
    ) -> FirstStep:
        """Takes the first step.

        Args:
            particles: Stable particles, ordered by collision.
            rng: Source of all smearing.
            magnetic_field: Field along the beam [T].
        """
        passage = Passage.of(particles, magnetic_field)
        charged = separable(passage, magnetic_field)
        is_hadron = charged.kind == HADRON
        tracks = Tracks.draw(charged[np.flatnonzero(~is_hadron)], rng)
        is_electron = tracks.kind == ELECTRON
        is_muon = np.flatnonzero(~is_electron)
        ecal = ECAL.measure(_ecal_hits(passage), *_pointing(tracks, is_electron), rng)
        tracks = tracks.rescaled(is_electron, ecal.track_scale)
        keys = np.empty(len(is_electron), np.int64)
        keys[is_electron] = ecal.track_tower
        keys[is_muon] = -2 - np.arange(len(is_muon))
        photons = _towers(ecal.neutral, PHOTON, ecal.neutral_tower)
        reaches = np.flatnonzero((passage.kind == HADRON) | (passage.kind == LONG_LIVED))
        return cls(
            flow=_ordered(_from_tracks(tracks, keys), photons),
            tracks=tracks,
            keys=keys,
            ecal=ecal,
            hadrons=charged[np.flatnonzero(is_hadron)],
            entering=passage[reaches],
        )

    def completed(
        self, wanted: Mask, rng: np.random.Generator, with_towers: bool = False
    ) -> tuple[Flow, Flow | None]:
        """Takes the second step for the wanted collisions.

        Args:
            wanted: Collisions to complete, shape ``(n_events,)``.
            rng: Source of all smearing.
            with_towers: Whether to list the calorimeter towers too.

        Returns:
            The whole energy flow of these collisions, and, if asked for, their calorimeter towers
            and muons; both ordered by collision.
        """
        hadrons = self.hadrons[np.flatnonzero(wanted[self.hadrons.event])]
        entering = self.entering[np.flatnonzero(wanted[self.entering.event])]
        tracks = Tracks.draw(hadrons, rng)
        everything = np.ones(len(tracks.kind), bool)
        hcal = HCAL.measure(_hcal_hits(entering), *_pointing(tracks, everything), rng)
        tracks = tracks.rescaled(everything, hcal.track_scale)
        charged = _from_tracks(tracks, np.full(len(tracks.kind), -1))
        light = self.flow[np.flatnonzero(wanted[self.flow.event])]
        flow = _ordered(light, charged, _towers(hcal.neutral, HADRON))
        if not with_towers:
            return flow, None
        is_muon = np.flatnonzero((self.tracks.kind == MUON) & wanted[self.tracks.event])
        lit = np.flatnonzero(wanted[self.ecal.towers.event])
        return flow, _ordered(
            _from_tracks(self.tracks[is_muon], self.keys[is_muon]),
            _towers(self.ecal.towers[lit], PHOTON, self.ecal.tower[lit]),
            _towers(hcal.towers, HADRON),
        )


def energy_flow(
    particles: Particles, rng: np.random.Generator, magnetic_field: float = 0.0
) -> Flow:
    """Measures tracks and balances them with both calorimeters.

    Args:
        particles: Stable particles, ordered by collision.
        rng: Source of all smearing.
        magnetic_field: Field along the beam [T].

    Returns:
        Tracks and neutral excesses, ordered by collision.
    """
    first = FirstStep.measure(particles, rng, magnetic_field)
    everywhere = np.ones(int(particles.event.max(initial=-1)) + 1, bool)
    return first.completed(everywhere, rng)[0]


def _ecal_hits(passage: Passage) -> Deposits:
    """Lists the energy that enters the electromagnetic calorimeter."""
    kind = passage.kind
    hit = np.flatnonzero((kind == ELECTRON) | (kind == PHOTON) | (kind == LONG_LIVED))
    share = np.where(kind[hit] == LONG_LIVED, _LONG_LIVED_ECAL_SHARE, 1.0)
    return _deposits(passage[hit], share, ECAL)


def _hcal_hits(entering: Passage) -> Deposits:
    """Lists the energy that enters the hadronic calorimeter."""
    share = np.where(entering.kind == LONG_LIVED, 1.0 - _LONG_LIVED_ECAL_SHARE, 1.0)
    return _deposits(entering, share, HCAL)


def _deposits(passage: Passage, share: Floats, calorimeter: Calorimeter) -> Deposits:
    hits = Deposits(passage.event, passage.eta_out, passage.phi_out, passage.energy * share)
    return hits[calorimeter.towers.contains(hits.eta)]


def _pointing(tracks: Tracks, which: Mask) -> tuple[Deposits, Floats]:
    """Returns the chosen tracks as seen by a calorimeter, and their energy resolutions [GeV]."""
    chosen = np.flatnonzero(which)
    energy = tracks.energy[chosen]
    hits = Deposits(tracks.event[chosen], tracks.eta_out[chosen], tracks.phi_out[chosen], energy)
    return hits, tracks.sigma[chosen] * energy


def _from_tracks(tracks: Tracks, keys: Integers) -> Flow:
    """Lists tracks as candidates."""
    p4 = tracks.p4
    pt = np.hypot(p4[:, 0], p4[:, 1])
    return Flow(tracks.event, tracks.kind, tracks.charge, p4, pt, tracks.eta, tracks.phi, keys)


def _towers(hits: Deposits, kind: int, keys: Integers | None = None) -> Flow:
    """Lists towers as massless, neutral candidates."""
    n_towers = len(hits.event)
    pt = hits.energy / np.cosh(hits.eta)
    p3 = [pt * np.cos(hits.phi), pt * np.sin(hits.phi), pt * np.sinh(hits.eta)]
    p4 = np.stack([*p3, hits.energy], axis=1)
    kinds, charges = np.full(n_towers, kind), np.zeros(n_towers, np.int64)
    keys = np.full(n_towers, -1) if keys is None else keys
    return Flow(hits.event, kinds, charges, p4, pt, hits.eta, hits.phi, keys)


def _ordered(*parts: Flow) -> Flow:
    """Puts candidates together, ordered by collision."""
    flow = Flow.join(parts)
    return flow[np.argsort(flow.event, kind="stable")]
