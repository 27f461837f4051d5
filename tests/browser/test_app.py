"""The mass-point explorer as a page of its own: it opens, moves, and stays at home."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.browser.jupyter import CHROMIUM, TOKEN, serving, watched_page

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for p in ("voila", "playwright")),
        reason="needs voila and playwright",
    ),
]


def test_the_page_follows_its_slider_and_hides_the_code(tmp_path: Path) -> None:
    command = ["app", str(tmp_path / "mine"), f"--Voila.token={TOKEN}"]
    with serving(command, tmp_path) as url, watched_page(tmp_path / "browser") as watched:
        watched.page.goto(f"{url}/?token={TOKEN}", timeout=180_000)
        watched.wait_for_figure()
        before = watched.numbers()
        watched.press("True m(χ̃₁⁰)", "ArrowRight", times=3)
        watched.wait_for_other_numbers(before)
        watched.picture("app")
        text = watched.page.inner_text("body")
        assert "write_json" not in text
        assert "A mass point" in text
        watched.assert_quiet()
    assert (tmp_path / "mine" / "notebooks" / "20_mass_point.ipynb").is_file()
