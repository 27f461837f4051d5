"""b- and tau-tags of jets, drawn from the flavour of the truth in their direction.

The flavour of a jet is that of the heaviest quark with pT > 5 GeV, at any stage of the shower,
within Delta R < 0.5; a jet is a tau jet where the visible decay products of a tau lie that near.
Its tags are drawn with the probabilities of ``tables/tagging.csv``, zero below 10 GeV and beyond
|eta| = 4. The working points are nested: a tight jet is also medium and loose.
"""

from __future__ import annotations

import numpy as np

from massrecon.events.objects import Objects
from massrecon.events.particles import (
    Floats,
    Integers,
    Particles,
    directions,
    distance,
    pairs_by,
)
from massrecon.events.pythia import Record
from massrecon.events.response import read_table

POINTS = ("loose", "medium", "tight")
BOTTOM, CHARM, TAU, TAU_NEUTRINO = 5, 4, 15, 16

_RADIUS = 0.5
_QUARK_PT_MIN, _TAU_PT_MIN, _ETA_MAX = 5.0, 1.0, 4.0
_JET_PT_MIN, _CENTRAL = 10.0, 2.5
_PT_END = 5000.0
_ROWS = {(row["tag"], row["point"], int(row["flavour"])): row for row in read_table("tagging.csv")}


def heavy_flavour(record: Record) -> Particles:
    """Collects what the tags of N collisions need of the truth.

    Args:
        record: Complete event records.

    Returns:
        All b and c quarks (PDG codes 4, 5) with pT > 5 GeV, at every stage of the shower, and the
        visible momenta of all decayed taus (PDG code 15) with pT > 1 GeV, ordered by collision.
    """
    code = np.abs(record.columns["id"])
    event = np.repeat(np.arange(record.n_events), np.diff(record.first))
    p4 = np.stack([record.columns[name] for name in ("px", "py", "pz", "e")], axis=1)
    quarks = np.flatnonzero((code == BOTTOM) | (code == CHARM))
    neutrinos = np.flatnonzero(code == TAU_NEUTRINO)
    taus = record.first[event[neutrinos]] + record.columns["mother1"][neutrinos]
    decayed = code[taus] == TAU
    neutrinos, taus = neutrinos[decayed], taus[decayed]
    which = np.concatenate([quarks, taus])
    visible = np.concatenate([p4[quarks], p4[taus] - p4[neutrinos]])
    return _accepted(event[which], code[which].astype(np.int64), visible)


def _accepted(event: Integers, code: Integers, p4: Floats) -> Particles:
    """Keeps what can give a jet its flavour, ordered by collision."""
    pt, eta, _ = directions(p4)
    good = pt > np.where(code == TAU, _TAU_PT_MIN, _QUARK_PT_MIN)
    good = np.flatnonzero(good & (np.abs(eta) < _ETA_MAX))
    good = good[np.argsort(event[good], kind="stable")]
    return Particles(event[good], code[good], *p4[good].T)


def flavours(jets: Objects, heavy: Particles) -> tuple[Integers, Integers]:
    """Finds the quark flavour (5, 4 or 0) and the lepton flavour (15 or 0) of every jet.

    Args:
        jets: Jets of N collisions.
        heavy: What `heavy_flavour` collects.

    Returns:
        Both, each of shape ``(n,)``.
    """
    jet, other = pairs_by(jets.event, heavy.event)
    _, eta, phi = directions(jets.p4)
    _, heavy_eta, heavy_phi = directions(heavy.p4)
    near = distance(eta[jet], phi[jet], heavy_eta[other], heavy_phi[other]) <= _RADIUS
    jet, code = jet[near], np.abs(heavy.pdg[other[near]])
    quark, lepton = np.zeros((2, len(eta)), np.int64)
    np.maximum.at(quark, jet, np.where(code == TAU, 0, code))
    np.maximum.at(lepton, jet, np.where(code == TAU, TAU, 0))
    return quark, lepton


def tag_probability(tag: str, point: str, flavour: Integers, p4: Floats) -> Floats:
    """Looks up the probability of a tag.

    Args:
        tag: ``b`` or ``tau``.
        point: Working point.
        flavour: Flavour of each jet, shape ``(n,)``.
        p4: Four-momentum of each jet [GeV], shape ``(n, 4)``.
    """
    pt, eta, _ = directions(p4)
    probability = np.zeros(len(pt))
    for code in np.unique(flavour).tolist():
        row = _ROWS.get((tag, point, code), _ROWS[tag, point, 0])
        flat = np.where(np.abs(eta) < _CENTRAL, float(row["central"]), float(row["forward"]))
        falling = np.where(pt > float(row["pt_flat"]), np.maximum(1.0 - pt / _PT_END, 0.0), 1.0)
        probability = np.where(flavour == code, flat * falling, probability)
    return np.where((pt > _JET_PT_MIN) & (np.abs(eta) < _ETA_MAX), probability, 0.0)


def draw_tags(jets: Objects, heavy: Particles, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws the tags of all jets.

    Args:
        jets: Jets of N collisions.
        heavy: What `heavy_flavour` collects.
        rng: Source of the tags.

    Returns:
        ``btag``, the tightest working point passed (0 none, 1 loose, 2 medium, 3 tight), and
        ``tautag`` (0 or 1), each of shape ``(n,)``.
    """
    quark, lepton = flavours(jets, heavy)
    chance = rng.random((2, len(quark)))
    passed = [chance[0] < tag_probability("b", point, quark, jets.p4) for point in POINTS]
    tautag = chance[1] < tag_probability("tau", "medium", lepton, jets.p4)
    return {"btag": np.sum(passed, axis=0), "tautag": tautag.astype(np.int64)}
