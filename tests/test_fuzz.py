"""Damaged files of every format: an error of ours, or the very result of the sound file.

Bytes are flipped, inserted and removed, and files cut short, at random. Formats that protect what
they hold are tested in full: compressed ROOT blocks, gzip, our own Parquet and HDF5 exports, the
manifest. Plain Les Houches and HepMC text has no checksum: there the momenta must be right, within
the tolerance of the physics checks, and nothing is promised of weights, codes, colours and spins.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from massrecon.errors import MassReconError
from massrecon.events.card import load_card
from massrecon.events.exporters import export_events
from massrecon.events.importers import import_events, importing
from massrecon.events.importers.hepmcparse import STABLE, HepMCFile, parse_graph
from massrecon.events.lhe import LheFile
from massrecon.events.lheparse import TOLERANCE
from massrecon.events.store import load_events
from tests.conftest import ToyEvents
from tests.forked import ForkServer
from tests.samples import unpack, write_hepmc, write_lhe

Arrays = dict[str, np.ndarray]
Damage = list[tuple[str, float, int]]

QUICK, DEEP = 12, 250
N = 8

DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "insert", "remove", "cut"]),
        st.floats(0.0, 1.0, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, damage: Damage, places: np.ndarray | None = None) -> bytes:
    """Damages the content of a file; `places` are the bytes that may be hit."""
    changed = bytearray(content)
    for kind, where, value in damage:
        at = int(where * len(changed))
        if places is not None:
            at = min(int(places[int(where * len(places))]), len(changed) - 1)
        if not changed:
            break
        if kind == "flip":
            changed[at] ^= max(value, 1)
        elif kind == "insert":
            changed[at:at] = bytes([value])
        elif kind == "remove":
            del changed[at]
        else:
            del changed[at:]
    return bytes(changed)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


class Case:
    """A sound file, and how it is read."""

    def __init__(self, path: Path, read: Callable[[Path], Arrays]) -> None:
        self.path, self.read = path, read
        self.content = path.read_bytes()
        self.sound = read(path)
        self.places: np.ndarray | None = None
        self.outcomes = {"error": 0, "same": 0}

    def try_damage(self, damage: Damage) -> None:
        """Reads the damaged file: an error of ours, or the same arrays."""
        content = damaged(self.content, damage, self.places)
        target = self.path.with_name(f"damaged-{self.path.name}")
        target.write_bytes(content)
        try:
            found, message = self.read(target), ""
        except MassReconError as error:
            found, message = None, str(error)
        self.outcomes["error" if found is None else "same"] += 1
        if found is None:
            assert target.name in message, "the error does not name the file"
            return
        assert found.keys() == self.sound.keys()
        for name, array in self.sound.items():
            assert self.equal(name, found[name], array), f"'{name}' differs after {damage}"

    def equal(self, name: str, found: np.ndarray, sound: np.ndarray) -> bool:
        """Says whether an array is right."""
        return found.shape == sound.shape and np.array_equal(found, sound, equal_nan=True)


class TextCase(Case):
    """Momenta are right within the tolerance of the physics checks."""

    def equal(self, name: str, found: np.ndarray, sound: np.ndarray) -> bool:
        """Says whether momenta ``(n, 4)`` are right."""
        largest = 20 * TOLERANCE * np.abs(sound).max()
        return found.shape == sound.shape and bool((np.abs(found - sound) <= largest).all())


def imported(path: Path, **options: Any) -> Arrays:
    return import_events(path, "wino_udd", progress=False, **options).to_arrays()


def lhe_momenta(path: Path) -> Arrays:
    file = LheFile.open(path)
    return {"p4": file.events(0, file.n_events).p4}


def hepmc_momenta(path: Path) -> Arrays:
    import_events(path, "wino_udd", progress=False)
    graphs = [parse_graph(block) for block in HepMCFile(path).blocks()]
    return {"p4": np.concatenate([graph.p4[graph.status == STABLE] for graph in graphs])}


def delphes_case(folder: Path, _: ToyEvents) -> Case:
    path = unpack("delphes_ttbar.root", folder)
    card = load_card("wino_udd").to_dict()
    card["objects"] = [{"kind": k, "count": 4, "pt_min": 20.0, "eta_max": 4.0} for k in
                       ("lepton", "photon", "jet")]  # fmt: skip

    def read(path: Path) -> Arrays:
        return import_events(path, load_card(card), truth=False, progress=False).to_arrays()

    case = Case(path, read)
    case.places = np.flatnonzero(np.frombuffer(case.content, np.uint8))
    return case


def lhe_case(folder: Path, _: ToyEvents) -> Case:
    return TextCase(write_lhe(folder / "events.lhe", N), lhe_momenta)


def lhe_gz_case(folder: Path, _: ToyEvents) -> Case:
    return Case(write_lhe(folder / "events.lhe.gz", N), lambda p: imported(p, parton_level=True))


def hepmc_case(folder: Path, _: ToyEvents) -> Case:
    return TextCase(write_hepmc(folder / "events.hepmc", N), hepmc_momenta)


def hepmc_gz_case(folder: Path, _: ToyEvents) -> Case:
    text = write_hepmc(folder / "events.txt", N).read_bytes()
    (folder / "events.hepmc.gz").write_bytes(gzip.compress(text, mtime=0))
    return Case(folder / "events.hepmc.gz", imported)


def parquet_case(folder: Path, toy_events: ToyEvents) -> Case:
    export_events(toy_events(N, seed=1), folder / "events.parquet")
    return Case(folder / "events.parquet", imported)


def hdf5_case(folder: Path, toy_events: ToyEvents) -> Case:
    export_events(toy_events(N, seed=1), folder / "events.h5")
    return Case(folder / "events.h5", imported)


def manifest_case(folder: Path, toy_events: ToyEvents) -> Case:
    toy_events(N, seed=1).save(folder / "store")

    def read(path: Path) -> Arrays:
        shutil.copy(path, folder / "store" / "manifest.json")
        try:
            return load_events(folder / "store").to_arrays()
        except MassReconError as error:
            raise type(error)(str(error).replace("manifest.json", path.name)) from error

    shutil.copy(folder / "store" / "manifest.json", folder / "sound.json")
    return Case(folder / "sound.json", read)


CASES = {
    "delphes": delphes_case,
    "lhe": lhe_case,
    "lhe.gz": lhe_gz_case,
    "hepmc": hepmc_case,
    "hepmc.gz": hepmc_gz_case,
    "parquet": parquet_case,
    "hdf5": hdf5_case,
    "manifest": manifest_case,
}


def run(
    name: str,
    examples: int,
    folder: Path,
    toy_events: ToyEvents,
    server: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Case:
    monkeypatch.setattr(importing, "IsolatedReader", server.reader)
    here = folder / f"{name}-{examples}"
    here.mkdir()
    case = CASES[name](here, toy_events)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE)
    def attack(damage: Damage) -> None:
        case.try_damage(damage)

    attack()
    assert case.outcomes["error"] > examples // 4, case.outcomes
    return case


@pytest.mark.parametrize("name", CASES)
def test_damage_is_an_error_or_without_effect(
    name: str,
    folder: Path,
    toy_events: ToyEvents,
    server: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(name, QUICK, folder, toy_events, server, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_much_damage_is_an_error_or_without_effect(
    name: str,
    folder: Path,
    toy_events: ToyEvents,
    server: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = run(name, DEEP, folder, toy_events, server, monkeypatch)
    print(name, case.outcomes, f"{server.crashes} crashes of libraries so far")


def test_the_attack_would_find_a_format_without_checks(tmp_path: Path) -> None:
    path = tmp_path / "plain.bin"
    path.write_bytes(bytes(range(200)))

    def read(path: Path) -> Arrays:
        return {"bytes": np.frombuffer(path.read_bytes(), np.uint8)}

    case = Case(path, read)
    with pytest.raises(AssertionError, match="'bytes' differs"):
        case.try_damage([("flip", 0.5, 3)])
