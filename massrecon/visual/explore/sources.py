"""What explorers start from: events and models by name, and what is computed of them once.

Everything here is kept, so that a slider need not compute anew what does not depend on it: events
and models by name, log-densities of the masses of single events on a grid (`MassTable`), and draws
of their masses.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from massrecon.errors import InputError
from massrecon.events.container import Events
from massrecon.events.store import MANIFEST, load_events, shipped_samples
from massrecon.inference.likelihood import STEP, MassLikelihood, mass_likelihood
from massrecon.inference.mixture import mixture_for, mixture_posterior
from massrecon.inference.posterior import Posterior, mass_targets
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.base import HEADER_FILE, MassModel, load_model, shipped_models
from massrecon.models.cascade import Cascade

MIXTURE = "mixture"
"""Name of the kinematic mixture, beside those of models."""

SAMPLE = "wino_udd"
"""Events that come with massrecon, at masses all over the plane."""

Tell = Callable[[float, str], None]
"""Is told how much of a work is done, 0 to 1, and what goes on; may raise to stop it."""

_FEW = 8  # events at a time while others may wait for the table
_CHUNK = 32  # events at a time whose densities are computed
_DRAWN = 100  # events at a time that are drawn from


def model_names(folder: str | Path = "results") -> list[str]:
    """Lists what an explorer can take its posteriors from.

    Args:
        folder: A folder of runs, searched for trained models.

    Returns:
        Models that come with massrecon, the kinematic mixture, and folders of trained models.
    """
    found = sorted(Path(folder).glob(f"*/model/{HEADER_FILE}"))
    return [*shipped_models(), MIXTURE, *(str(path.parent) for path in found)]


def load_source(name: str, card: str = SAMPLE) -> MassModel | KinematicMixture:
    """Loads a model or builds the kinematic mixture of a card; one name gives one object.

    Args:
        name: One of `model_names`, or any folder of a trained model.
        card: Name of the process card of the mixture.

    Raises:
        ModelError: If there is no such model.
    """
    return _source(name, card if name == MIXTURE else "", _stamp(Path(name) / HEADER_FILE))


def stored_events(name: str = SAMPLE) -> Events:
    """Loads events by folder or name; the same name gives the same object.

    Raises:
        StoreError: If there are none, or they are damaged.
    """
    return _events(name, _stamp(Path(name) / MANIFEST))


def event_names() -> list[str]:
    """Lists the names of events that come with massrecon."""
    return shipped_samples()


class MassTable:
    """Likelihood of the masses of stored events on a grid, computed event by event on demand.

    Attributes:
        source: The model or mixture.
        events: The events.
    """

    def __init__(
        self, source: MassModel | KinematicMixture, events: Events, step: float = STEP
    ) -> None:
        self.source, self.events, self._step = source, events, step
        self._known: dict[int, torch.Tensor] = {}
        self._frame: MassLikelihood | None = None
        self._lock = threading.Lock()

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Returns the events that have not been computed yet."""
        return [row for row in rows if row not in self._known]

    def likelihood(self, rows: Sequence[int], tell: Tell | None = None) -> MassLikelihood:
        """Returns the likelihood of some events, in their order.

        Args:
            rows: Positions of the events.
            tell: Is told of the progress.

        Raises:
            InputError: If there is no event, or the model and the events do not fit.
        """
        if not rows:
            raise InputError("There is no event to compute a likelihood of.")
        with self._lock:
            missing = self.missing(rows)
            for first in range(0, len(missing), _CHUNK):
                if tell is not None:
                    tell(first / len(missing), f"densities of {first:,} of {len(missing):,} events")
                self._compute(missing[first : first + _CHUNK])
        assert self._frame is not None
        found = torch.stack([self._known[row] for row in rows])
        return dataclasses.replace(self._frame, log_ratio=found)

    def _compute(self, rows: list[int]) -> None:
        found = mass_likelihood(self.source, self.events[rows], step=self._step)
        self._known.update(zip(rows, found.log_ratio, strict=True))
        self._frame = found[:0]


