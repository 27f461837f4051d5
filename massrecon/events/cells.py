"""Cross-section and acceptance in each cell of the mass plane.

Masses that are fixed or on a grid make one cell a point; a continuous range is cut into cells of
`CELL_WIDTH`, aligned to its multiples. With weights w, the acceptance of a cell is
A = sum(w, selected) / sum(w, generated), and its cross-section sigma is that of the collisions
generated in it, so that a luminosity L is expected to give L sigma A selected events.

Pythia's sums for the cross-section are kept for each block of collisions and put together here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from massrecon.errors import InputError
from massrecon.events.masses import MassPrior
from massrecon.events.particles import Floats, Mask
from massrecon.events.trials import Tally, Trials, cross_section

CELL_WIDTH = 50.0
"""Width of the cells of a continuous mass range [GeV]."""

Cell = dict[str, Any]
"""One row: the masses of a cell by name, a value or ``[low, high]`` [GeV], and what is in it."""

_RELATIVE = 1e-9


def count_cells(
    prior: MassPrior,
    masses: Floats,
    weight: Floats,
    selected: Mask,
    trials: Sequence[tuple[Floats, Tally]] = (),
) -> list[Cell]:
    """Counts one group of collisions, for the manifest.

    Args:
        prior: How the mass points were chosen.
        masses: Mass point of each generated collision [GeV], shape ``(N, M)``.
        weight: Weight of each generated collision, shape ``(N,)``.
        selected: Which collisions were selected, shape ``(N,)``.
        trials: Mass points ``(M,)`` and Pythia's statistics of the blocks that were generated.

    Returns:
        A row for each cell: ``masses``, ``n_generated``, ``n_selected``, ``weights`` (sum and sum
        of squares, generated and selected) and ``trials``, Pythia's sums for each subprocess.
    """
    if len(masses) == 0:
        return []
    lows, index = np.zeros((1, 0)), np.zeros(len(masses), np.int64)
    if prior.choices:
        lows, index = np.unique(_low_corners(prior, masses), axis=0, return_inverse=True)
    index = index.reshape(-1)
    rows = []
    for number, low in enumerate(lows):
        here, kept = weight[index == number], weight[selected & (index == number)]
        sums = [here.sum(), (here**2).sum(), kept.sum(), (kept**2).sum()]
        rows.append(
            {
                "masses": _names_of(prior, low),
                "n_generated": len(here),
                "n_selected": len(kept),
                "weights": [float(value) for value in sums],
                "trials": {},
            }
        )
    for point, tally in trials:
        corner = _low_corners(prior, point[None])[0]
        row = rows[int(np.flatnonzero((lows == corner).all(axis=1))[0])]
        _add_trials(row["trials"], tally)
    return rows


def summarise_cells(
    rows: Iterable[Cell], branching_fraction: float = 1.0, cross_section_fb: float | None = None
) -> list[Cell]:
    """Adds up the rows of many groups and works out cross-sections and acceptances.

    Args:
        rows: Rows of `count_cells`.
        branching_fraction: Fraction of the produced collisions that decay as simulated, as far as
            Pythia does not know it.
        cross_section_fb: Cross-section of a file of hard collisions [fb], in place of Pythia's.

    Returns:
        A row for each cell, by rising masses: ``masses``, ``n_generated``, ``n_selected``,
        ``weight_generated``, ``weight_selected``, ``cross_section_fb`` and
        ``cross_section_error_fb`` [fb], the branching fraction included, or None if unknown,
        ``acceptance`` and ``acceptance_error``.
    """
    sums = CellSums()
    sums.add(rows)
    return sums.summary(branching_fraction, cross_section_fb)


class CellSums:
    """Sums of the rows of many groups, cell by cell."""

    def __init__(self) -> None:
        self._total: dict[Any, Cell] = {}

    def add(self, rows: Iterable[Cell]) -> None:
        """Adds rows of `count_cells`, which stay as they are."""
        for row in rows:
            key = tuple(tuple(m) if isinstance(m, list) else m for m in row["masses"].values())
            if key not in self._total:
                empty = {"n_generated": 0, "n_selected": 0, "weights": [0.0] * 4, "trials": {}}
                self._total[key] = row | empty
            _add(self._total[key], row)

    def copy(self) -> CellSums:
        """Returns sums that can be added to on their own."""
        twin = CellSums()
        for key, row in self._total.items():
            trials = {code: sums.copy() for code, sums in row["trials"].items()}
            twin._total[key] = row | {"weights": row["weights"].copy(), "trials": trials}
        return twin

    def summary(
        self, branching_fraction: float = 1.0, cross_section_fb: float | None = None
    ) -> list[Cell]:
        """Works out cross-sections and acceptances; see `summarise_cells`."""
        return [
            _summary(row, branching_fraction, cross_section_fb)
            for row in sorted(self._total.values(), key=lambda row: _corners(row["masses"]))
        ]


def merge_cells(samples: Iterable[Iterable[Cell]]) -> list[Cell]:
    """Puts together the summaries of independent samples of one process.

    Counts and weights are added; cross-sections are averaged by the number of collisions. A cell
    that has no cross-section in one of the samples has none.
    """
    total: dict[str, Cell] = {}
    for cells in samples:
        for cell in cells:
            key = json.dumps(cell["masses"], sort_keys=True)
            total[key] = _merged(total[key], cell) if key in total else dict(cell)
    return sorted(total.values(), key=lambda cell: _corners(cell["masses"]))


def expected_yields(
    provenance: Mapping[str, Any],
    names: Sequence[str],
    masses: Floats,
    weight: Floats,
    luminosity: float,
) -> Floats:
    """Returns how many collisions each selected event stands for.

    The yields of a whole sample add up, at each mass point, to cross-section times acceptance times
    luminosity; those of a part of it to its share. Where the sample ends before the last group of
    collisions does, the events left over are counted in.

    Args:
        provenance: That of simulated events at masses that are fixed or on a grid.
        names: Names of the masses.
        masses: Mass point of each event [GeV], shape ``(N, M)``.
        weight: Weight of each event, shape ``(N,)``.
        luminosity: Integrated luminosity [fb^-1].

    Raises:
        InputError: If the events were not simulated; if a mass was drawn from a continuous range;
            if a cross-section is unknown; or if the events are at other masses
            than the cells.
    """
    if not luminosity > 0:
        raise InputError(f"'luminosity' should be positive [fb^-1], got {luminosity!r}.")
    cells = provenance.get("cells")
    if cells is None:
        raise InputError(
            "The cross-section of these events is not known: it is for events that massrecon "
            "simulated."
        )
    yields, found = np.zeros(len(weight)), np.zeros(len(weight), bool)
    for cell in cells:
        point = [cell["masses"][name] for name in names]
        if any(isinstance(mass, list) for mass in point):
            raise InputError(
                "These events have masses from a continuous range, of which only one can be true: "
                "simulate fixed masses, or a grid of them, to count expected events."
            )
        here = np.isclose(masses, point, rtol=_RELATIVE, atol=0.0).all(axis=1)
        found |= here
        if here.any() and cell["cross_section_fb"] is None:
            raise InputError(
                "The cross-section of these events is not known: toys have none, and imported ones "
                "only if their file gives it."
            )
        if here.any():
            scale = cell["cross_section_fb"] * luminosity / cell["weight_generated"]
            yields[here] = weight[here] * scale
    if not found.all():
        raise InputError(
            f"{(~found).sum()} of {len(found)} events are at masses of no cell of their "
            "provenance: use the events as they were simulated or imported."
        )
    n_kept = sum(sample["n_events"] for sample in provenance.get("joined", (provenance,)))
    return yields * (provenance["n_selected"] / n_kept) if n_kept else yields


def _low_corners(prior: MassPrior, points: Floats) -> Floats:
    """Returns the lower corner of the cell of each mass point, shape ``(n, M)``."""
    is_range = np.array([choice.kind == "range" for choice in prior.choices], bool)
    return np.where(is_range, CELL_WIDTH * np.floor(points / CELL_WIDTH), points)


def _names_of(prior: MassPrior, low: Floats) -> dict[str, Any]:
    """Names the masses of a cell: a value, or the two ends."""
    return {
        name: [mass, mass + CELL_WIDTH] if choice.kind == "range" else mass
        for name, choice, mass in zip(
            prior.card.mass_names, prior.choices, low.tolist(), strict=True
        )
    }


def _corners(masses: Mapping[str, Any]) -> list[list[float]]:
    return [mass if isinstance(mass, list) else [mass] for mass in masses.values()]


def _add_trials(total: dict[str, list[Any]], more: Mapping[str, Sequence[float]]) -> None:
    """Adds Pythia's statistics by subprocess to `total`."""
    for code, values in more.items():
        sums = total.get(code)
        if sums is None:
            sums = total[code] = list(Trials.zero())
        for i, value in enumerate(values):
            sums[i] += value


