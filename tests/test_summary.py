"""What a folder of events holds, and the commands that look after folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from massrecon.cli.events import app
from massrecon.errors import StoreError
from massrecon.events.container import Events
from massrecon.events.manifest import MANIFEST
from massrecon.events.store import save_events
from massrecon.events.summary import describe_store
from tests.conftest import ToyEvents
from tests.test_merging import cell
from tests.test_store import edit_manifest


@pytest.fixture
def events(toy_events: ToyEvents) -> Events:
    return toy_events(250, seed=4)


@pytest.fixture
def folder(events: Events, tmp_path: Path) -> Path:
    save_events(events, tmp_path / "events")
    return tmp_path / "events"


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_events_are_counted_by_mass_cell_and_objects(events: Events, folder: Path) -> None:
    summary = describe_store(folder)
    assert summary.facts["events"] == "250 in 1 files"
    assert summary.facts["truth"] == "yes"
    head, *rows = summary.cells
    assert head == ("chi20 [GeV]", "chi10 [GeV]", "events")
    assert events.masses is not None
    low = 50 * (events.masses[:, 1] / 50).floor()
    expected = [
        ("600 to 650", f"{edge:g} to {edge + 50:g}", str(int((low == edge).sum())))
        for edge in low.unique().tolist()
    ]
    assert list(rows) == expected
    jets = events.present[:, list(events.slots_of("jet"))].sum(1)
    row = next(row for row in summary.objects if row[0] == "jet")
    assert row[1] == f"{jets.double().mean():.2f}"
    assert [int(str(n)) for n in row[2:]] == torch.bincount(jets, minlength=11).tolist()


def test_weights_are_summed_and_their_precision_is_given(events: Events, tmp_path: Path) -> None:
    weight = torch.tensor([2.0, -1.0], dtype=torch.float64).repeat(125)
    varied = replace(events, weight=weight, variations={"scale": 3 * weight})
    save_events(varied, tmp_path / "events")
    # sum 125, sum of squares 625: worth 25 events
    assert list(describe_store(tmp_path / "events").weights[1:]) == [
        ("weight", "125", "25.0", "125"),
        ("weight_scale", "375", "25.0", "125"),
    ]


def test_cross_section_and_acceptance_are_shown_to_their_precision(
    events: Events, tmp_path: Path
) -> None:
    unknown = cell(100, 10, 5) | {"cross_section_fb": None, "cross_section_error_fb": None}
    made = {"cells": [cell(50, 3000, 400), unknown], "seed": 3}
    made["cut_flow"] = {"generated": 3010, "jet": 1000, "selected": 405}
    save_events(replace(events, provenance=made), tmp_path / "events")
    summary = describe_store(tmp_path / "events")
    assert list(summary.cells[1:]) == [
        ("600", "50 to 100", "3,000", "400", "0.133 ± 0.010", "10.0 ± 1.0"),
        ("600", "100 to 150", "10", "5", "0.500 ± 0.010", "unknown"),
    ]
    assert summary.cut_flow[2] == ("jet", "1,000", "0.3322")
    assert summary.facts["seed"] == "3"


def test_data_without_truth_and_an_empty_folder_are_described(
    events: Events, tmp_path: Path
) -> None:
    save_events(replace(events, masses=None, partons=None), tmp_path / "data")
    summary = describe_store(tmp_path / "data")
    assert summary.facts["truth"] == "no"
    assert "Mass cells" not in summary.tables()
    save_events(events[:0], tmp_path / "none")
    assert "0 in 1 files" in str(describe_store(tmp_path / "none"))


def test_an_unfinished_simulation_is_described_as_far_as_it_is(folder: Path) -> None:
    edit_manifest(folder, n_events=400, request={"seed": 1})
    assert "NOT FINISHED" in describe_store(folder).facts["state"]


def test_the_page_has_tables_and_figures(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "events.html"
    code, text = command("describe", folder, "--html", page)
    assert code == 0
    assert "250 in 1 files" in text
    html = page.read_text(encoding="utf-8")
    assert html.count("<figure>") == 2
    assert "<td>250 in 1 files</td>" in html
    assert "Events by number of objects" in html


def test_the_page_of_data_has_no_masses(events: Events, tmp_path: Path) -> None:
    save_events(replace(events, masses=None, partons=None), tmp_path / "data")
    command("describe", tmp_path / "data", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<figure>") == 1


def test_verify_and_repair_say_what_is_damaged_by_exit_code(folder: Path) -> None:
    assert command("verify", folder)[0] == 0
    path = folder / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    code, text = command("verify", folder)
    assert code == 1
    assert "DAMAGED  part-00000.parquet" in text
    assert "massrecon events repair" in text
    with pytest.raises(StoreError, match="no part that is whole"):
        command("repair", folder)
    path.write_bytes(whole)
    (folder / MANIFEST).unlink()
    assert command("verify", folder)[0] == 1
    code, text = command("repair", folder)
    assert code == 0
    assert "the manifest was made anew from 1 parts" in text
    assert command("verify", folder)[0] == 0


def test_merge_joins_and_refuses_by_name(events: Events, folder: Path, tmp_path: Path) -> None:
    save_events(events[:20], tmp_path / "more")
    code, text = command("merge", folder, tmp_path / "more", "--out", tmp_path / "all")
    assert (code, "270 events of 2 folders" in text) == (0, True)
    with pytest.raises(StoreError, match="all' holds events already"):
        command("merge", folder, tmp_path / "more", "--out", tmp_path / "all")
