"""Events in the HDF5 layout of SPANet: padded inputs, assignment targets, regressions.

``INPUTS`` has a group for each kind of object (``Leptons``, ``Photons``, ``Jets``, ``FatJets``)
with ``MASK``, ``pt``, ``eta``, ``phi``, ``sin_phi``, ``cos_phi``, ``mass`` and the attributes, and
``Met``. ``TARGETS/<mother>/<leg>`` is the slot of the reconstructed object within Delta R = 0.4 of
a visible leg of the decay, -1 for none, counted through all groups in the order of the card.
``REGRESSIONS/EVENT`` holds the true particles and masses. Weights lie in a group of our own. Every
data set has a checksum (Fletcher 32) and so has everything about it, because the file is of the
layout of HDF5 1.10: damage is noticed.

References:
    A. Shmakov et al., SciPost Phys. 12 (2022) 178, arXiv:2106.03898; the format is described in
    docs/Dataset.md of github.com/Alexanders101/SPANet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from massrecon.errors import require_extra
from massrecon.events.card import COMPONENTS, ProcessCard
from massrecon.events.columns import VARIATION, Arrays
from massrecon.events.particles import Floats, Integers, directions, distance

if TYPE_CHECKING:
    from massrecon.events.container import Events

GROUPS = {"lepton": "Leptons", "photon": "Photons", "jet": "Jets", "fatjet": "FatJets"}
"""Names of the groups of objects; other kinds go by their own name."""

EXTRA = "MASSRECON"
MATCHING_RADIUS = 0.4

_STEP = 20_000
_ROWS = 4_096
_LEGS = {
    "jet": {1, 2, 3, 4, 5, 6, 21},
    "lepton": {11, 13},
    "photon": {22},
}


def write_spanet(events: Events, path: Path) -> None:
    """Writes events to an HDF5 file, which is put together in memory.

    Args:
        events: The events.
        path: The file; an older one is replaced.

    Raises:
        MissingExtraError: If h5py is not installed.
        OSError: If the file cannot be written.
    """
    h5py = require_extra("h5py", extra="files")
    arrays, card = events.to_arrays(), events.card
    # made in memory: the HDF5 library crashes when the disk is full
    layout = {"driver": "core", "backing_store": False, "libver": ("v110", "v110")}
    with h5py.File(path.name, "w", **layout) as file:
        file.attrs["card"] = json.dumps(card.to_dict(), ensure_ascii=True)
        for start in range(0, max(len(events), 1), _STEP):
            chunk = {name: array[start : start + _STEP] for name, array in arrays.items()}
            for name, values in datasets(card, chunk).items():
                if start == 0:
                    _create(file, name, values, len(events))
                file[name][start : start + len(values)] = values
        file.flush()
        path.write_bytes(file.id.get_file_image())


def _create(file: Any, name: str, values: np.ndarray, n_events: int) -> None:
    """Makes an empty data set for all events."""
    shape = (n_events, *values.shape[1:])
    chunks = (max(min(_ROWS, n_events), 1), *values.shape[1:])
    file.create_dataset(
        name, shape, values.dtype, chunks=chunks if n_events else None,
        maxshape=shape if n_events else None, fletcher32=bool(n_events),
        compression="gzip" if n_events else None, compression_opts=1 if n_events else None,
    )  # fmt: skip


def datasets(card: ProcessCard, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Returns all data sets of some events by their path in the file."""
    sets = {}
    for group in card.objects:
        slots = [i for i, kind in enumerate(card.slot_kinds) if kind == group.kind]
        name = f"INPUTS/{GROUPS.get(group.kind, group.kind)}"
        sets[f"{name}/MASK"] = arrays["present"][:, slots]
        features = _features(arrays["p4"][:, slots]) | {
            attribute: arrays[attribute][:, slots] for attribute in card.attribute_names
        }
        sets |= {f"{name}/{key}": values for key, values in features.items()}
    sets |= {f"INPUTS/Met/{key}": values for key, values in _met(arrays["ptmiss"]).items()}
    if "partons" in arrays:
        sets |= _assignments(card, arrays)
        for i, label in enumerate(card.parton_names):
            for c, component in enumerate(COMPONENTS):
                sets[f"REGRESSIONS/EVENT/{label}_{component}"] = arrays["partons"][:, i, c]
    if "masses" in arrays:
        for i, name in enumerate(card.mass_names):
            sets[f"REGRESSIONS/EVENT/mass_{name}"] = arrays["masses"][:, i]
    weights = [name for name in arrays if name == "weight" or name.startswith(VARIATION)]
    return sets | {f"{EXTRA}/{name.replace('/', '|')}": arrays[name] for name in weights}


