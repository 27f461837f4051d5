"""What happens to the masses when events are unlike those of the training, and is it noticed?

Simulates events like those of the training and events that differ in one respect, the same mass
points and, for what moves jets and ptmiss, the same collisions. On ranges of masses it judges
single events, with differences to the undisturbed ones; at one mass point it measures N events
together and asks how often the comparison with the training sample raises the alarm::

    python tests/benchmarks/generalisation.py wino_udd --work FOLDER

Everything simulated stays in the folder. ``--record`` writes ``results/generalisation.json``.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import massrecon as mr
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.inference.morphing import DetectorShift, morphed, soft_jet_card
from massrecon.inference.novelty import ALARM, METADATA, Reference
from massrecon.inference.robustness import (
    Experiments,
    SingleEvents,
    alarm_power,
    alarms,
    change,
    likelihoods,
    mean_values,
    single_events,
)
from massrecon.models.base import MassModel
from massrecon.provenance import versions, write_json

RESULTS = Path(__file__).parent / "results" / "generalisation.json"
CARD, SOFTEST = "wino_udd", 18.0  # softest jets that are stored [GeV]
JUDGED = {"chi20": (400.0, 650.0), "chi10": (50.0, 500.0)}
PLANE = {"chi20": "400:650", "chi10": "50:500"}
POINT = {"chi20": 550.0, "chi10": 200.0}
NUMBERS = (1, 10, 100)
FALSE_ALARMS = 0.05
LOST_AT, ALL_AT = 20.0, 60.0  # pT of the softer photon with half and with all of them found [GeV]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is simulated; the mass points follow from the seed alone.

    Attributes:
        plane: Ranges of the masses for single events [GeV].
        point: Mass point for the experiments [GeV].
        settings: Options of the simulation.
        detector: Options of the detector.
        inside: Whether the masses are inside the range that models are judged on, to which the
            prior is then cut.
    """

    plane: dict[str, str] = field(default_factory=lambda: PLANE)
    point: dict[str, float] = field(default_factory=lambda: POINT)
    settings: dict[str, Any] = field(default_factory=dict)
    detector: dict[str, Any] = field(default_factory=dict)
    inside: bool = True


NOMINAL = "nominal"
SAMPLES = {
    NOMINAL: Sample(),
    "shower": Sample(settings={"pythia": ["TimeShower:alphaSvalue = 0.15"]}),
    "multiparton": Sample(settings={"multiparton": True}),
    "calorimeter_jets": Sample(detector={"jets": "calorimeter"}),
    "heavier": Sample(
        plane={"chi20": "720:850", "chi10": "50:700"},
        point={"chi20": 800.0, "chi10": 300.0},
        inside=False,
    ),
    "lighter": Sample(
        plane={"chi20": "270:330", "chi10": "30:200"},
        point={"chi20": 300.0, "chi10": 80.0},
        inside=False,
    ),
}

SHIFTS = {
    "jet_scale_up": DetectorShift(jet_scale=0.03),
    "jet_scale_down": DetectorShift(jet_scale=-0.03),
    "jet_resolution": DetectorShift(jet_resolution=0.3),
    "soft_ptmiss": DetectorShift(soft_ptmiss=20.0),
}
"""What is done to the collisions of the nominal sample."""


def soft_photons_lost(events: Events, seed: int) -> Events:
    """Drops events with a soft photon: half of them at 20 GeV, none from 60 GeV on."""
    slots = list(events.slots_of("photon"))
    softer = events.p4[:, slots, :2].norm(dim=-1).amin(1).double()
    found = 0.5 + 0.5 * ((softer - LOST_AT) / (ALL_AT - LOST_AT)).clamp(0, 1)
    dice = torch.rand(len(events), generator=torch.Generator().manual_seed(seed))
    return events[dice.double() < found]


def card_of(sample: Sample) -> ProcessCard:
    """Returns the card of a sample, with softer jets than are selected in the end."""
    content = soft_jet_card(mr.load_card(CARD), SOFTEST).to_dict()
    content["detector"] = content.get("detector", {}) | sample.detector
    return load_card(content)


