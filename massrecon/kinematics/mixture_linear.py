"""Linear algebra of small symmetric matrices inside compiled kernels."""

from __future__ import annotations

import math

import numpy as np

from massrecon.kinematics.backends import inlined

Array = np.ndarray


@inlined
def invert(a: Array, n: int) -> float:
    """Inverts a symmetric positive matrix in place and returns log(det) of it."""
    det = 1.0
    for k in range(n):
        pivot = a[k, k]
        det *= pivot
        inverse = 1.0 / pivot
        for i in range(n):
            if i == k:
                continue
            ratio = a[i, k] * inverse
            for j in range(n):
                if j != k:
                    a[i, j] -= ratio * a[k, j]
            a[i, k] = ratio
        for j in range(n):
            a[k, j] *= -inverse
        a[k, k] = inverse
    return math.log(det)
