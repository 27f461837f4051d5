"""Particles as flat arrays over many collisions: stable particles and energy-flow candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

ELECTRON, MUON, PHOTON = 11, 13, 22
MASSES = {ELECTRON: 0.000510999, MUON: 0.1056584, PHOTON: 0.0}
"""Masses of what is measured without one, by absolute PDG code [GeV]."""

HADRON = 0
LONG_LIVED = 310


@dataclass(frozen=True)
class Particles:
    """Stable particles of many collisions.

    Attributes:
        event: Number of the collision, ascending, shape ``(n,)``.
        pdg: PDG identity code.
        px: Momentum component [GeV].
        py: Momentum component [GeV].
        pz: Momentum component [GeV].
        energy: Energy [GeV].
    """

    event: Integers
    pdg: Integers
    px: Floats
    py: Floats
    pz: Floats
    energy: Floats

    @classmethod
    def none(cls) -> Particles:
        """A list without any particle."""
        codes, momenta = np.zeros(0, np.int64), np.zeros(0)
        return cls(codes, codes, momenta, momenta, momenta, momenta)

    @property
    def p4(self) -> Floats:
        """Four-momenta (px, py, pz, E) [GeV], shape ``(n, 4)``."""
        return np.stack([self.px, self.py, self.pz, self.energy], axis=1)

    def __getitem__(self, which: Mask | Integers) -> Particles:
        """Selects particles by mask or index."""
        return Particles(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class Flow:
    """Energy flow: what the detector sees, as particle candidates ordered by collision.

    Attributes:
        event: Number of the collision, shape ``(n,)``.
        kind: 11 electron, 13 muon, 22 photon, 0 hadron.
        charge: Electric charge; the sign of the track, 0 for neutral candidates.
        p4: Four-momentum (px, py, pz, E) [GeV], shape ``(n, 4)``.
        pt: Transverse momentum [GeV].
        eta: Pseudorapidity.
        phi: Azimuth.
        tower: Key of the electromagnetic tower of electrons and photons, a negative key of its own
            for each muon, -1 for the rest: candidates with the same key share a particle.
    """

    event: Integers
    kind: Integers
    charge: Integers
    p4: Floats
    pt: Floats
    eta: Floats
    phi: Floats
    tower: Integers

    def __getitem__(self, which: Mask | Integers) -> Flow:
        """Selects candidates by mask or index."""
        return Flow(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Flow]) -> Flow:
        """Puts lists behind each other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def total_by(index: Integers, values: Floats, n: int) -> Floats:
    """Sums `values` by the number in `index`, shape ``(n,)``."""
    return np.bincount(index, weights=values, minlength=n).astype(np.float64, copy=False)


def pairs_by(index: Integers, other_index: Integers) -> tuple[Integers, Integers]:
    """Pairs every row with all rows of another list that belong to the same collision.

    Args:
        index: Number of the collision of each row, shape ``(n,)``.
        other_index: The same for the other list, ascending, shape ``(m,)``.

    Returns:
        Positions in the first and in the other list, one entry a pair.
    """
    first = np.searchsorted(other_index, index)
    count = np.searchsorted(other_index, index, side="right") - first
    row = np.repeat(np.arange(len(index)), count)
    return row, np.arange(len(row)) + np.repeat(first - np.cumsum(count) + count, count)


def directions(p4: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns pT [GeV], pseudorapidity and azimuth of momenta ``(..., 3)`` or ``(..., 4)``."""
    pt = np.hypot(p4[..., 0], p4[..., 1])
    eta = np.arcsinh(p4[..., 2] / np.maximum(pt, 1e-9))
    return pt, eta, np.arctan2(p4[..., 1], p4[..., 0])


def distance(eta: Floats, phi: Floats, other_eta: Floats, other_phi: Floats) -> Floats:
    """Computes Delta R, the distance in pseudorapidity and azimuth."""
    delta_phi = np.abs(phi - other_phi)
    return np.hypot(eta - other_eta, np.minimum(delta_phi, 2.0 * np.pi - delta_phi))


def finite_rows(values: Floats) -> Mask:
    """Says for each entry of the first axis whether all its values are finite, shape ``(n,)``."""
    return np.logical_and.reduce(np.isfinite(values), axis=tuple(range(1, values.ndim)))
