"""``massrecon events``: look after folders of events."""

from __future__ import annotations

import typer

app = typer.Typer(help="Verify, describe, merge and export folders of events.")
