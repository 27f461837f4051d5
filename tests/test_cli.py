"""The command line: what it accepts, and errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import massrecon


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "wino"], "Unknown process 'wino' (did you mean 'wino_udd'?)"),
        (["simulate", "wino_udd", "--masses", "chi10"], "'--masses' should be NAME=VALUE"),
        (["simulate", "wino_udd", "--masses", "chi10=1", "--masses", "chi10=2"], "twice"),
        (["simulate", "wino_udd", "--masses", "chi20=600", "--masses", "chi10=500"], "closed"),
        (["simulate", "wino_udd", "--masses", "chi10=450:50"], "chi10"),
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
