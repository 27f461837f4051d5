"""Checks of event values, made once where data enters, on arrays of any size in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard

# |p| may exceed E by this fraction of E in files that store float32 momenta
_ENERGY_TOLERANCE = 1e-5
_ROWS = 16_384

Fault = tuple[str, bool, Callable[[Mapping[str, np.ndarray]], np.ndarray]]
"""What is wrong, whether with an object, and the mask of where: the first axis counts events."""


def refuse_unphysical(card: ProcessCard, arrays: Mapping[str, np.ndarray], first: int = 0) -> None:
    """Refuses events whose values cannot be.

    Args:
        card: The process.
        arrays: Event arrays, as those of ``Events.to_arrays``; momenta in GeV.
        first: Number of the first event, for the message.

    Raises:
        InputError: If an object is not finite, has negative or zero energy or has |p| > E, or if
            ptmiss, a weight or the truth is not finite; with the count and the first event.
    """
    n_events = len(arrays["weight"])
    for what, of_object, mask in _faults(card, arrays):
        count, where = 0, None
        for start in range(0, n_events, _ROWS):
            rows = slice(start, start + _ROWS)
            bad = mask({name: array[rows] for name, array in arrays.items()})
            if bad.any():
                hit = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
                count += len(hit)
                where = where or (start + int(hit[0]), bad[hit[0]])
        if where is not None:
            raise InputError(
                f"In {count} of {n_events} events {what}, first in event {first + where[0]}"
                f"{_slot(card, where[1]) if of_object else ''}: repair or remove these events."
            )


def _faults(card: ProcessCard, arrays: Mapping[str, np.ndarray]) -> Iterator[Fault]:
    """Lists what may be wrong with events."""
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating):
            of_object = name in ("p4", *card.attribute_names)
            problem = f"'{name}' is not finite"
            yield problem, of_object, lambda part, name=name: ~np.isfinite(part[name])
    yield "the energy of an object is negative", True, _has_negative_energy
    yield "an object has |p| > E", True, _is_spacelike
    yield "an object that is present has zero energy", True, _has_no_energy


def _has_negative_energy(part: Mapping[str, np.ndarray]) -> np.ndarray:
    return part["present"] & (part["p4"][..., 3] < 0)


def _has_no_energy(part: Mapping[str, np.ndarray]) -> np.ndarray:
    return part["present"] & (part["p4"][..., 3] == 0)


def _is_spacelike(part: Mapping[str, np.ndarray]) -> np.ndarray:
    p4 = part["p4"]
    momentum = np.sqrt(np.einsum("...i,...i->...", p4[..., :3], p4[..., :3]))
    return part["present"] & (momentum > p4[..., 3] * (1 + _ENERGY_TOLERANCE))


def _slot(card: ProcessCard, bad: np.ndarray) -> str:
    """Names the first object slot of a faulty event."""
    slot = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0]
    return f" (slot '{card.slots[int(slot)]}')"
