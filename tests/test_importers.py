"""Delphes files: real ones are read as they are, bad ones are named or skipped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import torch
import uproot

from massrecon.errors import ImportFileError, InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.importers import import_events, importing, isolated
from massrecon.events.importers.chunk import Chunk, ReadOptions, without_overlaps
from massrecon.events.objects import Objects
from massrecon.events.source import SourceFile
from massrecon.events.store import load_events
from massrecon.kinematics import fourvectors as fv
from massrecon.visual.collisions import event_overview
from tests.samples import DirectReader, unpack

N = 40
N_TTBAR = 400


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in this process."""
    monkeypatch.setattr(importing, "IsolatedReader", DirectReader)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Forty events of wino_udd at (525, 125), of the real Delphes."""
    return unpack("delphes_wino_udd.root", tmp_path)


@pytest.fixture
def ttbar(tmp_path: Path) -> Path:
    """Four hundred dilepton events in Delphes' own layout; the branch Particle is blanked."""
    return unpack("delphes_ttbar.root", tmp_path)


@pytest.fixture
def dilepton() -> ProcessCard:
    return load_card("ttbar_dilepton")


def read(path: Path, card: str | ProcessCard = "wino_udd", **options: Any) -> Any:
    return import_events(path, card, progress=False, **options)


def branches(path: Path) -> dict[str, Any]:
    tree = uproot.open(path)["Delphes"]
    return {
        name: tree[name].array() for name in list(tree.keys()) if "." in name and name[0] != "n"
    }


def rewrite(path: Path, columns: dict[str, Any], tree: str = "Delphes") -> Path:
    """Writes branches with uproot."""
    with uproot.recreate(path) as file:
        made = file.mktree(tree, {name: array.type.content for name, array in columns.items()})
        made.extend(columns)
    return path


def spoil(path: Path, branch: str, entry: int, value: float) -> Path:
    """Sets the first value of one entry of a branch."""
    columns = branches(path)
    lists = columns[branch].to_list()
    assert lists[entry], f"entry {entry} has no {branch}"
    lists[entry][0] = value
    kind = ak.to_numpy(ak.flatten(columns[branch])).dtype
    columns[branch] = ak.values_astype(ak.Array(lists), kind)
    return rewrite(path, columns)


def first_with(path: Path, branch: str) -> int:
    """Finds an entry, not the first, that has objects in a branch."""
    return next(i for i, values in enumerate(branches(path)[branch]) if i > 3 and len(values) > 0)


@pytest.mark.usefixtures("direct")
def test_events_of_delphes_have_objects_truth_and_masses(path: Path) -> None:
    events = read(path)
    flow = events.provenance["cut_flow"]
    assert (flow["read"], flow["sound"], flow["matched"]) == (N, N, N)
    assert 10 <= len(events) == flow["selected"] <= 25
    assert events.has_targets
    assert events.masses is not None
    assert torch.equal(
        events.masses, torch.tensor([[525.0, 125.0]]).double().expand(len(events), 2)
    )
    assert set(events.attributes["flavour"][:, 0].tolist()) == {11, 13}
    assert set(events.attributes["charge"][:, 0].tolist()) == {-1, 1}
    assert (events.attributes["flavour"][:, 1:3] == 22).all()


@pytest.mark.usefixtures("direct")
def test_truth_and_reconstruction_belong_together(path: Path) -> None:
    events = read(path)
    assert events.partons is not None
    names = events.card.parton_names
    lepton = events.partons[:, names.index("l")]
    apart = fv.delta_r(events.p4[:, 0], fv.from_pxpypzm(lepton))
    assert (apart < 0.1).double().mean() > 0.9
    quarks = [names.index(f"{q}_a") for q in "uds"]
    together = fv.mass(fv.from_pxpypzm(events.partons[:, quarks]).sum(1))
    # quarks come without their radiation and with Pythia's masses
    assert ((together - 125).abs() < 2).double().mean() > 0.9


@pytest.mark.usefixtures("direct")
def test_momenta_are_those_of_the_file(path: Path) -> None:
    columns = branches(path)
    reader = DirectReader("delphes", path, load_card("wino_udd"), ReadOptions())
    (chunk,) = reader.chunks()
    photons = chunk.objects["photon"]
    np.testing.assert_allclose(
        np.hypot(photons.p4[:, 0], photons.p4[:, 1]),
        np.concatenate([np.asarray(v) for v in columns["Photon.PT"]]),
        rtol=1e-6,
    )
    met = np.array([v[0] for v in columns["MissingET.MET"]])
    np.testing.assert_allclose(np.hypot(*chunk.ptmiss.T), met, rtol=1e-6)


