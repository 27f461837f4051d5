r"""Do events look like those that a model was trained on? A warning, not a measurement.

A handful of observables of any process (momenta and masses of the objects of each kind, their
number, ptmiss) are described by their mean mu(m) and width sigma(m), parabolas in the true masses,
and by the distribution of the pulls z = (x - mu) / sigma in the training sample. At the measured
masses the pulls of new events should follow it. Two kinds of tests are made: of each observable,
and of the distance d^2 = z^T C^-1 z of whole events, which sees what no single observable shows.
Each gives the p-value of Kolmogorov and Smirnov; the smallest one, times their number, is the
p-value of the sample. Single events beyond the outermost training event in a thousand are counted.

Real masses lie at one point of the training plane: comparing with the whole training sample would
reject any signal, which is why the observables are taken at the measured masses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError, StoreError
from massrecon.events.container import Events
from massrecon.inference.prior import varying_masses
from massrecon.kinematics import fourvectors as fv
from massrecon.provenance import read_json, write_json

METADATA = "reference"
"""Entry of a model's metadata that holds the reference of its training sample."""

ALARM = 0.01
"""p-value below which a sample is said to look unlike the training sample."""

_LEVELS = (0.0005, 0.001, 0.0025, 0.005, *(i / 100 for i in range(1, 100)),
           0.995, 0.9975, 0.999, 0.9995)  # fmt: skip
_FAR = 0.999
_LEAST_WIDTH = 1e-3
_MOST = 50_000
_SEED = 0
_FORMAT = "massrecon-reference-1"


