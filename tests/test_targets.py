"""Target spaces: what follows from what, coordinates, exact Jacobians."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.inference.unfolding import label_of, target_of, true_values
from massrecon.models.quantities import quantity_label
from massrecon.models.targets import Coordinates, TargetSpace, column_names, independent_columns
from tests.conftest import ToyEvents

COORDINATES: tuple[Coordinates, ...] = ("cartesian", "polar")


@pytest.fixture(scope="module")
def events(toy_events: ToyEvents) -> Events:
    return toy_events(400, seed=41)


def fitted(events: Events, choice: str, coordinates: str = "cartesian") -> TargetSpace:
    space = TargetSpace(events.card, choice, coordinates)
    space.fit(space.values(events))
    return space


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("choice", ["card", "masses", "resonances"])
def test_coordinates_can_be_taken_back(events: Events, choice: str, coordinates: str) -> None:
    space = fitted(events, choice, coordinates)
    values = space.values(events)
    x = space.encode(values)
    assert x.shape == (len(events), len(space))
    again = space.decode(x)
    assert again.dtype == torch.float64
    torch.testing.assert_close(again, values, rtol=2e-3, atol=1.0)
    torch.testing.assert_close(x.std(dim=0), torch.ones(len(space)).double(), rtol=0.3, atol=0.3)


def test_what_follows_from_other_columns_is_left_out(events: Events, card: ProcessCard) -> None:
    masses = fitted(events, "masses")
    assert masses.names == ("chi20_m", "chi10_m")
    assert masses.kept.tolist() == [1]  # the toy has a single chi20 mass
    assert masses.decode(torch.zeros(3, 1))[:, 0].tolist() == pytest.approx([600.0] * 3)
    resonances = fitted(events, "resonances")
    kept = {resonances.names[i] for i in resonances.kept.tolist()}
    assert len(resonances.names) == 4 * len(card.parton_names) == 64
    # nine independent three-momenta of ten legs, since chi1 recoils against chi20, and one mass
    assert len(kept) == 28
    assert "chi10_a_m" in kept
    assert not kept & {"chi10_b_m", "h_m", "W_m", "chi20_m", "chi1_m", "u_a_m", "gamma2_px"}


def test_conservation_holds_for_whatever_is_drawn(events: Events) -> None:
    space = fitted(events, "resonances", "polar")
    drawn = space.decode(torch.randn(50, len(space), generator=torch.Generator().manual_seed(1)))
    column = {name: drawn[:, i] for i, name in enumerate(space.names)}
    for parent, children in (
        ("chi20", ("h", "chi10_a")), ("chi1", ("W", "chi10_b")), ("h", ("gamma1", "gamma2")),
        ("chi10_b", ("u_b", "d_b", "s_b")),
    ):  # fmt: skip
        for component in ("px", "py", "pz"):
            total = sum(column[f"{child}_{component}"] for child in children)
            torch.testing.assert_close(column[f"{parent}_{component}"], total, rtol=1e-3, atol=0.5)
    torch.testing.assert_close(column["chi10_a_m"], column["chi10_b_m"], rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_jacobian_is_that_of_the_map(events: Events, coordinates: Coordinates) -> None:
    space = fitted(events, "card", coordinates)
    values = space.values(events)[:5]
    found = space.log_jacobian(values)
    for value, expected in zip(values, found, strict=True):

        def encode(free: Tensor, value: Tensor = value) -> Tensor:
            whole = value.clone()
            whole[space.kept] = free
            return space.encode(whole)

        jacobian = torch.autograd.functional.jacobian(encode, value[space.kept])
        assert isinstance(jacobian, Tensor)
        exact = torch.linalg.slogdet(jacobian.double()).logabsdet
        assert float(expected) == pytest.approx(float(exact), abs=1e-4)


def test_azimuth_has_no_seam(events: Events) -> None:
    space = fitted(events, "card", "polar")
    value = space.values(events)[:1].repeat(2, 1)
    for row, angle in enumerate((math.pi - 1e-4, -math.pi + 1e-4)):
        value[row, 0], value[row, 1] = 200 * math.cos(angle), 200 * math.sin(angle)
    x = space.encode(value)
    assert float((x[0] - x[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_rotations_commute_with_the_coordinates(events: Events, coordinates: Coordinates) -> None:
    space = fitted(events, "card", coordinates)
    values = space.values(events)
    turns = torch.linspace(0, 6, len(events)), torch.where(torch.arange(len(events)) % 2 > 0, 1, -1)
    turned = space.turn(values, *turns)
    x, y = space.encode(values), space.encode(turned)
    torch.testing.assert_close(x[:, :2].norm(dim=1), y[:, :2].norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, 2], x[:, 2] * turns[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned[:, 3::4], values[:, 3::4])


def test_independent_columns_of_known_relations() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = 100 * torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    constant = torch.full_like(a, 125.0)
    electron_or_muon = 0.1 * (a > 0).double()
    table = torch.stack([a, constant, 2 * a + 5, b, a - b, electron_or_muon, a * b / 100], dim=1)
    assert independent_columns(table) == [0, 3, 6]


def test_saved_space_is_the_same(events: Events) -> None:
    space = fitted(events, "resonances", "polar")
    other = TargetSpace(events.card, "resonances", "polar")
    other.load_state_dict(space.state_dict())
    values = space.values(events)
    assert torch.equal(other.encode(values), space.encode(values))


def test_names_and_truth(events: Events) -> None:
    assert column_names(load_card("ttbar_dilepton"), "resonances")[:4] == (
        "t_a_px", "t_a_py", "t_a_pz", "t_a_m",
    )  # fmt: skip
    assert column_names(load_card("antler"), "masses") == ("A_m", "B_m", "C_m")
    assert column_names(load_card("wino_udd"), "W l")[3:6] == ("W_m", "l_px", "l_py")
    data = dataclasses.replace(events, partons=None, masses=None)
    for choice in ("card", "masses", "resonances", "chi20"):
        space = TargetSpace(events.card, choice, "cartesian")
        assert space.knows_truth(events)
        assert not space.knows_truth(data)


def test_a_quantity_is_a_mass_or_one_of_the_particles(events: Events) -> None:
    card = events.card
    assert target_of(card, "chi10") == ("masses", "chi10_m")
    assert target_of(card, "pt  h") == ("pt  h", "pt h")
    assert "χ" in label_of(card, "chi10")
    assert events.masses is not None
    assert torch.equal(true_values(events, "chi10"), events.masses[:, 1].double())
    space = TargetSpace(card, "cos h chi20", "cartesian")
    assert torch.equal(true_values(events, "cos h chi20"), space.values(events)[:, 0])
    with pytest.raises(InputError, match="do not carry the true 'pt h'"):
        true_values(dataclasses.replace(events, partons=None), "pt h")


def test_quantities_of_particles_do_not_turn(events: Events) -> None:
    space = TargetSpace(events.card, "cos h chi20, pt h chi10_a, mass h chi10_a", "cartesian")
    assert space.names == ("cos h chi20", "pt h chi10_a", "mass h chi10_a")
    assert quantity_label(events.card, "pt h") == "<i>p</i><sub>T</sub>(h) [GeV]"
    cos, pt, mass = space.values(events).unbind(dim=1)
    assert events.partons is not None
    names = list(events.card.parton_names)
    parent = events.partons[:, names.index("chi20")].double()
    torch.testing.assert_close(pt, torch.hypot(parent[:, 0], parent[:, 1]), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(mass, parent[:, 3], rtol=1e-4, atol=1e-2)
    # the energy in the rest frame follows from the masses, so the lab energy tells the angle
    h = events.partons[:, names.index("h")].double()
    energy, momentum = (parent.square().sum(1).sqrt(), parent[:, :3].norm(dim=1))
    m_h, m_x = h[:, 3], events.partons[:, names.index("chi10_a"), 3].double()
    at_rest = (parent[:, 3].square() + m_h.square() - m_x.square()) / (2 * parent[:, 3])
    p_rest = (at_rest.square() - m_h.square()).sqrt()
    lab = (energy * at_rest + momentum * p_rest * cos) / parent[:, 3]
    torch.testing.assert_close(lab, h.square().sum(1).sqrt(), rtol=1e-4, atol=1e-2)
    angle, flip = torch.rand(len(events)), torch.ones(len(events))
    assert torch.equal(space.turn(space.values(events), angle, flip), space.values(events))


def test_errors_name_the_remedy(events: Events) -> None:
    with pytest.raises(InputError, match="choice of targets 'mass'.*did you mean 'masses'"):
        TargetSpace(events.card, "mass", "cartesian")
    with pytest.raises(InputError, match="choice of targets 'x'"):
        TargetSpace(events.card, "chi20 x", "cartesian")
    with pytest.raises(InputError, match="'cos' needs a particle and its parent, got 'cos chi20'"):
        TargetSpace(events.card, "cos chi20", "cartesian")
    with pytest.raises(InputError, match="Unknown particle of .* 'chi2'"):
        TargetSpace(events.card, "pt chi2", "cartesian")
    with pytest.raises(InputError, match="choice of coordinates 'round'"):
        TargetSpace(events.card, "card", "round")
    with pytest.raises(InputError, match="'background_wh' names no masses to learn"):
        TargetSpace(load_card("background_wh"), "masses", "cartesian")
    space = TargetSpace(events.card, "masses", "cartesian")
    with pytest.raises(InputError, match="None of the targets chi20_m, chi10_m, … varies"):
        space.fit(torch.tensor([[600.0, 200.0]]).repeat(10, 1))
    with pytest.raises(InputError, match="finite targets of at least one event, got 0"):
        space.fit(torch.zeros(0, 2))
