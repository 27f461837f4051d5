"""Training on events that are not all in memory at once.

Each part of the events is prepared once and kept in a file, from which the batches are drawn. In
each pass the parts come in a random order; as many as make half of `shuffle_events` are read
together, and their events mixed. Which events a batch has is a pure function of the seed and the
number of the step, as it is for events in memory, so that resuming is exact.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from massrecon.errors import ModelError
from massrecon.events.stream import EventStream
from massrecon.models.base import MassModel, Prepared
from massrecon.models.batches import (
    NumberedBatches,
    numbered_generator,
    prepared_with_truth,
    shared,
)
from massrecon.models.checkpoint import TrainingState
from massrecon.models.ranks import ALONE, Rank
from massrecon.models.recipe import TrainingConfig
from massrecon.provenance import replacing_file

SCALING_EVENTS = 20_000
"""How many events, evenly chosen, the scaling is fitted to."""


@dataclass(frozen=True)
class PreparedParts:
    """Prepared events on disk.

    Attributes:
        folder: Where the files are.
        sizes: Number of events of each part.
    """

    folder: Path
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.sizes)

    def load(self, numbers: Sequence[int]) -> Prepared:
        """Reads some parts into memory, one after the other."""
        parts = [safetensors.torch.load_file(self.file(number)) for number in numbers]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def file(self, number: int) -> Path:
        """Names the file of a part."""
        return self.folder / f"part-{number:05d}.safetensors"


def prepare_parts(
    model: MassModel, stream: EventStream, folder: Path, progress: bool
) -> PreparedParts:
    """Prepares the events of a stream part by part; files that are there already are kept.

    Raises:
        InputError: If the events carry no truth.
        ModelError: If there is no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = PreparedParts(folder, stream.sizes)
    for number in tqdm(range(len(stream.sizes)), "prepare", unit=" parts", disable=not progress):
        if stream.sizes[number] and not parts.file(number).exists():
            save_prepared(prepared_with_truth(model, stream.part(number)), parts.file(number))
    return parts


def save_prepared(data: Prepared, path: Path) -> None:
    """Writes prepared events to a file, whole or not at all.

    Raises:
        ModelError: If there is no room on the disk.
    """
    try:
        tensors = {name: tensor.contiguous() for name, tensor in data.items()}
        with replacing_file(path) as fresh:
            safetensors.torch.save_file(tensors, fresh)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"Prepared events cannot be written to '{path}': {error}. Free some space; the same "
            "call then goes on."
        ) from error


@dataclass(frozen=True)
class StreamedBatches(NumberedBatches):
    """Batches of prepared events on disk.

    Each epoch is a new random order of the parts, and of the events of those that are in memory
    together.

    Attributes:
        held: The groups of parts that are in memory, two at most.
    """

    data: PreparedParts
    config: TrainingConfig
    state: TrainingState
    rank: Rank = ALONE
    held: dict[tuple[int, int], tuple[Prepared, Tensor]] = field(default_factory=dict)

    @property
    def n_events(self) -> int:
        """Number of events of an epoch."""
        return len(self.data)

    def batch(self, step: int) -> tuple[int, Prepared]:
        """Gathers the batch of a step, from one group of parts or from two."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.config.batch_size
        last = min(first + self.config.batch_size, len(self.data))
        starts = self._epoch(epoch)[1]
        pieces = []
        while first < last:
            group = bisect_right(starts, first) - 1
            end = min(last, starts[group + 1])
            pieces.append(self._rows(epoch, group, first - starts[group], end - starts[group]))
            first = end
        joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return step, shared(joined, torch.arange(len(joined["targets"])), self.rank)

    def _epoch(self, epoch: int) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
        return _groups(self.data.sizes, self.config.shuffle_events, self.config.seed, epoch)

    def _rows(self, epoch: int, group: int, first: int, last: int) -> Prepared:
        """Gathers rows of a group of parts, by their place in its random order."""
        numbers = self._epoch(epoch)[0][group]
        if (epoch, group) not in self.held:
            while len(self.held) > 1:
                del self.held[next(iter(self.held))]
            generator = numbered_generator("cpu", self.config.seed, f"order {epoch}", group)
            data = self.data.load(numbers)
            order = torch.randperm(len(data["targets"]), generator=generator)
            self.held[epoch, group] = data, order
        data, order = self.held[epoch, group]
        return {name: tensor[order[first:last]] for name, tensor in data.items()}


@functools.lru_cache(maxsize=2)
def _groups(
    sizes: tuple[int, ...], shuffle_events: int, seed: int, epoch: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Puts the parts of an epoch in a random order and into groups that fit into memory.

    Returns:
        The numbers of the parts of each group; where each group starts among the events of the
        epoch, and where the last one ends.
    """
    generator = numbered_generator("cpu", seed, "parts", epoch)
    groups: list[list[int]] = [[]]
    held = 0
    for number in torch.randperm(len(sizes), generator=generator).tolist():
        if sizes[number] == 0:
            continue
        if held and held + sizes[number] > shuffle_events // 2:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += sizes[number]
    counts = [sum(sizes[number] for number in group) for group in groups]
    return tuple(map(tuple, groups)), tuple(accumulate(counts, initial=0))
