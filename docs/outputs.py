"""Figures on pages: what ``prepare.py`` left, as HTML that a page draws by itself, offline.

A figure of plotly is JSON in the page; ``assets/figures.js`` draws it with the plotly.js of the
installed plotly, so that no picture is kept anywhere.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from measured import ROOT

TUTORIALS = ROOT / "tutorials"
EXECUTED = ROOT / "results" / "tutorials"
FIGURES = ROOT / "results" / "docs-figures"
_PLOTLY = "application/vnd.plotly.v1+json"
_MOST_LINES = 60


def fingerprint(path: Path) -> str:
    """Returns the checksum of the code of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def executed(path: Path) -> list[list[dict[str, Any]]]:
    """Returns the outputs of each code cell of a tutorial; none if it was not run as it is."""
    result = EXECUTED / path.name
    if not result.is_file():
        return []
    notebook = json.loads(result.read_text(encoding="utf-8"))
    if notebook["metadata"].get("of") != fingerprint(path):
        return []
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(outputs: list[dict[str, Any]]) -> str:
    """Writes the outputs of a cell as Markdown: figures, drawings and printed text."""
    parts, printed = [], ""
    for output in outputs:
        if output["output_type"] == "stream":
            printed += "".join(output["text"]) if output["name"] == "stdout" else ""
            continue
        data = output.get("data", {})
        if printed:
            parts.append(_listing(printed))
            printed = ""
        parts.append(_of_data(data))
    if printed:
        parts.append(_listing(printed))
    return "\n\n".join(filter(None, parts))


def _of_data(data: dict[str, Any]) -> str:
    """Writes the richest thing that a page can show."""
    if _PLOTLY in data:
        return figure_of(data[_PLOTLY])
    if "image/svg+xml" in data:
        return drawing("".join(data["image/svg+xml"]))
    if "image/png" in data:
        encoded = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="Output of the cell above" src="data:image/png;base64,{encoded}">'
    if any("widget" in kind for kind in data):
        return "*An explorer with sliders opens here in JupyterLab.*"
    return _listing("".join(data.get("text/plain", "")))


def drawing(svg: str) -> str:
    """Writes a drawing as HTML."""
    svg = re.sub(r"\n\s*\n", "\n", svg[svg.find("<svg") :]).strip()
    return f'<div class="drawing">\n{svg}\n</div>'


def figure_of(content: dict[str, Any]) -> str:
    """Writes a figure of plotly as HTML."""
    figure = {"data": content["data"], "layout": content.get("layout", {})}
    text = json.dumps(figure, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    caption = (figure["layout"].get("meta") or {}).get("caption", "")
    described = html.escape(caption or "Figure of the code above", quote=True)
    return (
        f'<div class="figure" role="img" aria-label="{described}">'
        f'<script type="application/json">{text}</script></div>'
    )


def figure(name_and_text: str) -> str:
    """Shows a figure of the concepts with its text; nothing where it has not been made."""
    name, text = name_and_text.split(" ", 1)
    path, drawn = FIGURES / f"{name}.json", FIGURES / f"{name}.svg"
    if drawn.is_file():
        return f"{drawing(drawn.read_text(encoding='utf-8'))}\n\n*{text}*"
    if not path.is_file():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))["figure"]
    return f"{figure_of(content)}\n\n*{text}*"


def with_equations(text: str) -> str:
    """Turns TeX between dollars into MathML, which browsers draw; as it is without latex2mathml."""
    if importlib.util.find_spec("latex2mathml") is None:
        return text
    from latex2mathml.converter import convert

    text = re.sub(
        r"\$\$(.+?)\$\$", lambda tex: convert(tex[1], display="block"), text, flags=re.DOTALL
    )
    return re.sub(r"\$([^$\n]+)\$", lambda tex: convert(tex[1]), text)


def drawing_code() -> Path | None:
    """Returns the plotly.js of the installed plotly; None where there is none."""
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "package_data" / "plotly.min.js"
    return path if path.is_file() else None


def _listing(text: str) -> str:
    """Writes printed text, shortened if it is long."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")]
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], "…"]
    return "" if not "".join(lines) else "```text\n" + "\n".join(lines) + "\n```"
