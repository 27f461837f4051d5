"""The test runs of the paper: toys with wrong pairings, top pairs, and the variables beside them.

    test   events                                                              unknown
    A      card antler, 1000, 800 and 700 GeV, every pairing right             A, B
    B      the same with a share E_C of wrong pairings                         A, B
    C      card antler_ttbar: widths, smeared b jets, 20 % wrong pairings      t, W

References:
    K. Ban et al., Phys. Rev. Res. 5 (2023) 043186, Sec. IV.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.kinematics import fourvectors as fv
from massrecon.kinematics.constrained import m2_cc
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.solvers import pair_solutions
from massrecon.kinematics.transverse import mt2
from massrecon.models.deelema.config import PRESETS, DeeLeMaConfig
from massrecon.models.deelema.model import DeeLeMa, Prediction

TABLE_I = {
    0.0: {"A": 1001.34, "B": 799.95, "A_a": (1000.45, 13.31), "B_a": (799.59, 8.95)},
    0.1: {"A": 1001.46, "B": 800.47, "A_a": (1007.41, 32.21), "B_a": (802.26, 16.79)},
    0.2: {"A": 1005.16, "B": 802.25, "A_a": (1013.56, 43.24), "B_a": (804.59, 21.82)},
    0.5: {"A": 1010.73, "B": 807.61, "A_a": (1028.94, 62.56), "B_a": (810.87, 31.80)},
}
"""Numbers that the paper gives in its Table I [GeV]: by contamination, the global masses, and mean
and width of the masses of the first side."""


@dataclass(frozen=True)
class TestRun:
    """A test run of the paper.

    Attributes:
        card: Name of the card.
        invisible: Name of the invisible particle.
        m_invisible: Its mass [GeV].
        truth: True masses by species [GeV].
        contamination: Share of wrong pairings; None if it is varied.
    """

    __test__ = False  # not a test of pytest

    card: str
    invisible: str
    m_invisible: float
    truth: dict[str, float]
    contamination: float | None

    @property
    def legs(self) -> DecayLegs:
        """The decay with the roles of its legs."""
        return DecayLegs.of(load_card(self.card).topology, invisible=[self.invisible])

    def config(self, preset: str, **fields: Any) -> DeeLeMaConfig:
        """Returns a recipe with the trial mass; "ours" knows resolution and widths of the card."""
        if preset == "published" and self.card == "antler_ttbar":
            preset = "published_ttbar"
        if preset in PRESETS and PRESETS[preset].get("anchor", "edge") == "edge":
            fields = {**_measurement(load_card(self.card)), **fields}
        return DeeLeMaConfig.preset(
            preset, m_invisible={self.invisible: self.m_invisible}, **fields
        )

    def simulate(self, n_events: int, seed: int, contamination: float | None = None) -> Events:
        """Makes events."""
        settings = {} if contamination is None else {"contamination": contamination}
        return simulate(self.card, n_events, seed=seed, progress=False, settings=settings)


def _measurement(card: ProcessCard) -> dict[str, Any]:
    """Returns what a toy's card says about resolution, widths and beams, as settings of a fit."""
    settings = card.phase_space
    if settings is None:
        return {}
    return {
        "resolution": {name: tuple(map(tuple, t)) for name, t in settings.smearing.items()},
        "widths": dict(settings.widths),
        "beam_energy": card.beam_energy,
    }


_TOY = {"A": 1000.0, "B": 800.0}
TEST_RUNS = {
    "A": TestRun("antler", "C", 700.0, _TOY, 0.0),
    "B": TestRun("antler", "C", 700.0, _TOY, None),
    "C": TestRun("antler_ttbar", "nu", 0.0, {"t": 173.0, "W": 80.419}, 0.2),
}


