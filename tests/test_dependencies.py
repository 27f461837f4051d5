"""What massrecon depends on: every version pinned, every licence known, documented and allowed.

Known vulnerabilities need a database on the network: see `make audit` in CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
COPYLEFT = {"pythia8mc": "GPL-2.0-or-later"}
"""Programs that only an extra asks for, and that users install themselves."""

# names of before there were expressions
OLD_NAMES = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD License": "BSD",
    "BSD 3-Clause": "BSD-3-Clause",
    "GNU GPL v2 or later": "GPL-2.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def pinned() -> dict[str, str]:
    """The packages of constraints.txt by their canonical name, with their versions."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in filter(None, (line.split("#")[0].strip() for line in lines)):
        name, version = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line).groups()
        found[canonicalize_name(name)] = version
    return found


def licences(package: Distribution) -> set[str]:
    """Every licence that a package names, as SPDX identifiers; empty if it names none."""
    about = package.metadata
    if text := about.get("License-Expression") or "":
        return set(re.split(r" (?:AND|OR) ", text))
    names = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c[:7] == "License"]
    if not names or names == ["OSI Approved"]:
        names = re.split(r" (?:AND|OR) ", (about.get("License") or "").splitlines()[0])
    return {OLD_NAMES.get(name, name) for name in names}


def direct() -> dict[str, str]:
    """The packages that pyproject.toml asks users for, with the extra that needs them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, str] = {}
    for extra, requirements in asked.items():
        for text in requirements:
            if (name := canonicalize_name(Requirement(text).name)) != "massrecon":
                found.setdefault(name, extra)
    return found


def needed(names: set[str]) -> set[str]:
    """Packages and all that these need here, by canonical name."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            package = distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that nobody asked for
        found.add(name)
        extras = ["", *requirement.extras]
        for other in map(Requirement, package.requires or []):
            if other.marker is None or any(other.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(other)
    return found


def installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")


def test_everything_that_users_install_is_pinned() -> None:
    versions = pinned()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = set(direct()) | {"dask[distributed]"}
    asked |= {r for r in project["dependency-groups"]["dev"] if isinstance(r, str)}
    missing = needed(asked) - versions.keys() - {"setuptools", "pip", "triton"}
    missing = {name for name in missing if not name.startswith("nvidia-")}  # of torch for GPUs
    assert not missing


def test_pins_satisfy_what_is_asked_for() -> None:
    versions = pinned()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for text in (text for group in groups for text in group):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != "massrecon":
            assert requirement.specifier.contains(versions[name]), text


@pytest.mark.parametrize("name", sorted(pinned()))
def test_every_licence_is_allowed(name: str) -> None:
    found = licences(installed(name))
    assert found, f"{name} names no licence: look it up"
    allowed = ALLOWED | ({COPYLEFT[name]} if name in COPYLEFT else set())
    assert found <= allowed, f"{name}: {found - allowed}"


def test_copyleft_is_for_an_extra_only() -> None:
    core = {name for name, extra in direct().items() if extra == ""}
    assert {direct()[name] for name in COPYLEFT} == {"mc"}
    assert not needed(core) & COPYLEFT.keys()


def test_the_check_sees_what_it_should() -> None:
    assert licences(distribution("numpy")) <= ALLOWED
    assert "GPL-2.0-or-later" not in ALLOWED
    assert {"numpy", "pytorch-lightning", "torchmetrics"} <= needed({"lightning"})


def test_the_table_of_dependencies_is_true() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| (.*?) \| (.*?) \|", text, flags=re.MULTILINE)
    listed = {canonicalize_name(name): (extra, licence) for name, extra, licence in rows}
    assert listed.keys() == direct().keys()
    for name, (extra, licence) in listed.items():
        assert extra == (direct()[name] or "core"), name
        assert set(re.split(", ", licence)) == licences(installed(name)), name
