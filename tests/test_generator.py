"""The simulation: truth, reproducibility, resuming, cards of one's own, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from massrecon.errors import GenerationError, InputError, StoreError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.manifest import manifest_text
from massrecon.events.masses import MassRequest
from massrecon.events.part import Part, PartMaker
from massrecon.events.partfile import PartFile
from massrecon.events.pythia import Record
from massrecon.events.regeneration import regenerate, regeneration_differences
from massrecon.events.request import Request
from massrecon.events.store import MANIFEST, load_events, locked
from massrecon.events.truth import check_masses, check_matched, match_partons

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

MASSES = {"chi20": 600, "chi10": (50, 450)}
SEED = 11
# more than one part has, so that two workers have something to do
N_TWO_PARTS = 1_400


def make_part(masses: MassRequest, number: int, earlier: tuple[int, ...] = ()) -> Part:
    """Makes the first group of a part, in this process, after some other parts."""
    maker = PartMaker(Request.of("wino_udd", masses, SEED, None))
    for other in earlier:
        maker.make(other, lambda: 1, lambda *_: None)
    part = maker.make(number, lambda: 1, lambda *_: None)
    maker.close()
    return part


@pytest.fixture(scope="module")
def plane() -> Part:
    return make_part({"chi20": (450, 620), "chi10": (50, 300)}, 3)


@pytest.fixture(scope="module")
def reference() -> Events:
    return simulate("wino_udd", N_TWO_PARTS, MASSES, seed=SEED, workers=1, progress=False)


def assert_same(one: Events, two: Events) -> None:
    assert torch.equal(one.p4, two.p4)
    assert torch.equal(one.ptmiss, two.ptmiss)
    assert one.partons is not None
    assert two.partons is not None
    assert torch.equal(one.partons, two.partons)
    assert one.provenance == two.provenance


def energy_momentum(rows: np.ndarray) -> np.ndarray:
    energy = np.sqrt(np.sum(rows**2, axis=-1, keepdims=True))
    return np.concatenate([rows[..., :3], energy], axis=-1)


def test_true_masses_are_those_of_the_block(card: ProcessCard, plane: Part) -> None:
    masses, partons = plane.arrays["masses"], plane.arrays["partons"]
    assert len(np.unique(masses, axis=0)) > 5
    for label, mass in (("chi20", 0), ("chi1", 0), ("chi10_a", 1), ("chi10_b", 1)):
        row = partons[:, card.parton_names.index(label), 3]
        np.testing.assert_allclose(row, masses[:, mass], atol=0.01)
    h = partons[:, card.parton_names.index("h"), 3]
    assert np.median(h) == pytest.approx(125.0, abs=0.01)


def test_decay_products_add_up_to_their_parent(card: ProcessCard, plane: Part) -> None:
    p4 = energy_momentum(plane.arrays["partons"])
    for node in card.topology.nodes:
        if node.children:
            lost = np.abs(p4[:, list(node.children)].sum(axis=1) - p4[:, node.index]).max(axis=1)
            lost = lost / p4[:, node.index, 3]
            # the W from a chargino may radiate photons
            allowed = 1e-10 if node.label != "chi1" else 0.5
            assert lost.max() < allowed, node.label
            assert np.median(lost) < 1e-10


def test_identical_siblings_are_ordered_by_pt(card: ProcessCard, plane: Part) -> None:
    photons = [plane.arrays["partons"][:, card.parton_names.index(f"gamma{i}")] for i in (1, 2)]
    pt = [np.hypot(p[:, 0], p[:, 1]) for p in photons]
    assert (pt[0] >= pt[1]).all()


def test_reconstructed_objects_obey_the_selection(card: ProcessCard, plane: Part) -> None:
    p4, present = plane.arrays["p4"], plane.arrays["present"]
    pt = np.hypot(p4[..., 0], p4[..., 1])
    assert present[:, :5].all()
    assert (pt[:, :3] > 20).all()
    assert (pt[:, 3:][present[:, 3:]] > 25).all()
    assert (np.diff(pt[:, 3:], axis=1) <= 0).all(), "jets come by falling pT, empty slots last"
    assert not p4[~present].any()
    flavour = plane.arrays["flavour"]
    assert set(flavour[:, 0]) == {11, 13}
    assert set(flavour[:, 1:3].ravel()) == {22}
    assert not flavour[:, 3:].any()
    assert set(plane.arrays["charge"][:, 0]) == {-1, 1}
    pair = p4[:, 1] + p4[:, 2]
    mass = np.sqrt(pair[:, 3] ** 2 - np.sum(pair[:, :3] ** 2, axis=1))
    assert np.median(mass) == pytest.approx(125.0, abs=1.5)


def test_the_lepton_is_near_its_truth(card: ProcessCard, plane: Part) -> None:
    lepton = plane.arrays["p4"][:, 0]
    truth = plane.arrays["partons"][:, card.parton_names.index("l")]
    ratio = np.hypot(lepton[:, 0], lepton[:, 1]) / np.hypot(truth[:, 0], truth[:, 1])
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)


def test_the_cut_flow_falls_to_the_selected_events(plane: Part) -> None:
    flow = plane.groups[0]["cut_flow"]
    steps = ["lepton candidates", "photon candidates", "lepton", "photon", "jet"]
    assert list(flow) == ["generated", "matched", *steps, "selected"]
    assert sorted(flow.values(), reverse=True) == list(flow.values())
    assert flow["selected"] == len(plane.arrays["weight"])
    assert flow["matched"] == flow["generated"] == 500


def test_a_part_does_not_depend_on_what_was_made_before(plane: Part) -> None:
    again = make_part({"chi20": (450, 620), "chi10": (50, 300)}, 3, earlier=(0,))
    for name, array in plane.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert again.groups == plane.groups
    other = make_part({"chi20": (450, 620), "chi10": (50, 300)}, 4)
    assert not np.array_equal(other.arrays["masses"][:1], plane.arrays["masses"][:1])


def test_masses_other_than_those_asked_for_are_an_error(card: ProcessCard, plane: Part) -> None:
    partons, masses = plane.arrays["partons"], plane.arrays["masses"].copy()
    check_masses(card, partons, masses)
    masses[7, 1] += 1.0
    with pytest.raises(GenerationError, match=r"'chi10_a' a mass of .* where 'chi10' = "):
        check_masses(card, partons, masses)


def test_an_unreadable_decay_is_marked_and_counted(card: ProcessCard) -> None:
    def column(*values: float) -> np.ndarray:
        return np.array(values * 2)

    # p p > chi20 chi1 without any decay, twice
    codes = np.array([90, 2212, 2212, 2, -1, 1000023, 1000024] * 2)
    mothers = np.array([0, 0, 0, 1, 2, 3, 3] * 2), np.array([0, 0, 0, 0, 0, 4, 4] * 2)
    nothing = np.zeros(14, int)
    columns: dict[str, Any] = {
        "id": codes,
        "status": nothing,
        "mother1": mothers[0],
        "mother2": mothers[1],
        "daughter1": nothing,
        "daughter2": nothing,
    }
    columns |= {name: column(*range(7)) for name in ("px", "py", "pz", "e", "m")}
    _, matched = match_partons(card, Record(columns, np.array([0, 7, 14])))
    assert not matched.any()
    with pytest.raises(GenerationError, match="not found in 100 of 1000 collisions"):
        check_matched(card, 900, 1000)
    check_matched(card, 995, 1000)


def overlapping_card(names: dict[str, list[int]]) -> ProcessCard:
    """A card that produces one particle of each name, with the PDG codes given."""
    return load_card(
        {
            "name": "overlapping",
            "title": "names that share codes",
            "beam_energy": 14_000.0,
            "decay": f"p p > {' '.join(names)}",
            "particles": {name: {"pdg": pdg, "symbol": name} for name, pdg in names.items()},
            "pythia": {},
            "objects": [{"kind": "jet", "count": 1, "pt_min": 25.0, "eta_max": 4.0, "minimum": 0}],
        }
    )


@pytest.mark.parametrize(
    ("names", "produced", "expected"),
    [
        ({"a": [1, 2], "b": [1]}, [2, 1], [2, 1]),
        ({"a": [1, 2], "b": [1]}, [1, 2], [2, 1]),
        ({"a": [1, 2], "b": [1]}, [-1, 1], [1, -1]),
        ({"a": [1, 2], "b": [1]}, [2, 2], None),
        ({"a": [1, 2], "b": [2, 3], "c": [3, 1]}, [3, 1, 2], [1, 2, 3]),
        ({"a": [1, 2], "b": [2, 3], "c": [3, 1]}, [3, 3, 1], [1, 3, 3]),
        ({"a": [1, 2], "b": [2, 3], "c": [3, 1]}, [2, 2, 2], None),
        ({"a": [1], "b": [2], "c": [2]}, [2, -2, 1], [1, 2, -2]),
        ({"a": [1], "b": [2], "c": [2]}, [2, 1, 1], None),
    ],
)
def test_names_that_share_codes_get_a_particle_each(
    names: dict[str, list[int]], produced: list[int], expected: list[int] | None
) -> None:
    codes = np.array([90, 2212, 2212, 21, 21, *produced])
    n = len(codes)
    mothers = [np.where(np.arange(n) > 4, mother, 0) for mother in (3, 4)]
    columns: dict[str, Any] = {
        name: np.zeros(n, int) for name in ("status", "daughter1", "daughter2")
    }
    columns |= {"id": codes, "mother1": mothers[0], "mother2": mothers[1]}
    # falling transverse momentum in the order of the list; the mass tells the code
    columns |= {"px": 100.0 - np.arange(n), "m": codes.astype(float)}
    columns |= {name: np.zeros(n) for name in ("py", "pz", "e")}
    partons, matched = match_partons(overlapping_card(names), Record(columns, np.array([0, n])))
    assert matched[0] == (expected is not None)
    if expected is not None:
        assert partons[0, :, 3].tolist() == expected


def test_events_keep_count_and_provenance(reference: Events) -> None:
    assert len(reference) == N_TWO_PARTS
    reference.validate()
    made = reference.provenance
    assert made["seed"] == SEED
    assert made["masses"] == {"chi20": "600.0", "chi10": "50.0:450.0"}
    assert {"massrecon", "python", "pythia8mc", "fastjet", "numpy"} <= made["versions"].keys()
    assert made["card"] == reference.card.fingerprint()
    assert made["n_generated"] >= made["n_selected"] >= N_TWO_PARTS
    assert 0.3 < made["n_selected"] / made["n_generated"] < 0.5
    assert [cell["masses"]["chi10"] for cell in made["cells"]] == [
        [low, low + 50.0] for low in range(50, 450, 50)
    ]
    assert sum(cell["n_generated"] for cell in made["cells"]) == made["n_generated"]
    assert sum(cell["n_selected"] for cell in made["cells"]) == made["n_selected"]
    assert reference.masses is not None
    assert reference.masses[:, 1].min() >= 50
    assert reference.masses[:, 1].max() <= 450


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(reference: Events) -> None:
    small = simulate("wino_udd", 20, MASSES, seed=SEED, workers=2, progress=False)
    assert torch.equal(small.p4, reference.p4[:20])


def test_killed_with_two_workers_and_resumed_gives_the_events_of_one_worker(
    tmp_path: Path, reference: Events
) -> None:
    folder = tmp_path / "events"
    # no __main__ guard, as in a user's script
    script = (
        "import massrecon\n"
        f"massrecon.simulate('wino_udd', {N_TWO_PARTS}, {MASSES}, seed={SEED}, workers=2, "
        f"out={str(folder)!r}, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    manifest, deadline = folder / MANIFEST, time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if manifest.exists() and json.loads(manifest.read_text())["parts"]:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the simulation ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    recorded = [entry["number"] for entry in json.loads(manifest.read_text())["parts"]]
    assert recorded
    with pytest.raises(StoreError, match=r"interrupted: run the same simulation again"):
        load_events(folder)
    resumed = simulate(
        "wino_udd", N_TWO_PARTS, MASSES, seed=SEED, workers=2, out=folder, progress=False
    )
    assert_same(resumed, reference)
    for number in recorded:
        name = f"part-{number:05d}.parquet"
        assert (folder / name).stat().st_mtime_ns == kept[name], "a finished part was made again"


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "events"
    simulate("wino_udd", 30, MASSES, seed=SEED, workers=1, out=folder, progress=False)
    return folder


def test_a_finished_folder_is_not_made_again_and_may_grow(
    small_folder: Path, reference: Events
) -> None:
    start = time.perf_counter()
    again = simulate("wino_udd", 30, MASSES, seed=SEED, out=small_folder, progress=False)
    assert time.perf_counter() - start < 2.0
    assert torch.equal(again.p4, reference.p4[:30])
    grown = simulate("wino_udd", 300, MASSES, seed=SEED, out=small_folder, progress=False)
    assert torch.equal(grown.p4, reference.p4[:300])


def test_a_part_is_made_again_bit_for_bit_from_its_manifest(
    small_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_folder, copy)
    assert regeneration_differences(copy, 0) == []
    again = regenerate(copy, 0)
    stored = PartFile.open(copy / "part-00000.parquet").arrays(load_card("wino_udd"))
    assert again.arrays["p4"].tobytes() == stored["p4"].tobytes()
    rewrite(copy, lambda manifest: manifest["request"].update(seed=SEED + 1))
    assert {"p4", "masses", "counts"} <= set(regeneration_differences(copy, 0))
    rewrite(copy, lambda manifest: manifest["request"]["versions"].update(pythia8mc="8.1"))
    with pytest.raises(GenerationError, match=r"versions pythia8mc: 8.1 there, 8\..* here"):
        regenerate(copy, 0)
    with pytest.raises(StoreError, match="has no part 7: it has 1 parts"):
        regenerate(copy, 7)
    load_events(small_folder).save(copy)
    with pytest.raises(StoreError, match="does not hold a simulation as it was made"):
        regenerate(copy, 0)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and makes its checksum good."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    del manifest["sha256"]
    (folder / MANIFEST).write_text(manifest_text(manifest))


def test_a_damaged_part_is_made_again(small_folder: Path, reference: Events) -> None:
    path = small_folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    mended = simulate("wino_udd", 30, MASSES, seed=SEED, out=small_folder, progress=False)
    assert torch.equal(mended.p4, reference.p4[:30])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 12}, "seed: 11 there, 12 here"),
        ({"masses": {"chi10": 100}}, r"masses chi10: 50.0:450.0 there, 100.0 here"),
        ({"settings": {"multiparton": True}}, r"settings multiparton: False there, True here"),
    ],
)
def test_a_folder_with_another_simulation_is_refused(
    small_folder: Path, changes: dict[str, Any], message: str
) -> None:
    request: dict[str, Any] = {"masses": MASSES, "seed": SEED, **changes}
    with pytest.raises(StoreError, match=message):
        simulate("wino_udd", 30, out=small_folder, **request)


def test_a_folder_in_use_is_refused(small_folder: Path) -> None:
    with locked(small_folder), pytest.raises(StoreError, match="Another process is writing"):
        simulate("wino_udd", 30, MASSES, seed=SEED, out=small_folder)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="is not empty and holds no events"):
        simulate("wino_udd", 30, MASSES, out=tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        simulate("wino_udd", 30, MASSES, out=tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_events": None}, "'n_events' is missing"),
        ({"n_generated": 500}, "'n_events' and 'n_generated' exclude each other"),
        ({"n_events": None, "n_generated": 0.5}, "'n_generated' should be a positive integer"),
        ({"masses": "lines"}, r"Unknown preset of masses 'lines' \(did you mean 'line'\?\)"),
        ({"settings": {"truth": 1}}, "'truth' should be True or False"),
        ({"settings": {"lhe": 3}}, "'lhe' should be the path of a Les Houches file"),
        ({"settings": {"lhe": "nowhere.lhe"}}, "There is no file '.*nowhere.lhe', from which"),
        ({"n_events": 0}, "'n_events' should be a positive integer, got 0"),
        ({"n_events": 10.5}, "'n_events' should be a positive integer"),
        ({"workers": 0}, "'workers' should be a positive integer"),
        ({"seed": -1}, "'seed' should be an integer from 0"),
        ({"seed": 10**9}, "'seed' should be an integer from 0"),
        ({"masses": {"chi20": 600, "chi10": 500}}, "is closed at chi20 = 600, chi10 = 500"),
        ({"settings": {"mpi": True}}, "Unknown simulation setting 'mpi'"),
        ({"settings": {"multiparton": "yes"}}, "'multiparton' should be True or False"),
        ({"settings": {"ptmiss_noise": -1}}, "'ptmiss_noise' should be >= 0"),
        ({"settings": {"pythia": "A = b"}}, "'pythia' should be a list"),
        ({"settings": {"pythia": 5}}, "'pythia' should be a list of .*, got 5"),
        ({"card": "wino"}, "Unknown process 'wino'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_made(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    request: dict[str, Any] = {"card": "wino_udd", "n_events": 10, **arguments}
    with pytest.raises(InputError, match=message):
        simulate(**request, out=tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_a_setting_that_pythia_does_not_know_is_named() -> None:
    with pytest.raises(
        GenerationError, match=r"does not accept the setting 'PartonLevel:MPY = on'"
    ):
        simulate("wino_udd", 10, settings={"pythia": ["PartonLevel:MPY = on"]}, progress=False)


def test_an_empty_selection_names_the_cut(card: ProcessCard) -> None:
    content = card.to_dict()
    content["objects"][1]["pt_min"] = 6000.0
    with pytest.raises(
        GenerationError, match=r"cut on 'photon candidates' removed .*\(3000 gen.*'obj"
    ):
        simulate(content, 10, seed=SEED, workers=1, progress=False)


def test_a_worker_ends_with_its_parent() -> None:
    command = [sys.executable, "-m", "massrecon.events.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    worker.communicate(b"", timeout=60)
    assert worker.returncode == 0


def test_a_full_disk_is_reported_and_leaves_no_half_part(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    script = (
        "import resource, massrecon\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))\n"
        f"massrecon.simulate('wino_udd', 150, {MASSES}, seed={SEED}, workers=1, "
        f"out={str(folder)!r}, progress=False)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert "StoreError" in result.stderr
    assert "part-00000.parquet' cannot be written" in result.stderr
    assert not list(folder.glob("*.parquet*"))
    assert not list(folder.glob(".*.tmp"))


Z_CARD = """
name: drell_yan
title: "pp → Z → ℓℓ"
beam_energy: 13000.0
decay: "p p > Z, Z > l1 l2"
particles:
  Z: {pdg: 23, symbol: Z}
  l1: {pdg: [11, 13], symbol: ℓ}
  l2: {pdg: [11, 13], symbol: ℓ}
