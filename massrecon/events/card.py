"""Process cards: a YAML file that says what a process is.

A card names the particles of a decay, the mass parameters and their ranges, how Pythia generates
the process, which reconstructed objects an event must have, and what the networks should learn. The
built-in cards lie in ``massrecon/events/cards``; a card of one's own needs no code::

    events = massrecon.simulate("my_process.yaml", n_events=10_000)
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from massrecon.errors import CardError, InputError, unknown_name
from massrecon.events.cardfile import Location, SourceLines, describe_errors, parse_yaml
from massrecon.kinematics.topology import DecayTopology

COMPONENTS = ("px", "py", "pz", "m")
"""Components of a parton-level target."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Particle(_Frozen):
    """A particle of the decay.

    Attributes:
        pdg: PDG identity codes that the name stands for; antiparticles are understood.
        symbol: Name for figures, in Unicode with ``<sub>`` and ``<sup>``.
    """

    pdg: tuple[int, ...] = Field(min_length=1)
    symbol: str

    @field_validator("pdg", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value


class MassParameter(_Frozen):
    """A mass that may be chosen.

    Attributes:
        sets: PDG codes of the particles that get this mass.
        default: Value if none is asked for [GeV].
        range: Lowest and highest value allowed [GeV].
        tolerance: Largest distance of a generated mass from the one asked for [GeV]; more than
            the default for particles with a visible width.
    """

    sets: tuple[int, ...] = Field(min_length=1)
    default: float = Field(gt=0)
    range: tuple[float, float]
    tolerance: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> MassParameter:
        low, high = self.range
        if not 0 < low <= self.default <= high:
            raise _refusal(
                f"'range' should be positive, ordered and hold the default {self.default:g}, "
                f"got [{low:g}, {high:g}]",
                "range",
            )
        return self


class OpenChannel(_Frozen):
    """A decay that must be kinematically open: m(parent) - sum of m(daughters) >= minimum_gap.

    Attributes:
        parent: Name of the mass of the decaying particle.
        daughters: Names of the masses of its decay products.
        minimum_gap: Mass of the other decay products and a margin [GeV].
    """

    parent: str
    daughters: tuple[str, ...] = Field(min_length=1)
    minimum_gap: float = Field(ge=0)


class PythiaSettings(_Frozen):
    """How Pythia generates the process.

    Attributes:
        settings: Pythia settings, ``"Key:name = value"``.
        spectrum: SLHA spectrum and decay tables with ``$name`` for each mass parameter, or None.
        cross_section_mass: Mass parameter that the cross-section falls with.
        tier_step: Width of the tiers of that mass for which Pythia is initialised anew [GeV].
        multiparton: Whether multiparton interactions are simulated (about three times slower).
    """

    settings: tuple[str, ...] = Field(min_length=1)
    spectrum: str | None = None
    cross_section_mass: str
    tier_step: float = Field(default=100.0, gt=0)
    multiparton: bool = False


class DetectorSettings(_Frozen):
    """Options of the detector response.

    Attributes:
        ptmiss_noise: Extra Gaussian width of each component of ptmiss, for pile-up [GeV].
    """

    ptmiss_noise: float = Field(default=0.0, ge=0)


class SlotGroup(_Frozen):
    """Reconstructed objects of one kind: how many an event must have and how many are kept.

    Attributes:
        kind: Kind of the objects.
        count: Number of slots, filled by falling transverse momentum.
        pt_min: Lowest transverse momentum [GeV].
        eta_max: Largest absolute pseudorapidity.
        minimum: Fewest objects in a selected event.
        maximum: Most objects in a selected event, or None for no limit.
        pair_mass: If given, the two kept objects are the pair with the invariant mass nearest to
            this [GeV].
    """

    kind: Literal["lepton", "photon", "jet"]
    count: int = Field(ge=1)
    pt_min: float = Field(ge=0)
    eta_max: float = Field(gt=0)
    minimum: int = Field(default=0, ge=0)
    maximum: int | None = None
    pair_mass: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> SlotGroup:
        if self.maximum is not None and self.maximum < max(self.minimum, 1):
            raise _refusal("'maximum' should be at least 'minimum' and 1", "maximum")
        if self.pair_mass is not None and self.count != 2:
            raise _refusal("'pair_mass' chooses a pair: it needs 'count: 2'", "pair_mass")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slots: ``lepton`` for one, ``jet1``, ``jet2``, … for several."""
        if self.count == 1:
            return (self.kind,)
        return tuple(f"{self.kind}{i}" for i in range(1, self.count + 1))


class ProcessCard(_Frozen):
    """A process: what collides and decays, what is seen of it, and what is to be learned.

    Attributes:
        name: Short name.
        title: Title in Unicode.
        latex: The process in LaTeX.
        reference: Paper that the process is taken from.
        notes: What a user must know.
        beam_energy: Centre-of-mass energy of the proton-proton collisions [GeV].
        decay: The decay chains, in the notation of `DecayTopology`.
        particles: Particles by their name in `decay`.
        masses: Mass parameters by name.
        open_channels: Decays that must be open.
        pythia: How the process is generated.
        detector: Options of the detector response.
        objects: Kinds of reconstructed objects.
        targets: For each mass, the label of the particle whose four components are learned.
    """

    name: str = Field(pattern=r"^[A-Za-z][\w\-]*$")
    title: str
    latex: str = ""
    reference: str = ""
    notes: str = ""
    beam_energy: float = Field(gt=0)
    decay: str
    particles: dict[str, Particle]
    masses: dict[str, MassParameter] = Field(min_length=1)
    open_channels: tuple[OpenChannel, ...] = ()
    pythia: PythiaSettings
    detector: DetectorSettings = DetectorSettings()
    objects: tuple[SlotGroup, ...] = Field(min_length=1)
    targets: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> ProcessCard:
        for where, problem in _inconsistencies(self):
            raise _refusal(problem, *where)
        return self

    @cached_property
    def topology(self) -> DecayTopology:
        """The decay tree."""
        return DecayTopology.parse(self.decay)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the K object slots."""
        return tuple(name for group in self.objects for name in group.names)

    @property
    def slot_kinds(self) -> tuple[str, ...]:
        """Kind of each object slot, shape ``(K,)``."""
        return tuple(group.kind for group in self.objects for _ in group.names)

    @property
    def parton_names(self) -> tuple[str, ...]:
        """Labels of the P particles of the decay tree, depth first."""
        return self.topology.labels

    @property
    def mass_names(self) -> tuple[str, ...]:
        """Names of the M mass parameters."""
        return tuple(self.masses)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the T parton-level targets, such as ``chi20_px``."""
        return tuple(f"{mass}_{component}" for mass in self.targets for component in COMPONENTS)

    def symbol(self, name: str) -> str:
        """Returns the symbol of a mass or of a particle of the tree, for figures.

        Raises:
            InputError: If there is no such name.
        """
        if name in self.particles:
            return self.particles[name].symbol
        for node in self.topology.nodes:
            if node.label == name:
                number, _, side = name.removeprefix(node.name).partition("_")
                symbol = self.particles[node.name].symbol
                return symbol + (f"<sub>{number}</sub>" if number else "") + (side and f" ({side})")
        if name in self.masses:
            return name
        raise unknown_name("particle", name, [*self.masses, *self.parton_names])

    def to_dict(self) -> dict[str, Any]:
        """Returns the card as plain data that `load_card` reads back."""
        return self.model_dump(mode="json", exclude_none=True)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of everything the card says."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_card(card: str | Path | Mapping[str, Any] | ProcessCard) -> ProcessCard:
    """Loads a process card.

    Args:
        card: Name of a built-in card, path of a YAML file, or the content of one.

    Raises:
        CardError: If the file is missing or wrong; the message names the line and the remedy.
        InputError: If no built-in card has this name.
    """
    if isinstance(card, ProcessCard):
        return card
    if isinstance(card, Mapping):
        return _build(dict(card), SourceLines.without_file("card"))
    path = Path(card)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CardError(f"The card '{path}' cannot be read: {error}.") from error
        return _build(*parse_yaml(text, str(path)))
    if str(card) not in builtin_cards():
        error = unknown_name("process", str(card), builtin_cards())
        raise InputError(f"{error} A card of your own is given by the path of its .yaml file.")
    resource = files("massrecon.events") / "cards" / f"{card}.yaml"
    return _build(*parse_yaml(resource.read_text(encoding="utf-8"), f"{card}.yaml"))


def builtin_cards() -> tuple[str, ...]:
    """Returns the names of the built-in cards."""
    folder = files("massrecon.events") / "cards"
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml")))


def _build(content: Any, lines: SourceLines) -> ProcessCard:
    try:
        return ProcessCard.model_validate(content)
    except ValidationError as error:
        raise CardError(describe_errors(error, ProcessCard, lines)) from error


def _refusal(problem: str, *where: str | int) -> PydanticCustomError:
    """Builds a validation error that remembers which entry is at fault."""
    context = {"problem": problem, "where": list(where)}
    return PydanticCustomError("card", "{problem}", context)


def _inconsistencies(card: ProcessCard) -> Iterator[tuple[Location, str]]:
    """Finds names in one part of the card that another part does not define."""
    try:
        topology = card.topology
    except InputError as error:
        yield ("decay",), str(error)
        return
    names = {node.name for node in topology.nodes}
    for name in sorted(names - card.particles.keys()):
        yield ("decay",), f"the particle '{name}' of 'decay' is missing under 'particles'"
    for name in sorted(card.particles.keys() - names):
        yield ("particles", name), f"the particle '{name}' does not occur in 'decay'"
    for i, channel in enumerate(card.open_channels):
        for key, values in (("parent", (channel.parent,)), ("daughters", channel.daughters)):
            yield from _unknown(("open_channels", i, key), "mass", values, card.masses)
    mass = card.pythia.cross_section_mass
    yield from _unknown(("pythia", "cross_section_mass"), "mass", (mass,), card.masses)
    for mass, label in card.targets.items():
        yield from _unknown(("targets", mass), "mass", (mass,), card.masses)
        yield from _unknown(("targets", mass), "particle", (label,), topology.labels)
    placeholders = string.Template(card.pythia.spectrum or "").get_identifiers()
    yield from _unknown(("pythia", "spectrum"), "mass", tuple(placeholders), card.masses)
    kinds = [group.kind for group in card.objects]
    for i, kind in enumerate(kinds):
        if kind in kinds[:i]:
            yield ("objects", i, "kind"), f"'{kind}' is listed twice: join the two entries"


def _unknown(
    where: Location, kind: str, names: tuple[str, ...], choices: Any
) -> Iterator[tuple[Location, str]]:
    for name in names:
        if name not in choices:
            yield where, str(unknown_name(kind, name, choices)).rstrip(".")
