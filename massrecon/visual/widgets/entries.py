"""Lines of text for explorers: lists, and text that is read while it is typed."""

from __future__ import annotations

import ipywidgets as widgets
import traitlets

from massrecon.visual.widgets.explorer import Explorer

_DESCRIPTION = {"description_width": "9em"}


def list_entry(explorer: Explorer, name: str, label: str, hint: str = "") -> widgets.Text:
    """Makes a line of text on a `List` of texts of an explorer, with commas between the entries.

    Args:
        explorer: Whose trait it sets, when Enter is pressed or the line is left.
        name: Name of the trait.
        label: What it says.
        hint: What an empty line shows.
    """
    made = widgets.Text(
        value=", ".join(getattr(explorer, name)), description=label, placeholder=hint,
        continuous_update=False, style=_DESCRIPTION, layout=widgets.Layout(width="26em"),
    )  # fmt: skip
    traitlets.link((explorer, name), (made, "value"), (", ".join, _split))
    return made


def live_entry(explorer: Explorer, name: str, label: str) -> widgets.Text:
    """Makes a line of text on a `Unicode` of an explorer that answers to every letter.

    Args:
        explorer: Whose trait it sets.
        name: Name of the trait.
        label: What it says.
    """
    made = widgets.Text(
        value=getattr(explorer, name), description=label, continuous_update=True,
        style=_DESCRIPTION, layout=widgets.Layout(width="100%"),
    )  # fmt: skip
    traitlets.link((explorer, name), (made, "value"))
    return made


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
