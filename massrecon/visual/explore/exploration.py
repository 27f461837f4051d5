"""What an explorer found: results as data, a figure of them, and a sentence that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """A figure with the numbers in it.

    Attributes:
        figure: The complete figure; its caption is in ``layout.meta["caption"]``.
        data: Results by name: numbers with their units in the names, lists and texts, for JSON.
        reading: A sentence or two that say what is seen, with numbers and units.
        panels: Further figures below the first, by title.
    """

    figure: go.Figure
    data: Mapping[str, Any]
    reading: str
    panels: Mapping[str, go.Figure] = field(default_factory=dict)