@dataclass(frozen=True, kw_only=True)
class StudyFit:
    """One fit of a study.

    Attributes:
        test_run: Name of the test run.
        contamination: Share of wrong pairings in its events.
        seed: Seed of events, weights and order.
        start: Offset of the starting masses relative to the truth; None for the recipe's own.
        model: The fitted model.
        test: Events that it has not seen.
        prediction: What it finds in them.
    """

    test_run: str
    contamination: float
    seed: int
    start: float | None
    model: DeeLeMa
    test: Events
    prediction: Prediction

    def row(self) -> dict[str, Any]:
        """Returns what a table shows: global masses, and mean and width of each target [GeV]."""
        found: dict[str, Any] = {
            "contamination": self.contamination, "seed": self.seed, "start": self.start,
        }  # fmt: skip
        found |= {f"global {name}": round(m, 2) for name, m in self.model.masses.items()}
        for label in self.prediction.labels:
            masses = self.prediction.mass(label)
            found[label] = f"{float(masses.mean()):.2f} ± {float(masses.std()):.2f}"
        return found


def run_study(
    test: str,
    *,
    preset: str = "ours",
    contaminations: Sequence[float] = (0.0,),
    seeds: Sequence[int] = (1,),
    starts: Sequence[float] = (),
    n_events: int = 20_000,
    n_test: int = 10_000,
    n_bootstrap: int = 50,
    progress: bool = True,
    device: str = "cpu",
    on_epoch: Any = None,
    **fields: Any,
) -> Iterator[StudyFit]:
    """Fits the events of a test run, one fit after the other.

    Args:
        test: ``"A"``, ``"B"`` or ``"C"``.
        preset: Recipe: ``"ours"`` or ``"published"``.
        contaminations: Shares of wrong pairings in test B; A and C have their own.
        seeds: Seeds.
        starts: Starting masses relative to the truth, such as 0.3; empty for the recipe's own.
        n_events: Events of a fit.
        n_test: Further events for the reconstruction.
        n_bootstrap: Replicas for the uncertainty of the anchored masses.
        progress: Whether to show progress.
        device: Where to compute.
        on_epoch: As in `DeeLeMa.fit`.
        **fields: Settings that differ from the recipe.

    Raises:
        InputError: If the test or a setting is unknown.
    """
    if test not in TEST_RUNS:
        raise unknown_name("test run", test, TEST_RUNS)
    if n_events < 1 or n_test < 1:
        raise InputError(f"A study needs events, got n_events={n_events}, n_test={n_test}.")
    run = TEST_RUNS[test]
    shares = contaminations if run.contamination is None else [run.contamination]
    for share in shares:
        for seed in seeds:
            events = run.simulate(n_events + n_test, seed, share)
            edges = None  # they do not depend on the start
            for start in starts or [None]:
                begin = {} if start is None else {k: (1 + start) * m for k, m in run.truth.items()}
                config = run.config(preset, start=begin, **fields)
                model = DeeLeMa(run.legs, config, device=device, seed=seed)
                model.fit(
                    events[:n_events], seed=seed, n_bootstrap=n_bootstrap, edges=edges,
                    progress=progress, on_epoch=on_epoch,
                )  # fmt: skip
                edges = model.edges
                rest = events[n_events:]
                yield StudyFit(
                    test_run=test, contamination=share, seed=seed, start=start,
                    model=model, test=rest, prediction=model.predict(rest),
                )  # fmt: skip


def start_study(
    test: str,
    starts: Sequence[float],
    *,
    epochs: Mapping[str, int] | None = None,
    **fields: Any,
) -> dict[str, list[dict[str, float]]]:
    """Fits the same events from several starts, with the anchor and with the loss alone.

    Args:
        test: ``"A"``, ``"B"`` or ``"C"``.
        starts: Starting masses relative to the truth, such as 0.3.
        epochs: Passes over the events, by setting of `anchor`; None for 2 with and 6 without.
        **fields: As in `run_study`.

    Returns:
        The final masses by species [GeV] of each start, by name of the method.
    """
    counts = epochs or {"edge": 2, "none": 6}
    names = {"edge": "anchored", "none": "loss alone"}
    found = {}
    for anchor, count in counts.items():
        fits = run_study(test, starts=starts, anchor=anchor, epochs=count, n_test=1, **fields)
        found[names[anchor]] = [fit.model.masses for fit in fits]
    return found


