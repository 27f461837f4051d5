r"""DeeLeMa: speed beside the released program, and the numbers of its paper measured here.

Without options it prints the processor time of a whole fit of 100,000 toy events and the ratio of
the times of an epoch to the released program, interleaved in one run. The other parts take longer;
each adds its results to a JSON file, and leaves out what the file has already::

    OMP_NUM_THREADS=1 python tests/benchmarks/deelema.py
    OMP_NUM_THREADS=1 python tests/benchmarks/deelema.py --part table --part starts \\
        --out tests/benchmarks/results/deelema.json

The released program (https://github.com/Yonsei-HEP-COSMO/DeeLeMa) is described here anew: 16 inputs
in TeV, six layers of 256 with GELU and no normalisation, Huber distances, masses as sums of
elu(x) + 1, a data loader that collects single events.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import massrecon as mr
from massrecon.events.container import Events
from massrecon.kinematics.solvers import pair_solutions
from massrecon.models.deelema import DeeLeMa, Edge, study
from massrecon.models.deelema.calibration import anchor_edges
from massrecon.provenance import versions, write_json

RUNS = {"antler": study.TEST_RUNS["B"], "antler_ttbar": study.TEST_RUNS["C"]}
STARTS = (-0.2, 0.0, 0.3, 1.0)
BATCH = 2048
COMMAND = (
    "python tests/benchmarks/deelema.py --out tests/benchmarks/results/deelema.json "
    "--part table --part ttbar --part starts --part coverage --part trial --part published "
    "--part epoch --part whole"
)


def sample(card: str, n: int, seed: int, **settings: Any) -> Events:
    """Simulates toy events."""
    return mr.simulate(card, n, seed=seed, workers=1, progress=False, settings=settings or None)


def model(card: str, preset: str = "ours", seed: int = 0, **fields: Any) -> DeeLeMa:
    """Makes an unfitted DeeLeMa for a card."""
    run = RUNS[card]
    return DeeLeMa(run.legs, run.config(preset, **fields), seed=seed)


class Released(nn.Module):
    """The released program's network, masses and loss for momenta (E, px, py, pz) in TeV."""

    def __init__(self, m_invisible: float) -> None:
        super().__init__()
        sizes = [16, *[256] * 6]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU(approximate="tanh")]
        self.net = nn.Sequential(*layers, nn.Linear(256, 4))
        self.m_invisible = m_invisible
        self.steps = nn.Parameter(torch.tensor([0.3, 0.3]))
        self.distance = nn.HuberLoss()

    def masses(self) -> tuple[Tensor, Tensor]:
        """Global masses of B and A [TeV]."""
        steps = nn.functional.elu(self.steps) + 1
        return self.m_invisible + steps[0], self.m_invisible + steps.sum()

    def forward(self, x: Tensor) -> Tensor:
        """Computes the loss of visible momenta ``(N, 16)``: a1, a2, b1, b2."""
        out = self.net(x)
        a1, a2, b1, b2 = x.unflatten(1, (4, 4)).unbind(1)
        total = a1 + a2 + b1 + b2
        first = torch.stack([out[:, 0], -total[:, 2] - out[:, 1], out[:, 2]], 1)
        second = torch.stack([-total[:, 1] - out[:, 0], out[:, 1], out[:, 3]], 1)
        loss = x.new_zeros(())
        found = []
        for q, a, b in ((first, a1, b1), (second, a2, b2)):
            energy = (self.m_invisible**2 + q.square().sum(1, keepdim=True)).sqrt()
            lower = b + torch.cat([energy, q], 1)
            found.append([_mass(lower), _mass(lower + a)])
        for target, (one, other) in zip(self.masses(), zip(*found, strict=True), strict=True):
            wanted = target * torch.ones_like(one)
            loss = loss + self.distance(one, other)
            loss = loss + self.distance(one, wanted) + self.distance(other, wanted)
        return loss


def _mass(p: Tensor) -> Tensor:
    return (p[:, 0] ** 2 - p[:, 1:].square().sum(1)).sqrt()


