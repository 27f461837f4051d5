"""Logarithm, exponential and normal tail of the compiled kernels, against those of torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from massrecon.kinematics import vector_math, vector_rows
from massrecon.kinematics.backends import compiled
from massrecon.kinematics.vector_rows import LANES

pytest.importorskip("numba")

Kernel = Callable[[np.ndarray, np.ndarray], None]


@compiled
def fill_log(x: np.ndarray, out: np.ndarray) -> None:
    for t in range(len(x)):
        out[t] = vector_math.log(x[t])


@compiled
def fill_single_log(x: np.ndarray, out: np.ndarray) -> None:
    for t in range(len(x)):
        out[t] = vector_math.single_log(np.float32(x[t]))


@compiled
def fill_exp(x: np.ndarray, out: np.ndarray) -> None:
    for t in range(len(x)):
        out[t] = vector_math.exp(x[t])


@compiled
def fill_tail(x: np.ndarray, out: np.ndarray) -> None:
    for t in range(len(x)):
        out[t] = vector_math.tail(x[t])


@compiled
def invert_rows(a: np.ndarray, size: int, det: np.ndarray, n: int) -> None:
    vector_rows.invert(a, size, det, n)


def values_of(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    kernel(x, out)
    return out


def test_the_logarithm_is_exact_over_all_normal_numbers() -> None:
    rng = np.random.default_rng(1)
    for x in (
        np.exp(rng.uniform(-708, 709, 50_000)),
        rng.uniform(0.99, 1.01, 50_000),
        2.0 ** np.arange(-1022, 1024),
    ):
        np.testing.assert_allclose(values_of(fill_log, x), np.log(x), rtol=1e-15, atol=0)
    odd = values_of(fill_log, np.array([0.0, -1.0, math.nan, math.inf]))
    assert np.isnan(odd).all()


def test_the_logarithm_in_single_precision() -> None:
    rng = np.random.default_rng(4)
    for low, high in ((-80, 80), (-0.01, 0.01)):
        x = np.exp(rng.uniform(low, high, 50_000)).astype(np.float32).astype(float)
        found = values_of(fill_single_log, x)
        assert (np.abs(found - np.log(x)) <= 3e-7 * np.maximum(1.0, np.abs(np.log(x)))).all()


def test_the_exponential_is_exact_where_it_is_a_normal_number() -> None:
    x = np.random.default_rng(2).uniform(-708, 709, 100_000)
    np.testing.assert_allclose(values_of(fill_exp, x), np.exp(x), rtol=1e-15)
    beyond = values_of(fill_exp, np.array([-1e6, -math.inf, 0.0]))
    assert (beyond[:2] < 1e-300).all()
    assert beyond[2] == 1.0


def test_the_tail_of_a_normal_is_that_of_erfcx() -> None:
    x = np.concatenate([np.linspace(-40, 40, 80_001), [1e3, 1e6]])
    expected = 0.5 * torch.special.erfcx(torch.as_tensor(np.abs(x) / math.sqrt(2))).numpy()
    np.testing.assert_allclose(values_of(fill_tail, x), expected, rtol=2e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rows_of_matrices_are_inverted(size: int) -> None:
    n = LANES - 3
    root = np.random.default_rng(size).normal(size=(n, size, size + 2))
    matrices = root @ root.transpose(0, 2, 1)
    flat, det = np.zeros((size, size, LANES)), np.zeros(LANES)
    flat[..., :n] = matrices.transpose(1, 2, 0)
    below = np.tril_indices(size, -1)
    flat[below] = np.nan  # only what is on and above the diagonal is read
    given = flat.reshape(-1)
    invert_rows(given, size, det, n)
    found = given.reshape(size, size, LANES)[..., :n].transpose(2, 0, 1)
    np.testing.assert_allclose(found @ matrices, np.eye(size)[None].repeat(n, 0), atol=1e-8)
    np.testing.assert_allclose(det[:n], np.linalg.det(matrices), rtol=1e-9)
