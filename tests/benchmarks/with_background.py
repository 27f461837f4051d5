"""What background costs: masses from the events of a luminosity, signal and background together.

Pseudo-experiments at one mass point. Each has Poisson numbers of signal and of every background, no
cut but the selection. Masses are measured with the signal events alone, with an unknown share of
background, and with the expected rates of both::

    python tests/benchmarks/with_background.py --work FOLDER

The folder keeps the simulated background. Half of it trains the classifier, half is drawn from.
``--record`` writes ``results/with_background.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference.background import BackgroundRatio
from massrecon.inference.combination import OUTLIERS
from massrecon.inference.composition import BackgroundShare, ExpectedRates
from massrecon.inference.likelihood import MassLikelihood, mass_likelihood
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.rates import YieldMap
from massrecon.provenance import versions, write_json

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pools import BACKGROUNDS, NAMES, simulated

RESULTS = Path(__file__).parent / "results" / "with_background.json"
METHODS = ("signal alone", "unknown share", "expected rates")
UNCERTAINTY = 0.15  # of the expected background
STEP = 10.0  # of the grid [GeV]
LEVELS = (0.68, 0.95)


def one_experiment(
    table: MassLikelihood, log_w: Tensor, rows: Tensor, n_signal: int, known: dict[str, Any]
) -> list[MassMeasurement]:
    """Measures the masses from the events of an experiment, by each method."""
    ratio = log_w[rows]
    compositions = (
        BackgroundShare(log_background=ratio),
        ExpectedRates(log_background=ratio, **known),
    )
    alone = mr.measure(table[rows[:n_signal].tolist()], outliers=0.0)
    every = table[rows.tolist()]
    return [alone, *(mr.measure(every, background=c, outliers=0.0) for c in compositions)]


def judged(found: list[MassMeasurement], truth: Tensor) -> dict[str, Any]:
    """Computes resolution, bias and coverage of experiments."""
    off = torch.stack([m.estimate() for m in found]) - truth
    n = len(found)
    coverage = {f"{p:g}": sum(m.contains(truth, p) for m in found) / n for p in LEVELS}
    generator = torch.Generator().manual_seed(1)
    again = torch.randint(n, (500, n), generator=generator)
    widths = torch.stack([off[a].abs().quantile(0.68, dim=0) for a in again])
    return {
        "resolution": off.abs().quantile(0.68, dim=0).tolist(),
        "resolution_error": widths.std(0).tolist(),
        "bias": off.mean(0).tolist(),
        "bias_error": (off.std(0) / n**0.5).tolist(),
        "median_bias": off.median(0).values.tolist(),
        "coverage": coverage,
        "coverage_error": {p: (c * (1 - c) / n) ** 0.5 for p, c in coverage.items()},
    }


def stripped(events: Events, signal: Events) -> Events:
    """Removes truth and history, so that events of different cards can be judged together."""
    return dataclasses.replace(events, card=signal.card, masses=None, partons=None, provenance={})


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    model, plane = mr.load_model(arguments.model), mr.load_events(arguments.model)
    signal = mr.load_events(arguments.signal)
    luminosity, seed = arguments.luminosity, arguments.seed
    assert signal.masses is not None
    columns = [signal.card.mass_names.index(name) for name in NAMES]
    truth = signal.masses[0, columns].double()
    generator = torch.Generator().manual_seed(seed)
    train, pools, yields = {}, [signal], [float(signal.expected(luminosity).sum())]
    for name in BACKGROUNDS:
        events = simulated(name, arguments.work)
        order = torch.randperm(len(events), generator=generator).tolist()
        train[name] = events[order[::2]]
        pools.append(events[order[1::2]])
        yields.append(float(events.expected(luminosity).sum()))
    expected = dict(zip(BACKGROUNDS, yields[1:], strict=True))
    ratio = BackgroundRatio.fit(plane, train, expected, seed)
    everything = Events.concat([stripped(events, signal) for events in pools])
    log_w = ratio(everything)
    table = mass_likelihood(model, everything, step=STEP, outliers=OUTLIERS, seed=seed)
    sizes = [len(events) for events in pools]
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0).tolist()
    rate = YieldMap.from_cells(NAMES, plane.provenance["cells"])
    total = sum(expected.values())
    known = {
        "signal": lambda points: rate(points, luminosity),
        "background": (total, UNCERTAINTY * total),
        "signal_uncertainty": arguments.signal_uncertainty,
    }
    experiments = []
    for _ in tqdm(range(arguments.experiments)):
        numbers = torch.poisson(torch.tensor(yields), generator=generator).long().tolist()
        numbers[0] = max(1, numbers[0])
        rows = torch.cat([
            start + torch.randperm(size, generator=generator)[: min(n, size)]
            for start, size, n in zip(starts, sizes, numbers, strict=True)
        ])  # fmt: skip
        experiments.append(one_experiment(table, log_w, rows, numbers[0], known))
    results = {
        method: judged([found[i] for found in experiments], truth)
        for i, method in enumerate(METHODS)
    }
    return {
        "truth": dict(zip(NAMES, truth.tolist(), strict=True)),
        "luminosity_fb": luminosity,
        "expected": {"signal": yields[0], **expected},
        "expected_from_map": float(rate(truth[None], luminosity)),
        "pools": dict(zip(("signal", *BACKGROUNDS), sizes, strict=True)),
        "background_uncertainty": UNCERTAINTY,
        "signal_uncertainty": arguments.signal_uncertainty,
        "separation": ratio.separation,
        "n_experiments": arguments.experiments,
        "seed": seed,
        "methods": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder that is kept")
    parser.add_argument("--model", default="wino_udd", help="model and plane sample, by name")
    parser.add_argument("--signal", default="wino_udd_600_200", help="events of one mass point")
    parser.add_argument("--luminosity", type=float, default=3000.0, help="[fb^-1]")
    parser.add_argument("--signal-uncertainty", type=float, default=0.1)
    parser.add_argument("--experiments", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    found = run(arguments)
    for name, own in found["methods"].items():
        pairs = zip(own["resolution"], own["resolution_error"], strict=True)
        widths = ", ".join(f"{w:.1f} ± {e:.1f}" for w, e in pairs)
        covers = ", ".join(
            f"{100 * c:.1f} ± {100 * own['coverage_error'][level]:.1f} %"
            for level, c in own["coverage"].items()
        )
        bias = ", ".join(f"{b:+.1f}" for b in own["bias"])
        print(f"{name:15s} 68 % within {widths} GeV; bias {bias}; regions cover {covers}")
    command = "python tests/benchmarks/with_background.py --work FOLDER --record"
    results = {"command": command, **found, "versions": versions("torch", "scikit-learn")}
    if arguments.record:
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
