"""What MT2 and M2 say about events: endpoints, invisible momenta and the kink.

The classical route from events to masses, for any card whose decay is a pair of two-step chains,
A -> a B and B -> b C with C unseen::

    chains = paired_chains(events)
    found = measure(chains, "M2CC", "ab")
    print(found.fit.value, found.truth)

`massrecon.inference.chains` reads the chains from the decay of the card.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.inference.chains import PairedChains
from massrecon.inference.resolution import weighted_quantile
from massrecon.kinematics.constrained import M2Solution, Subsystem, m2_cc
from massrecon.kinematics.endpoints import EndpointFit, KinkFit, fit_endpoint, fit_kink
from massrecon.kinematics.solvers import pair_solutions
from massrecon.kinematics.transverse import maos, mt2_solution

VARIABLES = ("MT2", "M2CC")
"""Variables that `measure` knows."""

SUBSYSTEMS: tuple[Subsystem, ...] = ("ab", "a", "b")
"""Parts of the chains that are pairs of decays themselves."""

_FEWEST_ENDPOINTS = 7  # of a kink: two lines that meet, with their errors


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A variable of N events in one subsystem, with its endpoint.

    Attributes:
        variable: "MT2" or "M2CC".
        subsystem: "ab", "a" or "b".
        values: The variable [GeV], shape ``(N,)``; NaN where there is no solution.
        fitted: Which values entered the fit: for MT2 the balanced events, since those of one side
            alone end elsewhere. Shape ``(N,)``.
        m_invisible: Trial mass [GeV].
        fit: The endpoint; None if too few values are left.
        truth: Parent mass [GeV], where the endpoint should be at the true trial mass.
        certified: Share of the events whose minimum is proven to be the global one.
    """

    variable: str
    subsystem: Subsystem
    values: Tensor
    fitted: Tensor
    m_invisible: float
    fit: EndpointFit | None
    truth: float
    certified: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Momenta:
    """Invisible momenta that a method finds, with several solutions for an event or none.

    Attributes:
        method: Name of the method.
        true: True momenta (px, py, pz, E) [GeV], shape ``(M, 4)``, one row for each solution.
        found: Found momenta, shape ``(M, 4)``.
        weight: One over the number of solutions of the event, shape ``(M,)``.
        solved: Share of the events with a solution.
    """

    method: str
    true: Tensor
    found: Tensor
    weight: Tensor
    solved: float

    def correlation(self, component: int) -> float:
        """Returns the correlation coefficient of true and found component 0, 1, 2 (x, y, z)."""
        x, y = self.true[:, component], self.found[:, component]
        total = self.weight.sum()
        x, y = x - (self.weight * x).sum() / total, y - (self.weight * y).sum() / total
        product = (self.weight * x * y).sum()
        spread_x, spread_y = ((self.weight * v * v).sum().sqrt() for v in (x, y))
        return float(product / (spread_x * spread_y))

    def width(self, component: int) -> float:
        """Returns half of the central 68 % of found minus true component 0, 1, 2 [GeV]."""
        off = self.found[:, component] - self.true[:, component]
        levels = torch.tensor([0.16, 0.84], dtype=torch.float64)
        low, high = weighted_quantile(off, self.weight, levels).tolist()
        return 0.5 * (high - low)


@dataclass(frozen=True, kw_only=True, eq=False)
class KinkScan:
    """Endpoints of one variable at several trial masses.

    Attributes:
        measured: The variable at each trial mass, in rising order.
        kink: Where the endpoint bends; None with fewer than seven endpoints.
    """

    measured: tuple[Measured, ...]
    kink: KinkFit | None


