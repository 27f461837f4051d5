"""What a training keeps in files while it runs: prepared events, and what other processes need."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.events.stream import EventStream
from massrecon.models.base import MassModel, Prepared, load_model
from massrecon.models.batches import Batches, NumberedBatches, prepared_with_truth
from massrecon.models.checkpoint import TrainingState, fingerprint_of
from massrecon.models.ranks import Rank, read_orders, write_orders
from massrecon.models.recipe import TrainingConfig
from massrecon.models.streaming import (
    SCALING_EVENTS,
    PreparedParts,
    StreamedBatches,
    save_prepared,
)

_MODEL = "model"
_VALIDATION = "validation.safetensors"
_DATA = "data.safetensors"


@contextlib.contextmanager
def supplies_folder(checkpoints: Path | None, identity: str) -> Iterator[Path]:
    """Gives the folder of one training: beside its checkpoints, or a temporary one.

    Beside checkpoints it stays if the training is cut off, so that events are prepared once.
    """
    if checkpoints is None:
        with tempfile.TemporaryDirectory(prefix="massrecon-") as folder:
            yield Path(folder)
        return
    folder = checkpoints / f"prepared-{identity[:16]}"
    for old in checkpoints.glob("prepared-*"):
        if old != folder:
            shutil.rmtree(old)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def batches_of(
    data: Prepared | PreparedParts, config: TrainingConfig, state: TrainingState, rank: Rank
) -> NumberedBatches:
    """Returns the batches of a training."""
    if isinstance(data, PreparedParts):
        return StreamedBatches(data, config, state, rank)
    return Batches(data, config, state, rank)


def hand_over(
    folder: Path,
    model: MassModel,
    data: Prepared | PreparedParts,
    validation: Prepared,
    state: TrainingState,
    config: TrainingConfig,
) -> None:
    """Writes all that another process needs to take part in a training.

    Raises:
        InputError: If the model is of no family that can be loaded by its name.
        ModelError: If there is no room on the disk.
    """
    from massrecon.models import MODELS

    if model.name not in MODELS:
        raise InputError(f"'processes' should be 1 for the model '{model.name}'.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / _MODEL, ignore_errors=True)
    for process in folder.glob("meeting*"):
        process.unlink()
    model.save(folder / _MODEL)
    save_prepared(validation, folder / _VALIDATION)
    sizes = None
    if isinstance(data, PreparedParts):
        sizes = list(data.sizes)
    else:
        save_prepared(data, folder / _DATA)
    state.save(folder)
    orders = {"config": dataclasses.asdict(config), "identity": state.identity, "sizes": sizes}
    write_orders(folder, orders)


def taken_over(
    folder: Path,
) -> tuple[MassModel, Prepared | PreparedParts, Prepared, TrainingState, TrainingConfig]:
    """Reads what `hand_over` wrote: model, events, validation, state and recipe."""
    orders = read_orders(folder)
    validation = safetensors.torch.load_file(folder / _VALIDATION)
    if orders["sizes"] is None:
        data: Prepared | PreparedParts = safetensors.torch.load_file(folder / _DATA)
    else:
        data = PreparedParts(folder, tuple(orders["sizes"]))
    state = TrainingState.load(folder, orders["identity"])
    assert state is not None
    config = TrainingConfig(**orders["config"])
    return load_model(folder / _MODEL), data, validation, state, config


def training_data(
    model: MassModel, events: Events | EventStream, config: TrainingConfig
) -> tuple[Prepared | EventStream, str]:
    """Sets the scaling of a model, prepares events unless they are a stream; with a checksum."""
    if isinstance(events, EventStream):
        model.fit_scaling(events.subsample(min(SCALING_EVENTS, config.shuffle_events)))
        return events, events.fingerprint
    model.fit_scaling(events)
    data = prepared_with_truth(model, events)
    return data, fingerprint_of(data)
