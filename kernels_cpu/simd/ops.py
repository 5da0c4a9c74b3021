"""Explicit SIMD for kernels written in Python: vector types and operations on addresses.

A kernel written over this layer compiles for every instruction set in `isa.py`: the vector width
and the integer dot product are chosen when this module is imported, by `target_of_this_build`. One
process builds for one instruction set (see `build.py`).

Types: U8 (VB lanes of 8 bits), I32 and F32 (LANES lanes). Names follow LLVM's. Every operation is
one or a few machine instructions. Here are conversions and arithmetic; `simd/memory.py` has loads
and stores, `simd/threads.py` what a team of threads needs, `simd/emit.py` what all are made of.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I16,
    _I32,
    _I64,
    ARCH,
    F32,
    I32,
    LANES,
    MATRICES,
    NAME,
    U8,
    VB,
    _call,
    _constant,
    _shuffle,
    _splat,
    f32,
    i32,
    i64,
    op,
)

# Constants and conversions


@op(F32, f32)
def splat_f32(b: Any, value: Any) -> Any:
    """The value in every lane."""
    return _splat(b, value, LANES)


@op(I32, i32)
def splat_i32(b: Any, value: Any) -> Any:
    """The value in every lane."""
    return _splat(b, value, LANES)


@op(F32)
def zero_f32(b: Any) -> Any:
    """Zeros."""
    return _constant(_F32, LANES, 0.0)


@op(I32)
def zero_i32(b: Any) -> Any:
    """Zeros."""
    return _constant(_I32, LANES, 0)


@op(F32, I32)
def to_f32(b: Any, v: Any) -> Any:
    """int32 to float32."""
    return b.sitofp(v, F32.ll)


@op(I32, F32)
def round_i32(b: Any, v: Any) -> Any:
    """float32 to int32, to nearest even; |v| < 2^22."""
    # Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits; three cheap operations
    # everywhere, where fptosi would truncate and lrint is not a vector instruction on every target.
    magic = _constant(_F32, LANES, 12582912.0)
    bits = b.bitcast(b.fadd(v, magic), I32.ll)
    return b.sub(bits, _constant(_I32, LANES, 0x4B400000))


@op(F32, I32)
def i32_as_f32(b: Any, v: Any) -> Any:
    """The same bits."""
    return b.bitcast(v, F32.ll)


# Float arithmetic


@op(F32, F32, F32)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y)


@op(F32, F32, F32)
def sub(b: Any, x: Any, y: Any) -> Any:
    """x - y."""
    return b.fsub(x, y)


@op(F32, F32, F32)
def mul(b: Any, x: Any, y: Any) -> Any:
    """x * y."""
    return b.fmul(x, y)


@op(F32, F32, F32)
def div(b: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return b.fdiv(x, y)


@op(F32, F32, F32, F32)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once; twice on the portable target, which would call a function for it."""
    if NAME == "portable":
        return b.fadd(b.fmul(x, y), z)
    return _call(b, f"llvm.fma.v{LANES}f32", F32.ll, x, y, z)


@op(F32, F32, F32)
def maximum(b: Any, x: Any, y: Any) -> Any:
    """Larger of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@op(F32, F32, F32)
def minimum(b: Any, x: Any, y: Any) -> Any:
    """Smaller of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@op(F32, F32, F32, F32, F32)
def select_less(b: Any, x: Any, y: Any, then: Any, other: Any) -> Any:
    """`then` in lanes where x < y, `other` elsewhere."""
    return b.select(b.fcmp_ordered("<", x, y), then, other)


@op(F32, F32)
def absolute(b: Any, x: Any) -> Any:
    """|x|."""
    return _call(b, f"llvm.fabs.v{LANES}f32", F32.ll, x)


@op(f32, F32)
def sum_lanes(b: Any, v: Any) -> Any:
    """Sum of all lanes, as a tree."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        high = _shuffle(b, v, list(range(lanes, 2 * lanes)))
        v = b.fadd(_shuffle(b, v, list(range(lanes))), high)
    return b.extract_element(v, ir.Constant(_I32, 0))


@op(f32, F32)
def max_lanes(b: Any, v: Any) -> Any:
    """Largest of all lanes."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low, high = (
            _shuffle(b, v, list(range(lanes))),
            _shuffle(b, v, list(range(lanes, 2 * lanes))),
        )
        v = b.select(b.fcmp_ordered(">", low, high), low, high)
    return b.extract_element(v, ir.Constant(_I32, 0))


# Integer arithmetic


