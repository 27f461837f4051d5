"""Parquet and SPANet HDF5 files: ours come back as they were, those of others are understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from massrecon.errors import ImportFileError, InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.exporters import export_events
from massrecon.events.importers import import_events, importing
from massrecon.events.store import save_events
from tests.conftest import ToyEvents
from tests.samples import DirectReader

N = 80


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "IsolatedReader", DirectReader)


@pytest.fixture
def events(toy_events: ToyEvents) -> Events:
    """Selected toy events with an alternative weight."""
    made = toy_events(N, seed=3)
    arrays = made.to_arrays()
    arrays["weight_PDF 7"] = np.linspace(0.5, 1.5, N)
    arrays["weight"] = np.linspace(2.0, 1.0, N)
    return Events.from_arrays(made.card, arrays)


@pytest.fixture
def parquet(events: Events, tmp_path: Path) -> Path:
    export_events(events, tmp_path / "events.parquet")
    return tmp_path / "events.parquet"


@pytest.fixture
def hdf5(events: Events, tmp_path: Path) -> Path:
    export_events(events, tmp_path / "events.h5")
    return tmp_path / "events.h5"


def read(path: Path, card: str | ProcessCard = "wino_udd", **options: Any) -> Events:
    return import_events(path, card, progress=False, **options)


def assert_close(one: Events, two: Events, tolerance: float = 0.0) -> None:
    first, second = one.to_arrays(), two.to_arrays()
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=tolerance, atol=tolerance * 100)
        assert second[name].dtype == array.dtype


def selected(events: Events) -> Events:
    """What of the toy events passes the selection, whose jets must be there."""
    pt = torch.linalg.vector_norm(events.p4[..., :2], dim=-1)
    eta = torch.asinh(events.p4[..., 2] / pt.clamp_min(1e-9)).abs()
    groups = {group.kind: group for group in events.card.objects}
    limits = [groups[kind] for kind in events.card.slot_kinds]
    cut = torch.tensor([g.pt_min for g in limits]), torch.tensor([g.eta_max for g in limits])
    good = events.present & (pt > cut[0]) & (eta < cut[1])
    jets = list(events.slots_of("jet"))
    return events[good[:, 0] & good[:, 1] & good[:, 2] & (good[:, jets].sum(1) >= 2)]


def test_our_own_files_come_back_bit_for_bit(events: Events, parquet: Path) -> None:
    again = read(parquet)
    expected = selected(events)
    assert 20 < len(again) == len(expected) < N
    for name in ("weight", "ptmiss", "partons", "masses"):
        assert torch.equal(getattr(again, name), getattr(expected, name)), name
    assert torch.equal(again.p4[:, :3], expected.p4[:, :3])
    assert torch.equal(again.variations["PDF 7"], expected.variations["PDF 7"])
    export_events(again, parquet)
    assert_close(again, read(parquet))


def test_a_folder_of_files_is_read_in_order(events: Events, tmp_path: Path, parquet: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    export_events(events[:30], folder / "a.parquet")
    export_events(events[30:], folder / "b.parquet")
    assert_close(read(folder), read(parquet))
    export_events(events[:30], folder / "c.parquet")
    with pytest.raises(ImportFileError, match=r"c\.parquet', entry 0: it repeats an earlier entry"):
        read(folder)


def test_a_folder_of_our_own_is_left_to_load_events(events: Events, tmp_path: Path) -> None:
    save_events(events, tmp_path / "store")
    with pytest.raises(InputError, match="is a folder of events already: load it with load_events"):
        read(tmp_path / "store")


def test_files_of_pandas_need_no_more_than_momenta(events: Events, tmp_path: Path) -> None:
    columns: dict[str, np.ndarray] = {
        "ptmiss_x": events.ptmiss[:, 0].numpy(),
        "ptmiss_y": events.ptmiss[:, 1].numpy(),
    }
    for slot, name in enumerate(events.card.slots[:6]):
        for i, component in enumerate(("px", "py", "pz", "E")):
            values = events.p4[:, slot, i].numpy().copy()
            values[~events.present[:, slot].numpy()] = np.nan
            columns[f"{name}_{component}"] = values
    pd.DataFrame(columns).to_parquet(tmp_path / "mine.parquet")
    again = read(tmp_path / "mine.parquet")
    assert len(again) == len(selected(events))
    assert again.partons is None
    assert (again.weight == 1).all()
    frame = pd.DataFrame(columns)
    frame.loc[12, "lepton_px"] = np.nan
    frame.to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ImportFileError, match="entry 12: a lepton is not finite"):
        read(tmp_path / "mine.parquet")


def test_a_card_with_fewer_jets_takes_the_leading_ones(parquet: Path, card: ProcessCard) -> None:
    content = card.to_dict()
    content["objects"][2]["count"] = 3
    few = read(parquet, load_card(content))
    assert torch.equal(few.p4, read(parquet).p4[:, :6])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns="jet1_pz"), "lacks the column 'jet1_pz'"),
        (lambda f: f.drop(columns="ptmiss_y"), "lacks the column 'ptmiss_y'"),
        (lambda f: f.assign(jet2_E="high"), "'jet2_E' of .* holds .*string"),
        (lambda f: f.assign(photon1_E=-f.photon1_E), "energy of a photon is negative"),
        (lambda f: f.assign(lepton_px=f.lepton_px * 1000), "a lepton has|units GeV"),
        (lambda f: f.assign(weight=np.inf), "the weight is not finite"),
        (lambda f: f.assign(mass_chi10=np.nan), "a mass is not finite"),
    ],
)
def test_wrong_tables_are_refused(parquet: Path, spoil: Any, message: str) -> None:
    spoil(pd.read_parquet(parquet)).to_parquet(parquet)
    with pytest.raises(ImportFileError, match=message):
        read(parquet)


def test_damaged_and_truncated_tables_are_refused(parquet: Path) -> None:
    content = parquet.read_bytes()
    flipped = bytearray(content)
    flipped[2000] ^= 4
    for damaged in (bytes(flipped), content[:-100], content[: len(content) // 2], b"PAR1"):
        parquet.write_bytes(damaged)
        with pytest.raises(ImportFileError, match=r"events\.parquet'.*(damaged|truncated)"):
            read(parquet, skip_bad=True)


def test_spanet_files_come_back(events: Events, hdf5: Path, parquet: Path) -> None:
    assert_close(read(parquet), read(hdf5), tolerance=1e-9)


def test_the_usual_variants_of_spanet_are_understood(hdf5: Path) -> None:
    expected = read(hdf5)
    with h5py.File(hdf5, "a") as file:
        for group in ("Jets", "Leptons", "Photons", "Met"):
            del file[f"INPUTS/{group}/phi"]
        del file["INPUTS/Photons/mass"]
        file.move("INPUTS/Jets", "INPUTS/Source")
        file.move("INPUTS/Leptons", "INPUTS/prompt")
        del file["REGRESSIONS"]
    with pytest.raises(ImportFileError, match=r"no group for 'lepton' among .*prompt.*--mapping"):
        read(hdf5)
    again = read(hdf5, mapping={"lepton": "prompt"})
    torch.testing.assert_close(again.p4, expected.p4, rtol=1e-6, atol=1e-3)
    assert again.partons is None
    with pytest.raises(InputError, match="'mapping': Unknown group 'promt'"):
        read(hdf5, mapping={"lepton": "promt"})


def test_leptons_and_jets_of_one_group_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        momenta = file.create_group("INPUTS/Momenta")
        values = {"pt": [90, 80, 70, 0], "eta": [0.1, -0.2, 0.3, 0], "phi": [1, 2, 3, 0],
                  "mass": [5, 0, 9, 0], "etag": [0, 1, 0, 0], "utag": [0, 0, 0, 0],
                  "btag": [1, 0, 0, 0], "MASK": [1, 1, 1, 0]}  # fmt: skip
        for name, row in values.items():
            momenta[name] = np.array([row, row], bool if name == "MASK" else float)
        momenta["pt"][1] *= 2
        for name, number in {"met": 40.0, "sin_phi": 0.0, "cos_phi": -1.0}.items():
            file[f"INPUTS/Met/{name}"] = np.array([number, number])
    content = load_card("wino_udd").to_dict()
    content["objects"] = [content["objects"][0], content["objects"][2]]
    content["detector"] = {"tagging": True}
    events = read(path, load_card(content), mapping={"lepton": "Momenta"})
    assert len(events) == 2
    assert events.present.sum(1).tolist() == [3, 3]
    assert events.attributes["flavour"][0, :3].tolist() == [11, 0, 0]
    assert events.attributes["btag"][0, :3].tolist() == [0, 1, 0]
    torch.testing.assert_close(events.ptmiss[0], torch.tensor([-40.0, 0.0]).double())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("INPUTS/Jets/MASK", "lacks 'INPUTS/Jets/mask'"),
        ("INPUTS/Photons/eta", "lacks 'INPUTS/Photons/eta'"),
        ("INPUTS/Met/met", "has no 'met' or 'pt'"),
        ("INPUTS", "has no group 'INPUTS'"),
    ],
)
def test_missing_features_are_named(hdf5: Path, name: str, message: str) -> None:
    with h5py.File(hdf5, "a") as file:
        del file[name]
    with pytest.raises(ImportFileError, match=message):
        read(hdf5)


def test_groups_of_different_length_are_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        short = file["INPUTS/Jets/eta"][:-1]
        del file["INPUTS/Jets/eta"]
        file["INPUTS/Jets/eta"] = short
    with pytest.raises(ImportFileError, match=f"has {N} entries in .* but {N - 1} in 'INPUTS/Jets"):
        read(hdf5)


def test_angles_that_contradict_each_other_are_bad_entries(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        phi = file["INPUTS/Leptons/phi"][:]
        phi[9] += 0.5
        file["INPUTS/Leptons/phi"][...] = phi
    with pytest.raises(ImportFileError, match="entry 9: a lepton has a phi that is not its sine"):
        read(hdf5)


def test_damaged_data_sets_are_refused(hdf5: Path) -> None:
    with h5py.File(hdf5) as file:
        where = file["INPUTS/Jets/pt"].id.get_chunk_info(0)
    content = bytearray(hdf5.read_bytes())
    content[where.byte_offset + where.size // 2] ^= 16
    hdf5.write_bytes(content)
    with pytest.raises(ImportFileError, match=f"entries 0 to {N - 1}: cannot be read"):
        read(hdf5)