@pytest.mark.usefixtures("direct")
def test_both_jet_collections_and_any_other_can_be_had(path: Path) -> None:
    flow, calorimeter = read(path), read(path, jets="calorimeter")
    by_name = read(path, jets="Jet")
    assert calorimeter.card.detector.jets == "calorimeter"
    assert torch.equal(calorimeter.p4, by_name.p4)
    assert not torch.equal(flow.p4[:, 3:], calorimeter.p4[: len(flow), 3:])
    with pytest.raises(ImportFileError, match=r"lacks the branch 'CaloJet.PT'.*there are: Jet, "):
        read(path, jets="CaloJet")


def test_jets_that_are_leptons_or_photons_are_removed() -> None:
    card = load_card("wino_udd")

    def at(eta: float, pt: float) -> list[float]:
        return [pt, 0.0, pt * np.sinh(eta), pt * np.cosh(eta)]

    jets = Objects(np.array([0, 0, 1]), np.array([at(0.0, 80), at(1.0, 60), at(0.0, 50)]))
    hard = Objects(np.array([0]), np.array([at(0.39, 70)]))
    soft = Objects(np.array([0]), np.array([at(1.0, 15)]))
    kept = without_overlaps({"jet": jets, "photon": hard, "lepton": soft}, card)["jet"]
    assert kept.p4[:, 0].tolist() == [60, 50]
    far = Objects(np.array([0]), np.array([at(-0.41, 70)]))
    assert len(without_overlaps({"jet": jets, "photon": far}, card)["jet"].event) == 3


@pytest.mark.usefixtures("direct")
def test_real_layouts_are_read_with_tags(ttbar: Path, dilepton: ProcessCard) -> None:
    events = read(ttbar, dilepton, truth=False)
    assert events.partons is None
    assert events.provenance["cut_flow"]["read"] == N_TTBAR
    assert 5 < len(events) < 100
    assert (events.attributes["charge"][:, :2].sum(1) == 0).all()
    assert set(events.attributes["btag"].unique().tolist()) == {0, 2}
    assert ((events.attributes["btag"] == 2).sum(1) >= 2).all()
    loose = read(ttbar, dilepton, truth=False, btag_points=("tight",))
    assert set(loose.attributes["btag"].unique().tolist()) == {0, 3}


@pytest.mark.usefixtures("direct")
def test_a_blanked_branch_is_an_error_with_its_entries(ttbar: Path) -> None:
    with pytest.raises(ImportFileError, match=r"entries 0 to 399: cannot be read"):
        read(ttbar)


@pytest.mark.usefixtures("direct")
def test_more_bits_than_working_points_are_refused(ttbar: Path, dilepton: ProcessCard) -> None:
    wanted = [f"{k}.{c}" for k in ("Electron", "Muon") for c in ("PT", "Eta", "Phi", "Charge")]
    wanted += [f"Jet.{c}" for c in ("PT", "Eta", "Phi", "Mass", "BTag", "TauTag")]
    tree = uproot.open(ttbar)["Delphes"]
    columns = {name: tree[name].array() for name in (*wanted, "MissingET.MET", "MissingET.Phi")}
    columns["Jet.BTag"] = columns["Jet.BTag"] * 5
    path = rewrite(ttbar.with_name("bits.root"), columns)
    with pytest.raises(ImportFileError, match="more bits than 'btag_points' names"):
        read(path, dilepton, jets="calorimeter")
    points = ("loose", "medium", "tight")
    tight = read(path, dilepton, jets="calorimeter", btag_points=points)
    assert set(tight.attributes["btag"].unique().tolist()) == {0, 3}
    with pytest.raises(InputError, match="'btag_points' should name"):
        read(path, dilepton, btag_points=("best",))


@pytest.mark.usefixtures("direct")
def test_events_without_truth_go_all_the_way(path: Path, tmp_path: Path) -> None:
    events = read(path, out=tmp_path / "out", truth=False)
    again = load_events(tmp_path / "out")
    assert again.partons is None
    assert again.masses is None
    assert torch.equal(again.p4, events.p4)
    assert len(event_overview(again).data) > 5
    known = read(path, truth=False, masses={"chi20": 525.0, "chi10": 125.0})
    assert known.masses is not None
    assert not known.has_targets


