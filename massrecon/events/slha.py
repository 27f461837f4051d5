"""The spectrum of a card: masses and decay tables in the notation of SLHA (hep-ph/0311123)."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Finding = tuple[int, str]
"""A line of the spectrum, counted from 0, and what is wrong with it."""

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Channel:
    """A line of a decay table.

    Attributes:
        line: Line of the spectrum, counted from 0.
        fraction: Branching fraction.
        daughters: PDG codes of the decay products.
    """

    line: int
    fraction: float
    daughters: tuple[int, ...]


@dataclass(frozen=True)
class Spectrum:
    """What a spectrum says.

    Attributes:
        masses: Signed masses of the block MASS by PDG code [GeV], placeholders filled in.
        fixed: Line of each mass that holds a number, not a placeholder, by PDG code.
        tables: Line and channels of each decay table by PDG code.
        problems: What could not be read.
    """

    masses: dict[int, float]
    fixed: dict[int, int]
    tables: dict[int, tuple[int, list[Channel]]]
    problems: list[Finding]


def read_spectrum(text: str, masses: Mapping[str, float]) -> Spectrum:
    """Reads the masses and decay tables of a spectrum.

    Args:
        text: Spectrum with ``$name`` for each mass parameter.
        masses: Values of the mass parameters [GeV].
    """
    found = Spectrum({}, {}, {}, [])
    table: list[Channel] | None = None
    block = ""
    for number, raw in enumerate(text.splitlines()):
        filled = string.Template(raw).safe_substitute({k: repr(v) for k, v in masses.items()})
        words = filled.partition("#")[0].split()
        if not words:
            continue
        start = words[0].upper()
        if start == "BLOCK":
            block, table = (words[1].upper() if len(words) > 1 else ""), None
        elif start == "DECAY":
            table = _open_table(found, number, words)
        elif table is not None:
            _read_channel(found, table, number, words)
        elif block == "MASS":
            _read_mass(found, number, words, "$" in raw.partition("#")[0])
    return found


def table_problems(spectrum: Spectrum) -> Iterator[Finding]:
    """Finds what is wrong with decay tables.

    That is branching fractions that are no probabilities or do not add up to 1, and decays that are
    closed at the masses of the spectrum.
    """
    for code, (line, channels) in spectrum.tables.items():
        for channel in channels:
            if not 0 <= channel.fraction <= 1:
                yield channel.line, f"a branching fraction is from 0 to 1, got {channel.fraction:g}"
        total = sum(channel.fraction for channel in channels)
        if channels and abs(total - 1) > _SUM_TOLERANCE:
            yield line, f"the branching fractions of {code} add up to {total:g}: make it 1"
        parent = spectrum.masses.get(abs(code))
        for channel in channels if parent is not None else ():
            needed = sum(abs(spectrum.masses.get(abs(d), 0.0)) for d in channel.daughters)
            if channel.fraction > 0 and needed >= abs(parent or 0.0):
                yield (
                    channel.line,
                    f"at the default masses this decay of {code} ({abs(parent or 0.0):g} GeV) into "
                    f"{needed:g} GeV is closed",
                )


def _open_table(found: Spectrum, number: int, words: list[str]) -> list[Channel] | None:
    """Starts the table of a particle, from ``DECAY code width``."""
    try:
        code, width = int(words[1]), float(words[2])
    except (IndexError, ValueError):
        found.problems.append((number, "a decay table starts with 'DECAY code width'"))
        return None
    if width < 0:
        found.problems.append((number, f"the width of {code} is negative: {width:g} GeV"))
    if code in found.tables:
        above = number - found.tables[code][0]
        found.problems.append((number, f"{code} has a decay table already, {above} lines above"))
    table: list[Channel] = []
    found.tables[code] = (number, table)
    return table


def _read_channel(found: Spectrum, table: list[Channel], number: int, words: list[str]) -> None:
    """Reads ``fraction number codes…``."""
    try:
        fraction, count = float(words[0]), int(words[1])
        daughters = tuple(int(word) for word in words[2:])
    except (IndexError, ValueError):
        found.problems.append((number, "a decay reads 'fraction number code code …'"))
        return
    if count != len(daughters):
        found.problems.append(
            (number, f"says {count} decay products, but lists {len(daughters)}: correct the number")
        )
    table.append(Channel(number, fraction, daughters))


def _read_mass(found: Spectrum, number: int, words: list[str], is_free: bool) -> None:
    """Reads ``code mass``."""
    try:
        code, mass = int(words[0]), float(words[1])
    except (IndexError, ValueError):
        found.problems.append((number, "a line of the block MASS reads 'code mass'"))
        return
    found.masses[code] = mass
    if not is_free:
        found.fixed[code] = number
