"""Our detector against Delphes: ``python tests/benchmarks/detector.py [n_events]``.

Simulates wino_udd at five mass points with multiparton interactions, `n_events` collisions each
(4,000 if not given, about 6 minutes on one core), and prints efficiencies, resolutions, jets,
ptmiss and selection beside those of Delphes 3.5.1 with its public HL-LHC card without pile-up.

The numbers of Delphes for all mass points were measured once, on 20,000 events with multiparton
interactions (4,000 at each point, so that a selection efficiency is known to 2 %). Where the
environment variable ``MASSRECON_REFERENCE`` names a folder with its output
``delphes/delphes_525_125.A.slim.root`` (2,000 events at one mass point), that file is measured with
the very code that measures ours, and both are compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from massrecon.errors import require_extra
from massrecon.events.card import load_card
from massrecon.events.jets import JET_RADIUS, is_apart
from massrecon.events.objects import Objects
from massrecon.events.performance import (
    KINDS,
    Matches,
    Measured,
    Performance,
    collisions,
    compare,
    match,
)
from massrecon.events.request import Request
from massrecon.events.sections import DetectorSettings

SELECTION = {
    (600, 200): 0.418,
    (475, 175): 0.379,
    (525, 125): 0.425,
    (575, 225): 0.386,
    (625, 325): 0.347,
}
PER_POINT = 4_000
"""Events of Delphes at each mass point."""

PT, HT, ALL = (20, 50, 100, 10_000), (0, 1000, 1500, 10_000), (0, 10_000)
JET_PT = (30, 50, 80, 120, 200, 400, 10_000)
OUTER_JET_PT = (30, 50, 80, 200)
JETS = {
    "particle_flow": {30: (0.898, 0.935, 0.134), 50: (0.988, 0.948, 0.113),
                      120: (0.989, 0.969, 0.072), 400: (0.993, 0.981, 0.049)},
    "calorimeter": {30: (0.585, 0.854, 0.192), 50: (0.940, 0.830, 0.182),
                    120: (0.981, 0.913, 0.110), 400: (0.988, 0.962, 0.064)},
}  # fmt: skip
"""Efficiency, median response and width of Delphes' jets with |eta| < 1.3 by the lowest pT."""

N_JETS = {"particle_flow": 5.79, "calorimeter": 5.36}
PTMISS = (18.9, 22.5, 29.7, 22.5)


def simulated(point: tuple[int, int], n_events: int) -> dict[str, Performance]:
    """Measures both kinds of jets on the same collisions."""
    masses = {"chi20": point[0], "chi10": point[1]}
    request = Request.of("wino_udd", masses, 1, {"multiparton": True})
    parts: dict[str, list[Performance]] = {jets: [] for jets in JETS}
    done = 0
    for record, rng in collisions(request):
        states = rng.bit_generator.state
        for jets in JETS:
            rng.bit_generator.state = states
            parts[jets].append(
                compare(request.card, record, rng, DetectorSettings.model_validate({"jets": jets}))
            )
        done += record.n_events
        if done >= n_events:
            break
    return {jets: Performance.join(part) for jets, part in parts.items()}


