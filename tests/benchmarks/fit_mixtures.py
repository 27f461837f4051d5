"""Fits the mixtures that come with massrecon, and judges them on mass points they never saw.

Simulates the events of each recipe from its seed (or takes them from a folder), fits on some mass
points, compares predicted and attained efficiency on others, and writes the parameters as JSON::

    OMP_NUM_THREADS=1 python tests/benchmarks/fit_mixtures.py wino_udd_plane --out FOLDER

Copy the files to ``massrecon/inference/mixtures`` to ship them. Without names all are fitted.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.store import load_events
from massrecon.inference.mixture import (
    Masses,
    fit_mixture,
    mass_posterior,
    mixture_for,
    unknown_masses,
)
from massrecon.inference.mixture_files import save_mixture
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import MixtureOptions
from massrecon.kinematics.mixture_fit import MixtureFit

SPLIT_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one mixture is fitted.

    Attributes:
        card: Name of the process.
        masses: Prior intervals, which are also what is simulated [GeV].
        window: Half-width of the window of the efficiency that is quoted [GeV].
        n_events: Number of selected events to simulate.
        n_fitted: Most events to fit on, of three quarters of the mass points.
        seed: Seed of the simulation.
        options: What is summed over.
        fit: How to fit.
    """

    card: str
    masses: Masses
    seed: int
    window: float = 30.0
    n_events: int = 16_000
    n_fitted: int = 5_000
    options: MixtureOptions = field(default_factory=MixtureOptions)
    fit: MixtureFit = field(default_factory=lambda: MixtureFit(epochs=8))


RECIPES = {
    "wino_udd_plane": Recipe(
        card="wino_udd",
        masses={"chi20": (350.0, 700.0), "chi10": (25.0, 575.0)},
        seed=41,
        n_events=30_000,
        n_fitted=4_000,
        fit=MixtureFit(epochs=5, batch=100),
    ),
    "wino_udd_line": Recipe(
        card="wino_udd",
        masses={"chi20": 600.0, "chi10": (50.0, 450.0)},
        seed=42,
        n_fitted=4_000,
        fit=MixtureFit(epochs=5, batch=100),
    ),
    "wino_lle_line": Recipe(
        card="wino_lle",
        masses={"chi20": 1500.0, "chi10": (50.0, 500.0)},
        seed=32,
        n_fitted=700,
        options=MixtureOptions(shares=12, trials=10),
        fit=MixtureFit(epochs=4, batch=16, learning_rate=0.06),
    ),
    "antler": Recipe(
        card="antler",
        masses={"A": (850.0, 1200.0), "B": (720.0, 1000.0), "C": 700.0},
        seed=12,
        n_events=12_000,
        n_fitted=3_000,
        fit=MixtureFit(epochs=8, batch=30, learning_rate=0.06),
    ),
    "antler_ttbar": Recipe(
        card="antler_ttbar",
        masses={"t": (120.0, 240.0), "W": 80.419},
        seed=13,
        window=20.0,
        n_events=12_000,
        fit=MixtureFit(epochs=10, batch=60, learning_rate=0.06),
    ),
    "ttbar_dilepton": Recipe(
        card="ttbar_dilepton",
        masses={"t": (165.0, 182.0), "W": 80.419},
        seed=21,
        window=5.0,
        n_events=4_000,
        n_fitted=3_000,
        fit=MixtureFit(epochs=6, batch=60, learning_rate=0.06),
    ),
}


def sample(name: str, recipe: Recipe, folder: Path | None) -> Events:
    """Simulates the events of a recipe, or loads them."""
    if folder is not None and (folder / name).is_dir():
        return load_events(folder / name)
    return simulate(
        recipe.card,
        n_events=recipe.n_events,
        masses=dict(recipe.masses),
        seed=recipe.seed,
        out=None if folder is None else folder / name,
    )


def judge(mixture: KinematicMixture, test: Events, train: Tensor, window: float) -> dict[str, Any]:
    """Compares predicted and attained efficiency of the best window on held-out mass points."""
    found, truth = mass_posterior(mixture, test), unknown_masses(mixture, test)
    summaries = dict(zip(found.summary_names, found.summaries(window).T, strict=True))
    result: dict[str, Any] = {
        "window": window,
        "n_test": len(test),
        "log_prob": round(float(found.log_prob(truth).mean()), 4),
    }
    for i, name in enumerate(found.names):
        hit = ((summaries[f"{name}_window"] - truth[:, i]).abs() < window).double()
        centres = torch.linspace(mixture.region.low[i], mixture.region.high[i], 200)
        shares = ((train[:, i, None] - centres).abs() < window).double().mean(0)
        guess = centres[shares.argmax()]
        result[name] = {
            "predicted": round(float(summaries[f"{name}_window_probability"].mean()), 4),
            "attained": round(float(hit.mean()), 4),
            "error": round(float(hit.std() / len(hit) ** 0.5), 4),
            "no_skill": round(float(((truth[:, i] - guess).abs() < window).double().mean()), 4),
        }
    return result


def run(name: str, recipe: Recipe, events: Path | None, out: Path) -> None:
    """Fits one mixture and writes it."""
    clock = time.process_time()
    everything = sample(name, recipe, events)
    train, test = everything.split(by="masses", fractions=(0.75, 0.25), seed=SPLIT_SEED)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    chosen = torch.randperm(len(train), generator=generator)[: recipe.n_fitted]
    used = train[chosen.sort().values]
    start = mixture_for(everything.card, recipe.masses, options=recipe.options, fitted=False)
    report = lambda *row: print(*row, f"{time.process_time() - clock:.0f} s", flush=True)  # noqa: E731
    fitted = fit_mixture(used, start=start, fit=recipe.fit, report=report)
    truth = unknown_masses(fitted, train)
    before = judge(start, test, truth, recipe.window)
    after = judge(fitted, test, truth, recipe.window)
    print(name, "before", before, "after", after, sep="\n", flush=True)
    save_mixture(
        fitted,
        out / f"{name}.json",
        card=recipe.card,
        masses=recipe.masses,
        metrics=after,
        provenance={
            "seed": recipe.seed,
            "n_fitted": len(used),
            "n_events": len(everything),
            "split_seed": SPLIT_SEED,
            "fit": {
                "epochs": recipe.fit.epochs,
                "batch": recipe.fit.batch,
                "learning_rate": recipe.fit.learning_rate,
            },
        },
    )


def main() -> None:
    """Runs the recipes that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes; all if none")
    parser.add_argument("--events", type=Path, default=None, help="folder of the samples by name")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names or RECIPES:
        run(name, RECIPES[name], options.events, options.out)


if __name__ == "__main__":
    main()
