"""Pythia 8: collisions of one process at freely chosen masses.

Pythia is initialised once for each tier of masses and then moved from mass point to mass point by
setting the masses of its particle data. Every block of events starts from its own random seed, so
that it does not depend on what was generated before it.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import GenerationError, require_extra
from massrecon.events.card import ProcessCard
from massrecon.events.particles import Floats, Integers, Particles

SEED_MAX = 900_000_000
_INTEGERS = ("id", "status", "mother1", "mother2", "daughter1", "daughter2")
_MOMENTA = ("px", "py", "pz", "e")


@dataclass(frozen=True)
class Record:
    """The complete event records of a batch of collisions, as flat arrays.

    Attributes:
        columns: ``id``, ``status``, ``mother1``, ``mother2``, ``daughter1``, ``daughter2``, and
            ``px``, ``py``, ``pz``, ``e``, ``m`` [GeV], each of shape ``(n,)``. Mothers and
            daughters count from the first entry of the collision.
        first: First entry of each collision and the end, shape ``(n_events + 1,)``.
    """

    columns: Mapping[str, np.ndarray]
    first: Integers

    @property
    def n_events(self) -> int:
        """Number of collisions."""
        return len(self.first) - 1

    @classmethod
    def from_batch(cls, batch: Any) -> Record:
        """Takes the columns out of the awkward array of ``Pythia.nextBatch``."""
        particles = batch.layout["prt"].to_ListOffsetArray64(True)
        content = particles.content
        columns = {name: content[name].data for name in (*_INTEGERS, "m")}
        columns |= {name: content["p"][name].data for name in _MOMENTA}
        return cls(columns, np.asarray(particles.offsets.data, np.int64))

    @classmethod
    def join(cls, records: Sequence[Record]) -> Record:
        """Puts batches behind each other."""
        columns = {
            name: np.concatenate([record.columns[name] for record in records])
            for name in records[0].columns
        }
        counts = np.concatenate([np.diff(record.first) for record in records])
        return cls(columns, np.concatenate([[0], np.cumsum(counts)]))

    def stable(self) -> Particles:
        """Returns the particles that reach the detector."""
        event = np.repeat(np.arange(self.n_events), np.diff(self.first))
        final = np.flatnonzero(self.columns["status"] > 0)
        return Particles(
            event[final],
            self.columns["id"][final].astype(np.int64),
            *(self.columns[name][final] for name in _MOMENTA),
        )


class Collider:
    """Pythia, set up for one tier of masses of a card."""

    def __init__(
        self, card: ProcessCard, start: Floats, multiparton: bool, extra: Sequence[str] = ()
    ) -> None:
        """Reads all settings.

        Args:
            card: The process.
            start: Lightest mass point of the tier [GeV], shape ``(M,)``.
            multiparton: Whether to simulate multiparton interactions.
            extra: Further Pythia settings.

        Raises:
            GenerationError: If Pythia does not know a setting.
        """
        self.card = card
        self.start = start
        self._used = False
        self._folder = tempfile.TemporaryDirectory(prefix="massrecon-slha-")
        self._pythia = require_extra("pythia8mc", extra="mc").Pythia("", False)
        for setting in (*self._frame(multiparton), *card.pythia.settings, *extra):
            if not self._pythia.readString(setting):
                raise GenerationError(
                    f"Pythia does not accept the setting '{setting}' (card '{card.name}'): "
                    "correct it under 'pythia: settings'."
                )

    def _frame(self, multiparton: bool) -> list[str]:
        """Lists the settings that every process has."""
        settings = [
            f"Beams:eCM = {self.card.beam_energy!r}",
            "Print:quiet = on",
            "Next:numberCount = 0",
            "Random:setSeed = on",
            "Random:seed = 1",
            f"PartonLevel:MPI = {'on' if multiparton else 'off'}",
        ]
        if self.card.pythia.spectrum is not None:
            path = Path(self._folder.name) / "spectrum.slha"
            masses = dict(zip(self.card.mass_names, map(repr, self.start.tolist()), strict=True))
            path.write_text(string.Template(self.card.pythia.spectrum).substitute(masses))
            settings += [f"SLHA:file = {path}", "SLHA:verbose = 0"]
        return settings

    def __enter__(self) -> Collider:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the spectrum file."""
        self._folder.cleanup()

    def initialise(self) -> None:
        """Prepares the generation, at the lightest masses of the tier.

        The very first initialisation finds a maximum of the cross-section that differs from all
        later ones in the eleventh digit, so it is made twice: events must not depend on history.

        Raises:
            GenerationError: If Pythia refuses.
        """
        if not self._used:
            self._init()
            self._used = True
        self._init()

    def _init(self) -> None:
        self._set_masses(self.start)
        if not self._pythia.init():
            raise GenerationError(
                f"Pythia could not be initialised for the card '{self.card.name}' at "
                f"{self._describe(self.start)}: see its messages in the log."
            )

    def generate(self, masses: Floats, seed: int, n_events: int) -> Record:
        """Generates collisions at one mass point.

        Args:
            masses: The mass point [GeV], shape ``(M,)``; not lighter than the start of the tier.
            seed: Random seed, 1 to 900,000,000.
            n_events: Number of collisions to try; those that Pythia gives up on are left out.
        """
        self._pythia.rndm.init(seed)
        self._set_masses(masses)
        return Record.from_batch(self._pythia.nextBatch(n_events, "skip"))

    def cross_section(self) -> float:
        """Returns the leading-order cross-section [fb], averaged over the events since the start.

        It includes the restriction to the card's decays only as far as Pythia applies it.
        """
        return float(self._pythia.infoPython().sigmaGen() * 1e12)

    def _set_masses(self, masses: Floats) -> None:
        for parameter, mass in zip(self.card.masses.values(), masses.tolist(), strict=True):
            for pdg in parameter.sets:
                self._pythia.particleData.m0(pdg, mass)

    def _describe(self, masses: Floats) -> str:
        named = zip(self.card.mass_names, masses.tolist(), strict=True)
        return ", ".join(f"{name} = {mass:g} GeV" for name, mass in named)
