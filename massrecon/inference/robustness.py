r"""How far can events differ from the training before the masses are wrong, and is it noticed?

A model is judged twice, on events like those of its training and on events that differ in one
respect: another detector, another generator, other masses. Both samples have their true masses at
the same points, so that the fluctuation of which points were drawn cancels in the difference: the
errors come from drawing the points again (bootstrap), for both samples the same ones.

Whether the difference is noticed is asked of `massrecon.inference.novelty`, as a measurement asks
it: N events are drawn from events at one mass point, their masses are measured together, and the
observables are compared with the training sample at the measured masses. The power is the share of
such experiments with a p-value below that of a given share of experiments on undisturbed events:

    nominal = alarms(likelihoods(model, events), reference, events, 10)
    found = alarms(likelihoods(model, disturbed), reference, disturbed, 10)
    power, error = alarm_power(nominal, found, rate=0.05)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference import estimators as est
from massrecon.inference.combination import OUTLIERS
from massrecon.inference.diagnostics import predicted_and_attained
from massrecon.inference.gridposterior import GridPosterior
from massrecon.inference.likelihood import MassLikelihood, mass_likelihood
from massrecon.inference.novelty import Reference, compared
from massrecon.inference.posterior import Posterior
from massrecon.inference.pseudo import experiments, totals
from massrecon.inference.resolution_curve import one_mass_point
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.base import MassModel

WINDOW, LEVEL = 30.0, 0.68
"""Half-width of the window [GeV] and level of the interval by which single events are judged."""

PARTS = 8
"""Parts of a pool whose spread gives the errors of experiments."""

_BOOTSTRAPS = 1000
_FEWEST_POINTS = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class SingleEvents:
    """What came out of single events.

    Attributes:
        values: By quantity the value of each event and mass, shape ``(N, M)``: ``window`` and
            ``median``, whether the estimate is within 30 GeV; ``predicted``, the probability that
            the posterior gives its window; ``covered``, whether the 68 % interval holds the truth;
            ``bias``, mean of the posterior less truth [GeV].
        masses: True masses [GeV], shape ``(N, M)``.
        names: Names of the masses.
    """

    values: Mapping[str, Tensor]
    masses: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.masses)


def single_events(posterior: Posterior) -> SingleEvents:
    """Judges every event of a posterior with truth by itself.

    Raises:
        InputError: If there is no truth, or fewer than four draws for each event.
    """
    draws, truth = posterior.mass_samples(), posterior.true_masses().double()
    if len(draws) < 4:
        raise InputError(f"Judging needs at least four draws for each event, got {len(draws)}.")
    low, high = est.central_interval(draws, LEVEL).unbind(-1)
    values = {
        "window": (est.window(draws, WINDOW) - truth).abs() < WINDOW,
        "median": (est.median(draws) - truth).abs() < WINDOW,
        "predicted": predicted_and_attained(draws, truth, WINDOW)[0],
        "covered": (truth >= low) & (truth <= high),
        "bias": est.mean(draws) - truth,
    }
    return SingleEvents(
        values={name: v.double() for name, v in values.items()},
        masses=truth,
        names=posterior.mass_names,
    )


def mean_values(found: SingleEvents, seed: int = 0) -> dict[str, Tensor]:
    """Averages over events, with bootstrap errors over mass points, each ``(M, 2)``.

    Raises:
        InputError: If the events have fewer than ten mass points.
    """
    (means,) = _bootstrapped([found], seed)
    return {name: _with_error(m[0], m[1:].std(0)) for name, m in means.items()}


def change(found: SingleEvents, nominal: SingleEvents, seed: int = 0) -> dict[str, Tensor]:
    """Computes the change of each mean against undisturbed events, with errors, each ``(M, 2)``.

    Raises:
        InputError: If the samples share fewer than ten mass points.
    """
    one, other = _bootstrapped([found, nominal], seed)
    apart = {name: one[name] - other[name] for name in one}
    return {name: _with_error(m[0], m[1:].std(0)) for name, m in apart.items()}


def _with_error(value: Tensor, error: Tensor) -> Tensor:
    return torch.stack([value, error], dim=-1)


def _bootstrapped(samples: list[SingleEvents], seed: int) -> list[dict[str, Tensor]]:
    """Averages each sample over all points that they share, and over points drawn again.

    Returns:
        For each sample and quantity means of shape ``(1 + B, M)``, those of all points first.
    """
    points, position = torch.unique(
        torch.cat([s.masses for s in samples]), dim=0, return_inverse=True
    )
    groups = position.split([len(s) for s in samples])
    counts = torch.stack([torch.bincount(g, minlength=len(points)) for g in groups])
    shared = (counts > 0).all(0)
    n_points = int(shared.sum())
    if n_points < _FEWEST_POINTS:
        raise InputError(
            f"Errors need at least {_FEWEST_POINTS} common points of the true masses, got "
            f"{n_points}: simulate ranges of masses, with the same seed."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_points, (_BOOTSTRAPS, n_points), generator=generator)
    share = torch.ones(1 + _BOOTSTRAPS, n_points, dtype=torch.float64)
    share[1:] = torch.stack([torch.bincount(row, minlength=n_points) for row in drawn])
    found = []
    for sample, group, count in zip(samples, groups, counts.double(), strict=True):
        number = share @ count[shared]
        sums = {
            name: v.new_zeros(len(points), v.shape[1]).index_add_(0, group, v)[shared]
            for name, v in sample.values.items()
        }
        found.append({name: share @ s / number.unsqueeze(1) for name, s in sums.items()})
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Experiments:
    """Measurements of N events from a pool at one mass point, each followed by the comparison.

    Attributes:
        n_events: Number N of events of an experiment.
        p_values: Of the comparison with the training sample, shape ``(PARTS, T)``.
        off: Measured less true masses [GeV], shape ``(PARTS, T, M)``.
        covered: Whether the joint 68 % region holds the truth, shape ``(PARTS, T)``.
    """

    n_events: int
    p_values: Tensor
    off: Tensor
    covered: Tensor

    def bias(self) -> Tensor:
        """Returns the mean of `off` with its error [GeV], shape ``(M, 2)``."""
        parts = self.off.mean(1)
        return _with_error(parts.mean(0), parts.std(0) / math.sqrt(PARTS))

    def coverage(self) -> tuple[float, float]:
        """Returns the share of experiments whose region holds the truth, with its error."""
        return _share(self.covered)

    def alarms(self, threshold: float) -> tuple[float, float]:
        """Returns the share of experiments with a p-value below a threshold, with its error."""
        return _share(self.p_values < threshold)


def _share(happened: Tensor) -> tuple[float, float]:
    parts = happened.double().mean(1)
    return float(parts.mean()), float(parts.std() / math.sqrt(PARTS))


def alarm_power(nominal: Experiments, found: Experiments, rate: float) -> tuple[float, float]:
    """Computes the power of the comparison at a rate of false alarms, and its error.

    Args:
        nominal: Experiments on undisturbed events.
        found: Experiments on other events, as many events each.
        rate: Share of the undisturbed experiments that may raise the alarm.

    Raises:
        InputError: If the numbers of events differ, or the rate is not between 0 and 1.
    """
    if nominal.n_events != found.n_events or not 0 < rate < 1:
        raise InputError(
            "'rate' should be between 0 and 1 and the experiments of as many events, got "
            f"{rate} for {nominal.n_events} and {found.n_events} events."
        )
    return found.alarms(float(torch.quantile(nominal.p_values.flatten(), rate)))


def likelihoods(
    model: MassModel | KinematicMixture, events: Events, outliers: float = OUTLIERS
) -> MassLikelihood:
    """Tabulates the likelihoods of all events as `massrecon.measure` takes them by default.

    Args:
        model: What the masses are measured with.
        events: The events.
        outliers: Share of events that are taken to tell nothing, as in `massrecon.measure`.

    Raises:
        InputError: If there are no events, or a model kept no record of its prior.
    """
    return mass_likelihood(model, events, outliers=outliers)


def alarms(
    table: MassLikelihood,
    reference: Reference,
    events: Events,
    n_events: int,
    n_experiments: int = 400,
    seed: int = 0,
) -> Experiments:
    """Draws experiments, measures their masses, and compares them with the training there.

    The pool is cut into `PARTS`, each with its own experiments, whose spread gives the errors; the
    experiments of a part share events where it has few.

    Args:
        table: Likelihoods of the events, see `likelihoods`.
        reference: What the training sample looks like.
        events: Simulated events at one mass point.
        n_events: Number of events of an experiment.
        n_experiments: Number of experiments, a multiple of `PARTS`.
        seed: Seed.

    Raises:
        InputError: If the events are not at one mass point, or too few.
    """
    truth, values = one_mass_point(events, table.prior.names), reference.values(events)
    p_values, off, covered = [], [], []
    for part in range(PARTS):
        own = torch.arange(part, len(events), PARTS)
        drawn = experiments(len(own), n_events, n_experiments // PARTS, seed + 1000 * part)
        chosen = own[drawn]
        total = totals(table.log_ratio, chosen).masked_fill(~table.inside, -math.inf)
        posterior = GridPosterior.from_log_likelihood(table.axes, total)
        measured = posterior.estimate("median")
        p_values += [
            compared(reference, values[rows], at).p_value
            for rows, at in zip(chosen, measured, strict=True)
        ]
        off.append(measured - truth)
        covered.append(posterior.level_at(truth) <= LEVEL)
    return Experiments(
        n_events=n_events,
        p_values=torch.tensor(p_values, dtype=torch.float64).reshape(PARTS, -1),
        off=torch.stack(off),
        covered=torch.stack(covered),
    )
