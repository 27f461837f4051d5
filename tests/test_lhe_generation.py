"""Hard collisions from Les Houches files: showered in step with their weights, slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from massrecon.errors import GenerationError, ImportFileError, InputError, StoreError
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.hard import FileSource
from massrecon.events.regeneration import regeneration_differences
from massrecon.events.request import Request
from tests.samples import WEIGHTS, write_lhe

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

BEAM = 6500.0
CARD: dict[str, Any] = {
    "name": "drell_yan",
    "title": "pp → Z → μμ",
    "beam_energy": 2 * BEAM,
    "decay": "p p > Z, Z > l l",
    "particles": {"Z": {"pdg": 23, "symbol": "Z"}, "l": {"pdg": [11, 13], "symbol": "ℓ"}},
    "pythia": {"lhe": "given later", "branching_fraction": 0.5},
    "objects": [{"kind": "lepton", "count": 2, "pt_min": 10.0, "eta_max": 2.5, "minimum": 1}],
}


def write_drell_yan(path: Path, n_events: int, broken: tuple[int, ...] = ()) -> np.ndarray:
    """Writes quark pairs to muon pairs; returns the momentum of the muon in each, ``(n, 3)``.

    Event i has the weight 1 + i / 1000 and the variation i; those in `broken` have colours that
    Pythia cannot connect.
    """
    rng = np.random.default_rng(5)
    lines = [
        '<LesHouchesEvents version="3.0">',
        '<header>\n<initrwgt><weight id="number"> the number </weight></initrwgt>\n</header>',
        f"<init>\n2212 2212 {BEAM} {BEAM} 0 0 247000 247000 3 1\n2.0 0.1 1.0 1\n</init>",
    ]
    muons = []
    for i in range(n_events):
        e1, e2 = BEAM * np.exp(rng.uniform(np.log(0.01), np.log(0.1), 2))
        energy, pz, m = e1 + e2, e1 - e2, 2 * np.sqrt(e1 * e2)
        cosine, phi = rng.uniform(-1, 1), rng.uniform(0, 2 * np.pi)
        axis = np.array([*(np.sqrt(1 - cosine**2) * np.array([np.cos(phi), np.sin(phi)])), cosine])
        pair = []
        for sign in (1, -1):
            x, y, z = sign * axis * m / 2
            pair.append([x, y, (energy * z + pz * m / 2) / m, (pz * z + energy * m / 2) / m])
        muons.append(pair[0][:3])
        rows = [
            (2, -1, 0, 0, 501, 0, [0, 0, e1, e1], 0.0),
            (-2, -1, 0, 0, 0, 777 if i in broken else 501, [0, 0, -e2, e2], 0.0),
            (23, 2, 1, 2, 0, 0, [0, 0, pz, energy], m),
            (13, 1, 3, 3, 0, 0, pair[0], 0.0),
            (-13, 1, 3, 3, 0, 0, pair[1], 0.0),
        ]
        lines.append(f"<event>\n5 1 {1 + i / 1000:.6e} {m:.6e} 7.8e-3 0.118")
        for *codes, p, mass in rows:
            values = " ".join(f"{x:.11e}" for x in (*p, mass))
            lines.append(f"{' '.join(map(str, codes))} {values} 0. 9.")
        lines.append(f"<rwgt><wgt id='number'> {i:.1f} </wgt></rwgt>\n</event>")
    path.write_text("\n".join([*lines, "</LesHouchesEvents>", ""]))
    return np.array(muons)


def assert_in_step(events: Events, muons: np.ndarray) -> None:
    """Checks that each event has the weights and the truth of one and the same hard collision."""
    number = events.variations["number"].numpy().astype(int)
    assert len(np.unique(number)) == len(number)
    np.testing.assert_allclose(events.weight.numpy(), 1 + number / 1000, rtol=1e-6)
    assert events.partons is not None
    muon = events.partons[:, events.card.parton_names.index("l1"), :3].numpy()
    # initial-state radiation pushes the pair; what it leaves is the sum of the two along the beam
    cosine = np.sum(muon * muons[number], axis=1)
    cosine /= np.linalg.norm(muon, axis=1) * np.linalg.norm(muons[number], axis=1)
    assert np.median(cosine) > 0.98
    wrong = np.sum(muon * muons[number - 1], axis=1)
    wrong /= np.linalg.norm(muon, axis=1) * np.linalg.norm(muons[number - 1], axis=1)
    assert np.median(wrong) < 0.9


@pytest.fixture(scope="module")
def lhe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("lhe") / "z.lhe"
    # two in a row at a border of blocks, one inside, the last of a part and the very last
    return path, write_drell_yan(path, 3_300, broken=(49, 50, 700, 2_999, 3_299))


@pytest.fixture(scope="module")
def whole(lhe: tuple[Path, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "events"
    simulate(CARD, settings={"lhe": lhe[0]}, seed=1, workers=2, out=folder, progress=False)
    return folder


def test_the_whole_file_is_showered_in_step_with_its_weights(
    lhe: tuple[Path, np.ndarray], whole: Path
) -> None:
    events = simulate(CARD, settings={"lhe": lhe[0]}, seed=1, workers=1, out=whole, progress=False)
    flow = events.provenance["cut_flow"]
    assert (flow["generated"], flow["showered"], flow["matched"]) == (3_300, 3_295, 3_295)
    assert not {49, 50, 700, 2_999, 3_299} & set(events.variations["number"].int().tolist())
    assert_in_step(events, lhe[1])
    [cell] = events.provenance["cells"]
    assert cell["weight_generated"] == pytest.approx(sum(1 + i / 1000 for i in range(3_300)))
    assert cell["weight_selected"] == pytest.approx(events.weight.sum().item())
    assert cell["cross_section_fb"] == 2.0e3 * 0.5
    assert events.expected(10.0).sum().item() == pytest.approx(1e4 * cell["acceptance"])
    assert events.provenance["lhe"]["sha256"]


def test_a_part_of_the_file_is_the_beginning_of_it(
    lhe: tuple[Path, np.ndarray], whole: Path
) -> None:
    events = simulate(CARD, settings={"lhe": lhe[0]}, seed=1, workers=1, out=whole, progress=False)
    some = simulate(
        CARD, settings={"lhe": lhe[0]}, seed=1, workers=1, progress=False, n_generated=700
    )
    assert some.provenance["n_generated"] == 1_000
    assert torch.equal(some.p4, events.p4[: len(some)])
    few = simulate(CARD, 30, settings={"lhe": lhe[0]}, seed=1, workers=1, progress=False)
    assert torch.equal(few.p4, events.p4[:30])
    too_many = simulate(
        CARD, 10**6, settings={"lhe": lhe[0]}, seed=1, workers=1, out=whole, progress=False
    )
    assert torch.equal(too_many.p4, events.p4), "the end of the file ends the sample"
    with pytest.raises(InputError, match="'n_generated' should be at most 3300"):
        simulate(CARD, settings={"lhe": lhe[0]}, n_generated=5_000)


def test_a_part_is_made_again_wherever_the_file_lies(
    lhe: tuple[Path, np.ndarray], whole: Path, tmp_path: Path
) -> None:
    assert regeneration_differences(whole, 1) == []
    moved = tmp_path / "moved.lhe"
    moved.write_bytes(lhe[0].read_bytes())
    simulate(CARD, settings={"lhe": moved}, seed=1, workers=1, out=whole, progress=False)
    other = tmp_path / "other.lhe"
    write_drell_yan(other, 20)
    with pytest.raises(StoreError, match="holds another simulation .*lhe sha256"):
        simulate(CARD, settings={"lhe": other}, seed=1, out=whole, progress=False)


def test_without_truth_events_are_kept_that_decay_otherwise(
    lhe: tuple[Path, np.ndarray],
) -> None:
    card = CARD | {"decay": "p p > W, W > l l", "particles": dict(CARD["particles"])}
    card["particles"]["W"] = {"pdg": 24, "symbol": "W"}
    del card["particles"]["Z"]
    request = {"settings": {"lhe": lhe[0]}, "n_generated": 500, "workers": 1, "progress": False}
    with pytest.raises(GenerationError, match="'truth'"):
        simulate(card, **request)
    events = simulate(card, **(request | {"settings": {"lhe": lhe[0], "truth": False}}))
    assert len(events) > 400
    assert events.partons is None
    assert events.masses is None
    assert "matched" not in events.provenance["cut_flow"]


def test_alternative_weights_and_decays_of_new_particles_are_kept(tmp_path: Path) -> None:
    path = write_lhe(tmp_path / "wino.lhe.gz", 40)
    events = simulate("wino_udd", settings={"lhe": path}, seed=1, workers=1, progress=False)
    assert set(events.variations) == set(WEIGHTS)
    assert events.provenance["cut_flow"]["matched"] == 40
    assert events.partons is not None
    chi20 = events.partons[:, events.card.parton_names.index("chi20"), 3]
    torch.testing.assert_close(chi20, torch.full_like(chi20, 600.0), atol=0.01, rtol=0)
    # the decays are in the file, and so are their branching fractions
    assert events.provenance["branching_fraction"] == 1.0
    with pytest.raises(InputError, match="'masses' should be fixed"):
        simulate("wino_udd", settings={"lhe": path}, masses="line")
    with pytest.raises(InputError, match="has collisions at 14000 GeV, the card 'drell_yan' is"):
        simulate(CARD, settings={"lhe": path})


def test_showers_that_are_not_of_the_file_are_an_error(
    lhe: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("massrecon.events.pythia.switches_on_process", lambda _: False)
    settings = {"lhe": lhe[0], "pythia": ["WeakSingleBoson:ffbar2gmZ = on"]}
    request = Request.of(CARD, None, 1, settings)
    assert request.lhe is not None
    source = FileSource(request, request.lhe)
    with pytest.raises(GenerationError, match="showered a collision that is not in its place"):
        list(source.groups(0))
    source.close()


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match=r"no file '.*gone\.lhe'.*--lhe FILE"):
        simulate("lhe_wgammagamma", settings={"lhe": tmp_path / "gone.lhe"}, progress=False)
