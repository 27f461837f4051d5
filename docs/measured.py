"""Tables of what was measured, made from the files in ``tests/benchmarks/results``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
_SYMBOLS = {
    "chi20": "m(χ̃₂⁰)",
    "chi10": "m(χ̃₁⁰)",
    "A": "m(A)",
    "B": "m(B)",
    "t": "m(t)",
    "W": "m(W)",
}


def recorded(name: str) -> dict[str, Any]:
    """Reads a file of measured results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float, error: float) -> str:
    """Writes a fraction with its error in per cent."""
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def with_spread(value: float, spread: float | None) -> str:
    """Writes a number to the first digit of its spread, such as 0.073 ± 0.004."""
    if not spread:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(spread)))
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def made_by(results: dict[str, Any], *also: str) -> str:
    """Says by which command, with what, and with which versions results were recorded."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n\n".join(["", *also, f"Recorded by `{results['command']}` with {versions}."])


def plane() -> str:
    """Efficiencies in the mass plane, by model and estimator."""
    return _efficiencies("plane")


def plane_152k() -> str:
    """The same of the shorter trainings, the first of which is the model `wino_udd`."""
    return _efficiencies("plane_152k")


def line() -> str:
    """Efficiencies on the published line of masses, by model and estimator."""
    return _efficiencies("line")


def _efficiencies(study: str) -> str:
    results = recorded("reconstruction")[study]
    windows, rows = ("10", "20", "30", "50"), []
    for name, model in results["models"].items():
        for mass, estimators in model["efficiency"].items():
            if mass not in model["coverage"]:  # it is known
                continue
            for estimator, cells in estimators.items():
                numbers = [percent(cells[w]["value"], cells[w]["error"]) for w in windows]
                rows.append([f"`{name}`", _SYMBOLS[mass], estimator, *numbers])
            skill = model["no_skill"][mass]
            numbers = [percent(skill[w]["value"], skill[w]["error"]) for w in windows]
            rows.append([f"`{name}`", _SYMBOLS[mass], "*no skill*", *numbers])
    versions = next(iter(results["models"].values()))["versions"]
    head = ["model", "mass", "estimator", *(f"{w} GeV" for w in windows)]
    return table(head, rows) + made_by({"command": results["command"], "versions": versions})


def four_lepton() -> str:
    """Efficiencies where each of the two lightest particles decays to two leptons."""
    return _efficiencies("four_lepton")


def plane_trainings() -> str:
    """How the models of `plane` were trained and tested, and how honest their posteriors are."""
    return _trainings("plane")


def four_lepton_trainings() -> str:
    """The same for `four_lepton`."""
    return _trainings("four_lepton")


def _trainings(study: str) -> str:
    rows = []
    for name, one in recorded("reconstruction")[study]["models"].items():
        for mass, levels in one["coverage"].items():
            rows.append(
                [
                    f"`{name}`", _SYMBOLS[mass], f"{one['n_train']:,}", f"{one['parameters']:,}",
                    f"{one['core_minutes']:g}", f"{one['epochs']:g}", f"{one['n_events']:,}",
                    *(percent(cell["value"], cell["error"]) for cell in levels.values()),
                ]
            )  # fmt: skip
    return table(
        ["model", "mass", "training events", "weights", "core minutes", "epochs", "test events",
         "in 68 % intervals", "in 95 % intervals"], rows
    )  # fmt: skip


def plane_differences() -> str:
    """By how much the reference model of `plane` is better on the same events, in points."""
    return _differences("plane")


def four_lepton_differences() -> str:
    """The same for `four_lepton`."""
    return _differences("four_lepton")


def _differences(study: str) -> str:
    results = recorded("reconstruction")[study]
    rows = [
        [f"`{results['reference']}` against `{name}`", _SYMBOLS[mass], what, f"{v:.1f} ± {e:.1f}"]
        for name, masses in results["differences"].items()
        for mass, kinds in masses.items()
        for what, (v, e) in kinds.items()
    ]
    return table(["models", "mass", "within 30 GeV", "points"], rows)


def combination() -> str:
    """Resolution and coverage of measurements of N events."""
    results = recorded("combination")["physics"]
    pool = results["pools"]["ev600_200"]
    rows = [
        [
            source, str(p["n_events"]), p["method"],
            *("{:.1f} ± {:.1f}".format(*p["resolution"][m]) for m in ("chi20", "chi10")),
            *("{:+.1f} ± {:.1f}".format(*p["bias"][m]) for m in ("chi20", "chi10")),
            *(percent(*p["coverage"][c]) if c in p["coverage"] else "–" for c in ("0.68", "0.95")),
        ]
        for source, curve in (("`wino_udd`", pool["curve"]), ("mixture", pool["mixture"]))
        for p in curve["points"]
    ]  # fmt: skip
    masses = [_SYMBOLS[name] for name in ("chi20", "chi10")]
    numbers = [f"{what} of {mass}" for what in ("resolution", "bias") for mass in masses]
    head = ["model", "events", "method", *numbers, "68 %", "95 %"]
    said = f"{results['n_experiments']:,} pseudo-experiments, seed {results['seed']}."
    return table(head, rows) + made_by(results, said)


def with_background() -> str:
    """Resolution and coverage with all the background that a luminosity brings."""
    results = recorded("with_background")
    rows = [
        [
            method,
            *(f"{v:.1f} ± {e:.1f}"
              for v, e in zip(one["resolution"], one["resolution_error"], strict=True)),
            *(f"{v:+.1f}" for v in one["median_bias"]),
            *(percent(v, one["coverage_error"][level]) for level, v in one["coverage"].items()),
        ]
        for method, one in results["methods"].items()
    ]  # fmt: skip
    masses = [_SYMBOLS[name] for name in results["truth"]]
    numbers = [
        f"{what} of {mass} [GeV]" for what in ("resolution", "median bias") for mass in masses
    ]
    expected = ", ".join(f"{name} {n:.1f}" for name, n in results["expected"].items())
    said = (
        f"{results['n_experiments']:,} pseudo-experiments, seed {results['seed']}. Events expected "
        f"in {results['luminosity_fb']:.0f} /fb: {expected}."
    )
    head = ["measured with", *numbers, "in 68 % regions [%]", "in 95 % regions [%]"]
    return table(head, rows) + made_by(results, said)


def combination_speed() -> str:
    """Time and memory of measurements."""
    results = recorded("combination")["speed"]
    rows = [
        [f"{r['n_events']:,}", f"{r['over_one_pass']:.2f}", f"{r['peak_mb']:.0f}"]
        for r in results["rows"]
    ]
    head = ["events", "time over one pass of the network", "peak memory [MB]"]
    return table(head, rows) + made_by(results)


def coverage() -> str:
    """Coverage of Neyman regions, with and without background and jet scale."""
    results = recorded("coverage")
    rows = [
        [
            kind.replace("_", " "), n, level, percent(cell["mean"], cell["error"]),
            f"{100 * cell['lowest']:.1f} to {100 * cell['highest']:.1f}",
        ]
        for kind, sizes in results["coverage"].items()
        if kind in ("signal", "jet_scale", "background", "background_and_jet_scale")
        for n, levels in sizes.items()
        for level, cell in levels.items()
    ]  # fmt: skip
    head = ["events are", "events", "claimed", "held [%]", "over the points [%]"]
    said = f"{results['experiments']:,} pseudo-experiments at each point."
    return table(head, rows) + made_by(results, said)


def surrogate() -> str:
    """The surrogate of the simulation: whether a classifier tells it apart, and its speed."""
    results = recorded("surrogate")
    speed = results["speed_ratio"]
    rows = [
        *([f"AUC, {what}", f"{one['value']:.3f} ± {one['error']:.3f}"]
          for what, one in results["auc"].items()),
        ["speed over the simulation", f"{speed['median']:.0f} ({speed['least']:.0f} to "
         f"{speed['largest']:.0f})"],
    ]  # fmt: skip
    said = (
        f"{results['n_train']:,} training and {results['n_test']:,} test events, seed "
        f"{results['seed']}; family {results['family']}."
    )
    return table(["", ""], rows) + made_by(results, said)


def reach() -> str:
    """Expected significance at some points of the plane."""
    results = recorded("reach")
    rows = [
        [*(f"{m:.0f}" for m in masses), f"{yields:.1f}", f"{found:.1f}", f"{excluded:.1f}"]
        for masses, yields, found, excluded in zip(
            *(results[k] for k in ("masses", "yields", "discovery", "exclusion")), strict=True
        )
        if masses[0] % 50 == 0 and masses[1] in (50, 100, 200, 300, 400)
    ]
    head = ["m(χ̃₂⁰) [GeV]", "m(χ̃₁⁰) [GeV]", "signal events", "discovery [σ]", "exclusion [σ]"]
    said = (
        f"Luminosity {results['luminosity_fb']:.0f} /fb. Backgrounds: "
        f"{', '.join(results['backgrounds'])}. Missing: {'; '.join(results['missing'])}."
    )
    return table(head, rows) + made_by(results, said)


def deelema() -> str:
    """Masses found by DeeLeMa without labels."""
    results, rows = recorded("deelema"), []
    for part in ("table", "ttbar", "published"):
        for sample, one in results[part].items():
            for mass, value in one["global"].items():
                interval = one["intervals"].get(mass)
                rows.append(
                    [
                        part, sample, f"{one['n_events']:,}", _SYMBOLS[mass],
                        f"{one['truth'][mass]:.1f}", f"{value:.2f}",
                        "–" if interval is None else "{:.2f} to {:.2f}".format(*interval),
                    ]
                )  # fmt: skip
    head = ["part", "sample", "events", "mass", "true [GeV]", "found [GeV]", "68 % interval [GeV]"]
    versions = {k: results["runs"]["table"][k] for k in ("massrecon", "python", "torch", "numpy")}
    about = {"command": results["command"], "versions": versions}
    return table(head, rows) + made_by(about, results["note"])


def deelema_coverage() -> str:
    """How often the intervals of DeeLeMa hold the truth."""
    rows = [
        [
            name, str(one["n_experiments"]), f"{one['n_events']:,}", f"{one['truth']:.1f}",
            f"{one['mean']:.2f} ± {one['mean_error']:.2f}", f"{one['std']:.2f}",
            f"{one['median_quoted_error']:.2f}",
            percent(one["coverage"], one["coverage_error"]),
        ]
        for name, one in recorded("deelema")["coverage"].items()
    ]  # fmt: skip
    head = ["sample, mass", "experiments", "events each", "true [GeV]", "mean [GeV]",
            "spread [GeV]", "quoted error [GeV]", "in 68 % intervals"]  # fmt: skip
    return table(head, rows)


def scan() -> str:
    """What a point of a scan costs."""
    results = recorded("scan")
    rows = [
        ["points", f"{results['counts']['done']:,} of {results['counts']['total']:,}"],
        ["workers", str(results["workers"])],
        ["the notebook alone [ms]", f"{results['ms_of_the_notebook_alone']:.1f}"],
        ["each point and worker [ms]", f"{results['wall_ms_per_point_and_worker']:.1f}"],
        ["overhead [ms]", f"{results['overhead_ms']:.1f}"],
        ["largest memory of the scan itself [MB]", f"{results['largest_own_memory_mb']:.0f}"],
    ]
    load = f"Load of the machine meanwhile: {results['load']:.1f}."
    return table(["scan with `--light`", ""], rows) + made_by(results, load)


def widgets() -> str:
    """How fast explorers answer in a browser."""
    results = recorded("widgets")
    names = ["median_ms", "slowest_ms"]
    head = ["explorer", "slider", "median [ms]", f"slowest of {results['moves']} [ms]"]
    if all("all_figures_ms" in one for one in results["explorers"].values()):
        names.append("all_figures_ms")  # an earlier record has the first figure alone
        head.append("all figures [ms]")
    rows = [
        [f"`{name}`", one["slider"], *(f"{one[key]:.0f}" for key in names)]
        for name, one in results["explorers"].items()
    ]
    return table(head, rows) + made_by(results)


def performance(names: str) -> str:
    """The ratios of some benchmarks, or of one's rows with some beginning (``name:beginning``)."""
    results = recorded("performance")
    parts = []
    for wanted in names.split():
        name, _, beginning = wanted.partition(":")
        parts.append(_ratios(name, results["benchmarks"].get(name), beginning))
    return "\n\n".join(parts)


