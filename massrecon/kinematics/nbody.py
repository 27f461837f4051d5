"""Decays and break-ups into n particles, flat in phase space, and Breit-Wigner resonances.

Every decay is flat in n-body phase space (for two bodies: isotropic), by intermediate masses
M_2 < … < M_n that are accepted with a probability ~ product of the momenta p*_i of the steps
M_i -> M_(i-1) + i (F. James, Monte Carlo phase space, CERN 68-15, 1968). There are no spin
correlations.

Squared masses of resonances follow the relativistic Breit-Wigner between two limits,
1 / ((m^2 - M^2)^2 + M^2 Gamma^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics.fourvectors import energy_from_mass

_MOST_TRIES = 100_000


def decay(parent: Tensor, masses: Tensor, generator: torch.Generator) -> Tensor:
    """Lets particles decay, flat in phase space.

    Args:
        parent: Decaying particles (px, py, pz, m) [GeV], float64, shape ``(N, 4)``.
        masses: Masses of the n decay products [GeV], shape ``(N, n)``; their sum is below that of
            the parent.
        generator: Source of randomness.

    Returns:
        The decay products (px, py, pz, m) [GeV], in the frame of the parent's momentum,
        ``(N, n, 4)``.

    Raises:
        InputError: If hardly any point of the phase space is accepted.
    """
    total, spare = parent[:, 3], parent[:, 3] - masses.sum(1)
    if masses.shape[1] == 1:
        return parent.unsqueeze(1)
    if masses.shape[1] == 2:
        return split_off(parent, masses, torch.stack([masses[:, 0], total], 1), generator)
    heaviest = masses.cumsum(1) + spare.unsqueeze(1)
    largest = breakup_momentum(heaviest[:, 1:], masses.cumsum(1)[:, :-1], masses[:, 1:])

    def draw(rows: Tensor) -> tuple[Tensor, Tensor]:
        steps = intermediate_masses(masses[rows], spare[rows], generator)
        momenta = breakup_momentum(steps[:, 1:], steps[:, :-1], masses[rows, 1:])
        return steps, (momenta / largest[rows]).prod(1)

    return split_off(parent, masses, accepted(len(parent), draw, generator), generator)


def breakup_momentum(mass: Tensor, mass_1: Tensor, mass_2: Tensor) -> Tensor:
    """Computes the momentum [GeV] of two decay products in the rest frame, 0 where it is closed.

    >>> breakup_momentum(torch.tensor(10.0), torch.tensor(0.0), torch.tensor(0.0))
    tensor(5.)
    """
    # of a closed decay a second factor may be negative as well: one alone is enough for 0
    above = (mass - mass_1 - mass_2).clamp_min(0) * (mass + mass_1 + mass_2)
    squared = above * (mass - mass_1 + mass_2) * (mass + mass_1 - mass_2)
    return squared.clamp_min(0).sqrt() / (2 * mass)


def breit_wigner(
    pole: Tensor, width: float, low: Tensor, high: Tensor, generator: torch.Generator
) -> Tensor:
    """Draws masses [GeV] of a relativistic Breit-Wigner resonance between two limits.

    Args:
        pole: Pole masses M [GeV], shape ``(N,)``.
        width: Width Gamma [GeV], above 0.
        low: Lowest masses [GeV], shape ``(N,)``.
        high: Highest masses [GeV], shape ``(N,)``.
        generator: Source of randomness.
    """
    scale = pole * width
    first = torch.atan((low**2 - pole**2) / scale)
    last = torch.atan((high**2 - pole**2) / scale)
    angle = first + (last - first) * uniform(pole.shape, generator)
    squared = (pole**2 + scale * torch.tan(angle)).clamp_min(0)
    return torch.minimum(torch.maximum(squared.sqrt(), low), high)


def intermediate_masses(masses: Tensor, spare: Tensor, generator: torch.Generator) -> Tensor:
    """Draws the masses of the first 1, 2, … n particles together [GeV], ascending, ``(N, n)``.

    What is left of the kinetic energy `spare` after each step is uniform.
    """
    n_events, n = masses.shape
    share = uniform((n_events, n - 2), generator).sort(dim=1).values
    ends = torch.zeros_like(spare).unsqueeze(1), torch.ones_like(spare).unsqueeze(1)
    return masses.cumsum(1) + torch.cat([ends[0], share, ends[1]], 1) * spare.unsqueeze(1)


def split_off(parent: Tensor, masses: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
    """Splits particles off one by one, in random directions, shape ``(N, n, 4)``."""
    found, rest = [], torch.cat([torch.zeros_like(parent[:, :3]), parent[:, 3:]], dim=1)
    for i in range(masses.shape[1] - 1, 0, -1):
        momentum = breakup_momentum(steps[:, i], steps[:, i - 1], masses[:, i])
        p3 = momentum.unsqueeze(1) * _directions(len(parent), generator)
        found.append(_from_rest(p3, masses[:, i], rest))
        rest = _from_rest(-p3, steps[:, i - 1], rest)
    return torch.stack(
        [_from_rest(one[:, :3], one[:, 3], parent) for one in (rest, *reversed(found))], dim=1
    )


def _from_rest(p3: Tensor, mass: Tensor, frame: Tensor) -> Tensor:
    """Boosts momenta ``(N, 3)`` from the rest frame of particles (px, py, pz, m)."""
    energy = energy_from_mass(p3, mass)
    along = (p3 * frame[:, :3]).sum(1)
    frame_energy = energy_from_mass(frame[:, :3], frame[:, 3])
    factor = (along / (frame_energy + frame[:, 3]) + energy) / frame[:, 3]
    moved = p3 + factor.unsqueeze(1) * frame[:, :3]
    return torch.cat([moved, mass.unsqueeze(1)], dim=1)


def _directions(n: int, generator: torch.Generator) -> Tensor:
    """Draws isotropic unit vectors, shape ``(n, 3)``."""
    cos = 2 * uniform((n,), generator) - 1
    sin = ((1 - cos) * (1 + cos)).sqrt()
    phi = 2 * math.pi * uniform((n,), generator)
    return torch.stack([sin * phi.cos(), sin * phi.sin(), cos], dim=1)


def accepted(
    n: int, draw: Callable[[Tensor], tuple[Tensor, Tensor]], generator: torch.Generator
) -> Tensor:
    """Draws until every one of `n` rows is accepted.

    Args:
        n: Number of rows.
        draw: Gives for some rows their values and the probabilities to accept them.
        generator: Source of randomness.
    """
    rows = torch.arange(n, device=generator.device)
    values, probability = draw(rows)
    result = values.clone()
    for _ in range(_MOST_TRIES):
        accepted = uniform(rows.shape, generator) < probability
        result[rows[accepted]] = values[accepted]
        rows = rows[~accepted]
        if len(rows) == 0:
            return result
        values, probability = draw(rows)
    raise InputError(
        f"{len(rows)} of {n} events found no place in phase space in {_MOST_TRIES} tries: the "
        "masses leave too little energy, or too many particles come out of one vertex."
    )


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws float64 numbers from [0, 1)."""
    return torch.rand(
        tuple(shape), generator=generator, dtype=torch.float64, device=generator.device
    )
