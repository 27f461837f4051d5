"""What the pages say by numbers and lists, made from the files of the project when they are built.

A page names a filling in a comment of its own line, such as ``<!-- fill: plane -->``; nothing is
copied by hand, so that nothing can differ from what was measured.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import measured
import measured_study
import outputs
from measured import ROOT, table

_MARK = re.compile(r"^<!-- fill: (\w+)(?: (.*?))? -->$", re.MULTILINE)


def filled(text: str) -> str:
    """Returns the Markdown of a page with all its fillings.

    Raises:
        KeyError: If a filling is unknown.
    """
    return _MARK.sub(lambda found: FILLINGS[found[1]](*filter(None, [found[2]])), text)


def readme(title: str) -> str:
    """A section of README without its heading, with links that work from a page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise KeyError(f"README has no section '{title}'")
    return with_pictures(found[1].strip())


def readme_start() -> str:
    """The beginning of README below its title, up to the first section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return with_pictures(text.split("\n", 1)[1].split("\n## ", 1)[0].strip())


def with_pictures(text: str) -> str:
    """Turns links to the repository's pictures into links to the site's; others lose the link."""
    text = re.sub(r"\]\(tutorials/pictures/", "](pictures/", text)
    lines = [line for line in text.split("\n") if not _lost(line)]
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)]+\)", r"`\1`", "\n".join(lines))


def _lost(line: str) -> bool:
    """Whether a line shows a picture that is not there."""
    found = re.match(r"!\[.*\]\(pictures/(.*)\)", line)
    return found is not None and not (ROOT / "tutorials" / "pictures" / found[1]).exists()


def picture(name_and_text: str) -> str:
    """A picture of the tutorials with its text, or nothing if it is not there."""
    name, text = name_and_text.split(" ", 1)
    there = (ROOT / "tutorials" / "pictures" / name).exists()
    return f"![{text}](pictures/{name})\n\n*{text}*" if there else ""


def cells(path: Path) -> list[tuple[str, str]]:
    """Lists the cells of a notebook as kind and source."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def notebooks() -> str:
    """All notebooks with their titles and what they do."""
    rows = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        content = cells(path)
        lines = [line for line in content[0][1].splitlines() if line.strip()]
        title, text = (
            lines[0].lstrip("# "),
            _first_sentence(" ".join(lines[1:]).replace("**Question.** ", "")),
        )
        rows.append([f"`{path.stem}`", f"**{title}.** {text}"])
    return table(["notebook", "what it does"], rows)


def tutorials() -> str:
    """All tutorials with a link to their pages and their beginning."""
    parts = []
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        title, text = cells(path)[0][1].split("\n", 1)
        text = text.split("\n#")[0].strip()
        name = title.lstrip("# ")
        parts.append(f"## [{name}](lessons/{path.stem}.md)\n\n{text}\n\nFile: `{path.name}`.")
    return "\n\n".join(parts)


def lesson(path: Path) -> str:
    """A tutorial as a page: its text and code, with what came out where it was run."""
    found = outputs.executed(path)
    waiting, parts = iter(found), []
    for kind, text in cells(path):
        code = f"```python\n{text}\n```"
        parts.append(code if kind == "code" else outputs.with_equations(text))
        if kind == "code":
            parts.append(outputs.shown(next(waiting, [])))
    title, *rest = parts[0].split("\n", 1)
    hint = f"*`massrecon lab` copies `{path.name}` to a folder of yours, to run and to change.*"
    if not found:
        hint = f"*Without figures here: `make docs ALL=1` runs it first. {hint[1:]}"
    return "\n\n".join(filter(None, [title, hint, *rest, *parts[1:]]))


def gallery() -> str:
    """Pictures of the explorers with their titles, as the browser tests left them."""
    parts = []
    for path in sorted((ROOT / "docs" / "pages" / "gallery").glob("*.png")):
        text = cells(ROOT / "notebooks" / f"{path.stem}.ipynb")[0][1].splitlines()
        title = text[0].lstrip("# ")
        parts.append(f"### {title}\n\n![{title}](gallery/{path.name})")
    return "\n\n".join(parts)


def cards() -> str:
    """All process cards that come with massrecon."""
    rows = []
    for path in sorted((ROOT / "massrecon" / "events" / "cards").glob("*.yaml")):
        found = re.search(r"^title: *\"?(.*?)\"?$", path.read_text(encoding="utf-8"), re.MULTILINE)
        rows.append([f"`{path.stem}`", found[1] if found else ""])
    return table(["card", "process"], rows)


def api() -> str:
    """The entries of the API reference: everything in ``massrecon.__all__``."""
    homes = public_names()
    return "\n\n".join(f"::: {module}.{name}" for name, module in homes.items())


def public_names() -> dict[str, str]:
    """Returns the public names with the modules that they live in, without importing massrecon."""
    tree = ast.parse((ROOT / "massrecon" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOME":
            return ast.literal_eval(node.value)
    raise KeyError("massrecon/__init__.py has no _HOME")


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?!])\s", text.replace("|", "\\|"), maxsplit=1)[0]


FILLINGS: dict[str, Callable[..., str]] = {
    one.__name__: one
    for one in (
        *(measured.plane, measured.plane_trainings, measured.plane_differences),
        *(measured.plane_152k, measured.line),
        *(measured.four_lepton, measured.four_lepton_trainings, measured.four_lepton_differences),
        *(measured_study.ceilings, measured_study.network_ceilings, measured_study.claims),
        *(measured_study.generalisation, measured_study.alarm_power),
        measured.with_background,
        measured.surrogate,
        *(measured.combination, measured.combination_speed, measured.coverage),
        *(measured.calibration, measured.joint_calibration, measured.reach),
        *(measured.deelema, measured.deelema_coverage, measured.deelema_trial),
        *(measured.deelema_starts, measured.alarms, measured.scan),
        *(measured.performance, measured.performance_machine, measured.widgets),
        *(outputs.figure, gallery),
        *(readme, readme_start, picture, notebooks, tutorials, cards, api),
    )
}
"""What a page may ask for, by name."""
