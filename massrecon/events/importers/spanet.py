"""HDF5 files in the layout of SPANet: ``INPUTS/<group>/<feature>``, padded, with a ``MASK``.

A group of objects has ``pt``, ``eta``, ``phi`` (or ``sin_phi`` and ``cos_phi``) and, optionally,
``mass``, ``btag``, ``charge``, …, each of shape (N, K). Where leptons and jets share a group,
``etag`` and ``utag`` tell them apart. Missing energy is ``met`` (or ``pt``) with an angle. True
particles are looked for under ``REGRESSIONS/EVENT`` as ``<label>_px``, ``_py``, ``_pz``, ``_m``
and masses as ``mass_<name>``, as `export_events` writes them.

References:
    A. Shmakov et al., SciPost Phys. 12 (2022) 178, arXiv:2106.03898; the format is described in
    docs/Dataset.md of github.com/Alexanders101/SPANet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from massrecon.errors import ImportFileError, InputError, require_extra, unknown_name
from massrecon.events.card import COMPONENTS, ProcessCard
from massrecon.events.columns import VARIATION, column_type
from massrecon.events.importers.chunk import (
    LARGEST_CHUNK,
    Chunk,
    ReadOptions,
    brief,
    unreadable_entries,
)
from massrecon.events.objects import Objects
from massrecon.events.particles import (
    ELECTRON,
    MASSES,
    MUON,
    PHOTON,
    Floats,
    Mask,
    finite_rows,
)
from massrecon.events.spanet_export import EXTRA

USUAL_GROUPS = {
    "lepton": ("leptons", "lepton"),
    "photon": ("photons", "photon"),
    "jet": ("jets", "jet", "source", "momenta"),
    "fatjet": ("fatjets", "fatjet", "boostedjets", "largejets"),
    "ptmiss": ("met", "ptmiss", "missinget"),
}
"""Names of groups that are understood without a mapping, in lower case."""

TRUTH = "REGRESSIONS/EVENT"

_SLOTS_MAX = 1_000
_ANGLE_TOLERANCE = 1e-3


class SpanetReader:
    """Reads an HDF5 file."""

    def __init__(self, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        """Opens the file and checks that its groups are there.

        Raises:
            ImportFileError: If the file is no HDF5 file or lacks something.
        """
        self.path, self.card, self.options = path, card, options
        self._h5py = require_extra("h5py", extra="files")
        try:
            self._file = self._h5py.File(path, "r")
            self._groups = list(self._file["INPUTS"].keys()) if "INPUTS" in self._file else None
        except Exception as error:  # damaged data ends in many kinds of errors
            raise self._damaged(error) from error
        if self._groups is None:
            raise ImportFileError(f"'{path}' has no group 'INPUTS': it is not a SPANet file.")
        kinds = [group.kind for group in card.objects]
        self._names = {kind: self._group_of(kind) for kind in (*kinds, "ptmiss")}
        self._n = self._check_shapes()

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries in their order."""
        stop_at = self.options.stop(self._n)
        for start in range(0, stop_at, LARGEST_CHUNK):
            stop = min(start + LARGEST_CHUNK, stop_at)
            try:
                chunk = self._chunk(start, stop)
            except ImportFileError:
                raise
            except Exception as error:  # damaged data ends in many kinds of errors
                raise unreadable_entries(
                    self.path, start, stop, f"cannot be read ({brief(error)}). The file is damaged:"
                    " fetch or make it again."
                ) from error  # fmt: skip
            yield chunk

    def _damaged(self, error: Exception) -> ImportFileError:
        return ImportFileError(
            f"'{self.path}' cannot be read as an HDF5 file ({brief(error)}): it is truncated or "
            "damaged, fetch or make it again."
        )

    def _group_of(self, kind: str) -> str:
        """Finds the group of a kind of objects."""
        assert self._groups is not None
        if kind in self.options.mapping:
            name = self.options.mapping[kind]
            if name not in self._groups:
                raise InputError(f"'mapping': {unknown_name('group', name, self._groups)}")
            return name
        for usual in USUAL_GROUPS.get(kind, (kind,)):
            for name in self._groups:
                if name.lower() == usual:
                    return name
        raise ImportFileError(
            f"'{self.path}' has no group for '{kind}' among {', '.join(self._groups)}: name it "
            f"with mapping={{'{kind}': …}} (--mapping {kind}=…)."
        )

    def _check_shapes(self) -> int:
        """Checks that all features have as many entries; returns how many."""
        lengths = {}
        try:
            for kind, name in self._names.items():
                for feature, data in self._file[f"INPUTS/{name}"].items():
                    shape = data.shape
                    lengths[f"INPUTS/{name}/{feature}"] = shape[0]
                    n_axes = 1 if kind == "ptmiss" else 2
                    if len(shape) != n_axes or max(shape[1:], default=0) > _SLOTS_MAX:
                        raise ImportFileError(
                            f"'INPUTS/{name}/{feature}' of '{self.path}' has the shape {shape}: "
                            f"objects need (N, K) with K up to {_SLOTS_MAX}, ptmiss (N,)."
                        )
        except ImportFileError:
            raise
        except Exception as error:  # damaged data ends in many kinds of errors
            raise self._damaged(error) from error
        if len(set(lengths.values())) > 1:
            low, high = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            raise ImportFileError(
                f"'{self.path}' has {lengths[high]} entries in '{high}' but {lengths[low]} in "
                f"'{low}': make it again."
            )
        return next(iter(lengths.values()))

    def _chunk(self, start: int, stop: int) -> Chunk:
        defects: dict[str, Mask] = {}
        objects = {}
        for group in self.card.objects:
            features = self._features(self._names[group.kind], start, stop)
            objects[group.kind] = self._objects(group.kind, features, defects)
        partons, masses = self._truth(start, stop)
        return Chunk(
            start=start,
            stop=stop,
            weights=self._weights(start, stop),
            objects=objects,
            ptmiss=_ptmiss(self._features(self._names["ptmiss"], start, stop), self.path),
            partons=partons,
            matched=None if partons is None else finite_rows(partons),
            masses=masses,
            defects=defects,
        )

    def _features(self, group: str, start: int, stop: int) -> dict[str, np.ndarray]:
        return {
            name.lower(): data[start:stop] for name, data in self._file[f"INPUTS/{group}"].items()
        }

    def _objects(
        self, kind: str, features: dict[str, np.ndarray], defects: dict[str, Mask]
    ) -> Objects:
        name = self._names[kind]
        for needed in ("pt", "eta", "mask"):
            if needed not in features:
                raise ImportFileError(
                    f"'{self.path}' lacks 'INPUTS/{name}/{needed}': a group of objects needs pt, "
                    "eta, phi and MASK."
                )
        here = features["mask"].astype(bool) & _of_kind(kind, features)
        event = np.nonzero(here)[0]
        one = {key: values[here].astype(np.float64) for key, values in features.items()}
        phi = _angle(one, f"{self.path}: INPUTS/{name}")
        twisted = event[_twisted(one)]
        what = f"a {kind} has a phi that is not its sine and cosine"
        defects[what] = np.bincount(twisted, minlength=len(here)) > 0
        flavour = _flavour(kind, one)
        mass = one.get("mass", np.array([MASSES.get(int(f), 0.0) for f in np.nan_to_num(flavour)]))
        bad = event[(one["pt"] < 0) | (mass < 0)]
        defects[f"a {kind} has a negative pt or mass"] = np.bincount(bad, minlength=len(here)) > 0
        with np.errstate(all="ignore"):  # what overflows is noted as not finite
            p3 = [one["pt"] * np.cos(phi), one["pt"] * np.sin(phi), one["pt"] * np.sinh(one["eta"])]
            energy = np.sqrt((one["pt"] * np.cosh(one["eta"])) ** 2 + mass**2)
        attributes = {"flavour": flavour} | {
            key: one[key] for key in self.card.attribute_names if key in one and key != "flavour"
        }
        whole = {k: np.nan_to_num(v).astype(column_type(k)) for k, v in attributes.items()}
        return Objects(event, np.stack([*p3, energy], axis=1), whole)

    def _weights(self, start: int, stop: int) -> dict[str, Floats]:
        weights: dict[str, Floats] = {"weight": np.ones(stop - start)}
        if EXTRA in self._file:
            for name, data in self._file[EXTRA].items():
                name = name.replace("|", "/")
                if name == "weight" or name.startswith(VARIATION):
                    weights[name] = data[start:stop].astype(np.float64)
        return weights

    def _truth(self, start: int, stop: int) -> tuple[Floats | None, Floats | None]:
        """Returns true particles and masses, where the file has them all."""
        if not self.options.truth or TRUTH not in self._file:
            return None, None
        group = self._file[TRUTH]
        labels = [f"{name}_{c}" for name in self.card.parton_names for c in COMPONENTS]
        masses = [f"mass_{name}" for name in self.card.mass_names]
        if any(name not in group for name in (*labels, *masses)):
            return None, None
        n = stop - start
        table = np.array([group[name][start:stop] for name in (*labels, *masses)], np.float64).T
        return table[:, : len(labels)].reshape(n, -1, len(COMPONENTS)), table[:, len(labels) :]


