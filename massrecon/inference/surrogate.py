"""Fitting a surrogate simulation, and telling its events from the simulated ones."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.events.masses import parse_masses
from massrecon.inference.fitting import training_record
from massrecon.kinematics import fourvectors as fv
from massrecon.models.surrogate import Condition, Surrogate, SurrogateConfig
from massrecon.models.training import TrainingConfig, train

_BATCH = 512
_LEARNING_RATE = 2e-3


def fit_surrogate(
    family: str,
    events: Events,
    *,
    condition: Condition = "masses",
    max_minutes: float | None = None,
    max_epochs: int | None = None,
    training: TrainingConfig | None = None,
    validation: Events | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: str | Path | None = None,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Surrogate:
    """Trains a surrogate of the simulation that made some events.

    Args:
        family: Family of the kinematics, one of `massrecon.models.surrogate.HEADS`.
        events: Simulated events with truth.
        condition: ``"masses"`` or ``"partons"``, what is simulated from.
        max_minutes: Wall-clock budget of the training [min].
        max_epochs: Budget in passes over the training events.
        training: The whole recipe; then budget, `seed` and `device` have to be given there.
        validation: Events to validate on; by default a twentieth of `events` is set aside.
        seed: Seed of split, initial weights, order, mirror images and noise.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        out: Folder to save the surrogate to, with checkpoints in ``<out>.training`` meanwhile.
        progress: Whether to show a progress bar.
        options: Fields of the configuration of the family's head that differ from the defaults.

    Raises:
        InputError: If a name is unknown, there is no budget, or the events carry no truth.
        ModelError: If `out` holds something else, or the training cannot go on.
    """
    if training is not None and (max_minutes, max_epochs, seed, device) != (None, None, 0, "cpu"):
        raise InputError("Give budget, seed and device either in 'training' or on their own.")
    recipe = training or TrainingConfig(
        max_minutes=max_minutes,
        max_epochs=max_epochs,
        seed=seed,
        accelerator=device,
        batch_size=_BATCH,
        learning_rate=_LEARNING_RATE,
    )
    events.validate()
    if validation is None:
        events, validation = events.split("events", (0.95, 0.05), seed=recipe.seed)
    config = SurrogateConfig(family=family, condition=condition, head=dict(options or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        surrogate = Surrogate(events.card, config)
    folder = None if out is None else f"{Path(out)}.training"
    history = train(surrogate, events, validation, recipe, checkpoint_dir=folder, progress=progress)
    surrogate.metadata = {"n_train": len(events), **training_record(history)}
    if out is not None:
        surrogate.save(out)
    return surrogate.to(device).eval()


def simulate_fast(
    surrogate: Surrogate,
    n_events: int,
    masses: Any = None,
    seed: int = 0,
    steps: int | None = None,
    solver: str | None = None,
) -> Events:
    """Simulates events with masses drawn from a request, as `massrecon.simulate` does.

    Events of a surrogate count equally at every mass point, as those of `simulate` do.

    Args:
        surrogate: A surrogate conditioned on masses.
        n_events: Number of selected events.
        masses: Mass request, such as ``{"chi20": 600, "chi10": "50:450"}``.
        seed: Seed of masses and events.
        steps: Network evaluations of a draw, for families that take steps.
        solver: Solver of these families.

    Raises:
        InputError: If the request is wrong, or the surrogate is conditioned on partons.
    """
    if surrogate.config.condition != "masses":
        raise InputError(
            "This surrogate simulates from partons: pass them to its method simulate_truth."
        )
    prior = parse_masses(surrogate.card, masses)
    points = prior.draw(np.random.default_rng(seed), n_events)
    return surrogate.simulate_truth(torch.as_tensor(points), seed, steps, solver)


@dataclass(frozen=True)
class SeparationTest:
    """How well a classifier tells two samples apart.

    Attributes:
        auc: Area under its ROC curve on events that it was not trained on; 0.5 where the samples
            cannot be told apart, 1 where they can be without fail.
        error: Standard error of `auc` from the number of events judged.
        n_events: Number of events judged.
    """

    auc: float
    error: float
    n_events: int


def separation(a: Tensor, b: Tensor, seed: int = 0, max_iter: int = 200) -> SeparationTest:
    """Trains boosted trees to tell two samples apart, on one half of each, and tests on the other.

    Args:
        a: First sample, shape ``(N, F)``; NaN stands for what is not there.
        b: Second sample, shape ``(K, F)``; the larger one is cut to the size of the smaller.
        seed: Seed of halves and classifier.
        max_iter: Number of trees, fewer if a part of the training half stops getting better.

    Raises:
        InputError: If a sample has fewer than 100 events.

    References:
        J. A. Hanley and B. J. McNeil, Radiology 143 (1982) 29: the error.
    """
    count = min(len(a), len(b)) // 2 * 2
    if count < 100:
        raise InputError(f"A test by classifier needs 100 events of each sample, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    halves = [x[torch.randperm(len(x), generator=generator)[:count]].chunk(2) for x in (a, b)]
    train_x, test_x = (torch.cat([half[i] for half in halves]).numpy() for i in (0, 1))
    label = np.repeat([0, 1], count // 2)
    classifier = HistGradientBoostingClassifier(
        max_iter=max_iter,
        learning_rate=0.1,
        early_stopping=True,  # type: ignore[arg-type]  its type says "auto" alone
        random_state=seed,
    )
    score = classifier.fit(train_x, label).predict_proba(test_x)[:, 1]
    auc = float(roc_auc_score(label, score))
    return SeparationTest(auc, _hanley_mcneil(auc, count // 2), count)


def _hanley_mcneil(auc: float, n: int) -> float:
    """Returns the standard error of an AUC from n events of each sample."""
    q_1, q_2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (q_1 - auc**2) + (n - 1) * (q_2 - auc**2)
    return math.sqrt(max(variance, 0.0)) / n


def object_kinematics(events: Events) -> tuple[Tensor, list[str]]:
    """Returns what is measured of each object, absent ones NaN, shape ``(N, F)``, and the names.

    These are pT [GeV], eta, azimuth from the hardest jet (the first slot where there are no jets)
    and, of jets, mass [GeV]; size and azimuth of the missing momentum; the number of objects.
    """
    p4, there = events.p4.double(), events.present
    axis = next((i for i, k in enumerate(events.card.slot_kinds) if k == "jet"), 0)
    phi_0 = fv.phi(p4[:, axis])
    columns, names = [], []
    for i, slot in enumerate(events.card.slots):
        seen = {"pt": fv.pt(p4[:, i]), "eta": fv.eta(p4[:, i])}
        if i != axis:
            seen["phi"] = fv.delta_phi(fv.phi(p4[:, i]), phi_0)
        if events.card.slot_kinds[i] not in ("lepton", "photon"):
            seen["mass"] = fv.mass(p4[:, i])
        columns += [torch.where(there[:, i], column, math.nan) for column in seen.values()]
        names += [f"{slot} {quantity}" for quantity in seen]
    ptmiss = events.ptmiss.double()
    angle = torch.atan2(ptmiss[:, 1], ptmiss[:, 0])
    columns += [torch.linalg.vector_norm(ptmiss, dim=-1), fv.delta_phi(angle, phi_0)]
    columns.append(there.sum(dim=1).double())
    return torch.stack(columns, dim=-1), [*names, "ptmiss size", "ptmiss phi", "objects"]


def derived_quantities(events: Events) -> dict[str, Tensor]:
    """Returns what is computed of whole events, each ``(N,)``, NaN where an object is absent.

    HT, the scalar sum of the jets' pT [GeV]; the invariant mass of all objects [GeV]; the smallest
    distance Delta R of two jets, and of the lepton from a jet; the mass of the first two photons
    [GeV]; the masses of the three and of the four hardest jets [GeV].
    """
    p4, there = events.p4.double(), events.present
    slots = {kind: list(events.slots_of(kind)) for kind in dict.fromkeys(events.card.slot_kinds)}
    found = {"mass of all": fv.mass(torch.where(there.unsqueeze(-1), p4, 0.0).sum(dim=1))}
    jets = slots.get("jet", [])
    if jets:
        found["ht"] = torch.where(there[:, jets], fv.pt(p4[:, jets]), 0.0).sum(dim=1)
    if len(jets) > 1:
        found["delta r of jets"] = _least_distance(p4, there, jets, jets)
    if jets and (leptons := slots.get("lepton")):
        found["delta r of lepton and jet"] = _least_distance(p4, there, leptons, jets)
    groups = {"mass of photons": slots.get("photon", [])[:2]}
    groups |= {f"mass of {n} jets": jets[:n] for n in (3, 4)}
    for name, chosen in groups.items():
        if len(chosen) > 1:
            mass = fv.mass(p4[:, chosen].sum(dim=1))
            found[name] = torch.where(there[:, chosen].all(dim=1), mass, math.nan)
    return found


def _least_distance(p4: Tensor, there: Tensor, first: list[int], second: list[int]) -> Tensor:
    distance = fv.delta_r(p4[:, first].unsqueeze(2), p4[:, second].unsqueeze(1))
    pairs = there[:, first].unsqueeze(2) & there[:, second].unsqueeze(1)
    if first == second:
        pairs &= ~torch.eye(len(first), dtype=torch.bool)
    least = torch.where(pairs, distance, math.inf).flatten(1).amin(dim=1)
    return torch.where(least.isfinite(), least, math.nan)


@dataclass(frozen=True)
class SpeedTest:
    """Two ways to simulate the same events, measured in turns.

    Attributes:
        simulation: Processor time of an event of the full simulation [s].
        surrogate: Processor time of an event of the surrogate [s].
        ratio: How many times faster the surrogate is; the median over the rounds.
        least: The smallest ratio of a round.
        largest: The largest.
    """

    simulation: float
    surrogate: float
    ratio: float
    least: float
    largest: float


def compare_speed(
    simulate: Callable[[int], object],
    surrogate: Callable[[int], object],
    n_simulated: int,
    n_surrogate: int,
    rounds: int = 4,
) -> SpeedTest:
    """Compares the speed of a surrogate with that of the simulation, in turns, without start-ups.

    Both are disturbed alike where the machine has other work to do, so the ratio is not.

    Args:
        simulate: Simulates a number of events.
        surrogate: Does the same with the surrogate.
        n_simulated: Events of the simulation in all rounds together.
        n_surrogate: Events of the surrogate in all rounds together.
        rounds: How often each has its turn.

    Raises:
        InputError: If there are fewer than four events for each round.
    """
    if rounds < 1 or min(n_simulated, n_surrogate) < 4 * rounds:
        raise InputError(f"A comparison in {rounds} rounds needs four events for each of them.")
    slow, fast = [], []
    for _ in range(rounds):
        for times, work, n in ((slow, simulate, n_simulated), (fast, surrogate, n_surrogate)):
            each = n // rounds
            times.append(processor_time(work, each // 4, each + each // 4))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return SpeedTest(
        simulation=statistics.median(slow),
        surrogate=statistics.median(fast),
        ratio=statistics.median(ratios),
        least=min(ratios),
        largest=max(ratios),
    )


def processor_time(simulate: Callable[[int], object], few: int, many: int) -> float:
    """Measures the processor time that an additional event costs [s], without the start-up.

    Time of worker processes counts, once they have ended.

    Args:
        simulate: Simulates a number of events.
        few: Number of events of the run that is subtracted.
        many: Number of events of the other run.

    Raises:
        InputError: If `many` is not larger than `few`.
    """
    if not 0 < few < many:
        raise InputError(f"'many' should exceed 'few', got {many} and {few}.")
    spent = []
    for count in (few, many):
        start = sum(os.times()[:4])
        simulate(count)
        spent.append(sum(os.times()[:4]) - start)
    return max(spent[1] - spent[0], 1e-9) / (many - few)
