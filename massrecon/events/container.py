"""Events: what was seen in N collisions and, for simulated ones, what really happened.

Reconstructed objects sit in the slots of the process card (``lepton``, ``photon1``, ``jet1``, …),
ordered by falling pT within a kind; a slot without an object is zero and not `present`.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.card import ProcessCard
from massrecon.events.cells import expected_yields
from massrecon.events.checks import refuse_unphysical
from massrecon.events.columns import VARIATION
from massrecon.events.history import join_provenance

Index = int | np.integer | slice | Tensor | np.ndarray | Sequence[int]
"""What selects events: an integer keeps a sample of one event."""


def event_rows(index: Index, n_events: int) -> slice | Tensor:
    """Turns what selects events into what selects the first axis of a tensor.

    Raises:
        IndexError: If an integer is out of range.
    """
    if isinstance(index, Integral) or (isinstance(index, Tensor | np.ndarray) and index.ndim == 0):
        index = int(index)
        if not -n_events <= index < n_events:
            raise IndexError(f"Event {index} is out of range: there are {n_events} events.")
        index = [index]
    rows = index if isinstance(index, slice | Tensor) else torch.as_tensor(np.asarray(index))
    # an empty list becomes floats, which select nothing
    return rows.to(torch.long) if isinstance(rows, Tensor) and rows.numel() == 0 else rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Events:
    """N collisions of one process.

    Attributes:
        card: The process card that defines slots, partons, masses and targets.
        p4: Reconstructed four-momenta (px, py, pz, E) [GeV], float64, shape ``(N, K, 4)``.
        present: True where the slot holds an object, shape ``(N, K)``.
        attributes: Further properties of the objects, each ``(N, K)``, named by
            ``card.attribute_names``: ``charge``; ``flavour`` (absolute PDG number of leptons and
            photons, 0 for jets); ``btag`` (tightest working point passed: 0 none, 1 loose, 2
            medium, 3 tight), ``tautag`` and the substructure of large-radius jets where the card
            asks for them.
        ptmiss: Missing transverse momentum (px, py) [GeV], shape ``(N, 2)``.
        weight: Event weights, shape ``(N,)``; 1 for unweighted events. They are relative:
            cross-section and acceptance are in ``provenance["cells"]``.
        variations: Alternative event weights by name, each ``(N,)``, such as those of scales and
            parton distributions in a Les Houches file.
        partons: True parton-level (px, py, pz, m) [GeV] in the order of ``card.parton_names``,
            shape ``(N, P, 4)``; None for data.
        masses: True mass parameters [GeV] in the order of ``card.mass_names``, shape ``(N, M)``;
            None for data.
        provenance: Where the events come from: versions, seeds, settings, counts.
    """

    card: ProcessCard
    p4: Tensor
    present: Tensor
    ptmiss: Tensor
    weight: Tensor
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    variations: Mapping[str, Tensor] = field(default_factory=dict)
    partons: Tensor | None = None
    masses: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, slots = len(self.p4), len(self.card.slots)
        expected = {
            "p4": (n, slots, 4),
            "present": (n, slots),
            "ptmiss": (n, 2),
            "weight": (n,),
            "partons": (n, len(self.card.parton_names), 4),
            "masses": (n, len(self.card.mass_names)),
        }
        for name, tensor in self.tensors().items():
            variation = name.startswith(VARIATION)
            shape = expected.get(name, (n,) if variation else (n, slots))
            if tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"'{name}' should have shape {shape} for the card '{self.card.name}', got "
                    f"{tuple(tensor.shape)}."
                )

    @classmethod
    def from_arrays(
        cls,
        card: ProcessCard,
        arrays: Mapping[str, np.ndarray],
        provenance: Mapping[str, Any] | None = None,
    ) -> Events:
        """Wraps NumPy arrays: those of `to_arrays`, or read from a file of the store."""
        tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
        return cls.of_tensors(card, tensors, provenance or {})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns NumPy arrays named as the fields, each object attribute under its own name.

        Alternative weights are called ``weight_<name>``; truth that is absent is left out.
        """
        return {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()}

    def to_awkward(self) -> Any:
        """Returns an awkward array of records with lists of objects; see `as_awkward`.

        Raises:
            MissingExtraError: If awkward is not installed.
        """
        from massrecon.events.exporters import as_awkward

        return as_awkward(self)

    def __len__(self) -> int:
        return len(self.p4)

    def __repr__(self) -> str:
        truth = "with truth" if self.partons is not None else "without truth"
        return f"Events({self.card.name}, {len(self)} events, {truth})"

    def _repr_html_(self) -> str:
        """Shows a notebook what these events are."""
        objects = ", ".join(f"{group.count} {group.kind}" for group in self.card.objects)
        rows = {
            "process": f"{self.card.name}: {self.card.title}",
            "events": f"{len(self):,}, sum of weights {self.weight.sum().item():,.6g}",
            "object slots": objects,
            "alternative weights": ", ".join(self.variations),
            "truth": "partons and masses" if self.partons is not None else "none",
            "true masses": "; ".join(self._mass_ranges()),
        }
        lines = [
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in rows.items()
            if text
        ]
        return f"<table>{''.join(lines)}</table>"

    def _mass_ranges(self) -> list[str]:
        """Says between which values each true mass lies."""
        if self.masses is None or len(self) == 0:
            return []
        low, high = self.masses.amin(0).tolist(), self.masses.amax(0).tolist()
        return [
            f"{name} {a:g} GeV" if a == b else f"{name} {a:g} to {b:g} GeV"
            for name, a, b in zip(self.card.mass_names, low, high, strict=True)
        ]

    def __getitem__(self, index: Index) -> Events:
        """Selects events by integer, slice, boolean mask or list of positions."""
        rows = event_rows(index, len(self))
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Events:
        """Moves all tensors to a device."""
        return self._map(lambda tensor: tensor.to(device))

    @property
    def device(self) -> torch.device:
        """The device that holds the tensors."""
        return self.p4.device

    def slots_of(self, kind: str) -> tuple[int, ...]:
        """Returns the positions of the slots of one kind (``"lepton"``, ``"jet"``, …)."""
        return tuple(i for i, k in enumerate(self.card.slot_kinds) if k == kind)

    @property
    def has_targets(self) -> bool:
        """Whether the true targets are known."""
        return self.partons is not None and bool(self.card.targets)

    def targets(self) -> Tensor:
        """Returns the true targets in the order of ``card.target_names``, shape ``(N, T)`` [GeV].

        Raises:
            InputError: If the events carry no truth, or their card has no targets.
        """
        if self.partons is None:
            raise InputError(
                "These events carry no truth, so they have no targets: use simulated events."
            )
        if not self.card.targets:
            raise InputError(
                f"The card '{self.card.name}' has no targets: choose events of a process with "
                "masses to learn."
            )
        rows = [self.card.parton_names.index(label) for label in self.card.targets.values()]
        return self.partons[:, rows].flatten(1)

    def split(
        self,
        by: Literal["masses", "events"] = "masses",
        fractions: Sequence[float] = (0.8, 0.2),
        seed: int = 0,
    ) -> tuple[Events, ...]:
        """Splits the events at random into disjoint samples.

        Args:
            by: ``"masses"`` keeps all events of a mass point together, so that a test sample has
                masses that were never trained on; ``"events"`` splits event by event.
            fractions: Share of each sample; they add up to one.
            seed: Seed of the shuffle.

        Raises:
            InputError: If the fractions do not add up to one, or there are fewer mass points than
                samples.
        """
        if len(fractions) == 0 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
            raise InputError(f"'fractions' should be positive and add up to 1, got {fractions}.")
        if by not in ("masses", "events"):
            raise InputError(f"'by' should be 'masses' or 'events', got '{by}'.")
        group = self._mass_points() if by == "masses" else torch.arange(len(self))
        n_groups = int(group.max()) + 1 if len(group) else 0
        if n_groups < len(fractions):
            of_points = by == "masses"
            raise InputError(
                f"Cannot split {n_groups} {'mass points' if of_points else 'events'} into "
                f"{len(fractions)} samples: simulate more"
                + (", or use by='events'." if of_points else ".")
            )
        order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
        share = order.argsort()[group]
        edges = np.round(np.cumsum([0.0, *fractions]) * n_groups).astype(int)
        parts = []
        for low, high in itertools.pairwise(edges):
            parts.append(self[((share >= low) & (share < high)).to(self.device)])
        return tuple(parts)

    def _mass_points(self) -> Tensor:
        """Numbers the distinct points of the mass plane, shape ``(N,)``."""
        if self.masses is None:
            raise InputError("These events carry no true masses: split them with by='events'.")
        return torch.unique(self.masses.cpu(), dim=0, return_inverse=True)[1]

    @staticmethod
    def concat(samples: Sequence[Events]) -> Events:
        """Joins samples of the same card, in order; the provenance lists each one's own.

        Raises:
            InputError: If there is no sample, or they differ in card, truth, attributes or
                alternative weights.
        """
        if not samples:
            raise InputError("Nothing to join: pass at least one sample of events.")
        if len(samples) == 1:
            return samples[0]
        first = samples[0]
        for other in samples[1:]:
            _refuse_unlike(first, other)
        joined = {
            name: torch.cat([sample.tensors()[name] for sample in samples])
            for name in first.tensors()
        }
        return first.with_tensors(
            joined, join_provenance([sample.provenance for sample in samples])
        )

    def validate(self) -> Events:
        """Checks the values once, where data enters, and returns the events.

        Raises:
            InputError: If an object is not finite, has negative or no energy or has |p| > E, or if
                ptmiss, a weight or the truth is not finite; with the count and the first event.
        """
        refuse_unphysical(self.card, self.to_arrays())
        return self

    def expected(self, luminosity: float) -> Tensor:
        """Returns how many collisions each event stands for at a luminosity, shape ``(N,)``.

        The sum over a whole simulated sample is cross-section times acceptance times luminosity, at
        each of its mass points; a background is counted the same way.

        Args:
            luminosity: Integrated luminosity [fb^-1].

        Raises:
            InputError: If the events do not know their cross-section, or their masses were drawn
                from a continuous range, of which only one point can be true.
        """
        arrays = self.to_arrays()
        masses = arrays.get("masses", np.zeros((len(self), len(self.card.mass_names))))
        yields = expected_yields(
            self.provenance, self.card.mass_names, masses, arrays["weight"], luminosity
        )
        return torch.as_tensor(yields, device=self.device)

    def save(self, path: str | Path, append: bool = False) -> None:
        """Writes the events to a folder of Parquet files; read them with `load_events`.

        Args:
            path: The folder; events that are there are replaced.
            append: Whether to add to the events that are there instead, which must be of the same
                card and have the same truth, attributes and alternative weights.

        Raises:
            InputError: If the events are unphysical, or differ from those to add to.
            StoreError: If the folder holds something else, or cannot be written.
        """
        from massrecon.events.store import save_events

        save_events(self, path, append)

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors that there are, named as the arrays of `to_arrays`."""
        named: dict[str, Tensor | None] = {
            "p4": self.p4,
            "present": self.present,
            "ptmiss": self.ptmiss,
            "weight": self.weight,
            "partons": self.partons,
            "masses": self.masses,
        }
        named |= self.attributes
        named |= {VARIATION + name: tensor for name, tensor in self.variations.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _map(self, transform: Callable[[Tensor], Tensor]) -> Events:
        return self.with_tensors(
            {k: transform(t) for k, t in self.tensors().items()}, self.provenance
        )

    def with_tensors(self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> Events:
        """Makes events of the same card from `tensors`."""
        return self.of_tensors(self.card, tensors, provenance)

    @classmethod
    def of_tensors(
        cls, card: ProcessCard, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> Events:
        """Makes events from `tensors`: fields, object attributes and alternative weights.

        Raises:
            ShapeError: If a tensor does not have the shape that the card asks for.
        """
        named = {f.name for f in dataclasses.fields(cls)}
        fields = {name: tensor for name, tensor in tensors.items() if name in named}
        variations = {
            name.removeprefix(VARIATION): tensor
            for name, tensor in tensors.items()
            if name.startswith(VARIATION)
        }
        attributes = {
            name: tensor
            for name, tensor in tensors.items()
            if name not in named and not name.startswith(VARIATION)
        }
        return cls(
            card=card,
            attributes=attributes,
            variations=variations,
            provenance=provenance,
            **fields,
        )


def _refuse_unlike(one: Events, two: Events) -> None:
    """Refuses to join samples of different cards, truth, attributes or alternative weights."""
    if one.card.fingerprint() != two.card.fingerprint():
        raise InputError(
            f"Cannot join events of different cards: '{one.card.name}' and '{two.card.name}' (or "
            "two versions of it)."
        )
    names = one.tensors().keys() ^ two.tensors().keys()
    if names:
        raise InputError(
            "Cannot join events that differ in truth, object attributes or alternative weights: "
            f"{', '.join(sorted(names))} is not in all of them."
        )
