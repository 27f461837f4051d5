"""The efficiency over the plane of true masses, and what is in one of its cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.efficiency_map import EfficiencyMap, efficiency_map
from massrecon.inference.mixture import mixture_posterior
from massrecon.inference.posterior import Posterior, reconstruct
from massrecon.inference.statistics import MassPoints, clusters
from massrecon.inference.twosample import paired_agreement
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.visual.distributions import truth_against_generated
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import (
    SAMPLE,
    Tell,
    load_source,
    mass_draws,
    stored_events,
)
from massrecon.visual.mass_plane import efficiency_maps
from massrecon.visual.template import VERMILION, plain

_FEWEST = 2  # events in a cell with distributions
_CELLS: dict[tuple[Any, ...], tuple[go.Figure, dict[str, Any]]] = {}
_KEPT = 64


def explore_efficiency_map(
    model: str = SAMPLE,
    mass: str = "chi10",
    estimator: str = "window",
    window: float = 30.0,
    cell: Sequence[float] = (),
    bins: int = 6,
    n_samples: int = 64,
    events: str = SAMPLE,
    seed: int = 1,
    *,
    tell: Tell | None = None,
) -> Exploration:
    """Maps how often a mass is found within a window, and opens one cell of the map.

    Args:
        model: Name of a model, folder of a trained one, or ``mixture`` for the kinematic mixture.
        mass: The mass that is estimated, by name.
        estimator: ``draw``, ``mean``, ``median`` or ``window``.
        window: Half-width that counts as right [GeV].
        cell: Two true masses [GeV] in the order of the axes: the cell that holds them is opened;
            empty for none.
        bins: Number of cells along each true mass.
        n_samples: Number of draws for each event.
        events: Stored events, by name or folder.
        seed: Seed of the draws.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or the cell has too few events.
    """
    if not 2 <= bins <= 40:
        raise InputError(f"'bins' should be from 2 to 40, got {bins}.")
    posterior = mass_draws(model, events, n_samples, seed, tell)
    found = efficiency_map(posterior, mass, window, estimator, bins=bins)
    figure = efficiency_maps([found])
    data: dict[str, Any] = {"model": model, **found.to_dict()}
    reading, panels = _map_reading(found, model), {}
    place = _place(found, cell)
    _mark(figure, found, place)
    if place is not None:
        rows = _rows(found, posterior, place)
        panel, targets = _opened(model, events, rows, n_samples, seed)
        panels[_title(found, place)] = panel
        data["cell"] = _cell_numbers(found, place) | {"targets": targets}
        reading += " " + _cell_reading(found, data["cell"])
    return Exploration(figure=figure, data=data, reading=reading, panels=panels)


def _place(found: EfficiencyMap, cell: Sequence[float]) -> tuple[int, int] | None:
    """Finds the cell that holds two masses."""
    if len(cell) == 0:
        return None
    if len(cell) != 2 or not all(math.isfinite(m) for m in cell):
        raise InputError(f"'cell' should be two true masses [GeV], got {list(cell)}.")
    at = tuple(_index(points, m) for points, m in zip((found.x, found.y), cell, strict=True))
    n_events = int(found.n_events[at[0], at[1]]) if None not in at else 0
    if n_events < _FEWEST:
        x, y = cell
        raise InputError(
            f"'cell' should be where there are {_FEWEST} events or more: around ({x:g}, {y:g}) GeV "
            f"there are {n_events}. Choose another, or fewer 'bins'."
        )
    return at[0], at[1]  # type: ignore[return-value]  two columns


def _index(points: MassPoints, mass: float) -> int | None:
    if points.edges is None:
        return int((points.value - mass).abs().argmin())
    edges = points.edges.tolist()
    inside = [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if a <= mass <= b]
    return inside[0] if inside else None


def _rows(found: EfficiencyMap, posterior: Posterior, place: tuple[int, int]) -> list[int]:
    inside = (found.x.index == place[0]) & (found.y.index == place[1])
    assert len(inside) == len(posterior)
    return inside.nonzero()[:, 0].tolist()


def _opened(
    model: str, events: str, rows: list[int], n_samples: int, seed: int
) -> tuple[go.Figure, dict[str, Any]]:
    """Draws all targets of some events and compares them with the truth.

    Both are kept: they do not depend on mass, estimator and window.
    """
    sample = stored_events(events)
    source = load_source(model, sample.card.name)
    key = (id(source), events, tuple(rows), n_samples, seed)
    if key not in _CELLS:
        if len(_CELLS) >= _KEPT:
            _CELLS.pop(next(iter(_CELLS)))
        part, group = sample[rows], _groups(sample, rows)
        draw = mixture_posterior if isinstance(source, KinematicMixture) else reconstruct
        posterior = draw(source, part, n_samples, seed=seed)  # type: ignore[arg-type]  each with its own kind of source
        figure = truth_against_generated(posterior, group=group)
        _CELLS[key] = figure, _targets(posterior, group)
    return _CELLS[key]


def _groups(sample: Events, rows: list[int]) -> Tensor:
    """Numbers the groups of some events that fluctuate together, as the whole sample has them."""
    assert sample.masses is not None
    return clusters(sample.masses.double())[rows].unique(return_inverse=True)[1]


def _ends(points: MassPoints, index: int) -> tuple[float, float]:
    if points.edges is None:
        value = float(points.value[index])
        return value, value
    return float(points.edges[index]), float(points.edges[index + 1])


def _mark(figure: go.Figure, found: EfficiencyMap, place: tuple[int, int] | None) -> None:
    """Draws a frame around a cell; an empty one if there is none, so that traces stay the same."""
    x, y = [None], [None]
    if place is not None:
        (left, right), (low, high) = _ends(found.x, place[0]), _ends(found.y, place[1])
        x, y = [left, right, right, left, left], [low, low, high, high, low]
    figure.add_trace(
        go.Scatter(x=x, y=y, mode="lines+markers", showlegend=False, hoverinfo="skip",
                   line={"color": VERMILION, "width": 4}, marker={"symbol": "square", "size": 7})
    )  # fmt: skip


def _title(found: EfficiencyMap, place: tuple[int, int]) -> str:
    return f"Truth and generated values in the cell {_where(found, place)}"


def _where(found: EfficiencyMap, place: tuple[int, int]) -> str:
    parts = []
    for points, index in zip((found.x, found.y), place, strict=True):
        low, high = _ends(points, index)
        value = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
        parts.append(f"m({plain(found.symbols[points.mass])}) = {value} GeV")
    return ", ".join(parts)


def _map_reading(found: EfficiencyMap, model: str) -> str:
    value, n = found.attained.value, found.n_events.double()
    known = n > 0
    mean = float((value[known] * n[known]).sum() / n[known].sum())
    worst, best = float(value[known].min()), float(value[known].max())
    symbol = plain(found.symbols[found.mass])
    return (
        f"{model} finds m({symbol}) within {found.window:g} GeV ({found.estimator}) in "
        f"{100 * mean:.0f} % of {int(n.sum()):,} events, from {100 * worst:.0f} to "
        f"{100 * best:.0f} % by cell. Click a cell, or move the two sliders, to open it."
    )


def _targets(inside: Posterior, group: Tensor) -> dict[str, Any]:
    """Compares means and distributions of all targets."""
    targets = {}
    for name in inside.target_names:
        truth, drawn = inside.true_target(name).double(), inside.target(name).double()
        test = paired_agreement(truth, drawn, inside.weights, group)
        targets[name] = {
            "true_mean_GeV": float(truth.mean()),
            "generated_mean_GeV": float(drawn.mean()),
            "chi2_per_dof": None if test is None else float(test.per_dof),
        }
    return targets


def _cell_numbers(found: EfficiencyMap, place: tuple[int, int]) -> dict[str, Any]:
    return {
        "masses_GeV": [_ends(found.x, place[0]), _ends(found.y, place[1])],
        "n_events": int(found.n_events[place]),
        "attained": _number(found.attained.value, place),
        "attained_error": _number(found.attained.error, place),
        "predicted": _number(found.predicted, place),
        "where": _where(found, place),
    }


def _number(values: Tensor | None, place: tuple[int, int]) -> float | None:
    value = math.nan if values is None else float(values[place])
    return value if math.isfinite(value) else None


def _cell_reading(found: EfficiencyMap, cell: dict[str, Any]) -> str:
    symbol = plain(found.symbols[found.mass])
    own = next((t for n, t in cell["targets"].items() if n.startswith(f"{found.mass}_m")), None)
    means = ""
    if own is not None:
        means = (
            f"; true m({symbol}) {own['true_mean_GeV']:.0f} GeV on average, generated "
            f"{own['generated_mean_GeV']:.0f} GeV"
        )
    claim = "" if cell["predicted"] is None else f", {100 * cell['predicted']:.0f} % expected"
    error = 100 * (cell["attained_error"] or 0.0)
    return (
        f"In the cell {cell['where']}: {100 * (cell['attained'] or 0.0):.0f} ± {error:.0f} % of "
        f"{cell['n_events']} events{claim}{means}."
    )
