"""The branches of a range of entries of a Delphes file, as flat arrays of objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from massrecon.events.importers.graph import Family
from massrecon.events.objects import Objects
from massrecon.events.particles import ELECTRON, MASSES, MUON, PHOTON, Floats, Integers, Mask

FATJET_BRANCH = "ParticleFlowJet08"
TRUTH = ("PID", "Status", "M1", "M2", "Px", "Py", "Pz", "E", "Mass")

_INCOMING = 21
_PHI_MAX = 3.15
_ENERGY_TOLERANCE = 1e-3

Columns = dict[str, np.ndarray]


class Entries:
    """The branches of a range of entries.

    Attributes:
        arrays: Awkward arrays by the name of the branch.
        n: Number of entries.
        defects: What is wrong with entries, by description, each a mask ``(n,)``.
    """

    def __init__(self, awkward: Any, arrays: dict[str, Any], n: int) -> None:
        self._awkward = awkward
        self.arrays = arrays
        self.n = n
        self.defects: dict[str, Mask] = {}

    def flat(self, name: str) -> np.ndarray:
        """Returns the values of all objects of all entries."""
        return self._awkward.to_numpy(self._awkward.flatten(self.arrays[name], axis=1))

    def counts(self, name: str) -> Integers:
        """Returns the number of objects of each entry."""
        return self._awkward.to_numpy(self._awkward.num(self.arrays[name], axis=1))

    def collection(self, branch: str, columns: tuple[str, ...]) -> tuple[Integers, Columns]:
        """Returns the entry of each object and its columns; notes entries that disagree."""
        counts = self.counts(f"{branch}.PT")
        for column in columns:
            if not np.array_equal(self.counts(f"{branch}.{column}"), counts):
                raise ValueError(f"'{branch}.{column}' has another length than '{branch}.PT'")
        event = np.repeat(np.arange(self.n), counts)
        values = {column: self.flat(f"{branch}.{column}") for column in columns}
        pt, phi = values["PT"], values["Phi"]
        self._note(f"a {branch}.PT is negative", event[pt < 0])
        self._note(f"a {branch}.Phi is not an angle", event[np.abs(phi) > _PHI_MAX])
        return event, values

    def leptons(self, branch: str) -> Objects:
        """Returns the electrons or muons."""
        code = ELECTRON if branch == "Electron" else MUON
        event, values = self.collection(branch, angles("Charge"))
        charge = values["Charge"]
        self._note(f"a {branch}.Charge is not +1 or -1", event[np.abs(charge) != 1])
        p4 = _p4(values, np.full(len(event), MASSES[code]))
        return Objects(event, p4, {"charge": charge, "flavour": np.full(len(event), code)})

    def photons(self) -> Objects:
        """Returns the photons."""
        event, values = self.collection("Photon", angles("E"))
        p4 = _p4(values, np.zeros(len(event)))
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(values["E"] - p4[:, 3]) <= _ENERGY_TOLERANCE * p4[:, 3])
        self._note("a Photon.E does not fit its momentum", event[off])
        return Objects(event, p4, {"flavour": np.full(len(event), PHOTON)})

    def tags(self, branch: str) -> tuple[Integers, Integers]:
        """Returns the bits of the b-tag and the tau tag of the jets of a branch."""
        bits = self.flat(f"{branch}.BTag").astype(np.int64)
        return bits, self.flat(f"{branch}.TauTag").astype(np.int64) & 1

    def jets(self, branch: str) -> Objects:
        """Returns the jets of a branch."""
        event, values = self.collection(branch, angles("Mass"))
        mass = values["Mass"].astype(np.float64)
        self._note(f"a {branch}.Mass is not finite", event[~np.isfinite(mass)])
        return Objects(event, _p4(values, np.maximum(mass, 0.0)))

    def substructure(self, jets: Objects) -> Objects:
        """Adds soft-drop mass and N-subjettiness ratios to large-radius jets."""
        groomed = self._awkward.flatten(self.arrays[f"{FATJET_BRANCH}.SoftDroppedJet"], axis=1)
        p3 = [self._awkward.to_numpy(groomed["fP"][f"f{axis}"]) for axis in "XYZ"]
        squared = self._awkward.to_numpy(groomed["fE"]) ** 2 - sum(p**2 for p in p3)
        tau = np.asarray(self.flat(f"{FATJET_BRANCH}.Tau[5]"), np.float64).reshape(-1, 5)
        ratio = np.divide(
            tau[:, 1:3], tau[:, :2], out=np.zeros((len(tau), 2)), where=tau[:, :2] > 0
        )
        more = {"tau21": ratio[:, 0], "tau32": ratio[:, 1]}
        more["softdrop_mass"] = np.sqrt(np.maximum(squared, 0.0))
        return Objects(jets.event, jets.p4, {**jets.attributes, **more})

    def ptmiss(self) -> Floats:
        """Returns the missing transverse momentum (px, py) [GeV], shape ``(n, 2)``."""
        met, phi = self.single("MissingET.MET"), self.single("MissingET.Phi")
        self._note("MissingET.MET is negative", np.flatnonzero(met < 0))
        self._note("MissingET.Phi is not an angle", np.flatnonzero(np.abs(phi) > _PHI_MAX))
        with np.errstate(invalid="ignore"):
            return met[:, None] * np.stack([np.cos(phi), np.sin(phi)], axis=1)

    def single(self, name: str, default: float | None = None) -> Floats:
        """Returns the one value that each entry has, shape ``(n,)``."""
        if name not in self.arrays and default is not None:
            return np.full(self.n, default)
        counts = self.counts(name)
        self._note(f"it has {name} not exactly once", np.flatnonzero(counts != 1))
        values = np.full(self.n, np.nan)
        values[counts == 1] = self.flat(name)[np.repeat(counts == 1, counts)]
        return np.where(counts == 1, values, 0.0)

    def table(self, name: str) -> Floats:
        """Returns the values of each entry, shape ``(n, k)``; entries with fewer are noted."""
        counts = self.counts(name) if name in self.arrays else np.zeros(self.n, np.int64)
        width = int(np.median(counts)) if self.n else 0
        self._note(
            f"it has not as many values of {name} as others", np.flatnonzero(counts != width)
        )
        values = np.zeros((self.n, width))
        if width:
            good = counts == width
            values[good] = self.flat(name)[np.repeat(good, counts)].reshape(-1, width)
        return values

    def family(self) -> Family:
        """Returns the generated particles."""
        counts = self.counts("Particle.PID")
        event = np.repeat(np.arange(self.n), counts)
        one = {c: self.flat(f"Particle.{c}") for c in TRUTH}
        first = (np.cumsum(counts) - counts)[event]
        hard = np.ones(len(event), bool)
        for column in ("M1", "M2"):
            mother = one[column].astype(np.int64)
            inside = (mother >= 0) & (mother < counts[event])
            status = one["Status"][np.where(inside, first + mother, 0)] if len(event) else inside
            hard &= inside & (np.abs(status) == _INCOMING)
        p4 = np.stack([one[c] for c in ("Px", "Py", "Pz", "E")], axis=1).astype(np.float64)
        mother = one["M1"].astype(np.int64)
        pdg = one["PID"].astype(np.int64)
        return Family(event, pdg, mother, hard, p4, one["Mass"].astype(np.float64))

    def _note(self, what: str, entries: Integers) -> None:
        """Notes a defect of some entries."""
        if len(entries):
            mask = self.defects.setdefault(what, np.zeros(self.n, bool))
            mask[entries] = True


def angles(*more: str) -> tuple[str, ...]:
    """Lists the columns of a collection: transverse momentum, direction and `more`."""
    return ("PT", "Eta", "Phi", *more)


def _p4(values: Columns, mass: Floats) -> Floats:
    """Returns four-momenta (px, py, pz, E) [GeV] from pT, eta, phi, m."""
    pt, eta, phi = (values[name].astype(np.float64) for name in ("PT", "Eta", "Phi"))
    with np.errstate(all="ignore"):  # what overflows is noted as not finite
        p3 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)
        energy = np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2)
    return np.concatenate([p3, energy[:, None]], axis=1)


def joined(samples: list[Objects]) -> Objects:
    """Joins objects of several kinds, ordered by entry."""
    event = np.concatenate([one.event for one in samples])
    p4 = np.concatenate([one.p4 for one in samples])
    names = samples[0].attributes
    attributes = {n: np.concatenate([one.attributes[n] for one in samples]) for n in names}
    return Objects(event, p4, attributes)[np.argsort(event, kind="stable")]
