"""Ten events: they arrive one by one, and the region of the masses shrinks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.combination import OUTLIERS, measure
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.likelihood import MassLikelihood, centres
from massrecon.inference.measurement import LEVELS, MassMeasurement
from massrecon.inference.refinement import resampled
from massrecon.visual.arrivals import Arrivals, arriving_region
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.mass_point import named, nearest_events
from massrecon.visual.explore.sources import SAMPLE, Tell, mass_table, stored_events
from massrecon.visual.measurement import plane_posterior, range_around
from massrecon.visual.template import plain

ALL = -1
"""Number of arrived events that stands for all of them."""

_MOST_WIDTHS = 16  # numbers of events whose widths are computed
_SHOWN_FROM = 3  # the axes hold the region of so many events
_KEPT = 64
_RUNS: dict[tuple[Any, ...], _Run] = {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """A sequence of events, and what has been measured of it so far."""

    likelihood: MassLikelihood
    arrivals: Arrivals
    truth: list[float]
    events: Events
    measured: dict[tuple[int, int], MassMeasurement]


def explore_ten_events(
    model: str = SAMPLE,
    m_parent: float = 600.0,
    m_daughter: float = 200.0,
    n_events: int = 10,
    arrived: int = ALL,
    background: float = 0.0,
    outliers: float = OUTLIERS,
    background_events: str = "background_tth",
    events: str = SAMPLE,
    more_events: str = "wino_udd_600_200",
    whole: bool = False,
    seed: int = 1,
    *,
    tell: Tell | None = None,
) -> Exploration:
    """Measures the masses after each of some events, which may be signal or background.

    Signal events are stored ones of the nearest mass point. Every event is background with a given
    probability, whatever a real selection and luminosity would make of it; the background that
    comes with massrecon is tt̄h with h → γγ behind the same selection. The measurement does not know
    which is which: it takes a share of the events, `outliers`, to tell nothing.

    Args:
        model: Name of a model, folder of a trained one, or ``mixture`` for the kinematic mixture.
        m_parent: True value of the first mass of the process [GeV].
        m_daughter: True value of the second mass [GeV].
        n_events: Number of events that arrive.
        arrived: How many have arrived; -1 for all.
        background: Probability that an event is background.
        outliers: Share of events that the measurement takes to tell nothing.
        background_events: Stored background events, by name or folder; signal events of other
            masses will do.
        events: Stored signal events, by name or folder.
        more_events: Further ones of the same process; empty for none.
        whole: Whether to show the whole mass plane.
        seed: Seed of the choice and order of the events.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or there are not enough events.
    """
    _check(n_events, arrived, background)
    masses = (m_parent, m_daughter)
    stores = (events, more_events, background_events)
    run = _run(model, masses, n_events, background, outliers, stores, seed, tell)
    n = n_events if arrived == ALL else arrived
    now, newest = _measured(run, 0, n, outliers), _measured(run, n - 1, n, outliers)
    before = _measured(run, 0, n - 1, outliers) if n > 1 else None
    ranges = _ranges(run, n_events, outliers, whole)
    data = _numbers(run, now, n)
    figure = arriving_region(now, newest, before, run.arrivals, run.truth, ranges)
    return Exploration(figure=figure, data=data, reading=_reading(now, data, outliers))


def events_to_do(arguments: Mapping[str, Any]) -> int:
    """Counts the events whose densities `explore_ten_events` would have to compute first.

    Args:
        arguments: Its arguments by name, all of them.

    Raises:
        InputError: If an argument is out of range.
    """
    given = dict(arguments)
    _check(given["n_events"], given["arrived"], given["background"])
    chosen = _chosen(
        (given["m_parent"], given["m_daughter"]),
        given["n_events"],
        given["background"],
        (given["events"], given["more_events"], given["background_events"]),
        given["seed"],
    )
    card = stored_events(given["events"]).card.name
    tables = ((chosen.store, chosen.signal), (given["background_events"], chosen.background))
    return sum(len(mass_table(given["model"], s, card).missing(r)) for s, r in tables if r)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Which stored events arrive, and in which order: rows, and whether each is background."""

    store: str
    signal: list[int]
    background: list[int]
    false: list[bool]
    truth: list[float]


def _check(n_events: int, arrived: int, background: float) -> None:
    if n_events < 1:
        raise InputError(f"'n_events' should be at least 1, got {n_events}.")
    if arrived != ALL and not 1 <= arrived <= n_events:
        raise InputError(f"'arrived' should be from 1 to {n_events}, or {ALL}, got {arrived}.")
    if not 0 <= background <= 1:
        raise InputError(f"'background' should be a share from 0 to 1, got {background}.")


