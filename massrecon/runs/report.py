"""Reports: one HTML file with text, tables and live figures, readable offline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from massrecon.provenance import write_text

_STYLE = """
body { font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; color: #1b1b1b; margin: 0 auto;
       max-width: 1080px; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.8rem; margin: .5rem 0 .2rem; } h2 { margin-top: 2.4rem; font-size: 1.3rem;
     border-bottom: 1px solid #d5d5d5; padding-bottom: .25rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; } td { border-bottom: 1px solid #eee; }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; font-size: .85rem; }
figure { margin: 1.2rem 0 2rem; } figcaption { color: #444; max-width: 60rem; }
.lead { font-size: 1.1rem; } .scroll { overflow-x: auto; }
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report.

    Attributes:
        heading: Its title, plain text.
        text: Paragraphs, plain text; empty lines separate them.
        table: Rows of cells, the first row being the header.
        listing: Preformatted text.
        figures: Figures, each with the caption in ``layout.meta["caption"]`` under it.
    """

    heading: str
    text: str = ""
    table: Sequence[Sequence[object]] = ()
    listing: str = ""
    figures: Sequence[go.Figure] = ()


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes a report as one HTML file that asks nothing of the network.

    Args:
        path: The file to write; replaced whole or not at all.
        title: Its title, plain text.
        lead: The paragraph under the title that says the result.
        sections: Its parts, in order.

    Returns:
        The path.
    """
    javascript_is_in = False
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
    for section in sections:
        body.append(f"<h2>{html.escape(section.heading)}</h2>")
        body += [f"<p>{html.escape(p)}</p>" for p in section.text.split("\n\n") if p.strip()]
        body += [_table(section.table)] if section.table else []
        body += [f"<pre>{html.escape(section.listing)}</pre>"] if section.listing else []
        for figure in section.figures:
            body.append(_figure(figure, with_javascript=not javascript_is_in))
            javascript_is_in = True
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )
    write_text(path, page)
    return Path(path)


def _table(rows: Sequence[Sequence[object]]) -> str:
    header, *rest = rows
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rest]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _figure(figure: go.Figure, with_javascript: bool) -> str:
    # plotly.js is 5 MB: it goes in once, with the first figure
    drawing = figure.to_html(
        full_html=False, include_plotlyjs=with_javascript, config={"displaylogo": False}
    )
    caption = html.escape((figure.layout.meta or {}).get("caption", ""))
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"