def _of_kind(kind: str, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Tells leptons from jets where they share a group."""
    tags = [features[name] > 0.5 for name in ("etag", "utag") if name in features]
    if not tags:
        return np.ones(features["mask"].shape, bool)
    is_lepton = np.any(tags, axis=0)
    return is_lepton if kind == "lepton" else ~is_lepton


def _flavour(kind: str, one: Mapping[str, np.ndarray]) -> np.ndarray:
    if kind == "photon":
        return np.full(len(one["pt"]), PHOTON)
    if kind != "lepton":
        return np.zeros(len(one["pt"]))
    if "flavour" in one:
        return one["flavour"]
    electron, muon = (one.get(tag, np.zeros(len(one["pt"]))) > 0.5 for tag in ("etag", "utag"))
    return np.where(electron, ELECTRON, np.where(muon, MUON, 0))


def _angle(one: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    if "phi" in one:
        return one["phi"]
    if "sin_phi" in one and "cos_phi" in one:
        return np.arctan2(one["sin_phi"], one["cos_phi"])
    raise ImportFileError(f"{where} has neither 'phi' nor 'sin_phi' and 'cos_phi': add one.")


def _twisted(one: Mapping[str, np.ndarray]) -> Mask:
    """Marks objects whose angle is given twice, and differently."""
    if not {"phi", "sin_phi", "cos_phi"} <= one.keys():
        return np.zeros(len(one["pt"]), bool)
    off = np.abs(np.sin(one["phi"]) - one["sin_phi"]) + np.abs(np.cos(one["phi"]) - one["cos_phi"])
    return ~(off < _ANGLE_TOLERANCE)


def _ptmiss(features: dict[str, np.ndarray], path: Path) -> Floats:
    size = next((features[name] for name in ("met", "pt") if name in features), None)
    if size is None:
        raise ImportFileError(
            f"'{path}' has no 'met' or 'pt' in its group of missing energy: name another group "
            "with mapping={'ptmiss': …} (--mapping ptmiss=…)."
        )
    phi = _angle(features, f"{path}: INPUTS of missing energy").astype(np.float64)
    return size.astype(np.float64)[:, None] * np.stack([np.cos(phi), np.sin(phi)], axis=1)
