"""Simulated events of `regions.py` and `reach.py`: pools of signal, and backgrounds."""

from __future__ import annotations

from pathlib import Path

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference.morphing import soft_jet_card

CARD = "wino_udd"
NAMES = ("chi20", "chi10")
SOFT_PT, SOFT_SLOTS = 18.0, 14
POOLS: dict[str, tuple[int, int, dict[str, list[int]]]] = {
    "fit": (36_000, 912, {"chi20": [400, 450, 500, 550, 600, 650],
                          "chi10": [50, 150, 250, 350, 450]}),
    "fit_more": (30_000, 902, {"chi20": [350, 420, 490, 560, 630, 700],
                               "chi10": [30, 130, 230, 330, 430, 530]}),
    "test": (19_500, 901, {"chi20": [425, 525, 575, 625], "chi10": [100, 200, 300, 400]}),
    "test_more": (45_000, 921, {"chi20": [425, 525, 575, 625], "chi10": [100, 200, 300, 400]}),
}  # fmt: skip
"""Number of events, seed and masses of each pool."""
BACKGROUNDS = {
    "background_wh": (903, 40_000),
    "background_tth": (904, 40_000),
    "background_zh": (905, 20_000),
}
"""Seed and number of generated collisions of each background."""


def simulated(name: str, work: Path) -> Events:
    """Simulates a pool of signal with soft jets or a background, or takes it from the folder."""
    if (work / name / "manifest.json").is_file():
        return mr.load_events(work / name)
    if name in BACKGROUNDS:
        seed, number = BACKGROUNDS[name]
        return mr.simulate(name, seed=seed, n_generated=number, workers=1, out=work / name)
    number, seed, masses = POOLS[name]
    card = soft_jet_card(mr.load_card(CARD), SOFT_PT, SOFT_SLOTS)
    return mr.simulate(card, number, masses, seed, workers=1, out=work / name)
