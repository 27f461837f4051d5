"""The columns of the event files: plain scalars, named so that pandas or DuckDB can use them.

Every object slot has ``jet1_px``, ``jet1_py``, ``jet1_pz``, ``jet1_E`` [GeV], ``jet1_present`` and
its attributes (``jet1_charge``, ``jet1_flavour``, …); further columns are ``ptmiss_x``,
``ptmiss_y`` [GeV], ``weight``, ``weight_<name>`` for alternative weights, ``mass_<name>`` [GeV]
and the truth ``parton_<label>_px``, ``_py``, ``_pz``, ``_m`` [GeV]. Simulated files have ``block``,
the number of the block of events that share a mass point.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from massrecon.events.card import COMPONENTS, ProcessCard

Arrays = dict[str, np.ndarray]

MOMENTUM = ("px", "py", "pz", "E")
"""Components of the momentum of a reconstructed object."""

_TYPES = {
    "present": np.bool_,
    "charge": np.int8,
    "flavour": np.int8,
    "btag": np.int8,
    "tautag": np.int8,
    "block": np.int64,
}

_ABSENT_IN_DATA = ("partons", "masses", "block")

VARIATION = "weight_"
"""What the names of alternative event weights start with."""


def column_type(name: str) -> type[np.generic]:
    """Returns the NumPy type of an event array."""
    return _TYPES.get(name, np.float64)


def layout(card: ProcessCard) -> dict[str, list[str]]:
    """Returns for each event array of a card the columns that hold its values, in C order."""
    columns = {
        "p4": [f"{slot}_{component}" for slot in card.slots for component in MOMENTUM],
        "ptmiss": ["ptmiss_x", "ptmiss_y"],
        "weight": ["weight"],
        "partons": [f"parton_{name}_{c}" for name in card.parton_names for c in COMPONENTS],
        "masses": [f"mass_{name}" for name in card.mass_names],
        "block": ["block"],
    }
    for name in ("present", *card.attribute_names):
        columns[name] = [f"{slot}_{name}" for slot in card.slots]
    return columns


def measured_arrays(card: ProcessCard) -> tuple[str, ...]:
    """Returns the names of the event arrays that all events have, of data, too."""
    return ("p4", "present", "ptmiss", "weight", *card.attribute_names)


def no_events(card: ProcessCard) -> Arrays:
    """Returns event arrays without an event and without truth."""
    columns = layout(card)
    return empty_arrays(card, {name: columns[name] for name in measured_arrays(card)}, 0)


def to_columns(
    card: ProcessCard, arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Cuts event arrays into named columns."""
    for name, columns in layout(card).items():
        if name in arrays and columns:
            values = np.asarray(arrays[name], column_type(name)).reshape(-1, len(columns))
            for i, column in enumerate(columns):
                yield column, np.ascontiguousarray(values[:, i])
    for name, values in arrays.items():
        if name.startswith(VARIATION):
            yield name, np.asarray(values, np.float64)


def arrays_in(card: ProcessCard, columns: Collection[str]) -> dict[str, list[str]]:
    """Returns the event arrays that a set of columns holds, each with its columns in C order.

    Truth that is absent is left out, and so are columns that are none of the card's.

    Raises:
        KeyError: If a column of the reconstructed event is missing; its name is the argument.
    """
    there, found = set(columns), {}
    for name, names in layout(card).items():
        missing = [column for column in names if column not in there]
        if not names:  # a card without masses has them where it has truth
            found |= {name: names} if "partons" in found else {}
        elif not missing:
            found[name] = names
        elif name not in _ABSENT_IN_DATA:
            raise KeyError(missing[0])
    return found | {name: [name] for name in columns if name.startswith(VARIATION)}


def empty_arrays(card: ProcessCard, wanted: Mapping[str, Sequence[str]], n_events: int) -> Arrays:
    """Makes event arrays to be filled, as named by `arrays_in`."""
    trailing = {
        "p4": (len(card.slots), 4),
        "partons": (len(card.parton_names), 4),
        "weight": (),
        "block": (),
    }
    arrays = {}
    for name, columns in wanted.items():
        shape = () if name.startswith(VARIATION) else trailing.get(name, (len(columns),))
        arrays[name] = np.empty((n_events, *shape), column_type(name))
    return arrays
