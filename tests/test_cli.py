"""The command line: what it accepts, and errors without tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

import massrecon
from massrecon.cli import app, main
from massrecon.errors import InputError


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "massrecon", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def test_help_lists_the_commands_and_version_is_printed() -> None:
    shown = command("--help")
    assert shown.returncode == 0
    for name in ("simulate", "run", "demo"):
        assert name in shown.stdout
    assert command("--version").stdout.strip() == f"massrecon {massrecon.__version__}"


def test_help_texts_keep_their_brackets() -> None:
    """The help is printed as rich markup, in which [fb] would be a style and vanish."""
    commands, texts = [typer.main.get_command(app)], []
    for one in commands:
        commands += getattr(one, "commands", {}).values()
        texts += [one.help, *(getattr(option, "help", None) for option in one.params)]
    written = [text for text in texts if text]
    assert len(written) > 50
    assert [Text.from_markup(text).plain for text in written] == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "wino"], "Unknown process 'wino' (did you mean 'wino_udd'?)"),
        (["simulate", "wino_udd", "--masses", "lin"], "masses 'lin' (did you mean 'line'?)"),
        (
            ["simulate", "antler", "--masses", "line"],
            "the card 'antler' has no presets",
        ),
        (["simulate", "wino_udd", "--masses", "a", "--masses", "b"], "should be NAME=VALUE"),
        (["simulate", "wino_udd", "--events", "5", "--generated", "5"], "exclude each other"),
        (["simulate", "wino_udd", "--ptmiss-noise", "-3"], "'ptmiss_noise' should be >= 0 GeV"),
        (["simulate", "wino_udd", "--set", "truht=no"], "did you mean 'truth'?"),
        (["simulate", "wino_udd", "--set", "truth=["], "'--set' cannot read the value of 'truth'"),
        (["simulate", "lhe_wgammagamma", "--lhe", "nowhere.lhe"], "nowhere.lhe', from which"),
        (["simulate", "wino_udd", "--masses", "chi10=1", "--masses", "chi10=2"], "twice"),
        (["simulate", "wino_udd", "--masses", "chi20=600", "--masses", "chi10=500"], "closed"),
        (["simulate", "wino_udd", "--masses", "chi10=450:50"], "chi10"),
        (["simulate", "wino_udd", "--masses", "600,200"], "such as chi20=600"),
        (["simulate", "wino_udd", "--masses", "chi20=600,chi10=200"], "--masses for each mass"),
        (["simulate", "nowhere.yaml"], "'nowhere.yaml' cannot be read: there is no such file"),
        (["train", "flow", "nowhere", "--steps", "9", "--set", "seed=3"], "own: write --seed"),
        (["reproduce", "nowhere.json"], "There is no 'nowhere.json'"),
        (["run", "04_dream"], "Unknown notebook '04_dream'"),
        (["run", "01_simulate", "-p", "n_event=5"], "did you mean 'n_events'?"),
        (["run", "01_simulate", "-p", "n_events=few"], "should be of type int"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = command(*arguments, "--out", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_units_in_square_brackets_are_shown() -> None:
    assert "Integrated luminosity [1/fb]" in command("measure", "--help").stdout


def test_results_have_a_place_of_their_own(tmp_path: Path) -> None:
    text = (Path(massrecon.__file__).parents[1] / "notebooks" / "29_topology.ipynb").read_text()
    (tmp_path / "mine.ipynb").write_text(text)
    result = command("run", "mine.ipynb", "-p", "interactive=False", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Results are in results/mine" in result.stdout
    again = command("reproduce", "results/mine/summary.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "results" / "mine_again" / "summary.json").is_file()


def test_a_number_of_collisions_and_any_setting_may_be_given(tmp_path: Path) -> None:
    arguments = ["--generated", "5100", "--set", "contamination=0.2", "--seed", "3"]
    result = command("simulate", "antler", *arguments, "--out", str(tmp_path / "toy"))
    assert result.returncode == 0, result.stderr
    assert "selected events of 10000 generated ones" in result.stdout
    made = massrecon.load_events(tmp_path / "toy").provenance
    assert made["settings"]["contamination"] == 0.2
    assert made["seed"] == 3


@pytest.mark.parametrize("given", [["--lhe", "hard.lhe"], ["--set", "lhe=hard.lhe"], []])
def test_a_file_of_hard_collisions_is_taken_whole(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = massrecon.load_card("lhe_wgammagamma").to_dict()
    content["name"] = "mine"
    if not given:
        content["pythia"]["lhe"] = "hard.lhe"
    (tmp_path / "mine.yaml").write_text(json.dumps(content))
    asked: dict[str, Any] = {}

    def simulate(*_: Any, **arguments: Any) -> None:
        asked.update(arguments)
        raise InputError("enough")

    monkeypatch.setattr("massrecon.events.generator.simulate", simulate)
    arguments = ["simulate", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out"), *given]
    assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
    assert asked["n_events"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_do_not_wait_for_long(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the user says how."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_WAIT"))}
    monkeypatch.setattr(os, "environ", surroundings | given)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which `main` replaces
    monkeypatch.setattr("massrecon.cli.app", lambda: None)
    main()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_torch_is_not_there_before_the_command_says_how_to_wait() -> None:
    asked = "import sys, massrecon.cli; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["False"]
