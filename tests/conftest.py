"""Shared fixtures: the card of the main process and quick toy events with its kinematics."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.kinematics import fourvectors as fv

ToyEvents = Callable[..., Events]


@pytest.fixture(scope="session")
def card() -> ProcessCard:
    return load_card("wino_udd")


@pytest.fixture(scope="session")
def toy_events(card: ProcessCard) -> ToyEvents:
    """Makes events of wino_udd from isotropic decays and Gaussian smearing: no shower, no ISR."""

    def make(n: int, seed: int, chi10: tuple[float, float] = (50.0, 450.0)) -> Events:
        return _toy_wino_udd(card, n, seed, chi10)

    return make


def _toy_wino_udd(card: ProcessCard, n: int, seed: int, chi10: tuple[float, float]) -> Events:
    generator = torch.Generator().manual_seed(seed)
    m2 = torch.full((n,), 600.0, dtype=torch.float64)
    # ten events a mass point, as a generator with blocks of equal masses gives
    points = torch.rand(math.ceil(n / 10), generator=generator, dtype=torch.float64)
    m1 = (chi10[0] + (chi10[1] - chi10[0]) * points).repeat_interleave(10)[:n]
    tree = _decay_tree(m1, m2, generator)
    partons = torch.stack([fv.to_pxpypzm(tree[name]) for name in card.parton_names], dim=1)
    photons = _by_pt(torch.stack([tree["gamma1"], tree["gamma2"]], 1), 0.025, generator)
    quarks = torch.stack([tree[q + s] for s in ("_a", "_b") for q in ("u", "d", "s")], 1)
    jets = _by_pt(quarks, 0.1, generator)
    lepton = _by_pt(tree["l"].unsqueeze(1), 0.02, generator)
    p4 = torch.zeros(n, len(card.slots), 4, dtype=torch.float64)
    p4[:, 0], p4[:, 1:3], p4[:, 3:9] = lepton[:, 0], photons, jets
    present = (fv.pt(p4) > 25) & (p4[..., 3] > 0)
    present[:, :5] = True
    p4 = torch.where(present.unsqueeze(-1), p4, 0.0)
    zeros = torch.zeros(n, len(card.slots), dtype=torch.int8)
    flavour, charge = zeros.clone(), zeros.clone()
    flavour[:, 0], flavour[:, 1:3], charge[:, 0] = 11, 22, 1
    soft = 20 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return Events(
        card=card,
        p4=p4,
        present=present,
        attributes={"charge": charge, "flavour": flavour},
        ptmiss=tree["nu"][:, :2] + soft,
        weight=torch.ones(n, dtype=torch.float64),
        partons=partons,
        masses=torch.stack([m2, m1], 1),
        provenance={"toy": True, "seed": seed},
    )


def _decay_tree(m1: Tensor, m2: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    n = len(m1)
    kick = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    kick = kick * torch.tensor([150.0, 150.0, 400.0], dtype=torch.float64)
    chi20 = fv.from_pxpypzm(torch.cat([kick, m2.unsqueeze(1)], 1))
    chi1 = fv.from_pxpypzm(torch.cat([-0.8 * kick, m2.unsqueeze(1)], 1))
    zero = torch.zeros_like(m1)
    tree = {"chi20": chi20, "chi1": chi1}
    tree["h"], tree["chi10_a"] = _two_body(chi20, zero + 125.0, m1, generator)
    tree["gamma1"], tree["gamma2"] = _two_body(tree["h"], zero, zero, generator)
    tree["W"], tree["chi10_b"] = _two_body(chi1, zero + 80.379, m1, generator)
    tree["l"], tree["nu"] = _two_body(tree["W"], zero, zero, generator)
    for side in ("_a", "_b"):
        share = torch.rand(n, generator=generator, dtype=torch.float64).sqrt()
        tree["u" + side], pair = _two_body(tree["chi10" + side], zero, share * m1, generator)
        tree["d" + side], tree["s" + side] = _two_body(pair, zero, zero, generator)
    return tree


def _two_body(
    parent: Tensor, m_1: Tensor, m_2: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    m = fv.mass(parent)
    p = ((m**2 - (m_1 + m_2) ** 2) * (m**2 - (m_1 - m_2) ** 2)).clamp_min(0).sqrt() / (2 * m)
    axis = torch.randn(len(m), 3, generator=generator, dtype=torch.float64)
    axis = p.unsqueeze(1) * axis / axis.norm(dim=1, keepdim=True)
    beta = parent[:, :3] / parent[:, 3:]
    first = fv.from_pxpypzm(torch.cat([axis, m_1.unsqueeze(1)], 1))
    second = fv.from_pxpypzm(torch.cat([-axis, m_2.unsqueeze(1)], 1))
    return fv.boost(first, beta), fv.boost(second, beta)


def _by_pt(p4: Tensor, resolution: float, generator: torch.Generator) -> Tensor:
    """Smears the momenta of massless objects and orders them by falling pT, shape (N, K, 4)."""
    noise = torch.randn(p4.shape[:2], generator=generator, dtype=p4.dtype)
    p3 = p4[..., :3] * (1 + resolution * noise).clamp_min(0.1).unsqueeze(-1)
    smeared = fv.from_pxpypzm(torch.cat([p3, torch.zeros_like(p3[..., :1])], -1))
    order = fv.pt(smeared).argsort(dim=1, descending=True)
    return smeared.gather(1, order.unsqueeze(-1).expand_as(smeared))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no 'mount'")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
