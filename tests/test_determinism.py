"""The same seed gives the same bits: events, weights, draws, measurements; here and elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import massrecon as mr
from massrecon.models.training import TrainingConfig


def digest(*tensors: torch.Tensor) -> str:
    """Returns a checksum of the bits of some tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def chain(events: mr.Events, seed: int = 7) -> dict[str, str]:
    """Trains on events, draws and measures; returns checksums of weights, draws and results."""
    recipe = TrainingConfig(max_steps=8, batch_size=32, rounds=2, accelerator="cpu", seed=seed)
    options = {"targets": "masses", "dim": 16, "layers": 1, "token_hidden": 16}
    model = mr.fit(
        "mass_head", events, preset="small", training=recipe, progress=False, options=options
    )
    posterior = mr.reconstruct(model, events[:20], n_samples=16, seed=seed)
    found = mr.measure(model, events[:20], seed=seed)
    return {
        "events": digest(*events.tensors().values()),
        "weights": digest(*model.state_dict().values()),
        "draws": digest(posterior.samples),
        "measurement": json.dumps(found.to_dict(), sort_keys=True),
    }


def test_training_draws_and_measurement_are_repeated_bit_for_bit(
    toy_events: Callable[..., mr.Events],
) -> None:
    events = toy_events(300, seed=61)
    first = chain(events)
    torch.manual_seed(999)  # no global state enters
    torch.rand(10)
    assert chain(events) == first
    other = chain(events, seed=8)
    assert all(other[name] != first[name] for name in ("weights", "draws", "measurement"))
    assert other["events"] == first["events"]


_ELSEWHERE = """
import json, sys
import massrecon as mr
from tests.test_determinism import chain

events = mr.simulate("wino_udd", 400, masses={"chi10": (50, 450)}, seed=11, progress=False,
                     workers=int(sys.argv[1]))
print(json.dumps(chain(events)))
"""


@pytest.mark.slow
def test_the_whole_chain_is_repeated_in_new_processes() -> None:
    pytest.importorskip("pythia8mc")
    found = []
    for workers in ("1", "2"):
        child = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, workers], cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": workers},
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
        found.append(json.loads(child.stdout.splitlines()[-1]))
    assert found[0] == found[1]
