"""Further controls of explorers, beside sliders and menus: switches, texts, buttons, a player."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as widgets
import traitlets

from massrecon.visual.widgets.explorer import FIELD, WIDE, Explorer


def switch(explorer: Explorer, name: str, label: str) -> widgets.Checkbox:
    """Makes a switch on a `Bool` of an explorer.

    Args:
        explorer: Whose trait it sets.
        name: Name of the trait.
        label: What it says.
    """
    made = widgets.Checkbox(
        value=getattr(explorer, name), description=label, indent=False, layout=FIELD["layout"]
    )
    traitlets.link((made, "value"), (explorer, name))
    return made


def entry(explorer: Explorer, name: str, label: str, hint: str = "") -> widgets.Text:
    """Makes a line of text on a `Unicode` of an explorer; it answers to Enter and to leaving it.

    Args:
        explorer: Whose trait it sets.
        name: Name of the trait.
        label: What it says.
        hint: What an empty line shows.
    """
    made = widgets.Text(
        value=getattr(explorer, name), description=label, placeholder=hint,
        continuous_update=False, **FIELD,
    )  # fmt: skip
    traitlets.link((made, "value"), (explorer, name))
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
        style=FIELD["style"], layout=WIDE,
    )  # fmt: skip
    traitlets.link((explorer, name), (made, "value"))
    return made


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
        continuous_update=False, **FIELD,
    )  # fmt: skip
    traitlets.link((explorer, name), (made, "value"), (", ".join, _split))
    return made


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def combo(
    explorer: Explorer, name: str, label: str, options: Sequence[str], hint: str = ""
) -> widgets.Combobox:
    """Makes a line of text with a menu of what it may be; any other text is taken, too.

    Args:
        explorer: Whose trait it sets.
        name: Name of the trait, a `Unicode`.
        label: What it says.
        options: The menu.
        hint: What an empty line shows.
    """
    made = widgets.Combobox(
        value=getattr(explorer, name), options=list(options), ensure_option=False,
        description=label, placeholder=hint, continuous_update=False, **FIELD,
    )  # fmt: skip
    traitlets.link((made, "value"), (explorer, name))
    return made


def rows(*controls: Sequence[widgets.Widget]) -> list[widgets.Widget]:
    """Puts controls into rows, which break where the page is narrow."""
    layout = widgets.Layout(flex_flow="row wrap")
    return [widgets.HBox(list(row), layout=layout) for row in controls]


def button(label: str, action: Callable[[], None], hint: str, icon: str = "") -> widgets.Button:
    """Makes a button.

    Args:
        label: What it says.
        action: What it does.
        hint: What a reader is told who stays on it.
        icon: Name of a picture, of Font Awesome.
    """
    made = widgets.Button(
        description=label, tooltip=hint, icon=icon, layout=widgets.Layout(width="auto")
    )
    made.on_click(lambda _: action())
    return made


def player(
    explorer: Explorer, name: str, label: str, last: int, first: int = 0, pause: int = 400
) -> tuple[widgets.HBox, widgets.Play]:
    """Makes play, pause and a slider on an `Int` of an explorer that counts steps.

    Args:
        explorer: Whose trait it moves.
        name: Name of the trait.
        label: What it says.
        last: Last step.
        first: First step.
        pause: Time between two steps [ms]; not below what a step takes, or steps queue up.

    Returns:
        The row of both, and the player, whose `max` may change.
    """
    play = widgets.Play(
        min=first, max=last, value=getattr(explorer, name), interval=pause, show_repeat=False,
        description=label,
    )  # fmt: skip
    place = widgets.IntSlider(
        min=first, max=last, value=play.value, description=label, continuous_update=True, **FIELD,
    )  # fmt: skip
    traitlets.dlink((play, "max"), (place, "max"))
    traitlets.link((place, "value"), (explorer, name))
    traitlets.link((play, "value"), (explorer, name))
    return widgets.HBox([play, place]), play
