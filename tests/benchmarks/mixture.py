"""Speed and quality of the kinematic mixture, in one run.

Prints the time per event of posterior and both marginals, compiled and in torch; beside it, if the
environment variable MASSRECON_PROTOTYPE names the file of a slow reference with a function
``solve(jets, h, lepton, ptmiss, K)`` (momenta as (E, px, py, pz)), its time on the same events.
With ``--fit``, fits on three quarters of the mass points and compares predicted and attained
efficiency on the others. Run it alone::

    OMP_NUM_THREADS=1 python tests/benchmarks/mixture.py --events 4000 --fit
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rows import row

from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.inference.diagnostics import efficiency
from massrecon.inference.mixture import fit_mixture, mixture_for, mixture_posterior
from massrecon.kinematics.backends import Backend
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import DetectedEvents
from massrecon.kinematics.mixture_fit import MixtureFit
from massrecon.models.mixture import detected

REGIONS: dict[str, dict[str, float | tuple[float, float]]] = {
    "line": {"chi20": 600.0, "chi10": (50.0, 450.0)},
    "plane": {"chi20": (400.0, 650.0), "chi10": (50.0, 500.0)},
}
SEEDS = {"line": 101, "plane": 102}
H_MASS = 125.0
N_REFERENCE = 1000
ROUNDS = 7


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Returns the time of a piece of work, of the processor unless another clock is given."""
    start = clock()
    work()
    return clock() - start


def reference_solver(path: str) -> Callable[..., Any]:
    """Takes ``solve`` from a file, without what the file does after its definitions."""
    text = Path(path).read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(text.partition("\nt0=time.time()")[0], path, "exec"), names)
    return names["solve"]


def run_reference(solve: Callable[..., Any], events: DetectedEvents) -> None:
    """Solves event by event, with the photon pair scaled to the Higgs mass."""
    p4 = events.p4[..., [3, 0, 1, 2]].numpy()
    kinds = np.array(events.kinds)
    for momenta, present, ptmiss in zip(
        p4, events.present.numpy(), events.ptmiss.numpy(), strict=True
    ):
        pair = momenta[kinds == "photon"].sum(0)
        pair *= H_MASS / np.sqrt(pair[0] ** 2 - (pair[1:] ** 2).sum())
        jets = momenta[(kinds == "jet") & present]
        solve(jets, pair, momenta[kinds == "lepton"][0], ptmiss, 7)


def run_ours(mixture: KinematicMixture, events: DetectedEvents, backend: Backend) -> None:
    """Computes the posterior and the density of both masses in steps of 5 GeV."""
    found = mixture.posterior(events, backend=backend)
    found.marginal("chi10").density(torch.arange(42.5, 510.0, 5.0))
    found.marginal("chi20").density(torch.arange(392.5, 660.0, 5.0))


def report_speed(mixture: KinematicMixture, events: DetectedEvents, parameters: str) -> None:
    """Prints times per event, and their ratio to the reference on the first of the events.

    Both take turns, after a first round that is not counted: the median of the rounds is printed.
    On one thread it is processor time; on all cores it is time on the clock, which only means
    something on an idle machine.
    """
    first, path = events[:N_REFERENCE], os.environ.get("MASSRECON_PROTOTYPE")
    clocks = {
        "one thread": (1, time.process_time),
        "all cores": (os.cpu_count() or 1, perf_counter),
    }
    whole = partial(run_reference, reference_solver(path), first) if path else None
    backends: tuple[Backend, ...] = ("numba", "torch")
    alone: dict[str, float] = {}
    for backend in backends:
        work = partial(run_ours, mixture, events, backend)
        for label, (threads, clock) in clocks.items():
            torch.set_num_threads(threads)
            work()
            ours, reference = [], []
            for _ in range(ROUNDS):
                torch.set_num_threads(threads)
                ours.append(seconds(work, clock) / len(events))
                torch.set_num_threads(1)
                if whole:
                    reference.append(seconds(whole, clock) / len(first))
            if threads == 1:
                alone[backend] = median(ours)
            text = f"{backend}, {label}: {1e3 * median(ours):.4f} ms per event"
            if whole:
                ratios = [own / other for own, other in zip(reference, ours, strict=True)]
                text += f", reference {1e3 * median(reference):.3f} ms: {median(ratios):.1f} "
                text += f"({min(ratios):.1f} to {max(ratios):.1f}) times faster"
            print(f"{text} ({len(events)} events, {ROUNDS} rounds)", flush=True)
    row(
        f"kinematic mixture, {parameters} parameters, compiled",
        alone["numba"] / alone["torch"],
        "the same in torch",
        note=f"{1e6 * alone['numba']:.0f} µs for each event",
    )


def report_quality(name: str, events: Events, fit: MixtureFit) -> None:
    """Fits on three quarters of the mass points and judges on the others."""
    train, test = events.split(by="masses", fractions=(0.75, 0.25), seed=1)
    start = mixture_for(events.card, REGIONS[name], fitted=False)
    fitted = fit_mixture(train, start=start, fit=fit, report=lambda *row: print(*row, flush=True))
    for label, mixture in (("start values", start), ("fitted", fitted)):
        table = efficiency(mixture_posterior(mixture, test, n_samples=200, seed=1), windows=(30,))
        print(f"{name}, {label}, {len(test)} test events:\n{table}")
        both = table.self_consistency
        if both is not None:
            print(f"predicted {both.predicted.tolist()}, attained {both.attained.tolist()}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4000, help="number of events of each sample")
    parser.add_argument("--out", type=Path, default=None, help="folder to keep the events in")
    parser.add_argument("--fit", action="store_true", help="fit and compare efficiencies too")
    parser.add_argument("--epochs", type=int, default=10, help="passes of the fit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("plane", "line"):
        events = simulate(
            "wino_udd",
            n_events=options.events,
            masses=REGIONS[name],
            seed=SEEDS[name],
            out=options.out and options.out / name,
        )
        if name == "plane":
            for fitted in (True, False):
                parameters = "fitted" if fitted else "start"
                print(f"{parameters} parameters:")
                mixture = mixture_for(events.card, REGIONS[name], fitted=fitted)
                report_speed(mixture, detected(events), parameters)
        if options.fit:
            report_quality(name, events, MixtureFit(epochs=options.epochs))


if __name__ == "__main__":
    main()
