"""Tracks: bending in the magnetic field, losses in dense cores, efficiencies and smearing.

A particle of charge q = +-1 and transverse momentum pT that starts at the beam line runs on a
helix of radius r = pT / (0.2998 B), in metres for GeV and tesla. It leaves a cylinder of radius R
and half length L after its direction has turned by 2 psi, where

    psi = min( arcsin(R / 2r),  L / (2 r |sinh eta|) )

(the side is out of reach for 2r < R). It leaves at the azimuth phi - q psi, at the distance
2 r sin psi from the beam line and at z = 2 r psi sinh eta. That point, seen from the origin,
decides which calorimeter tower is hit, and enters the efficiency and the resolution of the track.
Particles are taken to come from the origin: decay lengths of a few millimetres are neglected.

Where two tracks enter one cell of 0.003 x 0.003 in (eta, phi) of the innermost layers, only the one
of higher transverse momentum is found.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from massrecon.events.particles import (
    ELECTRON,
    HADRON,
    LONG_LIVED,
    MUON,
    PHOTON,
    Floats,
    Integers,
    Mask,
    Particles,
)
from massrecon.events.response import (
    TRACK_ETA_MAX,
    TRACK_PT_MIN,
    electron_tracking,
    hadron_tracking,
    log_normal,
    muon_tracking,
    track_resolution,
)

DIRECTION_RESOLUTION = 0.003
"""Resolution of the direction of a track in eta and in phi, and size of a dense cell."""

_PT_MIN = 1e-3
_ETA_MAX = 5.0
_BENDING = 0.299792458
_CODES = 10_000
_NEW_PARTICLES_FROM = 1_000_000
_INVISIBLE = -1


def _particle_table() -> tuple[np.ndarray, np.ndarray]:
    """Lists kind and charge by absolute PDG code; the charge is that of the positive code."""
    kind, charge = np.full(_CODES, HADRON), np.zeros(_CODES, np.int64)
    kind[[12, 14, 16]] = _INVISIBLE
    kind[[310, 3122]] = LONG_LIVED
    for code in (ELECTRON, MUON, PHOTON):
        kind[code] = code
    charge[[211, 321, 2212, 3222]] = 1
    charge[[ELECTRON, MUON, 3112, 3312, 3334]] = -1
    return kind, charge


_KIND, _CHARGE = _particle_table()


@dataclass(frozen=True)
class Volume:
    """A cylinder around the beam line.

    Attributes:
        radius: Radius [m].
        half_length: Half length along the beam [m].
    """

    radius: float
    half_length: float


TRACKER = Volume(1.2, 3.25)
PIXELS = Volume(0.3, 0.7)


@dataclass(frozen=True)
class Passage:
    """Visible particles on their way from the origin through the tracker.

    Attributes:
        event: Number of the collision, shape ``(n,)``.
        kind: 11 electron, 13 muon, 22 photon, 310 K-short or Lambda, 0 other hadrons.
        charge: Electric charge.
        energy: Energy [GeV].
        pt: Transverse momentum [GeV].
        slope: pz / pT, the sinh of the pseudorapidity.
        phi: Azimuth at the origin.
        eta_out: Pseudorapidity of the point where the particle leaves the tracker.
        phi_out: Azimuth of that point.
    """

    event: Integers
    kind: Integers
    charge: Integers
    energy: Floats
    pt: Floats
    slope: Floats
    phi: Floats
    eta_out: Floats
    phi_out: Floats

    def __getitem__(self, which: Mask | Integers) -> Passage:
        """Selects particles by mask or index."""
        return Passage(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def of(cls, particles: Particles, magnetic_field: float) -> Passage:
        """Bends the visible particles; neutrinos, new particles and the beam line are dropped.

        Args:
            particles: Stable particles.
            magnetic_field: Field along the beam [T].
        """
        code = np.abs(particles.pdg)
        kind = np.where(code < _CODES, _KIND[np.minimum(code, _CODES - 1)], HADRON)
        pt = np.hypot(particles.px, particles.py)
        seen = (kind != _INVISIBLE) & (code < _NEW_PARTICLES_FROM)
        seen &= pt > np.maximum(_PT_MIN, np.abs(particles.pz) * (1.0 / np.sinh(_ETA_MAX)))
        seen = np.flatnonzero(seen)
        particles, kind, pt = particles[seen], kind[seen], pt[seen]
        charge = _CHARGE[np.minimum(code[seen], _CODES - 1)] * np.sign(particles.pdg)
        slope, phi = particles.pz / pt, np.arctan2(particles.py, particles.px)
        is_bent = (charge != 0) & (magnetic_field > 0.0)
        straight, bent = np.flatnonzero(~is_bent), np.flatnonzero(is_bent)
        eta_out, phi_out = np.empty_like(pt), phi.copy()
        eta_out[straight] = np.arcsinh(slope[straight])
        eta_out[bent], phi_out[bent] = bend(
            pt[bent], slope[bent], phi[bent], charge[bent], magnetic_field, TRACKER
        )
        energy = particles.energy
        return cls(particles.event, kind, charge, energy, pt, slope, phi, eta_out, phi_out)


def bend(
    pt: Floats,
    slope: Floats,
    phi: Floats,
    charge: Integers,
    magnetic_field: float,
    volume: Volume,
) -> tuple[Floats, Floats]:
    """Follows charged particles from the origin to the surface of a volume.

    Args:
        pt: Transverse momentum [GeV], shape ``(n,)``.
        slope: pz / pT.
        phi: Azimuth at the origin.
        charge: Electric charge, +1 or -1.
        magnetic_field: Field along the beam [T], above 0 where there are particles.
        volume: Where the particles leave.

    Returns:
        Pseudorapidity and azimuth of the point of exit, as seen from the origin.
    """
    diameter = 2.0 * pt / (_BENDING * max(magnetic_field, 1e-9))
    steepness = np.maximum(np.abs(slope), 1e-9)
    to_side = volume.radius / diameter
    psi_side = np.where(to_side <= 1.0, np.arcsin(np.minimum(to_side, 1.0)), np.inf)
    psi = np.minimum(psi_side, volume.half_length / (diameter * steepness))
    sine = np.sin(psi)
    eta = np.arcsinh(slope * psi / np.maximum(np.abs(sine), 1e-9))
    phi = phi - charge * psi + np.where(sine < 0.0, np.pi, 0.0)
    return eta, phi - 2.0 * np.pi * np.round(phi / (2.0 * np.pi))


@dataclass(frozen=True)
class Tracks:
    """Measured tracks, in the order of the particles.

    Attributes:
        event: Number of the collision, shape ``(n,)``.
        kind: 11 electron, 13 muon, 0 hadron.
        charge: Electric charge.
        pt: Measured transverse momentum [GeV].
        eta: Measured pseudorapidity at the origin.
        phi: Measured azimuth at the origin.
        mass_squared: True mass squared [GeV^2].
        sigma: Relative resolution of the momentum.
        eta_out: Pseudorapidity where the particle enters the calorimeter.
        phi_out: Azimuth there.
    """

    event: Integers
    kind: Integers
    charge: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    mass_squared: Floats
    sigma: Floats
    eta_out: Floats
    phi_out: Floats

    def __getitem__(self, which: Mask | Integers) -> Tracks:
        """Selects tracks by mask or index."""
        return Tracks(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def measure(cls, passage: Passage, magnetic_field: float, rng: np.random.Generator) -> Tracks:
        """Measures the tracks of all charged particles.

        Args:
            passage: Visible particles.
            magnetic_field: Field along the beam [T].
            rng: Source of efficiencies and smearing.
        """
        return cls.draw(separable(passage, magnetic_field), rng)

    @classmethod
    def draw(cls, charged: Passage, rng: np.random.Generator) -> Tracks:
        """Draws which particles leave a track, and smears its momentum and direction.

        Args:
            charged: Charged particles, as `separable` returns them.
            rng: Source of efficiencies and smearing.
        """
        found = rng.random(len(charged.pt)) < _efficiency(charged)
        truth = charged[np.flatnonzero(found)]
        sigma = track_resolution(truth.pt, np.abs(truth.eta_out), truth.kind == MUON)
        noise = DIRECTION_RESOLUTION * rng.standard_normal((2, len(sigma)))
        mass_squared = truth.energy**2 - (truth.pt**2) * (1.0 + truth.slope**2)
        return cls(
            event=truth.event,
            kind=truth.kind,
            charge=truth.charge,
            pt=log_normal(truth.pt, sigma * truth.pt, rng),
            eta=np.arcsinh(truth.slope) + noise[0],
            phi=truth.phi + noise[1],
            mass_squared=np.maximum(mass_squared, 0.0),
            sigma=sigma,
            eta_out=truth.eta_out,
            phi_out=truth.phi_out,
        )

    @property
    def energy(self) -> Floats:
        """Energy at the true mass [GeV]."""
        return np.sqrt((self.pt * np.cosh(self.eta)) ** 2 + self.mass_squared)

    @property
    def p4(self) -> Floats:
        """Four-momentum (px, py, pz, E) [GeV], shape ``(n, 4)``."""
        pz = self.pt * np.sinh(self.eta)
        energy = np.sqrt(self.pt**2 + pz**2 + self.mass_squared)
        return np.stack([self.pt * np.cos(self.phi), self.pt * np.sin(self.phi), pz, energy], 1)

    def rescaled(self, which: Mask, scale: Floats) -> Tracks:
        """Multiplies the momenta of the chosen tracks by `scale`."""
        pt = self.pt.copy()
        pt[which] *= scale
        return replace(self, pt=pt)


def _efficiency(charged: Passage) -> Floats:
    """Looks up the probability that each charged particle leaves a track."""
    abs_eta = np.abs(charged.eta_out)
    efficiency = hadron_tracking(charged.pt, abs_eta)
    for lepton, tracking in ((ELECTRON, electron_tracking), (MUON, muon_tracking)):
        this = np.flatnonzero(charged.kind == lepton)
        efficiency[this] = tracking(charged.pt[this], abs_eta[this])
    return efficiency


def separable(passage: Passage, magnetic_field: float) -> Passage:
    """Keeps the charged particles that no harder one hides in its cell of the pixels.

    Args:
        passage: Visible particles.
        magnetic_field: Field along the beam [T].
    """
    charged = passage[np.flatnonzero((passage.charge != 0) & (passage.pt > TRACK_PT_MIN))]
    return charged[_not_hidden(charged, magnetic_field)]


def _not_hidden(charged: Passage, magnetic_field: float) -> Integers:
    """Lists the particles that have no harder one in their cell of the pixels."""
    eta, phi = charged.eta_out, charged.phi
    if magnetic_field > 0.0:
        eta, phi = bend(
            charged.pt, charged.slope, charged.phi, charged.charge, magnetic_field, PIXELS
        )
    n_eta = 2 * int(TRACK_ETA_MAX / DIRECTION_RESOLUTION) + 2
    n_phi = 2 * int(np.pi / DIRECTION_RESOLUTION)
    row = ((eta + TRACK_ETA_MAX) * (1.0 / DIRECTION_RESOLUTION)).astype(np.int64)
    column = ((phi + np.pi) * (n_phi / (2.0 * np.pi))).astype(np.int64)
    key = (charged.event * n_eta + np.clip(row, 0, n_eta - 1)) * (n_phi + 1) + column
    order = np.argsort(key)
    again = np.diff(key[order], prepend=-1) == 0
    crowded = np.isin(key, key[order[again]])
    inside = np.abs(eta) < TRACK_ETA_MAX
    crowd = np.flatnonzero(crowded)
    ranked = crowd[np.lexsort((-charged.pt[crowd], key[crowd]))]
    inside[ranked[np.diff(key[ranked], prepend=-1) == 0]] = False
    return np.flatnonzero(inside)
