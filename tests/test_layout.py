"""The house: imports run one way, and heavy packages stay in their rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "massrecon"
FLOORS = ["errors", "kinematics", "events", "models", "inference", "visual", "runs", "cli"]
GROUND = {"errors", "provenance"}
ROOMS = {
    "pythia8mc": ("events/pythia.py", "events/generator.py"),  # the latter asks if it is there
    "lightning": ("models/training.py",),
    "papermill": ("runs/",),
    "dask": ("runs/",),
    "distributed": ("runs/",),
    "ipywidgets": ("visual/widgets/",),
}
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))
EXCEPTION = re.compile(r"# (?:noqa|type: ignore|pyright: ignore)(?P<rest>.*)")
WITH_REASON = re.compile(r"(?:: [A-Z]+\d+(?:, [A-Z]+\d+)*|\[[\w-]+\])  \(?\w+.*")
"""What is excepted, two spaces, and why."""


def imported_modules(path: Path) -> list[str]:
    """All modules that a file imports, at any depth, also through `require_extra`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require_extra":
            names += [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return names


def floor(module: str) -> int:
    room = module.split(".")[1]
    return 0 if room in GROUND else FLOORS.index(room)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts in (("__init__",), ("__main__",)):  # the public API and the command, above it all
        return
    own = floor(".".join(("massrecon", *parts)))
    for module in imported_modules(path):
        if module.startswith("massrecon."):
            if module == "massrecon.__version__":
                continue
            assert floor(module) <= own, f"{path} reaches up to {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    here = path.relative_to(PACKAGE).as_posix()
    for module in imported_modules(path):
        rooms = ROOMS.get(module.split(".")[0])
        assert rooms is None or here.startswith(rooms), f"{here} imports {module}"


def test_the_rule_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from massrecon.models.base import MassModel\n")
    assert [floor(m) > floor("massrecon.kinematics") for m in imported_modules(bad)] == [True]


@pytest.mark.parametrize("module", ["massrecon", "massrecon.cli", "massrecon.events.worker"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=False)
    assert result.returncode == 0, f"{module} imports torch"


def without_reason(text: str) -> list[str]:
    """All comments that silence a checker without saying what and why."""
    found = EXCEPTION.finditer(text)
    return [match[0] for match in found if not WITH_REASON.fullmatch(match["rest"])]


def test_checkers_are_silenced_for_a_reason() -> None:
    silent = {path.name: without_reason(path.read_text(encoding="utf-8")) for path in FILES + TESTS}
    silent.pop(Path(__file__).name)
    assert {name: found for name, found in silent.items() if found} == {}


def test_a_missing_reason_is_seen() -> None:
    assert without_reason("x = 1  # noqa: E501  a table") == []
    assert without_reason("x = f()  # type: ignore[arg-type]  wrong on purpose") == []
    for line in ("x = 1  # noqa", "x = 1  # noqa: E501", "x = f()  # type: ignore[arg-type]"):
        assert without_reason(line) == [line[7:] if "f()" not in line else line[9:]]


def rooms_of_the_map() -> list[tuple[str, str]]:
    """Floors and names in the last column of the map in CONTRIBUTING."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text.split("## Map of the code")[1].split("\n## ")[0]
    found, own = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and "---" not in cells[0]:
            own = cells[0].split("`")[1].rstrip("/") if "`" in cells[0] else own
            found += [(own, name) for name in re.findall(r"`(\w+)`", cells[2])]
    return found


def test_the_map_of_the_code_is_true() -> None:
    named = rooms_of_the_map()
    assert len(named) > 50
    for own, name in named:
        assert (PACKAGE / own / f"{name}.py").is_file() or (PACKAGE / own / name).is_dir(), name
    assert {own for own, _ in named} == set(FLOORS) - {"errors", "cli"}