def released_epoch(events: Events, single: bool) -> Callable[[], None]:
    """Returns one epoch of the released program, which collects each event on its own."""
    p4 = events.p4[:, :, [3, 0, 1, 2]].flatten(1).float() / 1000
    network = Released(0.7)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(p4), batch_size=BATCH, shuffle=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        network(x).backward()
        optimizer.step()

    def epoch() -> None:
        if single:
            for (x,) in loader:
                step(x)
        else:
            order = torch.randperm(len(p4))
            for i in range(0, len(p4), BATCH):
                step(p4[order[i : i + BATCH]])

    return epoch


def whole(_: dict[str, Any]) -> dict[str, Any]:
    """Measures a whole fit of 100,000 toy events."""
    events = sample("antler", 100_000, seed=1)
    start = time.process_time()
    fitted = model("antler").fit(events, progress=True)
    return {
        "whole_fit_cpu_seconds": time.process_time() - start,
        "network_cpu_seconds": fitted.record.seconds,
        "masses": fitted.masses,
        "n_events": len(events),
        "load": os.getloadavg()[0],
    }


def epoch(_: dict[str, Any]) -> dict[str, Any]:
    """Measures the ratio of the times of an epoch, interleaved."""
    part = sample("antler", 20_480, seed=1)
    ours: list[float] = []
    theirs: dict[bool, list[float]] = {True: [], False: []}
    epochs = {single: released_epoch(part, single) for single in theirs}
    for _turn in range(3):  # interleaved, so that other load hits all alike
        fresh = model("antler", epochs=1)
        ours.append(fresh.fit(part, progress=False, n_bootstrap=1).record.seconds)
        for single, run in epochs.items():
            start = time.process_time()
            run()
            theirs[single].append(time.process_time() - start)
    return {
        "ours_cpu_seconds": min(ours),
        "released_cpu_seconds": min(theirs[True]),
        "released_on_tensors_cpu_seconds": min(theirs[False]),
        "ratio_to_released": min(ours) / min(theirs[True]),
        "ratio_to_released_on_tensors": min(ours) / min(theirs[False]),
        "n_events": len(part),
        "batch": BATCH,
        "load": os.getloadavg()[0],
    }


def describe(fitted: DeeLeMa, test: Events, truth: dict[str, float]) -> dict[str, Any]:
    """Summarises a fit on events that it has not seen."""
    found = fitted.predict(test)
    rows = {}
    for label in found.labels:
        masses = found.mass(label).numpy()
        rows[label] = {
            "mean": float(masses.mean()),
            "std": float(masses.std()),
            "median": float(np.median(masses)),
            "peak": _peak(masses),
        }
    return {
        "global": fitted.masses,
        "intervals": fitted.intervals,
        "masses": rows,
        "truth": truth,
        "cpu_seconds": fitted.record.seconds,
    }


