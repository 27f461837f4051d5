"""How much better could masses be found if jets were known to come from where they come from?

The same boosted trees learn the masses of the same events from what is measured (summaries of the
kinematic mixture and simple observables), and from that and a part of the truth: the side of the
decay that each jet comes from, the neutrino, or both. The gain, on mass points that no training
event had, says where information is missing; it is not a limit, since the trees read the truth as a
few invariant masses::

    python tests/benchmarks/ceilings.py wino_udd --sample FOLDER --events 15000

takes a folder of events of wino_udd in the plane, or of wino_lle, whose four leptons need no
mixture: there the truth is the side of each lepton. ``--record`` adds the process to
``results/ceilings.json``. A network that is told the same is a variant of ``reconstruction.py``,
such as ``cascade:given_origins``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference.novelty import observables
from massrecon.inference.robustness import SingleEvents, change, mean_values
from massrecon.kinematics import fourvectors as fv
from massrecon.models.cascade.truth import invisible_momenta, origins
from massrecon.models.features import four_lepton_observables, objects
from massrecon.models.mixture import mixture_for, mixture_summaries
from massrecon.provenance import versions, write_json

RESULTS = Path(__file__).parent / "results" / "ceilings.json"
FIT = "plane"  # of the kinematic mixture of wino_udd
JUDGED = {
    "wino_udd": {"chi20": (400.0, 650.0), "chi10": (50.0, 500.0)},
    "wino_lle": {"chi10": (50.0, 500.0)},
}
"""Ranges of the masses that are learned, by process [GeV]."""

WINDOWS = (10.0, 20.0, 30.0, 50.0)
TOLD = {"nothing": (), "origins": ("origins",), "neutrinos": ("neutrinos",),
        "both": ("origins", "neutrinos", "mother")}  # fmt: skip


def measured(events: Events) -> Tensor:
    """Computes what is known without truth: mixture and observables, ``(N, F)``."""
    own = torch.stack(list(observables(events).values()), dim=-1)
    if events.card.name == "wino_lle":
        return torch.cat([own, *four_leptons(events)], dim=1)
    mixture = mixture_for(events.card, FIT)
    return torch.cat([mixture_summaries(mixture, events), own], dim=1)


def four_leptons(events: Events) -> tuple[Tensor, ...]:
    """Computes the observables of the publication, and momenta and masses of leptons."""
    p4, present = objects(events, list(events.slots_of("lepton"))[:4])
    pairs = [fv.mass(p4[:, i] + p4[:, j]) for i, j in itertools.combinations(range(4), 2)]
    triples = [fv.mass(p4.sum(1) - p4[:, i]) for i in range(4)]
    observed = four_lepton_observables((p4, present), events.ptmiss)
    return observed, fv.pt(p4), p4[..., 2].abs(), torch.stack([*pairs, *triples], dim=-1)


def truth_of_leptons(events: Events) -> dict[str, Tensor]:
    """Computes what trees may be told of wino_lle: mass and pT of the leptons of each side."""
    p4, _ = objects(events, list(events.slots_of("lepton"))[:4])
    sides = origins(events)[:, list(events.slots_of("lepton"))[:4]].to(p4)
    share = sides / sides.sum(-1, keepdim=True).clamp_min(1)
    pairs = torch.einsum("njs,njx->nsx", share, p4)
    neutrinos = invisible_momenta(events).to(p4)
    return {
        "origins": torch.cat([fv.mass(pairs), fv.pt(pairs), pairs[..., 3]], dim=1),
        "neutrinos": torch.cat([fv.pt(neutrinos), neutrinos[..., 3]], dim=1),
        "mother": fv.mass(pairs + neutrinos),
    }


def momenta_of(events: Events) -> dict[str, Tensor]:
    """Adds up the jets of each side, and the photons, with the lepton and the true neutrino."""
    p4 = torch.where(events.present.unsqueeze(-1), events.p4, 0.0).double()
    sides = origins(events).double()
    jets, photons, leptons = (list(events.slots_of(k)) for k in ("jet", "photon", "lepton"))
    # a jet of both sides is given to each by half
    share = sides[:, jets] / sides[:, jets].sum(-1, keepdim=True).clamp_min(1)
    first, second = torch.einsum("njs,njx->snx", share, p4[:, jets])
    return {
        "first": first,
        "second": second,
        "higgs": p4[:, photons].sum(1),
        "lepton": p4[:, leptons].sum(1),
        "neutrino": invisible_momenta(events)[:, 0].double(),
        "extra": p4[:, jets].sum(1) - first - second,
    }


def truth_of(events: Events) -> dict[str, Tensor]:
    """Computes what trees may be told, each ``(N, F)`` [GeV]."""
    p4 = momenta_of(events)
    boson = p4["lepton"] + p4["neutrino"]
    counts = origins(events)[:, list(events.slots_of("jet"))].sum(1).double()
    masses = [p4["first"], p4["second"], p4["first"] + p4["higgs"], p4["second"] + p4["lepton"]]
    unseen = events.ptmiss.double() - p4["neutrino"][:, :2]
    neutrino = [fv.pt(boson), boson[:, 2].abs(), fv.pt(p4["neutrino"]), unseen.norm(dim=1)]
    return {
        "origins": torch.cat(
            [torch.stack([fv.mass(m) for m in masses], -1), counts, fv.pt(p4["extra"])[:, None]], 1
        ),
        "neutrinos": torch.stack(neutrino, dim=-1),
        "mother": fv.mass(p4["second"] + boson)[:, None],
    }


def learned(x: Tensor, train: Tensor, test: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Trains trees on the absolute error of each mass and returns estimates of the test events."""
    columns = []
    for mass in truth.T:
        trees = HistGradientBoostingRegressor(
            loss="absolute_error", max_iter=300, learning_rate=0.06, random_state=seed,
        )  # fmt: skip
        trees.fit(x[train].numpy(), mass[train].numpy())
        columns.append(torch.as_tensor(trees.predict(x[test].numpy())))
    return torch.stack(columns, dim=-1)


