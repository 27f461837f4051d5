"""The public API, frozen: a change here is a change for every user."""

from __future__ import annotations

import inspect

import pytest

import massrecon as mr

PUBLIC = {
    "Events",
    "MassMeasurement",
    "MassModel",
    "MassReconError",
    "Posterior",
    "ProcessCard",
    "efficiency",
    "export_events",
    "fit",
    "import_events",
    "load_card",
    "load_events",
    "load_model",
    "measure",
    "reconstruct",
    "simulate",
}
PARAMETERS = {
    "simulate": [
        "card",
        "n_events",
        "masses",
        "seed",
        "workers",
        "out",
        "progress",
        "settings",
        "n_generated",
        "pool",
    ],
    "import_events": [
        "path",
        "card",
        "out",
        "format",
        "jets",
        "skip_bad",
        "seed",
        "parton_level",
        "truth",
        "masses",
        "btag_points",
        "mapping",
        "n_max",
        "workers",
        "progress",
    ],
    "export_events": ["events", "path", "format"],
    "load_events": ["path", "partial"],
    "load_card": ["card"],
    "fit": [
        "model",
        "events",
        "preset",
        "max_minutes",
        "max_epochs",
        "validation",
        "training",
        "seed",
        "device",
        "processes",
        "out",
        "progress",
        "options",
    ],
    "load_model": ["folder", "device"],
    "reconstruct": ["model", "events", "n_samples", "steps", "solver", "seed", "mass_grid"],
    "measure": [
        "source",
        "events",
        "prior",
        "masses",
        "weights",
        "training_prior",
        "calibration",
        "outliers",
        "log_term",
        "background",
        "regions",
        "step",
        "n_samples",
        "seed",
    ],
    "efficiency": ["posterior", "windows", "estimators", "bins"],
}


def test_the_public_names_are_these() -> None:
    assert set(mr.__all__) == PUBLIC
    assert set(dir(mr)) == PUBLIC | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert (inspect.getdoc(getattr(mr, name)) or "").strip()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_signatures_are_frozen(name: str) -> None:
    assert list(inspect.signature(getattr(mr, name)).parameters) == PARAMETERS[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'reconstrct'"):
        mr.reconstrct  # noqa: B018  (the access itself is what is tested)
