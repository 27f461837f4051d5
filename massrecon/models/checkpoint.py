"""The state of a training on disk: written atomically, read without unpickling anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import ModelError
from massrecon.models.base import MassModel, Prepared
from massrecon.models.recipe import Plan, TrainingConfig
from massrecon.provenance import replacing_file

CHECKPOINT_FILE = "training.ckpt"

STOP_FILE = "stop"
"""A file of this name beside the checkpoint asks a training to end after its present round."""


@dataclass(kw_only=True)
class TrainingState:
    """Where a training stands; everything but the identity changes as it goes on.

    Attributes:
        identity: Checksum of everything that decides the outcome, see `identity_of`.
        plan: How many steps it takes; 0 until a plan is made.
        step: Finished optimiser steps.
        seconds: Time that they took, on the clock of the training [s].
        records: One dictionary for each validation, as in `TrainingHistory`.
        best_loss: Lowest validation loss so far.
        best_step: Step at which that was found.
        rounds_since_best: Validations since then.
        finished: Whether it is at its end.
        best_weights: Averaged weights at the best step, on the processor.
        loop: State of optimiser and weight averaging; empty at the start and at the end.
    """

    identity: str
    plan: Plan = field(default_factory=lambda: Plan(total_steps=0))
    step: int = 0
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0
    rounds_since_best: int = 0
    finished: bool = False
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the checkpoint: tensors, numbers and text, nothing that needs unpickling."""
        for leftover in folder.glob(f".{CHECKPOINT_FILE}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        with replacing_file(folder / CHECKPOINT_FILE) as fresh:
            torch.save(vars(self) | {"plan": dataclasses.asdict(self.plan)}, fresh)

    @classmethod
    def load(cls, folder: Path | None, identity: str) -> TrainingState | None:
        """Reads the checkpoint of a training, if there is one.

        Raises:
            ModelError: If it is damaged or belongs to another training.
        """
        path = None if folder is None else folder / CHECKPOINT_FILE
        if path is None or not path.exists():
            return None
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            state = cls(**stored | {"plan": Plan(**stored["plan"])})
        except Exception as error:
            raise ModelError(
                f"'{path}' is not a readable checkpoint: delete it to start over."
            ) from error
        if state.identity != identity:
            raise ModelError(
                f"'{path}' belongs to a training with other events, model or settings: choose "
                "another folder, or delete it to start over."
            )
        return state


def fingerprint_of(data: Prepared) -> str:
    """Returns a checksum of prepared events."""
    digest = hashlib.sha256()
    for name in sorted(data):
        digest.update(name.encode())
        digest.update(data[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity_of(model: MassModel, settings: TrainingConfig, *fingerprints: str) -> str:
    """Returns a checksum of everything that decides the outcome of a training."""
    facts = [
        model.name,
        dataclasses.asdict(model.config),
        model.card.fingerprint(),
        settings.facts(),
        *fingerprints,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
