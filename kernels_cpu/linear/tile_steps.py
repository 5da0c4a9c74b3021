"""The inner steps of tile products, each emitted as one operation; see `linear/row_steps.py`."""

from __future__ import annotations

from typing import Any

from numba import types

from edgetok.kernels_cpu.linear.code_orders import load_f16_first, load_words
from edgetok.kernels_cpu.linear.row_steps import (
    at,
    clamped,
    fields,
    number,
    pack_tuple,
    transposed,
    unpack_tuple,
)
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I32,
    F32,
    I32,
    LANES,
    NAME,
    U8,
    VB,
    _constant,
    _load,
    _splat,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    broadcast_i32,
    load_f16,
    load_f32,
    load_f32_first,
    load_i32,
    load_u8,
    store_f32,
    store_u8,
)
from edgetok.kernels_cpu.simd.ops import dot_u7s8, dot_u8s8, fma, mul, sub, to_f32

# Vectors of rows and tokens of a register tile: R * T accumulators twice (int32 of a block, float32
# of all), R weights and one activation fill the registers, and R loads + T broadcasts serve R * T
# products. With 16 registers the float sums wait in memory (measured on Zen 5, November 2026).
R = 2
T = {"avx512": 6, "avxvnni": 4, "avx2": 2, "neon": 6, "portable": 2}[NAME]
FLOAT_T = {"avx512": 6, "avxvnni": 4, "avx2": 4, "neon": 6, "portable": 2}[NAME]
RUN = R * LANES  # rows
ROW_BYTES = R * VB  # of scratch for one item of all rows
STEPS = 8  # of four inputs each, in one operation

_I_TILE = types.UniTuple(I32, R * T)
_F_TILE = types.UniTuple(F32, R * T)


@op(void, i64, i64, i64, i64, i64)
def transpose_words(b: Any, w: Any, wb: Any, last: Any, nbytes: Any, out: Any) -> None:
    """LANES rows of `nbytes` (at most VB) to vectors of one word of every row, VB bytes apart.

    Rows after number `last` repeat it; words that are not there are zero.
    """
    rows = []
    for r in range(LANES):
        v = load_words.emit(b, clamped(b, w, r, last, wb), nbytes)
        rows.append(b.bitcast(v, I32.ll))
    for i, v in enumerate(transposed(b, rows)):
        store_u8.emit(b, at(b, out, i, number(VB)), b.bitcast(v, U8.ll))


def _transpose_floats(bits: int, part: bool) -> Any:
    full, first = (load_f16, load_f16_first) if bits == 16 else (load_f32, load_f32_first)

    def emit(b: Any, w: Any, wb: Any, last: Any, out: Any, *count: Any) -> None:
        rows = []
        for r in range(LANES):
            row = clamped(b, w, r, last, wb)
            rows.append(first.emit(b, row, *count) if part else full.emit(b, row))
        for i, v in enumerate(transposed(b, rows)):
            store_f32.emit(b, at(b, out, i, number(ROW_BYTES)), v)

    return op(void, *[i64] * (5 if part else 4))(emit)


# LANES rows of LANES float16 or float32 to vectors of one column each, ROW_BYTES apart.
transpose_f16, transpose_f32 = _transpose_floats(16, False), _transpose_floats(32, False)
# The same with only `count` columns; the others become zero.
transpose_f16_first, transpose_f32_first = _transpose_floats(16, True), _transpose_floats(32, True)


