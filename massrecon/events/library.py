"""Where process cards are found by name: the built-in ones and those in a folder of one's own.

The environment variable ``MASSRECON_CARDS`` names a folder (or several, separated as in ``PATH``)
whose ``<name>.yaml`` files work by name wherever a built-in card does. A name must mean one card
only, and be the one that the card gives itself.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from massrecon.errors import CardError, InputError, reason, unknown_name

FOLDERS = "MASSRECON_CARDS"
"""Environment variable with the folders of one's own cards."""


def builtin_cards() -> tuple[str, ...]:
    """Returns the names of the built-in cards."""
    folder = files("massrecon.events") / "cards"
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml")))


def own_cards() -> dict[str, tuple[Path, ...]]:
    """Returns the files of one's own cards by name; more than one file for a name is a clash.

    Raises:
        CardError: If a folder of `MASSRECON_CARDS` is not there.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for entry in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if not folder.is_dir():
            raise CardError(
                f"{FOLDERS} names the folder '{entry}', which is not there: make it, or change or "
                "unset the variable."
            )
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            found[path.stem] = (*found.get(path.stem, ()), path)
    return found


def card_names() -> tuple[str, ...]:
    """Returns the names of all cards, built-in and own, in alphabetical order."""
    return tuple(sorted({*builtin_cards(), *own_cards()}))


def find_card(name: str) -> tuple[str, str]:
    """Finds a card by name.

    Returns:
        Its text, and what to call its file in messages.

    Raises:
        InputError: If there is no card of this name.
        CardError: If there are two, or the file cannot be read.
    """
    own = own_cards().get(name, ())
    clash = clashing(name, own)
    if clash is not None:
        raise CardError(clash)
    if own:
        return read_card(own[0]), str(own[0])
    if name not in builtin_cards():
        error = unknown_name("process", name, card_names())
        raise InputError(
            f"{error} A card of your own is given by the path of its .yaml file, or by its name if "
            f"it lies in the folder named by {FOLDERS}."
        )
    resource = files("massrecon.events") / "cards" / f"{name}.yaml"
    return resource.read_text(encoding="utf-8"), f"{name}.yaml"


def clashing(name: str, own: tuple[Path, ...]) -> str | None:
    """Says which cards share a name, or returns None if the name is clear."""
    places = [*(["the built-in card"] if name in builtin_cards() else []), *(f"'{p}'" for p in own)]
    if not own or len(places) == 1:
        return None
    return f"The name '{name}' means {' and '.join(places)}: rename your own card and its file."


def read_card(path: Path) -> str:
    """Reads the text of a card file.

    Raises:
        CardError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CardError(
            f"The card '{path}' cannot be read: there is no such file. Check the path, or choose a "
            "card by name: 'massrecon cards' lists them."
        ) from error
    except OSError as error:
        raise CardError(
            f"The card '{path}' cannot be read: {reason(error)}. Check its path and permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise CardError(
            f"The card '{path}' cannot be read: it is no text in UTF-8. Save it as such."
        ) from error
