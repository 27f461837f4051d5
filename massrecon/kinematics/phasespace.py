"""Toy collisions of any decay topology, from phase space alone.

The produced particles come from the model of `production`, every decay is flat in phase space (see
`nbody`); there are no spin correlations. Resonances have Breit-Wigner masses, cut at `CUT_OFF`
widths and where a decay would close, drawn from the produced particles down; that the phase space
changes across a resonance is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from massrecon.errors import InputError
from massrecon.kinematics.nbody import breit_wigner, decay
from massrecon.kinematics.production import Beams, produce
from massrecon.kinematics.topology import DecayTopology, Node

CUT_OFF = 15.0
"""Distance from the peak of a resonance, in widths, at which it is cut."""

_LIGHTEST = 0.05
"""A resonance is never lighter than this part of its pole mass."""


@dataclass(frozen=True, kw_only=True)
class PhaseSpace:
    """Toy collisions of one process.

    Attributes:
        topology: Decay tree.
        beams: The colliding protons.
        widths: Widths of resonances by particle name [GeV]; others are narrow.
    """

    topology: DecayTopology
    beams: Beams
    widths: Mapping[str, float] = field(default_factory=dict)

    def sample(self, masses: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Draws one collision for every mass point.

        >>> topology = DecayTopology.parse("p p > A A, (A > a B, B > b C), (A > a B, B > b C)")
        >>> toy = PhaseSpace(topology=topology, beams=Beams(energy=13_000.0))
        >>> masses = {"A": torch.full((5,), 1000.0), "B": torch.full((5,), 800.0)}
        >>> toy.sample(masses | {"C": torch.full((5,), 700.0)}, torch.Generator()).shape
        torch.Size([5, 10, 4])

        Args:
            masses: Pole masses by particle name [GeV], each ``(N,)``; particles that are not named
                are massless.
            generator: Source of randomness, on the device of the masses.

        Returns:
            All P particles of the tree (px, py, pz, m) [GeV], float64, depth first, ``(N, P, 4)``.

        Raises:
            InputError: If a decay is closed, the beams cannot produce the particles, a name is not
                that of a particle, or a mass or width cannot be.
        """
        poles = self._poles(masses)
        self._refuse_widths(poles)
        self._refuse_closed(poles)
        masses_drawn = self._draw_masses(poles, generator)
        found: dict[int, Tensor] = {}
        roots = [node.index for node in self.topology.roots]
        produced = produce(masses_drawn[:, roots], self.beams, generator)
        found.update(zip(roots, produced.unbind(1), strict=True))
        for node in self.topology.nodes:
            if node.children:
                daughters = masses_drawn[:, list(node.children)]
                made = decay(found[node.index], daughters, generator)
                found.update(zip(node.children, made.unbind(1), strict=True))
        return torch.stack([found[node.index] for node in self.topology.nodes], dim=1)

    def _poles(self, masses: Mapping[str, Tensor]) -> Tensor:
        """Pole masses of all particles [GeV], shape ``(N, P)``."""
        self._refuse_unknown("masses", masses)
        if not masses:
            raise InputError("'masses' is empty: give at least the masses of what is produced.")
        like = torch.stack(list(torch.broadcast_tensors(*masses.values()))).to(torch.float64)
        if not bool((torch.isfinite(like) & (like >= 0)).all()):
            raise InputError("'masses' should be finite and at least 0 GeV.")
        zero = torch.zeros_like(like[0])
        given = dict(zip(masses, like, strict=True))
        return torch.stack([given.get(node.name, zero) for node in self.topology.nodes], dim=1)

    def _refuse_unknown(self, argument: str, given: Iterable[str]) -> None:
        """Refuses names that no particle of the decay has."""
        names = {node.name for node in self.topology.nodes}
        for name in given:
            if name not in names:
                raise InputError(
                    f"'{argument}' names '{name}', which is not in the decay: choose from "
                    f"{', '.join(sorted(names))}."
                )

    def _refuse_widths(self, poles: Tensor) -> None:
        """Refuses widths of unknown or massless particles, and what is no width."""
        self._refuse_unknown("widths", self.widths)
        for name, width in self.widths.items():
            if not 0 <= width < math.inf:
                raise InputError(
                    f"'widths' should be finite and at least 0 GeV, got {width:g} for '{name}'."
                )
            of = [node.index for node in self.topology.nodes if node.name == name]
            if width > 0 and bool((poles[:, of] == 0).any()):
                raise InputError(
                    f"'{name}' has a width but no mass: give its mass in 'masses', or no width."
                )

    def _refuse_closed(self, poles: Tensor) -> None:
        """Refuses mass points at which a decay or the production is closed."""
        for node in self.topology.nodes:
            if not node.children:
                continue
            left = poles[:, node.index] - poles[:, list(node.children)].sum(1)
            if bool((left <= 0).any()):
                worst = int(left.argmin())
                gap = abs(float(left[worst]))
                daughters = " ".join(self.topology.nodes[i].name for i in node.children)
                raise InputError(
                    f"The decay {node.name} > {daughters} is closed by {gap:g} GeV "
                    f"at {node.name} = {float(poles[worst, node.index]):g} GeV: choose a heavier "
                    f"'{node.name}' or lighter decay products."
                )
        total = poles[:, [node.index for node in self.topology.roots]].sum(1)
        if bool((total >= self.beams.energy).any()):
            raise InputError(
                f"Beams of {self.beams.energy:g} GeV cannot produce {float(total.max()):g} GeV: "
                "raise the beam energy or lower the masses."
            )

    def _draw_masses(self, poles: Tensor, generator: torch.Generator) -> Tensor:
        """Draws the masses of all resonances, mothers before daughters, shape ``(N, P)``."""
        lowest = self._lowest(poles)
        drawn = poles.clone()
        budget = poles.new_full((len(poles),), self.beams.energy)
        for family in self._families():
            if family[0].parent is not None:
                budget = drawn[:, family[0].parent]
            rest = lowest[:, [node.index for node in family]].sum(1)
            left = budget.clone()
            for node in family:
                here = node.index
                rest = rest - lowest[:, here]
                if self.widths.get(node.name, 0.0) > 0:
                    width = self.widths[node.name]
                    high = torch.minimum(left - rest, poles[:, here] + CUT_OFF * width)
                    drawn[:, here] = breit_wigner(
                        poles[:, here], width, lowest[:, here], high, generator
                    )
                left = left - drawn[:, here]
        return drawn

    def _families(self) -> list[list[Node]]:
        """Groups the particles by their mother, from the produced ones down."""
        nodes = self.topology.nodes
        decays = [[nodes[i] for i in node.children] for node in nodes if node.children]
        return [list(self.topology.roots), *decays]

    def _lowest(self, poles: Tensor) -> Tensor:
        """Lowest mass of each particle at which all decays below it are open, ``(N, P)``."""
        lowest = poles.clone()
        for node in reversed(self.topology.nodes):
            width = self.widths.get(node.name, 0.0)
            if width > 0:
                here = poles[:, node.index]
                cut = torch.maximum(here - CUT_OFF * width, _LIGHTEST * here)
                daughters = lowest[:, list(node.children)].sum(1)
                lowest[:, node.index] = torch.maximum(cut, daughters)
        return lowest
