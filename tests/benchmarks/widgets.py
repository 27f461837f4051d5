"""How fast explorers answer in a real browser, from a key on a slider to other numbers drawn.

::

    python tests/benchmarks/widgets.py

Prints the median and the slowest of some moves of each explorer that opens on what comes with
massrecon, and when the last of its figures has changed. Needs chromium and an idle machine.
``--record`` writes ``results/widgets.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import row

from massrecon.provenance import versions, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.browser.jupyter import TOKEN, Watched, serving, watched_page

RESULTS = Path(__file__).parent / "results" / "widgets.json"
EXPLORERS = {
    "20_mass_point": "Seed",
    "21_efficiency_map": "Window",
    "22_event_display": "turned by",
    "23_denoising": "Step",
    "24_ten_events": "Seed",
    "25_variables": "trial mass",
    "28_calibration": "Sharpened by",
}
"""A slider of each."""

_WATCH = """() => {
  const figures = () => JSON.stringify([...document.querySelectorAll('.js-plotly-plot')].map(
    (figure) => (figure._fullData || []).map(
      (trace) => [trace.x, trace.y, trace.z].map((v) => v && Array.from(v)))));
  const before = figures();
  window.answered = new Promise((resolve) => {
    document.addEventListener('keydown', () => {
      const started = performance.now();
      let first, last = 0, old = before;
      const look = () => {
        const present = figures(), now = performance.now() - started;
        if (present !== old) [first, last, old] = [first ?? now, now, present];
        if (now > 20000) resolve([first ?? now, last || now]);
        else if (first === undefined) requestAnimationFrame(look);
        else if (now - last > 700) resolve([first, last]);
        else setTimeout(look, 20);
      };
      look();
    }, { once: true, capture: true });
  });
}"""
AT_ONCE = 300.0  # [ms] that an answer may take
_SETTLE = 1.0  # [s] between moves
_WAIT = 300_000  # [ms] for what an explorer prepares beside the notebook


def moves(page: Watched, label: str, number: int) -> list[tuple[float, float]]:
    """Moves a slider to and fro, and returns when the first and the last figure changed [ms]."""
    found = []
    for k in range(number):
        page.page.evaluate(_WATCH)
        page.press(label, "ArrowRight" if k % 4 < 2 else "ArrowLeft")
        found.append(tuple(page.page.evaluate("() => window.answered")))
        time.sleep(_SETTLE)
    return found


def measured(notebook: str, label: str, url: str, folder: Path, number: int) -> dict[str, Any]:
    """Opens an explorer, lets it prepare what it wants, and moves its slider."""
    with watched_page(folder) as page:
        page.run_notebook(url, notebook)
        bar = page.page.get_by_role("button", name="Stop").first
        if bar.count():
            bar.wait_for(state="hidden", timeout=_WAIT)
        first, last = zip(*moves(page, label, number), strict=True)
        page.end_kernels()
    return {"slider": label, "median_ms": statistics.median(first), "slowest_ms": max(first),
            "all_figures_ms": statistics.median(last), "load": os.getloadavg()[0]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", default=list(EXPLORERS))
    parser.add_argument("--moves", type=int, default=12)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    found = {}
    options = [f"--IdentityProvider.token={TOKEN}", "--allow-root"]
    options += ["--LabApp.expose_app_in_browser=True"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(["lab", str(folder / "mine"), *options], folder) as url:
            for notebook in arguments.notebooks:
                own = folder / notebook
                own.mkdir()
                label = EXPLORERS[notebook]
                found[notebook] = measured(notebook, label, url, own, arguments.moves)
                one = found[notebook]
                print(f"{notebook:20s} {one['slider']:14s} median {one['median_ms']:6.0f} ms, "
                      f"slowest {one['slowest_ms']:6.0f} ms, "
                      f"all figures {one['all_figures_ms']:6.0f} ms, load {one['load']:.1f}",
                      flush=True)  # fmt: skip
                row(f"answer of {notebook} to its slider", one["median_ms"] / AT_ONCE,
                    f"{AT_ONCE:.0f} ms, the aim", unit="time on the clock",
                    note=f"slowest of {arguments.moves}: {one['slowest_ms']:.0f} ms")  # fmt: skip
    if arguments.record:
        command = "python tests/benchmarks/widgets.py --record"
        if RESULTS.is_file():  # those that were not asked for stay
            found = json.loads(RESULTS.read_text(encoding="utf-8"))["explorers"] | found
        content = {"command": command, "seed": None, "moves": arguments.moves, "explorers": found}
        write_json(RESULTS, content | {"versions": versions("plotly", "ipywidgets")})


if __name__ == "__main__":
    main()
