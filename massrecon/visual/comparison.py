"""Figures that set several models side by side, all on the same events."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.inference.comparison import Judgement, predicted_efficiency
from massrecon.visual.template import (
    BLACK,
    COLOURS,
    GREY,
    LEGEND_ABOVE,
    MARKERS,
    finish,
    mass_label,
    plain,
    target_label,
)


def efficiencies_compared(
    judgements: Mapping[str, Judgement], mass: str, window: float = 30.0
) -> go.Figure:
    """Draws the efficiency of every estimator for each model, with the best constant guess.

    Args:
        judgements: What the measures say, by the name of the model; all of the same events.
        mass: The mass that is estimated.
        window: Half-width of the window [GeV].

    Raises:
        InputError: If there is no judgement, or mass or window are unknown.
    """
    first = _first(judgements).efficiency
    symbol = first.symbols[first.position(mass, "window", window)[0]]
    figure = go.Figure()
    for number, estimator in enumerate(first.estimators):
        found = [j.efficiency.at(mass, estimator, window) for j in judgements.values()]
        _add_points(figure, judgements, found, estimator, number, len(first.estimators) + 1)
    own = [predicted_efficiency(j.efficiency, mass, window) for j in judgements.values()]
    _add_points(
        figure, judgements, own, "predicted by the posterior itself", len(first.estimators),
        len(first.estimators) + 1, hollow=True,
    )  # fmt: skip
    i, _, w = first.position(mass, "window", window)
    constant = 100 * float(first.no_skill.rates.value[i, w])
    figure.add_hline(
        y=constant, line={"color": BLACK, "width": 1.5, "dash": "dot"},
        annotation_text="best constant guess", annotation_position="bottom right",
    )  # fmt: skip
    figure.update_yaxes(
        title_text=f"{mass_label(symbol)} within {window:g} GeV [%]", rangemode="tozero"
    )
    _name_models(figure, judgements)
    caption = (
        f"Share of events whose m({plain(symbol)}) is found within {window:g} GeV, by model and "
        "estimator, with 68 % errors; open: what the posterior predicts for its window estimate. "
        f"{first.n_events:,} events."
    )
    return finish(figure, caption, height=460)


def coverage_compared(judgements: Mapping[str, Judgement], mass: str) -> go.Figure:
    """Draws how often the intervals of each model hold the true mass.

    Args:
        judgements: What the measures say, by the name of the model.
        mass: The mass.

    Raises:
        InputError: If there is no judgement, or the mass does not vary.
    """
    first = _first(judgements)
    if mass not in first.coverage:
        raise InputError(f"The mass '{mass}' does not vary: there is no coverage to show.")
    table = first.efficiency
    symbol = table.symbols[table.mass_names.index(mass)]
    levels = first.coverage[mass].levels
    figure = go.Figure()
    for number, level in enumerate(levels):
        found = [
            (j.coverage[mass].attained[number], j.coverage[mass].error[number])
            for j in judgements.values()
        ]
        _add_points(figure, judgements, found, f"{100 * level:g} % intervals", number, len(levels))
        figure.add_hline(y=100 * level, line={"color": COLOURS[number], "width": 1, "dash": "dash"})
    figure.update_yaxes(title_text=f"intervals with the true {mass_label(symbol)} [%]")
    _name_models(figure, judgements)
    caption = (
        f"Share of events with the true m({plain(symbol)}) in the central interval of each model, "
        "with errors from groups of events of one mass; dashed: where a calibrated posterior lies."
    )
    return finish(figure, caption, height=420)


def agreement_compared(judgements: Mapping[str, Judgement], card: ProcessCard) -> go.Figure:
    """Draws how well the draws of each model follow the true distributions.

    Left χ²/dof of every target, right the accuracy of a classifier that is to tell the drawn
    momenta from the true ones.

    Args:
        judgements: What the measures say, by the name of the model.
        card: The card of the events, for the names of the targets.

    Raises:
        InputError: If there is no judgement.
    """
    _first(judgements)
    figure = make_subplots(1, 2, column_widths=[0.62, 0.38], horizontal_spacing=0.12)
    targets = list(dict.fromkeys(name for j in judgements.values() for name in j.targets))
    for number, name in enumerate(targets):
        x, y = _chi_squares(judgements, name, number, len(targets))
        style = {"color": COLOURS[number % 7], "size": 8, "symbol": MARKERS[number % 7]}
        figure.add_scatter(
            x=x, y=y, mode="markers", name=target_label(card, name), row=1, col=1, marker=style
        )
    judged = {name: j.momenta for name, j in judgements.items() if j.momenta is not None}
    figure.add_scatter(
        x=[list(judgements).index(name) for name in judged],
        y=[test.accuracy for test in judged.values()], mode="markers", showlegend=False,
        error_y={"array": [test.error for test in judged.values()], "width": 0},
        marker={"color": BLACK, "size": 8}, name="all momenta", row=1, col=2,
    )  # fmt: skip
    for column, value in ((1, 1.0), (2, 0.5)):
        figure.add_shape(
            type="line", xref="x domain", x0=0, x1=1, y0=value, y1=value, row=1, col=column,
            line={"color": GREY, "width": 1.2, "dash": "dash"},
        )  # fmt: skip
    figure.update_yaxes(title_text="χ²/dof, draws against truth", type="log", row=1, col=1)
    figure.update_yaxes(title_text="classifier accuracy, momenta", row=1, col=2)
    _name_models(figure, judgements)
    caption = (
        "Left: χ²/dof between the drawn and the true distribution of each target. Right: accuracy "
        "of a classifier that tells drawn momenta from true ones; models of the masses alone draw "
        "none. Dashed: perfect agreement."
    )
    figure.update_layout(margin_b=100)  # names of models are slanted
    return finish(figure, caption, height=460)


def _first(judgements: Mapping[str, Judgement]) -> Judgement:
    if not judgements:
        raise InputError("'judgements' is empty: judge at least one posterior.")
    return next(iter(judgements.values()))


def _place(position: int, number: int, count: int) -> float:
    """Returns where the numbered series stands beside the position of a model."""
    return position + 0.7 * ((number + 0.5) / count - 0.5)


def _add_points(
    figure: go.Figure, judgements: Mapping[str, Judgement], found: list[tuple[float, float]],
    name: str, number: int, count: int, hollow: bool = False,
) -> None:  # fmt: skip
    colour, symbol = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    figure.add_scatter(
        x=[_place(i, number, count) for i in range(len(judgements))],
        y=[100 * value for value, _ in found],
        error_y={"array": [100 * error for _, error in found], "width": 0},
        mode="markers", name=name, text=list(judgements),
        hovertemplate="%{text}: %{y:.1f} %",
        marker={"color": colour, "size": 9, "symbol": symbol + ("-open" if hollow else "")},
    )  # fmt: skip


def _chi_squares(
    judgements: Mapping[str, Judgement], target: str, number: int, count: int
) -> tuple[list[float], list[float]]:
    """Returns positions and χ²/dof of a target, for the models that have one."""
    x, y = [], []
    for i, judgement in enumerate(judgements.values()):
        found = judgement.targets.get(target)
        if found is not None and found.paired is not None:
            x.append(_place(i, number, count))
            y.append(found.paired.per_dof)
    return x, y


def _name_models(figure: go.Figure, judgements: Mapping[str, Judgement]) -> None:
    figure.update_xaxes(
        tickvals=list(range(len(judgements))), ticktext=list(judgements), minor={"ticks": ""},
        range=[-0.6, len(judgements) - 0.4],
    )  # fmt: skip
    figure.update_layout(legend=LEGEND_ABOVE)
