"""Hooks of mkdocs: fill the pages, and add the pictures and tutorials of the repository."""

from __future__ import annotations

from typing import Any

from filling import filled, lesson
from measured import ROOT
from mkdocs.structure.files import File, Files
from outputs import drawing_code


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures, and a page for every tutorial."""
    for path in sorted((ROOT / "tutorials" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        files.append(File.generated(config, f"lessons/{path.stem}.md", content=lesson(path)))
    if (code := drawing_code()) is not None:
        files.append(File.generated(config, f"assets/{code.name}", abs_src_path=str(code)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills a page."""
    return filled(markdown)
