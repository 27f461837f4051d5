"""DeeLeMa: structure, frame, exact constraints, losses, fit, checkpoint, files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ModelError, ShapeError
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.phasespace import PhaseSpace
from massrecon.kinematics.production import Beams
from massrecon.kinematics.topology import DecayTopology, TopologyError
from massrecon.models.deelema import DeeLeMa, DeeLeMaConfig, Structure
from massrecon.models.deelema import frame as frames
from massrecon.models.deelema.frame import to_frame
from massrecon.models.deelema.loss import Loss
from massrecon.models.deelema.momenta import (
    MassFunction,
    invisible_momenta,
    unknown_components,
)
from massrecon.models.deelema.network import OrderedMasses

ANTLER = "p p > A A, (A > a B, B > b C)"
MASSES = {"A": 1000.0, "B": 800.0, "C": 700.0}
ASYMMETRIC = "p p > X A, (X > a C), (A > c c B, B > b C)"
QUICK = {"hidden": 16, "layers": 2, "epochs": 2, "batch_size": 256, "m_invisible": {"C": 700.0}}


def toy(text: str, n: int, recoil: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Makes visible momenta, ptmiss and true invisible momenta; visible legs are massless."""
    topology = DecayTopology.parse(text)
    masses = {**MASSES, "X": 900.0}
    names = {node.name for node in topology.nodes} & masses.keys()
    space = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0, recoil=recoil))
    points = {name: torch.full((n,), masses[name], dtype=torch.float64) for name in names}
    p4 = fv.from_pxpypzm(space.sample(points, torch.Generator().manual_seed(7)))
    legs = DecayLegs.of(topology, invisible=["C"])
    hidden = p4[:, [leg.index for leg in legs.invisible]]
    return p4[:, [leg.index for leg in legs.visible]], hidden[..., :2].sum(1), hidden


def legs_of(text: str = ANTLER) -> DecayLegs:
    return DecayLegs.of(text, invisible=["C"])


def quick(**fields: Any) -> DeeLeMaConfig:
    return DeeLeMaConfig(**{**QUICK, **fields})


def test_the_structure_follows_from_the_topology() -> None:
    structure = Structure(legs_of())
    assert structure.n_unknown == 4
    assert structure.groups == ("B", "A")
    assert [t.label for t in structure.targets] == ["A_a", "B_a", "A_b", "B_b"]
    pairs = [
        (structure.targets[i].label, structure.targets[j].label) for i, j in structure.relations
    ]
    assert pairs == [("A_a", "A_b"), ("B_a", "B_b")]
    assert structure.permutations.tolist() == [[0, 1, 2, 3], [2, 1, 0, 3]]


def test_an_asymmetric_decay_has_targets_of_its_own() -> None:
    structure = Structure(legs_of(ASYMMETRIC))
    assert structure.groups == ("B", "A", "X")
    assert structure.exchange is None
    assert [t.label for t in structure.targets] == ["X", "A", "B"]
    assert structure.relations == ()
    assert structure.decays == ((("C",),), (("B",),), (("C",),))


def test_a_decay_without_invisible_legs_is_refused() -> None:
    with pytest.raises(TopologyError, match="no invisible leg"):
        Structure(DecayLegs.of("p p > A A, A > a a"))


@pytest.mark.parametrize("text", [ANTLER, ASYMMETRIC])
def test_true_momenta_give_the_true_masses(text: str) -> None:
    visible, ptmiss, hidden = toy(text, 200, recoil=80.0)
    structure = Structure(legs_of(text))
    unknown = unknown_components(hidden, ptmiss)
    assert unknown.shape == (200, structure.n_unknown)
    trial = torch.full((2,), 700.0, dtype=torch.float64)
    again = invisible_momenta(unknown, ptmiss, trial)
    torch.testing.assert_close(again, hidden, rtol=1e-9, atol=1e-6)
    masses = MassFunction(structure)
    found = masses.squared(masses.visible_sums(visible), again).sqrt()
    truth = torch.tensor([{**MASSES, "X": 900.0}[t.species] for t in structure.targets])
    torch.testing.assert_close(found, truth.double().expand_as(found), rtol=1e-7, atol=1e-4)


