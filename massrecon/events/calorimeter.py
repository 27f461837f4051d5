"""Calorimeter towers and the energy-flow balance between towers and tracks.

In every tower the deposited energy E is smeared log-normally with the tower's resolution sigma(E)
and dropped below the noise threshold. It is then compared with the tracks that point at the tower:
a significant neutral excess, (E - sum E_track) > n * sqrt(sigma^2 + sum sigma_track^2), becomes a
neutral particle; otherwise the tracks are rescaled to the weighted mean of both measurements.

References:
    J. de Favereau et al. (DELPHES 3), JHEP 02 (2014) 057, arXiv:1307.6346, Sec. 2.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from massrecon.events.particles import Floats, Integers, Mask, total_by
from massrecon.events.response import ecal_resolution, hcal_resolution, log_normal


@dataclass(frozen=True)
class Deposits:
    """Energy that enters a calorimeter, one row per particle (or track).

    Attributes:
        event: Number of the collision, shape ``(n,)``.
        eta: Pseudorapidity.
        phi: Azimuth in (-pi, pi].
        energy: Energy [GeV].
    """

    event: Integers
    eta: Floats
    phi: Floats
    energy: Floats

    def __getitem__(self, which: Mask | Integers) -> Deposits:
        """Selects rows by mask or index."""
        return Deposits(self.event[which], self.eta[which], self.phi[which], self.energy[which])


@dataclass(frozen=True)
class Balance:
    """What a calorimeter makes of the deposits and tracks.

    Attributes:
        towers: Measured towers above threshold; the direction is uniform within the tower.
        tower: Key of each of them, shape ``(n_towers,)``.
        neutral: Neutral excesses, in the direction of their towers.
        neutral_tower: Key of the tower of each neutral excess, shape ``(n_neutral,)``.
        track_tower: Key of the tower of each track, shape ``(n_tracks,)``.
        track_scale: Factor for the momentum of each track, shape ``(n_tracks,)``.
    """

    towers: Deposits
    tower: Integers
    neutral: Deposits
    neutral_tower: Integers
    track_tower: Integers
    track_scale: Floats


class Towers:
    """The segmentation of a calorimeter: rings in eta, each cut into equal cells in phi."""

    def __init__(self, eta_edges: Floats, phi_cells: Integers) -> None:
        """Numbers the cells; `phi_cells` counts those of each ring, shape ``(n_edges - 1,)``."""
        self.eta_edges = eta_edges
        self.phi_cells = phi_cells
        self._first = np.concatenate([[0], np.cumsum(phi_cells)])
        self._ring = np.repeat(np.arange(len(phi_cells)), phi_cells)
        # a grid so fine that no two edges lie in one of its steps, and the ring where each begins
        self._per_step = 2.0 / np.diff(eta_edges).min()
        n_steps = int((eta_edges[-1] - eta_edges[0]) * self._per_step) + 1
        grid = eta_edges[0] + np.arange(n_steps) / self._per_step
        self._begins = np.maximum(np.searchsorted(eta_edges, grid) - 1, 0)

    @property
    def n_cells(self) -> int:
        """Number of cells of the whole calorimeter."""
        return int(self._first[-1])

    def key(self, hits: Deposits) -> Integers:
        """Returns a number that is unique to the collision and the cell of each hit."""
        ring = self._ring_at(hits.eta)
        cells = self.phi_cells[ring]
        cell = ((hits.phi + np.pi) * (cells / (2.0 * np.pi))).astype(np.int64)
        return hits.event * self.n_cells + self._first[ring] + np.minimum(cell, cells - 1)

    def _ring_at(self, eta: Floats) -> Integers:
        """Finds the ring of each pseudorapidity, upper edge included, faster than by bisection."""
        step = ((eta - self.eta_edges[0]) * self._per_step).astype(np.int64)
        ring = self._begins[step]
        return ring + (eta > self.eta_edges[ring + 1])

    def contains(self, eta: Floats) -> Mask:
        """Says which pseudorapidities the calorimeter covers."""
        return (eta > self.eta_edges[0]) & (eta < self.eta_edges[-1])

    def ring(self, key: Integers) -> Integers:
        """Returns the eta ring of each key."""
        return self._ring[key % self.n_cells]

    def centre(self, key: Integers) -> Floats:
        """Returns the pseudorapidity of the centre of each cell."""
        ring = self.ring(key)
        return 0.5 * (self.eta_edges[ring] + self.eta_edges[ring + 1])

    def scatter(self, key: Integers, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Draws a direction (eta, phi) uniformly within each cell."""
        ring = self.ring(key)
        low, high = self.eta_edges[ring], self.eta_edges[ring + 1]
        cell = key % self.n_cells - self._first[ring] + rng.random(len(key))
        phi = cell * (2.0 * np.pi / self.phi_cells[ring]) - np.pi
        return low + rng.random(len(key)) * (high - low), phi