@pytest.mark.usefixtures("direct")
def test_truth_of_another_process_is_left_out_unless_asked_for(path: Path) -> None:
    other = read(path, "background_wh", n_max=20)
    assert other.partons is None
    with pytest.raises(ImportFileError, match=r"has no true particles|20 of 20|No event|lack"):
        read(rewrite(path, {k: v for k, v in branches(path).items() if "Particle." not in k}),
             truth=True)  # fmt: skip


@pytest.mark.usefixtures("direct")
def test_the_provenance_says_where_events_come_from(path: Path) -> None:
    about = read(path, n_max=30).provenance
    source = about["source"]
    assert source["files"][0]["sha256"] == SourceFile.open(path).sha256
    assert source["files"][0]["file"] == path.name
    assert source["entries"] == [0, 30]
    (cell,) = about["cells"]
    assert cell["masses"] == {"chi20": 525.0, "chi10": 125.0}
    assert (cell["n_generated"], cell["n_selected"]) == (30, about["n_selected"])
    assert cell["acceptance"] == about["n_selected"] / 30
    assert {"uproot", "massrecon"} <= about["versions"].keys()


@pytest.mark.usefixtures("direct")
def test_reading_in_small_chunks_gives_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(path)
    monkeypatch.setattr("massrecon.events.importers.delphes.LARGEST_CHUNK", 7)
    pieces = read(path)
    assert torch.equal(whole.p4, pieces.p4)
    assert whole.partons is not None
    assert pieces.partons is not None
    assert torch.equal(whole.partons, pieces.partons)


BAD = [
    ("ParticleFlowJet04.PT", float("nan"), "is not finite"),
    ("ParticleFlowJet04.PT", -30.0, "PT is negative"),
    ("ParticleFlowJet04.PT", 90_000.0, "exceeds the collision energy: are the units GeV"),
    ("ParticleFlowJet04.Mass", float("inf"), "Mass is not finite"),
    ("ParticleFlowJet04.Phi", 4.0, "Phi is not an angle"),
    ("Photon.E", -50.0, "Photon.E does not fit"),
    ("Muon.Charge", 0, "Charge is not"),
    ("MissingET.MET", -1.0, "MET is negative"),
    ("MissingET.MET", float("nan"), "ptmiss is not finite"),
    ("Event.Weight", float("inf"), "the weight is not finite"),
]


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize(("branch", "value", "message"), BAD)
def test_bad_entries_are_named_or_skipped(
    path: Path, branch: str, value: float, message: str, tmp_path: Path
) -> None:
    entry = first_with(path, branch)
    clean = read(path)
    spoil(path, branch, entry, value)
    with pytest.raises(ImportFileError, match=rf"entry {entry}: .*{message}.*entries 0 to 39"):
        read(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="1 of 40 entries .* were left out"):
        events = read(path, skip_bad=True)
    assert sum(events.provenance["skipped"].values()) == 1
    assert events.provenance["cut_flow"]["sound"] == N - 1
    assert len(clean) - 1 <= len(events) <= len(clean)
    kept = {tuple(p4) for p4 in clean.p4[:, 0].tolist()}
    assert {tuple(p4) for p4 in events.p4[:, 0].tolist()} <= kept


@pytest.mark.usefixtures("direct")
def test_a_file_in_other_units_is_refused_even_if_bad_entries_are_skipped(path: Path) -> None:
    columns = branches(path)
    for name in ("ParticleFlowJet04.PT", "Photon.PT", "Photon.E", "MissingET.MET"):
        columns[name] = columns[name] * 1000
    rewrite(path, columns)
    with pytest.raises(ImportFileError, match="are the units GeV"):
        read(path)
    with (
        pytest.warns(UserWarning, match="were left out"),
        pytest.raises(ImportFileError, match=r"of 40 entries are bad, most often .* units GeV"),
    ):
        read(path, skip_bad=True)


@pytest.mark.usefixtures("direct")
def test_repeated_entries_are_found_across_chunks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {k: ak.concatenate([v, v[5:7]]) for k, v in branches(path).items()}
    rewrite(path, columns)
    monkeypatch.setattr("massrecon.events.importers.delphes.LARGEST_CHUNK", 13)
    with pytest.raises(ImportFileError, match="entry 40: it repeats an earlier entry"):
        read(path)
    with pytest.warns(UserWarning, match="2 of 42 entries"):
        assert read(path, skip_bad=True).provenance["cut_flow"]["sound"] == N


