"""Transverse masses: closed forms, identities on random events, gradients, other programs."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import mt2 as peer
import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.kinematics import backends
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.transverse import maos, mct, mct_perp, mt, mt2, mt2_solution
from tests.chains import TOY, TTBAR, chains, reference

N = 2000
BACKENDS = ("numba", "torch")


def random_visible(seed: int, n: int = N, mass: float = 100.0) -> tuple[Tensor, Tensor, Tensor]:
    """Unrelated visible systems and ptmiss: also what no decay would give."""
    generator = torch.Generator().manual_seed(seed)
    p3 = 200 * torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    m = mass * torch.rand(2, n, generator=generator, dtype=torch.float64)
    ptmiss = 150 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    a, b = fv.from_pxpypzm(torch.cat([p3, m.unsqueeze(2)], 2))
    return a, b, ptmiss


def by_peer(a: Tensor, b: Tensor, ptmiss: Tensor, mu_a: float, mu_b: float) -> Tensor:
    """MT2 of the `mt2` package."""
    columns = [fv.mass(a).clamp_min(0), a[:, 0], a[:, 1], fv.mass(b).clamp_min(0), b[:, 0]]
    columns += [b[:, 1], ptmiss[:, 0], ptmiss[:, 1]]
    return torch.from_numpy(np.asarray(peer.mt2(*(c.numpy() for c in columns), mu_a, mu_b)))


def larger_mt(a: Tensor, b: Tensor, ptmiss: Tensor, q: Tensor, mu: float) -> Tensor:
    return torch.maximum(mt(a, q, mu), mt(b, ptmiss - q, mu))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("mass", "mu_a", "mu_b"), [(100, 50, 50), (100, 0, 0), (0, 80, 80)])
def test_mt2_agrees_with_the_mt2_package(
    backend: backends.Backend, mass: float, mu_a: float, mu_b: float
) -> None:
    a, b, ptmiss = random_visible(1, mass=mass)
    ours = mt2(a, b, ptmiss, mu_a, mu_b, backend=backend)
    torch.testing.assert_close(ours, by_peer(a, b, ptmiss, mu_a, mu_b), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mt2_takes_different_trial_masses(backend: backends.Backend) -> None:
    a, b, ptmiss = random_visible(2)
    for mu_a, mu_b in ((20.0, 150.0), (0.0, 60.0), (300.0, 0.0)):
        ours = mt2(a, b, ptmiss, mu_a, mu_b, backend=backend)
        theirs = by_peer(a, b, ptmiss, mu_a, mu_b)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_massless_events_with_zero_mt2_are_exactly_zero() -> None:
    a, b, ptmiss = random_visible(3, mass=0.0)
    ours, theirs = mt2(a, b, ptmiss, 0.0), by_peer(a, b, ptmiss, 0.0, 0.0)
    share = torch.linalg.solve(torch.stack([a[:, :2], b[:, :2]], 2), ptmiss)
    zero = (share >= 0).all(1)
    assert 0.1 < zero.double().mean() < 0.5
    assert (ours[zero] == 0).all()
    # the package stops its search near zero: up to 0.1 GeV there
    assert (theirs[zero] < 0.2).all()
    torch.testing.assert_close(ours[~zero], theirs[~zero], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(("mass", "mu"), [(100, 50), (100, 0), (0, 80), (0, 0)])
def test_both_backends_give_the_same(mass: float, mu: float) -> None:
    a, b, ptmiss = random_visible(4, mass=mass)
    first = mt2_solution(a, b, ptmiss, mu, backend="numba")
    second = mt2_solution(a, b, ptmiss, mu, backend="torch")
    torch.testing.assert_close(first.value, second.value, rtol=1e-9, atol=1e-7)
    assert torch.equal(first.balanced, second.balanced)
    assert first.converged.all()
    assert second.converged.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("mass", "mu"), [(100, 50), (100, 0), (0, 80), (0, 0)])
def test_the_solution_is_a_minimum(backend: backends.Backend, mass: float, mu: float) -> None:
    a, b, ptmiss = random_visible(5, mass=mass)
    solution = mt2_solution(a, b, ptmiss, mu, backend=backend)
    q = solution.invisible_a
    torch.testing.assert_close(q + solution.invisible_b, ptmiss, rtol=1e-9, atol=1e-6)
    reached = larger_mt(a, b, ptmiss, q, mu)
    torch.testing.assert_close(reached, solution.value, rtol=1e-6, atol=2e-3)
    generator = torch.Generator().manual_seed(6)
    for scale in (1.0, 30.0, 300.0):
        other = q + scale * torch.randn(N, 2, generator=generator, dtype=torch.float64)
        nearby = larger_mt(a, b, ptmiss, other, mu)
        assert (nearby >= solution.value * (1 - 1e-9)).all(), f"seed 6, scale {scale}"


def test_identities_of_mt2() -> None:
    a, b, ptmiss = random_visible(7)
    value = mt2(a, b, ptmiss, 60.0)
    angle = torch.linspace(0, 6, N, dtype=torch.float64)
    beta = torch.zeros(N, 3, dtype=torch.float64)
    beta[:, 2] = torch.linspace(-0.9, 0.9, N)
    others = {
        "scale": mt2(3 * a, 3 * b, 3 * ptmiss, 180.0) / 3,
        "exchange": mt2(b, a, ptmiss, 60.0),
        "rotation": mt2(*(fv.rotate_z(v, angle) for v in (a, b, ptmiss)), 60.0),
        "boosts of each side": mt2(fv.boost(a, beta), fv.boost(b, -0.5 * beta), ptmiss, 60.0),
    }
    for name, other in others.items():
        torch.testing.assert_close(other, value, rtol=1e-8, atol=1e-6, msg=lambda m, n=name: n + m)


def test_without_recoil_massless_mt2_has_a_closed_form() -> None:
    a, b, _ = random_visible(8, mass=0.0)
    ptmiss = -(a + b)[:, :2]
    expected = (2 * (fv.pt(a) * fv.pt(b) + (a * b)[:, :2].sum(1))).sqrt()
    torch.testing.assert_close(mt2(a, b, ptmiss, 0.0), expected, rtol=1e-9, atol=1e-6)


def test_unbalanced_events_are_the_sum_of_masses() -> None:
    a, b, _ = random_visible(9)
    m_a = 150.0
    a = fv.from_pxpypzm(torch.cat([a[:, :3], torch.full((N, 1), m_a, dtype=torch.float64)], 1))
    # side a at its minimum, and side b with the momentum left over at rest with its visible part
    q_a, q_b = a[:, :2] * 50 / m_a, b[:, :2] * 50 / fv.mass(b).unsqueeze(1)
    solution = mt2_solution(a, b, q_a + q_b, 50.0)
    expected = torch.maximum(fv.mass(a), fv.mass(b)) + 50
    torch.testing.assert_close(solution.value, expected, rtol=1e-9, atol=1e-7)
    assert not solution.balanced.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_events(backend: backends.Backend) -> None:
    x = torch.tensor([50.0, 0, 0, 50], dtype=torch.float64)
    nothing, flip = torch.zeros(2, dtype=torch.float64), torch.tensor([-1.0, -1, -1, 1])
    assert mt2(x, x * flip, nothing, 0.0, backend=backend) == 0  # back to back
    assert mt2(x, x * flip, nothing, 90.0, backend=backend) == 90  # reached at infinite momenta
    assert mt2_solution(x, x * flip, nothing, 90.0, backend=backend).invisible_a.isnan().all()
    assert mt2(x, 0 * x, nothing, 90.0, backend=backend) == 90  # nothing seen on one side
    y = torch.tensor([0.0, 30, 0, 50], dtype=torch.float64)
    assert mt2(y, 0 * x, nothing, 90.0, backend=backend) == 130
    along = mt2(x, 2 * x, -3 * x[:2], 0.0, backend=backend)  # collinear: 2 (p p + p p)
    torch.testing.assert_close(along, torch.tensor(20_000.0).double().sqrt())


def test_mt2_of_toys_ends_at_the_parent_mass() -> None:
    for masses in (TOY, TTBAR):
        events = chains(20_000, 11, masses)
        value = mt2(*events.both, masses["C"])
        assert value.max() <= masses["A"] * (1 + 1e-9)
        assert value.max() > 0.97 * masses["A"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("mass", "mu"), [(100, 60), (0, 60), (100, 0), (0, 0)])
def test_gradients_agree_with_finite_differences(
    backend: backends.Backend, mass: float, mu: float
) -> None:
    a, b, ptmiss = random_visible(12, n=200, mass=mass)
    mu_a = torch.full((200,), float(mu), dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (a, b, ptmiss, mu_a)]
    mt2(*inputs, backend=backend).sum().backward()
    shifts = [(k, c) for k, t in enumerate((a, b, ptmiss)) for c in range(t.shape[1])]
    # a massless particle stays massless: only its energy is not varied
    shifts = [(k, c) for k, c in shifts if mass > 0]
    balanced = mt2_solution(a, b, ptmiss, mu).balanced
    assert 50 < balanced.sum() < 201
    for k, c in (*shifts, (2, 0), (2, 1), *([(3, None)] if mu else [])):
        values = []
        for sign in (1e-4, -1e-4):
            moved = [t.detach().clone() for t in inputs]
            moved[k][..., c] += sign
            values.append(mt2(*moved, backend=backend))
        numeric = (values[0] - values[1]) / 2e-4
        gradient = inputs[k].grad
        assert gradient is not None
        found = gradient if c is None else gradient[:, c]
        good = ((numeric - found).abs() < 1e-4 * (1 + numeric.abs())).double().mean()
        assert good > 0.97, f"input {k}, component {c}: {good:.3f} (kinks are at most 3 %)"


def test_without_numba_torch_answers() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch\n"
        "from massrecon.errors import MissingExtraError\n"
        "from massrecon.kinematics.constrained import m2_cc\n"
        "from massrecon.kinematics.transverse import mt2\n"
        "a, b = torch.tensor([[60.0, 0, 0, 60], [0.0, 80, 0, 80]]).double()\n"
        "ptmiss = torch.tensor([-60.0, -80.0]).double()\n"
        "assert abs(mt2(a, b, ptmiss, 0.0).item() - 9600**0.5) < 1e-9\n"
        "p3 = 100 * torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(1)).double()\n"
        "visible = torch.cat([p3, p3.norm(dim=2, keepdim=True)], 2)\n"
        "assert m2_cc(*visible, visible[0, :, :2], 90.0).converged.double().mean() > 0.5\n"
        "try:\n"
        "    mt2(a, b, ptmiss, 0.0, backend='numba')\n"
        "except MissingExtraError as error:\n"
        "    assert 'massrecon[fast]' in str(error)\n"
        "else:\n"
        "    sys.exit('Numba is there')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()


def test_functions_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refuse(cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", refuse)

    @backends.compiled
    def double(x: float) -> float:
        return 2 * x

    assert double(2.0) == 4.0
    assert isinstance(double, numba.core.dispatcher.Dispatcher)


def test_gradient_of_a_scalar_trial_mass_sums_over_events() -> None:
    a, b, ptmiss = random_visible(13)
    mu = torch.tensor(60.0, dtype=torch.float64, requires_grad=True)
    mt2(a, b, ptmiss, mu).mean().backward()
    numeric = (mt2(a, b, ptmiss, 60.01) - mt2(a, b, ptmiss, 59.99)).mean() / 0.02
    assert mu.grad is not None
    torch.testing.assert_close(mu.grad, numeric, rtol=1e-3, atol=1e-4)


def test_second_derivatives_are_refused() -> None:
    a, b, ptmiss = random_visible(14, n=3)
    a.requires_grad_()
    with pytest.raises(InputError, match="Second derivatives"):
        torch.autograd.grad(mt2(a, b, ptmiss, 50.0).sum(), a, create_graph=True)


def test_leading_dimensions_broadcast_and_the_type_is_kept() -> None:
    a, b, ptmiss = random_visible(15, n=6)
    trials = torch.tensor([0.0, 50, 100], dtype=torch.float64).reshape(3, 1, 1)
    value = mt2(a.reshape(2, 3, 4), b.reshape(2, 3, 4), ptmiss.reshape(2, 3, 2), trials)
    assert value.shape == (3, 2, 3)
    torch.testing.assert_close(value[1].flatten(), mt2(a, b, ptmiss, 50.0))
    single = mt2(a.float(), b.float(), ptmiss.float(), 50.0)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, value[1].flatten().float(), rtol=1e-4, atol=1e-2)
    assert mt2(a[0], b[0], ptmiss[0], 50.0).shape == ()
    assert mt2(a[:0], b[:0], ptmiss[:0], 50.0).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_do_not_change_the_answer(
    monkeypatch: pytest.MonkeyPatch, backend: backends.Backend
) -> None:
    a, b, ptmiss = (t.reshape(4, 500, -1) for t in random_visible(16))
    whole = mt2(a, b, ptmiss, 30.0, backend=backend)
    for size in (300, 700):  # parts of a row, and whole rows
        monkeypatch.setattr(backends, "CHUNK", size)
        parts = mt2(a, b, ptmiss, 30.0, backend=backend)
        # torch rounds differently at the ends of its vectors
        torch.testing.assert_close(parts, whole, rtol=1e-10 * (backend == "torch"), atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_events_are_nan_with_one_warning(backend: backends.Backend) -> None:
    a, b, ptmiss = random_visible(17, n=8)
    a[1, 0], b[2, 3], ptmiss[3, 1] = math.nan, -1.0, math.inf
    trial = torch.full((8,), 50.0, dtype=torch.float64)
    trial[4] = -1.0
    with pytest.warns(RuntimeWarning, match=r"MT2 is NaN for 4 of 8 events \(50.00%\)") as caught:
        solution = mt2_solution(a, b, ptmiss, trial, backend=backend)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert solution.converged.tolist() == [True, False, False, False, False, True, True, True]
    assert torch.equal(solution.value.isnan(), ~solution.converged)
    a.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mt2(a, b, ptmiss, trial, backend=backend).nansum().backward()
    assert a.grad is not None
    assert a.grad[[0, 2, 3, 4, 5, 6, 7]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_closed_form_hides_an_input_that_is_not_finite(
    backend: backends.Backend, bad: float
) -> None:
    # ptmiss between massless momenta, where MT2 is 0; and a system at rest, where it is a limit
    a = fv.from_pxpypzm(torch.tensor([50.0, 10.0, 20.0, 0.0], dtype=torch.float64))
    b = fv.from_pxpypzm(torch.tensor([10.0, 60.0, -20.0, 0.0], dtype=torch.float64))
    ptmiss = torch.tensor([30.0, 40.0], dtype=torch.float64)
    trial = torch.zeros(2, dtype=torch.float64)
    given = torch.cat([a, b, ptmiss, trial])
    at_rest = torch.cat([torch.zeros(4, dtype=torch.float64), b, ptmiss, trial])
    for event in (given, at_rest):
        rows = event.repeat(len(event) + 1, 1)
        rows[:-1].diagonal().fill_(bad)
        with pytest.warns(RuntimeWarning, match="MT2 is NaN for 12 of 13 events"):
            solution = mt2_solution(
                rows[:, :4], rows[:, 4:8], rows[:, 8:10], rows[:, 10], rows[:, 11], backend=backend
            )
        assert solution.converged.tolist() == [False] * 12 + [True]
        assert solution.value.isnan().tolist() == [True] * 12 + [False]


def test_the_gradient_of_mt_at_zero_is_zero() -> None:
    lepton = torch.tensor([40.0, 0.0, 0.0, 40.0], dtype=torch.float64, requires_grad=True)
    along = torch.tensor([80.0, 0.0], dtype=torch.float64)
    value = mt(lepton, along)
    value.backward()
    assert value == 0
    assert lepton.grad is not None
    assert lepton.grad.tolist() == [0.0] * 4


def test_shape_errors_name_the_argument() -> None:
    a, b, ptmiss = random_visible(18, n=4)
    with pytest.raises(ShapeError, match=r"'ptmiss' should have shape \(..., 2\), got \(4, 4\)"):
        mt2(a, b, a, 50.0)
    with pytest.raises(ShapeError, match="'visible_b'"):
        mt2(a, b[:, :3], ptmiss, 50.0)
    with pytest.raises(InputError, match=r"do not fit together: 'visible_a' \(4,\)"):
        mt2(a, b[:3], ptmiss, 50.0)
    with pytest.raises(InputError, match="Unknown backend 'cuda'"):
        mt2(a, b, ptmiss, 50.0, backend="cuda")


def test_mt_of_two_body_decays_ends_at_the_parent_mass() -> None:
    events = chains(20_000, 19, TTBAR)
    value = mt(events.lower_a, events.invisible_a[:, :2])
    assert value.max() <= 80.4 * (1 + 1e-7)
    assert value.max() > 80.0
    flat = events.lower_a.clone()
    flat[:, 2] = 0
    flat[:, 3] = fv.pt(flat)
    q = torch.cat([events.invisible_a[:, :2], torch.zeros(20_000, 1)], 1)
    neutrino = fv.from_pxpypzm(torch.cat([q, torch.zeros(20_000, 1)], 1))
    torch.testing.assert_close(value, fv.mass(flat + neutrino), rtol=1e-6, atol=1e-5)


def test_maos_momenta_are_on_shell() -> None:
    events = chains(5000, 20, TTBAR)
    a, b, ptmiss = events.both
    solution = mt2_solution(a, b, ptmiss, 0.0)
    for m_parent in (None, 173.0):
        parent = solution.value if m_parent is None else torch.full((5000,), m_parent).double()
        for visible, q in zip((a, b), maos(solution, a, b, 0.0, m_parent=m_parent), strict=True):
            assert q.shape == (5000, 2, 4)
            assert q.isfinite().all()
            assert (q[:, 0, 2].abs() <= q[:, 1, 2].abs()).all()
            mass = fv.mass(visible.unsqueeze(1) + q)
            torch.testing.assert_close(mass, parent.unsqueeze(1).expand(-1, 2), rtol=1e-6, atol=0)
    q, _ = maos(solution, a, b, 0.0)
    same = solution.balanced
    difference = (q[same, 0, 2] - q[same, 1, 2]).abs()
    assert (difference < 1e-2 * q[same, 0, 3]).all()
    assert maos(solution, a, b, 0.0, m_parent=10.0)[0].isnan().all()


def test_maos_momenta_are_near_the_true_ones_at_the_endpoint() -> None:
    events = chains(50_000, 21, TTBAR)
    a, b, ptmiss = events.both
    solution = mt2_solution(a, b, ptmiss, 0.0)
    q, _ = maos(solution, a, b, 0.0)
    off = (q[:, 0, :3] - events.invisible_a[:, :3]).norm(dim=1)
    near = solution.balanced & (solution.value > 165)
    far = solution.balanced & (solution.value < 140)
    assert near.sum() > 100
    assert off[near].median() < 0.5 * off[far].median()


def test_mct_ends_where_the_masses_say_and_ignores_equal_boosts() -> None:
    events = chains(20_000, 22, TOY, recoil=0.0)
    value = mct(events.upper_a, events.upper_b)
    end = (1000.0**2 - 800.0**2) / 1000.0
    # MCT of massless a: 2 E* with E* = (m_A^2 - m_B^2) / (2 m_A)
    assert value.max() <= end * (1 + 1e-6)
    assert value.max() > 0.95 * end
    a, b, _ = random_visible(23)
    a[:, 2], b[:, 2] = 0, 0
    a[:, 3], b[:, 3] = fv.energy_from_mass(a[:, :3], a[:, 0] * 0 + 9), fv.pt(b)
    beta = torch.zeros(N, 3, dtype=torch.float64)
    beta[:, 0] = torch.linspace(-0.8, 0.8, N)
    boosted = mct(fv.boost(a, beta), fv.boost(b, -beta))
    torch.testing.assert_close(boosted, mct(a, b), rtol=1e-9, atol=1e-6)


def test_mct_perp_ignores_the_recoil() -> None:
    still, kicked = chains(20_000, 24, TOY, recoil=0.0), chains(20_000, 24, TOY, recoil=300.0)
    end = (1000.0**2 - 800.0**2) / 1000.0
    for events in (still, kicked):
        # a and b of each side together are invisible to MCT-perp of the upper ones
        ptmiss = events.ptmiss + (events.lower_a + events.lower_b)[:, :2]
        value = mct_perp(events.upper_a, events.upper_b, ptmiss)
        if events is kicked:
            assert value.max() <= end * (1 + 1e-6)
            assert value.max() > 0.9 * end
    x = torch.tensor([30.0, 40, 7, 50.5], dtype=torch.float64)
    assert mct_perp(x, x, -2 * x[:2]).isnan()
    assert mct(kicked.upper_a, kicked.upper_b).max() > end * 1.01


@pytest.mark.parametrize("name", ["toy", "ttbar"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_reference_table(name: str, backend: backends.Backend) -> None:
    d = reference(name)
    ua, la, ub, lb = (d[f"visible_{k}_{s}"] for s in "ab" for k in ("upper", "lower"))
    q, mu = d["ptmiss"], d["m_invisible"]
    for column, (a, b, ptmiss, trial) in {
        "mt2_ab": (ua + la, ub + lb, q, mu),
        "mt2_b": (la, lb, q, mu),
        "mt2_a": (ua, ub, q + (la + lb)[:, :2], d["mt2_a_trial_mass"]),
    }.items():
        ours = mt2(a, b, ptmiss, trial, backend=backend)
        near = torch.where(
            ours == 0, d[column] < 0.05, (ours - d[column]).abs() <= 1e-6 * d[column]
        )
        assert near.double().mean() >= 0.999, f"{column}: {near.double().mean()}"
