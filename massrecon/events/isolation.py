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
    HADRON,
    MUON,
    PHOTON,
    Floats,
    Flow,
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


def identified(flow: Flow, rng: np.random.Generator, soft: bool = False) -> Flow:
    """Draws which photons, electrons and muons are identified.

    Args:
        flow: Photons, electrons and muons; others may be among them.
        rng: Source of the identification.
        soft: Whether to consider all down to 1 GeV, not only to 10 GeV.

    Returns:
        Those identified, in their order, and with them the softer photons that would deprive an
        electron of its tower.
    """
    pt_min = _SOFT_PT_MIN if soft else PT_MIN
    wanted = (flow.kind != HADRON) & (np.abs(flow.eta) < ETA_MAX) & (flow.pt > pt_min)
    considered = np.flatnonzero(wanted | _shares_tower(flow, wanted & (flow.kind == ELECTRON)))
    candidates = flow[considered]
    efficiency = np.zeros(len(considered))
    for code, name in _NAMES.items():
        this = candidates.kind == code
        abs_eta = np.abs(candidates.eta[this])
        efficiency[this] = IDENTIFICATION[name](candidates.pt[this], abs_eta)
    return candidates[rng.random(len(considered)) < efficiency]


def in_quiet_cone(candidates: Flow, flow: Flow) -> Flow:
    """Keeps the candidates whose cone holds little enough of a list of photons and hadrons.

    Args:
        candidates: Photons, electrons and muons.
        flow: Energy flow, ordered by collision, or a part of it: who is not in a quiet cone then
            will not be in one of the whole either.
    """
    ratio_max = np.zeros(len(candidates.kind))
    for code, ratio in _RATIO_MAX.items():
        ratio_max[candidates.kind == code] = ratio
    return candidates[cone_sum(flow, candidates) <= ratio_max * candidates.pt]


def isolated(candidates: Flow, flow: Flow) -> Flow:
    """Keeps the isolated candidates, without the electrons that share a tower with a photon.

    Args:
        candidates: Identified photons, electrons and muons.
        flow: The whole energy flow, ordered by collision, the candidates included.
    """
    found = in_quiet_cone(candidates, flow)
    photon_towers = found.tower[found.kind == PHOTON]
    return found[(found.kind != ELECTRON) | ~np.isin(found.tower, photon_towers)]


def cone_sum(flow: Flow, candidates: Flow) -> Floats:
    """Sums the pT of photons and hadrons within the cone around each candidate, itself excluded.

    Args:
        flow: Energy flow, ordered by collision.
        candidates: Some of it; a photon is recognised by its tower.

    Returns:
        Sums of transverse momentum [GeV], shape ``(c,)``.
    """
    others = np.flatnonzero((flow.kind != ELECTRON) & (flow.kind != MUON))
    eta, phi, tower = flow.eta[others], flow.phi[others], flow.tower[others]
    owner, other = pairs_by(candidates.event, flow.event[others])
    delta_eta = np.abs(candidates.eta[owner] - eta[other])
    near = np.flatnonzero(delta_eta < CONE)
    owner, other = owner[near], other[near]
    delta_phi = np.abs(candidates.phi[owner] - phi[other])
    delta_phi = np.minimum(delta_phi, 2.0 * np.pi - delta_phi)
    inside = np.flatnonzero(delta_eta[near] ** 2 + delta_phi**2 <= CONE**2)
    owner, other = owner[inside], other[inside]
    itself = (candidates.kind[owner] == PHOTON) & (candidates.tower[owner] == tower[other])
    return total_by(owner, np.where(itself, 0.0, flow.pt[others[other]]), len(candidates.kind))


def _shares_tower(flow: Flow, electrons: Mask) -> Mask:
    """Marks the photons, down to 1 GeV, in the calorimeter tower of one of the electrons."""
    photons = np.flatnonzero((flow.kind == PHOTON) & (flow.pt > _SOFT_PT_MIN))
    marked = np.zeros(len(flow.pt), bool)
    marked[photons[np.isin(flow.tower[photons], flow.tower[electrons])]] = True
    return marked