def observables(events: Events) -> dict[str, Tensor]:
    """Computes simple observables of events, each ``(N,)``: logs of momenta [GeV], and counts."""
    events = events.to("cpu")
    present = events.present
    p4 = torch.where(present.unsqueeze(-1), events.p4.double(), 0.0)
    found = {}
    for kind in dict.fromkeys(events.card.slot_kinds):
        slots = list(events.slots_of(kind))
        own, here = p4[:, slots], present[:, slots]
        found[f"pT of {kind}s"] = _log(fv.pt(own).sum(1))
        if len(slots) > 2:
            # spread evenly within one, so that its distribution is continuous
            spread = torch.rand(len(events), generator=torch.Generator().manual_seed(_SEED))
            found[f"number of {kind}s"] = here.sum(1) + spread.double()
        if len(slots) > 1:
            found[f"mass of {kind}s"] = _log(fv.mass(own.sum(1)).clamp_min(0))
    ptmiss = events.ptmiss.double()
    seen = p4.sum(1)
    found["ptmiss"] = _log(ptmiss.norm(dim=1))
    found["visible mass"] = _log(fv.mass(seen).clamp_min(0))
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """What the observables of a training sample look like at any masses.

    Attributes:
        names: Names of the K observables.
        masses: Names of the M masses that vary.
        middle: Middle of the training masses [GeV], shape ``(M,)``.
        half: Half of their range [GeV], shape ``(M,)``.
        mean: Coefficients of the mean of each observable, shape ``(P, K)``.
        log_width: Those of the log of its width, shape ``(P, K)``.
        quantiles: Quantiles of the pulls, then of the distance, shape ``(L, K + 1)``.
        precision: Inverse covariance of the pulls, shape ``(K, K)``.
        n_events: Number of training events.
    """

    names: tuple[str, ...]
    masses: tuple[str, ...]
    middle: Tensor
    half: Tensor
    mean: Tensor
    log_width: Tensor
    quantiles: Tensor
    precision: Tensor
    n_events: int

    @classmethod
    def from_events(cls, events: Events) -> Reference:
        """Describes a training sample, by at most 50,000 events spread over it.

        Raises:
            InputError: If the events carry no true masses, or none varies.
        """
        some = events[:: math.ceil(len(events) / _MOST)] if len(events) else events
        masses, truth = varying_masses(some)
        found = observables(some)
        x = torch.stack(list(found.values()), dim=-1)
        low, high = truth.amin(0), truth.amax(0)
        middle, half = (low + high) / 2, (high - low) / 2
        basis = _parabola((truth - middle) / half)
        mean = torch.linalg.lstsq(basis, x).solution
        off = x - basis @ mean
        # the log of a squared Gaussian is on average -1.27: only the shape is taken from here
        squares = off.square().clamp_min(_LEAST_WIDTH**2).log() / 2
        log_width = torch.linalg.lstsq(basis, squares).solution
        pulls = off / (basis @ log_width).exp()
        log_width[0] += pulls.std(0).clamp_min(_LEAST_WIDTH).log()
        pulls = off / (basis @ log_width).exp().clamp_min(_LEAST_WIDTH)
        centred = pulls - pulls.mean(0)
        covariance = centred.T @ centred / len(centred) + 1e-3 * torch.eye(len(found)).double()
        precision = torch.linalg.inv(covariance)
        levels = torch.tensor(_LEVELS, dtype=torch.float64)
        both = torch.cat([pulls, _distance(pulls, precision)[:, None]], dim=1)
        return cls(
            names=tuple(found),
            masses=masses,
            middle=middle,
            half=half,
            mean=mean,
            log_width=log_width,
            quantiles=torch.quantile(both, levels, dim=0),
            precision=precision,
            n_events=len(events),
        )

    def values(self, events: Events) -> Tensor:
        """Computes the observables of events, in the order of `names`, shape ``(N, K)``.

        Raises:
            InputError: If the events have other observables.
        """
        found = observables(events)
        if tuple(found) != self.names:
            raise InputError(
                f"These events have other objects than the training sample: {', '.join(found)}."
            )
        return torch.stack([found[name] for name in self.names], dim=-1)

    def pulls(self, values: Tensor, masses: Tensor) -> Tensor:
        """Computes pulls and distance of events at masses ``(M,)``, shape ``(N, K + 1)``.

        Args:
            values: Their observables, from `values`, shape ``(N, K)``.
            masses: The masses [GeV].
        """
        basis = _parabola(((masses.double() - self.middle) / self.half).unsqueeze(0))
        width = (basis @ self.log_width).exp().clamp_min(_LEAST_WIDTH)
        pulls = (values - basis @ self.mean) / width
        return torch.cat([pulls, _distance(pulls, self.precision)[:, None]], dim=1)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `from_dict` reads back, numbers to six digits."""
        tensors = ("middle", "half", "mean", "log_width", "quantiles", "precision")
        return {
            "format": _FORMAT,
            "names": list(self.names),
            "masses": list(self.masses),
            "n_events": self.n_events,
            **{name: _rounded(getattr(self, name).tolist()) for name in tensors},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reference:
        """Rebuilds a reference from plain data.

        Raises:
            StoreError: If it is not that of a reference.
        """
        if content.get("format") != _FORMAT:
            raise StoreError(f"This is no reference: its format is {content.get('format')!r}.")
        tensors = ("middle", "half", "mean", "log_width", "quantiles", "precision")
        try:
            return cls(
                names=tuple(content["names"]),
                masses=tuple(content["masses"]),
                n_events=int(content["n_events"]),
                **{name: torch.tensor(content[name], dtype=torch.float64) for name in tensors},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"This reference is damaged: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Writes the reference to a JSON file, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Reads a reference that `save` wrote.

        Raises:
            StoreError: If the file is missing, foreign or damaged.
        """
        return cls.from_dict(read_json(path, "a reference"))


@dataclass(frozen=True, eq=False, kw_only=True)
class Novelty:
    """How unlike the training sample some events look.

    Attributes:
        p_value: Probability that events like the training sample look so unlike it, or more.
        p_values: That of each observable, and of the distance of whole events, by name.
        shifts: Median pull of each observable at the measured masses, in widths.
        far_events: Positions of events farther out than all but one training event in a thousand.
        n_events: Number of events.
    """

    p_value: float
    p_values: Mapping[str, float]
    shifts: Mapping[str, float]
    far_events: tuple[int, ...]
    n_events: int

    @property
    def alarm(self) -> bool:
        """Whether to warn."""
        return self.p_value < ALARM

    def __str__(self) -> str:
        if not self.alarm:
            return f"The events look like the training sample (p = {self.p_value:.2g})."
        worst = min(self.p_values, key=lambda name: self.p_values[name])
        shift = self.shifts.get(worst)
        where = worst if shift is None else f"{worst}, {shift:+.1f} widths"
        return (
            f"The events look UNLIKE the training sample (p = {self.p_value:.2g}; most of all "
            f"{where}): do not trust the masses before this is understood."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "p_value": self.p_value,
            "alarm": self.alarm,
            "p_values": dict(self.p_values),
            "shifts": dict(self.shifts),
            "far_events": list(self.far_events),
            "n_events": self.n_events,
        }


