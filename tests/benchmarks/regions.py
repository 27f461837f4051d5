"""Do regions hold the true masses as often as they say? Pseudo-experiments over the plane.

Simulates pools of events at mass points between which critical values are found and at other points
where they are tested, reads them with a trained model, and counts::

    python tests/benchmarks/regions.py MODEL --sample PLANE --work FOLDER --record

PLANE holds the events that the model was trained on and, held out by mass point as in
``reconstruction.py``, those that its calibration is judged on. Four measurements of N events are
tested: signal alone; with the jet-energy scale off by a random amount (standard deviation 2 %) and
profiled; with background and its share profiled; and with both. Everything stays in the folder.

Pools for finding and for testing are apart, except the background: some 200 simulated events pass
the cut and are drawn, with replacement, for both.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import torch
from held_out import held_out_calibration
from pools import CARD, NAMES, POOLS, simulated
from reconstruction import STUDIES, samples_of
from safetensors.torch import load_file, save_file
from torch import Tensor

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference.background import BackgroundRatio
from massrecon.inference.composition import mixed
from massrecon.inference.construction import PriorGrid, two_grid_statistic
from massrecon.inference.likelihood import mass_likelihood, with_outliers
from massrecon.inference.morphing import DetectorShift, morphed
from massrecon.inference.neyman import METADATA, NeymanRegions
from massrecon.inference.prior import TrainingPrior
from massrecon.inference.pseudo import FARTHEST, experiments, totals
from massrecon.inference.systematics import MassShift, Systematics, slope_of
from massrecon.models.base import HEADER_FILE, SHIPPED, read_header
from massrecon.provenance import versions, write_json

RESULTS = Path(__file__).parent / "results" / "coverage.json"
SIZES = (1, 5, 10, 30)
LEVELS = (0.68, 0.95)
JET_SCALE = 0.02  # one standard deviation
# a normal distribution of five values: nodes and weights of Gauss and Hermite
NODES = {"down2": -2.857, "down1": -1.3556, "none": 0.0, "up1": 1.3556, "up2": 2.857}
PROBABILITIES = {
    "down2": 0.01126, "down1": 0.22208, "none": 0.53332, "up1": 0.22208, "up2": 0.01126,
}  # fmt: skip
OTHERS = {
    "resolution": DetectorShift(jet_resolution=0.1),
    "soft": DetectorShift(soft_ptmiss=5.0),
}
SIGMAS = {
    "jet scale": "2 % of the energy of jets",
    "resolution": "10 % of the resolution of jets",
    "soft": "5 GeV in each component of ptmiss",
}
STRIDES = {
    "fit": {"down1": 2, "up1": 2},
    "fit_more": dict.fromkeys(("down2", "down1", "up1", "up2"), 2),
}
JUDGED = (400.0, 650.0)  # of the first mass: the training sample goes 50 GeV further
BACKGROUNDS = ("background_wh", "background_tth")
LUMINOSITY = 3000.0
CUT = -2.0  # on log w
SHARE = (0.5, 0.1)  # of background among the selected, and how well it is known
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
OUTLIERS = 0.01
MEASUREMENTS = {
    "signal": (False, False), "jet_scale": (True, False),
    "background": (False, True), "background_and_jet_scale": (True, True),
}  # fmt: skip
"""Whether the jet scale is uncertain, and whether there is background."""


@dataclasses.dataclass
class Bench:
    """A model, its prior, and a folder for everything that is made."""

    model: Any
    prior: TrainingPrior
    work: Path
    ratio: BackgroundRatio

    def table(self, pool: str, variant: str) -> dict[str, Tensor]:
        """Reads the events of a pool with the model, as they are or shifted.

        Beside what `read` writes, ``window`` is log r in the window around an event's true masses.
        """
        path = self.work / "tables" / f"{pool}_{variant}.safetensors"
        near = path.with_stem(f"{path.stem}_windows")
        if not path.is_file() or not near.is_file():
            events = simulated(pool, self.work)
            if variant != "none":
                stride = STRIDES.get(pool, {}).get(variant, 1 if variant.endswith("1") else 4)
                events = events[torch.arange(len(events)) % stride == 0]
            events = morphed(events, shift_of(variant), mr.load_card(CARD), seed=5)
            if not path.is_file():
                self.read(events, path)
            self.read_windows(events, near)
        return load_file(path) | load_file(near)

    def read(self, events: Events, path: Path) -> None:
        """Writes log r of every event over the plane, its masses, and its background weight."""
        content = {"log_ratio": self.log_ratio(events), "log_background": self.ratio(events)}
        if events.masses is not None:
            content["masses"] = events.masses
        written(content, path)

    def read_windows(self, events: Events, path: Path) -> None:
        """Writes log r of every event in the window around its own mass point."""
        assert events.masses is not None
        masses, point = events.masses.unique(dim=0, return_inverse=True)
        rows = [(point == i).nonzero()[:, 0] for i in range(len(masses))]
        found = [
            self.log_ratio(events[own], axes=PriorGrid.around(mass, self.prior).axes)
            for own, mass in zip(rows, masses, strict=True)
        ]
        written({"window": torch.cat(found)[torch.cat(rows).argsort()]}, path)

    def background(self, name: str) -> tuple[Events, Tensor]:
        """Returns the events of a background, and which of them pass the cut."""
        return simulated(name, self.work), self.ratio.backgrounds[name] < CUT

    def background_window(self, mass: Tensor) -> Tensor:
        """Computes log r of the selected background in the window around a mass point."""
        axes = PriorGrid.around(mass, self.prior).axes
        selected = [events[kept] for events, kept in map(self.background, BACKGROUNDS)]
        return torch.cat([self.log_ratio(events, axes=axes) for events in selected])

    def log_ratio(self, events: Events, **grid: Any) -> Tensor:
        """Computes log r of every event on a grid of `mass_likelihood`, ``(N, G)``."""
        parts = (events[i : i + 2000] for i in range(0, len(events), 2000))
        rows = [mass_likelihood(self.model, part, prior=self.prior, **grid) for part in parts]
        return torch.cat([row.log_ratio.float() for row in rows])


def written(content: dict[str, Tensor], path: Path) -> None:
    """Writes a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in content.items()}, path)
    print(f"{len(next(iter(content.values()))):,} events: {path.name}", flush=True)


