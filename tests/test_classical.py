"""The classical route from events to masses: chains, endpoints, momenta, the kink, pairing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import massrecon as mr
from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.chains import PairedChains, paired_chains, paired_masses
from massrecon.inference.classical import invisible_momenta, kink_scan, measure
from massrecon.inference.mixture import legs_of
from massrecon.kinematics.constrained import Subsystem
from massrecon.kinematics.fourvectors import from_pxpypzm, mass
from massrecon.kinematics.topology import TopologyError
from massrecon.runs.notebooks import run_notebook
from massrecon.visual import figures

ToyEvents = Callable[..., Events]


@pytest.fixture(scope="module")
def antler() -> Events:
    return mr.simulate("antler", n_events=2000, seed=5, progress=False)


@pytest.fixture(scope="module")
def chains(antler: Events) -> PairedChains:
    return paired_chains(antler)


def test_chains_hold_what_the_card_says(antler: Events, chains: PairedChains) -> None:
    assert antler.partons is not None
    p4 = dict(zip(antler.card.parton_names, from_pxpypzm(antler.partons).unbind(1), strict=True))
    for name, label in (
        ("upper_a", "a_a"), ("lower_a", "b_a"), ("invisible_a", "C_a"),
        ("upper_b", "a_b"), ("lower_b", "b_b"), ("invisible_b", "C_b"),
    ):  # fmt: skip
        torch.testing.assert_close(getattr(chains, name), p4[label])
    assert chains.masses == pytest.approx((1000.0, 800.0, 700.0))
    assert chains.symbols == ("A", "a", "B", "b", "C")
    torch.testing.assert_close(chains.ptmiss, (p4["C_a"] + p4["C_b"])[:, :2])
    parent = mass(sum(chains.parents("a")[:1]) + p4["B_a"])
    assert parent == pytest.approx(1000.0, abs=1e-3)


def test_measured_objects_are_paired_and_the_right_pairs_are_known(antler: Events) -> None:
    found = paired_chains(antler, "objects")
    assert len(found) == len(antler)
    assert found.right is not None
    share = found.right.double().mean()
    assert 0.6 < share < 0.9  # better than a guess, not perfect
    # a right pair gives momenta of the true chain on the same side
    true = paired_chains(antler)
    right = found.right
    whole = found.upper_a + found.lower_a + found.invisible_a
    assert mass(whole)[right] == pytest.approx(1000.0, abs=0.05)
    assert (mass(whole)[~right] - 1000.0).abs().median() > 10.0
    torch.testing.assert_close(found.ptmiss, true.ptmiss, rtol=1e-4, atol=1e-2)


def test_what_has_no_such_chains_or_truth_is_refused(antler: Events, toy_events: ToyEvents) -> None:
    with pytest.raises(TopologyError, match="has no subsystem"):
        paired_chains(toy_events(8, seed=1))
    scan = mr.simulate("antler", n_events=200, masses={"A": (900, 1100)}, seed=1, progress=False)
    with pytest.raises(InputError, match="several mass points"):
        paired_chains(scan)
    with pytest.raises(InputError, match="Unknown level 'parton' .*choose from partons, objects"):
        paired_chains(antler, "parton")
    arrays = antler.to_arrays()
    for name in ("partons", "masses"):
        arrays.pop(name)
    data = Events.from_arrays(antler.card, arrays)
    with pytest.raises(InputError, match="carry no truth"):
        paired_chains(data)


def test_particles_of_a_toy_are_seen_if_they_have_slots(antler: Events) -> None:
    legs = legs_of(antler.card)
    assert [leg.label for leg in legs.invisible] == ["C_a", "C_b"]
    tops = legs_of(mr.load_card("ttbar_dilepton"))
    assert [leg.label for leg in tops.visible] == ["b_a", "l_a", "b_b", "l_b"]
    assert set(tops.leg_kinds) == {"jet", "lepton"}


@pytest.mark.parametrize("name", ["ab", "a", "b"])
@pytest.mark.parametrize("variable", ["MT2", "M2CC"])
def test_endpoints_are_the_parent_masses(
    chains: PairedChains, variable: str, name: Subsystem
) -> None:
    found = measure(chains, variable, name, background=False)
    assert found.truth == pytest.approx(800.0 if name == "b" else 1000.0)
    assert found.m_invisible == pytest.approx(800.0 if name == "a" else 700.0)
    assert found.values.max() <= found.truth * (1 + 1e-6)
    assert found.fit is not None
    assert abs(found.fit.value - found.truth) < 3.0
    assert found.certified > 0.8


def test_a_variable_that_is_not_there_is_refused(chains: PairedChains) -> None:
    with pytest.raises(InputError, match="Unknown variable 'MT3'"):
        measure(chains, "MT3")
    with pytest.raises(InputError, match="Unknown subsystem 'c'"):
        measure(chains, "MT2", "c")
    few = measure(paired_chains_of(chains, 10), "MT2")
    assert few.fit is None


def paired_chains_of(chains: PairedChains, n: int) -> PairedChains:
    names = ("upper_a", "lower_a", "upper_b", "lower_b", "ptmiss", "invisible_a", "invisible_b")
    cut = {name: getattr(chains, name)[:n] for name in names}
    rest = {"masses": chains.masses, "symbols": chains.symbols, "kept": chains.kept[:n]}
    return PairedChains(**cut, **rest)


def test_momenta_are_correlated_with_the_truth(chains: PairedChains) -> None:
    momenta = {m.method: m for m in invisible_momenta(chains)}
    assert list(momenta) == ["MAOS", "M2CC (ab)", "M2CC (b)", "exact solver"]
    for m in momenta.values():
        assert m.solved > 0.99
        assert len(m.true) == len(m.found) == len(m.weight)
        assert float(m.weight.sum()) == pytest.approx(2 * m.solved * len(chains))
        assert all(m.correlation(i) > 0.2 for i in range(3))
    assert momenta["M2CC (ab)"].correlation(0) > momenta["M2CC (b)"].correlation(0) + 0.1
    # the truth is among the solutions of the exact solver
    exact = momenta["exact solver"]
    near = (exact.found - exact.true)[:, :3].norm(dim=1) < 1.0
    assert float(near.sum()) > 0.98 * 2 * len(chains)


def test_the_kink_is_at_the_true_masses(chains: PairedChains) -> None:
    scan = kink_scan(chains, "M2CC", [800, 650, 675, 700, 725, 750, 600], "b", background=False)
    assert [m.m_invisible for m in scan.measured] == [600, 650, 675, 700, 725, 750, 800]
    assert scan.kink is not None
    assert abs(scan.kink.m_invisible - 700.0) < 40.0
    assert abs(scan.kink.m_parent - 800.0) < 40.0
    assert kink_scan(chains, "MT2", [700.0], "ab", background=False).kink is None
    figure = figures.kink([scan], chains)
    curve, spread, star = figure.data
    assert list(curve.x) == [600, 650, 675, 700, 725, 750, 800]
    assert (star.x[0], star.y[0]) == (pytest.approx(700.0), 0.0)
    assert abs(curve.y[3]) < 1.0  # at the truth
    assert min(curve.y[0], curve.y[-1]) > 1.0
    assert min(spread.y) == spread.y[3]
    assert "Kink of M2CC (b)" in figure.layout.meta["caption"]
    slider = figures.trial_mass_explorer([scan])
    steps = slider.layout.sliders[0].steps
    assert [step.label for step in steps] == [f"{m:g}" for m in curve.x]
    assert tuple(steps[3].args[0]["y"][0]) == tuple(slider.data[0].y)
    with pytest.raises(InputError, match="same trial masses"):
        figures.trial_mass_explorer([])


TRIJETS = {
    "name": "trijets", "title": "pp → N N, N → 3 jets (toy)", "beam_energy": 13000.0,
    "decay": "p p > N N, N > jet jet jet",
    "particles": {"N": {"pdg": 9900001, "symbol": "N"}, "jet": {"pdg": 1, "symbol": "q"}},
    "masses": {"N": {"sets": [9900001], "default": 300.0, "range": [100.0, 500.0]}},
    "phase_space": {},
    "objects": [{"kind": "jet", "count": 6, "pt_min": 20.0, "eta_max": 4.0, "minimum": 5}],
    "targets": {"N": "N_a"},
}  # fmt: skip


def test_pairing_finds_equal_masses_where_all_is_seen(antler: Events) -> None:
    events = mr.simulate(TRIJETS, n_events=300, seed=2, progress=False)
    found = paired_masses(events, "N")
    complete = events.present.all(1)
    assert torch.equal(found.isfinite(), complete)
    assert found[complete] == pytest.approx(300.0, abs=0.1)
    with pytest.raises(TopologyError, match="'A' should occur twice"):
        paired_masses(antler, "A")
    with pytest.raises(TopologyError, match="'D' should occur twice"):
        paired_masses(antler, "D")


def test_distributions_are_drawn_with_their_endpoints(chains: PairedChains) -> None:
    found = [measure(chains, v, s, background=False) for s in ("ab", "b") for v in ("MT2", "M2CC")]
    figure = figures.variable_distributions(found)
    lines = [t for t in figure.data if t.mode == "lines"]
    points = [t for t in figure.data if t.mode == "markers"]
    assert len(lines) == len(points) == 4
    assert [p.x[0] for p in points] == pytest.approx([1000, 1000, 800, 800], abs=3)
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx([1000.0, 800.0])
    assert all(0.97 * len(chains) < sum(line.y[::2]) <= len(chains) for line in lines)
    assert len({line.line.dash for line in lines}) == 2
    with pytest.raises(InputError, match="nothing to show"):
        figures.variable_distributions([])


def test_momentum_maps_share_their_axes_and_count_events(chains: PairedChains) -> None:
    momenta = invisible_momenta(chains)
    figure = figures.momentum_correlations(momenta)
    maps = [t for t in figure.data if t.type == "heatmap"]
    assert len(maps) == 8
    for drawn in maps:
        total = sum(map(sum, drawn.z))
        assert 0.7 * 2 * len(chains) < total <= 2 * len(chains) * 1.01
    assert "exact solver 100.0 %" in figure.layout.meta["caption"]
    assert len(figure.to_json()) < 200_000
    with pytest.raises(InputError, match="no momenta"):
        figures.momentum_correlations([])


def test_estimates_are_compared_event_by_event() -> None:
    truth = torch.full((100,), 200.0, dtype=torch.float64)
    half = truth + torch.where(torch.arange(100) < 50, 5.0, torch.nan)
    figure = figures.estimates_compared(truth, {"exact": truth, "half": half}, "<i>m</i>")
    assert "exact 100.0 %, half 50.0 %" in figure.layout.meta["caption"]
    curves = [t for t in figure.data if t.xaxis == "x2"]
    assert curves[0].y[-1] == 100
    assert curves[1].y[-1] == 50
    with pytest.raises(InputError, match="no estimates"):
        figures.estimates_compared(truth, {}, "m")


def test_the_notebook_runs_with_another_process_and_measured_objects(tmp_path: Path) -> None:
    pytest.importorskip("papermill")
    parameters = {
        "process": "antler_ttbar",
        "n_events": 1500,
        "level": "objects",
        "trial_masses": [0, 10, 20, 30, 40, 50, 60],
        "mixture_process": "",
        "interactive": True,
    }
    summary = run_notebook("classical", parameters, tmp_path, progress=False)
    assert summary["process"] == "antler_ttbar"
    assert 0.5 < summary["right_pairing"] < 0.95
    assert summary["true_masses_gev"] == pytest.approx([173.0, 80.4, 0.0], abs=0.5)
    assert summary["invisible_momenta"]["MAOS"]["correlation_xyz"][0] > 0.4
    assert set(summary["kinks"]) == {"MT2(ab)", "M2CC(ab)", "M2CC(b)"}
    executed = json.loads((tmp_path / "04_classical.ipynb").read_text())
    outputs = [o for cell in executed["cells"] for o in cell.get("outputs", [])]
    shown = [o for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(shown) == 4
    assert any("image/svg+xml" in o.get("data", {}) for o in outputs)