class DelphesFile:
    """The output of Delphes, measured as ours is."""

    def __init__(self, path: Path) -> None:
        self.tree = require_extra("uproot", extra="files").open(path)["Delphes"]
        self.n_events = self.tree.num_entries

    def column(self, branch: str, leaf: str) -> np.ndarray:
        """Reads a flat column."""
        awkward = require_extra("awkward", extra="files")
        return awkward.to_numpy(awkward.flatten(self.tree[f"{branch}/{branch}.{leaf}"].array()))

    def objects(self, branch: str, flavour: int) -> Objects:
        """Reads objects of one branch, massless."""
        counts = self.tree[f"{branch}_size"].array(library="np")
        pt, eta, phi = (self.column(branch, leaf) for leaf in ("PT", "Eta", "Phi"))
        eta = np.clip(eta, -15.0, 15.0)  # Delphes writes 999 for the beams
        p4 = [pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)]
        event = np.repeat(np.arange(self.n_events), counts)
        return Objects(
            event, np.stack(p4, axis=1).astype(float), {"flavour": np.full(len(pt), flavour)}
        )

    def truth(self) -> Objects:
        """Finds the leptons and photons whose mother is a W, Z or Higgs boson."""
        particles = self.objects("Particle", 0)
        code, mother = np.abs(self.column("Particle", "PID")), self.column("Particle", "M1")
        first = np.searchsorted(particles.event, particles.event)
        from_boson = np.isin(code[first + np.maximum(mother, 0)], (23, 24, 25)) & (mother >= 0)
        wanted = np.flatnonzero(from_boson & np.isin(code, list(KINDS.values())))
        found = particles[wanted]
        return Objects(found.event, found.p4, {"flavour": code[wanted].astype(np.int64)})

    def ptmiss(self, branch: str) -> np.ndarray:
        """Reads a missing transverse momentum, shape ``(N, 2)``."""
        met, phi = self.column(branch, "MET"), self.column(branch, "Phi")
        return np.stack([met * np.cos(phi), met * np.sin(phi)], axis=1)

    def performance(self, jets: str) -> Performance:
        """Compares reconstruction and truth."""
        kinds = {"Photon": 22, "Electron": 11, "Muon": 13}
        found = _joined([self.objects(branch, code) for branch, code in kinds.items()])
        hard = found[np.hypot(found.p4[:, 0], found.p4[:, 1]) > 10.0]
        truth, true_jets = self.truth(), self.objects("GenJet", 0)
        reconstructed = self.objects("ParticleFlowJet04", 0)
        reconstructed = reconstructed[is_apart(reconstructed, hard, JET_RADIUS)]
        if jets == "calorimeter":
            reconstructed = self.objects("Jet", 0)
        true_jets = true_jets[is_apart(true_jets, truth, JET_RADIUS)]
        counts, selected = self._selection(found, reconstructed)
        return Performance(
            objects=match(truth, found, 0.1),
            jets=match(true_jets, reconstructed, 0.2),
            ptmiss=self.ptmiss("MissingET") - self.ptmiss("GenMissingET"),
            ht=self.column("ScalarHT", "HT").astype(float),
            counts=counts,
            selected=selected,
        )

    def _selection(self, found: Objects, jets: Objects) -> tuple[dict[str, np.ndarray], np.ndarray]:
        counts, selected = {}, np.ones(self.n_events, bool)
        for group in load_card("wino_udd").objects:
            is_photon = found.attributes["flavour"] == 22
            chosen = {"lepton": found[~is_photon], "photon": found[is_photon], "jet": jets}
            count = np.bincount(chosen[group.kind].accepted(group).event, minlength=self.n_events)
            counts[group.kind] = count
            selected &= (count >= group.minimum) & (count <= (group.maximum or np.inf))
        return counts, selected


def _joined(parts: list[Objects]) -> Objects:
    event = np.concatenate([part.event for part in parts])
    order = np.argsort(event, kind="stable")
    flavour = np.concatenate([part.attributes["flavour"] for part in parts])
    p4 = np.concatenate([part.p4 for part in parts])
    return Objects(event[order], p4[order], {"flavour": flavour[order]})


def quantities(sample: Performance) -> Iterator[tuple[str, Measured, float]]:
    """Lists all that is compared: name, values in bins, and the goal as a fraction."""
    for kind in KINDS:
        found = sample.of(kind)
        yield f"{kind} efficiency, pT > 20", found.efficiency((20, 10_000)), 0.02
        yield f"{kind} efficiency by pT", found.efficiency(PT), 0.02
        yield f"{kind} pT resolution", found.response(PT)[1], 0.05
    for low, high, edges in (
        (0.0, 1.3, JET_PT),
        (1.3, 2.5, OUTER_JET_PT),
        (2.5, 4.0, (30, 50, 80)),
    ):
        yield from _jet_quantities(sample.jets.within(low, high), f"{low}-{high}", edges)
    yield "ptmiss per axis [GeV]", sample.ptmiss_width(ALL), 0.05
    yield "ptmiss per axis by HT [GeV]", sample.ptmiss_width(HT), 0.05


def _jet_quantities(
    jets: Matches, eta: str, edges: tuple[float, ...]
) -> Iterator[tuple[str, Measured, float]]:
    yield f"jet efficiency, |eta| {eta}", jets.efficiency(edges), 0.02
    median, width = jets.response(edges)
    yield f"jet response, |eta| {eta}", median, 0.02
    yield f"jet resolution, |eta| {eta}", width, 0.05


