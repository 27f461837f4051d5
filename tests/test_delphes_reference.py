"""Our detector on the very particles that Delphes saw; needs its output (MASSRECON_REFERENCE)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from massrecon.events.card import load_card
from massrecon.events.detector import detect
from massrecon.events.importers import import_events, importing
from massrecon.events.jets import JET_RADIUS, cluster
from massrecon.events.objects import Objects
from massrecon.events.particles import Particles, directions, distance
from massrecon.events.performance import match
from massrecon.events.sections import DetectorSettings, SlotGroup
from massrecon.events.substructure import substructure
from tests.samples import DirectReader

FOLDER = Path(os.environ.get("MASSRECON_REFERENCE", "/nonexistent"))
FILE = FOLDER / "delphes" / "delphes_525_125.A.raw.root"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="needs MASSRECON_REFERENCE")

REPEATS = 40
JETS = SlotGroup(kind="jet", count=1, pt_min=25.0, eta_max=4.0)


@dataclass(frozen=True)
class Reference:
    """All collisions of the file, repeated, and what Delphes made of each once."""

    n_events: int
    particles: Particles
    truth: Objects
    found: Objects
    jets: dict[str, Objects]
    ptmiss: np.ndarray


def massless(pt: np.ndarray, eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    eta = np.clip(eta, -15, 15)
    p3 = [pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
    return np.stack([*p3, pt * np.cosh(eta)], axis=1).astype(float)


@pytest.fixture(scope="module")
def reference() -> Reference:
    uproot, awkward = pytest.importorskip("uproot"), pytest.importorskip("awkward")
    pytest.importorskip("fastjet")
    tree = uproot.open(FILE)["Delphes"]

    def column(branch: str, leaf: str) -> np.ndarray:
        return awkward.to_numpy(awkward.flatten(tree[f"{branch}/{branch}.{leaf}"].array()))

    def listed(branch: str, flavour: int) -> Objects:
        event = np.repeat(np.arange(tree.num_entries), tree[f"{branch}_size"].array(library="np"))
        p4 = massless(*(column(branch, leaf) for leaf in ("PT", "Eta", "Phi")))
        return Objects(event, p4, {"flavour": np.full(len(event), flavour)})

    everything = listed("Particle", 0)
    code, mother = column("Particle", "PID"), column("Particle", "M1")
    first = np.searchsorted(everything.event, everything.event)
    stable = np.flatnonzero(column("Particle", "Status") == 1)
    boson = np.isin(np.abs(code[first + np.maximum(mother, 0)]), (24, 25)) & (mother >= 0)
    prompt = np.flatnonzero(boson & np.isin(np.abs(code), (11, 13, 22)))
    truth = everything[prompt]
    kinds = {"Electron": 11, "Muon": 13, "Photon": 22}
    found = [listed(branch, flavour) for branch, flavour in kinds.items()]
    order = np.argsort(np.concatenate([one.event for one in found]), kind="stable")
    met, phi = column("MissingET", "MET"), column("MissingET", "Phi")
    p4 = [column("Particle", leaf)[stable].astype(float) for leaf in ("Px", "Py", "Pz", "E")]
    return Reference(
        n_events=tree.num_entries,
        particles=Particles(everything.event[stable], code[stable].astype(np.int64), *p4),
        truth=Objects(truth.event, truth.p4, {"flavour": np.abs(code[prompt])}),
        found=Objects(
            np.concatenate([one.event for one in found])[order],
            np.concatenate([one.p4 for one in found])[order],
            {"flavour": np.concatenate([one.attributes["flavour"] for one in found])[order]},
        ),
        jets={
            "particle_flow": listed("ParticleFlowJet04", 0),
            "calorimeter": listed("Jet", 0),
        },
        ptmiss=np.stack([met * np.cos(phi), met * np.sin(phi)], axis=1),
    )


def repeated(particles: Particles, n_events: int) -> Particles:
    """Puts copies of all collisions behind each other."""
    event = (np.arange(REPEATS)[:, None] * n_events + particles.event).ravel()
    columns = [particles.pdg, particles.px, particles.py, particles.pz, particles.energy]
    return Particles(event, *(np.tile(column, REPEATS) for column in columns))


@pytest.fixture(scope="module")
def responses(reference: Reference) -> dict[str, list]:
    """The same collisions through our detector, in a few large batches."""
    n, many = reference.n_events, repeated(reference.particles, reference.n_events)
    return {
        jets: detect(
            many,
            n * REPEATS,
            np.random.default_rng(1),
            DetectorSettings.model_validate({"jets": jets}),
        )
        for jets in reference.jets
    }


def shifted(objects: Objects, n_events: int) -> Objects:
    event = (np.arange(REPEATS)[:, None] * n_events + objects.event).ravel()
    flavour = np.tile(objects.attributes["flavour"], REPEATS)
    return Objects(event, np.tile(objects.p4, (REPEATS, 1)), {"flavour": flavour})


def test_leptons_and_photons_are_found_as_often_as_by_delphes(
    reference: Reference, responses: dict
) -> None:
    ours = responses["particle_flow"].objects
    truth = shifted(reference.truth, reference.n_events)
    matched = match(truth, Objects(ours.event, ours.p4, {"flavour": ours.kind}), 0.1)
    probability = (matched.measured_pt.reshape(REPEATS, -1) > 0).mean(axis=0)
    theirs = match(reference.truth, reference.found, 0.1)
    pt, eta = theirs.true_pt, np.abs(theirs.true_eta)
    good = (pt > 20) & (eta < 2.5)
    expected, seen = probability[good].sum(), (theirs.measured_pt[good] > 0).sum()
    spread = np.sqrt((probability * (1 - probability))[good].sum())
    print(f"Delphes found {seen} of {good.sum()}, we expect {expected:.1f} +- {spread:.1f}")
    assert abs(seen - expected) < 3.5 * spread
    # what never or always happens with us does so with Delphes
    impossible = good & (probability < 0.02)
    assert (theirs.measured_pt[impossible] > 0).mean() < 0.2


def test_ptmiss_scatters_around_ours(reference: Reference, responses: dict) -> None:
    ours = responses["particle_flow"].ptmiss.reshape(REPEATS, reference.n_events, 2)
    rank = (ours < reference.ptmiss).mean(axis=0)
    print(f"ptmiss: mean rank {rank.mean():.3f}, variance {12 * rank.var():.3f} of a uniform's")
    # the rank of Delphes' value among ours is uniform if both have the same distribution
    assert abs(rank.mean() - 0.5) < 4 * np.sqrt(1 / 12 / rank.size)
    assert 0.7 < 12 * rank.var() < 1.35


@pytest.mark.parametrize("kind", ["particle_flow", "calorimeter"])
def test_jets_scatter_around_ours(reference: Reference, responses: dict, kind: str) -> None:
    """True jets: each has a distribution of measured pT in ours, and one value in Delphes."""
    n_events, everywhere = reference.n_events, np.ones(reference.n_events * REPEATS, bool)
    seen = reference.particles[~np.isin(np.abs(reference.particles.pdg), (12, 14, 16))]
    p4 = np.stack([seen.px, seen.py, seen.pz, seen.energy], axis=1)
    clusters = cluster(seen.event, p4, n_events, 50.0)
    pt, eta, _ = directions(clusters.p4)
    good = np.flatnonzero((pt > 50) & (np.abs(eta) < 3))
    true = Objects(
        clusters.event[good], clusters.p4[good], {"flavour": np.zeros(len(good), np.int64)}
    )
    found = responses[kind].find(JETS, everywhere)
    ours = Objects(found.event, found.p4, {"flavour": np.zeros(len(found.event), np.int64)})
    measured = match(shifted(true, n_events), ours, 0.2).measured_pt.reshape(REPEATS, -1)
    theirs = match(true, reference.jets[kind], 0.2).measured_pt
    always = (measured > 0).mean(axis=0) > 0.9
    print(f"{kind}: Delphes finds {(theirs[always] > 0).mean():.3f} of {always.sum()} jets")
    assert (theirs[always] > 0).mean() > 0.95
    use = always & (theirs > 0)
    kept = np.where(measured > 0, measured, np.nan)
    rank = np.nanmean(kept < theirs, axis=0)[use]
    print(f"mean rank {rank.mean():.3f}, variance {12 * rank.var():.3f} of that of a uniform")
    # the rank of Delphes' value among ours is uniform if both have the same distribution
    assert abs(rank.mean() - 0.5) < 4 * np.sqrt(1 / 12 / use.sum())
    assert 0.8 < 12 * rank.var() < 1.25


def test_substructure_scatters_around_ours(reference: Reference, responses: dict) -> None:
    """N-subjettiness and soft-drop mass of the R = 0.4 jets, which the file has."""
    uproot, awkward = pytest.importorskip("uproot"), pytest.importorskip("awkward")
    branch = uproot.open(FILE)["Delphes"]["ParticleFlowJet04"]

    def column(leaf: str) -> np.ndarray:
        values = branch[f"ParticleFlowJet04.{leaf}"].array()
        return awkward.to_numpy(awkward.flatten(values, axis=1))

    groomed, tau = column("SoftDroppedP4[5]")[:, 0], column("Tau[5]")
    momentum_squared = sum(groomed["fP"][axis] ** 2 for axis in ("fX", "fY", "fZ"))
    theirs = {
        "softdrop_mass": np.sqrt(np.maximum(groomed["fE"] ** 2 - momentum_squared, 0.0)),
        "tau21": tau[:, 1] / np.maximum(tau[:, 0], 1e-9),
        "tau32": tau[:, 2] / np.maximum(tau[:, 1], 1e-9),
    }
    jets = reference.jets["particle_flow"]
    pt, eta, phi = directions(jets.p4)
    flow, n_events = responses["particle_flow"].flow, reference.n_events * REPEATS
    ours = cluster(flow.event, flow.p4, n_events, 50.0, JET_RADIUS, constituents=True)
    inside = substructure(ours, flow.p4, JET_RADIUS)
    our_pt, our_eta, our_phi = directions(ours.p4)
    ranks: dict[str, list[float]] = {name: [] for name in theirs}
    for i in np.flatnonzero((pt > 70) & (np.abs(eta) < 2.5) & (tau[:, 2] > 0)):
        same = ours.event % reference.n_events == jets.event[i]
        same &= distance(our_eta, our_phi, eta[i], phi[i]) < 0.1
        same &= np.abs(our_pt / pt[i] - 1) < 0.3
        if same.sum() > REPEATS / 2:
            for name, values in theirs.items():
                ranks[name].append(float((inside[name][same] < values[i]).mean()))
    for name, values in ranks.items():
        rank = np.array(values)
        print(f"{name}: {len(rank)} jets, mean rank {rank.mean():.3f}, {12 * rank.var():.3f}")
        assert len(rank) > 100
        assert abs(rank.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(rank))
        assert 0.7 < 12 * rank.var() < 1.6


def test_large_radius_jets_have_the_substructure_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Delphes writes jets of all radii in one layout; the file has those of R = 0.4
    uproot, ak = pytest.importorskip("uproot"), pytest.importorskip("awkward")
    for module in ("branches", "delphes"):
        name = f"massrecon.events.importers.{module}.FATJET_BRANCH"
        monkeypatch.setattr(name, "ParticleFlowJet04")
    monkeypatch.setattr(importing, "IsolatedReader", DirectReader)
    content = load_card("wino_udd").to_dict()
    fatjets = {"kind": "fatjet", "count": 3, "pt_min": 60.0, "eta_max": 2.5, "minimum": 1}
    content |= {"objects": [fatjets]}
    events = import_events(FILE, load_card(content), truth=False, progress=False)
    slots = list(events.slots_of("fatjet"))
    found = {
        name: events.attributes[name][:, slots] for name in ("softdrop_mass", "tau21", "tau32")
    }
    pt = events.p4[:, slots, :2].norm(dim=-1)
    columns = uproot.open(FILE)["Delphes"]["ParticleFlowJet04"]
    jets = {name: columns[f"ParticleFlowJet04.{name}"].array() for name in ("PT", "Tau[5]")}
    groomed = columns["ParticleFlowJet04.SoftDroppedP4[5]"].array()
    compared = 0
    file_pt = ak.to_numpy(ak.flatten(jets["PT"]))
    tau = ak.to_numpy(ak.flatten(jets["Tau[5]"])).astype(float)
    p4 = ak.flatten(groomed)[:, 0]
    squared = p4["fE"] ** 2 - p4["fP"]["fX"] ** 2 - p4["fP"]["fY"] ** 2 - p4["fP"]["fZ"] ** 2
    for row, slot in np.argwhere((pt > 0).numpy()):
        (jet,) = np.flatnonzero(np.abs(file_pt / pt[row, slot].item() - 1) < 1e-6)[:1]
        here = {name: values[row, slot].item() for name, values in found.items()}
        for name, i in (("tau21", 0), ("tau32", 1)):
            ratio = tau[jet, i + 1] / tau[jet, i] if tau[jet, i] > 0 else 0.0
            assert here[name] == pytest.approx(ratio, rel=1e-5)
        assert here["softdrop_mass"] == pytest.approx(np.sqrt(max(squared[jet], 0)), abs=0.02)
        compared += 1
    assert compared > 100
    assert found["softdrop_mass"].max() > 10.0
