"""Jets: anti-kT clustering of many collisions at once, and their overlap with other objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from massrecon.errors import require_extra
from massrecon.events.objects import Objects
from massrecon.events.particles import Floats, Integers, Mask, directions, distance, pairs_by

JET_RADIUS = 0.4
FATJET_RADIUS = 0.8


@dataclass(frozen=True)
class Clusters:
    """Jets and what they consist of.

    Attributes:
        event: Number of the collision, ascending, shape ``(n,)``.
        p4: Four-momentum (px, py, pz, E) [GeV], shape ``(n, 4)``.
        jet: Number of the jet of each constituent, ascending, shape ``(c,)``; without constituents
            of shape ``(0,)``.
        constituent: Position of each constituent in the clustered list, shape ``(c,)``.
    """

    event: Integers
    p4: Floats
    jet: Integers
    constituent: Integers


def cluster(
    event: Integers,
    p4: Floats,
    n_events: int,
    pt_min: float,
    radius: float = JET_RADIUS,
    constituents: bool = False,
) -> Clusters:
    """Clusters anti-kT jets.

    Args:
        event: Number of the collision of each particle, ascending, shape ``(n,)``.
        p4: Four-momenta (px, py, pz, E) of the particles [GeV], shape ``(n, 4)``.
        n_events: Number of collisions.
        pt_min: Lowest transverse momentum of a jet [GeV].
        radius: Radius of the jets.
        constituents: Whether to list the constituents.

    Raises:
        MissingExtraError: If FastJet is not installed.
    """
    awkward = require_extra("awkward", extra="mc")
    fastjet = require_extra("fastjet", extra="mc")
    none = np.zeros(0, np.int64)
    if len(event) == 0:
        return Clusters(none, np.zeros((0, 4)), none, none)
    momenta = {name: p4[:, i] for i, name in enumerate(("px", "py", "pz", "E"))}
    counts = np.bincount(event, minlength=n_events)
    particles = awkward.unflatten(awkward.zip(momenta, with_name="Momentum4D"), counts)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    sequence = fastjet.ClusterSequence(particles, definition)
    jets = sequence.inclusive_jets(min_pt=pt_min)
    owner = np.repeat(np.arange(n_events), awkward.to_numpy(awkward.num(jets.px)))
    columns = [awkward.to_numpy(awkward.flatten(jets[name])) for name in momenta]
    members = (none, none)
    if constituents and len(owner):
        index = sequence.constituent_index(min_pt=pt_min)
        members = _flatten(awkward, index, owner, np.cumsum(counts) - counts)
    return Clusters(owner, np.stack(columns, axis=1), *members)


def _flatten(
    awkward: Any, index: Any, owner: Integers, first: Integers
) -> tuple[Integers, Integers]:
    """Turns lists of constituents, counted within their collision, into two flat columns."""
    per_jet = awkward.flatten(index, axis=1)
    jet = np.repeat(np.arange(len(owner)), awkward.to_numpy(awkward.num(per_jet)))
    member = awkward.to_numpy(awkward.flatten(per_jet)).astype(np.int64)
    return jet, member + first[owner[jet]]


def is_apart(jets: Objects, others: Objects, radius: float) -> Mask:
    """Says which jets have none of the other objects within their radius.

    A jet around an isolated lepton or photon is that object once more: it is to be dropped.

    Args:
        jets: Jets of N collisions.
        others: Leptons and photons, ordered by collision.
        radius: Distance Delta R up to which they overlap.

    Returns:
        Mask over the jets, shape ``(n,)``.
    """
    jet, other = pairs_by(jets.event, others.event)
    _, eta, phi = directions(jets.p4)
    _, other_eta, other_phi = directions(others.p4)
    near = distance(eta[jet], phi[jet], other_eta[other], other_phi[other]) < radius
    apart = np.ones(len(jets.event), bool)
    apart[jet[near]] = False
    return apart


def shares_nothing(clusters: Clusters, keys: Integers, taken: Integers) -> Mask:
    """Says which jets share no tower or muon with the objects that were found before.

    Args:
        clusters: Jets with their constituents.
        keys: Key of the tower of everything that was clustered, -1 for none.
        taken: Keys of the objects.

    Returns:
        Mask over the jets, shape ``(n,)``.
    """
    shared = np.isin(keys[clusters.constituent], taken[taken != -1])
    apart = np.ones(len(clusters.event), bool)
    apart[clusters.jet[shared]] = False
    return apart
