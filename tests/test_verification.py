"""Damage is found and named file by file, and a lost manifest is made anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from massrecon.errors import StoreError
from massrecon.events import writer
from massrecon.events.container import Events
from massrecon.events.manifest import MANIFEST, manifest_text
from massrecon.events.store import load_events, save_events, write_part
from massrecon.events.verification import repair_store, verify_store
from tests.conftest import ToyEvents
from tests.test_store import assert_same, edit_manifest


@pytest.fixture
def events(toy_events: ToyEvents) -> Events:
    return toy_events(250, seed=4)


@pytest.fixture
def folder(events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Saved events in three parts."""
    monkeypatch.setattr(writer, "EVENTS_PER_FILE", 100)
    save_events(events, tmp_path / "events")
    return tmp_path / "events"


@pytest.fixture
def simulated(events: Events, folder: Path) -> Path:
    """The same as a simulation leaves it, with what each part says of itself."""
    request = {"seed": 4, "versions": {"numpy": "2"}}
    entries, arrays = [], events.to_arrays()
    for number, start in enumerate((0, 100, 200)):
        piece = {name: array[start : start + 100] for name, array in arrays.items()}
        n_events = len(piece["weight"])
        flow = {"generated": 200, "selected": n_events}
        groups = [{"cut_flow": flow, "cells": []}]
        entry = {"number": number, "n_events": n_events, "complete": True, "groups": groups}
        path = folder / f"part-{number:05d}.parquet"
        digest = write_part(path, piece, events.card, entry | {"request": request})
        entries.append(entry | {"sha256": digest})
    provenance = request | {"n_generated": 600, "finished": True}
    edit_manifest(folder, parts=entries, request=request, provenance=provenance)
    return folder


