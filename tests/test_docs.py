"""The documentation: links lead somewhere, code runs as printed, messages exist, tables are filled.

The site itself is built by `make docs`; nothing here needs mkdocs.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from massrecon import __all__ as public_names
from massrecon.models import MODELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))
NAMES = [path.stem for path in PAGES]
BY_NAME = dict(zip(NAMES, PAGES, strict=True))
GALLERY = ROOT / "docs" / "pages" / "gallery"


sys.path.insert(0, str(ROOT / "docs"))  # as mkdocs does for its hooks
FILLING = importlib.import_module("filling")
MEASURED = importlib.import_module("measured")
OUTPUTS = importlib.import_module("outputs")
PREPARE = importlib.import_module("prepare")
sys.path.remove(str(ROOT / "docs"))


def page(name: str) -> str:
    """A page as it is shown, with its fillings."""
    return FILLING.filled(BY_NAME[name].read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as mkdocs makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", head.encode("ascii", "ignore").decode()) for head in heads]
    return {re.sub(r"[-\s]+", "-", head.strip().lower()) for head in plain}


def links(text: str) -> list[str]:
    bare = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", bare) if "://" not in target]


def broken(name: str, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    lessons = {f"lessons/{path.stem}.md" for path in (ROOT / "tutorials").glob("*.ipynb")}
    pictures = {f"pictures/{path.name}" for path in (ROOT / "tutorials" / "pictures").glob("*")}
    pictures |= {f"gallery/{path.name}" for path in GALLERY.glob("*")}
    found = []
    for target in links(text):
        file, _, anchor = target.partition("#")
        if file in lessons | pictures:
            continue
        other = file.removesuffix(".md") if file else name
        there = other in NAMES and (not anchor or anchor in anchors(page(other)))
        found += [] if there else [target]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert not broken(name, page(name))


def test_a_broken_link_is_seen() -> None:
    assert broken("index", "[a](nowhere.md) [b](install.md) [c](#no-such-part)") == [
        "nowhere.md",
        "#no-such-part",
    ]


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^  - .*: (\w+)\.md$", config, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_project_exist(name: str) -> None:
    said = re.findall(r"`((?:massrecon|tests|notebooks|tutorials|docs)/[\w/.-]+)`", page(name))
    assert not [path for path in said if not (ROOT / path).exists()]
    modules = re.findall(r"(?:`|::: )(massrecon(?:\.[a-z_]\w*)+)", page(name))
    for module in modules:
        path = ROOT / module.replace(".", "/")
        homes = (path.parent.with_suffix(".py"), path.parent / "__init__.py")
        inside = any(home.exists() and path.name in home.read_text("utf-8") for home in homes)
        assert path.is_dir() or path.with_suffix(".py").exists() or inside, module


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_bound_to_one_machine(name: str) -> None:
    text = page(name)
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users|opt)/", text)
    assert "localhost" not in text
    assert "<!-- fill" not in text


@pytest.mark.parametrize("name", [n for n in NAMES if "<!-- run -->" in BY_NAME[n].read_text()])
def test_code_runs_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = BY_NAME[name].read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "gaussian", MODELS["flow"])  # so that it is taken away again
    monkeypatch.setitem(sys.modules, "page", ModuleType("page"))
    for file, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL):
        Path(file).write_text(content, encoding="utf-8")
    found: dict[str, Any] = vars(sys.modules["page"])
    for code in re.findall(r"<!-- run -->\n```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, name, "exec"), found)  # the code is ours
    assert capsys.readouterr().out
    if name == "extending":
        assert found["model"].name == "gaussian"
        assert len(found["mine"]) == 20
        assert len(found["arrays"]["ptmiss"]) > 0
        assert found["explorer"].found.data["n_events"] == 400
        assert not found["explorer"].failed


def said_by_the_package() -> str:
    """All texts in the sources of the package and in the Makefile."""
    texts = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for path in sorted((ROOT / "massrecon").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_in_troubleshooting_exist() -> None:
    text = BY_NAME["troubleshooting"].read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)
    assert len(messages) > 15
    known = said_by_the_package()
    pieces = [piece for message in messages for piece in message.split("…")]
    missing = [p for p in pieces if p.strip(" '.,") and p not in known and p.strip() not in known]
    assert not missing


def test_the_reference_has_every_public_name() -> None:
    entries = re.findall(r"^::: ([\w.]+)$", page("reference"), re.MULTILINE)
    assert set(public_names) <= {entry.rsplit(".", 1)[-1] for entry in entries}


def test_tables_hold_what_was_recorded() -> None:
    results = page("results")
    one = MEASURED.recorded("reconstruction")["plane"]["models"]["cascade"]
    cell = one["efficiency"]["chi20"]["window"]["30"]
    assert f"{100 * cell['value']:.1f} ± {100 * cell['error']:.1f}" in results
    recorded = sorted(path.stem for path in (ROOT / "tests/benchmarks/results").glob("*.json"))
    sources = [path.read_text() for path in sorted((ROOT / "docs").glob("measured*.py"))]
    used = re.findall(r'recorded\("(\w+)"\)', "".join(sources))
    others = [name for name in recorded if name.startswith("performance_")]  # of other devices
    assert sorted({*used, *others}) == recorded


def test_the_site_asks_no_other_host() -> None:
    config = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    assert "http" not in config


def test_the_gallery_has_every_explorer_and_is_small() -> None:
    explorers = {path.stem for path in (ROOT / "notebooks").glob("2*.ipynb")}
    assert {path.stem for path in GALLERY.glob("*.png")} == explorers
    assert sum(path.stat().st_size for path in GALLERY.iterdir()) < 1.5e6
    assert page("explorers").count("](gallery/") == len(explorers)


def test_the_concepts_have_the_figures_that_are_made() -> None:
    wanted = re.findall(r"<!-- fill: figure (\w+) ", BY_NAME["concepts"].read_text("utf-8"))
    assert sorted(wanted) == sorted([*PREPARE.MADE, "diagram"])
    assert set(PREPARE.QUICK) <= {path.stem for path in OUTPUTS.TUTORIALS.glob("*.ipynb")}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tutorial of two cells, and what came out when it was run."""
    figure = {"data": [{"y": [1, 2], "name": "</script>"}], "layout": {"meta": {"caption": "A b"}}}
    data = {"application/vnd.plotly.v1+json": figure, "text/plain": ["Figure"]}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["10 %\r100 %\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["a warning"]},
        {"output_type": "display_data", "data": data},
    ]
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["# Lesson\n", "The mass $m_1$."]},
        {"cell_type": "code", "source": ["show()"], "outputs": []},
    ]
    monkeypatch.setattr(OUTPUTS, "EXECUTED", tmp_path / "done")
    source, done = tmp_path / "lesson.ipynb", tmp_path / "done" / "lesson.ipynb"
    source.write_text(json.dumps({"cells": cells, "metadata": {}}))
    done.parent.mkdir()
    about = {"of": OUTPUTS.fingerprint(source)}
    cells[1]["outputs"] = outputs
    done.write_text(json.dumps({"cells": cells, "metadata": about}))
    return source


