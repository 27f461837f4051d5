"""Isolation and identification of photons, electrons and muons in the energy flow.

A candidate is isolated when the transverse momenta of the photons and hadrons within a cone of
radius 0.3 sum up to less than a fraction of its own; leptons do not count. An isolated candidate is
identified with the probability of `response.IDENTIFICATION`. Photons take precedence: an electron
is dropped when an isolated, identified photon, however soft, sits in its own calorimeter tower.
"""

from __future__ import annotations

import numpy as np

from massrecon.events.particles import (
    ELECTRON,
    MUON,
    PHOTON,
    Floats,
    Flow,
    Integers,
    Mask,
    pairs_by,
    total_by,
)
from massrecon.events.response import IDENTIFICATION

CONE = 0.3
PT_MIN = 10.0
ETA_MAX = 4.0
_SOFT_PT_MIN = 1.0
_NAMES = {ELECTRON: "electron", MUON: "muon", PHOTON: "photon"}
_RATIO_MAX = {ELECTRON: 0.1, MUON: 0.2, PHOTON: 0.1}


def find_objects(flow: Flow, rng: np.random.Generator, soft: bool = False) -> Mask:
    """Marks the isolated, identified photons, electrons and muons.

    Args:
        flow: Energy flow, ordered by collision.
        rng: Source of the identification.
        soft: Whether to mark those below 10 GeV too.

    Returns:
        Mask over the energy flow, shape ``(n,)``.
    """
    near = (flow.kind != 0) & (np.abs(flow.eta) < ETA_MAX)
    hard = near & (flow.pt > PT_MIN)
    wanted = near & (flow.pt > _SOFT_PT_MIN) if soft else hard
    candidates = np.flatnonzero(wanted | _shares_tower(flow, wanted & (flow.kind == ELECTRON)))
    kind = flow.kind[candidates]
    pt, abs_eta = flow.pt[candidates], np.abs(flow.eta[candidates])
    efficiency, ratio_max = np.zeros(len(kind)), np.zeros(len(kind))
    for code, name in _NAMES.items():
        this = kind == code
        efficiency[this] = IDENTIFICATION[name](pt[this], abs_eta[this])
        ratio_max[this] = _RATIO_MAX[code]
    identified = rng.random(len(kind)) < efficiency
    candidates, ratio_max = candidates[identified], ratio_max[identified]
    isolated = cone_sum(flow, candidates) <= ratio_max * flow.pt[candidates]
    found = np.zeros(len(flow.pt), bool)
    found[candidates[isolated]] = True
    photon_towers = flow.tower[found & (flow.kind == PHOTON)]
    found &= ~((flow.kind == ELECTRON) & np.isin(flow.tower, photon_towers))
    return found & wanted


def cone_sum(flow: Flow, candidates: Integers) -> Floats:
    """Sums the pT of photons and hadrons within the cone around each candidate, itself excluded.

    Args:
        flow: Energy flow, ordered by collision.
        candidates: Indices into the energy flow, shape ``(c,)``.

    Returns:
        Sums of transverse momentum [GeV], shape ``(c,)``.
    """
    others = np.flatnonzero((flow.kind != ELECTRON) & (flow.kind != MUON))
    eta, phi = flow.eta[others], flow.phi[others]
    owner, other = pairs_by(flow.event[candidates], flow.event[others])
    delta_eta = np.abs(flow.eta[candidates][owner] - eta[other])
    near = np.flatnonzero(delta_eta < CONE)
    owner, other = owner[near], other[near]
    delta_phi = np.abs(flow.phi[candidates][owner] - phi[other])
    delta_phi = np.minimum(delta_phi, 2.0 * np.pi - delta_phi)
    inside = delta_eta[near] ** 2 + delta_phi**2 <= CONE**2
    inside &= others[other] != candidates[owner]
    pt = flow.pt[others[other[inside]]]
    return total_by(owner[inside], pt, len(candidates))


def _shares_tower(flow: Flow, electrons: Mask) -> Mask:
    """Marks the photons, down to 1 GeV, in the calorimeter tower of one of the electrons."""
    photons = np.flatnonzero((flow.kind == PHOTON) & (flow.pt > _SOFT_PT_MIN))
    marked = np.zeros(len(flow.pt), bool)
    marked[photons[np.isin(flow.tower[photons], flow.tower[electrons])]] = True
    return marked
