"""The mixture for decays that no card has: one chain, three-body steps, sides that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents, MixtureOptions
from massrecon.kinematics.mixture_scheme import MassRegion, MassScheme, ResponseTable
from massrecon.kinematics.phasespace import PhaseSpace
from massrecon.kinematics.production import Beams

WIDTHS = {"jet": 0.08, "lepton": 0.02, "photon": 0.02}
PTMISS_WIDTH = 15.0
TABLE = ResponseTable({k: ((50,), (w,)) for k, w in WIDTHS.items()}, ((500,), (PTMISS_WIDTH,)))
N_EVENTS = 150


@dataclass(frozen=True)
class Decay:
    """A decay with the kinds of its visible legs, true masses, and ranges of the unknown ones."""

    decay: str
    kinds: Mapping[str, str]
    masses: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    invisible: tuple[str, ...] = ()
    known: Mapping[str, float] = field(default_factory=dict)


DECAYS = {
    "one chain beside a photon, three masses": Decay(
        "p p > A z, (A > a B, (B > b C, (C > c d)))",
        {"a": "jet", "b": "lepton", "c": "jet", "d": "jet", "z": "photon"},
        {"A": 600.0, "B": 400.0, "C": 200.0},
        {"A": (300.0, 900.0), "B": (200.0, 700.0), "C": (50.0, 400.0)},
    ),
    "a three-body step on one of two sides that differ": Decay(
        "p p > X Y, (X > a b N, (N > l l)), (Y > q r)",
        {"a": "jet", "b": "jet", "l": "lepton", "q": "jet", "r": "jet"},
        {"X": 500.0, "N": 200.0, "Y": 400.0},
        {"X": (200.0, 900.0), "N": (50.0, 500.0), "Y": (200.0, 900.0)},
    ),
    "a three-body step with a neutrino": Decay(
        "p p > X Y, (X > a b W, (W > l nu)), (Y > q r)",
        {"a": "jet", "b": "jet", "l": "lepton", "q": "jet", "r": "jet"},
        {"X": 500.0, "Y": 400.0, "W": 80.4},
        {"X": (200.0, 900.0), "Y": (200.0, 900.0)},
        ("nu",),
        {"W": 80.4},
    ),
    "three-body decays into what is not seen": Decay(
        "p p > X X, (X > a b N)",
        {"a": "jet", "b": "jet"},
        {"X": 500.0, "N": 100.0},
        {"X": (200.0, 900.0)},
        ("N",),
        {"N": 100.0},
    ),
}


def toys(legs: DecayLegs, of: Decay) -> DetectedEvents:
    """Events of a decay with smeared objects, by falling pT within a kind."""
    generator = torch.Generator().manual_seed(1)
    masses = {k: torch.full((N_EVENTS,), m, dtype=torch.float64) for k, m in of.masses.items()}
    space = PhaseSpace(topology=legs.topology, beams=Beams(energy=13_000.0))
    drawn = space.sample(masses, generator)
    p4 = torch.cat([drawn[..., :3], drawn.square().sum(-1, keepdim=True).sqrt()], -1)
    ends = [node for node in legs.topology.nodes if not node.children]
    parts, kinds = [], []
    for kind, width in WIDTHS.items():
        own = [node.index for node in ends if of.kinds.get(node.name) == kind]
        noise = torch.randn(N_EVENTS, len(own), 1, generator=generator, dtype=torch.float64)
        seen = p4[:, own] * (1 + width * noise).clamp_min(0.2)
        order = fv.pt(seen).argsort(1, descending=True).unsqueeze(-1).expand(-1, -1, 4)
        parts.append(seen.gather(1, order))
        kinds += [kind] * len(own)
    unseen = [node.index for node in ends if node.name in of.invisible]
    noise = torch.randn(N_EVENTS, 2, generator=generator, dtype=torch.float64)
    ptmiss = p4[:, unseen, :2].sum(1) + PTMISS_WIDTH * noise
    there = torch.ones(N_EVENTS, len(kinds), dtype=torch.bool)
    return DetectedEvents(torch.cat(parts, 1), there, tuple(kinds), ptmiss)


def covered(found: Tensor, level: float) -> float:
    """Part of the events whose probability below the truth is within a central interval."""
    return float(((found - 0.5).abs() < level / 2).double().mean())


@pytest.mark.parametrize("name", DECAYS)
def test_any_decay_has_a_posterior_that_holds_the_truth(name: str) -> None:
    of = DECAYS[name]
    legs = DecayLegs.of(of.decay, of.invisible, of.kinds)
    scheme = MassScheme.of(legs, {k: [k] for k in of.ranges}, of.known)
    low, high = zip(*(of.ranges[k] for k in scheme.names), strict=True)
    options = MixtureOptions(missing={}, shares=8, trials=8, kept=4000, least_weight=1e-12)
    mixture = KinematicMixture(scheme, TABLE, MassRegion(low, high), options)
    events = toys(legs, of)
    found = mixture.posterior(events)
    truth = torch.tensor([of.masses[k] for k in scheme.names], dtype=torch.float64)
    few = mixture.posterior(events[:20], backend="torch")
    masses = truth.expand(N_EVENTS, -1)
    torch.testing.assert_close(
        found.log_prob(masses)[:20], few.log_prob(masses[:20]), rtol=1e-3, atol=0.05
    )
    for i, mass in enumerate(scheme.names):
        marginal = found.marginal(mass)
        grid = torch.linspace(low[i], high[i], 1001, dtype=torch.float64)
        total = marginal.density(grid).sum(1) * (grid[1] - grid[0])
        assert float((total - 1).abs().mean()) < 0.02, mass
        below = marginal.cumulative(truth[i : i + 1])[:, 0]
        assert covered(below, 0.68) > 0.6, mass
        assert covered(below, 0.95) > 0.9, mass
