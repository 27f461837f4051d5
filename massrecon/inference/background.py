r"""Signal and background in one likelihood: a weight for each event, and an unknown share.

With r_i(m) = p(y_i | m) / p(y_i | signal) from `massrecon.inference.likelihood` and the ratio

    w_i = p(y_i | background) / p(y_i | signal),

where "signal" is the whole training sample, the likelihood of N events of which a share f is
background is, up to a constant,

    L(m, f) = prod_i [(1 - f) r_i(m) + f w_i].

An event that looks like background then counts little, however sharp its masses are. The share is
not known and profiled (`share_profile`); with expected rates the number of events counts too,

    L(m, b) = exp(-s(m) - b) prod_i [s(m) r_i(m) + b w_i] exp(-(b - b_0)^2 / 2 sigma^2)

(`extended_likelihood`), whose s(m) knows that heavier particles are made more rarely.

w comes from a classifier of observables of the event (boosted trees), trained with equal weight on
signal and background, so that its odds are w. Events are judged by trees that did not see them
(cross-fitting), and the odds are calibrated by two numbers fitted to those judgements.

References:
    K. Cranmer, J. Pavez and G. Louppe, arXiv:1506.02169, section 2 (calibrated classifiers as
    likelihood ratios); R. Barlow, Nucl. Instrum. Meth. A 297 (1990) 496 (extended likelihood).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.container import Events
from massrecon.inference.pseudo import FARTHEST
from massrecon.kinematics import fourvectors as fv

_FOLDS = 5
_FARTHEST_ODDS = 14.0
_FEWEST = 100  # events of either kind
_SHARES = 41


def observables(events: Events) -> tuple[Tensor, tuple[str, ...]]:
    """Computes what a classifier sees of events of any card.

    pT and absolute eta of each object, numbers of objects, invariant masses of the objects of each
    kind and of all, the scalar sums of pT, ptmiss, and its distance in azimuth from each object.

    Returns:
        Values, NaN where an object is missing, float64, shape ``(N, F)``; and their F names.
    """
    p4 = events.p4.double().cpu()
    present = events.present.cpu()
    absent = ~present
    p4 = p4.masked_fill(absent.unsqueeze(-1), 0.0)
    ptmiss = events.ptmiss.double().cpu()
    columns: dict[str, Tensor] = {"ptmiss": ptmiss.norm(dim=1)}
    pt, eta = fv.pt(p4), fv.eta(p4).abs()
    azimuth = torch.atan2(ptmiss[:, 1], ptmiss[:, 0]).unsqueeze(1)
    apart = fv.phi(p4) - azimuth
    apart = torch.atan2(apart.sin(), apart.cos()).abs()
    for i, slot in enumerate(events.card.slots):
        for name, values in (("pt", pt), ("eta", eta), ("phi", apart)):
            columns[f"{slot}_{name}"] = values[:, i].masked_fill(absent[:, i], math.nan)
    for kind in dict.fromkeys(events.card.slot_kinds):
        slots = list(events.slots_of(kind))
        columns[f"{kind}_number"] = present[:, slots].sum(1).double()
        columns[f"{kind}_sum_pt"] = pt[:, slots].sum(1)
        if len(slots) > 1:
            columns[f"{kind}_mass"] = fv.mass(p4[:, slots].sum(1)).clamp_min(0)
    columns["mass"] = fv.mass(p4.sum(1)).clamp_min(0)
    columns["sum_pt"] = pt.sum(1) + columns["ptmiss"]
    return torch.stack(list(columns.values()), dim=1), tuple(columns)


@dataclass(frozen=True, eq=False)
class BackgroundRatio:
    """log p(event | background) / p(event | signal), from cross-fitted boosted trees.

    It is made in seconds and not saved: keep the events and the seed.

    Attributes:
        trees: One classifier for each fold, trained on the others.
        columns: Which `observables` they look at: those that are there in some events.
        slope: Factor of their log-odds after calibration.
        offset: What is added to it.
        separation: Area under the ROC curve of the cross-fitted judgements, with weights.
        signal: Cross-fitted log-ratio of the signal events it was made with, shape ``(N_s,)``.
        backgrounds: The same of each background, by name.
    """

    trees: tuple[HistGradientBoostingClassifier, ...]
    columns: tuple[int, ...]
    slope: float
    offset: float
    separation: float
    signal: Tensor
    backgrounds: Mapping[str, Tensor]

    @classmethod
    def fit(
        cls,
        signal: Events,
        backgrounds: Mapping[str, Events],
        yields: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> BackgroundRatio:
        """Trains and calibrates the classifiers.

        Args:
            signal: Signal events with the masses of the training sample of the mass model, or a
                part of it.
            backgrounds: Events of each background by name, of cards with the same slots.
            yields: Expected number of events of each background at some luminosity; all events
                with their weights count alike if not given.
            seed: Seed of folds and trees.

        Raises:
            InputError: If a sample is too small, its slots differ, or a yield is missing.
        """
        samples = [signal, *backgrounds.values()]
        _check_samples(signal, backgrounds, yields)
        x = np.concatenate([observables(sample)[0].numpy() for sample in samples])
        columns = tuple(np.flatnonzero(np.isfinite(x).sum(0) >= _FEWEST).tolist())
        x = x[:, columns]
        sizes = [len(sample) for sample in samples]
        label = np.repeat(np.arange(len(samples)) > 0, sizes)
        weight = _weights(signal, backgrounds, yields)
        fold = np.random.default_rng(seed).permutation(len(x)) % _FOLDS
        odds, trees = np.zeros(len(x)), []
        for k in range(_FOLDS):
            here = fold == k
            tree = HistGradientBoostingClassifier(
                learning_rate=0.06, max_iter=200, max_leaf_nodes=15, min_samples_leaf=40,
                l2_regularization=1.0, max_bins=63, random_state=seed + k,
            )  # fmt: skip
            tree.fit(x[~here], label[~here], sample_weight=weight[~here])
            odds[here] = tree.decision_function(x[here])
            trees.append(tree)
        platt = LogisticRegression(C=1e6).fit(odds[:, None], label, sample_weight=weight)
        slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
        found = torch.from_numpy(slope * odds + offset).clamp(-_FARTHEST_ODDS, _FARTHEST_ODDS)
        parts = found.split(sizes)
        return cls(
            trees=tuple(trees),
            columns=columns,
            slope=slope,
            offset=offset,
            separation=_area(odds, label, weight),
            signal=parts[0],
            backgrounds=dict(zip(backgrounds, parts[1:], strict=True)),
        )

    def __call__(self, events: Events) -> Tensor:
        """Computes the log-ratio of events that were not trained on, shape ``(N,)``.

        It is the mean of the classifiers of all folds.
        """
        x = observables(events)[0].numpy()[:, self.columns]
        odds = np.mean([tree.decision_function(x) for tree in self.trees], axis=0)
        found = torch.from_numpy(self.slope * odds + self.offset)
        return found.clamp(-_FARTHEST_ODDS, _FARTHEST_ODDS)


def _check_samples(
    signal: Events, backgrounds: Mapping[str, Events], yields: Mapping[str, float] | None
) -> None:
    if not backgrounds:
        raise InputError("'backgrounds' is empty: pass events of at least one background.")
    if len(signal) < _FEWEST or sum(len(b) for b in backgrounds.values()) < _FEWEST:
        raise InputError(
            f"A classifier needs {_FEWEST} events of signal and of background, got {len(signal)} "
            f"and {sum(len(b) for b in backgrounds.values())}: simulate more."
        )
    for name, sample in backgrounds.items():
        if sample.card.slots != signal.card.slots:
            raise InputError(
                f"The background '{name}' has other object slots than the signal: use a card with "
                f"'objects: {signal.card.name}'."
            )
        if yields is not None and not yields.get(name, -1.0) >= 0:
            raise InputError(f"'yields' should have a number of events for '{name}'.")


def _weights(
    signal: Events, backgrounds: Mapping[str, Events], yields: Mapping[str, float] | None
) -> np.ndarray:
    """Weights all events such that signal and background have the same total."""
    parts = []
    for name, sample in backgrounds.items():
        own = sample.weight.double().cpu().numpy().clip(min=0)
        scale = own.sum() if yields is None else yields[name]
        parts.append(own * (scale / max(own.sum(), 1e-300)))
    background = np.concatenate(parts)
    own = signal.weight.double().cpu().numpy().clip(min=0)
    half = 0.5 * (len(own) + len(background))
    return np.concatenate([own * (half / own.sum()), background * (half / background.sum())])


def _area(odds: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(odds, kind="stable")
    good, mass = label[order], weight[order]
    below = np.cumsum(mass * ~good)
    return float((mass * good * below).sum() / ((mass * good).sum() * (mass * ~good).sum()))


def mixed(log_ratio: Tensor, log_background: Tensor, share: float) -> Tensor:
    """Mixes signal and background: log[(1 - f) r + f w] of each event.

    Args:
        log_ratio: log r of signal at G mass points, shape ``(N, G)``.
        log_background: log w, shape ``(N,)``.
        share: Share f of background, in [0, 1].

    Raises:
        InputError: If the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"'share' should be in [0, 1], got {share}.")
    if share == 0:
        return log_ratio
    background = (log_background.to(log_ratio) + math.log(share)).unsqueeze(1)
    if share == 1:
        return background.expand_as(log_ratio)
    return torch.logaddexp(log_ratio + math.log1p(-share), background)


