"""``massrecon lab`` and ``massrecon app``: notebooks in JupyterLab, or one of them as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[
    Path, typer.Argument(help="Your folder of notebooks; made, or brought up to date.")
]
FOLDER = Path("massrecon-notebooks")


def lab(
    context: typer.Context,
    folder: Folder = FOLDER,
    copy_only: Annotated[
        bool, typer.Option("--copy-only", help="Copy the notebooks, do not open JupyterLab.")
    ] = False,
) -> None:
    """Open JupyterLab on notebooks and tutorials of your own; what you edited is never replaced.

    Other options go to JupyterLab, such as --no-browser.
    """
    from massrecon.runs.lab import open_lab

    _bring_up_to_date(folder)
    if not copy_only:
        open_lab(folder, context.args)


def page(
    context: typer.Context,
    folder: Folder = FOLDER,
    notebook: Annotated[
        str, typer.Option(help="Name of the notebook that is shown, such as 24_ten_events.")
    ] = "20_mass_point",
) -> None:
    """Open an explorer as a page of its own in the browser, without JupyterLab and code.

    Other options go to Voilà, such as --no-browser or --port=8900.
    """
    from massrecon.runs.lab import open_app

    _bring_up_to_date(folder)
    open_app(folder, notebook, context.args)


def _bring_up_to_date(folder: Path) -> None:
    from massrecon.runs.lab import copy_notebooks, summary_of

    typer.echo(f"Notebooks in {folder}: {summary_of(copy_notebooks(folder))}")
