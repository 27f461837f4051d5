"""What is inside a large-radius jet: its soft-drop mass and its N-subjettiness.

Soft drop (beta = 0, z_cut = 0.1) reclusters the jet by Cambridge/Aachen and removes soft branches
at wide angles; the mass of what is left is that of a decay that merged into the jet.
N-subjettiness,

    tau_N = sum_i pT_i min_k Delta R(i, axis_k) / (R0 sum_i pT_i),

is small where the jet has N prongs or fewer, so that tau_2 / tau_1 and tau_3 / tau_2 tell two- and
three-prong decays from quarks and gluons. The axes start as the N exclusive kT jets and are then
moved to a local minimum of tau_N. The public HL-LHC Delphes card has the same settings (beta = 1
for N-subjettiness).

References:
    A. J. Larkoski et al., JHEP 05 (2014) 146, arXiv:1402.2657 (soft drop).
    J. Thaler, K. Van Tilburg, JHEP 02 (2012) 093, arXiv:1108.2701 (minimised axes, Sec. 3).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from massrecon.errors import require_extra
from massrecon.events.jets import Clusters
from massrecon.events.particles import Floats, Integers

SYMMETRY_CUT = 0.1
STEPS = 30

_EVERYWHERE = 100.0
"""Radius that puts all constituents of a jet into one cluster."""
_NEAREST = 1e-4


def substructure(clusters: Clusters, p4: Floats, radius: float) -> dict[str, np.ndarray]:
    """Computes soft-drop mass and ratios of N-subjettiness.

    Args:
        clusters: Jets with their constituents.
        p4: Four-momenta of all that was clustered [GeV], shape ``(c, 4)``.
        radius: Radius of the jets.

    Returns:
        ``softdrop_mass`` [GeV], ``tau21`` and ``tau32`` of every jet, each of shape ``(n,)``; a
        ratio is 0 where the jet has too few constituents to tell.

    Raises:
        MissingExtraError: If FastJet is not installed.
    """
    n_jets = len(clusters.event)
    if n_jets == 0:
        return {name: np.zeros(0) for name in ("softdrop_mass", "tau21", "tau32")}
    momenta = p4[clusters.constituent]
    mass = softdrop_mass(clusters.jet, momenta, n_jets, radius)
    tau = [n_subjettiness(clusters.jet, momenta, n_jets, n) for n in (1, 2, 3)]
    ratios = [
        np.divide(one, other, out=np.zeros(n_jets), where=other > 1e-9)
        for one, other in ((tau[1], tau[0]), (tau[2], tau[1]))
    ]
    return {"softdrop_mass": mass, "tau21": ratios[0], "tau32": ratios[1]}


def softdrop_mass(jet: Integers, p4: Floats, n_jets: int, radius: float) -> Floats:
    """Computes the mass of every jet after soft drop with beta = 0 and z_cut = 0.1 [GeV].

    Args:
        jet: Number of the jet of each constituent, ascending, shape ``(c,)``.
        p4: Four-momenta of the constituents [GeV], shape ``(c, 4)``.
        n_jets: Number of jets; each has a constituent.
        radius: Radius of the jets.
    """
    fastjet = require_extra("fastjet", extra="mc")
    awkward = require_extra("awkward", extra="mc")
    definition = fastjet.JetDefinition(fastjet.cambridge_algorithm, _EVERYWHERE)
    sequence = fastjet.ClusterSequence(_jagged(jet, p4, n_jets), definition)
    groomed = sequence.exclusive_jets_softdrop_grooming(
        njets=1, beta=0, symmetry_cut=SYMMETRY_CUT, R0=radius
    )
    return np.maximum(awkward.to_numpy(awkward.flatten(groomed.msoftdrop, axis=None)), 0.0)


def n_subjettiness(jet: Integers, p4: Floats, n_jets: int, n_axes: int) -> Floats:
    """Computes tau_N of every jet, up to the common factor R0.

    Args:
        jet: Number of the jet of each constituent, ascending, shape ``(c,)``.
        p4: Four-momenta of the constituents [GeV], shape ``(c, 4)``.
        n_jets: Number of jets.
        n_axes: The number of prongs N.

    Returns:
        tau_N, shape ``(n_jets,)``; 0 for a jet of no more than N constituents.
    """
    tau = np.zeros(n_jets)
    count = np.bincount(jet, minlength=n_jets)
    rich = np.flatnonzero(count > n_axes)
    if len(rich) == 0:
        return tau
    chosen = np.isin(jet, rich)
    jet, p4 = np.searchsorted(rich, jet[chosen]), p4[chosen]
    axes = _kt_axes(jet, p4, len(rich), n_axes)
    tau[rich] = _minimise(*_padded(jet, p4, len(rich)), axes)
    return tau


def _jagged(jet: Integers, p4: Floats, n_jets: int) -> Any:
    """Groups constituents by jet in an awkward array."""
    awkward = require_extra("awkward", extra="mc")
    momenta = {name: p4[:, i] for i, name in enumerate(("px", "py", "pz", "E"))}
    particles = awkward.zip(momenta, with_name="Momentum4D")
    return awkward.unflatten(particles, np.bincount(jet, minlength=n_jets))


def _kt_axes(jet: Integers, p4: Floats, n_jets: int, n_axes: int) -> Floats:
    """Finds the directions (rapidity, phi) of the N exclusive kT jets, ``(n_jets, n_axes, 2)``."""
    fastjet = require_extra("fastjet", extra="mc")
    awkward = require_extra("awkward", extra="mc")
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, _EVERYWHERE)
    sequence = fastjet.ClusterSequence(_jagged(jet, p4, n_jets), definition)
    wording = warnings.formatwarning
    with warnings.catch_warnings():  # FastJet's warning for other algorithms comes for kT as well,
        warnings.simplefilter("ignore")
        found = sequence.exclusive_jets(n_jets=n_axes)
    warnings.formatwarning = wording  # and changes how all later warnings look
    columns = [awkward.to_numpy(awkward.flatten(found[name])) for name in ("px", "py", "pz", "E")]
    return _rapidity_phi(np.stack(columns, axis=1)).reshape(n_jets, n_axes, 2)


def _rapidity_phi(p4: Floats) -> Floats:
    plus, minus = p4[:, 3] + p4[:, 2], p4[:, 3] - p4[:, 2]
    rapidity = 0.5 * np.log(np.maximum(plus, 1e-9) / np.maximum(minus, 1e-9))
    return np.stack([rapidity, np.arctan2(p4[:, 1], p4[:, 0])], axis=1)


def _padded(jet: Integers, p4: Floats, n_jets: int) -> tuple[Floats, Floats]:
    """Puts pT ``(J, C)`` and directions ``(J, C, 2)`` of constituents into rows; pT 0 is none."""
    count = np.bincount(jet, minlength=n_jets)
    column = np.arange(len(jet)) - (np.cumsum(count) - count)[jet]
    pt, direction = np.zeros((n_jets, count.max())), np.zeros((n_jets, count.max(), 2))
    pt[jet, column] = np.hypot(p4[:, 0], p4[:, 1])
    direction[jet, column] = _rapidity_phi(p4)
    return pt, direction


def _separations(direction: Floats, axes: Floats) -> tuple[Floats, Floats]:
    """Computes offsets ``(J, C, N, 2)`` and distances ``(J, C, N)`` of constituents from axes."""
    offset = direction[:, :, None, :] - axes[:, None, :, :]
    offset[..., 1] -= 2.0 * np.pi * np.round(offset[..., 1] / (2.0 * np.pi))
    return offset, np.hypot(offset[..., 0], offset[..., 1])


def _minimise(pt: Floats, direction: Floats, axes: Floats) -> Floats:
    """Moves the axes to a local minimum of tau_N and returns it, shape ``(J,)``.

    Each axis goes to the median of its constituents, weighted by pT, in Weiszfeld's iteration. The
    lowest value on the way is kept, so that a step never makes it worse.
    """
    total = pt.sum(axis=1)
    best = np.full(len(pt), np.inf)
    for _ in range(STEPS):
        offset, separation = _separations(direction, axes)
        nearest = separation.argmin(axis=2)
        closest = np.take_along_axis(separation, nearest[:, :, None], axis=2)[:, :, 0]
        best = np.minimum(best, (pt * closest).sum(axis=1) / total)
        own = nearest[:, :, None] == np.arange(axes.shape[1])
        weight = np.where(own, (pt / np.maximum(closest, _NEAREST))[:, :, None], 0.0)
        step = np.einsum("jcn,jcnd->jnd", weight, offset)
        axes = axes + step / np.maximum(weight.sum(axis=1), 1e-30)[:, :, None]
    return best
