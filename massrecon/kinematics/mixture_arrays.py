"""What the compiled kernels of the kinematic mixture read, and where they work, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray

# rows of the sums of a set of objects: momentum, momentum that can get lost, tensor K, extra weight
LOSSY, TENSOR, EXTRA, N_SUMS = 4, 8, 18, 19
# rows of a resonance: momentum, A, mass, and change when all objects that can get lost grow
A, MASS, LEAN, N_RESONANCE = 4, 8, 9, 10
# rows of what a leg does to a resonance: B, changes with its share and with V . nu, and of the lean
B, BY_SHARE, BY_CONSTANT, BY_LEAN, N_EFFECT = 0, 4, 6, 7, 8
N_LEG = 12


class ChainTables(NamedTuple):
    """Which objects belong to what, for the C configurations of a chain.

    Attributes:
        members: Objects of each of U distinct sets, ``(U, K)``, of which `n_members` count.
        n_members: ``(U,)``.
        chain: Set of the whole chain, ``(C,)``.
        node: Set of each measured resonance, ``(d, C)``.
        mother: Mother of each solved leg as a position in `mothers`, ``(L, C)``.
        mothers: Distinct sets of the mother of each leg, ``(L, V)``, -1 where there are fewer.
        inside: Whether a resonance contains a leg, ``(d, L)``.
        under: Leg whose mother contains a resonance, or -1, ``(d,)``.
        smaller: The one of two resonances that descends from the other, or -1, ``(d, d)``.
        bare: Whether a decay in a resonance lost all its legs, ``(d, C)``.
        lost: Number of lost legs, ``(C,)``.
        touches: Whether an unknown mass changes what is expected of a resonance, ``(d, M)``.
    """

    members: Array
    n_members: Array
    chain: Array
    node: Array
    mother: Array
    mothers: Array
    inside: Array
    under: Array
    smaller: Array
    bare: Array
    lost: Array
    touches: Array


class ChainNumbers(NamedTuple):
    """Parameters of a chain, and the fillings.

    Attributes:
        prior: By number of lost legs, as `shift` and `spread` (squared), ``(P,)``.
        shift: See `prior`.
        spread: See `prior`.
        blur: Squared, by resonance and number of lost legs, ``(d, P)``.
        power: Likewise.
        way: Weights of a solution, ``(4,)``.
        invisible: Squared widths for real and unreal solutions, ``(2,)``.
        parameter: Unknown mass of each resonance, or -1, ``(d,)``.
        expected: Known mass, or origin of the unknown one, ``(d,)``.
        tried: Number of the trial mass of the mother of each leg, or -1, ``(L,)``.
        own: Mass of each leg, ``(L,)``.
        mass: Mass of its mother in each filling, ``(L, F)``.
        cell: Width of the cells of this mass, ``(L,)``.
        trial: Trial masses from the origin on, ``(F, T)``.
        trial_parameter: Their unknown masses, ``(T,)``.
        filling: What each filling adds to the information, ``(F, E)``.
        factors: On the variances from ptmiss and from cells of shares, ``(2,)``.
        constants: Squared least width, squared relative width of a bare mass, and whether the
            momentum of the produced particle is measured, ``(3,)``.
    """

    prior: Array
    shift: Array
    spread: Array
    blur: Array
    power: Array
    way: Array
    invisible: Array
    parameter: Array
    expected: Array
    tried: Array
    own: Array
    mass: Array
    cell: Array
    trial: Array
    trial_parameter: Array
    filling: Array
    factors: Array
    constants: Array


class EventNumbers(NamedTuple):
    """Objects of n events.

    Attributes:
        p4: ``(K, 4, n)``.
        variance: Squared relative resolutions with their fitted factors, ``(K, n)``.
        extra: Log weight of each object to be extra, zero for kinds that cannot, ``(K, n)``.
        lossy: Which objects can get lost, ``(K,)``.
        share: Share of ptmiss of each solved leg, ``(L, F, 2, n)``.
        ptmiss: Variance of each component of ptmiss, ``(n,)``.
        cell: Variance of each component of a share within its cell, ``(F, n)``.
    """

    p4: Array
    variance: Array
    extra: Array
    lossy: Array
    share: Array
    ptmiss: Array
    cell: Array


class Workspace(NamedTuple):
    """Numbers of a block of events, and of them in one way to solve; flat arrays of rows.

    Attributes:
        sums: `N_SUMS` rows of each of U sets.
        legs: `N_LEG` rows by leg, set of the mother, root and filling.
        resonances: `N_RESONANCE` rows of each of d resonances.
        effects: `N_EFFECT` rows by resonance and leg.
        by_trial: Change with each trial mass, d T rows.
        unreal: Number of legs in a resonance that are unreal, a row.
        s: Covariance, then its inverse, d d rows.
        value: Measured less expected masses, d rows.
        design: The matrix H, d M rows; only those that `ChainTables.touches` are filled.
        row: Scratch.
    """

    sums: Array
    legs: Array
    resonances: Array
    effects: Array
    by_trial: Array
    unreal: Array
    s: Array
    value: Array
    design: Array
    row: Array
