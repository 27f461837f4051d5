"""What a simulation was asked for: everything that its events depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from massrecon.errors import ImportFileError, InputError, unknown_name
from massrecon.events.card import DetectorSettings, ProcessCard, load_card
from massrecon.events.lhe import LheFile
from massrecon.events.masses import MassPrior, MassRequest, parse_masses
from massrecon.events.pythia import SEED_MAX
from massrecon.events.sections import PhaseSpaceSettings
from massrecon.events.toycard import toy_settings
from massrecon.provenance import versions

SIMULATION = "2"
"""How random numbers become events; raised with every change that gives other events."""

GENERATION_PACKAGES = ("pythia8mc", "fastjet", "numpy")
"""Packages whose version the events depend on."""

TOY_PACKAGES = ("numpy", "torch")
"""The same for toys."""

_BEAM_TOLERANCE = 1e-3


def _generation_versions() -> dict[str, str]:
    """Returns the versions that the events of generator and detector depend on."""
    return versions(*GENERATION_PACKAGES) | {"simulation": SIMULATION}


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Options of a simulation, with the card's own values as defaults.

    Attributes:
        multiparton: Whether multiparton interactions are simulated.
        ptmiss_noise: Extra Gaussian width of each component of ptmiss [GeV].
        pythia: Further Pythia settings.
        lhe: Absolute path of the Les Houches file whose hard collisions are showered, or None.
        skip_bad: Whether to leave out bad events of that file in place of refusing it.
        truth: Whether the particles of the card's decay are looked up; without them the events
            carry no truth, and none is left out because its decay is another one.
        phase_space: How a toy is generated; None for other cards. A toy has the entries of
            `PhaseSpaceSettings` for options, and none of the others.
    """

    multiparton: bool
    ptmiss_noise: float
    pythia: tuple[str, ...] = ()
    lhe: str | None = None
    skip_bad: bool = False
    truth: bool = True
    phase_space: PhaseSpaceSettings | None = None

    @classmethod
    def of(cls, card: ProcessCard, settings: Mapping[str, Any] | None) -> SimulationSettings:
        """Checks options given by name and fills in those of the card.

        Raises:
            InputError: If an option is unknown or has a wrong value.
        """
        toy = toy_settings(card, settings or {})
        if toy is not None:
            return cls(multiparton=False, ptmiss_noise=0.0, phase_space=toy)
        given, names = dict(settings or {}), [field.name for field in fields(cls)]
        names.remove("phase_space")
        for name in given:
            if name not in names:
                raise unknown_name("simulation setting", name, names)
        defaults = {"multiparton": card.pythia.multiparton, "skip_bad": False, "truth": True}
        flags = {name: given.get(name, default) for name, default in defaults.items()}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise InputError(f"'{name}' should be True or False, got {flag!r}.")
        noise = given.get("ptmiss_noise", card.detector.ptmiss_noise)
        try:
            noise = DetectorSettings(ptmiss_noise=noise).ptmiss_noise
        except ValueError:
            raise InputError(f"'ptmiss_noise' should be >= 0 GeV, got {noise!r}.") from None
        extra = given.get("pythia", ())
        listed = isinstance(extra, Iterable) and not isinstance(extra, str)
        if not listed or not all(isinstance(line, str) for line in extra):
            raise InputError(f"'pythia' should be a list of 'Key:name = value', got {extra!r}.")
        lhe = given.get("lhe", card.pythia.lhe)
        if lhe is not None and not isinstance(lhe, str | Path):
            raise InputError(f"'lhe' should be the path of a Les Houches file, got {lhe!r}.")
        path = None if lhe is None else str(Path(lhe).absolute())
        return cls(ptmiss_noise=noise, pythia=tuple(extra), lhe=path, **flags)

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain data that `of` reads back."""
        if self.phase_space is not None:
            return self.phase_space.model_dump(mode="json", exclude_none=True)
        settings = asdict(self)
        del settings["phase_space"]
        return settings | {"pythia": list(self.pythia)}


@dataclass(frozen=True)
class Request:
    """A request for simulated events; the same request gives the same events.

    Attributes:
        card: The process.
        prior: The mass points.
        seed: Random seed.
        settings: Options.
        lhe: The Les Houches file of `settings`, opened and checked, or None.
        versions: Versions of Python, of the packages that the events depend on, and of
            `SIMULATION`.
    """

    card: ProcessCard
    prior: MassPrior
    seed: int
    settings: SimulationSettings
    lhe: LheFile | None = None
    versions: Mapping[str, str] = field(default_factory=_generation_versions)

    @classmethod
    def of(
        cls,
        card: Any,
        masses: MassRequest,
        seed: int,
        settings: Mapping[str, Any] | None,
    ) -> Request:
        """Checks all parts of a request.

        Raises:
            InputError: If one of them is wrong.
            ImportFileError: If the Les Houches file cannot be used.
        """
        card = load_card(card)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEED_MAX:
            raise InputError(f"'seed' should be an integer from 0 to {SEED_MAX}, got {seed!r}.")
        prior, options = parse_masses(card, masses), SimulationSettings.of(card, settings)
        if options.phase_space is not None:
            return cls(card, prior, seed, options, versions=versions(*TOY_PACKAGES))
        if options.lhe is None:
            return cls(card, prior, seed, options)
        if any(choice.kind != "fixed" for choice in prior.choices):
            raise InputError(
                "'masses' should be fixed for hard collisions from a file: they have the masses "
                "that they were made with."
            )
        if not Path(options.lhe).is_file():
            raise ImportFileError(
                f"There is no file '{options.lhe}', from which '{card.name}' takes its hard "
                "collisions: name one with --lhe FILE, or settings={'lhe': FILE}."
            )
        lhe = LheFile.open(options.lhe, skip_bad=options.skip_bad)
        if abs(lhe.beam_energy - card.beam_energy) > _BEAM_TOLERANCE * card.beam_energy:
            raise InputError(
                f"'{lhe.path}' has collisions at {lhe.beam_energy:g} GeV, the card "
                f"'{card.name}' is for {card.beam_energy:g} GeV: change its 'beam_energy'."
            )
        return cls(card, prior, seed, options, lhe)

    @property
    def branching_fraction(self) -> float:
        """What the cross-section of the generator is multiplied with.

        It is the card's, except for a file of hard collisions with the card of a process that is
        Pythia's own: there the decays, and their fractions, are the file's.
        """
        foreign = self.lhe is not None and self.card.pythia.lhe is None
        return 1.0 if foreign else self.card.pythia.branching_fraction

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as plain data, for the manifest and the workers."""
        packages = {name: v for name, v in self.versions.items() if name != "python"}
        return {
            "card": self.card.fingerprint(),
            "masses": self.prior.to_dict(),
            "seed": self.seed,
            "settings": self.settings.to_dict(),
            "lhe": None if self.lhe is None else self.lhe.source.to_dict(),
            "versions": packages,
        }

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Says where this request differs from a stored one, wherever a file of it may lie."""
        mine, found = self.to_dict(), []
        if self.lhe is not None and (other.get("lhe") or {}).get("sha256") == self.lhe.sha256:
            settings = other["settings"] | {"lhe": self.settings.lhe}
            other = {**other, "settings": settings, "lhe": mine["lhe"]}
        for name, value in mine.items():
            stored = other.get(name)
            if stored == value:
                continue
            if isinstance(value, dict) and isinstance(stored, dict):
                keys = [k for k in {**value, **stored} if value.get(k) != stored.get(k)]
                found += [f"{name} {k}: {stored.get(k)} there, {value.get(k)} here" for k in keys]
            elif name == "card":
                found.append("the process card")
            else:
                found.append(f"{name}: {stored} there, {value} here")
        return found
