"""Fits the mixtures that come with massrecon, and judges them on events they never saw.

Simulates the events of each recipe from its seeds (or takes them from a folder), fits on those of
one seed, compares predicted and attained efficiency on those of the other, whose masses are other
points of the same continuous range, and writes the parameters as JSON::

    OMP_NUM_THREADS=1 python tests/benchmarks/fit_mixtures.py wino_udd_plane --out FOLDER

Copy the files to ``massrecon/models/mixture/fits`` to ship them. Without names all are fitted.
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
from massrecon.inference.mixture import fit_mixture, mass_posterior, mixture_for
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import MixtureOptions
from massrecon.kinematics.mixture_fit import MixtureFit
from massrecon.kinematics.mixture_posterior import MassPosterior
from massrecon.models.mixture import save_mixture, unknown_masses
from massrecon.models.mixture.building import Masses

CHOICE_SEED = 1
TEST = 100  # what is added to the seed for events to judge on
WINDOWS = (10.0, 20.0, 30.0, 50.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one mixture is fitted.

    Attributes:
        card: Name of the process.
        masses: Prior intervals, which are also what is simulated [GeV].
        window: Half-width of the window of the efficiency that is quoted [GeV].
        n_events: Number of selected events to simulate.
        n_fitted: Number of them to fit on; a tenth of their mass points chooses the best pass.
        n_test: Number of events to judge on.
        seed: Seed of the simulation; the events to judge on have `seed` + 100.
        options: What is summed over.
        fit: How to fit.
    """

    card: str
    masses: Masses
    seed: int
    window: float = 30.0
    n_events: int = 6_000
    n_fitted: int = 5_000
    n_test: int = 6_000
    options: MixtureOptions = field(default_factory=MixtureOptions)
    fit: MixtureFit = field(default_factory=lambda: MixtureFit(epochs=8))


RECIPES = {
    "wino_udd_plane": Recipe(
        card="wino_udd",
        masses={"chi20": (350.0, 700.0), "chi10": (25.0, 575.0)},
        seed=141,
        n_events=10_000,
        n_fitted=9_000,
        n_test=4_500,
        fit=MixtureFit(epochs=7, batch=100),
    ),
    "wino_udd_line": Recipe(
        card="wino_udd",
        masses={"chi20": 600.0, "chi10": (50.0, 450.0)},
        seed=142,
        n_events=24_000,
        n_fitted=9_000,
        fit=MixtureFit(epochs=7, batch=100),
    ),
    "wino_lle_line": Recipe(
        card="wino_lle",
        masses={"chi20": 1500.0, "chi10": (50.0, 500.0)},
        seed=132,
        n_events=5_000,
        n_fitted=700,
        n_test=1_000,
        options=MixtureOptions(shares=12, trials=10),
        fit=MixtureFit(epochs=4, batch=16, learning_rate=0.06),
    ),
    "antler": Recipe(
        card="antler",
        masses={"A": (850.0, 1200.0), "B": (720.0, 1000.0), "C": 700.0},
        seed=112,
        n_events=6_000,
        n_fitted=3_000,
        n_test=3_000,
        fit=MixtureFit(epochs=8, batch=30, learning_rate=0.06),
    ),
    "antler_ttbar": Recipe(
        card="antler_ttbar",
        masses={"t": (120.0, 240.0), "W": 80.419},
        seed=113,
        window=20.0,
        n_events=6_000,
        n_fitted=5_000,
        n_test=4_000,
        fit=MixtureFit(epochs=10, batch=60, learning_rate=0.06),
    ),
    "ttbar_dilepton": Recipe(
        card="ttbar_dilepton",
        masses={"t": (165.0, 182.0), "W": 80.419},
        seed=121,
        window=5.0,
        n_events=4_000,
        n_fitted=3_000,
        n_test=3_000,
        fit=MixtureFit(epochs=6, batch=60, learning_rate=0.06),
    ),
}


def sample(name: str, recipe: Recipe, folder: Path | None, *, test: bool) -> Events:
    """Simulates the events of a recipe to fit or to judge on, or loads them."""
    place = None if folder is None else folder / (f"{name}_test" if test else name)
    if place is not None and place.is_dir():
        return load_events(place)
    return simulate(
        recipe.card,
        n_events=recipe.n_test if test else recipe.n_events,
        masses=dict(recipe.masses),
        seed=recipe.seed + TEST if test else recipe.seed,
        out=place,
    )


def judge(mixture: KinematicMixture, test: Events, window: float) -> dict[str, Any]:
    """Compares predicted and attained efficiency of the best window on unseen events."""
    found, truth = mass_posterior(mixture, test), unknown_masses(mixture, test)
    result: dict[str, Any] = {
        "window": window,
        "n_test": len(test),
        "log_prob": round(float(found.log_prob(truth).mean()), 4),
    }
    for i, name in enumerate(found.names):
        centres = torch.linspace(mixture.region.low[i], mixture.region.high[i], 200)
        shares = ((truth[:, i, None] - centres).abs() < window).double().mean(0)
        result[name] = {
            **_window(found, truth[:, i], name, window),
            "no_skill": round(float(shares.max()), 4),
            "by_window": {f"{w:g}": _window(found, truth[:, i], name, w) for w in WINDOWS},
        }
    return result


def _window(found: MassPosterior, truth: Tensor, name: str, window: float) -> dict[str, float]:
    """Returns predicted and attained efficiency, and the error of their difference."""
    marginal = found.marginal(name)
    summaries = dict(zip(marginal.summary_names, marginal.summaries(window).T, strict=True))
    predicted = summaries[f"{name}_window_probability"]
    hit = ((summaries[f"{name}_window"] - truth).abs() < window).double()
    return {
        "predicted": round(float(predicted.mean()), 4),
        "attained": round(float(hit.mean()), 4),
        "error": round(float((hit - predicted).std() / len(hit) ** 0.5), 4),
    }


def run(name: str, recipe: Recipe, events: Path | None, out: Path) -> None:
    """Fits one mixture and writes it."""
    clock = time.process_time()
    train, test = (sample(name, recipe, events, test=test) for test in (False, True))
    generator = torch.Generator().manual_seed(CHOICE_SEED)
    chosen = torch.randperm(len(train), generator=generator)[: recipe.n_fitted]
    used = train[chosen.sort().values]
    start = mixture_for(train.card, recipe.masses, options=recipe.options, fitted=False)

    def report(*row: object) -> None:
        print(*row, f"{time.process_time() - clock:.0f} s", flush=True)

    fitted = fit_mixture(used, start=start, fit=recipe.fit, report=report)
    after = judge(fitted, test[: recipe.n_test], recipe.window)
    print(name, "after", after, sep="\n", flush=True)
    save_mixture(
        fitted,
        out / f"{name}.json",
        card=recipe.card,
        masses=recipe.masses,
        metrics=after,
        provenance={
            "seed": recipe.seed,
            "test_seed": recipe.seed + TEST,
            "n_fitted": len(used),
            "n_events": len(train),
            "choice_seed": CHOICE_SEED,
            "simulation": train.provenance.get("versions", {}),
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
