"""massrecon: the masses of new particles from collider events.

Events come in, a learned posterior turns them into masses with uncertainties, figures show them::

    import massrecon as mr

    events = mr.simulate("wino_udd", n_events=5_000, masses={"chi10": (50, 450)}, seed=1)
    train, test = events.split(by="masses", fractions=(0.8, 0.2), seed=1)
    model = mr.fit("barman2025", train, preset="small", max_minutes=2)
    posterior = mr.reconstruct(model, test, n_samples=64)
    print(mr.efficiency(posterior, windows=(10, 20, 30)))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from massrecon.errors import MassReconError
    from massrecon.events.card import ProcessCard, load_card
    from massrecon.events.container import Events
    from massrecon.events.exporters import export_events
    from massrecon.events.generator import simulate
    from massrecon.events.importers import import_events
    from massrecon.events.store import load_events
    from massrecon.inference.combination import measure
    from massrecon.inference.diagnostics import efficiency
    from massrecon.inference.fitting import fit
    from massrecon.inference.measurement import MassMeasurement
    from massrecon.inference.posterior import Posterior, reconstruct
    from massrecon.models.base import MassModel, load_model

# imported on first use, so that the command line and the simulation workers start without torch
_HOME = {
    "Events": "massrecon.events.container",
    "MassMeasurement": "massrecon.inference.measurement",
    "MassModel": "massrecon.models.base",
    "MassReconError": "massrecon.errors",
    "Posterior": "massrecon.inference.posterior",
    "ProcessCard": "massrecon.events.card",
    "efficiency": "massrecon.inference.diagnostics",
    "export_events": "massrecon.events.exporters",
    "fit": "massrecon.inference.fitting",
    "import_events": "massrecon.events.importers",
    "load_card": "massrecon.events.card",
    "load_events": "massrecon.events.store",
    "load_model": "massrecon.models.base",
    "measure": "massrecon.inference.combination",
    "reconstruct": "massrecon.inference.posterior",
    "simulate": "massrecon.events.generator",
}

__all__ = [
    "Events",
    "MassMeasurement",
    "MassModel",
    "MassReconError",
    "Posterior",
    "ProcessCard",
    "efficiency",
    "export_events",
    "fit",
    "import_events",
    "load_card",
    "load_events",
    "load_model",
    "measure",
    "reconstruct",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'massrecon' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