def performance_machine() -> str:
    """What the table of ratios was measured on, and tables of other devices where there are any."""
    parts = [_machine(recorded("performance"))]
    for path in sorted(RESULTS.glob("performance_*.json")):
        found = recorded(path.stem)
        tables = [_ratios(name, one) for name, one in found["benchmarks"].items()]
        parts += [f"### On {found['machine']['device']}", _machine(found), *tables]
    return "\n\n".join(parts)


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    said = f"Measured on {machine['cores']} cores of {machine['processor']}{gpu}."
    return said + made_by(results)


def _ratios(name: str, one: dict[str, Any] | None, beginning: str = "") -> str:
    if one is None:
        return f"`{name}` has not been recorded: it asks for an idle machine."
    rows = [
        [
            row["what"],
            with_spread(row["ratio"], row["spread"]),
            row["than"], row["unit"], row["note"],
        ]
        for row in one["rows"]
        if row["what"].startswith(beginning)
    ]  # fmt: skip
    failed = f" The benchmark {one['failed']}; these are its rows until then." * bool(one["failed"])
    said = f"`{one['command']}`, at a load of {one['load']:g}.{failed}"
    return table(["what", "ratio", "compared with", "in", ""], rows) + f"\n\n{said}"


def calibration() -> str:
    """Ranks and central intervals of the masses, before and after recalibration."""
    results = recorded("coverage")
    found = results["calibration"]
    rows = [
        [
            when.replace("_", " "), _SYMBOLS[mass], f"{one[mass]['rank_p_value']:.2f}",
            *(percent(*one[mass][f"central_{level}"]) for level in (68, 95)),
            f"{one['tarp_p_value']:.2f}",
        ]
        for when, one in found["marginals"].items()
        for mass in ("chi20", "chi10")
    ]  # fmt: skip
    head = ["", "mass", "p-value of ranks", "in 68 % [%]", "in 95 % [%]", "p-value of TARP"]
    said = f"{found['n_test']:,} test events, the correction fitted to {found['n_fit']:,} others."
    return table(head, rows) + made_by(results, said)