@op(I32, I32, I32)
def add_i32(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.add(x, y)


@op(I32, I32, i64)
def shift_left_i32(b: Any, x: Any, bits: Any) -> Any:
    """x << bits."""
    return b.shl(x, _splat(b, b.trunc(bits, _I32), LANES))


def _between(b: Any, v: Any, low: Any, high: Any) -> Any:
    above = b.icmp_signed(">=", v, _splat(b, low, LANES))
    return b.and_(above, b.icmp_signed("<=", v, _splat(b, high, LANES)))


@op(F32, I32, i32, i32, F32, F32)
def select_between(b: Any, v: Any, low: Any, high: Any, then: Any, other: Any) -> Any:
    """`then` in lanes where low <= v <= high, `other` elsewhere."""
    return b.select(_between(b, v, low, high), then, other)


@op(i64, I32, i32, i32)
def any_between(b: Any, v: Any, low: Any, high: Any) -> Any:
    """Not 0 where any lane has low <= v <= high."""
    mask = b.bitcast(_between(b, v, low, high), ir.IntType(LANES))
    return b.zext(mask, _I64)


@op(U8, U8, U8)
def or_u8(b: Any, x: Any, y: Any) -> Any:
    """x | y."""
    return b.or_(x, y)


@op(U8, U8, U8)
def xor_u8(b: Any, x: Any, y: Any) -> Any:
    """x ^ y."""
    return b.xor(x, y)


def _field(bits: int, position: int) -> Any:
    """Extract a bit field of every byte; shifts work on 16-bit lanes, the mask cleans up."""

    @op(U8, U8)
    def field(b: Any, v: Any) -> Any:
        if position:
            wide = ir.VectorType(_I16, VB // 2)
            v = b.lshr(b.bitcast(v, wide), _constant(_I16, VB // 2, position))
            v = b.bitcast(v, U8.ll)
        if bits + position == 8 and position == 0:
            return v
        return b.and_(v, _constant(_I8, VB, (1 << bits) - 1))

    return field


# FIELD[bits][i] takes the i-th code of `bits` bits, low first, out of every byte.
FIELD = {bits: tuple(_field(bits, p) for p in range(0, 8, bits)) for bits in (1, 2, 4)}


def _dot_pairs(b: Any, u: Any, s: Any) -> Any:
    """[LANES] int32 of products of 4 bytes each by plain LLVM arithmetic, u unsigned, s signed."""
    total = None
    for i in range(4):
        index = list(range(i, VB, 4))
        x = b.zext(_shuffle(b, u, index), I32.ll)
        y = b.sext(_shuffle(b, s, index), I32.ll)
        total = b.mul(x, y) if total is None else b.add(total, b.mul(x, y))
    return total


def _dot_wide(b: Any, u: Any, s: Any) -> Any:
    """WebAssembly: the same; its one integer dot product takes int16 and adds pairs."""
    sums = []
    for half in (list(range(8)), list(range(8, 16))):
        wide = ir.VectorType(_I16, 8)
        x, y = b.zext(_shuffle(b, u, half), wide), b.sext(_shuffle(b, s, half), wide)
        sums.append(_call(b, "llvm.wasm.dot", I32.ll, x, y))
    even, odd = (_shuffle(b, sums[0], list(range(i, 8, 2)), sums[1]) for i in range(2))
    return b.add(even, odd)


def multiply_pairs(b: Any, u: Any, s: Any) -> Any:
    """AVX2, an emitter: int16 of products of 2 bytes each, u < 128 unsigned, s signed."""
    return _call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(_I16, 16), u, s)


def wide_pairs(b: Any, x: Any, y: Any) -> Any:
    """AVX2, an emitter: [LANES] int32 of products of 2 int16 each."""
    return _call(b, "llvm.x86.avx2.pmadd.wd", I32.ll, x, y)


def widen_pairs(b: Any, v: Any) -> Any:
    """AVX2, an emitter: [LANES] int32 of sums of 2 int16 each."""
    return wide_pairs(b, v, _constant(_I16, 16, 1))


def _dot(small: bool) -> Any:
    """u8 x s8 dot products of 4 added to int32; `small` promises u < 128."""

    @op(I32, I32, U8, U8)
    def dot(b: Any, acc: Any, u: Any, s: Any) -> Any:
        if NAME == "avx512":
            return _call(b, "llvm.x86.avx512.vpdpbusd.512", I32.ll, acc, u, s)
        if NAME == "avxvnni":
            return _call(b, "llvm.x86.avx512.vpdpbusd.256", I32.ll, acc, u, s)
        if NAME == "avx2":
            half = ir.VectorType(_I16, 16)
            ones = _constant(_I16, 16, 1)

            def pairs(x: Any) -> Any:
                return widen_pairs(b, multiply_pairs(b, x, s))

            if small:  # 2 * 127 * 128 < 2^15: the saturating pair sum cannot saturate
                return b.add(acc, pairs(u))
            low = b.and_(u, _constant(_I8, VB, 0x7F))
            high = b.and_(b.lshr(b.bitcast(u, half), _constant(_I16, 16, 7)), ones)
            top = b.lshr(b.bitcast(u, half), _constant(_I16, 16, 15))
            high = b.or_(high, b.shl(top, _constant(_I16, 16, 8)))
            high = pairs(b.bitcast(high, U8.ll))
            return b.add(b.add(acc, pairs(low)), b.shl(high, _constant(_I32, LANES, 7)))
        if MATRICES and not small:
            return _call(b, "llvm.aarch64.neon.usdot.v4i32.v16i8", I32.ll, acc, u, s)
        if NAME == "neon" and small:
            return _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32.ll, acc, u, s)
        if NAME == "neon":  # u = (u - 128) + 128, the first part signed
            signed = b.xor(u, _constant(_I8, VB, 0x80))
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            ones8 = _constant(_I8, VB, 1)
            total = _call(b, name, I32.ll, _constant(_I32, LANES, 0), ones8, s)
            acc = b.add(acc, b.shl(total, _constant(_I32, LANES, 7)))
            return _call(b, name, I32.ll, acc, signed, s)
        return b.add(acc, (_dot_wide if ARCH == "wasm32" else _dot_pairs)(b, u, s))

    return dot


def multiply_matrices(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """An emitter, where MATRICES: acc [2, 2] + u [2, 8] unsigned by the transpose of s [2, 8]."""
    return _call(b, "llvm.aarch64.neon.usmmla.v4i32.v16i8", I32.ll, acc, u, s)


# acc [LANES] + sum over 4 consecutive bytes of u (unsigned) * s (signed).
dot_u8s8 = _dot(small=False)
# The same where every u < 128: one instruction less on some targets.
dot_u7s8 = _dot(small=True)