def measure(
    chains: PairedChains,
    variable: str,
    name: Subsystem = "ab",
    m_invisible: float | None = None,
    *,
    fit: bool = True,
    background: bool = True,
) -> Measured:
    """Computes MT2 or M2CC in a subsystem and fits its endpoint.

    Args:
        chains: The events.
        variable: "MT2" or "M2CC".
        name: Subsystem "ab", "a" or "b".
        m_invisible: Trial mass [GeV]; the true one if not given.
        fit: Whether to fit the endpoint.
        background: Whether values beyond the endpoint are allowed for: wrong pairs, resolution.

    Raises:
        InputError: If the variable or the subsystem is unknown.

    References:
        MT2: C. G. Lester and D. J. Summers, hep-ph/9906349; M2CC: W. S. Cho et al.,
        arXiv:1401.1449.
    """
    if variable not in VARIABLES:
        raise unknown_name("variable", variable, VARIABLES)
    if name not in SUBSYSTEMS:
        raise unknown_name("subsystem", name, SUBSYSTEMS)
    trial = chains.true_trial_mass(name) if m_invisible is None else float(m_invisible)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN is counted by the caller
        if variable == "MT2":
            solved = mt2_solution(*chains.parents(name), trial)
            fitted, certified = solved.balanced, solved.converged
        else:
            solved = m2_cc(*chains.visible, trial, name)
            fitted, certified = solved.converged, solved.certified
    return Measured(
        variable=variable,
        subsystem=name,
        values=solved.value,
        fitted=fitted,
        m_invisible=trial,
        fit=_endpoint(solved.value[fitted], background) if fit else None,
        truth=chains.true_parent_mass(name),
        certified=float(certified.double().mean()),
    )


def invisible_momenta(chains: PairedChains) -> list[Momenta]:
    """Finds the invisible momenta of C by MAOS, by M2CC, and at known masses by the exact solver.

    MAOS and M2CC know the true mass of C only; the solver knows all three masses.
    """
    m_parent, m_relative, m_invisible = chains.masses
    visible_a, visible_b, ptmiss = chains.parents("ab")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        transverse = mt2_solution(visible_a, visible_b, ptmiss, m_invisible)
        on_shell = maos(transverse, visible_a, visible_b, m_invisible)
        whole, lower = (m2_cc(*chains.visible, m_invisible, name) for name in ("ab", "b"))
    solved = pair_solutions(*chains.visible, m_parent, m_relative, m_invisible)
    return [
        _momenta("MAOS", chains, *on_shell),
        _momenta("M2CC (ab)", chains, *_sides(whole)),
        _momenta("M2CC (b)", chains, *_sides(lower)),
        _momenta("exact solver", chains, solved.invisible_a, solved.invisible_b),
    ]


def kink_scan(
    chains: PairedChains,
    variable: str,
    trial_masses: Sequence[float],
    name: Subsystem = "ab",
    *,
    background: bool = True,
) -> KinkScan:
    """Fits the endpoint at several trial masses, and the kink in it.

    Args:
        chains: The events.
        variable: "MT2" or "M2CC".
        trial_masses: Trial masses of C [GeV], of B in subsystem "a".
        name: Subsystem "ab", "a" or "b".
        background: As in `measure`.
    """
    masses = sorted(trial_masses)
    measured = tuple(measure(chains, variable, name, m, background=background) for m in masses)
    return KinkScan(measured=measured, kink=kink_of(measured))


def kink_of(measured: Sequence[Measured]) -> KinkFit | None:
    """Fits the kink in the endpoints of one variable at rising trial masses.

    Returns:
        The kink; None where fewer than seven trial masses have an endpoint.
    """
    fits = [(m.m_invisible, m.fit) for m in measured if m.fit is not None]
    if len(fits) < _FEWEST_ENDPOINTS:
        return None
    rows = [(m, fit.value, 0.5 * (fit.high - fit.low)) for m, fit in fits]
    return fit_kink(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def _endpoint(values: Tensor, background: bool) -> EndpointFit | None:
    try:
        return fit_endpoint(values, background=background)
    except InputError:  # too few values
        return None


def _sides(solution: M2Solution) -> tuple[Tensor, Tensor]:
    return solution.invisible_a.unsqueeze(1), solution.invisible_b.unsqueeze(1)


def _momenta(method: str, chains: PairedChains, found_a: Tensor, found_b: Tensor) -> Momenta:
    """Lists the solutions ``(N, S, 4)`` of both sides beside the truth."""
    exists = found_a.isfinite().all(-1) & found_b.isfinite().all(-1)
    share = (exists / exists.sum(1, keepdim=True).clamp_min(1)).double()[exists]
    pairs = ((chains.invisible_a, found_a), (chains.invisible_b, found_b))
    true = [t.unsqueeze(1).expand_as(q)[exists] for t, q in pairs]
    return Momenta(
        method=method,
        true=torch.cat(true),
        found=torch.cat([q[exists] for _, q in pairs]),
        weight=share.repeat(2),
        solved=float(exists.any(1).double().mean()),
    )
