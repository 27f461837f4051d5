"""Noise that belongs to a draw of an event, not to the batch that it is computed in.

A generator's stream would tie the noise of an event to the size of the batch it is in; here every
number follows from (seed, stream, event, draw, component) alone, so the same draw comes out
however the work is cut up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Numbered draws ``(S,)`` of numbered events ``(N,)``, and their noise.

    Attributes:
        seed: Any integer.
        event: Number of each event, int64, shape ``(N,)``.
        draw: Number of each draw, int64, shape ``(S,)``, on the same device.
    """

    seed: int
    event: Tensor
    draw: Tensor

    @classmethod
    def of_block(cls, seed: int, draws: slice, events: slice, device: torch.device) -> Draws:
        """Numbers the draws and events of a block."""
        event = torch.arange(events.start, events.stop, device=device)
        return cls(seed, event, torch.arange(draws.start, draws.stop, device=device))

    def normal(self, stream: int, width: int) -> Tensor:
        """Returns standard normal noise of a numbered stream, float32, ``(S, N, width)``."""
        return indexed_normal(self.seed, stream, self.event, self.draw.unsqueeze(1), width)

    def uniform(self, stream: int, width: int) -> Tensor:
        """Returns noise that is uniform between 0 and 1, ends excluded, ``(S, N, width)``."""
        return indexed_uniform(self.seed, stream, self.event, self.draw.unsqueeze(1), width)


def indexed_uniform(seed: int, stream: int, event: Tensor, draw: Tensor, width: int) -> Tensor:
    """Draws uniform numbers that depend only on (seed, stream, event, draw, component).

    The 64-bit finaliser of SplitMix64 hashes the indices. Arguments as in `indexed_normal`.

    Returns:
        float32 between 0 and 1, ends excluded, shape ``(..., width)``.
    """
    key = _mix(_mix(torch.tensor([seed])) + stream).to(event.device)
    row = _mix(_mix(key + event) + draw)
    bits = _mix(row.unsqueeze(-1) + torch.arange(width, device=event.device))
    # 24 bits fill a float32 evenly; the half keeps the ends out, but may round up to 1
    uniform = (((bits >> 40) & 0xFFFFFF).to(torch.float32) + 0.5) * 2.0**-24
    return uniform.clamp_max(1 - 2.0**-24)


def indexed_normal(seed: int, stream: int, event: Tensor, draw: Tensor, width: int) -> Tensor:
    """Draws standard normal numbers that depend only on (seed, stream, event, draw, component).

    Args:
        seed: Any integer.
        stream: Number of the sampling step, or of another use of noise.
        event: Index of the event of each row, int64, shape ``(...)``.
        draw: Index of the draw of each row, int64, shape ``(...)``; both broadcast.
        width: Components of a row.

    Returns:
        float32, shape ``(..., width)``, on the device of `event`.
    """
    pairs = (width + 1) // 2
    uniform = indexed_uniform(seed, stream, event, draw, 2 * pairs)
    # Box-Muller
    radius = torch.sqrt(-2 * torch.log(uniform[..., :pairs]))
    angle = 2 * math.pi * uniform[..., pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :width]


def _mix(key: Tensor) -> Tensor:
    """Scrambles 64-bit integers one to one (G. Steele et al., OOPSLA 2014, SplitMix64)."""
    key = key - 0x61C8864680B583EB  # adds the golden ratio 0x9E37... as a signed number
    key = (key ^ ((key >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    key = (key ^ ((key >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return key ^ ((key >> 31) & 0x1FFFFFFFF)