def _peak(masses: np.ndarray) -> float:
    """Finds the mode: the middle of the shortest interval with a fifth of the values."""
    ordered = np.sort(masses)
    n = max(len(ordered) // 5, 2)
    widths = ordered[n - 1 :] - ordered[: len(ordered) - n + 1]
    first = int(widths.argmin())
    return float(0.5 * (ordered[first] + ordered[first + n - 1]))


def table(done: dict[str, Any], n: int = 20_000, n_test: int = 10_000) -> dict[str, Any]:
    """Measures Table I: four contaminations, three seeds; keeps what is done."""
    for seed in (1, 2, 3):
        for share in (0.0, 0.1, 0.2, 0.5):
            key = f"E_C={share:g},seed={seed}"
            if key in done:
                continue
            events = sample("antler", n + n_test, seed=100 + seed, contamination=share)
            fitted = model("antler", seed=seed, epochs=10, batch_size=512)
            fitted.fit(events[:n], seed=seed, progress=False)
            done[key] = describe(fitted, events[n:], RUNS["antler"].truth)
            done[key] |= {"n_events": n, "n_test": n_test, "epochs": 10, "batch": 512}
            print(key, json.dumps(done[key]), flush=True)
            yield_results()
    return done


def starts(done: dict[str, Any]) -> dict[str, Any]:
    """Measures how results depend on the start, anchored and not, in three samples."""
    cases = [
        ("antler", "edge", 10_000, 2),
        ("antler_ttbar", "edge", 40_000, 2),
        ("antler", "none", 10_000, 8),
    ]
    for (card, anchor, n, epochs), seed in itertools.product(cases, (1, 2, 3)):
        if anchor == "none" and seed > 1:
            continue
        truth = RUNS[card].truth
        settings = {"contamination": 0.2} if card == "antler" else {}
        data = sample(card, n, seed=200 + seed, **settings)
        edges: dict[str, Edge] | None = None  # they do not depend on the start
        for offset in STARTS:
            key = f"{card},{anchor},{offset:+g},seed={seed}"
            if key in done:
                continue
            begin = {name: (1 + offset) * m for name, m in truth.items()}
            fitted = model(card, seed=seed, start=begin, anchor=anchor, epochs=epochs)
            fitted.fit(data, seed=seed, progress=False, n_bootstrap=50, edges=edges)
            edges = fitted.edges
            done[key] = {"masses": fitted.masses, "intervals": fitted.intervals}
            done[key]["off_percent"] = {
                name: 100 * (m / truth[name] - 1) for name, m in fitted.masses.items()
            }
            done[key] |= {"n_events": len(data), "epochs": epochs}
            print(key, json.dumps(done[key]), flush=True)
            yield_results()
    return done


def coverage(done: dict[str, Any]) -> dict[str, Any]:
    """Measures how often the 68 % interval holds the true mass, in pseudo-experiments."""
    for card, n, n_sets in (("antler_ttbar", 5000, 100), ("antler", 2000, 100)):
        if f"{card},{next(iter(RUNS[card].truth))}" in done:
            continue
        events = sample(card, n * n_sets, seed=301)
        probe = model(card, n_toys=10_000)
        found: dict[str, list[Edge]] = {name: [] for name in RUNS[card].truth}
        for i in range(n_sets):
            visible, ptmiss = probe.momenta(events[i * n : (i + 1) * n])
            edges = anchor_edges(
                probe.structure, probe.config, visible, ptmiss, n_bootstrap=40, seed=1000 + i
            )
            for name, edge in edges.items():
                found[name].append(edge)
            print(card, i, {k: round(e.value, 2) for k, e in edges.items()}, flush=True)
        for name, edges in found.items():
            done[f"{card},{name}"] = _covered(edges, RUNS[card].truth[name]) | {"n_events": n}
        yield_results()
    return done


def _covered(edges: list[Edge], truth: float) -> dict[str, float]:
    """Summarises pseudo-experiments."""
    ends = [edge.interval() for edge in edges]
    share = float(np.mean([low <= truth <= high for low, high in ends]))
    values = np.array([edge.value for edge in edges])
    return {
        "coverage": share,
        "coverage_error": math.sqrt(share * (1 - share) / len(edges)),
        "mean": float(values.mean()),
        "mean_error": float(values.std() / math.sqrt(len(edges))),
        "std": float(values.std()),
        "median_quoted_error": float(np.median([edge.error for edge in edges])),
        "mean_before_calibration": float(np.mean([edge.fit.value for edge in edges])),
        "truth": truth,
        "n_experiments": len(edges),
    }


def ttbar(done: dict[str, Any], n: int = 50_000, n_test: int = 10_000) -> dict[str, Any]:
    """Measures test C, and neutrino momenta beside the analytic solver's."""
    for seed in (1, 2, 3):
        key = f"seed={seed}"
        if key in done:
            continue
        events = sample("antler_ttbar", n + n_test, seed=400 + seed)
        fitted = model("antler_ttbar", seed=seed, epochs=12)
        fitted.fit(events[:n], seed=seed, progress=False, n_bootstrap=20)
        done[key] = describe(fitted, events[n:], RUNS["antler_ttbar"].truth)
        done[key] |= {"n_events": n, "n_test": n_test}
        done[key]["before_calibration"] = {k: e.fit.value for k, e in fitted.edges.items()}
        if seed == 1:
            done[key]["neutrinos"] = neutrinos(fitted, events[n:])
        print(key, json.dumps(done[key]), flush=True)
        yield_results()
    return done


def published(done: dict[str, Any], n: int = 10_000, n_test: int = 10_000) -> dict[str, Any]:
    """Measures the published recipe as it is, all of its 100 epochs, on few events."""
    for share in (0.0, 0.5):
        key = f"E_C={share:g},seed=1"
        if key in done:
            continue
        events = sample("antler", n + n_test, seed=101, contamination=share)
        fitted = model("antler", "published", seed=1)
        fitted.fit(events[:n], seed=1, progress=False)
        done[key] = describe(fitted, events[n:], RUNS["antler"].truth)
        done[key] |= {"n_events": n, "n_test": n_test, "epochs": fitted.config.epochs}
        print(key, json.dumps(done[key]), flush=True)
        yield_results()
    return done


def neutrinos(fitted: DeeLeMa, test: Events) -> dict[str, Any]:
    """Compares neutrino momenta of DeeLeMa and of the analytic solver with the truth."""
    truth = study.true_invisible(fitted, test)
    found = fitted.predict(test)
    visible, ptmiss = fitted.momenta(test)
    b_a, l_a, b_b, l_b = visible.unbind(1)
    solved = pair_solutions(b_a, l_a, b_b, l_b, ptmiss, 173.0, 80.419)
    energy = (solved.invisible_a[..., 3] + solved.invisible_b[..., 3]).nan_to_num(torch.inf)
    best = energy.argmin(1)[:, None, None].expand(-1, 1, 4)
    lightest = [q.gather(1, best)[:, 0] for q in (solved.invisible_a, solved.invisible_b)]
    exists = solved.exists.any(1)
    methods = {"deelema": found.invisible, "analytic, least energy": torch.stack(lightest, 1)}
    return {
        "solvable": float(exists.double().mean()),
        **{name: _resolution(q[exists] - truth[exists]) for name, q in methods.items()},
        "deelema, all events": _resolution(found.invisible - truth),
    }


def _resolution(off: Tensor) -> dict[str, float]:
    """Half the central 68.3 % range of each momentum component [GeV]."""
    values = {}
    for i, name in enumerate(("px", "py", "pz")):
        low, high = np.quantile(off[..., i].flatten().numpy(), [0.15865, 0.84135])
        values[name] = float(0.5 * (high - low))
    return values


def trial(done: dict[str, Any], n: int = 10_000) -> dict[str, Any]:
    """Measures the estimate of the invisible mass."""
    masses = [500.0, 550.0, 600.0, 640.0, 670.0, 690.0, 710.0, 740.0, 780.0, 830.0, 900.0]
    cases = {"perfect": {}, "5 % smearing": {"smearing": {"a": [[1, 0.05]], "b": [[1, 0.05]]}}}
    for name, settings in cases.items():
        for seed in (1, 2, 3):
            key = f"{name},seed={seed}"
            if key in done:
                continue
            events = sample("antler", n, seed=500 + seed, contamination=0.2, **settings)
            found = model("antler").scan_trial_mass(events, masses, seed=seed)
            value = found.value if math.isfinite(found.value) else None
            done[key] = {"value": value, "interval": found.interval, "depth": found.depth}
            done[key] |= {"n_events": n, "truth": 700.0}
            print(key, json.dumps(done[key]), flush=True)
            yield_results()
    return done


PARTS = {
    "epoch": epoch,
    "whole": whole,
    "table": table,
    "starts": starts,
    "coverage": coverage,
    "ttbar": ttbar,
    "trial": trial,
    "published": published,
}
_results: dict[str, Any] = {}
_out: Path | None = None


def yield_results() -> None:
    """Writes what is known so far."""
    if _out is not None:
        write_json(_out, _results)


def main() -> None:
    """Runs the parts asked for."""
    global _out
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="what to measure")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _out = arguments.out
    if _out is not None and _out.exists():
        _results.update(json.loads(_out.read_text()))
    _results.update(command=COMMAND, runs=_results.get("runs", {}))
    for name in arguments.part or ["epoch", "whole"]:
        start = time.process_time()
        _results[name] = PARTS[name](_results.setdefault(name, {}))
        _results["runs"][name] = {
            **versions("torch", "numpy"),
            "cpu_seconds": round(time.process_time() - start, 1),
            "load": os.getloadavg()[0],
        }
        yield_results()
        print(name, json.dumps(_results[name], indent=2))


if __name__ == "__main__":
    sys.exit(main())
