"""One event: what was seen, who is probably what, the masses, and how wrong the answer is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from massrecon.errors import InputError, MassReconError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.chains import paired_chains
from massrecon.inference.likeliest import LikelyAssignment, likely_assignments
from massrecon.inference.likelihood import MassLikelihood
from massrecon.inference.mixture import legs_of, mixture_for
from massrecon.kinematics.assignments import MISSING
from massrecon.kinematics.constrained import m2_cc
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.topology import TopologyError
from massrecon.kinematics.transverse import maos, mt2_solution
from massrecon.visual.event_views import SeenObject, event_views, space_view
from massrecon.visual.explore.exploration import Exploration
from massrecon.visual.explore.sources import SAMPLE, MassTable, Tell, mass_table, stored_events
from massrecon.visual.plane_density import plane_density
from massrecon.visual.template import plain

_CHARGES = {-1: "⁻", 0: "", 1: "⁺"}
_FLAVOURS = {11: "e", 13: "μ", 15: "τ"}
_TAGS = {1: "loose", 2: "medium", 3: "tight"}


def explore_event_display(
    events: str = SAMPLE,
    model: str = SAMPLE,
    number: int = 0,
    mass: str = "",
    off_low: float = 0.0,
    off_high: float = 1000.0,
    n_events: int = 200,
    width: float = 30.0,
    azimuth: float = 30.0,
    elevation: float = 20.0,
    webgl: bool = False,
    *,
    tell: Tell | None = None,
) -> Exploration:
    """Shows one event with its most probable assignment and what it says about the masses.

    Args:
        events: Stored events, by name or folder.
        model: Name or folder of a model, ``mixture`` for the kinematic mixture, or empty for no
            posterior.
        number: Number of the event, counted among those that `off_low` and `off_high` let through.
        mass: Mass whose estimate is compared with the truth; empty for the last one of the process.
        off_low: Smallest distance of its estimate from the truth [GeV].
        off_high: Largest distance [GeV]; both together show right or wrong answers only.
        n_events: How many of the stored events are looked through, from the first one.
        width: Half-width of the window estimate [GeV].
        azimuth: Angle by which the view in three dimensions is turned [degrees].
        elevation: Angle from which it is seen from above [degrees].
        webgl: Whether to draw that view with WebGL, to be turned with the mouse.
        tell: Is told of the progress.

    Raises:
        InputError: If an argument is out of range, or no event fits.
    """
    sample = stored_events(events)
    rows = matching_rows(events, model, mass, off_low, off_high, n_events, width, tell)
    if not 0 <= number < len(rows):
        raise InputError(f"There is no event number {number}: choose 0 to {len(rows) - 1}.")
    table = mass_table(model, events) if model else None
    one = _one_event(sample, table, rows[number], width)
    data = {
        "number": number, "events_that_fit": len(rows),
        "events_looked_through": min(n_events, len(sample)), **one.data,
    }  # fmt: skip
    panels = {"Three dimensions": space_view(one.objects, azimuth, elevation, webgl), **one.panels}
    return Exploration(figure=one.figure, data=data, reading=_reading(data), panels=panels)


@dataclass(frozen=True, kw_only=True, eq=False)
class _OneEvent:
    """What is shown of an event however it is looked at."""

    objects: list[SeenObject]
    figure: go.Figure
    panels: dict[str, go.Figure]
    data: dict[str, Any]


@lru_cache(maxsize=64)
def _one_event(sample: Events, table: MassTable | None, row: int, width: float) -> _OneEvent:
    """Makes what does not depend on the view in three dimensions; kept for events seen lately."""
    event = sample[row]
    assignment = _assignment(sample.card, event)
    invisible = dict(assignment.invisible) if assignment else {}
    ends = _two_ends(event)
    if ends.mt2 is None and assignment is not None:
        ends = _Ends(mt2=_mt2_of_sides(event, assignment), trial=0.0, momenta={})
    invisible |= ends.momenta
    data: dict[str, Any] = {
        "event": row,
        "assignment": _named(assignment, event),
        "probability": None if assignment is None else assignment.probability,
        "invisible_GeV": {label: p4.tolist() for label, p4 in invisible.items()},
        "ptmiss_GeV": event.ptmiss[0].tolist(),
        "MT2_GeV": ends.mt2, "M2CC_GeV": ends.m2_cc, "trial_mass_GeV": ends.trial,
        "symbols": {name: plain(sample.card.symbol(name)) for name in sample.card.mass_names},
        "true_masses_GeV": _truth(event), "estimates_GeV": {}, "off_GeV": {},
    }  # fmt: skip
    objects = _objects(event, assignment, invisible)
    panels = {} if table is None else {"Masses": _posterior(sample.card, table, row, width, data)}
    return _OneEvent(objects=objects, figure=event_views(objects), panels=panels, data=data)


def matching_rows(
    events: str,
    model: str,
    mass: str = "",
    off_low: float = 0.0,
    off_high: float = 1000.0,
    n_events: int = 200,
    width: float = 30.0,
    tell: Tell | None = None,
) -> list[int]:
    """Finds the events whose estimate is off by an amount in a range; see `explore_event_display`.

    Without a model, or where every distance is let through, no estimate is made.

    Raises:
        InputError: If the range or a name is at fault, the events carry no truth, or none fits.
    """
    sample = stored_events(events)
    if n_events < 1 or not 0 <= off_low < off_high or width <= 0:
        raise InputError(
            "'n_events' and 'width' should be positive and 'off_low' below 'off_high', got "
            f"{n_events}, {width:g}, {off_low:g} and {off_high:g}."
        )
    count = min(n_events, len(sample))
    if mass and mass not in sample.card.mass_names:
        raise unknown_name("mass", mass, sample.card.mass_names)
    if not model or not is_filtered(off_low, off_high):
        return list(range(count))
    if sample.masses is None:
        raise InputError("These events carry no truth: set 'off_low' to 0 and 'off_high' to 1000.")
    table = mass_table(model, events).likelihood(list(range(count)), tell)
    name = mass if mass in table.axes else list(table.axes)[-1]
    estimate = window_estimates(table, width)[:, list(table.axes).index(name)]
    truth = sample.masses[:count, sample.card.mass_names.index(name)]
    off = (estimate - truth).abs()
    found = ((off >= off_low) & (off <= off_high)).nonzero().flatten().tolist()
    if not found:
        raise InputError(
            f"None of {count} events has m({name}) between {off_low:g} and {off_high:g} GeV off "
            f"(they are {float(off.min()):.0f} to {float(off.max()):.0f} GeV off): widen the range."
        )
    return found


def missing_rows(events: str, model: str, off_low: float, off_high: float, n_events: int) -> int:
    """Counts the events whose densities `matching_rows` would have to compute."""
    if not model or not is_filtered(off_low, off_high):
        return 0
    count = min(n_events, len(stored_events(events)))
    return len(mass_table(model, events).missing(range(count)))


def is_filtered(off_low: float, off_high: float) -> bool:
    """Tells whether a range of distances [GeV] leaves any event out."""
    return off_low > 0.0 or off_high < 1000.0


def window_estimates(likelihood: MassLikelihood, width: float) -> Tensor:
    """Returns the centres of the most probable windows of each mass [GeV], shape ``(N, M)``.

    Args:
        likelihood: Likelihoods of N events on a grid; its prior makes posteriors of them.
        width: Half-width of the window [GeV].
    """
    density = _density(likelihood)
    columns = []
    for i, axis in enumerate(likelihood.axes.values()):
        other = [1 + k for k in range(len(likelihood.axes)) if k != i]
        marginal = density.sum(other) if other else density
        columns.append(_best_window(axis.double(), marginal, width))
    return torch.stack(columns, 1)


def _density(likelihood: MassLikelihood) -> Tensor:
    """Returns the posterior on the grid, one on the whole, shape ``(N, G_1, ..., G_M)``."""
    prior = likelihood.prior.log_density(likelihood.points)
    log_density = (likelihood.log_ratio + prior).masked_fill(~likelihood.inside, -math.inf)
    return log_density.softmax(1).unflatten(1, likelihood.shape)


def _best_window(axis: Tensor, marginal: Tensor, width: float) -> Tensor:
    """Finds the windows of largest probability, interpolating the sum in steps of a GeV."""
    step = float(axis[1] - axis[0])
    edges = torch.cat([axis[:1] - step / 2, axis + step / 2])
    below = torch.cat([marginal.new_zeros(len(marginal), 1), marginal.cumsum(1)], 1)
    centres = torch.arange(float(edges[0]), float(edges[-1]) + 1.0, 1.0, dtype=torch.float64)

    def up_to(x: Tensor) -> Tensor:
        place = ((x - edges[0]) / step).clamp(0, len(axis) - 1e-9)
        low = place.floor().long()
        return torch.lerp(below[:, low], below[:, low + 1], (place - low).to(below))

    held = up_to(centres + width) - up_to(centres - width)
    # the middle of all windows that hold the most, so that a flat top has one answer
    top = (held >= held.amax(1, keepdim=True) - 1e-9).double()
    return (top * centres).sum(1) / top.sum(1)


def _posterior(
    card: ProcessCard, table: MassTable, row: int, width: float, data: dict[str, Any]
) -> go.Figure:
    """Draws the mass posterior of an event, and writes its estimates down."""
    likelihood = table.likelihood([row])
    names = list(likelihood.axes)
    estimate = window_estimates(likelihood, width)[0].tolist()
    known: dict[str, float] = data["true_masses_GeV"]
    data["estimates_GeV"] = dict(zip(names, estimate, strict=True))
    if known:
        data["off_GeV"] = {n: abs(data["estimates_GeV"][n] - known[n]) for n in names}
    return plane_density(
        {name: axis.double().numpy() for name, axis in likelihood.axes.items()},
        np.asarray(_density(likelihood)[0] / likelihood.volume),
        [card.symbol(name) for name in names],
        estimate,
        [known[name] for name in names] if known else None,
    )


_MIXTURES: dict[str, KinematicMixture | None] = {}


def _mixture_of(card: ProcessCard) -> KinematicMixture | None:
    """Builds the mixture of a card once; None where its masses cannot be computed."""
    key = card.fingerprint()
    if key not in _MIXTURES:
        try:
            _MIXTURES[key] = mixture_for(card) if card.masses else None
        except MassReconError:
            _MIXTURES[key] = None
    return _MIXTURES[key]


def _assignment(card: ProcessCard, event: Events) -> LikelyAssignment | None:
    mixture = _mixture_of(card)
    found = [] if mixture is None else likely_assignments(mixture, event, 1)
    return found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """What MT2 and M2CC say where two invisible particles end the decay."""

    mt2: float | None = None
    m2_cc: float | None = None
    trial: float | None = None
    momenta: Mapping[str, Tensor]


def _two_ends(event: Events) -> _Ends:
    """Computes MT2, M2CC and MAOS momenta of an event of two two-step chains at the true mass."""
    try:
        chains = paired_chains(event, "objects")
    except (TopologyError, InputError):
        return _Ends(momenta={})
    if not len(chains):
        return _Ends(momenta={})
    trial, (visible_a, visible_b, ptmiss) = chains.masses[2], chains.parents("ab")
    upper_a, lower_a, upper_b, lower_b, _ = chains.visible
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        solved = mt2_solution(visible_a, visible_b, ptmiss, trial)
        whole = m2_cc(upper_a, lower_a, upper_b, lower_b, ptmiss, trial, "ab")
        found = maos(solved, visible_a, visible_b, trial)
    labels = [leg.label for leg in legs_of(event.card).invisible]
    momenta = {label: p4[0, 0] for label, p4 in zip(labels, found, strict=False)}
    return _Ends(
        mt2=_finite(solved.value),
        m2_cc=_finite(whole.value),
        trial=trial,
        momenta={label: p4 for label, p4 in momenta.items() if bool(p4.isfinite().all())},
    )


def _mt2_of_sides(event: Events, assignment: LikelyAssignment) -> float | None:
    """Computes MT2 of what is seen of the two sides, with massless unseen particles.

    Where the assignment is right and what is unseen has no mass, it does not exceed the mass of
    what was produced, on whichever side the unseen particles are.
    """
    topology, sides = event.card.topology, {"a", "b"}
    seen: dict[str, Any] = {}
    for leg, slot in assignment.slots.items():
        side = topology.node(leg).side
        if slot != MISSING and side in sides:
            seen[side] = seen.get(side, 0.0) + event.p4[:, slot].double()
    if set(seen) != sides:
        return None
    return _finite(mt2_solution(seen["a"], seen["b"], event.ptmiss.double(), 0.0).value)


def _finite(value: Tensor) -> float | None:
    return float(value[0]) if bool(value[0].isfinite()) else None


def _truth(event: Events) -> dict[str, float]:
    if event.masses is None:
        return {}
    return dict(zip(event.card.mass_names, event.masses[0].tolist(), strict=True))


def _objects(
    event: Events, assignment: LikelyAssignment | None, invisible: Mapping[str, Tensor]
) -> list[SeenObject]:
    """Lists what is drawn: objects with their legs, ptmiss, reconstructed particles."""
    legs = {} if assignment is None else {slot: leg for leg, slot in assignment.slots.items()}
    topology = event.card.topology
    found = []
    for slot, kind in enumerate(event.card.slot_kinds):
        if not bool(event.present[0, slot]):
            continue
        leg = topology.node(legs[slot]) if slot in legs else None
        group = "without a leg" if leg is None else f"side {leg.side}"
        px, py, pz = event.p4[0, slot, :3].tolist()
        found.append(
            SeenObject(
                label=_label(event, slot), kind=kind, group=group, p3=(px, py, pz),
                note="" if leg is None else f"taken as {leg.label}",
            )
        )  # fmt: skip
    px, py = event.ptmiss[0].tolist()
    found.append(SeenObject(label="ptmiss", kind="ptmiss", group="ptmiss", p3=(px, py, None)))
    for label, p4 in invisible.items():
        px, py, pz = p4[:3].tolist()
        symbol = _symbol(event.card, label)
        unseen = "reconstructed unseen"
        found.append(SeenObject(label=symbol, kind="unseen", group=unseen, p3=(px, py, pz)))
    return found


def _symbol(card: ProcessCard, label: str) -> str:
    return plain(card.particles[card.topology.node(label).name].symbol)


def _label(event: Events, slot: int) -> str:
    """Names an object: lepton by flavour and charge, others by kind and rank, b-tags with it."""
    kind, name = event.card.slot_kinds[slot], event.card.slots[slot]
    if kind == "lepton" and "flavour" in event.attributes:
        flavour = int(event.attributes["flavour"][0, slot])
        charge = int(event.attributes["charge"][0, slot])
        return _FLAVOURS.get(flavour, "ℓ") + _CHARGES.get(charge, "")
    tag = event.attributes.get("btag")
    passed = "" if tag is None else _TAGS.get(int(tag[0, slot]), "")
    short = name.replace("photon", "γ").replace("jet", "j") if kind in ("photon", "jet") else name
    return f"{short} b-{passed}" if passed and kind == "jet" else short


def _named(assignment: LikelyAssignment | None, event: Events) -> dict[str, str]:
    if assignment is None:
        return {}
    return {
        leg: "lost" if slot == MISSING else _label(event, slot)
        for leg, slot in assignment.slots.items()
    }


def _reading(data: dict[str, Any]) -> str:
    text = f"Event {data['event']}"
    if data["events_that_fit"] < data["events_looked_through"]:
        text += (
            f", {data['number'] + 1} of {data['events_that_fit']} that fit among "
            f"{data['events_looked_through']}"
        )
    if data["probability"] is not None:
        legs = ", ".join(f"{leg} = {what}" for leg, what in data["assignment"].items())
        text += f". Most probable assignment, {100 * data['probability']:.0f} %: {legs}"
    for name, value in data["estimates_GeV"].items():
        text += f". m({data['symbols'][name]}) estimated {value:.0f} GeV"
        if name in data["off_GeV"]:
            truth, off = data["true_masses_GeV"][name], data["off_GeV"][name]
            text += f", true {truth:.0f}, off by {off:.0f}"
    if data["MT2_GeV"] is not None:
        at = "with massless unseen particles" if not data["trial_mass_GeV"] else (
            f"at the true trial mass, {data['trial_mass_GeV']:.0f} GeV"
        )  # fmt: skip
        text += f". MT2 of the two sides {data['MT2_GeV']:.1f} GeV {at}"
        if data["M2CC_GeV"] is not None:
            text += f", M2CC {data['M2CC_GeV']:.1f} GeV"
    return text + "."
