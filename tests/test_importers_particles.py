"""HepMC3 and Les Houches files: through our own detector, with truth and every weight."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyhepmc
import pytest
import torch

from massrecon.errors import ImportFileError, InputError
from massrecon.events.card import load_card
from massrecon.events.importers import import_events, importing
from massrecon.events.importers.chunk import ReadOptions
from massrecon.events.importers.graph import mass_points
from massrecon.events.importers.hepmcparse import HepMCFile, parse_graph
from massrecon.events.importers.showering import has_roots, masses_in, without_processes
from massrecon.events.lhe import LheFile
from tests.samples import BEAM_ENERGY, WEIGHTS, DirectReader, write_hepmc, write_lhe

N = 60


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "IsolatedReader", DirectReader)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_hepmc(tmp_path / "events.hepmc", N)


def read(path: Path, **options: Any) -> Any:
    return import_events(path, options.pop("card", "wino_udd"), progress=False, **options)


def edit(path: Path, event: int, start: bytes, column: int, value: bytes) -> Path:
    """Replaces one word of the first line of an event that starts so."""
    blocks = path.read_bytes().split(b"\nE ")
    lines = blocks[event + 1].split(b"\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(start))
    words = lines[at].split()
    words[column] = value
    lines[at] = b" ".join(words)
    blocks[event + 1] = b"\n".join(lines)
    path.write_bytes(b"\nE ".join(blocks))
    return path


def test_particles_agree_with_pyhepmc(path: Path) -> None:
    with pyhepmc.open(path) as file:
        theirs = [event.numpy.particles for event in file for _ in (event,)]
        ours = [parse_graph(block) for block in HepMCFile(path).blocks()]
    with pyhepmc.open(path) as file:
        for graph, event in zip(ours, file, strict=True):
            particles = event.numpy.particles
            np.testing.assert_array_equal(graph.pdg, particles.pid)
            np.testing.assert_array_equal(graph.status, particles.status)
            for i, name in enumerate(("px", "py", "pz", "e")):
                np.testing.assert_array_equal(graph.p4[:, i], getattr(particles, name))
            mothers = [
                p.production_vertex.particles_in[0].id - 1
                if p.production_vertex.particles_in
                else -1
                for p in event.particles
            ]
            np.testing.assert_array_equal(graph.mother, mothers)
    assert len(theirs) == N


def test_hepmc_events_have_truth_masses_and_all_weights(path: Path) -> None:
    events = read(path, seed=3)
    assert 15 <= len(events) <= 55
    assert events.masses is not None
    assert torch.equal(
        events.masses, torch.tensor([[600.0, 200.0]]).double().expand(len(events), 2)
    )
    assert set(events.variations) == {"up", "down"}
    assert torch.equal(events.variations["up"], events.weight + 0.5)
    assert events.provenance["cut_flow"]["matched"] == N
    assert events.partons is not None
    h = events.partons[:, events.card.parton_names.index("h"), 3]
    torch.testing.assert_close(h, torch.full_like(h, 125.0), atol=1e-3, rtol=0)


def test_the_seed_decides_what_the_detector_does(path: Path) -> None:
    once, again, other = read(path, seed=3), read(path, seed=3), read(path, seed=4)
    assert torch.equal(once.p4, again.p4)
    assert not (len(once) == len(other) and torch.equal(once.p4, other.p4))


def test_units_are_honoured(tmp_path: Path, path: Path) -> None:
    events = read(write_hepmc(tmp_path / "mev.hepmc", N, unit="MEV"), seed=3)
    torch.testing.assert_close(events.p4, read(path, seed=3).p4, rtol=1e-9, atol=1e-6)


def test_wrong_units_show_in_the_beams(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"U GEV MM", b"U MEV MM"))
    with pytest.raises(ImportFileError, match="has collisions at 14 GeV, the card .* 14000 GeV"):
        read(path)
    path.write_bytes(path.read_bytes().replace(b"U MEV MM", b"U TEV MM"))
    with pytest.raises(ImportFileError, match="entry 0: its units are not GEV or MEV"):
        read(path)


def test_compressed_files_are_read_alike(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "events.hepmc.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert torch.equal(read(packed, seed=1).p4, read(path, seed=1).p4)
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(ImportFileError, match=r"events\.hepmc\.gz' is truncated or damaged"):
        read(packed, skip_bad=True)


@pytest.mark.parametrize(
    ("start", "column", "value", "message"),
    [
        (b"P 12 ", 3, b"22x", "a particle has too many|could not convert"),
        (b"P 13 ", 4, b"1.0e+02", "a particle is off its mass"),
        (b"P 13 ", 6, b"nan", "a number is not finite"),
        (b"P 13 ", 9, b"2", "the stable particles do not add up to the beams"),
        (b"P 13 ", 2, b"99", "comes from one that is not there"),
        (b"P 13 ", 1, b"14", "not numbered in order"),
        (b"V ", 3, b"[2,77]", "a vertex has a particle that is not there"),
        (b"W ", 2, b"inf", "a number is not finite"),
    ],
)
def test_bad_events_are_named_or_skipped(
    path: Path, start: bytes, column: int, value: bytes, message: str
) -> None:
    edit(path, 7, start, column, value)
    with pytest.raises(ImportFileError, match=rf"events\.hepmc', entry 7: .*({message})"):
        read(path)
    with pytest.warns(UserWarning, match=f"1 of {N} entries"):
        events = read(path, skip_bad=True, seed=2)
    assert events.provenance["cut_flow"]["sound"] == N - 1


def test_lost_lines_are_noticed(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(b"P 22 "))
    path.write_bytes(b"\n".join(lines[:at] + lines[at + 1 :]))
    with pytest.raises(ImportFileError, match="entry 0: it has 21 particles and says otherwise"):
        read(path)


@pytest.mark.parametrize("keep", [0.2, 0.8, 0.9999])
def test_truncated_text_is_refused(path: Path, keep: float, tmp_path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ImportFileError, match="ends too early|has no event"):
        read(path, skip_bad=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_older_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "old.hepmc"
    path.write_text("HepMC::Version 2.06.09\nHepMC::IO_GenEvent-START_EVENT_LISTING\nE 0 0\n")
    with pytest.raises(ImportFileError, match="is not in the text format of HepMC3.*convert"):
        read(path)


def test_repeated_events_are_found(path: Path) -> None:
    blocks = path.read_bytes().split(b"\nE ")
    path.write_bytes(b"\nE ".join([*blocks[:6], blocks[2], *blocks[6:]]))
    with pytest.raises(ImportFileError, match="entry 5: it repeats an earlier entry"):
        read(path)


def test_hard_partons_go_straight_into_the_detector(tmp_path: Path) -> None:
    path = write_lhe(tmp_path / "events.lhe", N)
    events = read(path, parton_level=True, seed=5)
    assert events.provenance["cut_flow"]["matched"] == N
    assert 20 <= len(events) <= 55
    assert set(events.variations) == set(WEIGHTS)
    weights = LheFile.open(path).weights(0, N)
    rows = [int(np.flatnonzero(weights["weight"] == w)[0]) for w in events.weight.tolist()]
    for name in WEIGHTS:
        expected = weights[f"weight_{name}"][rows]
        np.testing.assert_array_equal(events.variations[name].numpy(), expected)
    (cell,) = events.provenance["cells"]
    assert cell["cross_section_fb"] == pytest.approx(16.9)
    assert cell["masses"] == {"chi20": 600.0, "chi10": 200.0}


def test_bad_hard_collisions_are_skipped_with_a_count(tmp_path: Path) -> None:
    path = write_lhe(tmp_path / "events.lhe", N)
    text = path.read_bytes().split(b"<event>\n")
    text[9] = text[9].replace(b" 22 1 6 6 0 0 ", b" 22 1 6 6 0 0 1", 1)
    path.write_bytes(b"<event>\n".join(text))
    with pytest.raises(ImportFileError, match="event 8: "):
        read(path, parton_level=True)
    with pytest.warns(UserWarning, match=f"1 of {N} entries"):
        events = read(path, parton_level=True, skip_bad=True)
    assert events.provenance["cut_flow"]["sound"] == N - 1


def test_collisions_of_another_energy_are_refused(tmp_path: Path) -> None:
    path = write_lhe(tmp_path / "events.lhe", 5)
    card = load_card("wino_udd").model_copy(update={"beam_energy": 13600.0})
    with pytest.raises(ImportFileError, match="at 14000 GeV, the card .* for 13600 GeV"):
        read(path, card=card, parton_level=True)


def test_masses_and_roots_are_read_off_hard_collisions(tmp_path: Path) -> None:
    events = LheFile.open(write_lhe(tmp_path / "events.lhe", 10)).events(0, 10)
    assert has_roots(load_card("wino_udd"), events)
    assert not has_roots(load_card("background_wh"), events)
    assert masses_in(load_card("wino_udd"), events) == {"chi20": 600.0, "chi10": 200.0}
    events.rows[4, 10] = 300.0
    with pytest.raises(InputError, match="The mass 'chi10' runs from 200 to 300 GeV"):
        masses_in(load_card("wino_udd"), events)


def test_a_mass_that_the_decay_does_not_show_has_to_be_given() -> None:
    content = load_card("wino_udd").to_dict()
    partons = np.tile([0.0, 0.0, 0.0, 200.0], (3, len(load_card(content).parton_names), 1))
    # an antiparticle has the mass of its particle
    content["masses"]["chi20"]["sets"] = [-1000023, -1000024]
    content["targets"] = {"chi10": "chi10_a"}
    assert mass_points(load_card(content), partons).tolist() == [[200.0, 200.0]] * 3
    content["masses"]["squark"] = {"sets": [1000001], "default": 2e3, "range": [100.0, 5e3]}
    with pytest.raises(InputError, match="'squark' .* is that of no particle of its decay"):
        mass_points(load_card(content), partons)


def test_pythia_adds_no_collisions_of_its_own() -> None:
    card = load_card("wino_udd")
    bare = without_processes(card)
    assert "SUSY:qqbar2chi+-chi0 = on" in card.pythia.settings
    assert "SUSY:qqbar2chi+-chi0 = on" not in bare.pythia.settings
    assert "25:onMode = off" in bare.pythia.settings
    assert without_processes(bare) is bare


def test_showered_events_keep_weights_and_truth(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    path = write_lhe(tmp_path / "events.lhe", N)
    events = read(path, seed=2, workers=1, out=tmp_path / "out")
    weights = LheFile.open(path).weights(0, N)
    assert events.provenance["n_generated"] == N
    assert set(events.variations) == set(WEIGHTS)
    for weight, variation in zip(events.weight, events.variations[WEIGHTS[1]], strict=True):
        row = int(np.flatnonzero(weights["weight"] == float(weight))[0])
        assert weights[f"weight_{WEIGHTS[1]}"][row] == float(variation)
    assert events.partons is not None
    partons = events.partons[:, events.card.parton_names.index("chi20"), 3]
    torch.testing.assert_close(partons, torch.full_like(partons, 600.0), atol=0.1, rtol=0)


def test_beams_of_the_samples_are_those_of_the_card() -> None:
    assert load_card("wino_udd").beam_energy == 2 * BEAM_ENERGY
    assert ReadOptions(n_max=5).stop(9) == 5
