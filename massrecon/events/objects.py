"""Reconstructed objects as flat arrays over many collisions, wherever they come from.

The detector response and the importers of reconstructed events both hand over a `Reconstruction`;
the selection turns it into the slots of a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from massrecon.events.particles import Floats, Integers, Mask
from massrecon.events.sections import SlotGroup


@dataclass(frozen=True)
class Objects:
    """Reconstructed objects of one kind, ordered by collision.

    Attributes:
        event: Number of the collision, ascending, shape ``(n,)``.
        p4: Four-momentum (px, py, pz, E) [GeV], shape ``(n, 4)``.
        attributes: Further properties by name, each ``(n,)``: ``charge``; ``flavour`` (11 or 13 for
            leptons, 22 for photons, 0 for jets); ``btag`` (tightest working point passed: 0 none, 1
            loose, 2 medium, 3 tight) and ``tautag`` (0 or 1) of jets; ``softdrop_mass`` [GeV],
            ``tau21`` and ``tau32`` of large-radius jets. One that is missing is zero.
    """

    event: Integers
    p4: Floats
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, which: Mask | Integers) -> Objects:
        """Selects objects by mask or index."""
        attributes = {name: values[which] for name, values in self.attributes.items()}
        return Objects(self.event[which], self.p4[which], attributes)

    def accepted(self, group: SlotGroup) -> Objects:
        """Keeps the objects within the card's limits, ordered by collision and falling pT."""
        pt = np.hypot(self.p4[:, 0], self.p4[:, 1])
        abs_eta = np.arcsinh(np.abs(self.p4[:, 2]) / np.maximum(pt, 1e-9))
        good = np.flatnonzero((pt > group.pt_min) & (abs_eta < group.eta_max))
        return self[good[np.lexsort((-pt[good], self.event[good]))]]

    def rank(self) -> Integers:
        """Returns the position of each object within its collision, shape ``(n,)``."""
        return np.arange(len(self.event)) - np.searchsorted(self.event, self.event)


class Reconstruction(Protocol):
    """What was reconstructed in N collisions."""

    @property
    def ptmiss(self) -> Floats:
        """Missing transverse momentum (px, py) [GeV], shape ``(N, 2)``."""
        ...

    def find(self, group: SlotGroup, wanted: Mask) -> Objects:
        """Returns the objects of one kind.

        Args:
            group: Kind, and limits that may be used to save work.
            wanted: Collisions that are still considered, shape ``(N,)``; the objects of the others
                may be left out.
        """
        ...
