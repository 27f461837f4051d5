"""Batches and random numbers as pure functions of the seed and the number of the step."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from massrecon.models.base import Prepared
from massrecon.models.checkpoint import TrainingState
from massrecon.models.recipe import TrainingConfig


@dataclass(frozen=True)
class Chunks:
    """Numbered slices of prepared events, in order."""

    data: Prepared
    size: int

    def __len__(self) -> int:
        return math.ceil(length_of(self.data) / self.size)

    def __iter__(self) -> Iterator[tuple[int, Prepared]]:
        for number in range(len(self)):
            rows = slice(number * self.size, (number + 1) * self.size)
            yield number, {name: tensor[rows] for name, tensor in self.data.items()}


@dataclass(frozen=True)
class Batches:
    """The numbered training batches from the present step to the end of its round.

    Each epoch is a new random order of the events; a remainder smaller than a batch is left out.
    """

    data: Prepared
    config: TrainingConfig
    state: TrainingState

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in a pass over the events, at least one."""
        return max(1, length_of(self.data) // self.config.batch_size)

    def __iter__(self) -> Iterator[tuple[int, Prepared]]:
        step = self.state.step
        end = self.state.plan.next_round_end(step, self.config.rounds)
        return (self.batch(number) for number in range(step, end))

    def batch(self, step: int) -> tuple[int, Prepared]:
        """Gathers the batch of a step."""
        n, size = length_of(self.data), self.config.batch_size
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = _epoch_order(n, self.config.seed, epoch)[position * size : (position + 1) * size]
        return step, {name: tensor[rows] for name, tensor in self.data.items()}


@functools.lru_cache(maxsize=2)
def _epoch_order(n_events: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n_events, generator=numbered_generator("cpu", seed, "order", epoch))


def length_of(data: Prepared) -> int:
    """Returns the number of events in prepared data."""
    return len(next(iter(data.values())))


def numbered_generator(
    device: torch.device | str, seed: int, stream: str, number: int
) -> torch.Generator:
    """Makes the generator of one numbered piece of work, independent of all others."""
    words = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), number])
    return torch.Generator(device).manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
