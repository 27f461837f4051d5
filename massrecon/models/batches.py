"""Batches and random numbers as pure functions of the seed and the number of the step."""

from __future__ import annotations

import functools
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.models.base import MassModel, Prepared
from massrecon.models.checkpoint import TrainingState
from massrecon.models.ranks import ALONE, Rank
from massrecon.models.recipe import TrainingConfig


@dataclass(frozen=True)
class Chunks:
    """Numbered slices of prepared events, in order; processes that share a training take turns.

    Where there are fewer slices than processes, each process takes all of them.
    """

    data: Prepared
    size: int
    rank: Rank = ALONE

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> range:
        n_chunks = math.ceil(length_of(self.data) / self.size)
        alone = n_chunks < self.rank.world
        return range(n_chunks) if alone else range(self.rank.number, n_chunks, self.rank.world)

    def __iter__(self) -> Iterator[tuple[int, Prepared]]:
        for number in self._numbers():
            rows = slice(number * self.size, (number + 1) * self.size)
            yield number, {name: tensor[rows] for name, tensor in self.data.items()}


class NumberedBatches(ABC):
    """The numbered training batches from the present step to the end of its round.

    Each epoch is a new random order of the events; a remainder smaller than a batch is left out.

    Attributes:
        config: The recipe.
        state: Where the training stands.
        rank: The process whose shares of the batches these are.
    """

    config: TrainingConfig
    state: TrainingState
    rank: Rank

    @property
    @abstractmethod
    def n_events(self) -> int:
        """Number of events of an epoch."""

    @abstractmethod
    def batch(self, step: int) -> tuple[int, Prepared]:
        """Gathers the batch of a step, with its number."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in a pass over the events, at least one."""
        return max(1, self.n_events // self.config.batch_size)

    def __iter__(self) -> Iterator[tuple[int, Prepared]]:
        step = self.state.step
        end = self.state.plan.next_round_end(step, self.config.rounds)
        return (self.batch(number) for number in range(step, end))


@dataclass(frozen=True)
class Batches(NumberedBatches):
    """Batches of prepared events in memory."""

    data: Prepared
    config: TrainingConfig
    state: TrainingState
    rank: Rank = ALONE

    @property
    def n_events(self) -> int:
        """Number of events of an epoch."""
        return length_of(self.data)

    def batch(self, step: int) -> tuple[int, Prepared]:
        """Gathers the batch of a step."""
        n, size = length_of(self.data), self.config.batch_size
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = _epoch_order(n, self.config.seed, epoch)[position * size : (position + 1) * size]
        return step, shared(self.data, rows, self.rank)


def shared(data: Prepared, rows: Tensor, rank: Rank) -> Prepared:
    """Gathers what a process takes of the rows of a batch.

    Where there are several processes, ``share`` says which part of the weight of the batch it is,
    times their number: with that factor, the mean over the processes is the loss of the batch.
    """
    own = rank.share(rows)
    batch = {name: tensor[own] for name, tensor in data.items()}
    if rank.world > 1:
        weight = data.get("weight", torch.ones(length_of(data)))
        batch["share"] = rank.world * weight[own].sum() / weight[rows].sum()
    return batch


@functools.lru_cache(maxsize=2)
def _epoch_order(n_events: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n_events, generator=numbered_generator("cpu", seed, "order", epoch))


def prepared_with_truth(model: MassModel, events: Events) -> Prepared:
    """Prepares simulated events.

    Raises:
        InputError: If they carry no truth.
    """
    data = model.prepare(events)
    if "targets" not in data:
        raise InputError("Training needs events with truth: use simulated events.")
    return data


def length_of(data: Prepared) -> int:
    """Returns the number of events in prepared data."""
    return len(next(iter(data.values())))


def numbered_generator(
    device: torch.device | str, seed: int, stream: str, number: int
) -> torch.Generator:
    """Makes the generator of one numbered piece of work, independent of all others."""
    words = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), number])
    return torch.Generator(device).manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
