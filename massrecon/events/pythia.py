"""Pythia 8: collisions of one process at freely chosen masses.

Pythia is initialised once for each tier of masses and then moved from mass point to mass point by
setting the masses of its particle data. Every block of events starts from its own random seed, so
that it does not depend on what was generated before it.
"""

from __future__ import annotations

import re
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from massrecon.errors import GenerationError, MissingExtraError, require_extra
from massrecon.events.card import ProcessCard
from massrecon.events.particles import Floats, Integers, Particles
from massrecon.events.trials import FB_PER_MB, Trials

SEED_MAX = 900_000_000
_INTEGERS = ("id", "status", "mother1", "mother2", "daughter1", "daughter2")
_MOMENTA = ("px", "py", "pz", "e")
_PER_COLLISION = ("id1", "id2", "x1", "x2")
_CLEARING = (
    "Stat:showProcessLevel = off",
    "Stat:showPartonLevel = off",
    "Stat:showErrors = off",
    "Stat:reset = on",
)
_PROCESS_GROUPS = frozenset(
    "HardQCD PromptPhoton WeakBosonExchange WeakSingleBoson WeakDoubleBoson "
    "WeakBosonAndParton PhotonCollision PhotonParton Charmonium Bottomonium Onia DoubleOnia Top "
    "FourthBottom FourthTop FourthPair HiggsSM HiggsBSM SUSY NewGaugeBoson LeftRightSymmmetry "
    "LeptoQuark ExcitedFermion ContactInteractions HiddenValley ExtraDimensionsG* "
    "ExtraDimensionsLED ExtraDimensionsTEV ExtraDimensionsUnpart DM".lower().split()
)
"""Groups of Pythia's settings that hold flags of hard processes, and other settings, too."""

# what such flags are called within their group, such as gg2ttbar; those of soft processes, anything
_PROCESS_NAME = re.compile(r"all.*|.+2.+|3parton|hard(cc|bb)bar|dijets|monojet")
_SOFT = {"softqcd": (), "lowenergyqcd": ("usesummedresonances",)}
"""Groups of soft processes, with their flags that are none."""

_FLAG = re.compile(r"\s*([\w*]+)\s*:\s*([^\s=]+)\s*=?([^!#]*)")
_ON = frozenset(("on", "yes", "true", "ok", "1"))


@dataclass(frozen=True)
class Record:
    """The complete event records of a batch of collisions, as flat arrays.

    Attributes:
        columns: ``id``, ``status``, ``mother1``, ``mother2``, ``daughter1``, ``daughter2``, and
            ``px``, ``py``, ``pz``, ``e``, ``m`` [GeV], each of shape ``(n,)``. Mothers and
            daughters count from the first entry of the collision.
        first: First entry of each collision and the end, shape ``(n_events + 1,)``.
        info: Properties of the collisions, each ``(n_events,)``: ``weight``, and ``id1``, ``id2``,
            ``x1``, ``x2``, the codes and momentum fractions of the incoming partons.
    """

    columns: Mapping[str, np.ndarray]
    first: Integers
    info: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_events(self) -> int:
        """Number of collisions."""
        return len(self.first) - 1

    @classmethod
    def from_batch(cls, batch: Any) -> Record:
        """Takes the columns out of the awkward array of ``Pythia.nextBatch``."""
        if len(batch) == 0:
            return cls.empty()
        particles = batch.layout["prt"].to_ListOffsetArray64(True)
        content = particles.content
        columns = {name: content[name].data for name in (*_INTEGERS, "m")}
        columns |= {name: content["p"][name].data for name in _MOMENTA}
        about = batch.layout["info"]
        info = {name: np.asarray(about[name].data) for name in _PER_COLLISION}
        weights = about["weights"].to_ListOffsetArray64(True)
        info["weight"] = np.asarray(weights.content.data)[weights.offsets.data[:-1]]
        return cls(columns, np.asarray(particles.offsets.data, np.int64), info)

    @classmethod
    def empty(cls) -> Record:
        """A batch without any collision."""
        columns = {name: np.zeros(0, np.int32) for name in _INTEGERS}
        columns |= {name: np.zeros(0) for name in (*_MOMENTA, "m")}
        info = {name: np.zeros(0) for name in (*_PER_COLLISION, "weight")}
        return cls(columns, np.zeros(1, np.int64), info)

    @classmethod
    def join(cls, records: Sequence[Record]) -> Record:
        """Puts batches behind each other."""
        columns = {
            name: np.concatenate([record.columns[name] for record in records])
            for name in records[0].columns
        }
        counts = np.concatenate([np.diff(record.first) for record in records])
        info = {
            name: np.concatenate([record.info[name] for record in records])
            for name in records[0].info
        }
        return cls(columns, np.concatenate([[0], np.cumsum(counts)]), info)

    def part(self, start: int, stop: int) -> Record:
        """Returns the collisions from `start` to before `stop`."""
        here = slice(self.first[start], self.first[stop])
        columns = {name: column[here] for name, column in self.columns.items()}
        info = {name: values[start:stop] for name, values in self.info.items()}
        return Record(columns, self.first[start : stop + 1] - self.first[start], info)

    def stable(self) -> Particles:
        """Returns the particles that reach the detector."""
        event = np.repeat(np.arange(self.n_events), np.diff(self.first))
        final = np.flatnonzero(self.columns["status"] > 0)
        return Particles(
            event[final],
            self.columns["id"][final].astype(np.int64),
            *(self.columns[name][final] for name in _MOMENTA),
        )


