"""Toy events of two equal two-step chains A -> a B, B -> b C, for tests of classical variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.phasespace import PhaseSpace
from massrecon.kinematics.production import Beams
from massrecon.kinematics.topology import DecayTopology

TOY = {"A": 1000.0, "B": 800.0, "C": 700.0}
TTBAR = {"A": 173.0, "B": 80.4, "C": 0.0, "a": 4.7}


class Chains(NamedTuple):
    """Four-momenta (N, 4) and ptmiss (N, 2) of N events [GeV]."""

    upper_a: Tensor
    lower_a: Tensor
    upper_b: Tensor
    lower_b: Tensor
    ptmiss: Tensor
    invisible_a: Tensor
    invisible_b: Tensor

    @property
    def visible(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a detector would see, in the order of the M2 functions."""
        return self[0], self[1], self[2], self[3], self[4]

    @property
    def both(self) -> tuple[Tensor, Tensor, Tensor]:
        """The visible systems of A on both sides, and ptmiss."""
        return self.upper_a + self.lower_a, self.upper_b + self.lower_b, self.ptmiss


def chains(n: int, seed: int, masses: dict[str, float], recoil: float = 60.0) -> Chains:
    """Makes events with a recoil of the pair."""
    topology = DecayTopology.parse("p p > A A, (A > a B, B > b C), (A > a B, B > b C)")
    toy = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0, recoil=recoil))
    points = {name: torch.full((n,), value) for name, value in masses.items()}
    p4 = fv.from_pxpypzm(toy.sample(points, torch.Generator().manual_seed(seed)))
    ptmiss = p4[:, 4, :2] + p4[:, 9, :2]
    return Chains(p4[:, 1], p4[:, 3], p4[:, 6], p4[:, 8], ptmiss, p4[:, 4], p4[:, 9])


def reference(name: str) -> dict[str, Tensor]:
    """Reads a table of other programs' answers, if the environment says where they are."""
    folder = os.environ.get("MASSRECON_REFERENCE")
    if not folder:
        pytest.skip("MASSRECON_REFERENCE names no folder with m2_toy.npz and m2_ttbar.npz")
    with np.load(Path(folder) / f"m2_{name}.npz") as table:
        return {key: torch.from_numpy(np.asarray(table[key])) for key in table.files}