def unpack_words(bits: int) -> Any:
    """Words of LANES rows to unsigned codes plus `shift`, four inputs of a row to a lane.

    Args of the operation: addresses of the vector of words and (3 bits) of the vector of high
    words, how far to shift the latter right, address of the bytes to add (not for 8 bits), address
    of the first plane's result; the others follow ROW_BYTES apart.
    """

    @op(void, i64, i64, i64, i64, i64)
    def unpack(b: Any, words: Any, high: Any, by: Any, shift: Any, out: Any) -> None:
        w = load_u8.emit(b, words)
        if bits == 8:
            store_u8.emit(b, out, w)
            return
        spread = None
        if bits == 3:  # four bits of each of four bytes, out of sixteen
            h = b.lshr(load_i32.emit(b, high), _splat(b, b.trunc(by, _I32), LANES))
            h = b.and_(h, _constant(_I32, LANES, 0xFFFF))
            h = b.or_(h, b.shl(h, _constant(_I32, LANES, 8)))
            h = b.and_(h, _constant(_I32, LANES, 0x00FF00FF))
            h = b.or_(h, b.shl(h, _constant(_I32, LANES, 4)))
            spread = b.bitcast(h, U8.ll)
        shifts = load_u8.emit(b, shift)
        for plane, q in enumerate(fields(b, bits, w, spread)):
            store_u8.emit(b, at(b, out, plane, number(ROW_BYTES)), b.add(q, shifts))

    return unpack


