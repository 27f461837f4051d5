"""Fast HL-LHC-like detector response: stable particles in, leptons, photons, jets and ptmiss out.

The chain follows the public Delphes card for the HL-LHC without pile-up, at the level of particle
four-momenta: tracking, track smearing, electromagnetic and hadronic calorimeter with energy flow,
isolation and identification of photons, electrons and muons, anti-kT jets (R = 0.4) of everything
else, and ptmiss = -sum of the energy flow. K-short and Lambda share their energy between the two
calorimeters. An electron is lost when a reconstructed photon sits in its own calorimeter tower
(the card's photons take precedence).

Not emulated: bending in the magnetic field, loss of tracks in dense cores, b and tau tags; soft
ptmiss noise stands in for pile-up. All functions work on the particles of many collisions at once,
as flat arrays with the number of the collision in `event`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from massrecon.errors import require_extra
from massrecon.events.calorimeter import (
    ECAL,
    HCAL,
    Balance,
    Calorimeter,
    Deposits,
    log_normal,
)
from massrecon.events.isolation import find_objects
from massrecon.events.objects import Objects
from massrecon.events.particles import (
    ELECTRON,
    HADRON,
    MUON,
    PHOTON,
    Floats,
    Flow,
    Integers,
    Mask,
    Particles,
    total_by,
)
from massrecon.events.response import (
    electron_tracking,
    hadron_tracking,
    muon_tracking,
    track_resolution,
)
from massrecon.events.sections import SlotGroup

JET_RADIUS = 0.4

_CHARGED_HADRONS = (211, 321, 2212, 3112, 3222, 3312, 3334)
_INVISIBLE = (12, 14, 16)
_LONG_LIVED = (310, 3122)
_LONG_LIVED_ECAL_SHARE = 0.3
_NEW_PARTICLES_FROM = 1_000_000
_PT_MIN = 1e-3


@dataclass(frozen=True)
class Response:
    """What the detector makes of a batch of collisions, before jets.

    Attributes:
        objects: Isolated, identified electrons, muons and photons.
        rest: All other energy flow: the input of the jets.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(n_events, 2)``.
    """

    objects: Flow
    rest: Flow
    ptmiss: Floats

    def find(self, group: SlotGroup, wanted: Mask) -> Objects:
        """Returns the leptons or the photons, or clusters the jets of the wanted collisions."""
        if group.kind == "jet":
            rest = self.rest[wanted[self.rest.event]]
            event, p4 = cluster_jets(rest, len(wanted), group.pt_min)
            return Objects(event, p4)
        flow = self.objects[(self.objects.kind == PHOTON) == (group.kind == "photon")]
        return Objects(flow.event, flow.p4, {"charge": flow.charge, "flavour": flow.kind})


def detect(
    particles: Particles,
    n_events: int,
    rng: np.random.Generator,
    ptmiss_noise: float = 0.0,
) -> Response:
    """Simulates the detector for all particles of `n_events` collisions.

    Args:
        particles: Stable particles, neutrinos included.
        n_events: Number of collisions.
        rng: Source of all smearing.
        ptmiss_noise: Extra Gaussian width of each component of ptmiss [GeV], for pile-up.
    """
    flow = energy_flow(particles, rng)
    is_object = find_objects(flow, rng)
    ptmiss = -np.stack([total_by(flow.event, flow.p4[:, i], n_events) for i in (0, 1)], axis=1)
    if ptmiss_noise > 0.0:
        ptmiss = ptmiss + ptmiss_noise * rng.standard_normal(ptmiss.shape)
    return Response(flow[is_object], flow[~is_object], ptmiss)


def cluster_jets(flow: Flow, n_events: int, pt_min: float) -> tuple[Integers, Floats]:
    """Clusters anti-kT jets of radius 0.4.

    Args:
        flow: Energy flow, ordered by collision.
        n_events: Number of collisions.
        pt_min: Lowest transverse momentum of a jet [GeV].

    Returns:
        Number of the collision ``(n_jets,)`` and four-momentum (px, py, pz, E) [GeV]
        ``(n_jets, 4)`` of every jet.

    Raises:
        MissingExtraError: If FastJet is not installed.
    """
    awkward = require_extra("awkward", extra="mc")
    fastjet = require_extra("fastjet", extra="mc")
    if len(flow.event) == 0:
        return np.zeros(0, np.int64), np.zeros((0, 4))
    momenta = {name: flow.p4[:, i] for i, name in enumerate(("px", "py", "pz", "E"))}
    counts = np.bincount(flow.event, minlength=n_events)
    particles = awkward.unflatten(awkward.zip(momenta, with_name="Momentum4D"), counts)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)
    jets = fastjet.ClusterSequence(particles, definition).inclusive_jets(min_pt=pt_min)
    event = np.repeat(np.arange(n_events), awkward.to_numpy(awkward.num(jets.px)))
    columns = [awkward.to_numpy(awkward.flatten(jets[name])) for name in momenta]
    return event, np.stack(columns, axis=1)


def _visible(particles: Particles) -> Particles:
    """Drops what no detector sees: neutrinos, new stable particles, the beam line."""
    code = np.abs(particles.pdg)
    pt_squared = particles.px**2 + particles.py**2
    seen = (code < _NEW_PARTICLES_FROM) & ~np.isin(code, _INVISIBLE)
    seen &= pt_squared > np.maximum(_PT_MIN, np.abs(particles.pz) / np.sinh(5.0)) ** 2
    return particles[seen]


def energy_flow(particles: Particles, rng: np.random.Generator) -> Flow:
    """Measures tracks, balances them with both calorimeters and lists the candidates.

    Args:
        particles: Stable particles.
        rng: Source of all smearing.
    """
    particles = _visible(particles)
    code = np.abs(particles.pdg)
    pt = np.hypot(particles.px, particles.py)
    eta = np.arcsinh(particles.pz / pt)
    phi = np.arctan2(particles.py, particles.px)
    hits = Deposits(particles.event, eta, phi, particles.energy)

    tracked, sigma = _track(code, pt, np.abs(eta), rng)
    ecal_share = np.where((code == ELECTRON) | (code == PHOTON), 1.0, 0.0)
    ecal_share[np.isin(code, _LONG_LIVED)] = _LONG_LIVED_ECAL_SHARE
    hcal_share = np.where(code == MUON, 0.0, 1.0 - ecal_share)

    tracks = _Tracks.smear(particles[tracked], hits.eta[tracked], hits.phi[tracked], sigma, rng)
    is_electron = tracks.kind == ELECTRON
    ecal = ECAL.measure(_share(hits, ecal_share, ECAL), *tracks.pointing(is_electron), rng)
    tracks = tracks.rescaled(is_electron, ecal.track_scale)
    is_hadron = tracks.kind == HADRON
    hcal = HCAL.measure(_share(hits, hcal_share, HCAL), *tracks.pointing(is_hadron), rng)
    tracks = tracks.rescaled(is_hadron, hcal.track_scale)

    track_tower = np.full(len(tracks.kind), -1)
    track_tower[is_electron] = ecal.track_tower
    return _merge(tracks, track_tower, ecal, hcal)


def _track(
    code: Integers, pt: Floats, abs_eta: Floats, rng: np.random.Generator
) -> tuple[Integers, Floats]:
    """Draws which particles leave a track; returns their indices and relative resolutions."""
    charged = np.flatnonzero(np.isin(code, (ELECTRON, MUON, *_CHARGED_HADRONS)))
    code, pt, abs_eta = code[charged], pt[charged], abs_eta[charged]
    efficiency = hadron_tracking(pt, abs_eta)
    for lepton, tracking in ((ELECTRON, electron_tracking), (MUON, muon_tracking)):
        this = code == lepton
        efficiency[this] = tracking(pt[this], abs_eta[this])
    found = rng.random(len(charged)) < efficiency
    return charged[found], track_resolution(pt[found], abs_eta[found], code[found] == MUON)


def _share(hits: Deposits, share: Floats, calorimeter: Calorimeter) -> Deposits:
    """Keeps the hits that leave energy in a calorimeter, with their share of the energy."""
    some = (share > 0.0) & calorimeter.towers.contains(hits.eta)
    return Deposits(
        hits.event[some], hits.eta[some], hits.phi[some], hits.energy[some] * share[some]
    )


@dataclass(frozen=True)
class _Tracks:
    """Measured tracks: momentum `p3` ``(n, 3)`` [GeV], mass squared, relative resolution."""

    event: Integers
    kind: Integers
    charge: Integers
    p3: Floats
    mass_squared: Floats
    eta: Floats
    phi: Floats
    sigma: Floats

    @classmethod
    def smear(
        cls,
        truth: Particles,
        eta: Floats,
        phi: Floats,
        sigma: Floats,
        rng: np.random.Generator,
    ) -> _Tracks:
        """Smears the length of the momentum log-normally; directions are kept."""
        p3 = np.stack([truth.px, truth.py, truth.pz], axis=1)
        mass_squared = np.maximum(truth.energy**2 - np.sum(p3**2, axis=1), 0.0)
        code = np.abs(truth.pdg)
        is_lepton = (code == ELECTRON) | (code == MUON)
        sign = np.sign(truth.pdg) * np.where(is_lepton | _is_negative(code), -1, 1)
        scale = log_normal(np.ones(len(code)), sigma, rng)
        kind = np.where(is_lepton, code, HADRON)
        return cls(truth.event, kind, sign, p3 * scale[:, None], mass_squared, eta, phi, sigma)

    @property
    def energy(self) -> Floats:
        """Energy at the true mass [GeV]."""
        return np.sqrt(np.sum(self.p3**2, axis=1) + self.mass_squared)

    def pointing(self, which: Mask) -> tuple[Deposits, Floats]:
        """Returns the chosen tracks as seen by a calorimeter, and their energy resolutions."""
        energy = self.energy[which]
        hits = Deposits(self.event[which], self.eta[which], self.phi[which], energy)
        return hits, self.sigma[which] * energy

    def rescaled(self, which: Mask, scale: Floats) -> _Tracks:
        """Multiplies the momenta of the chosen tracks by `scale`."""
        p3 = self.p3.copy()
        p3[which] *= scale[:, None]
        return replace(self, p3=p3)


def _is_negative(code: Integers) -> Mask:
    """Says which charged hadrons have negative charge for a positive PDG code."""
    return np.isin(code, (3112, 3312, 3334))


def _merge(tracks: _Tracks, track_tower: Integers, ecal: Balance, hcal: Balance) -> Flow:
    """Lists tracks and neutral excesses as candidates, ordered by collision."""
    photons, hadrons = ecal.neutral, hcal.neutral
    n_photons, n_hadrons = len(photons.event), len(hadrons.event)
    neutral_p4 = [_massless(photons), _massless(hadrons)]
    track_p4 = np.concatenate([tracks.p3, tracks.energy[:, None]], axis=1)
    event = np.concatenate([tracks.event, photons.event, hadrons.event])
    p4 = np.concatenate([track_p4, *neutral_p4])
    flow = Flow(
        event=event,
        kind=np.concatenate([tracks.kind, np.full(n_photons, PHOTON), np.full(n_hadrons, HADRON)]),
        charge=np.concatenate([tracks.charge, np.zeros(n_photons + n_hadrons, np.int64)]),
        p4=p4,
        pt=np.hypot(p4[:, 0], p4[:, 1]),
        eta=np.concatenate([tracks.eta, photons.eta, hadrons.eta]),
        phi=np.concatenate([tracks.phi, photons.phi, hadrons.phi]),
        tower=np.concatenate([track_tower, ecal.neutral_tower, np.full(n_hadrons, -1)]),
    )
    return flow[np.argsort(event, kind="stable")]


def _massless(hits: Deposits) -> Floats:
    pt = hits.energy / np.cosh(hits.eta)
    p3 = [pt * np.cos(hits.phi), pt * np.sin(hits.phi), pt * np.sinh(hits.eta)]
    return np.stack([*p3, hits.energy], axis=1)
