"""What a card with `phase_space` must agree on: masses, widths, what is seen and what is exchanged.

In a toy every particle of the decay has a known mass: from a mass parameter whose `sets` holds its
PDG code, or from ``phase_space.masses``. The particles named by `objects` are seen, each in a slot
of its own; all other final particles are invisible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from massrecon.errors import InputError, unknown_name
from massrecon.events.cardfile import Location, SourceLines, describe, describe_errors
from massrecon.events.sections import DetectorSettings, EventCuts, PhaseSpaceSettings

if TYPE_CHECKING:
    from massrecon.events.card import ProcessCard

Problems = Iterator[tuple[Location, str]]


def mass_parameter(card: ProcessCard, particle: str) -> str | None:
    """Returns the name of the mass parameter that sets the mass of a particle, None if none."""
    names = (n for n, mass in card.masses.items() if mass.belongs_to(card.particles[particle]))
    return next(names, None)


def toy_problems(card: ProcessCard) -> Problems:
    """Finds what is missing or contradictory in a card whose particles have all been defined.

    Args:
        card: A card with `phase_space`.

    Yields:
        The entry at fault and what is wrong with it.
    """
    toy = card.phase_space
    if toy is None:
        return
    seen = [group.kind for group in card.objects]
    yield from _known("masses", toy.masses, card.particles)
    yield from _known("widths", toy.widths, card.particles)
    yield from _known("smearing", toy.smearing, seen)
    yield from _masses(card, toy)
    yield from _objects(card)
    yield from _exchange(card, toy, seen)


def toy_settings(card: ProcessCard, given: Mapping[str, Any]) -> PhaseSpaceSettings | None:
    """Replaces entries of a card's `phase_space` by those given by name.

    Args:
        card: The process.
        given: Entries of `PhaseSpaceSettings`.

    Returns:
        The settings, or None if the card is not one of a toy.

    Raises:
        InputError: If an entry is unknown, has a wrong value, or does not fit the card.
    """
    if card.phase_space is None:
        return None
    for name in given:
        if name not in PhaseSpaceSettings.model_fields:
            raise unknown_name("simulation setting", name, PhaseSpaceSettings.model_fields)
    entries = card.phase_space.model_dump(exclude_none=True) | dict(given)
    lines = SourceLines.without_file("settings")
    try:
        toy = PhaseSpaceSettings.model_validate(entries)
    except ValidationError as error:
        raise InputError(describe_errors(error, PhaseSpaceSettings, lines)) from error
    problems = list(toy_problems(card.model_copy(update={"phase_space": toy})))
    if problems:
        raise InputError("\n".join(describe(lines, where[1:], why) for where, why in problems))
    return toy


def _known(entry: str, names: Iterable[str], choices: Iterable[str]) -> Problems:
    """Names in `phase_space` that are no particles, or not seen."""
    for name in names:
        if name not in choices:
            what = "seen, so that it could be smeared" if entry == "smearing" else "in the decay"
            yield ("phase_space", entry, name), f"is not {what}: choose from {', '.join(choices)}"


def _masses(card: ProcessCard, toy: PhaseSpaceSettings) -> Problems:
    """Particles without a mass, or with two."""
    used = {name: mass_parameter(card, name) for name in card.particles}
    decaying = {node.name for node in card.topology.nodes if node.children}
    for name, parameter in used.items():
        if parameter is not None and name in toy.masses:
            yield (
                ("phase_space", "masses", name),
                f"the parameter '{parameter}' sets it",
            )
        if parameter is None and name in decaying and not toy.masses.get(name):
            yield (
                ("phase_space", "masses"),
                f"the mass of '{name}' is missing: add it here, or a mass parameter that sets it",
            )
    for name in card.masses:
        if name not in used.values():
            yield ("masses", name, "sets"), "this sets the mass of no particle of the decay"
    for name in toy.widths:
        if name in card.particles and name not in decaying:
            yield ("phase_space", "widths", name), "only a particle that decays has a width"


def _objects(card: ProcessCard) -> Problems:
    """Slots that do not fit the decay, and settings that a toy has no use for."""
    legs = [leg.name for leg in card.topology.legs]
    for i, group in enumerate(card.objects):
        if group.kind in legs and group.count != legs.count(group.kind):
            yield (
                ("objects", i, "count"),
                f"'{group.kind}' occurs {legs.count(group.kind)} times in the decay, got "
                f"{group.count}",
            )
        if group.pair_mass is not None:
            yield ("objects", i, "pair_mass"), "a toy keeps all particles in their own slots"
    if card.detector != DetectorSettings():
        yield ("detector",), "a toy has no detector: use 'phase_space.smearing'"
    if card.cuts.model_copy(update={"ptmiss_min": 0.0}) != EventCuts():
        yield ("cuts",), "of these cuts a toy only knows 'ptmiss_min'"


def _exchange(card: ProcessCard, toy: PhaseSpaceSettings, seen: list[str]) -> Problems:
    """An exchange between the sides that is not defined."""
    if toy.exchanged is None:
        return
    sides = [leg.side for leg in card.topology.legs if leg.name == toy.exchanged]
    if toy.exchanged not in seen or len(sides) != 2 or sides[0] == sides[1]:
        good = [
            name
            for name in seen
            if sorted(leg.side for leg in card.topology.legs if leg.name == name) == ["a", "b"]
        ]
        yield (
            ("phase_space", "exchanged"),
            f"'{toy.exchanged}' should be seen once on each of two sides: choose from "
            f"{', '.join(good) or 'none, for this decay has no such particle'}",
        )