def flip(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 4
    path.write_bytes(content)


def test_a_good_folder_is_found_good(folder: Path) -> None:
    report = verify_store(folder)
    assert report.ok
    assert not report.notes
    assert [file.n_events for file in report.files] == [None, 100, 100, 50]
    assert str(report).endswith("4 files, 250 events, all is well")


@pytest.mark.parametrize("position", [0.02, 0.3, 0.6, 0.9, 0.9999])
def test_a_flipped_bit_in_any_place_is_found(folder: Path, position: float) -> None:
    flip(folder / "part-00001.parquet", position)
    report = verify_store(folder)
    assert not report.ok
    assert [bool(file.problems) for file in report.files] == [False, False, True, False]
    assert "DAMAGED  part-00001.parquet: is damaged (its checksum differs)" in str(report)


def test_every_kind_of_damage_is_named(events: Events, folder: Path) -> None:
    arrays = events.to_arrays()
    arrays["ptmiss"] = arrays["ptmiss"].copy()
    arrays["ptmiss"][7] = np.nan
    digest = write_part(folder / "part-00000.parquet", arrays, events.card)
    parts = json.loads((folder / MANIFEST).read_text())["parts"]
    parts[0]["sha256"] = digest
    edit_manifest(folder, parts=parts)
    (folder / "part-00002.parquet").unlink()
    (folder / "part-00007.parquet").write_bytes(b"left over")
    text = str(verify_store(folder))
    assert "part-00000.parquet  250 events: In 1 of 250 events 'ptmiss' is not finite" in text
    assert "part-00000.parquet  250 events: holds 250 events, the manifest says 100" in text
    assert "DAMAGED  part-00002.parquet: is missing" in text
    assert "note     part-00007.parquet is not in the manifest" in text


@pytest.mark.parametrize("position", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_flipped_bit_in_the_manifest_is_found(folder: Path, position: float) -> None:
    flip(folder / MANIFEST, position)
    with pytest.raises(StoreError, match=r"manifest\.json' (is|has)"):
        load_events(folder)
    assert not verify_store(folder).ok


def test_a_manifest_of_the_first_schema_is_still_read(events: Events, folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["sha256"]
    (folder / MANIFEST).write_text(json.dumps(content | {"schema": 1}))
    assert_same(load_events(folder), events)


def test_a_folder_without_events_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no events"):
        verify_store(tmp_path)


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_or_damaged_manifest_is_made_anew(events: Events, folder: Path, lost: bool) -> None:
    before = (folder / MANIFEST).read_bytes()
    if lost:
        (folder / MANIFEST).unlink()
        with pytest.raises(StoreError, match=r"There are parts of events, though: .*repair"):
            load_events(folder)
    else:
        (folder / MANIFEST).write_bytes(before[:-400])
        with pytest.raises(StoreError, match=r"is damaged .*massrecon events repair"):
            load_events(folder)
    with pytest.raises(StoreError, match="holds no events|is damaged"):
        save_events(events, folder, append=True)
    report = repair_store(folder)
    assert report.ok
    assert "the manifest was made anew from 3 parts" in report.notes
    again = load_events(folder)
    assert_same(again, events)
    assert again.provenance["seed"] == events.provenance["seed"]
    assert again.provenance["repaired"] is True


def test_nothing_is_done_to_a_good_folder(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    assert repair_store(folder).ok
    assert (folder / MANIFEST).read_bytes() == before


def test_a_damaged_part_is_set_aside_and_the_rest_kept(events: Events, folder: Path) -> None:
    flip(folder / "part-00001.parquet")
    report = repair_store(folder)
    assert report.ok
    assert "part-00001.parquet is damaged and now called damaged-part-00001.parquet" in report.notes
    assert (folder / "damaged-part-00001.parquet").exists()
    rest = load_events(folder)
    assert torch.equal(rest.p4, torch.cat([events.p4[:100], events.p4[200:]]))


def test_a_repaired_simulation_can_go_on(simulated: Path) -> None:
    old = json.loads((simulated / MANIFEST).read_text())
    (simulated / MANIFEST).unlink()
    repair_store(simulated)
    new = json.loads((simulated / MANIFEST).read_text())
    assert new["request"] == old["request"]
    assert new["parts"] == old["parts"]
    assert new["provenance"]["n_generated"] == 600
    flip(simulated / "part-00001.parquet")
    report = repair_store(simulated)
    assert "the simulation is not finished (150 of 250 events): run it again" in str(report)
    with pytest.warns(UserWarning, match="150 of 250 events, in 2 finished parts"):
        assert len(load_events(simulated, partial=True)) == 150


def test_parts_of_different_simulations_are_not_mixed(events: Events, simulated: Path) -> None:
    about = {"request": {"seed": 5}}
    write_part(simulated / "part-00003.parquet", events[:9].to_arrays(), events.card, about)
    (simulated / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"part-00003.* is of another process or simulation"):
        repair_store(simulated)


def test_a_folder_without_a_whole_part_cannot_be_repaired(folder: Path) -> None:
    for path in folder.glob("part-*"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="holds no part that is whole"):
        repair_store(folder)


def test_what_is_left_of_a_damaged_folder_can_be_used(events: Events, folder: Path) -> None:
    flip(folder / "part-00000.parquet")
    (folder / "part-00001.parquet").unlink()
    with pytest.warns(UserWarning, match="holds 50 of 250 events, in 1 finished parts"):
        rest = load_events(folder, partial=True)
    assert torch.equal(rest.p4, events.p4[200:])
    assert rest.provenance["parts"] == [2]


def test_pages_are_tested_where_there_is_no_manifest(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.parquet"
    path.write_bytes((folder / "part-00000.parquet").read_bytes())
    flip(path)
    pq.read_table(path)  # without checksums nothing is noticed
    with pytest.raises(StoreError, match=r"alone\.parquet' cannot be read \(.*CRC"):
        load_events(path)


def test_hand_made_changes_of_a_manifest_are_noticed(folder: Path) -> None:
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"n_events": 250', '"n_events": 200'))
    with pytest.raises(StoreError, match="its checksum differs"):
        load_events(folder)
    path.write_text(manifest_text(content | {"n_events": 200}))
    assert len(load_events(folder)) == 200
