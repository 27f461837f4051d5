"""What the compiled kernels of the kinematic mixture read, and where they work, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


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
        p4: ``(n, K, 4)``.
        variance: Squared relative resolutions with their fitted factors, ``(n, K)``.
        extra: Log weight of each object to be extra, zero for kinds that cannot, ``(n, K)``.
        lossy: Which objects can get lost, ``(K,)``.
        share: Share of ptmiss of each solved leg, ``(n, L, F, 2)``.
        ptmiss: Variance of each component of ptmiss, ``(n,)``.
        cell: Variance of each component of a share within its cell, ``(n, F)``.
    """

    p4: Array
    variance: Array
    extra: Array
    lossy: Array
    share: Array
    ptmiss: Array
    cell: Array


class Workspace(NamedTuple):
    """Numbers of one event: `sums` of sets and `legs`; and of one hypothesis, by resonance.

    Attributes:
        sums: Momentum, momentum that can get lost, tensor K and extra weight, ``(U, 19)``.
        legs: Solutions by leg, set of the mother, root and filling, ``(L, V, 2, F, 12)``.
        chosen: Variances of the share of each leg in a hypothesis, and whether it is unreal,
            ``(L, 3)``.
        p4: Momentum, ``(d, 4)``.
        a: The four-vector A, ``(d, 4)``.
        b: The four-vectors B, by resonance and leg, ``(d L, 4)``.
        mass: ``(d,)``.
        lean: Change when all objects that can get lost grow, ``(d,)``.
        by_share: Change with the share of each leg, ``(d, L, 2)``.
        by_trial: Change with each trial mass, ``(d, T)``.
        s: Covariance, then its inverse, ``(d, d)``.
        value: Measured less expected masses, ``(d,)``.
        design: The matrix H, ``(d, M)``.
        row: The result, ``(E,)``.
    """

    sums: Array
    legs: Array
    chosen: Array
    p4: Array
    a: Array
    b: Array
    mass: Array
    lean: Array
    by_share: Array
    by_trial: Array
    s: Array
    value: Array
    design: Array
    row: Array
