"""Exports: whole or not at all, and readable by others."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import uproot
import vector
from typer.testing import CliRunner

from massrecon.cli import app
from massrecon.errors import InputError, StoreError
from massrecon.events.container import Events
from massrecon.events.exporters import export_events
from massrecon.events.spanet_export import match_legs
from massrecon.events.store import load_events
from massrecon.kinematics import fourvectors as fv
from tests.conftest import ToyEvents

N = 60
FORMATS = [".parquet", ".root", ".h5"]


@pytest.fixture
def events(toy_events: ToyEvents) -> Events:
    made = toy_events(N, seed=3)
    arrays = made.to_arrays() | {"weight_muR=0.5": np.linspace(0.5, 1.5, N)}
    return Events.from_arrays(made.card, arrays, {"toy": True})


def test_awkward_arrays_have_lists_of_objects(events: Events) -> None:
    array = events.to_awkward()
    vector.register_awkward()
    assert ak.num(array.jet).tolist() == events.present[:, 3:].sum(1).tolist()
    leading = ak.to_numpy(ak.firsts(array.jet.pt))
    np.testing.assert_allclose(leading, fv.pt(events.p4[:, 3]).numpy())
    pair = array.photon[:, 0] + array.photon[:, 1]
    both = fv.mass(events.p4[:, 1] + events.p4[:, 2]).numpy()
    np.testing.assert_allclose(ak.to_numpy(pair.mass), both)
    np.testing.assert_allclose(ak.to_numpy(array.partons.chi20.mass), 600.0)
    assert array.lepton.charge[0].tolist() == [1]
    assert array.variations["muR=0.5"][-1] == 1.5
    np.testing.assert_allclose(np.hypot(array.ptmiss.px, array.ptmiss.py), array.ptmiss.pt)


def test_arrays_without_truth_and_variations_lack_them(events: Events) -> None:
    arrays = {k: v for k, v in events.to_arrays().items() if k not in ("partons", "masses")}
    del arrays["weight_muR=0.5"]
    fields = Events.from_arrays(events.card, arrays).to_awkward().fields
    assert fields == ["lepton", "photon", "jet", "ptmiss", "weight"]


def test_parquet_is_one_file_that_load_events_reads(events: Events, tmp_path: Path) -> None:
    export_events(events, tmp_path / "events.parquet")
    again = load_events(tmp_path / "events.parquet")
    assert torch.equal(again.p4, events.p4)
    assert again.card == events.card
    frame = pd.read_parquet(tmp_path / "events.parquet")
    assert frame.jet2_E[3] == events.p4[3, 4, 3]


def test_root_files_have_a_flat_tree(events: Events, tmp_path: Path) -> None:
    export_events(events, tmp_path / "events.root")
    with uproot.open(tmp_path / "events.root") as file:
        tree = file["events"]
        assert tree.num_entries == N
        np.testing.assert_array_equal(tree["jet2_E"].array(library="np"), events.p4[:, 4, 3])
        np.testing.assert_array_equal(
            tree["lepton_present"].array(library="np"), events.present[:, 0]
        )
        np.testing.assert_array_equal(
            tree["weight_muR_0_5"].array(library="np"), events.variations["muR=0.5"]
        )
        assert json.loads(str(file["card"]))["name"] == "wino_udd"


def test_names_that_root_cannot_tell_apart_are_refused(events: Events, tmp_path: Path) -> None:
    arrays = events.to_arrays() | {"weight_muR_0_5": np.ones(N)}
    twice = Events.from_arrays(events.card, arrays)
    with pytest.raises(InputError, match="Two alternative weights have the same name in ROOT"):
        export_events(twice, tmp_path / "events.root")
    assert list(tmp_path.iterdir()) == []


def test_spanet_files_have_inputs_targets_and_checksums(events: Events, tmp_path: Path) -> None:
    export_events(events, tmp_path / "events.h5")
    with h5py.File(tmp_path / "events.h5") as file:
        assert file["INPUTS/Jets/pt"].shape == (N, 10)
        assert file["INPUTS/Jets/MASK"].dtype == bool
        np.testing.assert_array_equal(file["INPUTS/Jets/MASK"][:], events.present[:, 3:])
        lepton = file["TARGETS/W/l"][:]
        # the lepton is slot 0, photons 1 and 2, jets follow
        assert set(lepton.tolist()) == {0}
        assert set(file["TARGETS/h/gamma1"][:].tolist()) <= {1, 2}
        quarks = np.stack([file[f"TARGETS/chi10_a/{q}_a"][:] for q in "uds"])
        assert set(np.unique(quarks)) <= {-1, *range(3, 13)}
        names: list[h5py.Dataset] = []
        file.visititems(lambda _, item: names.append(item) if hasattr(item, "dtype") else None)
        assert len(names) > 50
        assert all(data.fletcher32 for data in names)


def test_legs_are_matched_one_to_one_and_closest_first() -> None:
    def at(phi: float, pt: float = 50.0) -> list[float]:
        return [pt * np.cos(phi), pt * np.sin(phi), 0.0, pt]

    arrays = {
        "p4": np.array([[at(0.0), at(1.0), at(2.0), at(3.0)]]),
        "present": np.array([[True, True, True, False]]),
    }
    legs = np.array([[at(0.3), at(0.1), at(1.5), at(3.0)]])
    fits = np.ones((4, 4), bool)
    assert match_legs(legs, arrays, fits).tolist() == [[-1, 0, -1, -1]]
    fits[1, 0] = False
    assert match_legs(legs, arrays, fits).tolist() == [[0, -1, -1, -1]]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_events_make_a_valid_file(events: Events, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    export_events(events[:0], path)
    assert path.stat().st_size > 0
    if suffix == ".parquet":
        assert len(load_events(path)) == 0
    elif suffix == ".root":
        assert uproot.open(path)["events"].num_entries == 0
    else:
        assert h5py.File(path)["INPUTS/Jets/pt"].shape == (0, 10)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_the_older_file(events: Events, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events{suffix}"
    path.write_text("older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            export_events(events, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_wrong_targets_are_refused(events: Events, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'events\.csv' should end in \.parquet"):
        export_events(events, tmp_path / "events.csv")
    with pytest.raises(InputError, match="Unknown format 'rooot' .did you mean 'root'"):
        export_events(events, tmp_path / "events.csv", format="rooot")
    (tmp_path / "folder.root").mkdir()
    with pytest.raises(StoreError, match="is a folder: choose a file"):
        export_events(events, tmp_path / "folder.root")


def test_the_command_exports(events: Events, tmp_path: Path) -> None:
    events.save(tmp_path / "store")
    target = tmp_path / "events.root"
    result = CliRunner().invoke(
        app, ["events", "export", str(tmp_path / "store"), str(target)], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert f"{N} events are in" in result.output
    assert uproot.open(target)["events"].num_entries == N
