"""Learned posteriors: one family per file, one interface."""

from __future__ import annotations

from typing import Any

import torch

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.models.barman2025 import Barman2025
from massrecon.models.base import MassModel, load_model

MODELS: dict[str, type[MassModel]] = {
    "barman2025": Barman2025,
}
"""Every model family by name."""

__all__ = ["MODELS", "MassModel", "create_model", "load_model"]


def create_model(
    name: str,
    card: ProcessCard,
    preset: str = "full",
    *,
    seed: int = 0,
    **overrides: Any,
) -> MassModel:
    """Builds an untrained model of a process.

    Args:
        name: Family of the model, one of `MODELS`.
        card: The process card.
        preset: Named configuration of the family: ``"full"`` or ``"small"``.
        seed: Seed of the initial weights.
        **overrides: Fields of the family's configuration that differ from the preset.

    Raises:
        InputError: If the name, the preset or a field is unknown; the message lists the choices.
        CardError: If the family cannot read the card's objects.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    family = MODELS[name]
    if preset not in family.presets:
        raise unknown_name(f"preset of {name}", preset, family.presets)
    fields = {**family.presets[preset], **overrides}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return family.from_config(card, fields)
        except TypeError as error:
            raise InputError(f"The model '{name}' cannot be configured so: {error}.") from error