def zeros_of_words(bits: int, offset: int, eight: bool) -> Any:
    """Zero points of `bits` bits, one word of every row, to what a group's codes need of them.

    Args of the operation: addresses of the vector of words, of its first group's scales (8-bit
    weights) and result; the others follow ROW_BYTES apart. The result is offset - zero in every
    byte, or scale * (128 - zero) in float32 for 8-bit weights.
    """

    @op(void, i64, i64, i64)
    def spread(b: Any, words: Any, scales: Any, out: Any) -> None:
        w = load_i32.emit(b, words)
        for i in range(32 // bits):
            z = b.lshr(w, _constant(_I32, LANES, i * bits))
            z = b.and_(z, _constant(_I32, LANES, (1 << bits) - 1))
            place = b.add(out, number(i * ROW_BYTES))
            if eight:
                scale = load_f32.emit(b, b.add(scales, number(i * ROW_BYTES)))
                v = to_f32.emit(b, b.sub(_constant(_I32, LANES, 128), z))
                store_f32.emit(b, place, mul.emit(b, scale, v))
                continue
            v = b.sub(_constant(_I32, LANES, offset), z)
            v = b.or_(v, b.shl(v, _constant(_I32, LANES, 8)))
            v = b.or_(v, b.shl(v, _constant(_I32, LANES, 16)))
            store_u8.emit(b, place, b.bitcast(v, U8.ll))

    return spread


def unpack_floats(bits: int) -> Any:
    """Words of LANES rows to (code - zero) * scale, one input of all rows to a vector.

    Args of the operation: words, high and by as in `unpack_words`; addresses of LANES scales and
    zeros in float32; address of the first input's result; the others follow ROW_BYTES apart.
    """
    stored = 2 if bits == 3 else bits

    @op(void, i64, i64, i64, i64, i64, i64)
    def unpack(b: Any, words: Any, high: Any, by: Any, scales: Any, zeros: Any, out: Any) -> None:
        w = load_i32.emit(b, words)
        h = None
        if bits == 3:
            h = b.lshr(load_i32.emit(b, high), _splat(b, b.trunc(by, _I32), LANES))
        s, z = load_f32.emit(b, scales), load_f32.emit(b, zeros)
        for i in range(32 // stored):
            q = b.lshr(w, _constant(_I32, LANES, i * stored))
            q = b.and_(q, _constant(_I32, LANES, (1 << stored) - 1))
            if h is not None:
                bit = b.and_(b.lshr(h, _constant(_I32, LANES, i)), _constant(_I32, LANES, 1))
                q = b.or_(q, b.shl(bit, _constant(_I32, LANES, 2)))
            value = mul.emit(b, sub.emit(b, to_f32.emit(b, q), z), s)
            store_f32.emit(b, at(b, out, i, number(ROW_BYTES)), value)

    return unpack


@op(_I_TILE, i64, i64)
def tile_start(b: Any, starts: Any, xb: Any) -> Any:
    """int32 of each token's block, in all lanes."""
    values = []
    for t in range(T):
        values.append(_splat(b, _load(b, at(b, starts, t, xb), _I32), LANES))
    return pack_tuple(b, values * R)


def _tile_dot(small: bool) -> Any:
    dot = dot_u7s8 if small else dot_u8s8

    @op(_I_TILE, _I_TILE, i64, i64, i64)
    def tile_dot(b: Any, tile: Any, u: Any, x: Any, xb: Any) -> Any:
        acc = unpack_tuple(b, tile, R * T)
        tokens = [at(b, x, t, xb) for t in range(T)]
        for k in range(STEPS):
            weights = [load_u8.emit(b, b.add(u, number(k * ROW_BYTES + r * VB))) for r in range(R)]
            for t in range(T):
                a = broadcast_i32.emit(b, b.add(tokens[t], number(4 * k)))
                for r in range(R):
                    acc[r * T + t] = dot.emit(b, acc[r * T + t], weights[r], a)
        return pack_tuple(b, acc)

    return tile_dot


# Adds STEPS steps of products of unpacked codes (below 128 for the first) and activations.
tile_dot_u7, tile_dot_u8 = _tile_dot(True), _tile_dot(False)


@op(_F_TILE, _F_TILE, _I_TILE, i64, i64, i64)
def tile_fold(b: Any, f: Any, tile: Any, scales: Any, x_scales: Any, xb: Any) -> Any:
    """f + float(tile) * (scale of each row * scale of each token)."""
    sums, acc = unpack_tuple(b, f, R * T), unpack_tuple(b, tile, R * T)
    rows = [load_f32.emit(b, b.add(scales, number(r * VB))) for r in range(R)]
    for t in range(T):
        a = _splat(b, _load(b, at(b, x_scales, t, xb), _F32), LANES)
        for r in range(R):
            i = r * T + t
            # A product of the scales alone would be ready early and be computed before dot products
            # that others wait for: a quarter slower on Zen 5.
            sums[i] = fma.emit(b, mul.emit(b, to_f32.emit(b, acc[i]), rows[r]), a, sums[i])
    return pack_tuple(b, sums)


def _tile_fma(tokens: int) -> Any:
    tile_type = types.UniTuple(F32, R * tokens)

    @op(tile_type, tile_type, i64, i64, i64)
    def tile_fma(b: Any, f: Any, w: Any, x: Any, xb: Any) -> Any:
        sums = unpack_tuple(b, f, R * tokens)
        weights = [load_f32.emit(b, b.add(w, number(r * VB))) for r in range(R)]
        for t in range(tokens):
            a = _splat(b, _load(b, at(b, x, t, xb), _F32), LANES)
            for r in range(R):
                i = r * tokens + t
                sums[i] = fma.emit(b, weights[r], a, sums[i])
        return pack_tuple(b, sums)

    return tile_fma


def _tile_zero(tokens: int) -> Any:
    @op(types.UniTuple(F32, R * tokens))
    def tile_zero(b: Any) -> Any:
        return pack_tuple(b, [_constant(_F32, LANES, 0.0)] * (R * tokens))

    return tile_zero


def _tile_store(tokens: int) -> Any:
    @op(void, types.UniTuple(F32, R * tokens), i64)
    def tile_store(b: Any, f: Any, out: Any) -> None:
        for r in range(R):
            for t in range(tokens):
                value = b.extract_value(f, r * tokens + t)
                store_f32.emit(b, b.add(out, number(t * ROW_BYTES + r * VB)), value)

    return tile_store


# One input's products of R vectors of rows and T tokens (FLOAT_T, or one).
tile_fma, float_fma, token_fma = _tile_fma(T), _tile_fma(FLOAT_T), _tile_fma(1)
tile_zero, float_zero, token_zero = _tile_zero(T), _tile_zero(FLOAT_T), _tile_zero(1)
# A tile to memory: for each token the rows in order.
tile_store, float_store, token_store = _tile_store(T), _tile_store(FLOAT_T), _tile_store(1)
