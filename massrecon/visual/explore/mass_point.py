"""A mass point: what events with these true masses say about them, with one model or two."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.inference.combination import measure
from massrecon.inference.likelihood import mass_likelihood
from massrecon.inference.measurement import LEVELS, MassMeasurement
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import (
    SAMPLE,
    Tell,
    load_source,
    mass_table,
    stored_events,
)
from massrecon.visual.regions import regions_compared
from massrecon.visual.template import plain

_BATCH = 20  # fresh events that are simulated at a time
_FRESH: dict[str, Events] = {}


def explore_mass_point(
    model: str = SAMPLE,
    compare: str = "",
    m_parent: float = 600.0,
    m_daughter: float = 200.0,
    n_events: int = 10,
    width: float = 30.0,
    events: str = SAMPLE,
    more_events: str = "wino_udd_600_200",
    fresh: bool = False,
    whole: bool = False,
    seed: int = 1,
    *,
    tell: Tell | None = None,
) -> Exploration:
    """Measures the masses from events near a mass point, and compares with the truth.

    Stored events come from the nearest stored mass point that has enough of them, so that all have
    the same true masses; the reading says how far it is from what was asked for.

    Args:
        model: Name of a model, folder of a trained one, or ``mixture`` for the kinematic mixture.
        compare: A second one beside it; empty for none.
        m_parent: True value of the first mass of the process [GeV].
        m_daughter: True value of the second mass [GeV].
        n_events: Number of events.
        width: Half-width of the window estimate [GeV].
        events: Stored events, by name or folder.
        more_events: Further stored events of the same process; empty for none.
        fresh: Whether to simulate events of exactly these masses, which takes some seconds, and not
            to take stored ones.
        whole: Whether to show the whole mass plane.
        seed: Seed of the choice of events, of the draw, and of the simulation.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or no mass point has enough events.
        MissingExtraError: If events are to be simulated and Pythia is not installed.
    """
    asked = (m_parent, m_daughter)
    names = {"": model} if compare in ("", model) else {"": model, "second": compare}
    if fresh:
        sample = fresh_events(events, asked, n_events, seed, tell)
        found = {n: _of_fresh(n, sample) for n in names.values()}
        truth = list(asked)
    else:
        store, rows, truth = nearest_events(events, more_events, asked, n_events, seed)
        found = {n: _of_stored(n, store, rows, tell) for n in names.values()}
    estimates = {name: _estimates(m, width, seed) for name, m in found.items()}
    data = {
        "masses_asked_GeV": list(asked), "true_masses_GeV": truth,
        "distance_GeV": math.dist(truth, asked), "n_events": n_events, "simulated": fresh,
        "models": {name: _numbers(m, estimates[name], truth) for name, m in found.items()},
    }  # fmt: skip
    figure = regions_compared(found, estimates, truth, whole)
    return Exploration(figure=figure, data=data, reading=_reading(found, data))


def fresh_events(
    like: str, masses: tuple[float, float], n_events: int, seed: int, tell: Tell | None = None
) -> Events:
    """Simulates events of the process of stored ones; the same arguments give the same object.

    Args:
        like: Stored events, whose process card is taken.
        masses: The two masses [GeV].
        n_events: Number of events.
        seed: Seed.
        tell: Is told of the progress, after every 20 events; it may raise to stop.

    Raises:
        InputError: If the masses are not allowed.
        MissingExtraError: If Pythia is not installed.
    """
    _check_count(n_events)
    card = stored_events(like).card
    key = _key(card.name, masses, n_events, seed)
    if key not in _FRESH:
        values = dict(zip(card.mass_names, masses, strict=True))
        parts = []
        for number, first in enumerate(range(0, n_events, _BATCH)):
            if tell is not None:
                tell(first / n_events, f"{first} of {n_events} events simulated")
            size = min(_BATCH, n_events - first)
            own_seed = 1000 * seed + number
            parts.append(simulate(card, size, values, seed=own_seed, workers=1, progress=False))
        _FRESH[key] = Events.concat(parts)
    return _FRESH[key]


def events_to_do(arguments: Mapping[str, Any]) -> int:
    """Counts the events that `explore_mass_point` would have to simulate or compute first.

    Args:
        arguments: Its arguments by name, all of them.

    Raises:
        InputError: If no mass point has enough events.
    """
    given = dict(arguments)
    asked, n_events = (given["m_parent"], given["m_daughter"]), given["n_events"]
    if given["fresh"]:
        card = stored_events(given["events"]).card
        return 0 if _key(card.name, asked, n_events, given["seed"]) in _FRESH else n_events
    names = {given["model"], given["compare"]} - {""}
    store, rows, _ = nearest_events(
        given["events"], given["more_events"], asked, n_events, given["seed"]
    )
    return sum(len(mass_table(name, store).missing(rows)) for name in names)


def stored_points(events: str, more_events: str = "") -> list[tuple[float, float, int]]:
    """Lists the stored mass points [GeV] with the number of events of each."""
    found = []
    for name in filter(None, (events, more_events)):
        points, counts = _masses(name).unique(dim=0, return_counts=True)
        found += [(*p, n) for p, n in zip(points.tolist(), counts.tolist(), strict=True)]
    return found


def _check_count(n_events: int) -> None:
    if n_events < 1:
        raise InputError(f"'n_events' should be at least 1, got {n_events}.")


def _key(card: str, masses: tuple[float, float], n_events: int, seed: int) -> str:
    return hashlib.sha256(repr((card, masses, n_events, seed)).encode()).hexdigest()


def _masses(name: str) -> Tensor:
    found = stored_events(name)
    if found.masses is None or found.masses.shape[1] != 2:
        raise InputError(
            f"'events' should carry two true masses, '{name}' does not: take simulated events of a "
            "process with two masses."
        )
    return found.masses.double().cpu()


def nearest_events(
    events: str, more_events: str, asked: tuple[float, float], n_events: int, seed: int
) -> tuple[str, list[int], list[float]]:
    """Finds the nearest stored mass point with enough events, and takes some of them.

    Args:
        events: Stored events, by name or folder.
        more_events: Further ones; empty for none.
        asked: The two masses [GeV].
        n_events: Number of events.
        seed: Seed of the choice.

    Returns:
        The name of the store, rows in it, and their true masses [GeV].

    Raises:
        InputError: If no mass point has enough events, or `n_events` is not positive.
    """
    _check_count(n_events)
    best: tuple[float, str, Tensor] | None = None
    most = 0
    for name in filter(None, (events, more_events)):
        masses = _masses(name)
        points, which, counts = masses.unique(dim=0, return_inverse=True, return_counts=True)
        most = max(most, int(counts.max()))
        far = (points - points.new_tensor(asked)).square().sum(1).sqrt()
        far = torch.where(counts >= n_events, far, math.inf)
        at = int(far.argmin())
        if math.isfinite(float(far[at])) and (best is None or float(far[at]) < best[0]):
            best = (float(far[at]), name, (which == at).nonzero()[:, 0])
    if best is None:
        raise InputError(
            f"'n_events' should be at most {most}, the most stored events of one mass point, got "
            f"{n_events}: simulate fresh ones, or pass a folder of 'events' with more."
        )
    _, name, rows = best
    generator = torch.Generator().manual_seed(seed)
    chosen = rows[torch.randperm(len(rows), generator=generator)[:n_events]].tolist()
    return name, chosen, _masses(name)[chosen[0]].tolist()


def _of_stored(name: str, events: str, rows: list[int], tell: Tell | None) -> MassMeasurement:
    table = mass_table(name, events)
    return named(measure(table.likelihood(rows, tell)), table.events)


def _of_fresh(name: str, events: Events) -> MassMeasurement:
    return named(measure(mass_likelihood(load_source(name, events.card.name), events)), events)


def named(measurement: MassMeasurement, events: Events) -> MassMeasurement:
    """Adds the symbols of the masses, which a table does not know."""
    symbols = {name: events.card.symbol(name) for name in measurement.names}
    return MassMeasurement(**{**vars(measurement), "symbols": symbols})


def _estimates(measurement: MassMeasurement, width: float, seed: int) -> dict[str, list[float]]:
    posterior = measurement.posterior
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(posterior.probability(), 1, generator=generator)
    found = {"draw": posterior.points[drawn[0]].tolist()}
    for estimator in ("mean", "median", "window"):
        found[estimator] = measurement.estimate(estimator, width).tolist()
    return found


def _numbers(
    measurement: MassMeasurement, estimates: dict[str, list[float]], truth: list[float]
) -> dict[str, Any]:
    level = float(measurement.posterior.level_at(torch.tensor(truth, dtype=torch.float64)))
    return {
        "estimates_GeV": estimates,
        "intervals_GeV": {f"{lv:.0%}": measurement.interval(lv).tolist() for lv in LEVELS},
        "region_GeV2": {f"{lv:.0%}": float(measurement.posterior.area(lv)) for lv in LEVELS},
        "level_of_truth": level,
        "notes": measurement.notes,
    }


def _reading(found: dict[str, MassMeasurement], data: dict[str, Any]) -> str:
    masses = ", ".join(f"{m:.0f}" for m in data["true_masses_GeV"])
    kind = "simulated" if data["simulated"] else "stored"
    far = "" if data["simulated"] else f", {data['distance_GeV']:.0f} GeV from the masses asked for"
    parts = [f"{data['n_events']} {kind} event(s) at ({masses}) GeV{far}."]
    for name, m in found.items():
        rows = []
        for i, mass in enumerate(m.names):
            low, high = m.interval()[i].tolist()
            best = float(m.estimate()[i])
            symbol = plain(m.symbols[mass])
            rows.append(f"m({symbol}) = {best:.1f} (+{high - best:.1f} −{best - low:.1f}) GeV")
        level = data["models"][name]["level_of_truth"]
        place = "inside the 68 %" if level <= LEVELS[0] else (
            "inside the 95 %" if level <= LEVELS[1] else "outside the 95 %"
        )  # fmt: skip
        parts.append(f"{name}: {', '.join(rows)}; the truth is {place} region.")
    return " ".join(parts)