def mass_table(model: str, events: str = SAMPLE, card: str = "") -> MassTable:
    """Returns the table of a model and stored events; the same names give the same table.

    Args:
        model: One of `model_names`, or a folder.
        events: Name or folder of the events.
        card: Process of the kinematic mixture, where the events are of another one.
    """
    stamps = (_stamp(Path(model) / HEADER_FILE), _stamp(Path(events) / MANIFEST))
    return _table(model, events, card, stamps)


def fill_tables(tables: Sequence[MassTable], tell: Tell) -> None:
    """Computes the densities of all events of some tables, a few at a time.

    Args:
        tables: The tables; others may read them meanwhile.
        tell: Is told of the progress.
    """
    total, known = sum(len(table.events) for table in tables), 0
    for table in tables:
        for first in range(0, len(table.events), _FEW):
            tell(known / total, f"stored events prepared: {known:,} of {total:,}")
            rows = range(first, min(first + _FEW, len(table.events)))
            table.likelihood(rows)
            known += len(rows)


def mass_draws(
    model: str, events: str = SAMPLE, n_samples: int = 64, seed: int = 1, tell: Tell | None = None
) -> Posterior:
    """Draws the masses of all stored events; the same arguments give the same object.

    The momenta are left out: of `cascade` they take nearly all the time of a draw.

    Args:
        model: One of `model_names`, or a folder.
        events: Name or folder of the events.
        n_samples: Number of draws for each event.
        seed: Seed of the draws.
        tell: Is told of the progress.
    """
    key = (model, events, n_samples, seed, _stamp(Path(model) / HEADER_FILE))
    if key not in _DRAWS:
        sample = stored_events(events)
        source = load_source(model, sample.card.name)
        if len(_DRAWS) >= _KEPT_DRAWS:
            _DRAWS.pop(next(iter(_DRAWS)), None)
        _DRAWS[key] = _drawn_masses(source, sample, n_samples, seed, tell)
    return _DRAWS[key]


_KEPT_DRAWS = 8
_DRAWS: dict[tuple[str, str, int, int, int], Posterior] = {}


def are_drawn(model: str, events: str = SAMPLE, n_samples: int = 64, seed: int = 1) -> bool:
    """Tells whether `mass_draws` has these draws already."""
    return (model, events, n_samples, seed, _stamp(Path(model) / HEADER_FILE)) in _DRAWS


def _drawn_masses(
    source: MassModel | KinematicMixture,
    events: Events,
    n_samples: int,
    seed: int,
    tell: Tell | None,
) -> Posterior:
    parts = []
    for first in range(0, len(events), _DRAWN):
        if tell is not None:
            tell(first / len(events), f"draws of {first:,} of {len(events):,} events")
        part, own_seed = events[first : first + _DRAWN], seed + first
        if isinstance(source, KinematicMixture):
            parts.append(mixture_posterior(source, part, n_samples, own_seed).mass_samples())
            continue
        # the masses of a cascade are drawn first, whatever the steps of its momenta
        steps = 1 if isinstance(source, Cascade) else None
        drawn = source.sample(part, n_samples, steps=steps, seed=own_seed)
        names = list(source.target_names)
        columns = [names.index(name) for name in mass_targets(source.card, source.target_names)]
        parts.append(drawn[..., columns])
    card = events.card if isinstance(source, KinematicMixture) else source.card
    return Posterior(
        samples=torch.cat(parts, dim=1),
        card=card,
        names=tuple(mass_targets(card, card.target_names)),
        masses=None if events.masses is None else events.masses.cpu(),
        weight=events.weight.cpu(),
        provenance={"model": getattr(source, "name", MIXTURE), "seed": seed},
    )


def _stamp(path: Path) -> int:
    """Returns when a file was written, so that what was made from an older one is not used."""
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=8)
def _source(name: str, card: str, stamp: int) -> MassModel | KinematicMixture:
    return mixture_for(card) if name == MIXTURE else load_model(name)


@lru_cache(maxsize=4)
def _events(name: str, stamp: int) -> Events:
    return load_events(name)


@lru_cache(maxsize=8)
def _table(model: str, events: str, card: str, stamps: tuple[int, int]) -> MassTable:
    sample = stored_events(events)
    return MassTable(load_source(model, card or sample.card.name), sample)
