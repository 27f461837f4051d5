"""Small event files of other programs for the tests, made from a seed."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from massrecon import errors
from massrecon.events.card import ProcessCard
from massrecon.events.importers import child, messages
from massrecon.events.importers.chunk import Chunk, ReadOptions

Floats = NDArray[np.float64]

BEAM_ENERGY = 7000.0
MASSES = {"chi20": 600.0, "chi10": 200.0, "h": 125.0, "W": 80.379}

# PDG code, status and mother (line, counted from 1) of each particle of one wino_udd event
_TREE = [
    (2, -1, 0), (-1, -1, 0), (1000023, 2, 1), (1000024, 2, 1), (1000022, 2, 3), (25, 2, 3),
    (1000022, 2, 4), (24, 2, 4), (22, 1, 6), (22, 1, 6), (-13, 1, 8), (14, 1, 8),
    (2, 1, 5), (1, 1, 5), (3, 1, 5), (2, 1, 7), (1, 1, 7), (3, 1, 7),
]  # fmt: skip
_COLOURS = {1: (501, 0), 2: (0, 501)} | {line: (490 + line, 0) for line in range(13, 19)}
WEIGHTS = ("1001", "muR=0.5 muF=1", "PDF 7")


def _boost(p: Floats, frame: Floats) -> Floats:
    """Boosts p from the rest frame of `frame` (px, py, pz, E)."""
    m = math.sqrt(max(frame[3] ** 2 - frame[:3] @ frame[:3], 1e-12))
    along = frame[:3] @ p[:3]
    p3 = p[:3] + frame[:3] * (along / (m * (frame[3] + m)) + p[3] / m)
    return np.array([*p3, (frame[3] * p[3] + along) / m])


def _two_body(parent: Floats, m1: float, m2: float, rng: np.random.Generator) -> list[Floats]:
    m = math.sqrt(parent[3] ** 2 - parent[:3] @ parent[:3])
    p = math.sqrt((m**2 - (m1 + m2) ** 2) * (m**2 - (m1 - m2) ** 2)) / (2 * m)
    axis = rng.standard_normal(3)
    axis *= p / np.linalg.norm(axis)
    first = np.array([*axis, math.hypot(p, m1)])
    second = np.array([*-axis, math.hypot(p, m2)])
    return [_boost(first, parent), _boost(second, parent)]


def _three_body(parent: Floats, rng: np.random.Generator) -> list[Floats]:
    m = math.sqrt(parent[3] ** 2 - parent[:3] @ parent[:3])
    one, pair = _two_body(parent, 0.0, m * math.sqrt(rng.uniform(0.05, 0.9)), rng)
    return [one, *_two_body(pair, 0.0, 0.0, rng)]


def hard_event(rng: np.random.Generator) -> Floats:
    """Makes one wino_udd collision, shape ``(18, 4)``, in the order of the tree."""
    m2, m1 = MASSES["chi20"], MASSES["chi10"]
    energy = 2 * m2 * rng.uniform(1.02, 1.6)
    boost = rng.uniform(-0.8, 0.8)
    e1, e2 = energy / 2 * math.exp(boost), energy / 2 * math.exp(-boost)
    beams = [np.array([0, 0, e1, e1]), np.array([0, 0, -e2, e2])]
    chi20, chi1 = _two_body(beams[0] + beams[1], m2, m2, rng)
    chi10_a, h = _two_body(chi20, m1, MASSES["h"], rng)
    chi10_b, w = _two_body(chi1, m1, MASSES["W"], rng)
    legs = [*_two_body(h, 0, 0, rng), *_two_body(w, 0, 0, rng)]
    quarks = [*_three_body(chi10_a, rng), *_three_body(chi10_b, rng)]
    return np.array([*beams, chi20, chi1, chi10_a, h, chi10_b, w, *legs, *quarks])


def lhe_text(n_events: int, seed: int = 1, weights: bool = True) -> bytes:
    """Writes wino_udd events with three alternative weights as a Les Houches file."""
    rng = np.random.default_rng(seed)
    names = "".join(f'<weight id="{name}"> a </weight>\n' for name in WEIGHTS)
    listed = f'<initrwgt>\n<weightgroup name="all">\n{names}</weightgroup>\n</initrwgt>\n'
    beams = f" 2212 2212 {BEAM_ENERGY:.8e} {BEAM_ENERGY:.8e} 0 0 247000 247000 3 1"
    init = f"<init>\n{beams}\n 1.69e-02 1.0e-04 1.0e+00 1\n</init>\n"
    header = f"<header>\n{listed if weights else ''}</header>\n"
    events = "".join(_lhe_event(hard_event(rng), rng, weights) for _ in range(n_events))
    text = f'<LesHouchesEvents version="3.0">\n{header}{init}{events}</LesHouchesEvents>\n'
    return text.encode()


def _lhe_event(p4: Floats, rng: np.random.Generator, weights: bool) -> str:
    lines = [f" {len(_TREE)} 1 {rng.uniform(0.5, 1.5):.8e} 6.0e+02 7.8e-03 1.0e-01"]
    for number, ((pdg, status, mother), p) in enumerate(zip(_TREE, p4, strict=True), start=1):
        mothers = (1, 2) if mother == 1 else (mother, mother) if mother else (0, 0)
        mass = math.sqrt(max(p[3] ** 2 - p[:3] @ p[:3], 0.0)) if status == 2 else 0.0
        codes = (pdg, status, *mothers, *_COLOURS.get(number, (0, 0)))
        values = " ".join(f"{x:.10e}" for x in (*p, mass))
        lines.append(f" {' '.join(map(str, codes))} {values} 0.0 9.0")
    if weights:
        entries = (f"<wgt id='{name}'> {rng.uniform(0.5, 1.5):.8e} </wgt>" for name in WEIGHTS)
        lines += ["<rwgt>", *entries, "</rwgt>"]
    return "\n".join(["<event>", *lines, "</event>", ""])


def write_lhe(path: Path, n_events: int, seed: int = 1, weights: bool = True) -> Path:
    """Writes a Les Houches file, compressed where the name ends in ``.gz``."""
    text = lhe_text(n_events, seed, weights)
    path.write_bytes(gzip.compress(text, 6, mtime=0) if path.suffix == ".gz" else text)
    return path


DATA = Path(__file__).parent / "data"


def unpack(name: str, folder: Path) -> Path:
    """Unpacks one of the files in ``tests/data``."""
    path = folder / name
    path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return path


def write_hepmc(path: Path, n_events: int, seed: int = 1, unit: str = "GEV") -> Path:
    """Writes wino_udd events with beams and remnants as a HepMC3 file, with pyhepmc."""
    import pyhepmc

    rng = np.random.default_rng(seed)
    run = pyhepmc.GenRunInfo()
    run.weight_names = ["up", "Default", "down"]
    with pyhepmc.open(path, "w") as file:
        for number in range(n_events):
            event = _hepmc_event(pyhepmc, hard_event(rng), number)
            event.run_info = run
            event.weights = [1.5 + number, 1.0 + number, 0.5 + number]
            if unit == "MEV":
                event.set_units(pyhepmc.Units.MEV, pyhepmc.Units.CM)
            file.write(event)
    return path


def _hepmc_event(pyhepmc: Any, p4: Floats, number: int) -> Any:
    event = pyhepmc.GenEvent(pyhepmc.Units.GEV, pyhepmc.Units.MM)
    event.event_number = number
    particles = []
    for (pdg, status, _), p in zip(_TREE, p4, strict=True):
        code = {-1: 21, 2: 22, 1: 1}[status]
        particle = pyhepmc.GenParticle(pyhepmc.FourVector(*p), pdg, code)
        particle.generated_mass = math.sqrt(max(p[3] ** 2 - p[:3] @ p[:3], 0)) * (status == 2)
        particles.append(particle)
    for side, incoming in zip((1.0, -1.0), particles[:2], strict=True):
        _add_beam(pyhepmc, event, side, incoming)
    for mother, (_, status, _) in enumerate(_TREE, start=1):
        daughters = [p for p, (_, _, m) in zip(particles, _TREE, strict=True) if m == mother]
        if not daughters or (status == -1 and mother != 1):
            continue
        vertex = pyhepmc.GenVertex()
        for particle in particles[:2] if mother == 1 else [particles[mother - 1]]:
            vertex.add_particle_in(particle)
        for particle in daughters:
            vertex.add_particle_out(particle)
        event.add_vertex(vertex)
    return event


def _add_beam(pyhepmc: Any, event: Any, side: float, incoming: Any) -> None:
    rest = BEAM_ENERGY - incoming.momentum.e
    beam = pyhepmc.GenParticle(pyhepmc.FourVector(0, 0, side * BEAM_ENERGY, BEAM_ENERGY), 2212, 4)
    remnant = pyhepmc.GenParticle(pyhepmc.FourVector(0, 0, side * rest, rest), 22, 1)
    beam.generated_mass = remnant.generated_mass = 0.0
    vertex = pyhepmc.GenVertex()
    vertex.add_particle_in(beam)
    vertex.add_particle_out(incoming)
    vertex.add_particle_out(remnant)
    event.add_vertex(vertex)


class DirectReader:
    """Reads as `IsolatedReader` does, but in this process: quicker, and seen by a debugger."""

    def __init__(self, format: str, path: Path, card: ProcessCard, options: ReadOptions) -> None:
        self.request = {
            "format": format,
            "path": str(path),
            "card": card.to_dict(),
            "options": options,
        }
        self.skipped: dict[str, int] = {}

    def chunks(self) -> Iterator[Chunk]:
        """Yields all entries."""
        pipe = io.BytesIO()
        child.answer(self.request, pipe)
        pipe.seek(0)
        while length := pipe.read(8):
            kind, *content = messages.unpack(pipe.read(int.from_bytes(length, "little")))
            if kind == "error":
                raise getattr(errors, content[0])(content[1])
            if kind == "end":
                self.skipped = content[0]
                return
            yield content[0]
