"""Exponential, hyperbolic tangent and error function of vectors, without a mathematics library.

Errors are the largest seen over a dense sweep of float32 against float64 (`tests/kernels_cpu`).
"""

from __future__ import annotations

import numpy as np

from edgetok.kernels_cpu.simd.emit import inline
from edgetok.kernels_cpu.simd.ops import (
    absolute,
    add,
    div,
    fma,
    i32_as_f32,
    maximum,
    minimum,
    mul,
    round_i32,
    select_less,
    shift_left_i32,
    splat_f32,
    splat_i32,
    sub,
    to_f32,
    zero_f32,
)
from edgetok.kernels_cpu.simd.ops import add_i32 as _add_i32

# Below the first, exp is smaller than the smallest normal float32; above the second it overflows.
_EXP_LOWEST = np.float32(-87.0)
_EXP_HIGHEST = np.float32(88.0)
_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts; the first has so few bits that n times it is exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# exp(r) = 1 + r + r^2 (c0 + c1 r + ...) for |r| <= ln(2) / 2, fitted to 3e-9 by reweighted least
# squares.
_C0 = np.float32(0.4999999343)
_C1 = np.float32(0.166665204)
_C2 = np.float32(0.04166839083)
_C3 = np.float32(0.008368745315)
_C4 = np.float32(0.001381453817)

_ONE = np.float32(1.0)
_TWO = np.float32(2.0)


@inline
def exp(x):  # type: ignore[no-untyped-def]
    """e^x; relative error 2e-7; 0 below -87, e^88 above 88."""
    bounded = minimum(maximum(x, splat_f32(_EXP_LOWEST)), splat_f32(_EXP_HIGHEST))
    n = round_i32(mul(bounded, splat_f32(_LOG2_E)))
    whole = to_f32(n)
    r = fma(whole, splat_f32(-_LN2_HIGH), bounded)
    r = fma(whole, splat_f32(-_LN2_LOW), r)
    p = fma(splat_f32(_C4), r, splat_f32(_C3))
    p = fma(p, r, splat_f32(_C2))
    p = fma(p, r, splat_f32(_C1))
    p = fma(p, r, splat_f32(_C0))
    p = add(fma(p, mul(r, r), r), splat_f32(_ONE))
    power = i32_as_f32(shift_left_i32(_add_i32(n, splat_i32(np.int32(127))), 23))
    return select_less(x, splat_f32(_EXP_LOWEST), zero_f32(), mul(p, power))


@inline
def tanh(x):  # type: ignore[no-untyped-def]
    """Hyperbolic tangent; absolute error 2e-7."""
    size = absolute(x)
    e = exp(mul(size, splat_f32(_TWO)))
    one = splat_f32(_ONE)
    y = sub(one, div(splat_f32(_TWO), add(e, one)))
    return select_less(x, zero_f32(), sub(zero_f32(), y), y)


@inline
def erf(x):  # type: ignore[no-untyped-def]
    """Error function; absolute error 5e-7.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    size = absolute(x)
    one = splat_f32(_ONE)
    t = div(one, fma(splat_f32(np.float32(0.3275911)), size, one))
    p = fma(splat_f32(np.float32(1.061405429)), t, splat_f32(np.float32(-1.453152027)))
    p = fma(p, t, splat_f32(np.float32(1.421413741)))
    p = fma(p, t, splat_f32(np.float32(-0.284496736)))
    p = mul(fma(p, t, splat_f32(np.float32(0.254829592))), t)
    y = sub(one, mul(p, exp(sub(zero_f32(), mul(size, size)))))
    return select_less(x, zero_f32(), sub(zero_f32(), y), y)


@inline
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    one = splat_f32(_ONE)
    return div(one, add(one, exp(sub(zero_f32(), x))))


@inline
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x); relative error 3e-7.

    log(1 + u) = 2 artanh(s) with s = u / (2 + u), for u = e^-|x|: s is at most a third, and of the
    series s + s^3 / 3 + ... the terms behind s^15 / 15 are below 2e-9 of it.
    """
    u = exp(sub(zero_f32(), absolute(x)))
    s = div(u, add(u, splat_f32(_TWO)))
    square = mul(s, s)
    p = splat_f32(np.float32(1 / 15))
    p = fma(p, square, splat_f32(np.float32(1 / 13)))
    p = fma(p, square, splat_f32(np.float32(1 / 11)))
    p = fma(p, square, splat_f32(np.float32(1 / 9)))
    p = fma(p, square, splat_f32(np.float32(1 / 7)))
    p = fma(p, square, splat_f32(np.float32(1 / 5)))
    p = fma(p, square, splat_f32(np.float32(1 / 3)))
    p = fma(p, square, splat_f32(_ONE))
    return fma(mul(s, splat_f32(_TWO)), p, maximum(x, zero_f32()))


@inline
def silu(x):  # type: ignore[no-untyped-def]
    """x / (1 + e^-x)."""
    return div(x, add(splat_f32(_ONE), exp(sub(zero_f32(), x))))


@inline
def relu2(x):  # type: ignore[no-untyped-def]
    """max(x, 0)^2 (arXiv 2109.08668)."""
    positive = maximum(x, zero_f32())
    return mul(positive, positive)


@inline
def gelu(x):  # type: ignore[no-untyped-def]
    """x (1 + erf(x / sqrt 2)) / 2."""
    half = mul(x, splat_f32(np.float32(0.5)))
    return fma(half, erf(mul(x, splat_f32(np.float32(0.7071067811865476)))), half)


@inline
def gelu_tanh(x):  # type: ignore[no-untyped-def]
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    cube = mul(mul(x, x), x)
    inner = fma(cube, splat_f32(np.float32(0.044715)), x)
    half = mul(x, splat_f32(np.float32(0.5)))
    return fma(half, tanh(mul(inner, splat_f32(np.float32(0.7978845608028654)))), half)