def joint_calibration() -> str:
    """How often regions of the joint density hold both masses."""
    found = recorded("coverage")["calibration"]["joint_density"]
    rows = [
        [when.replace("_", " "), f"{one['p_value']:.4f}"]
        + [percent(*cell) for cell in one["coverage_and_error"].values()]
        for when, one in found.items()
    ]
    levels = next(iter(found.values()))["coverage_and_error"]
    return table(["", "p-value", *(f"in {100 * float(v):.0f} % [%]" for v in levels)], rows)


def deelema_trial() -> str:
    """The mass of the invisible particle from a scan of trial masses."""
    rows = []
    for sample, one in recorded("deelema")["trial"].items():
        value = "no value" if one["value"] is None else f"{one['value']:.0f}"
        low, high = one["interval"]
        rows.append(
            [
                sample,
                f"{one['n_events']:,}",
                f"{one['truth']:.0f}",
                value,
                f"{low:.0f} to {high:.0f}",
            ]
        )
    return table(["sample", "events", "true [GeV]", "found [GeV]", "interval [GeV]"], rows)


def deelema_starts() -> str:
    """How far the masses are off, by where the training starts."""
    rows = []
    for sample, one in recorded("deelema")["starts"].items():
        off = ", ".join(f"{_SYMBOLS[m]} {value:+.3f}" for m, value in one["off_percent"].items())
        rows.append([sample, f"{one['n_events']:,}", off])
    return table(["sample, anchor, start, seed", "events", "off by [%]"], rows)


def alarms() -> str:
    """How often the test against the training sample raises an alarm."""
    found = recorded("combination")["physics"]["pools"]["ev600_200"]["novelty"]
    return table(["events are", "alarms [%]"], [[k, f"{100 * v:.1f}"] for k, v in found.items()])
