"""Polynomials of masses, fitted to numbers with errors at some mass points."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def degrees_up_to(n_masses: int, total: int) -> Tensor:
    """Lists the degrees of all terms in each mass up to a total degree, shape ``(C, M)``."""
    every = itertools.product(range(total + 1), repeat=n_masses)
    return torch.tensor([degrees for degrees in every if sum(degrees) <= total])


def scaled(masses: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scales masses ``(G, M)`` from their ends to (-1, 1), and moves them inside."""
    span = (high - low).clamp_min(1e-9)
    return (2 * (masses.double() - low) / span - 1).clamp(-1, 1)


def terms(masses: Tensor, low: Tensor, high: Tensor, degrees: Tensor) -> Tensor:
    """Computes the terms of the polynomial at masses ``(G, M)``, shape ``(G, C)``."""
    x = scaled(masses, low, high)
    return (x.unsqueeze(1) ** degrees.to(x)).prod(-1)


def least_squares(basis: Tensor, value: Tensor, error: Tensor) -> tuple[Tensor, float]:
    """Fits weighted values; returns the coefficients and chi-squared per degree of freedom."""
    theta = torch.linalg.lstsq(basis / error[:, None], (value / error)[:, None]).solution[:, 0]
    residual = (value - basis @ theta) / error
    dof = len(value) - basis.shape[1]
    return theta, float(residual.square().sum()) / dof if dof > 0 else math.nan
