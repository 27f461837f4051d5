"""What "Reproduce" says: the Python, the command and papermill make the figure that is shown."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from massrecon.visual.widgets.calibration import CalibrationExplorer
from massrecon.visual.widgets.event_display import EventDisplay
from massrecon.visual.widgets.explorer import Explorer
from massrecon.visual.widgets.mass_point import MassPointExplorer
from massrecon.visual.widgets.ten_events import TenEventsExplorer
from massrecon.visual.widgets.topology import TopologyExplorer

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FEW: dict[str, Any] = {"model": "mixture", "seed": 3}
EXPLORERS: dict[str, Callable[[], Explorer]] = {
    "topology": lambda: TopologyExplorer(decay="p p > A A, (A > a B, B > b b C)", extra=1),
    "ten_events": lambda: TenEventsExplorer(**FEW, n_events=5, background=0.4, arrived=4),
    "mass_point": lambda: MassPointExplorer(**FEW, n_events=4, m_daughter=150.0),
    "event_display": lambda: EventDisplay(model="mixture", number=2, azimuth=60.0),
    "calibration": lambda: CalibrationExplorer(
        **FEW, n_samples=16, sharpen=1.4, recalibrated=True, method="temperature"
    ),
}

pytestmark = pytest.mark.slow


def drawn(figure: go.Figure) -> list[dict[str, Any]]:
    """Returns the traces of a figure as a notebook keeps them."""
    return json.loads(str(figure.to_json()))["data"]


def first_in(notebook: Path) -> list[dict[str, Any]]:
    """Returns the traces of the first figure in an executed notebook."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", ())]
    kept = (o["data"]["application/vnd.plotly.v1+json"] for o in outputs
            if "application/vnd.plotly.v1+json" in o.get("data", {}))  # fmt: skip
    return next(kept)["data"]


@pytest.mark.parametrize("name", EXPLORERS)
def test_all_recipes_make_the_figure_that_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("papermill") is None:
        pytest.skip("needs papermill")
    monkeypatch.chdir(tmp_path)
    explorer = EXPLORERS[name]()
    explorer.wait(300)
    assert explorer.failed == ""
    assert explorer.found is not None
    shown = drawn(explorer.found.figure)
    scope: dict[str, Any] = {}
    exec(explorer.code().replace("found.figure.show()", ""), scope)
    assert drawn(scope["found"].figure) == shown

    source = NOTEBOOKS / f"{explorer.notebook}.ipynb"
    (tmp_path / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    words = shlex.split(explorer.papermill())
    subprocess.run([sys.executable, "-m", *words, "--no-progress-bar"], check=True, timeout=600)
    assert first_in(Path(words[2])) == shown

    words = shlex.split(explorer.command())
    subprocess.run([sys.executable, "-m", *words], check=True, timeout=600)
    made = Path(words[-1]) / source.name
    assert first_in(made) == shown
