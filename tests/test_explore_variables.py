"""The explorer of MT2 and M2: the minimum of the contour, endpoints, and what answers at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from massrecon.errors import InputError, ShapeError
from massrecon.visual.explore.variables import explore_variables, pending
from massrecon.visual.splitting import Splitting, splitting_contour
from massrecon.visual.widgets.variables import VariablesExplorer

SMALL: dict[str, Any] = {"n_events": 200, "seed": 4}


def test_the_contour_has_its_minimum_at_mt2() -> None:
    for event in range(4):
        found = explore_variables(event=event, fit=False, **SMALL)
        surface: Any = found.figure.data[0]
        lowest = np.asarray(surface.z).min()
        x, y = found.data["momenta_of_side_a_GeV"]["MT2"]
        assert lowest >= found.data["MT2_GeV"] - 1e-3  # no splitting is below the minimum
        assert lowest < found.data["MT2_GeV"] * 1.02
        row, column = np.unravel_index(np.asarray(surface.z).argmin(), np.asarray(surface.z).shape)
        step = surface.x[1] - surface.x[0]
        if found.data["balanced"]:
            assert abs(surface.x[column] - x) < 3 * step
            assert abs(surface.y[row] - y) < 3 * step
        star: Any = found.figure.data[2]
        assert (star.x[0], star.y[0]) == (x, y)


def test_at_the_true_trial_mass_nothing_is_beyond_the_parent() -> None:
    found = explore_variables(**SMALL)
    assert found.data["trial_mass_GeV"] == pytest.approx(700.0)
    assert found.data["MT2_GeV"] <= found.data["M2CC_GeV"] + 1e-6 <= 1000.0 + 1e-3
    for fit in found.data["endpoints"].values():
        assert fit["value_GeV"] == pytest.approx(1000.0, abs=10.0)
    lower = explore_variables(m_trial=400.0, fit=False, **SMALL)
    assert lower.data["MT2_GeV"] < found.data["MT2_GeV"]
    assert lower.data["endpoints"] == {"MT2": None, "M2CC": None}


def test_errors_name_the_argument() -> None:
    with pytest.raises(InputError, match="Unknown subsystem 'c'"):
        explore_variables(subsystem="c")
    with pytest.raises(InputError, match="Unknown level 'truth'"):
        explore_variables(level="truth")
    with pytest.raises(InputError, match="'n_events' should be at least 100, got 5"):
        explore_variables(n_events=5)
    with pytest.raises(InputError, match="NAME=VALUE such as A=1000, got 'A'"):
        explore_variables(masses=["A"])
    with pytest.raises(InputError, match="no event 900: choose 0 to 199"):
        explore_variables(event=900, **SMALL)
    bad = Splitting(
        qx=np.zeros(3), qy=np.zeros(2), side_a=np.zeros((3, 2)), side_b=np.zeros((3, 2))
    )
    with pytest.raises(ShapeError, match=r"masses of shape \(2, 3\)"):
        splitting_contour(bad, {})


def test_sliders_answer_at_once_and_fits_follow() -> None:
    explorer = VariablesExplorer(**SMALL)
    explorer.wait()
    assert explorer.found is not None
    assert explorer.found.data["endpoints"]["MT2"] is not None
    explorer.m_trial = 650.0
    assert explorer.found.data["trial_mass_GeV"] == 650.0
    explorer.wait()
    assert explorer.failed == ""
    assert explorer.found.data["endpoints"]["M2CC"] is not None
    assert explorer.made_with == explorer.arguments()
    assert pending(**explorer.arguments()) == set()
    assert explorer._event.max == 199
    explorer.event = 7
    assert explorer.found.data["event"] == 7
    explorer.subsystem = "b"
    assert explorer.m_trial == pytest.approx(700.0)  # from -1, the true one
    assert explorer.event == 0
    explorer.wait()
    assert explorer.found.data["true_parent_mass_GeV"] == pytest.approx(800.0)
    explorer.masses = ["A"]
    assert "NAME=VALUE such as A=1000, got 'A'" in explorer.failed
    assert "made with masses = []" in explorer._status.value


@pytest.mark.slow
def test_the_kink_is_at_the_true_mass() -> None:
    found = explore_variables(n_events=1500, scan=True)
    kink = found.data["kinks"]["M2CC"]
    assert abs(kink["trial_mass_GeV"] - 700.0) < 4 * kink["error_GeV"]
    assert list(found.panels) == ["Endpoints", "Kink"]


def test_a_trial_mass_beyond_the_parent_mass_is_kept() -> None:
    explorer = VariablesExplorer(**SMALL, m_trial=1200.0)
    explorer.wait()
    assert explorer.failed == ""
    assert explorer.m_trial == explorer.made_with["m_trial"] == 1200.0
    assert explorer._trial.max == 1200.0
