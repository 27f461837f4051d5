"""Checks of a card file that go beyond what is needed to load it: every mistake at once.

A mistake is something that will fail or give wrong events; a hint is something to look at. Pythia
is not initialised: its settings are only read, and only where it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from massrecon.errors import CardError, InputError
from massrecon.events.card import ProcessCard, complete_card
from massrecon.events.cardfile import (
    MISSING,
    Location,
    SourceLines,
    describe,
    explanations,
    read_yaml,
)
from massrecon.events.library import clashing, own_cards, read_card
from massrecon.events.masses import parse_masses
from massrecon.events.pythia import unknown_settings
from massrecon.events.slha import Spectrum, read_spectrum, table_problems
from massrecon.events.toycard import mass_parameter

_PLACEHOLDERS = {
    "name": "card",
    "title": "",
    "beam_energy": 14000.0,
    "symbol": "",
    "pdg": 0,
    "sets": [0],
    "default": 100.0,
    "range": [1e-6, 1e6],
    "minimum_gap": 0.0,
    "count": 1,
    "pt_min": 0.0,
    "eta_max": 10.0,
}
"""Values in place of wrong ones, so that the rest of a card can be checked."""

_SPECTRUM = ("pythia", "spectrum")
_THIRDS = {
    **dict.fromkeys((1, 3, 5), -1),
    **dict.fromkeys((2, 4, 6), 2),
    **dict.fromkeys((11, 13, 15), -3),
    **dict.fromkeys((12, 14, 16, 21, 22, 23, 25, 35, 36), 0),
    **{24: 3, 37: 3, 1000024: 3, 1000037: 3},
    **dict.fromkeys((1000021, 1000022, 1000023, 1000025, 1000035, 1000039), 0),
}
"""Electric charges in thirds by PDG code."""

Problems = Iterator[tuple[Location, str]]


@dataclass(frozen=True)
class CardReport:
    """What a check of a card file found.

    Attributes:
        path: The file.
        mistakes: One line each: file, line, entry, what is wrong, what would be right.
        hints: Things to look at, in the same form.
        card: The card, or None if it cannot be loaded.
    """

    path: Path
    mistakes: tuple[str, ...]
    hints: tuple[str, ...] = ()
    card: ProcessCard | None = field(default=None, repr=False)


def check_card(path: str | Path) -> CardReport:
    """Checks a card file and reports every mistake that can be found without a simulation.

    Args:
        path: The YAML file.
    """
    path = Path(path)
    try:
        content, lines, mistakes = read_yaml(read_card(path), str(path))
        content = complete_card(content, lines, path.parent)
    except CardError as error:
        return CardReport(path, (str(error),))
    try:
        card = ProcessCard.model_validate(content)
    except ValidationError as error:
        mistakes += _all_mistakes(error, content, lines)
        return CardReport(path, _by_line(mistakes, path))
    rejected = unknown_settings(card.pythia.settings) if card.pythia.settings else []
    found = [*_problems(card), *_settings(card, rejected or ())]
    mistakes += [describe(lines, where, problem) for where, problem in found]
    mistakes += [
        f"{lines.block_place(_SPECTRUM, number)}: 'pythia.spectrum': {problem}."
        for number, problem in _spectrum_problems(card)
    ]
    hints = [describe(lines, where, hint) for where, hint in _hints(card, path)]
    if rejected is None:
        unchecked = "not checked, for pythia8mc is not installed"
        hints.append(describe(lines, ("pythia", "settings"), unchecked))
    return CardReport(path, _by_line(mistakes, path), _by_line(hints, path), card)


def _by_line(described: list[str], path: Path) -> tuple[str, ...]:
    """Sorts descriptions, which begin with ``file:line: ``, by their lines."""
    start = len(f"{path}:")
    return tuple(sorted(described, key=lambda text: int(text[start:].partition(":")[0])))


def _all_mistakes(error: ValidationError, content: Any, lines: SourceLines) -> list[str]:
    """Describes what a validation found, and what it finds once the wrong entries are gone."""
    found = list(explanations(error, ProcessCard))
    mended = copy.deepcopy(content)
    for where, _ in found:
        _mend(mended, where)
    try:
        ProcessCard.model_validate(mended)
    except ValidationError as second:
        first = {where for where, _ in found}
        for where, problem in explanations(second, ProcessCard):
            is_new = not any(where[: len(w)] == w or w[: len(where)] == where for w in first)
            # an entry may be missing only because it was taken out
            if is_new and problem != MISSING:
                found.append((where, problem))
    return [describe(lines, where, problem) for where, problem in found]


def _mend(content: Any, where: Location) -> None:
    """Takes a wrong entry out of a card, or puts a good value in its place."""
    for step in where[:-1]:
        try:
            content = content[step]
        except (KeyError, IndexError, TypeError):
            return
    if not where or not isinstance(content, dict):
        return
    content.pop(where[-1], None)
    if where[-1] in _PLACEHOLDERS:
        content[where[-1]] = _PLACEHOLDERS[str(where[-1])]


def _problems(card: ProcessCard) -> Problems:
    """Finds mistakes in a card that can be loaded."""
    for check in (_closed, _charges, _targets, _codes):
        yield from check(card)


def _closed(card: ProcessCard) -> Problems:
    """Decays that are closed everywhere, or at the default masses."""
    for i, channel in enumerate(card.open_channels):
        gap = card.masses[channel.parent].range[1]
        gap -= sum(card.masses[name].range[0] for name in channel.daughters)
        if gap < channel.minimum_gap:
            yield (
                ("open_channels", i),
                f"closed over the whole ranges: they leave at most {gap:g} of "
                f"{channel.minimum_gap:g} GeV; widen 'range' or lower 'minimum_gap'",
            )
            return
    try:
        parse_masses(card)
    except InputError as error:
        yield ("masses",), f"at the default masses: {str(error).rstrip('.')}"


def _charges(card: ProcessCard) -> Problems:
    """Decays that cannot conserve electric charge, whatever the signs."""
    for node in card.topology.nodes:
        if not node.children:
            continue
        names = [card.topology.nodes[i].name for i in node.children]
        mothers = _charges_of(card, node.name)
        daughters = [_charges_of(card, name) for name in names]
        if mothers is None or None in daughters:
            continue
        sums = {sum(choice) for choice in product(*[d for d in daughters if d is not None])}
        if not sums & mothers:
            yield ("decay",), f"{node.name} > {' '.join(names)} does not conserve electric charge"


def _charges_of(card: ProcessCard, name: str) -> set[int] | None:
    """Returns the charges [e/3] that a particle may have, None if they are not known."""
    codes = [abs(code) for code in card.particles[name].pdg]
    if any(code not in _THIRDS for code in codes):
        return None
    return {sign * _THIRDS[code] for code in codes for sign in (-1, 1)}


def _targets(card: ProcessCard) -> Problems:
    """Targets whose particle has another mass than the one they are called after."""
    for mass, label in card.targets.items():
        name = card.topology.node(label).name
        if mass_parameter(card, name) != mass:
            yield ("targets", mass), f"the mass of '{label}' is not set by '{mass}'"


def _codes(card: ProcessCard) -> Problems:
    """Numbers that are no PDG code."""
    for name, particle in card.particles.items():
        if 0 in particle.pdg:
            yield ("particles", name, "pdg"), "0 is no PDG code: give the particle's own"


def _settings(card: ProcessCard, rejected: Sequence[int]) -> Problems:
    """Pythia settings without a value, or that Pythia does not accept."""
    settings = card.pythia.settings
    for i, line in enumerate(settings):
        if "=" not in line:
            yield ("pythia", "settings", i), f"'{line}' should read 'Key:name = value'"
    for i in rejected:
        if "=" in settings[i]:
            yield (
                ("pythia", "settings", i),
                f"Pythia does not accept '{settings[i]}': look the name and its values up in "
                "Pythia's manual",
            )


def _spectrum_problems(card: ProcessCard) -> Iterator[tuple[int, str]]:
    """Finds mistakes in the spectrum, by its lines."""
    if card.pythia.spectrum is None:
        return
    defaults = {name: parameter.default for name, parameter in card.masses.items()}
    spectrum = read_spectrum(card.pythia.spectrum, defaults)
    yield from spectrum.problems
    yield from table_problems(spectrum)
    yield from _fixed_masses(card, spectrum)
    yield from _absent_decays(card, spectrum)


def _fixed_masses(card: ProcessCard, spectrum: Spectrum) -> Iterator[tuple[int, str]]:
    """Masses that are free in the card but a number in the spectrum."""
    for name, parameter in card.masses.items():
        for code in parameter.sets:
            if code in spectrum.fixed:
                yield spectrum.fixed[code], f"the mass of {code} is set by '{name}': write ${name}"


def _absent_decays(card: ProcessCard, spectrum: Spectrum) -> Iterator[tuple[int, str]]:
    """Decay tables without the decay of the card."""
    for node in card.topology.nodes:
        names = [card.topology.nodes[i].name for i in node.children]
        wanted = [card.particles[name].pdg for name in names]
        for code in card.particles[node.name].pdg if names else ():
            line, channels = spectrum.tables.get(code, (0, []))
            shown = " ".join(names)
            if channels and not any(_matches(c.daughters, wanted) for c in channels):
                yield line, f"the table of {code} has no decay {node.name} > {shown}"


def _matches(daughters: tuple[int, ...], wanted: list[tuple[int, ...]]) -> bool:
    """Says whether decay products are those of the card, in any order and of any sign."""
    if len(daughters) != len(wanted):
        return False
    if not daughters:
        return True
    first = abs(daughters[0])
    for i, codes in enumerate(wanted):
        rest = wanted[:i] + wanted[i + 1 :]
        if first in map(abs, codes) and _matches(daughters[1:], rest):
            return True
    return False


def _hints(card: ProcessCard, path: Path) -> Problems:
    """Finds what is worth a look."""
    own = own_cards()
    for name, files in own.items():
        if path.resolve() in [file.resolve() for file in files]:
            clash = clashing(name, files)
            if clash is not None:
                yield ("name",), clash.rstrip(".")
            elif name != card.name:
                yield ("name",), f"to be found by name, call the file {card.name}.yaml"
    lhe = card.pythia.lhe
    if lhe is not None and not Path(lhe).is_file():
        yield ("pythia", "lhe"), f"the file '{lhe}' is not there: name another in the settings"
    yield from _unguarded(card)


def _unguarded(card: ProcessCard) -> Problems:
    """Decays that the mass ranges can close, with no open channel to refuse that."""
    guarded = {(c.parent, tuple(sorted(c.daughters))) for c in card.open_channels}
    for node in card.topology.nodes:
        parent = mass_parameter(card, node.name)
        names = [card.topology.nodes[i].name for i in node.children]
        daughters = [m for m in (mass_parameter(card, name) for name in names) if m is not None]
        if parent is None or not daughters or (parent, tuple(sorted(daughters))) in guarded:
            continue
        lightest = card.masses[parent].range[0]
        if lightest <= sum(card.masses[name].range[1] for name in daughters):
            yield (
                ("open_channels",),
                f"the ranges allow masses that close {node.name} > {' '.join(names)}: add "
                f"{{parent: {parent}, daughters: [{', '.join(daughters)}], minimum_gap: …}}",
            )
            return
