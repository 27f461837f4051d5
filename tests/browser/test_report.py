"""The report in a real browser: it draws, complains of nothing, and asks nothing of the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import plotly.graph_objects as go
import pytest

from massrecon.runs.report import Section, write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def two_figures() -> list[go.Figure]:
    figures = [go.Figure(go.Scatter(x=[1, 2, 3], y=[2, 1, n])) for n in (3, 4)]
    for n, figure in enumerate(figures):
        figure.update_layout(meta={"caption": f"Caption {n}"})
    return figures


def test_the_report_draws_offline(tmp_path: Path) -> None:
    table = [["stage", "time [s]"], ["simulate", 12.5]]
    sections = [
        Section(heading="Text & <tags>", text="One.\n\nTwo < three.", table=table),
        Section(heading="Figures", listing="a  b\n1  2", figures=two_figures()),
    ]
    page_file = write_report(tmp_path / "report.html", "Title <1>", "Lead & more.", sections)
    requests, complaints = [], []
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_function("document.querySelectorAll('.main-svg').length >= 2")
        drawn = page.locator(".js-plotly-plot").count()
        captions = page.locator("figcaption").all_inner_texts()
        heading = page.locator("h2").first.inner_text()
        cells = page.locator("td").all_inner_texts()
        browser.close()
    assert drawn == 2
    assert captions == ["Caption 0", "Caption 1"]
    assert heading == "Text & <tags>"
    assert cells == ["simulate", "12.5"]
    assert not complaints
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
