"""Every explorer in a real JupyterLab: it opens, moves, says how to repeat it, and stays at home."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.jupyter import CHROMIUM, TOKEN, Watched, serving, watched_page

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for p in ("jupyterlab", "playwright")),
        reason="needs jupyterlab and playwright",
    ),
]
slow = pytest.mark.slow


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


@pytest.mark.parametrize(
    ("notebook", "label", "key"),
    [
        ("20_mass_point", "True m(χ̃₁⁰)", "ArrowRight"),
        pytest.param("21_efficiency_map", "Window", "ArrowRight", marks=slow),
        pytest.param("22_event_display", "Event", "ArrowRight", marks=slow),
        pytest.param("23_denoising", "Event", "ArrowRight", marks=slow),
        pytest.param("24_ten_events", "Seed", "ArrowRight", marks=slow),
        pytest.param("25_variables", "Trial mass", "ArrowRight", marks=slow),
        pytest.param("28_calibration", "Seed", "ArrowRight", marks=slow),
    ],
)
def test_an_explorer_follows_its_slider(
    lab: str, page: Watched, notebook: str, label: str, key: str
) -> None:
    page.run_notebook(lab, notebook)
    page.picture(notebook)
    before = page.numbers()
    page.press(label, key, times=3)
    page.wait_for_other_numbers(before)
    assert len(page.page.locator(".massrecon-reading").first.inner_text()) > 20
    page.page.get_by_role("button", name="Reproduce").click()
    recipe = page.page.locator(".massrecon-recipe").first
    recipe.wait_for(state="visible")
    text = recipe.inner_text()
    assert f"massrecon run {notebook}" in text
    assert "from massrecon.visual.explore" in text
    page.assert_quiet()
