"""Errors name the choices and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from massrecon import errors


def test_one_family() -> None:
    for error in (errors.InputError, errors.StoreError, errors.ModelError, errors.RunError):
        assert issubclass(error, errors.MassReconError)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_an_unknown_name_lists_the_choices_with_the_nearest_first() -> None:
    near = str(errors.unknown_name("process", "wino_ud", ["antler", "wino_udd"]))
    assert near == (
        "Unknown process 'wino_ud' (did you mean 'wino_udd'?): choose from antler, wino_udd."
    )
    far = str(errors.unknown_name("process", "x", ["antler", "wino_udd"]))
    assert far == "Unknown process 'x': choose from antler, wino_udd."


def test_a_missing_extra_gives_the_install_line() -> None:
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'massrecon\[mc\]'"):
        errors.require_extra("no_such_generator", extra="mc")
    assert errors.require_extra("json", extra="mc").__name__ == "json"


def test_an_error_inside_an_installed_extra_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "half_installed.py"
    package.write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as error:
        errors.require_extra("half_installed", extra="mc")
    assert not isinstance(error.value, errors.MissingExtraError)