@dataclass(frozen=True, eq=False, kw_only=True)
class ShareProfile:
    """The likelihood of the share of background, and of the masses, each profiled by the other.

    Attributes:
        shares: Shares f, rising, shape ``(F,)``.
        log_likelihood: log L of each share at its best masses, less the maximum, shape ``(F,)``.
        best: The most likely share.
        low: Lower end of the interval where log L falls by less than 1/2.
        high: Upper end.
        total: log L of the masses at their best share, shape ``(G,)``.
    """

    shares: Tensor
    log_likelihood: Tensor
    best: float
    low: float
    high: float
    total: Tensor


def share_profile(
    log_ratio: Tensor,
    log_background: Tensor,
    shares: Sequence[float] | None = None,
    constraint: tuple[float, float] | None = None,
) -> ShareProfile:
    """Profiles masses and share of background of N events against each other.

    Args:
        log_ratio: log r of signal at G mass points, -inf where it is not allowed, ``(N, G)``.
        log_background: log w, shape ``(N,)``.
        shares: Shares to try, rising, in [0, 1]; 41 even ones if not given.
        constraint: What is known of the share, as mean and standard deviation.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If there are no events, or the shares do not rise from 0 to at most 1.
    """
    if log_ratio.ndim != 2 or log_background.shape != log_ratio.shape[:1]:
        raise ShapeError(
            f"'log_ratio' should have shape (N, G) and 'log_background' (N,), got "
            f"{tuple(log_ratio.shape)} and {tuple(log_background.shape)}."
        )
    grid = torch.linspace(0, 1, _SHARES).double() if shares is None else torch.tensor(shares)
    grid = grid.double()
    rising = len(grid) > 2 and bool((grid.diff() > 0).all())
    if len(log_ratio) == 0 or not rising or float(grid[0]) < 0 or float(grid[-1]) > 1:
        raise InputError(
            "'shares' should be three or more rising values in [0, 1], of some events."
        )
    allowed = (log_ratio > -math.inf).any(0)
    log_r = log_ratio.double().clamp_min(FARTHEST)
    rows = torch.stack([mixed(log_r, log_background, f).sum(0) for f in grid.tolist()])
    if constraint is not None:
        rows -= 0.5 * ((grid - constraint[0]) / constraint[1]).square().unsqueeze(1)
    rows = rows.masked_fill(~allowed, -math.inf)
    curve = rows.amax(1)
    best, low, high = interval_of(grid, curve)
    return ShareProfile(
        shares=grid,
        log_likelihood=curve - curve.max(),
        best=best,
        low=low,
        high=high,
        total=rows.amax(0),
    )


