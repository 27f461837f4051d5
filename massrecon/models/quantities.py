"""Quantities of the true particles that a model can learn directly, such as an angle of a decay.

They are written as a word and labels of the card's decay tree:

* ``pt A B ...``: transverse momentum of the sum of particles [GeV];
* ``mass A B ...``: invariant mass of the sum [GeV];
* ``cos A B``: cosine of the angle of A in the rest frame of B with the flight direction of B, the
  angle of a polarised decay.

All are the same for an event that is turned about the beam or mirrored in the transverse plane.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from massrecon.errors import InputError, unknown_name
from massrecon.events.card import ProcessCard
from massrecon.kinematics import fourvectors as fv


def _pt(*p4: Tensor) -> Tensor:
    return fv.pt(torch.stack(p4).sum(dim=0))


def _mass(*p4: Tensor) -> Tensor:
    return fv.mass(torch.stack(p4).sum(dim=0))


def _cos(child: Tensor, frame: Tensor) -> Tensor:
    direction = frame[..., :3]
    momentum = fv.boost_to_rest_frame(child, frame)[..., :3]
    length = momentum.norm(dim=-1) * direction.norm(dim=-1)
    return ((momentum * direction).sum(dim=-1) / length.clamp_min(1e-9)).clamp(-1.0, 1.0)


QUANTITIES: dict[str, Callable[..., Tensor]] = {"pt": _pt, "mass": _mass, "cos": _cos}
"""Quantities by their word, as functions of four-momenta ``(N, 4)``."""


def is_quantity(choice: str) -> bool:
    """Tells whether a choice of targets names quantities, not particles."""
    word, _, labels = choice.partition(" ")
    return word in QUANTITIES and bool(labels)


def quantity_names(card: ProcessCard, choice: str) -> tuple[str, ...]:
    """Splits quantities at the commas and checks them.

    Raises:
        InputError: If a word or a label is unknown, or the number of labels does not fit.
    """
    names = tuple(" ".join(part.split()) for part in choice.split(","))
    for name in names:
        word, *labels = name.split(" ")
        if word not in QUANTITIES:
            raise unknown_name("quantity", word, QUANTITIES)
        for label in labels:
            if label not in card.parton_names:
                raise unknown_name(f"particle of '{card.name}'", label, card.parton_names)
        if len(labels) != 2 if word == "cos" else not labels:
            wanted = "a particle and its parent" if word == "cos" else "at least one particle"
            raise InputError(f"'{word}' needs {wanted}, got '{name}'.")
    return names


def quantity_label(card: ProcessCard, name: str) -> str:
    """Writes a quantity with the symbols of the card and its unit, for a figure."""
    word, *labels = name.split()
    symbols = [card.symbol(label) for label in labels]
    if word == "cos":
        return f"cos <i>θ</i> of {symbols[0]} in the decay of {symbols[1]}"
    letter = {"pt": "<i>p</i><sub>T</sub>", "mass": "<i>m</i>"}[word]
    return f"{letter}({' '.join(symbols)}) [GeV]"


def quantity_values(card: ProcessCard, choice: str, partons: Tensor) -> Tensor:
    """Computes quantities of true particles.

    Args:
        card: The process card, which names the particles.
        choice: Quantities, with commas between them.
        partons: Rows (px, py, pz, m) [GeV], shape ``(..., P, 4)``.

    Returns:
        float64, shape ``(..., number of quantities)``.
    """
    p4 = fv.from_pxpypzm(partons.double())
    columns = []
    for name in quantity_names(card, choice):
        word, *labels = name.split(" ")
        chosen = [p4[..., card.parton_names.index(label), :] for label in labels]
        columns.append(QUANTITIES[word](*chosen))
    return torch.stack(columns, dim=-1)
