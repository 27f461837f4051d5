"""Phase space: exact kinematics, and distributions against closed forms with stated p-values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.nbody import breakup_momentum, breit_wigner, decay
from massrecon.kinematics.phasespace import CUT_OFF, PhaseSpace
from massrecon.kinematics.production import Beams, produce
from massrecon.kinematics.topology import DecayTopology

ANTLER = DecayTopology.parse("p p > A A, (A > a B, B > b C), (A > a B, B > b C)")
MASSES = {"A": 1000.0, "B": 800.0, "C": 700.0}
BEAMS = Beams(energy=13_000.0)

P_LOWEST = 1e-3
"""Fixed seeds: a correct sampler fails with this probability for one choice of the seed."""


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masses(n: int, **values: float) -> dict[str, Tensor]:
    chosen = values or MASSES
    return {name: torch.full((n,), m, dtype=torch.float64) for name, m in chosen.items()}


def at_rest(n: int, mass: float) -> Tensor:
    return torch.tensor([0.0, 0.0, 0.0, mass], dtype=torch.float64).expand(n, 4)


def antler(n: int, seed: int = 1, beams: Beams = BEAMS) -> Tensor:
    return PhaseSpace(topology=ANTLER, beams=beams).sample(masses(n), seeded(seed))


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > P_LOWEST


@pytest.mark.parametrize(
    ("text", "values", "widths"),
    [
        (ANTLER.text, MASSES, {}),
        (ANTLER.text, MASSES, {"A": 30.0, "B": 20.0}),
        ("p p > X, X > a b c", {"X": 900.0, "a": 100.0, "c": 300.0}, {"X": 40.0}),
        ("p p > H H H, H > b b", {"H": 125.0, "b": 4.7}, {}),
        ("p p > G G, G > q q q q N", {"G": 1500.0, "N": 400.0}, {}),
        ("p p > t t, (t > b W, W > l nu)", {"t": 173.0, "W": 80.4}, {"t": 1.5, "W": 2.1}),
    ],
)
def test_every_decay_conserves_momentum_on_the_mass_shell(
    text: str, values: dict[str, float], widths: dict[str, float]
) -> None:
    topology = DecayTopology.parse(text)
    space = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0, recoil=50.0), widths=widths)
    partons = space.sample(masses(400, **values), seeded())
    assert partons.dtype == torch.float64
    assert torch.isfinite(partons).all()
    p4 = fv.from_pxpypzm(partons)
    for node in topology.nodes:
        if node.name not in widths:
            expected = values.get(node.name, 0.0)
            assert (partons[:, node.index, 3] == expected).all(), node.label
        if node.children:
            difference = p4[:, node.index] - p4[:, list(node.children)].sum(1)
            assert difference.abs().max() < 1e-8, node.label
    total = p4[:, [root.index for root in topology.roots]].sum(1)
    assert (fv.mass(total) < 13_000.0).all()


def test_directions_in_the_rest_frame_are_isotropic() -> None:
    partons = fv.from_pxpypzm(antler(20_000))
    for mother, daughter in (("A_a", "B_a"), ("B_b", "C_b")):
        frame = partons[:, ANTLER.node(mother).index]
        seen = fv.boost_to_rest_frame(partons[:, ANTLER.node(daughter).index], frame)
        assert_uniform(seen[:, 2] / seen[:, :3].norm(dim=1), -1.0, 1.0)
        assert_uniform(fv.phi(seen), -math.pi, math.pi)
        along = (seen[:, :3] * frame[:, :3]).sum(1) / seen[:, :3].norm(dim=1)
        assert_uniform(along / frame[:, :3].norm(dim=1), -1.0, 1.0)


def test_two_body_momenta_are_those_of_the_closed_form() -> None:
    made = decay(at_rest(50, 10.0), torch.tensor([[3.0, 4.0]] * 50, dtype=torch.float64), seeded())
    expected = math.sqrt((100 - 49) * (100 - 1)) / 20
    torch.testing.assert_close(made[:, 0, :3].norm(dim=1), torch.full((50,), expected).double())
    assert breakup_momentum(*torch.tensor([1.0, 0.8, 0.3])) == 0.0


def test_a_closed_decay_has_no_momentum() -> None:
    mass, one, other = torch.tensor([[1.0, 5.0, 1.0], [3.0, 1.0, 5.0], [5.0, 2.0, 4.0]]).unbind(1)
    assert breakup_momentum(mass, one, other).tolist() == [0.0, 0.0, 0.0]


def test_three_bodies_fill_the_dalitz_plot_evenly() -> None:
    total, one, two, three = 1000.0, 100.0, 50.0, 300.0
    n = 20_000
    triple = torch.tensor([one, two, three], dtype=torch.float64).expand(n, 3)
    p4 = fv.from_pxpypzm(decay(at_rest(n, total), triple, seeded(2)))
    s12 = fv.mass_squared(p4[:, 0] + p4[:, 1])
    s23 = fv.mass_squared(p4[:, 1] + p4[:, 2])
    m12 = s12.sqrt()
    energy_2 = (s12 - one**2 + two**2) / (2 * m12)
    energy_3 = (total**2 - s12 - three**2) / (2 * m12)
    momenta = (energy_2**2 - two**2).sqrt(), (energy_3**2 - three**2).sqrt()
    low = (energy_2 + energy_3) ** 2 - (momenta[0] + momenta[1]) ** 2
    high = (energy_2 + energy_3) ** 2 - (momenta[0] - momenta[1]) ** 2
    assert_uniform((s23 - low) / (high - low), 0.0, 1.0)
    grid = np.linspace((one + two) ** 2, (total - three) ** 2, 4001)
    m = torch.as_tensor(np.sqrt(grid))
    height = breakup_momentum(m, torch.tensor(one), torch.tensor(two))
    height = height * breakup_momentum(torch.tensor(total), m, torch.tensor(three))
    density = (height / m).numpy()  # of s12: the width of the Dalitz plot
    cdf = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cdf /= cdf[-1]
    found = stats.kstest(s12.numpy(), lambda s: np.interp(s, grid, cdf))
    assert found.pvalue > P_LOWEST


@pytest.mark.parametrize("n", [3, 4, 6])
def test_massless_bodies_share_the_energy_as_in_closed_form(n: int) -> None:
    # x = 2E/M of each particle is distributed as x (1 - x)^(n - 3), by integrating out the others
    made = decay(at_rest(8_000, 2.0), torch.zeros(8_000, n, dtype=torch.float64), seeded(n))
    energy = fv.from_pxpypzm(made)[..., 3]
    for i in (0, 1, n - 1):
        found = stats.kstest(energy[:, i].numpy(), stats.beta(2, n - 2).cdf)
        assert found.pvalue > P_LOWEST, i


def test_bodies_of_equal_mass_are_treated_alike() -> None:
    equal = torch.full((8_000, 4), 0.3, dtype=torch.float64)
    energy = fv.from_pxpypzm(decay(at_rest(8_000, 2.0), equal, seeded(5)))[..., 3].numpy()
    for i in range(1, 4):
        assert stats.ks_2samp(energy[::2, 0], energy[1::2, i]).pvalue > P_LOWEST


def test_a_moving_parent_decays_as_one_at_rest_seen_from_a_moving_frame() -> None:
    beta = torch.tensor([0.3, -0.5, 0.7], dtype=torch.float64)
    still = at_rest(200, 500.0)
    moving = fv.to_pxpypzm(fv.boost(fv.from_pxpypzm(still), beta.expand(200, 3)))
    products = torch.tensor([[100.0, 0.0, 50.0]] * 200, dtype=torch.float64)
    one = fv.from_pxpypzm(decay(still, products, seeded()))
    two = fv.from_pxpypzm(decay(moving, products, seeded()))
    torch.testing.assert_close(fv.boost(one, beta.expand(200, 3, 3)), two)


def test_a_light_fast_parent_keeps_its_precision() -> None:
    fast = torch.tensor([[0.0, 0.0, 5000.0, 0.2]], dtype=torch.float64)
    made = fv.from_pxpypzm(decay(fast, torch.zeros(1, 2, dtype=torch.float64), seeded()))
    torch.testing.assert_close(made.sum(1), fv.from_pxpypzm(fast), rtol=1e-14, atol=1e-9)


def test_visible_pairs_have_the_triangular_mass_edge() -> None:
    p4 = fv.from_pxpypzm(antler(20_000, seed=3))
    for side in ("a", "b"):
        pair = p4[:, ANTLER.node(f"a_{side}").index] + p4[:, ANTLER.node(f"b_{side}").index]
        a, b, c = (MASSES[name] ** 2 for name in "ABC")
        edge = math.sqrt((a - b) * (b - c) / b)
        assert fv.mass(pair).max() <= edge * (1 + 1e-9)
        assert_uniform(fv.mass_squared(pair), 0.0, edge**2)


def test_resonances_follow_the_breit_wigner_between_their_limits() -> None:
    n, pole, width, low, high = 20_000, 173.0, 1.5, 165.0, 180.0
    line = [torch.full((n,), value, dtype=torch.float64) for value in (pole, low, high)]
    drawn = breit_wigner(line[0], width, line[1], line[2], seeded()).numpy()
    assert drawn.min() >= low
    assert drawn.max() <= high

    def below(m: np.ndarray | float) -> np.ndarray:
        return np.arctan((np.asarray(m) ** 2 - pole**2) / (pole * width))

    cdf = stats.kstest(drawn, lambda m: (below(m) - below(low)) / (below(high) - below(low)))
    assert cdf.pvalue > P_LOWEST


def test_widths_never_close_a_decay() -> None:
    wide = {"A": 60.0, "B": 80.0}
    space = PhaseSpace(topology=ANTLER, beams=BEAMS, widths=wide)
    partons = space.sample(masses(20_000, A=1000.0, B=950.0, C=930.0), seeded())
    drawn = {label: partons[:, i, 3] for i, label in enumerate(ANTLER.labels)}
    for side in ("a", "b"):
        assert (drawn[f"A_{side}"] > drawn[f"B_{side}"]).all()
        assert (drawn[f"B_{side}"] > drawn[f"C_{side}"]).all()
        assert (drawn[f"A_{side}"] - 1000.0).abs().max() <= CUT_OFF * 60.0
        assert drawn[f"A_{side}"].std() > 30.0


def test_the_pair_mass_follows_the_formula_of_the_module() -> None:
    n, mass = 40_000, 1000.0
    pair = torch.full((n, 2), mass, dtype=torch.float64)
    total = fv.from_pxpypzm(produce(pair, BEAMS, seeded(4))).sum(1)
    tau = (fv.mass(total) / BEAMS.energy).square().numpy()
    a, b = BEAMS.parton_exponents
    edges = np.quantile(tau, np.linspace(0, 1, 21))
    edges[0], edges[-1] = (2 * mass / BEAMS.energy) ** 2, 1.0

    def density(t: float) -> float:
        # d sigma / d tau by direct integration over x1, x2 = tau / x1
        x = np.exp(np.linspace(np.log(t), 0, 2001))
        parton = x ** (a - 1) * (1 - x) ** b
        other = (t / x) ** (a - 1) * (1 - t / x).clip(0) ** b
        beta = math.sqrt(max(1 - (2 * mass / BEAMS.energy) ** 2 / t, 0))
        return float(np.trapezoid(parton * other / x, x)) * beta / t

    expected = []
    for low, high in itertools.pairwise(edges):
        t = np.linspace(low, high, 201)
        expected.append(np.trapezoid([density(value) for value in t], t))
    counts = np.histogram(tau, edges)[0]
    share = np.array(expected) / np.sum(expected) * n
    assert stats.chisquare(counts, share).pvalue > P_LOWEST


def test_rapidities_are_symmetric_and_bounded() -> None:
    total = fv.from_pxpypzm(produce(torch.full((20_000, 2), 500.0).double(), BEAMS, seeded())).sum(
        1
    )
    y = fv.rapidity(total)
    assert stats.ks_2samp(y.numpy()[::2], -y.numpy()[1::2]).pvalue > P_LOWEST
    assert (y.abs() <= torch.log(BEAMS.energy / fv.mass(total)) + 1e-9).all()


def test_the_recoil_has_the_stated_median_and_is_absent_by_default() -> None:
    kicked = antler(20_000, beams=Beams(energy=13_000.0, recoil=40.0))
    roots = [root.index for root in ANTLER.roots]
    kick = kicked[:, roots, :2].sum(1).norm(dim=1).numpy()
    law = stats.kstest(kick, lambda pt: pt**2 / (pt**2 + 40.0**2))
    assert law.pvalue > P_LOWEST
    assert antler(100)[:, roots, :2].sum(1).abs().max() < 1e-8


def test_one_produced_particle_carries_the_whole_energy() -> None:
    z = produce(torch.full((100, 1), 91.2, dtype=torch.float64), BEAMS, seeded())
    assert z.shape == (100, 1, 4)
    assert z[:, 0, :2].abs().max() == 0.0
    assert z[:, 0, 2].std() > 10.0


def test_the_same_seed_gives_the_same_events_and_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(antler(300, seed=7), antler(300, seed=7))
    assert not torch.equal(antler(300, seed=7), antler(300, seed=8))
    assert torch.equal(before, torch.get_rng_state())
    assert antler(0).shape == (0, len(ANTLER.nodes), 4)


@pytest.mark.parametrize(
    ("values", "energy", "message"),
    [
        ({"A": 1000.0, "B": 1000.0, "C": 1.0}, 13_000.0, "A > a B is closed by 0 GeV at A = 1000"),
        ({"A": 1000.0, "B": 800.0, "C": 900.0}, 13_000.0, "B > b C is closed by 100 GeV"),
        ({"A": 7000.0, "B": 1.0}, 13_000.0, "Beams of 13000 GeV cannot produce 14000 GeV"),
        ({"A": math.nan, "B": 1.0}, 13_000.0, "'masses' should be finite"),
        ({"A": -1.0, "B": 1.0}, 13_000.0, "'masses' should be finite and at least 0"),
        ({"A": 10.0, "D": 1.0}, 13_000.0, "'masses' names 'D', which is not in the decay"),
    ],
)
def test_what_cannot_happen_is_refused(
    values: dict[str, float], energy: float, message: str
) -> None:
    space = PhaseSpace(topology=ANTLER, beams=Beams(energy=energy))
    with pytest.raises(InputError, match=message):
        space.sample(masses(3, **values), seeded())
    with pytest.raises(InputError, match="'masses' is empty"):
        space.sample({}, seeded())


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"D": 1.0}, "'widths' names 'D', which is not in the decay: choose from A, B, C"),
        ({"B": -1.0}, "'widths' should be finite and at least 0 GeV, got -1 for 'B'"),
        ({"B": math.nan}, "'widths' should be finite and at least 0 GeV, got nan for 'B'"),
        ({"C": 2.0}, "'C' has a width but no mass"),
    ],
)
def test_widths_that_cannot_be_are_refused(widths: dict[str, float], message: str) -> None:
    space = PhaseSpace(topology=ANTLER, beams=BEAMS, widths=widths)
    with pytest.raises(InputError, match=message):
        space.sample(masses(3, A=1000.0, B=800.0), seeded())


@pytest.mark.gpu
def test_events_are_made_on_the_device_of_the_generator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator("cuda").manual_seed(1)
    on_device = {name: m.cuda() for name, m in masses(100).items()}
    made = PhaseSpace(topology=ANTLER, beams=BEAMS).sample(on_device, generator)
    assert made.device.type == "cuda"
    assert torch.isfinite(made).all()
