"""ROOT files of Delphes, read with uproot in ranges of entries.

The jets are ``ParticleFlowJet04`` (``jets="particle_flow"``), the calorimeter jets ``Jet``
(``jets="calorimeter"``) or any other jet branch by its name. A large-radius group of the card is
read from ``ParticleFlowJet08``. Jets within Delta R = 0.4 of a lepton or photon within the card's
limits are removed (0.8 for large-radius jets): ``ParticleFlowJet04`` still holds leptons and
photons. The public cards tag only ``Jet``: where the chosen jets carry no b-tag at all, tags are
those of the nearest ``Jet`` within Delta R = 0.4. Branches of bits (``*.fBits``) are never touched.

References:
    J. de Favereau et al. (DELPHES 3), JHEP 02 (2014) 057, arXiv:1307.6346.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import ImportFileError, InputError, require_extra
from massrecon.events.card import ProcessCard
from massrecon.events.columns import VARIATION
from massrecon.events.importers.branches import FATJET_BRANCH, TRUTH, Entries, angles, joined
from massrecon.events.importers.chunk import (
    LARGEST_CHUNK,
    Chunk,
    ReadOptions,
    brief,
    unreadable_entries,
)
from massrecon.events.importers.graph import find_decay
from massrecon.events.objects import Objects
from massrecon.events.particles import Floats, Integers, Mask, directions, distance, pairs_by

TREE = "Delphes"
JET_BRANCHES = {"particle_flow": "ParticleFlowJet04", "calorimeter": "Jet"}
TAGGED_JETS = "Jet"
"""The only jets that the public cards tag."""

WORKING_POINTS = {"loose": 1, "medium": 2, "tight": 3}

_SAME_JET = 0.4


class DelphesReader:
    """Reads the tree ``Delphes`` of a ROOT file."""

    def __init__(self, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        """Opens the file and checks that its branches are there.

        Raises:
            ImportFileError: If the file has no such tree or lacks a branch.
        """
        self.path, self.card, self.options = path, card, options
        self._uproot = require_extra("uproot", extra="files")
        self._awkward = require_extra("awkward", extra="files")
        self._tree = self._open()
        self._kinds = {group.kind for group in card.objects}
        self._jets = JET_BRANCHES.get(options.jets, options.jets)
        self._names = set(self._tree.keys(recursive=True, full_paths=False))
        self._wanted = self._branches()
        self._weights: int | None = None
        self._tagged_jets: str | None = None

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries in their order."""
        for start, stop in self._ranges():
            try:
                yield self._read(start, stop)
            except ImportFileError:
                raise
            except Exception as error:  # damaged data ends in any error inside uproot
                raise unreadable_entries(
                    self.path, start, stop, f"cannot be read ({brief(error)}). The file is "
                    "truncated or damaged: fetch or make it again."
                ) from error  # fmt: skip

    def _open(self) -> Any:
        try:
            file = self._uproot.open(self.path, array_cache=None)
            names = {name.split(";")[0]: kind for name, kind in file.classnames().items()}
            if names.get(TREE) == "TTree":
                return file[TREE]
        except Exception as error:  # damaged data ends in any error inside uproot
            raise ImportFileError(
                f"'{self.path}' cannot be opened as a ROOT file ({brief(error)}): it is truncated "
                "or damaged, fetch or make it again."
            ) from error
        there = ", ".join(f"'{name}'" for name in sorted(names)) or "nothing"
        remedy = "pass the output of Delphes"
        if {"card", "events"} <= names.keys():
            remedy = (
                "it looks like an export of massrecon, which is for other programs; "
                "pass the folder it was made from, or export that as .parquet"
            )
        raise ImportFileError(f"'{self.path}' has no tree '{TREE}' but {there}: {remedy}.")

    def _branches(self) -> list[str]:
        """Lists the branches to read, after checking that they are there."""
        wanted = ["MissingET.MET", "MissingET.Phi"]
        if "lepton" in self._kinds:
            wanted += [f"{k}.{c}" for k in ("Electron", "Muon") for c in angles("Charge")]
        if "photon" in self._kinds:
            wanted += [f"Photon.{c}" for c in angles("E")]
        tags = ("BTag", "TauTag") if self.card.detector.tagging else ()
        if "jet" in self._kinds:
            wanted += [f"{self._jets}.{c}" for c in angles("Mass", *tags)]
        if "fatjet" in self._kinds:
            extra = ("Mass", "Tau[5]", "SoftDroppedJet", *tags)
            wanted += [f"{FATJET_BRANCH}.{c}" for c in angles(*extra)]
        missing = [name for name in wanted if name not in self._names]
        if missing:
            raise self._missing(missing[0])
        truth = [f"Particle.{c}" for c in TRUTH]
        self._has_truth = self.options.truth and self._names >= set(truth)
        optional = ["Event.Weight", "Event.CrossSection", "Weight.Weight"]
        wanted += truth if self._has_truth else []
        lent = [f"{TAGGED_JETS}.{c}" for c in angles("Mass", *tags)] if tags else []
        self._lends_tags = bool(lent) and self._names >= set(lent)
        wanted += [name for name in lent if self._lends_tags and name not in wanted]
        return wanted + [name for name in optional if name in self._names]

    def _missing(self, branch: str) -> ImportFileError:
        collections = sorted(
            name.removesuffix(".PT")
            for name in self._names
            if name.endswith(".PT") and name.removesuffix("PT") + "Mass" in self._names
        )
        jets = ", ".join(name for name in collections if name != "Particle" and "Gen" not in name)
        return ImportFileError(
            f"'{self.path}' lacks the branch '{branch}' that the card '{self.card.name}' asks for: "
            f"keep it in the Delphes card, or choose other jets (there are: {jets or 'none'})."
        )

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Cuts the entries at the borders of the file's own blocks, so that each is read once."""
        stop = self.options.stop(self._tree.num_entries)
        if stop == 0:
            raise ImportFileError(f"'{self.path}' has no entries: make it again.")
        try:
            borders = set(self._tree.common_entry_offsets(filter_name=self._wanted))
        except Exception:  # without common blocks some are read twice
            borders = set()
        edges = sorted({e for e in borders if 0 < e < stop} | {0, stop})
        for low, high in itertools.pairwise(edges):
            for start in range(low, high, LARGEST_CHUNK):
                yield start, min(start + LARGEST_CHUNK, high)

    def _read(self, start: int, stop: int) -> Chunk:
        arrays = self._tree.arrays(
            self._wanted, entry_start=start, entry_stop=stop, library="ak", how=dict
        )
        if any(len(array) != stop - start for array in arrays.values()):
            raise ValueError("a branch ends too early")
        data = Entries(self._awkward, arrays, stop - start)
        objects = {}
        if "lepton" in self._kinds:
            objects["lepton"] = joined([data.leptons("Electron"), data.leptons("Muon")])
        if "photon" in self._kinds:
            objects["photon"] = data.photons()
        if "jet" in self._kinds:
            objects["jet"] = self._tagged(self._jets, data)
        if "fatjet" in self._kinds:
            objects["fatjet"] = data.substructure(self._tagged(FATJET_BRANCH, data))
        partons, matched = self._truth(data)
        section = "Event.CrossSection"
        return Chunk(
            start=start,
            stop=stop,
            weights=self._all_weights(data),
            objects=objects,
            overlaps=True,
            ptmiss=data.ptmiss(),
            partons=partons,
            matched=matched,
            cross_section_fb=_cross_section(data.flat(section)) if section in arrays else None,
            defects=data.defects,
        )

    def _tagged(self, branch: str, data: Entries) -> Objects:
        jets = data.jets(branch)
        if not self.card.detector.tagging:
            return jets
        bits, tautag = data.tags(branch)
        if self._tagged_jets is None and self._lends_tags:
            others = data.tags(TAGGED_JETS)
            if bits.any() or others[0].any():
                self._tagged_jets = branch if bits.any() else TAGGED_JETS
        if self._tagged_jets == TAGGED_JETS != branch:
            nearest = _nearest(jets, data.jets(TAGGED_JETS))
            bits, tautag = (np.append(tags, 0)[nearest] for tags in data.tags(TAGGED_JETS))
        levels = np.array([WORKING_POINTS[name] for name in self.options.btag_points])
        if np.any(bits >> len(levels)):
            raise ImportFileError(
                f"'{self.path}' has b-tags with more bits than 'btag_points' names "
                f"({', '.join(self.options.btag_points)}): name the working point of each bit."
            )
        passed = (bits[:, None] >> np.arange(len(levels))) & 1
        tags = {"btag": (passed * levels).max(axis=1, initial=0), "tautag": tautag}
        return Objects(jets.event, jets.p4, tags)

    def _truth(self, data: Entries) -> tuple[Floats | None, Mask | None]:
        if not self._has_truth:
            return None, None
        return find_decay(self.card, data.family(), data.n)

    def _all_weights(self, data: Entries) -> dict[str, Floats]:
        """Returns the nominal weight, and the others where there are any."""
        weights = {"weight": data.single("Event.Weight", default=1.0)}
        others = data.table("Weight.Weight")
        n_weights = self._weights = others.shape[1] if self._weights is None else self._weights
        if others.shape[1] != n_weights:
            raise ImportFileError(
                f"'{self.path}' has {n_weights} alternative weights in its first entries and "
                f"{others.shape[1]} in later ones: import its parts one by one."
            )
        if n_weights > 1:
            weights |= {f"{VARIATION}{i}": others[:, i] for i in range(n_weights)}
        return weights


