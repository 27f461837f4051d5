"""Efficiencies and resolutions of the HL-LHC-like detector, as tables and closed formulas.

The numbers are those of the public Delphes card ``delphes_card_HLLHC.tcl`` (Delphes 3.5): tracking
of charged hadrons, electrons and muons; relative transverse-momentum resolution of tracks
(``tables/track_resolution.csv``); energy resolution of the electromagnetic and hadronic
calorimeters; identification of isolated photons, electrons and muons
(``tables/identification.csv``). Momenta and energies are in GeV, all arguments are arrays of one
shape, and ``abs_eta`` is the absolute pseudorapidity.

References:
    J. de Favereau et al. (DELPHES 3), JHEP 02 (2014) 057, arXiv:1307.6346.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from massrecon.events.particles import Floats, Mask

TRACK_ETA_MAX = 4.0
TRACK_PT_MIN = 0.5


def read_table(name: str) -> list[dict[str, str]]:
    """Reads the rows of a file in ``tables``; lines that start with # are comments."""
    text = (files("massrecon.events") / "tables" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@dataclass(frozen=True)
class EfficiencyTable:
    """A probability in bins of pseudorapidity and transverse momentum, zero outside them.

    Attributes:
        eta_edges: Edges in absolute pseudorapidity, shape ``(A + 1,)``; a bin excludes its lower
            edge, except the first.
        pt_edges: Edges in transverse momentum [GeV], shape ``(B + 1,)``, likewise.
        values: Probabilities, shape ``(A, B)``.
    """

    eta_edges: Floats
    pt_edges: Floats
    values: Floats

    @classmethod
    def read(cls, kind: str) -> EfficiencyTable:
        """Reads the rows of one kind of object from ``tables/identification.csv``."""
        rows = [row for row in read_table("identification.csv") if row["object"] == kind]
        eta = sorted({float(row[key]) for row in rows for key in ("eta_low", "eta_high")})
        pt = sorted({float(row[key]) for row in rows for key in ("pt_low", "pt_high")})
        values = np.full((len(eta) - 1, len(pt) - 1), np.nan)
        for row in rows:
            bin_ = eta.index(float(row["eta_low"])), pt.index(float(row["pt_low"]))
            values[bin_] = float(row["efficiency"])
        return cls(np.array(eta), np.array(pt), values)

    def __call__(self, pt: Floats, abs_eta: Floats) -> Floats:
        """Looks up the probability at each (pt, abs_eta)."""
        eta_bin = np.maximum(np.searchsorted(self.eta_edges, abs_eta) - 1, 0)
        pt_bin = np.searchsorted(self.pt_edges, pt) - 1
        inside = (eta_bin < len(self.values)) & (pt_bin >= 0)
        return np.where(inside, self.values[np.where(inside, eta_bin, 0), pt_bin], 0.0)


IDENTIFICATION = {kind: EfficiencyTable.read(kind) for kind in ("photon", "electron", "muon")}

_TRACK_ROWS = read_table("track_resolution.csv")
_TRACK = {
    column: np.array([float(row[column]) for row in _TRACK_ROWS])
    for column in ("eta_low", "eta_high", "c0", "c1", "s1", "c2", "s2", "k")
}


def track_resolution(pt: Floats, abs_eta: Floats, is_muon: Mask) -> Floats:
    """Computes the relative transverse-momentum resolution of tracks.

    Above 100 GeV the resolution grows with pT, five times slower for muons, whose long lever arm
    the card models this way; below, electrons and hadrons have twice the resolution of muons.
    """
    last = len(_TRACK["k"]) - 1
    row = np.clip(np.searchsorted(_TRACK["eta_low"], abs_eta, side="right") - 1, 0, last)
    c0, c1, s1, c2, s2, k = (_TRACK[name][row] for name in ("c0", "c1", "s1", "c2", "s2", "k"))
    high = np.where(is_muon, k * (0.2 * pt / 100.0 + 0.8), k * pt / 100.0)
    steps = [pt < 1.0, pt < 10.0, pt < 100.0]
    sigma = np.select(steps, [c0, c1 + (pt - 1.0) * s1, c2 + (pt - 10.0) * s2], high)
    return np.clip(np.where(is_muon, sigma, 2.0 * sigma), 1e-5, 1.0)


def _turn_on(pt: Floats, abs_eta: Floats, slope: Floats, plateau: Floats) -> Floats:
    """Joins the linear rise between 0.5 and 1 GeV to the plateau."""
    inside = (pt > TRACK_PT_MIN) & (abs_eta <= TRACK_ETA_MAX)
    return np.where(inside, np.where(pt <= 1.0, pt * slope, plateau), 0.0)


def _by_region(abs_eta: Floats, edges: tuple[float, float], values: tuple[float, ...]) -> Floats:
    return np.array(values)[np.searchsorted(np.array(edges), abs_eta)]


def hadron_tracking(pt: Floats, abs_eta: Floats) -> Floats:
    """Computes the probability that a charged hadron leaves a track."""
    slope = _by_region(abs_eta, (1.2, 2.5), (0.90, 0.85, 0.80))
    return _turn_on(pt, abs_eta, slope, _by_region(abs_eta, (1.2, 2.5), (0.95, 0.90, 0.85)))


def electron_tracking(pt: Floats, abs_eta: Floats) -> Floats:
    """Computes the probability that an electron leaves a track; it rises with pT forward."""
    slope = _by_region(abs_eta, (1.2, 2.5), (0.90, 0.85, 0.80))
    rise = np.where(abs_eta > 1.2, 1.033 - 0.033 * np.log10(np.maximum(pt, 1.0)), 1.0)
    plateau = _by_region(abs_eta, (1.2, 2.5), (0.95, 0.90, 0.85)) / np.maximum(rise, 0.5)
    return np.minimum(_turn_on(pt, abs_eta, slope, plateau), 1.0)


def muon_tracking(pt: Floats, abs_eta: Floats) -> Floats:
    """Computes the probability that a muon leaves a track."""
    plateau = np.where(abs_eta <= 2.8, 1.0, 0.95)
    return _turn_on(pt, abs_eta, plateau, plateau)


def _quadrature(energy: Floats, constant: Floats, stochastic: Floats, noise: Floats) -> Floats:
    return np.sqrt((constant * energy) ** 2 + stochastic**2 * energy + noise**2)


def ecal_resolution(energy: Floats, abs_eta: Floats) -> Floats:
    """Computes the energy resolution of an electromagnetic calorimeter tower [GeV]."""
    region = np.searchsorted(np.array([1.5, 1.75, 2.15, 3.0]), abs_eta)
    constant = 2.0 * np.array([0.009, 0.006, 0.007, 0.008, 0.04])[region]
    stochastic = 2.0 * np.array([0.12, 0.20, 0.21, 0.24, 0.99])[region]
    noise = 2.0 * np.array([0.45, 0.0, 0.0, 0.0, 0.0])[region]
    return _quadrature(energy, constant, stochastic, noise)


def hcal_resolution(energy: Floats, abs_eta: Floats) -> Floats:
    """Computes the energy resolution of a hadronic calorimeter tower [GeV]."""
    region = np.searchsorted(np.array([1.7, 3.2]), abs_eta)
    constant = np.array([2 * 0.0302, 2 * 0.05, 0.0942])[region]
    stochastic = np.array([2 * 0.5205, 2 * 0.706, 1.0])[region]
    noise = np.array([2 * 1.59, 0.0, 0.0])[region]
    return _quadrature(energy, constant, stochastic, noise)


def log_normal(mean: Floats, sigma: Floats, rng: np.random.Generator) -> Floats:
    """Draws log-normal numbers of the given mean and standard deviation; zero where mean is 0."""
    safe = np.maximum(mean, 1e-12)
    width_squared = np.log1p((sigma / safe) ** 2)
    exponent = np.sqrt(width_squared) * rng.standard_normal(len(safe)) - 0.5 * width_squared
    return np.where(mean > 0.0, safe * np.exp(exponent), 0.0)
