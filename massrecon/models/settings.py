"""Checks of settings that come as text from a command line or a notebook."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from massrecon.errors import InputError, unknown_name

_IN_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}


def check_settings(kind: str, config: type[Any], values: Mapping[str, Any]) -> None:
    """Checks names and types of settings against the fields of a configuration class.

    Ranges are for the class itself to check.

    Args:
        kind: What a setting is called in messages, such as ``"setting of cascade"``.
        config: A dataclass.
        values: The settings by name.

    Raises:
        InputError: If a name is unknown, or a value is not of the type of its field.
    """
    hints = get_type_hints(config)
    known = [name for name in hints if name in config.__dataclass_fields__]
    for name, value in values.items():
        if name not in known:
            raise unknown_name(kind, name, sorted(known))
        allowed = _alternatives(hints[name])
        if not any(_fits(value, kind_of) for kind_of in allowed):
            words = " or ".join(_IN_WORDS.get(kind_of, str(kind_of)) for kind_of in allowed)
            raise InputError(f"'{name}' should be {words}, got {value!r}.")


def _alternatives(hint: Any) -> list[Any]:
    """Lists the types that an annotation allows; the values of a Literal count as text."""
    if get_origin(hint) in (Union, UnionType):
        return [one for inner in get_args(hint) for one in _alternatives(inner)]
    if get_origin(hint) is Literal:
        return sorted({type(value) for value in get_args(hint)}, key=str)
    return ["none" if hint is type(None) else hint]


def _fits(value: Any, kind: Any) -> bool:
    """Says whether a value is of a type; types that no command line can give always fit."""
    if kind == "none":
        return value is None
    if kind not in _IN_WORDS:
        return True
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, numbers.Integral if kind is int else kind)
