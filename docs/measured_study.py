"""Tables of the published study beside ours: its claims, upper references, events unlike it."""

from __future__ import annotations

from typing import Any

from measured import _SYMBOLS, made_by, percent, recorded, table

_TOLD = {
    "nothing": "what is measured",
    "origins": "and from which side of the decay each object comes",
    "neutrinos": "and the momentum of each neutrino",
    "both": "and both",
}


def ceilings(process: str) -> str:
    """What the same trees find on the same events if they are told a part of the truth."""
    results, rows = recorded("ceilings")[process], []
    for name, one in results["told"].items():
        for mass in one["means"]["30"]:
            value, error = one["gain"]["30"][mass]
            rows.append(
                [
                    _TOLD[name], _SYMBOLS[mass],
                    *(percent(*one["means"][w][mass]) for w in ("10", "20", "30", "50")),
                    "–" if name == "nothing" else f"{100 * value:+.1f} ± {100 * error:.1f}",
                ]
            )  # fmt: skip
    head = ["known is", "mass", *(f"{w} GeV" for w in (10, 20, 30, 50)), "gain at 30 GeV [points]"]
    said = (
        f"{results['n_train']:,} training and {results['n_test']:,} test events, seed "
        f"{results['seed']}; errors from drawing the mass points again."
    )
    return table(head, rows) + made_by(results, said)


def network_ceilings() -> str:
    """What a network finds that is told a part of the truth, by its most probable window."""
    results, rows = recorded("reconstruction")["plane_ceilings"], []
    for name, one in results["models"].items():
        told = name.partition("given_")[2] or "nothing"
        gains = results["differences"].get(name, {})
        for mass, estimators in one["efficiency"].items():
            cells = (estimators["window"][w] for w in ("10", "20", "30", "50"))
            gain, error = gains[mass]["window less window"] if gains else (0.0, 0.0)
            rows.append(
                [
                    _TOLD[told], _SYMBOLS[mass],
                    *(percent(cell["value"], cell["error"]) for cell in cells),
                    "–" if told == "nothing" else f"{-gain:+.1f} ± {error:.1f}",
                ]
            )  # fmt: skip
    first = results["models"][results["reference"]]
    said = (
        f"{first['n_train']:,} training events, {first['core_minutes']:g} minutes of one core "
        f"each; {first['n_test']:,} test events."
    )
    head = ["known is", "mass", *(f"{w} GeV" for w in (10, 20, 30, 50)), "gain at 30 GeV [points]"]
    versions = {"command": results["command"], "versions": first["versions"]}
    return table(head, rows) + made_by(versions, said)


_CLAIMS = (
    ("line", "chi10", "20", "over the whole line m(χ̃₂⁰) = 600 GeV", 60),
    ("line", "chi10", "30", "over the whole line m(χ̃₂⁰) = 600 GeV", 80),
    ("plane", "chi10", "30", "over the whole plane", 70),
    ("plane", "chi20", "30", "over the whole plane", 40),
    ("four_lepton", "chi10", "30", "over the whole line of the second process", 80),
)
"""Study, mass, window [GeV], where, and what the publication states at least [%]."""


def claims() -> str:
    """What the publication states beside what its network and ours give here."""
    results, rows = recorded("reconstruction"), []
    for study, mass, window, where, least in _CLAIMS:
        for name, one in results.get(study, {}).get("models", {}).items():
            cells = one["efficiency"][mass]
            rows.append(
                [
                    f"{_SYMBOLS[mass]} within {window} GeV, {where}", f"≥ {least}", f"`{name}`",
                    *(percent(cells[e][window]["value"], cells[e][window]["error"])
                      for e in ("draw", "window")),
                    _lowest(one, mass, window),
                ]
            )  # fmt: skip
    head = ["what", "published [%]", "model", "one draw [%]", "window [%]",
            "window, lowest along it [%]"]  # fmt: skip
    return table(head, rows)


def _lowest(one: dict[str, Any], mass: str, window: str) -> str:
    """Writes the lowest efficiency over a line, or over the cells of a plane with 50 events."""
    if (found := one.get("lowest", {}).get(mass)) is not None:
        cell = found["window"][window]
        return f"{percent(cell['value'], cell['error'])} at {cell['at']:.0f} GeV"
    cells = one.get("cells", {}).get(mass)
    if cells is None or window != f"{cells['window']:g}":
        return "–"
    keys = ("attained", "attained_error", "n_events")
    flat = zip(*(_flat(cells[key]) for key in keys), strict=True)
    value, error = min((v, e) for v, e, n in flat if v is not None and n >= 50)
    return f"{percent(value, error)} in a cell"


def _flat(values: Any) -> list[Any]:
    return [v for row in values for v in _flat(row)] if isinstance(values, list) else [values]


_VARIANTS = {
    "nominal": "as in the training",
    "jet_scale_up": "energy of jets +3 %",
    "jet_scale_down": "energy of jets −3 %",
    "jet_resolution": "resolution of jets 1.3 times as wide",
    "soft_ptmiss": "ptmiss 20 GeV worse in each component",
    "soft_photons_lost": "half of the photons of 20 GeV lost, none from 60 GeV on",
    "shower": "coupling of final-state radiation 0.15, not 0.1365",
    "multiparton": "multiparton interactions",
    "calorimeter_jets": "jets of calorimeter towers",
    "heavier": "heavier than in the training",
    "lighter": "lighter than in the training",
}


def generalisation() -> str:
    """Single events unlike the training: efficiency, what the posterior claims, coverage, bias."""
    results, rows = recorded("generalisation"), []
    for name, one in results["ranges"].items():
        changes = one.get("changes", {}).get("window", {})
        for mass, (value, error) in one["means"]["window"].items():
            moved = changes.get(mass)
            rows.append(
                [
                    _VARIANTS[name], _SYMBOLS[mass], f"{one['n_events']:,}", percent(value, error),
                    "–" if moved is None else f"{100 * moved[0]:+.1f} ± {100 * moved[1]:.1f}",
                    *(percent(*one["means"][k][mass]) for k in ("median", "predicted", "covered")),
                    "{:+.1f} ± {:.1f}".format(*one["means"]["bias"][mass]),
                ]
            )  # fmt: skip
    head = ["events are", "mass", "events", "window [%]", "change [points]", "median [%]",
            "predicted [%]", "in 68 % intervals [%]", "mean less truth [GeV]"]  # fmt: skip
    said = f"Seed {results['seed']}; errors from drawing the mass points again."
    return table(head, rows) + made_by(results, said)


def alarm_power() -> str:
    """N events unlike the training: does the comparison notice, and what becomes of the masses?"""
    results, rows = recorded("generalisation"), []
    for name, one in results["points"].items():
        for n, found in one["numbers"].items():
            rows.append(
                [
                    _VARIANTS[name], n,
                    percent(*found["power"]), percent(*found["alarms"]),
                    *("{:+.1f} ± {:.1f}".format(*found["bias"][m]) for m in ("chi20", "chi10")),
                    percent(*found["coverage"]),
                ]
            )  # fmt: skip
    biases = [f"{_SYMBOLS[m]} less truth [GeV]" for m in ("chi20", "chi10")]
    head = ["events are", "events", f"noticed at {100 * results['false_alarms']:.0f} % false alarms"
            " [%]", f"warnings (p < {results['threshold']:g}) [%]", *biases,
            "in 68 % regions [%]"]  # fmt: skip
    said = (
        f"{results['n_experiments']:,} experiments each; seed {results['seed']}. Experiments share "
        "events: the errors are from eight separate parts of the events."
    )
    return table(head, rows) + made_by(results, said)
