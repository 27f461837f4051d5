"""Figures of collisions: their numbers are those of the events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.visual import figures
from tests.conftest import ToyEvents


def titles(figure: go.Figure) -> list[str]:
    return [axis.title.text for axis in figure.select_xaxes()]


def test_the_overview_counts_all_events(toy_events: ToyEvents) -> None:
    events = toy_events(500, seed=1)
    figure = figures.event_overview(events)
    panel = titles(figure).index("number of jets")
    marks = [trace for trace in figure.data if trace.mode == "markers"][panel]
    jets = events.present[:, events.slots_of("jet")].sum(1)
    expected = torch.bincount(jets).tolist()
    np.testing.assert_array_equal(marks.y, expected)
    np.testing.assert_allclose(marks.error_y.array, np.sqrt(expected))
    assert all("[GeV]" in title or title == "number of jets" for title in titles(figure))
    assert "500" in figure.layout.meta["caption"]


def test_the_photon_pair_peaks_at_the_mass_on_the_card(toy_events: ToyEvents) -> None:
    figure = figures.event_overview(toy_events(2000, seed=2))
    panel = titles(figure).index("<i>m</i>(photon pair) [GeV]")
    marks = [trace for trace in figure.data if trace.mode == "markers"][panel]
    assert abs(marks.x[np.argmax(marks.y)] - 125) < 3


def test_weights_count(toy_events: ToyEvents) -> None:
    events = toy_events(300, seed=3)
    twice = replace(events, weight=2 * events.weight)
    one, two = (figures.mass_coverage(sample).data[1] for sample in (events, twice))
    np.testing.assert_allclose(two.y, 2 * one.y)
    assert one.y.sum() == 300


def test_coverage_is_a_plane_when_two_masses_vary(toy_events: ToyEvents) -> None:
    events = toy_events(300, seed=4)
    assert events.masses is not None
    masses = events.masses.clone()
    masses[:150, 0] = 500
    figure = figures.mass_coverage(replace(events, masses=masses))
    assert isinstance(figure.data[0], go.Heatmap)
    assert np.nansum(figure.data[0].z) == 300
    assert "χ̃" in figure.layout.xaxis.title.text


@pytest.mark.parametrize("draw", [figures.event_overview, figures.mass_coverage])
def test_no_events_is_an_error(toy_events: ToyEvents, draw: object) -> None:
    with pytest.raises(InputError, match="no events to show"):
        draw(toy_events(10, seed=1)[:0])


def test_no_truth_is_an_error(toy_events: ToyEvents) -> None:
    events: Events = replace(toy_events(10, seed=1), masses=None)
    with pytest.raises(InputError, match="no true masses"):
        figures.mass_coverage(events)