def mass_rows(fits: Sequence[StudyFit]) -> list[dict[str, Any]]:
    """Lists the global masses of fits [GeV], one row for each fit and species."""
    rows = []
    for fit in fits:
        truth = TEST_RUNS[fit.test_run].truth
        for name, mass in fit.model.masses.items():
            edge, interval = fit.model.edges.get(name), fit.model.intervals.get(name)
            low, high = interval or (math.nan, math.nan)
            rows.append({
                "E_C": fit.contamination,
                "seed": fit.seed,
                "species": name,
                "mass": f"{mass:.2f}",
                "interval": f"{low:.2f} to {high:.2f}" if interval else "none",
                "off": f"{100 * (mass / truth[name] - 1):+.2f} %",
                "bare edge": f"{edge.fit.value:.2f}" if edge else "none",
            })  # fmt: skip
    return rows


def widths(fits: Sequence[StudyFit], species: str) -> list[tuple[float, float, float]]:
    """Lists contamination [%], and mean and standard deviation over events of a mass [GeV]."""
    masses = [(fit.contamination, fit.prediction.mass(f"{species}_a")) for fit in fits]
    return [(100 * share, float(m.mean()), float(m.std())) for share, m in masses]


def beside_paper(fits: Sequence[StudyFit]) -> list[dict[str, Any]]:
    """Arranges fits of tests A and B beside the paper's Table I.

    Args:
        fits: Fits from `run_study`.

    Returns:
        One row for each contamination and species: the global mass with its spread over seeds, and
        mean and standard deviation over events of the masses of the first side [GeV].
    """
    rows = []
    for share in dict.fromkeys(fit.contamination for fit in fits):
        same = [fit for fit in fits if fit.contamination == share]
        paper = TABLE_I.get(share, {})
        for name in same[0].model.masses:
            masses = torch.tensor([fit.model.masses[name] for fit in same])
            each = torch.stack([fit.prediction.mass(f"{name}_a") for fit in same])
            rows.append({
                "E_C": share,
                "species": name,
                "global, ours": (float(masses.mean()), float(masses.std(correction=0))),
                "global, paper": paper.get(name, ""),
                "events, ours": (float(each.mean()), float(each.std(dim=1).mean())),
                "events, paper": paper.get(f"{name}_a", ""),
            })  # fmt: skip
    return rows


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Classical variables of N two-step events, as given, without exchanges.

    Attributes:
        upper: MT2 and M2CC of the whole chain [GeV], by name, each ``(N,)``.
        lower: The same of the lower step.
        invisible: Invisible momenta of M2CC of the whole chain [GeV], shape ``(N, 2, 4)``.
    """

    upper: dict[str, Tensor]
    lower: dict[str, Tensor]
    invisible: Tensor


def classical_bounds(model: DeeLeMa, events: Events) -> Bounds:
    """Computes MT2, M2CC(b) and M2CC(ab), with the model's trial mass."""
    visible, ptmiss = model.momenta(events)
    a_a, b_a, a_b, b_b = visible.unbind(1)
    trial = float(next(iter(model.config.m_invisible.values())))
    with warnings.catch_warnings():
        # wrong pairings have no solution: their NaN is part of the answer
        warnings.simplefilter("ignore", RuntimeWarning)
        whole = m2_cc(a_a, b_a, a_b, b_b, ptmiss, trial, "ab")
        lower = m2_cc(a_a, b_a, a_b, b_b, ptmiss, trial, "b").value
    names = "M<sub>T2</sub>(ab)", "M<sub>2CC</sub>(ab)", "M<sub>T2</sub>(b)", "M<sub>2CC</sub>(b)"
    return Bounds(
        upper={names[0]: mt2(a_a + b_a, a_b + b_b, ptmiss, trial), names[1]: whole.value},
        lower={names[2]: mt2(b_a, b_b, ptmiss, trial), names[3]: lower},
        invisible=torch.stack([whole.invisible_a, whole.invisible_b], dim=1),
    )