def interval_of(x: Tensor, log_likelihood: Tensor, drop: float = 0.5) -> tuple[float, float, float]:
    """Finds maximum and interval of a likelihood, by a parabola and by linear interpolation.

    Args:
        x: Rising values, shape ``(F,)``.
        log_likelihood: log L, shape ``(F,)``.
        drop: By how much log L falls to the ends of the interval.

    Returns:
        The best value, and the lower and upper ends; the ends of `x` where it does not fall so far.
    """
    x, y = x.double(), log_likelihood.double()
    i = int(y.argmax())
    best, top = float(x[i]), float(y[i])
    if 0 < i < len(x) - 1:
        a, b = float(x[i - 1] - x[i]), float(x[i + 1] - x[i])
        da, db = float(y[i - 1] - y[i]), float(y[i + 1] - y[i])
        curvature = (da / a - db / b) / (a - b)
        if math.isfinite(curvature) and curvature < 0:
            slope = da / a - curvature * a
            best, top = best - slope / (2 * curvature), top - slope**2 / (4 * curvature)
    below, level = (y < top - drop).tolist(), top - drop
    ends = [float(x[0]), float(x[-1])]
    for side, order in enumerate((range(i, 0, -1), range(i, len(x) - 1))):
        for k in order:
            other = k - 1 if side == 0 else k + 1
            if below[other]:
                share = (float(y[k]) - level) / max(float(y[k] - y[other]), 1e-300)
                ends[side] = float(x[k]) + min(max(share, 0.0), 1.0) * float(x[other] - x[k])
                break
    return best, ends[0], ends[1]


