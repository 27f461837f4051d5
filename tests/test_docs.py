"""The documentation: links lead somewhere, code runs as printed, messages exist, tables are filled.

The site itself is built by `make docs`; nothing here needs mkdocs.
"""

from __future__ import annotations

import ast
import importlib
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


sys.path.insert(0, str(ROOT / "docs"))  # as mkdocs does for its hooks
FILLING = importlib.import_module("filling")
MEASURED = importlib.import_module("measured")
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
    used = re.findall(r'recorded\("(\w+)"\)', (ROOT / "docs" / "measured.py").read_text())
    assert sorted(set(used)) == recorded


def test_the_site_asks_no_other_host() -> None:
    config = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    assert "http" not in config