def _add(total: Cell, row: Cell) -> None:
    """Adds a row to that of the same cell."""
    total["n_generated"] += row["n_generated"]
    total["n_selected"] += row["n_selected"]
    for i, value in enumerate(row["weights"]):
        total["weights"][i] += value
    _add_trials(total["trials"], row["trials"])


def _summary(row: Cell, branching_fraction: float, cross_section_fb: float | None) -> Cell:
    """Works out cross-section and acceptance of one cell."""
    generated, generated_squares, kept, kept_squares = row["weights"]
    sigma, error = cross_section_fb, None
    if sigma is None and row["trials"]:
        sigma, error = cross_section([Trials(*values) for values in row["trials"].values()])
    acceptance = kept / generated if generated else 0.0
    # variance of sum(w (passed - A)) over the generated events
    variance = kept_squares * (1.0 - 2.0 * acceptance) + acceptance**2 * generated_squares
    return {
        "masses": row["masses"],
        "n_generated": row["n_generated"],
        "n_selected": row["n_selected"],
        "weight_generated": generated,
        "weight_selected": kept,
        "cross_section_fb": None if sigma is None else sigma * branching_fraction,
        "cross_section_error_fb": None if error is None else error * branching_fraction,
        "acceptance": acceptance,
        "acceptance_error": max(variance, 0.0) ** 0.5 / abs(generated) if generated else 0.0,
    }