def extended_likelihood(
    log_ratio: Tensor,
    log_background: Tensor,
    signal_yield: Tensor,
    background_yield: tuple[float, float],
    strengths: Sequence[float] = (1.0,),
) -> Tensor:
    """Computes log L of the masses with the expected rates, profiled over the background.

    Args:
        log_ratio: log r of signal at G mass points, -inf where it is not allowed, ``(N, G)``.
        log_background: log w, shape ``(N,)``.
        signal_yield: Expected signal events s(m), shape ``(G,)``.
        background_yield: Expected background events b_0 and their uncertainty.
        strengths: Factors of the expected signal to try; several if its cross-section is not
            known, and the best one counts.

    Returns:
        log L, -inf where the masses are not allowed, float64, shape ``(G,)``.

    Raises:
        InputError: If a yield is negative, or both are zero.
    """
    b_0, sigma = background_yield
    if not b_0 >= 0 or not sigma >= 0 or bool((signal_yield < 0).any()):
        raise InputError("Expected yields and their uncertainty should not be negative.")
    steps = torch.linspace(-4, 4, 33).tolist() if sigma > 0 else [0.0]
    allowed = (log_ratio > -math.inf).any(0) if len(log_ratio) else signal_yield > 0
    log_r = log_ratio.double().clamp_min(FARTHEST)
    best = torch.full_like(signal_yield, -math.inf, dtype=torch.float64)
    for z, strength in itertools.product(steps, strengths):
        b = b_0 + z * sigma
        if b < 0:
            continue
        s = strength * signal_yield.double()
        log_b = log_background.double().unsqueeze(1) + math.log(max(b, 1e-300))
        density = torch.logaddexp(log_r + s.clamp_min(1e-300).log(), log_b)
        best = torch.maximum(best, density.sum(0) - s - b - 0.5 * z**2)
    return best.masked_fill(~allowed, -math.inf)