masses:
  Z: {sets: [23], default: 91.2, range: [60.0, 500.0], tolerance: 30.0}
pythia:
  cross_section_mass: Z
  settings:
    - "WeakSingleBoson:ffbar2gmZ = on"
    - "WeakZ0:gmZmode = 2"
    - "PhaseSpace:mHatMin = 75."
    - "PhaseSpace:mHatMax = 110."
    - "23:onMode = off"
    - "23:onIfAny = 11 13"
objects:
  - {kind: lepton, count: 2, pt_min: 15.0, eta_max: 2.5, minimum: 2, pair_mass: 91.2}
targets: {Z: Z}
"""


def test_a_card_of_ones_own_needs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "drell_yan.yaml"
    path.write_text(Z_CARD, encoding="utf-8")
    events = simulate(path, 60, seed=3, workers=1, progress=False)
    assert events.card == load_card(path)
    assert events.card.slots == ("lepton1", "lepton2")
    pair = events.p4.sum(1)
    mass = (pair[:, 3] ** 2 - (pair[:, :3] ** 2).sum(1)).sqrt()
    assert mass.median().item() == pytest.approx(91.0, abs=1.5)
    assert events.attributes["charge"].sum(1).abs().max() == 0
    assert events.partons is not None
    assert events.partons.shape == (60, 3, 4)