def _merged(one: Cell, two: Cell) -> Cell:
    """Puts together the summaries of one cell in two samples."""
    merged = {"masses": one["masses"]}
    for name in ("n_generated", "n_selected", "weight_generated", "weight_selected"):
        merged[name] = one[name] + two[name]
    for name, share in (("cross_section", "n_generated"), ("acceptance", "weight_generated")):
        value, error = _average(one, two, name, share)
        unit = "_fb" if name == "cross_section" else ""
        merged |= {f"{name}{unit}": value, f"{name}_error{unit}": error}
    return merged


def _average(one: Cell, two: Cell, name: str, share: str) -> tuple[float | None, float | None]:
    """Averages a quantity of two samples, weighted by `share`, and its error."""
    unit = "_fb" if name == "cross_section" else ""
    total = one[share] + two[share]
    parts = [(cell[share] / total if total else 0.5, cell) for cell in (one, two)]
    values = [cell[f"{name}{unit}"] for _, cell in parts]
    errors = [cell[f"{name}_error{unit}"] for _, cell in parts]
    value = error = None
    if None not in values:
        value = sum(part * v for (part, _), v in zip(parts, values, strict=True))
    if None not in errors:
        error = sum((part * e) ** 2 for (part, _), e in zip(parts, errors, strict=True)) ** 0.5
    return value, error
