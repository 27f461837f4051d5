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
from typing import Any

from pydantic import Field, ValidationError, model_validator

from massrecon.errors import CardError, InputError, unknown_name
from massrecon.events.cardfile import Location, SourceLines, describe_errors, parse_yaml
from massrecon.events.sections import (
    DETECTED_KINDS,
    DetectorSettings,
    EventCuts,
    MassParameter,
    OpenChannel,
    Particle,
    PythiaSettings,
    Section,
    SlotGroup,
    refusal,
)
from massrecon.kinematics.topology import DecayTopology

COMPONENTS = ("px", "py", "pz", "m")
"""Components of a parton-level target."""


class ProcessCard(Section):
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
        masses: Mass parameters by name; empty for a process without free masses.
        open_channels: Decays that must be open.
        pythia: How the process is generated.
        detector: Options of the detector response.
        objects: Kinds of reconstructed objects.
        cuts: Cuts on whole events.
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
    masses: dict[str, MassParameter] = Field(default_factory=dict)
    open_channels: tuple[OpenChannel, ...] = ()
    pythia: PythiaSettings
    detector: DetectorSettings = DetectorSettings()
    objects: tuple[SlotGroup, ...] = Field(min_length=1)
    cuts: EventCuts = EventCuts()
    targets: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_agree(self) -> ProcessCard:
        for where, problem in _inconsistencies(self):
            raise refusal(problem, *where)
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
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the properties that every object has beside its momentum."""
        tags = ("btag", "tautag") if self.detector.tagging else ()
        merged = any(group.kind == "fatjet" for group in self.objects)
        substructure = ("softdrop_mass", "tau21", "tau32") if merged else ()
        return ("charge", "flavour", *tags, *substructure)

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
    if mass is not None:
        yield from _unknown(("pythia", "cross_section_mass"), "mass", (mass,), card.masses)
    elif card.masses:
        yield ("pythia",), "'cross_section_mass' is missing: name the mass that it falls with"
    for mass, label in card.targets.items():
        yield from _unknown(("targets", mass), "mass", (mass,), card.masses)
        yield from _unknown(("targets", mass), "particle", (label,), topology.labels)
    placeholders = string.Template(card.pythia.spectrum or "").get_identifiers()
    yield from _unknown(("pythia", "spectrum"), "mass", tuple(placeholders), card.masses)
    kinds = [group.kind for group in card.objects]
    for i, kind in enumerate(kinds):
        yield from _unknown(("objects", i, "kind"), "kind of object", (kind,), DETECTED_KINDS)
        if kind in kinds[:i]:
            yield ("objects", i, "kind"), f"'{kind}' is listed twice: join the two entries"


def _unknown(
    where: Location, kind: str, names: tuple[str, ...], choices: Any
) -> Iterator[tuple[Location, str]]:
    for name in names:
        if name not in choices:
            yield where, str(unknown_name(kind, name, choices)).rstrip(".")