def test_constraints_hold_for_any_output_of_the_network() -> None:
    unknown = 300 * torch.randn(
        50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    ptmiss = torch.randn(50, 2, dtype=torch.float64)
    q = invisible_momenta(unknown, ptmiss, torch.tensor([700.0, 700.0], dtype=torch.float64))
    torch.testing.assert_close(q[..., :2].sum(1), ptmiss)
    torch.testing.assert_close(fv.mass(q), torch.full((50, 2), 700.0, dtype=torch.float64))


def test_the_frame_does_not_see_the_symmetries_of_a_collision() -> None:
    visible, ptmiss, _ = toy(ANTLER, 100, recoil=60.0)
    structure = Structure(legs_of())
    here = to_frame(structure, visible, ptmiss)
    random = torch.Generator().manual_seed(3)
    shift, angle = torch.randn(2, 100, generator=random, dtype=torch.float64)
    moved = frames._turn(frames._boost(visible, shift), angle)
    turned = fv.rotate_z(ptmiss, angle)
    for other in (moved, moved[:, [2, 3, 0, 1]], moved * torch.tensor([1.0, 1, -1, 1])):
        there = to_frame(structure, other, turned)
        torch.testing.assert_close(there[0], here[0], rtol=1e-8, atol=1e-6)
        torch.testing.assert_close(there[1], here[1], rtol=1e-8, atol=1e-6)


def test_the_frame_is_undone_exactly() -> None:
    visible, ptmiss, hidden = toy(ANTLER, 100)
    structure = Structure(legs_of())
    moved, along, frame = to_frame(structure, visible, ptmiss)
    back = frame.undo(moved[:, [0, 2]])
    torch.testing.assert_close(back, visible[:, [0, 2]], rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(along[:, 0], torch.hypot(*hidden[..., :2].sum(1).T))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("l1", 0.2 + 0.1 + 0.3), ("l2", 0.2**2 + 0.1**2 + 0.3**2), ("squared_mass", 0.8 - 0.05 + 1.2)],
)
def test_distances_are_those_of_the_paper(distance: Any, expected: float) -> None:
    legs = DecayLegs.of("p p > A A, (A > a C)", invisible=["C"])
    loss = Loss(Structure(legs), quick(distance=distance))
    masses = torch.tensor([[2.2, 1.9]])
    if distance == "squared_mass":
        expected = abs(2.2**2 - 4) + abs(1.9**2 - 4) + abs(2.2**2 - 1.9**2)
    value = loss.each(masses.square(), torch.tensor([2.0]))
    torch.testing.assert_close(value, torch.tensor([expected]))


def test_huber_is_quadratic_near_zero_and_linear_beyond() -> None:
    legs = DecayLegs.of("p p > A A, (A > a C)", invisible=["C"])
    loss = Loss(Structure(legs), quick(distance="huber", event_weight=0.0))
    near, far = (loss.each(torch.tensor([[m**2, 4.0]]), torch.tensor([2.0])) for m in (2.001, 3.0))
    assert float(near) == pytest.approx(0.5 * 0.001**2 / 0.01, rel=0.01)
    assert float(far) == pytest.approx(1.0 - 0.005, rel=1e-5)


def test_soft_assignment_lies_between_the_smallest_loss_and_the_mean() -> None:
    loss = Loss(Structure(legs_of()), quick(temperature=0.05))
    losses = torch.tensor([[0.1, 0.5], [0.4, 0.02]])
    value = float(loss.total(losses))
    assert 0.06 < value < 0.255
    weights = loss.weights(losses)
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    assert bool((weights.argmax(0) == losses.argmin(0)).all())


def test_global_masses_stay_ordered_whatever_their_parameters() -> None:
    masses = OrderedMasses(Structure(legs_of()), quick(), 700.0)
    assert (masses() * 700).tolist() == pytest.approx([1000.0, 1300.0], rel=1e-5)
    for seed in range(20):
        with torch.no_grad():
            masses.increments.copy_(
                3 * torch.randn(2, generator=torch.Generator().manual_seed(seed))
            )
        b, a = (masses() * 700).tolist()
        assert 700.0 < b < a


def test_starts_that_are_not_ordered_are_raised() -> None:
    low = quick(start={"B": 640.0, "A": 800.0})
    b, a = (OrderedMasses(Structure(legs_of()), low, 700.0)() * 700).tolist()
    assert 700.0 < b < 702.0
    assert a == pytest.approx(800.0, abs=0.1)