def shift_of(variant: str) -> DetectorShift:
    return OTHERS.get(variant) or DetectorShift(jet_scale=JET_SCALE * NODES[variant])


def by_point(tables: list[dict[str, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Joins tables and splits them by mass point."""
    joined = {name: torch.cat([t[name] for t in tables]) for name in tables[0]}
    masses, index = joined["masses"].unique(dim=0, return_inverse=True)
    return masses, [
        {name: values[index == i] for name, values in joined.items()} for i in range(len(masses))
    ]


def judged(table: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keeps the events whose masses are away from the edge of the training sample."""
    heavy = table["masses"][:, 0]
    keep = (heavy >= JUDGED[0]) & (heavy <= JUDGED[1])
    return {name: values[keep] for name, values in table.items()}


def summed(
    pools: dict[str, dict[str, Tensor]],
    background: dict[str, Tensor] | None,
    size: int,
    number: int,
    seed: int,
    where: str,
) -> Tensor:
    """Makes pseudo-experiments and adds up their events, profiled over the share, ``(T, G)``.

    The same seed gives the same experiments on either grid.

    Args:
        pools: Signal of one mass point by the shift of the jets; each experiment has one of them.
        background: Background events, with probabilities; None for signal alone.
        size: Events in an experiment.
        number: Number of experiments.
        seed: Seed.
        where: On which grid, ``"log_ratio"`` (the plane) or ``"window"``.
    """
    generator = torch.Generator().manual_seed(seed + 0x77)
    odds = torch.tensor([PROBABILITIES[name] if len(pools) > 1 else 1.0 for name in pools])
    node = torch.multinomial(odds, number, True, generator=generator)
    n_background = torch.zeros(number, dtype=torch.int64)
    if background is not None:
        dice = torch.rand(number, size, generator=generator)
        n_background = (dice < SHARE[0]).sum(1)
    parts = []
    for i, pool in enumerate(pools.values()):
        here = node == i
        if bool(here.any()):
            parts.append(_profiled(pool, background, n_background[here], size, seed + i, where))
    return torch.cat(parts)


def _profiled(
    pool: dict[str, Tensor],
    background: dict[str, Tensor] | None,
    n_background: Tensor,
    size: int,
    seed: int,
    where: str,
) -> Tensor:
    """Adds up events of one pool and of the background, with the best share of it."""
    number = len(n_background)
    chosen = experiments(len(pool["log_ratio"]), size, number, seed)
    signal = with_outliers(pool[where], OUTLIERS)
    if background is None:
        return totals(signal, chosen)
    other = experiments(len(background["log_ratio"]), size, number, seed, background["weight"])
    column = torch.arange(size)
    own = (column >= n_background[:, None]).float()
    best = torch.full((number, signal.shape[1]), -math.inf)
    for share in SHARES:
        total = _counted(mixed(signal, pool["log_background"], share), chosen, own)
        from_background = mixed(
            with_outliers(background[where], OUTLIERS), background["log_background"], share
        )
        total = total + _counted(from_background, other, 1 - own)
        best = torch.maximum(best, total - 0.5 * ((share - SHARE[0]) / SHARE[1]) ** 2)
    return best


def _counted(table: Tensor, chosen: Tensor, use: Tensor) -> Tensor:
    counts = table.new_zeros(len(chosen), len(table)).scatter_add_(1, chosen, use.to(table))
    return counts @ table.clamp_min(FARTHEST)


def statistics(
    bench: Bench,
    masses: Tensor,
    pools: list[dict[str, dict[str, Tensor]]],
    background: dict[str, Tensor] | None,
    systematics: Systematics | None,
    grid: PriorGrid,
    number: int,
    seed: int,
) -> dict[int, Tensor]:
    """Computes the test statistic at the truth for each number of events, ``(P, T)``."""
    found: dict[int, list[Tensor]] = {size: [] for size in SIZES}
    for i, (mass, own) in enumerate(zip(masses, pools, strict=True)):
        fine = PriorGrid.around(mass, bench.prior)
        if background is not None:
            background = background | {"window": bench.background_window(mass)}
        for size in SIZES:
            sums = []
            for where, used in (("log_ratio", grid), ("window", fine)):
                total = summed(own, background, size, number, seed + 1000 * size + 10 * i, where)
                if systematics is not None:
                    total = total.masked_fill(~used.inside, -1e6)
                    total = systematics.profiled(total, list(used.axes.values()))
                sums.append(total)
            found[size].append(two_grid_statistic(sums[0], sums[1], grid, fine, mass))
    return {size: torch.stack(rows) for size, rows in found.items()}


def coverage_of(regions: NeymanRegions, masses: Tensor, found: dict[int, Tensor]) -> dict[str, Any]:
    """Counts how often the true masses are in the regions."""
    result: dict[str, Any] = {}
    for size, rows in found.items():
        rates = torch.stack(
            [
                regions.covers(row, mass, size).double().mean(1)
                for mass, row in zip(masses, rows, strict=True)
            ]
        )
        wilks = torch.stack([(rows <= q).double().mean() for q in (2.279, 5.991)])
        result[str(size)] = {
            str(level): {
                "mean": round(float(rates[:, k].mean()), 4),
                "error": round(float(rates[:, k].std() / math.sqrt(len(rates))), 4),
                "lowest": round(float(rates[:, k].min()), 4),
                "highest": round(float(rates[:, k].max()), 4),
                "by_point": [round(x, 3) for x in rates[:, k].tolist()],
                "with_chi_square_quantiles": round(float(wilks[k]), 4),
                "error_of_log_critical": round(
                    float(regions.error[k, regions.sizes.index(size)]), 3
                ),
            }
            for k, level in enumerate(LEVELS)
        }
        for level, row in result[str(size)].items():
            print(f"  N = {size:2d}, {level}: {row['mean']:.3f} ± {row['error']:.3f} "
                  f"({row['lowest']:.2f} to {row['highest']:.2f}), "
                  f"chi-squared {row['with_chi_square_quantiles']:.3f}", flush=True)  # fmt: skip
    return result


def nuisances(bench: Bench, grid: PriorGrid) -> Systematics:
    """Measures how the masses move with each nuisance parameter, on the pool for fitting."""
    masses, nominal = by_point([bench.table("fit", "none")])
    shifted = {
        "jet scale": {NODES[n]: by_point([bench.table("fit", n)])[1] for n in ("down1", "up1")},
        "resolution": {1.0: by_point([bench.table("fit", "resolution")])[1]},
        "soft": {1.0: by_point([bench.table("fit", "soft")])[1]},
    }
    shifts = []
    for name, samples in shifted.items():
        measured = [
            slope_of(
                with_outliers(own["log_ratio"], OUTLIERS),
                {d: with_outliers(parts[i]["log_ratio"], OUTLIERS) for d, parts in samples.items()},
                list(grid.axes.values()),
                grid.inside,
            )
            for i, own in enumerate(nominal)
        ]
        slopes, errors = (torch.stack(column) for column in zip(*measured, strict=True))
        shifts.append(MassShift.fit(name, SIGMAS[name], masses, slopes, errors))
    return Systematics(tuple(shifts))


def selected_only(pools: list[dict[str, dict[str, Tensor]]]) -> list[dict[str, dict[str, Tensor]]]:
    """Keeps the events that pass the cut against background."""
    return [
        {name: {k: v[t["log_background"] < CUT] for k, v in t.items()} for name, t in own.items()}
        for own in pools
    ]


def coverage(bench: Bench, grid: PriorGrid, number: int) -> dict[str, Any]:
    """Tests all four measurements."""
    fit, test = {}, {}
    for node in NODES:
        fit[node] = by_point([judged(bench.table(pool, node)) for pool in ("fit", "fit_more")])
        test[node] = by_point([bench.table("test", node), bench.table("test_more", node)])
    systematics = nuisances(bench, grid)
    scale = Systematics(systematics.shifts[:1])
    background, shares = background_table(bench)
    results: dict[str, Any] = {
        "background": shares,
        "impacts_at_600_200": dict(
            zip(systematics.names, systematics.impacts(torch.tensor([600.0, 200.0])).tolist(),
                strict=True)
        ),
        "sizes": {"fit": [len(p["masses"]) for p in fit["none"][1]],
                  "test": [len(p["masses"]) for p in test["none"][1]]},
    }  # fmt: skip
    for name, (shifted, mixture) in MEASUREMENTS.items():
        print(name, flush=True)
        used = {}
        for kind, samples in (("fit", fit), ("test", test)):
            nodes = list(NODES) if shifted else ["none"]
            n_points = len(samples["none"][1])
            pools = [{n: samples[n][1][i] for n in nodes} for i in range(n_points)]
            pools = selected_only(pools) if mixture else pools
            path = bench.work / "statistics" / f"{name}_{kind}_{number}.safetensors"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                found = statistics(
                    bench, samples["none"][0], pools, background if mixture else None,
                    scale if shifted else None, grid, number, 1 if kind == "fit" else 2,
                )  # fmt: skip
                save_file({str(size): rows for size, rows in found.items()}, path)
            read = load_file(path)
            used[kind] = {size: read[str(size)] for size in SIZES}
        regions = NeymanRegions.fit(
            NAMES, fit["none"][0], used["fit"], LEVELS, outliers=OUTLIERS, origin={"of": name}
        )
        regions.save(bench.work / f"regions_{name}.json")
        results[name] = coverage_of(regions, test["none"][0], used["test"])
    return results


def background_table(bench: Bench) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the background with the model, weighted by what is expected, and cut as the signal."""
    parts, account = [], {}
    for name in BACKGROUNDS:
        events, kept = bench.background(name)
        path = bench.work / "tables" / f"{name}.safetensors"
        if not path.is_file():
            bench.read(events, path)
        part = load_file(path)
        part["log_background"] = bench.ratio.backgrounds[name]  # cross-fitted
        part["weight"] = events.expected(LUMINOSITY).clamp_min(0)
        account[name] = {
            "simulated": len(events), "after_cut": int(kept.sum()),
            "expected": round(float(part["weight"].sum()), 1),
            "expected_after_cut": round(float(part["weight"][kept].sum()), 2),
        }  # fmt: skip
        parts.append({k: v[kept] for k, v in part.items() if k != "masses"})
    passed = float((bench.ratio.signal < CUT).double().mean())
    account |= {"separation": bench.ratio.separation, "cut": CUT, "signal_after_cut": passed}
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}, account


def shipped(model: str, regions: NeymanRegions) -> None:
    """Puts critical values into the description of a model that comes with massrecon."""
    header = read_header(SHIPPED / model) | {METADATA: regions.to_dict()}
    write_json(SHIPPED / model / HEADER_FILE, header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="model of the plane, by folder or by name")
    parser.add_argument("--sample", type=Path, required=True, help="events it was trained on")
    parser.add_argument("--work", type=Path, required=True, help="folder that is kept")
    parser.add_argument("--experiments", type=int, default=1000, help="at each point and size")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--ship", action="store_true",
                        help="put the critical values of signal to the model")  # fmt: skip
    arguments = parser.parse_args()
    train, _ = samples_of(STUDIES["plane"], arguments.work, arguments.sample, sys.maxsize)
    sample = mr.load_events(arguments.sample, partial=True)
    study = STUDIES["plane"]
    share = min(study.n_events[1] / len(sample), 0.2)
    held_out = sample.split("masses", (1 - share, share), seed=study.seed)[1]
    model, prior = mr.load_model(arguments.model), TrainingPrior.from_events(train)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:12_000]
    found = {name: simulated(name, arguments.work) for name in BACKGROUNDS}
    yields = {name: float(events.expected(LUMINOSITY).sum()) for name, events in found.items()}
    ratio = BackgroundRatio.fit(train[some], found, yields, seed=1)
    bench = Bench(model, prior, arguments.work, ratio)
    like = mass_likelihood(model, held_out[:2], prior=prior)
    grid = PriorGrid(dict(like.axes), like.inside)
    results: dict[str, Any] = {
        "command": "python tests/benchmarks/regions.py MODEL --sample PLANE --work FOLDER --record",
        "experiments": arguments.experiments,
        "pools": {name: {"events": n, "seed": seed} for name, (n, seed, _) in POOLS.items()},
        "versions": versions("torch", "scikit-learn"),
        "coverage": coverage(bench, grid, arguments.experiments),
    }
    write_json(arguments.work / "coverage.json", results)
    results["calibration"] = held_out_calibration(model, prior, held_out, arguments.draws)
    write_json(RESULTS if arguments.record else arguments.work / "coverage.json", results)
    if arguments.ship:
        shipped(arguments.model, NeymanRegions.load(arguments.work / "regions_signal.json"))


if __name__ == "__main__":
    main()
