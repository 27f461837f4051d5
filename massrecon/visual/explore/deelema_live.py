"""DeeLeMa while it trains: the masses move from where they start to where the events want them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go

from massrecon.errors import InputError, unknown_name
from massrecon.events.container import Events
from massrecon.models.deelema import DeeLeMa
from massrecon.models.deelema.study import TEST_RUNS, TestRun, classical_bounds
from massrecon.visual.deelema import MassPanel, mass_distributions, mass_history
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import Tell
from massrecon.visual.template import BLACK

TESTS = {"toy (A → a B, B → b C)": "B", "top-quark pairs": "C"}
"""The events that can be fitted, by what they are."""

_BOOTSTRAP = 20
_FEWEST = 500
_SHOWN = 4000  # events whose reconstructed masses are drawn
_STEPS = 20  # steps of a gradient in an epoch, at least

Entry = dict[str, Any]


def explore_deelema_live(
    test: str = "B",
    contamination: float = 0.0,
    m_trial: float = -1.0,
    start_parent: float = 1300.0,
    start_daughter: float = 1000.0,
    anchored: bool = True,
    n_events: int = 5000,
    epochs: int = 12,
    seed: int = 1,
    *,
    train: bool = True,
    tell: Tell | None = None,
    show: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Fits masses to unlabelled events, and shows the way that they took.

    Args:
        test: ``B`` for the toy of two chains A → a B, B → b C, ``C`` for top-quark pairs.
        contamination: Share E_C of events of the toy with the two a exchanged; top-quark pairs have
            their own 20 %.
        m_trial: Trial mass of the unseen particle [GeV]; negative for the true one.
        start_parent: Mass of the produced particle from which the fit starts [GeV].
        start_daughter: The same of what it decays to [GeV].
        anchored: Whether the masses are tied to the solvability edge of the same events; without
            it they depend on the start.
        n_events: Number of events.
        epochs: Passes over the events.
        seed: Seed of events, initial weights and order.
        train: Whether to train; if not, the start is shown.
        tell: Is told of the progress after each epoch; may raise to stop.
        show: Is given what there is after each epoch.

    Raises:
        InputError: If an argument is out of range.
    """
    if test not in TESTS.values():
        raise unknown_name("test run", test, TESTS.values())
    _check(contamination, n_events, epochs)
    run = TEST_RUNS[test]
    model = _model(run, m_trial, (start_parent, start_daughter), anchored, n_events, epochs, seed)
    entries: list[Entry] = [{"epoch": 0, "loss": None, **model.masses}]
    share = contamination if run.contamination is None else run.contamination
    about = {**_about(run, model), "contamination": share, "n_events": n_events}
    if not train:
        return _exploration(entries, about, None)
    say = tell or (lambda share, stage: None)
    say(0.0, "events")
    events = _events(test, n_events, seed, share)
    say(0.0, "solvability edges of the events" if anchored else "training")

    def on_epoch(entry: Mapping[str, Any]) -> None:
        say(entry["epoch"] / epochs, f"epoch {entry['epoch']} of {epochs}")
        entries.append(dict(entry))
        if show is not None:
            show(_exploration(entries, about, None))

    model.fit(events, seed=seed, n_bootstrap=_BOOTSTRAP, progress=False, on_epoch=on_epoch)
    return _exploration(entries, about, model, events)


def _about(run: TestRun, model: DeeLeMa) -> dict[str, Any]:
    """Says what is fitted, from where, and what would be right."""
    return {
        "truth_GeV": dict(run.truth),
        "true_trial_mass_GeV": run.m_invisible,
        "trial_mass_GeV": next(iter(model.config.m_invisible.values())),
        "start_GeV": model.masses,
        "anchored": model.config.anchor == "edge",
    }


def _check(contamination: float, n_events: int, epochs: int) -> None:
    if not 0.0 <= contamination <= 0.5:
        raise InputError(f"'contamination' should be in [0, 0.5], got {contamination:g}.")
    if n_events < _FEWEST or epochs < 1:
        raise InputError(
            f"'n_events' should be at least {_FEWEST} and 'epochs' 1, got {n_events} and {epochs}."
        )


