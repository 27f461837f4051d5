"""The sections of a process card: particles, masses, generator or phase space, detector, objects.

Each class is one entry of the YAML file; `ProcessCard` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

DETECTED_KINDS = ("lepton", "photon", "jet", "fatjet")
"""Kinds of objects that the detector reconstructs."""


JET_KINDS = ("jet", "fatjet")
"""Those of them that are clustered."""


def refusal(problem: str, *where: str | int) -> PydanticCustomError:
    """Builds a validation error that remembers which entry is at fault."""
    context = {"problem": problem, "where": list(where)}
    return PydanticCustomError("card", "{problem}", context)


def refusals(problems: Sequence[tuple[tuple[str | int, ...], str]]) -> PydanticCustomError:
    """Builds one validation error for several entries, each ``(where, problem)``."""
    (first, problem), *_ = problems
    context = {"problem": problem, "where": list(first)}
    listed = [{"problem": problem, "where": list(where)} for where, problem in problems]
    return PydanticCustomError("card", "{problem}", context | {"problems": listed})


class Section(BaseModel):
    """An entry of a card: immutable, with no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Particle(Section):
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
        if isinstance(value, int):
            return (value,)
        if not isinstance(value, list | tuple):
            raise refusal(f"should be a PDG code or a list of them, got {value!r}")
        return value


class MassParameter(Section):
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
            raise refusal(
                f"'range' should be positive, ordered and hold the default {self.default:g}, "
                f"got [{low:g}, {high:g}]",
                "range",
            )
        return self

    def belongs_to(self, particle: Particle) -> bool:
        """Says whether a particle has this mass, particle or antiparticle."""
        codes = {abs(code) for code in self.sets}
        return not codes.isdisjoint(abs(code) for code in particle.pdg)


class OpenChannel(Section):
    """A decay that must be kinematically open: m(parent) - sum of m(daughters) >= minimum_gap.

    Attributes:
        parent: Name of the mass of the decaying particle.
        daughters: Names of the masses of its decay products.
        minimum_gap: Mass of the other decay products and a margin [GeV].
    """

    parent: str
    daughters: tuple[str, ...] = Field(min_length=1)
    minimum_gap: float = Field(ge=0)


class PythiaSettings(Section):
    """How Pythia generates the process.

    Attributes:
        settings: Pythia settings, ``"Key:name = value"``.
        spectrum: SLHA spectrum and decay tables with ``$name`` for each mass parameter, or None.
        cross_section_mass: Mass parameter that the cross-section falls with; None for a process
            without mass parameters.
        tier_step: Width of the tiers of that mass for which Pythia is initialised anew [GeV].
        multiparton: Whether multiparton interactions are simulated (about three times slower).
        lhe: Les Houches event file whose hard collisions Pythia showers, or None; a relative path
            starts at the folder of the card.
        branching_fraction: Fraction of the produced collisions that decay as the settings force
            them to, where Pythia does not count it into the cross-section: decays of particles
            with an SLHA decay table, and of those in Les Houches files. Not used where a Les
            Houches file is given to a card that names none.
    """

    settings: tuple[str, ...] = ()
    spectrum: str | None = None
    cross_section_mass: str | None = None
    tier_step: float = Field(default=100.0, gt=0)
    multiparton: bool = False
    lhe: str | None = None
    branching_fraction: float = Field(default=1.0, gt=0, le=1)


B_JET_RESOLUTION = (
    (10.0, 0.40),
    (20.0, 0.28),
    (30.0, 0.19),
    (50.0, 0.13),
    (100.0, 0.10),
    (400.0, 0.06),
    (1000.0, 0.05),
)
"""Relative resolution of b-jets at transverse momenta [GeV], from Section IV B of K. Ban et al.,
"Missing information search with deep learning for mass estimation" (2023), after CMS, JINST 12
(2017) P02014."""

SMEARING_TABLES = {"b_jet": B_JET_RESOLUTION}
"""Tables of resolutions that a card can name."""

Table = tuple[tuple[float, float], ...]


