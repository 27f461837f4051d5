"""Errors of massrecon: one family, each naming what is wrong, where, and the remedy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class MassReconError(Exception):
    """Base of every error that massrecon raises on purpose."""


class InputError(MassReconError, ValueError):
    """An argument or an input value is at fault."""


class ShapeError(InputError):
    """A tensor does not have the expected shape."""


class CardError(InputError):
    """A process card cannot be used as written."""


class StoreError(MassReconError):
    """Stored events are missing, damaged or in use by another process."""


class ImportFileError(InputError):
    """A file of events cannot be read, or holds what cannot be; it names the file and entries."""


class GenerationError(MassReconError):
    """The event generator failed or returned something other than what was asked for."""


class ModelError(MassReconError):
    """A model folder is damaged or foreign, or a model cannot do what was asked."""


class TrainingStopped(MassReconError):  # noqa: N818  no failure: what was asked for
    """A training ended early since it was asked to; its checkpoint is kept."""


class RunError(MassReconError):
    """A notebook run failed; the message names the failing cell and the kept notebook."""


class MissingExtraError(MassReconError, ImportError):
    """An optional package is not installed; the message gives the install line."""


def reason(error: Exception) -> str:
    """Says in short why a file could not be read: without its name, which the message has."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error).strip().split("\n")[0] or type(error).__name__


def nearest(name: str, choices: Iterable[str]) -> str:
    """Asks in brackets whether the most similar of `choices` was meant; nothing if none is."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """Builds the error for a name that is not among `choices`, with the nearest match first."""
    names = list(choices)
    hint = nearest(name, names)
    return InputError(f"Unknown {kind} '{name}'{hint}: choose from {', '.join(names)}.")


def require_extra(module: str, extra: str) -> ModuleType:
    """Imports an optional module or raises the error that says how to install it.

    Raises:
        MissingExtraError: If `module` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"'{module}' is not installed: run  pip install 'massrecon[{extra}]'"
        ) from error
