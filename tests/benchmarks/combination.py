"""How fast and how good N events become masses.

``speed`` needs nothing: Gaussian densities, up to a million events, as ratios inside one run::

    python tests/benchmarks/combination.py speed

``physics`` takes a trained model and folders of simulated events at one mass point each, none of
them seen in the training: resolution and coverage against the number of events, against the share
of outliers, against single numbers of each event, and the power of the comparison with the
training sample::

    python tests/benchmarks/combination.py physics --model FOLDER --training FOLDER POOL [POOL ...]

``--record`` writes ``results/combination.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rows import row
from torch import Tensor

import massrecon as mr
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.combination import OUTLIERS, measure
from massrecon.inference.densities import densities_of
from massrecon.inference.likelihood import mass_likelihood, with_outliers
from massrecon.inference.mixture import mixture_for, mixture_summaries
from massrecon.inference.novelty import Reference, novelty, observables
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.pseudo import experiments, totals
from massrecon.inference.resolution_curve import COMBINED, one_mass_point, resolution_curve
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.base import MassModel
from massrecon.provenance import versions, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.gaussians import GaussianDensities, gaussian_events

RESULTS = Path(__file__).parent / "results" / "combination.json"
SHARES = (0.0, 0.001, 0.01, 0.03, 0.1)
NUMBERS = (1, 3, 10, 30, 100)
COMPARED, MOST_COMPARED = 300, 1500  # samples, and events that they are taken from
NEAR = 100.0  # [GeV] training events around the truth that calibrate a single number


def speed() -> dict[str, Any]:
    """Times measurements of Gaussian events, in units of one event at a thousand points."""
    axes = [torch.linspace(500, 600, 32).double(), torch.linspace(100, 200, 32).double()]
    rows = []
    for n in (10, 1_000, 100_000, 1_000_000):
        toy = GaussianDensities(gaussian_events(n, seed=n))
        started = time.process_time()
        some = min(n, 4096)
        toy.log_density(axes, slice(0, some))
        unit = (time.process_time() - started) / some
        started = time.process_time()
        found = measure(toy)
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ratio = seconds / (n * unit)
        rows.append({"n_events": n, "seconds": seconds, "over_one_pass": ratio, "peak_mb": peak})
        print(f"{n:9,d} events: {seconds:6.2f} s, {ratio:6.1f} passes over 1,024 points, "
              f"grid {found.posterior.shape}, peak {peak:,.0f} MB")  # fmt: skip
    row(f"measuring {rows[-1]['n_events']:,} events", rows[-1]["over_one_pass"],
        "one pass over their densities at 1,024 points",
        note=f"peak memory {rows[-1]['peak_mb']:,.0f} MB")  # fmt: skip
    return {"rows": rows}


def physics(arguments: argparse.Namespace) -> dict[str, Any]:
    """Judges a model on each pool of events."""
    model = mr.load_model(arguments.model)
    sample = mr.load_events(arguments.training, partial=True)
    prior, reference = TrainingPrior.from_events(sample), Reference.from_events(sample)
    found = {}
    for folder in arguments.pools:
        pool = mr.load_events(folder)
        truth = one_mass_point(pool, prior.names)
        print(f"{folder.name}: {len(pool)} events, truth {truth.tolist()}")
        found[folder.name] = {
            "curve": _curve(model, pool, prior, arguments),
            "mixture": _curve(_mixture(pool.card, prior), pool, prior, arguments),
            "outliers": _outliers(model, pool, prior, arguments),
            "single_numbers": _single_numbers(pool, sample, prior, arguments),
            "novelty": _novelty(model, reference, prior, pool, arguments.backgrounds),
        }
    return {"pools": found, "n_experiments": arguments.experiments, "seed": arguments.seed}


def _mixture(card: ProcessCard, prior: TrainingPrior) -> KinematicMixture:
    """Builds the training-free posterior over the range of a prior."""
    ends = zip(prior.region.low, prior.region.high, strict=True)
    return mixture_for(card, dict(zip(prior.names, ends, strict=True)))


def _curve(
    model: MassModel | KinematicMixture,
    pool: Events,
    prior: TrainingPrior,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    curve = resolution_curve(
        model, pool, training_prior=prior, numbers=[n for n in NUMBERS if 5 * n <= len(pool)],
        n_experiments=arguments.experiments, seed=arguments.seed,
    )  # fmt: skip
    for point in curve.points:
        widths = [f"{v:5.1f} ± {e:.1f}" for v, e in point.resolution.tolist()]
        biases = [f"{v:+5.1f} ± {e:.1f}" for v, e in point.bias.tolist()]
        cover = [f"{100 * v:.1f} ± {100 * e:.1f} %" for v, e in point.coverage.values()]
        print(f"  N = {point.n_events:3d} {point.method:16s} 68 %: {', '.join(widths)}; "
              f"bias {', '.join(biases)} GeV; {', '.join(cover)}")  # fmt: skip
    return curve.to_dict()


def _outliers(
    model: MassModel, pool: Events, prior: TrainingPrior, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Tries several shares of outliers at N = 10 and 100."""
    densities, rows = densities_of(model, pool[: 5 * 300]), []
    for share in SHARES:
        curve = resolution_curve(
            densities, pool[: len(densities)], training_prior=prior, numbers=(10, 100),
            n_experiments=arguments.experiments, outliers=share, seed=arguments.seed,
        )  # fmt: skip
        for point in curve.of(COMBINED):
            widths = point.resolution[:, 0].tolist()
            cover = {f"{k:g}": v for k, v in point.coverage.items()}
            rows.append({"share": share, "n_events": point.n_events, "resolution": widths,
                         "coverage": cover})  # fmt: skip
            text = [f"{100 * v:.1f} ± {100 * e:.1f} %" for v, e in cover.values()]
            print(f"  outliers {share:g}, N = {point.n_events}: {', '.join(text)}, "
                  f"68 % within {', '.join(f'{w:.1f}' for w in widths)} GeV")  # fmt: skip
    return rows