def judged(estimates: Tensor, truth: Tensor, names: tuple[str, ...]) -> SingleEvents:
    """Tells which estimates are within each window, and by how much they are off."""
    off = estimates - truth
    values = {f"{w:g}": (off.abs() < w).double() for w in WINDOWS} | {"bias": off}
    return SingleEvents(values=values, masses=truth, names=names)


def by_mass(names: tuple[str, ...], values: dict[str, Tensor]) -> dict[str, Any]:
    """Writes values and errors by quantity and mass."""
    return {k: dict(zip(names, v.tolist(), strict=True)) for k, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("process", choices=JUDGED)
    parser.add_argument("--sample", type=Path, required=True, help="folder of events")
    parser.add_argument("--events", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    ranges = JUDGED[arguments.process]
    names = tuple(ranges)
    events = mr.load_events(arguments.sample, partial=True)[: 2 * arguments.events]
    assert events.masses is not None
    truth = events.masses[:, [events.card.mass_names.index(n) for n in names]].double()
    low, high = torch.tensor(list(ranges.values()), dtype=torch.float64).T
    good = ((truth >= low) & (truth <= high)).all(1)
    inside = good.nonzero()[:, 0][: arguments.events]
    events, truth = events[inside], truth[inside]
    points, group = torch.unique(truth, dim=0, return_inverse=True)
    dice = torch.rand(len(points), generator=torch.Generator().manual_seed(arguments.seed))
    held_out = dice[group] < 0.2
    train, test = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    told_of = truth_of_leptons if arguments.process == "wino_lle" else truth_of
    known, more = measured(events), told_of(events)
    found = {}
    for name, told in TOLD.items():
        x = torch.cat([known, *(more[part] for part in told)], dim=1)
        found[name] = judged(learned(x, train, test, truth, arguments.seed), truth[test], names)
        print(name, mean_values(found[name])["30"])
    words = ["SAMPLE" if word == str(arguments.sample) else word for word in sys.argv[1:]]
    results = {
        "command": " ".join(["python", "tests/benchmarks/ceilings.py", *words]),
        "n_train": len(train),
        "n_test": len(test),
        "seed": arguments.seed,
        "told": {
            name: {
                "means": by_mass(names, mean_values(one)),
                "gain": by_mass(names, change(one, found["nothing"])),
            }
            for name, one in found.items()
        },
        "versions": versions("torch", "scikit-learn"),
    }
    if arguments.record:
        before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        write_json(RESULTS, before | {arguments.process: results})


if __name__ == "__main__":
    main()
