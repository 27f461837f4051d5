"""Settings as text: what does not fit a field is refused before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from massrecon.cli.values import values_of
from massrecon.errors import InputError
from massrecon.events.card import load_card
from massrecon.models import MODELS, create_model
from massrecon.models.settings import check_settings
from massrecon.models.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    number: int = 1
    rate: float = 0.1
    limit: float | None = None
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    shape: tuple[int, ...] = (1,)


@pytest.mark.parametrize(
    "values",
    [
        {"number": 3, "rate": 2, "limit": None, "flag": True, "kind": "b", "shape": (1, 2)},
        {"number": np.int64(3), "rate": np.float32(0.5), "limit": 2},
    ],
)
def test_values_of_the_right_type_are_taken(values: dict[str, object]) -> None:
    check_settings("setting", Settings, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number": "many"}, "'number' should be an integer, got 'many'"),
        ({"number": 1.5}, "'number' should be an integer, got 1.5"),
        ({"number": True}, "'number' should be an integer, got True"),
        ({"rate": float("nan")}, "'rate' should be a finite number, got nan"),
        ({"limit": "x"}, "'limit' should be a finite number or none, got 'x'"),
        ({"flag": 1}, "'flag' should be true or false, got 1"),
        ({"kind": 3}, "'kind' should be text, got 3"),
        ({"nubmer": 3}, r"Unknown setting 'nubmer' \(did you mean 'number'\?\): choose from flag"),
    ],
)
def test_others_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings("setting", Settings, values)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_names_its_settings(name: str) -> None:
    with pytest.raises(InputError, match=f"Unknown setting of {name} 'widht'"):
        create_model(name, load_card("wino_udd"), widht=3)


def test_a_training_refuses_what_is_no_number() -> None:
    with pytest.raises(InputError, match="'max_minutes' should be a finite number"):
        TrainingConfig(max_minutes=float("nan"))
    with pytest.raises(InputError, match="'max_steps' should be positive, got 0"):
        TrainingConfig(max_steps=0)


def test_numbers_with_an_exponent_need_no_point() -> None:
    pairs = ["rate=1e-3", "big=2E+5", "text=e-3", "list=[1, 2]"]
    assert values_of(pairs, "--set") == {"rate": 1e-3, "big": 2e5, "text": "e-3", "list": [1, 2]}
    pairs = ["one=1.5e3", "two=.5e1", "three=2.e1", "four=-1.5E-3", "text=1.5e"]
    assert [*values_of(pairs, "--set").values()] == [1500.0, 5.0, 20.0, -1.5e-3, "1.5e"]
