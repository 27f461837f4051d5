"""Designs of scans: points, constraints, texts, errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from massrecon.errors import CardError, InputError
from massrecon.runs.scan import Design, load_design, plan_scan, points_of
from massrecon.runs.scan.constraints import Constraint
from massrecon.runs.scan.design import MOST_POINTS, parameters_of
from tests.test_runs import write_notebook

PARAMETERS = """\
out: str = "results"  # folder for the results
m2: float = 600.0  # [GeV] mass of the parent
m1: float = 100.0  # [GeV] mass of the daughter
masses: list = []  # texts
text: str = ""  # a text
seed: int = 0  # seed
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "design.yaml"
    path.write_text(text)
    return path


def design(**content: Any) -> Design:
    return Design.model_validate(content)


def test_grid_has_all_combinations_that_fulfil_the_constraints() -> None:
    found = points_of(
        design(
            axes={"m2": {"from": 400, "to": 500, "step": 50}, "m1": [100, 300, 350.5]},
            constraints=["m1 <= m2 - 126"],
        )
    )
    assert [(p["m2"], p["m1"]) for p in found] == [
        (400, 100), (450, 100), (450, 300), (500, 100), (500, 300), (500, 350.5),
    ]  # fmt: skip
    assert all(type(p["m2"]) is int for p in found)


def test_seeds_repeat_every_point() -> None:
    found = points_of(design(axes={"m1": [1, 2]}, seeds=3))
    assert [(p["m1"], p["seed"]) for p in found] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    found = points_of(design(axes={"m1": [1]}, seeds=[7, 9]))
    assert [p["seed"] for p in found] == [7, 9]


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_drawn_points_are_reproducible_and_allowed(kind: str) -> None:
    axes = {
        "m2": {"from": 400, "to": 700},
        "m1": {"from": 50, "to": 500},
        "n": {"from": 1, "to": 3, "integer": True},
        "kind": ["a", "b"],
    }
    wanted = design(design=kind, axes=axes, n_points=300, constraints=["m1 <= m2 - 126"], seed=5)
    found = points_of(wanted)
    assert len(found) == 300
    assert found == points_of(wanted)
    assert found != points_of(wanted.model_copy(update={"seed": 6}))
    assert all(p["m1"] <= p["m2"] - 126 and 400 <= p["m2"] <= 700 for p in found)
    counts = [sum(p["n"] == n for p in found) for n in (1, 2, 3)]
    assert min(counts) > 70
    assert 100 < sum(p["kind"] == "a" for p in found) < 200


def test_sobol_points_are_more_even_than_random_ones() -> None:
    """The largest gap of 256 values on an axis is at most twice the mean one."""
    axes = {"x": {"from": 0, "to": 256}, "y": {"from": 0, "to": 1}}
    values = sorted(p["x"] for p in points_of(design(design="sobol", axes=axes, n_points=256)))
    assert max(b - a for a, b in itertools.pairwise(values)) < 2.0


def test_list_is_taken_as_it_is_but_for_duplicates() -> None:
    points = [{"m1": 1, "text": "a"}, {"m1": 2, "text": "b"}, {"m1": 1, "text": "a"}]
    assert points_of(design(design="list", points=points)) == points[:2]


def test_texts_name_axes() -> None:
    wanted = design(
        axes={"a": [600], "b": [100.5]},
        parameters={"masses": ["chi20={a}", "chi10={b}"], "text": "{a}", "m2": "{a}"},
    )
    found = parameters_of(points_of(wanted)[0], wanted, {"masses": 0, "text": 0, "m2": 0})
    assert found == {"masses": ["chi20=600", "chi10=100.5"], "text": 600, "m2": 600}


@pytest.mark.parametrize(
    "text",
    ["it's", 'say "hi"\n', "{m9} stays", "__import__('os').system('x')", "{0.__class__}", "\\x {"],
)
def test_other_texts_are_left_alone(text: str) -> None:
    wanted = design(axes={"m1": [1]}, parameters={"text": text})
    assert parameters_of({"m1": 1}, wanted, {"m1": 0, "text": 0})["text"] == text


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("m1 <= m2 - 126", True),
        ("2 * m1 > m2 or not m1 == 100", False),
        ("50 < m1 < 150 and m2 / 3 != 200", False),
        ("-m1 < 0", True),
        ("kind == 'a'", True),
    ],
)
def test_constraints(text: str, holds: bool) -> None:
    assert Constraint(text).holds({"m1": 100, "m2": 600, "kind": "a"}) is holds