def compare_with_file(ours: Performance, theirs: Performance, jets: str) -> None:
    """Prints both samples of one mass point, and where they differ by more than the goal."""
    print(f"\n(525, 125), {jets} jets: ours on {len(ours.ht):,}, Delphes on {len(theirs.ht):,}")
    print(f"{'quantity':34s} {'from':>6s} {'ours':>17s} {'Delphes':>17s} {'ratio':>15s}")
    for (name, one, goal), (_, other, _) in zip(quantities(ours), quantities(theirs), strict=True):
        for i, edge in enumerate(one.edges[:-1]):
            ratio = one.value[i] / other.value[i]
            error = ratio * np.hypot(one.error[i] / one.value[i], other.error[i] / other.value[i])
            mark = "" if abs(ratio - 1) < goal else f"  off by > {goal:.0%}"
            mark += f", {abs(ratio - 1) / error:.1f} sigma" if mark else ""
            print(
                f"{name:34s} {edge:6g} {one.value[i]:8.4f} +- {one.error[i]:.4f} "
                f"{other.value[i]:8.4f} +- {other.error[i]:.4f} {ratio:6.3f} +- {error:.3f}{mark}"
            )
    for name, sample in (("ours", ours), ("Delphes", theirs)):
        rate, error = sample.selection_efficiency()
        counts = ", ".join(f"{kind} {count.mean():.3f}" for kind, count in sample.counts.items())
        print(f"{name}: selection {rate:.4f} +- {error:.4f}; mean number of {counts}")


def compare_points(samples: dict[tuple[int, int], dict[str, Performance]]) -> None:
    """Prints what all five mass points give beside what Delphes gave."""
    print(f"\nselection efficiency (Delphes: {PER_POINT:,} events a point)")
    for point, sample in samples.items():
        rate, error = sample["particle_flow"].selection_efficiency()
        theirs = SELECTION[point]
        their_error = np.sqrt(theirs * (1 - theirs) / PER_POINT)
        spread = np.hypot(error / rate, their_error / theirs)
        print(
            f"{point!s:12s} {rate:.4f} +- {error:.4f}   {theirs:.3f} +- {their_error:.3f}   "
            f"{rate / theirs - 1:+.3f} +- {spread:.3f}"
        )
    for jets in JETS:
        _compare_jets(Performance.join([sample[jets] for sample in samples.values()]), jets)
    every = Performance.join([sample["particle_flow"] for sample in samples.values()])
    widths = [*every.ptmiss_width(HT).value, *every.ptmiss_width(ALL).value]
    names = ("HT < 1000", "HT to 1500", "HT > 1500", "all HT")
    for name, width, theirs in zip(names, widths, PTMISS, strict=True):
        print(f"ptmiss per axis, {name:11s} {width:6.2f}  {theirs:6.1f}  {width / theirs - 1:+.3f}")
    for kind in KINDS:
        found = every.of(kind)
        rates = [found.efficiency((20, 10_000)), found.efficiency(PT), found.response(PT)[1]]
        text = "  ".join(
            f"{value:.4f} +- {error:.4f}"
            for rate in rates
            for value, error in zip(rate.value, rate.error, strict=True)
        )
        print(f"{kind}: efficiency, by pT, resolution by pT: {text}")


def _compare_jets(sample: Performance, jets: str) -> None:
    print(f"\n{jets} jets, |eta| < 1.3: efficiency, response, width; ours and Delphes")
    central = sample.jets.within(0.0, 1.3)
    median, width = central.response(JET_PT)
    ours = np.stack([central.efficiency(JET_PT).value, median.value, width.value], axis=1)
    for low, theirs in JETS[jets].items():
        row = ours[JET_PT.index(low)]
        text = "  ".join(
            f"{a:.3f} {b:.3f} ({a / b - 1:+.3f})" for a, b in zip(row, theirs, strict=True)
        )
        print(f"pT from {low:4d} GeV:  {text}")
    print(f"mean number of jets {sample.counts['jet'].mean():.3f}   {N_JETS[jets]}")


def main(*arguments: Any) -> None:
    """Prints the tables."""
    n_events = int(arguments[0]) if arguments else 4_000
    samples = {point: simulated(point, n_events) for point in SELECTION}
    compare_points(samples)
    folder = os.environ.get("MASSRECON_REFERENCE")
    path = Path(folder or ".") / "delphes" / "delphes_525_125.A.slim.root"
    if folder and path.exists():
        file = DelphesFile(path)
        for jets in JETS:
            compare_with_file(samples[525, 125][jets], file.performance(jets), jets)


if __name__ == "__main__":
    main(*sys.argv[1:])