def _features(p4: Floats) -> dict[str, Floats]:
    """Returns pt, eta, phi and mass of padded objects ``(n, k, 4)``; zero where there is none."""
    pt = np.hypot(p4[..., 0], p4[..., 1])
    eta = np.arcsinh(np.divide(p4[..., 2], pt, out=np.zeros_like(pt), where=pt > 0))
    phi = np.arctan2(p4[..., 1], p4[..., 0])
    squared = p4[..., 3] ** 2 - np.sum(p4[..., :3] ** 2, axis=-1)
    there = p4[..., 3] > 0
    features = {"pt": pt, "eta": eta, "phi": phi, "mass": np.sqrt(np.maximum(squared, 0.0))}
    features |= {"sin_phi": np.sin(phi), "cos_phi": np.cos(phi)}
    return {name: np.where(there, values, 0.0) for name, values in features.items()}


def _met(ptmiss: Floats) -> dict[str, Floats]:
    phi = np.arctan2(ptmiss[:, 1], ptmiss[:, 0])
    size = np.hypot(ptmiss[:, 0], ptmiss[:, 1])
    return {"met": size, "phi": phi, "sin_phi": np.sin(phi), "cos_phi": np.cos(phi)}


def _assignments(card: ProcessCard, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Returns the slot of each visible leg that has a mother, ``TARGETS/<mother>/<leg>``."""
    nodes = card.topology.nodes
    legs = [
        (node, kind)
        for node in card.topology.legs
        for kind, codes in _LEGS.items()
        if node.parent is not None and set(card.particles[node.name].pdg) <= codes
    ]
    if not legs:
        return {}
    kinds = np.array(card.slot_kinds)
    fits = np.stack([kinds == kind for _, kind in legs])
    slots = match_legs(arrays["partons"][:, [node.index for node, _ in legs]], arrays, fits)
    names = [f"TARGETS/{nodes[node.parent or 0].label}/{node.label}" for node, _ in legs]
    return {name: slots[:, i] for i, name in enumerate(names)}


def match_legs(partons: Floats, arrays: Mapping[str, np.ndarray], fits: np.ndarray) -> Integers:
    """Assigns reconstructed objects to true particles, the closest pairs first.

    Args:
        partons: True particles (px, py, pz, m) [GeV], shape ``(n, L, 4)``.
        arrays: Event arrays with ``p4`` and ``present``.
        fits: Which slots may belong to which particle, shape ``(L, K)``.

    Returns:
        Slot of each particle, -1 for none within `MATCHING_RADIUS`, shape ``(n, L)``.
    """
    p4, (n, n_legs) = arrays["p4"], partons.shape[:2]
    _, eta, phi = directions(partons)
    _, other_eta, other_phi = directions(p4)
    apart = distance(eta[..., None], phi[..., None], other_eta[:, None], other_phi[:, None])
    apart[~(arrays["present"][:, None] & fits)] = np.inf
    slots, rows = np.full((n, n_legs), -1), np.arange(n)
    for _ in range(n_legs):
        best = apart.reshape(n, n_legs * p4.shape[1]).argmin(axis=1)
        leg, slot = np.divmod(best, p4.shape[1])
        close = rows[apart[rows, leg, slot] < MATCHING_RADIUS]
        slots[close, leg[close]] = slot[close]
        apart[close, leg[close]] = np.inf
        apart[close, :, slot[close]] = np.inf
    return slots
