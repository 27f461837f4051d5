"""Objects of events in polar form, and a pair of them by its mass and its direction."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from massrecon.kinematics import fourvectors as fv

_LEPTON_MASSES = {11: 0.000511, 13: 0.10566, 15: 1.77686}


@dataclass(frozen=True)
class Measured:
    """Objects of N events in polar form; absent ones are arbitrary.

    Attributes:
        pt: Transverse momenta [GeV], shape ``(N, K)``.
        eta: Pseudorapidities, shape ``(N, K)``.
        phi: Azimuths from the axis of the event, shape ``(N, K)``.
        mass: Masses [GeV], shape ``(N, K)``.
        ptmiss: Size [GeV] and azimuth of the missing momentum, shape ``(N, 2)``.
        extras: Continuous attributes, shape ``(N, K, B)``.
    """

    pt: Tensor
    eta: Tensor
    phi: Tensor
    mass: Tensor
    ptmiss: Tensor
    extras: Tensor

    def cpu(self) -> Measured:
        """Moves everything to the processor."""
        return Measured(*(getattr(self, field.name).cpu() for field in fields(self)))


def momenta(seen: Measured, present: Tensor, flavour: Tensor) -> Tensor:
    """Computes four-momenta (px, py, pz, E) [GeV] ``(N, K, 4)``, absent ones zero."""
    mass = seen.mass
    for code, value in _LEPTON_MASSES.items():
        mass = torch.where(flavour == code, value, mass)
    p4 = fv.from_ptetaphim(seen.pt, seen.eta, seen.phi, mass)
    return torch.where(present.unsqueeze(-1), p4, 0.0)


def contour(seen: Measured, i: int) -> tuple[Tensor, Tensor]:
    """Returns the log of the mass of objects i - 1 and i, and their direction on its contour.

    The direction beta has Delta eta along cos beta and Delta phi along sin beta. On a contour
    that crosses Delta phi = pi, sin beta = 1 stands for that point.
    """
    d_eta = seen.eta[:, i] - seen.eta[:, i - 1]
    d_phi = fv.delta_phi(seen.phi[:, i], seen.phi[:, i - 1])
    a, b = 2 * torch.sinh(0.5 * d_eta).square(), 2 * torch.sin(0.5 * d_phi).square()
    c = (a + b).clamp_min(1e-12)
    log_mass = 0.5 * (2 * seen.pt[:, i] * seen.pt[:, i - 1] * c).log()
    sine = (b / c.clamp_max(2.0)).clamp(0.0, 1.0).sqrt()
    cosine = (1 - sine.square()).sqrt()
    beta = torch.atan2(torch.where(d_phi < 0, -sine, sine), torch.where(d_eta < 0, -cosine, cosine))
    return log_mass, beta


def on_contour(
    pt: Tensor, eta: Tensor, phi: Tensor, i: int, log_mass: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns eta and azimuth of object i from the mass with object i - 1; see `contour`."""
    c = torch.exp(2 * log_mass) / (2 * pt[:, i] * pt[:, i - 1]).clamp_min(1e-9)
    b = c.clamp_max(2.0) * beta.sin().square()
    a = (c - b).clamp_min(0.0)
    d_eta = 2 * torch.asinh((0.5 * a).sqrt())
    d_phi = 2 * torch.asin((0.5 * b).clamp(0.0, 1.0).sqrt())
    d_eta = torch.where(beta.cos() < 0, -d_eta, d_eta)
    return eta[:, i - 1] + d_eta, phi[:, i - 1] + torch.where(beta.sin() < 0, -d_phi, d_phi)
