"""The sum over hypotheses of the mixture: against a slow loop with explicit matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics import mixture_algebra as algebra
from massrecon.kinematics import mixture_sums
from massrecon.kinematics.backends import compiled
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_chains import ChainBuilder
from massrecon.kinematics.mixture_events import DetectedEvents, EventBlock, MixtureOptions
from massrecon.kinematics.mixture_fit import mean_loss, prepare
from massrecon.kinematics.mixture_parameters import BARE
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable

SHARP = ResponseTable({"jet": ((50,), (0.1,)), "lepton": ((50,), (0.02,))}, ((500,), (1e-6,)))
TOP = "p p > t t~, (t > b W, W > l nu), (t~ > b W, W > q q)"


def semileptonic(**options: object) -> KinematicMixture:
    """One top decays leptonically; the hadronic W has a known mass."""
    legs = DecayLegs.of(TOP, ["nu"], {"b": "jet", "q": "jet", "l": "lepton"}, {"t~": "t"})
    scheme = MassScheme.of(legs, {"top": ["t", "t~"]}, {"W": 80.379})
    mixture = KinematicMixture(
        scheme, SHARP, MassRegion((100.0,), (300.0,)), MixtureOptions(**options)
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in mixture.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise
    return mixture


def random_events(n: int, n_jets: int, seed: int) -> DetectedEvents:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, n_jets + 1, 4, generator=generator, dtype=torch.float64)
    p4 = fv.from_ptetaphim(
        30 + 150 * uniform[..., 0],
        3 * uniform[..., 1] - 1.5,
        6.28 * uniform[..., 2],
        3 + 7 * uniform[..., 3],
    )
    ptmiss = 40 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    present = torch.ones(n, n_jets + 1, dtype=torch.bool)
    return DetectedEvents(p4, present, ("lepton", *["jet"] * n_jets), ptmiss)


def measured_masses(builder: ChainBuilder, block: EventBlock, factor: Tensor) -> Tensor:
    """Masses of a chain when every object is scaled, with the invisible leg solved again."""
    objects = type(block.objects)(
        block.objects.p4 * factor[:, None],
        block.objects.kinds,
        block.objects.ptmiss,
        block.objects.resolution,
        block.objects.ptmiss_width,
    )
    terms = builder.terms(objects)
    return torch.stack(torch.broadcast_tensors(*terms.mass)).flatten(1, 2)


@torch.no_grad()
def slow_gaussians(mixture: KinematicMixture, block: EventBlock) -> tuple[np.ndarray, np.ndarray]:
    """Means and log weights ``(A, N)`` by explicit matrices and numerical derivatives."""
    step, n_objects, n_events = 1e-5, len(block.objects.kinds), len(block.rows)
    factors = dict(zip(mixture.sources, mixture.log_width.exp().tolist(), strict=True))
    widths = torch.stack(
        [r * factors[k] for r, k in zip(block.objects.resolution, block.objects.kinds, strict=True)]
    )
    mass, covariance, log_weight, expected, column = [], [], [], [], []
    for s, builder in enumerate(block.plan.builders):
        response, lost = mixture.chains[s], (builder.index < 0).sum(1)
        lost = lost.repeat(builder.n_roots)
        base = measured_masses(builder, block, torch.ones(n_objects, dtype=torch.float64))
        change = []
        for k in range(n_objects):
            up = torch.ones(n_objects, dtype=torch.float64)
            up[k] += step
            down = 2 - up
            change.append(measured_masses(builder, block, up))
            change[-1] = (change[-1] - measured_masses(builder, block, down)) / (2 * step)
        jacobian = torch.stack(change)  # (K, d, C, N)
        jets = torch.tensor([kind == "jet" for kind in block.objects.kinds]).to(jacobian)
        lean = torch.einsum("k,kdcn->dcn", jets, jacobian)
        cov = torch.einsum("kicn,kjcn,kn->ijcn", jacobian, jacobian, widths**2)
        cov += (2 * response.log_spread[lost]).exp()[:, None] * lean[:, None] * lean[None]
        blur = (2 * response.log_blur[:, lost]).exp()[..., None] * base**2 + 1
        terms = builder.terms(block.objects)
        for i, node in enumerate(response.nodes):
            bare = terms.bare[i].repeat(builder.n_roots)[:, None]
            cov[i, i] += blur[i] + BARE**2 * bare * base[i] ** 2
            if builder.legs_in(node):
                real_width, unreal_width = (2 * response.log_invisible).exp()
                cov[i, i] += torch.where(terms.unreal[i], unreal_width, real_width).flatten(0, 1)
        traits = terms.traits.repeat(1, builder.n_roots, 1)
        weight = response.prior[lost][:, None] - torch.einsum("t,tcn->cn", mixture.extra, traits)
        weight = weight + (response.power[:, lost][..., None] * base.log()).sum(0)
        shape = (builder.n_roots, len(builder.index), n_events)
        ways = [way.expand(shape).flatten(0, 1) for way in terms.ways]
        weight = weight + algebra.dot(list(response.way), ways)
        mass.append(base + response.shift[lost][:, None] * lean)
        covariance.append(cov)
        log_weight.append(weight)
        known = [mixture.scheme.known[node.index] for node in response.nodes]
        expected.append([m or 0.0 for m in known])
        column.append([0.0 if m else 1.0 for m in known])
    return _explicit(mixture, block, mass, covariance, log_weight, expected, column)


def _explicit(
    mixture: KinematicMixture, block: EventBlock, mass: list[Tensor], covariance: list[Tensor],
    log_weight: list[Tensor], expected: list[list[float]], column: list[list[float]],
) -> Any:  # fmt: skip
    n_events = len(block.rows)
    means, weights = [], []
    design = np.concatenate(column)
    for row in block.plan.pairs.tolist():
        for n in range(n_events):
            y = np.concatenate([m[:, c, n].detach() for m, c in zip(mass, row, strict=True)])
            y = y - np.concatenate(expected)
            blocks = [s[:, :, c, n].detach().numpy() for s, c in zip(covariance, row, strict=True)]
            size = sum(len(b) for b in blocks)
            s = np.zeros((size, size))
            at = 0
            for b in blocks:
                s[at : at + len(b), at : at + len(b)] = b
                at += len(b)
            p = np.linalg.inv(s)
            information = design @ p @ design
            best = design @ p @ y / information
            off = y - design * best
            total = sum(float(w[c, n]) for w, c in zip(log_weight, row, strict=True))
            total += -0.5 * off @ p @ off + 0.5 * np.linalg.slogdet(p)[1]
            total += -0.5 * math.log(information)
            means.append(best)
            weights.append(total * math.exp(-float(mixture.log_temperature)))
    shape = (len(block.plan.pairs), n_events)
    return np.array(means).reshape(shape), np.array(weights).reshape(shape)


def test_the_vectorised_sum_agrees_with_explicit_matrices() -> None:
    mixture = semileptonic(missing={"jet": 1})
    for n_jets in (3, 5):
        block = next(mixture.sorter.blocks(random_events(4, n_jets, seed=n_jets), 10**6))
        found = mixture.gaussians(block)
        mean, log_weight = slow_gaussians(mixture, block)
        # where ptmiss is scaled to a double root, its derivative is deliberately left out
        (unreal,) = [u for u in block.terms[0].unreal if u is not None]
        real = ~unreal.any(0).any(0).numpy()
        assert real.sum() >= 2
        np.testing.assert_allclose(found.mean[0].detach()[:, real], mean[:, real], rtol=1e-3)
        difference = (found.log_weight.detach().numpy() - log_weight)[:, real]
        assert np.abs(difference - difference[:1]).max() < 0.05


@compiled
def limit_of(values: np.ndarray, number: int) -> float:
    return mixture_sums.limit_of_largest(values, len(values), number)


def test_the_largest_scores_lie_above_the_limit() -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(9)
    for n, number in ((40, 7), (33, 32), (200, 1), (50, 0)):
        values = rng.normal(-300, 5, n)
        assert (values > limit_of(values, number)).sum() == number
    tied = np.repeat([-3.0, -1.0, -2.0], 5)
    assert (tied > limit_of(tied, 7)).sum() == 10
    assert (tied > limit_of(tied, 5)).sum() == 5
    assert (np.zeros(9) > limit_of(np.zeros(9), 4)).all()


def test_absent_slots_and_the_order_of_jets_do_not_matter() -> None:
    mixture, events = semileptonic(missing={"jet": 1}), random_events(20, 6, seed=8)
    masses = torch.full((20, 1), 170.0, dtype=torch.float64)
    padded = torch.cat([events.p4, torch.full((20, 1, 4), torch.nan, dtype=torch.float64)], 1)
    there = torch.cat([events.present, torch.zeros(20, 1, dtype=torch.bool)], 1)
    swapped = [0, 4, 7, 2, 1, 3, 5, 6]
    other = DetectedEvents(
        padded[:, swapped], there[:, swapped], ("lepton", *["jet"] * 7), events.ptmiss
    )
    one = mixture.posterior(events, backend="torch").log_prob(masses)
    two = mixture.posterior(other, backend="torch").log_prob(masses)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


def test_rotating_the_event_about_the_beam_changes_nothing() -> None:
    mixture, events = semileptonic(), random_events(20, 4, seed=9)
    angle = torch.tensor(1.1, dtype=torch.float64)
    turned = DetectedEvents(
        fv.rotate_z(events.p4, angle),
        events.present,
        events.kinds,
        fv.rotate_z(events.ptmiss, angle),
    )
    masses = torch.full((20, 1), 170.0, dtype=torch.float64)
    one, two = (mixture.posterior(e, backend="torch") for e in (events, turned))
    torch.testing.assert_close(one.log_prob(masses), two.log_prob(masses), rtol=1e-4, atol=1e-3)


def test_gradients_of_the_likelihood_are_finite_differences() -> None:
    mixture, events = semileptonic(missing={"jet": 1}), random_events(6, 5, seed=11)
    masses = torch.full((6, 1), 175.0, dtype=torch.float64)
    (example,) = prepare(mixture, events, masses)
    loss = -mixture.log_prob(*example).mean()
    loss.backward()
    for name, parameter in mixture.named_parameters():
        if parameter.numel() == 0:
            continue
        assert parameter.grad is not None, name
        flat, at = parameter.data.view(-1), parameter.numel() - 1
        before = float(flat[at])
        values = []
        for sign in (1, -1):
            flat[at] = before + sign * 1e-5
            values.append(mean_loss(mixture, [example]))
        flat[at] = before
        slope = (values[0] - values[1]) / 2e-5
        assert float(parameter.grad.view(-1)[at]) == pytest.approx(slope, rel=1e-3, abs=1e-6), name