DISTANCE = "distance of whole events"
"""Name of the test of all observables at once."""


def novelty(reference: Reference, events: Events, masses: Tensor | Sequence[float]) -> Novelty:
    """Compares events with a training sample, at some masses.

    Args:
        reference: What the training sample looks like.
        events: The events.
        masses: Measured masses [GeV], in the order of ``reference.masses``.

    Raises:
        InputError: If there are no events, or they have other objects than the training sample.
    """
    if len(events) == 0:
        raise InputError("There are no events to compare with the training sample.")
    return compared(reference, reference.values(events), masses)


def compared(reference: Reference, values: Tensor, masses: Tensor | Sequence[float]) -> Novelty:
    """Compares observables of events, as `Reference.values` gives them, with a training sample.

    For many samples of the same events, whose observables are computed once; see `novelty`.

    Raises:
        InputError: If there are not as many masses as the reference has.
    """
    at = torch.as_tensor(masses, dtype=torch.float64)
    if at.shape != (len(reference.masses),):
        raise InputError(
            f"'masses' should be one value [GeV] for each mass of the reference, got shape "
            f"{tuple(at.shape)}: choose from {', '.join(reference.masses)}, in this order."
        )
    pulls = reference.pulls(values, at)
    levels = torch.tensor(_LEVELS, dtype=torch.float64)
    p_values, shifts = {}, {}
    for i, name in enumerate((*reference.names, DISTANCE)):
        own = reference.quantiles[:, i]
        p_values[name] = _kolmogorov(_below(pulls[:, i], own, levels))
        if i < len(reference.names):
            shifts[name] = float(pulls[:, i].median() - own[len(own) // 2])
    far = reference.quantiles[_LEVELS.index(_FAR), -1]
    return Novelty(
        p_value=min(1.0, len(p_values) * min(p_values.values())),
        p_values=p_values,
        shifts=shifts,
        far_events=tuple((pulls[:, -1] > far).nonzero()[:, 0].tolist()),
        n_events=len(values),
    )


def recorded_reference(events: Events) -> dict[str, Any]:
    """Returns the entry of the reference for a model's metadata; nothing if no mass varies."""
    try:
        return {METADATA: Reference.from_events(events).to_dict()}
    except InputError:
        return {}


def _log(value: Tensor) -> Tensor:
    return (1.0 + value).log()


def _parabola(x: Tensor) -> Tensor:
    """Returns 1, x and their products of two, ``(N, M)`` -> ``(N, P)``."""
    columns = [torch.ones_like(x[:, 0]), *x.T]
    for i in range(x.shape[1]):
        columns += [x[:, i] * x[:, j] for j in range(i + 1)]
    return torch.stack(columns, dim=-1)


def _distance(pulls: Tensor, precision: Tensor) -> Tensor:
    return ((pulls @ precision) * pulls).sum(1)


def _below(values: Tensor, quantiles: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the share of training events below and up to each value, sorted by value.

    They differ where a quantity has discrete values.
    """
    ordered = values.sort().values.contiguous()
    edges = torch.cat([levels.new_zeros(1), levels, levels.new_ones(1)])
    quantiles = quantiles.contiguous()
    left = torch.searchsorted(quantiles, ordered, right=False)
    right = torch.searchsorted(quantiles, ordered, right=True)
    inner = (left > 0) & (left < len(quantiles)) & (left == right)
    a, b = (left - 1).clamp_min(0), left.clamp_max(len(quantiles) - 1)
    share = (ordered - quantiles[a]) / (quantiles[b] - quantiles[a]).clamp_min(1e-12)
    mixed = torch.lerp(levels[a], levels[b], share.clamp(0, 1))
    low = torch.where(inner, mixed, edges[left])
    high = torch.where(inner, mixed, edges[right + 1])
    return low, torch.where(left == right, torch.where(inner, mixed, edges[left + 1]), high)


def _kolmogorov(ends: tuple[Tensor, Tensor]) -> float:
    """Computes the p-value of the largest gap between the steps of a sample and its expectation.

    References:
        M. A. Stephens, J. R. Stat. Soc. B 32 (1970) 115 (finite N).
    """
    low, high = ends
    n = len(low)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    gap = float(torch.maximum(steps[1:] - high, low - steps[:-1]).amax().clamp_min(0))
    scaled = gap * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    if scaled < 0.2:
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(max(sum(terms), 0.0), 1.0)


def _rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return float(f"{values:.6g}")