def classical_rows(fits: Sequence[StudyFit]) -> list[dict[str, Any]]:
    """Says where MT2 and M2CC of the test events end, for the first fit of each contamination.

    Args:
        fits: Fits from `run_study`.

    Returns:
        One row for each contamination and variable: the mass at which it should end, the value that
        99 % of the events are below [GeV], the share of events above the mass and that without a
        solution [%].
    """
    rows = []
    for share in dict.fromkeys(fit.contamination for fit in fits):
        first = next(fit for fit in fits if fit.contamination == share)
        bounds = classical_bounds(first.model, first.test)
        heavier_first = TEST_RUNS[first.test_run].truth.values()
        for variables, mass in zip((bounds.upper, bounds.lower), heavier_first, strict=True):
            for name, values in variables.items():
                solved = values[values.isfinite()]
                rows.append({
                    "E_C": share,
                    "variable": name.replace("<sub>", "").replace("</sub>", ""),
                    "ends at": mass,
                    "99 % below": round(float(solved.quantile(0.99)), 1),
                    "above [%]": round(100 * float((solved > mass).double().mean()), 1),
                    "no solution [%]": round(100 * (1 - len(solved) / len(values)), 1),
                })  # fmt: skip
    return rows


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes rows with the same entries as a table of aligned columns.

    >>> print(text_table([{"seed": 1, "A": 999.5}, {"seed": 2, "A": 1000.0}]))
    seed      A
       1  999.5
       2   1000
    """
    if not rows:
        return ""
    lines = [list(rows[0]), *([_entry(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line) for line in padded)


def _entry(value: Any) -> str:
    if isinstance(value, tuple):
        return " ± ".join(f"{x:.2f}" for x in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def true_invisible(model: DeeLeMa, events: Events) -> Tensor:
    """Returns the true momenta of the invisible legs (px, py, pz, E) [GeV], ``(N, I, 4)``.

    Raises:
        InputError: If the events carry no truth.
    """
    if events.partons is None:
        raise InputError("These events carry no truth: use simulated events.")
    labels = [leg.label for leg in model.structure.legs.invisible]
    rows = [events.card.parton_names.index(label) for label in labels]
    return fv.from_pxpypzm(events.partons[:, rows])


def momentum_resolution(fit: StudyFit, truth: dict[str, float]) -> dict[str, dict[str, float]]:
    """Compares invisible momenta of several methods with the truth, where the solver has solutions.

    The analytic solver takes the pairing as given and the true masses, and of its solutions the one
    with the least energy.

    Args:
        fit: A fit of a two-step pair decay.
        truth: True masses by species [GeV], daughters last.

    Returns:
        For each method the mean absolute error of each component [GeV], and the share of events
        that it has an answer for.
    """
    true = true_invisible(fit.model, fit.test)
    visible, ptmiss = fit.model.momenta(fit.test)
    parent, daughter = truth.values()
    trial = float(next(iter(fit.model.config.m_invisible.values())))
    a_a, b_a, a_b, b_b = visible.unbind(1)
    solved = pair_solutions(a_a, b_a, a_b, b_b, ptmiss, parent, daughter, trial)
    energy = (solved.invisible_a[..., 3] + solved.invisible_b[..., 3]).nan_to_num(torch.inf)
    best = energy.argmin(1)[:, None, None].expand(-1, 1, 4)
    lightest = [q.gather(1, best)[:, 0] for q in (solved.invisible_a, solved.invisible_b)]
    exists = solved.exists.any(1)
    methods = {
        "DeeLeMa": fit.prediction.invisible,
        "M2CC(ab)": classical_bounds(fit.model, fit.test).invisible,
        "analytic solver": torch.stack(lightest, dim=1),
    }
    return {name: _resolution(q - true, exists) for name, q in methods.items()}


def _resolution(off: Tensor, chosen: Tensor) -> dict[str, float]:
    known = off.isfinite().all(-1).all(-1)
    sizes = off[chosen & known][..., :3].abs().mean((0, 1)).tolist()
    answered = {"answered": round(float(known.double().mean()), 4)}
    return answered | {name: round(x, 2) for name, x in zip(("px", "py", "pz"), sizes, strict=True)}