def test_every_parameter_gets_a_gradient() -> None:
    model = DeeLeMa(legs_of(), quick(anchor="none"))
    visible, ptmiss, _ = toy(ANTLER, 64)
    data = model._prepare(visible, ptmiss)
    q = invisible_momenta(
        model.network(data.inputs.flatten(0, 1)),
        data.ptmiss.flatten(0, 1),
        model.global_masses.trial,
    )
    squared = model._mass_function.squared(data.sums.flatten(0, 1), q)
    model.loss.each(squared, model.global_masses()).mean().backward()
    for module in (model.network, model.global_masses):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name


def test_a_fit_lowers_the_loss_and_predicts_consistent_momenta() -> None:
    visible, ptmiss, _ = toy(ANTLER, 2000, recoil=50.0)
    model = DeeLeMa(legs_of(), quick(anchor="none", epochs=8, hidden=32))
    model.fit((visible, ptmiss), progress=False)
    losses = [entry["loss"] for entry in model.record.epochs]
    assert losses[-1] < 0.6 * losses[0]
    found = model.predict((visible, ptmiss))
    torch.testing.assert_close(found.invisible[..., :2].sum(1), ptmiss, rtol=1e-4, atol=1e-2)
    assert float((fv.mass(found.invisible) - 700.0).abs().max()) < 0.1
    taken = visible.gather(1, found.permutation.unsqueeze(-1).expand(-1, -1, 4))
    a_a = fv.mass(taken[:, 0] + taken[:, 1] + found.invisible[:, 0])
    torch.testing.assert_close(a_a, found.mass("A_a"), rtol=1e-4, atol=0.1)


def test_a_fit_works_for_an_asymmetric_decay_and_refuses_its_anchor() -> None:
    visible, ptmiss, _ = toy(ASYMMETRIC, 600)
    with pytest.raises(TopologyError, match="no solvability edge"):
        DeeLeMa(legs_of(ASYMMETRIC), quick()).fit((visible, ptmiss), progress=False)
    model = DeeLeMa(legs_of(ASYMMETRIC), quick(anchor="none"))
    model.fit((visible, ptmiss), progress=False)
    assert set(model.masses) == {"A", "B", "X"}
    assert model.predict((visible, ptmiss)).masses.shape == (600, 3)


def test_the_same_seed_gives_the_same_fit_also_after_an_interruption(tmp_path: Path) -> None:
    visible, ptmiss, _ = toy(ANTLER, 600)
    config = quick(anchor="none", epochs=4)
    whole = DeeLeMa(legs_of(), config).fit((visible, ptmiss), progress=False)

    class StopError(Exception):
        pass

    def stop(entry: Any) -> None:
        if entry["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        DeeLeMa(legs_of(), config).fit(
            (visible, ptmiss), folder=tmp_path, progress=False, on_epoch=stop
        )
    resumed = DeeLeMa(legs_of(), config).fit((visible, ptmiss), folder=tmp_path, progress=False)
    assert resumed.masses == whole.masses
    one, other = (m.predict((visible, ptmiss)).invisible for m in (whole, resumed))
    assert torch.equal(one, other)
    with pytest.raises(ModelError, match="belongs to a fit with other events"):
        DeeLeMa(legs_of(), config).fit((visible, ptmiss), folder=tmp_path, progress=False, seed=5)


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    visible, ptmiss, _ = toy(ANTLER, 600)
    model = DeeLeMa(legs_of(), quick(resolution={"a": ((10.0, 0.1), (100.0, 0.05))}, n_toys=5000))
    model.fit((visible, ptmiss), progress=False, n_bootstrap=3)
    loaded = DeeLeMa.load(model.save(tmp_path / "model", note="test"))
    assert loaded.masses == model.masses
    assert loaded.intervals == model.intervals
    assert loaded.config == model.config
    one, other = (m.predict((visible, ptmiss)) for m in (model, loaded))
    assert torch.equal(one.invisible, other.invisible)
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="damaged"):
        DeeLeMa.load(tmp_path / "model")
    with pytest.raises(ModelError, match="not a saved DeeLeMa"):
        DeeLeMa.load(tmp_path)


