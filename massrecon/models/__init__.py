"""Learned posteriors: one family per file, one interface.

| family | what it is | density | draws |
|---|---|---|---|
| `barman2025` | the published diffusion network, to the letter | probability flow | many steps |
| `diffusion` | diffusion in its modern form, for any card | probability flow | 20 steps |
| `flow_matching` | flow matching along straight paths | probability flow | 20 steps |
| `flow` | coupling flow with rational-quadratic splines | exact | one pass |
| `mass_head` | joint density of the masses alone | exact | one pass |
| `vae` | variational autoencoder | lower bound | one pass |
| `gan` | Wasserstein GAN with a gradient penalty | none | one pass |
| `trees` | forest of residuals that keeps whole distributions | exact | one pass |
| `cascade` | masses first, from objects, pairs and hypotheses | probability flow | 20 steps |

All but `barman2025` read every object of any card, learn the targets that they are told to
(``targets="card"``, ``"masses"`` or ``"resonances"``), and are an encoder of events, a
`massrecon.models.targets.TargetSpace` and a `massrecon.models.head.Head`.
"""

from __future__ import annotations

from typing import Any

import torch

from massrecon.errors import unknown_name
from massrecon.events.card import ProcessCard
from massrecon.models.barman2025 import Barman2025
from massrecon.models.base import MassModel, load_model
from massrecon.models.cascade import Cascade
from massrecon.models.diffusion import Diffusion
from massrecon.models.flow import Flow
from massrecon.models.flow_matching import FlowMatching
from massrecon.models.gan import GAN
from massrecon.models.mass_head import MassDensity
from massrecon.models.settings import check_settings
from massrecon.models.trees import Trees
from massrecon.models.vae import VAE

MODELS: dict[str, type[MassModel]] = {
    "barman2025": Barman2025,
    "diffusion": Diffusion,
    "flow_matching": FlowMatching,
    "flow": Flow,
    "mass_head": MassDensity,
    "vae": VAE,
    "gan": GAN,
    "trees": Trees,
    "cascade": Cascade,
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
        InputError: If the name, the preset or a field is unknown, with the choices in the message,
            or a field has a value of another type.
        CardError: If the family cannot read the card's objects.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    family = MODELS[name]
    if preset not in family.presets:
        raise unknown_name(f"preset of {name}", preset, family.presets)
    fields = {**family.presets[preset], **overrides}
    check_settings(f"setting of {name}", family.config_type, fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.from_config(card, fields)
