"""The page that describes a folder of events: numbers and figures in one HTML file."""

from __future__ import annotations

import warnings
from pathlib import Path

import plotly.graph_objects as go

from massrecon.events.container import Events
from massrecon.events.store import load_events
from massrecon.events.summary import StoreSummary
from massrecon.runs.report import Section, write_report
from massrecon.visual.figures import event_overview, mass_coverage

MOST_EVENTS = 100_000
"""Number of events that the figures show at most."""


def write_event_page(summary: StoreSummary, path: str | Path) -> Path:
    """Writes the tables of a summary and figures of the events to an HTML file.

    Args:
        summary: What `describe_store` found.
        path: The file to write.

    Returns:
        The path.

    Raises:
        StoreError: If the events cannot be loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unfinished simulation is among the facts
        events = load_events(summary.path, partial=True)
    facts = [("", ""), *summary.facts.items()]
    sections = [Section(heading="Facts", table=facts)]
    sections += [Section(heading=t, table=rows) for t, rows in summary.tables().items()]
    # evenly over the sample: mass points of a grid may come one after the other
    shown = events[:: max(1, -(-len(events) // MOST_EVENTS))]
    if len(shown):
        text = f"The figures show {len(shown):,} of {len(events):,} events."
        sections.append(Section(heading="Figures", text=text, figures=_figures(shown)))
    lead = f"{len(events):,} events in '{summary.path}'."
    return write_report(path, summary.title, lead, sections)


def _figures(events: Events) -> list[go.Figure]:
    """Draws what there is to draw."""
    figures = [event_overview(events)]
    if events.masses is not None and events.card.masses:
        figures.append(mass_coverage(events))
    return figures
