"""What a simulation was asked for: everything that its events depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import DetectorSettings, ProcessCard, load_card
from massrecon.events.masses import MassPrior, MassRequest, parse_masses
from massrecon.events.pythia import SEED_MAX
from massrecon.provenance import versions

GENERATION_PACKAGES = ("pythia8mc", "fastjet", "numpy")
"""Packages whose version the events depend on."""


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Options of a simulation, with the card's own values as defaults.

    Attributes:
        multiparton: Whether multiparton interactions are simulated.
        ptmiss_noise: Extra Gaussian width of each component of ptmiss [GeV].
        pythia: Further Pythia settings.
    """

    multiparton: bool
    ptmiss_noise: float
    pythia: tuple[str, ...] = ()

    @classmethod
    def of(cls, card: ProcessCard, settings: Mapping[str, Any] | None) -> SimulationSettings:
        """Checks options given by name and fills in those of the card.

        Raises:
            InputError: If an option is unknown or has a wrong value.
        """
        given, names = dict(settings or {}), [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise unknown_name("simulation setting", name, names)
        multiparton = given.get("multiparton", card.pythia.multiparton)
        if not isinstance(multiparton, bool):
            raise InputError(f"'multiparton' should be True or False, got {multiparton!r}.")
        noise = given.get("ptmiss_noise", card.detector.ptmiss_noise)
        try:
            noise = DetectorSettings(ptmiss_noise=noise).ptmiss_noise
        except ValueError:
            raise InputError(f"'ptmiss_noise' should be >= 0 GeV, got {noise!r}.") from None
        extra = given.get("pythia", ())
        if isinstance(extra, str) or not all(isinstance(line, str) for line in extra):
            raise InputError(f"'pythia' should be a list of 'Key:name = value', got {extra!r}.")
        return cls(multiparton=multiparton, ptmiss_noise=noise, pythia=tuple(extra))


@dataclass(frozen=True)
class Request:
    """A request for simulated events; the same request gives the same events.

    Attributes:
        card: The process.
        prior: The mass points.
        seed: Random seed.
        settings: Options.
        versions: Versions of Python and of the packages that the events depend on.
    """

    card: ProcessCard
    prior: MassPrior
    seed: int
    settings: SimulationSettings
    versions: Mapping[str, str] = field(default_factory=lambda: versions(*GENERATION_PACKAGES))

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
        """
        card = load_card(card)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEED_MAX:
            raise InputError(f"'seed' should be an integer from 0 to {SEED_MAX}, got {seed!r}.")
        prior = parse_masses(card, masses)
        return cls(card, prior, seed, SimulationSettings.of(card, settings))

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as plain data, for the manifest and the workers."""
        settings = asdict(self.settings)
        packages = {name: v for name, v in self.versions.items() if name != "python"}
        return {
            "card": self.card.fingerprint(),
            "masses": self.prior.to_dict(),
            "seed": self.seed,
            "settings": settings | {"pythia": list(settings["pythia"])},
            "versions": packages,
        }

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Says where this request differs from a stored one."""
        mine, found = self.to_dict(), []
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
