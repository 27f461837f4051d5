"""``massrecon cards``: list, show and check process cards."""

from __future__ import annotations

import typer

app = typer.Typer(help="List, show and check process cards.", no_args_is_help=False)
