"""The Les Houches template on events of the process it is for, W gamma gamma, to the end.

The hard collisions come from our own phase space, q q' > W gamma gamma and W > l nu with the width
of the W, with the photon cuts that a matrix-element generator would need.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.library import find_card
from massrecon.kinematics.phasespace import PhaseSpace
from massrecon.kinematics.production import Beams
from massrecon.kinematics.topology import DecayTopology

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

ENERGY, M_W, WIDTH_W = 14_000.0, 80.419, 2.085
SIGMA_PB = 0.0123
N = 500
OBJECTS = """objects:
  - {kind: lepton, count: 1, pt_min: 10.0, eta_max: 2.5, minimum: 1}
  - {kind: photon, count: 2, pt_min: 20.0, eta_max: 2.5, minimum: 2}
  - {kind: jet, count: 2, pt_min: 25.0, eta_max: 4.0, minimum: 0}"""


def hard_collisions(n: int) -> np.ndarray:
    """Draws W, l, nu, gamma, gamma of collisions with two hard, central photons, ``(n, 5, 4)``."""
    topology = DecayTopology.parse("p p > W gamma gamma, W > l nu")
    space = PhaseSpace(topology=topology, beams=Beams(energy=ENERGY), widths={"W": WIDTH_W})
    names = [node.name for node in topology.nodes]
    order = [names.index("W"), names.index("l"), names.index("nu")]
    order += [i for i, name in enumerate(names) if name == "gamma"]
    generator = torch.Generator().manual_seed(4)
    p4 = space.sample({"W": torch.full((20 * n,), M_W)}, generator).numpy()[:, order]
    pt = np.hypot(p4[..., 0], p4[..., 1])
    eta = np.arcsinh(p4[..., 2] / pt)
    good = (pt[:, 3:] > 25.0).all(axis=1) & (np.abs(eta[:, 3:]) < 2.5).all(axis=1)
    return p4[good][:n]


def write_file(path: Path, p4: np.ndarray, decayed: bool) -> None:
    """Writes the collisions, with the W decayed in the file or left to the shower."""
    lines = [
        '<LesHouchesEvents version="3.0">',
        f"<init>\n2212 2212 {ENERGY / 2} {ENERGY / 2} 0 0 247000 247000 3 1",
        f"{SIGMA_PB} 0.0001 {SIGMA_PB} 1\n</init>",
    ]
    for i, particles in enumerate(p4):
        sign, flavour = (1, -1)[i % 2], (11, 13)[i // 2 % 2]
        w, lepton, neutrino, *photons = particles
        energy = np.sqrt((particles**2).sum(axis=1))  # the last component is the mass
        total, along = energy[[0, 3, 4]].sum(), particles[[0, 3, 4], 2].sum()
        plus, minus = (total + along) / 2, (total - along) / 2
        colours = (501, 0) if sign > 0 else (0, 501)
        rows = [
            (2 * sign, -1, 0, 0, *colours, 0.0, 0.0, plus, plus, 0.0),
            (-1 * sign, -1, 0, 0, *colours[::-1], 0.0, 0.0, -minus, minus, 0.0),
            (24 * sign, 2 if decayed else 1, 1, 2, 0, 0, *w[:3], energy[0], w[3]),
            *(
                (22, 1, 1, 2, 0, 0, *p[:3], e, 0.0)
                for p, e in zip(photons, energy[3:], strict=True)
            ),
        ]
        if decayed:
            rows += [
                (-flavour * sign, 1, 3, 3, 0, 0, *lepton[:3], energy[1], 0.0),
                ((flavour + 1) * sign, 1, 3, 3, 0, 0, *neutrino[:3], energy[2], 0.0),
            ]
        lines.append(
            f"<event>\n{len(rows)} 1 {SIGMA_PB:.6e} {np.sqrt(4 * plus * minus):.6e} 7.8e-3 0.118"
        )
        lines += [
            " ".join([*map(str, row[:6]), *(f"{x:.11e}" for x in row[6:])]) + " 0. 9."
            for row in rows
        ]
        lines.append("</event>")
    path.write_text("\n".join([*lines, "</LesHouchesEvents>", ""]))


@pytest.fixture(scope="module")
def p4() -> np.ndarray:
    return hard_collisions(N)


@pytest.fixture(scope="module", params=[True, False], ids=["W decayed", "W left to Pythia"])
def events(
    request: pytest.FixtureRequest, p4: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Events:
    """What a user's copy of the card, without jets, makes of the file that lies beside it."""
    folder = tmp_path_factory.mktemp("wgammagamma")
    write_file(folder / "events.lhe", p4, decayed=request.param)
    text = find_card("lhe_wgammagamma")[0]
    assert text.count("objects: wino_udd") == 1
    (folder / "mine.yaml").write_text(text.replace("objects: wino_udd", OBJECTS))
    return simulate(folder / "mine.yaml", seed=3, workers=1, progress=False)


def test_the_file_conserves_momentum_and_has_the_resonance(p4: np.ndarray) -> None:
    assert len(p4) == N
    assert np.abs(p4[:, [0, 3, 4], :2].sum(axis=1)).max() < 1e-6 * ENERGY
    np.testing.assert_allclose(p4[:, 1, :3] + p4[:, 2, :3], p4[:, 0, :3], atol=1e-6)
    assert np.median(p4[:, 0, 3]) == pytest.approx(M_W, abs=0.5)


def test_every_collision_is_showered_and_known(events: Events) -> None:
    flow = events.provenance["cut_flow"]
    assert flow["generated"] == N
    assert flow["showered"] == flow["matched"] == N
    assert 0.1 * N < flow["selected"] < 0.8 * N
    assert flow["selected"] == len(events)


def test_the_truth_is_that_of_the_file(events: Events) -> None:
    assert events.partons is not None
    names = events.card.parton_names
    w, lepton, neutrino = (events.partons[:, names.index(name)] for name in ("W", "l", "nu"))
    assert torch.median(w[:, 3]).item() == pytest.approx(M_W, abs=0.7)
    off = (lepton + neutrino - w)[:, :3].norm(dim=1)
    assert torch.quantile(off, 0.9) < 1e-4 * ENERGY, "up to photons that the lepton radiates"
    photons = events.partons[:, [i for i, name in enumerate(names) if name.startswith("gamma")]]
    hardest = photons[:, :, :2].norm(dim=2).max(dim=1).values
    found = events.p4[:, events.slots_of("photon")[0], :2].norm(dim=1)
    assert torch.median(found / hardest).item() == pytest.approx(1.0, abs=0.02)
    assert ((found / hardest - 1).abs() < 0.25).double().mean() > 0.85


def test_cross_section_and_acceptance_are_those_of_the_file(events: Events) -> None:
    (cell,) = events.provenance["cells"]
    assert cell["cross_section_fb"] == pytest.approx(1e3 * SIGMA_PB)
    assert cell["acceptance"] == pytest.approx(len(events) / N)
    expected = events.expected(3_000.0).sum().item()
    assert expected == pytest.approx(1e3 * SIGMA_PB * 3_000.0 * len(events) / N, rel=1e-6)
