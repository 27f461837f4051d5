"""What is released: wheel and sdist built, installed where nothing of this project is, and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import massrecon

ROOT = Path(__file__).resolve().parents[1]
BIN = "Scripts" if os.name == "nt" else "bin"
PYTHONS = ("3.11", "3.12", "3.13")
USE = """
import json, sys
sys.modules["numba"] = None  # the core has no compiled kernels, which take a minute once
import massrecon as mr
from massrecon.events.library import card_names
from massrecon.runs.notebooks import find_notebook

events = mr.load_events("wino_udd_600_200")[:4]
posterior = mr.reconstruct(mr.load_model("wino_udd"), events, n_samples=8, steps=4, seed=1)
cards = [mr.load_card(name).name for name in card_names()]
print(json.dumps({"home": mr.__file__, "version": mr.__version__, "cards": cards,
                  "notebook": str(find_notebook("04_classical")),
                  "draws": list(posterior.samples.shape)}))
"""


def ran(*command: str | Path, **options: Any) -> str:
    """Runs a command and returns what it printed; fails with all of it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          check=False, **options)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel and the sdist."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    ran(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=ROOT)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with this wheel, which sees the packages here but not this project."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False)
    python = home / BIN / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    ran(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    packages = next(home.rglob("site-packages"))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(here) + "\n")
    return home


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> set[str]:
    """Everything of the package, with notebooks and tutorials where the wheel has them."""
    homes = {"massrecon": "massrecon", "notebooks": "massrecon/notebooks"}
    homes["tutorials"] = "massrecon/tutorials"
    return {
        f"{there}/{path.relative_to(ROOT / here).as_posix()}"
        for here, there in homes.items()
        for path in (ROOT / here).rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
    }


def test_the_wheel_has_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    names, expected = names_of(wheel), sources()
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == expected
    suffixes = {Path(name).suffix for name in expected}
    assert suffixes >= {".py", ".yaml", ".csv", ".json", ".safetensors", ".parquet", ".ipynb"}
    assert any(name.endswith("licenses/LICENSE") for name in about)
    assert wheel.stat().st_size < 25e6


def test_the_sdist_gives_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    archive = next(built.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    for name in ("LICENSE", "CITATION.cff", "Makefile", "constraints.txt", "tests", "docs"):
        assert (unpacked / name).exists(), name
    assert not (unpacked / "results").exists()
    out = tmp_path / "again"
    ran(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=unpacked)
    assert names_of(next(out.glob("*.whl"))) == names_of(wheel)


def test_the_installed_package_works_without_this_project(clean: Path, tmp_path: Path) -> None:
    found = json.loads(ran(clean / BIN / "python", "-c", USE, cwd=tmp_path).splitlines()[-1])
    assert Path(found["home"]).is_relative_to(clean)
    assert Path(found["notebook"]).is_relative_to(clean)
    assert found["version"] == massrecon.__version__
    assert set(found["cards"]) >= {"wino_udd", "ttbar_dilepton", "antler"}
    assert found["draws"][:2] == [8, 4]


def test_the_installed_command_copies_the_notebooks(clean: Path, tmp_path: Path) -> None:
    ran(clean / BIN / "massrecon", "lab", "mine", "--copy-only", cwd=tmp_path)
    copied = {path.name for path in (tmp_path / "mine").rglob("*.ipynb")}
    ours = [ROOT / "notebooks", ROOT / "tutorials"]
    assert copied == {path.name for folder in ours for path in folder.glob("*.ipynb")}


def pip_reaches_its_index() -> bool:
    command = [sys.executable, "-m", "pip", "index", "versions", "safetensors"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_all_extras_are_there_for_every_python(python: str, wheel: Path, tmp_path: Path) -> None:
    if not pip_reaches_its_index():
        pytest.skip("the index of packages cannot be reached")
    report = tmp_path / "report.json"
    ran(
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
        "--only-binary=:all:", "--python-version", python, "--target", tmp_path / "nowhere",
        "--constraint", ROOT / "constraints.txt", "--report", report, f"{wheel}[all]",
    )  # fmt: skip
    found = {one["metadata"]["name"].lower() for one in json.loads(report.read_text())["install"]}
    assert found >= {"massrecon", "torch", "pythia8mc", "numba", "voila", "dask-jobqueue"}


@pytest.mark.slow
def test_a_newcomer_installs_and_simulates(wheel: Path, tmp_path: Path) -> None:
    if not pip_reaches_its_index():
        pytest.skip("the index of packages cannot be reached")
    venv.create(tmp_path / "new", with_pip=True)
    python = tmp_path / "new" / BIN / "python"
    pinned = ("--constraint", ROOT / "constraints.txt")
    ran(python, "-m", "pip", "install", "--quiet", *pinned, f"{wheel}[mc]")
    command = (tmp_path / "new" / BIN / "massrecon", "simulate", "wino_udd", "--events", "20")
    ran(*command, "--masses", "chi20=600", "--out", "events", "--seed", "1", cwd=tmp_path)
    said = ran(python, "-c", "import massrecon as mr; print(len(mr.load_events('events')))",
               cwd=tmp_path)  # fmt: skip
    assert said.split()[-1] == "20"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_agrees_with_the_project() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "abstract"} <= cited.keys()
    assert cited["title"] == project()["name"]
    assert cited["version"] == massrecon.__version__
    assert cited["license"] == project()["license"]
    assert cited["keywords"] == project()["keywords"]
    assert cited["authors"] == project()["authors"]


def test_the_archive_record_agrees_with_the_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    record = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    for theirs, ours in (("title", "title"), ("description", "abstract"), ("version", "version"),
                         ("license", "license"), ("keywords", "keywords"),
                         ("creators", "authors")):  # fmt: skip
        assert record[theirs] == cited[ours], theirs
    assert (record["upload_type"], record["access_right"]) == ("software", "open")
    papers = [one["value"] for ref in cited["references"] for one in ref["identifiers"]]
    assert [one["identifier"] for one in record["related_identifiers"]] == papers


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {massrecon.__version__}" in text