def test_a_lesson_shows_what_came_out(ran: Path) -> None:
    text = FILLING.lesson(ran)
    assert "```text\n100 %\n```" in text
    assert "a warning" not in text
    found = re.search(r'aria-label="A b"><script type="application/json">(.*?)</script>', text)
    assert found is not None
    assert json.loads(found[1])["data"][0]["name"] == "</script>"
    assert "Without figures" not in text


def test_results_of_another_version_of_a_lesson_are_not_shown(ran: Path) -> None:
    ran.write_text(ran.read_text().replace("show()", "show(2)"))
    text = FILLING.lesson(ran)
    assert "make docs ALL=1" in text
    assert "figure" not in text.split("folder of yours")[1]


def test_equations_are_drawn(ran: Path) -> None:
    pytest.importorskip("latex2mathml")
    assert "<msub><mi>m</mi><mn>1</mn></msub>" in FILLING.lesson(ran)
    assert OUTPUTS.with_equations("costs 3 $ or less") == "costs 3 $ or less"


def test_rows_of_a_failed_benchmark_are_shown_with_its_failure() -> None:
    row = {"what": "a", "ratio": 0.5, "spread": None, "than": "b", "unit": "time", "note": ""}
    one = {"command": "python x.py", "load": 1.0, "failed": "ended with code 1", "rows": [row]}
    text = MEASURED._ratios("x", one)
    assert "| a | 0.5 | b | time |  |" in text
    assert "The benchmark ended with code 1" in text
    assert "| a |" not in MEASURED._ratios("x", one, "other")
    assert "has not been recorded" in MEASURED._ratios("x", None)
