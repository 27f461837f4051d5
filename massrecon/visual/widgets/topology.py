"""The explorer of decays: type a decay string, see its diagram and what follows from it."""

from __future__ import annotations

import re

import ipywidgets as widgets
import traitlets

from massrecon.errors import MassReconError
from massrecon.events.card import load_card
from massrecon.events.library import card_names
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.topology import DECAY, explore_topology
from massrecon.visual.widgets.controls import list_entry, live_entry, rows
from massrecon.visual.widgets.explorer import Explorer, choice, slider

_OWN = "a decay of your own"


class TopologyExplorer(Explorer):
    """Shows the diagram, assignments, symmetries and subsystems of a decay while it is typed.

    A string that cannot be read yet leaves the last good diagram in place, with the message and the
    decay that it belongs to.
    """

    function = "massrecon.visual.explore.topology:explore_topology"
    notebook = "29_topology"
    parameters = ("decay", "card", "invisible", "kinds", "extra", "missing")

    decay = traitlets.Unicode(DECAY, help="Decay string; not looked at with a card.")
    card = traitlets.Unicode("", help="Name of a process card, or empty for `decay`.")
    invisible = traitlets.List(traitlets.Unicode(), ["C", "nu"], help="Legs that are not seen.")
    kinds = traitlets.List(traitlets.Unicode(), help="Kinds of objects as NAME=KIND.")
    extra = traitlets.Int(0, min=0, help="Objects without a leg, of the most frequent kind.")
    missing = traitlets.Int(0, min=0, help="Legs of that kind that may have lost their object.")

    def _controls(self) -> list[widgets.Widget]:
        cards = {_OWN: "", **{name: name for name in card_names()}}
        self._menu = choice(self, "card", "process card", cards)
        line = live_entry(self, "decay", "decay")
        self.observe(self._on_card, names="card")
        self.observe(self._on_decay, names="decay")
        self._on_card()
        return [line, *rows(
            [self._menu, list_entry(self, "invisible", "unseen legs", "C, nu")],
            [list_entry(self, "kinds", "kinds of objects", "b=jet, l=lepton")],
            [slider(self, "extra", "extra objects", 0, 4, 1),
             slider(self, "missing", "lost at most", 0, 4, 1)],
        )]  # fmt: skip

    def _explore(self) -> Exploration:
        return explore_topology(**self.arguments())

    def _on_card(self, _: object = None) -> None:
        """Writes the decay of a chosen card into the line."""
        decay = _decay_of(self.card)
        if decay is not None:
            with self.held():
                self.decay = decay

    def _on_decay(self, _: object) -> None:
        """Leaves the card when the decay becomes another."""
        if self.card and self.decay != _decay_of(self.card):
            with self.held():
                self.card = ""


def _decay_of(card: str) -> str | None:
    """Returns the decay of a card in one line; None without one, or if it cannot be read."""
    try:
        return re.sub(r"\s+", " ", load_card(card).decay).strip() if card else None
    except MassReconError:  # the message comes with the refresh
        return None
