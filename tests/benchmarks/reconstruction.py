"""How well each model reconstructs masses: same events, same time, paired differences.

Simulates the events of a study (or takes them from a folder), trains one model for some minutes and
judges it on held-out mass points::

    python tests/benchmarks/reconstruction.py plane barman2025 cascade --minutes 90 --work FOLDER

Everything stays in the folder: a run that is cut off goes on where it stopped, the posterior of a
model that is finished is not drawn again, and models of later runs are compared with earlier ones.
The table, with the differences to the first model named, goes to ``results/reconstruction.json``
with ``--record``, under the name of the study or that of ``--under``. Names after a colon are
ablations and ceilings, such as ``cascade:no_mixture`` or ``cascade:masses_alone+no_pairs``; a
number after an at sign is the seed of the training, such as ``cascade@2``. Time is that of the
processor, all cores together.
``--ship NAME`` puts the first model, in half precision and with its results, among those that come
with massrecon.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference.comparison import judge
from massrecon.inference.diagnostics import found_within
from massrecon.inference.efficiency_map import efficiency_map
from massrecon.inference.novelty import recorded_reference
from massrecon.inference.posterior import Posterior
from massrecon.inference.prior import recorded_prior
from massrecon.inference.statistics import clusters, group_sums
from massrecon.inference.tables import EfficiencyTable
from massrecon.models.base import SHIPPED
from massrecon.models.training import TrainingConfig
from massrecon.provenance import versions, write_json

RESULTS = Path(__file__).parent / "results" / "reconstruction.json"
WINDOWS = (10.0, 20.0, 30.0, 50.0)
WINDOW = 30.0
BOOTSTRAPS = 1000

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "no_pairs": {"pair_bias": False},
    "no_hypotheses": {"hypotheses": 0},
    "no_peaks": {"hypothesis_peaks": False},
    "no_mixture": {"hypotheses": 0, "summaries": False},
    "mean_pooling": {"pooling": "mean"},
    "turned_at_random": {"canonical": False},
    "no_origins": {"assignment_weight": 0.0},
    "masses_alone": {"targets": "masses"},
    "given_origins": {"given": "origins"},
    "given_neutrinos": {"given": "neutrinos"},
    "given_both": {"given": "both"},
}
"""Ablations, and the ceilings of a model that is told the truth, by name."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is simulated.

    Attributes:
        card: Name of the process.
        train: Masses of the training events, as in `simulate`.
        test: Masses of the test events; None holds out mass points of the training sample.
        n_events: Number of selected training events, and of test events where they are apart.
        judged: Range of each true mass on which models are judged [GeV]. The training events reach
            beyond it; the prior of all posteriors is cut to it.
        seed: Seed of the simulation; that of separate test events is one more.
    """

    card: str
    train: Any
    test: Any
    n_events: tuple[int, int]
    judged: dict[str, tuple[float, float]]
    seed: int


STUDIES = {
    "plane": Study(
        card="wino_udd", train="plane", test=None, n_events=(400_000, 20_000), seed=71,
        judged={"chi20": (400, 650), "chi10": (50, 500)},
    ),
    "line": Study(
        card="wino_udd", train="published_line",
        test={"chi20": 600, "chi10": list(range(50, 401, 25))}, n_events=(280_000, 15_000),
        judged={}, seed=73,
    ),
    "four_lepton": Study(
        card="wino_lle", train={"chi20": 1500, "chi10": "20:560"},
        test={"chi20": 1500, "chi10": list(range(50, 501, 25))}, n_events=(30_000, 4_000),
        judged={}, seed=751,
    ),
}  # fmt: skip


def samples_of(study: Study, folder: Path, given: Path | None, most: int) -> tuple[Events, Events]:
    """Returns training and test events; `given` replaces the simulation of the training events."""
    n_train, n_test = study.n_events
    if given is not None:
        sample = mr.load_events(given, partial=True)
    else:
        n = n_train if study.test is not None else n_train + n_test
        sample = mr.simulate(study.card, n, study.train, study.seed, out=folder / "train_events")
    if study.test is not None:
        test = mr.simulate(study.card, n_test, study.test, study.seed + 1, out=folder / "test")
        return sample[:most], judged(study, test)
    share = min(n_test / len(sample), 0.2)
    train, test = sample.split("masses", (1 - share, share), seed=study.seed)
    return train[:most], judged(study, test)


def judged(study: Study, events: Events) -> Events:
    """Keeps the events whose true masses models are judged on."""
    assert events.masses is not None
    keep = torch.ones(len(events), dtype=torch.bool)
    for name, (low, high) in study.judged.items():
        column = events.masses[:, events.card.mass_names.index(name)]
        keep &= (column >= low) & (column <= high)
    return events[keep]


def parts_of(name: str) -> tuple[str, list[str], str]:
    """Returns the family of a model, its variants, and the seed of its training, if it has one."""
    whole, _, seed = name.partition("@")
    family, _, variants = whole.partition(":")
    return family, variants.split("+"), seed


def posterior_of(
    name: str, train: Events, test: Events, folder: Path, arguments: argparse.Namespace
) -> tuple[Posterior, dict[str, Any]]:
    """Trains a model, or goes on with its training, and draws its posteriors."""
    family, variants, seed = parts_of(name)
    options: dict[str, Any] = {}
    for variant in variants:
        options |= VARIANTS[variant]
    place = folder / name.replace(":", "_")
    record, drawn = place / "record.json", place / "posterior"
    if record.is_file():
        return Posterior.load(drawn), json.loads(record.read_text(encoding="utf-8"))
    recipe = TrainingConfig(
        max_minutes=arguments.minutes, clock="processor", batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate, seed=int(seed or arguments.seed), metric_events=2000,
    )  # fmt: skip
    model = mr.fit(
        family, train, preset=arguments.preset, training=recipe, out=place / "model",
        options=options,
    )  # fmt: skip
    posterior = mr.reconstruct(
        model, test, n_samples=arguments.draws, seed=arguments.seed, steps=arguments.steps
    )
    posterior.save(drawn)
    history = model.metadata["history"]["records"]
    account = {
        "n_train": model.metadata["n_train"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "core_minutes": round(history[-1]["seconds"] / 60, 1),
        "threads": torch.get_num_threads(),
        "epochs": round(history[-1]["epoch"], 2),
        "validation_loss": [round(r["validation_loss"], 4) for r in history],
        "draws": arguments.draws,
        "steps": arguments.steps,
        "seed": recipe.seed,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "versions": versions("torch"),
    }
    write_json(record, account)
    return posterior, account


def results_of(posterior: Posterior) -> dict[str, Any]:
    """Judges a posterior: efficiencies, coverage, agreement, and the worst cell of the plane."""
    found = judge(posterior, windows=WINDOWS)
    results = found.to_dict()
    results.pop("points")
    results["lowest"] = lowest_of(found.efficiency)
    masses = list(results["coverage"])
    if len(masses) > 1:
        results["cells"] = {m: efficiency_map(posterior, m, WINDOW).to_dict() for m in masses}
    return results


def lowest_of(table: EfficiencyTable) -> dict[str, Any]:
    """Finds the lowest efficiency along each grid of a true mass, with where it is and its error.

    The lowest of several fluctuating numbers lies a little below the lowest true one.
    """
    found: dict[str, Any] = {}
    for mass, own in table.points.items():
        if own.points.edges is not None or len(own.points) < 2:
            continue
        for estimator in ("draw", "window"):
            for window in WINDOWS:
                cell = table.position(mass, estimator, window)
                i = int(own.rates.value[cell].argmin())
                value, error = float(own.rates.value[cell][i]), float(own.rates.error[cell][i])
                at = float(own.points.value[i])
                found.setdefault(mass, {}).setdefault(estimator, {})[f"{window:g}"] = {
                    "value": value, "error": error, "at": at,
                }  # fmt: skip
    return found


def difference(one: Posterior, other: Posterior, mass: str) -> dict[str, tuple[float, float]]:
    """Computes by how many points `one` is better, with bootstrap errors over mass points.

    If one was drawn for more events than the other, its first ones are compared.
    """
    n = min(len(one), len(other))
    one, other = one[:n], other[:n]
    if not torch.equal(one.true_masses(), other.true_masses()):
        raise SystemExit("The posteriors are of other events: remove them from the folder.")
    group = clusters(one.true_masses())
    counts = group_sums(torch.ones(len(one), dtype=torch.float64), group)
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(counts), (BOOTSTRAPS, len(counts)), generator=generator)
    gains = {}
    for own, theirs in (("window", "window"), ("window", "draw")):
        gain = _hits(one, mass, own) - _hits(other, mass, theirs)
        sums = group_sums(gain, group)
        again = sums[chosen].sum(1) / counts[chosen].sum(1)
        gains[f"{own} less {theirs}"] = (100 * float(gain.mean()), 100 * float(again.std()))
    return gains


def _hits(posterior: Posterior, mass: str, estimator: str) -> Tensor:
    i = posterior.mass_index(mass)
    return found_within(posterior.mass_samples(), posterior.true_masses(), WINDOW, estimator)[:, i]


ORIGIN = ("process", "masses", "seed", "settings", "n_generated", "n_selected", "versions")
LIMITS = (
    "Trained on Pythia 8 with massrecon's own fast detector, without multiparton interactions, "
    "pile-up or background; decays are isotropic. Masses outside the range of the training are "
    "never found. The prior is that of the selected training events."
)


def ship(name: str, folder: Path, results: dict[str, Any], train: Events, study: Study) -> None:
    """Puts a trained model among those that come with massrecon, with a model card."""
    model = mr.load_model(folder / "model")
    assert train.masses is not None
    ends = zip(train.masses.amin(0).tolist(), train.masses.amax(0).tolist(), strict=True)
    judged_on = {
        "n_test": results["n_test"],
        "prior cut to": {mass: list(ends) for mass, ends in study.judged.items()},
        "efficiency": results["efficiency"],
        "coverage": results["coverage"],
        "self_consistency": results["self_consistency"],
    }
    history = model.metadata.pop("history")
    model.metadata |= recorded_prior(train) | recorded_reference(train)
    model.save(
        SHIPPED / name,
        half=True,
        training_masses=dict(zip(train.card.mass_names, ends, strict=True)),
        training_events={key: train.provenance[key] for key in ORIGIN if key in train.provenance},
        budget={key: results[key] for key in ("core_minutes", "epochs", "batch_size")},
        validation_loss=results["validation_loss"],
        training_config=history["config"],
        git=subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        results=judged_on,
        limits=f"{LIMITS} {lasted(results)}",
    )


def lasted(results: dict[str, Any]) -> str:
    """Says how long a model was trained, and whether that was enough."""
    losses = results["validation_loss"]
    gain = losses[-4] - losses[-1] if len(losses) > 3 else float("nan")
    return (
        f"The training took {results['core_minutes']:g} minutes of one core, {results['epochs']:g} "
        f"passes over {results['n_train']:,} events; over its last three rounds the validation "
        f"loss still fell by {gain:.4f}, with the learning rate going to zero."
    )


def command_of(arguments: argparse.Namespace) -> str:
    """Writes the command that makes a result, with folders that every reader has."""
    places = {str(arguments.work): "WORK", str(arguments.sample): "SAMPLE"}
    words = [places.get(word, word) for word in sys.argv[1:]]
    return " ".join(["python", "tests/benchmarks/reconstruction.py", *words])


def show(results: dict[str, Any]) -> None:
    """Prints the table of a study."""
    for name, own in results["models"].items():
        for mass, cells in own["efficiency"].items():
            if mass not in own["coverage"]:
                continue
            claim = own["self_consistency"][mass][f"{WINDOW:g}"]
            row = "  ".join(f"{e} {100 * c[f'{WINDOW:g}']['value']:5.1f}" for e, c in cells.items())
            print(f"{name:28s} {mass:6s} {row}  predicted {100 * claim['predicted']:5.1f}")
    for name, by_mass in results["differences"].items():
        for mass, gains in by_mass.items():
            row = "  ".join(f"{k}: {v:+.1f} ± {e:.1f}" for k, (v, e) in gains.items())
            print(f"{results['reference']} against {name}, {mass}: {row} points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("models", nargs="+", help="families, or family:variant")
    parser.add_argument("--work", type=Path, required=True, help="folder that is kept")
    parser.add_argument("--sample", type=Path, help="folder of training events")
    parser.add_argument("--events", type=int, default=sys.maxsize, help="most training events")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="processor time of each training"
    )
    parser.add_argument("--preset", default="full")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="network evaluations of a draw")
    parser.add_argument("--tests", type=int, default=sys.maxsize, help="most test events")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ship", metavar="NAME", help="name of a model to come with massrecon")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--under", help="name of the record, if not that of the study")
    arguments = parser.parse_args()
    for name in arguments.models:
        if not set(parts_of(name)[1]) <= set(VARIANTS):
            parser.error(f"unknown variant in '{name}': choose from {', '.join(VARIANTS)}")
    study, folder = STUDIES[arguments.study], arguments.work / arguments.study
    train, test = samples_of(study, folder, arguments.sample, arguments.events)
    test = test[: arguments.tests]
    print(f"{arguments.study}: {len(train):,} training events, {len(test):,} to judge on")
    posteriors, models = {}, {}
    for name in arguments.models:
        posterior, record = posterior_of(name, train, test, folder, arguments)
        posteriors[name] = posterior.within(study.judged)
        models[name] = record | results_of(posteriors[name]) | {"n_test": len(posterior)}
    first, *others = arguments.models
    masses = list(models[first]["coverage"])
    results = {
        "command": command_of(arguments),
        "reference": first,
        "models": models,
        "differences": {
            name: {mass: difference(posteriors[first], posteriors[name], mass) for mass in masses}
            for name in others
        },
    }
    show(results)
    if arguments.ship:
        ship(
            arguments.ship, folder / first.replace(":", "_"), results["models"][first], train, study
        )
    if arguments.record:
        before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        write_json(RESULTS, before | {arguments.under or arguments.study: results})


if __name__ == "__main__":
    main()
