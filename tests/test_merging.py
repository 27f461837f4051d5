"""Appended and merged events: all of them, in order, none twice, with their history."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from massrecon.errors import InputError, ShapeError, StoreError
from massrecon.events import writer
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.manifest import MANIFEST
from massrecon.events.merging import merge_stores
from massrecon.events.store import StoreWriter, append_events, load_events, save_events
from tests.conftest import ToyEvents
from tests.test_store import assert_same, edit_manifest


@pytest.fixture
def events(toy_events: ToyEvents) -> Events:
    return toy_events(250, seed=4)


def cell(low: float, generated: int, selected: int) -> dict[str, Any]:
    return {
        "masses": {"chi20": 600.0, "chi10": [low, low + 50.0]},
        "n_generated": generated,
        "n_selected": selected,
        "weight_generated": float(generated),
        "weight_selected": float(selected),
        "cross_section_fb": 10.0,
        "cross_section_error_fb": 1.0,
        "acceptance": selected / generated,
        "acceptance_error": 0.01,
    }


def test_appended_events_follow_those_that_were_there(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "EVENTS_PER_FILE", 60)
    folder = tmp_path / "events"
    append_events(events[:100], folder)
    first = sorted((p.name, p.read_bytes()) for p in folder.glob("part-*"))
    events[100:170].save(folder, append=True)
    append_events(events[170:], folder)
    again = load_events(folder)
    assert_same(again, events)
    assert [made["seed"] for made in again.provenance["joined"]] == [4, 4, 4]
    assert sorted((p.name, p.read_bytes()) for p in folder.glob("part-*"))[:2] == first
    assert not [path.name for path in tmp_path.iterdir() if path != folder]


def test_only_like_events_are_appended(events: Events, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    save_events(events, folder)
    with pytest.raises(InputError, match=r"same truth.*missing masses, partons"):
        append_events(replace(events, partons=None, masses=None), folder)
    more = replace(events, variations={"scale_up": events.weight})
    with pytest.raises(InputError, match=r"alternative weights.*new weight_scale_up"):
        append_events(more, folder)
    content = events.card.to_dict() | {"title": "another"}
    with pytest.raises(InputError, match="holds events of another card"):
        append_events(replace(events, card=load_card(content)), folder)
    edit_manifest(folder, request={"seed": 1})
    with pytest.raises(StoreError, match=r"holds a simulation, .*massrecon events merge"):
        append_events(events, folder)
    assert len(load_events(folder)) == 250


def test_merged_folders_hold_all_events_and_their_history(events: Events, tmp_path: Path) -> None:
    cells = [[cell(50, 100, 40), cell(100, 10, 5)], [cell(50, 300, 60)]]
    for i, rows in enumerate((slice(0, 100), slice(100, 250))):
        made = {"seed": i, "n_generated": 100 * (i + 1), "n_selected": 40, "cells": cells[i]}
        save_events(replace(events[rows], provenance=made), tmp_path / f"in{i}")
    assert merge_stores([tmp_path / "in0", tmp_path / "in1"], tmp_path / "out") == 250
    merged = load_events(tmp_path / "out")
    assert_same(merged, events)
    made = merged.provenance
    assert [one["folder"] for one in made["joined"]] == ["in0", "in1"]
    assert made["n_generated"] == 300
    low, high = made["cells"]
    assert (low["n_generated"], low["n_selected"], low["weight_selected"]) == (400, 100, 100.0)
    assert low["acceptance"] == pytest.approx(0.25)
    assert high == cell(100, 10, 5)


def test_concatenated_events_keep_the_same_history(events: Events) -> None:
    one = replace(events[:100], provenance={"seed": 1, "n_generated": 3, "cells": [cell(50, 9, 3)]})
    two = replace(events[100:], provenance={"seed": 2, "n_generated": 4, "cells": [cell(50, 1, 1)]})
    joined = Events.concat([one, Events.concat([two, two])])
    assert [made["seed"] for made in joined.provenance["joined"]] == [1, 2, 2]
    assert joined.provenance["n_generated"] == 11
    assert joined.provenance["cells"][0]["n_generated"] == 11


def test_samples_with_other_alternative_weights_are_not_joined(events: Events) -> None:
    more = replace(events, variations={"pdf_1": events.weight})
    with pytest.raises(InputError, match=r"alternative weights: weight_pdf_1 is not in all"):
        Events.concat([events, more])
    twice = Events.concat([more, more])
    assert torch.equal(twice.variations["pdf_1"], torch.cat([events.weight, events.weight]))


def simulated(folder: Path, events: Events, seed: int, number: int, numpy: str = "2") -> Path:
    """Saves events as if a simulation had made them as one of its parts."""
    save_events(events, folder)
    parts = json.loads((folder / MANIFEST).read_text())["parts"]
    (folder / "part-00000.parquet").rename(folder / f"part-{number:05d}.parquet")
    request = {"seed": seed, "versions": {"numpy": numpy}}
    edit_manifest(folder, parts=[parts[0] | {"number": number}], request=request)
    return folder


def test_no_event_is_merged_twice(events: Events, tmp_path: Path) -> None:
    one = simulated(tmp_path / "one", events[:50], 1, 0)
    other_seed = simulated(tmp_path / "two", events[50:99], 2, 0)
    other_part = simulated(tmp_path / "three", events[100:150], 1, 1)
    same = simulated(tmp_path / "four", events[:60], 1, 0, numpy="3")
    merge_stores([one, other_seed, other_part], tmp_path / "merged")
    with pytest.raises(InputError, match=r"one' and '.*four' both hold part 0 of the simulation"):
        merge_stores([one, same], tmp_path / "out")
    with pytest.raises(InputError, match=r"both hold part 1 of the simulation"):
        merge_stores([tmp_path / "merged", other_part], tmp_path / "out")
    append_events(events[150:160], tmp_path / "merged")
    with pytest.raises(InputError, match=r"both hold part 0 of the simulation"):
        merge_stores([tmp_path / "merged", one], tmp_path / "out")
    save_events(events[:30], tmp_path / "five")
    (tmp_path / "six").mkdir()
    for path in (tmp_path / "five").iterdir():
        (tmp_path / "six" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="both hold the same file of events, part 0"):
        merge_stores([tmp_path / "five", tmp_path / "six"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_named(events: Events, tmp_path: Path) -> None:
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    save_events(events[:100], one)
    save_events(replace(events[100:], masses=None, partons=None), two)
    with pytest.raises(InputError, match=r"two' cannot be added: .*missing masses, partons"):
        merge_stores([one, two], out)
    with pytest.raises(InputError, match="at least two folders of events, got 1"):
        merge_stores([one], out)
    with pytest.raises(StoreError, match=r"two' holds events already"):
        merge_stores([one, two], two)
    content = events.card.to_dict() | {"title": "another"}
    save_events(replace(events, card=load_card(content)), two)
    with pytest.raises(InputError, match=r"two' holds events of another card"):
        merge_stores([one, two], out)
    with pytest.raises(InputError, match=r"one' both hold the same file"):
        merge_stores([one, one], out)
    save_events(events[100:], two)
    (two / "part-00000.parquet").unlink()
    with pytest.raises(StoreError, match=r"two/part-00000\.parquet' is missing"):
        merge_stores([one, two], out)
    assert not out.exists()


# the writer


def arrays_of(card: ProcessCard, n_events: int, seed: int = 1) -> dict[str, np.ndarray]:
    from tests.faulty import random_events

    return random_events(n_events, np.random.default_rng(seed))


def test_a_writer_cuts_files_alike_however_the_pieces_come(
    card: ProcessCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "EVENTS_PER_FILE", 100)
    arrays, contents = arrays_of(card, 430), []
    for name, cuts in (("a", [430]), ("b", [1, 99, 250, 0, 80]), ("c", [110, 110, 110, 100])):
        with StoreWriter(tmp_path / name, card, provenance={"from": "x"}) as out:
            start = 0
            for cut in cuts:
                out.write({k: v[start : start + cut] for k, v in arrays.items()})
                start += cut
            assert out.n_events == 430
        files = sorted((tmp_path / name).iterdir())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert len(contents[0]) == 6
    assert contents[0] == contents[1] == contents[2]


def test_a_writer_notes_what_is_known_only_at_the_end(card: ProcessCard, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "events", card) as out:
        out.write(arrays_of(card, 10))
        out.provenance["cut_flow"] = {"read": 20, "selected": 10}
    assert load_events(tmp_path / "events").provenance["cut_flow"]["read"] == 20


def test_a_writer_that_fails_leaves_what_was_there(card: ProcessCard, tmp_path: Path) -> None:
    for older in (0, 30):
        with pytest.raises(RuntimeError, match="stop"), StoreWriter(tmp_path / "e", card) as out:
            out.write(arrays_of(card, 200))
            raise RuntimeError("stop")
        assert (tmp_path / "e").exists() == (older > 0)
        assert not list(tmp_path.glob(".*"))
        save_events(Events.from_arrays(card, arrays_of(card, 30)), tmp_path / "e")
    assert len(load_events(tmp_path / "e")) == 30


def test_a_writer_without_events_writes_an_empty_folder(card: ProcessCard, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "events", card):
        pass
    events = load_events(tmp_path / "events")
    assert len(events) == 0
    assert events.partons is None


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"p4": None}, InputError, "'p4' is missing among the event arrays"),
        ({"charges": np.zeros((10, 13))}, InputError, "Unknown event array 'charges'"),
        ({"ptmiss": np.zeros((10, 3))}, ShapeError, r"'ptmiss' should have shape \(10, 2\)"),
        ({"weight": np.ones(9)}, ShapeError, r"should have shape \(9, "),
        ({"charge": np.zeros((10, 13))}, InputError, "'charge' should be of type int8, got float"),
        ({"weight": np.full(10, np.inf)}, InputError, r"'weight' is not finite, first in event 20"),
    ],
)
def test_a_writer_refuses_wrong_arrays(
    card: ProcessCard, tmp_path: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    arrays = {k: v for k, v in (arrays_of(card, 10) | change).items() if v is not None}
    with pytest.raises(kind, match=message), StoreWriter(tmp_path / "events", card) as out:
        out.write(arrays_of(card, 20))
        out.write(arrays)
    assert not (tmp_path / "events").exists()


def test_a_writer_spares_what_it_does_not_know(card: ProcessCard, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(StoreError, match="is not empty and holds no events"),
        StoreWriter(tmp_path, card),
    ):
        pass