@pytest.mark.parametrize(
    "text",
    [
        "m1", "m1 - 3", "__import__('os')", "m1.real > 0", "m1[0] > 0", "(lambda: 1)() > 0",
        "m1 < 2 ** 9", "m1 if m2 else 0", "m1 <", "[m1] > 0", "True < m1", "f'{m1}' == '1'",
        "m1 < " + "1 + " * 500 + "1",
    ],
)  # fmt: skip
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="constraint"):
        Constraint(text)


def test_constraints_that_fail() -> None:
    with pytest.raises(InputError, match="names 'm3': choose from m1, m2"):
        Constraint("m3 > 0").holds({"m1": 1, "m2": 2})
    with pytest.raises(InputError, match="fails at"):
        Constraint("m1 / 0 > 0").holds({"m1": 1})
    with pytest.raises(InputError, match="a text is no number"):
        Constraint("'a' * m1 > 0").holds({"m1": 10**12})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {m1: {from: 5, to: 1, step: 1}}", r"design.yaml:1: .*'from' should be below 'to'"),
        ("axes: {m1: {from: 1, to: 5}}", "the axis 'm1' of a grid needs a 'step'"),
        ("axes: {m1: [1]}\nn_points: 3", "'n_points' belongs to a design 'random'"),
        ("design: sobol\naxes: {m1: {from: 1, to: 2}}", "'n_points' belongs to"),
        ("design: list", "'points' belongs to a design 'list'"),
        ("axes: {m1: []}", "m1"),
        ("axes: {m1: {from: 1, to: 5, step: 0}}", "'axes.m1.step': input should be greater than 0"),
        ("axis: {m1: [1]}", r"unknown entry \(did you mean 'axes'"),
        ("axes: {m1: [1]}\nseeds: 2\nparameters: {seed: 1}", "exclude one another"),
        ("axes: {m1: [1]}\naxes: {m1: [2]}", "axes"),
        ("[1, 2]", "a design should be a mapping"),
        ("axes: {m1: [!!python/object/apply:os.getcwd []]}", "not valid YAML"),
    ],
)
def test_wrong_designs_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_design(written(tmp_path, text))


def test_size_is_limited(tmp_path: Path) -> None:
    """Aliases of aliases would fill the memory: a file of 300 bytes can stand for 10^9 entries."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    bomb = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels])
    with pytest.raises(CardError, match="not a design: it has .* entries, copies through aliases"):
        load_design(written(tmp_path, bomb))
    with pytest.raises(CardError, match="it has 1,100,008 characters"):
        load_design(written(tmp_path, "text: '" + "x" * 1_100_000 + "'"))
    with pytest.raises(InputError, match=f"more than {MOST_POINTS:,} points"):
        axis = {"from": 0, "to": 1100, "step": 1}
        points_of(design(axes={"a": axis, "b": axis}))
    with pytest.raises(InputError, match="No point of the design fulfils"):
        points_of(design(axes={"a": [1, 2]}, constraints=["a > 2"]))
    with pytest.raises(InputError, match="The constraints let through 0 of"):
        axes = {"a": {"from": 0, "to": 1}}
        points_of(design(design="random", axes=axes, n_points=2, constraints=["a > 2"]))


def test_points_are_checked_against_the_notebook(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path, PARAMETERS, "pass")
    out = tmp_path / "scan"

    def plan(**content: Any) -> list[dict[str, Any]]:
        return [p.parameters for p in plan_scan(notebook, design(**content), out).points]

    assert plan(axes={"m2": [500]}, seeds=1) == [{"m2": 500.0, "seed": 1}]
    with pytest.raises(InputError, match=r"axis 'm3' is no parameter of the notebook \(it has out"):
        plan(axes={"m3": [1]})
    with pytest.raises(InputError, match="Parameter 'm2' should be of type float"):
        plan(axes={"m2": ["heavy"]})
    with pytest.raises(InputError, match="'out' is the folder of each point"):
        plan(axes={"m2": [500]}, parameters={"out": "x"})
    assert not out.exists()


def test_key_depends_on_all_that_decides_the_result(tmp_path: Path) -> None:
    notebook, wanted = write_notebook(tmp_path, PARAMETERS, "pass"), design(axes={"m2": [500]})
    first = plan_scan(notebook, wanted, tmp_path / "a").points[0]
    again = plan_scan(notebook, design(axes={"m2": [500.0]}), tmp_path / "b").points[0]
    assert first.key == again.key  # 500 and 500.0 are one value of a float
    other = plan_scan(notebook, design(axes={"m2": [501]}), tmp_path / "a").points[0]
    changed = plan_scan(
        write_notebook(tmp_path, PARAMETERS, "print(1)"), wanted, tmp_path / "a"
    ).points[0]
    assert len({first.key, other.key, changed.key}) == 3