def pools_of(kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Events]:
    """Simulates, shifts and selects the events of all variants."""
    card, seed = mr.load_card(CARD), arguments.seed + (0 if kind == "plane" else 10)
    pools = {}
    for name, sample in SAMPLES.items():
        soft = mr.simulate(
            card_of(sample), arguments.events, getattr(sample, kind), seed, workers=1,
            out=folder / f"{name}_{kind}", progress=False, settings=sample.settings,
        )  # fmt: skip
        pools[name] = morphed(soft, DetectorShift(), card)
        if name == NOMINAL:
            pools |= {
                shift_name: morphed(soft, shift, card, seed) for shift_name, shift in SHIFTS.items()
            }
            pools["soft_photons_lost"] = soft_photons_lost(pools[NOMINAL], seed)
    return pools


def is_inside(name: str) -> bool:
    """Whether the true masses of a variant are those that models are judged on."""
    return name not in SAMPLES or SAMPLES[name].inside


def judged(model: MassModel, events: Events, inside: bool, seed: int) -> SingleEvents:
    """Judges single events; the masses of a draw do not depend on the steps of its momenta."""
    posterior = mr.reconstruct(model, events, n_samples=200, steps=1, seed=seed)
    return single_events(posterior.within(JUDGED) if inside else posterior)


def on_ranges(model: MassModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Judges single events of all variants, beside the change against the nominal sample."""
    found = {
        name: judged(model, events, is_inside(name), arguments.seed)
        for name, events in pools_of("plane", arguments.work, arguments).items()
    }
    rows = {}
    for name, one in found.items():
        rows[name] = {
            "n_events": len(one),
            "n_points": len(one.masses.unique(dim=0)),
            "means": by_mass(one.names, mean_values(one)),
        }
        if name != NOMINAL and is_inside(name):
            rows[name]["changes"] = by_mass(one.names, change(one, found[NOMINAL]))
        print(name, len(one), rows[name]["means"]["window"], rows[name].get("changes", {}))
    return rows


def by_mass(names: tuple[str, ...], values: dict[str, Tensor]) -> dict[str, Any]:
    """Writes values and errors by quantity and mass."""
    return {
        quantity: dict(zip(names, pair.tolist(), strict=True)) for quantity, pair in values.items()
    }


def on_points(model: MassModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures N events of all variants together and counts alarms."""
    reference = Reference.from_dict(model.metadata[METADATA])
    nominal: dict[int, Experiments] = {}
    rows: dict[str, Any] = {}
    for name, events in pools_of("point", arguments.work, arguments).items():
        table = likelihoods(model, events, arguments.outliers)
        rows[name] = {"n_events": len(events), "numbers": {}}
        for n in NUMBERS:
            one = alarms(table, reference, events, n, arguments.experiments, arguments.seed)
            nominal.setdefault(n, one)
            rows[name]["numbers"][str(n)] = {
                "power": alarm_power(nominal[n], one, FALSE_ALARMS),
                "alarms": one.alarms(ALARM),
                "bias": dict(zip(table.prior.names, one.bias().tolist(), strict=True)),
                "coverage": one.coverage(),
            }
        print(name, len(events), rows[name]["numbers"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="folder of a model, or the name of one of massrecon's own")
    parser.add_argument("--work", type=Path, required=True, help="folder that is kept")
    parser.add_argument("--events", type=int, default=1800, help="events of a sample")
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument(
        "--outliers", type=float, default=0.0, help="share of events that tell nothing"
    )
    parser.add_argument("--seed", type=int, default=811)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    model = mr.load_model(arguments.model)
    parts: dict[str, Callable[..., dict[str, Any]]] = {"ranges": on_ranges, "points": on_points}
    results = {name: part(model, arguments) for name, part in parts.items()}
    words = ["WORK" if word == str(arguments.work) else word for word in sys.argv[1:]]
    results |= {
        "command": " ".join(["python", "tests/benchmarks/generalisation.py", *words]),
        "seed": arguments.seed,
        "n_experiments": arguments.experiments,
        "false_alarms": FALSE_ALARMS,
        "threshold": ALARM,
        "versions": versions("torch"),
    }
    if arguments.record:
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
