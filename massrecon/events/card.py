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
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from massrecon.errors import CardError, InputError, unknown_name
from massrecon.events.cardfile import Location, SourceLines, describe_errors, parse_yaml
from massrecon.events.library import find_card, read_card
from massrecon.events.sections import (
    DETECTED_KINDS,
    DetectorSettings,
    EventCuts,
    MassParameter,
    OpenChannel,
    Particle,
    PhaseSpaceSettings,
    PythiaSettings,
    Section,
    SlotGroup,
    refusals,
)
from massrecon.events.toycard import toy_problems
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
        presets: Named choices of masses, each as in a mass request: a number, ``"low:high"`` or a
            list of numbers for each mass.
        open_channels: Decays that must be open.
        pythia: How Pythia generates the process.
        phase_space: How a toy is generated; a card has either this or `pythia`.
        detector: Options of the detector response.
        objects: Kinds of reconstructed objects; in a file, the name of another card takes over
            those of that card, and likewise for `cuts`.
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
    presets: dict[str, dict[str, float | str | list[float]]] = Field(default_factory=dict)
    open_channels: tuple[OpenChannel, ...] = ()
    pythia: PythiaSettings = PythiaSettings()
    phase_space: PhaseSpaceSettings | None = None
    detector: DetectorSettings = DetectorSettings()
    objects: tuple[SlotGroup, ...] = Field(min_length=1)
    cuts: EventCuts = EventCuts()
    targets: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_agree(self) -> ProcessCard:
        problems = list(_inconsistencies(self)) or list(_preset_problems(self))
        if problems:
            raise refusals(problems)
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
        unused = {"pythia"} if self.phase_space is not None else None
        return self.model_dump(mode="json", exclude_none=True, exclude=unused)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of everything the card says, but for where its LHE file lies."""
        content = self.to_dict()
        if self.pythia.lhe is not None:
            content["pythia"]["lhe"] = Path(self.pythia.lhe).name
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_card(card: str | Path | Mapping[str, Any] | ProcessCard) -> ProcessCard:
    """Loads a process card.

    Args:
        card: Name of a card, built-in or in the folder that the environment variable
            ``MASSRECON_CARDS`` names; path of a YAML file; or the content of one.

    Raises:
        CardError: If the file is missing or wrong; the message names the line and the remedy.
        InputError: If no card has this name.
    """
    if isinstance(card, ProcessCard):
        return card
    if isinstance(card, Mapping):
        return _build(dict(card), SourceLines.without_file("card"))
    path = Path(card)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return _build(*parse_yaml(read_card(path), str(path)), path.parent)
    text, source = find_card(str(card))
    own = _build(*parse_yaml(text, source), Path(source).parent)
    if own.name != str(card):
        raise CardError(
            f"The card in '{source}' calls itself '{own.name}': call the file {own.name}.yaml, or "
            f"change 'name' to {card}."
        )
    return own


_BORROWED = ("objects", "cuts")


def complete_card(content: Any, lines: SourceLines, folder: Path) -> Any:
    """Takes over what a card borrows from another one, and finds the files that it names.

    Raises:
        CardError: If the other card is not there, or has not got what is borrowed.
    """
    content = dict(content)
    for entry in _BORROWED:
        other = content.get(entry)
        if isinstance(other, str):
            try:
                content[entry] = _lent(entry, other, folder)
            except InputError as error:
                raise CardError(f"{lines.place((entry,))}: '{entry}': {error}") from error
    pythia = content.get("pythia")
    if isinstance(pythia, Mapping) and isinstance(pythia.get("lhe"), str):
        content["pythia"] = {**pythia, "lhe": str(folder / pythia["lhe"])}
    return content


def _lent(entry: str, card: str, folder: Path) -> Any:
    """Returns an entry of another card as it is written there.

    Raises:
        InputError: If there is no such card, or it borrows the entry itself.
    """
    path = folder / card
    named = path.suffix not in (".yaml", ".yml")
    text, source = find_card(card) if named else (read_card(path), str(path))
    lent = parse_yaml(text, source)[0].get(entry, [] if entry == "objects" else {})
    if isinstance(lent, str):
        raise InputError(f"'{card}' takes this from '{lent}' itself: name that card.")
    return lent


def _build(content: Any, lines: SourceLines, folder: Path = Path()) -> ProcessCard:
    try:
        return ProcessCard.model_validate(complete_card(content, lines, folder))
    except ValidationError as error:
        raise CardError(describe_errors(error, ProcessCard, lines)) from error


def _inconsistencies(card: ProcessCard) -> Iterator[tuple[Location, str]]:
    """Finds what one part of the card says that another part does not know."""
    yield from _generator_is_clear(card)
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
    for mass, label in card.targets.items():
        yield from _unknown(("targets", mass), "mass", (mass,), card.masses)
        yield from _unknown(("targets", mass), "particle", (label,), topology.labels)
    kinds = [group.kind for group in card.objects]
    legs = dict.fromkeys(leg.name for leg in topology.legs)
    known = DETECTED_KINDS if card.phase_space is None else tuple(legs)
    for i, kind in enumerate(kinds):
        yield from _unknown(("objects", i, "kind"), "kind of object", (kind,), known)
        if kind in kinds[:i]:
            yield ("objects", i, "kind"), f"'{kind}' is listed twice: join the two entries"
    if card.phase_space is None:
        yield from _pythia_problems(card)
    elif names <= card.particles.keys():
        yield from toy_problems(card)


def _preset_problems(card: ProcessCard) -> Iterator[tuple[Location, str]]:
    """Finds presets that are no mass request of this card."""
    from massrecon.events.masses import parse_masses

    for name in card.presets:
        try:
            parse_masses(card, name)
        except InputError as error:
            yield ("presets", name), str(error).rstrip(".")


def _generator_is_clear(card: ProcessCard) -> Iterator[tuple[Location, str]]:
    """Finds out whether the card says exactly once how its events are generated."""
    if card.phase_space is not None and "pythia" in card.model_fields_set:
        yield ("phase_space",), "a card has either 'pythia' or 'phase_space': remove one of them"
    if card.phase_space is None and "pythia" not in card.model_fields_set:
        yield ("pythia",), "this entry is missing: add 'pythia', or 'phase_space' for a toy"


def _pythia_problems(card: ProcessCard) -> Iterator[tuple[Location, str]]:
    """Finds masses that the Pythia settings name and the card does not define."""
    mass = card.pythia.cross_section_mass
    if mass is not None:
        yield from _unknown(("pythia", "cross_section_mass"), "mass", (mass,), card.masses)
    elif card.masses:
        yield ("pythia",), "'cross_section_mass' is missing: name the mass that it falls with"
    placeholders = string.Template(card.pythia.spectrum or "").get_identifiers()
    yield from _unknown(("pythia", "spectrum"), "mass", tuple(placeholders), card.masses)


def _unknown(
    where: Location, kind: str, names: tuple[str, ...], choices: Any
) -> Iterator[tuple[Location, str]]:
    for name in names:
        if name not in choices:
            yield where, str(unknown_name(kind, name, choices)).rstrip(".")
