"""The DeeLeMa playground: the way of the masses, and starting and stopping it."""

from __future__ import annotations

from typing import Any

import pytest

from massrecon.errors import InputError
from massrecon.visual.explore.deelema_live import explore_deelema_live
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.widgets.deelema_live import DeeLeMaLive

SMALL: dict[str, Any] = {"n_events": 600, "epochs": 2, "anchored": False}


def test_before_the_first_epoch_the_start_is_shown() -> None:
    found = explore_deelema_live(train=False, start_parent=1500.0)
    assert found.data["masses_GeV"] == {"A": 1500.0, "B": 1000.0}
    assert found.data["epochs"] == [{"epoch": 0, "loss": None, "B": 1000.0, "A": 1500.0}]
    assert not found.data["finished"]
    assert "Before the first epoch" in found.reading
    low = explore_deelema_live(train=False, start_parent=500.0, start_daughter=600.0)
    assert low.data["masses_GeV"]["A"] > low.data["masses_GeV"]["B"]  # what decays is heavier


def test_the_masses_move_and_every_epoch_is_shown() -> None:
    seen: list[Exploration] = []
    told: list[tuple[float, str]] = []
    found = explore_deelema_live(
        **SMALL, tell=lambda share, stage: told.append((share, stage)), show=seen.append
    )
    assert [len(one.data["epochs"]) for one in seen] == [2, 3]
    assert told[-1] == (1.0, "epoch 2 of 2")
    assert found.data["finished"]
    lines: Any = found.figure.data
    assert list(lines[1].x) == [0, 1, 2]
    assert lines[1].y[0] == 1300.0 != lines[1].y[2]
    assert list(lines[-1].y) == [found.data["masses_GeV"][n] for n in ("B", "A")]
    again = explore_deelema_live(**SMALL)
    assert again.data["masses_GeV"] == found.data["masses_GeV"]
    assert list(found.panels) == ["Masses"]


def test_errors_name_the_argument() -> None:
    with pytest.raises(InputError, match="Unknown test run 'D'"):
        explore_deelema_live(test="D")
    with pytest.raises(InputError, match=r"'contamination' should be in \[0, 0.5\], got 2"):
        explore_deelema_live(contamination=2.0)
    with pytest.raises(InputError, match="'n_events' should be at least 500 and 'epochs' 1"):
        explore_deelema_live(n_events=3)


def test_start_stop_and_change() -> None:
    playground = DeeLeMaLive(**{**SMALL, "epochs": 40})
    shown: list[int] = []
    show = playground.show_result

    def count(found: Exploration) -> None:
        show(found)
        shown.append(len(found.data["epochs"]))
        if len(shown) == 2:
            playground.stop()

    playground.show_result = count
    playground.train()
    playground.wait(60)
    assert not playground.working
    assert shown == [2, 3]
    assert "Stopped" in playground._status.value
    assert playground.found is not None
    assert not playground.found.data["finished"]
    playground.show_result = show
    playground.epochs = 1
    assert playground.found.data["epochs"][-1]["epoch"] == 0
    playground.train()
    playground.wait(60)
    assert playground.failed == ""
    assert playground.found.data["finished"]
    playground.test = "C"
    assert playground.found.data["masses_GeV"] == {"t": 250.0, "W": 120.0}


@pytest.mark.slow
def test_with_the_anchor_the_result_does_not_depend_on_the_start() -> None:
    for start in (800.0, 1600.0):
        found = explore_deelema_live(start_parent=start, start_daughter=0.8 * start, epochs=4)
        assert found.data["masses_GeV"]["A"] == pytest.approx(1000.0, rel=0.005)
        assert found.data["masses_GeV"]["B"] == pytest.approx(800.0, rel=0.005)


def test_an_unknown_test_run_is_named() -> None:
    playground = DeeLeMaLive(**SMALL)
    playground.test = "D"
    assert "Unknown test run 'D'" in playground.failed
    playground.test = "C"
    assert playground.failed == ""
    assert playground.start_parent == 250.0
