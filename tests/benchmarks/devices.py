"""What a device makes of training and drawing.

::

    python tests/benchmarks/devices.py --device cuda

Against the same in plain float32 on the same device: bfloat16, TF32, networks compiled by
`torch.compile`, and recorded as CUDA graphs, each where the device has it; and training against its
matrix products alone. MT2 and M2CC in torch are compared with the `mt2` package on the processor.
On ``cpu`` times are processor time; on a GPU they are on the clock, so it should have nothing else
to do. Without such a device it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from rows import in_turns, ratio_of, row
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from massrecon.errors import InputError
from massrecon.events.card import load_card
from massrecon.events.container import Events
from massrecon.models import create_model
from massrecon.models.base import MassModel, Prepared
from massrecon.models.devices import chosen_device, compiled, matrix_products, use_bf16
from tests.conftest import _toy_wino_udd

FAMILIES = {"flow_matching": "small", "cascade": "small", "barman2025": "full"}
WIDTH = 128  # of the small networks
Ways = dict[str, Callable[[MassModel], AbstractContextManager[object]]]


def ways(device: str) -> Ways:
    """Lists what a device can do beyond float32, each as a block around a step."""
    found: Ways = {}
    if device == "cuda":
        found["TF32"] = lambda _: matrix_products("tf32", device)
    if use_bf16("auto", device):
        found["bfloat16"] = lambda _: torch.autocast(device, torch.bfloat16)
    if device == "cuda" or shutil.which("c++"):
        found["torch.compile"] = lambda model: compiled(model, "kernels")
    if device == "cuda":
        found["CUDA graphs"] = lambda model: compiled(model, "graphs")
    return found


def prepared(model: MassModel, events: Events, n: int) -> Prepared:
    """Prepares n events, repeated as often as needed, on the device of the model."""
    batch = model.prepare(events)
    times = -(-n // len(events))
    return {
        name: t.repeat(times, *[1] * (t.ndim - 1))[:n].to(model.device) for name, t in batch.items()
    }


def step_of(model: MassModel, batch: Prepared) -> Callable[[], object]:
    """Returns one forward, backward and optimiser step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    generator = torch.Generator(model.device).manual_seed(1)

    def step() -> None:
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        model.loss_prepared(batch, generator).backward()
        optimizer.step()

    return step


def report_training(family: str, events: Events, device: str, size: int, repeats: int) -> None:
    """Hands over a step against its matrix products, and every way of the device against it."""
    torch.manual_seed(0)
    model = create_model(family, events.card, preset=FAMILIES[family])
    model.fit_scaling(events)
    model.to(device).train()
    step = step_of(model, prepared(model, events, size))
    left, right = (torch.randn(rows, WIDTH, device=device) for rows in (14 * size, WIDTH))
    with FlopCounterMode(display=False) as counter:
        step()
    scale = counter.get_total_flops() / (2 * 14 * size * WIDTH**2)
    times, products = in_turns(step, lambda: left @ right, repeats=repeats, device=device)
    what = f"training step of {family}, {FAMILIES[family]}, {size} events"
    ratio, spread = ratio_of(times, [scale * one for one in products])
    unit = "processor time" if device == "cpu" else "time on the clock"
    row(what, ratio, "its matrix products alone", spread=spread, unit=unit)
    for name, block in ways(device).items():
        with contextlib.ExitStack() as stack:
            stack.enter_context(block(model))
            (faster,) = in_turns(step, repeats=repeats, device=device)
        (plain,) = in_turns(step, repeats=repeats, device=device)
        ratio, spread = ratio_of(faster, [*times, *plain])
        row(f"{what}: {name}", ratio, "plain float32", spread=spread, unit=unit)


def report_draws(family: str, events: Events, device: str, repeats: int) -> None:
    """Hands over draws in every way that needs no gradient, against plain float32."""
    model = create_model(family, events.card, preset=FAMILIES[family])
    model.fit_scaling(events)
    model.to(device).eval()
    some, unit = events[:64], "processor time" if device == "cpu" else "time on the clock"

    def draw() -> Tensor:
        return model.sample(some, 64, steps=20, seed=1, batch_size=2048)

    for name, block in ways(device).items():
        if name == "CUDA graphs":  # a sampler keeps results that the next call would overwrite
            continue
        with block(model):
            (faster,) = in_turns(draw, repeats=repeats, device=device)
        (plain,) = in_turns(draw, repeats=repeats, device=device)
        ratio, spread = ratio_of(faster, plain)
        row(f"draws of {family}: {name}", ratio, "plain float32", spread=spread, unit=unit)


def report_kinematics(device: str, n: int) -> None:
    """Hands over MT2 and M2CC on a device against the `mt2` package on the processor."""
    from kinematics import SAMPLES, events, peer

    from massrecon.kinematics.constrained import m2_cc
    from massrecon.kinematics.transverse import mt2

    given, mu = events("toy", n), SAMPLES["toy"][2]
    moved = [t.to(device) for t in given]
    pair = moved[0] + moved[1], moved[2] + moved[3]
    there = peer(given[0] + given[1], given[2] + given[3], given[4], mu)
    (theirs,) = in_turns(there, repeats=3)
    for name, work in (
        ("MT2", lambda: mt2(*pair, moved[4], mu, backend="torch")),
        ("M2CC", lambda: m2_cc(*moved, mu, backend="torch")),
    ):
        (times,) = in_turns(work, repeats=3, device=device)
        ratio, spread = ratio_of(times, theirs)
        row(f"{name} of {n:,} toys on {device}", ratio, "MT2 of the mt2 package on the processor",
            spread=spread, unit="time on the clock")  # fmt: skip


def main() -> None:
    """Measures a device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--events", type=int, default=0, help="events a step; 0 for 256 or 2,048")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("families", nargs="*", help="all; on cpu, where compiling is slow, one")
    arguments = parser.parse_args()
    try:
        device = chosen_device(arguments.device)
    except InputError as missing:
        print(missing)
        return
    warnings.simplefilter("ignore")
    size = arguments.events or (256 if device == "cpu" else 2048)
    events = _toy_wino_udd(load_card("wino_udd"), 512, 1, (50.0, 450.0))
    for family in arguments.families or list(FAMILIES)[: 1 if device == "cpu" else None]:
        report_training(family, events, device, size, arguments.repeats)
    if device != "cpu":
        report_draws("flow_matching", events, device, arguments.repeats)
        report_kinematics(device, 100_000)


if __name__ == "__main__":
    main()
