"""Nothing that comes from outside is executed: parameters, models, checkpoints, files, messages."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import massrecon as mr
from massrecon.errors import ModelError, StoreError
from massrecon.events.importers.chunk import Chunk, ReadOptions
from massrecon.events.importers.messages import pack, unpack
from massrecon.events.manifest import MANIFEST, manifest_text
from massrecon.events.objects import Objects
from massrecon.models import create_model, load_model
from massrecon.models.base import HEADER_FILE, WEIGHTS_FILE
from massrecon.models.checkpoint import CHECKPOINT_FILE
from massrecon.models.training import TrainingConfig, train
from massrecon.runs.notebooks import run_notebook
from tests.conftest import ToyEvents
from tests.test_runs import write_notebook

PACKAGE = Path(mr.__file__).parent
NASTY = [
    "it's", 'say "hi"', "two\nlines\n# and a comment", "\\", "{braces}", "${HOME}", "`id`",
    "__import__('os').system('touch evil')", "'); open('evil', 'w'); ('", "\u2028 χ̃₁⁰ \x00",
]  # fmt: skip


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_package_loads_no_pickle_and_executes_no_text() -> None:
    forbidden_modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    forbidden_calls = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{path}: {n}" for n in names if n.split(".")[0] in forbidden_modules]
        for name, call in calls(tree):
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            unsafe_torch = name == "torch.load" and keywords.get("weights_only") != "True"
            unsafe_numpy = name in ("np.load", "numpy.load") and "allow_pickle" in keywords
            shell = keywords.get("shell") == "True"
            if name in forbidden_calls or unsafe_torch or unsafe_numpy or shell:
                found.append(f"{path}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert not found


def test_the_scan_sees_what_it_should() -> None:
    tree = ast.parse("import torch\ntorch.load('x')\nyaml.load(text)")
    assert [name for name, _ in calls(tree)] == ["torch.load", "yaml.load"]


def test_malicious_weights_are_refused_and_not_run(tmp_path: Path, toy_events: ToyEvents) -> None:
    evil = tmp_path / "evil"
    model = create_model("mass_head", toy_events(30, seed=1).card, preset="small")
    model.fit_scaling(toy_events(30, seed=1))
    folder = model.save(tmp_path / "m")
    content = pickle.dumps(Evil(evil))
    (folder / WEIGHTS_FILE).write_bytes(content)
    header = json.loads((folder / HEADER_FILE).read_text())
    # with a checksum that fits
    header["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / HEADER_FILE).write_text(json.dumps(header))
    with pytest.raises(ModelError, match="is no file of weights"):
        load_model(folder)
    assert not evil.exists()


def test_malicious_checkpoint_is_refused_and_not_run(tmp_path: Path, toy_events: ToyEvents) -> None:
    evil, folder = tmp_path / "evil", tmp_path / "m.training"
    folder.mkdir()
    torch.save({"identity": Evil(evil)}, folder / CHECKPOINT_FILE)
    events = toy_events(60, seed=2)
    model = create_model("mass_head", events.card, preset="small")
    recipe = TrainingConfig(max_steps=2, batch_size=16)
    with pytest.raises(ModelError, match="is not a readable checkpoint"):
        train(model, events[:40], events[40:], recipe, checkpoint_dir=folder, progress=False)
    assert not evil.exists()


def test_parameters_of_a_notebook_are_data(tmp_path: Path) -> None:
    """Strings with quotes, newlines and code come through a real kernel as they are."""
    notebook = write_notebook(
        tmp_path,
        'out: str = "o"  # folder\nwords: list = []  # texts\none: str = ""  # a text\n',
        "import json, pathlib\n"
        'pathlib.Path(out, "summary.json").write_text(json.dumps({"words": words, "one": one}))\n',
    )
    summary = run_notebook(
        notebook, {"words": NASTY, "one": NASTY[7]}, tmp_path / "out", progress=False
    )
    assert summary == {"words": NASTY, "one": NASTY[7]}
    assert not list(tmp_path.rglob("evil"))
    assert not Path("evil").exists()


def test_messages_of_readers_come_back_the_same() -> None:
    objects = Objects(np.arange(3), np.random.default_rng(1).normal(size=(3, 4)), {"b": np.ones(3)})
    chunk = Chunk(
        2, 4, {"weight": np.array([1.0, np.nan])}, {"jet": objects, "photon": objects},
        ptmiss=np.zeros((0, 2), np.float32), defects={"χ": np.array([True, False])},
    )  # fmt: skip
    kind, again = unpack(pack(("chunk", chunk)))
    assert kind == "chunk"
    assert again.start == 2
    np.testing.assert_array_equal(again.weights["weight"], chunk.weights["weight"])
    np.testing.assert_array_equal(again.objects["photon"].p4, objects.p4)
    assert again.ptmiss.shape == (0, 2)
    assert again.ptmiss.dtype == np.float32
    assert again.defects["χ"].dtype == bool
    options = ReadOptions(btag_points=("loose", "tight"), n_max=7)
    assert unpack(pack({"options": options})) == {"options": options}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"[[]]",
        pickle.dumps(("chunk", 1)),
        *(
            len(text).to_bytes(8, "little") + text
            for text in (
                b'{"class": "Path", "fields": {"dict": []}}',
                b'{"class": "Chunk", "fields": {"dict": [["no", 1]]}}',
                b'{"array": "<f8", "shape": [9999999999]}',
                b'{"array": "O", "shape": [1]}',
                b'{"array": "<f8", "shape": [-1]}',
            )
        ),
    ],
)
def test_what_is_no_message_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(content)


def test_messages_hold_nothing_else() -> None:
    for value in ({1: 2}, {"a": Path("x")}, np.array(["a"]), np.array([object()])):
        with pytest.raises(TypeError, match="A message cannot hold"):
            pack(value)


@pytest.mark.parametrize("number", ["../other/part-00000.parquet", -1, 0.5, "0/../../other"])
def test_paths_of_a_manifest_stay_in_its_folder(
    tmp_path: Path, toy_events: ToyEvents, number: Any
) -> None:
    """The file of a part follows from its number; anything but a number is refused."""
    toy_events(20, seed=3).save(tmp_path / "own")
    path = tmp_path / "own" / MANIFEST
    content = json.loads(path.read_text())
    content["parts"][0]["number"] = number
    path.write_text(manifest_text(content))
    with pytest.raises(StoreError, match="is damaged"):
        mr.load_events(tmp_path / "own")
