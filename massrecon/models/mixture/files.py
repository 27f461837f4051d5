"""Fitted mixtures on disk, and those that come with massrecon.

A file is JSON: the process, the masses that are free or known, options, resolutions and parameters,
with how they were fitted and how well they do. The built-in ones are in ``models/mixture/fits``;
``tests/benchmarks/fit_mixtures.py`` fits such ones from a seed; those of ``wino_udd`` were fitted
on from parameters of an earlier simulation, see their ``provenance``.

Three cards have none. The fits of two did not predict what they attained: ``wino_lle`` (.37
predicted and .27 attained within 30 GeV on the line; the hard neutrinos of leptonic W decays, which
take part of ptmiss, are the suspected reason) and ``antler`` with A and B free; these were fits
without the tails of `massrecon.kinematics.mixture_outlier`. That of ``ttbar_dilepton`` with m(t)
from 165 to 182 GeV was no better than the best constant (.562 ± .013 within 5 GeV against .613).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from massrecon.errors import StoreError
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.mixture_events import MixtureOptions
from massrecon.provenance import read_json, versions, write_json

FORMAT = "massrecon-mixture-1"
_FOLDER = "fits"

Ranges = dict[str, float | tuple[float, float]]


def save_mixture(
    mixture: KinematicMixture,
    path: str | Path,
    *,
    card: str,
    masses: Mapping[str, float | tuple[float, float]],
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Saves a mixture with its parameters, whole or not at all.

    Args:
        mixture: The mixture.
        path: A file; by custom its name ends in ``.json``.
        card: Name or path of the process card, to build it again.
        masses: Interval of each free mass and value of each known one [GeV], as in `mixture_for`.
        metrics: How well it does, for whoever reads the file.
        provenance: How it was fitted: events, seeds.
    """
    content = {
        "name": Path(path).stem,
        **mixture_content(mixture, card, masses),
        "metrics": dict(metrics or {}),
        "provenance": {**(provenance or {}), "versions": versions("torch")},
    }
    write_json(path, content)


def mixture_content(
    mixture: KinematicMixture, card: str, masses: Mapping[str, float | tuple[float, float]]
) -> dict[str, Any]:
    """Describes a mixture as JSON: everything that is needed to build it again."""
    options = mixture.options
    return {
        "format": FORMAT,
        "card": card,
        "masses": {n: list(m) if isinstance(m, tuple) else m for n, m in masses.items()},
        "options": {
            "most_objects": dict(options.most_objects),
            "missing": dict(options.missing),
            "shares": options.shares,
            "trials": options.trials,
            "kept": options.kept,
            "least_weight": options.least_weight,
        },
        "parameters": {name: _rounded(p) for name, p in mixture.named_parameters()},
    }


def _rounded(values: Tensor) -> Any:
    return torch.round(values.detach().double(), decimals=6).tolist()


def read_mixture(path: str | Path) -> dict[str, Any]:
    """Reads the file of a mixture: card, masses, options, parameters, metrics and provenance.

    Raises:
        StoreError: If the file is missing, is not JSON, or is not one of a mixture.
    """
    content = read_json(path, "a mixture")
    wanted = ("card", "masses", "options", "parameters")
    if content.get("format") != FORMAT:
        raise StoreError(f"'{path}' is not a mixture: its 'format' should be '{FORMAT}'.")
    if lacking := [name for name in wanted if not isinstance(content.get(name), (dict, str))]:
        raise StoreError(f"'{path}' lacks {', '.join(lacking)}: save the mixture again.")
    return content


def masses_of(content: Mapping[str, Any]) -> Ranges:
    """Returns the intervals of free masses and the values of known ones [GeV]."""
    return {n: tuple(m) if isinstance(m, list) else float(m) for n, m in content["masses"].items()}


def options_of(content: Mapping[str, Any]) -> MixtureOptions:
    """Returns what the mixture sums over."""
    return MixtureOptions(**content["options"])


def put_parameters(mixture: KinematicMixture, content: Mapping[str, Any], path: str) -> None:
    """Gives a mixture the parameters of a file.

    Raises:
        StoreError: If they are not those of such a mixture.
    """
    parameters = dict(mixture.named_parameters())
    given = cast(dict[str, Any], content["parameters"])
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in given.items()}
    wrong = sorted(parameters.keys() ^ found.keys())
    wrong += [n for n in parameters.keys() & found.keys() if parameters[n].shape != found[n].shape]
    if wrong:
        raise StoreError(
            f"'{path}' does not fit this decay in {', '.join(wrong)}: it was fitted for another "
            "card or version; fit the mixture again."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name])


@lru_cache(maxsize=1)
def shipped_mixtures() -> dict[str, Path]:
    """Lists the fitted mixtures that come with massrecon, by name such as ``wino_udd_plane``."""
    folder = Path(str(files("massrecon.models.mixture").joinpath(_FOLDER)))
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def shipped_for(card: str, masses: Mapping[str, object] | str | None) -> dict[str, Any] | None:
    """Returns the shipped file for a card and its masses or preset, None if there is none.

    Without masses the one of the card with the most free ones is taken. Intervals need not be
    equal: the parameters describe the response, which hardly depends on the prior region.
    """
    contents = [read_mixture(path) for path in shipped_mixtures().values()]
    fitting = [content for content in contents if content["card"] == card]
    for content in sorted(fitting, key=lambda content: -len(_free(content["masses"]))):
        if masses is None or masses == content["name"].removeprefix(f"{card}_"):
            return content
        if not isinstance(masses, str) and _free(content["masses"]) == _free(masses):
            return content
    return None


def _free(masses: Mapping[str, object]) -> set[str]:
    return {name for name, value in masses.items() if isinstance(value, (list, tuple))}
