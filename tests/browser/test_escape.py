"""What a card, a folder or a file says of itself is text in every page: no script of it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.summary import describe_store
from massrecon.runs.eventpage import write_event_page
from massrecon.runs.measuring import measure_file
from massrecon.runs.report import Section, write_report
from massrecon.visual.diagram import decay_diagram
from massrecon.visual.figures import event_overview, mass_coverage
from tests.browser.test_report import CHROMIUM, FLAGS

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

EVIL = (
    "<script>window.evil=1</script></script><script>window.evil=2</script>"
    '<img src=x onerror="window.evil=3"><svg onload="window.evil=4"></svg>'
    "<a href=\"javascript:window.evil=5\">x</a>\"'><iframe srcdoc='<script>parent.evil=6</script>'>"
)
CLICK = """document.querySelectorAll('a').forEach(link => link.dispatchEvent(
    new MouseEvent('click', {bubbles: true, cancelable: true})))"""
FIND = """[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]
    .filter(a => a.value.includes('evil') && (a.name.startsWith('on') ||
        a.value.trim().startsWith('javascript:') || a.name == 'srcdoc'))
    .map(a => `${e.tagName} ${a.name}`))"""
Shown = Callable[..., tuple[str, list[str]]]
NAME = "<img src=x onerror=window.evil=7>"


@pytest.fixture(scope="module")
def evil_card() -> ProcessCard:
    """A card whose every free text is a script."""
    content: dict[str, Any] = load_card("wino_udd").to_dict()
    content |= {"title": EVIL, "latex": EVIL, "reference": EVIL, "notes": EVIL}
    for particle in content["particles"].values():
        particle["symbol"] = EVIL
    return load_card(content)


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    """Opens a page, clicks on all of its links, and returns its text and what went wrong."""
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)

        def show(page_file: Path, drawn: int = 0) -> tuple[str, list[str]]:
            page = browser.new_page()
            page.on("dialog", lambda dialog: dialog.dismiss())
            page.goto(page_file.as_uri())
            page.wait_for_function(f"document.querySelectorAll('.main-svg').length >= {drawn}")
            page.evaluate(CLICK)
            page.wait_for_timeout(200)
            ran = page.evaluate("window.evil")
            wrong = page.evaluate(FIND) + ([] if ran is None else [f"script {ran} ran"])
            text = page.evaluate("document.documentElement.textContent")
            page.close()
            return text, wrong

        yield show
        browser.close()


def test_the_check_sees_a_script_that_runs(tmp_path: Path, shown: Shown) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<html><body>{EVIL}</body></html>")
    wrong = shown(page)[1]
    assert any("ran" in what for what in wrong)
    assert "IMG onerror" in wrong
    assert "A href" in wrong


def test_a_report_shows_scripts_as_text(tmp_path: Path, shown: Shown) -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[1, 2], name=EVIL, text=[EVIL] * 2))
    figure.update_layout(
        title=EVIL, xaxis_title=EVIL, meta={"caption": EVIL}, showlegend=True,
        annotations=[{"text": EVIL, "x": 1, "y": 1}],
    )  # fmt: skip
    section = Section(
        heading=EVIL, text=EVIL, table=[[EVIL, "b"], ["c", EVIL]], listing=EVIL, figures=[figure]
    )
    text, wrong = shown(write_report(tmp_path / "r.html", EVIL, EVIL, [section]), drawn=1)
    assert not wrong
    assert text.count("<script>window.evil=1</script>") >= 7


def test_a_card_of_scripts_does_nothing(
    tmp_path: Path, toy_events: Callable[..., Events], evil_card: ProcessCard, shown: Shown
) -> None:
    events = dataclasses.replace(toy_events(60, seed=1), card=evil_card)
    events.save(tmp_path / NAME)
    text, wrong = shown(
        write_event_page(describe_store(tmp_path / NAME), tmp_path / "events.html"), drawn=2
    )
    assert not wrong
    assert NAME in text
    figures = [event_overview(events), mass_coverage(events)]
    page = tmp_path / "page.html"
    parts = [decay_diagram(evil_card), events._repr_html_()]
    parts += [figure.to_html(full_html=False, include_plotlyjs=True) for figure in figures]
    page.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{''.join(parts)}</body>")
    text, wrong = shown(page, drawn=2)
    assert not wrong
    assert "<script>window.evil=1</script>" in text
    diagram = tmp_path / "diagram.svg"  # a file of its own is XML, with scripts of its own
    diagram.write_text(parts[0], encoding="utf-8")
    assert not shown(diagram)[1]


@pytest.mark.slow
def test_a_measurement_of_strange_names_does_nothing(
    tmp_path: Path, toy_events: Callable[..., Events], evil_card: ProcessCard, shown: Shown
) -> None:
    events = dataclasses.replace(toy_events(12, seed=2, chi10=(200, 201)), card=evil_card)
    events.save(tmp_path / NAME)
    found = measure_file(tmp_path / NAME, "mixture", tmp_path / "out", masses={"chi20": (500, 700)})
    text, wrong = shown(found.folder / "report.html", drawn=1)
    assert not wrong
    assert NAME in text
