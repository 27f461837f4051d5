"""The event store: nothing is lost on the way to disk and back, and damage is noticed."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import torch

from massrecon.errors import InputError, StoreError
from massrecon.events import writer
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.manifest import manifest_text
from massrecon.events.store import MANIFEST, load_events, locked, save_events, write_part
from tests.conftest import ToyEvents


@pytest.fixture
def events(toy_events: ToyEvents) -> Events:
    return toy_events(250, seed=4)


@pytest.fixture
def folder(events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Saved events in three parts."""
    monkeypatch.setattr(writer, "EVENTS_PER_FILE", 100)
    save_events(events, tmp_path / "events")
    return tmp_path / "events"


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(manifest_text(json.loads(path.read_text()) | changes))


def assert_same(one: Events, two: Events) -> None:
    assert one.card == two.card
    for name in ("p4", "present", "ptmiss", "weight", "partons", "masses"):
        first, second = getattr(one, name), getattr(two, name)
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name
    assert one.attributes.keys() == two.attributes.keys()
    for name, tensor in one.attributes.items():
        assert torch.equal(tensor, two.attributes[name])
        assert tensor.dtype == two.attributes[name].dtype


def test_events_come_back_as_they_were(events: Events, folder: Path) -> None:
    assert len(list(folder.glob("part-*.parquet"))) == 3
    again = load_events(folder)
    assert_same(again, events)
    assert again.provenance == dict(events.provenance)


def test_a_single_part_is_readable_by_itself(events: Events, folder: Path) -> None:
    part = load_events(folder / "part-00001.parquet")
    assert part.card == events.card
    assert torch.equal(part.p4, events.p4[100:200])


def test_events_without_truth_come_back_without(events: Events, tmp_path: Path) -> None:
    data = Events(
        card=events.card,
        p4=events.p4,
        present=events.present,
        ptmiss=events.ptmiss,
        weight=events.weight,
        attributes=events.attributes,
    )
    data.save(tmp_path / "data")
    again = load_events(tmp_path / "data")
    assert again.partons is None
    assert again.masses is None
    assert torch.equal(again.p4, events.p4)


def test_columns_are_plain_and_named_after_the_card(events: Events, folder: Path) -> None:
    table = pq.read_table(folder / "part-00000.parquet")
    assert table.column("jet2_E").to_numpy()[3] == events.p4[3, 4, 3]
    assert events.partons is not None
    chi10 = events.card.parton_names.index("chi10_a")
    assert table.column("parton_chi10_a_m").to_numpy()[5] == events.partons[5, chi10, 3]
    for column, kind in (
        ("photon1_px", "double"),
        ("lepton_present", "bool"),
        ("lepton_charge", "int8"),
        ("lepton_flavour", "int8"),
        ("ptmiss_x", "double"),
        ("weight", "double"),
        ("mass_chi10", "double"),
    ):
        assert str(table.schema.field(column).type) == kind


def test_saving_again_replaces_the_events(events: Events, folder: Path) -> None:
    save_events(events[:7], folder)
    assert torch.equal(load_events(folder).p4, events.p4[:7])
    assert len(list(folder.glob("part-*.parquet"))) == 1


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_part_is_refused(folder: Path, damage: str) -> None:
    path = folder / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-9])
    with pytest.raises(StoreError, match=r"part-00001\.parquet' is damaged .*partial=True"):
        load_events(folder)


def test_a_missing_part_is_refused(folder: Path) -> None:
    (folder / "part-00002.parquet").unlink()
    with pytest.raises(StoreError, match=r"part-00002\.parquet' is missing: restore it"):
        load_events(folder)


def test_a_truncated_single_file_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.parquet"
    path.write_bytes((folder / "part-00000.parquet").read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"half\.parquet' cannot be read"):
        load_events(path)


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    import pyarrow

    path = tmp_path / "foreign.parquet"
    pq.write_table(pyarrow.table({"x": [1.0]}), path)
    with pytest.raises(StoreError, match="carries no process card"):
        load_events(path)


def test_a_part_that_does_not_fit_the_card_is_refused(
    events: Events, folder: Path, card: ProcessCard
) -> None:
    content = card.to_dict()
    content["objects"][2]["count"] = 11
    edit_manifest(folder, card=content)
    with pytest.raises(StoreError, match=r"does not fit the card 'wino_udd': .*'jet11_px' is miss"):
        load_events(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, r"has schema 99, this version of massrecon reads up to 2"),
        ({"format": "something"}, "is not the manifest of an event folder"),
        ({"card": {"name": "x"}}, "process card in .* cannot be used"),
        ({"n_events": 400}, "holds 250 of 400 events, because the simulation was interrupted"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(StoreError, match=message):
        load_events(folder)


def test_a_folder_without_or_with_a_broken_manifest_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"nowhere' holds no events: there is no manifest\.json"):
        load_events(tmp_path / "nowhere")
    (folder / MANIFEST).write_text('{"format": "massrecon')
    with pytest.raises(StoreError, match=r"manifest\.json' is damaged"):
        load_events(folder)


