"""The columns of the event files: plain scalars, named so that pandas or DuckDB can use them.

Every object slot has ``jet1_px``, ``jet1_py``, ``jet1_pz``, ``jet1_E`` [GeV], ``jet1_present``,
``jet1_charge``, ``jet1_flavour``; further columns are ``ptmiss_x``, ``ptmiss_y`` [GeV], ``weight``,
``mass_<name>`` [GeV], and the truth ``parton_<label>_px``, ``_py``, ``_pz``, ``_m`` [GeV].
Simulated files have ``block``, the number of the block of events that share a mass point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from massrecon.events.card import COMPONENTS, ProcessCard

Arrays = dict[str, np.ndarray]

_MOMENTUM = ("px", "py", "pz", "E")
_TYPES = {"present": np.bool_, "charge": np.int8, "flavour": np.int8, "block": np.int64}


def layout(card: ProcessCard) -> dict[str, list[str]]:
    """Returns for each event array of a card the columns that hold its values, in C order."""
    columns = {
        "p4": [f"{slot}_{component}" for slot in card.slots for component in _MOMENTUM],
        "ptmiss": ["ptmiss_x", "ptmiss_y"],
        "weight": ["weight"],
        "partons": [f"parton_{name}_{c}" for name in card.parton_names for c in COMPONENTS],
        "masses": [f"mass_{name}" for name in card.mass_names],
        "block": ["block"],
    }
    for name in ("present", "charge", "flavour"):
        columns[name] = [f"{slot}_{name}" for slot in card.slots]
    return columns


def to_columns(
    card: ProcessCard, arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Cuts event arrays into named columns."""
    for name, columns in layout(card).items():
        if name in arrays:
            dtype = _TYPES.get(name, np.float64)
            values = np.asarray(arrays[name], dtype).reshape(-1, len(columns))
            for i, column in enumerate(columns):
                yield column, np.ascontiguousarray(values[:, i])


def from_columns(card: ProcessCard, columns: Mapping[str, np.ndarray]) -> Arrays:
    """Puts columns together to event arrays; truth that is absent is left out.

    Raises:
        KeyError: If a column of the reconstructed event is missing; its name is the argument.
    """
    arrays: Arrays = {}
    shapes = {
        "p4": (-1, len(card.slots), 4),
        "partons": (-1, len(card.parton_names), 4),
        "weight": (-1,),
        "block": (-1,),
    }
    for name, names in layout(card).items():
        if name in ("partons", "masses", "block") and names[0] not in columns:
            continue
        values = np.stack([columns[column] for column in names], axis=1)
        arrays[name] = values.astype(_TYPES.get(name, np.float64), copy=False).reshape(
            shapes.get(name, (-1, len(names)))
        )
    return arrays
