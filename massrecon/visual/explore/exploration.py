"""What an explorer found: results as data, a figure of them, and a sentence that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go


class Later(Mapping[str, go.Figure]):
    """Figures by title, each made when it is first looked at.

    An explorer shows its first figure before it asks for the next.
    """

    def __init__(self, makers: Mapping[str, Callable[[], go.Figure]]) -> None:
        """Keeps what makes the figures, by title."""
        self._makers = dict(makers)
        self._made: dict[str, go.Figure] = {}

    def __getitem__(self, title: str) -> go.Figure:
        """Returns a figure, always the same one."""
        if title not in self._made:
            self._made[title] = self._makers[title]()
        return self._made[title]

    def __iter__(self) -> Iterator[str]:
        """Goes through the titles, in the order of the screen."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Counts the figures."""
        return len(self._makers)


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """A figure with the numbers in it.

    Attributes:
        figure: The complete figure; its caption is in ``layout.meta["caption"]``.
        data: Results by name: numbers with their units in the names, lists and texts, for JSON.
        reading: A sentence or two that say what is seen, with numbers and units.
        panels: Further figures below the first, by title; see `Later`.
    """

    figure: go.Figure
    data: Mapping[str, Any]
    reading: str
    panels: Mapping[str, go.Figure] = field(default_factory=dict)
