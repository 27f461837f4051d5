"""Ten events: they arrive one by one, and the region of the masses shrinks.

Without a luminosity, signal events are stored ones of the nearest mass point. Every event is
background with a given probability, whatever a real selection and luminosity would make of it; the
background that comes with massrecon is tt̄h with h → γγ behind the same selection. The measurement
does not know which is which: it takes a share of the events, `outliers`, to tell nothing.

With a luminosity, events of exactly these masses are simulated, a Poisson number with the mean
cross-section times branching fraction times acceptance times luminosity; and as many background
events as it brings, if they are asked for. The measurement then knows how many of both to expect
(the background to 30 %), and from boosted trees how much each event looks like it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.background import BackgroundRatio
from massrecon.inference.combination import OUTLIERS, measure
from massrecon.inference.composition import ExpectedRates
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.likelihood import MassLikelihood, centres
from massrecon.inference.measurement import LEVELS, MassMeasurement
from massrecon.inference.rates import YieldMap
from massrecon.inference.refinement import resampled
from massrecon.visual.arrivals import Arrivals, arriving_region
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.fresh import LuminositySample, luminosity_sample
from massrecon.visual.explore.mass_point import named, nearest_events
from massrecon.visual.explore.sources import (
    SAMPLE,
    MassTable,
    Tell,
    load_source,
    mass_table,
    stored_events,
)
from massrecon.visual.measurement import plane_posterior, range_around
from massrecon.visual.template import plain

ALL = -1
"""Number of arrived events that stands for all of them."""

_MANY = 10**6  # events to do where they are still to be simulated
_MOST_WIDTHS = 16  # numbers of events whose widths are computed
_SHOWN_FROM = 3  # the axes hold the region of so many events
_KEPT = 64
_UNKNOWN = 0.3  # relative uncertainty of the expected background
_FEWEST = 100  # events of either kind that a classifier learns from
_RUNS: dict[tuple[Any, ...], _Run] = {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """A sequence of events, and what has been measured of it so far.

    Of events by luminosity `expected` says how many there should be, and `known` what the
    measurement knows of the background among them.
    """

    likelihood: MassLikelihood
    background: list[bool]
    truth: list[float]
    events: Events
    outliers: float
    known: ExpectedRates | None = None
    expected: dict[str, Any] = dataclasses.field(default_factory=dict)
    measured: dict[tuple[int, int], MassMeasurement] = dataclasses.field(default_factory=dict)
    arrivals: list[Arrivals] = dataclasses.field(default_factory=list)


def explore_ten_events(
    model: str = SAMPLE,
    m_parent: float = 600.0,
    m_daughter: float = 200.0,
    n_events: int = 10,
    arrived: int = ALL,
    background: float = 0.0,
    outliers: float = OUTLIERS,
    luminosity: float = 0.0,
    with_background: bool = False,
    background_events: str = "background_tth",
    events: str = SAMPLE,
    more_events: str = "wino_udd_600_200",
    whole: bool = False,
    seed: int = 1,
    *,
    tell: Tell | None = None,
) -> Exploration:
    """Measures the masses after each of some events, which may be signal or background.

    Stored events arrive, or what a luminosity brings, with or without its background.

    Args:
        model: Name of a model, folder of a trained one, or ``mixture`` for the kinematic mixture.
        m_parent: True value of the first mass of the process [GeV].
        m_daughter: True value of the second mass [GeV].
        n_events: Number of events that arrive; not looked at with a luminosity.
        arrived: How many have arrived; -1 for all.
        background: Probability that an event is background; not looked at with a luminosity.
        outliers: Share of events that the measurement takes to tell nothing.
        luminosity: Integrated luminosity [fb^-1], for fresh events; 0 for stored ones.
        with_background: Whether a luminosity brings its background.
        background_events: Stored background events, by name or folder; signal events of other
            masses will do.
        events: Stored signal events, by name or folder.
        more_events: Further ones of the same process; empty for none.
        whole: Whether to show the whole mass plane.
        seed: Seed of the choice and order of the events.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or there are not enough events.
        MissingExtraError: If events are to be simulated and Pythia is not installed.
    """
    masses = (m_parent, m_daughter)
    stores = (events, more_events, background_events)
    if luminosity:
        false = background_events if with_background else ""
        run = _drawn_run(model, masses, luminosity, outliers, (events, false), seed, tell)
    else:
        _check(n_events, arrived, background)
        run = _run(model, masses, n_events, background, outliers, stores, seed, tell)
    _check(len(run.background), arrived, background)
    return _shown(run, len(run.background) if arrived == ALL else arrived, whole, tell)


def _shown(run: _Run, n: int, whole: bool, tell: Tell | None) -> Exploration:
    """Shows what the first n events of a sequence say, and the last of them."""
    arrivals = _arrivals(run, tell)
    now, newest = _measured(run, 0, n), _measured(run, n - 1, n)
    before = _measured(run, 0, n - 1) if n > 1 else None
    data = _numbers(run, now, n, arrivals)
    figure = arriving_region(now, newest, before, arrivals, run.truth, _ranges(run, whole))
    return Exploration(figure=figure, data=data, reading=_reading(now, data, run.outliers))


def events_to_do(arguments: Mapping[str, Any]) -> int:
    """Counts the events whose densities `explore_ten_events` would have to compute first.

    Args:
        arguments: Its arguments by name, all of them.

    Raises:
        InputError: If an argument is out of range.
    """
    given = dict(arguments)
    if given["luminosity"]:
        return _MANY if drawn_events(given) is None else 0
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


def drawn_events(arguments: Mapping[str, Any]) -> int | None:
    """Returns how many events a luminosity has brought; None if they are not simulated yet.

    Args:
        arguments: The arguments of `explore_ten_events` by name, all of them.
    """
    run = _RUNS.get(_drawn_key(arguments))
    return None if run is None else len(run.background)


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
        table = _in_order(parts, chosen.false)
        _keep(key, _Run(likelihood=table, background=chosen.false, truth=chosen.truth,
                        events=signal.events, outliers=outliers))  # fmt: skip
    return _RUNS[key]


def _in_order(parts: Sequence[MassLikelihood], false: Sequence[bool]) -> MassLikelihood:
    """Joins the likelihoods of signal and background events in the order of their arrival."""
    joined = torch.cat([part.log_ratio for part in parts])
    return replace(parts[0], log_ratio=joined[_order(false)])


def _order(false: Sequence[bool]) -> Tensor:
    """Returns where each event is if all signal events come first."""
    # stably sorted, the signal events are first: back to the order of arrival
    return torch.tensor(false).int().argsort(stable=True).argsort()


def _keep(key: tuple[Any, ...], run: _Run) -> None:
    if len(_RUNS) >= _KEPT:
        _RUNS.pop(next(iter(_RUNS)))
    _RUNS[key] = run


def _drawn_key(given: Mapping[str, Any]) -> tuple[Any, ...]:
    false = given["background_events"] if given["with_background"] else ""
    masses = (given["m_parent"], given["m_daughter"])
    return (given["model"], masses, given["luminosity"], given["outliers"], given["events"], false,
            given["seed"])  # fmt: skip


def _drawn_run(
    model: str,
    masses: tuple[float, float],
    luminosity: float,
    outliers: float,
    stores: tuple[str, str],
    seed: int,
    tell: Tell | None,
) -> _Run:
    """Simulates what a luminosity brings, or takes the one from before."""
    key = (model, masses, luminosity, outliers, *stores, seed)
    if key not in _RUNS:
        sample = luminosity_sample(stores[0], masses, luminosity, stores[1], seed, tell)
        plane = stored_events(stores[0])
        source = load_source(model, plane.card.name)
        kinds = [sample.signal, sample.background]
        numbers = [0 if kind is None else len(kind) for kind in kinds]
        generator = torch.Generator().manual_seed(seed + 1)
        places = torch.randperm(sum(numbers), generator=generator)
        false = (places >= numbers[0]).tolist()
        parts = [
            MassTable(source, kind).likelihood(range(len(kind)), tell)
            for kind in kinds
            if kind is not None and len(kind)
        ]
        _keep(key, _Run(
            likelihood=_in_order(parts, false), background=false, truth=list(masses), events=plane,
            outliers=outliers, known=_known(sample, plane, luminosity, false, seed, tell),
            expected={
                "luminosity_fb": luminosity,
                "expected_signal": sample.expected_signal[0],
                "expected_signal_error": sample.expected_signal[1],
                "expected_background": sample.expected_background,
            },
        ))  # fmt: skip
    return _RUNS[key]


def _known(
    sample: LuminositySample,
    plane: Events,
    luminosity: float,
    false: Sequence[bool],
    seed: int,
    tell: Tell | None,
) -> ExpectedRates | None:
    """Finds out what the measurement may know of the background; None without background."""
    if sample.background is None or sample.spare is None:
        return None
    if len(plane) < _FEWEST:
        raise InputError(
            f"'events' holds {len(plane)} events, and a classifier of background needs {_FEWEST}: "
            "pass more, or set 'with_background' to False."
        )
    if tell is not None:
        tell(0.5, "trees learn to tell background from signal")
    ratio = BackgroundRatio.fit(plane, {"background": sample.spare}, seed=seed)
    looks = [ratio(kind) for kind in (sample.signal, sample.background) if len(kind)]
    names = tuple(plane.card.mass_names)
    rate = YieldMap.from_cells(names, plane.provenance.get("cells", ()))
    mean = sample.expected_background
    return ExpectedRates(
        log_background=torch.cat(looks)[_order(false)],
        signal=lambda points: rate(points, luminosity),
        background=(mean, _UNKNOWN * mean),
    )


def _arrivals(run: _Run, tell: Tell | None) -> Arrivals:
    """Computes widths after all or some numbers of events; kept."""
    if not run.arrivals:
        counts = _counts(len(run.background))
        widths = _widths(run, counts) if run.known is None else _known_widths(run, counts, tell)
        run.arrivals.append(Arrivals(counts=counts, widths=widths, background=run.background))
    return run.arrivals[0]


def _counts(n: int) -> list[int]:
    if n <= _MOST_WIDTHS:
        return list(range(1, n + 1))
    return sorted({round(n ** (i / (_MOST_WIDTHS - 1))) for i in range(_MOST_WIDTHS)})


def _widths(run: _Run, counts: Sequence[int]) -> Tensor:
    """Computes half the 68 % intervals of all numbers of events at once, on a finer grid."""
    table = run.likelihood
    finer = 2 if len(table) <= _MOST_WIDTHS else 4
    total = table.with_outliers(run.outliers).log_ratio.cumsum(0)[torch.tensor(counts) - 1]
    axes = {name: _finer(axis, finer) for name, axis in table.axes.items()}
    fine = resampled(total, table.axes, axes)
    posterior = GridPosterior.from_log_likelihood(axes, fine)
    return posterior.interval(LEVELS[0]).diff(dim=-1)[..., 0] / 2


def _known_widths(run: _Run, counts: Sequence[int], tell: Tell | None) -> Tensor:
    """Computes them one measurement after the other, each with its own composition."""
    found = []
    for i, n in enumerate(counts):
        if tell is not None:
            tell(i / len(counts), f"masses measured after {n:,} of {counts[-1]:,} events")
        interval = _measured(run, 0, n).interval(LEVELS[0])
        found.append(interval.diff(dim=-1)[..., 0] / 2)
    return torch.stack(found)


def _finer(axis: Tensor, times: int) -> Tensor:
    half = float(axis[1] - axis[0]) / 2
    return centres(float(axis[0]) - half, float(axis[-1]) + half, times * len(axis))


def _measured(run: _Run, first: int, last: int) -> MassMeasurement:
    """Measures the masses from some of the events; kept."""
    if (first, last) not in run.measured:
        known = None if run.known is None else _part_of(run.known, first, last)
        found = measure(run.likelihood[first:last], outliers=run.outliers, background=known)
        run.measured[first, last] = named(found, run.events)
    return run.measured[first, last]


def _part_of(known: ExpectedRates, first: int, last: int) -> ExpectedRates:
    """Returns what is known of some of the events: their part of all rates."""
    looks = known.log_background.roll(-first)
    return replace(known, log_background=looks).first(last - first)


def _ranges(run: _Run, whole: bool) -> dict[str, list[float]]:
    """Returns the axes of the plane, the same for all numbers of events that have arrived."""
    n = len(run.background)
    early = _measured(run, 0, min(_SHOWN_FROM if run.known is None else n, n))
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


def _numbers(run: _Run, now: MassMeasurement, n: int, arrivals: Arrivals) -> dict[str, Any]:
    level = float(now.posterior.level_at(torch.tensor(run.truth, dtype=torch.float64)))
    halves = now.goodness.halves_p
    return {
        "arrived": n,
        "n_events": len(run.background),
        "n_background": sum(run.background[:n]),
        "background": list(run.background),
        **run.expected,
        "true_masses_GeV": run.truth,
        "estimate_GeV": now.estimate().tolist(),
        "intervals_GeV": {f"{lv:.0%}": now.interval(lv).tolist() for lv in LEVELS},
        "region_GeV2": {f"{lv:.0%}": float(now.posterior.area(lv)) for lv in LEVELS},
        "level_of_truth": level,
        "halves_agree_p": None if halves is None or not math.isfinite(halves) else halves,
        "events": list(arrivals.counts),
        "half_width_GeV": arrivals.widths.tolist(),
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
    told = f"{100 * outliers:g} % of the events are taken to tell nothing.{agree}"
    return (
        f"After {data['arrived']} event(s), {data['n_background']} of them background: "
        f"{', '.join(rows)}. The truth ({masses}) GeV is {side} the 68 % region{wide}; {told}"
        f"{_expectation(data)}"
    )


def _expectation(data: Mapping[str, Any]) -> str:
    """Says how many events a luminosity should bring, and how many it brought."""
    if "luminosity_fb" not in data:
        return ""
    total, false = data["n_events"], sum(data["background"])
    text = (
        f" In {data['luminosity_fb']:g} fb⁻¹, {data['expected_signal']:.1f} ± "
        f"{data['expected_signal_error']:.1f} signal events are expected (cross-section × "
        f"branching fraction × acceptance of these masses), and {total - false} came"
    )
    if data["expected_background"]:
        text += f"; {data['expected_background']:.0f} of background, and {false} came"
    return f"{text}."
