"""Fitting: a named model trained on events, with the physics metric shown while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.events.stream import EventStream
from massrecon.inference.diagnostics import efficiency
from massrecon.inference.novelty import recorded_reference
from massrecon.inference.posterior import mass_targets, reconstruct
from massrecon.inference.prior import recorded_prior
from massrecon.inference.statistics import SAME_MASS
from massrecon.models import create_model
from massrecon.models.base import MassModel, check_model_folder
from massrecon.models.streaming import SCALING_EVENTS
from massrecon.models.training import Metric, TrainingConfig, TrainingHistory, train
from massrecon.models.trees import Trees, grow_forest
from massrecon.provenance import versions

_METRIC_WINDOW = 30.0  # [GeV]
_METRIC_DRAWS = 32
_METRIC_STEPS = 20
_HELD = 0.1  # part of the events that is set aside


def fit(
    model: str,
    events: Events | EventStream | str | Path,
    *,
    preset: str = "full",
    max_minutes: float | None = None,
    max_epochs: int | None = None,
    validation: Events | None = None,
    training: TrainingConfig | None = None,
    seed: int = 0,
    device: str = "cpu",
    processes: int = 1,
    out: str | Path | None = None,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> MassModel:
    """Trains a model on simulated events.

    Args:
        model: Name of the model family, one of `massrecon.models.MODELS`: ``"cascade"``,
            ``"barman2025"``, ``"diffusion"``, ``"flow_matching"``, ``"flow"``, ``"mass_head"``,
            ``"vae"``, ``"gan"`` or ``"trees"``.
        events: Training events with truth; or a folder of them, which is read part by part and may
            be larger than memory.
        preset: Size of the network: ``"full"`` is the published one, ``"small"`` trains in minutes.
        max_minutes: Wall-clock budget of the training [min].
        max_epochs: Budget in passes over the training events.
        validation: Events to validate on; if not given, a tenth of the mass points of `events`
            is set aside (a tenth of the events where there are fewer than twenty mass points); of
            a folder not more than 20,000 events.
        training: The whole recipe; then `max_minutes`, `max_epochs`, `seed`, `device` and
            `processes` have to be given there.
        seed: Seed of split, initial weights, order, augmentation and noise.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        processes: How many processes of this machine share the training, one for each GPU.
        out: Folder to save the model to. Checkpoints are kept beside it in ``<out>.training``
            meanwhile: the same call resumes a training that was cut off.
        progress: Shows a progress bar with losses and the fraction of validation events within
            30 GeV.
        options: Fields of the family's configuration that differ from the preset, such as
            ``{"targets": "masses"}``.

    Returns:
        The trained model; ``model.metadata`` holds history, seed and data fingerprint.

    Raises:
        InputError: If a name is unknown, there is no budget, or the events carry no truth or
            values that are not physical.
        ModelError: If `out` holds something else, or the training cannot go on.
        StoreError: If `events` is a folder that cannot be read.
    """
    recipe = _recipe(training, max_minutes, max_epochs, seed, device, processes)
    if out is not None:
        check_model_folder(out)
    events = EventStream.open(events) if isinstance(events, str | Path) else events
    if isinstance(events, Events):
        events.validate()
    if validation is None:
        events, validation = _set_aside(events, recipe)
    fitted = create_model(model, events.card, preset, seed=recipe.seed, **(options or {}))
    sample = _in_memory(events, recipe)
    history = _train(fitted, events, validation, recipe, _metrics(sample, fitted), out, progress)
    origin = {"preset": preset, "n_train": len(events), "n_validation": len(validation)}
    fitted.metadata = origin | training_record(history)
    fitted.metadata |= recorded_prior(sample) | recorded_reference(sample)
    if out is not None:
        fitted.save(out)
    return fitted.to(device).eval()


def _train(
    model: MassModel,
    events: Events | EventStream,
    validation: Events,
    recipe: TrainingConfig,
    metrics: Mapping[str, Metric],
    out: str | Path | None,
    progress: bool,
) -> TrainingHistory:
    """Trains by steps, or a forest at once."""
    if isinstance(model, Trees):
        if isinstance(events, EventStream):
            raise InputError("The model 'trees' needs all events in memory: load them first.")
        return grow_forest(model, events, validation, recipe, metrics)
    folder = None if out is None else f"{Path(out)}.training"
    return train(
        model,
        events,
        validation,
        recipe,
        metrics=metrics,
        checkpoint_dir=folder,
        progress=progress,
    )


def training_record(history: TrainingHistory) -> dict[str, Any]:
    """Says how a model was trained, for the metadata that it is saved with."""
    best = history.best
    return {
        "seed": history.seed,
        "data_fingerprint": history.data_fingerprint,
        "metrics": {"validation_loss": best["validation_loss"], **best["metrics"]},
        "history": history.to_dict(),
        "trained_with": versions("torch", "lightning"),
    }


def _recipe(
    training: TrainingConfig | None,
    max_minutes: float | None,
    max_epochs: int | None,
    seed: int,
    device: str,
    processes: int,
) -> TrainingConfig:
    given = (max_minutes, max_epochs, seed, device, processes) != (None, None, 0, "cpu", 1)
    if training is not None and given:
        raise InputError(
            "Give budget, seed, device and processes either in 'training' or on their own."
        )
    return training or TrainingConfig(
        max_minutes=max_minutes,
        max_epochs=max_epochs,
        seed=seed,
        accelerator=device,
        processes=processes,
    )


def _in_memory(events: Events | EventStream, recipe: TrainingConfig) -> Events:
    """Returns events, or a part of those of a stream, evenly chosen."""
    if isinstance(events, Events):
        return events
    return events.subsample(min(SCALING_EVENTS, recipe.shuffle_events))


def _set_aside(
    events: Events | EventStream, recipe: TrainingConfig
) -> tuple[Events | EventStream, Events]:
    """Splits off a tenth for validation, by mass point where there are enough of them."""
    seed = recipe.seed
    if isinstance(events, EventStream):
        return events.set_aside(_HELD, min(SCALING_EVENTS, recipe.shuffle_events), seed)
    by_mass = events.masses is not None and len(torch.unique(events.masses, dim=0)) >= 20
    train_events, validation = events.split(
        by="masses" if by_mass else "events", fractions=(1 - _HELD, _HELD), seed=seed
    )
    return train_events, validation


def _metrics(events: Events, model: MassModel) -> dict[str, Metric]:
    """Builds the efficiencies to watch, of the masses that vary among the events."""
    names = model.target_names
    if events.masses is None or not set(mass_targets(events.card, names)) <= {*names}:
        return {}
    varying = (events.masses.amax(0) - events.masses.amin(0) > SAME_MASS).tolist()
    return {
        f"{name} within {_METRIC_WINDOW:.0f} GeV": _efficiency_metric(name)
        for name, varies in zip(events.card.mass_names, varying, strict=True)
        if varies and name in events.card.targets
    }


def _efficiency_metric(mass: str) -> Metric:
    def metric(model: MassModel, events: Events) -> float:
        steps = _METRIC_STEPS if model.solvers else None
        posterior = reconstruct(model, events, n_samples=_METRIC_DRAWS, steps=steps)
        table = efficiency(posterior, windows=(_METRIC_WINDOW,), estimators=("window",))
        found: dict[str, Any] = table.to_dict()["efficiency"][mass]["window"]
        return found[f"{_METRIC_WINDOW:.0f}"]["value"]

    return metric