def _single_numbers(
    pool: Events, sample: Events, prior: TrainingPrior, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Averages numbers of single events and inverts how their mean depends on the masses.

    The dependence is a straight line fitted to training events within 100 GeV of the truth: more
    than an experiment would know.
    """
    truth = one_mass_point(pool, prior.names)
    columns = [sample.card.mass_names.index(name) for name in prior.names]
    assert sample.masses is not None
    masses = sample.masses[:, columns].double()
    near = ((masses - truth).abs() < NEAR).all(1).nonzero()[:, 0][: arguments.nearby]
    rows = {}
    for name, function in (("invariant masses", _visible), ("mixture window", _window)):
        x = torch.cat([torch.ones(len(near), 1).double(), masses[near] - truth], dim=1)
        slope = torch.linalg.lstsq(x, function(sample[near])).solution
        inverse = torch.linalg.inv(slope[1:].T)
        own = (function(pool) - slope[0]) @ inverse.T
        for n in (10, 100):
            chosen = experiments(len(own), n, arguments.experiments, arguments.seed + n)
            off = own[chosen].mean(1)
            width = torch.quantile(off.abs(), 0.68, dim=0).tolist()
            rows[f"{name}, N = {n}"] = {"bias": off.mean(0).tolist(), "resolution": width}
            print(f"  {name}, N = {n}: 68 % within {width[0]:.1f}, {width[1]:.1f} GeV")
    return rows


def _visible(events: Events) -> Tensor:
    """The mass of everything seen and that of the jets, logs."""
    found = observables(events)
    return torch.stack([found["visible mass"], found["mass of jets"]], dim=-1)


def _window(events: Events) -> Tensor:
    """What the kinematic mixture says of each mass on its own [GeV]."""
    return mixture_summaries(mixture_for(events.card), events)[:, [2, 6]]


def _novelty(
    model: MassModel,
    reference: Reference,
    prior: TrainingPrior,
    pool: Events,
    backgrounds: list[Path],
) -> dict[str, Any]:
    """Counts how often samples of N events raise the alarm, at the masses that each of them gives.

    That is what `massrecon measure` does with events whose masses nobody knows.
    """
    samples = {"signal": pool, "jets - 10 %": _scaled(pool, 0.9), "jets + 10 %": _scaled(pool, 1.1)}
    for folder in backgrounds:
        samples[folder.name] = mr.load_events(folder, partial=True)
    rows = {}
    for name, whole in samples.items():
        events = whole[:MOST_COMPARED]
        like = mass_likelihood(model, events, prior=prior)
        table = with_outliers(like.log_ratio, OUTLIERS).masked_fill(~like.inside, -torch.inf)
        for n in (10, 100):
            if len(events) < 2 * n:
                continue
            chosen = experiments(len(events), n, COMPARED, seed=n)
            masses = like.points[totals(table, chosen).argmax(1)]
            alarms = [
                novelty(reference, events[some], at).alarm
                for some, at in zip(chosen, masses, strict=True)
            ]
            rows[f"{name}, N = {n}"] = sum(alarms) / COMPARED
            print(f"  alarm for {name}, N = {n}: {100 * sum(alarms) / COMPARED:.1f} %")
    return rows


def _scaled(events: Events, scale: float) -> Events:
    """Scales the jets, and the missing momentum with them."""
    slots = list(events.slots_of("jet"))
    p4 = events.p4.clone()
    p4[:, slots] *= scale
    moved = (p4 - events.p4).sum(1)[:, :2]
    return dataclasses.replace(events, p4=p4, ptmiss=events.ptmiss - moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("part", choices=("speed", "physics"))
    parser.add_argument("pools", nargs="*", type=Path, help="folders of events at one mass point")
    parser.add_argument("--model", help="folder, or name of a model that comes with massrecon")
    parser.add_argument("--training", type=Path)
    parser.add_argument("--backgrounds", type=Path, nargs="*", default=[])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--nearby", type=int, default=5000, help="training events near the truth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    results = speed() if arguments.part == "speed" else physics(arguments)
    results["versions"] = versions("torch")
    results["command"] = " ".join(
        Path(word).name if "/" in word else word for word in ["python", *sys.argv]
    )
    if arguments.record:
        before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        write_json(RESULTS, before | {arguments.part: results})


if __name__ == "__main__":
    main()
