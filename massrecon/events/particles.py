"""Particles as flat arrays over many collisions: stable particles and energy-flow candidates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

ELECTRON, MUON, PHOTON = 11, 13, 22
HADRON = 0


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
        tower: Key of the electromagnetic tower of electrons and photons, -1 for the rest.
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


def total_by(index: Integers, values: Floats, n: int) -> Floats:
    """Sums `values` by the number in `index`, shape ``(n,)``."""
    return np.bincount(index, weights=values, minlength=n).astype(np.float64, copy=False)
