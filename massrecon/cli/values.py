"""Options of the form NAME=VALUE."""

from __future__ import annotations

import re
from typing import Any

from massrecon.errors import InputError

_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def values_of(pairs: list[str], option: str) -> dict[str, Any]:
    """Reads NAME=VALUE options whose values are numbers, true or false, lists or text.

    Raises:
        InputError: If one cannot be read.
    """
    import yaml

    values = {}
    for name, text in assignments(pairs, option).items():
        try:
            values[name] = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise InputError(f"'{option}' cannot read the value of '{name}': {error}.") from error
    return values


def assignments(pairs: list[str], option: str) -> dict[str, str]:
    """Reads NAME=VALUE options as text.

    Raises:
        InputError: If one has no name, or a name comes twice.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"'{option}' should be NAME=VALUE, got '{pair}'.")
        if name.strip() in values:
            raise InputError(f"'{option}' gives '{name.strip()}' twice: give it once.")
        values[name.strip()] = value.strip()
    return values


def _number(value: Any) -> Any:
    """Reads 1e-3 and 1.5e3 as numbers: to YAML they are text, without a point or a sign."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value
