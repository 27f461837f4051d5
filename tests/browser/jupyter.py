"""Drives notebooks in a real browser: servers on this machine, pages that are watched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "only-for-tests"
PICTURES = Path(__file__).resolve().parents[2] / "results" / "browser"
_PATIENCE = 180_000  # [ms] for a kernel to start and a notebook to run, on a busy machine
_OWN = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")

FIGURES = ".js-plotly-plot"
_IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
_CONNECTED = """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel
  ?.connectionStatus === 'connected'"""
_NUMBERS = """() => JSON.stringify([...document.querySelectorAll('.js-plotly-plot')].map(
  figure => (figure._fullData || []).map(
    trace => [trace.x, trace.y, trace.z, trace.text].map(v => v && Array.from(v)))))"""
_CONTRASTS = """() => {
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('.massrecon-explorer *')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const seen = element.checkVisibility() && getComputedStyle(element).opacity > 0.9;
    if (!own || !seen || element.closest('.js-plotly-plot, option, datalist')) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.innerText.slice(0, 40)]);
  }
  return found;
}"""
"""Ratio of the brightness of every text outside figures to that of what it stands on."""


@dataclass
class Watched:
    """A page, with what it complained of and what it asked of other machines."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith(_OWN):
            self.foreign.append(request.url)

    def run_notebook(self, url: str, name: str) -> None:
        """Opens a notebook in JupyterLab and runs all of it."""
        page = self.page
        page.goto(f"{url}/lab/tree/notebooks/{name}.ipynb?reset&token={TOKEN}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=_PATIENCE)
        page.wait_for_selector(_IDLE, timeout=_PATIENCE)
        page.wait_for_function(_CONNECTED, timeout=_PATIENCE)
        page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        self.wait_for_figure()
        page.wait_for_selector(_IDLE, timeout=_PATIENCE)
        error = page.locator(".jp-RenderedText[data-mime-type*=stderr] pre, .jp-Error")
        assert error.count() == 0, error.first.inner_text()

    def end_kernels(self) -> None:
        """Ends all kernels, which would go on with what they prepare."""
        self.page.evaluate("() => window.jupyterapp?.serviceManager.sessions.shutdownAll()")

    def wait_for_figure(self) -> None:
        """Waits until a figure of an explorer is drawn."""
        self.page.wait_for_selector(f"{FIGURES} .main-svg", timeout=_PATIENCE)

    def numbers(self) -> str:
        """Returns all numbers in all figures, as text to compare."""
        return self.page.evaluate(_NUMBERS)

    def wait_for_other_numbers(self, before: str, seconds: float = 60.0) -> float:
        """Waits until figures hold other numbers, and returns how long that took [s]."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            if self.numbers() != before:
                return time.perf_counter() - started
            time.sleep(0.02)
        raise AssertionError(f"The figures still hold the same numbers after {seconds:g} s.")

    def press(self, label: str, key: str, times: int = 1) -> None:
        """Presses a key on the slider whose description contains a text."""
        row = self.page.locator(".widget-slider", has=self.page.get_by_text(label)).first
        handle = row.locator(".noUi-handle").first
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def take_theme(self, name: str) -> None:
        """Takes the ``Dark`` or ``Light`` theme of JupyterLab, for later pages, too."""
        self.page.evaluate(
            "name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            f"JupyterLab {name}",
        )
        light = str(name == "Light").lower()
        self.page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")

    def contrasts(self) -> list[tuple[float, str]]:
        """Returns all texts of an explorer outside figures, each with its contrast (WCAG)."""
        return [(ratio, text) for ratio, text in self.page.evaluate(_CONTRASTS)]

    def picture(self, name: str) -> Path:
        """Keeps a screenshot of the explorer, or of the page, under ``results/browser``."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        explorer = self.page.locator(".massrecon-explorer").first
        (explorer if explorer.count() else self.page).screenshot(path=path)
        return path

    def assert_quiet(self) -> None:
        """Asserts that nothing was complained of and nothing asked of other machines."""
        assert not self.complaints, self.complaints[:5]
        assert not self.foreign, self.foreign[:5]


@contextlib.contextmanager
def serving(command: list[str], folder: Path) -> Iterator[str]:
    """Runs a massrecon command that serves pages, and yields its address."""
    port = _free_port()
    words = [sys.executable, "-m", "massrecon", *command, "--no-browser", f"--port={port}"]
    own = folder / "jupyter"
    places = {
        f"JUPYTER{name}": str(own / name.lower())
        for name in ("_CONFIG_DIR", "_DATA_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR",
                     "LAB_WORKSPACES_DIR")
    }  # fmt: skip
    settings = own / "_config_dir" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    news = {"@jupyterlab/apputils-extension:announcements": True}
    settings.write_text(json.dumps({"disabledExtensions": news}))
    log = folder / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            words, cwd=folder, env=os.environ | places, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/?token={TOKEN}", server, log)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@contextlib.contextmanager
def watched_page(folder: Path) -> Iterator[Watched]:
    """Opens a page in a browser of its own."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch_persistent_context(
            str(folder), executable_path=CHROMIUM, headless=True, args=FLAGS,
            viewport={"width": 1400, "height": 2300},  # all of an explorer at once
        )  # fmt: skip
        try:
            yield Watched(browser.new_page())
        finally:
            browser.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            raise AssertionError(f"The server ended:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=30)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"The server does not answer:\n{log.read_text()[-3000:]}")
