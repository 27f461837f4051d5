"""Logarithm, exponential and normal tails without branches, for loops over many numbers at once.

The functions of the C library are called number by number; these are sums and products only, which
a compiler turns into instructions on several numbers. They are good to a few units in the last
place of double precision, see `tests/test_vector_math.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from massrecon.kinematics.backends import fused

_ROOT_TWO = 1.4142135623730951
_LN_2_HIGH = round(math.log(2.0) * 2**32) / 2**32  # its last bits are zero: e times it is exact
_LN_2_LOW = float(Decimal("0.693147180559945309417232121458") - Decimal(_LN_2_HIGH))
_INVERSE_LN_2 = 1.4426950408889634
_MANTISSA_BITS = 52
_EXPONENT_OF_ONE = 1023
_BITS_OF_ROOT_HALF = int(np.float64(_ROOT_TWO / 2).view(np.int64))
_SINGLE_MANTISSA_BITS = np.int32(23)
_SINGLE_BITS_OF_ROOT_HALF = np.float32(_ROOT_TWO / 2).view(np.int32)
_SINGLE_INVERSE_ODD = tuple(np.float32(1.0 / (2 * k + 1)) for k in range(4, 0, -1))
_SINGLE_LN_2 = np.float32(math.log(2.0))
_SINGLE_ONE, _SINGLE_TWO = np.float32(1.0), np.float32(2.0)
_LEAST_EXPONENT = -708.0
_MOST_EXPONENT = 709.0
_INVERSE_ODD = tuple(1.0 / (2 * k + 1) for k in range(10, 0, -1))
_INVERSE_FACTORIALS = tuple(1.0 / math.factorial(k) for k in range(13, 1, -1))
_MIDDLE = 3.0  # of the map of arguments >= 0 of the scaled tail onto -1 to 1
_DEGREE = 18


def _scaled_tail(y: Any) -> Any:
    """Returns exp(t^2) erfc(t) (1 + t) at t = middle (1 + y) / (1 - y), from 1 to 1 / sqrt(pi)."""
    t = _MIDDLE * (1 + y) / np.maximum(1 - y, 1e-12)
    return torch.special.erfcx(torch.as_tensor(t)).numpy() * (1 + t)


_TAIL = tuple(
    float(c)
    for c in np.polynomial.chebyshev.cheb2poly(
        np.polynomial.chebyshev.chebinterpolate(_scaled_tail, _DEGREE)
    )[::-1]
)
_TAIL_FIRST, _TAIL_LAST = _TAIL[:10], _TAIL[10:]  # short loops are unrolled


def _bits_of(x: Any) -> Any:
    """Returns the bits of a number as an integer."""
    return int(np.float64(x).view(np.int64))


def _of_bits(x: Any) -> Any:
    """Returns the number that has the bits of an integer."""
    return float(np.int64(x).view(np.float64))


def _single_bits_of(x: Any) -> Any:
    """Returns the bits of a number in single precision as an integer."""
    return np.float32(x).view(np.int32)


def _single_of_bits(x: Any) -> Any:
    """Returns the number in single precision that has the bits of an integer."""
    return np.int32(x).view(np.float32)


def _bitcast(kind: str, of: str) -> Any:
    """Makes a function for kernels that reads the bits of a number as one of another kind."""
    types = importlib.import_module("numba").types

    def cast(typingctx: Any, x: Any) -> Any:  # pyright: ignore[reportUnusedParameter]  Numba hands it over
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(signature.return_type))

        return getattr(types, kind)(getattr(types, of)), generate

    return importlib.import_module("numba.extending").intrinsic(cast)


if importlib.util.find_spec("numba"):
    _bits_of = _bitcast("int64", "float64")
    _of_bits = _bitcast("float64", "int64")
    _single_bits_of = _bitcast("int32", "float32")
    _single_of_bits = _bitcast("float32", "int32")


@fused
def log(x: float) -> float:
    """Returns the natural logarithm of a positive normal number, and nan for others.

    With x = 2^e m, sqrt(1/2) <= m < sqrt(2), it is e ln 2 + 2 artanh((m - 1) / (m + 1)).
    """
    bits = _bits_of(x)
    e = (bits - _BITS_OF_ROOT_HALF) >> _MANTISSA_BITS
    m = _of_bits(bits - (e << _MANTISSA_BITS))
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 0.0
    for c in _INVERSE_ODD:
        series = (series + c) * z
    found = e * _LN_2_HIGH + (2.0 * s + (2.0 * s * series + e * _LN_2_LOW))
    return found if (x > 0.0) & (x < math.inf) else math.nan


@fused
def single_log(x: np.float32) -> np.float32:
    """Returns the natural logarithm of a positive normal number in single precision.

    It is `log` with fewer terms, good to 3e-7 of the larger of 1 and its value; other numbers give
    anything.
    """
    bits = _single_bits_of(x)
    e = (bits - _SINGLE_BITS_OF_ROOT_HALF) >> _SINGLE_MANTISSA_BITS
    m = _single_of_bits(bits - (e << _SINGLE_MANTISSA_BITS))
    s = (m - _SINGLE_ONE) / (m + _SINGLE_ONE)
    z = s * s
    series = z * _SINGLE_INVERSE_ODD[0]
    for c in _SINGLE_INVERSE_ODD[1:]:
        series = (series + c) * z
    return np.float32(e) * _SINGLE_LN_2 + (_SINGLE_TWO * s + _SINGLE_TWO * s * series)


@fused
def exp(x: float) -> float:
    """Returns the exponential of a number, taken between -708 and 709."""
    x = min(max(x, _LEAST_EXPONENT), _MOST_EXPONENT)
    k = math.floor(x * _INVERSE_LN_2 + 0.5)
    r = (x - k * _LN_2_HIGH) - k * _LN_2_LOW
    series = 0.0
    for c in _INVERSE_FACTORIALS:
        series = (series + c) * r
    power = _of_bits((np.int64(k) + _EXPONENT_OF_ONE) << _MANTISSA_BITS)
    return (1.0 + (r + series * r)) * power


@fused
def tail(x: float) -> float:
    """Returns the probability of a standard normal above |x|, over exp(-x^2 / 2)."""
    t = abs(x) * (1.0 / _ROOT_TWO)
    y = (t - _MIDDLE) / (t + _MIDDLE)
    series = 0.0
    for c in _TAIL_FIRST:
        series = series * y + c
    for c in _TAIL_LAST:
        series = series * y + c
    return 0.5 * series / (1.0 + t)