def switches_on_process(setting: str) -> bool:
    """Says whether a setting switches on a hard process of Pythia's own.

    >>> switches_on_process("SUSY:qqbar2chi+-chi0 = on"), switches_on_process("SUSY:all = off")
    (True, False)
    """
    flag = _FLAG.match(setting)
    if flag is None:
        return False
    group, name, value = (part.lower() for part in flag.groups())
    if group in _SOFT:
        is_process = name not in _SOFT[group]
    else:
        is_process = group in _PROCESS_GROUPS and _PROCESS_NAME.fullmatch(name) is not None
    return is_process and not _ON.isdisjoint(re.split(r"[\s,{}]+", value))


class Collider:
    """Pythia, set up for one tier of masses of a card, or for a file of hard collisions."""

    def __init__(
        self,
        card: ProcessCard,
        start: Floats,
        multiparton: bool,
        extra: Sequence[str] = (),
        lhe: Path | None = None,
    ) -> None:
        """Reads all settings.

        Args:
            card: The process.
            start: Lightest mass point of the tier [GeV], shape ``(M,)``.
            multiparton: Whether to simulate multiparton interactions.
            extra: Further Pythia settings.
            lhe: Les Houches file with the hard collisions, which also gives the beam energies;
                settings that switch on processes of Pythia's own are passed over.

        Raises:
            GenerationError: If Pythia does not know a setting.
        """
        self.card = card
        self.start = start
        # only the search for the maximum of a cross-section depends on what was done before
        self._used = lhe is not None
        self._ready = False
        given = (*card.pythia.settings, *extra)
        self._learns = any("increasemaximum" in line.lower() for line in given)
        self._folder = tempfile.TemporaryDirectory(prefix="massrecon-slha-")
        self._pythia = require_extra("pythia8mc", extra="mc").Pythia("", False)
        own = [line for line in given if not (lhe and switches_on_process(line))]
        for setting in (*self._frame(multiparton, lhe), *own):
            if not self._pythia.readString(setting):
                raise GenerationError(
                    f"Pythia does not accept the setting '{setting}' (card '{card.name}'): "
                    "correct it under 'pythia: settings'."
                )

    def _frame(self, multiparton: bool, lhe: Path | None) -> list[str]:
        """Lists the settings that every process has."""
        beams = [f"Beams:eCM = {self.card.beam_energy!r}"]
        settings = [
            *(["Beams:frameType = 4", f"Beams:LHEF = {lhe}"] if lhe else beams),
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
        self._ready = True

    def restart(self) -> None:
        """Makes ready for a new part, as a new initialisation would: the events are the same.

        Random numbers and masses are set for every block of events, so that only the statistics
        have to be cleared; unless the settings let Pythia raise its maximum of the cross-section.

        Raises:
            GenerationError: If Pythia refuses.
        """
        if not self._ready or self._learns:
            self.initialise()
            return
        for setting in _CLEARING:
            self._pythia.readString(setting)
        self._pythia.stat()

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

    def at_end(self) -> bool:
        """Says whether all hard collisions of a file have been used."""
        return bool(self._pythia.infoPython().atEndOfFile())

    def tally(self) -> dict[str, Trials]:
        """Returns Pythia's statistics since it was (re)started, for each subprocess."""
        info = self._pythia.infoPython()
        return {
            str(code): Trials.of(
                info.nTried(code),
                info.nSelected(code),
                info.nAccepted(code),
                info.sigmaGen(code) * FB_PER_MB,
                info.sigmaErr(code) * FB_PER_MB,
            )
            for code in sorted(info.codesHard())
        }

    def _set_masses(self, masses: Floats) -> None:
        for parameter, mass in zip(self.card.masses.values(), masses.tolist(), strict=True):
            for pdg in parameter.sets:
                self._pythia.particleData.m0(pdg, mass)

    def _describe(self, masses: Floats) -> str:
        named = zip(self.card.mass_names, masses.tolist(), strict=True)
        return ", ".join(f"{name} = {mass:g} GeV" for name, mass in named)


def unknown_settings(settings: Sequence[str]) -> list[int] | None:
    """Finds the settings that Pythia does not accept, without initialising it.

    Returns:
        Their positions, or None if pythia8mc is not installed.
    """
    try:
        module = require_extra("pythia8mc", extra="mc")
    except MissingExtraError:
        return None
    pythia = module.Pythia("", False)
    pythia.readString("Print:quiet = on")
    return [i for i, setting in enumerate(settings) if not pythia.readString(setting, False)]
