"""Every explorer in a real JupyterLab: it opens, moves, says how to repeat it, stays at home."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import massrecon as mr
from massrecon.models.progress import training_progress
from tests.browser.jupyter import CHROMIUM, TOKEN, Watched, serving, watched_page

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for p in ("jupyterlab", "playwright")),
        reason="needs jupyterlab and playwright",
    ),
]
slow = pytest.mark.slow
_STEPS = 120
_EPOCHS = 5


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("lab")
    options = [f"--IdentityProvider.token={TOKEN}", "--allow-root", "--LabApp.news_url=None"]
    options += ["--LabApp.expose_app_in_browser=True"]
    with serving(["lab", str(folder / "mine"), *options], folder) as url:
        yield url


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Watched]:
    with watched_page(tmp_path / "browser") as watched:
        yield watched
        watched.end_kernels()


@pytest.mark.parametrize(
    ("notebook", "label"),
    [
        ("20_mass_point", "True m(χ̃₁⁰)"),
        pytest.param("21_efficiency_map", "Window", marks=slow),
        pytest.param("22_event_display", "event", marks=slow),
        pytest.param("23_denoising", "Step", marks=slow),
        pytest.param("24_ten_events", "Background", marks=slow),
        pytest.param("25_variables", "trial mass", marks=slow),
        pytest.param("28_calibration", "Sharpened by", marks=slow),
    ],
)
def test_an_explorer_follows_its_slider(lab: str, page: Watched, notebook: str, label: str) -> None:
    page.run_notebook(lab, notebook)
    page.picture(notebook)
    before = page.numbers()
    page.press(label, "ArrowRight", times=3)
    page.wait_for_other_numbers(before)
    page.picture(f"{notebook}_moved")
    _assert_it_says_how(page, notebook)
    _assert_it_is_readable_in_the_dark(page, notebook)
    page.assert_quiet()


@slow
def test_a_decay_is_read_while_it_is_typed(lab: str, page: Watched) -> None:
    page.run_notebook(lab, "29_topology")
    line = page.page.locator(".massrecon-explorer input[type=text]").first
    line.fill("p p > A A, (A > a B")
    page.page.locator(".massrecon-status", has_text="⚠").wait_for()
    page.picture("29_topology_error")
    line.fill("p p > A A, (A > a B, B > b C)")
    page.page.wait_for_function(
        "() => !document.querySelector('.massrecon-status').innerText.includes('⚠')"
    )
    page.picture("29_topology")
    _assert_it_says_how(page, "29_topology")
    _assert_it_is_readable_in_the_dark(page, "29_topology")
    page.assert_quiet()


@slow
def test_masses_move_while_the_fit_goes_on(lab: str, page: Watched) -> None:
    page.run_notebook(lab, "26_deelema_live")
    page.page.get_by_role("button", name="Train").click()
    for _ in range(_EPOCHS):
        page.wait_for_other_numbers(page.numbers(), seconds=180)
    page.page.get_by_role("button", name="Stop").first.click()
    page.picture("26_deelema_live")
    _assert_it_is_readable_in_the_dark(page, "26_deelema_live")
    page.assert_quiet()


@slow
def test_a_training_is_stopped_and_goes_on(lab: str, page: Watched, tmp_path: Path) -> None:
    events = tmp_path / "events"
    mr.load_events("wino_udd").save(events)
    model = tmp_path / "model"
    command = f"massrecon train mass_head {events} --preset small --out {model}"
    command += f" --steps {_STEPS} --set batch_size=64"
    page.run_notebook(lab, "27_training_monitor")
    lines = page.page.locator(".massrecon-explorer input[type=text]")
    for line, text in ((lines.nth(0), str(model)), (lines.nth(1), command)):
        line.fill(text)
        line.press("Enter")
    status = page.page.locator(".massrecon-reading")
    start = page.page.get_by_role("button", name="Start or resume")
    start.click()
    status.filter(has_text="Step").wait_for(timeout=120_000)
    page.page.get_by_role("button", name="Stop the training").click()
    page.page.get_by_text("The training has stopped").wait_for(timeout=120_000)
    stopped = training_progress(model)
    assert stopped is not None
    assert 0 < stopped.step < _STEPS
    start.click()
    status.filter(has_text="finished").wait_for(timeout=180_000)
    page.picture("27_training_resumed")
    history = json.loads((tmp_path / "model.training" / "history.json").read_text())
    steps = [record["step"] for record in history["records"]]
    assert steps == sorted(set(steps))
    assert stopped.step in steps
    assert steps[-1] == _STEPS
    page.assert_quiet()


@slow
def test_a_luminosity_is_simulated_and_stopped(lab: str, page: Watched) -> None:
    pytest.importorskip("pythia8mc")
    page.run_notebook(lab, "24_ten_events")
    reading = page.page.locator(".massrecon-reading")
    stop = page.page.get_by_role("button", name="Stop").first
    page.press("Luminosity", "End")
    page.page.get_by_text("collisions simulated").wait_for(timeout=60_000)
    stop.click()
    page.page.get_by_text("Stopped; the figure shows what was there").wait_for(timeout=30_000)
    assert "fb⁻¹" not in reading.inner_text()
    page.press("Luminosity", "ArrowLeft")
    reading.filter(has_text="signal events are expected").wait_for(timeout=240_000)
    page.picture("24_ten_events_luminosity")
    assert "In 5900 fb⁻¹" in reading.inner_text()
    page.assert_quiet()


@slow
def test_the_monitor_waits_for_a_training(lab: str, page: Watched) -> None:
    page.run_notebook(lab, "27_training_monitor")
    page.picture("27_training_monitor")
    _assert_it_says_how(page, "27_training_monitor")
    _assert_it_is_readable_in_the_dark(page, "27_training_monitor")
    page.assert_quiet()


def _assert_it_is_readable_in_the_dark(page: Watched, notebook: str) -> None:
    """Asserts that all texts outside figures have the contrast that WCAG asks for (AA)."""
    page.take_theme("Dark")
    page.picture(f"{notebook}_dark")
    contrasts = page.contrasts()
    page.take_theme("Light")
    assert len(contrasts) > 5
    assert min(contrasts)[0] >= 4.5, sorted(contrasts)[:5]


def _assert_it_says_how(page: Watched, notebook: str) -> None:
    """Asserts that the reading is there, and the code and the command of the figure."""
    assert len(page.page.locator(".massrecon-reading").first.inner_text()) > 20
    page.page.get_by_role("button", name="Reproduce").click()
    recipe = page.page.locator(".massrecon-recipe").first
    recipe.wait_for(state="visible")
    text = recipe.inner_text()
    assert f"massrecon run {notebook}" in text
    assert f"/notebooks/{notebook}.ipynb" in text.partition("papermill ")[2]
    assert "from massrecon.visual.explore" in text
