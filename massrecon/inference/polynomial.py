"""Polynomials of masses, fitted to numbers with errors at some mass points; Legendre's."""

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


def legendre(x: Tensor, degree: int) -> Tensor:
    """Computes the Legendre polynomials P_0 to P_degree of x in [-1, 1], on a new last axis."""
    found = [torch.ones_like(x), x]
    for n in range(1, degree):
        found.append(((2 * n + 1) * x * found[n] - n * found[n - 1]) / (n + 1))
    return torch.stack(found[: degree + 1], dim=-1)


def least_squares(basis: Tensor, value: Tensor, error: Tensor) -> tuple[Tensor, float]:
    """Fits a linear model to values with errors.

    Args:
        basis: Terms of the model at P points, shape ``(P, C)``.
        value: Values, shape ``(P,)``.
        error: Their standard errors, shape ``(P,)``.

    Returns:
        The coefficients ``(C,)``, and chi-squared per degree of freedom; NaN where none is left.
    """
    theta = torch.linalg.lstsq(basis / error[:, None], (value / error)[:, None]).solution[:, 0]
    residual = (value - basis @ theta) / error
    dof = len(value) - basis.shape[1]
    return theta, float(residual.square().sum()) / dof if dof > 0 else math.nan