def _chosen(
    masses: tuple[float, float],
    n_events: int,
    background: float,
    stores: tuple[str, str, str],
    seed: int,
) -> _Chosen:
    """Chooses events: those of a smaller share of background are part of those of a larger one."""
    store, signal, truth = nearest_events(*stores[:2], masses, n_events, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    false = (torch.rand(n_events, generator=generator) < background).tolist()
    kept = [row for row, wrong in zip(signal, false, strict=True) if not wrong]
    other: list[int] = []
    if any(false):
        n_stored = len(stored_events(stores[2]))
        if sum(false) > n_stored:
            raise InputError(
                f"'background_events' holds {n_stored} events, {sum(false)} are asked for: take "
                "fewer events, or a folder with more."
            )
        other = torch.randperm(n_stored, generator=generator)[: sum(false)].tolist()
    return _Chosen(store=store, signal=kept, background=other, false=false, truth=truth)


def _run(
    model: str,
    masses: tuple[float, float],
    n_events: int,
    background: float,
    outliers: float,
    stores: tuple[str, str, str],
    seed: int,
    tell: Tell | None,
) -> _Run:
    """Puts the sequence together, or takes the one from before."""
    chosen = _chosen(masses, n_events, background, stores, seed)
    card = stored_events(stores[0]).card.name
    signal, false = mass_table(model, chosen.store, card), mass_table(model, stores[2], card)
    key = (id(signal), id(false), repr(chosen), outliers)
    if key not in _RUNS:
        parts = [t.likelihood(r, tell) for t, r in ((signal, chosen.signal),) if r]
        if chosen.background:
            parts.append(false.likelihood(chosen.background, tell))
        joined = torch.cat([part.log_ratio for part in parts])
        # stably sorted, the signal events are first: back to the order of arrival
        order = torch.tensor(chosen.false).int().argsort(stable=True).argsort()
        table = dataclasses.replace(parts[0], log_ratio=joined[order])
        arrivals = _arrivals(table, chosen.false, outliers)
        if len(_RUNS) >= _KEPT:
            _RUNS.pop(next(iter(_RUNS)))
        _RUNS[key] = _Run(
            likelihood=table,
            arrivals=arrivals,
            truth=chosen.truth,
            events=signal.events,
            measured={},
        )
    return _RUNS[key]


def _arrivals(table: MassLikelihood, false: Sequence[bool], outliers: float) -> Arrivals:
    """Computes widths after all or some numbers of events at once, on a finer grid."""
    n = len(table)
    every = range(1, n + 1)
    if n > _MOST_WIDTHS:
        every = sorted({round(n ** (i / (_MOST_WIDTHS - 1))) for i in range(_MOST_WIDTHS)})
    counts = list(every)
    finer = 2 if n <= _MOST_WIDTHS else 4
    total = table.with_outliers(outliers).log_ratio.cumsum(0)[torch.tensor(counts) - 1]
    axes = {name: _finer(axis, finer) for name, axis in table.axes.items()}
    fine = resampled(total, table.axes, axes)
    posterior = GridPosterior.from_log_likelihood(axes, fine)
    widths = posterior.interval(LEVELS[0]).diff(dim=-1)[..., 0] / 2
    return Arrivals(counts=counts, widths=widths, background=list(false))


def _finer(axis: Tensor, times: int) -> Tensor:
    half = float(axis[1] - axis[0]) / 2
    return centres(float(axis[0]) - half, float(axis[-1]) + half, times * len(axis))


def _measured(run: _Run, first: int, last: int, outliers: float) -> MassMeasurement:
    """Measures the masses from some of the events; kept."""
    if (first, last) not in run.measured:
        found = measure(run.likelihood[first:last], outliers=outliers)
        run.measured[first, last] = named(found, run.events)
    return run.measured[first, last]


def _ranges(run: _Run, n_events: int, outliers: float, whole: bool) -> dict[str, list[float]]:
    """Returns the axes of the plane, the same for all numbers of events that have arrived."""
    early = _measured(run, 0, min(_SHOWN_FROM, n_events), outliers)
    region = early.region
    if whole:
        ends = zip(early.names, region.low, region.high, strict=True)
        return {name: [low, high] for name, low, high in ends}
    plane, ranges = plane_posterior(early.posterior, *early.names), {}
    truth = torch.tensor(run.truth, dtype=torch.float64)
    for i, name in enumerate(early.names):
        low, high = range_around(plane, name, truth, early.names)
        ranges[name] = [max(low, region.low[i]), min(high, region.high[i])]
    return ranges


def _numbers(run: _Run, now: MassMeasurement, n: int) -> dict[str, Any]:
    level = float(now.posterior.level_at(torch.tensor(run.truth, dtype=torch.float64)))
    halves = now.goodness.halves_p
    return {
        "arrived": n,
        "n_background": sum(run.arrivals.background[:n]),
        "background": list(run.arrivals.background),
        "true_masses_GeV": run.truth,
        "estimate_GeV": now.estimate().tolist(),
        "intervals_GeV": {f"{lv:.0%}": now.interval(lv).tolist() for lv in LEVELS},
        "region_GeV2": {f"{lv:.0%}": float(now.posterior.area(lv)) for lv in LEVELS},
        "level_of_truth": level,
        "halves_agree_p": None if halves is None or not math.isfinite(halves) else halves,
        "events": list(run.arrivals.counts),
        "half_width_GeV": run.arrivals.widths.tolist(),
    }


def _reading(now: MassMeasurement, data: dict[str, Any], outliers: float) -> str:
    rows = []
    for i, name in enumerate(now.names):
        low, high = data["intervals_GeV"]["68%"][i]
        best = data["estimate_GeV"][i]
        symbol = plain(now.symbols[name])
        rows.append(f"m({symbol}) = {best:.1f} (+{high - best:.1f} −{best - low:.1f}) GeV")
    masses = ", ".join(f"{m:.0f}" for m in data["true_masses_GeV"])
    level = data["level_of_truth"]
    side = "inside" if level <= LEVELS[0] else "outside"
    wide = "" if level <= LEVELS[0] else (
        ", inside the 95 % one" if level <= LEVELS[1] else ", and outside the 95 % one"
    )  # fmt: skip
    halves = data["halves_agree_p"]
    agree = "" if halves is None else f" The two halves of the events agree with p = {halves:.2g}."
    return (
        f"After {data['arrived']} event(s), {data['n_background']} of them background: "
        f"{', '.join(rows)}. The truth ({masses}) GeV is {side} the 68 % region{wide}; "
        f"{100 * outliers:g} % of the events are taken to tell nothing.{agree}"
    )