@dataclass(frozen=True)
class Calorimeter:
    """A segmented calorimeter with its resolution and noise thresholds.

    Attributes:
        towers: Segmentation.
        resolution: Function (energy [GeV], abs_eta) -> energy resolution [GeV].
        energy_min: Lowest energy of a tower and of a neutral excess [GeV].
        significance_min: Lowest energy in units of the resolution.
    """

    towers: Towers
    resolution: Callable[[Floats, Floats], Floats]
    energy_min: float
    significance_min: float

    def measure(
        self,
        deposits: Deposits,
        tracks: Deposits,
        track_sigma: Floats,
        rng: np.random.Generator,
    ) -> Balance:
        """Smears the towers and balances them against the tracks.

        Args:
            deposits: True energy deposits, all within the calorimeter.
            tracks: Measured tracks that point at this calorimeter.
            track_sigma: Energy resolution of each track [GeV], shape ``(n_tracks,)``.
            rng: Source of the smearing.
        """
        n_deposits = len(deposits.energy)
        keys = np.concatenate([self.towers.key(deposits), self.towers.key(tracks)])
        tower, index = np.unique(keys, return_inverse=True)
        track_index = index[n_deposits:]
        deposited = total_by(index[:n_deposits], deposits.energy, len(tower))
        energy, sigma_squared = self._smear(deposited, np.abs(self.towers.centre(tower)), rng)
        charged = total_by(track_index, tracks.energy, len(tower))
        charged_sigma_squared = total_by(track_index, track_sigma**2, len(tower))

        excess = np.maximum(energy - charged, 0.0)
        noise_squared = sigma_squared + charged_sigma_squared + 1e-12
        is_neutral = excess > self.energy_min
        is_neutral &= excess**2 > self.significance_min**2 * noise_squared
        best = (sigma_squared * charged + charged_sigma_squared * energy) / noise_squared
        keep = is_neutral | (charged <= 0.0)
        scale = np.where(keep, 1.0, best / np.maximum(charged, 1e-9))

        lit = np.flatnonzero(energy > 0.0)
        eta, phi = self.towers.scatter(tower[lit], rng)
        towers = Deposits(tower[lit] // self.towers.n_cells, eta, phi, energy[lit])
        neutral = replace(towers[is_neutral[lit]], energy=excess[is_neutral])
        kept = tower[is_neutral]
        return Balance(towers, tower[lit], neutral, kept, keys[n_deposits:], scale[track_index])

    def _smear(
        self, deposited: Floats, abs_eta: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Smears tower energies log-normally and drops those below the noise thresholds.

        Returns:
            Energies [GeV] and the squares of the resolutions at the smeared energies [GeV^2].
        """
        energy = log_normal(deposited, self.resolution(deposited, abs_eta), rng)
        sigma = self.resolution(energy, abs_eta)
        quiet = energy < np.maximum(self.energy_min, self.significance_min * sigma)
        return np.where(quiet, 0.0, energy), sigma**2


def _ecal_towers() -> Towers:
    fine = np.arange(-170, 171) * 0.0174
    forward = np.array([3.125, 3.3, 3.475, 3.65, 3.825, 4.0, 4.175, 4.35, 4.525, 4.7, 5.0])
    eta = np.concatenate([-forward[::-1], fine, forward])
    return Towers(eta, np.where(np.abs(eta[:-1] + eta[1:]) < 2 * 2.958, 360, 36))


def _hcal_towers() -> Towers:
    fine = np.round(np.arange(-25, 27) * 0.1, 1)
    backward = np.array(
        [-4.9, -4.7, -4.5, -4.3, -4.1, -3.9, -3.7, -3.5, -3.3, -3.2, -3.0, -2.8, -2.6]
    )
    forward = np.array([2.8, 3.0, 3.2, 3.3, 3.5, 3.7, 3.9, 4.1, 4.3, 4.5, 4.7, 4.9])
    eta = np.concatenate([backward, fine, forward])
    centre = np.abs(eta[:-1] + eta[1:]) / 2.0
    # a single ring of fine cells lies further out, as in the card
    is_fine = (centre < 2.6) | ((centre > 3.2) & (centre < 3.3))
    return Towers(eta, np.where(is_fine, 36, 18))


ECAL = Calorimeter(_ecal_towers(), ecal_resolution, energy_min=0.5, significance_min=1.0)
HCAL = Calorimeter(_hcal_towers(), hcal_resolution, energy_min=1.0, significance_min=2.0)
