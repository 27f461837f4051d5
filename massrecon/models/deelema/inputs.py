"""What the network sees of each event, for every way to take its visible particles as legs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.models.deelema.config import DeeLeMaConfig
from massrecon.models.deelema.frame import Frame, to_frame
from massrecon.models.deelema.momenta import MassFunction
from massrecon.models.deelema.structure import Structure


@dataclass(frozen=True)
class Prepared:
    """N events taken in P ways, in units of the scale.

    Attributes:
        inputs: Inputs of the network, shape ``(P, N, F)``.
        ptmiss: Missing transverse momentum in the frame, shape ``(P, N, 2)``.
        sums: Visible momenta below each target, shape ``(P, N, T, 4)``.
        frames: The frame of each way; empty if events stay in the laboratory.
    """

    inputs: Tensor
    ptmiss: Tensor
    sums: Tensor
    frames: tuple[Frame, ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> Prepared:
        """Moves what the network needs to a device and type."""
        inputs, ptmiss, sums = (t.to(device, dtype) for t in (self.inputs, self.ptmiss, self.sums))
        return Prepared(inputs, ptmiss, sums, self.frames)

    def to_laboratory(self, invisible: Tensor) -> Tensor:
        """Brings invisible momenta ``(P * N, I, 4)`` back from their frames."""
        if not self.frames:
            return invisible
        parts = invisible.unflatten(0, (len(self.frames), -1))
        return torch.cat([frame.undo(q) for frame, q in zip(self.frames, parts, strict=True)])


def prepare(
    structure: Structure,
    visible: Tensor,
    ptmiss: Tensor,
    ways: Tensor,
    scale: float,
    use_frame: bool,
) -> Prepared:
    """Prepares events.

    Args:
        structure: The decay.
        visible: Visible momenta (px, py, pz, E) [GeV], float64, shape ``(N, L, 4)``.
        ptmiss: Missing transverse momentum [GeV], shape ``(N, 2)``.
        ways: Ways to take the particles as legs, shape ``(P, L)``.
        scale: Unit [GeV].
        use_frame: Whether events are brought to their frame.
    """
    masses = MassFunction(structure, visible.device)
    inputs, missing, sums, frames = [], [], [], []
    for way in ways.to(visible.device):
        taken, pt = visible[:, way] / scale, ptmiss / scale
        if use_frame:
            taken, pt, frame = to_frame(structure, taken, pt)
            frames.append(frame)
        inputs.append(torch.cat([taken.flatten(1), pt], dim=1))
        missing.append(pt)
        sums.append(masses.visible_sums(taken))
    return Prepared(torch.stack(inputs), torch.stack(missing), torch.stack(sums), tuple(frames))


def pick_scale(visible: Tensor, config: DeeLeMaConfig) -> float:
    """Chooses a unit [GeV]: the median visible energy, or the largest trial mass if heavier."""
    energy = float(visible[..., 3].median())
    return max(energy, *config.m_invisible.values())