def _model(
    run: TestRun,
    m_trial: float,
    starts: tuple[float, float],
    anchored: bool,
    n_events: int,
    epochs: int,
    seed: int,
) -> DeeLeMa:
    """Prepares a fit; few events are cut into smaller batches."""
    start = dict(zip(run.truth, starts, strict=True))
    batch = max(64, min(2048, n_events // _STEPS))
    config = run.config(
        "ours", anchor="edge" if anchored else "none", epochs=epochs, start=start, batch_size=batch
    )
    if m_trial >= 0:
        config = dataclasses.replace(config, m_invisible={run.invisible: m_trial})
    return DeeLeMa(run.legs, config, seed=seed)


@lru_cache(maxsize=8)
def _events(test: str, n_events: int, seed: int, contamination: float) -> Events:
    run = TEST_RUNS[test]
    return run.simulate(n_events, seed, contamination if run.contamination is None else None)


def _exploration(
    entries: Sequence[Entry],
    about: Mapping[str, Any],
    model: DeeLeMa | None,
    events: Events | None = None,
) -> Exploration:
    """Draws the way so far; with a fitted model also its result."""
    truth: Mapping[str, float] = about["truth_GeV"]
    figure = mass_history(entries, truth)
    result = {} if model is None else model.masses
    figure.add_trace(
        go.Scatter(
            x=[entries[-1]["epoch"]] * len(result), y=list(result.values()), mode="markers",
            name="result", marker={"symbol": "star", "size": 14, "color": BLACK},
        ),
        row=1, col=1,
    )  # fmt: skip
    masses = {name: entries[-1][name] for name in truth} | result
    data = {
        **about, "epochs": [dict(entry) for entry in entries], "masses_GeV": masses,
        "finished": model is not None,
        "intervals_GeV": {} if model is None else {k: list(v) for k, v in model.intervals.items()},
    }  # fmt: skip
    panels = {} if model is None or events is None else {"Masses": _masses(model, events, truth)}
    return Exploration(figure=figure, data=data, reading=_reading(data), panels=panels)


def _masses(model: DeeLeMa, events: Events, truth: Mapping[str, float]) -> go.Figure:
    """Draws the masses that the network finds in single events, and variables that bound them."""
    events = events[:_SHOWN]
    found, bounds = model.predict(events), classical_bounds(model, events)
    panels = [
        MassPanel(
            species=name,
            upper={
                f"DeeLeMa, side {t.label[-1]}": found.mass(t.label)
                for t in model.structure.targets
                if t.species == name
            },
            lower=lower,
            truth=truth.get(name),
            fitted=fitted,
        )
        for (name, fitted), lower in zip(
            model.masses.items(), (bounds.lower, bounds.upper), strict=True
        )
    ]
    return mass_distributions(panels)


def _reading(data: Mapping[str, Any]) -> str:
    truth: Mapping[str, float] = data["truth_GeV"]
    masses = ", ".join(f"m({n}) {data['masses_GeV'][n]:.1f} (true {truth[n]:g})" for n in truth)
    done = data["epochs"][-1]["epoch"]
    tied = "tied to the solvability edge" if data["anchored"] else "from the loss alone"
    if done == 0:
        return (
            f"Before the first epoch: {masses} GeV, at a trial mass of "
            f"{data['trial_mass_GeV']:.1f} GeV (true {data['true_trial_mass_GeV']:g})."
        )
    text = (
        f"{'Result after' if data['finished'] else 'After'} {done} epoch{'s' * (done != 1)} over "
        f"{data['n_events']:,} events with {100 * data['contamination']:.0f} % wrong pairings, "
        f"{tied}: {masses} GeV at a trial mass of {data['trial_mass_GeV']:.1f} GeV."
    )
    for name, (low, high) in data["intervals_GeV"].items():
        text += f" 68 % interval of m({name}): {low:.1f} to {high:.1f} GeV."
    return text
