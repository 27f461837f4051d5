r"""How much an event looks like background: the ratio of densities, from a classifier.

    w_i = p(y_i | background) / p(y_i | signal)

comes from a classifier of observables of the event (boosted trees), trained with equal weight on
signal and background, so that its odds are w. Events are judged by trees that did not see them
(cross-fitting), and the odds are calibrated by two numbers fitted to those judgements. What to do
with w is in `massrecon.inference.composition`::

    ratio = BackgroundRatio.fit(signal, {"tth": tth, "wh": wh})
    share = BackgroundShare(log_background=ratio(events))
    print(massrecon.measure(model, events, background=share))

`expected_composition` does both, with the expected rates where a luminosity is given.

References:
    K. Cranmer, J. Pavez and G. Louppe, arXiv:1506.02169, section 2 (calibrated classifiers as
    likelihood ratios).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.inference.composition import BackgroundShare, Composition, ExpectedRates
from massrecon.inference.rates import YieldMap
from massrecon.kinematics import fourvectors as fv

_FOLDS = 5
_FARTHEST_ODDS = 14.0
# keeps the random numbers apart from those of events that were made with the same seed
_OTHER_STREAM = 0xBAC60000
_FEWEST = 100  # events of either kind


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


def expected_composition(
    events: Events,
    signal: Events,
    backgrounds: Mapping[str, Events],
    names: Sequence[str] = (),
    luminosity: float | None = None,
    uncertainty: float = 0.3,
    seed: int = 0,
) -> tuple[Composition, BackgroundRatio]:
    """Finds out what is known of signal and background among some events.

    Args:
        events: The events that are to be measured.
        signal: Simulated signal events with the masses of the training sample of the mass model.
        backgrounds: Simulated events of each background, by name; none of them among `events`.
        names: Names of the masses that the rate depends on; needed with a luminosity.
        luminosity: Integrated luminosity [fb^-1], for the expected rates; None if the share of
            background is not known.
        uncertainty: Relative standard deviation of the expected background.
        seed: Seed of the classifier.

    Returns:
        What `massrecon.measure` takes as `background`, and the classifier behind it.

    Raises:
        InputError: If a sample is too small, its slots differ, or, with a luminosity, its
            cross-section is not known.
    """
    if luminosity is None:
        ratio = BackgroundRatio.fit(signal, backgrounds, seed=seed)
        return BackgroundShare(log_background=ratio(events)), ratio
    if not luminosity > 0:
        raise InputError(f"'luminosity' should be positive, in fb^-1, got {luminosity}.")
    yields = {name: float(b.expected(luminosity).sum()) for name, b in backgrounds.items()}
    rate = YieldMap.from_cells(names, signal.provenance.get("cells", ()))
    ratio = BackgroundRatio.fit(signal, backgrounds, yields, seed)
    total = sum(yields.values())
    known = ExpectedRates(
        log_background=ratio(events),
        signal=lambda points: rate(points, luminosity),
        background=(total, uncertainty * total),
    )
    return known, ratio


def with_background(
    signal: Events, backgrounds: Mapping[str, Events], luminosity: float, seed: int = 0
) -> tuple[Events, dict[str, Events]]:
    """Puts as many background events among some signal events as a luminosity would bring.

    Args:
        signal: The signal events that were seen.
        backgrounds: Simulated events of each background, by name.
        luminosity: Integrated luminosity [fb^-1].
        seed: Seed of their Poisson numbers, of their choice, and of the order of all.

    Returns:
        All events in random order, without truth; and the background events that were not taken,
        by name, to train a classifier with.

    Raises:
        InputError: If fewer than half of the events of a background would be left, or its
            cross-section is not known.
    """
    generator = torch.Generator().manual_seed(seed + _OTHER_STREAM)
    seen, rest = [signal], {}
    for name, sample in backgrounds.items():
        expected = sample.expected(luminosity).sum().double()
        number = int(torch.poisson(expected, generator=generator))
        if 2 * number > len(sample):
            raise InputError(
                f"{number} events of '{name}' are expected, and only {len(sample)} are simulated: "
                "simulate more than twice as many."
            )
        order = torch.randperm(len(sample), generator=generator).tolist()
        seen.append(sample[order[:number]])
        rest[name] = sample[order[number:]]
    bare = [replace(s, card=signal.card, masses=None, partons=None, provenance={}) for s in seen]
    joined = Events.concat(bare)
    return joined[torch.randperm(len(joined), generator=generator).tolist()], rest
