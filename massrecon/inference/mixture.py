"""The kinematic-mixture posterior of a card's masses: no network, only the decay topology.

`mixture_for` builds it from a process card, `fit_mixture` fits its few dozen parameters on
simulated events, and `mixture_posterior` gives the same `Posterior` as a trained model does, so
that every estimator and diagnostic applies::

    mixture = fit_mixture(train, masses={"chi20": (400, 650), "chi10": (50, 500)})
    posterior = mixture_posterior(mixture, test, n_samples=200, seed=1)

For the cards ``wino_udd`` and ``antler_ttbar`` fitted parameters come with massrecon::

    posterior = mixture_posterior(mixture_for("wino_udd"), events)

Other cards start from parameters that nobody fitted: they promise nothing before `fit_mixture`.
For ``ttbar_dilepton`` none are shipped on purpose: two neutrinos hide the masses, and on new events
the fitted mixture was no better than one guess for all events.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from massrecon.events.container import Events
from massrecon.inference.posterior import Posterior
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.kinematics.topology import Node
from massrecon.models.mixture import (
    fit_mixture,
    legs_of,
    load_mixture,
    mass_posterior,
    mixture_for,
    mixture_summaries,
    save_mixture,
)
from massrecon.models.mixture.reading import checked
from massrecon.provenance import versions

__all__ = [
    "fit_mixture",
    "legs_of",
    "load_mixture",
    "mass_posterior",
    "mixture_for",
    "mixture_posterior",
    "mixture_summaries",
    "save_mixture",
]

_STRETCH = (0.7, 1.5)


def mixture_posterior(
    mixture: KinematicMixture, events: Events, n_samples: int = 200, seed: int = 0
) -> Posterior:
    """Draws from the kinematic mixture, as `massrecon.reconstruct` does from a trained model.

    The momentum of a target is the one of the drawn component, stretched with the drawn mass, as a
    common error of the energy scale would do. If the two sides of a decay are alike, which of them
    is called the first cannot be known: each draw takes one at random.

    Args:
        mixture: The mixture, fitted or not.
        events: Events of the card that it was built for.
        n_samples: Number S of draws for each event.
        seed: Seed of the draws.

    Raises:
        InputError: If there is no event or a value in them is not physical.
    """
    card = events.card
    labels = [twin for label in card.targets.values() for twin in _twins(mixture, label)]
    found = mixture.posterior(checked(events), tuple(dict.fromkeys(labels)))
    masses, component = found.draw(n_samples, seed)
    side = _sides(masses.shape[:2], seed)
    columns = []
    for name, label in card.targets.items():
        momenta = [found.momenta[twin] for twin in _twins(mixture, label)]
        at = component.T.unsqueeze(-1).expand(-1, -1, 4)
        drawn = torch.stack([p4.gather(1, at).transpose(0, 1) for p4 in momenta])
        p4 = drawn.gather(0, side.expand(1, -1, -1, 4) % len(drawn))[0]
        seen = (p4[..., 3] ** 2 - (p4[..., :3] ** 2).sum(-1)).clamp_min(1.0).sqrt()
        mass = _mass_of(mixture, masses, name, label)
        stretch = (mass / seen).clamp(*_STRETCH)
        columns += [p4[..., :3] * stretch.unsqueeze(-1), mass.unsqueeze(-1)]
    return Posterior(
        samples=torch.cat(columns, -1),
        card=card,
        truth=events.targets().cpu() if events.has_targets else None,
        masses=None if events.masses is None else events.masses.cpu(),
        weight=events.weight.cpu(),
        provenance={
            "model": "kinematic mixture",
            "decay": re.sub(r"\s+", " ", card.decay),
            "n_samples": n_samples,
            "seed": seed,
            "parameters": {n: p.tolist() for n, p in mixture.named_parameters()},
            "events": dict(events.provenance),
            "versions": versions("torch"),
        },
    )


def _twins(mixture: KinematicMixture, label: str) -> list[str]:
    """Returns the label of a particle, and that of its like on a side that is alike."""
    legs = mixture.scheme.legs
    node = legs.topology.node(label)
    found = [label]
    for group in legs.alike(legs.topology.roots):
        if node.side in [root.side for root in group]:
            sides = [root.side for root in group if root.side != node.side]
            found += [other.label for other in _like(legs, node) if other.side in sides]
    return found


def _like(legs: DecayLegs, node: Node) -> list[Node]:
    """Returns the particles that look like one and have the same place on their side."""
    own = [n for n in legs.topology.nodes if n.side == node.side]
    place = [n for n in own if legs.signatures[n.index] == legs.signatures[node.index]].index(node)
    found = []
    for side in sorted({n.side for n in legs.topology.nodes} - {node.side}):
        like = [
            n
            for n in legs.topology.nodes
            if n.side == side and legs.signatures[n.index] == legs.signatures[node.index]
        ]
        found += like[place : place + 1]
    return found


def _sides(shape: torch.Size, seed: int) -> Tensor:
    """Draws which of two like sides is called the first, shape ``(S, N, 1)``."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(2, (*shape, 1), generator=generator)


def _mass_of(mixture: KinematicMixture, masses: Tensor, name: str, label: str) -> Tensor:
    if name in mixture.scheme.names:
        return masses[..., mixture.scheme.names.index(name)]
    known = mixture.scheme.known[mixture.scheme.legs.topology.node(label).index]
    return torch.full_like(masses[..., 0], float(known or 0.0))
