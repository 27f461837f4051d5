"""Unknown mass of the invisible particle: what the same events say about it.

With a wrong trial mass the edges move with it, almost one to one, and global masses that solve
nearly all events still exist. But only for the true trial mass does the edge bound *every* event:
for a lighter or a heavier one a few events need far heavier masses than all others, the more the
further it is off. What is scanned is this tail,

    tail(m) = (largest value) - (value that a share `beyond` of the events exceeds),

of the smallest solvable masses of each species; it has a kink at the true mass, where it is
smallest. The kink is fitted. Its interval comes from random thirds of the events, fitted likewise:
the tail ends at a single event, and of such a statistic the ordinary bootstrap, which draws that
event again in two samples out of three, is far too sure (D. N. Politis and J. P. Romano, Ann.
Statist. 22 (1994) 2031). In 26 toys of 5,000 events at 700 GeV the mean was 699.8 +- 1.7 GeV, the
scatter 8.5 GeV, and the intervals held the truth in 77 +- 8 %.

The resolution makes a tail of its own. Where that is longer than what a wrong trial mass adds, the
kink is gone, and the events do not tell the mass: this is so for the toy of 1000, 800 and 700 GeV
with momenta smeared by 5 % (without smearing, 10,000 events gave 710, 713 and 708 GeV). A scan that
does not rise by a fifth on both sides of its minimum has no value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics.endpoints import fit_kink
from massrecon.models.deelema.anchor import smallest_masses
from massrecon.models.deelema.structure import Structure

_LEAST_POINTS = 7
_LEAST_EVENTS = 500
_NEAR = 3
_LEAST_DEPTH = 0.2
_SPLIT = 3


@dataclass(frozen=True, kw_only=True)
class TrialMassScan:
    """A scan of the trial mass.

    Attributes:
        trial_masses: Trial masses [GeV], shape ``(M,)``.
        tails: Tail of each species [GeV], each ``(M,)``.
        masses: Value that the share `beyond` of the events exceeds, by species [GeV], ``(M,)``: the
            masses of the species at each trial mass, a little low.
        value: Estimate of the mass [GeV]; NaN without a kink.
        interval: Central 68.3 % range of the thirds of the events [GeV], together with the value;
            without a kink the whole range of the scan.
        replicas: Estimates from these thirds [GeV], shape ``(R,)``.
        depth: Relative rise of the tail from its minimum to the nearer end of the scan; a scan
            without a kink has a depth near 0.
    """

    trial_masses: Tensor
    tails: dict[str, Tensor]
    masses: dict[str, Tensor]
    value: float
    interval: tuple[float, float]
    replicas: Tensor
    depth: float


def scan_trial_mass(
    structure: Structure,
    visible: Tensor,
    ptmiss: Tensor,
    trial_masses: Sequence[float],
    *,
    beyond: float = 0.01,
    n_bootstrap: int = 50,
    seed: int = 0,
) -> TrialMassScan:
    """Scans the trial mass of the invisible particle.

    Args:
        structure: The decay: two equal chains of one or two steps.
        visible: Visible momenta (px, py, pz, E) [GeV], shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        trial_masses: At least 7 trial masses [GeV].
        beyond: Share of the events in the tail.
        n_bootstrap: Number of thirds for the interval, at least 2.
        seed: Their seed.

    Raises:
        InputError: If there are fewer than 7 trial masses, 500 events or 2 thirds, or two trial
            masses are equal.
        TopologyError: If the decay has no solvability edge.
    """
    _refuse_too_little(trial_masses, len(visible), n_bootstrap)
    points = torch.tensor(sorted(trial_masses), dtype=torch.float64)
    found = [smallest_masses(structure, visible, ptmiss, float(m), {}) for m in points]
    values = {name: torch.stack([f[name][0] for f in found]) for name in found[0]}
    generator = torch.Generator().manual_seed(seed)
    n = len(visible)
    rows = [torch.randperm(n, generator=generator)[: n // _SPLIT] for _ in range(n_bootstrap)]
    tails, masses = _tails(values, beyond)
    drawn = [_tails({k: v[:, r] for k, v in values.items()}, beyond)[0] for r in rows]
    total = _total(tails, tails)
    totals = torch.stack([_total(t, tails) for t in drawn])
    errors = totals.std(0).clamp_min(0.01 * float(total.min()))
    value = _kink(points, total, errors)
    replicas = torch.tensor([_kink(points, t, errors) for t in totals], dtype=torch.float64)
    quantiles = torch.tensor([0.15865, 0.84135], dtype=torch.float64)
    low, high = replicas.quantile(quantiles).tolist()
    depth = float(torch.minimum(total[0], total[-1]) / total.min() - 1)
    interval = min(low, value), max(high, value)
    if depth < _LEAST_DEPTH:
        value, interval = math.nan, (float(points[0]), float(points[-1]))
    return TrialMassScan(
        trial_masses=points,
        tails=tails,
        masses=masses,
        value=value,
        interval=interval,
        replicas=replicas,
        depth=depth,
    )


def _refuse_too_little(trial_masses: Sequence[float], n_events: int, n_bootstrap: int) -> None:
    """Refuses a scan that has no kink or no interval."""
    if len(trial_masses) < _LEAST_POINTS or n_events < _LEAST_EVENTS:
        raise InputError(
            f"A scan needs {_LEAST_POINTS} trial masses and {_LEAST_EVENTS} events, got "
            f"{len(trial_masses)} and {n_events}."
        )
    if n_bootstrap < 2 or len(set(trial_masses)) < len(trial_masses):
        raise InputError(
            f"A scan needs trial masses that all differ and 'n_bootstrap' of at least 2, got "
            f"{sorted(trial_masses)} and {n_bootstrap}."
        )


def _tails(
    values: Mapping[str, Tensor], beyond: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Computes tails and the values at their start, by species, each ``(M,)``."""
    tails, starts = {}, {}
    for name, found in values.items():
        finite = torch.where(found.isfinite(), found, -torch.inf)
        count = max(round(beyond * found.shape[1]), 2)
        top = finite.topk(count, dim=1).values
        starts[name] = top[:, -1]
        tails[name] = top[:, 0] - top[:, -1]
    return tails, starts


def _total(tails: Mapping[str, Tensor], unit: Mapping[str, Tensor]) -> Tensor:
    """Adds the tails of the species, each in units of the smallest of `unit`, shape ``(M,)``."""
    return torch.stack([tail / unit[name].min() for name, tail in tails.items()]).sum(0)


def _kink(points: Tensor, total: Tensor, errors: Tensor) -> float:
    """Fits the kink near the smallest tail."""
    best = int(total.argmin())
    first = min(max(best - _NEAR, 0), len(points) - _LEAST_POINTS)
    near = slice(first, max(first + _LEAST_POINTS, min(best + _NEAR + 1, len(points))))
    return fit_kink(points[near], total[near], errors[near]).m_invisible
