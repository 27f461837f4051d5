"""The slowest stages of ``make demo`` against what they cannot do without.

::

    OMP_NUM_THREADS=1 python tests/benchmarks/demo.py

Drawing the posteriors of both networks, in the size and with the settings of the demonstration, is
compared with the matrix products of the very same draws. What the simulation is compared with is in
``simulate.py``; the two trainings take the minutes that they are given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rows import in_turns, ratio_of, row
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import massrecon as mr
from massrecon.events.card import load_card
from massrecon.events.container import Events
from massrecon.models import create_model
from massrecon.models.base import MassModel
from massrecon.runs.demo import DemoPlan
from tests.conftest import _toy_wino_udd

PLAN = DemoPlan()
N_EVENTS = 256
AT_ONCE = 2048
WIDTHS = {"cascade": 128, "barman2025": 256}
"""Width of the layers that take most of the time, in the small size."""


def ready(family: str, events: Events) -> MassModel:
    """Makes a network of the demonstration; how well it is trained does not matter here."""
    torch.manual_seed(0)
    model = create_model(family, events.card, preset=PLAN.preset)
    model.fit_scaling(events)
    return model.eval()


def report(family: str, events: Events) -> None:
    """Hands over the time of drawing against that of its matrix products."""
    model = ready(family, events)
    width = WIDTHS[family]
    left, right = torch.randn(AT_ONCE, width), torch.randn(width, width)

    def draw() -> object:
        return mr.reconstruct(model, events, PLAN.n_samples, steps=PLAN.steps, seed=1)

    def large() -> object:
        return model.sample(events, PLAN.n_samples, steps=PLAN.steps, seed=1, batch_size=8192)

    with FlopCounterMode(display=False) as counter:
        draw()
    rounds = 64
    scale = counter.get_total_flops() / (rounds * 2 * AT_ONCE * width**2)
    times, before, products = in_turns(
        draw, large, lambda: [left @ right for _ in range(rounds)], repeats=3
    )
    what = f"posteriors of the demonstration, {family}"
    ratio, spread = ratio_of(times, [scale * one for one in products])
    row(what, ratio, "its matrix products alone", spread=spread)
    ratio, spread = ratio_of(times, before)
    row(what, ratio, "the same, 8,192 draws at a time instead of 2,048", spread=spread)


def main() -> None:
    """Measures both networks."""
    events = _toy_wino_udd(load_card(PLAN.process), N_EVENTS, 1, (50.0, 450.0))
    for family in (PLAN.model, PLAN.published):
        report(family, events)


if __name__ == "__main__":
    main()
