"""MT2 and M2 by hand: one event over all splittings of ptmiss, the endpoint, the kink."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.generator import simulate
from massrecon.inference.chains import Level, PairedChains, paired_chains
from massrecon.inference.classical import (
    SUBSYSTEMS,
    VARIABLES,
    KinkScan,
    Measured,
    kink_of,
    measure,
)
from massrecon.kinematics.constrained import Subsystem, m2_cc
from massrecon.kinematics.transverse import mt, mt2_solution
from massrecon.visual.classical import SYMBOLS, kink, variable_distributions
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import Tell, stored_events
from massrecon.visual.splitting import Point, Splitting, splitting_contour
from massrecon.visual.template import GREY

TOYS = ("antler", "antler_ttbar")
"""Process cards of pairs of two-step chains that are simulated in seconds."""

_CELLS = 61  # of the contour along each momentum
_TRIALS = 13  # trial masses of a scan
_LEVELS: dict[str, Level] = {"partons": "partons", "objects": "objects"}
_PARTS: dict[str, Subsystem] = {name: name for name in SUBSYSTEMS}
_FEWEST = 100  # events of which an endpoint is fitted


def explore_variables(
    process: str = "antler",
    masses: Sequence[str] = (),
    events: str = "",
    n_events: int = 1500,
    level: str = "partons",
    subsystem: str = "ab",
    event: int = 0,
    m_trial: float = -1.0,
    scan: bool = False,
    seed: int = 1,
    *,
    fit: bool = True,
    tell: Tell | None = None,
) -> Exploration:
    """Shows MT2 and M2CC of one event, and of a sample with endpoint and kink.

    Args:
        process: Card of a pair of two-step chains that is simulated, a toy such as ``antler``.
        masses: Its masses as ``NAME=VALUE`` [GeV]; those of the card if not given.
        events: Folder of stored events of one mass point in place of simulated ones; "" for none.
        n_events: Number of events.
        level: ``partons`` for true momenta and pairs, ``objects`` for what was measured.
        subsystem: ``ab``, ``a`` or ``b``.
        event: Number of the event that is shown.
        m_trial: Trial mass of what is invisible [GeV]; negative for the true one.
        scan: Whether to scan trial masses for the kink, which takes seconds the first time.
        seed: Seed of the simulation.
        fit: Whether to fit the endpoints, which takes most of the time.
        tell: Is told of the progress.

    Returns:
        The contour of the event, with the distributions below, and the kink if asked for.

    Raises:
        InputError: If a name is unknown or a number is out of range.
        TopologyError: If the decay is not a pair of two-step chains.
    """
    name, key = _checked(process, masses, events, n_events, level, subsystem, seed)
    chains = chains_of(key)
    if not 0 <= event < len(chains):
        raise InputError(f"There is no event {event}: choose 0 to {len(chains) - 1}.")
    trial = chains.true_trial_mass(name) if m_trial < 0 else m_trial
    shown, one = _one_event(chains, name, event, trial)
    measured = [_measured(key, variable, name, trial, fit) for variable in VARIABLES]
    panels = {"Endpoints": _distributions(measured, one)}
    data = {
        "true_masses_GeV": list(chains.masses), "n_events": len(chains), "subsystem": name,
        "event": event, "trial_mass_GeV": trial,
        "true_trial_mass_GeV": chains.true_trial_mass(name),
        "true_parent_mass_GeV": chains.true_parent_mass(name), **one,
        "endpoints": {m.variable: _fit_of(m) for m in measured}, "kinks": {},
    }  # fmt: skip
    if scan:
        panels["Kink"], data["kinks"] = _kinks(key, name, tell)
    return Exploration(figure=shown, data=data, reading=_reading(data), panels=panels)


@dataclass(frozen=True)
class SampleKey:
    """What decides the events that are shown: the arguments of `explore_variables` of these names.

    Attributes:
        process: Process card.
        masses: Entries ``NAME=VALUE`` [GeV].
        events: Folder of stored events.
        n_events: Number of events.
        level: ``partons`` or ``objects``.
        seed: Seed.
    """

    process: str
    masses: tuple[str, ...]
    events: str
    n_events: int
    level: Level
    seed: int


def pending(
    process: str,
    masses: Sequence[str],
    events: str,
    n_events: int,
    level: str,
    subsystem: str,
    event: int,
    m_trial: float,
    scan: bool,
    seed: int,
) -> set[str]:
    """Says what `explore_variables` would take seconds for: ``events``, ``fit``, ``scan``.

    Takes its arguments, and raises its errors.
    """
    name, key = _checked(process, masses, events, n_events, level, subsystem, seed)
    if key not in _SAMPLES:
        return {"events", "fit", *(["scan"] if scan else [])}
    truth = _SAMPLES[key].true_trial_mass(name)
    found = set()
    if any((key, v, name, truth if m_trial < 0 else m_trial) not in _FITS for v in VARIABLES):
        found.add("fit")
    if scan and (key, name) not in _KINKS:
        found.add("scan")
    return found


_SAMPLES: dict[SampleKey, PairedChains] = {}
_FITS: dict[tuple[SampleKey, str, Subsystem, float], Measured] = {}
_KINKS: dict[tuple[SampleKey, Subsystem], tuple[go.Figure, dict[str, Any]]] = {}
_MOST_SAMPLES, _MOST_FITS = 8, 512


def chains_of(key: SampleKey) -> PairedChains:
    """Reads stored events or makes new ones; the same key gives the same object."""
    if key not in _SAMPLES:
        if len(_SAMPLES) >= _MOST_SAMPLES:
            _SAMPLES.pop(next(iter(_SAMPLES)), None)
        if key.events:
            sample = stored_events(key.events)[: key.n_events]
        else:
            wanted = dict(entry.split("=", 1) for entry in key.masses)
            sample = simulate(
                key.process, key.n_events, masses=wanted or None, seed=key.seed, progress=False
            )
        _SAMPLES[key] = paired_chains(sample, key.level)
    return _SAMPLES[key]


def _checked(
    process: str,
    masses: Sequence[str],
    events: str,
    n_events: int,
    level: str,
    subsystem: str,
    seed: int,
) -> tuple[Subsystem, SampleKey]:
    """Checks the arguments that decide the sample, and the name of the subsystem."""
    for entry in masses:
        if "=" not in entry:
            raise InputError(
                f"'masses' should have entries NAME=VALUE such as A=1000, got '{entry}'."
            )
    if level not in _LEVELS:
        raise unknown_name("level", level, _LEVELS)
    if n_events < _FEWEST:
        raise InputError(f"'n_events' should be at least {_FEWEST}, got {n_events}.")
    if subsystem not in _PARTS:
        raise unknown_name("subsystem", subsystem, SUBSYSTEMS)
    key = SampleKey(process, tuple(masses), events, n_events, _LEVELS[level], seed)
    return _PARTS[subsystem], key


def _measured(
    key: SampleKey, variable: str, name: Subsystem, trial: float, fit: bool = True
) -> Measured:
    """Computes a variable of the sample; toys of partons have no events beyond the endpoint."""
    place = (key, variable, name, trial)
    if place in _FITS:
        return _FITS[place]
    noisy = key.level == "objects"
    found = measure(chains_of(key), variable, name, trial, fit=fit, background=noisy)
    if fit:
        if len(_FITS) >= _MOST_FITS:
            _FITS.pop(next(iter(_FITS)), None)
        _FITS[place] = found
    return found


def _trials(chains: PairedChains, name: Subsystem) -> list[float]:
    """Returns the trial masses of a scan around the true one."""
    centre = chains.true_trial_mass(name)
    reach = 0.5 * (chains.true_parent_mass(name) - centre)
    trials = [centre + reach * (2 * k / (_TRIALS - 1) - 1) for k in range(_TRIALS)]
    return sorted({max(0.0, trial) for trial in trials})


def _kinks(
    key: SampleKey, name: Subsystem, tell: Tell | None
) -> tuple[go.Figure, dict[str, dict[str, float] | None]]:
    """Scans trial masses and draws the kink; the same arguments give the same figure."""
    if (key, name) not in _KINKS:
        scans = _scans(key, name, tell)
        numbers = {scan.measured[0].variable: _kink_of(scan) for scan in scans}
        if len(_KINKS) >= _MOST_SAMPLES:
            _KINKS.pop(next(iter(_KINKS)), None)
        _KINKS[key, name] = kink(scans, chains_of(key)), numbers
    return _KINKS[key, name]


def _scans(key: SampleKey, name: Subsystem, tell: Tell | None) -> list[KinkScan]:
    """Scans trial masses around the true one, every result kept."""
    trials = _trials(chains_of(key), name)
    scans = []
    for variable in VARIABLES:
        found = []
        for trial in trials:
            if tell is not None:
                done = len(found) + len(scans) * len(trials)
                tell(done / (2 * len(trials)), f"{variable} at a trial mass of {trial:.0f} GeV")
            found.append(_measured(key, variable, name, trial))
        scans.append(KinkScan(measured=tuple(found), kink=kink_of(found)))
    return scans


def _one_event(
    chains: PairedChains, name: Subsystem, event: int, trial: float
) -> tuple[go.Figure, dict[str, Any]]:
    """Draws the contour of an event and returns its values."""
    row = slice(event, event + 1)
    visible_a, visible_b, ptmiss = (t[row] for t in chains.parents(name))
    solved = mt2_solution(visible_a, visible_b, ptmiss, trial)
    whole = _quietly(chains, name, row, trial)
    true_q = chains.invisible_a[row] + (chains.lower_a[row] if name == "a" else 0.0)
    marks = {
        "minimum: MT2": _point(solved.invisible_a),
        "M2CC": _point(whole.invisible_a),
        "truth": _point(true_q),
    }
    marks = {key: at for key, at in marks.items() if all(map(math.isfinite, at))}
    splitting = split(visible_a[0], visible_b[0], ptmiss[0], trial, list(marks.values()))
    values = {"MT2_GeV": _number(solved.value), "M2CC_GeV": _number(whole.value)}
    marked = {key.removeprefix("minimum: "): list(at) for key, at in marks.items()}
    return splitting_contour(splitting, marks), {
        **values, "balanced": bool(solved.balanced), "momenta_of_side_a_GeV": marked,
    }  # fmt: skip


def _quietly(chains: PairedChains, name: Subsystem, row: slice, trial: float) -> Any:
    """Computes M2CC without the warning of an event that has none."""
    upper_a, lower_a, upper_b, lower_b, ptmiss = (t[row] for t in chains.visible)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return m2_cc(upper_a, lower_a, upper_b, lower_b, ptmiss, trial, name)


def split(
    visible_a: Tensor, visible_b: Tensor, ptmiss: Tensor, trial: float, inside: Sequence[Point]
) -> Splitting:
    """Computes the transverse masses of both sides on a grid of invisible momenta.

    Args:
        visible_a: Visible four-momentum of side a [GeV], shape ``(4,)``.
        visible_b: The same of side b.
        ptmiss: Missing transverse momentum [GeV], shape ``(2,)``.
        trial: Trial mass of what is invisible [GeV].
        inside: Points that the grid should hold [GeV].
    """
    centre = 0.5 * ptmiss
    off = [max(abs(x - float(centre[0])), abs(y - float(centre[1]))) for x, y in inside]
    reach = 1.4 * max([*off, 0.2 * float(visible_a[3] + visible_b[3]), 1.0])
    steps = torch.linspace(-reach, reach, _CELLS, dtype=torch.float64)
    qx, qy = centre[0] + steps, centre[1] + steps
    q = torch.stack(torch.meshgrid(qx, qy, indexing="xy"), -1)
    side_a = mt(visible_a.expand(*q.shape[:2], 4), q, trial)
    side_b = mt(visible_b.expand(*q.shape[:2], 4), ptmiss - q, trial)
    return Splitting(
        qx=qx.numpy(), qy=qy.numpy(), side_a=np.asarray(side_a), side_b=np.asarray(side_b)
    )


def _distributions(measured: Sequence[Measured], one: dict[str, Any]) -> go.Figure:
    """Draws the distributions, with the values of the event in them."""
    figure = variable_distributions(measured)
    for m in measured:
        value = one[f"{m.variable}_GeV"]
        if value is not None:
            # M2CC is never below MT2: each label on its own side
            left = m.variable == "MT2"
            line = {"color": GREY, "dash": "dash" if left else "dot", "width": 1.5}
            figure.add_vline(value, line=line)
            figure.add_annotation(
                text=f"event: {SYMBOLS[m.variable]}", x=value, y=0.98, yref="paper", font_size=12,
                showarrow=False, xanchor="right" if left else "left", xshift=-4 if left else 4,
            )  # fmt: skip
    return figure


def _point(momentum: Tensor) -> Point:
    return float(momentum[0, 0]), float(momentum[0, 1])


def _number(value: Tensor) -> float | None:
    return float(value[0]) if bool(value.isfinite().all()) else None


def _fit_of(m: Measured) -> dict[str, float] | None:
    if m.fit is None:
        return None
    return {"value_GeV": m.fit.value, "low_GeV": m.fit.low, "high_GeV": m.fit.high}


def _kink_of(scan: KinkScan) -> dict[str, float] | None:
    k = scan.kink
    if k is None:
        return None
    return {
        "trial_mass_GeV": k.m_invisible, "error_GeV": k.m_invisible_error,
        "endpoint_GeV": k.m_parent, "endpoint_error_GeV": k.m_parent_error,
    }  # fmt: skip


def _reading(data: dict[str, Any]) -> str:
    one = ", ".join(
        f"{n} {data[f'{n}_GeV']:.1f} GeV" if data[f"{n}_GeV"] is not None else f"no {n}"
        for n in VARIABLES
    )
    text = (
        f"Event {data['event']} at a trial mass of {data['trial_mass_GeV']:.1f} GeV (true: "
        f"{data['true_trial_mass_GeV']:.1f}): {one}; "
        + ("both sides equal" if data["balanced"] else "one side alone gives MT2")
        + f". True parent mass {data['true_parent_mass_GeV']:.1f} GeV."
    )
    for name, fit in data["endpoints"].items():
        if fit is not None:
            text += (
                f" Endpoint of {name} in {data['n_events']:,} events: {fit['value_GeV']:.1f} GeV "
                f"({fit['low_GeV']:.1f} to {fit['high_GeV']:.1f})."
            )
    for name, found in data["kinks"].items():
        if found is not None:
            text += (
                f" Kink of {name} at {found['trial_mass_GeV']:.0f} ± {found['error_GeV']:.0f} GeV."
            )
    return text
