"""Speed of MT2 and M2CC on one processor core, as ratios to the `mt2` package inside one run.

Each line is the best of several repeats on the same events: 100,000 toys of masses 1000, 800 and
700 GeV, and of tt̄ with massless leptons and neutrinos. `--events 10000000` shows that time grows
linearly and memory with the input alone. `--compiled` adds the torch backend under
`torch.compile`, which needs a C++ compiler and takes minutes. Run it alone::

    OMP_NUM_THREADS=1 python tests/benchmarks/kinematics.py
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable

import mt2 as reference
import numpy as np
import torch
from rows import ratio_of, row
from torch import Tensor

from massrecon.kinematics import constrained_algebra, transverse_torch
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.constrained import m2_cc
from massrecon.kinematics.phasespace import PhaseSpace
from massrecon.kinematics.production import Beams
from massrecon.kinematics.topology import DecayTopology
from massrecon.kinematics.transverse import mt2

SAMPLES = {"toy": (1000.0, 800.0, 700.0, 0.0), "ttbar": (173.0, 80.4, 0.0, 4.7)}
BATCH = 100_000


def events(sample: str, n: int) -> tuple[Tensor, ...]:
    """Makes (upper_a, lower_a, upper_b, lower_b, ptmiss) of n toy events."""
    m_a, m_b, m_c, m_upper = SAMPLES[sample]
    topology = DecayTopology.parse("p p > A A, (A > a B, B > b C), (A > a B, B > b C)")
    masses = {"A": m_a, "B": m_b, "C": m_c, "a": m_upper}
    toy = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0))
    points = {name: torch.full((n,), value) for name, value in masses.items()}
    p4 = fv.from_pxpypzm(toy.sample(points, torch.Generator().manual_seed(1)))
    return *(p4[:, k].clone() for k in (1, 3, 6, 8)), p4[:, 4, :2] + p4[:, 9, :2]


def microseconds(work: Callable[[], object], n: int, repeats: int = 5) -> float:
    """Returns the shortest processor time per event, after one call to warm up."""
    return min(every_microseconds(work, n, repeats))


def every_microseconds(work: Callable[[], object], n: int, repeats: int = 5) -> list[float]:
    """Returns the processor time per event of each repeat, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) / n * 1e6)
    return times


def report(what: str, times: list[float], peer_times: list[float]) -> None:
    """Hands over a row, with the shortest time of each."""
    _, spread = ratio_of(times, peer_times)
    row(what, min(times) / min(peer_times), f"MT2 of the mt2 package {reference.__version__}",
        spread=spread, note=f"{min(times):.2f} us for each event")  # fmt: skip


def peer(visible_a: Tensor, visible_b: Tensor, ptmiss: Tensor, mu: float) -> Callable[[], object]:
    """Returns the call of the `mt2` package, its inputs prepared."""
    columns = []
    for p4 in (visible_a, visible_b):
        columns += [fv.mass(p4).clamp_min(0), p4[:, 0], p4[:, 1]]
    columns += [ptmiss[:, 0], ptmiss[:, 1]]
    arrays = [np.ascontiguousarray(c.numpy()) for c in columns]
    return lambda: reference.mt2(*arrays, mu, mu)


def compare(sample: str, n: int, compile_torch: bool) -> None:
    """Prints the times of all subsystems of a sample."""
    upper_a, lower_a, upper_b, lower_b, ptmiss = events(sample, n)
    mu = SAMPLES[sample][2]
    visible = {"ab": (upper_a + lower_a, upper_b + lower_b), "b": (lower_a, lower_b)}
    for name, pair in visible.items():
        peers = every_microseconds(peer(*pair, ptmiss, mu), n)
        base, where = min(peers), f"{sample} ({name})"
        print(f"{sample} ({name}): mt2 package {base:.2f} us per event")
        for backend in ("numba", "torch"):
            times = every_microseconds(lambda p=pair, b=backend: mt2(*p, ptmiss, mu, backend=b), n)
            report(f"MT2, {where}, {backend}", times, peers)
        if compile_torch:
            t = compiled_newton(pair, ptmiss, mu, n)
            print(f"  MT2  torch, compiled: {t:.2f} us, {t / base:.2f} times")
        chain = (upper_a, lower_a, upper_b, lower_b, ptmiss, mu, name)
        for backend, repeats in (("numba", 5), ("torch", 1)):
            times = every_microseconds(lambda c=chain, b=backend: m2_cc(*c, backend=b), n, repeats)
            report(f"M2CC, {where}, {backend}", times, peers)
        if compile_torch:
            t = compiled_m2(chain, n)
            print(f"  M2CC torch, compiled: {t:.2f} us, {t / base:.2f} times the mt2 package")


def compiled_newton(pair: tuple[Tensor, Tensor], ptmiss: Tensor, mu: float, n: int) -> float:
    """Returns the time of the torch backend with its two Newton steps under `torch.compile`."""
    steps = transverse_torch.newton_step, transverse_torch.angle_step
    try:
        transverse_torch.newton_step = torch.compile(steps[0], dynamic=True)
        transverse_torch.angle_step = torch.compile(steps[1], dynamic=True)
        return microseconds(lambda: mt2(*pair, ptmiss, mu, backend="torch"), n, 3)
    finally:
        transverse_torch.newton_step, transverse_torch.angle_step = steps


def compiled_m2(chain: tuple, n: int) -> float:
    """Returns the time of M2CC in torch with its algebra under `torch.compile`."""
    names = ("saddle_step", "saddle_point", "bound_at", "values", "derivatives", "curvature")
    names += ("constrained_step", "masses", "matched", "lifted")
    plain = {name: getattr(constrained_algebra, name) for name in names}
    torch._dynamo.config.cache_size_limit = 64
    try:
        for name, function in plain.items():
            setattr(constrained_algebra, name, torch.compile(function, dynamic=True))
        return microseconds(lambda: m2_cc(*chain, backend="torch"), n, 1)
    finally:
        for name, function in plain.items():
            setattr(constrained_algebra, name, function)


def scaling(largest: int) -> None:
    """Prints times and peak memory of growing batches."""
    upper_a, lower_a, upper_b, lower_b, ptmiss = events("toy", 100)  # loads the compiled kernels
    m2_cc(upper_a, lower_a, upper_b, lower_b, ptmiss, 700.0)
    n = 100_000
    while n <= largest:
        upper_a, lower_a, upper_b, lower_b, ptmiss = (
            t.repeat(n // 100_000, 1) for t in events("toy", 100_000)
        )
        visible_a, visible_b = upper_a + lower_a, upper_b + lower_b
        start = time.process_time()
        mt2(visible_a, visible_b, ptmiss, 700.0)
        first = time.process_time() - start
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.process_time()
        m2_cc(upper_a, lower_a, upper_b, lower_b, ptmiss, 700.0)
        second = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{n} events: MT2 {first / n * 1e6:.2f}, M2CC {second / n * 1e6:.2f} us per event; "
            f"peak memory {held:.2f} GiB after MT2, {peak:.2f} GiB after M2CC"
        )
        n *= 10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="largest batch to scale to")
    parser.add_argument("--batch", type=int, default=BATCH, help="events to compare on")
    parser.add_argument("--compiled", action="store_true", help="also time torch.compile")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
    for kind in SAMPLES:
        compare(kind, arguments.batch, arguments.compiled)
    scaling(arguments.events)
