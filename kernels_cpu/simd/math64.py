"""Sine, cosine and exponential of float64 scalars, without a mathematics library.

Plain multiplications and additions, each rounded once, in a fixed order: every instruction set and
every compiler that does not fuse them gives the same bits. Errors are the largest seen over sweeps
against NumPy and mpmath (`tests/kernels_cpu/elementwise/test_angles.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.simd.emit import _F64, f64, i64, inline, op

_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it leaves a rounded integer in the low bits
_TWO_BY_PI = 0.6366197723675814
# pi / 2 in parts; three of at most 22 bits, so that products with n below 2^31 are exact.
_PI_1 = float.fromhex("0x1.921fb0p+0")
_PI_2 = float.fromhex("0x1.5110b0p-22")
_PI_3 = float.fromhex("0x1.184698p-44")
_PI_4 = float.fromhex("0x1.3198a2e037073p-69")
# Source: fdlibm (Sun Microsystems, 1993), k_sin.c and k_cos.c; |r| <= pi / 4.
_S1 = -1.66666666666666324348e-01
_S2 = 8.33333333332248946124e-03
_S3 = -1.98412698298579493134e-04
_S4 = 2.75573137070700676789e-06
_S5 = -2.50507602534068634195e-08
_S6 = 1.58969099521155010221e-10
_C1 = 4.16666666666666019037e-02
_C2 = -1.38888888888741095749e-03
_C3 = 2.48015872894767294178e-05
_C4 = -2.75573143513906633035e-07
_C5 = 2.08757232129817482790e-09
_C6 = -1.13596475577881948265e-11

_LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has so few bits that n times it is exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_EXP_LOWEST = -708.0  # below it e^x is not a normal float64


@op(f64, i64)
def f64_from_bits(b: Any, bits: Any) -> Any:
    """The float64 of these bits."""
    return b.bitcast(bits, _F64)


@op(f64, f64, f64)
def f64_rounded(b: Any, x: Any, magic: Any) -> Any:
    """x + magic - magic."""
    return b.fsub(b.fadd(x, magic), magic)


@inline
def quarter_turns(x):  # type: ignore[no-untyped-def]
    """The multiple of pi / 2 nearest to x, as a float64; |x| < 2^31."""
    return f64_rounded(x * _TWO_BY_PI, _ROUND)


@inline
def within_a_quarter(x, n):  # type: ignore[no-untyped-def]
    """x - n pi / 2."""
    return (((x - n * _PI_1) - n * _PI_2) - n * _PI_3) - n * _PI_4


@inline
def _sin_part(r, z):  # type: ignore[no-untyped-def]
    p = _S2 + z * (_S3 + z * (_S4 + z * (_S5 + z * _S6)))
    return r + (z * r) * (_S1 + z * p)


@inline
def _cos_part(z):  # type: ignore[no-untyped-def]
    p = z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * (_C5 + z * _C6)))))
    half = 0.5 * z
    w = 1.0 - half
    return w + (((1.0 - w) - half) + z * p)


@inline
def sin_of(n, r):  # type: ignore[no-untyped-def]
    """Sine of n pi / 2 + r."""
    z = r * r
    k = np.int64(n)
    value = _cos_part(z) if k & 1 else _sin_part(r, z)
    return -value if k & 2 else value


@inline
def cos_of(n, r):  # type: ignore[no-untyped-def]
    """Cosine of n pi / 2 + r."""
    z = r * r
    k = np.int64(n)
    value = _sin_part(r, z) if k & 1 else _cos_part(z)
    return -value if (k + 1) & 2 else value


@inline
def exp64(x):  # type: ignore[no-untyped-def]
    """e^x for x <= 0; relative error 3e-16; 0 below -708."""
    if not x >= _EXP_LOWEST:
        return 0.0
    n = f64_rounded(x * _LOG2_E, _ROUND)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    # Taylor's series to r^13 / 13!: |r| <= ln(2) / 2 leaves 4e-18.
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = (p * r) * r + r
    return (1.0 + p) * f64_from_bits((np.int64(n) + 1023) << 52)