def test_saving_spares_other_peoples_folders(events: Events, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="is not empty and holds no events"):
        save_events(events, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_full_disk_leaves_the_old_part(events: Events, folder: Path) -> None:
    path = folder / "part-00000.parquet"
    before = path.read_bytes()
    arrays = {"p4": np.zeros((10_000, len(events.card.slots), 4))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"part-00000\.parquet' cannot be written: .*again"):
            write_part(path, arrays, events.card)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert not list(folder.glob(".*.tmp"))


def test_a_lock_keeps_others_out_until_it_is_given_back(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StoreError, match="Another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.fixture
def unphysical(events: Events) -> Events:
    p4 = events.p4.clone()
    p4[[20, 90], 0, 3] *= -1
    return replace(events, p4=p4)


def test_unphysical_events_are_not_saved(unphysical: Events, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"In 2 of 250 .* is negative, first in event 20 \(slot"):
        save_events(unphysical, tmp_path / "bad")
    assert not list(tmp_path.iterdir())


def test_unphysical_values_are_reported_with_file_count_and_first_event(
    unphysical: Events, tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    write_part(path, unphysical.to_arrays(), unphysical.card)
    with pytest.raises(StoreError, match=r"bad.*In 2 of 250 .* is negative, first in event 20"):
        load_events(path)


def test_an_empty_sample_comes_back_empty(events: Events, tmp_path: Path) -> None:
    save_events(events[:0], tmp_path / "none")
    assert len(load_events(tmp_path / "none")) == 0


def test_a_simulation_of_collisions_that_is_not_finished_is_known_as_such(
    events: Events, folder: Path
) -> None:
    provenance = {"finished": False, "n_generated": 1000}
    edit_manifest(folder, provenance=provenance, request={"seed": 1})
    with pytest.raises(StoreError, match="holds 250 events of an unfinished sample"):
        load_events(folder)
    with pytest.warns(UserWarning, match="unfinished sample, in 3 finished parts"):
        assert_same(load_events(folder, partial=True), events)


def test_a_manifest_that_promises_too_much_is_refused(folder: Path) -> None:
    parts = json.loads((folder / MANIFEST).read_text())["parts"]
    edit_manifest(folder, parts=[parts[0] | {"n_events": 10**15}], n_events=10**15)
    with pytest.raises(StoreError, match=r"not enough memory|the manifest says 10{15}"):
        load_events(folder)
    edit_manifest(folder, parts=[parts[0], parts[0]])
    with pytest.raises(StoreError, match="a part is listed twice"):
        load_events(folder)


def test_parts_with_other_arrays_than_the_first_are_refused(events: Events, folder: Path) -> None:
    arrays = {name: a[100:200] for name, a in events.to_arrays().items() if name != "partons"}
    digest = write_part(folder / "part-00001.parquet", arrays, events.card)
    parts = json.loads((folder / MANIFEST).read_text())["parts"]
    parts[1]["sha256"] = digest
    edit_manifest(folder, parts=parts)
    with pytest.raises(StoreError, match=r"part-00001.* differs from the first part .*partons"):
        load_events(folder)


def test_alternative_weights_come_back(events: Events, tmp_path: Path) -> None:
    varied = replace(events, variations={"muR=2": 2 * events.weight, "pdf 7": events.weight + 1})
    save_events(varied, tmp_path / "events")
    again = load_events(tmp_path / "events")
    assert list(again.variations) == ["muR=2", "pdf 7"]
    for name, weights in varied.variations.items():
        assert torch.equal(again.variations[name], weights)


def test_parquet_files_of_others_with_wrong_types_or_empty_cells_are_refused(
    events: Events, folder: Path
) -> None:
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    i = table.schema.get_field_index("jet1_charge")
    for values, message in (
        (table["jet1_charge"].cast("int64"), r"'jet1_charge' holds int64 in place of int8"),
        (pyarrow.nulls(100, "int8"), r"has empty cells in 'jet1_charge'"),
    ):
        pq.write_table(table.set_column(i, "jet1_charge", values), path)
        with pytest.raises(StoreError, match=message):
            load_events(path)