@pytest.mark.usefixtures("direct")
def test_wrong_trees_and_missing_branches_are_named(path: Path, tmp_path: Path) -> None:
    columns = branches(path)
    rewrite(tmp_path / "other.root", columns, tree="analysis")
    with pytest.raises(ImportFileError, match=r"other\.root' has no tree 'Delphes' but 'analysis'"):
        read(tmp_path / "other.root")
    del columns["Muon.Charge"]
    rewrite(path, columns)
    with pytest.raises(ImportFileError, match=r"lacks the branch 'Muon.Charge'"):
        read(path)


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.97])
def test_truncated_files_are_refused(path: Path, keep: float, tmp_path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ImportFileError, match=r"delphes_wino_udd\.root'.*truncated"):
        read(path, out=tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("direct")
def test_jagged_surprises_are_refused(path: Path) -> None:
    columns = branches(path)
    columns["Photon.Eta"] = columns["Photon.Eta"][:, :1]
    rewrite(path, columns)
    with pytest.raises(ImportFileError, match="has another length than 'Photon.PT'"):
        read(path)


@pytest.mark.usefixtures("direct")
def test_what_is_none_of_the_formats_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Dear diary")
    (tmp_path / "empty.root").touch()
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("notes.txt", "is none of the known formats"),
        ("empty.root", "is empty"),
        ("folder", "is a folder without Parquet files"),
        ("nothing.root", "no such file"),
    ):
        with pytest.raises(ImportFileError, match=message):
            read(tmp_path / name)
    with pytest.raises(InputError, match="Unknown format 'rott'"):
        read(path, format="rott")
    with pytest.raises(ImportFileError, match="looks like delphes, not hepmc"):
        read(path, format="hepmc")
    shutil.copy(path, tmp_path / "misnamed.h5")
    assert len(read(tmp_path / "misnamed.h5")) > 0


def test_a_file_that_changes_under_the_reader_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Meddler(DirectReader):
        def chunks(self) -> Any:
            for chunk in super().chunks():
                yield chunk
                with path.open("ab") as file:
                    file.write(b"more")

    monkeypatch.setattr(importing, "IsolatedReader", Meddler)
    with pytest.raises(ImportFileError, match="changed while it was read"):
        read(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_older_folder_stays_when_an_import_fails(path: Path, tmp_path: Path) -> None:
    before = read(path, out=tmp_path / "out")
    bad = spoil(shutil.copy(path, tmp_path / "bad.root"), "Event.Weight", 5, float("nan"))
    with pytest.raises(ImportFileError):
        read(bad, out=tmp_path / "out")
    assert torch.equal(load_events(tmp_path / "out").p4, before.p4)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "bad.root", "out"}


def reader_that(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the process that reads run other code."""
    script = tmp_path / "reader.py"
    script.write_text(code)

    def start(log: Any) -> Any:
        import subprocess
        import sys

        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, str(script)], stdin=pipe, stdout=pipe, stderr=log)

    monkeypatch.setattr(isolated, "_start", start)


def test_a_reader_that_crashes_is_an_error(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = (
        "import os, sys; sys.stdin.buffer.read(); os.write(2, b'boom'); os.kill(os.getpid(), 11)"
    )
    reader_that(crash, tmp_path, monkeypatch)
    with pytest.raises(ImportFileError, match=r"crashed \(exit code -11\) after entry 0.*boom"):
        read(path)


def test_a_reader_that_is_stuck_is_an_error(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "PATIENCE", 0.5)
    reader_that("import sys, time; sys.stdin.buffer.read(); time.sleep(60)", tmp_path, monkeypatch)
    with pytest.raises(ImportFileError, match="got stuck: nothing was read for 0.[56] s"):
        read(path)


def test_checks_know_every_kind_of_momentum() -> None:
    p4 = np.array([[3.0, 4, 0, 5], [3, 4, 0, 4.9], [0, 0, 0, -1], [np.nan, 0, 0, 1], [0, 0, 9, 9]])
    objects = {"jet": Objects(np.arange(5), p4)}
    chunk = Chunk(0, 5, {"weight": np.ones(5)}, objects, np.zeros((5, 2)))
    found = {what: np.flatnonzero(mask).tolist() for what, mask in chunk.all_defects(8.0).items()}
    assert found == {
        "a jet is not finite": [3],
        "the energy of a jet is negative": [2],
        "a jet exceeds the collision energy: are the units GeV?": [4],
        "a jet has |p| > E": [1, 2],
    }