@pytest.mark.parametrize(
    ("visible", "ptmiss", "match"),
    [
        (torch.zeros(3, 3, 4), torch.zeros(3, 2), r"shape \(N, 4, 4\)"),
        (torch.zeros(3, 4, 4), torch.zeros(2, 2), r"'ptmiss' should have shape \(3, 2\)"),
    ],
)
def test_wrong_shapes_are_named(visible: Tensor, ptmiss: Tensor, match: str) -> None:
    with pytest.raises(ShapeError, match=match):
        DeeLeMa(legs_of(), quick()).fit((visible, ptmiss), progress=False)


def test_wrong_input_is_named() -> None:
    model = DeeLeMa(legs_of(), quick())
    with pytest.raises(InputError, match="no events"):
        model.fit((torch.zeros(0, 4, 4), torch.zeros(0, 2)), progress=False)
    with pytest.raises(InputError, match="finite"):
        model.fit((torch.full((3, 4, 4), math.nan), torch.zeros(3, 2)), progress=False)
    with pytest.raises(InputError, match="lacks the trial mass of 'C'"):
        DeeLeMa(legs_of(), quick(m_invisible={}))
    with pytest.raises(InputError, match="'start' names 'D'"):
        DeeLeMa(legs_of(), quick(start={"D": 5.0}))
    with pytest.raises(InputError, match="Unknown preset"):
        DeeLeMaConfig.preset("publishd", m_invisible={"C": 1.0})
    with pytest.raises(InputError, match="Unknown distance"):
        quick(distance="l3")
    with pytest.raises(InputError, match="'epochs' should be positive"):
        quick(epochs=0)
    alone = DeeLeMa(legs_of(), quick(anchor="none", assignment="given"))
    with pytest.raises(InputError, match="'batch_norm' needs more than one event in a step"):
        alone.fit(tuple(t[:1] for t in toy(ANTLER, 600)[:2]), progress=False)
    with pytest.raises(InputError, match="'n_bootstrap' should be at least 1, got 0"):
        model.fit(toy(ANTLER, 600)[:2], progress=False, n_bootstrap=0)


@pytest.mark.parametrize(
    "table", [(), ((0.0, 0.1), (50.0, 0.1)), ((50.0, 0.1), (10.0, 0.1)), ((10.0, math.nan),), 0.1]
)
def test_a_resolution_that_cannot_be_interpolated_is_refused(table: Any) -> None:
    with pytest.raises(InputError, match=r"The resolution of 'a' should be pairs of pT"):
        quick(resolution={"a": table})


@pytest.mark.parametrize(
    "change",
    [
        {"intervals": ["A"]},
        {"intervals": {"A": [1.0]}},
        {"scale": 0.0},
        {"config": None},
        {"topology": {"text": ANTLER, "kinds": [], "species": []}},
    ],
)
def test_a_header_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = DeeLeMa(legs_of(), quick()).save(tmp_path / "model")
    header = json.loads((folder / "deelema.json").read_text())
    (folder / "deelema.json").write_text(json.dumps({**header, **change}))
    with pytest.raises(ModelError, match="does not describe a DeeLeMa"):
        DeeLeMa.load(folder)


@pytest.mark.parametrize(("trials", "n_bootstrap"), [([700.0] * 7, 50), (range(600, 740, 20), 1)])
def test_a_scan_that_cannot_be_fitted_is_refused(trials: Any, n_bootstrap: int) -> None:
    visible, ptmiss, _ = toy(ANTLER, 600)
    with pytest.raises(InputError, match="all differ and 'n_bootstrap' of at least 2"):
        DeeLeMa(legs_of(), quick()).scan_trial_mass((visible, ptmiss), trials, n_bootstrap)


def test_the_published_recipe_is_table_ii() -> None:
    config = DeeLeMaConfig.preset("published", m_invisible={"C": 700.0})
    assert (config.hidden, config.layers, config.learning_rate) == (256, 5, 1e-2)
    assert (config.batch_size, config.epochs, config.distance) == (2048, 100, "l1")
    assert (config.anchor, config.assignment, config.frame) == ("none", "given", False)
    assert DeeLeMaConfig.preset("published_ttbar", m_invisible={"nu": 0.0}).learning_rate == 5e-4
    model = DeeLeMa(legs_of(), config)
    assert model.masses == pytest.approx({"B": 1000.0, "A": 1300.0}, rel=1e-5)
