"""Rows of numbers of `LANES` events beside each other, and steps over them inside kernels.

A flat array holds row after row. The distance of the rows of one array is a constant, so that a
compiler knows which of them cannot overlap and takes several numbers at once; a step reads from few
arrays, since those whose distance is not known are compared first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from massrecon.kinematics.backends import fused
from massrecon.kinematics.vector_math import log

Array = np.ndarray
LANES = 64
VECTOR = 8
"""Most numbers that processors take at once; a rest of them would be taken one by one."""


@fused
def rounded(n: int) -> int:
    """Rounds a number of lanes up, so that there is no rest."""
    return (n + VECTOR - 1) // VECTOR * VECTOR


@fused
def fill(to: Array, value: float, n: int) -> None:
    """Fills a row."""
    for t in range(n):
        to[t] = value


@fused
def add(to: Array, one: Array, factor: Any, n: int) -> None:
    """Adds a multiple of a row."""
    for t in range(n):
        to[t] += factor * one[t]


@fused
def add_product(to: Array, one: Array, other: Array, factor: Any, n: int) -> None:
    """Adds a multiple of the product of two rows."""
    for t in range(n):
        to[t] += factor * one[t] * other[t]


@fused
def add_log(to: Array, one: Array, factor: Any, n: int) -> None:
    """Adds a multiple of the logarithm of a row."""
    for t in range(n):
        to[t] += factor * log(one[t])


@fused
def copy(to: Array, one: Array, n: int) -> None:
    """Copies a row, or several."""
    for t in range(n):
        to[t] = one[t]


@fused
def divide_out(to: Array, row: Array, n: int) -> None:
    """Puts 1 / x of each number x of `to` there, and multiplies `row` with x."""
    for t in range(n):
        row[t] *= to[t]
        to[t] = 1.0 / to[t]


@fused
def invert(a: Array, size: int, det: Array, n: int) -> None:
    """Inverts symmetric positive matrices in place, ``size * size`` rows; fills determinants.

    Each pivot is swept in turn, as in `massrecon.kinematics.mixture_algebra.invert`.
    """
    fill(det, 1.0, n)
    for k in range(size):
        pivot = a[(k * size + k) * LANES :]
        divide_out(pivot, det, n)
        for i in range(size):
            for j in range(i, size):
                if i != k and j != k:
                    left = a[(min(i, k) * size + max(i, k)) * LANES :]
                    right = a[(min(j, k) * size + max(j, k)) * LANES :]
                    sweep(a[(i * size + j) * LANES :], left, right, pivot, n)
        for i in range(size):
            if i != k:
                scale(a[(min(i, k) * size + max(i, k)) * LANES :], pivot, n)
        for t in range(n):
            pivot[t] = -pivot[t]
    for i in range(size):
        for j in range(i, size):
            upper = a[(i * size + j) * LANES :]
            for t in range(n):
                upper[t] = -upper[t]
            if j > i:
                copy(a[(j * size + i) * LANES :], upper, n)


@fused
def sweep(to: Array, left: Array, right: Array, inverse: Array, n: int) -> None:
    """Takes the product of three rows off a fourth."""
    for t in range(n):
        to[t] -= left[t] * right[t] * inverse[t]


@fused
def scale(to: Array, factor: Array, n: int) -> None:
    """Multiplies a row with another."""
    for t in range(n):
        to[t] *= factor[t]