def _nearest(jets: Objects, others: Objects) -> Integers:
    """Finds the nearest other jet within Delta R = 0.4 of each jet, -1 for none."""
    row, other = pairs_by(jets.event, others.event)
    with np.errstate(all="ignore"):  # bad momenta are near nothing
        (_, eta, phi), (_, other_eta, other_phi) = directions(jets.p4), directions(others.p4)
        apart = distance(eta[row], phi[row], other_eta[other], other_phi[other])
    close = np.flatnonzero(apart < _SAME_JET)
    close = close[np.argsort(-apart[close], kind="stable")]
    nearest = np.full(len(jets.event), -1)
    nearest[row[close]] = other[close]  # the last assignment is the nearest
    return nearest


def _cross_section(values: np.ndarray) -> float | None:
    """Returns the cross-section [fb] of the last entry that gives one [pb]."""
    given = values[np.isfinite(values) & (values > 0)]
    return float(given[-1]) * 1000.0 if len(given) else None


def check_working_points(names: tuple[str, ...]) -> None:
    """Refuses unknown names of working points.

    Raises:
        InputError: If there is one.
    """
    if not names or any(name not in WORKING_POINTS for name in names):
        raise InputError(
            f"'btag_points' should name a working point for each bit, from "
            f"{', '.join(WORKING_POINTS)}, got {list(names)}."
        )