class PhaseSpaceSettings(Section):
    """A toy: production and decays by phase space alone, with no shower and no detector.

    Attributes:
        masses: Masses of particles without a mass parameter [GeV]; those that do not decay are
            massless if they are not named.
        widths: Widths of Breit-Wigner resonances by particle [GeV]; others are narrow.
        parton_exponents: The incoming partons are distributed as x f(x) ~ x^a (1 - x)^b: (a, b).
        recoil: Median transverse momentum of initial-state radiation that the produced particles
            recoil against [GeV]; 0 for none.
        contamination: Fraction of events in which the two sides exchange one visible particle.
        exchanged: Name of that particle; it occurs once on each of two sides.
        smearing: Relative momentum resolution by visible particle: a number, ``b_jet`` or a list
            of ``[pT, resolution]``, between which it is linear in log(pT).
    """

    masses: dict[str, float] = Field(default_factory=dict)
    widths: dict[str, float] = Field(default_factory=dict)
    parton_exponents: tuple[float, float] = (-0.4, 4.5)
    recoil: float = Field(default=0.0, ge=0)
    contamination: float = Field(default=0.0, ge=0, le=1)
    exchanged: str | None = None
    smearing: dict[str, Table] = Field(default_factory=dict)

    @field_validator("masses", "widths")
    @classmethod
    def _not_negative(cls, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            if value < 0:
                raise refusal(f"should be at least 0 GeV, got {value:g}", name)
        return values

    @field_validator("smearing", mode="before")
    @classmethod
    def _tables(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: _resolution_table(name, value) for name, value in values.items()}

    @model_validator(mode="after")
    def _exchange_is_defined(self) -> PhaseSpaceSettings:
        if self.contamination > 0 and self.exchanged is None:
            raise refusal(
                "'contamination' needs to know what is 'exchanged': name a visible particle",
                "contamination",
            )
        if self.parton_exponents[1] < 0:
            raise refusal("the second exponent should be at least 0", "parton_exponents")
        return self


def _resolution_table(name: str, value: Any) -> Table:
    """Reads a resolution as (transverse momentum [GeV], relative resolution) pairs."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [(1.0, value)]
    table: Any = SMEARING_TABLES.get(value) if isinstance(value, str) else value
    try:
        pairs = tuple((float(pt), float(resolution)) for pt, resolution in table or ())
    except (TypeError, ValueError):
        pairs = ()
    pts = [pt for pt, _ in pairs]
    ascending = all(low < high for low, high in pairwise([0.0, *pts]))
    if not pairs or not ascending or not all(0 <= resolution < 1 for _, resolution in pairs):
        names = ", ".join(SMEARING_TABLES)
        raise refusal(
            f"should be a resolution from 0 to 1, a list of [pT, resolution] with pT rising, or "
            f"one of {names}, got {value!r}",
            name,
        )
    return pairs


class DetectorSettings(Section):
    """Options of the detector response.

    Attributes:
        ptmiss_noise: Extra Gaussian width of each component of ptmiss, for pile-up [GeV].
        magnetic_field: Field that bends charged particles before the calorimeter [T]; 0 for none.
        jets: ``particle_flow`` clusters tracks and neutral excesses, ``calorimeter`` the towers.
        tagging: Whether jets carry ``btag`` and ``tautag``.
    """

    ptmiss_noise: float = Field(default=0.0, ge=0)
    magnetic_field: float = Field(default=3.0, ge=0)
    jets: Literal["particle_flow", "calorimeter"] = "particle_flow"
    tagging: bool = False


class EventCuts(Section):
    """Cuts on whole events, after those on the objects.

    Attributes:
        ptmiss_min: Smallest missing transverse momentum [GeV].
        lepton_charge: Sum of the charges of the kept leptons, or None for any.
        btags: Fewest jets with a b-tag at the medium working point or tighter.
    """

    ptmiss_min: float = Field(default=0.0, ge=0)
    lepton_charge: int | None = None
    btags: int = Field(default=0, ge=0)


class SlotGroup(Section):
    """Reconstructed objects of one kind: how many an event must have and how many are kept.

    Attributes:
        kind: ``lepton``, ``photon``, ``jet`` or ``fatjet``; in a card with `phase_space` the name
            of a visible particle of the decay.
        count: Number of slots, filled by falling transverse momentum.
        pt_min: Lowest transverse momentum [GeV].
        eta_max: Largest absolute pseudorapidity.
        minimum: Fewest objects in a selected event.
        maximum: Most objects in a selected event, or None for no limit.
        pair_mass: If given, the two kept objects are the pair with the invariant mass nearest to
            this [GeV].
    """

    kind: str
    count: int = Field(ge=1)
    pt_min: float = Field(ge=0)
    eta_max: float = Field(gt=0)
    minimum: int = Field(default=0, ge=0)
    maximum: int | None = None
    pair_mass: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> SlotGroup:
        if self.maximum is not None and self.maximum < max(self.minimum, 1):
            raise refusal("'maximum' should be at least 'minimum' and 1", "maximum")
        if self.pair_mass is not None and self.count != 2:
            raise refusal("'pair_mass' chooses a pair: it needs 'count: 2'", "pair_mass")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slots: ``lepton`` for one, ``jet1``, ``jet2``, … for several."""
        if self.count == 1:
            return (self.kind,)
        return tuple(f"{self.kind}{i}" for i in range(1, self.count + 1))
