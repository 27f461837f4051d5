"""The draws of one event from noise to masses and momenta, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.trajectory import Trajectory, trajectory
from massrecon.visual.denoising import denoising_figure, denoising_strip
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import SAMPLE, load_source, stored_events
from massrecon.visual.template import plain, target_label

LAST = -1
"""Step that stands for the end of the way, whatever its number."""

_WAYS: dict[tuple[Any, ...], tuple[Trajectory, Tensor | None]] = {}
_KEPT = 32
_STATES = 61  # levels that are kept of longer ways


def explore_denoising(
    model: str = SAMPLE,
    event: int = 0,
    step: int = LAST,
    across: str = "",
    up: str = "",
    n_samples: int = 200,
    steps: int = 40,
    solver: str = "",
    events: str = "wino_udd_600_200",
    seed: int = 1,
) -> Exploration:
    """Shows where the draws of one event are at one level of noise.

    Of `cascade`, the model that comes with massrecon, the masses are drawn directly and the momenta
    are denoised; of `barman2025`, `diffusion` and `flow_matching`, all targets.

    Args:
        model: Name of a model, or folder of a trained one.
        event: Number of the event, from 0.
        step: Number of the level of noise; 0 is pure noise, -1 the end.
        across: Target along the horizontal axis, such as ``chi20_px``; empty for a choice.
        up: Target along the vertical axis, likewise.
        n_samples: Number of draws.
        steps: Network evaluations for a draw; 0 for the model's own default.
        solver: Sampler, such as ``heun``; empty for the model's own default.
        events: Stored events, by name or folder.
        seed: Seed of the noise.

    Raises:
        InputError: If an argument is out of range.
        ModelError: If the family does not denoise.
    """
    way, truth = way_of(model, event, n_samples, steps, solver, events, seed)
    source = load_source(model)
    assert not isinstance(source, KinematicMixture)
    chosen = _pair(way, across, up)
    labels = tuple(f"{target_label(source.card, name)} [GeV]" for name in chosen)
    at = len(way) - 1 if step == LAST else step
    figure = denoising_figure(way, chosen, (labels[0], labels[1]), at, truth=truth)
    data = _numbers(way, chosen, at, truth) | {"model": model, "event": event}
    strip = _strip(way, chosen, (labels[0], labels[1]), truth)
    names = [plain(label.replace("<i>", "").replace("</i>", "")) for label in labels]
    return Exploration(
        figure=figure,
        data=data,
        reading=_reading(data, names, source.name, way),
        panels={"From noise to the draws": strip},
    )


def way_of(
    model: str, event: int, n_samples: int, steps: int, solver: str, events: str, seed: int
) -> tuple[Trajectory, Tensor | None]:
    """Returns the way of the draws of one event, and its true targets ``(R,)`` where known.

    Both are kept. Of long ways every so many levels are.

    Raises:
        InputError: If there is no such event.
        ModelError: If the family does not denoise.
    """
    source, sample = load_source(model), stored_events(events)
    if isinstance(source, KinematicMixture):
        raise InputError("'model' should be a trained model: the kinematic mixture has no noise.")
    if not 0 <= event < len(sample):
        raise InputError(f"'event' should be from 0 to {len(sample) - 1}, got {event}.")
    if n_samples < 2:
        raise InputError(f"'n_samples' should be at least 2, got {n_samples}.")
    key = (id(source), event, n_samples, steps, solver, events, seed)
    if key not in _WAYS:
        if len(_WAYS) >= _KEPT:
            _WAYS.pop(next(iter(_WAYS)))
        one = sample[event : event + 1]
        way = trajectory(source, one, n_samples, steps or None, solver or None, seed)
        truth = source.true_targets(one)
        _WAYS[key] = _thinned(way), None if truth is None else truth[0].double().cpu()
    return _WAYS[key]


@lru_cache(maxsize=8)
def _strip(
    way: Trajectory, pair: tuple[str, str], labels: tuple[str, str], truth: Tensor | None
) -> go.Figure:
    """Draws the whole way; kept, since it is the same at all steps."""
    return denoising_strip(way, pair, labels, truth=truth)


def _thinned(way: Trajectory) -> Trajectory:
    if len(way) <= _STATES:
        return way
    rows = torch.linspace(0, len(way) - 1, _STATES).round().long()
    return Trajectory(
        names=way.names,
        carried=way.carried,
        signal=way.signal[rows],
        spread=way.spread[rows],
        states=way.states[rows],
        predicted=way.predicted[rows],
    )


def _pair(way: Trajectory, across: str, up: str) -> tuple[str, str]:
    """Chooses the targets to show: the masses where they are denoised, else two momenta."""
    for name in filter(None, (across, up)):
        if name not in way.names:
            raise unknown_name("target", name, way.names)
    moving = [name for name, moves in zip(way.names, way.carried.tolist(), strict=True) if moves]
    masses = [name for name in moving if name.endswith("_m")]
    chosen: Sequence[str] = masses[1::-1] if len(masses) > 1 else moving[:2]
    return across or chosen[0], up or chosen[-1]


def _numbers(
    way: Trajectory, pair: tuple[str, str], step: int, truth: Tensor | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step": step,
        "last_step": len(way) - 1,
        "signal": way.signal.tolist(),
        "noise": way.spread.tolist(),
        "denoised": [n for n, moves in zip(way.names, way.carried.tolist(), strict=True) if moves],
        "targets": {},
    }
    for name in pair:
        values = way.states[:, :, 0, way.names.index(name)]
        found["targets"][name] = {
            "mean_GeV": values.mean(1).tolist(),
            "spread_GeV": values.std(1).tolist(),
            "truth_GeV": None if truth is None else float(truth[way.names.index(name)]),
        }
    return found


def _reading(data: dict[str, Any], names: Sequence[str], family: str, way: Trajectory) -> str:
    step = data["step"]
    parts = [f"Event {data['event']}, step {step} of {data['last_step']}."]
    for label, target in zip(names, data["targets"].values(), strict=True):
        name = label.removesuffix(" [GeV]")
        true = "" if target["truth_GeV"] is None else f", truth {target['truth_GeV']:.0f}"
        parts.append(
            f"{name}: {target['mean_GeV'][step]:.0f} ± {target['spread_GeV'][step]:.0f} GeV "
            f"(at the end {target['mean_GeV'][-1]:.0f} ± {target['spread_GeV'][-1]:.0f}{true})."
        )
    parts = [part.replace("-", "−") for part in parts]
    if not bool(way.carried.all()):
        parts.append(f"'{family}' draws the masses first, directly; its momenta are denoised.")
    return " ".join(parts)
