"""Runs what the site shows with figures: ``python docs/prepare.py [--all]``.

Figures of the concepts are made by the package and kept in ``results/docs-figures``, executed
tutorials in ``results/tutorials``. What is there and belongs to the present sources is kept.
Tutorials that take longer than a minute are run with ``--all`` only; without their results their
pages show text and code.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import torch
from outputs import EXECUTED, FIGURES, TUTORIALS, fingerprint
from torch import Tensor

import massrecon as mr
from massrecon.provenance import write_text
from massrecon.visual.diagram import decay_diagram

QUICK = ("deelema_on_ttbar", "ten_events", "what_mt2_and_m2_know", "your_own_files")


def event() -> go.Figure:
    """Shows one event that comes with massrecon."""
    from massrecon.visual.explore.event_display import explore_event_display

    return explore_event_display(n_events=20).figure


def estimators() -> go.Figure:
    """Shows the draws of one event, with what each estimator makes of them."""
    posterior, event = _posterior(), 4  # with more than one peak
    mass = posterior.mass_index("chi20")
    draws = posterior.mass_samples()[:, event, mass]
    truth = float(posterior.true_masses()[event, mass])
    counts = torch.histc(draws, bins=40)
    figure = go.Figure(
        go.Bar(x=torch.linspace(*_ends(draws), 40).tolist(), y=counts.tolist(), name="draws",
               marker_color="#56B4E9")
    )  # fmt: skip
    looks = {"draw": ("#E69F00", "dot"), "mean": ("#009E73", "dash"),
             "median": ("#CC79A7", "dashdot"), "window": ("#D55E00", "longdash")}  # fmt: skip
    lines = {name: float(posterior.estimate(name, width=30.0)[event, mass]) for name in looks}
    for name, value in {**lines, "truth": truth}.items():
        colour, dash = looks.get(name, ("black", "solid"))
        line = {"color": colour, "dash": dash, "width": 3}
        height = [0.0, 1.1 * float(counts.max())]
        figure.add_scatter(x=[value, value], y=height, mode="lines", name=name, line=line)
    return figure.update_layout(
        xaxis_title="m(χ̃₂⁰) [GeV]", yaxis_title="draws of one event", template="simple_white"
    )


def _ends(values: Tensor) -> tuple[float, float]:
    """Returns the middles of the first and the last of 40 bins."""
    low, high = float(values.min()), float(values.max())
    half = (high - low) / 80
    return low + half, high - half


def calibration() -> go.Figure:
    """Shows how often central intervals hold the truth."""
    from massrecon.visual.explore.calibration import explore_calibration

    return explore_calibration().figure


def combination() -> go.Figure:
    """Shows how the region of the masses shrinks with the number of events."""
    from massrecon.visual.explore.ten_events import explore_ten_events

    return explore_ten_events().figure


def posterior() -> go.Figure:
    """Shows the posteriors of single events."""
    from massrecon.visual import figures

    return figures.event_posteriors(_posterior())


def _posterior() -> mr.Posterior:
    events = mr.load_events("wino_udd_600_200")[:6]
    return mr.reconstruct(mr.load_model("wino_udd"), events, n_samples=1000, seed=1)


MADE: dict[str, Callable[[], go.Figure]] = {
    one.__name__: one for one in (event, posterior, estimators, calibration, combination)
}


def make_figures() -> None:
    """Makes the figures that are not there."""
    write_text(FIGURES / "diagram.svg", decay_diagram(mr.load_card("wino_udd")))
    for name, make in MADE.items():
        own = inspect.getsource(make) + inspect.getsource(_posterior) + mr.__version__
        key = hashlib.sha256(own.encode()).hexdigest()
        path = FIGURES / f"{name}.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["of"] == key:
            continue
        print(f"figure: {name}", flush=True)
        figure = json.loads(make().to_json())
        write_text(path, json.dumps({"of": key, "figure": figure}))


def run_tutorials(names: list[str]) -> list[str]:
    """Runs the tutorials whose results are not there; returns those that failed."""
    import papermill

    failed = []
    for name in names:
        source, target = TUTORIALS / f"{name}.ipynb", EXECUTED / f"{name}.ipynb"
        if target.is_file() and fingerprint(source) in target.read_text(encoding="utf-8"):
            continue
        print(f"tutorial: {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / source.name
            try:
                papermill.execute_notebook(str(source), str(own), cwd=folder, progress_bar=False,
                                           kernel_name="python3")  # fmt: skip
            except papermill.PapermillExecutionError as error:
                print(f"{name} failed: {error.ename}: {error.evalue}", file=sys.stderr)
                failed.append(name)
                continue
            done = json.loads(own.read_text(encoding="utf-8"))
        done["metadata"]["of"] = fingerprint(source)
        write_text(target, json.dumps(done, ensure_ascii=False))
    return failed


def main() -> None:
    """Makes figures, runs tutorials."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="run the long tutorials, too")
    arguments = parser.parse_args()
    make_figures()
    every = sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
    if failed := run_tutorials(every if arguments.all else list(QUICK)):
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
